"""Claim 3: the student is smaller, lighter and faster than its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipestill.claims.evidence import (
    CANNOT_TELL,
    NOT_MEASURED,
    NOT_SHOWN,
    SHOWN,
    Evidence,
    claim,
    deployed_student,
    few_shot_teacher,
)
from pipestill.evaluation import statistics
from pipestill.evaluation.arms import at_share, label
from pipestill.evaluation.curve_statistics import resampled_medians
from pipestill.evaluation.statistics import Scores, percentile_interval
from pipestill.evaluation.wording import gap_words

TITLE = "The student is smaller, lighter and faster than its teacher"
FIGURES = {
    "params": "parameters",
    "bytes": "bytes on disk",
    "peak_memory_bytes": "memory",
    "p50_ms": "p50 latency",
}
FEWEST_TIMED = 5  # rows timed in both arms below which no interval of the latency is given


def footprint(evidence: Evidence) -> dict[str, Any]:
    """Student over teacher in every figure; the latency with its paired interval over rows.

    Returns:
        ``student``, ``teacher`` (arms or null), ``ratios`` (figure → ratio or null),
        ``bytes_per_parameter`` (of both, or null), ``p50_ratio_ci95`` (or null), ``timed_rows``,
        ``difference`` (their accuracies compared, or null).
    """
    student, teacher = deployed_student(evidence), few_shot_teacher(evidence)
    found: dict[str, Any] = {
        "student": student, "teacher": teacher, "ratios": dict.fromkeys(FIGURES),
        "bytes_per_parameter": [None, None], "p50_ratio_ci95": None, "timed_rows": 0,
        "difference": None,
    }  # fmt: skip
    if not student or not teacher:
        return found
    own, other = evidence.measured(student), evidence.measured(teacher)
    found["ratios"] = {
        name: own[name] / other[name] if own.get(name) is not None and other.get(name) else None
        for name in FIGURES
    }
    found["bytes_per_parameter"] = [_bytes_each(own), _bytes_each(other)]
    medians = timed_medians(evidence, student, teacher)
    if medians:
        found["p50_ratio_ci95"] = list(percentile_interval(medians[0] / medians[1]))
        found["timed_rows"] = len(_both_timed(evidence, student, teacher))
    scored = scored_as(evidence, student)
    if scored:
        pair = statistics.compare_all(evidence.scores, evidence.samples, [(scored, teacher)])
        found["difference"] = next(iter(pair.values()))
    return found


def _bytes_each(known: Mapping[str, Any]) -> float | None:
    size, count = known.get("bytes"), known.get("params")
    return size / count if size and count else None


def scored_as(evidence: Evidence, student: str) -> str | None:
    """Under which name the student's answers stand: its own, else its curve's on the most rows."""
    if student in evidence.scores:
        return student
    points = evidence.curve(student).get("points", [])
    names = [at_share(student, share) for share in sorted({p["share"] for p in points})]
    return next((name for name in reversed(names) if name in evidence.scores), None)


def _both_timed(evidence: Evidence, first: str, second: str) -> list[str]:
    one, other = evidence.latencies.get(first, {}), evidence.latencies.get(second, {})
    return sorted(one.keys() & other.keys())


def timed_medians(evidence: Evidence, first: str, second: str) -> tuple[Scores, Scores] | None:
    """Resampled p50 of both, in milliseconds, over the rows that both were timed on."""
    rows = _both_timed(evidence, first, second)
    if len(rows) < FEWEST_TIMED:
        return None
    values = {
        arm: np.array([evidence.latencies[arm][row] for row in rows]) for arm in (first, second)
    }
    drawn = resampled_medians(values)
    return drawn[first], drawn[second]


def size_claim(evidence: Evidence, found: Mapping[str, Any]) -> dict[str, Any]:
    """Shown where every figure that both have is smaller, the latency surely so."""
    student, teacher, ratios = found["student"], found["teacher"], found["ratios"]
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if not known:
        why = (
            "no student was measured" if not student else "no teacher was asked" if not teacher
            else f"size and speed of {label(teacher)} are not known"
        )  # fmt: skip
        return claim(3, TITLE, NOT_MEASURED, f"Not measured: {why}.")
    ends = found["p50_ratio_ci95"]
    sizes = [ratio for name, ratio in known.items() if name != "p50_ms"]
    if any(ratio >= 1 for ratio in sizes) or (ends and ends[0] > 1):
        outcome = NOT_SHOWN
    elif len(known) == len(FIGURES) and ends and ends[1] < 1:
        outcome = SHOWN
    else:
        outcome = CANNOT_TELL
    told = [
        f"{_share(known[name])} of its {words}{_precision(found) if name == 'bytes' else ''}"
        for name, words in FIGURES.items()
        if name in known
    ]
    if ends:
        told[-1] += f" (95 % CI {_share(ends[0])} to {_share(ends[1])})"
    sentence = f"{label(student)} has, against {label(teacher)}, {', '.join(told)}"
    missing = [words for name, words in FIGURES.items() if name not in known]
    if missing:
        sentence += f"; not known: {', '.join(missing)}"
    elif not ends:
        sentence += "; too few rows were timed to say how sure the latency is"
    return claim(3, TITLE, outcome, f"{sentence}{quality(found)}.", **found)


def _precision(found: Mapping[str, Any]) -> str:
    """Says so where the two are stored in numbers of different size."""
    own, other = found["bytes_per_parameter"]
    if own is None or other is None or 0.9 < own / other < 1.1:
        return ""
    return f" ({own:.2g} bytes a parameter against {other:.2g})"


def _share(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def quality(found: Mapping[str, Any]) -> str:
    """What the student gives up or gains in accuracy, to be said wherever it is called cheaper."""
    item = found["difference"]
    if not item:
        return ""
    words = {
        "better": "its answers are better than the teacher's",
        "worse": "its answers are worse than the teacher's",
        "cannot_tell": "whether its answers are as good as the teacher's cannot be told",
    }[statistics.surely(item)]
    return f"; {words}: {gap_words(item)}"
