"""The teacher's probabilities on disk: of every target token the k largest and the label's own.

A store is a folder of shards (`pipestill.generation.logits_shard`) and `store.json`, which is
written last and holds the digest of every shard: a folder without it, or with a shard that was cut
off or changed, is refused. Shards are memory-mapped and read when a row of theirs is asked for.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.generation.logits_shard import (
    AGAIN,
    SHARD_BYTES,
    StoredRow,
    changed,
    digest,
    note,
    row_ids,
    shard_name,
    token_bytes,
    write_shard,
)
from pipestill.records import write_json

STORE_FILE = "store.json"
VERSION = 1


@dataclass
class Store:
    """An open store, see `open_store`. `digest` is that of all shards and settings."""

    folder: Path
    k: int
    tau: float
    targets: str
    vocabulary_digest: str
    vocabulary_size: int
    tokens: int
    bytes: int
    digest: str
    shards: list[dict[str, Any]] = field(repr=False)
    _places: dict[str, tuple[int, int]] = field(repr=False)
    _mapped: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk for each target token; 0 for an empty store."""
        return self.bytes / self.tokens if self.tokens else 0.0

    def rows(self, ids: Sequence[str]) -> list[StoredRow]:
        """The rows of these ids, in their order, with log-probabilities in fp32.

        Raises:
            UserError: ``STORE_NO_ROW``; ``STORE_CHANGED`` where a shard is not what was written.
        """
        return [self._row(name) for name in ids]

    def _row(self, name: str) -> StoredRow:
        if name not in self._places:
            for number in range(len(self.shards)):
                self._shard(number)  # a shard whose list of rows was damaged says so
            raise UserError(
                "STORE_NO_ROW",
                f"{self.folder}: no teacher probabilities for row {name!r} ({len(self)} rows, "
                f"top_k {self.k})",
                "run teacher_logits on the same rows with top_k above 0",
            )
        number, row = self._places[name]
        shard = self._shard(number)
        begin, end = shard["offsets"][row : row + 2].tolist()
        tokens, ids, logprobs, label = (
            shard[part][begin:end] for part in ("tokens", "ids", "logprobs", "label_logprobs")
        )
        return StoredRow(_whole(tokens), _whole(ids), logprobs.float(), label.float(), name)

    def _shard(self, number: int) -> dict[str, Any]:
        """The tensors of a shard, mapped; its digest is checked the first time."""
        if number not in self._mapped:
            from safetensors import safe_open

            path = self.folder / self.shards[number]["file"]
            if digest(path) != self.shards[number]["sha256"]:
                raise changed(path, "its content is not what was written")
            with safe_open(path, framework="pt") as mapped:
                self._mapped[number] = {name: mapped.get_tensor(name) for name in mapped.keys()}  # noqa: SIM118
        return self._mapped[number]


