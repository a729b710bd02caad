"""The claims in numbers: five outcomes, each with one sentence that its interval carries."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.claims.costs import break_even_table, pays_claim
from pipestill.claims.evidence import (
    CANNOT_TELL,
    NOT_MEASURED,
    NOT_SHOWN,
    SHOWN,
    Evidence,
    deployed_student,
    few_shot_teacher,
)
from pipestill.claims.prompts import prompt_claim, prompt_comparisons, shots_to_match
from pipestill.claims.reward import frontier_table, reward_claim
from pipestill.claims.rows import crossings, row_comparisons, row_curves, rows_claim
from pipestill.claims.sizes import footprint, scored_as, size_claim
from pipestill.evaluation.arms import label, ordered
from pipestill.evaluation.summary import MEASURED, NO_ACCURACY, accuracy_entry, json_safe
from pipestill.evaluation.wording import number

MORE = ("peak_memory_bytes", "usd_per_1000", "usd_how", "shots", "unparsable")
OUTCOME_WORDS = {
    SHOWN: "shown",
    NOT_SHOWN: "not shown",
    CANNOT_TELL: "cannot tell",
    NOT_MEASURED: "not measured",
}
DRAWN = ("curves", "points", "config")  # of a trainer's metrics, too long for its table


def claims_summary(
    evidence: Evidence, data: Mapping[str, Any], estimate: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything the page says, as JSON-safe numbers.

    Args:
        evidence: scores and metrics.
        data: metrics of `data_prep`.
        estimate: plan and run side by side (`pipestill.claims.plan`), where there was a plan.

    Returns:
        ``verdict``, ``verdict_sentence``, ``notes``, ``claims``, ``rows``, ``metric``, ``arms``,
        ``comparisons`` (``prompts`` and ``rows``, each one family of Holm), ``curves``,
        ``crossings``, ``shots_to_match``, ``footprint``, ``break_even``, ``frontier``,
        ``deployed``, ``data``, ``teacher``, ``training``, ``estimate``.
    """
    curves = row_curves(evidence)
    prompts, rows = prompt_comparisons(evidence), row_comparisons(evidence)
    match, crossed = shots_to_match(evidence, prompts), crossings(evidence, curves)
    sizes, pays = footprint(evidence), break_even_table(evidence)
    frontier = frontier_table(evidence)
    claims = [
        prompt_claim(evidence, prompts, match),
        rows_claim(evidence, rows, crossed),
        size_claim(evidence, sizes),
        reward_claim(frontier),
        pays_claim(evidence, pays, sizes),
    ]
    student = deployed_student(evidence)
    summary = {
        "verdict": claims_verdict(claims),
        "verdict_sentence": claims_sentence(claims, evidence.rows),
        "notes": _notes(evidence),
        "claims": claims,
        "rows": evidence.rows,
        "metric": evidence.prompts.get("metric", "exact"),
        "arms": _arms(evidence),
        "comparisons": {"prompts": prompts, "rows": rows},
        "curves": curves,
        "crossings": crossed,
        "shots_to_match": match,
        "footprint": sizes,
        "break_even": pays,
        "frontier": frontier,
        "deployed": {
            "arm": student,
            "scored_as": scored_as(evidence, student) if student else None,
        },
        "data": dict(data),
        "teacher": dict(evidence.labels),
        "training": _training(evidence),
        "estimate": dict(estimate) if estimate else None,
    }
    safe: dict[str, Any] = json_safe(summary)
    return {**safe, "table": claims_table(safe)}


def claims_verdict(claims: Sequence[Mapping[str, Any]]) -> str:
    """``better`` where all that was measured is shown, ``worse`` where nothing is but the opposite.

    Everything else, and a run that measured nothing, is ``cannot_tell``.
    """
    outcomes = {item["outcome"] for item in claims} - {NOT_MEASURED}
    if outcomes == {SHOWN}:
        return "better"
    return "worse" if NOT_SHOWN in outcomes and SHOWN not in outcomes else "cannot_tell"


def claims_sentence(claims: Sequence[Mapping[str, Any]], rows: int) -> str:
    """How many claims are shown, and what became of the others, by their numbers."""
    by_outcome = {
        outcome: [str(item["number"]) for item in claims if item["outcome"] == outcome]
        for outcome in OUTCOME_WORDS
    }
    parts = [
        f"{OUTCOME_WORDS[outcome]}: {', '.join(numbers)}"
        for outcome, numbers in by_outcome.items()
        if numbers and outcome != SHOWN
    ]
    shown = by_outcome[SHOWN]
    start = f"{len(shown)} of {len(claims)} claims are shown on {number(rows)} held-out rows"
    named = f" ({', '.join(shown)})" if 0 < len(shown) < len(claims) else ""
    return f"{start}{named}{'; ' if parts else ''}{'; '.join(parts)}."


def claims_table(summary: Mapping[str, Any]) -> list[str]:
    """The claims as lines for a terminal, at most 100 columns wide."""
    lines = []
    for item in summary["claims"]:
        outcome = OUTCOME_WORDS[item["outcome"]].upper()
        lines.append(f"{item['number']}. {item['title']}: {outcome}")
        lines += textwrap.wrap(item["sentence"], 97, initial_indent="   ", subsequent_indent="   ")
    return lines


def _arms(evidence: Evidence) -> dict[str, Any]:
    """One entry an arm: those that were prompted with their costs, those of a share without."""
    measured = evidence.prompts.get("arms", {})
    arms: dict[str, Any] = {}
    for arm in ordered({*evidence.scores, *measured}):
        if arm.endswith(":mean"):
            continue
        known = measured.get(arm, {})
        entry = dict(NO_ACCURACY)
        if arm in evidence.scores:
            entry = accuracy_entry(evidence.scores[arm], evidence.samples[arm])
        arms[arm] = entry | {name: known.get(name) for name in (*MEASURED, *MORE)}
        if known.get("error"):
            arms[arm]["error"] = known["error"]
    return arms


def _training(evidence: Evidence) -> dict[str, Any]:
    """The metrics of every way of training without what is drawn, and those of tuning."""
    found = {
        str(item.get("arm", at)): {
            key: item[key] for key in item if key not in ("curves", "config")
        }
        for at, item in enumerate(evidence.curves)
    }
    if evidence.tune:
        found["tuned"] = {key: item for key, item in evidence.tune.items() if key not in DRAWN}
    return found


def _notes(evidence: Evidence) -> list[str]:
    """How far the claims carry."""
    notes = []
    seeds = {len(by_seed) for arm, by_seed in evidence.scores.items() if ":" in arm}
    if seeds and min(seeds) == 1:
        notes.append("One seed: the luck of training is not in the intervals of the curves.")
    teacher = few_shot_teacher(evidence)
    if teacher and teacher != "teacher_recorded":
        notes.append(
            f"The few-shot teacher is {label(teacher)}, its best on these rows: a choice that "
            "favours the teacher."
        )
    for item in evidence.curves:
        if item.get("error"):
            notes.append(f"{label(str(item.get('arm', '?')))} was not trained: {item['error']}")
    for arm, known in evidence.prompts.get("arms", {}).items():
        if known.get("error"):
            notes.append(f"{label(arm)} has no result: {known['error']}")
    return notes
