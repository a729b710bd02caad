"""Hours, dollars and quota of planned steps, and the time limit that keeps to a budget."""

from collections.abc import Sequence
from dataclasses import replace

from pipestill.cloud.effort import Estimate
from pipestill.cloud.estimate import estimate
from pipestill.cloud.machines import machine_of
from pipestill.cloud.pipeline_steps import Step
from pipestill.cloud.plan_result import StepPlan
from pipestill.cloud.prices import (
    FEE,
    PIPELINE_RUN,
    PLAIN_TASK,
    Price,
    Prices,
    Range,
    find_price,
    machine_hour,
)
from pipestill.cloud.quota import Need, needs_of
from pipestill.cloud.workload import Workload

WEIGHT_BYTES_A_SECOND = Range(0.08e9, 0.25e9, 1.0e9)  # from a hub or a bucket
LONGEST_S = 7 * 24 * 3600  # the platform ends a CustomJob after this


class Pricing:
    """Looks prices up for one region and remembers which were used and which are missing."""

    def __init__(self, table: Prices, region: str, local: bool) -> None:
        self.table, self.region, self.local = table, region, local
        self.entries: list[Price] = []
        self.missing: list[str] = []
        self.fee = Range(1, 1, 1) if local else Range(1, 1, 1) + self._flat(FEE)
        self.run = Range() if local else self._flat(PIPELINE_RUN)

    def hour(self, step: Step, kind: str) -> Range | None:
        """Dollars an hour of the step's machine with the management fee; None = not known."""
        if self.local:
            return Range() if kind == "on_demand" else None
        asked = (step.machine_type, step.accelerator_type, step.accelerator_count)
        machine, accelerator, count = asked if step.is_job else (PLAIN_TASK, "", 0)
        found = machine_hour(self.table, machine, accelerator, count, self.region, kind)
        if found is None:
            if kind == "on_demand":
                self._miss(f"no price of {machine} is known: give one with --prices")
            return None
        price, entry = found
        self.entries.append(entry)
        if entry.region and entry.region != self.region:
            self._miss(f"the price of {entry.name} is that of {entry.region}")
        scale = 1.0 if step.is_job else max(1.0, step.cpu / 4)
        return price * scale * self.fee

    def _flat(self, name: str) -> Range:
        found = find_price(self.table, name, "fee")
        if found:
            self.entries.append(found)
        return found.range if found else Range()

    def _miss(self, note: str) -> None:
        if note not in self.missing:
            self.missing.append(note)


def plan_step(step: Step, work: Workload, priced: Pricing, cached: bool | None) -> StepPlan:
    machine = machine_of(step, local=priced.local)
    found = Estimate(counted=False)
    hours = Range()
    if machine is None:
        work.say(f"{step.accelerator_type}: its speed is not known, so {step.title} has no hours")
    else:
        found = estimate(step, work, machine)
        seconds = machine.start + _loading(step, work) + found.seconds
        hours = seconds * (1 / 3600)
    hourly, spot = priced.hour(step, "on_demand"), priced.hour(step, "spot")
    # Spot needs a machine of its own: plain tasks keep theirs.
    other = spot if step.is_job else hourly
    return StepPlan(
        name=step.name,
        component=step.component,
        title=step.title,
        item=step.item,
        machine=machine.name if machine else step.machine_type,
        is_job=step.is_job,
        estimate=found,
        hours=hours,
        cost=hours * (hourly or Range()) + found.api,
        spot=None if other is None else hours * other + found.api,
        hourly=hourly.likely if hourly else 0.0,
        cached=cached if step.cached else False,
    )


def _loading(step: Step, work: Workload) -> Range:
    """Seconds until the weights that the estimate counted on are there, at 4 bytes a parameter."""
    named = {str(v) for key, v in step.arguments.items() if key.endswith("_model_reference")}
    sizes = [work.models[name].parameters or 0 for name in named if name in work.models]
    return WEIGHT_BYTES_A_SECOND.under(4.0 * sum(sizes))


