"""Pipelines as YAML: one file per pipeline and hardware profile, the same bytes every time."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pipestill import __version__
from pipestill.pipelines import PIPELINES, build
from pipestill.pipelines.custom_job import JobOptions
from pipestill.pipelines.hardware import PROFILES, Profile, find_profile

COMPILED = Path(__file__).parent / "compiled"
HEADER = """\
# Pipeline {pipeline} {version} for hardware profile {profile}.
# Written by `pipestill compile`; do not edit. Parameters and their defaults: root.inputDefinitions.
"""


def compile_pipeline(
    name: str,
    profile: str | Profile,
    output: str | Path,
    *,
    image_prefix: str = "pipestill",
    options: JobOptions | None = None,
    **hardware: Any,
) -> Path:
    """Compiles one pipeline for one profile into one file, and returns its path.

    Args:
        name: a key of `pipestill.pipelines.PIPELINES`.
        profile: a shipped profile's name, or a profile.
        output: file to write.
        image_prefix: registry and repository of the container images; ``pipestill`` stands for the
            names that `containers/Dockerfile` builds.
        options: project, account, network, labels and time limit of the CustomJobs.
        hardware: fields of the profile to change, such as ``location`` or ``accelerator_count``;
            empty values change nothing.

    Raises:
        UserError: ``PIPELINE_UNKNOWN``, ``PROFILE_UNKNOWN`` or ``HARDWARE_…``.
    """
    chosen = find_profile(profile) if isinstance(profile, str) else profile
    changes = {key: value for key, value in hardware.items() if value}
    chosen = dataclasses.replace(chosen, **changes)
    spec = with_images(pipeline_spec(build(name, chosen, options=options)), image_prefix)
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    head = HEADER.format(pipeline=name, version=__version__, profile=chosen.name)
    body = yaml.safe_dump(spec, sort_keys=True, allow_unicode=True, width=100)
    target.write_text(head + body, encoding="utf-8")
    return target


def compile_all(folder: str | Path = COMPILED, **options: Any) -> list[Path]:
    """Every pipeline for every profile, as ``<pipeline>.<profile>.yaml``."""
    return [
        compile_pipeline(name, profile, Path(folder) / f"{name}.{profile}.yaml", **options)
        for name in PIPELINES
        for profile in PROFILES
    ]


def pipeline_spec(pipeline: Any) -> dict[str, Any]:
    """The pipeline spec as a dict."""
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        spec: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return spec


def with_images(value: Any, prefix: str) -> Any:
    """The same spec with our images taken from the user's own registry."""
    ours = {f"pipestill/{profile.image}:{__version__}" for profile in PROFILES.values()}
    if isinstance(value, dict):
        return {key: with_images(item, prefix) for key, item in value.items()}
    if isinstance(value, list):
        return [with_images(item, prefix) for item in value]
    if value in ours:
        return f"{prefix.rstrip('/')}/{value.removeprefix('pipestill/')}"
    return value
