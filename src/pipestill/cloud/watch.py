"""A running job as a table: each step's name, state, start and duration, until the job ends."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import quote

from pipestill.errors import PipestillError

POLL_S = 15.0
PATIENCE = 40  # looks in a row without an answer before we stop looking (the job goes on)
# Errors of a look after which the next may succeed; the second is the limit of looks a minute.
PASSING = ("CLOUD_UNREACHABLE", "CLOUD_QUOTA", "KFP_UNREACHABLE")
WORDS = {
    "PENDING": "waiting", "RUNNING": "running", "SUCCEEDED": "done", "SKIPPED": "cached",
    "FAILED": "FAILED", "CANCELLED": "cancelled", "CANCELLING": "cancelling",
    "CANCEL_PENDING": "cancelling", "NOT_TRIGGERED": "not run", "STATE_UNSPECIFIED": "waiting",
}  # fmt: skip
FINISHED = ("SUCCEEDED", "FAILED", "CANCELLED", "PAUSED", "SKIPPED", "ERROR")


@dataclass(frozen=True)
class Row:
    """One step; times in seconds since 1970, 0 = not yet."""

    key: str
    name: str
    state: str  # a value of WORDS
    began: float = 0.0
    ended: float = 0.0
    error: str = ""
    log: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A job at one moment. `state` is SUCCEEDED, FAILED, RUNNING …"""

    state: str
    rows: tuple[Row, ...]
    error: str = ""

    @property
    def done(self) -> bool:
        """Whether the job has ended."""
        return self.state in FINISHED


def follow(
    look: Callable[[], Snapshot], *, poll_s: float = POLL_S, out: TextIO | None = None
) -> Snapshot:
    """Shows the job until it ends: a table that is redrawn on a terminal, else a line per change.

    Args:
        look: fetches the job's present state.
        poll_s: seconds between two looks.
        out: where to write; default: standard output.

    Returns:
        The last look.

    Raises:
        PipestillError: where the platform does not answer for long; the job goes on.
        KeyboardInterrupt: passed on; the job goes on.
    """
    screen = out or sys.stdout
    shown: tuple[Row, ...] = ()
    silent = 0
    while True:
        try:
            now = look()
            silent = 0
        except PipestillError as error:
            silent += 1
            if silent >= PATIENCE or error.code not in PASSING:
                raise
            time.sleep(poll_s)
            continue
        if screen.isatty():
            redraw(screen, now, len(shown))
        else:
            for line in changes(shown, now.rows):
                print(line, file=screen, flush=True)
        shown = now.rows
        if now.done:
            return now
        time.sleep(poll_s)


def redraw(screen: TextIO, now: Snapshot, before: int) -> None:
    """Writes the table over the last one."""
    up = f"\x1b[{before + 2}F\x1b[J" if before else ""
    lines = [f"{'step':44}  {'state':9}  {'start':8}  duration"]
    lines += [format_row(row) for row in now.rows]
    print(up + "\n".join([*lines, f"job: {now.state.lower()}"]), file=screen, flush=True)


def format_row(row: Row) -> str:
    """One line of the table."""
    began = clock(row.began) if row.began else ""
    lasted = duration((row.ended or time.time()) - row.began) if row.began else ""
    return f"{row.name[:44]:44}  {row.state:9}  {began:8}  {lasted}".rstrip()


def changes(before: tuple[Row, ...], after: tuple[Row, ...]) -> list[str]:
    """A line for each step that started, ended or was found in the cache."""
    known = {row.key: row.state for row in before}
    lines = []
    for row in after:
        if row.state != known.get(row.key, "waiting"):
            took = f" in {duration(row.ended - row.began)}" if row.ended and row.began else ""
            shown = took if row.state in ("done", "FAILED") else ""
            lines.append(f"{clock(row.ended or row.began)}  {row.name}: {row.state}{shown}")
    return lines


def clock(seconds: float) -> str:
    """Local time of day."""
    return datetime.fromtimestamp(seconds or time.time(), UTC).astimezone().strftime("%H:%M:%S")


def duration(seconds: float) -> str:
    """``75`` → ``1m15s``."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def closing(now: Snapshot) -> list[str]:
    """What to say at the end: each failed step with its error and where its log is."""
    lines = []
    for row in now.rows:
        if row.state == "FAILED":
            lines.append(
                f"failed step {row.name}: {' '.join(row.error.split()) or 'no error text'}"
            )
            lines += [f"its log: {row.log}"] if row.log else []
    if now.state != "SUCCEEDED" and not lines:
        lines.append(f"the job ended as {now.state.lower()}: {' '.join(now.error.split())}")
    return lines


def vertex_snapshot(resource: Any) -> Snapshot:
    """A pipeline job's resource (`aiplatform_v1.PipelineJob`) as a snapshot.

    Only steps that run something are rows: loops, conditions and the job itself are left out. A
    step inside of a loop is shown with the loop's name.
    """
    details = list(resource.job_detail.task_details)
    by_id = {task.task_id: task for task in details}
    parents = {task.parent_task_id for task in details}
    fields = resource.name.split("/")
    rows = tuple(
        _row(task, by_id, fields[1], fields[3]) for task in details if task.task_id not in parents
    )
    state = resource.state.name.removeprefix("PIPELINE_STATE_")
    return Snapshot(state, rows, resource.error.message)


def _row(task: Any, by_id: dict[int, Any], project: str, location: str) -> Row:
    above = by_id.get(task.parent_task_id)
    nested = above is not None and above.parent_task_id in by_id
    name = f"{above.task_name} / {task.task_name}" if nested and above else task.task_name
    return Row(
        key=str(task.task_id),
        name=name,
        state=WORDS.get(task.state.name, task.state.name.lower()),
        began=task.start_time.timestamp() if task.start_time else 0.0,
        ended=task.end_time.timestamp() if task.end_time else 0.0,
        error=task.error.message,
        log=log_link(task, project, location),
    )


def log_link(task: Any, project: str, location: str) -> str:
    """The console's page of the step's log: of the CustomJob it started, else of its own job."""
    resources = [task.executor_detail.container_detail.main_job]
    with_output = task.execution.metadata if "execution" in task else {}
    launched = dict(with_output or {}).get("output:gcp_resources")
    if isinstance(launched, str) and launched:
        try:
            found = json.loads(launched).get("resources", [])
            resources = [str(item.get("resourceUri", "")) for item in found] + resources
        except (ValueError, AttributeError):  # the text is the launcher's, not ours
            pass
    for resource in resources:
        if "/customJobs/" in resource:
            number = resource.rpartition("/")[2]
            query = quote(f'resource.labels.job_id="{number}"', safe="")
            return f"https://console.cloud.google.com/logs/query;query={query}?project={project}"
    return ""
