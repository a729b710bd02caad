"""A failed job goes on: the same template and parameters again, so that finished steps are hits."""

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipestill.cloud.checks import check_labels, label_value
from pipestill.cloud.client import Settings, explained
from pipestill.cloud.parameters import Say, write_template
from pipestill.cloud.submit import create, job_id
from pipestill.cloud.watch import vertex_snapshot
from pipestill.errors import UserError

RUNNING = ("QUEUED", "PENDING", "RUNNING", "CANCELLING")


def resume(job: Any, settings: Settings, say: Say = print) -> Any:
    """Creates a job like `job`, and says which steps will be found in the cache and which run.

    Template, parameters, artifacts' folder, labels, account, network and key are the old job's.

    Args:
        job: the `aiplatform.PipelineJob` that failed or was cancelled.
        settings: of `job`, initialised.
        say: prints a line.

    Returns:
        The new `aiplatform.PipelineJob`.

    Raises:
        UserError: ``SUBMIT_RESUME`` where there is nothing to resume, ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    old = job.gca_resource
    state = vertex_snapshot(old).state
    if state in RUNNING or state == "SUCCEEDED":
        raise UserError(
            "SUBMIT_RESUME",
            f"job {job.name} is {state.lower()}: there is nothing to resume",
            f"pipestill submit --watch {job.name}" if state in RUNNING else "submit it anew",
        )
    facts = job.to_dict()
    spec, runtime = facts["pipelineSpec"], facts.get("runtimeConfig", {})
    skipped, runs = forecast(old, spec)
    say(f"skipped    {', '.join(skipped) or 'nothing'} (finished and cached)")
    say(f"runs       {', '.join(runs) or 'what comes after'}")
    settings = dataclasses.replace(
        settings,
        service_account=settings.service_account or old.service_account,
        network=settings.network or old.network,
        encryption_spec_key_name=old.encryption_spec.kms_key_name,
    )
    pipeline = spec["pipelineInfo"]["name"]
    labels = dict(old.labels) | dict(settings.labels)
    labels["pipestill-resumed-from"] = label_value(job.name)
    check_labels(labels)
    with tempfile.TemporaryDirectory() as folder, explained(settings, f"resume {job.name}"):
        template = write_template(whole_numbers(spec), Path(folder) / "pipeline.yaml")
        new = aiplatform.PipelineJob(
            display_name=old.display_name,
            template_path=str(template),
            job_id=job_id(pipeline),
            pipeline_root=runtime["gcsOutputDirectory"],
            parameter_values=typed(runtime.get("parameterValues", {})),
            encryption_spec_key_name=settings.encryption_spec_key_name or None,
            labels=labels,
            credentials=settings.credentials,
            project=settings.project,
            location=settings.location,
        )
        create(new, settings)
    return new


def forecast(old: Any, spec: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the steps that will be found in the cache, and of those that run (again)."""
    cached = caching(spec)
    skipped, runs = [], []
    for row in vertex_snapshot(old).rows:
        name = row.name.rpartition(" / ")[2]
        hit = cached.get(name, cached.get(re.sub(r"-\d+$", "", name), False))
        finished = row.state in ("done", "cached")
        if finished and hit:
            skipped.append(row.name)
        elif row.state != "not run":
            runs.append(row.name)
    return skipped, runs


def caching(spec: Mapping[str, Any]) -> dict[str, bool]:
    """Task → whether the template lets it be found in the cache."""
    return {
        name: bool(task.get("cachingOptions", {}).get("enableCache"))
        for component in (spec["root"], *spec["components"].values())
        for name, task in component.get("dag", {}).get("tasks", {}).items()
    }


def whole_numbers(value: Any) -> Any:
    """A spec read back from the platform, whose whole numbers came back as 3.0."""
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def typed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The old job's parameters, whole numbers as such (in a job's request both are the same)."""
    return {name: whole_numbers(value) for name, value in parameters.items()}
