"""What the plan expected of the run, beside what its steps took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.claims.evidence import Evidence
from pipestill.data.source import list_files, open_file, readable
from pipestill.errors import UserError
from pipestill.evaluation.wording import NOTHING

SCENARIOS = ("low", "likely", "high")
# what the page says → the steps that it is made of
PARTS = {
    "Labels and rationales": ("teacher_label", "rationale_extract"),
    "Students": ("train_curve",),
    "Large model": ("supervised_tune",),
    "Policies": ("reward_frontier",),
    "Prompts": ("evaluate_prompts",),
}


def read_plan(uri: str) -> dict[str, Any] | None:
    """What ``pipestill plan … --json`` wrote; None where none is named.

    Raises:
        UserError: ``PLAN_UNREADABLE``, and what `pipestill.data.source` raises.
    """
    if not uri:
        return None
    (file, *_) = list_files(uri)
    with readable(uri), open_file(file) as source:
        data = source.read()
    try:
        plan = json.loads(data)
        if plan["pipeline"] != "claims":
            raise ValueError(f"the plan of {plan['pipeline']}")
        return {"profile": str(plan["profile"]), "steps": [_step(step) for step in plan["steps"]]}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            "PLAN_UNREADABLE",
            f"{uri}: not the plan of a claims run ({type(error).__name__}: {error})",
            "write it with: pipestill plan evaluate -c FILE --json > plan.json",
        ) from error


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    """Hours, and US dollars of the machine alone."""
    cost = {name: step["cost_usd"][name] - step["teacher_usd"][name] for name in SCENARIOS}
    hours = {name: float(step["hours"][name]) for name in SCENARIOS}
    return {"component": str(step["component"]), "hours": hours, "usd": cost}


def against_plan(plan: Mapping[str, Any] | None, evidence: Evidence) -> dict[str, Any] | None:
    """Minutes and dollars of each part of the run: low, likely, high, and as measured.

    Dollars are those of the machines: the measured ones are the measured time at the plan's own
    price of the hour. A machine's start counts in the plan and in no measurement.

    Returns:
        ``profile``, and ``parts``: name → ``minutes`` and ``usd``, each with low, likely, high and
        ``measured`` (None where a step did not say); with ``Together`` at the end. None without a
        plan.
    """
    if plan is None:
        return None
    measured, parts = _measured(evidence), dict[str, Any]()
    for name, components in PARTS.items():
        steps = [step for step in plan["steps"] if step["component"] in components]
        if not steps:
            continue
        hours, usd = (
            {key: sum(step[kind][key] for step in steps) for key in SCENARIOS}
            for kind in ("hours", "usd")
        )
        seconds = measured[name]
        hourly = usd["likely"] / hours["likely"] if hours["likely"] else 0.0
        paid = None if seconds is None else seconds / 3600 * hourly
        minutes = {key: 60 * value for key, value in hours.items()}
        parts[name] = {
            "minutes": {**minutes, "measured": None if seconds is None else seconds / 60},
            "usd": {**usd, "measured": paid},
        }
    parts["Together"] = _together(parts)
    return {"profile": plan["profile"], "parts": parts}


def _together(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        kind: {
            key: _sum([part[kind][key] for part in parts.values()])
            for key in (*SCENARIOS, "measured")
        }
        for kind in ("minutes", "usd")
    }


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _measured(evidence: Evidence) -> dict[str, float | None]:
    """Seconds of each part, as far as its steps said."""
    students = _sum([item.get("all_seconds") for item in evidence.curves])
    return {
        "Labels and rationales": evidence.labels.get("seconds"),
        "Students": students,
        "Large model": evidence.tune.get("seconds"),
        "Policies": evidence.frontier.get("seconds", 0.0),
        "Prompts": evidence.prompts.get("seconds"),
    }


def plan_rows(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of the page's table; empty where there was no plan."""
    return [
        {
            "mark": "",
            "name": name,
            "cells": [
                NOTHING if part[kind][key] is None else f"{part[kind][key]:{form}}"
                for kind, form in (("minutes", ".1f"), ("usd", ".2f"))
                for key in (*SCENARIOS, "measured")
            ],
        }
        for name, part in (found["parts"].items() if found else ())
    ]
