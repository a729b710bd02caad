"""Checkpoints of a run: safetensors and JSON, never pickle; torn ones are found and passed over.

A checkpoint is a folder ``step-000100``. Its `state.json`, written last and by rename, holds the
digests of the tensor files: a folder without it, or with other digests, does not count. This needs
no renaming of folders, which mounted buckets cannot do.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.records import write_json

KEPT = 2
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: its JSON state and named tensors by file."""

    state: dict[str, Any]
    tensors: dict[str, dict[str, Any]]


def run_folder(state_dir: str, *facts: Any) -> Path | None:
    """The folder of the run that `facts` describe; None where there is no state folder.

    Anything that would change the result belongs into `facts`; the code of the library is added.
    """
    if not state_dir:
        return None
    text = json.dumps([code_version(), *map(_plain, facts)], sort_keys=True)
    return Path(state_dir) / "checkpoints" / hashlib.sha256(text.encode()).hexdigest()[:32]


def code_version() -> str:
    """sha256 over the sources that decide a run's result, and torch's version."""
    import torch

    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(torch.__version__.encode())
    for room in ("losses", "models", "training"):
        for path in sorted((package / room).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def save(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of `step`, then removes all but the last two."""
    from safetensors.torch import save_file

    place = folder / f"step-{step:06d}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    digests = {}
    for name, tensors in checkpoint.tensors.items():
        path = place / f"{name}.safetensors"
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path)
        digests[path.name] = _digest(path)
    write_json(place / STATE_FILE, {"digests": digests, "state": checkpoint.state})
    for old in _places(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; broken ones are named on stderr and passed over."""
    for place in reversed(_places(folder)):
        try:
            return _read(place)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"checkpoint {place.name} is not whole ({error}): passed over", file=sys.stderr)
    return None


def _read(place: Path) -> Checkpoint:
    from safetensors.torch import load_file

    state = json.loads((place / STATE_FILE).read_text(encoding="utf-8"))
    tensors = {}
    for name, digest in state["digests"].items():
        if _digest(place / name) != digest:
            raise ValueError(f"{name} has another content than when it was written")
        tensors[Path(name).stem] = load_file(place / name)
    return Checkpoint(state["state"], tensors)


def _places(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]
