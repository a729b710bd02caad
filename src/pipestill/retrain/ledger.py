"""The append-only ledger of ticks, and the alias that names the model in production.

``ledger.jsonl`` has one line a tick, each with the sha256 of the line before it, so that a line
taken out or changed shows. A tick that has a line never gets another one. ``production.json`` is
the alias: replaced in one move, and only after the promotion stands in the ledger. The folder is
local or ``gs://``, where every write names the generation that it replaces.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipestill.cloud import ledger
from pipestill.errors import UserError
from pipestill.evaluation.gate import PROMOTE
from pipestill.retrain import store

LEDGER, ALIAS = "ledger.jsonl", "production.json"
NOT_TRAINED = "not_trained"
Entry = dict[str, Any]


@dataclass(frozen=True)
class Book:
    """The folder of one retraining: its ledger, alias, ticks and promoted models."""

    root: str

    @classmethod
    def at(cls, folder: str | Path) -> "Book":
        """The book in a folder.

        Raises:
            UserError: ``RETRAIN_DIR`` where none is given, or it cannot be made.
        """
        text = str(folder)
        if not text:
            raise UserError(
                "RETRAIN_DIR",
                "retrain_dir: none given",
                "name a folder that outlives the runs: ledger, windows and promoted models",
            )
        if text.startswith(store.SCHEME):
            return cls(text.rstrip("/"))
        try:
            Path(text).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "RETRAIN_DIR", f"{text}: cannot be made ({error.strerror or error})"
            ) from error
        return cls(text)

    def uri(self, *names: str) -> str:
        """The address of one of its files."""
        return store.join(self.root, *names)

    def tick(self, tick: str, name: str) -> str:
        """The address of a file of a tick."""
        return self.uri("ticks", tick, name)

    def entries(self) -> list[Entry]:
        """All entries in order.

        Raises:
            UserError: ``LEDGER_BROKEN`` naming the line that is unreadable or does not follow.
        """
        return ledger.read(self.uri(LEDGER))

    def entry(self, tick: str) -> Entry | None:
        """The tick's entry, None where it has none yet."""
        return _of(tick, self.entries())

    def last_trained(self, before: str) -> Entry | None:
        """The latest tick before `before` that trained a model."""
        found = [
            entry
            for entry in self.entries()
            if entry["decision"] != NOT_TRAINED and entry["tick"] < before
        ]
        return max(found, key=lambda entry: str(entry["tick"]), default=None)

    def append(self, facts: Mapping[str, Any], now: datetime | None = None) -> tuple[Entry, bool]:
        """Adds the tick's entry; (the entry, True), or the one that stands there and False."""
        tick = str(facts["tick"])
        return ledger.append(
            self.uri(LEDGER), facts, same=lambda entries: _of(tick, entries), now=now
        )

    def production(self) -> Mapping[str, Any] | None:
        """What the alias names: ``model`` (folder), ``tick``, ``number``; None before any.

        Raises:
            UserError: ``ALIAS``.
        """
        uri = self.uri(ALIAS)
        alias = _alias(store.read(uri), uri)
        if alias is not None and not store.has_model(self.uri(str(alias["model"]))):
            raise UserError(
                "ALIAS",
                f"{uri}: {alias['model']} is no model's folder",
                "restore the folder, or the alias's file",
            )
        return alias

    def model_of(self, alias: Mapping[str, Any]) -> str:
        """The folder that an alias names, as a step reads it; it stands relative to the book."""
        return store.mounted(self.uri(str(alias["model"])))

    def point(self, entry: Mapping[str, Any]) -> bool:
        """Moves the alias to a promoted entry's model, never back to an earlier promotion's."""
        if entry["decision"] != PROMOTE:
            return False
        uri = self.uri(ALIAS)

        def moved(data: bytes | None) -> bytes | None:
            now = _alias(data, uri)
            if now is not None and int(now["number"]) >= int(entry["number"]):
                return None
            alias = {key: entry[key] for key in ("model", "model_digest", "tick", "number")}
            return (json.dumps(alias, indent=2) + "\n").encode()

        return store.change(uri, moved)


def _of(tick: str, entries: list[Entry]) -> Entry | None:
    return next((entry for entry in entries if entry["tick"] == tick), None)


def _alias(data: bytes | None, uri: str) -> Mapping[str, Any] | None:
    if data is None:
        return None
    try:
        value: Mapping[str, Any] = json.loads(data)
        _ = value["model"], value["tick"], int(value["number"])
        return value
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError("ALIAS", f"{uri}: no alias ({error})", "restore the file") from error
