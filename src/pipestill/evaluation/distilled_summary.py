"""A distillation run in numbers: every objective against plain training on the same answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipestill.evaluation import statistics
from pipestill.evaluation.arms import family, label, ordered
from pipestill.evaluation.statistics import Scores
from pipestill.evaluation.summary import (
    MEASURED,
    NO_ACCURACY,
    ArmScores,
    accuracy_entry,
    collect_scores,
    json_safe,
)
from pipestill.evaluation.wording import listed, signed_points
from pipestill.records import Prediction

CONTROL, GOLD = "teacher_labels", "gold"
PLAIN = (CONTROL, GOLD, "base", "teacher")  # arms that no objective of distillation trained
LEVEL = 0.05
COSTS = ("cpu_seconds", "seconds", "teacher_tokens")
HELPED, HURT, OPEN = "helped", "hurt", "open"


def distilled_summary(
    predictions: Sequence[Prediction],
    *,
    evaluation: Mapping[str, Any],
    data: Mapping[str, Any],
    teacher: Mapping[str, Any],
    labels: Mapping[str, Any],
    training: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything the report says, as JSON-safe numbers; the keys are those of every summary.

    Every objective is compared with `CONTROL` of the same size; the p-values (paired bootstrap) are
    adjusted for their number after Holm. An objective helped where its adjusted p-value is below
    `LEVEL` and its difference above 0.

    Args:
        predictions: of all arms and seeds, on the same rows.
        evaluation: metrics of `evaluate_distilled`.
        data: metrics of `data_prep`.
        teacher: metrics of `teacher_prepare`.
        labels: metrics of `teacher_logits`.
        training: metrics of every `distill_train`.

    Returns:
        ``verdict``, ``verdict_sentence``, ``notes``, ``rows``, ``metric``, ``arms`` (each with
        ``gap_closed`` and its interval), ``comparisons``, ``helped``, ``teacher``, ``data``,
        ``training``.

    Raises:
        WorkError: ``NO_PREDICTIONS`` or ``ROWS_DIFFER``.
    """
    scores = collect_scores(predictions)
    samples = statistics.bootstrap(scores)
    comparisons = _comparisons(scores, samples)
    arms = _arms(scores, samples, evaluation.get("arms", {}), training)
    readings = {
        name: _reading(item) for name, item in comparisons.items() if item["p_holm"] is not None
    }
    rows = len(next(iter(scores["base"].values())))
    summary = {
        "verdict": _verdict(list(readings.values())),
        "verdict_sentence": _sentence(comparisons, readings, rows),
        "notes": [*_fallen(comparisons, readings), *_notes(scores, arms, labels)],
        "rows": rows,
        "metric": evaluation.get("metric", "exact"),
        "arms": arms,
        "comparisons": comparisons,
        "helped": [name.partition("_vs_")[0] for name, word in readings.items() if word == HELPED],
        "teacher": {**teacher, **labels},
        "data": dict(data),
        "training": {str(item.get("run", at)): dict(item) for at, item in enumerate(training)},
    }
    safe: dict[str, Any] = json_safe(summary)
    return safe


def _comparisons(scores: ArmScores, samples: Mapping[str, Scores]) -> dict[str, Any]:
    """Objective against control of the same size, and control against gold and base."""
    pairs = [(arm, _same_size(CONTROL, arm)) for arm in scores if family(arm) not in PLAIN]
    pairs += [(arm, _same_size(GOLD, arm)) for arm in scores if family(arm) == CONTROL]
    pairs += [(arm, "teacher") for arm in scores if family(arm) not in ("base", "teacher")]
    found = [(one, other) for one, other in pairs if other in scores]
    p_values = {
        f"{one}_vs_{other}": statistics.bootstrap_p(samples[one], samples[other])
        for one, other in found
    }
    adjusted = statistics.holm({n: p for n, p in p_values.items() if CONTROL in n.split("_vs_")[1]})
    return {
        f"{one}_vs_{other}": {
            **dataclasses.asdict(
                statistics.compare(scores[one], scores[other], samples[one], samples[other])
            ),
            "p": p_values[f"{one}_vs_{other}"],
            "p_holm": adjusted.get(f"{one}_vs_{other}"),
        }
        for one, other in found
    }


def _same_size(control: str, arm: str) -> str:
    """``teacher_labels@2`` for ``response@2``."""
    _, at, layers = arm.partition("@")
    return f"{control}{at}{layers}"


def _reading(comparison: Mapping[str, Any]) -> str:
    p = comparison["p_holm"]
    if p is None or p >= LEVEL:
        return OPEN
    return HELPED if comparison["difference"] > 0 else HURT


