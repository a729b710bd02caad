"""What the claims page shows of claim 4: the frontier of reward and KL."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

from pipestill.claims.charts import RewardPoint, frontier_chart
from pipestill.evaluation.charts import Trace, both_widths, legend_mark, trace_chart
from pipestill.evaluation.rlhf_summary import signed
from pipestill.evaluation.sections import HALF
from pipestill.evaluation.wording import NOTHING, interval, number, percent

FRONTIER_COLUMNS = (
    "Reward", "Gain", "95 % interval", "KL, nats", "Perplexity", "p", "On the front", "Gate",
    "Seconds",
)  # fmt: skip
FRONT_COLOURS = ("dss", "label_only", "label_then_rationale", "shuffled", "on_policy", "self")


def frontier_context(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """Claim 4: one policy a coefficient."""
    points = frontier["points"]
    if not points:
        return {"frontier_rows": []}
    drawn = [_reward_point(point) for point in points]
    return {
        "frontier_columns": FRONTIER_COLUMNS,
        "frontier_rows": [_frontier_row(point) for point in points],
        "frontier_chart": both_widths(partial(frontier_chart, drawn), wide=HALF),
        "frontier_curves": _frontier_curves(frontier),
        "frontier_facts": _frontier_facts(frontier),
        "frontier_legend": [
            {"mark": legend_mark(style), "name": f"β {point['kl_coeff']:g}"}
            for point, style in zip(points, itertools.cycle(FRONT_COLOURS), strict=False)
        ],
    }


def _reward_point(point: Mapping[str, Any]) -> RewardPoint:
    ends, kl_ends = point.get("reward_ci95"), point.get("kl_ci95")
    return RewardPoint(
        name=f"β {point['kl_coeff']:g}",
        reward=point["reward"],
        reward_ends=tuple(ends or (point["reward"], point["reward"])),
        kl=point["kl"],
        kl_ends=tuple(kl_ends or (point["kl"], point["kl"])),
        on_front=point["on_front"],
    )


def _frontier_curves(frontier: Mapping[str, Any]) -> Any:
    """Reward over training steps, one line a coefficient."""
    traces = [
        Trace(
            name=f"coefficient {point['kl_coeff']:g}",
            style=style,
            points=_steps(point),
            dots=False,
        )
        for point, style in zip(frontier["points"], itertools.cycle(FRONT_COLOURS), strict=False)
        if len(_steps(point)) > 1
    ]
    if not traces:
        return None
    draw = partial(trace_chart, traces, ("training step", "reward"), name="frontier-steps")
    return both_widths(draw, wide=HALF)


def _steps(point: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    """(step, reward) of every evaluation in training that has a reward."""
    return tuple(
        (float(step), float(reward))
        for step, reward, *_ in point.get("curve") or []
        if reward is not None
    )


def _frontier_row(point: Mapping[str, Any]) -> dict[str, Any]:
    low, high = point["gain_ci95"]
    p = point["p_holm"]
    cells = [
        signed(point["reward"]),
        signed(point["gain"]),
        f"{signed(low)} to {signed(high)}",
        f"{point['kl']:.2f}",
        number(point.get("perplexity")),
        "< 0.001" if p < 0.001 else f"{p:.3f}",
        "yes" if point["on_front"] else "no",
        str(point.get("decision", NOTHING)).replace("_", " "),
        number(point.get("seconds")),
    ]
    return {"mark": "", "name": f"KL coefficient {point['kl_coeff']:g}", "cells": cells}


def _frontier_facts(frontier: Mapping[str, Any]) -> list[tuple[str, str]]:
    start, model = frontier.get("start") or {}, frontier.get("reward_model") or {}
    facts = []
    if start.get("reward") is not None:
        facts.append(("Reward of the start", signed(start["reward"])))
    if model.get("accuracy") is not None:
        ends = model.get("accuracy_ci95")
        facts.append((
            "Reward model, pairs right",
            percent(model["accuracy"]) + (f" (95 % CI {interval(ends)})" if ends else ""),
        ))  # fmt: skip
    if frontier.get("rows"):
        facts.append(("Held-out prompts", number(frontier["rows"])))
    return facts
