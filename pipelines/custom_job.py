"""One of our components as a Vertex CustomJob, for an exact machine in an exact region.

A plain pipeline task stops at 96 vCPU and 624 GB, names no machine type and runs in the pipeline's
region. So a heavy step becomes a small launcher task: Google's public pipeline-components image
posts a CustomJob whose one worker pool runs our component's own command on the machine we name.

The result has the structure of Google's `create_custom_training_job_from_component` (version
2.22), parameter by parameter and byte by byte in the payload; `tests/golden/gcpc_custom_job.json`
holds that structure and a test compares. That package is not a dependency because it pins
google-cloud-aiplatform below 2.
"""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipestill.pipelines.hardware import Profile

LAUNCHER_IMAGE = "gcr.io/ml-pipeline/google-cloud-pipeline-components:2.22.0"
LAUNCHER_MODULE = "google_cloud_pipeline_components.container.v1.custom_job.launcher"
PROJECT = "{{$.pipeline_google_cloud_project_id}}"
PERSISTENT_RESOURCE = "{{$.pipeline_persistent_resource_id}}"
# The executor input stands inside a JSON string there, so it must arrive escaped once.
EXECUTOR_INPUT, ESCAPED_EXECUTOR_INPUT = "{{$}}", "{{$.json_escape[1]}}"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What is compiled into every CustomJob besides the machine. Empty = the platform's default.

    `service_account` and `base_output_directory` are needed where a TensorBoard is named.
    `timeout` is a duration in seconds such as ``"604800s"``.
    """

    project: str = PROJECT
    service_account: str = ""
    network: str = ""
    base_output_directory: str = ""
    timeout: str = "604800s"
    labels: dict[str, str] = field(default_factory=dict)


def as_custom_job(component: Any, profile: Profile, image: str, options: JobOptions) -> Any:
    """Wraps a kfp component: the same inputs and outputs, run on `profile`'s machine.

    The wrapped component takes two more inputs, `encryption_spec_key_name` and `tensorboard`, and
    the other fields of the job as inputs with compiled-in defaults.

    Args:
        component: one of ours, from `pipestill.components`.
        profile: validated, with a machine type.
        image: the worker's container image.
        options: project, account, network, timeout, labels.
    """
    from google.protobuf import json_format
    from kfp import components

    inner = json_format.MessageToDict(component.pipeline_spec)
    spec = custom_job_spec(inner, component.name, profile, image, options)
    wrapped = components.load_component_from_text(yaml.safe_dump(spec))
    wrapped.component_spec.name = component.component_spec.name
    return wrapped


def custom_job_spec(
    inner: dict[str, Any], name: str, profile: Profile, image: str, options: JobOptions
) -> dict[str, Any]:
    """The pipeline spec, as a dict, of the launcher around the one component of `inner`."""
    name = name.replace("_", "-")
    definition = copy.deepcopy(next(iter(inner["components"].values())))
    container = next(iter(inner["deploymentSpec"]["executors"].values()))["container"]
    pools = [_worker_pool(container, profile, image)]
    inputs = definition.setdefault("inputDefinitions", {})
    inputs["parameters"] = _job_inputs(name, pools, profile, options) | inputs.get("parameters", {})
    outputs = definition.setdefault("outputDefinitions", {})
    outputs["parameters"] = {"gcp_resources": {"parameterType": "STRING"}} | outputs.get(
        "parameters", {}
    )
    definition["executorLabel"] = f"exec-{name}"
    return {
        "components": {f"comp-{name}": definition},
        "deploymentSpec": {"executors": {f"exec-{name}": {"container": _launcher()}}},
        "pipelineInfo": {"name": name},
        "root": _root(inner, name, definition),
        "schemaVersion": inner["schemaVersion"],
        "sdkVersion": inner["sdkVersion"],
    }


def _worker_pool(container: dict[str, Any], profile: Profile, image: str) -> dict[str, Any]:
    def escaped(parts: list[str]) -> list[str]:
        return [ESCAPED_EXECUTOR_INPUT if part == EXECUTOR_INPUT else part for part in parts]

    return {
        "machine_spec": {
            "machine_type": profile.machine_type,
            "accelerator_type": profile.accelerator_type,
            "accelerator_count": profile.accelerator_count,
        },
        "replica_count": 1,
        "container_spec": {
            "image_uri": image,
            "command": escaped(container["command"]),
            "args": escaped(container["args"]),
            "env": [],
        },
        "disk_spec": {"boot_disk_type": "pd-ssd", "boot_disk_size_gb": profile.boot_disk_gb},
    }


def _job_inputs(
    name: str, pools: list[dict[str, Any]], profile: Profile, options: JobOptions
) -> dict[str, dict[str, Any]]:
    def optional(kind: str, default: Any) -> dict[str, Any]:
        return {"parameterType": kind, "isOptional": True, "defaultValue": default}

    def unset(kind: str) -> dict[str, Any]:
        return {"parameterType": kind, "isOptional": True}

    text = {
        "location": profile.location,
        "timeout": options.timeout,
        "service_account": options.service_account,
        "tensorboard": "",
        "network": options.network,
        "base_output_directory": options.base_output_directory,
        "encryption_spec_key_name": "",
        "persistent_resource_id": PERSISTENT_RESOURCE,
        "project": options.project,
        "strategy": "STANDARD",
        "max_wait_duration": "86400s",
    }
    return {
        "display_name": {"parameterType": "STRING", "defaultValue": name},
        "worker_pool_specs": optional("LIST", pools),
        "restart_job_on_worker_restart": optional("BOOLEAN", False),
        "enable_web_access": optional("BOOLEAN", False),
        "reserved_ip_ranges": unset("LIST"),
        "labels": optional("STRUCT", options.labels) if options.labels else unset("STRUCT"),
        "psc_interface_config": unset("STRUCT"),
        **{key: optional("STRING", value) for key, value in text.items()},
    }


def _payload() -> str:
    """The CustomJob as JSON in which each value is a placeholder; only texts are quoted."""

    def text(name: str) -> str:
        return f"{{{{$.inputs.parameters['{name}']}}}}"

    def bare(name: str) -> str:  # a list, an object or a boolean: the quotes around it go
        return f"\x00{text(name)}\x00"

    job = {
        "display_name": text("display_name"),
        "job_spec": {
            "worker_pool_specs": bare("worker_pool_specs"),
            "scheduling": {
                "timeout": text("timeout"),
                "restart_job_on_worker_restart": bare("restart_job_on_worker_restart"),
                "strategy": text("strategy"),
                "max_wait_duration": text("max_wait_duration"),
            },
            "service_account": text("service_account"),
            "tensorboard": text("tensorboard"),
            "enable_web_access": bare("enable_web_access"),
            "network": text("network"),
            "reserved_ip_ranges": bare("reserved_ip_ranges"),
            "base_output_directory": {"output_uri_prefix": text("base_output_directory")},
            "persistent_resource_id": text("persistent_resource_id"),
            "psc_interface_config": bare("psc_interface_config"),
        },
        "labels": bare("labels"),
        "encryption_spec": {"kms_key_name": text("encryption_spec_key_name")},
    }
    return json.dumps(job).replace('"\\u0000', "").replace('\\u0000"', "")


def _launcher() -> dict[str, Any]:
    return {
        "image": LAUNCHER_IMAGE,
        "command": ["python3", "-u", "-m", LAUNCHER_MODULE],
        "args": [
            "--type",
            "CustomJob",
            "--payload",
            _payload(),
            "--project",
            "{{$.inputs.parameters['project']}}",
            "--location",
            "{{$.inputs.parameters['location']}}",
            "--gcp_resources",
            "{{$.outputs.parameters['gcp_resources'].output_file}}",
        ],
    }


def _root(inner: dict[str, Any], name: str, definition: dict[str, Any]) -> dict[str, Any]:
    task = copy.deepcopy(next(iter(inner["root"]["dag"]["tasks"].values())))
    task["componentRef"] = {"name": f"comp-{name}"}
    task["taskInfo"] = {"name": name}
    output = {"producerSubtask": name, "outputParameterKey": "gcp_resources"}
    return {
        "dag": {
            "outputs": {"parameters": {"gcp_resources": {"valueFromParameter": output}}},
            "tasks": {name: task},
        },
        "inputDefinitions": copy.deepcopy(definition["inputDefinitions"]),
        "outputDefinitions": copy.deepcopy(definition["outputDefinitions"]),
    }
