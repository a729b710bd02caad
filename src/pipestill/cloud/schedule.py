"""A compiled pipeline on a calendar: schedules of Vertex AI through the real client.

What the high-level client drops is put back here: a schedule gets the service account and network
of its own (it does not inherit those of a submitted job), its labels and location are compared with
what the platform answers, and a paused schedule is resumed by a request that says in so many words
whether missed runs are made up for (the client's own `resume` promises it and sends nothing).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipestill.cloud import client
from pipestill.cloud.checks import own_labels
from pipestill.cloud.client import Settings, explained
from pipestill.cloud.submit import Order, bucket_is_checked, job_id
from pipestill.errors import UserError, WorkError
from pipestill.retrain.cron import Cron, parse

SCHEDULED = "scheduled"  # `tick_time` of a run that shall take the scheduler's own time
LIVING = ("dataset_uri", "retrain_dir")  # read anew or written by every run: never a copy
STATES = {"ACTIVE": "active", "PAUSED": "paused", "COMPLETED": "completed"}


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """When runs start. Nothing is made up for, and one run is at work at a time."""

    cron: str
    time_zone: str = "UTC"
    name: str = ""
    start: str = ""  # RFC 3339; empty = now
    end: str = ""
    max_runs: int = 0  # 0 = no limit
    at_once: int = 1
    queue: bool = False  # whether runs wait where one is still at work

    def parsed(self) -> Cron:
        """The expression in its zone.

        Raises:
            UserError: ``CRON_SYNTAX``, ``TIME_ZONE``, ``CRON_NEVER``, ``SCHEDULE_SETTING``.
        """
        from datetime import UTC, datetime

        from pipestill.retrain.window import parse_time

        for name, text in (("--start", self.start), ("--end", self.end)):
            if text:
                try:
                    parse_time(text)
                except UserError as error:
                    raise UserError(
                        "SCHEDULE_SETTING", f"{name}: found {text!r}, allowed: 2026-01-05T03:00:00Z"
                    ) from error
        if self.max_runs < 0 or self.at_once < 1:
            raise UserError(
                "SCHEDULE_SETTING", "--max-runs: 0 (no limit) or more; --at-once: 1 or more"
            )
        found = parse(self.cron, self.time_zone)
        next(found.after(datetime.now(UTC)))
        return found


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A schedule as a person sees it."""

    name: str
    id: str
    state: str
    cron: str
    next_run: str
    pipeline: str = ""
    started: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


def create(order: Order, timetable: Timetable) -> Any:
    """Creates the schedule and returns the `aiplatform.PipelineJobSchedule`.

    Raises:
        UserError: what `Timetable.parsed` finds, ``SCHEDULE_EXISTS``, ``CLOUD_…``.
        WorkError: ``SCHEDULE_LOST`` where the platform did not keep what was asked; the schedule
            is deleted again.
    """
    from google.cloud import aiplatform

    timetable.parsed()
    settings = client.init(order.settings)
    name = timetable.name or order.display_name or order.pipeline
    refuse_second(name, settings)
    labels = own_labels(order.pipeline, order.profile) | dict(settings.labels)
    with explained(settings, f"schedule {order.pipeline}"), bucket_is_checked():
        job = aiplatform.PipelineJob(
            display_name=order.display_name or order.pipeline,
            template_path=str(order.template),
            job_id=job_id(order.pipeline),
            pipeline_root=settings.pipeline_root,
            parameter_values=dict(order.parameters),
            enable_caching=None if order.cache else False,
            encryption_spec_key_name=settings.encryption_spec_key_name or None,
            labels=labels,
            credentials=settings.credentials,
            project=settings.project,
            location=settings.location,
        )
        made = job.create_schedule(
            cron=f"TZ={timetable.time_zone} {timetable.cron}",
            display_name=name,
            start_time=timetable.start or None,
            end_time=timetable.end or None,
            allow_queueing=timetable.queue,
            max_run_count=timetable.max_runs or None,
            max_concurrent_run_count=timetable.at_once,
            service_account=settings.service_account or None,
            network=settings.network or None,
        )
        _compare(made, labels, settings)
    return made


def _compare(made: Any, labels: Mapping[str, str], settings: Settings) -> None:
    """Deletes a schedule whose runs would lack what was asked for."""
    asked = made.gca_resource.create_pipeline_job_request
    kept = asked.pipeline_job
    wanted = {
        "location": (asked.parent, settings.parent),
        "labels": (dict(kept.labels), labels),
        "service account": (kept.service_account, settings.service_account),
        "network": (kept.network, settings.network),
        "encryption key": (kept.encryption_spec.kms_key_name, settings.encryption_spec_key_name),
    }
    lost = [name for name, (found, want) in wanted.items() if want and found != want]
    if lost:
        made.delete()
        raise WorkError(
            "SCHEDULE_LOST",
            f"the platform did not keep {', '.join(lost)} for the runs of {made.display_name}; the "
            "schedule was deleted again",
        )


