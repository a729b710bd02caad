"""The work of one step, exact over micro-batches, and the validation of the label task."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.config import TrainConfig
from pipestill.losses.dss import LABEL, dss_loss
from pipestill.training.batches import Encoded
from pipestill.training.forward import Shape, batch_logits, batch_nll, collate

# Padded tokens of one forward pass. A larger step is accumulated, with an equal result.
TOKENS_PER_FORWARD = 32_768


@dataclass(frozen=True)
class Job:
    """All that `fit` reads. `lengths` measures the training rows, `rate` is the peak rate."""

    model: Any
    train: Encoded
    validation: Encoded | None
    lengths: Sequence[int]
    shape: Shape
    config: TrainConfig
    alpha: float
    rate: float
    seed: int


@dataclass(frozen=True)
class Sums:
    """What a step added up: log-likelihoods of either group (detached scalars), and tokens."""

    label_nll: Any
    rationale_nll: Any
    label_count: int
    rationale_count: int
    input_count: int


def accumulate(job: Job, rows: Sequence[int], tokens_per_forward: int = TOKENS_PER_FORWARD) -> Sums:
    """Adds the gradients of one step over `rows` to the model's, in as many parts as fit."""
    data = job.train
    sequences = [s for row in rows for s in data.of_row[row]]
    labels = int(data.label_length[sequences].sum())
    rationales = int(data.target_length[sequences].sum()) - labels
    label_nll: Any = 0.0
    rationale_nll: Any = 0.0
    for part in micro_batches(data, sequences, tokens_per_forward):
        batch = collate(data, part, job.shape)
        nll = batch_nll(job.model, batch, job.shape)
        loss, sums = dss_loss(nll, batch.group, job.alpha, labels, rationales)
        loss.backward()
        label_nll, rationale_nll = (
            label_nll + sums["label_nll"],
            rationale_nll + sums["rationale_nll"],
        )
    inputs = int(data.source_length[sequences].sum())
    return Sums(label_nll, rationale_nll, labels, rationales, inputs)


def micro_batches(data: Encoded, sequences: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """`sequences` in parts of at most `tokens` padded tokens (one sequence at least), by length."""
    lengths = (data.source_length[sequences] + data.target_length[sequences]).tolist()
    size = dict(zip(sequences, lengths, strict=True))
    part: list[int] = []
    for s in sorted(sequences, key=lambda s: -size[s]):
        if part and (len(part) + 1) * size[part[0]] > tokens:
            yield part
            part = []
        part.append(s)
    if part:
        yield part


def validate(job: Job) -> tuple[float, float]:
    """Mean label loss per token, and the share of rows whose whole label is predicted right.

    Teacher-forced: every label token is the most probable one after the right ones before it.
    """
    import torch

    data = job.validation
    if data is None:
        return math.nan, math.nan
    chosen = [s for found in data.of_row for s in found if data.label_length[s] > 0]
    nll, count, right = 0.0, 0, 0
    job.model.eval()
    with torch.inference_mode():
        for part in micro_batches(data, chosen, TOKENS_PER_FORWARD):
            batch = collate(data, part, job.shape)
            for piece, logits in batch_logits(job.model, batch, job.shape):
                label = piece.group == LABEL
                logits, wanted, row = logits[label].float(), piece.labels[label], piece.row[label]
                nll += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
                wrong = row[logits.argmax(-1) != wanted].unique()
                count, right = count + len(wanted), right + piece.rows - len(wrong)
    job.model.train()
    return nll / max(1, count), right / max(1, len(chosen))
