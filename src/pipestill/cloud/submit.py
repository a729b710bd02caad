"""A compiled pipeline on Vertex AI: checked parameters, data uploaded once, one job, its outcome.

Nothing is created before everything that can be checked has been: template, parameters, region,
labels, key, credentials, project, bucket. A refusal for quota or capacity goes on to the next
region of the fallback list.
"""

import contextlib
import dataclasses
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.cloud import client
from pipestill.cloud.checks import BUCKET, own_labels
from pipestill.cloud.client import Settings, explained
from pipestill.cloud.parameters import Say
from pipestill.cloud.refusals import is_capacity
from pipestill.cloud.watch import Snapshot, vertex_snapshot
from pipestill.errors import UserError

NEEDED = ("storage.objects.create", "storage.objects.get", "storage.objects.list")


@dataclass(frozen=True, kw_only=True)
class Order:
    """One job to create: what, for which profile, where, with what."""

    pipeline: str
    profile: str
    template: Path
    settings: Settings
    parameters: Mapping[str, Any] = field(default_factory=dict)
    display_name: str = ""
    cache: bool = True


def plan_before(
    spec: Mapping[str, Any],
    profile: str,
    parameters: Mapping[str, Any],
    settings: Settings,
    *,
    max_cost: float = 0.0,
    say: Say = print,
) -> str:
    """Plans the run and refuses one that cannot run, or that is likely to cost too much.

    Args:
        spec: the template.
        profile: its hardware profile's name.
        parameters: by name, local paths still local.
        settings: project and region, whose quota is read.
        max_cost: US dollars; 0 = no limit.
        say: prints the plan's sum.

    Returns:
        The time limit of the CustomJobs that keeps the run under `max_cost` (``"36000s"``), or "".

    Raises:
        UserError: ``PLAN_REFUSED`` with the reasons, ``PLAN_QUOTA`` where quota is the only one.
    """
    from pipestill.cloud.plan import plan

    found = plan(
        spec,
        parameters,
        profile,
        project=settings.project,
        region=settings.location,
        max_cost=max_cost,
        settings=settings,
    )
    place = f"{settings.location}/{profile}"
    if found.reasons:
        numbered = [f"{number}. {reason}" for number, reason in enumerate(found.reasons, 1)]
        short = all(reason.startswith("quota") for reason in found.reasons)
        raise UserError(
            "PLAN_QUOTA" if short else "PLAN_REFUSED",
            f"{place}: the run cannot start: {'; '.join(numbered)}",
            "pipestill plan shows the whole plan; --no-plan submits without one",
        )
    cost, hours = found.cost, found.hours
    say(
        f"plan       {place}: likely {hours.likely:.1f} h and {cost.likely:,.2f} USD "
        f"({cost.low:,.2f} to {cost.high:,.2f})"
    )
    return f"{found.timeout_s}s" if found.timeout_s else ""


def preflight(settings: Settings) -> None:
    """Credentials, project and bucket, asked for before anything is uploaded or created.

    Raises:
        UserError: ``CLOUD_…``, one line each.
        WorkError: ``CLOUD_UNREACHABLE``.
    """
    from google.cloud.aiplatform_v1 import PipelineServiceClient

    with explained(settings, "look at the project's pipeline jobs"):
        service = client.client_for(settings, PipelineServiceClient)
        service.list_pipeline_jobs({"parent": settings.parent, "page_size": 1})
    check_bucket(settings)


def check_bucket(settings: Settings) -> None:
    """Whether the staging bucket is there and we may read and write in it.

    Raises:
        UserError: ``CLOUD_BUCKET``.
    """
    from google.api_core.exceptions import Forbidden, NotFound

    found = BUCKET.fullmatch(settings.staging_bucket)
    if not found:
        raise UserError("CLOUD_BUCKET", "no staging bucket", "give --staging-bucket gs://BUCKET")
    name = found.group(1)
    with explained(settings, f"look at bucket gs://{name}"):
        try:
            bucket = client.storage_client(settings).bucket(name)
            granted = bucket.test_iam_permissions(NEEDED)
        except NotFound as error:
            raise UserError(
                "CLOUD_BUCKET",
                f"bucket gs://{name} does not exist",
                f"gcloud storage buckets create gs://{name} --project {settings.project} "
                f"--location {settings.location}",
            ) from error
        except Forbidden:
            granted = []
    lacking = [permission for permission in NEEDED if permission not in granted]
    if lacking:
        raise UserError(
            "CLOUD_BUCKET",
            f"bucket gs://{name}: you lack {', '.join(lacking)}",
            "ask for roles/storage.objectUser on it",
        )


