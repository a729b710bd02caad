"""The charts of the report as inline SVG; each is a function of numbers and a width.

Every chart is drawn twice, wide and narrow, and the style sheet shows the one that fits, because an
SVG that only shrinks has unreadable text on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipestill.evaluation.arms import label
from pipestill.evaluation.svg import (
    CHARACTER_WIDTH,
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
from pipestill.evaluation.wording import big_number, number, percent

WIDE, NARROW = 720.0, 350.0


@dataclass(frozen=True, kw_only=True)
class ArmPoint:
    """One arm in a chart: accuracy with interval (shares), its seeds, and where it stands on x."""

    arm: str
    accuracy: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()
    x: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A loss over steps of one training run, and the steps at which it went on after a stop."""

    arm: str
    points: tuple[tuple[float, float], ...]
    restarts: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Points of any two figures. `style` is an arm's name, which gives colour and marker."""

    name: str
    style: str
    points: tuple[tuple[float, float], ...]
    joined: bool = True
    dots: bool = True


def both_widths(draw: Callable[[float], Markup], *, wide: float = WIDE) -> Markup:
    """The wide and the narrow drawing, of which the style sheet shows one."""
    return join(
        [
            tag("div", draw(wide), class_="chart wide"),
            tag("div", draw(NARROW), class_="chart narrow"),
        ]
    )


def accuracy_chart(points: Sequence[ArmPoint], width: float) -> Markup:
    """Accuracy per arm: a marker, the 95 % interval as a whisker, every seed as a small ring."""
    narrow = width < 500
    longest = CHARACTER_WIDTH * max(len(label(point.arm)) for point in points)
    beside = min(max(168.0, longest + 12), 300.0)  # room for the names in the wide drawing
    row, left, right, top = (56.0, 8.0, 8.0, 4.0) if narrow else (38.0, beside, 64.0, 10.0)
    bottom = top + row * len(points)
    ticks = linear_ticks(min(p.low for p in points), max(p.high for p in points))
    axis = Axis(low=ticks[0], high=ticks[-1], start=left, end=width - right)
    parts = x_grid(axis, [(tick, percent(tick, 0)) for tick in ticks], top, bottom)
    for place, point in enumerate(points):
        base = top + row * place + (32 if narrow else row / 2)
        name_at, value_at = (base - 14, base - 14) if narrow else (base + 4, base + 4)
        room = width - 80 if narrow else left - 4
        parts.append(text(_fitting(label(point.arm), room), left if narrow else 0, name_at))
        value = percent(point.accuracy)
        parts.append(text(value, width if not narrow else width - right, value_at, anchor="end"))
        parts.append(_dot_and_whisker(point, axis, base))
    words = "; ".join(
        f"{label(p.arm)} {percent(p.accuracy)} ({p.low * 100:.1f} to {p.high * 100:.1f})"
        for p in points
    )
    return figure("accuracy", "Accuracy per arm", words, width, bottom + 26, parts)


def _dot_and_whisker(point: ArmPoint, axis: Axis, y: float) -> Markup:
    low, high = axis.at(point.low), axis.at(point.high)
    parts = [
        line(low, y, high, y, "whisker"),
        line(low, y - 4, low, y + 4, "whisker"),
        line(high, y - 4, high, y + 4, "whisker"),
    ]
    if len(point.seeds) > 1:
        parts += [tag("circle", cx=axis.at(s), cy=y + 9, r=2.5, class_="ring") for s in point.seeds]
    parts.append(marker(point.arm, axis.at(point.accuracy), y))
    return tag("g", join(parts), class_=arm_class(point.arm))


