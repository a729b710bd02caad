"""Validated rows: every field checked, in whatever schema they came."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pipestill.config import DataConfig
from pipestill.data.convert import CONVERTERS, likely_format
from pipestill.data.detect import PARSERS
from pipestill.data.raw import BadRow, Raw, RowProblem, bad_row, missing, sound
from pipestill.data.read import read_records
from pipestill.errors import UserError


@dataclass(frozen=True)
class Row:
    """A good row and where it came from. `fields` has ``input_text`` and the texts beside it."""

    file: str
    line: int
    source_row: int
    fields: dict[str, Any]


Convert = Callable[[dict[str, Any]], list[dict[str, Any]]]


def read_rows(uri: str, config: DataConfig) -> Iterator[Row | BadRow]:
    """Yields good rows and rejects in source order; stops after `config.max_rows` source rows.

    Raises:
        UserError: ``DATA_FORMAT_UNKNOWN`` and those of `pipestill.data.read.read_records`.
    """
    check_format(config.data_format)

    def convert(value: dict[str, Any]) -> list[dict[str, Any]]:
        return _converted(value, config)

    return read_with(uri, convert, config.data_format, config.max_rows)


def read_with(
    uri: str, convert: Convert, data_format: str = "auto", max_rows: int = 0
) -> Iterator[Row | BadRow]:
    """As `read_rows`, by a function from an object to the fields of its rows.

    Args:
        uri: see `pipestill.data.source.list_files`.
        convert: raises `RowProblem` for an object that it cannot use.
        data_format: what `pipestill.data.read.read_records` takes.
        max_rows: source rows to read; 0 = all.
    """
    for source_row, item in enumerate(read_records(uri, data_format)):
        if 0 < max_rows <= source_row:
            return
        if isinstance(item, BadRow):
            yield dataclasses.replace(item, source_row=source_row)
        else:
            yield from _rows_of(item, source_row, convert, data_format)


def check_format(name: str) -> None:
    """Refuses a `data_format` that does not exist."""
    allowed = ("auto", *PARSERS, *CONVERTERS)
    if name not in allowed:
        raise UserError(
            "DATA_FORMAT_UNKNOWN", f"data_format: found {name!r}, allowed: {', '.join(allowed)}"
        )


def _rows_of(
    raw: Raw, source_row: int, convert: Convert, data_format: str
) -> Iterator[Row | BadRow]:
    try:
        if not isinstance(raw.value, dict):
            raise RowProblem("(row)", "not_an_object", raw.value)
        for fields in convert(raw.value):
            yield Row(raw.file, raw.line, source_row, fields)
    except RowProblem as problem:
        guess = likely_format(set(raw.value)) if problem.reason == "missing_field" else ""
        if guess not in ("", data_format):
            problem.detail = f"the row looks like data_format {guess}"
        yield bad_row(raw.file, raw.line, problem, source_row)


def _converted(value: dict[str, Any], config: DataConfig) -> list[dict[str, Any]]:
    """The rows of one object, all of them checked before the first is given out."""
    convert = CONVERTERS.get(config.data_format)
    if convert is None:
        return [check(value, config.input_field, config.output_field)]
    return [row | check(row, "input_text", "output_text") for row in convert(value)]


def check(row: Mapping[str, Any], input_field: str, output_field: str) -> dict[str, Any]:
    """Checks one row; returns it under our names, absent and empty optional fields as None.

    Raises:
        RowProblem: naming the field.
    """
    if input_field not in row:
        raise missing(input_field, row)
    text = row[input_field]
    if not isinstance(text, str):
        raise RowProblem(input_field, "wrong_type", text)
    if not text.strip():
        raise RowProblem(input_field, "empty_input", text)
    return {
        "id": as_text(row, "id"),
        "input_text": sound(input_field, text),
        "output_text": as_text(row, output_field),
        "rationale": as_text(row, "rationale"),
    }


def as_text(row: Mapping[str, Any], field: str) -> str | None:
    """The text of an optional field: a string, or a number written out; None where it is missing.

    Whole floats lose their ``.0``, because tables turn integers into floats where cells are empty.
    """
    value = row.get(field)
    if value is None or isinstance(value, str):
        return sound(field, value).strip() or None if value else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise RowProblem(field, "wrong_type", value)
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise RowProblem(field, "bad_number", str(value))
    return str(int(value)) if value == int(value) else str(value)


def unused(name: str, used: set[str]) -> str:
    """`name`, with a number where it is taken; it is then in `used`."""
    found, number = name, 1
    while found in used:
        number += 1
        found = f"{name}-{number}"
    used.add(found)
    return found