def timed(steps: Sequence[Step], planned: Sequence[StepPlan], local: bool) -> list[StepPlan]:
    """The same with start and finish: side by side where the definition allows it, else in turn."""
    finish: dict[str, Range] = {}
    found: list[StepPlan] = []
    latest = Range()
    for step, one in zip(steps, planned, strict=True):
        start = latest if local else Range()
        for name in step.needs:
            start = start.at_least(finish.get(name, Range()))
        end = start if one.cached else start + one.hours
        finish[step.name] = latest = end
        found.append(replace(one, start=start, finish=end))
    return found


def longest(planned: Sequence[StepPlan]) -> Range:
    found = Range()
    for step in planned:
        found = found.at_least(step.finish)
    return found


def at_once(planned: Sequence[StepPlan]) -> int:
    """The most CustomJobs that run at one time, at the likely hours."""
    jobs = [step for step in planned if step.is_job and step.cached is not True]
    return max(
        (
            sum(other.start.likely <= step.start.likely < other.finish.likely for other in jobs)
            for step in jobs
        ),
        default=0,
    )


def needs(
    steps: Sequence[Step],
    planned: Sequence[StepPlan],
    region: str,
    at_once: int,
    concurrent: int,
    local: bool,
) -> list[Need]:
    """Quota by machine type; where all tasks are plain, the CPUs of those that run together."""
    if local:
        return []
    jobs = {(s.machine_type, s.accelerator_type, s.accelerator_count) for s in steps if s.is_job}
    needs = [
        need
        for machine in sorted(jobs)
        for need in needs_of(*machine, jobs=at_once * concurrent, region=region)
    ]
    if needs:
        return needs
    together = max(
        (
            sum(other.start.likely <= one.start.likely < other.finish.likely for other in planned)
            for one in planned
        ),
        default=1,
    )
    return needs_of(PLAIN_TASK, "", 0, jobs=together * concurrent, region=region)


def time_limit(todo: Sequence[StepPlan], cost: Range, max_cost: float, work: Workload) -> int:
    """The longest time of each CustomJob under which the run is expected to stay in the limit.

    Each job is taken to need at most its high estimate; what is left of the money then lengthens
    all of them alike. Tokens and plain tasks come off first.
    """
    if cost.likely > max_cost:
        work.wrong(
            f"cost: likely {cost.likely:,.2f} USD ({cost.low:,.2f} to {cost.high:,.2f}), and "
            f"--max-cost allows {max_cost:,.2f} → raise it, or train fewer or smaller students"
        )
    elif cost.high > max_cost:
        work.say(
            f"the run may cost up to {cost.high:,.2f} USD; the time limit of its jobs ends it near "
            f"{max_cost:,.2f}"
        )
    jobs = [step for step in todo if step.is_job and step.hourly]
    if not jobs:
        return 0
    fixed = cost.likely - sum(step.hourly * step.hours.likely for step in jobs)
    budget = max(0.0, max_cost - fixed)
    hours = min(_limit_hours(jobs, budget), LONGEST_S / 3600)
    longest = max(jobs, key=lambda step: step.hours.likely)
    if hours < longest.hours.likely and cost.likely <= max_cost:
        work.say(f"the time limit is shorter than {longest.title} is likely to take")
    return max(60, int(hours * 3600))


def _limit_hours(jobs: Sequence[StepPlan], budget: float) -> float:
    """The limit at which jobs of at most their high estimate cost the budget together."""
    usual = sum(step.hourly * step.hours.high for step in jobs)
    longest = max(step.hours.high for step in jobs)
    if usual <= budget:
        return longest + (budget - usual) / sum(step.hourly for step in jobs)
    low, high = 0.0, longest
    for _ in range(60):
        middle = (low + high) / 2
        spent = sum(step.hourly * min(middle, step.hours.high) for step in jobs)
        low, high = (middle, high) if spent <= budget else (low, middle)
    return low


def spot_cost(todo: Sequence[StepPlan], priced: Pricing) -> Range | None:
    if priced.local or any(step.spot is None for step in todo):
        return None
    return sum((step.spot for step in todo if step.spot), priced.run)
