"""Writes the summary and the page: one self-contained HTML file that opens with the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.evaluation import data_views, row_views, sections
from pipestill.evaluation.report_page import (
    arms_context,
    data_context,
    finish,
    read_metrics,
    verdict_context,
)
from pipestill.evaluation.summary import build_summary
from pipestill.records import Labelled, Prediction, read_jsonl


def write_report(
    *,
    predictions_path: str,
    evaluation_metrics_path: str,
    training_rows_path: str,
    rejects_path: str,
    data_metrics_path: str,
    label_metrics_path: str,
    train_metrics_paths: Sequence[str],
    page_path: str,
    summary_path: str,
    title: str,
) -> str:
    """Compares the arms, writes summary JSON and HTML page, and prints the table.

    Args:
        predictions_path: JSONL of `Prediction`.
        evaluation_metrics_path: metrics JSON of `evaluate`.
        training_rows_path: JSONL of `Labelled`.
        rejects_path: JSONL of `Reject`.
        data_metrics_path: metrics JSON of `data_prep`.
        label_metrics_path: metrics JSON of `collect_rows`.
        train_metrics_paths: metrics JSON of every `student_train`; a key ``curve``, a list of
            [step, label loss, validation label loss], is drawn where `evaluate` has none.
        page_path: the page, written.
        summary_path: the summary, written (`pipestill.evaluation.summary.build_summary`).
        title: heading of the page.

    Returns:
        The verdict: better, worse or cannot_tell.

    Raises:
        UserError: ``METRICS_UNREADABLE``, ``ROW_UNREADABLE``.
        WorkError: ``NO_PREDICTIONS``, ``ROWS_DIFFER``.
    """
    predictions = list(read_jsonl(predictions_path, Prediction))
    evaluation = read_metrics(evaluation_metrics_path)
    training = [read_metrics(path) for path in train_metrics_paths]
    summary = build_summary(
        predictions,
        evaluation=evaluation,
        data=read_metrics(data_metrics_path),
        labels=read_metrics(label_metrics_path),
        training=training,
    )
    rows = list(read_jsonl(training_rows_path, Labelled))
    context = {
        **verdict_context(summary, title),
        **arms_context(summary, {**evaluation, "curves": _curves(evaluation, training)}),
        **_comparisons_context(summary),
        **_rows_context(predictions),
        **data_context(summary["data"], rejects_path),
        "labelling": data_views.labelling(summary["teacher"], rows),
        "yields": data_views.yields(rows),
        "training_total": f"{len(rows):,}",
        "reproduction": data_views.reproduction(
            evaluation,
            summary,
            {"predictions": predictions_path, "training rows": training_rows_path},
        ),
    }
    return finish(
        summary,
        context,
        template="report.html.j2",
        page_path=page_path,
        summary_path=summary_path,
    )


def _comparisons_context(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tiles": sections.tiles(summary),
        "comparisons": sections.comparison_rows(summary),
        "gap_closed": sections.gap_words(summary),
        "scatters": sections.scatters(summary),
    }


def _curves(evaluation: Mapping[str, Any], training: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Run → [step, label loss, validation loss], from either source."""
    own = {
        str(item.get("run", at)): item["curve"]
        for at, item in enumerate(training)
        if "curve" in item
    }
    return {**own, **evaluation.get("curves", {})}


def _rows_context(predictions: Sequence[Prediction]) -> dict[str, Any]:
    won, lost = row_views.won_and_lost(predictions)
    return {"rationales": row_views.side_by_side(predictions), "won": won, "lost": lost}
