"""What each way of training is given: labels and rationales of an arm, and shares of its rows."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipestill.config import CurveConfig, TrainConfig, config_value
from pipestill.evaluation.scoring import answers_match
from pipestill.records import Labelled
from pipestill.training.student import split

# arm → (whose label, the objective of `pipestill.training.objectives`)
ARMS = {
    "finetune": ("gold", "label_only"),
    "distillation": ("teacher", "label_only"),
    "dss": ("gold", "dss"),
    "dss_teacher": ("teacher", "dss"),
    "shuffled": ("gold", "shuffled"),
}
LEAST_ROWS = 2  # one to train on, one to validate


@dataclass(frozen=True)
class Grid:
    """What is trained: every share with every seed; `rates` is empty for the recommended three."""

    shares: list[float]
    seeds: list[int]
    rates: list[float]


def rows_of(arm: str, rows: Iterable[Labelled], metric: str) -> tuple[list[Labelled], int]:
    """The rows that an arm can train on, and how many have not the label that it needs.

    Arms with gold labels keep a rationale where the teacher's answer agrees with the gold one
    (the code of Hsieh et al. 2023 keeps all; one that ends in another answer contradicts the
    label). Arms with the teacher's labels keep every rationale and need no gold label at all.
    Arms that are taught labels alone hold the same rows, rationales too, which their objective does
    not read: so the order of rows, which depends on lengths, is the same with and without them.

    The teacher's label is its majority answer. With several samples a rationale may come from
    another of them; with one, which is the default, it is the label's own.

    Raises:
        UserError: ``CONFIG_VALUE`` (arm), ``METRIC_UNKNOWN``.
    """
    if arm not in ARMS:
        raise config_value("arm", arm, ", ".join(ARMS))
    make = _with_gold if ARMS[arm][0] == "gold" else _with_teacher
    found = [make(row, metric) for row in rows]
    kept = [row for row in found if row is not None]
    return kept, len(found) - len(kept)


def share_of(rows: Sequence[Labelled], share: float, fraction: float) -> list[Labelled]:
    """The first rows by a hash of their id, so that a smaller share lies inside a larger one.

    Training rows lie inside training rows and validation rows inside validation rows, because what
    `pipestill.training.student.split` would set aside of all rows is shared out by itself.

    Args:
        rows: of the arm, in any order; the result keeps it.
        share: above 0 to 1.
        fraction: of validation rows, as `split` takes it.
    """
    count = min(len(rows), max(LEAST_ROWS, round(len(rows) * share)))
    train, validation = split(rows, fraction)
    aside = min(count - 1, max(1, round(count * fraction))) if fraction else 0  # as `split` does
    chosen = {row.id for row in [*_first(validation, aside), *_first(train, count - aside)]}
    return [row for row in rows if row.id in chosen]


def grid_of(curve: CurveConfig, config: TrainConfig) -> Grid:
    """Reads the lists of a curve's settings.

    Raises:
        UserError: ``CONFIG_VALUE``.
    """
    shares = sorted(set(_numbers("shares", curve.shares)))
    if not shares or not all(0 < share <= 1 for share in shares):
        raise config_value("shares", curve.shares, "numbers above 0 to 1, such as 0.25,0.5,1")
    seeds = list(dict.fromkeys(_numbers("seeds", curve.seeds)))
    if not seeds or not all(seed >= 0 and seed.is_integer() for seed in seeds):
        raise config_value("seeds", curve.seeds, "whole numbers of 0 or more, such as 0,1,2")
    if curve.search_seed < 0 or curve.search_seed in seeds:
        raise config_value("search_seed", curve.search_seed, "0 or more, and none of seeds")
    if curve.deploy_share not in shares:
        raise config_value("deploy_share", curve.deploy_share, f"one of shares ({curve.shares})")
    rates = sorted(set(_numbers("learning_rates", curve.learning_rates)))
    if not all(rate > 0 for rate in rates):
        raise config_value("learning_rates", curve.learning_rates, "numbers above 0, or nothing")
    if len(rates) != 1 and not config.validation_fraction:
        raise config_value("validation_fraction", 0.0, "above 0 where learning rates are compared")
    return Grid(shares, [int(seed) for seed in seeds], rates)


def _numbers(name: str, text: str) -> list[float]:
    parts = [part.strip() for part in text.strip(" []").split(",") if part.strip()]
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise config_value(name, text, "numbers with commas between them") from None


def _first(rows: Sequence[Labelled], count: int) -> list[Labelled]:
    return sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:count]


def _with_gold(row: Labelled, metric: str) -> Labelled | None:
    if row.label_source != "gold":
        return None
    answer = row.teacher_label
    if row.rationale is None or (answer and answers_match(answer, row.output_text, metric)):
        return row
    return dataclasses.replace(row, rationale=None, rationale_status="disagrees")


def _with_teacher(row: Labelled, metric: str) -> Labelled | None:
    label = row.teacher_label
    if label is None and row.label_source == "teacher":
        label = row.output_text
    if not label:
        return None
    return dataclasses.replace(row, output_text=label, label_source="teacher")
