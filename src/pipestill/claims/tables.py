"""What the claims page shows of claims 1 and 2: tables and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipestill.claims.charts import Series, series_chart
from pipestill.claims.costs import usd
from pipestill.claims.prompts import TUNED
from pipestill.claims.rows import OWN, PLAIN, place_of, shares_of
from pipestill.evaluation import sections
from pipestill.evaluation.arms import ALL_SHARES, label, large_shots_of, ordered, shots_of
from pipestill.evaluation.charts import ArmPoint, both_widths, legend_mark
from pipestill.evaluation.wording import NOTHING, interval, number, percent

PROMPT_COLUMNS = (
    "Right", "95 % interval", "Prompt tokens", "Output tokens", "p50 ms", "p95 ms", "USD per 1,000",
    "No answer found",
)  # fmt: skip


def prompt_context(summary: Mapping[str, Any], prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Claim 1: every prompted model with its costs, and the tuned one against each."""
    arms = {arm: entry for arm, entry in summary["arms"].items() if ":" not in arm}
    shown = [arm for arm in ordered(arms) if arm == TUNED or arm == "base" or _prompted(arm)]
    return {
        "prompt_columns": PROMPT_COLUMNS,
        "prompt_rows": [_prompt_row(arm, arms[arm]) for arm in shown],
        "prompt_comparisons": [
            sections.adjusted_row(item, label(name.partition("_vs_")[2]))
            for name, item in summary["comparisons"]["prompts"].items()
        ],
        "cost_words": cost_words(prompts),
        **_shots_chart(arms, bool(prompts.get("large_is_teacher"))),
    }


def _prompted(arm: str) -> bool:
    return max(shots_of(arm), large_shots_of(arm)) >= 0 or arm == "teacher_recorded"


