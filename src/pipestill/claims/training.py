"""What the claims page shows of training: loss curves, searches for a learning rate, every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.evaluation import sections
from pipestill.evaluation.arms import label
from pipestill.evaluation.charts import legend_mark
from pipestill.evaluation.wording import NOTHING, number, percent

SEARCH_COLUMNS = ("Learning rate", "Tried", "Seconds, student", "Seconds, all runs", "Rows",
                  "Restarts")  # fmt: skip
RUN_COLUMNS = ("Rows", "With rationale", "Steps", "Right", "Validation loss", "Seconds",
               "Went on from step")  # fmt: skip


def training_context(
    curves: Sequence[Mapping[str, Any]], tune: Mapping[str, Any]
) -> dict[str, Any]:
    """Loss curves on all rows with the steps of restarts, the searches, and every run."""
    drawn = {
        run: rows
        for item in curves
        for run, rows in (item.get("curves") or {}).items()
        if _share_of_run(run) == _largest_share(item)
    }
    drawn |= tune.get("curves") or {}
    restarts = {
        run: steps for item in curves for run, steps in (item.get("restarts") or {}).items()
    }
    restarts |= tune.get("restarts") or {}
    restarts = {run: steps for run, steps in restarts.items() if steps}
    return {
        "curves": sections.curve_charts(_worth_drawing(drawn), restarts),
        "curve_legend": sections.curve_legend(drawn),
        "restarts": [_restart_words(run, steps) for run, steps in restarts.items()],
        "search_columns": SEARCH_COLUMNS,
        "searches": [_search_row(item) for item in curves],
        "run_columns": RUN_COLUMNS,
        "runs": [_run_row(item, point) for item in curves for point in item.get("points", [])],
    }


def _worth_drawing(curves: Mapping[str, Any]) -> dict[str, Any]:
    """The curves; without validation losses where no run has more than one: that is no curve."""
    if any(
        sum(len(row) > 2 and row[2] is not None for row in rows) > 1 for rows in curves.values()
    ):
        return dict(curves)
    return {run: [row[:2] for row in rows] for run, rows in curves.items()}


def _share_of_run(run: str) -> float:
    """``dss:0.5:0`` → 0.5; a run without a share was trained on all rows."""
    parts = run.split(":")
    try:
        return float(parts[1]) if len(parts) == 3 else 1.0
    except ValueError:
        return 1.0


def _largest_share(item: Mapping[str, Any]) -> float:
    return max((_share_of_run(run) for run in item.get("curves") or {}), default=1.0)


def _restart_words(run: str, steps: Sequence[float]) -> str:
    arm, _, rest = run.partition(":")
    share, _, seed = rest.rpartition(":")
    at = f"{label(arm)}, {100 * _share_of_run(run):g} % of the rows" if share else label(arm)
    times = ", ".join(f"{step:g}" for step in steps)
    return f"{at}, seed {seed}: went on at step {times}"


def _search_row(item: Mapping[str, Any]) -> dict[str, Any]:
    arm = str(item.get("arm", "?"))
    row = {"mark": legend_mark(arm), "name": label(arm)}
    if item.get("error"):
        return {**row, "error": item["error"]}
    tried = ", ".join(
        f"{trial['learning_rate']:g} ({trial['validation_loss']:.3f})"
        for trial in item.get("rate_search", [])
        if trial.get("validation_loss") is not None
    )
    chosen = item.get("learning_rate")
    stops = sum(len(steps) for steps in (item.get("restarts") or {}).values())
    cells = [
        NOTHING if chosen is None else f"{chosen:g}",
        tried or NOTHING,
        *(number(item.get(key)) for key in ("train_seconds", "all_seconds", "rows_available")),
        number(stops),
    ]
    return {**row, "cells": cells}


def _run_row(item: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    arm = str(item.get("arm", "?"))
    loss = point.get("validation_loss")
    went_on = point.get("resumed_from_step")
    known = isinstance(loss, int | float) and math.isfinite(loss)
    cells = [
        *(number(point.get(key)) for key in ("rows", "rationale_rows", "steps")),
        percent(point.get("accuracy")),
        f"{loss:.3f}" if known else NOTHING,
        "from the journal" if point.get("from_journal") else number(point.get("seconds")),
        number(went_on) if went_on else NOTHING,
    ]
    share = f"{100 * point.get('share', 1.0):g} %"
    name = f"{label(arm)}, {share}, seed {point.get('seed', '?')}"
    return {"mark": legend_mark(arm), "name": name, "cells": cells}
