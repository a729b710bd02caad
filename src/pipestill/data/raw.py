"""One row as it was read, before any of its fields is looked at, and why a row is set aside."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipestill.data.text import excerpt
from pipestill.records import Reject


@dataclass(frozen=True)
class Raw:
    """A parsed row (any JSON value) and where it stood; `line` counts from 1."""

    file: str
    line: int
    value: Any


@dataclass(frozen=True, kw_only=True)
class BadRow(Reject):
    """A `Reject` with its 0-based place in the source (-1 = not known) and what more is known."""

    source_row: int = -1
    detail: str = ""


class RowProblem(ValueError):
    """A row that cannot be used; `bad_row` makes the line of the rejects file from it."""

    def __init__(self, field: str, reason: str, found: object = "", detail: str = "") -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason, self.found, self.detail = field, reason, found, detail


# reason code → what is wrong, what is allowed. The codes are counted in the summary and stand in
# the rejects file; docs/data-formats.md lists them.
REASONS = {
    "broken_json": "is not valid JSON",
    "broken_csv": "is not a valid CSV row (a quote that is not closed, or text beside one)",
    "csv_columns": "has another number of cells than the header",
    "invalid_utf8": "is not UTF-8 text",
    "json_nan": "holds NaN or Infinity, which JSON does not have",
    "nested_too_deep": "is nested too deeply",
    "line_too_long": "is longer than 1 MiB",
    "not_an_object": "must be an object with named fields",
    "missing_field": "is missing",
    "wrong_type": "has the wrong type (texts are strings, labels strings or numbers)",
    "empty_input": "is empty",
    "nul_byte": "holds a NUL character",
    "invalid_unicode": "holds half of a surrogate pair, which is not text",
    "bad_number": "is not a finite number",
    "unknown_label": "is none of the labels that this format has",
    "bad_equation": "is not an equation of numbers, + - * / and brackets",
    "no_answer_mark": "has no final answer after ####",
    "bad_role": "must be user, assistant or system, with user and assistant taking turns",
    "empty_turn": "is an empty message",
    "no_turn": "has no message to learn from",
    "nested_candidates": "stands inside the last message, must stand at the top of the row",
    "bad_choice": "must be the integer 0 or 1",
    "bad_margin": "must be a finite number, 0 or more",
    "bad_dialogue": "must share all turns but the last reply, from Human: to Assistant:",
    "tie": "prefers neither answer (choice absent, empty or tie; or equal scores)",
    "identical_candidates": "is the same as the other candidate",
    "same_after_cut": "is the same as the other candidate up to target_sequence_length tokens",
    "contradictory_pair": "differs between rows with the same prompt and the same two answers",
    "conflicting_label": "differs between rows with the same input",
    "missing_gold": "is missing, and held-out rows need a gold label",
    "too_long": "has more tokens than max_context_length",
    "output_too_long": "has more tokens than max_output_tokens",
}


def missing(field: str, row: Mapping[str, Any]) -> RowProblem:
    """A field that is not there; `found` names those that are."""
    return RowProblem(field, "missing_field", ", ".join(list(row)[:20]))


def sound(field: str, text: str) -> str:
    """Refuses texts that cannot be written as UTF-8 or hold a NUL."""
    if "\0" in text:
        raise RowProblem(field, "nul_byte", text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowProblem(field, "invalid_unicode", text) from error
    return text


def bad_row(file: str, line: int, problem: RowProblem, source_row: int = -1) -> BadRow:
    """The line of the rejects file; what was found is cut to an excerpt."""
    return BadRow(
        file=file,
        line=line,
        field=problem.field,
        reason=problem.reason,
        found="" if problem.found == "" else excerpt(problem.found),
        source_row=source_row,
        detail=problem.detail,
    )


def describe(row: BadRow) -> str:
    """One line for a person: ``file:line field: what is wrong (found …)``."""
    words = REASONS[row.reason]
    detail = f", {row.detail}" if row.detail else ""
    found = f" (found {row.found})" if row.found else ""
    return f"{row.file}:{row.line} {row.field}: {words}{detail}{found}"
