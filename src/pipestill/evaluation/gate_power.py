"""What a gate can find: its power for so many rows and a true gain, and the rows that it takes.

Normal approximations, per row and two-sided at `level` (a rule that passes where the lower end of
the 95 % interval lies above its bound has level 0.05). A gate that cannot tell is read with them:
"nothing was found" on 74 rows is no sign that there is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

GAIN = 0.03  # share of right answers: the gain whose power is stated
POWER = 0.8
LEVEL = 0.05
_NORMAL = NormalDist()
_MOST_ROWS = 10**9


def null_variance(won: float, lost: float, gap: float) -> float:
    """Variance of one row's difference where the true difference of the two shares is `gap`.

    The share of lost rows is at its constrained maximum-likelihood value (Tango 1998, Statistics in
    Medicine 17(8)); at `gap` 0 the variance is won + lost, McNemar's.

    Args:
        won, lost: shares of the rows that only the new, or only the old model has right.
        gap: difference of the shares of right answers under the hypothesis, -1 to 1.
    """
    wide = -won - lost + (2 - won + lost) * gap
    rest = -lost * gap * (1 - gap)
    inner = max(0.0, wide * wide - 8 * rest)
    lost_share = max(0.0, (math.sqrt(inner) - wide) / 4)
    return 2 * lost_share + gap * (1 - gap)


def paired_power(
    rows: int, discordance: float, gain: float, *, margin: float = 0.0, level: float = LEVEL
) -> float:
    """Share of runs in which a gate on right or wrong answers passes, if `gain` is the truth.

    At a margin of 0 the power of McNemar's test (Connor 1987, Biometrics 43(1), after Miettinen
    1968, Biometrics 24(2)): Phi((gain √n − z √ψ) / √(ψ − gain²)) with ψ the discordance. With a
    margin, of the score test that the new model is not worse by it.

    Args:
        rows: held-out rows.
        discordance: share of rows on which exactly one model is right.
        gain: true difference of the shares of right answers, new − old.
        margin: of non-inferiority; negative where the gain itself has to exceed something.
        level: two-sided.

    Raises:
        ValueError: where `gain` is larger than `discordance`, or that no share.
    """
    null, true = _deviations(discordance, gain, margin)
    return _power(rows, gain + margin, null, true, level)


def paired_rows(
    discordance: float,
    gain: float,
    *,
    margin: float = 0.0,
    power: float = POWER,
    level: float = LEVEL,
) -> int | None:
    """Rows with which such a gate has `power`; None where no number of rows has.

    Connor's n = (z √ψ + z_β √(ψ − gain²))² / gain² at a margin of 0. Arguments as `paired_power`.
    """
    null, true = _deviations(discordance, gain, margin)
    return _rows(gain + margin, null, true, power, level)


def mean_power(
    rows: int, deviation: float, gain: float, *, margin: float = 0.0, level: float = LEVEL
) -> float:
    """Share of runs in which a gate on the mean of paired differences passes.

    Args:
        rows: held-out rows.
        deviation: standard deviation of one row's difference, new − old.
        gain: true mean of the differences.
        margin, level: as of `paired_power`.
    """
    return _power(rows, gain + margin, deviation, deviation, level)


def mean_rows(
    deviation: float,
    gain: float,
    *,
    margin: float = 0.0,
    power: float = POWER,
    level: float = LEVEL,
) -> int | None:
    """Rows with which such a gate has `power`; None where no number of rows has."""
    return _rows(gain + margin, deviation, deviation, power, level)


def paired_statement(
    rows: int,
    won: int,
    lost: int,
    *,
    gain: float = GAIN,
    margin: float = 0.0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """What the gate could have found with these rows, in numbers and in one sentence.

    The discordance is estimated from the rows, (won + lost + 1) / (rows + 2), and never below what
    `gain` needs. `gain` is the asker's, not the observed one, whose power would only repeat the
    p-value.

    Args:
        rows, won, lost: held-out rows, and those that only the new or only the old model has right.
        gain: the true gain to find; 0 with a margin: that an equal model passes.
        margin, level: as of `paired_power`.

    Returns:
        ``gain``, ``discordance``, ``power``, ``rows_for_80`` and ``sentence``.
    """
    discordance = min(1.0, max(abs(gain), (won + lost + 1) / (rows + 2)))
    power = paired_power(rows, discordance, gain, margin=margin, level=level)
    needed = paired_rows(discordance, gain, margin=margin, level=level)
    what = f"a gain of {gain * 100:g} points would be found"
    return {
        "gain": gain,
        "discordance": discordance,
        "power": power,
        "rows_for_80": needed,
        "sentence": _sentence(rows, power, needed, what if gain else "an equal model would pass"),
    }


def mean_statement(
    rows: int, deviation: float, *, gain: float = 0.0, margin: float = 0.0
) -> dict[str, Any]:
    """The same for a mean of any scale, whose unit nobody has told: the gain that is found.

    Args:
        rows: held-out rows.
        deviation: standard deviation of one row's difference.
        gain: a true gain; 0 without a margin states the gain that is found in 80 % of the runs.
        margin: of non-inferiority.

    Returns:
        ``gain``, ``power``, ``rows_for_80``, ``sentence``; ``gain_found_in_80`` without `gain` and
        without a margin above 0.
    """
    if not gain and margin <= 0:
        steps = _quantile(1 - LEVEL / 2) + _quantile(POWER)
        found = steps * deviation / math.sqrt(max(1, rows)) - margin
        return {
            "gain_found_in_80": found,
            "sentence": f"with {rows:,} rows a gain of {found:.2g} would be found in 80 % of runs",
        }
    power = mean_power(rows, deviation, gain, margin=margin)
    needed = mean_rows(deviation, gain, margin=margin)
    what = f"a gain of {gain:g} would be found" if gain else "an equal model would pass"
    return {
        "gain": gain,
        "power": power,
        "rows_for_80": needed,
        "sentence": _sentence(rows, power, needed, what),
    }


def _sentence(rows: int, power: float, needed: int | None, what: str) -> str:
    found = f"with {rows:,} rows {what} in {100 * power:.0f} % of runs"
    if needed is None:
        return f"{found}, and with no number of rows in 80 %"
    if power >= POWER:
        return found
    return f"{found}; 80 % needs about {_about(max(needed, rows + 1)):,} rows"


def _about(rows: int) -> int:
    """Two leading digits, rounded up."""
    unit: int = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // unit) * unit


def _deviations(discordance: float, gain: float, margin: float) -> tuple[float, float]:
    """Standard deviations of one row's difference, under the hypothesis and in truth."""
    if not 0 <= abs(gain) <= discordance <= 1:
        raise ValueError(f"a gain of {gain} at a discordance of {discordance}")
    won, lost = (discordance + gain) / 2, (discordance - gain) / 2
    null = null_variance(won, lost, -margin)
    return math.sqrt(max(0.0, null)), math.sqrt(max(0.0, discordance - gain * gain))


def _power(rows: int, distance: float, null: float, true: float, level: float) -> float:
    reached = distance * math.sqrt(rows) - _quantile(1 - level / 2) * null
    if true <= 0:
        return float(reached > 0)
    return _NORMAL.cdf(reached / true)


def _rows(distance: float, null: float, true: float, power: float, level: float) -> int | None:
    if distance <= 0:
        return None
    root = (_quantile(1 - level / 2) * null + _quantile(power) * true) / distance
    return max(1, min(_MOST_ROWS, math.ceil(max(0.0, root) ** 2)))


_quantile: Callable[[float], float] = _NORMAL.inv_cdf
