"""Claim 5: the student pays back what it cost. The break-even count, and every part of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from pipestill.claims.sizes import quality, timed_medians
from pipestill.evaluation.arms import label
from pipestill.evaluation.curve_statistics import break_even
from pipestill.evaluation.statistics import percentile_interval
from pipestill.evaluation.wording import number

TITLE = "The student pays back what it cost"
SCENARIOS = ("low", "likely", "high")
PARTS = {
    "labelling_usd": "labelling",
    "training_usd": "training",
    "teacher_request_usd": "a request to the teacher",
    "student_request_usd": "a request to the student",
}


@dataclass(frozen=True, kw_only=True)
class Price:
    """USD of a request, or of a second: a range, low to high; None where it is not known."""

    low: float | None
    likely: float | None
    high: float | None

    def of(self, scenario: str) -> float | None:
        """The figure of ``low``, ``likely`` or ``high``."""
        value: float | None = getattr(self, scenario)
        return value


def hourly(evidence: Evidence) -> Price:
    """The serving machine's price, USD an hour."""
    known = (evidence.prompts.get("machine") or {}).get("usd_per_hour")
    if isinstance(known, Mapping):
        return Price(**{name: known.get(name, known.get("likely")) for name in SCENARIOS})
    return Price(low=known, likely=known, high=known)


def _request(evidence: Evidence, arm: str, scenario: str) -> float | None:
    """USD of one request: seconds times the machine's price, or what its tokens cost."""
    known = evidence.measured(arm)
    price, p50 = hourly(evidence).of(scenario), known.get("p50_ms")
    if known.get("usd_how", "machine") == "machine" and price is not None and p50 is not None:
        return float(p50 / 3_600_000 * price)
    each = known.get("usd_per_1000")
    return None if each is None else float(each) / 1000


def _labelling(evidence: Evidence, teacher: str | None, scenario: str) -> tuple[float | None, str]:
    """USD of the labels, and how that was reckoned."""
    labels = evidence.labels
    made, saved = labels.get("calls_made", 0), labels.get("calls_from_journal", 0)
    if labels.get("cost_usd"):
        # A run that found answers in the journal has paid only for the rest.
        whole = labels["cost_usd"] * (made + saved) / made if made else labels["cost_usd"]
        how = "as paid" if not saved else "as paid, with what the journal's answers had cost"
        return float(whole), how
    calls = made + saved or labels.get("rows_labelled") or labels.get("rows")
    each = _request(evidence, teacher, scenario) if teacher else None
    if not calls or each is None:
        return None, "the price of the teacher's answers is not known"
    how = f"{number(calls)} calls at the price of a request"
    if evidence.measured(teacher or "").get("usd_how") == "tokens":
        return calls * each, how
    return calls * each, f"{how}, one at a time on the serving machine: an upper bound"


def break_even_table(evidence: Evidence) -> dict[str, Any]:
    """Requests until the student has paid back, with every part of the formula.

    (labelling + training) / (a teacher's request − a student's request). All three columns take
    the machine's price of their name. ``low`` trains the deployed student alone and takes the
    upper end of what a request saves (95 %); ``high`` counts every run of the student's curve and
    of its search for a learning rate, and takes the lower end.

    Returns:
        ``student``, ``teacher``, ``requests``, ``labelling_usd``, ``training_usd``,
        ``teacher_request_usd``, ``student_request_usd`` and ``saved_usd``, each with ``low``,
        ``likely`` and ``high``; ``never``; ``missing``, the parts not known; ``labelling_how``.
        Requests are null where a part is missing or where they are never reached.
    """
    student, teacher = deployed_student(evidence), few_shot_teacher(evidence)
    spread = _saved_hours(evidence, student, teacher)
    columns = {name: _column(evidence, (student, teacher), spread, name) for name in SCENARIOS}
    counts = {name: column["requests"] for name, column in columns.items()}
    return {
        **{
            part: {name: column[part] for name, column in columns.items()}
            for part in (*PARTS, "saved_usd")
        },
        "requests": {name: count if math.isfinite(count) else None
                     for name, count in counts.items()},
        "never": {name: math.isinf(count) for name, count in counts.items()},
        "missing": [part for part in PARTS if columns["likely"][part] is None],
        "labelling_how": columns["likely"]["labelling_how"],
        "student": student,
        "teacher": teacher,
    }  # fmt: skip


