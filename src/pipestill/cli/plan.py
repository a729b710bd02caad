"""`pipestill plan`: what a run takes, before anything is paid for."""

import argparse
import json
import os
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pipestill plan`."""
    parser.description = __doc__
    add = parser.add_argument
    add("pipeline", metavar="PIPELINE", help="such as distill_step_by_step")
    add("-c", "--config", metavar="FILE", help="YAML file of parameters")
    add("--set", dest="assignments", metavar="KEY=VALUE", action="append", default=[],
        help="one parameter; may be repeated")  # fmt: skip
    add("--profile", default="cpu-local", help="cpu-local (default), a100-80gb-x8 or tpu-v3-64")
    add("--project", help="whose quota is read (default: GOOGLE_CLOUD_PROJECT)")
    add("--region", help="another region than the profile's")
    add("--max-cost", type=float, default=0.0, metavar="USD", help="refuse a run that costs more")
    add("--concurrent", type=int, default=1, metavar="N", help="runs at one time, for the quota")
    add("--prices", metavar="FILE", help="prices of your own (also PIPESTILL_PRICES)")
    add("--out", metavar="DIR", help="folder of a local run, whose finished steps are skipped")
    add("--previous", metavar="JOB", help="a job on the platform whose finished steps are skipped")
    add("--offline", action="store_true", help="ask neither the model hub nor the platform")
    add("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Prints the plan; 2 where the run cannot start."""
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported
    found = make(args)
    print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if args.json else found.text())
    return 0 if found.ok else 2


def make(args: argparse.Namespace) -> Any:
    """The plan that the options ask for.

    Raises:
        UserError: ``USAGE``, and as `pipestill.cloud.plan.plan`.
    """
    from pipestill.cli import settings
    from pipestill.cli.run import machine_memory_gb, parameter_types
    from pipestill.cloud.finished import finished_steps
    from pipestill.cloud.pipeline_steps import spec_of
    from pipestill.cloud.plan import plan
    from pipestill.cloud.prices import load_prices
    from pipestill.errors import UserError

    if args.max_cost < 0 or args.concurrent < 1:
        raise UserError("USAGE", "--max-cost: 0 (no limit) or more; --concurrent: 1 or more")
    graph, profile, problems = built(args.pipeline, args.profile, args.region)
    parameters = settings.load(args.config, args.assignments, parameter_types(graph))
    spec = spec_of(graph)
    usual = os.environ.get("GOOGLE_CLOUD_PROJECT", "") if profile.machine_type else ""
    project = args.project or usual
    local = not profile.machine_type and not project
    cached, remarks = None, []
    if args.previous:
        cached, remark = finished_before(args, spec, parameters, project, profile)
        remarks = [remark]
    elif local:
        name = Path(args.config).stem if args.config else args.pipeline
        cached = finished_steps(spec, parameters, Path(args.out or Path("runs") / name))
    return plan(
        spec,
        parameters,
        profile,
        project=project or None,
        region=args.region,
        max_cost=args.max_cost,
        concurrent=args.concurrent,
        offline=args.offline,
        prices=load_prices(args.prices),
        cached=cached,
        memory_gb=machine_memory_gb() if local else None,
        problems=problems,
        remarks=remarks,
    )


def finished_before(
    args: argparse.Namespace, spec: Any, parameters: dict[str, Any], project: str, profile: Any
) -> tuple[dict[str, bool], str]:
    """What the job ``--previous`` has finished, and under which condition that holds.

    Raises:
        UserError: ``USAGE``, ``CLOUD_…``.
    """
    from pipestill.cloud.client import Settings
    from pipestill.cloud.finished import finished_in_job
    from pipestill.cloud.plan import DEFAULT_REGION
    from pipestill.cloud.submit import find_job
    from pipestill.errors import UserError

    if args.offline or not (project or args.previous.startswith("projects/")):
        raise UserError("USAGE", "--previous asks the platform: give --project, without --offline")
    place = args.region or profile.location or DEFAULT_REGION
    job, _ = find_job(args.previous, Settings(project=project, location=place))
    found = finished_in_job(spec, parameters, job.gca_resource)
    return found, f"skipped steps are those of {job.name}, if data and code are those of then"


def built(pipeline: str, profile: str, region: str | None) -> tuple[Any, Any, list[str]]:
    """The pipeline for a profile in a region, and why it cannot be there.

    Raises:
        UserError: ``PIPELINE_UNKNOWN`` or ``PROFILE_UNKNOWN``.
    """
    import dataclasses

    from pipestill.cloud.checks import check_region
    from pipestill.errors import UserError
    from pipestill.pipelines import build
    from pipestill.pipelines.hardware import find_profile, validate

    usual = find_profile(profile)
    chosen = usual
    if region and usual.machine_type:
        chosen = dataclasses.replace(usual, location=region)
    try:
        validate(chosen)
        if region and not usual.machine_type:
            check_region(region)
    except UserError as error:
        return build(pipeline, usual), usual, [str(error)]
    return build(pipeline, chosen), chosen, []
