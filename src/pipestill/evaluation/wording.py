"""Numbers and findings in words, the same on the terminal, in the summary and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.evaluation import statistics
from pipestill.evaluation.arms import TEACHER_ALIAS, label

NOTHING = "–"
_CONTROL = {
    "better": "The content of the rationales matters: DSS beats the same training on shuffled "
    "rationales by {gap}.",
    "worse": "DSS falls behind the same training on shuffled rationales ({gap}), so the content of "
    "the rationales did not help here.",
    "cannot_tell": "The control does not show that the content of the rationales matters: against "
    "shuffled rationales the difference is {gap}.",
}


def percent(share: float | None, digits: int = 1) -> str:
    """0.7325 → ``73.2 %``; None → a dash."""
    return NOTHING if share is None else f"{share * 100:.{digits}f} %"


def interval(bounds: Sequence[float] | None) -> str:
    """(0.698, 0.765) → ``69.8 to 76.5``, in percent."""
    return NOTHING if bounds is None else f"{bounds[0] * 100:.1f} to {bounds[1] * 100:.1f}"


def number(value: float | None) -> str:
    """Counts with separators, measured values with one decimal below 100; None → a dash."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def big_number(value: float | None) -> str:
    """1450000 → ``1.45 M``, 540e9 → ``540 B``; None → a dash."""
    if value is None:
        return NOTHING
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]


def signed_points(share: float) -> str:
    """A difference of shares as signed percentage points: 0.061 → ``+6.1``."""
    points = round(share * 100, 1)
    return "0.0" if points == 0 else f"{points:+.1f}".replace("-", "−")


def gap_words(comparison: Mapping[str, Any]) -> str:
    """``+6.1 points (95 % CI +3.2 to +9.0)``."""
    low, high = (signed_points(bound) for bound in comparison["ci95"])
    return f"{signed_points(comparison['difference'])} points (95 % CI {low} to {high})"


def verdict_sentence(comparison: Mapping[str, Any] | None, rows: int, seeds: int) -> str:
    """One plain sentence on DSS against label-only fine-tuning, with the numbers it rests on."""
    if comparison is None:
        return (
            "Cannot tell whether DSS beats label-only fine-tuning: the run does not hold both arms."
        )
    low, high = comparison["ci95"]
    basis = f"on {rows} held-out rows over {seeds} seed{'' if seeds == 1 else 's'}."
    word = statistics.verdict((low, high))
    if word == "cannot_tell":
        return (
            "Cannot tell whether DSS differs from label-only fine-tuning: the difference is "
            f"{signed_points(comparison['difference'])} points "
            f"(95 % CI {signed_points(low)} to {signed_points(high)}) {basis}"
        )
    if word == "worse":
        low, high = -high, -low
    gap = f"{abs(comparison['difference']) * 100:.1f} points"
    verb = "beats" if word == "better" else "falls behind"
    interval = f"(95 % CI {low * 100:.1f} to {high * 100:.1f})"
    return f"DSS {verb} label-only fine-tuning by {gap} {interval} {basis}"


def control_notes(comparisons: Mapping[str, Any], arms: Mapping[str, Any]) -> list[str]:
    """What the controls and the number of seeds say about how far the verdict carries."""
    notes = []
    control = comparisons.get("dss_vs_shuffled")
    if control:
        gap = gap_words(control)
        word = statistics.verdict(tuple(control["ci95"]))
        notes.append(_CONTROL[word].format(gap=gap.replace("+", "") if word == "better" else gap))
    teacher = comparisons.get(f"dss_vs_{TEACHER_ALIAS}")
    if teacher:
        name = label(arms[TEACHER_ALIAS]["arm"]).removeprefix("Teacher, ")
        notes.append(f"Against the teacher ({name}) the difference is {gap_words(teacher)}.")
    if len(arms["dss"]["seeds"]) == 1:
        notes.append("One seed: the luck of training is not in these intervals.")
    return notes
