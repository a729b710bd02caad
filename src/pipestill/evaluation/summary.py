"""The run in numbers: what `summary.json` holds, and the table that a terminal shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipestill.errors import WorkError
from pipestill.evaluation import statistics
from pipestill.evaluation.arms import PROMISED, TEACHER_ALIAS, label, ordered, strongest_prompt
from pipestill.evaluation.statistics import Scores
from pipestill.evaluation.wording import (
    big_number,
    control_notes,
    interval,
    number,
    percent,
    verdict_sentence,
)
from pipestill.records import Prediction

MEASURED = ("params", "bytes", "p50_ms", "p95_ms", "prompt_tokens", "output_tokens")
PAIRS = (
    ("dss", "label_only"),
    ("dss", "shuffled"),
    ("dss", TEACHER_ALIAS),
    ("dss", "base"),
    ("label_then_rationale", "label_only"),
)

NOT_RUN = "not part of this run"
NO_ACCURACY: dict[str, Any] = {"accuracy": None, "ci95": None, "seeds": [], "accuracy_by_seed": {}}

ArmScores = dict[str, dict[int, Scores]]


def build_summary(
    predictions: Sequence[Prediction],
    *,
    evaluation: Mapping[str, Any],
    data: Mapping[str, Any],
    labels: Mapping[str, Any],
    training: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything the report says, as JSON-safe numbers.

    Args:
        predictions: of all arms and seeds, on the same rows.
        evaluation: metrics of `evaluate`: tokens, latency, size and errors per arm.
        data: metrics of `data_prep`.
        labels: metrics of `collect_rows`.
        training: metrics of every `student_train`.

    Returns:
        ``arms``, ``comparisons``, ``verdict``, ``verdict_sentence``, ``notes``, ``gap_closed``,
        ``rows``, ``metric``, ``teacher``, ``data``, ``training``. Accuracies and differences are
        shares from 0 to 1. An arm that was not run, or that failed, has null for its accuracy and
        says why under ``error``.

    Raises:
        WorkError: ``NO_PREDICTIONS`` or ``ROWS_DIFFER`` (arms that answered different rows).
    """
    scores = collect_scores(predictions)
    samples = statistics.bootstrap(scores)
    arms = _arm_table(scores, samples, evaluation.get("arms", {}))
    few_shot = strongest_prompt(scores)
    if few_shot:
        scores[TEACHER_ALIAS], samples[TEACHER_ALIAS] = scores[few_shot], samples[few_shot]
    comparisons = {
        f"{first}_vs_{second}": dataclasses.asdict(
            statistics.compare(scores[first], scores[second], samples[first], samples[second])
        )
        for first, second in PAIRS
        if first in scores and second in scores
    }
    main = comparisons.get("dss_vs_label_only")
    rows = len(next(iter(next(iter(scores.values())).values())))
    summary = {
        "verdict": statistics.verdict(main["ci95"]) if main else "cannot_tell",
        "verdict_sentence": verdict_sentence(main, rows, _common_seeds(scores)),
        "notes": control_notes(comparisons, arms),
        "rows": rows,
        "metric": evaluation.get("metric", "exact"),
        "arms": arms,
        "comparisons": comparisons,
        "gap_closed": _gap_closed(arms),
        "teacher": dict(labels),
        "data": dict(data),
        "training": {_run_name(item, at): _without_curve(item) for at, item in enumerate(training)},
    }
    safe: dict[str, Any] = json_safe(summary)
    return safe


def _common_seeds(scores: ArmScores) -> int:
    return min(len(scores.get(arm, ())) for arm in ("dss", "label_only"))


