"""Which steps an earlier run has finished, so that a new one will skip them."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.cloud.pipeline_steps import Step, read_steps
from pipestill.errors import UserError

DIGEST = "data_digest"
EVERY_TIME = (DIGEST, "check_accelerator")
CONTENT_INPUTS = ("_model_reference", "_prompt")  # local ones count by what they hold
OWN_FOLDERS = ("state_dir", "deploy_dir")  # the run fills these in itself


def finished_steps(
    spec: Mapping[str, Any], parameters: Mapping[str, Any], folder: Path
) -> dict[str, bool]:
    """Step name → whether the earlier run in `folder` left its result in the cache.

    A step is finished where the earlier run ended, data and code have the digest that it had then,
    its own arguments are the same and all steps before it are finished. Nothing is known (an empty
    answer) where there was no run or it did not end.
    """
    try:
        config = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["config"]
        inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        before = read_steps(spec, {name: config[name] for name in config if name in inputs})
    except (OSError, ValueError, KeyError, UserError):
        return {}
    now = read_steps(spec, parameters)
    same_data = _digest_then(folder) == _digest_now(now)
    ended = (folder / "summary.json").stat().st_mtime
    old = {step.name: _arguments(step) for step in before}
    found: dict[str, bool] = {}
    for step in now:
        known = same_data and old.get(step.name) == _arguments(step)
        known = known and not _changed_since(step, ended)
        found[step.name] = step.cached and known and _all_found(step, found)
    return found


def finished_in_job(
    spec: Mapping[str, Any], parameters: Mapping[str, Any], resource: Any
) -> dict[str, bool]:
    """Step name → whether a job on the platform has finished it with the same arguments.

    Supposed is that data and code are those of then: the job knows them by a digest that only its
    own first step can make. Addresses and folders are therefore not compared.

    Args:
        spec: the pipeline's definition.
        parameters: of the new run.
        resource: the job, an `aiplatform_v1.PipelineJob`.
    """
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    given = dict(resource.runtime_config.parameter_values)
    before = read_steps(spec, {name: _plain(given[name]) for name in given if name in inputs})
    old = {step.name: _compared(step) for step in before}
    sizes = Counter(_task(step.name) for step in before)
    ended = Counter(
        re.sub(r"-\d+$", "", task.task_name) if task.task_name not in sizes else task.task_name
        for task in resource.job_detail.task_details
        if task.state.name in ("SUCCEEDED", "SKIPPED")
    )
    found: dict[str, bool] = {}
    for step in read_steps(spec, parameters):
        task = _task(step.name)
        known = ended[task] >= sizes[task] > 0 and old.get(step.name) == _compared(step)
        found[step.name] = step.cached and known and _all_found(step, found)
    return found


def _task(name: str) -> str:
    """``student-train/2`` → student-train."""
    return name.partition("/")[0]


def _plain(value: Any) -> Any:
    """A value out of a job's message: lists of its own kind become lists."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    return [_plain(item) for item in value]


def _compared(step: Step) -> dict[str, Any]:
    return {name: value for name, value in _arguments(step).items() if not name.endswith("_uri")}


def _arguments(step: Step) -> dict[str, Any]:
    return {name: value for name, value in step.arguments.items() if name not in OWN_FOLDERS}


def _changed_since(step: Step, moment: float) -> bool:
    """Whether a local model folder or prompt file that the step takes is newer than `moment`."""
    for name, value in step.arguments.items():
        if name.endswith(CONTENT_INPUTS) and isinstance(value, str) and value:
            path = Path(value)
            files = path.rglob("*") if path.is_dir() else [path]
            if any(item.is_file() and item.stat().st_mtime > moment for item in files):
                return True
    return False


def _all_found(step: Step, found: Mapping[str, bool]) -> bool:
    """Whether all steps before it are finished; checks that run every time leave no trace."""
    return all(found.get(name, False) or _component(name) in EVERY_TIME for name in step.needs)


def _component(name: str) -> str:
    return _task(name).replace("-", "_")


def _digest_then(folder: Path) -> str | None:
    """What the newest run's `data_digest` gave out."""
    outputs = sorted((folder / "artifacts").glob("*/data-digest/executor_output.json"))
    try:
        value = json.loads(outputs[-1].read_text(encoding="utf-8"))
        return str(value["parameterValues"]["Output"])
    except (IndexError, OSError, ValueError, KeyError):
        return None


def _digest_now(steps: Sequence[Step]) -> str:
    from pipestill.data.digest import run_digest

    step = next((step for step in steps if step.component == DIGEST), None)
    uris = {name: str(value) for name, value in step.arguments.items()} if step else {}
    try:
        return run_digest(**uris)
    except UserError:
        return ""
