"""The gate: whether a new model may take the place of the one before it.

Pure functions. A rule looks at paired scores of both models (or at one bound) and says ``pass``,
``fail`` or ``open``, the last where the data do not tell; `decide` joins the rules. A model is
promoted only where every rule passes, so chance alone promotes no more often than its rarest rule
passes: with a 95 % interval whose lower bound has to lie above 0, once in forty times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipestill.evaluation.gate_power import mean_statement
from pipestill.evaluation.statistics import LEVEL, RESAMPLES, Scores, percentile_interval

PASS, FAIL, OPEN = "pass", "fail", "open"
PROMOTE, KEEP, CANNOT_TELL = "promote", "keep", "cannot_tell"
_BLOCK_ELEMENTS = 4_000_000  # drawn row numbers held at once: 32 MB
_FEW_VALUES = 20


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule: what came out, in words and in the numbers that it rests on."""

    name: str
    outcome: str
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


def mean_interval(
    values: Scores, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Bootstrap interval of a mean.

    Resamples rows; the spread of the replicates is widened by √(n/(n − 1)), because resampling n
    of n rows understates a variance by (n − 1)/n (Efron and Tibshirani 1993, section 5.3).

    Args:
        values: [rows], finite, one row at least.
        resamples: replicates.
        seed: of the random generator.
        level: share of the replicates inside.

    Raises:
        ValueError: without rows.
    """
    return percentile_interval(mean_replicates(values, resamples=resamples, seed=seed), level)


def mean_replicates(values: Scores, *, resamples: int = RESAMPLES, seed: int = 0) -> Scores:
    """The replicates behind `mean_interval`, widened.

    Args:
        values: [rows], finite, one row at least.
        resamples: replicates.
        seed: of the random generator.

    Returns:
        [resamples].

    Raises:
        ValueError: without rows.
    """
    rows = len(values)
    if rows == 0:
        raise ValueError("no rows to resample")
    random = np.random.default_rng(seed)
    # The order of rows must not matter: the generator's draws are of sorted values.
    ranked = np.sort(np.asarray(values, dtype=np.float64))
    values, times = np.unique(ranked, return_counts=True)
    if len(values) <= _FEW_VALUES:  # as right and wrong are: drawn by value, in a fraction of time
        means = random.multinomial(rows, times / rows, size=resamples) @ values / rows
    else:
        means = _drawn_means(ranked, resamples, random)
    centre = ranked.mean()
    wider: Scores = centre + (means - centre) * np.sqrt(rows / max(1, rows - 1))
    return wider


def _drawn_means(ranked: Scores, resamples: int, random: np.random.Generator) -> Scores:
    rows = len(ranked)
    block = max(1, _BLOCK_ELEMENTS // rows)
    means: Scores = np.concatenate(
        [
            ranked[random.integers(0, rows, size=(min(block, resamples - start), rows))].mean(1)
            for start in range(0, resamples, block)
        ]
    )
    return means


def paired_mean_interval(
    first: Scores, second: Scores, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean of first − second on the same rows, and its 95 % interval by paired bootstrap.

    Args:
        first, second: [rows] scores of any scale, in the same order of rows.
        resamples: replicates.
        seed: of the random generator.

    Raises:
        ValueError: where the two differ in length, or have no rows.
    """
    if len(first) != len(second):
        raise ValueError(f"paired scores of {len(first)} and {len(second)} rows")
    gap = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    interval = mean_interval(gap, resamples=resamples, seed=seed)
    return float(gap.mean()), interval


def enough_rows(rows: int, least: int) -> Rule:
    """Open below `least` rows: whatever the others say, it rests on too little."""
    return Rule(
        name="rows",
        outcome=PASS if rows >= least else OPEN,
        text=f"{rows} held-out rows, wanted {least} or more",
        numbers={"rows": rows, "least": least},
    )


def superior(name: str, new: Scores, old: Scores, *, least: float = 0.0) -> Rule:
    """Passes where the whole interval of new − old lies above `least`, fails where it is below."""
    difference, (low, high) = paired_mean_interval(new, old)
    outcome = PASS if low > least else FAIL if high < least else OPEN
    return Rule(
        name=name,
        outcome=outcome,
        text=f"difference {difference:+.3g} (95 % CI {low:+.3g} to {high:+.3g}), wanted above "
        f"{least:g}",
        numbers={
            "difference": difference,
            "ci95": [low, high],
            "least": least,
            "power": mean_statement(len(new), _deviation(new, old), margin=-least),
        },
    )


def not_inferior(name: str, new: Scores, old: Scores, *, margin: float) -> Rule:
    """Passes where new is surely not worse than old by `margin` or more; higher scores are better.

    Args:
        name: of the guard.
        new, old: [rows] paired scores.
        margin: how much worse is still tolerable, above 0.
    """
    difference, (low, high) = paired_mean_interval(new, old)
    outcome = PASS if low > -margin else FAIL if high < -margin else OPEN
    return Rule(
        name=name,
        outcome=outcome,
        text=f"difference {difference:+.3g} (95 % CI {low:+.3g} to {high:+.3g}), tolerated down to "
        f"{-margin:g}",
        numbers={
            "difference": difference,
            "ci95": [low, high],
            "margin": margin,
            "power": mean_statement(len(new), _deviation(new, old), margin=margin),
        },
    )


def _deviation(new: Scores, old: Scores) -> float:
    """Standard deviation of one row's difference; 0 of a single row."""
    gap = np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)
    return float(gap.std(ddof=1)) if len(gap) > 1 else 0.0


