"""Writes the summary and the page: one self-contained HTML file that opens with the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.evaluation import data_views, row_views, sections
from pipestill.evaluation.summary import build_summary
from pipestill.records import Labelled, Prediction, Reject, read_jsonl, write_bytes, write_json

WORDS = {"better": "Better", "worse": "Worse", "cannot_tell": "Cannot tell"}


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
    write_json(summary_path, summary)
    context = {
        "title": title,
        **_arms_context(summary, _curves(evaluation, training)),
        **_rows_context(predictions),
        **_data_context(
            summary, list(read_jsonl(training_rows_path, Labelled)), read_rejects(rejects_path)
        ),
        "latency_rows": evaluation.get("latency_rows"),
        "reproduction": data_views.reproduction(
            evaluation,
            summary,
            {"predictions": predictions_path, "training rows": training_rows_path},
        ),
    }
    write_text(page_path, render(context))
    print(summary["verdict_sentence"])
    return str(summary["verdict"])


def _arms_context(summary: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "verdict": summary["verdict"],
        "verdict_word": WORDS[summary["verdict"]],
        "verdict_sentence": summary["verdict_sentence"],
        "notes": summary["notes"],
        "rows": f"{summary['rows']:,}",
        "tiles": sections.tiles(summary),
        "arms": sections.arm_rows(summary),
        "accuracy_chart": sections.accuracy(summary),
        "comparisons": sections.comparison_rows(summary),
        "gap_closed": sections.gap_words(summary),
        "scatters": sections.scatters(summary),
        "curves": sections.curve_charts(curves),
        "curve_legend": sections.curve_legend(curves),
        "training": sections.training_table(summary),
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


def _data_context(
    summary: Mapping[str, Any], rows: Sequence[Labelled], rejects: Sequence[Reject]
) -> dict[str, Any]:
    return {
        "funnel": data_views.funnel(summary["data"]),
        "rejects": data_views.reject_rows(rejects),
        "rejected_total": f"{len(rejects):,}",
        "labelling": data_views.labelling(summary["teacher"], rows),
        "yields": data_views.yields(rows),
        "training_total": f"{len(rows):,}",
    }


def render(context: Mapping[str, Any], template: str = "report.html.j2") -> str:
    """The page from its context; every value that is not our own drawing is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipestill.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)


def read_metrics(path: str | Path) -> dict[str, Any]:
    """A metrics JSON that an earlier step wrote.

    Raises:
        UserError: ``METRICS_UNREADABLE``.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            "METRICS_UNREADABLE",
            f"{path}: not a metrics file ({error})",
            "this file is written by an earlier step: run that step again",
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            "METRICS_UNREADABLE", f"{path}: found no JSON object", "run that step again"
        )
    return value


def read_rejects(path: str) -> list[Reject]:
    """The rejects file, which is absent where a run had none."""
    return list(read_jsonl(path, Reject)) if Path(path).exists() else []


def write_text(path: str, text: str) -> None:
    """Writes a page at once."""
    # A lone surrogate in a row is text that UTF-8 cannot hold; the page shows a mark in its place.
    write_bytes(path, text.encode("utf-8", "replace"))
