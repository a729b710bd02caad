"""Rows the claims page shows: rationales best, worst and by chance, and accuracy on slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipestill.claims.evidence import Evidence
from pipestill.evaluation import statistics
from pipestill.evaluation.arms import label
from pipestill.evaluation.charts import legend_mark
from pipestill.evaluation.row_views import clip, shuffled_key
from pipestill.evaluation.scoring import METRICS, normalise
from pipestill.evaluation.wording import NOTHING, number, percent, signed_points
from pipestill.records import Labelled, Prediction

SHOWN = 3  # rationales of each kind
MOST_SLICES = 8  # gold labels with a line of their own
LENGTHS = {2: ("shorter", "longer"), 3: ("shortest third", "middle third", "longest third")}


@dataclass
class Kept:
    """What the page needs of a stream of predictions that is too long to hold.

    `arms` are those whose rows are shown; `rows` are the held-out rows: their gold label and the
    number of words of their input.
    """

    arms: frozenset[str]
    shown: list[Prediction] = field(default_factory=list)
    rows: dict[str, tuple[str, int]] = field(default_factory=dict)

    def watch(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """The same stream; keeps what passes."""
        for item in predictions:
            if item.id not in self.rows:
                self.rows[item.id] = (item.gold, len(item.input_text.split()))
            if item.arm in self.arms:
                self.shown.append(item)
            yield item


def rationale_groups(rows: Sequence[Labelled], metric: str) -> list[dict[str, Any]]:
    """The best, the worst and some by chance of the teacher's rationales that were kept."""
    explained = [row for row in rows if row.rationale]
    ranked = sorted(
        explained, key=lambda row: (_quality(row, metric), shuffled_key(row.id)), reverse=True
    )
    chance = sorted(explained, key=lambda row: shuffled_key(row.id))
    groups = (("Best", ranked), ("Worst", ranked[::-1]), ("By chance", chance))
    return [
        {"name": name, "rows": [_shown(row, metric) for row in found[:SHOWN]]}
        for name, found in groups
        if found
    ]


def _quality(row: Labelled, metric: str) -> tuple[bool, float, float]:
    return _agrees(row, metric), row.agreement, overlap(row.rationale, row.gold_rationale)


def _agrees(row: Labelled, metric: str) -> bool:
    match = METRICS.get(metric, METRICS["exact"])
    return row.teacher_label is not None and match(row.teacher_label, row.output_text)


def overlap(text: str | None, other: str | None) -> float:
    """F1 of the words that two texts share, each as often as it stands; 0 where one is empty."""
    one, two = (Counter(normalise(item or "").split()) for item in (text, other))
    common = (one & two).total()
    return 2 * common / (one.total() + two.total()) if common else 0.0


def _shown(row: Labelled, metric: str) -> dict[str, Any]:
    gold = {"answer": "", "right": False, "rationale": clip(row.gold_rationale), "answers": []}
    teacher = {
        "answer": clip(row.teacher_label, 200),
        "right": _agrees(row, metric),
        "rationale": clip(row.rationale),
        "answers": [],
    }
    agreed = f"Teacher, {percent(row.agreement, 0)} of its samples agree"
    return {
        "id": clip(row.id, 80),
        "input": clip(row.input_text),
        "gold": clip(row.output_text, 200),
        "columns": [
            {"name": "The row's own", "mark": "", **gold},
            {"name": agreed, "mark": legend_mark("teacher"), **teacher},
        ],
    }


def slices(
    evidence: Evidence, rows: Mapping[str, tuple[str, int]], arms: Sequence[str]
) -> list[dict[str, Any]]:
    """Accuracy of each arm by gold label and by length of the input, with counts.

    Args:
        evidence: its scores stand in the order of row ids.
        rows: row id → gold label and words of the input.
        arms: those shown; the last column is the first less the second.
    """
    if len(arms) < 2:
        return []
    ids = sorted(rows)
    golds = [clip(rows[row][0], 60) or NOTHING for row in ids]
    common = [gold for gold, _ in Counter(golds).most_common(MOST_SLICES)]
    by_label = {gold: np.array([own == gold for own in golds]) for gold in common}
    if len(set(golds)) > MOST_SLICES:
        by_label["all others"] = np.array([own not in common for own in golds])
    columns = [
        "Rows",
        *(label(arm.partition(":")[0]) for arm in arms),
        "Difference",
        "95 % interval",
    ]
    tables = [("Gold label", by_label if len(by_label) > 1 else {})]
    tables.append(("Input length", by_length(np.array([rows[row][1] for row in ids]))))
    return [
        {
            "head": head,
            "caption": f"By {head.lower()}",
            "columns": columns,
            "rows": [_slice_row(evidence, name, mask, arms) for name, mask in masks.items()],
        }
        for head, masks in tables
        if len(masks) > 1
    ]


def by_length(words: Any) -> dict[str, Any]:
    """Masks of the thirds by number of words; rows of equal length stay together.

    Where that leaves two groups they are the shorter and the longer; where it leaves one, none.
    """
    low, high = np.percentile(words, [100 / 3, 200 / 3])
    masks = [words <= low, (words > low) & (words <= high), words > high]
    filled = [mask for mask in masks if mask.any()]
    names = LENGTHS.get(len(filled), ())
    return {
        f"{name}, {words[mask].min()} to {words[mask].max()} words": mask
        for name, mask in zip(names, filled, strict=False)
    }


def _slice_row(evidence: Evidence, name: str, mask: Any, arms: Sequence[str]) -> dict[str, Any]:
    scores = {arm: {seed: row[mask] for seed, row in evidence.scores[arm].items()} for arm in arms}
    means = [float(statistics.mean_over_seeds(scores[arm]).mean()) for arm in arms]
    pair = {arm: scores[arm] for arm in arms[:2]}
    samples = statistics.bootstrap(pair, resamples=2000)
    ends = statistics.percentile_interval(samples[arms[0]] - samples[arms[1]])
    cells = [
        number(int(mask.sum())),
        *(percent(mean) for mean in means),
        signed_points(means[0] - means[1]),
        f"{signed_points(ends[0])} to {signed_points(ends[1])}",
    ]
    return {"mark": "", "name": name, "cells": cells}
