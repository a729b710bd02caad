"""Rows as tensors, tokenised once, and the order in which steps see them.

Order depends on rows, batch size and seed alone, never on the objective, so that all arms of a
comparison see the same examples in the same steps.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.errors import UserError
from pipestill.losses.dss import LABEL, RATIONALE
from pipestill.models.render import Renderer
from pipestill.records import Labelled
from pipestill.training.objectives import Target, Targets

WINDOW = 8  # batches that are drawn together and sorted by length


@dataclass(frozen=True)
class Encoded:
    """All sequences of a data set, end to end in flat int32 tensors.

    Sequence s has the input ``source[source_start[s]:][:source_length[s]]``, its target likewise;
    the first `label_length[s]` tokens of the target count as label, the rest as rationale.
    ``of_row[r]`` lists the sequences of row r, all of which are trained in one step.
    """

    source: Any
    source_start: Any
    source_length: Any
    target: Any
    target_start: Any
    target_length: Any
    label_length: Any
    of_row: list[list[int]]
    cut_inputs: int
    cut_rationales: int


def encode(rows: Sequence[Labelled], targets: Targets, renderer: Renderer) -> Encoded:
    """Tokenises every target of every row.

    A label is never cut; a rationale may be, and then ends without an end mark, so that the student
    does not learn to stop there.

    Raises:
        UserError: ``LABEL_TOO_LONG`` naming the row.
    """
    import torch

    flat = [(row, target) for row, found in zip(rows, targets, strict=True) for target in found]
    prompts: list[Any] = [None] * len(flat)
    for task in {target.task for _, target in flat}:
        chosen = [i for i, (_, target) in enumerate(flat) if target.task == task]
        texts = [flat[i][0].input_text for i in chosen]
        for i, prompt in zip(chosen, renderer.prompts(task, texts), strict=True):
            prompts[i] = prompt
    written = _target_ids(flat, renderer)
    numbers = iter(range(len(flat)))
    source, source_start, source_length = flatten([prompt.ids for prompt in prompts])
    target, target_start, target_length = flatten([ids for ids, _, _ in written])
    return Encoded(
        source=source,
        source_start=source_start,
        source_length=source_length,
        target=target,
        target_start=target_start,
        target_length=target_length,
        label_length=torch.tensor([length for _, length, _ in written]),
        of_row=[[next(numbers) for _ in found] for found in targets],
        cut_inputs=sum(prompt.truncated for prompt in prompts),
        cut_rationales=sum(cut for _, _, cut in written),
    )


def order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """The rows of every step: `steps` lists of min(batch_size, rows) distinct row numbers.

    Every epoch is a new permutation, taken in windows of eight batches; a window is sorted by
    length, cut into batches, and the batches are shuffled. So a batch holds rows of similar length
    and the sequence of lengths stays random. Where the rows are no multiple of the batch size, the
    last rows of an epoch open the next one's first batch: every row comes exactly once an epoch.
    """
    dice = random.Random(seed)  # noqa: S311
    return itertools.islice(_batches(lengths, min(batch_size, len(lengths)), dice), steps)


def _batches(lengths: Sequence[int], size: int, dice: random.Random) -> Iterator[list[int]]:
    """Batches without end."""
    left: list[int] = []
    while True:
        rows = list(range(len(lengths)))
        dice.shuffle(rows)
        if left:
            first = _without(rows, left)[: size - len(left)]
            yield left + first
            rows = _without(rows, first)
        whole = len(rows) - len(rows) % size
        yield from _epoch(rows[:whole], lengths, size, dice)
        left = rows[whole:]


def _without(rows: list[int], dropped: list[int]) -> list[int]:
    gone = set(dropped)
    return [row for row in rows if row not in gone]


def _epoch(
    rows: list[int], lengths: Sequence[int], size: int, dice: random.Random
) -> list[list[int]]:
    batches = []
    for start in range(0, len(rows), size * WINDOW):
        window = sorted(rows[start : start + size * WINDOW], key=lambda row: lengths[row])
        cut = [window[i : i + size] for i in range(0, len(window), size)]
        dice.shuffle(cut)
        batches += cut
    return batches


def row_lengths(rows: Sequence[Labelled]) -> list[int]:
    """Characters of input and own rationale: a measure of length that no objective changes."""
    return [len(row.input_text) + len(row.rationale or "") for row in rows]


def groups_of(label_length: Any, target_length: Any) -> Any:
    """(n, longest target): `LABEL` or `RATIONALE` of every target position."""
    import torch

    places = torch.arange(int(target_length.max()))
    return torch.where(places < label_length[:, None], LABEL, RATIONALE)


def gather(flat: Any, start: Any, length: Any, fill: int) -> tuple[Any, Any]:
    """Rows of a flat tensor as (n, longest) ids, filled on the right, and the mask of the real."""
    import torch

    places = torch.arange(int(length.max()))
    real = places < length[:, None]
    index = (start[:, None] + places).clamp_(max=max(len(flat) - 1, 0))
    return flat[index].long().masked_fill_(~real, fill), real


def flatten(rows: Sequence[Sequence[int]]) -> tuple[Any, Any, Any]:
    """Lists of ids end to end in one int32 tensor, and where each starts and how long it is."""
    import torch

    length = torch.tensor([len(row) for row in rows], dtype=torch.long)
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    return flat, length.cumsum(0) - length, length


def _target_ids(
    flat: Sequence[tuple[Labelled, Target]], renderer: Renderer
) -> list[tuple[list[int], int, bool]]:
    """Of every target: ids, how many of them count as label, and whether a rationale was cut."""
    whole = renderer.targets([target.label + target.rationale for _, target in flat])
    labels = renderer.targets([target.label for _, target in flat])
    return [
        _limited(row.id, target, ids, alone, renderer.max_output_tokens)
        for (row, target), ids, alone in zip(flat, whole, labels, strict=True)
    ]


def _limited(
    row: str, target: Target, ids: list[int], alone: list[int], limit: int
) -> tuple[list[int], int, bool]:
    # The label's own tokens count as label, as far as the longer text begins with the same ones.
    differing = (i for i, (a, b) in enumerate(zip(ids, alone[:-1], strict=False)) if a != b)
    length = next(differing, len(alone) - 1) if target.rationale else len(ids)
    if length > limit:
        raise UserError(
            "LABEL_TOO_LONG",
            f"row {row}: its label has {length} tokens, allowed: max_output_tokens = {limit}",
            "raise max_output_tokens, or shorten or remove the row",
        )
    return ids[:limit], length, len(ids) > limit
