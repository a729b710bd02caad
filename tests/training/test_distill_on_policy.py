"""The student's own samples, scored by the teacher."""

import dataclasses
from functools import partial

import pytest
import torch

from pipestill.losses.response import reverse_kl
from pipestill.models.loading import load
from pipestill.training import on_policy
from pipestill.training.on_policy import sample, sampled_rows
from tests.training.distilling import folder_of, gradients, made

ROWS = [0, 3, 5, 7, 8, 9, 11, 12]


def planned(tmp_path, student="llama", teacher="llama", objective="on_policy", **more):
    names = folder_of(student, tmp_path / "s", 1), folder_of(teacher, tmp_path / "t", 2)
    return (*made(tmp_path, *names, objective, **more), names)


def drawn(job, step=1, limit=8, **more):
    given = {"temperature": 1.0, "limit": limit, "end": 1, "size": 294, **more}
    return sample(job, ROWS, step, **given)


@pytest.mark.parametrize("kind", ["t5_tied", "t5_untied", "gpt2", "llama"])
def test_samples_follow_from_seed_and_step_alone(tmp_path, kind):
    _, job, loaded, _ = planned(tmp_path, kind)
    state = torch.get_rng_state()
    one = drawn(job, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert drawn(job, 3) == one
    assert drawn(job, 4) != one
    assert drawn(dataclasses.replace(job, seed=1), 3) != one
    assert loaded.model.training


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_samples_end_with_their_end_mark_or_at_the_limit(tmp_path, kind):
    _, job, loaded, _ = planned(tmp_path, kind)
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[1] *= 3  # so that some end early
    found = [answer for step in range(6) for answer in drawn(job, step)]
    assert all(1 <= len(answer) <= 8 for answer in found)
    assert all(1 not in answer[:-1] for answer in found)
    assert all(answer[-1] == 1 or len(answer) == 8 for answer in found)
    assert max(max(answer) for answer in found) < 294


def test_ids_beyond_the_vocabulary_are_never_drawn(tmp_path):
    _, job, loaded, _ = planned(tmp_path)
    with torch.no_grad():
        loaded.model.lm_head.weight[294:] = loaded.model.lm_head.weight[:6] * 50
    found = [answer for step in range(4) for answer in drawn(job, step)]
    assert max(max(answer) for answer in found) < 294


@pytest.mark.parametrize("kind", ["t5_tied", "gpt2", "llama"])
def test_samples_come_from_the_students_whole_distribution(tmp_path, kind):
    """First tokens of one prompt against its soft-max: no top-p, no top-k, left padding."""
    _, job, loaded, _ = planned(tmp_path, kind)
    rows = [ROWS[0]] * 400 + [int(job.train.source_length.argmax())]
    found = [a[0] for a in sample(job, rows, 1, temperature=0.5, limit=1, end=1, size=294)][:400]
    data, s = job.train, ROWS[0]
    start, length = int(data.source_start[s]), int(data.source_length[s])
    ids = {"input_ids": data.source[start : start + length].long()[None]}
    if loaded.is_encoder_decoder:
        ids["decoder_input_ids"] = torch.tensor([[0]])
    loaded.model.eval()
    with torch.no_grad():
        logits = loaded.model(**ids).logits[0, -1, :294]
    wanted = (logits / 0.5).softmax(-1)
    drawn_share = torch.bincount(torch.tensor(found), minlength=294) / 400
    top = wanted.topk(5).indices
    error = (wanted[top] * (1 - wanted[top]) / 400).sqrt()
    assert ((drawn_share[top] - wanted[top]).abs() < 4.5 * error + 1e-3).all()


def test_the_share_of_rows_follows_the_fraction():
    assert sampled_rows(ROWS, 0.0, 0, 1) == []
    assert sampled_rows(ROWS, 1.0, 0, 1) == ROWS
    half = sampled_rows(ROWS, 0.5, 0, 1)
    assert len(half) == 4
    assert half == sampled_rows(ROWS, 0.5, 0, 1)
    assert any(half != sampled_rows(ROWS, 0.5, 0, step) for step in range(2, 6))


@pytest.mark.parametrize("pair", [("llama", "llama"), ("t5_tied", "llama"), ("gpt2", "t5_untied")])
def test_the_teacher_scores_the_very_tokens(tmp_path, pair):
    """Against whole logits of both, one sample after the other."""
    plan, job, loaded, names = planned(tmp_path, *pair, on_policy_fraction=1.0)
    (work,) = plan.works(job, ROWS, 1)
    terms, _ = gradients(plan, job, ROWS)
    answers = drawn(job, 1, limit=32)
    teacher, theirs = (
        load(names[1], precision="fp32").model.eval(),
        work.compute.keywords["teacher"],
    )
    loaded.model.eval()
    total, count = 0.0, 0
    for i, (s, answer) in enumerate(zip(ROWS, answers, strict=True)):
        sides = []
        for model, data, place in ((loaded.model, job.train, s), (teacher, theirs.data, i)):
            start, length = int(data.source_start[place]), int(data.source_length[place])
            prompt = data.source[start : start + length].long().tolist()
            with torch.no_grad():
                if model.config.is_encoder_decoder:
                    given = torch.tensor([[0, *answer[:-1]]])
                    ids = torch.tensor([prompt])
                    logits = model(input_ids=ids, decoder_input_ids=given).logits[0]
                else:
                    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
                    logits = logits[length - 1 : -1]
            sides.append(logits[:, :294])
        total += float(reverse_kl(*sides).sum())
        count += len(answer)
    assert terms["on_policy_loss"] == pytest.approx(total / count, rel=1e-4)
    assert work.terms["on_policy_loss"].count == count


def test_every_token_weighs_the_same(tmp_path):
    plan, job, _, _ = planned(tmp_path, kd_weight=0.25, tau=2.0)
    stored, sampled = plan.works(job, ROWS, 1)
    total = stored.terms["label_loss"].count + sampled.terms["on_policy_loss"].count
    weights = {
        name: term.weight / term.count * total
        for work in (stored, sampled)
        for name, term in work.terms.items()
    }
    assert weights == pytest.approx({"label_loss": 0.75, "kd_loss": 1.0, "on_policy_loss": 4.0})
    assert {job.ids[s] for s in stored.sequences}.isdisjoint(
        job.ids[s] for s in sampled_rows(ROWS, 0.5, job.seed, 1)
    )


def test_micro_batches_add_up(tmp_path):
    plan, job, _, _ = planned(tmp_path, "t5_tied")
    whole, expected = gradients(plan, job, ROWS, 10**6)
    apart, found = gradients(plan, job, ROWS, 1)
    for name in plan.names:
        assert whole[name] == pytest.approx(apart[name], rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6)


def test_answers_that_are_only_an_end_mark_are_scored(tmp_path, monkeypatch):
    plan, job, _, _ = planned(tmp_path, on_policy_fraction=1.0)
    monkeypatch.setattr(on_policy, "sample", lambda job, rows, *_, **__: [[1]] * len(rows))
    terms, _ = gradients(plan, job, ROWS)
    assert terms["on_policy_loss"] > 0
    (work,) = plan.works(job, ROWS, 1)
    assert work.terms["on_policy_loss"].count == len(ROWS)
    assert isinstance(work.compute, partial)