def scatter_chart(
    points: Sequence[ArmPoint], x_title: str, width: float, front: Sequence[int] = ()
) -> Markup:
    """Accuracy against a cost on a log axis; cheaper is further left, better is further up.

    `front` are the places of the points, cheapest first, that no other point beats: a step line
    joins them and a ring marks each.
    """
    left, right, top, height = 42.0, 12.0, 12.0, 280.0
    bottom = height - 42
    x_ticks = log_ticks(min(p.x for p in points), max(p.x for p in points))
    y_ticks = linear_ticks(min(p.low for p in points), max(p.high for p in points))
    x_axis = Axis(low=x_ticks[0], high=x_ticks[-1], start=left + 10, end=width - right, log=True)
    y_axis = Axis(low=y_ticks[0], high=y_ticks[-1], start=bottom, end=top)
    every = 1 if len(x_ticks) <= 7 else 3
    shown = [(tick, _tick(tick)) for at, tick in enumerate(x_ticks) if at % every == 0]
    parts = x_grid(x_axis, shown, top, bottom) + y_grid(y_axis, y_ticks, left, width - right)
    parts.append(text(x_title, (left + width - right) / 2, height - 6, anchor="middle"))
    places = [(x_axis.at(p.x), y_axis.at(p.accuracy)) for p in points]
    if front:
        parts += _front([places[at] for at in front], width - right)
    parts += _labels(points, places, width, top, bottom, gap=15.0 if front else 12.0)
    for point, (x, y) in zip(points, places, strict=True):
        whisker = line(x, y_axis.at(point.low), x, y_axis.at(point.high), "whisker")
        dot = marker(point.arm, x, y)
        parts.append(tag("g", join([whisker, dot]), class_=arm_class(point.arm)))
    words = "; ".join(f"{label(p.arm)} {percent(p.accuracy)} at {number(p.x)}" for p in points)
    if front:
        words += "; Pareto front: " + ", ".join(label(points[at].arm) for at in front)
    name = "scatter-" + "-".join(x_title.lower().split()[:2])
    return figure(name, f"Accuracy against {x_title}", words, width, height, parts)


def _front(places: Sequence[tuple[float, float]], end: float) -> list[Markup]:
    """The step line through the Pareto front, from its cheapest point to the chart's end."""
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    path += "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:]) + f"H{end:.1f}"
    rings = [tag("circle", cx=x, cy=y, r=11.0, class_="halo") for x, y in places]
    return [tag("path", d=path, class_="front"), *rings]


def _tick(value: float) -> str:
    return big_number(value) if value >= 1e5 else f"{value:g}"


def _labels(
    points: Sequence[ArmPoint],
    places: Sequence[tuple[float, float]],
    width: float,
    top: float,
    bottom: float,
    gap: float,
) -> list[Markup]:
    """Names beside their points, each at the first place where it covers nothing."""
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    out = []
    for point, (x, y) in sorted(zip(points, places, strict=True), key=lambda item: item[1][1]):
        name = _fitting(label(point.arm), 0.7 * width)
        length = CHARACTER_WIDTH * len(name)
        for start, base in _candidates(x, y, length, gap):
            box = (start, base - 11, start + length, base + 3)
            inside = start >= 44 and start + length <= width and top < base - 10 and base < bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                if abs(base - 4 - y) > 8:
                    end = start - 2 if start > x else start + length + 2
                    out.append(line(x, y, end, base - 4, "leader"))
                out.append(text(name, start, base, style="small"))
                break
    return out


def _fitting(name: str, room: float) -> str:
    """The name, cut where it is longer than the room, in pixels, that a chart has for it."""
    most = int(room / CHARACTER_WIDTH)
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def _candidates(x: float, y: float, length: float, gap: float) -> list[tuple[float, float]]:
    sides = [x + gap, x - gap - length]
    shifts = [4, -1, 9, -7, 15, -18, 26, -29, 37]
    return [(side, y + shift) for shift in shifts for side in sides]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curves_chart(curves: Sequence[Curve], title: str, top_loss: float, width: float) -> Markup:
    """A loss over training steps, one line per run in its arm's colour."""
    left, right, top, height = 42.0, 12.0, 12.0, 240.0
    bottom = height - 42
    last = max(step for curve in curves for step, _ in curve.points)
    x_ticks, y_ticks = linear_ticks(0, last), linear_ticks(0, top_loss)
    x_axis = Axis(low=0, high=max(last, 1), start=left + 10, end=width - right)
    y_axis = Axis(low=0, high=y_ticks[-1], start=bottom, end=top)
    shown = [(tick, f"{tick:g}") for tick in x_ticks if tick <= last]
    parts = x_grid(x_axis, shown, top, bottom)
    parts += y_grid(y_axis, y_ticks, left, width - right, as_percent=False)
    parts.append(text("training step", (left + width - right) / 2, height - 6, anchor="middle"))
    for curve in curves:
        path = "M" + "L".join(f"{x_axis.at(s):.1f} {y_axis.at(v):.1f}" for s, v in curve.points)
        inner = [tag("path", d=path, class_="curve")]
        if len(curve.points) == 1:
            inner.append(marker(curve.arm, x_axis.at(last), y_axis.at(curve.points[0][1]), 3.0))
        inner += [line(x, top, x, bottom, "restart") for x in map(x_axis.at, curve.restarts)]
        parts.append(tag("g", join(inner), class_=arm_class(curve.arm)))
    words = "; ".join(_curve_words(curve) for curve in curves)
    return figure("-".join(title.lower().split()), title, words, width, height, parts)


