"""What a run will take before anything is paid for: rows, tokens, hours, dollars, quota, reasons.

The steps come from the pipeline's own definition, the rows from the real data, the prices from a
dated table. Every figure is a range. Nothing is uploaded and no model is loaded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipestill.cloud import plan_costs
from pipestill.cloud.client import Settings
from pipestill.cloud.fitting import model_problems
from pipestill.cloud.pipeline_steps import Step, all_parameters, read_steps, spec_of
from pipestill.cloud.plan_result import Plan, StepPlan
from pipestill.cloud.prices import NOTHING, Prices, load_prices, used
from pipestill.cloud.quota import check_quota
from pipestill.cloud.workload import Workload, read_rows_of

DEFAULT_REGION = "us-central1"


def plan(
    pipeline: Any,
    parameters: Mapping[str, Any],
    profile: Any,
    *,
    project: str | None = None,
    region: str | None = None,
    max_cost: float = 0.0,
    concurrent: int = 1,
    offline: bool = False,
    prices: Prices | None = None,
    settings: Settings | None = None,
    cached: Mapping[str, bool] | None = None,
    memory_gb: float | None = None,
    problems: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> Plan:
    """Plans one run.

    Args:
        pipeline: a kfp pipeline built for the profile, or its compiled definition as a dict.
        parameters: by name; the others have the pipeline's defaults.
        profile: the hardware profile, or its name. ``cpu-local`` without a project is a run on this
            machine, which costs nothing.
        project: whose quota is read; None = quota is not checked.
        region: where it runs; None = where the pipeline's machines are.
        max_cost: US dollars of one run; 0 = no limit.
        concurrent: runs at one time, for the quota.
        offline: no look-up on the model hub; also quota is not asked for.
        prices: from `load_prices`; None = the shipped table and ``PIPESTILL_PRICES``.
        settings: how the quota is asked for; None = made from `project` and `region`.
        cached: step name → whether the cache has it; missing = not known.
        memory_gb: of this machine, for a local run.
        problems: reasons found before, such as a region without this hardware.
        remarks: notes to show with the plan's own.

    Raises:
        UserError: ``PLAN_PIPELINE``, ``PLAN_PARAMETER``, ``PRICES_…``. What is wrong with data,
            models or quota does not raise: it stands in `reasons`.
    """
    spec = spec_of(pipeline)
    name = str(getattr(profile, "name", profile))
    steps = read_steps(spec, parameters)
    jobs = [step for step in steps if step.is_job]
    local = not project and not jobs and name == "cpu-local"
    where = region or next((step.location for step in jobs), "") or DEFAULT_REGION
    work = Workload(parameters=all_parameters(spec, parameters), offline=offline)
    for problem in problems:
        work.wrong(problem)
    read_rows_of(steps, work)
    table = load_prices() if prices is None else prices
    priced = plan_costs.Pricing(table, where, local)
    planned = [
        plan_costs.plan_step(step, work, priced, (cached or {}).get(step.name)) for step in steps
    ]
    planned = plan_costs.timed(steps, planned, local)
    for problem in model_problems(steps, work, name, memory_gb):
        work.wrong(problem)
    at_once = plan_costs.at_once(planned)
    needs = plan_costs.needs(steps, planned, where, at_once, concurrent, local)
    asked = settings or (Settings(project=project, location=where) if project else None)
    quota = check_quota(needs, None if offline else asked) if needs else []
    for row in quota:
        work.wrong(row.problem())
    todo = [step for step in planned if step.cached is not True]
    cost = sum((step.cost for step in todo), priced.run)
    timeout_s = plan_costs.time_limit(todo, cost, max_cost, work) if max_cost else 0
    _remarks(steps, work, local)
    return Plan(
        pipeline=str(spec.get("pipelineInfo", {}).get("name", "")),
        profile=name,
        project=project or "",
        region="" if local else where,
        local=local,
        rows=work.rows,
        steps=tuple(planned),
        hours=plan_costs.longest(planned),
        machine_hours=sum((step.hours for step in todo), NOTHING),
        cost=cost,
        spot=plan_costs.spot_cost(todo, priced),
        quota=tuple(quota),
        at_once=at_once,
        concurrent=concurrent,
        max_cost=max_cost,
        timeout_s=timeout_s,
        cache=_cache_line(planned, local),
        reasons=tuple(work.problems),
        notes=(*remarks, *work.notes, *priced.missing),
        prices=tuple(used(priced.entries)),
    )


def _cache_line(planned: Sequence[StepPlan], local: bool) -> str:
    hits = [step for step in planned if step.cached]
    if hits:
        return f"{len(hits)} of {len(planned)} steps are finished and will be skipped"
    if any(step.cached is None for step in planned):
        return (
            "not known before the run: steps whose inputs, parameters, image and code are those of "
            "an earlier run are skipped"
        )
    return "no step is finished: all will run" if local else "no step will be skipped"


def _remarks(steps: Sequence[Step], work: Workload, local: bool) -> None:
    """What a person would not guess from the table."""
    jobs = [step for step in steps if step.is_job]
    tpu = any(step.accelerator_type.startswith("TPU") for step in jobs)
    asks = {"teacher_label", "rationale_extract", "evaluate", "teacher_logits"}
    own = work.parameters.get("teacher_backend", "transformers") == "transformers"
    if tpu:
        work.say("labelling and evaluation run on the TPU host's processors, not on its cores")
    elif any(step.component in asks and step.accelerator_count > 1 for step in jobs) and own:
        work.say("labelling and evaluation use one GPU of the machine; all of them are paid for")
    idle = {"teacher_label", "rationale_extract"} & {step.component for step in jobs}
    if idle and not own:
        work.say(
            f"{' and '.join(sorted(idle))} only wait for the teacher "
            f"({work.parameters.get('teacher_backend')}) on a machine that is paid for by the hour"
        )
    if not local:
        work.say("not counted: storage, network, idle endpoints, retries of failed steps")
