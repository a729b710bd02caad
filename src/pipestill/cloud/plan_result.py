"""The plan as data: what `pipestill.cloud.plan.plan` returns."""

from dataclasses import dataclass
from typing import Any

from pipestill.cloud.effort import Estimate
from pipestill.cloud.prices import NOTHING, Price, Range
from pipestill.cloud.quota import QuotaRow
from pipestill.cloud.workload import Rows


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step: its work, and what its machine takes.

    `hours` are of one machine from its start to its end. `cost` is on demand, US dollars, with the
    teacher's `api` and the management fee; `spot` the same on Spot machines, None where there are
    none. `cached` is true or false, None = nobody knows before the run.
    """

    name: str
    component: str
    title: str
    item: str
    machine: str
    is_job: bool
    estimate: Estimate
    hours: Range
    cost: Range
    spot: Range | None
    hourly: float
    cached: bool | None
    start: Range = NOTHING
    finish: Range = NOTHING

    def to_dict(self) -> dict[str, Any]:
        work = self.estimate
        return {
            "name": self.name,
            "component": self.component,
            "title": self.title,
            "item": self.item,
            "machine": self.machine,
            "rows": work.rows,
            "tokens_in": work.tokens_in,
            "tokens_out": work.tokens_out,
            "flops": work.flops,
            "teacher_calls": work.calls,
            "counted": work.counted,
            "hours": self.hours.as_dict(),
            "cost_usd": self.cost.as_dict(),
            "teacher_usd": work.api.as_dict(),
            "spot_usd": self.spot.as_dict() if self.spot else None,
            "cached": self.cached,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole run. It cannot run where `reasons` is not empty.

    `hours` is from start to end, steps side by side where the pipeline lets them; `cost` of one
    run. `timeout_s` is the time limit of each CustomJob that keeps the run under `max_cost`, 0
    where no limit was given.
    """

    pipeline: str
    profile: str
    project: str
    region: str
    local: bool
    rows: Rows
    steps: tuple[StepPlan, ...]
    hours: Range
    machine_hours: Range
    cost: Range
    spot: Range | None
    quota: tuple[QuotaRow, ...]
    at_once: int
    concurrent: int
    max_cost: float
    timeout_s: int
    cache: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    prices: tuple[Price, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        rows = self.rows
        counts = {
            name: getattr(rows, name)
            for name in ("read", "rejected", "train", "held_out", "unlabelled", "pairs", "prompts")
        }
        return {
            "pipeline": self.pipeline,
            "profile": self.profile,
            "project": self.project,
            "region": self.region,
            "local": self.local,
            "rows": counts | {"exact": rows.scale == 1},
            "steps": [step.to_dict() for step in self.steps],
            "hours": self.hours.as_dict(),
            "machine_hours": self.machine_hours.as_dict(),
            "cost_usd": self.cost.as_dict(),
            "spot_usd": self.spot.as_dict() if self.spot else None,
            "jobs_at_once": self.at_once,
            "concurrent": self.concurrent,
            "quota": [row.as_dict() for row in self.quota],
            "max_cost_usd": self.max_cost,
            "timeout_s": self.timeout_s,
            "cache": self.cache,
            "can_run": self.ok,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "prices": [
                {
                    "name": price.name,
                    "kind": price.kind,
                    "region": price.region,
                    "unit": price.unit,
                    **price.range.as_dict(),
                    "date": price.date.isoformat(),
                    "inferred": price.inferred,
                    "source": price.source,
                }
                for price in self.prices
            ],
        }

    def text(self) -> str:
        """What the screen shows."""
        from pipestill.cloud.plan_text import render

        return render(self)
