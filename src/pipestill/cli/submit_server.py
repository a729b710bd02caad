"""`pipestill submit --kfp-endpoint`: the same on an open-source Kubeflow Pipelines server."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipestill.cli.submit import DEFAULT_REGION, cloud_settings, read_parameters
from pipestill.cli.submit_show import print_parameters, show_until_done
from pipestill.cli.submit_template import file_facts, is_file, pipeline_name, template_for


def on_server(args: argparse.Namespace, folder: Path) -> int:
    """Runs the pipeline on an open-source Kubeflow Pipelines server."""
    from pipestill.cloud import kfp_server
    from pipestill.cloud.parameters import read_template

    profile = args.profile or file_facts(args.pipeline)[1] or "cpu-local"
    parameters = read_parameters(args, profile, folder)
    template = template_for(args, profile, "", folder)
    if args.image_prefix and not is_file(args.pipeline):
        template = template_for(args, profile, DEFAULT_REGION, folder)
    spec = read_template(template)
    run = kfp_server.Run(
        endpoint=args.kfp_endpoint,
        template=template,
        spec=spec,
        profile=profile,
        parameters=parameters,
        name=args.display_name or pipeline_name(args.pipeline),
        experiment=args.experiment,
        service_account=args.service_account,
        cache=not args.no_cache,
        token=os.environ.get(kfp_server.TOKEN_ENV, ""),
    )
    if args.staging_bucket:
        run = kfp_uploads(run, args, spec)
    kfp_server.check(run)
    if args.dry_run:
        print_parameters(run.parameters)
        return 0
    client, run_id = kfp_server.submit(run)
    link = kfp_server.run_link(run.endpoint, run_id)
    print(f"submitted  {run_id}\nserver     {link}")
    print_parameters(run.parameters)
    if not args.wait:
        return 0
    return show_until_done(
        lambda: kfp_server.look(client, run_id, run.endpoint), f"run {run_id}", link
    )[0]


def kfp_uploads(run: Any, args: argparse.Namespace, spec: Mapping[str, Any]) -> Any:
    """The run with local data in the bucket, and artifacts and checkpoints there too."""
    from pipestill.cloud import client, kfp_server, submit
    from pipestill.cloud.parameters import platform_parameters

    kfp_server.check(dataclasses.replace(run, parameters={}))
    settings = cloud_settings(args, args.region or DEFAULT_REGION)
    if not args.dry_run:
        submit.check_bucket(settings)
    with client.explained(settings, "upload the data"):
        made = platform_parameters(
            pipeline_name(args.pipeline), run.parameters, spec, settings, upload=not args.dry_run
        )
    return dataclasses.replace(run, parameters=made, pipeline_root=settings.pipeline_root)
