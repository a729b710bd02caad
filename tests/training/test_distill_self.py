"""The student as its own teacher: moving average, demonstrations."""

import copy

import pytest
import torch

from pipestill.training.distill_step import accumulate, attach, detach
from pipestill.training.forward import batch_nll, collate
from pipestill.training.resume import weights_of
from pipestill.training.self_distill import average_of, follow, with_demonstrations
from pipestill.training.teacher_states import in_order
from tests.training.distilling import distill_rows, folder_of, made
from tests.training.tiny import make_loaded

KINDS = ("t5_tied", "t5_untied", "gpt2", "llama")
ROWS = [0, 3, 5, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_the_mean_that_it_says(tmp_path, kind):
    name = folder_of(kind, tmp_path / "s")
    plan, job, loaded = made(tmp_path, name, "", "self/ema", ema_decay=0.75)
    before = copy.deepcopy(loaded.model.distillation.average.model)
    names = dict(before.named_buffers())
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.add_(1.0)
    plan.updated(job, 1)
    after = dict(loaded.model.distillation.average.model.named_buffers())
    trained = dict(loaded.model.named_parameters())
    moved = [n for n in names if n in trained]
    assert len(moved) == sum(not n.startswith("distillation") for n in trained)
    for n in moved:
        torch.testing.assert_close(after[n], 0.75 * names[n] + 0.25 * trained[n])


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_computes_like_the_model_and_learns_nothing(kind):
    loaded = make_loaded(kind)
    model = loaded.model
    plain = dict(model.named_parameters())
    attach(model, average=average_of(model))
    assert {n for n, w in model.named_parameters() if w.requires_grad} == set(plain)
    kept = [n for n in weights_of(model) if n.startswith("distillation.average")]
    assert len(kept) >= len(plain)
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    if loaded.is_encoder_decoder:
        ids["decoder_input_ids"] = torch.tensor([[0, 9]])
    average = model.distillation.average
    torch.testing.assert_close(average.model(**ids).logits, model(**ids).logits)
    model.train()
    assert not average.training
    assert not any(module.training for module in average.modules())
    if kind == "t5_tied":
        buffers = average.model
        assert buffers.lm_head.weight is buffers.shared.weight
    detach(model)
    assert dict(model.named_parameters()).keys() == plain.keys()
    assert not hasattr(model, "distillation")


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_an_untrained_average_is_the_student_itself(tmp_path, kind):
    plan, job, _ = made(tmp_path, folder_of(kind, tmp_path / "s"), "", "self/ema")
    sums = accumulate(plan, job, ROWS, 1)
    assert float(sums.terms["kd_loss"][0]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_demonstrations_stand_before_the_input_and_never_show_the_row(tmp_path, kind):
    plan, job, loaded = made(tmp_path, folder_of(kind, tmp_path / "s"), "", "self/context")
    (work,) = plan.works(job, ROWS, 1)
    data = work.compute.keywords["teacher"].data
    rows = [row for row in distill_rows() if row.id in job.ids]
    assert torch.equal(data.target, job.train.target)
    by_id = {row.id: row for row in rows}
    for s, name in enumerate(job.ids):
        start, length = int(data.source_start[s]), int(data.source_length[s])
        text = loaded.tokenizer.decode(data.source[start : start + length])
        own = by_id[name]
        assert text.removesuffix("</s>").rstrip("\n").endswith(own.input_text)
        shown = text.split("\n\n")[:-1]
        assert len(shown) == 4
        for one in shown:
            question, answer = one.split("\n")
            (row,) = [r for r in rows if r.input_text == question]
            assert row.id != name
            assert answer == row.teacher_label


def test_demonstrations_that_do_not_fit_are_left_out(tmp_path):
    name = folder_of("llama", tmp_path / "s")
    _, job, loaded = made(tmp_path, name, "", "self/ema")
    from pipestill.models.render import Renderer

    renderer = Renderer(loaded.tokenizer, False, 60, 32, "plain")
    rows = [row for row in distill_rows() if row.id in job.ids]
    data, fewer = with_demonstrations(job.train, rows, renderer, 4, 0)
    assert 0 < fewer <= len(rows)
    assert data.cut_inputs == 0
    assert int(data.source_length.max()) <= 60


def test_the_same_seed_shows_the_same_rows(tmp_path):
    _, job, loaded = made(tmp_path, folder_of("llama", tmp_path / "s"), "", "self/ema")
    from pipestill.models.render import Renderer

    renderer = Renderer(loaded.tokenizer, False, 128, 32, "plain")
    rows = [row for row in distill_rows() if row.id in job.ids]
    one, again, other = (
        with_demonstrations(job.train, rows, renderer, 2, seed)[0].source for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert len(one) != len(other) or not torch.equal(one, other)


def test_context_teaches_what_the_demonstrated_student_says(tmp_path):
    """The teacher's likelihood of the targets is that of the student shown the same rows."""
    plan, job, loaded = made(tmp_path, folder_of("llama", tmp_path / "s"), "", "self/context")
    (work,) = plan.works(job, ROWS, 1)
    teacher = work.compute.keywords["teacher"]
    with torch.no_grad():
        mine = batch_nll(loaded.model, collate(teacher.data, ROWS, job.shape), job.shape)
        theirs = batch_nll(teacher.of(loaded.model), teacher.batch(ROWS), teacher.shape)
    torch.testing.assert_close(mine, theirs)
    follow(job, 0.0)
    assert in_order(job.train, ROWS)
