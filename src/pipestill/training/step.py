"""The work of one step, exact over micro-batches, and the validation of the label task."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipestill.config import TrainConfig
from pipestill.losses.dss import LABEL, RATIONALE, dss_loss
from pipestill.training.batches import Encoded
from pipestill.training.distributed import ALONE, World, all_sum, share
from pipestill.training.flops import Costs, costs_of, flops_of_step
from pipestill.training.forward import Batch, Shape, batch_chunks, batch_nll, collate

# Padded tokens of one forward pass. A larger step is accumulated, with an equal result. On a CPU
# small passes are the faster ones: less padding, and activations that stay in the cache.
TOKENS_PER_FORWARD = 32_768
TOKENS_PER_FORWARD_CPU = 2_048


@dataclass(frozen=True)
class Job:
    """All that `fit` reads. `lengths` measures the training rows, `rate` is the peak rate.

    `ids` names the training rows in errors. `world` and `root` are set by `fit` where the run is
    spread over processes: `root` is the sharded model's outermost module. `rationale_fraction` is
    the share of a step's rationales that is computed, see `chosen_rationales`. `objective` says
    what a step minimises; by default the likelihood of the targets, `LIKELIHOOD`.
    """

    model: Any
    train: Encoded
    validation: Encoded | None
    lengths: Sequence[int]
    shape: Shape
    config: TrainConfig
    alpha: float
    rate: float
    seed: int
    ids: Sequence[str] = ()
    world: World = ALONE
    root: Any = None
    rationale_fraction: float = 1.0
    objective: "Objective | None" = None

    @cached_property
    def costs(self) -> Costs:
        """What the model's parts compute for a token."""
        return costs_of(self.model)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(model, *arguments)``; a sharded model gathers its weights meanwhile."""
        if self.root is None:
            return function(self.model, *arguments)
        return self.root(function, *arguments)


@dataclass(frozen=True)
class Sums:
    """What a step added up.

    `terms` maps a name of the training log to a sum over this process's share (a detached scalar,
    still on the device) and to what it is divided by, for the whole step; the log holds their
    quotient over the steps since the last entry. The counts are tokens of the whole step. Where
    only a fraction of the rationales is computed, their sum estimates the sum over all of them, and
    `rationale_count` counts all. `flops` is the useful work of the whole step.
    """

    terms: Mapping[str, tuple[Any, float]]
    label_count: int = 0
    rationale_count: int = 0
    input_count: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class Objective:
    """What `pipestill.training.loop.fit` minimises, as functions; `LIKELIHOOD` is the plain one.

    `accumulate(job, rows, step)` adds the gradients of a step over `rows` to the model's (`step`
    counts from 1). `validate(job)` measures ``job.validation``; the first value it gives chooses
    the best weights, the lowest wins. `updated(job, step)` is called after every update.
    """

    accumulate: Callable[[Job, Sequence[int], int], Sums]
    validate: Callable[[Job], dict[str, float]]
    updated: Callable[[Job, int], None] | None = None


def accumulate(job: Job, rows: Sequence[int], tokens_per_forward: int = 0) -> Sums:
    """Adds the gradients of one step over `rows` to the model's, in as many parts as fit.

    Of every part each process computes its share; `tokens_per_forward` bounds a process's pass (0:
    what suits the device).
    """
    import torch

    data = job.train
    sequences = [s for row in rows for s in data.of_row[row]]
    labels = int(data.label_length[sequences].sum())
    rationales = int(data.target_length[sequences].sum()) - labels
    sequences, weight = chosen_rationales(job, sequences, rows)
    label_nll: Any = 0.0
    rationale_nll: Any = 0.0
    tokens = (tokens_per_forward or budget(job.shape)) * job.world.size
    for part in micro_batches(data, sequences, tokens, bool(job.shape.packed)):
        mine, factor = share(part, job.world)
        batch = collate(data, mine, job.shape)
        nll = job.run(batch_nll, batch, job.shape)
        if weight != 1.0:
            nll = torch.where(batch.group == RATIONALE, nll * weight, nll)
        loss, sums = dss_loss(nll, batch.group, job.alpha, labels, rationales)
        (loss * factor).backward()
        if factor:
            label_nll, rationale_nll = (
                label_nll + sums["label_nll"],
                rationale_nll + sums["rationale_nll"],
            )
    inputs = int(data.source_length[sequences].sum())
    flops = flops_of_step(job.costs, data, sequences)
    terms = {"label_loss": (label_nll, labels), "rationale_loss": (rationale_nll, rationales)}
    return Sums(terms, labels, rationales, inputs, flops)


def chosen_rationales(
    job: Job, sequences: list[int], rows: Sequence[int]
) -> tuple[list[int], float]:
    """The sequences to compute, and the weight of their rationales.

    Of the n sequences that only explain, m = fraction·n are drawn, each with probability m/n, and
    count n/m times (Horvitz and Thompson 1952): the expected gradient is that of all n. They are
    drawn evenly over their lengths, which keeps both the variance and the length of steps low. The
    draw depends on the seed and the rows of the step alone.
    """
    if job.rationale_fraction >= 1:
        return sequences, 1.0
    explaining = [s for s in sequences if job.train.label_length[s] == 0]
    count = max(1, round(job.rationale_fraction * len(explaining)))
    if count >= len(explaining):
        return sequences, 1.0
    every = len(explaining) / count
    start = random.Random(f"{job.seed} {list(rows)}").random() * every  # noqa: S311
    ranked = sorted(explaining, key=lambda s: int(job.train.target_length[s]))
    places = (min(int(start + k * every), len(ranked) - 1) for k in range(count))
    dropped = set(explaining) - {ranked[place] for place in places}
    return [s for s in sequences if s not in dropped], every


def budget(shape: Shape) -> int:
    """Padded tokens of one forward pass that suit the device."""
    return TOKENS_PER_FORWARD_CPU if shape.device == "cpu" else TOKENS_PER_FORWARD


def micro_batches(
    data: Encoded, sequences: Sequence[int], tokens: int, packed: bool = False
) -> Iterator[list[int]]:
    """`sequences` in parts of at most `tokens` tokens (one sequence at least), by length.

    Padding counts, unless the sequences will be `packed`.
    """
    lengths = (data.source_length[sequences] + data.target_length[sequences]).tolist()
    size = dict(zip(sequences, lengths, strict=True))
    part: list[int] = []
    filled = 0
    for s in sorted(sequences, key=lambda s: -size[s]):
        after = filled + size[s] if packed else (len(part) + 1) * size[(part or [s])[0]]
        if part and after > tokens:
            yield part
            part, after = [], size[s]
        part.append(s)
        filled = after
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
    sums = torch.zeros(3, dtype=torch.float64, device=job.shape.device)
    job.model.eval()
    with torch.no_grad():
        tokens = budget(job.shape) * job.world.size
        for part in micro_batches(data, chosen, tokens, bool(job.shape.packed)):
            mine, factor = share(part, job.world)
            scores = job.run(_scores, collate(data, mine, job.shape), job.shape)
            if factor:
                sums += scores
    job.model.train()
    nll, count, right = all_sum(sums, job.world).tolist()
    return nll / max(1, count), right / max(1, len(chosen))


def _validated(job: Job) -> dict[str, float]:
    loss, accuracy = validate(job)
    return {"val_label_loss": loss, "val_label_accuracy": accuracy}


LIKELIHOOD = Objective(lambda job, rows, step: accumulate(job, rows), _validated)


def _scores(model: Any, batch: Batch, shape: Shape) -> Any:
    """(3,) of a batch: label log-likelihood, label tokens, rows whose whole label is right."""
    import torch

    scores = torch.zeros(3, dtype=torch.float64, device=shape.device)
    wrong = [
        torch.zeros(piece.rows, dtype=torch.bool, device=shape.device) for piece in batch.pieces
    ]
    of_piece = {id(piece): found for piece, found in zip(batch.pieces, wrong, strict=True)}
    for piece, place, logits in batch_chunks(model, batch, shape):
        label = piece.group[place] == LABEL
        logits, wanted = logits[label].float(), piece.labels[place][label]
        nll = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        missed = piece.row[place][label][logits.argmax(-1) != wanted]
        of_piece[id(piece)][missed] = True
        scores[:2] += torch.stack([nll, nll.new_tensor(len(wanted))])
    scores[2] = sum(
        piece.rows - found.sum() for piece, found in zip(batch.pieces, wrong, strict=True)
    )
    return scores
