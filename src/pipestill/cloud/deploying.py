"""A served folder goes into production on an endpoint, or everything stays as it was.

The order: the folder becomes a version (found again by its digest) → the version answers smoke
predictions → it is deployed beside the old one without traffic → it gets the traffic, in stages,
each followed by smoke predictions → the ledger records the promotion → the alias moves → the old
one is undeployed. What fails before the alias has moved is undone: traffic and alias as before, the
new one undeployed, the ledger says why.

Where nobody is served yet, the smoke predictions go to the endpoint itself. Elsewhere they go to an
endpoint of their own that exists for this test only, because the platform cannot send a prediction
to a model without traffic.
"""

import dataclasses
import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipestill.cloud import client, endpoint, ledger, registry
from pipestill.cloud.checks import label_value
from pipestill.cloud.client import Settings
from pipestill.cloud.deploy_options import DeployOptions, check, labels_of
from pipestill.cloud.promotion import NOT_PROMOTED, PROMOTED, Order, Say, Work, record, roll_back
from pipestill.cloud.smoke import instances, rehearsal, smoke
from pipestill.errors import UserError
from pipestill.evaluation.gate import PROMOTE

IMAGE = re.compile(r"[a-z0-9-]+-docker\.pkg\.dev/\S+|([a-z]+\.)?gcr\.io/\S+")
DESCRIPTIONS = ("README.md", "summary.json")


def deploy(order: Order, say: Say = print) -> dict[str, Any]:
    """Deploys what the gate promotes; run twice, it does nothing the second time.

    Returns:
        ``event`` (promoted, not_promoted), ``changed``, ``model``, ``version``, ``endpoint``,
        ``digest``, ``ledger_entry`` (its number).

    Raises:
        UserError: ``DEPLOY_…``, ``LEDGER_…``, ``CLOUD_…``: nothing was changed, or all was undone.
        WorkError: ``DEPLOY_SMOKE``: rolled back.
    """
    stages = _check(order)
    order = dataclasses.replace(order, settings=client.init(order.settings))
    work = Work(order, _digest(order), _ledger_uri(order), say)
    ledger.read(work.ledger_uri)  # a broken or forbidden one is found before anything is changed
    if order.decision != PROMOTE:
        return record(work, NOT_PROMOTED, order.reason)
    questions = instances(order.smoke_uri)
    _look(work)
    if work.version and work.version == work.old and work.before.get(work.new) == 100:
        say(f"version {work.version.version_id} is in production already")
        _clear(work)
        return record(work, PROMOTED, order.reason)
    _upload(work)
    try:
        _bring_up(work, questions)
        _shift(work, stages, questions)
        result = record(work, PROMOTED, order.reason)
        assert work.version
        registry.move_alias(work.version, work.options.alias, work.settings)
    except BaseException as error:
        roll_back(work, error)
        raise
    _clear(work)
    say(f"promoted: version {work.version.version_id} of {order.model_name}")
    return result | {"changed": True}


def _check(order: Order) -> list[int]:
    stages = check(order.options)
    if not IMAGE.fullmatch(order.serving_image):
        raise UserError(
            "DEPLOY_IMAGE",
            f"serving image: found {order.serving_image!r}, allowed: REGION-docker.pkg.dev/…",
            "build the target serve of containers/Dockerfile and push it to Artifact Registry",
        )
    if not order.settings.staging_bucket:
        raise UserError("CLOUD_BUCKET", "no staging bucket", "give gs://BUCKET for the model files")
    if not (Path(order.folder) / "config.json").is_file():
        raise UserError(
            "DEPLOY_FOLDER",
            f"{order.folder}: is no model's folder (it has no config.json)",
            "give the folder that the step deploy wrote",
        )
    return stages


def _digest(order: Order) -> str:
    """32 hex digits over what answers: the image and the files, without card and summary."""
    from pipestill.cloud.storage import local_files

    whole = hashlib.sha256(order.serving_image.encode())
    for name, file in local_files(order.folder):
        if name not in DESCRIPTIONS:
            with file.open("rb") as source:
                content = hashlib.file_digest(source, "sha256").hexdigest()
            whole.update(f"\n{name}\0{content}".encode())
    return whole.hexdigest()[:32]


def _ledger_uri(order: Order) -> str:
    name = label_value(order.endpoint_name.rpartition("/")[2])
    return order.ledger_uri or f"{order.settings.staging_bucket.rstrip('/')}/ledger/{name}.jsonl"


