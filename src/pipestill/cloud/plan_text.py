"""A plan as text for the terminal: data, steps, totals, quota, reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipestill.cloud.prices import Range

if TYPE_CHECKING:
    from pipestill.cloud.plan_result import Plan, StepPlan
    from pipestill.cloud.quota import QuotaRow

HEAD = ("step", "machine", "rows", "tokens in", "tokens out", "FLOPs", "time", "USD", "cache")


def render(plan: Plan) -> str:
    """All parts, one below the other."""
    parts = [
        _title(plan),
        _rows(plan),
        _steps(plan),
        _totals(plan),
        _quota(plan.quota, plan),
        _notes(plan),
        _verdict(plan),
    ]
    return "\n\n".join(part for part in parts if part)


def _title(plan: Plan) -> str:
    where = "this machine" if plan.local else plan.region
    project = f", project {plan.project}" if plan.project else ""
    return f"Plan of {plan.pipeline} on {plan.profile} ({where}{project})"


def _rows(plan: Plan) -> str:
    rows = plan.rows
    if not rows.read:
        return ""
    about = "about " if rows.scale > 1 else ""
    kinds = [(rows.train, "to train on"), (rows.pairs, "pairs"), (rows.prompts, "prompts")]
    parts = [f"{count:,} {name}" for count, name in kinds if count]
    parts += [f"{rows.held_out:,} held out", f"{rows.rejected:,} set aside"]
    if rows.train:
        parts.append(f"{rows.unlabelled:,} without a label")
    return f"Data: {about}{rows.read:,} rows read; {', '.join(parts)}"


def _steps(plan: Plan) -> str:
    groups: dict[tuple[str, str], list[StepPlan]] = {}
    for step in plan.steps:
        groups.setdefault((step.component, step.item.split(":")[0]), []).append(step)
    table = [HEAD, *(_line(group, plan.local) for group in groups.values())]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    right = range(2, 6)
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([*lines, "time of one task, low / likely / high; the rest is of all of a row"])


def _line(group: Sequence[StepPlan], local: bool) -> tuple[str, ...]:
    first = group[0]
    objective = first.item.split(":")[0]
    name = first.component + (f" {objective}" if ":" in first.item else "")
    counted = all(step.estimate.counted for step in group)
    cost = sum((step.cost for step in group), Range())
    flops = sum(step.estimate.flops for step in group)
    return (
        name + (f" × {len(group)}" if len(group) > 1 else ""),
        first.machine,
        number(max(step.estimate.rows for step in group)),
        number(sum(step.estimate.tokens_in for step in group)),
        number(sum(step.estimate.tokens_out for step in group)),
        (f"{flops:.1e}" if flops else "-") if counted else "not known",
        duration(first.hours),
        "-" if local and not cost.high else money(cost),
        {True: "skipped", False: "runs", None: "?"}[first.cached],
    )


def _totals(plan: Plan) -> str:
    lines = [f"Time      {duration(plan.hours)} from start to end"]
    if plan.local:
        api = sum((step.estimate.api for step in plan.steps if not step.cached), Range())
        lines.append(f"Cost      {money(api)} USD (the teacher's tokens; the machine is yours)")
    else:
        lines.append(
            f"Machines  {duration(plan.machine_hours)} together, {plan.at_once} job(s) at one time"
        )
        lines.append(f"Cost      {money(plan.cost)} USD on demand: {_parts(plan)}")
        spot = f"{money(plan.spot)} USD" if plan.spot else "not offered, or no price known"
        lines.append(f"Spot      {spot}")
        lines.append(_price_line(plan))
    lines.append(f"Cache     {plan.cache}")
    if plan.timeout_s:
        lines.append(
            f"Limit     {plan.max_cost:,.2f} USD → each job ends after {plan.timeout_s:,} s"
            " (a retry starts its time anew)"
        )
    return "\n".join(lines)


def _parts(plan: Plan) -> str:
    """The likely cost, by what it is paid for."""
    todo = [step for step in plan.steps if step.cached is not True]
    api = sum(step.estimate.api.likely for step in todo)
    jobs = sum(step.cost.likely - step.estimate.api.likely for step in todo if step.is_job)
    plain = sum(step.cost.likely - step.estimate.api.likely for step in todo if not step.is_job)
    run = plan.cost.likely - api - jobs - plain
    parts = {"teacher": api, "accelerators": jobs, "small tasks": plain, "pipeline run": run}
    return ", ".join(f"{name} {value:,.2f}" for name, value in parts.items())


def _price_line(plan: Plan) -> str:
    dates = sorted(price.date for price in plan.prices)
    guessed = sum(price.inferred for price in plan.prices)
    shown = f"{dates[0]} to {dates[-1]}" if dates else "none"
    return (
        f"Prices    of {shown}, {guessed} of {len(dates)} inferred or not confirmed, before tax;"
        " management fee included (--json lists them with sources)"
    )


def _quota(rows: Sequence[QuotaRow], plan: Plan) -> str:
    if not rows:
        return ""
    jobs = rows[0].jobs
    lines = [
        f"Quota for {plan.concurrent} run{'s' if plan.concurrent > 1 else ''} at one time"
        f" ({jobs} job{'s' if jobs != 1 else ''})"
    ]
    for row in rows:
        have = "have " + ("no limit" if row.status == "unlimited" else str(row.have))
        shown = have if row.have is not None else f"{row.status}: {row.why}"
        aside = "" if row.decides else " (Google's own images; not drawn on by these jobs)"
        lines.append(
            f"  {'!' if row.problem() else ' '} {row.label}, {row.region}: need {row.need}"
            f" ({row.each} a job), {shown}{aside}"
        )
        lines.append(f"      {row.metric}")
        if row.have is None or row.problem():
            lines.append(f"      {row.link}")
    commands = [row.command for row in rows if row.command and row.decides]
    if commands:
        lines.append(f"  see for yourself: {commands[0]}")
    return "\n".join(lines)


def _notes(plan: Plan) -> str:
    return "\n".join(f"note: {note}" for note in plan.notes)


def _verdict(plan: Plan) -> str:
    if plan.ok:
        return "Nothing stands against this run."
    numbered = [f"  {number}. {reason}" for number, reason in enumerate(plan.reasons, 1)]
    return "\n".join(["This run cannot start:", *numbered])


def number(value: float) -> str:
    """A count, short where it is long: 9,741; 12.4M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if value else "-"


def money(cost: Range) -> str:
    return " / ".join(f"{value:,.2f}" for value in (cost.low, cost.likely, cost.high))


def duration(hours: Range) -> str:
    """Minutes under two hours, else hours."""
    values = (hours.low, hours.likely, hours.high)
    if hours.likely < 2 / 60:
        return " / ".join(f"{value * 3600:.0f}" for value in values) + " s"
    if hours.likely < 2:
        return " / ".join(f"{value * 60:.0f}" for value in values) + " min"
    return " / ".join(f"{value:,.1f}" for value in values) + " h"
