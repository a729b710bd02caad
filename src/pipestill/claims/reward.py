"""Claim 4: RLHF raises the reward, at a price in KL that the frontier shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipestill.claims.evidence import (
    CANNOT_TELL,
    NOT_MEASURED,
    NOT_SHOWN,
    SHOWN,
    Evidence,
    claim,
)
from pipestill.evaluation.curve_statistics import normal_p, pareto_front
from pipestill.evaluation.rlhf_summary import signed
from pipestill.evaluation.statistics import ALPHA, holm

TITLE = "RLHF raises the reward, at a price in KL"


def frontier_table(evidence: Evidence) -> dict[str, Any]:
    """The measured frontier, its points in the order of KL, with p-values after Holm.

    The p-value that a policy gained nothing comes from its interval, taken as a normal one.

    Returns:
        As `reward_frontier` wrote it; every point has ``p_holm``, ``reading`` (better, worse or
        cannot_tell) and ``on_front`` (no other point has more reward and less KL).
    """
    known = [point for point in evidence.frontier.get("points", []) if _complete(point)]
    points = sorted(known, key=lambda point: point["kl"])
    p_values = {str(at): normal_p(p["gain"], p["gain_ci95"]) for at, p in enumerate(points)}
    adjusted = holm(p_values)
    front = pareto_front([p["kl"] for p in points], [p["reward"] for p in points])
    table = []
    for at, point in enumerate(points):
        sure = adjusted[str(at)] < ALPHA
        reading = "cannot_tell" if not sure else "better" if point["gain"] > 0 else "worse"
        table.append({**point, "p_holm": adjusted[str(at)], "reading": reading,
                      "on_front": at in front})  # fmt: skip
    return {**evidence.frontier, "points": table}


def _complete(point: Mapping[str, Any]) -> bool:
    return all(point.get(key) is not None for key in ("reward", "gain", "gain_ci95", "kl"))


def reward_claim(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """Shown where some policy surely gained reward; the sentence names the price of the most."""
    points = frontier["points"]
    if not points:
        return claim(4, TITLE, NOT_MEASURED, "Not measured: no preferences were given to this run.")
    better = [point for point in points if point["reading"] == "better"]
    if better:
        best = max(better, key=lambda point: point["gain"])
        sentence = f"The reward rises by {_gain(best)} at {_kl(best)}"
        cheapest = min(better, key=lambda point: point["kl"])
        if cheapest is not best:
            sentence += f", and by {_gain(cheapest)} already at {_kl(cheapest)}"
        outcome = SHOWN
    else:
        outcome = NOT_SHOWN if all(p["reading"] == "worse" for p in points) else CANNOT_TELL
        most = max(points, key=lambda point: point["gain"])
        verb = "falls" if outcome == NOT_SHOWN else "may or may not rise"
        sentence = f"The reward {verb}: at best {_gain(most)} at {_kl(most)}"
    front = ", ".join(f"{point['kl_coeff']:g}" for point in points if point["on_front"])
    return claim(
        4, TITLE, outcome, f"{sentence}; coefficients on the frontier: {front}.",
        points=[{key: point.get(key) for key in ("kl_coeff", "reward", "gain", "gain_ci95", "kl",
                 "kl_ci95", "p_holm", "on_front")} for point in points],
    )  # fmt: skip


def _gain(point: Mapping[str, Any]) -> str:
    low, high = point["gain_ci95"]
    return f"{signed(point['gain'])} (95 % CI {signed(low)} to {signed(high)})"


def _kl(point: Mapping[str, Any]) -> str:
    ends = point.get("kl_ci95")
    spread = f", 95 % CI {ends[0]:.2f} to {ends[1]:.2f}" if ends else ""
    return f"{point['kl']:.2f} nats an answer (coefficient {point['kl_coeff']:g}{spread})"
