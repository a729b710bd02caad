"""What a student is taught: each objective turns rows into targets. One function, one dict line.

All objectives see the same rows in the same order at the same seed; only the targets differ.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipestill.models.render import SEPARATOR
from pipestill.records import Labelled


@dataclass(frozen=True)
class Target:
    """One text to write under one prefix.

    The tokens of `label` count in the label mean, those of `rationale` in the rationale mean; where
    both are given they form one text, the label first.
    """

    task: str
    label: str = ""
    rationale: str = ""


Targets = list[list[Target]]


def dss(rows: Sequence[Labelled], seed: int) -> Targets:
    """Label under ``predict: ``, rationale under ``explain: `` (Hsieh et al. 2023, section 3.2)."""
    return [_pair(row, row.rationale) for row in rows]


def label_only(rows: Sequence[Labelled], seed: int) -> Targets:
    """Standard fine-tuning: the label under ``predict: ``."""
    return [[Target("predict", label=row.output_text)] for row in rows]


def shuffled(rows: Sequence[Labelled], seed: int) -> Targets:
    """A control: every row explains with another row's rationale.

    If this does as well as `dss`, what helped was extra text, not reasoning (arXiv 2406.14511
    found students that gain from incoherent rationales). No row keeps its own rationale; a single
    rationale has nowhere to go and is left out.
    """
    having = [i for i, row in enumerate(rows) if row.rationale]
    given = dict(zip(having, derangement(len(having), seed), strict=True))
    return [
        _pair(row, rows[having[given[i]]].rationale if len(given) > 1 and i in given else None)
        for i, row in enumerate(rows)
    ]


def label_then_rationale(rows: Sequence[Labelled], seed: int) -> Targets:
    """One target, ``label because: rationale``: the rationale after the label (arXiv 2406.14511).

    What stands before the separator is the answer, so answering costs no more than a label. The
    separator counts as label, because writing it ends the label. Departure from the paper: label
    and rationale tokens keep their two separate means, so that alpha means here what it means in
    `dss`.
    """
    return [
        [Target("predict", row.output_text + SEPARATOR, " " + row.rationale.strip())]
        if row.rationale
        else [Target("predict", row.output_text)]
        for row in rows
    ]


OBJECTIVES: dict[str, Callable[[Sequence[Labelled], int], Targets]] = {
    "dss": dss,
    "label_only": label_only,
    "shuffled": shuffled,
    "label_then_rationale": label_then_rationale,
}


def derangement(count: int, seed: int) -> list[int]:
    """A seeded permutation of range(count) that maps no position to itself (count > 1).

    Sattolo's algorithm: one random cycle through all positions.
    """
    dice = random.Random(seed)  # noqa: S311
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = dice.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


def _pair(row: Labelled, rationale: str | None) -> list[Target]:
    predict = Target("predict", label=row.output_text)
    return [predict, Target("explain", rationale=rationale)] if rationale else [predict]
