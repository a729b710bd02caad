"""What a claim rests on besides a plain comparison: crossings, ratios, break-even, Pareto front.

Pure functions of numbers. Where a result may lie outside what was measured it is infinite rather
than a guess, so that an interval says so too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pipestill.evaluation.statistics import LEVEL, RESAMPLES, Scores

_BLOCK_ELEMENTS = 4_000_000


def first_crossing(rows: Scores, accuracy: Scores, target: Scores) -> Scores:
    """The smallest number of rows at which each curve reaches its target.

    Between measured points a curve is linear in the logarithm of rows, the scale on which accuracy
    grows about linearly (as in figures 4 to 7 of Hsieh et al. 2023, arXiv:2305.02301).

    Args:
        rows: the measured numbers of rows, growing, above 0: shape [points].
        accuracy: one curve a line: shape [curves, points].
        target: what each curve has to reach: shape [curves].

    Returns:
        Shape [curves]: `rows[0]` where the first point reaches it already (so it is an upper
        bound), infinity where no point does.
    """
    reached = accuracy >= target[:, None]
    at = np.argmax(reached, axis=1)
    before = np.maximum(at - 1, 0)
    lines = np.arange(len(accuracy))
    low, high = accuracy[lines, before], accuracy[lines, at]
    rise = np.where(high > low, high - low, 1.0)
    part = np.where(at > 0, np.clip((target - low) / rise, 0.0, 1.0), 0.0)
    log_rows = np.log(rows)
    found = np.exp(log_rows[before] + part * (log_rows[at] - log_rows[before]))
    found = np.where(at == 0, rows[0], found)
    crossing: Scores = np.where(reached.any(axis=1), found, np.inf)
    return crossing


def open_interval(samples: Scores, level: float = LEVEL) -> tuple[float, float]:
    """The central interval of replicates of which some may be infinite."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(samples, [tail, 100 - tail], method="nearest")
    return float(low), float(high)


def resampled_medians(
    values: Mapping[str, Scores], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Scores]:
    """Medians over resampled rows, the same rows for every name, so that their ratio is paired.

    Args:
        values: name → one figure a row: shape [rows], the same rows everywhere.
        resamples: replicates.
        seed: of the random generator.

    Returns:
        name → shape [resamples].

    Raises:
        ValueError: where there are no rows.
    """
    count = len(next(iter(values.values())))
    if count == 0:
        raise ValueError("no rows to resample")
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // count)
    parts: dict[str, list[Scores]] = {name: [] for name in values}
    for start in range(0, resamples, block):
        drawn = random.integers(0, count, size=(min(block, resamples - start), count))
        for name, figures in values.items():
            parts[name].append(np.median(figures[drawn], axis=1))
    return {name: np.concatenate(found) for name, found in parts.items()}


def break_even(fixed: float, each_before: float, each_after: float) -> float:
    """Requests after which a cheaper way of answering has paid back what it cost to get there.

    fixed / (each_before − each_after), infinite where an answer is not cheaper afterwards.

    Args:
        fixed: paid once, such as labelling and training.
        each_before: a request's cost without it.
        each_after: a request's cost with it.
    """
    saved = each_before - each_after
    return fixed / saved if saved > 0 else math.inf


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """The places that no other place beats: none is as cheap and as good and better in one of both.

    Returns:
        Indices in the order of cost. Of places that are equal in both the first stands for all.
    """
    order = sorted(range(len(costs)), key=lambda at: (costs[at], -qualities[at], at))
    front: list[int] = []
    for at in order:
        if not front or qualities[at] > qualities[front[-1]]:
            front.append(at)
    return front


def normal_p(estimate: float, ci95: Sequence[float]) -> float:
    """Two-sided p-value that an estimate is 0, from its 95 % interval, taken as a normal one."""
    width = (ci95[1] - ci95[0]) / 2
    if width <= 0:
        return 0.0 if estimate else 1.0
    return math.erfc(abs(estimate) / (width / 1.959964) / math.sqrt(2))
