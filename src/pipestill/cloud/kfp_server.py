"""The same templates on an open-source Kubeflow Pipelines server, through kfp's own client."""

import contextlib
import io
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.cloud.parameters import has_machine_types, is_local_file
from pipestill.cloud.watch import WORDS, Row, Snapshot
from pipestill.errors import PipestillError, UserError, WorkError

ENDPOINT = re.compile(r"https?://[^\s/]+(/\S*)?")
HEALTH = "/apis/v2beta1/healthz"
TOKEN_ENV = "KFP_TOKEN"  # noqa: S105 (the variable's name)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to run there. `token` is a bearer token, empty = none."""

    endpoint: str
    template: Path
    spec: Mapping[str, Any]
    profile: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    name: str = "pipestill"
    experiment: str = ""
    pipeline_root: str = ""
    service_account: str = ""
    cache: bool = True
    token: str = field(default="", repr=False)


def check(run: Run) -> None:
    """Refuses what an open-source server cannot run.

    Raises:
        UserError: ``KFP_ENDPOINT``, ``KFP_PROFILE`` or ``KFP_LOCAL_DATA``.
    """
    if not ENDPOINT.fullmatch(run.endpoint):
        raise UserError(
            "KFP_ENDPOINT",
            f"--kfp-endpoint: found {run.endpoint!r}, allowed: http(s)://HOST[/PATH]",
        )
    if has_machine_types(run.spec):
        raise UserError(
            "KFP_PROFILE",
            f"profile {run.profile} starts Vertex CustomJobs on a machine type, which a Kubeflow "
            "Pipelines server does not have",
            "take --profile cpu-local there",
        )
    local = [name for name, value in run.parameters.items() if is_local_file(name, value)]
    if local:
        raise UserError(
            "KFP_LOCAL_DATA",
            f"{', '.join(local)}: found a local path, which the server's pods do not have",
            "give gs:// addresses, or --staging-bucket to have them uploaded",
        )


def submit(run: Run) -> tuple[Any, str]:
    """Creates the run; returns kfp's client and the run's id.

    Raises:
        UserError: what `check` finds, ``KFP_REFUSED`` (the server's words).
        WorkError: ``KFP_UNREACHABLE``.
    """
    check(run)
    with explained(run.endpoint):
        client = connect(run.endpoint, run.token)
        made = client.create_run_from_pipeline_package(
            str(run.template),
            arguments=dict(run.parameters),
            run_name=f"{run.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
            experiment_name=run.experiment or None,
            pipeline_root=run.pipeline_root or None,
            enable_caching=None if run.cache else False,
            service_account=run.service_account or None,
        )
    return client, str(made.run_id)


def connect(endpoint: str, token: str = "") -> Any:
    """kfp's client; its own way of finding out that nobody answers takes 25 seconds."""
    import kfp  # the one place of the library that does: a server is spoken to by its own client
    import requests  # type: ignore[import-untyped]

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = requests.get(f"{endpoint.rstrip('/')}{HEALTH}", headers=headers, timeout=30)
    if answer.status_code in (401, 403):
        raise UserError(
            "KFP_REFUSED",
            f"{endpoint} refused us ({answer.status_code})",
            f"set {TOKEN_ENV} to a bearer token",
        )
    return kfp.Client(host=endpoint, existing_token=token or None)


def look(client: Any, run_id: str, endpoint: str) -> Snapshot:
    """The run's present state."""
    with explained(endpoint):
        return snapshot(client.get_run(run_id))


def snapshot(run: Any) -> Snapshot:
    """A `kfp_server_api.V2beta1Run` as a snapshot; containers of other steps are left out."""
    details = list((run.run_details.task_details if run.run_details else None) or [])
    parents = {task.parent_task_id for task in details}
    rows = tuple(
        Row(
            key=str(task.task_id),
            name=str(task.display_name),
            state=WORDS.get(str(task.state), str(task.state).lower()),
            began=_seconds(task.start_time),
            ended=_seconds(task.end_time),
            error=task.error.message if task.error else "",
        )
        for task in details
        if task.task_id not in parents and not str(task.display_name).endswith("-driver")
    )
    return Snapshot(str(run.state or "PENDING"), rows, run.error.message if run.error else "")


def run_link(endpoint: str, run_id: str) -> str:
    """The server's page of the run."""
    return f"{endpoint.rstrip('/')}/#/runs/details/{run_id}"


@contextlib.contextmanager
def explained(endpoint: str) -> Iterator[None]:
    """kfp's errors as one line; what it prints itself is left out."""
    import kfp_server_api  # type: ignore[import-untyped]
    import requests
    import urllib3

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except PipestillError:
        raise
    except kfp_server_api.ApiException as error:
        raise _refused(endpoint, error) from error
    except (urllib3.exceptions.HTTPError, requests.RequestException, ConnectionError) as error:
        raise WorkError(
            "KFP_UNREACHABLE",
            f"{endpoint}: the server did not answer ({type(error).__name__})",
            "check the address; kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80",
        ) from error


def _refused(endpoint: str, error: Any) -> PipestillError:
    text = " ".join(str(error.body or error.reason or "").split())[:500]
    if int(error.status or 0) >= 500:
        return WorkError("KFP_UNREACHABLE", f"{endpoint}: {error.status}: {text}", "try again")
    hint = f"set {TOKEN_ENV} to a bearer token" if error.status in (401, 403) else ""
    return UserError("KFP_REFUSED", f"{endpoint} refused it ({error.status}): {text}", hint)


def _seconds(moment: Any) -> float:
    """0 where a time is not set; the server writes 1970 for that."""
    return max(0.0, float(moment.timestamp())) if moment else 0.0
