"""One file of stored teacher probabilities: whole rows, end to end (N target tokens of R rows).

- ``offsets`` (R+1) int64: where each row's tokens begin; the rows' ids stand in the file's header;
- ``tokens`` (N): the target tokens themselves, so that a reader can tell whether they are its own;
- ``ids`` (N, k): token ids, uint16 where the vocabulary allows, else int32;
- ``logprobs`` (N, k), ``label_logprobs`` (N): true log-soft-max at the store's tau, in fp16, whose
  eleven bits are three more than those of bf16; what is below its range is stored as its least.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipestill.errors import UserError
from pipestill.records import write_bytes, write_json

SHARD_BYTES = 32 << 20  # of one shard; also what a killed run loses at most
SMALL_VOCABULARY = 1 << 16  # ids below it fit into two bytes
HEADER = "ids"  # the one entry of a shard's header: several have no fixed order
AGAIN = "run teacher_logits again, or copy the whole folder again"


class StoredRow(NamedTuple):
    """The teacher's probabilities of one row's n target tokens.

    tokens (n) int32; ids (n, k) int32 by falling probability; logprobs (n, k) and label_logprobs
    (n), rounded to fp16 once stored; the row's id.
    """

    tokens: Any
    ids: Any
    logprobs: Any
    label_logprobs: Any
    id: str


def write_shard(path: Path, rows: Sequence[StoredRow], vocabulary_size: int) -> dict[str, Any]:
    """Writes one shard at once; returns its entry of `store.json`."""
    import torch
    from safetensors.torch import save

    small = torch.uint16 if vocabulary_size <= SMALL_VOCABULARY else torch.int32
    lengths = [len(row.tokens) for row in rows]
    tensors = {
        "offsets": torch.tensor([0, *itertools.accumulate(lengths)]),
        "tokens": torch.cat([row.tokens for row in rows]).to(small),
        "ids": torch.cat([row.ids for row in rows]).to(small),
        "logprobs": half(torch.cat([row.logprobs for row in rows])),
        "label_logprobs": half(torch.cat([row.label_logprobs for row in rows])),
    }
    data = save(tensors, metadata={HEADER: json.dumps([row.id for row in rows])})
    write_bytes(path, data)
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "rows": len(rows),
        "tokens": sum(lengths),
    }
    write_json(note(path), entry)
    return entry


def kept_shard(path: Path) -> dict[str, Any] | None:
    """The entry of a shard that an earlier run wrote whole; None where there is none."""
    try:
        entry: dict[str, Any] = json.loads(note(path).read_text(encoding="utf-8"))
        return entry if entry["sha256"] == digest(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def half(logprobs: Any) -> Any:
    """Log-probabilities as they are stored: fp16, without infinities."""
    import torch

    return logprobs.clamp(min=torch.finfo(torch.float16).min).to(torch.float16)


def token_bytes(k: int, vocabulary_size: int) -> int:
    """Bytes that a target token takes."""
    width = 2 if vocabulary_size <= SMALL_VOCABULARY else 4
    return k * (width + 2) + width + 2


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def row_ids(shard: Path) -> list[str]:
    """The ids of a shard's rows, from its header.

    Raises:
        UserError: ``STORE_CHANGED``.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="pt") as mapped:
            found: list[str] = json.loads(mapped.metadata()[HEADER])
            return found
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise changed(shard, f"its header cannot be read ({type(error).__name__})") from error


def note(shard: Path) -> Path:
    """Says that a shard is whole, as long as there is no `store.json`."""
    return shard.with_suffix(".json")


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def changed(shard: Path, what: str) -> UserError:
    """The error of a shard that is not what was written."""
    return UserError("STORE_CHANGED", f"{shard}: {what}", AGAIN)
