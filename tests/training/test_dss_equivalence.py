"""One forward pass over both tasks equals the paper's two passes: loss and every gradient.

The references here know nothing of the library's batching: they call the model row by row or let
the model compute its own loss.
"""

import dataclasses

import pytest
import torch

from pipestill.models.render import renderer_for
from pipestill.records import Labelled
from pipestill.training.forward import batch_nll, collate
from pipestill.training.loop import fit
from pipestill.training.step import Job, accumulate
from pipestill.training.student import make_job
from tests.training.tiny import KINDS, config, make_data, make_loaded, make_rows

ROWS = make_rows(8, every=3)
IGNORED = -100


def make_test_job(kind: str, alpha: float, rows: list[Labelled], objective: str = "dss") -> Job:
    loaded = make_loaded(kind, torch.float64)
    data, shape = make_data(loaded, rows, objective)
    return Job(loaded.model, data, None, [1] * len(rows), shape, config(), alpha, 1e-3, 0)


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def reference_mean(model, tokenizer, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Mean token CE of (input, target) texts, every row alone and unpadded."""
    nll, count = torch.zeros((), dtype=torch.float64), 0
    for source, target in pairs:
        if model.config.is_encoder_decoder:
            ids = torch.tensor([tokenizer(source).input_ids])
            labels = torch.tensor([tokenizer(target).input_ids])
            logits = model(input_ids=ids, labels=labels).logits[0]
        else:
            prompt = tokenizer(source + "\n").input_ids
            answer = [*tokenizer(target).input_ids, tokenizer.eos_token_id]
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
            logits, labels = logits[len(prompt) - 1 : -1], torch.tensor([answer])
        nll = nll + torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")
        count += labels.numel()
    return nll / count


def two_passes(loaded, alpha: float, rows: list[Labelled]) -> float:
    """The loss of Hsieh et al.'s `compute_loss`; leaves its gradients in the model."""
    predict = [("predict: " + r.input_text, r.output_text) for r in rows]
    explain = [("explain: " + r.input_text, r.rationale) for r in rows if r.rationale]
    label = reference_mean(loaded.model, loaded.tokenizer, predict)
    rationale = reference_mean(loaded.model, loaded.tokenizer, explain)
    loss = alpha * label + (1 - alpha) * rationale
    loss.backward()
    return float(loss.detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.5, 0.2, 1.0, 0.0])
def test_one_pass_equals_two_passes(kind, alpha):
    job = make_test_job(kind, alpha, ROWS)
    sums = accumulate(job, range(len(ROWS)))
    assert 0 < sums.label_count < 0.7 * sums.rationale_count  # equal counts would prove little
    loss = alpha * sums.terms["label_loss"][0] / sums.label_count
    loss += (1 - alpha) * sums.terms["rationale_loss"][0] / sums.rationale_count
    reference = make_loaded(kind, torch.float64)
    assert float(loss) == pytest.approx(two_passes(reference, alpha, ROWS), abs=1e-6)
    wanted, found = gradients(reference.model), gradients(job.model)
    assert wanted.keys() == found.keys()
    assert any(float(grad.abs().max()) > 1e-3 for grad in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", ["t5_tied", "t5_untied"])
def test_label_only_is_the_model_s_own_fine_tuning_loss(kind):
    job = make_test_job(kind, 1.0, ROWS, "label_only")
    sums = accumulate(job, range(len(ROWS)))
    other = make_loaded(kind, torch.float64)
    source = other.tokenizer(["predict: " + r.input_text for r in ROWS], padding=True)
    labels = other.tokenizer([r.output_text for r in ROWS], padding=True)
    wanted = torch.tensor(labels.input_ids).masked_fill(
        torch.tensor(labels.attention_mask) == 0, IGNORED
    )
    loss = other.model(
        input_ids=torch.tensor(source.input_ids),
        attention_mask=torch.tensor(source.attention_mask),
        labels=wanted,
    ).loss
    loss.backward()
    assert float(sums.terms["label_loss"][0] / sums.label_count) == pytest.approx(
        float(loss), abs=1e-6
    )
    for name, grad in gradients(other.model).items():
        torch.testing.assert_close(gradients(job.model)[name], grad, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["dss", "label_then_rationale"])
def test_eight_parts_of_one_equal_one_part_of_eight(kind, objective):
    whole = make_test_job(kind, 0.4, ROWS, objective)
    parts = make_test_job(kind, 0.4, ROWS, objective)
    a = accumulate(whole, range(8))
    b = accumulate(parts, range(8), tokens_per_forward=1)
    for name, (total, count) in a.terms.items():
        assert float(total) == pytest.approx(float(b.terms[name][0]), abs=1e-9)
        assert count == b.terms[name][1]
    for name, grad in gradients(whole.model).items():
        torch.testing.assert_close(gradients(parts.model)[name], grad, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_more_padding_changes_nothing(kind):
    """Rows are padded to the length of a much longer one beside them."""
    loaded = make_loaded(kind, torch.float64)
    long = dataclasses.replace(ROWS[0], input_text="h " * 40, rationale="long " * 12)
    data, shape = make_data(loaded, [*ROWS, long])
    short = [s for found in data.of_row[:8] for s in found]
    alone = collate(data, short, shape)
    beside = collate(data, short + data.of_row[8], shape)
    together = batch_nll(loaded.model, beside, shape)
    nll = batch_nll(loaded.model, alone, shape)
    assert sorted(nll.tolist()) == pytest.approx(
        sorted(take_rows(together, beside, data, data.of_row[8])), abs=1e-9
    )


def take_rows(nll, batch, data, dropped: list[int]) -> list[float]:
    """The values of all rows but the two longest targets' owners, which are `dropped`."""
    order = torch.tensor([s for found in data.of_row for s in found])
    order = order[data.target_length[order].argsort(stable=True)].tolist()
    kept, start, row = [], 0, 0
    for piece in batch.pieces:
        for i in range(piece.rows):
            mine = nll[start : start + len(piece.row)][piece.row == i]
            kept += [] if order[row] in dropped else mine.tolist()
            row += 1
        start += len(piece.row)
    return kept


def trained(kind: str, objective: str, alpha: float, rows: list[Labelled]) -> dict:
    loaded = make_loaded(kind)
    job = make_job(
        loaded, renderer_for(loaded, 128, 64), rows, [], objective, 3, config(alpha=alpha)
    )
    fit(job, None)
    return dict(loaded.model.state_dict())


@pytest.mark.parametrize("kind", ["t5_tied", "gpt2"])
def test_alpha_one_is_standard_fine_tuning_bit_for_bit(kind):
    standard, other = trained(kind, "label_only", 0.5, ROWS), trained(kind, "dss", 1.0, ROWS)
    assert all(torch.equal(standard[name], other[name]) for name in standard)


@pytest.mark.parametrize("objective", ["dss", "shuffled", "label_then_rationale"])
def test_rows_without_rationales_are_standard_fine_tuning_bit_for_bit(objective):
    bare = [dataclasses.replace(row, rationale=None) for row in ROWS]
    standard = trained("t5_tied", "label_only", 0.5, bare)
    other = trained("t5_tied", objective, 0.3, bare)
    assert all(torch.equal(standard[name], other[name]) for name in standard)


@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_rationales_change_the_student(kind):
    a, b = trained(kind, "dss", 0.5, ROWS), trained(kind, "label_only", 0.5, ROWS)
    assert any(not torch.equal(a[name], b[name]) for name in a)