def within(name: str, values: Scores, bound: float) -> Rule:
    """Passes where the mean's whole interval lies at or below `bound`."""
    mean, (low, high) = float(np.mean(values)), mean_interval(values)
    outcome = PASS if high <= bound else FAIL if low > bound else OPEN
    return Rule(
        name=name,
        outcome=outcome,
        text=f"{mean:.3g} (95 % CI {low:.3g} to {high:.3g}), bound {bound:g}",
        numbers={"mean": mean, "ci95": [low, high], "bound": bound},
    )


def not_below(name: str, value: float, interval: Sequence[float], floor: float) -> Rule:
    """Fails only where a whole interval lies below `floor`: a second opinion that may veto."""
    low, high = interval
    return Rule(
        name=name,
        outcome=FAIL if high < floor else PASS,
        text=f"{value:.3g} (95 % CI {low:.3g} to {high:.3g}), vetoes where all of it lies below "
        f"{floor:g}",
        numbers={"value": value, "ci95": [low, high], "floor": floor},
    )


def no_alarms(alarms: Sequence[Mapping[str, Any]]) -> Rule:
    """Fails where there is one."""
    codes = list(dict.fromkeys(str(alarm["code"]) for alarm in alarms))
    return Rule(
        name="alarms",
        outcome=FAIL if codes else PASS,
        text=", ".join(codes) or "none up to the checkpoint that was chosen",
        numbers={"count": len(alarms)},
    )


def decide(rules: Sequence[Rule], override: str = "") -> dict[str, Any]:
    """The decision and all that it rests on.

    Args:
        rules: in the order in which they are shown, one at least.
        override: a person's reason to promote whatever the rules say; it is recorded, and so is
            what the rules said.

    Returns:
        ``decision`` (promote, keep, cannot_tell), ``by_rules`` (the same without the override),
        ``override``, ``sentence`` (with the power of the first open rule where it cannot tell),
        ``rules`` (name, outcome, text, numbers).
    """
    failed = [rule.name for rule in rules if rule.outcome == FAIL]
    unclear = [rule.name for rule in rules if rule.outcome == OPEN]
    by_rules = KEEP if failed else CANNOT_TELL if unclear or not rules else PROMOTE
    sentence = {
        PROMOTE: f"Promote: all {len(rules)} rules pass.",
        KEEP: f"Keep the old model: {_names(failed)} failed.",
        CANNOT_TELL: f"Cannot tell, so the old model stays: {_names(unclear)} not settled.",
    }[by_rules]
    if by_rules == CANNOT_TELL:
        sentence += _power_words(rules)
    reason = override.strip()
    if reason:
        sentence = f"Promoted by a person ({reason}); the rules said: {sentence}"
    return {
        "decision": PROMOTE if reason else by_rules,
        "by_rules": by_rules,
        "override": reason,
        "sentence": sentence,
        "rules": [asdict(rule) for rule in rules],
    }


def _power_words(rules: Sequence[Rule]) -> str:
    """What the first rule that is open could have found, as a further sentence."""
    for rule in rules:
        found = rule.numbers.get("power")
        if rule.outcome == OPEN and found:
            words = str(found["sentence"])
            return f" {words[:1].upper()}{words[1:]}."
    return ""


def _names(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)
