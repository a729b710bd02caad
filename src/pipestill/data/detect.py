"""Which format a file has, from its first bytes and its name."""

import json
from pathlib import PurePosixPath
from typing import IO

from pipestill.data.gzipped import inner_name
from pipestill.data.text import excerpt
from pipestill.errors import UserError

HEAD_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"
PARSERS = ("jsonl", "json", "csv", "parquet")

MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "gzip data within gzip data"),
    (b"PK\x03\x04", "a zip archive (perhaps a spreadsheet)"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"%PDF-", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"\x89HDF", "an HDF5 file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x80\x04", "a Python pickle"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML document"),
)
# These could begin a text as well, so a NUL byte has to confirm them.
MAGIC_LETTERS = (
    (b"gif8", "a GIF image"),
    (b"bzh", "bzip2 data"),
    (b"sqlite format 3", "an SQLite database"),
    (b"orc", "an ORC file"),
    (b"arrow1", "an Arrow file"),
)


def detect(stream: IO[bytes], name: str, wanted: str = "auto") -> str:
    """Names the parser (``jsonl``, ``json`` for a list, ``csv`` or ``parquet``) for an open file.

    The stream stands after the byte-order mark, if any, when this returns. `wanted` is one of
    `PARSERS`, or anything else for a choice by content first and by the name's ending second.

    Raises:
        UserError: ``DATA_FORMAT`` naming what was found instead.
    """
    head = stream.read(HEAD_BYTES)
    has_bom = head.startswith(BOM)
    stream.seek(len(BOM) if has_bom else 0)
    text = head[len(BOM) :] if has_bom else head
    if not text.strip():
        return "jsonl"  # no rows, which the caller reports
    found = _parquet_or_foreign(text, name)
    if found == "parquet" or wanted == "parquet":
        return _expect_parquet(found, name, wanted)
    if wanted == "csv":
        return "csv"
    return _json_kind(text, name, wanted) or _by_ending(text, name, wanted)


def _parquet_or_foreign(head: bytes, name: str) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    known = MAGIC + (MAGIC_LETTERS if 0 in head else ())
    begin = head[:16].lower()
    for magic, kind in known:
        if begin.startswith(magic.lower()):
            raise _foreign(name, kind)
    if head.count(0) * 10 > len(head):
        raise _foreign(name, "binary data or UTF-16 text")
    return "text"


def _expect_parquet(found: str, name: str, wanted: str) -> str:
    if found != "parquet":
        raise _foreign(name, "text, where data_format says parquet")
    if wanted in PARSERS and wanted != "parquet":
        raise _foreign(name, f"Parquet, where data_format says {wanted}")
    return found


def _json_kind(head: bytes, name: str, wanted: str) -> str:
    """``jsonl``, ``json`` or "" where the text does not look like JSON."""
    stripped = head.lstrip()
    first, _, rest = stripped.partition(b"\n")
    if _is_csv(name) and wanted not in PARSERS and not (first[:1] in b"{[" and _parses(first)):
        return ""
    if stripped.startswith(b"["):
        return "jsonl" if _parses(first) and rest.strip() else "json"
    if first.strip() == b"{":
        raise _foreign(name, "one JSON object spread over lines")
    return "jsonl" if stripped.startswith((b"{", b'"')) else ""


def _by_ending(head: bytes, name: str, wanted: str) -> str:
    if wanted in PARSERS:
        return "jsonl"  # every line will be named as broken
    ending = PurePosixPath(inner_name(name)).suffix.lower()
    if _is_csv(name):
        return "csv"
    if ending in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    shown = excerpt(head[:60].decode("utf-8", "replace"))
    raise _foreign(name, f"text that begins with {shown}")


def _is_csv(name: str) -> bool:
    return inner_name(name).lower().endswith((".csv", ".tsv"))


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _foreign(name: str, kind: str) -> UserError:
    return UserError(
        "DATA_FORMAT",
        f"{name}: found {kind}, allowed: JSON lines, a JSON list, CSV (each also as .gz) or "
        "Parquet; text in UTF-8",
        "convert or unpack it, or set data_format to jsonl, json, csv or parquet",
    )
