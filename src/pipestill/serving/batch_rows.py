"""The rows of a batch: read, checked, and given to one shard each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.data.convert_chat import prompt
from pipestill.data.raw import BadRow, Raw, RowProblem, bad_row
from pipestill.data.read import read_records
from pipestill.errors import UserError
from pipestill.generation.label import parse_shard
from pipestill.models.chat import Conversation


@dataclass(frozen=True)
class Asked:
    """One row to answer. `fields` are those of the input that go into the output."""

    file: str
    line: int
    source_row: int
    id: str
    text: str  # a `Conversation` where the row has messages
    fields: dict[str, Any]


def read_shard(uri: str, shard: str) -> tuple[list[Asked], list[BadRow], int]:
    """The rows of one shard, the bad ones of the same shard, and the rows of the whole input.

    Source row n (from 0) belongs to shard ``n mod count``, so that every row is in one shard.

    Raises:
        UserError: ``SHARD``; what `pipestill.data.read.read_records` raises.
    """
    index, count = parse_shard(shard)
    rows: list[Asked] = []
    bad: list[BadRow] = []
    total = 0
    for source_row, raw in enumerate(read_records(uri)):
        total += 1
        if source_row % count != index:
            continue
        found = _read(raw, source_row)
        if isinstance(found, Asked):
            rows.append(found)
        else:
            bad.append(found)
    return rows, bad, total


def _read(raw: Raw | BadRow, source_row: int) -> Asked | BadRow:
    if isinstance(raw, BadRow):
        return BadRow(**{**vars(raw), "source_row": source_row})
    try:
        if not isinstance(raw.value, dict):
            raise RowProblem("(row)", "not_an_object", raw.value)
        fields = prompt(raw.value)
        text = fields["input_text"]
        if "messages" in fields:
            text = Conversation(text, fields["messages"])
        return Asked(raw.file, raw.line, source_row, _id(raw.value, source_row), text, fields)
    except RowProblem as problem:
        return bad_row(raw.file, raw.line, problem, source_row)


def _id(value: dict[str, Any], source_row: int) -> str:
    """The row's own id as text, else the number of the row."""
    given = value.get("id")
    if given is None:
        return str(source_row)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise RowProblem("id", "wrong_type", given)
    return str(given)


def fitting(
    student: Any, rows: Sequence[Asked], tasks: Iterable[str]
) -> tuple[list[Asked], list[BadRow]]:
    """The rows that the model reads whole, and the others: a cut question has a wrong answer.

    The server refuses the same ones.
    """
    chat = student.renderer.style == "chat"
    refused: dict[int, RowProblem] = {}
    for place, row in enumerate(rows):
        if isinstance(row.text, Conversation) and (problem := _no_chat(student, row)):
            refused[place] = problem
    left = [place for place in range(len(rows)) if place not in refused]
    for task in ("predict",) if chat else tasks:
        prompts = student.renderer.prompts(task, [rows[place].text for place in left])
        for place, given in zip(left, prompts, strict=True):
            if given.truncated:
                refused[place] = _too_long(student, rows[place])
    good = [row for place, row in enumerate(rows) if place not in refused]
    return good, [
        bad_row(rows[place].file, rows[place].line, problem, rows[place].source_row)
        for place, problem in sorted(refused.items())
    ]


def _no_chat(student: Any, row: Asked) -> RowProblem | None:
    renderer = student.renderer
    if renderer.style != "chat":
        detail = f"this model is not tuned for chat (its style is {renderer.style})"
        return RowProblem("messages", "wrong_type", row.text, detail)
    try:
        too_long = renderer.whole_length(row.text) > renderer.max_input_tokens
    except UserError as error:
        return RowProblem("messages", "bad_role", row.text, error.message)
    return _too_long(student, row) if too_long else None


def _too_long(student: Any, row: Asked) -> RowProblem:
    field = "messages" if isinstance(row.text, Conversation) else "input_text"
    detail = f"the model reads {student.renderer.max_input_tokens}"
    return RowProblem(field, "too_long", row.text, detail)