def _curve_words(curve: Curve) -> str:
    words = f"{label(curve.arm)} ends at {curve.points[-1][1]:.3f}"
    steps = ", ".join(f"{step:g}" for step in curve.restarts)
    return f"{words}, went on after a stop at step {steps}" if steps else words


def trace_chart(
    traces: Sequence[Trace], titles: tuple[str, str], width: float, name: str = "trace"
) -> Markup:
    """One figure against another, on linear axes that hold all points.

    Args:
        traces: one at least, each with a point at least.
        titles: of the x axis and of the y axis.
        width: of the drawing.
        name: of the drawing on its page.
    """
    left, right, top, height = 48.0, 12.0, 30.0, 260.0
    bottom = height - 42
    xs, ys = ([point[i] for trace in traces for point in trace.points] for i in (0, 1))
    x_ticks, y_ticks = linear_ticks(min(xs), max(xs)), linear_ticks(min(ys), max(ys))
    x_axis = Axis(low=x_ticks[0], high=x_ticks[-1], start=left + 10, end=width - right)
    y_axis = Axis(low=y_ticks[0], high=y_ticks[-1], start=bottom, end=top)
    parts = x_grid(x_axis, [(tick, f"{tick:g}") for tick in x_ticks], top, bottom)
    parts += y_grid(y_axis, y_ticks, left, width - right, as_percent=False)
    parts.append(text(titles[0], (left + width - right) / 2, height - 6, anchor="middle"))
    parts.append(text(titles[1], 0, 14))
    for trace in traces:
        places = [(x_axis.at(x), y_axis.at(y)) for x, y in trace.points]
        inner = []
        if trace.joined and len(places) > 1:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            inner.append(tag("path", d=path, class_="curve"))
        if trace.dots or len(places) == 1:
            inner += [marker(trace.style, x, y, 4.0) for x, y in places]
        parts.append(tag("g", join(inner), class_=arm_class(trace.style)))
    words = "; ".join(
        f"{t.name} from {t.points[0][1]:.3g} to {t.points[-1][1]:.3g}" for t in traces
    )
    title = f"{titles[1]} against {titles[0]}"
    return figure(name, title, words, width, height, parts)


def x_grid(
    axis: Axis, ticks: Sequence[tuple[float, str]], top: float, bottom: float
) -> list[Markup]:
    """Vertical lines at the ticks, each with its words below."""
    parts = []
    for value, words in ticks:
        x = axis.at(value)
        parts.append(line(x, top, x, bottom, "grid"))
        at_edge = "end" if x > axis.end - 12 else "start" if x < 12 else "middle"
        parts.append(text(words, x, bottom + 17, anchor=at_edge, style="muted"))
    return parts


def y_grid(
    axis: Axis, ticks: Sequence[float], left: float, right: float, *, as_percent: bool = True
) -> list[Markup]:
    """Horizontal lines at the ticks, each with its value at the left."""
    parts = []
    for value in ticks:
        y = axis.at(value)
        words = percent(value, 0) if as_percent else f"{value:g}"
        parts.append(line(left, y, right, y, "grid"))
        parts.append(text(words, left - 6, y + 4, anchor="end", style="muted"))
    return parts


def legend_mark(arm: str) -> Markup:
    """The arm's marker as a small inline picture for tables and legends."""
    inner = tag("g", marker(arm, 8.0, 8.0, 5.0), class_=arm_class(arm))
    return tag("svg", inner, viewBox="0 0 16 16", class_="mark", aria_hidden="true")
