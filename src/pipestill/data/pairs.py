"""Pairs of answers: which are the same, which teach something, and where each answer stands.

Everything here works on validated rows (`pipestill.data.convert_pairs.preference`), held out or
not.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipestill.data import lengths
from pipestill.data.convert_pairs import CANDIDATES, preference
from pipestill.data.prompts import key_of
from pipestill.data.rows import Row, check, unused
from pipestill.records import Preference

# Rows that are in order and teach nothing: they do not count towards max_rejected_fraction.
SET_ASIDE = ("tie", "identical_candidates", "contradictory_pair", "same_after_cut")


def pair_fields(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of a preference row.

    Raises:
        RowProblem: naming the field.
    """
    return [pair | check(pair, "input_text", "output_text") for pair in preference(value)]


def preferred(fields: Mapping[str, Any]) -> str:
    """The better answer."""
    return str(fields[CANDIDATES[fields["choice"]]])


def distinct(pairs: Iterable[Row]) -> tuple[list[Row], int, list[Row]]:
    """Each pair of answers to a prompt once: (kept, number dropped, rows that contradict).

    The order of the two answers does not count. Where two rows prefer opposite answers nobody can
    tell which is right, so all rows of that pair are given back as contradicting.
    """
    groups: dict[tuple[bytes, frozenset[str]], list[Row]] = {}
    for row in pairs:
        answers = frozenset(row.fields[name] for name in CANDIDATES)
        groups.setdefault((key_of(row), answers), []).append(row)
    kept: list[Row] = []
    contradicting: list[Row] = []
    for group in groups.values():
        if len({preferred(row.fields) for row in group}) > 1:
            contradicting += group
        else:
            kept.append(group[0])
    dropped = sum(map(len, groups.values())) - len(kept) - len(contradicting)
    return kept, dropped, contradicting


def cut_answers(
    tokenizer: Any, texts: Sequence[str], limit: int
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """The first `limit` tokens of each text, and how many it has; words without a tokenizer.

    The end mark is not counted.
    """
    heads: list[tuple[Any, ...]] = []
    counts: list[int] = []
    for start in range(0, len(texts), lengths.BATCH):
        batch = list(texts[start : start + lengths.BATCH])
        if tokenizer is None:
            rows: list[Any] = [text.split() for text in batch]
        else:
            rows = tokenizer(
                batch, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
        heads += [tuple(row[:limit]) for row in rows]
        counts += map(len, rows)
    return heads, counts


def record(row: Row, used: set[str], seed: int) -> Preference:
    """The row under its own id or one made from its content, its sides swapped by a hash of it."""
    fields = row.fields
    name = unused(fields["id"] or _name(fields), used)
    first, second = (fields[answer] for answer in CANDIDATES)
    choice = fields["choice"]
    if hashlib.sha256(f"sides:{seed}:{name}".encode()).digest()[0] % 2:
        first, second, choice = second, first, 1 - choice
    return Preference(
        id=name,
        input_text=fields["input_text"],
        candidate_0=first,
        candidate_1=second,
        choice=choice,
        margin=fields.get("margin", 0.0),
        source=fields.get("source", "human"),
        source_row=row.source_row,
        messages=fields.get("messages"),
    )


def _name(fields: Mapping[str, Any]) -> str:
    """The same whichever answer stands first."""
    parts = [fields["input_text"], *sorted(fields[name] for name in CANDIDATES)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