def submit(order: Order) -> Any:
    """Creates the job and returns the `aiplatform.PipelineJob`.

    Raises:
        UserError: ``CLOUD_…``: the platform refused it.
    """
    from google.cloud import aiplatform

    settings = client.init(order.settings)
    with explained(settings, f"create a job of {order.pipeline}"):
        job = aiplatform.PipelineJob(
            display_name=order.display_name or order.pipeline,
            template_path=str(order.template),
            job_id=job_id(order.pipeline),
            pipeline_root=settings.pipeline_root,
            parameter_values=dict(order.parameters),
            enable_caching=None if order.cache else False,
            encryption_spec_key_name=settings.encryption_spec_key_name or None,
            labels=own_labels(order.pipeline, order.profile) | dict(settings.labels),
            credentials=settings.credentials,
            project=settings.project,
            location=settings.location,
        )
        create(job, settings)
    return job


def create(job: Any, settings: Settings) -> None:
    """`PipelineJob.submit`; where only the link to the experiment failed, the job still counts."""
    with bucket_is_checked():
        try:
            job.submit(
                service_account=settings.service_account or None,
                network=settings.network or None,
                experiment=settings.experiment or None,
            )
        except RuntimeError as error:  # the client's word for trouble with the experiment
            if not created(job):
                raise (error.__cause__ or error) from error
            print(f"warning    the job runs, but outside of experiment {settings.experiment}")


def created(job: Any) -> bool:
    """Whether the platform has the job."""
    try:
        return bool(job.resource_name)
    except RuntimeError:  # raised where it has no name yet
        return False


@contextlib.contextmanager
def bucket_is_checked() -> Iterator[None]:
    """Keeps the client from looking at the bucket again, and from creating a missing one.

    Its own look asks another service for the project's number, and prints a traceback where that
    is not allowed.
    """
    from google.cloud.aiplatform.utils import gcs_utils

    name = "create_gcs_bucket_for_pipeline_artifacts_if_it_does_not_exist"
    original = getattr(gcs_utils, name)
    setattr(gcs_utils, name, lambda **_: None)
    try:
        yield
    finally:
        setattr(gcs_utils, name, original)


def job_id(pipeline: str) -> str:
    """A job's id: name, time, and four digits that keep two jobs of one second apart."""
    name = re.sub(r"[^a-z0-9]+", "-", pipeline.lower()).strip("-")[:90]
    return f"{name}-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def submit_first(orders: Sequence[Order], say: Say = print) -> tuple[Any, Order]:
    """Creates the job by the first order that is not refused for quota or capacity.

    Raises:
        UserError: the last refusal; any other error at once.
    """
    for number, order in enumerate(orders):
        place = f"{order.settings.location}/{order.profile}"
        try:
            return submit(order), order
        except UserError as error:
            if not is_capacity(error) or number + 1 == len(orders):
                raise
            following = orders[number + 1]
            say(f"refused    {place}: {error.message}")
            say(f"next       {following.settings.location}/{following.profile}")
    raise UserError("USAGE", "no place to run", "give --profile")


def find_job(name: str, settings: Settings) -> tuple[Any, Settings]:
    """A job by id or by resource name (which brings its own project and region).

    Raises:
        UserError: ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    full = re.fullmatch(r"projects/([^/]+)/locations/([^/]+)/pipelineJobs/([^/]+)", name)
    if full:
        settings = dataclasses.replace(settings, project=full.group(1), location=full.group(2))
    settings = client.init(settings)
    with explained(settings, f"look at job {name}"):
        return aiplatform.PipelineJob.get(name), settings


def look(job: Any, settings: Settings) -> Snapshot:
    """The job's present state."""
    with explained(settings, "look at the job"):
        _ = job.state  # asks the platform
        return vertex_snapshot(job.gca_resource)


def console_link(job: Any, settings: Settings) -> str:
    """The console's page of the job."""
    return (
        f"https://console.cloud.google.com/vertex-ai/locations/{settings.location}/pipelines/runs/"
        f"{job.name}?project={settings.project}"
    )
