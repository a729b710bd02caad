"""Reads the rows of a reference in order: JSON lines, JSON lists, CSV (packed too), Parquet."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

from pipestill.data import lines
from pipestill.data.csv_rows import read_csv
from pipestill.data.detect import PARSERS, detect
from pipestill.data.gzipped import unpacked
from pipestill.data.json_list import split_list
from pipestill.data.raw import BadRow, Raw, RowProblem, bad_row
from pipestill.data.source import SourceFile, list_files, open_file, readable
from pipestill.errors import UserError

PARQUET_BATCH = 1024


def read_records(uri: str, data_format: str = "auto") -> Iterator[Raw | BadRow]:
    """Yields every row of every file that `uri` names, in order, good or set aside.

    The n-th item (from 0) is source row n. A `Raw` carries any JSON value: fields are not looked
    at. `data_format` is one of ``jsonl json csv parquet``; anything else means by content.

    Raises:
        UserError: ``DATA_EMPTY``, ``DATA_FORMAT``, ``DATA_JSON_BROKEN``, ``DATA_CSV_HEADER``,
            and those of `pipestill.data.source.list_files`.
    """
    items = itertools.chain.from_iterable(read_file(file, data_format) for file in list_files(uri))
    first = next(items, None)
    if first is None:
        raise UserError("DATA_EMPTY", f"{uri}: no rows", "give a file with at least one row")
    yield first
    yield from items


def read_file(file: SourceFile, data_format: str = "auto") -> Iterator[Raw | BadRow]:
    """Yields the rows of one file."""
    with readable(file.name), open_file(file) as opened:
        stream = unpacked(opened, file.name)
        wanted = data_format if data_format in PARSERS else "auto"
        kind = detect(stream, file.name, wanted)
        if kind == "parquet" and stream is not opened:
            raise UserError(
                "DATA_FORMAT",
                f"{file.name}: found Parquet within gzip, which cannot be read piece by piece",
                "unpack it: Parquet is compressed inside",
            )
        yield from READERS[kind](stream, file.name)


def _read_json_lines(stream: IO[bytes], name: str) -> Iterator[Raw | BadRow]:
    for line in lines.bounded_lines(stream):
        if line.too_long or line.data.strip():
            yield _parse(line, name)


def _read_json_list(stream: IO[bytes], name: str) -> Iterator[Raw | BadRow]:
    for line in split_list(stream, name):
        yield _parse(line, name)


def _parse(line: lines.Line, name: str) -> Raw | BadRow:
    try:
        return Raw(name, line.number, _load(line))
    except RowProblem as problem:
        return bad_row(name, line.number, problem)


def _load(line: lines.Line) -> Any:
    shown = line.data[:400].decode("utf-8", "replace")
    if line.too_long:
        raise RowProblem("(row)", "line_too_long", shown)
    try:
        return json.loads(line.data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise RowProblem("(row)", "invalid_utf8", shown) from error
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 20) : error.pos + 40]
        detail = f"{error.msg.rstrip(':')}, column {error.colno}"
        raise RowProblem("(row)", "broken_json", near or "(nothing)", detail=detail) from error
    except RecursionError as error:
        raise RowProblem("(row)", "nested_too_deep", shown) from error
    except ValueError as error:  # NaN, or a number of thousands of digits
        if isinstance(error, RowProblem):
            raise
        raise RowProblem("(row)", "broken_json", shown, detail="a number is too long") from error


def _no_constant(text: str) -> NoReturn:
    raise RowProblem("(row)", "json_nan", text)


def _read_parquet(stream: IO[bytes], name: str) -> Iterator[Raw | BadRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_BATCH):
            for value in batch.to_pylist():
                number += 1
                yield Raw(name, number, value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            "DATA_FORMAT",
            f"{name}: broken Parquet file after row {number} ({reason})",
            "write the file again, or store the rows as JSON lines",
        ) from error


READERS: dict[str, Callable[[IO[bytes], str], Iterator[Raw | BadRow]]] = {
    "jsonl": _read_json_lines,
    "json": _read_json_list,
    "csv": read_csv,
    "parquet": _read_parquet,
}