def refuse_second(name: str, settings: Settings) -> None:
    """Refuses a second schedule of one name: each tick would run twice.

    Raises:
        UserError: ``SCHEDULE_EXISTS``.
    """
    for found in schedules(settings):
        if found.name == name and found.state != "completed":
            raise UserError(
                "SCHEDULE_EXISTS",
                f"schedule {name} exists in {settings.location} ({found.id}, {found.state})",
                f"pipestill schedule delete {found.id}, or choose another --name",
            )


def schedules(settings: Settings) -> Sequence[Listed]:
    """All schedules of the region.

    Raises:
        UserError: ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    settings = client.init(settings)
    with explained(settings, "list the schedules"):
        return [listed(item.gca_resource) for item in aiplatform.PipelineJobSchedule.list()]


def listed(schedule: Any) -> Listed:
    """A message of the platform as a person sees it."""
    job = schedule.create_pipeline_job_request.pipeline_job
    following = schedule.next_run_time
    return Listed(
        name=schedule.display_name,
        id=schedule.name.rpartition("/")[2],
        state=STATES.get(schedule.state.name, schedule.state.name.lower()),
        cron=schedule.cron,
        next_run=following.strftime("%Y-%m-%dT%H:%M:%SZ") if following else "",
        pipeline=job.labels.get("pipeline", ""),
        started=int(schedule.started_run_count),
        labels=dict(job.labels),
    )


def find(name: str, settings: Settings) -> Any:
    """A schedule by resource name, id or display name.

    Raises:
        UserError: ``SCHEDULE_NOT_FOUND``, ``SCHEDULE_AMBIGUOUS``, ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    settings = client.init(settings)
    full = re.fullmatch(r"projects/[^/]+/locations/[^/]+/schedules/[^/]+", name)
    with explained(settings, f"look for schedule {name}"):
        if full:
            return aiplatform.PipelineJobSchedule.get(name)
        known = aiplatform.PipelineJobSchedule.list()
    fitting = [
        item for item in known if name in (item.display_name, item.resource_name.rpartition("/")[2])
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        ids = ", ".join(item.resource_name.rpartition("/")[2] for item in fitting)
        raise UserError(
            "SCHEDULE_AMBIGUOUS", f"{len(fitting)} schedules are named {name}", f"give an id: {ids}"
        )
    names = ", ".join(item.display_name for item in known) or "none"
    raise UserError(
        "SCHEDULE_NOT_FOUND",
        f"schedule {name}: not in project {settings.project}, {settings.location}; there are: "
        f"{names}",
        "pipestill schedule list",
    )


def pause(name: str, settings: Settings) -> Listed:
    """No further runs; one that is at work goes on."""
    found = find(name, settings)
    with explained(settings, f"pause schedule {name}"):
        found.pause()
        _ = found.state
        return listed(found.gca_resource)


def resume(name: str, settings: Settings, *, catch_up: bool = False) -> Listed:
    """Runs again from the next tick on; missed ones only with `catch_up`."""
    found = find(name, settings)
    with explained(settings, f"resume schedule {name}"):
        request = {"name": found.resource_name, "catch_up": catch_up}
        found.api_client.resume_schedule(request=request)
        _ = found.state
        return listed(found.gca_resource)


def delete(name: str, settings: Settings) -> str:
    """Deletes the schedule; the jobs that it started stay. Returns its resource name."""
    found = find(name, settings)
    resource = str(found.resource_name)
    with explained(settings, f"delete schedule {name}"):
        found.delete()
    return resource


def with_tick(
    parameters: Mapping[str, Any], defined: Mapping[str, Any], timetable: Timetable, time: str
) -> dict[str, Any]:
    """The parameters of every run: a pipeline that knows ticks gets the timetable and its time.

    Args:
        parameters: as the user gave them.
        defined: the template's.
        timetable: when runs start.
        time: what stands for the tick's own time.

    Raises:
        UserError: ``SCHEDULE_PARAMETER`` where they contradict the timetable, ``SCHEDULE_LOCAL``.
    """
    made = dict(parameters)
    own = {"tick_time": time, "cron": timetable.cron, "time_zone": timetable.time_zone}
    for name, value in own.items():
        if name in made and made[name] != value:
            raise UserError(
                "SCHEDULE_PARAMETER",
                f"{name}: found {made[name]!r}, the schedule sets it to {value!r}",
                "leave it out",
            )
        if name in defined:
            made[name] = value
    for name in LIVING if "tick_time" in defined else ():
        value = str(made.get(name, ""))
        if not value.startswith(("gs://", "/gcs/")):
            raise UserError(
                "SCHEDULE_LOCAL",
                f"{name}: found {value!r}, but every run looks there anew",
                "give gs://BUCKET/FOLDER",
            )
    return made


def console_link(schedule: Any, settings: Settings) -> str:
    """The console's page of the schedule."""
    return (
        f"https://console.cloud.google.com/vertex-ai/locations/{settings.location}/pipelines/"
        f"schedules/{schedule.resource_name.rpartition('/')[2]}?project={settings.project}"
    )
