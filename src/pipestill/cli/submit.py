"""`pipestill submit`: a pipeline as a job on Vertex AI, or on a Kubeflow Pipelines server."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipestill.cli import submit_show as show
from pipestill.cli.submit_template import file_facts, is_file, pipeline_name, template_for
from pipestill.errors import UserError

if TYPE_CHECKING:
    from pipestill.cloud.client import Settings
    from pipestill.cloud.submit import Order

DEFAULT_REGION = "us-central1"  # of profiles that name none
LONGEST_NAME = 128
IMAGE_PREFIX_ENV = "PIPESTILL_IMAGE_PREFIX"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pipestill submit`."""
    parser.description = __doc__
    add = parser.add_argument
    add("pipeline", metavar="PIPELINE", nargs="?", help="a name, or a compiled YAML file")
    add("-c", "--config", metavar="FILE", help="YAML file of parameters")
    add(
        "--set",
        dest="assignments",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one parameter, as in `pipestill run`; may be repeated",
    )
    add("--profile", help="a100-80gb-x8, tpu-v3-64 or cpu-local")
    add("--project", default=os.environ.get("GOOGLE_CLOUD_PROJECT", ""), help="project id")
    add("--region", default="", help="default: the profile's, else us-central1")
    add("--staging-bucket", default="", metavar="gs://…", help="data, artifacts, checkpoints")
    add("--image-prefix", default=os.environ.get(IMAGE_PREFIX_ENV, ""), help="path to the images")
    add("--service-account", default="", help="account that the steps run as")
    add("--network", default="", help="projects/NUMBER/global/networks/NAME")
    add("--encryption-key", default="", help="projects/P/locations/R/keyRings/…/cryptoKeys/…")
    add("--labels", action="append", default=[], metavar="KEY=VALUE,…", help="labels of the job")
    add("--experiment", default="", help="experiment that the job belongs to")
    add("--no-cache", action="store_true", help="run every step again")
    add("--display-name", default="", help="name in the console; default: the pipeline's")
    add("--max-cost", type=float, default=0.0, metavar="USD", help="refuse a dearer job")
    add("--no-plan", action="store_true", help="leave out the plan of cost and quota")
    add("--fallback", default="", metavar="REGION/PROFILE,…", help="tried in turn without quota")
    add("--wait", action="store_true", help="show the steps until the job ends")
    add("--dry-run", action="store_true", help="check and print; upload and create nothing")
    add("--resume", metavar="JOB", help="go on with a failed job; its finished steps are kept")
    add("--watch", metavar="JOB", help="show the steps of a job that runs")
    add("--kfp-endpoint", default="", metavar="URL", help="an open-source server instead")


def main(args: argparse.Namespace) -> int:
    """Creates the job, or comes back to one; with ``--wait`` ends as the job does."""
    if len(args.display_name) > LONGEST_NAME:
        raise UserError("USAGE", f"--display-name: at most {LONGEST_NAME} characters")
    if args.max_cost < 0:
        raise UserError("USAGE", f"--max-cost: found {args.max_cost:g}, allowed: above 0")
    if args.max_cost and (args.no_plan or args.kfp_endpoint):
        raise UserError("USAGE", "--max-cost needs the plan of a job on Vertex AI")
    if args.resume or args.watch:
        return come_back(args)
    if not args.pipeline:
        raise UserError("USAGE", "name a PIPELINE", "see pipestill submit --help")
    with tempfile.TemporaryDirectory(prefix="pipestill-") as folder:
        if args.kfp_endpoint:
            from pipestill.cli.submit_server import on_server

            return on_server(args, Path(folder))
        return on_vertex(args, Path(folder))


def on_vertex(args: argparse.Namespace, folder: Path) -> int:
    """Checks everything, then uploads, then creates."""
    from pipestill.cloud import client, submit
    from pipestill.cloud.checks import check

    places = [(profile, check(cloud_settings(args, region))) for region, profile in pairs(args)]
    parameters = read_parameters(args, places[0][0], folder)
    if not places[0][1].staging_bucket:
        raise UserError("CLOUD_BUCKET", "no staging bucket", "give --staging-bucket gs://BUCKET")
    if not args.dry_run:
        places = [(profile, client.init(settings)) for profile, settings in places]
        for _, settings in places:
            submit.preflight(settings)
    orders = plan_and_compile(args, places, parameters, folder)
    if args.dry_run:
        return show.show_dry_run(orders, parameters)
    parameters = with_uploads(orders[0], parameters)
    orders = [dataclasses.replace(order, parameters=parameters) for order in orders]
    while True:
        job, order = submit.submit_first(orders)
        show.print_submitted(job, order)
        if not args.wait:
            show.print_come_back(job.name, order.settings)
            return 0
        code, last = show.wait_for(job, order.settings)
        orders = orders[orders.index(order) + 1 :]
        if code != 1 or not orders or not show.failed_for_capacity(last):
            return code
        print(f"next       {orders[0].settings.location}/{orders[0].profile}")


