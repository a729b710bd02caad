"""What the page says about the arms: tiles, tables and charts, made from the summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup

from pipestill.evaluation import statistics, wording
from pipestill.evaluation.arms import TEACHER_ALIAS, label, ordered
from pipestill.evaluation.charts import (
    ArmPoint,
    Curve,
    accuracy_chart,
    both_widths,
    curves_chart,
    legend_mark,
    scatter_chart,
)
from pipestill.evaluation.summary import arms_that_ran
from pipestill.evaluation.text_metrics import COMPARED, SCORES
from pipestill.evaluation.wording import (
    NOTHING,
    big_number,
    interval,
    number,
    percent,
    signed_points,
)

HALF = 480.0  # width of a chart that shares its row with another
READINGS = {
    "better": ("DSS is better", "good"),
    "worse": ("DSS is worse", "bad"),
    "cannot_tell": ("cannot tell", "open"),
}

COSTS = {
    "prompt_tokens": "prompt tokens per row",
    "p50_ms": "p50 latency, ms",
    "params": "parameters",
    "train_cpu_seconds": "training, CPU seconds",
}

# Keys of a trainer's metrics that are worth a column, where they are there.
TRAINING_COLUMNS = {
    "steps": "Steps",
    "best_step": "Best step",
    "label_loss": "Label loss",
    "rationale_loss": "Rationale loss",
    "val_label_loss": "Validation loss",
    "val_label_accuracy": "Validation accuracy",
    "input_tokens": "Input tokens",
    "seconds": "Seconds",
}


def tiles(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The four figures that answer first: three accuracies with their prompt tokens, and size."""
    out = []
    for arm in ("dss", "label_only", TEACHER_ALIAS, "base"):
        entry = summary["arms"][arm]
        if entry["accuracy"] is None:
            continue
        real = entry.get("arm", arm)
        detail = f"{number(entry['prompt_tokens'])} prompt tokens"
        if entry["params"] is not None:
            detail += f" · {big_number(entry['params'])} parameters"
        out.append(
            {
                "mark": legend_mark(real),
                "name": label(real),
                "value": percent(entry["accuracy"]),
                "detail": detail,
            }
        )
    return out


def arm_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of all arms."""
    rows = []
    for arm in arms_that_ran(summary):
        entry = summary["arms"][arm]
        row: dict[str, Any] = {
            "mark": legend_mark(arm),
            "name": label(arm),
            "error": None,
            "cells": [],
        }
        if entry["accuracy"] is None:
            rows.append({**row, "error": entry.get("error", "unknown")})
            continue
        trained = [seed for seed in entry["seeds"] if seed >= 0]
        size = entry["bytes"]
        row["cells"] = [
            percent(entry["accuracy"]),
            interval(entry["ci95"]),
            str(len(trained)) if trained else NOTHING,
            *(number(entry[name]) for name in ("prompt_tokens", "output_tokens")),
            *(number(entry[name]) for name in ("p50_ms", "p95_ms")),
            big_number(entry["params"]),
            number(None if size is None else size / 1e6),
        ]
        rows.append(row)
    return rows


def _points(summary: Mapping[str, Any], cost: str = "") -> list[ArmPoint]:
    entries = [(arm, summary["arms"][arm]) for arm in arms_that_ran(summary)]
    return [
        ArmPoint(
            arm=arm,
            accuracy=entry["accuracy"],
            low=entry["ci95"][0],
            high=entry["ci95"][1],
            seeds=tuple(entry["accuracy_by_seed"].values()),
            x=float(entry[cost]) if cost else 0.0,
        )
        for arm, entry in entries
        if entry["accuracy"] is not None and (not cost or entry.get(cost))
    ]


def accuracy(summary: Mapping[str, Any]) -> Markup:
    """The chart of accuracies."""
    return both_widths(partial(accuracy_chart, _points(summary)), wide=960.0)


def scatters(
    summary: Mapping[str, Any], costs: Sequence[str] = ("prompt_tokens", "p50_ms")
) -> list[Markup]:
    """Accuracy against each cost of `COSTS` that two arms have a figure for."""
    charts = []
    for cost in costs:
        title = COSTS[cost]
        points = _points(summary, cost)
        if len(points) > 1:
            charts.append(both_widths(partial(scatter_chart, points, title), wide=HALF))
    return charts


def comparison_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The paired comparisons."""
    rows = []
    for name, item in summary["comparisons"].items():
        first, second = name.split("_vs_")
        second = summary["arms"].get(second, {}).get("arm", second)
        reading, style = READINGS[statistics.verdict(tuple(item["ci95"]))]
        low, high = item["ci95"]
        rows.append(
            {
                "name": f"{label(first)} against {label(second)}",
                "difference": signed_points(item["difference"]),
                "interval": f"{signed_points(low)} to {signed_points(high)}",
                "won": number(item["rows_won"]),
                "lost": number(item["rows_lost"]),
                "p": _p_words(item["p_mcnemar"]),
                "reading": reading.replace("DSS", label(first)),
                "style": style,
            }
        )
    return rows


