"""Recurring runs on an open-source Kubeflow Pipelines server, through kfp's own client."""

from collections.abc import Sequence
from typing import Any

from pipestill.cloud import kfp_server
from pipestill.cloud.kfp_server import Run, explained
from pipestill.cloud.schedule import Listed, Timetable
from pipestill.errors import UserError
from pipestill.retrain.cron import Cron

SCHEDULED = "[[ScheduledTime]]"  # the server writes the tick's time in its place, in UTC
EXPERIMENT = "Default"


def create(run: Run, timetable: Timetable) -> Any:
    """Creates the recurring run, enabled and without catch-up.

    Raises:
        UserError: what `Timetable.parsed` and `kfp_server.check` find, ``SCHEDULE_ZONE``,
            ``SCHEDULE_EXISTS``, ``KFP_REFUSED``.
        WorkError: ``KFP_UNREACHABLE``.
    """
    cron = timetable.parsed()
    if timetable.time_zone not in ("UTC", "Etc/UTC"):
        raise UserError(
            "SCHEDULE_ZONE",
            f"time zone: found {timetable.time_zone}, allowed on a Kubeflow server: UTC (its own "
            "zone is set by CRON_SCHEDULE_TIMEZONE and cannot be read)",
            "write the cron expression in UTC",
        )
    kfp_server.check(run)
    name = timetable.name or run.name
    for found in listed(run.endpoint, run.token):
        if found.name == name:
            raise UserError(
                "SCHEDULE_EXISTS",
                f"recurring run {name} exists ({found.id}, {found.state})",
                f"pipestill schedule delete {found.id} --kfp-endpoint {run.endpoint}",
            )
    with explained(run.endpoint):
        client = kfp_server.connect(run.endpoint, run.token)
        experiment = client.create_experiment(run.experiment or EXPERIMENT)
        return client.create_recurring_run(
            experiment_id=experiment.experiment_id,
            job_name=name,
            start_time=timetable.start or None,
            end_time=timetable.end or None,
            cron_expression=with_seconds(cron),
            max_concurrency=timetable.at_once,
            no_catchup=True,
            params=dict(run.parameters),
            pipeline_package_path=str(run.template),
            pipeline_root=run.pipeline_root or None,
            enable_caching=None if run.cache else False,
            service_account=run.service_account or None,
        )


def with_seconds(cron: Cron) -> str:
    """Six fields, seconds first, as the server's parser wants them; Sunday is 0 there, never 7."""
    *head, week = cron.text.split()
    if any(letter == "7" for letter in week):
        week = ",".join(str(day) for day in sorted(cron.weekdays))
    return " ".join(["0", *head, week])


def listed(endpoint: str, token: str = "") -> Sequence[Listed]:
    """All recurring runs that we may see."""
    with explained(endpoint):
        client = kfp_server.connect(endpoint, token)
        found: list[Any] = []
        page = ""
        while True:
            answer = client.list_recurring_runs(page_token=page, page_size=100)
            found += answer.recurring_runs or []
            page = answer.next_page_token or ""
            if not page:
                break
    return [
        Listed(
            name=str(item.display_name),
            id=str(item.recurring_run_id),
            state={"ENABLED": "active", "DISABLED": "paused"}.get(str(item.status), "unknown"),
            cron=str(item.trigger.cron_schedule.cron if item.trigger.cron_schedule else ""),
            next_run="",
        )
        for item in found
    ]


def change(endpoint: str, token: str, name: str, what: str) -> Listed:
    """Pauses, resumes or deletes the recurring run of an id or a name.

    The server itself makes up for missed runs only where the recurring run was created to.

    Raises:
        UserError: ``SCHEDULE_NOT_FOUND``, ``SCHEDULE_AMBIGUOUS``, ``KFP_REFUSED``.
    """
    known = listed(endpoint, token)
    fitting = [item for item in known if name in (item.id, item.name)]
    if len(fitting) != 1:
        code = "SCHEDULE_AMBIGUOUS" if fitting else "SCHEDULE_NOT_FOUND"
        names = ", ".join(f"{item.name} ({item.id})" for item in known) or "none"
        raise UserError(code, f"recurring run {name}: {len(fitting)} found; there are: {names}")
    calls = {
        "pause": "disable_recurring_run",
        "resume": "enable_recurring_run",
        "delete": "delete_recurring_run",
    }
    with explained(endpoint):
        client = kfp_server.connect(endpoint, token)
        getattr(client, calls[what])(fitting[0].id)
    return fitting[0]
