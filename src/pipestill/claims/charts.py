"""The charts of the claims page: curves with intervals, the frontier, and cost over requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipestill.evaluation.arms import label
from pipestill.evaluation.charts import ArmPoint, x_grid, y_grid
from pipestill.evaluation.svg import (
    Axis,
    arm_class,
    figure,
    join,
    line,
    linear_ticks,
    log_ticks,
    marker,
    tag,
    text,
)
from pipestill.evaluation.wording import big_number, percent

LEFT, RIGHT, TOP = 48.0, 14.0, 12.0
APART = 4.0  # pixels between the whiskers of two arms at the same place


@dataclass(frozen=True, kw_only=True)
class Series:
    """An arm's points along x, each with its interval."""

    arm: str
    points: tuple[ArmPoint, ...]


def series_chart(
    series: Sequence[Series],
    levels: Sequence[ArmPoint],
    x_title: str,
    width: float,
    *,
    name: str,
    log: bool,
) -> Markup:
    """Accuracy along x, one line an arm; `levels` are arms without x, as bands across the chart.

    Args:
        series: one at least, each with a point at least; `x` above 0 where `log`.
        levels: such as the tuned model, whose accuracy does not depend on x.
        x_title: of the axis.
        width: of the drawing.
        name: of the drawing on its page.
        log: a logarithmic x axis.
    """
    height = 330.0
    bottom = height - 42
    places = sorted({point.x for item in series for point in item.points})
    every = [point for item in series for point in item.points] + list(levels)
    y_ticks = linear_ticks(min(p.low for p in every), max(p.high for p in every))
    y_axis = Axis(low=y_ticks[0], high=y_ticks[-1], start=bottom, end=TOP)
    reach = APART * len(series) / 2 + 6
    ends = (places[0], places[-1] if places[-1] > places[0] else places[0] + 1)
    x_axis = Axis(
        low=ends[0], high=ends[1], start=LEFT + reach + 6, end=width - RIGHT - reach, log=log
    )
    parts = x_grid(x_axis, _apart(x_axis, places), TOP, bottom)
    parts += y_grid(y_axis, y_ticks, LEFT, width - RIGHT)
    parts.append(text(x_title, (LEFT + width - RIGHT) / 2, height - 6, anchor="middle"))
    parts += [_level(item, y_axis, width - RIGHT) for item in levels]
    for at, item in enumerate(series):
        shift = APART * (at - (len(series) - 1) / 2)
        parts.append(_line(item, x_axis, y_axis, shift))
    words = "; ".join(
        f"{label(item.arm)} "
        + ", ".join(f"{percent(point.accuracy)} at {point.x:g}" for point in item.points)
        for item in series
    )
    return figure(name, f"Accuracy against {x_title}", words, width, height, parts)


def _apart(axis: Axis, places: Sequence[float]) -> list[tuple[float, str]]:
    """The measured places as ticks, those left out that would cover the one before."""
    shown: list[tuple[float, str]] = []
    for place in places:
        if not shown or axis.at(place) - axis.at(shown[-1][0]) > 34:
            shown.append((place, f"{place:g}"))
    return shown


def _level(point: ArmPoint, axis: Axis, end: float) -> Markup:
    high, low, y = axis.at(point.high), axis.at(point.low), axis.at(point.accuracy)
    band = tag("rect", x=LEFT, y=high, width=end - LEFT, height=max(low - high, 1), class_="band")
    inner = [band, line(LEFT, y, end, y, "level"), marker(point.arm, end - 4, y, 4.0)]
    return tag("g", join(inner), class_=arm_class(point.arm))


def _line(series: Series, x_axis: Axis, y_axis: Axis, shift: float) -> Markup:
    inner = []
    places = [(x_axis.at(p.x) + shift, y_axis.at(p.accuracy)) for p in series.points]
    if len(places) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        inner.append(tag("path", d=path, class_="curve"))
    for point, (x, y) in zip(series.points, places, strict=True):
        inner.append(line(x, y_axis.at(point.low), x, y_axis.at(point.high), "thin"))
        inner.append(marker(series.arm, x, y, 5.0))
    return tag("g", join(inner), class_=arm_class(series.arm))


@dataclass(frozen=True, kw_only=True)
class RewardPoint:
    """A policy of the frontier: reward and KL with their intervals."""

    name: str
    reward: float
    reward_ends: tuple[float, float]
    kl: float
    kl_ends: tuple[float, float]
    on_front: bool


