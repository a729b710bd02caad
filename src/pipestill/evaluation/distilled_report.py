"""The report of a distillation run: which objective helped, at which size and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.evaluation import data_views, sections
from pipestill.evaluation.arms import label
from pipestill.evaluation.charts import legend_mark
from pipestill.evaluation.distilled_summary import CONTROL, distilled_summary
from pipestill.evaluation.report_page import (
    arms_context,
    data_context,
    finish,
    read_metrics,
    verdict_context,
)
from pipestill.evaluation.wording import (
    NOTHING,
    big_number,
    interval,
    number,
    percent,
    signed_points,
)
from pipestill.records import Prediction, read_jsonl

TEACHER_FACTS = {
    "reference": "Model",
    "parameters": "Parameters",
    "rows": "Rows answered",
    "accuracy": "Right where a gold label is known",
    "top_k": "Log-probabilities kept a token",
    "mean_mass": "Their mean share of the probability",
    "bytes_per_token": "Bytes a token",
    "seconds": "Seconds",
}


def write_distilled_report(
    *,
    predictions_path: str,
    evaluation_metrics_path: str,
    rejects_path: str,
    data_metrics_path: str,
    teacher_metrics_path: str,
    label_metrics_path: str,
    train_metrics_paths: Sequence[str],
    page_path: str,
    summary_path: str,
    title: str,
) -> str:
    """Compares the objectives; writes summary JSON and HTML page.

    Args:
        predictions_path: JSONL of `Prediction` of all arms.
        evaluation_metrics_path: metrics JSON of `evaluate_distilled`.
        rejects_path: JSONL of `Reject`.
        data_metrics_path: metrics JSON of `data_prep`.
        teacher_metrics_path: metrics JSON of `teacher_prepare`.
        label_metrics_path: metrics JSON of `teacher_logits`.
        train_metrics_paths: metrics JSON of every `distill_train`.
        page_path: the page, written.
        summary_path: the summary, written.
        title: heading of the page.

    Returns:
        The verdict: better, worse or cannot_tell.

    Raises:
        UserError: ``METRICS_UNREADABLE``, ``ROW_UNREADABLE``.
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    evaluation = read_metrics(evaluation_metrics_path)
    summary = distilled_summary(
        list(read_jsonl(predictions_path, Prediction)),
        evaluation=evaluation,
        data=read_metrics(data_metrics_path),
        teacher=read_metrics(teacher_metrics_path),
        labels=read_metrics(label_metrics_path),
        training=[read_metrics(path) for path in train_metrics_paths],
    )
    context = {
        **verdict_context(summary, title),
        **arms_context(summary, evaluation),
        **data_context(summary["data"], rejects_path),
        "arms": arm_rows(summary),
        "comparisons": comparison_rows(summary),
        "scatters": sections.scatters(summary, ("params", "p50_ms", "train_cpu_seconds")),
        "shares": share_rows(summary),
        "teacher": teacher_facts(summary["teacher"]),
        "reproduction": data_views.reproduction(
            evaluation, summary, {"predictions": predictions_path}
        ),
    }
    return finish(
        summary,
        context,
        template="distilled.html.j2",
        page_path=page_path,
        summary_path=summary_path,
    )


def arm_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bake-off table: quality, share of the gap closed, training cost, size and latency."""
    rows = []
    for arm, entry in summary["arms"].items():
        if entry["accuracy"] is None:
            continue
        trained = [seed for seed in entry["seeds"] if seed >= 0]
        size = entry["bytes"]
        cells = [
            percent(entry["accuracy"]),
            interval(entry["ci95"]),
            str(len(trained)) if trained else NOTHING,
            percent(entry["gap_closed"], 0),
            interval(entry["gap_closed_ci95"]),
            number(entry["train_cpu_seconds"]),
            number(entry["prompt_tokens"]),
            number(entry["p50_ms"]),
            big_number(entry["params"]),
            number(None if size is None else size / 1e6),
        ]
        rows.append({"mark": legend_mark(arm), "name": label(arm), "cells": cells})
    return rows


def comparison_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The paired comparisons; p-values adjusted where several objectives were compared."""
    rows = []
    for name, item in summary["comparisons"].items():
        first, second = name.split("_vs_")
        low, high = item["ci95"]
        p = item["p"] if item["p_holm"] is None else item["p_holm"]
        rows.append(
            {
                "name": f"{label(first)} against {label(second)}",
                "difference": signed_points(item["difference"]),
                "interval": f"{signed_points(low)} to {signed_points(high)}",
                "won": number(item["rows_won"]),
                "lost": number(item["rows_lost"]),
                "p": "< 0.001" if p < 0.001 else f"{p:.3f}",
                "main": CONTROL in second,
            }
        )
    return sorted(rows, key=lambda row: not row["main"])


def share_rows(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every run's terms with their last share of the gradient's norm."""
    found = {
        run: {name.removesuffix("_share"): value for name, value in facts.items() if _share(name)}
        for run, facts in summary["training"].items()
    }
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))
    if not names:
        return None
    rows = [
        {
            "name": _words(run),
            "mark": legend_mark(run.partition(":")[0]),
            "cells": [percent(shares.get(name), 0) for name in names],
        }
        for run, shares in found.items()
        if shares
    ]
    return {"columns": [name.replace("_", " ") for name in names], "rows": rows}


def _share(name: str) -> bool:
    return name.endswith("_share")


def _words(run: str) -> str:
    arm, colon, seed = run.partition(":")
    return f"{label(arm)}, seed {seed}" if colon else run


def teacher_facts(teacher: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the teacher, in words."""
    return [
        (words, _fact(key, teacher[key]))
        for key, words in TEACHER_FACTS.items()
        if teacher.get(key) not in (None, "", -1, -1.0)
    ]


def _fact(key: str, value: Any) -> str:
    if key in ("accuracy", "mean_mass"):
        return percent(float(value))
    return number(value) if isinstance(value, int | float) else str(value)
