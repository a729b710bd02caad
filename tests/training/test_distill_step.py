"""One step of distillation: teacher = student, micro-batches, padding, memory, shares."""

import dataclasses

import pytest
import torch

from pipestill.losses import response
from pipestill.models.loading import load
from pipestill.training import distill_response
from pipestill.training.compiling import compile_blocks
from pipestill.training.distill_step import gradient_norm, several_backwards
from tests.training.distilling import folder_of, gradients, made

KINDS = ("t5_tied", "t5_untied", "gpt2", "llama")
ROWS = [0, 3, 5, 7, 8, 9, 11, 12]
TOKENWISE = [
    "response", "response/jsd", "feature/hidden_mse", "feature/attention", "feature/minilm",
    "relation/ranking", "self/context",
]  # fmt: skip


def folders(tmp_path, student, teacher, seeds=(1, 2)):
    return (
        folder_of(student, tmp_path / "student_model", seeds[0]),
        folder_of(teacher, tmp_path / "teacher_model", seeds[1]),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["response", "response/reverse_kl", "feature", "relation"])
def test_a_teacher_equal_to_the_student_teaches_nothing(tmp_path, kind, objective):
    names = folders(tmp_path, kind, kind, (1, 1))
    plan, job, _ = made(tmp_path, *names, objective, kd_weight=1.0, tau=2.0)
    terms, found = gradients(plan, job, ROWS)
    (name,) = [n for n in plan.names if n != "label_loss"]
    assert terms[name] == pytest.approx(0, abs=1e-6)
    plan, job, _ = made(tmp_path, *names, objective, kd_weight=0.0001, tau=2.0)
    _, usual = gradients(plan, job, ROWS)
    norms = [sum(float(g.square().sum()) for g in one.values()) ** 0.5 for one in (found, usual)]
    assert norms[0] < 1e-4 * norms[1]


@pytest.mark.parametrize("objective", TOKENWISE)
@pytest.mark.parametrize(
    "pair", [("t5_tied", "t5_untied"), ("llama", "llama"), ("t5_tied", "llama")]
)
def test_micro_batches_add_up_to_the_whole_step(tmp_path, objective, pair):
    names = folders(tmp_path, *pair)
    plan, job, _ = made(tmp_path, *names, objective)
    if objective.startswith("self"):
        with torch.no_grad():  # so that the average differs from the student
            for weight in job.model.parameters():
                weight.mul_(1.1)
    whole, expected = gradients(plan, job, ROWS, 10**6)
    apart, found = gradients(plan, job, ROWS, 1)
    for name in plan.names:
        assert whole[name] == pytest.approx(apart[name], rel=1e-5, abs=1e-7)
    assert whole[plan.names[1]] > 1e-5
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6)


def test_a_batch_wise_term_weighs_micro_batches_by_their_examples(tmp_path):
    plan, job, _ = made(tmp_path, *folders(tmp_path, "llama", "llama"), "relation/pkt")
    whole, _ = gradients(plan, job, ROWS, 10**6)
    half, _ = gradients(plan, job, ROWS, 90)
    assert whole["label_loss"] == pytest.approx(half["label_loss"], rel=1e-5)
    assert whole["relation_loss"] != pytest.approx(half["relation_loss"], rel=1e-3)
    assert half["relation_loss"] > 0


@pytest.mark.parametrize("pair", [("t5_tied", "llama"), ("llama", "t5_untied")])
@pytest.mark.parametrize("objective", ["response", "feature", "feature/attention", "relation/rkd"])
def test_padding_changes_nothing(tmp_path, pair, objective):
    """Each example is compared alone and among longer ones; relations need the same examples."""
    plan, job, _ = made(tmp_path, *folders(tmp_path, *pair), objective)
    together, _ = gradients(plan, job, ROWS, 10**6)
    wide = dataclasses.replace(job, shape=dataclasses.replace(job.shape, may_split=False))
    other, _ = gradients(plan, wide, list(reversed(ROWS)), 10**6)
    for name in plan.names:
        assert together[name] == pytest.approx(other[name], rel=1e-4)