def adjusted_row(item: Mapping[str, Any], name: str) -> dict[str, str]:
    """One comparison in words, read by its adjusted p-value (`statistics.compare_all`)."""
    low, high = (signed_points(bound) for bound in item["ci95"])
    word = statistics.surely(item)
    return {
        "name": name,
        "difference": signed_points(item["difference"]),
        "interval": f"{low} to {high}",
        "won": number(item["rows_won"]),
        "lost": number(item["rows_lost"]),
        "p": _p_words(item["p_holm"]),
        "reading": word.replace("_", " "),
        "style": READINGS[word][1],
    }


def _p_words(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def other_scores(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores of `SCORES` for every arm, and `score_gaps`; None where none was measured."""
    arms = summary["arms"]
    found = {arm: arms[arm]["scores"] for arm in arms_that_ran(summary) if arms[arm].get("scores")}
    if not found:
        return None
    known = [name for name in SCORES if any(name in scores for scores in found.values())]
    rows = [
        {
            "mark": legend_mark(arm),
            "name": label(arm),
            "cells": [percent(scores.get(name)) for name in known],
        }
        for arm, scores in found.items()
    ]
    return {
        "columns": [SCORES[name] for name in known],
        "rows": rows,
        "gaps": score_gaps(summary),
    }


def score_gaps(summary: Mapping[str, Any]) -> list[str]:
    """One line per compared score: every arm against the baseline, p-values adjusted."""
    return [
        f"{COMPARED[score]}: "
        + "; ".join(
            f"{label(arm)} {wording.gap_words(found[arm])}, "
            f"p {_p_words(found[arm]['p_holm'])} after Holm"
            for arm in ordered(found)
        )
        for score, found in summary["score_comparisons"].items()
        if found
    ]


def signature_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the scores were computed, for the facts to reproduce them."""
    return [(f"Score {name}", words) for name, words in summary["score_signatures"].items()]


def gap_words(summary: Mapping[str, Any]) -> str:
    """The share of the gap between base and teacher that each student closes, in one line."""
    return ", ".join(f"{label(arm)} {percent(v, 0)}" for arm, v in summary["gap_closed"].items())


def curve_charts(
    curves: Mapping[str, Any], restarts: Mapping[str, Sequence[float]] | None = None
) -> list[dict[str, Any]]:
    """Training and validation loss over steps, from run → [step, label loss, validation loss].

    `restarts` are the steps, by run, at which training went on after a stop.
    """
    stops = restarts or {}
    charts = []
    for column, title in ((1, "Training loss"), (2, "Validation loss")):
        drawn = [
            curve
            for run, rows in curves.items()
            if (curve := _curve(run, rows, column, stops.get(run, ()))).points
        ]
        if drawn:
            top = _robust_top([value for curve in drawn for _, value in curve.points])
            draw = partial(curves_chart, drawn, title, top)
            charts.append({"title": title, "chart": both_widths(draw, wide=HALF)})
    return charts


def _robust_top(values: Sequence[float]) -> float:
    """A top of the loss axis that one spike in the first steps does not decide."""
    ranked = sorted(values)
    return max(ranked[int(0.98 * (len(ranked) - 1))], 1e-6)


def _curve(
    run: str, rows: Sequence[Sequence[Any]], column: int, restarts: Sequence[float]
) -> Curve:
    points = tuple(
        (float(row[0]), float(row[column]))
        for row in rows
        if len(row) > column and row[column] is not None and math.isfinite(float(row[column]))
    )
    return Curve(arm=objective_of(run), points=points, restarts=tuple(map(float, restarts)))


def objective_of(run: str) -> str:
    """``dss:0`` → ``dss``."""
    return run.partition(":")[0]


def curve_legend(curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arms that have a curve."""
    arms = ordered({objective_of(run) for run, rows in curves.items() if rows})
    return [{"mark": legend_mark(arm), "name": label(arm)} for arm in arms]


def training_table(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Steps, seconds, losses and the like of every run, as far as the trainer reported them."""
    runs = summary["training"]
    known = [
        name
        for name in TRAINING_COLUMNS
        if any(_figure(run.get(name)) != NOTHING for run in runs.values())
    ]
    if not known:
        return None
    rows = [
        {
            "mark": legend_mark(objective_of(name)),
            "name": _run_words(name),
            "cells": [_figure(run.get(column)) for column in known],
        }
        for name, run in runs.items()
    ]
    return {"columns": [TRAINING_COLUMNS[name] for name in known], "rows": rows}


def _run_words(name: str) -> str:
    arm, colon, seed = name.partition(":")
    return f"{label(arm)}, seed {seed}" if colon else name


def _figure(value: Any) -> str:
    """A number, or a dash; the trainer writes -1 for what it did not measure."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float) and value < 10 else number(value)
