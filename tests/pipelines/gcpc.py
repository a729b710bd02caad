"""What Google's own wrapper makes of a component, as facts that can be compared with ours.

Run `python -m tests.pipelines.gcpc` in an environment that has google-cloud-pipeline-components
2.22 and this package to write `tests/golden/gcpc_custom_job.json` again.
"""

import json
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component
from pipestill.pipelines.custom_job import JobOptions, custom_job_spec
from pipestill.pipelines.hardware import PROFILES, Profile

GOLDEN = Path(__file__).parent.parent / "golden" / "gcpc_custom_job.json"
OPTIONS = JobOptions(
    project="my-project",
    service_account="worker@my-project.iam.gserviceaccount.com",
    network="projects/1/global/networks/n",
    base_output_directory="gs://bucket/logs",
    timeout="3600s",
    labels={"team": "distil"},
)
CASES = {
    f"{name}{suffix}": (PROFILES[name], options)
    for name in ("a100-80gb-x8", "tpu-v3-64")
    for suffix, options in (("", JobOptions()), (" with options", OPTIONS))
}


@component
def subject(
    rows: Input[Dataset],
    cache_key: str,
    model: Output[Model],
    metrics: Output[Metrics],
    run: str = "dss:0",
    rate: float = 1.0,
) -> str:
    """A stand-in with artifacts and parameters of both directions."""
    return run


def ours(step: Any, profile: Profile, options: JobOptions) -> dict[str, Any]:
    inner = json_format.MessageToDict(step.pipeline_spec)
    return facts(custom_job_spec(inner, step.name, profile, "image", options))


def theirs(step: Any, profile: Profile, options: JobOptions) -> dict[str, Any]:
    """Google's wrapper with the same arguments; its location and project are not arguments."""
    from google_cloud_pipeline_components.v1.custom_job import (
        create_custom_training_job_from_component,
    )

    made = create_custom_training_job_from_component(
        step,
        display_name=step.name.replace("_", "-"),
        machine_type=profile.machine_type,
        accelerator_type=profile.accelerator_type,
        accelerator_count=profile.accelerator_count,
        boot_disk_size_gb=profile.boot_disk_gb,
        timeout=options.timeout,
        service_account=options.service_account,
        network=options.network,
        base_output_directory=options.base_output_directory,
        labels=options.labels or None,
    )
    found = facts(json_format.MessageToDict(made.pipeline_spec))
    changed = {"location": profile.location, "project": options.project}
    for level in ("component", "root"):
        for name, value in changed.items():
            found[level]["inputDefinitions"]["parameters"][name]["defaultValue"] = value
    pool = found["component"]["inputDefinitions"]["parameters"]["worker_pool_specs"]
    pool["defaultValue"][0]["container_spec"]["image_uri"] = "image"
    found["root"]["inputDefinitions"]["parameters"]["worker_pool_specs"] = pool
    return found


def facts(spec: dict[str, Any]) -> dict[str, Any]:
    """The parts that the platform acts on: without names of our choice and without prose."""
    name = spec["pipelineInfo"]["name"]
    root = json.loads(json.dumps(spec["root"]))
    task = root["dag"]["tasks"].pop(name)
    task = {key: task[key] for key in task if key != "componentRef"}
    root["dag"]["tasks"]["step"] = {**task, "taskInfo": {"name": "step"}}
    for output in root["dag"]["outputs"]["parameters"].values():
        output["valueFromParameter"]["producerSubtask"] = "step"
    root["inputDefinitions"]["parameters"]["display_name"]["defaultValue"] = "step"
    definition = dict(next(iter(spec["components"].values())))
    definition.pop("executorLabel")
    parameters = definition["inputDefinitions"]["parameters"]
    parameters["display_name"] = {**parameters["display_name"], "defaultValue": "step"}
    found = {
        "component": definition,
        "container": next(iter(spec["deploymentSpec"]["executors"].values()))["container"],
        "root": root,
        "schemaVersion": spec["schemaVersion"],
    }
    return without_prose(json.loads(json.dumps(found)))


def without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_prose(item) for key, item in value.items() if key != "description"}
    if isinstance(value, list):
        return [without_prose(item) for item in value]
    return value


def without_source(found: dict[str, Any]) -> dict[str, Any]:
    """The facts that do not change with the version of kfp: its bootstrap command is left out."""
    text = json.loads(json.dumps(found))
    for level in ("component", "root"):
        pools = text[level]["inputDefinitions"]["parameters"]["worker_pool_specs"]["defaultValue"]
        for pool in pools:
            pool["container_spec"]["command"] = len(pool["container_spec"]["command"])
    return text


def main() -> None:
    golden = {
        name: without_source(theirs(subject, profile, options))
        for name, (profile, options) in CASES.items()
    }
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
