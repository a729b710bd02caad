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

import contextlib
import dataclasses
import getpass
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.cloud import client, endpoint, ledger, registry
from pipestill.cloud.checks import label_value
from pipestill.cloud.client import Settings
from pipestill.cloud.endpoint import DeployOptions
from pipestill.cloud.registry import Version
from pipestill.errors import PipestillError, UserError
from pipestill.evaluation.gate import PROMOTE

PROMOTED, ROLLED_BACK, NOT_PROMOTED = "promoted", "rolled_back", "not_promoted"
IMAGE = re.compile(r"[a-z0-9-]+-docker\.pkg\.dev/\S+|([a-z]+\.)?gcr\.io/\S+")
SMOKE_ROWS = 16
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to deploy, where, and on whose word. Empty texts = the default that stands there."""

    folder: str  # a served folder
    decision: str  # the gate's; anything but promote is recorded and changes nothing
    settings: Settings
    model_name: str  # display name or resource name of the one model
    endpoint_name: str  # display name, id or resource name
    serving_image: str
    reason: str = ""  # of the decision: what the gate said, or a person's override
    ledger_uri: str = ""  # <staging bucket>/ledger/<endpoint>.jsonl
    smoke_uri: str = ""  # rows to ask; one fixed question
    options: DeployOptions = field(default_factory=DeployOptions)


@dataclass
class _Work:
    """The state of one deployment; `before` is the traffic that a rollback restores."""

    order: Order
    digest: str
    ledger_uri: str
    say: Say
    version: Version | None = None
    old: Version | None = None
    endpoint: Any = None
    before: dict[str, int] = field(default_factory=dict)
    new: str = ""

    @property
    def settings(self) -> Settings:
        return self.order.settings

    @property
    def options(self) -> DeployOptions:
        return self.order.options


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
    work = _Work(order, _digest(order.folder), _ledger_uri(order), say)
    ledger.read(work.ledger_uri)  # a broken or forbidden one is found before anything is changed
    if order.decision != PROMOTE:
        return _record(work, NOT_PROMOTED, order.reason)
    instances = _instances(order.smoke_uri)
    _look(work)
    if work.version and work.version == work.old and work.before.get(work.new) == 100:
        say(f"version {work.version.version_id} is in production already")
        _clear(work)
        return _record(work, PROMOTED, order.reason)
    _upload(work)
    try:
        _bring_up(work, instances)
        _shift(work, stages, instances)
        result = _record(work, PROMOTED, order.reason)
        assert work.version
        registry.move_alias(work.version, work.options.alias, work.settings)
    except BaseException as error:
        _roll_back(work, error)
        raise
    _clear(work)
    say(f"promoted: version {work.version.version_id} of {order.model_name}")
    return result | {"changed": True}


def _check(order: Order) -> list[int]:
    stages = endpoint.check(order.options)
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


def _digest(folder: str) -> str:
    from pipestill.cloud.storage import content_name

    return content_name(folder)


def _ledger_uri(order: Order) -> str:
    name = label_value(order.endpoint_name.rpartition("/")[2])
    return order.ledger_uri or f"{order.settings.staging_bucket.rstrip('/')}/ledger/{name}.jsonl"


def _instances(uri: str) -> list[dict[str, Any]]:
    """The smoke predictions, as the server takes them."""
    from pipestill.serving.batch_rows import read_shard
    from pipestill.serving.package import SMOKE_INPUT

    if not uri:
        return [{"input_text": SMOKE_INPUT}]
    rows, bad, _ = read_shard(uri, "0/1")
    if bad or not rows:
        raise UserError(
            "DEPLOY_SMOKE_ROWS", f"{uri}: {len(bad)} unusable rows, {len(rows)} usable ones"
        )
    return [
        {"messages": row.fields["messages"]}
        if "messages" in row.fields
        else {"input_text": row.text}
        for row in rows[:SMOKE_ROWS]
    ]


def _look(work: _Work) -> None:
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


def _upload(work: _Work) -> None:
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


def _bring_up(work: _Work, instances: list[dict[str, Any]]) -> None:
    """The version is deployed, and has answered."""
    order, settings, options = work.order, work.settings, work.options
    assert work.version
    if work.new and work.before.get(work.new):  # a run that was stopped has brought it this far
        return endpoint.smoke(work.endpoint, instances, settings)
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
        with endpoint.rehearsal(name, settings, _labels(settings)) as stage:
            endpoint.deploy(stage, work.version, one, settings)
            endpoint.smoke(stage, instances, settings)
        work.say(f"smoke: {len(instances)} predictions answered before any traffic")
    if not work.new:
        work.new = endpoint.deploy(work.endpoint, work.version, options, settings)
    if not serving:
        if endpoint.traffic(work.endpoint, settings)[work.new] != 100:
            endpoint.set_traffic(work.endpoint, {work.new: 100}, settings)
        endpoint.smoke(work.endpoint, instances, settings)
        work.say(f"smoke: {len(instances)} predictions answered")
    return None


def _shift(work: _Work, stages: list[int], instances: list[dict[str, Any]]) -> None:
    """The traffic goes over, stage by stage; at each one the endpoint has to answer."""
    now = endpoint.traffic(work.endpoint, work.settings)
    for share in stages:
        if share <= now.get(work.new, 0):
            continue
        split = endpoint.shared(now, work.new, share)
        endpoint.set_traffic(work.endpoint, split, work.settings)
        time.sleep(work.options.stage_wait_s)
        endpoint.smoke(work.endpoint, instances, work.settings)
        work.say(f"traffic: {share} % to version {work.version.version_id if work.version else ''}")


def _clear(work: _Work) -> None:
    """All but the new one are undeployed; they have no traffic."""
    for deployed in endpoint.traffic(work.endpoint, work.settings):
        if deployed != work.new:
            endpoint.undeploy(work.endpoint, deployed, work.settings)


def _record(work: _Work, event: str, reason: str) -> dict[str, Any]:
    """One line in the ledger, unless its last line of this kind says the same."""
    order, version = work.order, work.version
    facts = {
        "event": event,
        "decision": order.decision,
        "reason": reason,
        "who": who(order.settings),
        "model": version.model if version else order.model_name,
        "version": version.version_id if version else "",
        "digest": work.digest,
        "replaces": work.old.version_id if work.old and work.old != version else "",
        "alias": work.options.alias,
        "endpoint": work.endpoint.resource_name if work.endpoint else order.endpoint_name,
        "machine": endpoint.machine_of(work.options),
        "image": order.serving_image,
    }
    entry, added = ledger.append(work.ledger_uri, facts, same=_same_as(facts))
    return {
        "event": event,
        "changed": added,
        "model": facts["model"],
        "version": facts["version"],
        "endpoint": facts["endpoint"],
        "digest": work.digest,
        "ledger_entry": int(entry["number"]),
    }


def _same_as(facts: Mapping[str, Any]) -> ledger.Same:
    """Rollbacks are all recorded; a promotion or a refusal that is repeated is not."""

    def same(entries: list[ledger.Entry]) -> ledger.Entry | None:
        if facts["event"] == PROMOTED:
            kept, names = _promotions(entries, facts["version"]), ("event", "version", "machine")
        elif facts["event"] == NOT_PROMOTED:
            kept = [entry for entry in entries if entry["event"] == NOT_PROMOTED]
            names = ("digest", "decision", "reason")
        else:
            return None
        kept = [entry for entry in kept if entry["alias"] == facts["alias"]]
        return kept[-1] if kept and all(kept[-1][n] == facts[n] for n in names) else None

    return same


def _promotions(entries: list[ledger.Entry], version: str) -> list[ledger.Entry]:
    """The promotions, and the rollbacks of one version, which take its promotion back."""
    return [
        entry
        for entry in entries
        if entry["event"] == PROMOTED
        or (entry["event"] == ROLLED_BACK and entry["version"] == version)
    ]


def _roll_back(work: _Work, error: BaseException) -> None:
    """As it was before, as far as the platform lets us; the ledger says why, and what is left."""
    left = []
    for undo in (_restore_traffic, _restore_alias):
        try:
            undo(work)
        except Exception as problem:  # the rest has to be undone all the same
            left.append(endpoint.reason_of(problem))
    reason = endpoint.reason_of(error)
    if left:
        reason += f"; not undone: {'; '.join(left)}"
    work.say(f"rolled back: {reason}")
    with contextlib.suppress(PipestillError):  # the error that led here is the news
        _record(work, ROLLED_BACK, reason)


def _restore_traffic(work: _Work) -> None:
    """The traffic of before; the new one, and a deployment that was left half-way, are undeployed.

    Where an earlier run had given the new one traffic already, production gets all of it back.
    """
    if work.endpoint is None:
        return
    now = endpoint.traffic(work.endpoint, work.settings)
    back = {key: share for key, share in work.before.items() if share}
    if work.new in back:
        old = endpoint.deployed_versions(work.endpoint, work.settings)
        back = {key: 100 for key in list(now) if work.old and old[key] == work.old.version_id}
    if back and {key: share for key, share in now.items() if share} != back:
        endpoint.set_traffic(work.endpoint, back, work.settings)
    for deployed in now:
        if deployed not in work.before or deployed == work.new:
            endpoint.undeploy(work.endpoint, deployed, work.settings)


def _restore_alias(work: _Work) -> None:
    if not work.version:
        return
    found = registry.versions(work.version.model, work.settings)
    named = registry.aliased(found, work.options.alias)
    if named is None or (work.old and named.version_id == work.old.version_id):
        return
    if work.old:
        registry.move_alias(work.old, work.options.alias, work.settings)
    else:
        registry.remove_alias(named, work.options.alias, work.settings)


def who(settings: Settings) -> str:
    """The account that acts."""
    for name in ("service_account_email", "signer_email"):
        account = getattr(settings.credentials, name, "")
        if isinstance(account, str) and "@" in account:
            return account
    if settings.service_account:
        return settings.service_account
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user has no name
        return "unknown"


def deploy_component(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`deploy` with the parameters of the component `deploy_endpoint`, by name."""
    from pipestill.config import pick

    options = pick(DeployOptions, given)
    settings = Settings(
        labels=endpoint.labels_of(given["labels"]),
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
