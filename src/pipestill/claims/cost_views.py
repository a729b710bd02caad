"""What the claims page shows of claims 3 and 5: sizes, Pareto plots, break-even; the card."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pipestill.claims.charts import CostLine, cost_chart
from pipestill.claims.costs import SCENARIOS, usd
from pipestill.claims.sizes import FIGURES
from pipestill.claims.tables import arm_point
from pipestill.evaluation import sections
from pipestill.evaluation.arms import is_teacher, label, ordered
from pipestill.evaluation.charts import both_widths, legend_mark, scatter_chart
from pipestill.evaluation.curve_statistics import pareto_front
from pipestill.evaluation.row_views import clip
from pipestill.evaluation.wording import NOTHING, big_number, interval, number, percent

HALF = sections.HALF
PARETO = {
    "usd_per_1000": "USD per 1,000 requests",
    "p50_ms": "p50 latency, ms",
    "params": "parameters",
    "peak_memory_bytes": "memory, bytes",
}
PAYS_ROWS = {
    "labelling_usd": ("Labelling", 1),
    "training_usd": ("Training", 1),
    "teacher_request_usd": ("1,000 requests to the teacher", 1000),
    "student_request_usd": ("1,000 requests to the student", 1000),
    "saved_usd": ("Saved by 1,000 requests", 1000),
}
SIZE_COLUMNS = ("Right", "95 % interval", "Parameters", "MB on disk", "MB of memory", "p50 ms")


def size_context(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Claim 3: the student's figures as shares of the teacher's, every model, Pareto plots."""
    ratios = summary["footprint"]["ratios"]
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    most = max([1.0, *known.values()])
    arms = {arm: entry for arm, entry in summary["arms"].items() if ":" not in arm}
    measured = [arm for arm in ordered(arms) if any(arms[arm].get(name) for name in FIGURES)]
    return {
        "bars": [
            {
                "name": FIGURES[name],
                "width": round(100 * ratio / most, 1),
                "words": f"{100 * ratio:.3g} %",
            }
            for name, ratio in known.items()
        ],
        "size_columns": SIZE_COLUMNS,
        "size_rows": [_size_row(arm, arms[arm]) for arm in measured],
        "paretos": [item for cost in PARETO if (item := _pareto(arms, cost))],
    }


def _size_row(arm: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    size, memory = entry.get("bytes"), entry.get("peak_memory_bytes")
    cells = [
        percent(entry["accuracy"]),
        interval(entry["ci95"]),
        big_number(entry.get("params")),
        *(number(None if value is None else value / 1e6) for value in (size, memory)),
        number(entry.get("p50_ms")),
    ]
    return {"mark": legend_mark(arm), "name": label(arm), "cells": cells}


def _pareto(arms: Mapping[str, Any], cost: str) -> dict[str, Any] | None:
    """Accuracy against one cost, with the front named; None where fewer than two are known."""
    points = [
        arm_point(arms[arm], arm, float(arms[arm][cost]))
        for arm in ordered(arms)
        if arms[arm]["accuracy"] is not None and arms[arm].get(cost)
    ]
    if len({point.x for point in points}) < 2:
        return None
    front = pareto_front([p.x for p in points], [p.accuracy for p in points])
    draw = partial(scatter_chart, points, PARETO[cost])
    return {
        "chart": both_widths(lambda width: draw(width, front), wide=HALF),
        "front": "; ".join(label(points[at].arm) for at in front),
    }


def pays_context(table: Mapping[str, Any]) -> dict[str, Any]:
    """Claim 5: every part of the formula at three prices, and the two costs over requests."""
    if not table["student"] or not table["teacher"]:
        return {"pays_rows": [], "pays_chart": None, "pays_legend": [], "pays_words": ""}
    rows = []
    for key, (words, times) in PAYS_ROWS.items():
        cells = [_money(table[key][name], times) for name in SCENARIOS]
        rows.append({"mark": "", "name": words, "cells": cells})
    counts = [
        "never" if table["never"][name] else number(_ceil(table["requests"][name]))
        for name in SCENARIOS
    ]
    rows.append({"mark": "", "name": "Requests until paid back", "cells": counts})
    return {"pays_rows": rows, "pays_words": _pays_words(table), **_pays_chart(table)}


def _money(value: float | None, times: int) -> str:
    return usd(None if value is None else times * value).removesuffix(" USD")


def _ceil(value: float | None) -> int | None:
    return None if value is None else -int(-value // 1)


def _pays_words(table: Mapping[str, Any]) -> str:
    return (
        f"Student: {label(table['student'])}. Teacher: {label(table['teacher'])}. "
        f"Labelling: {table['labelling_how']}. Low trains the one student that is deployed, and "
        "saves the upper end of the 95 % interval a request. High counts every run of its curve "
        "and of its search for a learning rate, and saves the lower end. Serving is one request "
        "at a time for both."
    )


def _pays_chart(table: Mapping[str, Any]) -> dict[str, Any]:
    count = table["requests"]["likely"]
    if not count:
        return {"pays_chart": None, "pays_legend": []}
    fixed = table["labelling_usd"]["likely"] + table["training_usd"]["likely"]
    arms = (table["student"], table["teacher"])
    lines = [
        CostLine(arm=arms[0], fixed=fixed, each=table["student_request_usd"]["likely"]),
        CostLine(arm=arms[1], fixed=0.0, each=table["teacher_request_usd"]["likely"]),
    ]
    return {
        "pays_chart": both_widths(partial(cost_chart, lines, count), wide=960.0),
        "pays_legend": [{"mark": legend_mark(arm), "name": label(arm)} for arm in arms],
    }


def model_card(summary: Mapping[str, Any], prompts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The student to be deployed: where it comes from, what it can do, and what it cannot."""
    arm, scored = summary["deployed"]["arm"], summary["deployed"]["scored_as"]
    if not arm:
        return []
    trained, measured = summary["training"].get(arm, {}), summary["arms"].get(arm, {})
    entry = summary["arms"].get(scored or "", {})
    right = percent(entry.get("accuracy"))
    if entry.get("ci95"):
        right += f" (95 % CI {interval(entry['ci95'])}) on {number(summary['rows'])} rows"
    size = trained.get("bytes", measured.get("bytes"))
    facts = [
        ("Trained as", label(arm)),
        ("Base model", clip(str(trained.get("base_model", NOTHING)), 120)),
        ("Training rows", number(trained.get("rows_available"))),
        ("Learning rate", f"{trained['learning_rate']:g}" if trained.get("learning_rate") else ""),
        ("Parameters", big_number(trained.get("parameters", measured.get("params")))),
        ("Size", "" if size is None else f"{number(size / 1e6)} MB"),
        ("Right answers", right),
        ("Prompt tokens", number(measured.get("prompt_tokens"))),
        ("p50 latency, ms", number(measured.get("p50_ms"))),
        ("Metric", str(summary["metric"])),
        ("Machine", str((prompts.get("machine") or {}).get("name", ""))),
        (
            "Intended use",
            "Input and output of the kind that the training rows have, with a person or a check "
            "behind it wherever a wrong answer costs something.",
        ),
        (
            "Limits",
            "It knows the task of its training rows and nothing else, answers other input with the "
            "same confidence, and repeats mistakes and biases of its teacher and its data.",
        ),
    ]
    return [(name, value) for name, value in facts if value not in ("", NOTHING)]


def teacher_name(summary: Mapping[str, Any]) -> str:
    """The few-shot teacher in words; ``the teacher`` where none was asked."""
    arm = summary["footprint"]["teacher"]
    return label(arm) if arm and is_teacher(arm) else "the teacher"
