"""Relation-based terms: how the examples of a step lie to each other, for student and teacher.

``(1 - w)·CE + relation_weight·relation``; w is ``kd_weight``. An example's embedding is the mean of
what the LM head reads (the decoder's last, normed states) over the tokens of its target, for every
architecture, so vocabularies and widths may differ. The examples of a micro-batch are related to
each other, gathered across the processes; micro-batches are as large as the memory budget allows,
and weigh as their examples. Only the cross-entropy is exact over micro-batches; `ranking` is too,
because it compares answers to one input.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pipestill.config import DistillConfig
from pipestill.errors import UserError
from pipestill.losses.common import head_nll, rows_per_chunk
from pipestill.losses.relation import gather_examples, pkt, ranking, rkd, similarity_preserving
from pipestill.records import Labelled
from pipestill.training.batches import Encoded
from pipestill.training.distill_response import teacher_states
from pipestill.training.distill_step import LABEL, Part, Term, Work
from pipestill.training.forward import (
    Batch,
    batch_labels,
    batch_nll,
    batch_rows,
    batch_states,
    collate,
    computing,
    reading_head,
    vocabulary,
)
from pipestill.training.step import Job
from pipestill.training.teacher_states import Teacher, in_order

RELATION = "relation_loss"
RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "rkd": rkd,
    "similarity": similarity_preserving,
    "pkt": pkt,
}
CANDIDATES = 8  # answers that are ranked for an input, at most

Works = Callable[[Job, Sequence[int], int], list[Work]]


def relation_works(teacher: Teacher, variant: str, config: DistillConfig) -> Works:
    """What makes the work of a step for ``rkd``, ``similarity`` and ``pkt``."""

    def works(job: Job, chosen: Sequence[int], step: int) -> list[Work]:
        data = job.train
        sequences = [s for row in chosen for s in data.of_row[row]]
        tokens = float(data.target_length[sequences].sum())
        terms = {
            LABEL: Term(1 - config.kd_weight, tokens),
            RELATION: Term(config.relation_weight, float(len(sequences)), whole=True),
        }
        how = RELATIONS[variant]
        compute = partial(relation_sums, job=job, data=data, teacher=teacher, how=how)
        return [Work(data, sequences, terms, compute, teacher.tokens)]

    return works


def relation_sums(
    model: Any,
    part: Part,
    *,
    job: Job,
    data: Encoded,
    teacher: Teacher,
    how: Callable[[Any, Any], Any],
) -> dict[str, Any]:
    """The sum of the cross-entropy, and the relation times the examples of the micro-batch."""
    batch, others = collate(data, part.sequences, job.shape), teacher.batch(part.sequences)
    with computing(job.shape):
        states = batch_states(model, batch, job.shape)
        rows = rows_per_chunk(vocabulary(model))
        nll = head_nll(reading_head(model), states, batch_labels(batch), rows)
        given = teacher_states(teacher.of(model), teacher, part.sequences)
    places = _places(data, teacher.data, part.sequences)
    mine = embeddings(states, batch, len(part.sequences))
    theirs = embeddings(given, others, len(part.sequences))[places.to(given.device)]
    count = len(part.sequences) if part.counted else 0
    value = how(gather_examples(mine[:count]), gather_examples(theirs[:count]))
    return {LABEL: nll.sum(), RELATION: value * part.count}


def embeddings(states: Any, batch: Batch, count: int) -> Any:
    """(count, D) mean of the states (N, D) of every sequence's target, in fp32."""
    import torch

    rows = batch_rows(batch)
    sums = torch.zeros(count, states.shape[-1], device=states.device).index_add(
        0, rows, states.float()
    )
    return sums / torch.bincount(rows, minlength=count)[:, None]


def _places(student: Encoded, teacher: Encoded, sequences: Sequence[int]) -> Any:
    """Where the student's sequences stand in the teacher's batch, in the student's order."""
    import torch

    at = {s: place for place, s in enumerate(in_order(teacher, sequences))}
    return torch.tensor([at[s] for s in in_order(student, sequences)])


