"""The shards of the labelling steps become one training set, and their counts one table."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from pipestill.errors import UserError
from pipestill.generation.rationale import FILTERS, yield_lines
from pipestill.generation.votes import accuracy_line
from pipestill.records import Labelled, read_jsonl, write_jsonl

_LABEL_COUNTS = (
    "rows", "rows_gold", "rows_missing", "rows_labelled", "rows_failed",
    "audit_rows", "audit_correct", "audit_unparsable",
)  # fmt: skip
_RATIONALE_COUNTS = (
    "rationale_asked",
    "rationale_kept",
    *(f"rationale_dropped_{name}" for name in FILTERS),
)
_USAGE = (
    "calls_made", "calls_from_journal", "prompt_tokens", "cached_prompt_tokens", "output_tokens",
    "cost_usd", "journal_tokens", "seconds",
)  # fmt: skip
_NOT_WHOLE = ("cost_usd", "seconds")


def collect(
    shard_paths: Sequence[str],
    label_metric_paths: Sequence[str],
    rationale_metric_paths: Sequence[str],
    training_rows_path: str,
) -> dict[str, Any]:
    """Joins shards in the order of row ids, adds their counts up and prints the totals.

    Args:
        shard_paths: JSONL of `Labelled` from every rationale step.
        label_metric_paths: the summaries of `label_shard`.
        rationale_metric_paths: the summaries of `extract_rationales`.
        training_rows_path: JSONL of `Labelled`, written.

    Returns:
        The sums under the same names, ``teacher_accuracy`` and ``rationale_yield`` from the summed
        counts (-1 without rows). Tokens and cost are those of both steps together.

    Raises:
        UserError: ``ROW_UNREADABLE``, ``METRICS_UNREADABLE``, ``SHARD_ROWS_DOUBLE``.
    """
    rows = sorted(
        (row for path in shard_paths for row in read_jsonl(path, Labelled)), key=lambda row: row.id
    )
    for first, second in itertools.pairwise(rows):
        if first.id == second.id:
            raise UserError(
                "SHARD_ROWS_DOUBLE",
                f"row {first.id} stands in more than one place of the shards",
                "hand over every shard once",
            )
    write_jsonl(training_rows_path, rows)
    labels = [_read(path) for path in label_metric_paths]
    rationales = [_read(path) for path in rationale_metric_paths]
    summary: dict[str, Any] = {
        **_sum(labels, _LABEL_COUNTS),
        **_sum(rationales, _RATIONALE_COUNTS),
        **_sum([*labels, *rationales], _USAGE),
    }
    summary["teacher_accuracy"] = _share(summary["audit_correct"], summary["audit_rows"])
    summary["rationale_yield"] = _share(summary["rationale_kept"], summary["rationale_asked"])
    print(_totals(len(rows), summary))
    return summary


def _totals(rows: int, summary: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"training rows: {rows} ({summary['rows_gold']} with gold labels, "
            f"{summary['rows_failed']} left out because the teacher gave no label)",
            accuracy_line(summary),
            yield_lines(summary),
            f"teacher: {summary['calls_made']} calls made, {summary['calls_from_journal']} answers "
            f"from the journal, {summary['prompt_tokens']} prompt tokens "
            f"({summary['cached_prompt_tokens']} cached), {summary['output_tokens']} output "
            f"tokens, {summary['cost_usd']:.4f} USD",
        ]
    )


def _sum(summaries: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, int | float]:
    total = {name: sum(item.get(name, 0) for item in summaries) for name in names}
    return {
        name: round(value, 6) if name in _NOT_WHOLE else int(value) for name, value in total.items()
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else -1.0


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as source:
            value = json.load(source)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            "METRICS_UNREADABLE", f"{path}: {error}", "run the step that writes this file again"
        ) from error
    if not isinstance(value, dict):
        raise UserError("METRICS_UNREADABLE", f"{path}: not a mapping of counts")
    return value
