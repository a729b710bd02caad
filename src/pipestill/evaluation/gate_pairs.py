"""McNemar's test as a rule of the gate: whether more answers are right, from the discordant rows.

Of the rows that both models have right, or both wrong, the test takes no notice. The exact test
keeps its level always and is conservative. The mid-p test finds more; nothing guarantees its level,
but it kept it in all 9,595 cases of Fagerland, Lydersen and Laake 2013 (BMC Medical Research
Methodology 13:91), who recommend it. Neither knows a margin: that a model is *not worse* is shown
by the interval (`pipestill.evaluation.gate_slices.not_fewer_right`).
"""

from __future__ import annotations

import math

import numpy as np

from pipestill.evaluation.gate import FAIL, OPEN, PASS, Rule, mean_replicates
from pipestill.evaluation.gate_power import GAIN, LEVEL, paired_statement
from pipestill.evaluation.gate_slices import counts
from pipestill.evaluation.statistics import Scores

MID_P, EXACT = "mid_p", "exact"
# Tests of more right answers, by the name that a user gives.
TESTS = ("interval", "mcnemar", "mcnemar_exact", "bootstrap")
_METHODS = {"mcnemar": MID_P, "mcnemar_exact": EXACT}


def mcnemar_better(won: int, lost: int, method: str = MID_P) -> float:
    """One-sided p-value that the new model is no better.

    Exact: the chance that of won + lost fair coins `won` or more fall for the new model (McNemar
    1947, Psychometrika 12(2)). Mid-p: the same less half the chance of exactly `won`.

    Args:
        won, lost: rows that only the new, or only the old model has right.
        method: mid_p | exact.

    Raises:
        ValueError: on another method.
    """
    if method not in (MID_P, EXACT):
        raise ValueError(f"method: found {method!r}, allowed: {MID_P}, {EXACT}")
    total = won + lost
    term, tail = 1, 0  # C(total, losses), and their sum from 0 losses on
    for losses in range(lost + 1):
        tail += term
        if losses < lost:
            term = term * (total - losses) // (losses + 1)
    halves = 2 * tail - (term if method == MID_P else 0)
    # Whole numbers until the last division, so that no tail underflows on thousands of rows.
    p: float = halves / 2 ** (total + 1)
    return p


def mcnemar_p(won: int, lost: int, method: str = MID_P) -> float:
    """Two-sided p-value that both models are equally good: twice the smaller one-sided p."""
    sides = mcnemar_better(won, lost, method), mcnemar_better(lost, won, method)
    return min(1.0, 2 * min(sides))


def more_right_mcnemar(
    name: str,
    new: Scores,
    old: Scores,
    *,
    method: str = MID_P,
    level: float = LEVEL,
    gain: float = GAIN,
) -> Rule:
    """Passes where McNemar's test says that more answers are right, fails where fewer.

    Args:
        name: of the rule.
        new, old: [rows] 0/1 scores of the same rows.
        method: mid_p | exact.
        level: two-sided; a model that is no better passes in half of it at most.
        gain: share of right answers whose power is stated.

    Raises:
        ValueError: scores that are not 0/1 or differ in length; another method.
    """
    rows, won, lost = counts(new, old)
    better, worse = mcnemar_better(won, lost, method), mcnemar_better(lost, won, method)
    difference, p = (won - lost) / max(1, rows), min(1.0, 2 * min(better, worse))
    outcome = PASS if better <= level / 2 else FAIL if worse <= level / 2 else OPEN
    words = "mid-p" if method == MID_P else "exact"
    return Rule(
        name=name,
        outcome=outcome,
        text=f"difference {difference:+.2%} on {rows} rows, {won} won and {lost} lost "
        f"(McNemar {words}, p {p:.2g}), wanted p up to {level:g} and more won than lost",
        numbers={
            "rows": rows,
            "won": won,
            "lost": lost,
            "difference": difference,
            "p": p,
            "method": method,
            "level": level,
            "power": paired_statement(rows, won, lost, gain=gain, level=level),
        },
    )


def one_sided(new: Scores, old: Scores, test: str = "interval") -> tuple[float, float]:
    """One-sided p-values of one of `TESTS`: that the new model is no better, that it is no worse.

    ``interval`` is the score test whose interval is Tango's; at a difference of 0 it is McNemar's
    with the normal approximation. ``bootstrap`` is the share of widened paired replicates on the
    other side of 0, or at it (Davison and Hinkley 1997, section 4.2.3).

    Args:
        new, old: [rows] 0/1 scores of the same rows.
        test: of `TESTS`.

    Raises:
        ValueError: on another test, or wrong scores.
    """
    rows, won, lost = counts(new, old)
    if test in _METHODS:
        method = _METHODS[test]
        return mcnemar_better(won, lost, method), mcnemar_better(lost, won, method)
    if test == "interval":
        if won + lost == 0:
            return 1.0, 1.0
        z = (won - lost) / math.sqrt(2 * (won + lost))
        return math.erfc(z) / 2, math.erfc(-z) / 2
    if test != "bootstrap":
        raise ValueError(f"test: found {test!r}, allowed: {', '.join(TESTS)}")
    if not rows:
        return 1.0, 1.0
    replicates = mean_replicates(np.asarray(new) - np.asarray(old))
    most = len(replicates) + 1
    return (int((replicates <= 0).sum()) + 1) / most, (int((replicates >= 0).sum()) + 1) / most