def _verdict(readings: Sequence[str]) -> str:
    if HELPED in readings:
        return "better"
    return "worse" if HURT in readings else "cannot_tell"


def _arms(
    scores: ArmScores,
    samples: Mapping[str, Scores],
    measured: Mapping[str, Any],
    training: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """One entry an arm: accuracy, share of the gap closed, size, latency and training cost."""
    arms: dict[str, Any] = {}
    for arm in ordered({*scores, *measured}):
        known = measured.get(arm, {})
        entry = accuracy_entry(scores[arm], samples[arm]) if arm in scores else dict(NO_ACCURACY)
        entry |= {name: known.get(name) for name in MEASURED}
        entry |= gap_closed(arm, samples)
        own = [item for item in training if item.get("objective") == arm]
        for name in COSTS:
            values = [float(item[name]) for item in own if item.get(name) is not None]
            entry[f"train_{name}"] = sum(values) / len(values) if values else None
        arms[arm] = entry
    return arms


def gap_closed(arm: str, samples: Mapping[str, Scores]) -> dict[str, Any]:
    """(student − base) / (teacher − base), and its interval; null where the teacher is no better.

    The interval is the one of Fieller's problem by bootstrap: replicates in which the teacher is no
    better than the base count as unbounded on the student's side.
    """
    nothing = {"gap_closed": None, "gap_closed_ci95": None}
    if arm in ("base", "teacher") or not {arm, "base", "teacher"} <= samples.keys():
        return nothing
    gained, room = samples[arm] - samples["base"], samples["teacher"] - samples["base"]
    if room.mean() <= 0 or (room <= 0).mean() > (1 - statistics.LEVEL) / 2:
        return nothing
    shares = np.where(room > 0, gained / np.where(room > 0, room, 1.0), np.sign(gained) * np.inf)
    low, high = np.percentile(shares, [2.5, 97.5], method="nearest")
    return {
        "gap_closed": float(gained.mean() / room.mean()),
        "gap_closed_ci95": [float(low), float(high)],
    }


def _sentence(comparisons: Mapping[str, Any], readings: Mapping[str, str], rows: int) -> str:
    """One plain sentence with the numbers that it rests on."""
    if not readings:
        return (
            "Cannot tell whether distillation helped: the run holds no student that was trained on "
            "the teacher's answers alone (teacher_labels)."
        )
    strongest = _strongest(readings)
    told = [
        f"{label(name.partition('_vs_')[0])} ({_gap(comparisons[name])})"
        for name, word in readings.items()
        if word == strongest
    ]
    names = listed(told)
    against = "plain training on the teacher's answers"
    basis = f"{rows} held-out rows, {len(readings)} compared, p-values adjusted after Holm"
    if strongest == OPEN:
        return f"Cannot tell {names} from {against}: {basis}."
    several = len(told) > 1
    verb = {HELPED: "beat" if several else "beats", HURT: "fall" if several else "falls"}[strongest]
    return f"{names} {verb} {'behind ' * (strongest == HURT)}{against}: {basis}."


def _strongest(readings: Mapping[str, str]) -> str:
    return next(word for word in (HELPED, HURT, OPEN) if word in readings.values())


def _gap(comparison: Mapping[str, Any]) -> str:
    low, high = (signed_points(bound) for bound in comparison["ci95"])
    return f"{signed_points(comparison['difference'])} points, 95 % CI {low} to {high}"


def _fallen(comparisons: Mapping[str, Any], readings: Mapping[str, str]) -> list[str]:
    """The objectives that hurt, where the verdict is about others that helped."""
    if HELPED not in readings.values():
        return []
    return [
        f"{label(name.partition('_vs_')[0])} falls behind plain training on the teacher's answers "
        f"({_gap(comparisons[name])})."
        for name, word in readings.items()
        if word == HURT
    ]


def _notes(scores: ArmScores, arms: Mapping[str, Any], labels: Mapping[str, Any]) -> list[str]:
    """How far the verdict carries."""
    notes = []
    if any(len(by_seed) == 1 for arm, by_seed in scores.items() if arm not in ("base", "teacher")):
        notes.append("One seed an arm: the luck of training is not in these intervals.")
    if arms.get("teacher", {}).get("accuracy") is not None:
        best = max(
            (arm for arm in arms if arms[arm]["accuracy"] is not None and arm not in PLAIN),
            key=lambda arm: arms[arm]["accuracy"],
            default=None,
        )
        if best and arms[best]["accuracy"] > arms["teacher"]["accuracy"]:
            notes.append(f"{label(best)} answers more rows right than its teacher.")
    accuracy = labels.get("accuracy")
    if isinstance(accuracy, float) and accuracy >= 0:
        notes.append(f"The teacher's answers to the training rows are right in {accuracy:.1%}.")
    return notes