def collect_scores(predictions: Iterable[Prediction]) -> ArmScores:
    """Arm → seed → 0/1 scores in the order of row ids.

    Raises:
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    by_run: dict[tuple[str, int], dict[str, float]] = {}
    for item in predictions:
        by_run.setdefault((item.arm, item.seed), {})[item.id] = float(item.correct)
    if not by_run:
        raise WorkError("NO_PREDICTIONS", "the predictions file has no row", "run evaluate again")
    ids = sorted(next(iter(by_run.values())))
    scores: ArmScores = {}
    for (arm, seed), right in sorted(by_run.items()):
        if sorted(right) != ids:
            raise WorkError(
                "ROWS_DIFFER",
                f"arm {arm}, seed {seed} answered {len(right)} rows that are not the {len(ids)} of"
                " the first arm; a paired comparison needs the same rows",
                "run evaluate again with all arms",
            )
        scores.setdefault(arm, {})[seed] = np.array([right[row] for row in ids])
    return scores


def _arm_table(
    scores: ArmScores, samples: Mapping[str, Scores], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """One entry per arm, with the promised names added where they are missing."""
    arms: dict[str, Any] = {}
    for arm in ordered({*scores, *measured}):
        known = measured.get(arm, {})
        entry = accuracy_entry(scores[arm], samples[arm]) if arm in scores else dict(NO_ACCURACY)
        entry |= {name: known.get(name) for name in MEASURED}
        if known.get("error"):
            entry["error"] = known["error"]
        arms[arm] = entry
    few_shot = strongest_prompt(scores) or strongest_prompt(measured)
    if few_shot:
        arms[TEACHER_ALIAS] = {**arms[few_shot], "arm": few_shot}
    absent = {**NO_ACCURACY, **dict.fromkeys(MEASURED), "error": NOT_RUN}
    for arm in PROMISED:
        arms.setdefault(arm, dict(absent))
    return arms


def accuracy_entry(by_seed: Mapping[int, Scores], samples: Scores) -> dict[str, Any]:
    """An arm's accuracy with its interval, over its seeds and for each of them."""
    return {
        "accuracy": float(statistics.mean_over_seeds(by_seed).mean()),
        "ci95": list(statistics.percentile_interval(samples)),
        "seeds": sorted(by_seed),
        "accuracy_by_seed": {str(seed): float(row.mean()) for seed, row in sorted(by_seed.items())},
    }


def arms_that_ran(summary: Mapping[str, Any]) -> list[str]:
    """The arms to show, in order: without the teacher's alias and what was not part of the run."""
    arms = summary["arms"]
    return ordered(
        arm for arm in arms if arm != TEACHER_ALIAS and arms[arm].get("error") != NOT_RUN
    )


def format_table(summary: Mapping[str, Any]) -> str:
    """The arms as plain aligned text, at most 100 columns wide, failed arms with their error."""
    head = ("arm", "accuracy", "95 % CI", "seeds", "prompt tokens", "p50 ms", "parameters")
    lines, failed = [head], []
    for arm in arms_that_ran(summary):
        entry = summary["arms"][arm]
        if entry["accuracy"] is None:
            failed.append(f"{label(arm)}: no result ({entry.get('error', 'unknown')})"[:100])
            continue
        trained = [seed for seed in entry["seeds"] if seed >= 0]
        lines.append(
            (
                label(arm),
                percent(entry["accuracy"]),
                interval(entry["ci95"]),
                str(len(trained)) if trained else "–",
                number(entry["prompt_tokens"]),
                number(entry["p50_ms"]),
                big_number(entry["params"]),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], *failed])


def _gap_closed(arms: Mapping[str, Any]) -> dict[str, float]:
    """(student - base) / (teacher - base) per student; empty where the teacher is no better."""
    base, teacher = arms["base"]["accuracy"], arms[TEACHER_ALIAS]["accuracy"]
    if base is None or teacher is None or teacher <= base:
        return {}
    students = ("dss", "label_then_rationale", "label_only", "shuffled")
    known = [arm for arm in students if arms.get(arm, {}).get("accuracy") is not None]
    return {arm: (arms[arm]["accuracy"] - base) / (teacher - base) for arm in known}


def _run_name(metrics: Mapping[str, Any], position: int) -> str:
    if "run" in metrics:
        return str(metrics["run"])
    if "objective" in metrics and "seed" in metrics:
        return f"{metrics['objective']}:{metrics['seed']}"
    return f"run {position}"


def _without_curve(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "curve"}


def json_safe(value: Any) -> Any:
    """The same value with plain numbers; NaN and infinity, which JSON lacks, become None."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_safe(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