def write_store(
    folder: str | Path,
    rows: Iterable[StoredRow],
    *,
    k: int,
    tau: float,
    targets: str,
    vocabulary_digest: str,
    vocabulary_size: int,
    shard_bytes: int = SHARD_BYTES,
) -> Store:
    """Writes a store from rows that come one after the other.

    Args:
        folder: where to.
        rows: each with the same k.
        k: ids of a token; 0 makes an empty store.
        tau: the temperature of the log-probabilities.
        targets: whose text the rows hold, ``teacher`` or ``label``.
        vocabulary_digest: of the tokenizer, `pipestill.training.teacher_states.vocabulary_digest`.
        vocabulary_size: ids that mean the same to teacher and student.
        shard_bytes: a shard is closed when it holds so many.
    """
    shards: list[dict[str, Any]] = []
    for part in _cut(rows, max(1, shard_bytes // token_bytes(k, vocabulary_size))):
        shards.append(write_shard(Path(folder) / shard_name(len(shards)), part, vocabulary_size))
    return close_store(
        folder,
        shards,
        k=k,
        tau=tau,
        targets=targets,
        vocabulary_digest=vocabulary_digest,
        vocabulary_size=vocabulary_size,
    )


def close_store(
    folder: str | Path, shards: Sequence[dict[str, Any]], *, k: int, **facts: Any
) -> Store:
    """Writes `store.json` beside the shards, which have to be there, and opens the store.

    Args:
        folder: holds the shards.
        shards: entries from `write_shard` or `kept_shard`, in order.
        k: as in `write_store`.
        facts: tau, targets, vocabulary_digest and vocabulary_size, as in `write_store`.
    """
    for entry in shards:
        note(Path(folder) / entry["file"]).unlink(missing_ok=True)
    about = {"version": VERSION, "k": k, **facts, "shards": list(shards)}
    whole = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    totals = {name: sum(entry[name] for entry in shards) for name in ("rows", "tokens", "bytes")}
    write_json(Path(folder) / STORE_FILE, {**about, **totals, "digest": whole})
    return open_store(folder)


def open_store(folder: str | Path) -> Store:
    """Opens a store; reads the headers of its shards and maps their tensors when asked for.

    Raises:
        UserError: ``STORE_MISSING`` (no `store.json`), ``STORE_UNREADABLE``, ``STORE_CHANGED``
            naming the shard that is missing or has another size.
    """
    path = Path(folder) / STORE_FILE
    if not path.is_file():
        raise UserError(
            "STORE_MISSING", f"{folder}: no {STORE_FILE}, so the store is not complete", AGAIN
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        names = ("k", "tau", "targets", "vocabulary_digest", "vocabulary_size", "tokens", "bytes")
        facts = {name: about[name] for name in (*names, "digest", "shards")}
        expected = [(entry["file"], entry["bytes"]) for entry in facts["shards"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            "STORE_UNREADABLE", f"{path}: not a store ({type(error).__name__}: {error})", AGAIN
        ) from error
    shards = [Path(folder) / Path(name).name for name, _ in expected]
    for shard, (_, size) in zip(shards, expected, strict=True):
        if not shard.is_file() or shard.stat().st_size != size:
            raise changed(shard, f"it is missing or does not have {size} bytes")
    places = {
        name: (number, row)
        for number, shard in enumerate(shards)
        for row, name in enumerate(row_ids(shard))
    }
    return Store(folder=Path(folder), **facts, _places=places)


def check_store(store: Store, *, tau: float, targets: str, vocabulary_digest: str) -> None:
    """Refuses a store that was made for something else.

    Raises:
        UserError: ``STORE_EMPTY``, ``STORE_TAU``, ``STORE_TARGETS``, ``STORE_TOKENIZER``.
    """
    rules = [
        ("STORE_EMPTY", store.k > 0, "it holds no probabilities (top_k 0, or two vocabularies)"),
        ("STORE_TAU", store.tau == tau, f"it was stored at tau {store.tau}, wanted: {tau}"),
        ("STORE_TARGETS", store.targets == targets, f"targets: {store.targets}, wanted: {targets}"),
        (
            "STORE_TOKENIZER",
            store.vocabulary_digest == vocabulary_digest,
            f"its token ids are those of tokenizer {store.vocabulary_digest[:12]}, the student's "
            f"is {vocabulary_digest[:12]}",
        ),
    ]
    for code, fine, found in rules:
        if not fine:
            raise UserError(
                code,
                f"{store.folder}: {found}",
                "run teacher_logits with the settings of this run, or set teacher_source to online",
            )


def _cut(rows: Iterable[StoredRow], most: int) -> Iterator[list[StoredRow]]:
    """The rows in parts of at most `most` tokens, one row at least."""
    part: list[StoredRow] = []
    tokens = 0
    for row in rows:
        if part and tokens + len(row.tokens) > most:
            yield part
            part, tokens = [], 0
        part.append(row)
        tokens += len(row.tokens)
    if part:
        yield part


def _whole(values: Any) -> Any:
    import torch

    return values.to(torch.int32)
