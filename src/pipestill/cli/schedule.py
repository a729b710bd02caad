"""`pipestill schedule`: a pipeline on a calendar, on Vertex AI or on a Kubeflow server."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipestill.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipestill.cloud.client import Settings
    from pipestill.cloud.schedule import Listed, Timetable

# What `pipestill submit` has and a schedule does not.
UNUSED: dict[str, Any] = {"experiment": "", "fallback": "", "wait": False, "dry_run": False}
CHANGES = {"pause": "paused", "resume": "resumed", "delete": "deleted"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `pipestill schedule`."""
    parser.description = __doc__
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="start a pipeline at every tick", allow_abbrev=False)
    create.add_argument("pipeline", metavar="PIPELINE", help="such as retrain, or a compiled file")
    _pipeline(create)
    _calendar(create, required=True)
    _place(create)
    add = create.add_argument
    add("--name", default="", help="the schedule's name; default: the pipeline's")
    add("--start", default="", metavar="TIME", help="no tick before; RFC 3339")
    add("--end", default="", metavar="TIME", help="no tick after")
    add("--max-runs", type=int, default=0, metavar="N", help="at most so many runs (0 = no limit)")
    add("--at-once", type=int, default=1, metavar="N", help="runs at one time (default: 1)")
    add("--queue", action="store_true", help="a tick waits for the run before; default: left out")
    add("--staging-bucket", default="", metavar="gs://…", help="data, artifacts, checkpoints")
    add("--image-prefix", default=os.environ.get("PIPESTILL_IMAGE_PREFIX", ""), help="images")
    add("--service-account", default="", help="account that the runs have")
    add("--network", default="", help="projects/NUMBER/global/networks/NAME")
    add("--encryption-key", default="", help="projects/P/locations/R/keyRings/…/cryptoKeys/…")
    add("--labels", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    add("--no-cache", action="store_true", help="run every step again")
    add("--no-plan", action="store_true", help="leave out the plan of cost and quota")
    add("--max-cost", type=float, default=0.0, metavar="USD", help="refuse dearer runs")
    preview = actions.add_parser("preview", help="show the next ticks", allow_abbrev=False)
    preview.add_argument("pipeline", metavar="PIPELINE", nargs="?", help="to show what a run costs")
    _pipeline(preview)
    _calendar(preview, required=False)
    _place(preview)
    preview.add_argument("--schedule", default="", metavar="NAME", help="the ticks of this one")
    preview.add_argument("-n", type=int, default=5, dest="count", help="how many (default: 5)")
    _place(actions.add_parser("list", help="show all schedules", allow_abbrev=False))
    for name in CHANGES:
        one = actions.add_parser(name, help=f"{name} a schedule", allow_abbrev=False)
        one.add_argument("schedule", metavar="NAME", help="name or id")
        _place(one)
        if name == "resume":
            one.add_argument("--catch-up", action="store_true", help="make up for missed runs")


def _pipeline(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-c", "--config", metavar="FILE", help="YAML file of parameters")
    add("--set", dest="assignments", metavar="KEY=VALUE", action="append", default=[],
        help="one parameter; may be repeated")  # fmt: skip
    add("--profile", default="", help="a100-80gb-x8, tpu-v3-64 or cpu-local")
    parser.set_defaults(**UNUSED)


def _calendar(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--cron", required=required, default="",
                        help="'minute hour day month weekday'")  # fmt: skip
    parser.add_argument("--time-zone", default="UTC", help="such as Europe/Berlin (default: UTC)")


def _place(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--project", default=os.environ.get("GOOGLE_CLOUD_PROJECT", ""), help="project id")
    add("--region", default="", help="default: the profile's, else us-central1")
    add("--kfp-endpoint", default="", metavar="URL", help="an open-source server instead")


def main(args: argparse.Namespace) -> int:
    """Does the action."""
    if args.action == "create":
        with tempfile.TemporaryDirectory(prefix="pipestill-") as folder:
            return create_kfp(args, Path(folder)) if args.kfp_endpoint else create(
                args, Path(folder)
            )  # fmt: skip
    if args.action == "preview":
        return preview(args)
    return on_server(args) if args.kfp_endpoint else on_vertex(args)


def timetable_of(args: argparse.Namespace) -> Timetable:
    """The calendar's options, checked."""
    from pipestill.cloud.schedule import Timetable

    table = Timetable(
        cron=args.cron,
        time_zone=args.time_zone,
        name=getattr(args, "name", ""),
        start=getattr(args, "start", ""),
        end=getattr(args, "end", ""),
        max_runs=getattr(args, "max_runs", 0),
        at_once=getattr(args, "at_once", 1),
        queue=getattr(args, "queue", False),
    )
    table.parsed()
    return table


def create(args: argparse.Namespace, folder: Path) -> int:
    """Checks everything, plans one run, uploads, then creates the schedule."""
    from pipestill.cli import submit as submitting
    from pipestill.cli.submit_template import template_for
    from pipestill.cloud import client, schedule, submit
    from pipestill.cloud.checks import check
    from pipestill.cloud.parameters import definitions, platform_parameters, read_template

    table = timetable_of(args)
    args.display_name = table.name
    ((region, profile),) = submitting.pairs(args)
    settings = check(submitting.cloud_settings(args, region))
    if not settings.staging_bucket:
        raise UserError("CLOUD_BUCKET", "no staging bucket", "give --staging-bucket gs://BUCKET")
    given = submitting.read_parameters(args, profile, folder)
    spec = read_template(template_for(args, profile, "", folder))
    given = schedule.with_tick(given, definitions(spec), table, schedule.SCHEDULED)
    order = submitting.order_for(args, profile, settings, given, folder)
    submit.preflight(client.init(settings))
    schedule.refuse_second(table.name or order.pipeline, settings)
    with client.explained(settings, "upload the data"):
        given = platform_parameters(order.pipeline, given, spec, settings)
    order = dataclasses.replace(order, parameters=given)
    made = schedule.create(order, table)
    print(f"scheduled  {made.display_name} ({made.resource_name.rpartition('/')[2]})")
    print(f"console    {schedule.console_link(made, settings)}")
    print(f"place      {settings.location}/{profile}, project {settings.project}")
    print(f"account    {settings.service_account or '(the default one of the project)'}")
    for name, value in sorted(order.parameters.items()):
        print(f"parameter  {name} = {value}")
    print_ticks(table, 3)
    return 0


def create_kfp(args: argparse.Namespace, folder: Path) -> int:
    """The same as a recurring run of a Kubeflow server."""
    from pipestill.cli import submit as submitting
    from pipestill.cli.submit_template import file_facts, pipeline_name, template_for
    from pipestill.cloud import kfp_schedule, kfp_server
    from pipestill.cloud.parameters import definitions, read_template
    from pipestill.cloud.schedule import with_tick

    table = timetable_of(args)
    profile = args.profile or file_facts(args.pipeline)[1] or "cpu-local"
    given = submitting.read_parameters(args, profile, folder)
    region = submitting.DEFAULT_REGION if args.image_prefix else ""
    template = template_for(args, profile, region, folder)
    spec = read_template(template)
    run = kfp_server.Run(
        endpoint=args.kfp_endpoint,
        template=template,
        spec=spec,
        profile=profile,
        parameters=with_tick(given, definitions(spec), table, kfp_schedule.SCHEDULED),
        name=table.name or pipeline_name(args.pipeline),
        service_account=args.service_account,
        cache=not args.no_cache,
        token=os.environ.get(kfp_server.TOKEN_ENV, ""),
    )
    made = kfp_schedule.create(run, table)
    print(f"scheduled  {made.display_name} ({made.recurring_run_id})")
    print_ticks(table, 3)
    return 0


def preview(args: argparse.Namespace) -> int:
    """The next ticks, and what a run costs where the pipeline is named."""
    from pipestill.cloud import schedule

    if args.count < 1:
        raise UserError("USAGE", f"-n: found {args.count}, allowed: 1 or more")
    if args.schedule:
        found = schedule.listed(schedule.find(args.schedule, settings_of(args)).gca_resource)
        zone, _, cron = found.cron.rpartition("=")[2].partition(" ")
        args.cron, args.time_zone = (cron, zone) if "TZ=" in found.cron else (found.cron, "UTC")
        print(f"schedule   {found.name} ({found.id}), {found.state}")
    if not args.cron:
        raise UserError("USAGE", "no --cron and no --schedule given")
    table = timetable_of(args)
    print_ticks(table, args.count)
    if args.pipeline:
        print_cost(args, table)
    return 0


def print_ticks(table: Timetable, count: int) -> None:
    """A line a tick: local time, UTC, its window, and where the clocks change."""
    from pipestill.retrain.story import preview as ticks

    for row in ticks(table.cron, table.time_zone, count):
        note = f"  ({row['note']})" if row["note"] else ""
        print(f"tick       {row['local']:<28} {row['utc']}  {row['window']} {row['hours']} h{note}")


def print_cost(args: argparse.Namespace, table: Timetable) -> None:
    """What one run and a month of them are likely to cost."""
    from pipestill.cli import settings
    from pipestill.cli.plan import built
    from pipestill.cli.run import parameter_types
    from pipestill.cloud.pipeline_steps import spec_of
    from pipestill.cloud.plan import plan

    profile = args.profile or "cpu-local"
    graph, chosen, problems = built(args.pipeline, profile, args.region or None)
    given = settings.load(args.config, args.assignments, parameter_types(graph))
    found = plan(
        spec_of(graph),
        given,
        chosen,
        project=args.project or None,
        region=args.region or None,
        problems=problems,
    )
    runs = runs_a_month(table)
    cost = found.cost
    print(
        f"cost       {cost.likely:,.2f} USD a run that trains ({cost.low:,.2f} to {cost.high:,.2f})"
        f", {runs} runs in 30 days: up to {runs * cost.likely:,.2f} USD; a run that does not train "
        "is a few CPU minutes"
    )
    for number, reason in enumerate(found.reasons, 1):
        print(f"reason {number}   {reason}")


def runs_a_month(table: Timetable) -> int:
    """Ticks in the next 30 days."""
    from datetime import UTC, datetime, timedelta
    from itertools import takewhile

    now = datetime.now(UTC)
    last = now + timedelta(days=30)
    return sum(1 for _ in takewhile(lambda tick: tick <= last, table.parsed().after(now)))


def settings_of(args: argparse.Namespace) -> Settings:
    """Project and region of an action on schedules that exist."""
    from pipestill.cloud.client import Settings

    return Settings(project=args.project, location=args.region or "us-central1")


def on_vertex(args: argparse.Namespace) -> int:
    """list, pause, resume and delete on Vertex AI."""
    from pipestill.cloud import schedule

    settings = settings_of(args)
    if args.action == "list":
        return show(schedule.schedules(settings))
    if args.action == "delete":
        print(f"deleted    {schedule.delete(args.schedule, settings)}")
        return 0
    if args.action == "pause":
        found = schedule.pause(args.schedule, settings)
    else:
        found = schedule.resume(args.schedule, settings, catch_up=args.catch_up)
        words = "missed runs are made up for" if args.catch_up else "missed runs are left out"
        print(f"catch-up   {words}")
    print(f"{CHANGES[args.action]:<10} {found.name} ({found.id}): {found.state}")
    return 0


def on_server(args: argparse.Namespace) -> int:
    """The same on a Kubeflow server."""
    from pipestill.cloud import kfp_schedule, kfp_server

    token = os.environ.get(kfp_server.TOKEN_ENV, "")
    if args.action == "list":
        return show(kfp_schedule.listed(args.kfp_endpoint, token))
    if args.action == "resume" and args.catch_up:
        raise UserError(
            "USAGE", "--catch-up: a Kubeflow server decides this when the recurring run is created"
        )
    found = kfp_schedule.change(args.kfp_endpoint, token, args.schedule, args.action)
    print(f"{CHANGES[args.action]:<10} {found.name} ({found.id})")
    return 0


def show(found: Iterable[Listed]) -> int:
    """A line a schedule."""
    rows = list(found)
    for item in rows:
        following = f"next {item.next_run}" if item.next_run else ""
        print(
            f"{item.id:<22} {item.state:<10} {item.name:<28} {item.cron:<34} {following}".rstrip()
        )
    if not rows:
        print("no schedules")
    return 0
