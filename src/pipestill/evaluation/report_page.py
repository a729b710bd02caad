"""What every report does alike: reads metrics, shows arms and data, writes summary and page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.evaluation import data_views, sections
from pipestill.records import Reject, read_jsonl, write_bytes, write_json

WORDS = {"better": "Better", "worse": "Worse", "cannot_tell": "Cannot tell"}


def verdict_context(summary: Mapping[str, Any], title: str) -> dict[str, Any]:
    """The head of a page: title, verdict, its sentence, notes and the number of rows."""
    return {
        "title": title,
        "verdict": summary["verdict"],
        "verdict_word": WORDS[summary["verdict"]],
        "verdict_sentence": summary["verdict_sentence"],
        "notes": summary.get("notes", []),
        "rows": f"{summary['rows']:,}",
    }


def arms_context(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The arms in table and chart, and their training as far as it was reported."""
    curves = evaluation.get("curves", {})
    return {
        "metric": summary["metric"],
        "arms": sections.arm_rows(summary),
        "accuracy_chart": sections.accuracy(summary),
        "curves": sections.curve_charts(curves),
        "curve_legend": sections.curve_legend(curves),
        "training": sections.training_table(summary),
        "latency_rows": evaluation.get("latency_rows"),
    }


def data_context(
    data: Mapping[str, Any],
    rejects_path: str,
    stages: Sequence[tuple[str, str, str]] = data_views.FUNNEL,
) -> dict[str, Any]:
    """The funnel of the data step and the first rows that were set aside."""
    rejects = read_rejects(rejects_path)
    return {
        "funnel": data_views.funnel(data, stages),
        "rejects": data_views.reject_rows(rejects),
        "rejected_total": f"{len(rejects):,}",
    }


def finish(
    summary: Mapping[str, Any],
    context: Mapping[str, Any],
    *,
    template: str,
    page_path: str,
    summary_path: str,
) -> str:
    """Writes summary and page, prints the verdict's sentence and returns the verdict."""
    write_json(summary_path, summary)
    write_text(page_path, render(context, template))
    print(summary["verdict_sentence"])
    return str(summary["verdict"])


def render(context: Mapping[str, Any], template: str) -> str:
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
