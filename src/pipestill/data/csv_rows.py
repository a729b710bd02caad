"""CSV rows with line numbers, where one broken quote costs one row and not the rest of the file."""

import csv
from collections import deque
from collections.abc import Iterator
from typing import IO

from pipestill.data import lines
from pipestill.data.gzipped import inner_name
from pipestill.data.raw import BadRow, Raw, RowProblem, bad_row
from pipestill.data.text import excerpt
from pipestill.errors import UserError


def read_csv(stream: IO[bytes], name: str) -> Iterator[Raw | BadRow]:
    """Yields one dict of strings a row, keyed by the header, which is the first line.

    Raises:
        UserError: ``DATA_CSV_HEADER``.
    """
    csv.field_size_limit(max(csv.field_size_limit(), 2 * lines.MAX_LINE_BYTES))
    source = (line for line in lines.bounded_lines(stream))
    first = next((line for line in source if line.data.strip()), None)
    if first is None:
        return
    delimiter = _delimiter(first.data, name)
    header = _header(first, delimiter, name)
    waiting: deque[lines.Line] = deque()
    while (line := _next(waiting, source)) is not None:
        if not line.too_long and not line.data.strip():
            continue
        try:
            cells = _cells(line, delimiter, waiting, source)
            if len(cells) != len(header):
                detail = f"{len(cells)} cells, the header has {len(header)}"
                raise RowProblem("(row)", "csv_columns", ", ".join(cells), detail=detail)
            yield Raw(name, line.number, dict(zip(header, cells, strict=True)))
        except RowProblem as problem:
            yield bad_row(name, line.number, problem)


def _cells(
    line: lines.Line, delimiter: str, waiting: deque[lines.Line], source: Iterator[lines.Line]
) -> list[str]:
    """The cells of the row that begins on `line`; takes more lines while a quote is open.

    Lines that a row took and cannot use go back, because each may be a good row of its own.
    """
    if line.too_long:
        raise RowProblem("(row)", "line_too_long", line.data.decode("utf-8", "replace"))
    taken, size = [line], len(line.data)
    is_open = _ends_open(line.data, delimiter.encode(), False)
    while is_open and (more := _next(waiting, source)) is not None:
        taken.append(more)
        size += len(more.data) + 1
        if more.too_long or size > lines.MAX_LINE_BYTES:
            break
        is_open = _ends_open(more.data, delimiter.encode(), True)
    try:
        if is_open:
            raise csv.Error("a quote is not closed")
        return _parse(b"\n".join(part.data for part in taken), delimiter)
    except csv.Error as error:
        waiting.extendleft(reversed(taken[1:]))
        found = line.data.decode("utf-8", "replace")
        raise RowProblem("(row)", "broken_csv", found, detail=str(error)) from error


def _parse(data: bytes, delimiter: str) -> list[str]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowProblem("(row)", "invalid_utf8", data.decode("utf-8", "replace")) from error
    return next(csv.reader([text], delimiter=delimiter, strict=True))


def _ends_open(data: bytes, delimiter: bytes, is_open: bool) -> bool:
    """Whether a quoted cell is still open at the end of a line."""
    if b'"' not in data:
        return is_open
    at = _closing(data, 0) if is_open else 0
    while at >= 0:
        if data.startswith(b'"', at) and (at == 0 or data.startswith(delimiter, at - 1)):
            at = _closing(data, at + 1)
            continue
        following = data.find(delimiter, at)
        if following < 0:
            return False
        at = following + 1
    return True


def _closing(data: bytes, at: int) -> int:
    """Index after the closing quote; -1 where there is none. A doubled quote is text."""
    while (quote := data.find(b'"', at)) >= 0:
        if not data.startswith(b'"', quote + 1):
            return quote + 1
        at = quote + 2
    return -1


def _next(waiting: deque[lines.Line], source: Iterator[lines.Line]) -> lines.Line | None:
    return waiting.popleft() if waiting else next(source, None)


def _delimiter(header: bytes, name: str) -> str:
    if inner_name(name).lower().endswith(".tsv"):
        return "\t"
    return next((mark for mark in ",\t;" if mark.encode() in header), ",")


def _header(line: lines.Line, delimiter: str, name: str) -> list[str]:
    try:
        if line.too_long:
            raise csv.Error("longer than 1 MiB")
        cells = [cell.strip() for cell in _parse(line.data, delimiter)]
    except (csv.Error, RowProblem) as error:
        raise _bad_header(name, line, str(error)) from error
    if len(set(cells)) < len(cells):
        raise _bad_header(name, line, "a column name stands twice")
    return cells


def _bad_header(name: str, line: lines.Line, why: str) -> UserError:
    found = excerpt(line.data[:200].decode("utf-8", "replace"))
    return UserError(
        "DATA_CSV_HEADER",
        f"{name}, line {line.number}: the CSV header cannot be used ({why}), found {found}",
        "the first line names the columns, each once",
    )
