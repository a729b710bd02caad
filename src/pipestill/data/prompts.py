"""Prompts that a policy answers: read, deduplicated, and written as `Example` without an answer."""

import hashlib
from collections.abc import Iterable
from typing import Any

from pipestill.data.convert_chat import prompt
from pipestill.data.rows import Row, check, unused
from pipestill.data.split import input_key, is_held_out
from pipestill.records import Example


def prompt_fields(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of a prompt row: input_text, or messages that end with the user's.

    Raises:
        RowProblem: naming the field.
    """
    asked = prompt(value) | {name: value[name] for name in ("id",) if name in value}
    return [asked | check(asked, "input_text", "output_text")]


def key_of(row: Row) -> bytes:
    """Equal for rows that ask the same."""
    return input_key(row.fields["input_text"])


def each_once(rows: Iterable[Row]) -> list[Row]:
    """The first row of every prompt."""
    first: dict[bytes, Row] = {}
    for row in rows:
        first.setdefault(key_of(row), row)
    return list(first.values())


def of_pairs(pairs: Iterable[Row]) -> list[Row]:
    """The prompts of preference rows, each once, without the pairs' ids."""
    names = ("input_text", "messages")
    return [
        Row(
            row.file,
            row.line,
            row.source_row,
            {name: row.fields[name] for name in names if name in row.fields},
        )
        for row in each_once(pairs)
    ]


def hash_split(rows: Iterable[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows by a hash of the prompt alone, for pairs and prompts alike."""
    train: list[Row] = []
    held_out: list[Row] = []
    for row in rows:
        goes_out = is_held_out(row.fields["input_text"], fraction, seed)
        (held_out if goes_out else train).append(row)
    return train, held_out


def without(rows: Iterable[Row], held_out: set[bytes]) -> list[Row]:
    """Rows whose prompt is not held out."""
    return [row for row in rows if key_of(row) not in held_out]


def examples(rows: Iterable[Row], used: set[str]) -> list[Example]:
    """Rows under their own ids, or one made from the prompt; none that is in `used` already."""
    return [
        Example(
            id=unused(row.fields.get("id") or _name(row), used),
            input_text=row.fields["input_text"],
            source_row=row.source_row,
            messages=row.fields.get("messages"),
        )
        for row in rows
    ]


def _name(row: Row) -> str:
    return hashlib.sha256(row.fields["input_text"].encode()).hexdigest()[:16]
