"""Which compiled pipeline `pipestill submit` sends: a named file, a shipped one, or its own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipestill.errors import UserError

FILES = (".yaml", ".yml", ".json")
HEADER = re.compile(r"# Pipeline (\S+) (\S+) for hardware profile (\S+)\.")


def template_for(
    args: argparse.Namespace,
    profile: str,
    region: str,
    folder: Path,
    time_limit: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """The compiled pipeline: the file that was named, the one we ship, or one made for this job.

    What a CustomJob runs as does not come from the job that starts it, so account, network,
    labels and time limit are compiled in where the profile has CustomJobs. Without a region the
    shipped form is enough, whose parameters are the same.

    Raises:
        UserError: ``PIPELINE_UNKNOWN``, ``SUBMIT_PROFILE`` (the file is for another profile),
            ``HARDWARE_REGION``.
    """
    from pipestill.cloud.checks import own_labels, read_labels
    from pipestill.cloud.parameters import read_template, write_template
    from pipestill.pipelines import PIPELINES
    from pipestill.pipelines.compile import COMPILED, compile_pipeline, with_images
    from pipestill.pipelines.custom_job import JobOptions
    from pipestill.pipelines.hardware import find_profile

    if is_file(args.pipeline):
        compiled_for = file_facts(args.pipeline)[1]
        if compiled_for and compiled_for != profile:
            raise UserError(
                "SUBMIT_PROFILE",
                f"{args.pipeline}: compiled for {compiled_for}, --profile says {profile}",
                f"pipestill compile PIPELINE --profile {profile}",
            )
        return Path(args.pipeline)
    name, hardware = args.pipeline, find_profile(profile)
    shipped = COMPILED / f"{name}.{profile}.yaml"
    if not region and shipped.is_file():
        return Path(shipped)
    prefix = image_prefix(args, region)
    made = folder / f"{name}.{profile}.{region}.yaml"
    if shipped.is_file() and name in PIPELINES and not hardware.machine_type:
        return write_template(with_images(read_template(shipped), prefix), made)
    board = (parameters or {}).get("tensorboard_resource_id")
    options = JobOptions(
        service_account=args.service_account,
        network=args.network,
        base_output_directory=f"{args.staging_bucket.rstrip('/')}/tensorboard" if board else "",
        timeout=time_limit or JobOptions.timeout,
        labels=own_labels(name, profile) | read_labels(args.labels),
    )
    where = region if hardware.machine_type else ""
    written: Path = compile_pipeline(
        name, profile, made, image_prefix=prefix, options=options, location=where
    )
    return written


def image_prefix(args: argparse.Namespace, region: str) -> str:
    """Where the images are pulled from: an Artifact Registry repository `pipestill` by default."""
    if args.image_prefix or not args.project or not region:
        return args.image_prefix or "pipestill"
    return f"{region}-docker.pkg.dev/{args.project}/pipestill"


def is_file(pipeline: str) -> bool:
    """Whether PIPELINE names a compiled file."""
    return pipeline.endswith(FILES)


def file_facts(pipeline: str) -> tuple[str, str]:
    """Pipeline and profile that a compiled file of ours was written for; "" where it says none."""
    if not is_file(pipeline):
        return "", ""
    try:
        with open(pipeline, encoding="utf-8") as lines:
            found = HEADER.match(lines.readline())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("SUBMIT_TEMPLATE", f"{pipeline}: cannot be read ({error})") from error
    return (found.group(1), found.group(3)) if found else ("", "")


def pipeline_name(pipeline: str) -> str:
    """The pipeline's name, also of a file."""
    return file_facts(pipeline)[0] or Path(pipeline).name.partition(".")[0]