def _column(
    evidence: Evidence,
    models: tuple[str | None, str | None],
    spread: Mapping[str, float],
    scenario: str,
) -> dict[str, Any]:
    """The parts of the formula in one scenario; requests are NaN where a part is missing."""
    student, teacher = models
    labelling, how = _labelling(evidence, teacher, scenario)
    training = _training(evidence, student, scenario)
    parts = {
        "labelling_usd": labelling,
        "training_usd": training,
        "teacher_request_usd": _request(evidence, teacher, scenario) if teacher else None,
        "student_request_usd": _request(evidence, student, scenario) if student else None,
    }
    saved = _saved(evidence, parts, spread, scenario)
    requests = math.nan
    if labelling is not None and training is not None and saved is not None:
        requests = break_even(labelling + training, saved, 0.0)
    return {**parts, "saved_usd": saved, "requests": requests, "labelling_how": how}


def _training(evidence: Evidence, student: str | None, scenario: str) -> float | None:
    """USD of training at the price of the scenario; ``high`` is all runs of the student's arm."""
    known = evidence.curve(student) if student else {}
    seconds = known.get("all_seconds" if scenario == "high" else "train_seconds")
    price = hourly(evidence).of(scenario)
    seconds = known.get("train_seconds") if seconds is None else seconds
    return None if seconds is None or price is None else float(seconds / 3600 * price)


def _saved(
    evidence: Evidence, parts: Mapping[str, float | None], spread: Mapping[str, float], name: str
) -> float | None:
    """USD that one request saves; at its ends the interval of the saved time, where it is known."""
    before, after = parts["teacher_request_usd"], parts["student_request_usd"]
    if before is None or after is None:
        return None
    price = hourly(evidence).of(name)
    return before - after if name not in spread or price is None else spread[name] * price


def _saved_hours(evidence: Evidence, student: str | None, teacher: str | None) -> dict[str, float]:
    """Hours that a request saves at both ends of the interval, where both run on the machine."""
    on_machine = all(
        arm and evidence.measured(arm).get("usd_how", "machine") == "machine"
        for arm in (student, teacher)
    )
    medians = (
        timed_medians(evidence, student, teacher) if student and teacher and on_machine else None
    )
    if not medians:
        return {}
    least, most = percentile_interval(medians[1] - medians[0])
    return {"low": most / 3_600_000, "high": least / 3_600_000}


def pays_claim(
    evidence: Evidence, table: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Shown where the student is paid back even in the column ``high``."""
    if not table["student"] or not table["teacher"]:
        return claim(5, TITLE, NOT_MEASURED, "Not measured: it needs a student and a teacher.")
    missing, never, requests = table["missing"], table["never"], table["requests"]
    if missing:
        words = ", ".join(PARTS[name] for name in missing)
        return claim(5, TITLE, NOT_MEASURED, f"Not known: there is no figure for {words}.",
                     **table)  # fmt: skip
    likely = requests["likely"]
    sentence = f"{label(table['student'])} is paid back after {_requests(likely)} requests"
    if never["low"]:
        outcome = NOT_SHOWN
        sentence = (
            f"Never: a request to {label(table['student'])} costs no less than one to "
            f"{label(table['teacher'])}"
        )
    elif never["likely"] or never["high"]:
        outcome = CANNOT_TELL
        low = _requests(requests["low"])
        sentence = (
            f"Whether a request to {label(table['student'])} is cheaper than one to "
            f"{label(table['teacher'])} cannot be told: paid back after {low} requests at best, "
            "never at worst"
        )
    else:
        outcome = SHOWN
        sentence += f" ({_requests(requests['low'])} to {_requests(requests['high'])})"
        sentence += (
            f": labelling and training cost {usd(_fixed(table))}, 1,000 requests save "
            f"{usd(1000 * table['saved_usd']['likely'])} against {label(table['teacher'])}"
        )
    return claim(5, TITLE, outcome, f"{sentence}{quality(found)}.", **table)


def _fixed(table: Mapping[str, Any]) -> float:
    return float(table["labelling_usd"]["likely"] + table["training_usd"]["likely"])


def _requests(count: float | None) -> str:
    return "never" if count is None else number(math.ceil(count))


def usd(value: float | None) -> str:
    """``0.0123 USD``, with three digits that say something; None → ``not known``."""
    if value is None:
        return "not known"
    digits = f"{value:,.2f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"
    if "e" in digits:
        digits = f"{value:.10f}".rstrip("0")
    return f"{digits} USD"