def test_chunks_of_the_head_change_nothing(tmp_path, monkeypatch):
    plan, job, _ = made(tmp_path, *folders(tmp_path, "t5_tied", "llama"), "response/jsd")
    whole, expected = gradients(plan, job, ROWS, 10**6)
    sizes = []

    def small(vocabulary):
        sizes.append(vocabulary)
        return 3

    monkeypatch.setattr(distill_response, "rows_per_chunk", small)
    cut, found = gradients(plan, job, ROWS, 10**6)
    assert sizes
    assert cut["kd_loss"] == pytest.approx(whole["kd_loss"], rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_no_logits_of_all_positions_exist(tmp_path, monkeypatch):
    """The teacher's head never sees more positions than a chunk has."""
    plan, job, _ = made(tmp_path, *folders(tmp_path, "t5_tied", "llama"), "response")
    monkeypatch.setattr(distill_response, "rows_per_chunk", lambda _: 4)
    seen = []
    original = response.forward_kl

    def watched(student, teacher, **given):
        seen.append((len(student), len(teacher)))
        return original(student, teacher, **given)

    monkeypatch.setattr(response, "forward_kl", watched)
    gradients(plan, job, ROWS, 10**6)
    assert max(max(pair) for pair in seen) == 4
    assert sum(pair[0] for pair in seen) > 4 * 4


def test_terms_are_those_of_the_plain_formula(tmp_path):
    """(1 − w)·CE + w·τ²·KL from whole logits of one row after the other."""
    config = {"kd_weight": 0.3, "tau": 2.0}
    student, teacher = folders(tmp_path, "llama", "llama")
    plan, job, loaded = made(tmp_path, student, teacher, "response", **config)
    other, size = load(teacher, precision="fp32").model, len(loaded.tokenizer.get_vocab())
    losses, tokens, data = 0.0, 0, job.train
    for s in ROWS:
        start, length = int(data.source_start[s]), int(data.source_length[s])
        begin, count = int(data.target_start[s]), int(data.target_length[s])
        prompt, target = data.source[start : start + length], data.target[begin : begin + count]
        ids = torch.cat([prompt, target]).long()[None]
        places = slice(length - 1, length + count - 1)
        mine, theirs = (m(input_ids=ids).logits[0, places] for m in (loaded.model, other))
        nll = torch.nn.functional.cross_entropy(mine, target.long(), reduction="sum")
        # The models have six more rows than the tokenizer has tokens.
        p, q = (x[:, :size].div(2.0).log_softmax(-1) for x in (theirs.detach(), mine))
        kl = (p.exp() * (p - q)).sum()
        losses = losses + 0.7 * nll + 0.3 * 4 * kl
        tokens += count
    expected = torch.autograd.grad(losses / tokens, list(loaded.model.parameters()))
    _, found = gradients(plan, job, ROWS, 10**6)
    for (name, _), gradient in zip(loaded.model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_shares_are_those_of_the_gradient_norms(tmp_path):
    plan, job, _ = made(tmp_path, *folders(tmp_path, "t5_tied", "t5_tied"), "response")
    terms, _ = gradients(plan, job, ROWS, 10**6)
    assert terms["label_share"] + terms["kd_share"] == pytest.approx(1)
    norms = []
    for weight in (1e-9, 1.0):
        alone = made(
            tmp_path,
            str(tmp_path / "student_model"),
            str(tmp_path / "teacher_model"),
            "response",
            kd_weight=weight,
        )
        _, found = gradients(alone[0], alone[1], ROWS, 10**6)
        norms.append(float(torch.stack([g.norm() for g in found.values()]).norm()))
    assert terms["kd_share"] == pytest.approx(norms[1] / sum(norms), rel=1e-3)


@pytest.mark.parametrize("objective", ["response", "relation", "feature"])
def test_balanced_terms_pull_as_hard_as_the_cross_entropy(tmp_path, objective):
    more = {"auto_balance": True}
    plan, job, _ = made(tmp_path, *folders(tmp_path, "llama", "llama"), objective, **more)
    terms, _ = gradients(plan, job, ROWS, 10**6)
    assert terms["label_share"] == pytest.approx(0.5, abs=1e-4)
    assert float(job.model.distillation.balance[1]) not in (0.0, 1.0)
    assert float(job.model.distillation.balance[0]) == 0.0


def test_a_projection_is_not_counted_as_the_students_gradient():
    model = torch.nn.Linear(2, 2)
    model.distillation = torch.nn.Linear(2, 2)
    value = model.distillation(torch.ones(1, 2)).sum()
    assert gradient_norm(model, value) == 0.0
    assert gradient_norm(model, model(torch.ones(1, 2)).sum()) > 0


@pytest.mark.slow
def test_terms_are_measured_through_compiled_layers(tmp_path):
    """As on a GPU; without `several_backwards` the measured terms would be refused."""
    plan, job, loaded = made(tmp_path, *folders(tmp_path, "llama", "llama"), "response")
    expected, _ = gradients(plan, job, ROWS)
    assert compile_blocks(loaded.model, "on", "cpu", backend="aot_eager") == 2
    with several_backwards():
        found, _ = gradients(plan, job, ROWS)
    assert found == pytest.approx(expected, rel=1e-4)
