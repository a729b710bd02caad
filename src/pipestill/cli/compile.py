"""`pipestill compile`: pipelines as YAML that Kubeflow Pipelines and Vertex AI accept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipestill.pipelines.custom_job import JobOptions


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pipestill compile`."""
    parser.description = __doc__
    add = parser.add_argument
    add("pipeline", metavar="PIPELINE", nargs="?", help="such as distill_step_by_step")
    add("--all", action="store_true", help="every pipeline for every profile")
    add("--profile", default="cpu-local", help="cpu-local (default), a100-80gb-x8 or tpu-v3-64")
    add("-o", "--output", metavar="FILE", help="file to write, or with --all a folder")
    add("--image-prefix", default="pipestill", help="your registry's path to the images")
    add("--project", help="project of the CustomJobs; default: the pipeline's own")
    add("--location", help="region of the CustomJobs; default: the profile's")
    add("--machine-type", help="another machine than the profile's")
    add("--accelerator-type", help="another accelerator than the profile's")
    add("--accelerator-count", type=int, help="another count than the profile's")
    add("--service-account", default="", help="account that the CustomJobs run as")
    add("--network", default="", help="projects/NUMBER/global/networks/NAME")
    add("--base-output-directory", default="", help="gs:// folder for logs of a TensorBoard")
    add("--timeout", default="604800s", help="longest time of a CustomJob; default: 7 days")
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="label of the jobs")


def main(args: argparse.Namespace) -> int:
    """Writes the files and prints their paths."""
    from pipestill.errors import UserError
    from pipestill.pipelines.compile import COMPILED, compile_all, compile_pipeline

    options = job_options(args)
    hardware = {
        "location": args.location,
        "machine_type": args.machine_type,
        "accelerator_type": args.accelerator_type,
        "accelerator_count": args.accelerator_count,
    }
    if args.all:
        folder = Path(args.output or COMPILED)
        if any(hardware.values()):
            raise UserError(
                "USAGE", "--all compiles the profiles as they are; leave out their changes"
            )
        written = compile_all(folder, image_prefix=args.image_prefix, options=options)
    elif args.pipeline:
        output = args.output or f"{args.pipeline}.{args.profile}.yaml"
        written = [
            compile_pipeline(
                args.pipeline,
                args.profile,
                output,
                image_prefix=args.image_prefix,
                options=options,
                **hardware,
            )
        ]
    else:
        raise UserError("USAGE", "name a PIPELINE, or give --all", "see pipestill compile --help")
    print("\n".join(str(path) for path in written))
    return 0


def job_options(args: argparse.Namespace) -> JobOptions:
    """The options of the CustomJobs.

    Raises:
        UserError: ``USAGE`` where a label is not KEY=VALUE.
    """
    from pipestill.errors import UserError
    from pipestill.pipelines.custom_job import PROJECT, JobOptions

    labels = dict(label.partition("=")[::2] for label in args.label)
    if not all(key and value for key, value in labels.items()):
        raise UserError("USAGE", f"--label: found {args.label}, allowed: KEY=VALUE")
    return JobOptions(
        project=args.project or PROJECT,
        service_account=args.service_account,
        network=args.network,
        base_output_directory=args.base_output_directory,
        timeout=args.timeout,
        labels=labels,
    )
