"""How long one row takes: wall time at batch size 1, arms interleaved, warmed up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def time_rows(
    arms: Mapping[str, Callable[[str], object]], inputs: Sequence[str]
) -> dict[str, list[float]]:
    """Times every arm on every input, one call at a time.

    All arms take the first row before the second comes, so that a machine that slows down meanwhile
    slows all of them. The first call of each arm is a warm-up and does not count.

    Args:
        arms: name → a function that answers one input completely.
        inputs: the rows.

    Returns:
        Arm → milliseconds per row, in the order of `inputs`.
    """
    for answer in arms.values() if inputs else ():
        answer(inputs[0])
    spent: dict[str, list[float]] = {arm: [] for arm in arms}
    for text in inputs:
        for arm, answer in arms.items():
            begun = time.perf_counter()
            answer(text)
            spent[arm].append((time.perf_counter() - begun) * 1e3)
    return spent


def percentiles(milliseconds: Sequence[float]) -> dict[str, float | None]:
    """``p50_ms`` and ``p95_ms``; None without a measurement."""
    if not milliseconds:
        return {"p50_ms": None, "p95_ms": None}
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95)}