def frontier_chart(points: Sequence[RewardPoint], width: float) -> Markup:
    """Reward against KL; whiskers both ways, rings and a step line on the front."""
    height = 300.0
    bottom = height - 42
    xs = [end for point in points for end in (*point.kl_ends, point.kl)] + [0.0]
    ys = [end for point in points for end in (*point.reward_ends, point.reward)]
    x_ticks, y_ticks = linear_ticks(min(xs), max(xs)), linear_ticks(min(ys), max(ys))
    x_axis = Axis(low=x_ticks[0], high=x_ticks[-1], start=LEFT + 12, end=width - RIGHT)
    y_axis = Axis(low=y_ticks[0], high=y_ticks[-1], start=bottom, end=30.0)
    parts = x_grid(x_axis, [(tick, f"{tick:g}") for tick in x_ticks], 30.0, bottom)
    parts += y_grid(y_axis, y_ticks, LEFT, width - RIGHT, as_percent=False)
    parts.append(
        text("KL to the start, nats an answer", (LEFT + width) / 2, height - 6, anchor="middle")
    )
    parts.append(text("reward", 0, 14))
    front = [(x_axis.at(p.kl), y_axis.at(p.reward)) for p in points if p.on_front]
    path = "M" + "".join(
        f"{x:.1f} {y:.1f}" if at == 0 else f"H{x:.1f}V{y:.1f}" for at, (x, y) in enumerate(front)
    )
    parts.append(tag("path", d=path, class_="front"))
    for point in points:
        x, y = x_axis.at(point.kl), y_axis.at(point.reward)
        low, high = (y_axis.at(end) for end in point.reward_ends)
        left, right = (x_axis.at(end) for end in point.kl_ends)
        inner = [line(x, low, x, high, "whisker"), line(left, y, right, y, "whisker")]
        inner.append(marker("dss" if point.on_front else "base", x, y))
        style = "dss" if point.on_front else "base"
        parts.append(tag("g", join(inner), class_=arm_class(style)))
        anchor = "end" if x > width - 90 else "start"
        beside = x - 10 if anchor == "end" else x + 10
        parts.append(text(point.name, beside, y - 9, anchor=anchor, style="small"))
    words = "; ".join(f"{p.name}: reward {p.reward:.2f} at KL {p.kl:.2f}" for p in points)
    return figure("frontier", "Reward against KL", words, width, height, parts)


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """What a number of requests costs in all: paid before the first, and for each, in USD."""

    arm: str
    fixed: float
    each: float


def cost_chart(lines: Sequence[CostLine], crossing: float, width: float) -> Markup:
    """Cost in all against requests, both on log axes, around the request at which lines cross."""
    height = 300.0
    bottom = height - 42
    middle = max(crossing, 1.0)
    x_ticks = log_ticks(max(middle / 30, 1.0), middle * 30)
    points = 40
    span = math.log(x_ticks[-1] / x_ticks[0])
    counts = [x_ticks[0] * math.exp(span * at / points) for at in range(points + 1)]
    totals = [[item.fixed + item.each * count for count in counts] for item in lines]
    lowest = min(value for total in totals for value in total if value > 0)
    y_ticks = log_ticks(lowest, max(value for total in totals for value in total))
    x_axis = Axis(
        low=x_ticks[0], high=x_ticks[-1], start=LEFT + 22, end=width - RIGHT - 8, log=True
    )
    y_axis = Axis(low=y_ticks[0], high=y_ticks[-1], start=bottom, end=30.0, log=True)
    tens = [(tick, big_number(tick)) for tick in x_ticks if _power_of_ten(tick)]
    parts = x_grid(x_axis, tens, 30.0, bottom)
    for tick in y_ticks:
        if _power_of_ten(tick):
            y = y_axis.at(tick)
            parts.append(line(LEFT + 10, y, width - RIGHT, y, "grid"))
            parts.append(text(f"{tick:g}", LEFT + 4, y + 4, anchor="end", style="muted"))
    parts.append(text("requests", (LEFT + width) / 2, height - 6, anchor="middle"))
    parts.append(text("USD in all", 0, 14))
    for item, total in zip(lines, totals, strict=True):
        path = "M" + "L".join(
            f"{x_axis.at(count):.1f} {y_axis.at(value):.1f}"
            for count, value in zip(counts, total, strict=True)
        )
        parts.append(tag("g", tag("path", d=path, class_="curve"), class_=arm_class(item.arm)))
    x = x_axis.at(middle)
    parts.append(line(x, 30.0, x, bottom, "leader"))
    parts.append(text(f"{math.ceil(crossing):,}", x + 6, 42, style="small"))
    words = f"The lines cross at {math.ceil(crossing):,} requests"
    return figure("break-even", "Cost in all against requests", words, width, height, parts)


def _power_of_ten(value: float) -> bool:
    return math.isclose(math.log10(value), round(math.log10(value)), abs_tol=1e-9)
