"""Whether new rows look like those of the last training: three views, each a permutation test.

Views: length of the input (tenths of the reference's own distribution), label, and words (single
words hashed to 256 buckets). The statistic of each is the Jensen-Shannon divergence in bits (Lin
1991, IEEE Trans. Information Theory 37(1)): 0 for equal distributions, 1 for disjoint ones. Its
p-value is the share of random reassignments of rows to the two sides that diverge as much (with
the observed one counted; Davison and Hinkley 1997, section 4.2.3), which holds at any number of
rows and also for words, whose counts in one row depend on each other. The three p-values are
adjusted by Holm's method. Because a trifle is significant on many rows, a view has drifted only
where its divergence also exceeds `effect`. The population-stability index of the lengths is shown
beside them, because many know it; nothing rests on it.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipestill.evaluation.statistics import holm
from pipestill.records import Example

Table = NDArray[np.float64]
BUCKETS = 256
MOST_LABELS = 50
PERMUTATIONS = 999
MOST_ROWS = 2000  # of either side; more are thinned by hash
LONGEST_TEXT = 20_000  # characters looked at


@dataclass(frozen=True, kw_only=True)
class View:
    """One view: divergence in bits, its p-value as it is and adjusted, and whether it drifted."""

    name: str
    divergence: float
    p: float
    adjusted: float
    drifted: bool


def drift(
    old: Sequence[Example], new: Sequence[Example], *, level: float, effect: float, seed: int = 0
) -> dict[str, Any]:
    """Compares new rows with those of the last training.

    Args:
        old, new: rows; the labels of both are compared where both have any.
        level: family-wise error rate of the three tests.
        effect: bits below which no divergence counts.
        seed: of the permutations.

    Returns:
        ``drifted``, ``views`` (fields of `View`), ``psi_length``, ``rows_old``, ``rows_new``.
    """
    old, new = thinned(old), thinned(new)
    facts: dict[str, Any] = {"rows_old": len(old), "rows_new": len(new)}
    if not old or not new:
        return {"drifted": False, "views": [], "psi_length": 0.0, **facts}
    lengths = length_table(old, new)
    tables = {"length": lengths, "words": word_table([*old, *new])}
    if any(row.output_text for row in old) and any(row.output_text for row in new):
        tables["label"] = label_table(old, new)
    random = np.random.default_rng(seed)
    tested = {name: permutation_test(table, len(old), random) for name, table in tables.items()}
    adjusted = holm({name: p for name, (_, p) in tested.items()})
    views = [
        View(
            name=name,
            divergence=round(found, 6),
            p=p,
            adjusted=adjusted[name],
            drifted=adjusted[name] <= level and found >= effect,
        )
        for name, (found, p) in tested.items()
    ]
    return {
        "drifted": any(view.drifted for view in views),
        "views": [asdict(view) for view in views],
        "psi_length": round(psi(lengths[: len(old)].sum(0), lengths[len(old) :].sum(0)), 6),
        **facts,
    }


def thinned(rows: Sequence[Example]) -> Sequence[Example]:
    """At most `MOST_ROWS` rows, those whose inputs have the smallest hashes."""
    if len(rows) <= MOST_ROWS:
        return rows
    return sorted(rows, key=lambda row: _hash(row.input_text))[:MOST_ROWS]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


def length_table(old: Sequence[Example], new: Sequence[Example]) -> Table:
    """[rows, bins]: one 1 a row, in the tenth of the old lengths that its own falls into."""
    sizes = np.array([len(row.input_text.split()) for row in (*old, *new)], dtype=np.float64)
    edges = np.unique(np.quantile(sizes[: len(old)], np.linspace(0, 1, 11)[1:-1]))
    return _one_hot(np.searchsorted(edges, sizes, side="left"), len(edges) + 1)


def label_table(old: Sequence[Example], new: Sequence[Example]) -> Table:
    """[rows, labels + 1]: one 1 a row; rare labels share the last column, no label is a row of 0.

    Which labels are rare is counted over both sides, so that a new label has a column.
    """
    rows = (*old, *new)
    counts = Counter(row.output_text for row in rows if row.output_text)
    common = {label: at for at, (label, _) in enumerate(counts.most_common(MOST_LABELS))}
    columns = np.array([common.get(row.output_text or "", len(common)) for row in rows])
    table = _one_hot(columns, len(common) + 1)
    table[[not row.output_text for row in rows]] = 0.0
    return table


def word_table(rows: Sequence[Example]) -> Table:
    """[rows, 256]: how often words of each bucket stand in the row, lower case."""
    table = np.zeros((len(rows), BUCKETS))
    for at, row in enumerate(rows):
        for word, count in Counter(row.input_text[:LONGEST_TEXT].lower().split()).items():
            table[at, _hash(word) % BUCKETS] += count
    return table


def _one_hot(columns: NDArray[np.intp], width: int) -> Table:
    table = np.zeros((len(columns), width))
    table[np.arange(len(columns)), columns] = 1.0
    return table


def permutation_test(table: Table, first: int, random: np.random.Generator) -> tuple[float, float]:
    """Divergence of the first `first` rows from the others, and its p-value.

    Args:
        table: [rows, columns] of counts.
        first: rows of the one side.
        random: generator of the reassignments.
    """
    rows = len(table)
    sides = np.zeros((PERMUTATIONS + 1, rows))
    sides[0, :first] = 1.0
    for at in range(1, PERMUTATIONS + 1):
        sides[at, random.permutation(rows)[:first]] = 1.0
    one = sides @ table
    found = divergence(one, table.sum(0) - one)
    as_far = int((found[1:] >= found[0] - 1e-12).sum())
    return float(found[0]), (as_far + 1) / (PERMUTATIONS + 1)


def divergence(one: Table, other: Table) -> Table:
    """Jensen-Shannon divergence in bits of count vectors [..., columns] → [...]; 0 where empty."""
    p, q = _shares(one), _shares(other)
    middle = (p + q) / 2
    found: Table = (_entropy(middle) - (_entropy(p) + _entropy(q)) / 2).clip(0.0, 1.0)
    return found


def _shares(counts: Table) -> Table:
    shares: Table = counts / np.maximum(counts.sum(-1, keepdims=True), 1e-300)
    return shares


def _entropy(shares: Table) -> Table:
    entropy: Table = -(shares * np.log2(np.maximum(shares, 1e-300))).sum(-1)
    return entropy


def psi(old: Table, new: Table) -> float:
    """Population-stability index Σ (q − p) ln(q / p) over bins, half a row added to each."""
    p, q = (old + 0.5) / (old + 0.5).sum(), (new + 0.5) / (new + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())