def ranking_works(
    job: Job, rows: Sequence[Labelled], teacher: Teacher, config: DistillConfig
) -> Works:
    """What makes the work of a step for ``ranking``.

    For every input up to `CANDIDATES` texts are scored by both models: its own target and distinct
    targets of other rows, drawn by the seed and the row's id. A score is the log-probability of the
    whole text, end mark included, so the soft-max of the scores is the model's distribution over
    the candidates; ``tau`` divides both. An encoder reads an input once; a decoder-only model reads
    it again for every candidate, so this is the dearest of the objectives.

    Raises:
        UserError: ``RANKING_TEXTS`` where all rows have the same target.
    """
    texts = candidates(rows, job.seed)
    mine = with_candidates(job.train, texts)
    theirs = dataclasses.replace(teacher, data=with_candidates(teacher.data, texts))
    each = len(texts[0])

    def works(job: Job, chosen: Sequence[int], step: int) -> list[Work]:
        sequences = [s for row in chosen for s in job.train.of_row[row]]
        tokens = float(job.train.target_length[sequences].sum())
        terms = {
            LABEL: Term(1 - config.kd_weight, tokens),
            RELATION: Term(config.relation_weight, float(len(sequences))),
        }
        compute = partial(
            ranking_sums, job=job, data=mine, teacher=theirs, each=each, tau=config.tau
        )
        count = partial(_candidate_tokens, teacher=theirs, each=each)
        return [Work(job.train, sequences, terms, compute, count, repeats=each)]

    return works


def ranking_sums(
    model: Any, part: Part, *, job: Job, data: Encoded, teacher: Teacher, each: int, tau: float
) -> dict[str, Any]:
    """The sums over the inputs of `part`: cross-entropy of their own targets, and ranking."""
    import torch

    numbers = [s * each + i for s in part.sequences for i in range(each)]
    mine = _text_nll(model, collate(data, numbers, job.shape), data, numbers, job.shape)
    with torch.no_grad():
        batch = teacher.batch(numbers)
        theirs = _text_nll(teacher.of(model), batch, teacher.data, numbers, teacher.shape)
    scores, wanted = -mine.view(-1, each), -theirs.view(-1, each)
    value = ranking(scores, wanted, tau=tau)
    return {LABEL: -scores[:, 0].sum(), RELATION: value * len(part.sequences)}


def _text_nll(model: Any, batch: Batch, data: Encoded, numbers: Sequence[int], shape: Any) -> Any:
    """(n,) negative log-likelihood of whole targets, in the order of `numbers`."""
    import torch

    nll, rows = batch_nll(model, batch, shape), batch_rows(batch)
    sums = torch.zeros(len(numbers), device=nll.device).index_add(0, rows, nll)
    at = {s: place for place, s in enumerate(in_order(data, numbers))}
    return sums[torch.tensor([at[s] for s in numbers], device=nll.device)]


def candidates(rows: Sequence[Labelled], seed: int) -> list[list[int]]:
    """For every row, which rows' targets are ranked: its own first, no text twice.

    Raises:
        UserError: ``RANKING_TEXTS``.
    """
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        first.setdefault(row.output_text, i)
    each = min(CANDIDATES, len(first))
    if each < 2:
        raise UserError(
            "RANKING_TEXTS",
            "relation/ranking: all training rows have the same target, so there is nothing to rank",
            "use another objective, or rows with different answers",
        )
    texts = list(first)
    found = []
    for i, row in enumerate(rows):
        dice = random.Random(f"{seed} {row.id} ranking")  # noqa: S311
        drawn = [text for text in dice.sample(texts, each) if text != row.output_text]
        found.append([i, *(first[text] for text in drawn[: each - 1])])
    return found


def with_candidates(data: Encoded, texts: Sequence[Sequence[int]]) -> Encoded:
    """Sequence ``row·k + i``: the row's input with the target of row ``texts[row][i]``.

    `data` has one sequence a row. Targets are not copied.
    """
    import torch

    each = len(texts[0])
    rows = torch.arange(len(texts)).repeat_interleave(each)
    target = torch.tensor([i for found in texts for i in found])
    return dataclasses.replace(
        data,
        source_start=data.source_start[rows],
        source_length=data.source_length[rows],
        target_start=data.target_start[target],
        target_length=data.target_length[target],
        label_length=data.label_length[target],
        of_row=[list(range(i * each, (i + 1) * each)) for i in range(len(texts))],
    )


def _candidate_tokens(sequences: Sequence[int], *, teacher: Teacher, each: int) -> int:
    return teacher.tokens([s * each + i for s in sequences for i in range(each)])
