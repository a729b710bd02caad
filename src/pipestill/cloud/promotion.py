"""One deployment's state, its line in the ledger, and how it is undone."""

import contextlib
import getpass
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipestill.cloud import endpoint, ledger, registry
from pipestill.cloud.client import Settings
from pipestill.cloud.deploy_options import DeployOptions, machine_of
from pipestill.cloud.registry import Version
from pipestill.errors import PipestillError

PROMOTED, ROLLED_BACK, NOT_PROMOTED = "promoted", "rolled_back", "not_promoted"
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
class Work:
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


def record(work: Work, event: str, reason: str) -> dict[str, Any]:
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
        "machine": machine_of(work.options),
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


def roll_back(work: Work, error: BaseException) -> None:
    """As it was before, as far as the platform lets us; the ledger says why, and what is left."""
    left = []
    for undo in (_restore_traffic, _restore_alias):
        try:
            undo(work)
        except Exception as problem:  # the rest has to be undone all the same
            left.append(_reason_of(problem))
    reason = _reason_of(error)
    if left:
        reason += f"; not undone: {'; '.join(left)}"
    work.say(f"rolled back: {reason}")
    with contextlib.suppress(PipestillError):  # the error that led here is the news
        record(work, ROLLED_BACK, reason)


def _restore_traffic(work: Work) -> None:
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


def _restore_alias(work: Work) -> None:
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


def _reason_of(error: BaseException) -> str:
    """One line for the ledger."""
    if isinstance(error, PipestillError):
        return f"[{error.code}] {error.message}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