def _prompt_row(arm: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    row = {"mark": legend_mark(arm), "name": label(arm)}
    if entry["accuracy"] is None:
        return {**row, "error": entry.get("error", "not measured")}
    money = entry.get("usd_per_1000")
    cells = [
        percent(entry["accuracy"]),
        interval(entry["ci95"]),
        *(number(entry[key]) for key in ("prompt_tokens", "output_tokens", "p50_ms", "p95_ms")),
        NOTHING if money is None else usd(money).removesuffix(" USD"),
        number(entry.get("unparsable")),
    ]
    return {**row, "cells": cells}


def cost_words(prompts: Mapping[str, Any]) -> str:
    """How the costs were reckoned."""
    machine, timed = prompts.get("machine") or {}, prompts.get("latency_rows")
    parts = ["Tokens are means per row."]
    if timed:
        threads = prompts.get("threads")
        on = f" on {threads} thread{'' if threads == 1 else 's'}" if threads else ""
        parts.append(f"Latency is one row at a time{on}, measured on {number(timed)} rows.")
    price = machine.get("usd_per_hour")
    if price:
        likely = price.get("likely") if isinstance(price, Mapping) else price
        spread = ""
        if isinstance(price, Mapping) and "low" in price:
            spread = f", {price['low']:g} to {price['high']:g}"
        source = ", ".join(str(machine[key]) for key in ("source", "date") if machine.get(key))
        parts.append(
            f"USD per 1,000 requests is the p50 times the price of {machine.get('name', '?')} "
            f"({likely:g} USD an hour{spread}{'; ' if source else ''}{source}), one request at a "
            "time: an upper bound, since a server answers several at once. The latency is that of "
            "the machine this ran on. A model behind a paid interface costs what its tokens cost."
        )
    return " ".join(parts)


def _shots_chart(arms: Mapping[str, Any], large_is_teacher: bool) -> dict[str, Any]:
    """Accuracy over worked examples; the tuned model is a level, as it has none."""
    series = []
    for of in (large_shots_of, shots_of):
        found = sorted((of(arm), arm) for arm in arms if of(arm) >= 0)
        points = [arm_point(arms[arm], arm, float(k)) for k, arm in found
                  if arms[arm]["accuracy"] is not None]  # fmt: skip
        if points:
            series.append(Series(arm=points[0].arm, points=tuple(points)))
    known = [arm for arm in (TUNED, "base") if arms.get(arm, {}).get("accuracy") is not None]
    if not series:
        return {"shots_chart": None, "shots_legend": []}
    levels = [arm_point(arms[arm], arm) for arm in known]
    draw = partial(
        series_chart, series, levels, "worked examples in the prompt", name="shots", log=False
    )
    teacher = "Large model, untuned: the teacher" if large_is_teacher else "Teacher"
    names = {0: "Large model, untuned", 1: teacher}
    legend = [
        {"mark": legend_mark(item.arm), "name": names[int(shots_of(item.arm) >= 0)]}
        for item in series
    ] + [{"mark": legend_mark(arm), "name": f"{label(arm)}, no examples"} for arm in known]
    return {"shots_chart": both_widths(draw, wide=960.0), "shots_legend": legend}


def arm_point(entry: Mapping[str, Any], arm: str, x: float = 0.0) -> ArmPoint:
    """An entry of the summary as a point of a chart."""
    low, high = entry["ci95"]
    return ArmPoint(arm=arm, accuracy=entry["accuracy"], low=low, high=high, x=x)


def rows_context(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Claim 2: curves, crossings, and DSS against the others."""
    curves, comparisons = summary["curves"], summary["comparisons"]["rows"]
    shares = shares_of(curves)
    main = {
        name: item
        for name, item in comparisons.items()
        if name.startswith(f"{OWN}:") and f"_vs_{PLAIN}:" in name
    }
    return {
        "curve_columns": [_share_words(curves, share) for share in shares],
        "curve_rows": [_curve_row(arm, points, shares) for arm, points in curves.items()],
        "crossing_rows": _crossing_rows(summary["crossings"]),
        "main_comparisons": [
            sections.adjusted_row(item, _pair(name)) for name, item in main.items()
        ],
        "other_comparisons": [
            sections.adjusted_row(item, _pair(name))
            for name, item in comparisons.items()
            if name not in main
        ],
        **_rows_chart(summary),
    }


def _share_words(curves: Mapping[str, Any], share: float) -> str:
    rows = next((p["rows"] for points in curves.values() for p in points
                 if p["share"] == share and p["rows"]), None)  # fmt: skip
    return f"{100 * share:g} %" + (f", {number(rows)} rows" if rows else "")


def _curve_row(
    arm: str, points: Sequence[Mapping[str, Any]], shares: Sequence[float]
) -> dict[str, Any]:
    known = {point["share"]: point for point in points}
    cells = [
        f"{percent(known[share]['accuracy'])} ({interval(known[share]['ci95'])})"
        if share in known
        else NOTHING
        for share in shares
    ]
    return {"mark": legend_mark(arm), "name": label(arm), "cells": cells}


def _crossing_rows(crossings: Mapping[str, Any]) -> list[dict[str, Any]]:
    arms = dict.fromkeys(item["arm"] for item in crossings.values())
    return [
        {
            "mark": legend_mark(arm),
            "name": label(arm),
            "cells": [
                cell
                for target in ("finetune_all_rows", "few_shot_teacher")
                for cell in _crossing_cells(crossings.get(f"{arm}_reaches_{target}"))
            ],
        }
        for arm in arms
    ]


def _crossing_cells(item: Mapping[str, Any] | None) -> tuple[str, str]:
    """Rows and their interval; ``> 400`` is beyond what was measured, ``≤ 50`` the smallest."""
    if item is None:
        return NOTHING, NOTHING
    smallest, largest = (number(round(item[key])) for key in ("smallest_rows", "largest_rows"))
    at = f"> {largest}" if item["rows"] is None else number(round(item["rows"]))
    ends = [
        f"≤ {smallest}" if below else f"> {largest}" if bound is None else number(round(bound))
        for bound, below in zip(item["ci95_rows"], item["ci95_below"], strict=True)
    ]
    at = f"≤ {smallest}" if item["at_smallest"] and item["rows"] else at
    return at, " to ".join(dict.fromkeys(ends))


def _pair(name: str) -> str:
    """``DSS against Standard fine-tuning, 12.5 % of the rows``."""
    first, second = name.split("_vs_")
    (one, place), (other, _) = place_of(first), place_of(second)
    where = "mean over the shares" if place == ALL_SHARES else f"{100 * float(place or 1):g} %"
    return f"{label(one)} against {label(other)}, {where}"


def _rows_chart(summary: Mapping[str, Any]) -> dict[str, Any]:
    curves = summary["curves"]
    drawn = {arm: [p for p in points if p["rows"]] for arm, points in curves.items()}
    series = [
        Series(arm=arm, points=tuple(arm_point(p, arm, float(p["rows"])) for p in points))
        for arm, points in drawn.items()
        if points
    ]
    teacher = summary["footprint"]["teacher"]
    levels = [arm_point(summary["arms"][teacher], teacher)] if teacher else []
    if not series:
        return {"rows_chart": None, "rows_legend": []}
    draw = partial(
        series_chart, series, levels, "training rows (logarithmic)", name="rows", log=True
    )
    names = [item.arm for item in series] + [item.arm for item in levels]
    return {
        "rows_chart": both_widths(draw, wide=960.0),
        "rows_legend": [{"mark": legend_mark(arm), "name": label(arm)} for arm in names],
    }
