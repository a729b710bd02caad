"""Rules of the gate for right-or-wrong answers of two models to the same rows.

Shares of right answers often differ on a handful of rows, or on none, where resampling rows says
nothing (all replicates are 0). So the interval of the difference is the score interval for paired
proportions, and slices are tested exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from pipestill.evaluation.gate import FAIL, OPEN, PASS, Rule
from pipestill.evaluation.gate_power import GAIN, null_variance, paired_statement
from pipestill.evaluation.statistics import Scores, holm

Z95 = 1.959963984540054


def counts(new: Scores, old: Scores) -> tuple[int, int, int]:
    """Rows, rows that only the new model has right, rows that only the old one has right.

    Raises:
        ValueError: where the two differ in length or are not 0/1.
    """
    first, second = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    if len(first) != len(second):
        raise ValueError(f"paired scores of {len(first)} and {len(second)} rows")
    if not np.isin([*first, *second], (0.0, 1.0)).all():
        raise ValueError("scores must be 0 or 1")
    return len(first), int((first > second).sum()), int((first < second).sum())


@lru_cache(maxsize=4096)
def paired_interval(rows: int, won: int, lost: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of the difference of two paired proportions, (won − lost) / rows.

    Tango (1998, Statistics in Medicine 17(8)): the differences that the score test, with the
    discordant probability at its constrained maximum-likelihood value, does not refuse.

    Args:
        rows: pairs, one at least.
        won, lost: pairs in which only the first, or only the second, is right.
        z: normal quantile of either side.
    """
    if rows == 0:
        return -1.0, 1.0
    centre = (won - lost) / rows
    high = _root(lambda gap: _score(rows, won, lost, gap) + z, centre, 1.0)
    low = _root(lambda gap: z - _score(rows, won, lost, gap), centre, -1.0)
    return low, high


def _score(rows: int, won: int, lost: int, gap: float) -> float:
    """The score statistic at a difference of `gap`."""
    variance = rows * null_variance(won / rows, lost / rows, gap)
    distance = won - lost - rows * gap
    if variance <= 1e-12:
        return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _root(function: Callable[[float], float], inside: float, outside: float) -> float:
    """Where a function that is positive at `inside` changes its sign, on the way to `outside`."""
    if function(outside) >= 0:
        return outside
    for _ in range(80):
        middle = (inside + outside) / 2
        if function(middle) >= 0:
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def worse_p(won: int, lost: int) -> float:
    """One-sided exact p-value that the new model is no worse: P(lost or more of won + lost).

    Conditional on the rows on which the two differ (McNemar 1947).
    """
    total = won + lost
    tail = sum(math.comb(total, losses) for losses in range(lost, total + 1))
    return float(tail / 2**total)


def _text(rows: int, difference: float, low: float, high: float) -> str:
    return f"difference {difference:+.2%} on {rows} rows (95 % CI {low:+.2%} to {high:+.2%})"


def more_right(
    name: str, new: Scores, old: Scores, *, least: float = 0.0, gain: float = GAIN
) -> Rule:
    """Passes where surely more answers are right (by `least`), fails where surely not so many.

    Args:
        name: of the rule.
        new, old: [rows] 0/1 scores of the same rows.
        least: share of the rows by which more have to be right.
        gain: share beyond `least` whose power is stated.
    """
    rows, won, lost = counts(new, old)
    low, high = paired_interval(rows, won, lost)
    difference = (won - lost) / max(1, rows)
    return Rule(
        name=name,
        outcome=PASS if low > least else FAIL if high < least else OPEN,
        text=f"{_text(rows, difference, low, high)}, wanted above {least:.2%}",
        numbers=_numbers(rows, won, lost, low, high)
        | {
            "least": least,
            "power": paired_statement(rows, won, lost, gain=min(1.0, least + gain), margin=-least),
        },
    )


def not_fewer_right(name: str, new: Scores, old: Scores, *, margin: float) -> Rule:
    """Passes where surely not fewer answers are right by `margin` or more (non-inferiority).

    Args:
        name: of the rule.
        new, old: [rows] 0/1 scores of the same rows.
        margin: share of the rows by which fewer may be right.
    """
    rows, won, lost = counts(new, old)
    low, high = paired_interval(rows, won, lost)
    difference = (won - lost) / max(1, rows)
    return Rule(
        name=name,
        outcome=PASS if low > -margin else FAIL if high < -margin else OPEN,
        text=f"{_text(rows, difference, low, high)}, tolerated down to {-margin:.2%}",
        numbers=_numbers(rows, won, lost, low, high)
        | {
            "margin": margin,
            "power": paired_statement(rows, won, lost, gain=0.0, margin=margin),
        },
    )


def _numbers(rows: int, won: int, lost: int, low: float, high: float) -> dict[str, object]:
    return {
        "rows": rows,
        "won": won,
        "lost": lost,
        "difference": (won - lost) / max(1, rows),
        "ci95": [low, high],
    }


def no_slice_worse(
    slices: Mapping[str, Sequence[int]],
    new: Scores,
    old: Scores,
    *,
    level: float = 0.05,
    least_rows: int = 20,
) -> Rule:
    """Fails where the new model is surely worse on a slice; it is a veto, never a proof.

    Each slice of `least_rows` or more is tested one-sided and exactly; the p-values are adjusted
    by Holm's method, so that a model that is nowhere worse fails in at most `level` of all runs,
    however many slices there are.

    Args:
        slices: name → row numbers.
        new, old: [rows] 0/1 scores.
        level: family-wise error rate.
        least_rows: smaller slices are counted and not tested.
    """
    first, second = np.asarray(new), np.asarray(old)
    tested: dict[str, tuple[int, int, int]] = {}
    for name, places in slices.items():
        if len(places) >= max(1, least_rows):
            chosen = np.asarray(places, dtype=np.intp)
            tested[name] = counts(first[chosen], second[chosen])
    adjusted = holm({name: worse_p(won, lost) for name, (_, won, lost) in tested.items()})
    bad = [name for name, p in adjusted.items() if p <= level]
    shown = ", ".join(_slice_words(name, *tested[name], adjusted[name]) for name in bad)
    passed = f"none of {len(tested)} slices is surely worse"
    small = len(slices) - len(tested)
    return Rule(
        name="slices",
        outcome=FAIL if bad else PASS,
        text=(shown or passed) + (f" ({small} too small to test)" if small else ""),
        numbers={
            "level": level,
            "too_small": small,
            "slices": {
                name: {"rows": rows, "won": won, "lost": lost, "p_holm": adjusted[name]}
                for name, (rows, won, lost) in tested.items()
            },
        },
    )


def _slice_words(name: str, rows: int, won: int, lost: int, p: float) -> str:
    return f"{name}: {won} won and {lost} lost of {rows} rows (p {p:.2g})"