def _look(work: Work) -> None:
    """What is there: model, version of this digest, version in production, endpoint, traffic."""
    settings = work.settings
    found = registry.versions(registry.find_model(work.order.model_name, settings), settings)
    work.version = registry.with_digest(found, work.digest)
    work.old = registry.aliased(found, work.options.alias)
    work.endpoint = endpoint.find(work.order.endpoint_name, settings)
    if work.endpoint is None:
        return
    work.before = endpoint.traffic(work.endpoint, settings)
    ours = found[0].model if found else ""
    others = endpoint.models_of(work.endpoint, settings) - {ours}
    if others:
        raise UserError(
            "DEPLOY_ENDPOINT",
            f"endpoint {work.order.endpoint_name} serves another model: {min(others)}",
            "give each model an endpoint of its own",
        )
    if work.version:
        work.new = endpoint.deployed_id(work.endpoint, work.version, work.options, settings)


def _upload(work: Work) -> None:
    """The folder as a version, uploaded once."""
    from pipestill.cloud.storage import upload_once

    if work.version:
        work.say(f"version {work.version.version_id} has this digest already")
        return
    order, settings = work.order, work.settings
    bucket = f"{settings.staging_bucket.rstrip('/')}/models"
    artifact = upload_once(order.folder, bucket, client.storage_client(settings))
    parent = registry.find_model(order.model_name, settings)
    if "/" in order.model_name and not parent:
        raise UserError("DEPLOY_MODEL", f"model {order.model_name} does not exist")
    work.version = registry.upload(
        settings,
        display_name=order.model_name.rpartition("/")[2],
        parent=parent,
        artifact_uri=artifact,
        digest=work.digest,
        image=order.serving_image,
        labels=_labels(settings),
    )
    work.say(f"uploaded version {work.version.version_id} from {artifact}")


def _labels(settings: Settings) -> dict[str, str]:
    from pipestill import __version__

    return {"pipestill-version": label_value(__version__), **settings.labels}


def _bring_up(work: Work, questions: list[dict[str, Any]]) -> None:
    """The version is deployed, and has answered."""
    order, settings, options = work.order, work.settings, work.options
    assert work.version
    if work.new and work.before.get(work.new):  # a run that was stopped has brought it this far
        return smoke(work.endpoint, questions)
    if work.endpoint is None:
        work.endpoint = endpoint.create(
            order.endpoint_name,
            settings,
            dedicated=options.dedicated_endpoint,
            labels=_labels(settings),
        )
    serving = any(work.before.values())
    if serving:
        one = dataclasses.replace(options, min_replicas=1, max_replicas=1)
        name = work.endpoint.display_name
        with rehearsal(name, settings, _labels(settings)) as stage:
            endpoint.deploy(stage, work.version, one, settings)
            smoke(stage, questions)
        work.say(f"smoke: {len(questions)} predictions answered before any traffic")
    if not work.new:
        work.new = endpoint.deploy(work.endpoint, work.version, options, settings)
    if not serving:
        if endpoint.traffic(work.endpoint, settings)[work.new] != 100:
            endpoint.set_traffic(work.endpoint, {work.new: 100}, settings)
        smoke(work.endpoint, questions)
        work.say(f"smoke: {len(questions)} predictions answered")
    return None


def _shift(work: Work, stages: list[int], questions: list[dict[str, Any]]) -> None:
    """The traffic goes over, stage by stage; at each one the endpoint has to answer."""
    now = endpoint.traffic(work.endpoint, work.settings)
    for share in stages:
        if share <= now.get(work.new, 0):
            continue
        split = endpoint.shared(now, work.new, share)
        endpoint.set_traffic(work.endpoint, split, work.settings)
        time.sleep(work.options.stage_wait_s)
        smoke(work.endpoint, questions)
        work.say(f"traffic: {share} % to version {work.version.version_id if work.version else ''}")


def _clear(work: Work) -> None:
    """All but the new one are undeployed; they have no traffic."""
    for deployed in endpoint.traffic(work.endpoint, work.settings):
        if deployed != work.new:
            endpoint.undeploy(work.endpoint, deployed, work.settings)


def deploy_component(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`deploy` with the parameters of the component `deploy_endpoint`, by name."""
    from pipestill.config import pick

    options = pick(DeployOptions, given)
    settings = Settings(
        labels=labels_of(given["labels"]),
        **{
            name: given[name]
            for name in (
                *("project", "location", "staging_bucket"),
                *("service_account", "encryption_spec_key_name"),
            )
        },
    )
    return deploy(
        Order(
            folder=folder,
            settings=settings,
            model_name=given["model_display_name"] or given["endpoint"],
            endpoint_name=given["endpoint"],
            options=options,
            **{
                name: given[name]
                for name in ("decision", "reason", "serving_image", "ledger_uri", "smoke_uri")
            },
        )
    )
