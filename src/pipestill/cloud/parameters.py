"""A template's parameters: checked as the platform will, and local files brought to the bucket."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipestill.cloud import client
from pipestill.cloud.client import Settings
from pipestill.cloud.storage import target, upload_once
from pipestill.errors import UserError
from pipestill.yaml_text import check_bounds

DATA_ENDINGS = ("_uri", "_dataset")  # parameters that name data: uploaded to gs://
MOUNTED_ENDINGS = ("_model_reference", "_prompt")  # read as files: reached by /gcs/
OWN_FOLDERS = ("state_dir", "deploy_dir", "retrain_dir")
PLACEHOLDER = "{{$"
LARGEST_WHOLE = 2**53  # whole numbers travel as doubles
LONGEST_TEMPLATE = 10_000_000  # characters
LONGEST_PARAMETERS = 100_000  # bytes: the executor's input is one argument of 131,000 at most
REMOTE_DATA = ("gs://", "hf://", "pocket:", "/gcs/")
# The ones in C are ten times faster.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
Say = Callable[[str], None]


def read_template(path: Path) -> dict[str, Any]:
    """A compiled pipeline's spec.

    Raises:
        UserError: ``SUBMIT_TEMPLATE``.
    """
    try:
        text = path.read_text(encoding="utf-8")
        check_bounds(text, LONGEST_TEMPLATE)
        spec = yaml.load(text, Loader=LOADER)  # noqa: S506 (a safe one)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError("SUBMIT_TEMPLATE", f"{path}: cannot be read ({reason})") from error
    if not isinstance(spec, dict) or not {"root", "pipelineInfo", "schemaVersion"} <= spec.keys():
        raise UserError(
            "SUBMIT_TEMPLATE",
            f"{path}: found no compiled pipeline in it",
            "make one with pipestill compile",
        )
    return spec


def write_template(spec: Mapping[str, Any], path: Path) -> Path:
    """Writes a spec that `read_template` and the clients read."""
    path.write_text(yaml.dump(dict(spec), Dumper=DUMPER, allow_unicode=True), encoding="utf-8")
    return path


def definitions(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The pipeline's parameters: name → parameterType, defaultValue, isOptional."""
    found: dict[str, dict[str, Any]] = (
        spec["root"].get("inputDefinitions", {}).get("parameters", {})
    )
    return found


def has_machine_types(spec: Mapping[str, Any]) -> bool:
    """Whether a step starts a Vertex CustomJob on a machine of its own."""
    executors = spec.get("deploymentSpec", {}).get("executors", {}).values()
    commands = (item.get("container", {}).get("args", []) for item in executors)
    return any("CustomJob" in args for args in commands)


def check_parameters(spec: Mapping[str, Any], parameters: Mapping[str, Any], profile: str) -> None:
    """Refuses unknown and missing parameters, and values that would arrive changed.

    Raises:
        UserError: ``RUN_PARAMETER``, ``SUBMIT_PROFILE`` or ``SUBMIT_VALUE``.
    """
    defined, name = definitions(spec), spec["pipelineInfo"]["name"]
    unknown = [key for key in parameters if key not in defined]
    missing = [
        key
        for key, item in defined.items()
        if not item.get("isOptional") and "defaultValue" not in item and key not in parameters
    ]
    if unknown or missing:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise UserError("RUN_PARAMETER", f"parameters of {name}: {problem}")
    compiled_for = str(defined.get("accelerator_type", {}).get("defaultValue", ""))
    asked = str(parameters.get("accelerator_type", compiled_for))
    if compiled_for and asked.upper() != compiled_for.upper():
        raise UserError(
            "SUBMIT_PROFILE",
            f"accelerator_type: found {asked}, profile {profile} is compiled for {compiled_for}",
            "leave it out, or choose another --profile",
        )
    for key, value in parameters.items():
        check_value(key, value)
    size = sum(len(str(value).encode()) for value in parameters.values())
    if size > LONGEST_PARAMETERS:
        raise UserError(
            "SUBMIT_VALUE",
            f"parameters: {size:,} bytes in all, at most {LONGEST_PARAMETERS:,}",
            "put prompts and data in files",
        )


def check_value(name: str, value: Any) -> None:
    """Refuses what Kubeflow Pipelines would change on its way to a step.

    Raises:
        UserError: ``SUBMIT_VALUE``.
    """
    if isinstance(value, list):
        for item in value:
            check_value(name, item)
    elif isinstance(value, str) and PLACEHOLDER in value:
        raise UserError(
            "SUBMIT_VALUE",
            f"{name}: the text {PLACEHOLDER!r} in {value!r} would be replaced on its way to a step",
            "put prompts and data in files, and use a path or name without it",
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError("SUBMIT_VALUE", f"{name}: found {value}, allowed: finite numbers")
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise UserError(
            "SUBMIT_VALUE",
            f"{name}: found {value}, whole numbers above 2^53 arrive rounded",
            "choose a smaller number",
        )


def platform_parameters(
    pipeline: str,
    given: Mapping[str, Any],
    spec: Mapping[str, Any],
    settings: Settings,
    *,
    upload: bool = True,
    say: Say = print,
) -> dict[str, Any]:
    """The parameters as the job gets them: local files uploaded once, folders in the bucket.

    Data become ``gs://…``; local model folders and prompt files, which the steps open as files,
    become ``/gcs/…``, where the platform mounts the bucket.

    Args:
        pipeline: its name, for the folder of journals and checkpoints.
        given: by name, checked.
        spec: the template.
        settings: with a staging bucket.
        upload: False: only compute the addresses.
        say: prints a line per upload.

    Raises:
        UserError: ``DATA_NOT_FOUND``, ``SUBMIT_LOCAL`` (a local folder for outputs).
    """
    defined, bucket = definitions(spec), settings.staging_bucket.rstrip("/")
    made = dict(given)
    if "state_dir" in defined and not made.get("state_dir"):
        made["state_dir"] = f"{bucket}/state/{pipeline}"
    if "encryption_spec_key_name" in defined and settings.encryption_spec_key_name:
        made.setdefault("encryption_spec_key_name", settings.encryption_spec_key_name)
    store = None
    for name, value in made.items():
        if name in OWN_FOLDERS and value and not str(value).startswith(("gs://", "/gcs/")):
            raise UserError(
                "SUBMIT_LOCAL",
                f"{name}: found {value!r}, a local folder that the job's machines do not have",
                "give gs://BUCKET/FOLDER, or leave it out",
            )
        if is_local_file(name, value):
            if upload:
                store = store or client.storage_client(settings)
                uri = upload_once(str(value), f"{bucket}/data", store)
            else:
                uri = target(str(value), f"{bucket}/data")
            say(f"{'data' if upload else 'would upload':10} {value} → {uri}")
            made[name] = uri
        if name.endswith(MOUNTED_ENDINGS) and str(made[name]).startswith("gs://"):
            made[name] = str(made[name]).replace("gs://", "/gcs/", 1)
    return made


def is_local_file(name: str, value: Any) -> bool:
    """Whether a parameter names something on this machine."""
    if not isinstance(value, str) or not value or value.startswith(REMOTE_DATA):
        return False
    if name.endswith(DATA_ENDINGS):
        return True
    return name.endswith(MOUNTED_ENDINGS) and os.path.exists(value)
