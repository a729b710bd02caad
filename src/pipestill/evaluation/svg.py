"""The few drawing pieces that charts share: escaped tags, axes, one marker per arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipestill.evaluation.arms import family, is_teacher

# Shape and colour say the same, so that neither is needed to read a chart.
SHAPES = {
    "dss": "circle",
    "label_then_rationale": "diamond",
    "label_only": "square",
    "shuffled": "triangle",
    "response": "circle",
    "feature": "diamond",
    "relation": "triangle",
    "self": "pentagon",
    "on_policy": "circle",
    "teacher_labels": "square",
    "gold": "square",
    "finetune": "square",
    "distillation": "down",
    "dss_teacher": "diamond",
    "tuned": "hexagon",
    "large": "hexagon",
    "base": "cross",
}
# Shape → corners, and degrees by which the first one is turned away from the top.
_CORNERS = {
    "triangle": (3, 0.0),
    "down": (3, 180.0),
    "diamond": (4, 0.0),
    "square": (4, 45.0),
    "pentagon": (5, 0.0),
    "hexagon": (6, 0.0),
}
CHARACTER_WIDTH = 6.7  # of the 12 px system font, on average; only used to keep labels apart


def tag(name: str, content: Markup | str = "", **attributes: object) -> Markup:
    """One element. Names lose a trailing ``_`` and turn ``_`` into ``-``; None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{escape(content)}</{name}>")  # noqa: S704  all parts escaped


def join(parts: Sequence[Markup]) -> Markup:
    """The parts one after the other."""
    return Markup("").join(parts)


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def arm_class(arm: str) -> str:
    """The class that gives an arm its colour, from a closed set (`arm` may be anybody's text)."""
    if is_teacher(arm):
        return "arm-teacher"
    return f"arm-{family(arm)}" if family(arm) in SHAPES else "arm-other"


def figure(
    name: str, title: str, description: str, width: float, height: float, parts: Sequence[Markup]
) -> Markup:
    """A chart that scales with its column and tells a screen reader what it shows."""
    key = f"{name}-{int(width)}"
    return tag(
        "svg",
        join([tag("title", title, id=f"{key}-t"), tag("desc", description, id=f"{key}-d"), *parts]),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_labelledby=f"{key}-t {key}-d",
    )


def text(content: str, x: float, y: float, *, anchor: str = "start", style: str = "") -> Markup:
    """Text at a baseline point; `style` is one of the page's classes (``muted``, ``strong``)."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=style or None)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def marker(arm: str, x: float, y: float, size: float = 6.0) -> Markup:
    """The arm's shape, centred; filled with its colour."""
    shape = "pentagon" if is_teacher(arm) else SHAPES.get(family(arm), "circle")
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=size, class_="dot")
    if shape == "cross":
        arm_length = size * 0.8
        first = (
            f"M{x - arm_length:.1f} {y - arm_length:.1f}l{2 * arm_length:.1f} {2 * arm_length:.1f}"
        )
        second = f"m0 {-2 * arm_length:.1f}l{-2 * arm_length:.1f} {2 * arm_length:.1f}"
        return tag("path", d=first + second, class_="stroke")
    corners, turn = _CORNERS[shape]
    angles = [math.radians(turn - 90 + 360 * corner / corners) for corner in range(corners)]
    reach = size * (1.4 if corners == 3 else 1.2)
    points = " ".join(
        f"{x + reach * math.cos(a):.1f},{y + reach * math.sin(a):.1f}" for a in angles
    )
    return tag("polygon", points=points, class_="dot")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps values from `low`..`high` to pixels from `start`..`end`, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; values beyond the ends are drawn at the ends."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that enclose `low` and `high`."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Values 1, 2, 5 × powers of ten that enclose `low` and `high` (both above 0)."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ladder = [mantissa * 10.0**power for power in powers for mantissa in (1, 2, 5)]
    first = max(index for index, value in enumerate(ladder) if value <= low * 1.001)
    last = min(index for index, value in enumerate(ladder) if value >= high * 0.999)
    return ladder[first : max(last, first + 1) + 1]
