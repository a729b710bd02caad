"""How sure a difference between two arms is: paired bootstrap, exact McNemar test, the verdict.

Everything here is a pure function of 0/1 scores. The unit is the held-out row: all arms answered
the same rows, so every comparison is paired. Several seeds of one objective are runs of the same
arm; they differ by luck, and that luck belongs into the interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
ALPHA = 0.05  # adjusted p-values below it are called sure
# Elements of the row-weight matrix held at once: 32 MB, whatever the number of held-out rows.
_BLOCK_ELEMENTS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against another on the same rows; accuracies and differences are shares (0 to 1).

    `rows_won` and `rows_lost` count rows on which the first arm's mean over seeds is higher or
    lower. `p_mcnemar` is the exact test on these counts; with several seeds it is the sign test on
    rows, and unlike `ci95` it takes the seeds as they are.
    """

    difference: float
    ci95: tuple[float, float]
    p_mcnemar: float
    rows_won: int
    rows_lost: int


def bootstrap(
    scores: Mapping[str, Mapping[int, Scores]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Scores]:
    """Resamples rows and seeds and returns every arm's accuracy in every resample.

    Rows and seeds are crossed, so both are resampled with replacement in each replicate (the
    pigeonhole bootstrap; Owen 2007, Annals of Applied Statistics 1(2)). Of S seeds, S - 1 are
    drawn: drawing S would understate their variance by a factor of (S - 1) / S, which is a third at
    three seeds (Rao and Wu 1988, JASA 83(401)). All arms share the drawn rows, and arms with the
    same seeds share the drawn seeds, so the difference of two returned arrays is a paired
    replicate. The order of rows does not matter. A single seed says nothing about the luck of
    training, so its interval is about that one trained model.

    Args:
        scores: arm → seed → scores of shape [rows], 1.0 where right and 0.0 where wrong.
        resamples: replicates.
        seed: of the random generator.

    Returns:
        arm → array of shape [resamples].

    Raises:
        ValueError: where the arms do not have the same, non-zero number of rows.
    """
    runs = [(arm, number) for arm, by_seed in scores.items() for number in sorted(by_seed)]
    table = np.stack([scores[arm][number] for arm, number in runs]).astype(np.float64)
    if table.shape[1] == 0:
        raise ValueError("no rows to resample")
    table = table[:, np.lexsort(table)]
    random = np.random.default_rng(seed)
    run_means = _resampled_means(table, resamples, random)
    draws: dict[tuple[int, ...], NDArray[np.intp]] = {}
    out: dict[str, Scores] = {}
    for arm in scores:
        seeds = tuple(sorted(scores[arm]))
        if seeds not in draws:
            drawn = max(1, len(seeds) - 1)
            draws[seeds] = random.integers(0, len(seeds), size=(resamples, drawn))
        columns = [index for index, run in enumerate(runs) if run[0] == arm]
        out[arm] = np.take_along_axis(run_means[:, columns], draws[seeds], axis=1).mean(axis=1)
    return out


def _resampled_means(table: Scores, resamples: int, random: np.random.Generator) -> Scores:
    """Means over resampled rows: table [runs, rows] → [resamples, runs], one draw for all."""
    runs, rows = table.shape
    block = max(1, min(resamples, _BLOCK_ELEMENTS // rows))
    means = np.empty((resamples, runs))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = random.integers(0, rows, size=(count, rows), dtype=np.int64)
        drawn += np.arange(count, dtype=np.int64)[:, None] * rows
        weights = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        means[start : start + count] = weights.astype(np.float64) @ table.T / rows
    return means


def percentile_interval(samples: Scores, level: float = LEVEL) -> tuple[float, float]:
    """The central interval of bootstrap replicates that holds `level` of them."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def mean_over_seeds(by_seed: Mapping[int, Scores]) -> Scores:
    """Scores of shape [rows], averaged over the arm's seeds."""
    mean: Scores = np.mean([by_seed[number] for number in sorted(by_seed)], axis=0)
    return mean


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p-value that rows won and lost are a fair coin's (McNemar 1947).

    Args:
        won: rows only the first arm got right.
        lost: rows only the second arm got right.
    """
    total = won + lost
    term, tail = 1, 0
    for successes in range(min(won, lost) + 1):
        tail += term
        term = term * (total - successes) // (successes + 1)
    # Whole numbers until the last division, so that no tail underflows on thousands of rows.
    probability: float = 2 * tail / 2**total
    return min(1.0, probability)


def compare(
    first: Mapping[int, Scores],
    second: Mapping[int, Scores],
    first_samples: Scores,
    second_samples: Scores,
) -> Comparison:
    """Compares two arms by their scores and by the replicates `bootstrap` drew for them."""
    gap = mean_over_seeds(first) - mean_over_seeds(second)
    won, lost = int((gap > 1e-9).sum()), int((gap < -1e-9).sum())
    return Comparison(
        difference=float(gap.mean()),
        ci95=percentile_interval(first_samples - second_samples),
        p_mcnemar=mcnemar(won, lost),
        rows_won=won,
        rows_lost=lost,
    )


def verdict(difference_ci: tuple[float, float]) -> str:
    """``better``, ``worse`` or ``cannot_tell``: on which side of 0 the whole interval lies."""
    low, high = difference_ci
    if low > 0:
        return "better"
    return "worse" if high < 0 else "cannot_tell"


def bootstrap_p(first_samples: Scores, second_samples: Scores) -> float:
    """Two-sided p-value that two arms are equally good, from their paired replicates.

    Twice the smaller share of replicates on either side of 0, never below what the number of
    replicates can show (Davison and Hinkley 1997, section 4.2.3).
    """
    gap = first_samples - second_samples
    smaller = min(int((gap <= 0).sum()), int((gap >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(gap) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values adjusted for their number (Holm 1979): the family-wise error stays below each.

    Returns:
        name → adjusted p-value, at most 1, in the order given.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def compare_all(
    scores: Mapping[str, Mapping[int, Scores]],
    samples: Mapping[str, Scores],
    pairs: Sequence[tuple[str, str]],
) -> dict[str, dict[str, Any]]:
    """Every pair of arms compared, the p-values adjusted for their number after Holm.

    Args:
        scores: arm → seed → scores of shape [rows].
        samples: what `bootstrap` drew for these arms.
        pairs: first and second arm of every comparison of one family.

    Returns:
        ``first_vs_second`` → the fields of `Comparison`, ``p`` and ``p_holm``.
    """
    found = {
        f"{first}_vs_{second}": (
            compare(scores[first], scores[second], samples[first], samples[second]),
            bootstrap_p(samples[first], samples[second]),
        )
        for first, second in pairs
    }
    adjusted = holm({name: p for name, (_, p) in found.items()})
    return {
        name: {**dataclasses.asdict(item), "p": p, "p_holm": adjusted[name]}
        for name, (item, p) in found.items()
    }


def surely(comparison: Mapping[str, Any], alpha: float = ALPHA) -> str:
    """``better``, ``worse`` or ``cannot_tell``, by the adjusted p-value of a comparison."""
    if comparison["p_holm"] >= alpha:
        return "cannot_tell"
    return "better" if comparison["difference"] > 0 else "worse"
