"""Which rows are the same, which are held out, and which have leaked."""

import hashlib
from collections.abc import Iterable

from pipestill.data.rows import Row
from pipestill.data.text import normalise


def input_key(text: str) -> bytes:
    """Equal for inputs that differ only in white space and letter case."""
    return hashlib.sha256(normalise(text).encode()).digest()


def is_held_out(text: str, fraction: float, seed: int) -> bool:
    """Decides by hash alone, so other rows and their order never move a row to the other side."""
    digest = hashlib.sha256(f"{seed}:".encode() + input_key(text)).digest()
    return int.from_bytes(digest[:8]) < fraction * 2.0**64


def split(rows: Iterable[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows; a row without a label cannot be held out."""
    train: list[Row] = []
    held_out: list[Row] = []
    for row in rows:
        labelled = row.fields["output_text"] is not None
        goes_out = labelled and is_held_out(row.fields["input_text"], fraction, seed)
        (held_out if goes_out else train).append(row)
    return train, held_out


def deduplicate(rows: Iterable[Row]) -> tuple[list[Row], int, list[Row]]:
    """One row for each input: (kept, number dropped, rows whose labels contradict each other).

    Of equal rows the first with a label stays. Where two labels differ nobody can tell which is
    right, so the whole group is set aside.
    """
    groups: dict[bytes, list[Row]] = {}
    for row in rows:
        groups.setdefault(input_key(row.fields["input_text"]), []).append(row)
    kept: list[Row] = []
    conflicting: list[Row] = []
    for group in groups.values():
        labelled = [row for row in group if row.fields["output_text"] is not None]
        if len({" ".join(row.fields["output_text"].split()) for row in labelled}) > 1:
            conflicting += group
        else:
            kept.append((labelled or group)[0])
    dropped = sum(map(len, groups.values())) - len(kept) - len(conflicting)
    return kept, dropped, conflicting


def leaked(train: Iterable[Row], held_out: Iterable[Row]) -> list[Row]:
    """Training rows whose input stands in the held-out set."""
    keys = {input_key(row.fields["input_text"]) for row in held_out}
    return [row for row in train if input_key(row.fields["input_text"]) in keys]