def pairs(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The places in order: (region, profile), the fallback's after the first.

    Raises:
        UserError: ``USAGE``, ``PROFILE_UNKNOWN``.
    """
    from pipestill.pipelines.hardware import PROFILES, find_profile

    name = args.profile or file_facts(args.pipeline)[1]
    if not name:
        raise UserError("USAGE", f"--profile: none given, allowed: {', '.join(PROFILES)}")
    region = args.region or find_profile(name).location or DEFAULT_REGION
    found = [(region, name)]
    for text in filter(None, (part.strip() for part in args.fallback.split(","))):
        other, slash, profile = text.partition("/")
        if not slash:
            raise UserError("USAGE", f"--fallback: found {text!r}, allowed: REGION/PROFILE,…")
        found.append((other, find_profile(profile).name))
    if args.fallback and is_file(args.pipeline):
        raise UserError("USAGE", "--fallback compiles for each place: name the pipeline, no file")
    return found


def cloud_settings(args: argparse.Namespace, region: str) -> Settings:
    """The options as the client's settings."""
    from pipestill.cloud.checks import read_labels
    from pipestill.cloud.client import Settings

    return Settings(
        project=args.project,
        location=region,
        staging_bucket=args.staging_bucket,
        service_account=args.service_account,
        network=args.network,
        encryption_spec_key_name=args.encryption_key,
        labels=read_labels(args.labels),
        experiment=args.experiment,
    )


def read_parameters(args: argparse.Namespace, profile: str, folder: Path) -> dict[str, Any]:
    """File and ``--set`` as typed parameters, checked as `pipestill run` checks them.

    Raises:
        UserError: ``CONFIG_…``, ``RUN_PARAMETER``, ``SUBMIT_…``, ``MODEL_TOO_BIG``.
    """
    from pipestill.claims.settings import check_settings
    from pipestill.cli import settings
    from pipestill.cloud.parameters import check_parameters, definitions, read_template
    from pipestill.pipelines.hardware import find_profile

    spec = read_template(template_for(args, profile, "", folder))
    defined = definitions(spec)
    kinds = {name: settings.TYPES[item["parameterType"]] for name, item in defined.items()}
    parameters = settings.load(args.config, args.assignments, kinds)
    check_parameters(spec, parameters, profile)
    refuse_too_big(parameters, defined, find_profile(profile).name)
    check_settings(pipeline_name(args.pipeline), parameters)
    if parameters.get("tensorboard_resource_id") and not args.service_account:
        raise UserError(
            "SUBMIT_TENSORBOARD",
            "tensorboard_resource_id: a job that writes to a TensorBoard needs an account",
            "give --service-account",
        )
    return parameters


def refuse_too_big(parameters: Mapping[str, Any], defined: Mapping[str, Any], profile: str) -> None:
    """Refuses models of the catalogue that the profile has no memory for."""
    from pipestill.models.catalogue import check_fits, find

    def value(name: str) -> str:
        return str(parameters.get(name, defined.get(name, {}).get("defaultValue", "")))

    asked = [("student_model_reference", "dss")]
    if value("teacher_backend") in ("", "transformers"):
        asked.append(("teacher_model_reference", "inference"))
    for name, method in asked:
        if find(value(name)):
            check_fits(value(name), method, profile)


def plan_and_compile(
    args: argparse.Namespace,
    places: list[tuple[str, Settings]],
    parameters: dict[str, Any],
    folder: Path,
) -> list[Order]:
    """An order per place; one that the plan finds without quota is left out while others remain."""
    from pipestill.cloud.refusals import is_capacity

    orders: list[Order] = []
    for number, (profile, settings) in enumerate(places):
        try:
            orders.append(order_for(args, profile, settings, parameters, folder))
        except UserError as error:
            if not is_capacity(error) or (number + 1 == len(places) and not orders):
                raise
            print(f"left out   {settings.location}/{profile}: {error.message}")
    return orders


def order_for(
    args: argparse.Namespace,
    profile: str,
    settings: Settings,
    parameters: dict[str, Any],
    folder: Path,
) -> Order:
    """The order of one place: compiled, checked, planned, and compiled with the plan's limit."""
    from pipestill.cloud import submit
    from pipestill.cloud.parameters import check_parameters, read_template

    template = template_for(args, profile, settings.location, folder, parameters=parameters)
    spec = read_template(template)
    check_parameters(spec, parameters, profile)
    if not args.no_plan:
        limit = submit.plan_before(spec, profile, parameters, settings, max_cost=args.max_cost)
        if limit:
            template = template_for(args, profile, settings.location, folder, limit, parameters)
    return submit.Order(
        pipeline=pipeline_name(args.pipeline),
        profile=profile,
        template=template,
        settings=settings,
        display_name=args.display_name,
        cache=not args.no_cache,
    )


def with_uploads(order: Order, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as the job gets them, wherever it runs; contents go up once."""
    from pipestill.cloud.client import explained
    from pipestill.cloud.parameters import platform_parameters, read_template

    spec = read_template(order.template)
    with explained(order.settings, "upload the data"):
        return platform_parameters(order.pipeline, parameters, spec, order.settings)


def come_back(args: argparse.Namespace) -> int:
    """``--watch JOB`` and ``--resume JOB``."""
    from pipestill.cloud import submit
    from pipestill.cloud.resume import resume

    if args.pipeline or args.config or args.assignments or args.kfp_endpoint:
        raise UserError(
            "USAGE",
            "--resume and --watch take a job's own pipeline and parameters",
            "leave out PIPELINE, -c, --set and --kfp-endpoint",
        )
    region = args.region or DEFAULT_REGION
    job, settings = submit.find_job(args.resume or args.watch, cloud_settings(args, region))
    if args.resume:
        job = resume(job, settings)
        print(f"submitted  {job.name}")
        print(f"console    {submit.console_link(job, settings)}", flush=True)
    if args.resume and not args.wait:
        show.print_come_back(job.name, settings)
        return 0
    return show.wait_for(job, settings)[0]
