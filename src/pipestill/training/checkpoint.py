"""Checkpoints of a run: safetensors and JSON, never pickle; torn ones are found and passed over.

A checkpoint is a folder ``step-000100`` on a local disk, in a bucket (``gs://bucket/folder``) or
under another URL that fsspec knows. Its `state.json`, the commit marker, is written last and holds
the digests of the tensor files and the name of the run: a folder without it, with other digests or
of another run does not count. This needs no renaming of folders, which buckets cannot do.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill import locks
from pipestill.errors import UserError, WorkError
from pipestill.records import write_json
from pipestill.training.places import file_digest, first_line, is_local, open_place

KEPT = 2
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: its JSON state and named tensors by file."""

    state: dict[str, Any]
    tensors: dict[str, dict[str, Any]]


def run_folder(state_dir: str, *facts: Any) -> str | None:
    """The folder (or URL) of the run that `facts` describe; None where there is no state folder.

    Anything that would change the result belongs into `facts`; the code of the library is added.
    """
    if not state_dir:
        return None
    text = json.dumps([code_version(), *map(_plain, facts)], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return f"{state_dir.rstrip('/')}/checkpoints/{name}"


def code_version() -> str:
    """sha256 over the sources that decide a run's result, and torch's version."""
    import torch

    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(torch.__version__.encode())
    for room in ("losses", "models", "rlhf", "training"):
        for path in sorted((package / room).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def probe(folder: str | Path) -> None:
    """Writes and removes a small file, so that a folder that cannot be written fails in seconds.

    Raises:
        UserError: ``STATE_DIR_UNWRITABLE``.
    """
    try:
        files, root = open_place(folder)
        files.makedirs(root, exist_ok=True)
        name = f"{root}/.probe-{os.getpid()}"
        files.pipe_file(name, b"1")
        files.rm_file(name)
    except Exception as error:  # every file system has exceptions of its own
        raise UserError(
            "STATE_DIR_UNWRITABLE",
            f"checkpoints cannot be written to {folder}: {first_line(error)}",
            "name a state_dir that exists and can be written, or leave it empty for no checkpoints",
        ) from error


@contextlib.contextmanager
def alone(folder: str | Path | None) -> Iterator[None]:
    """One process at a time works on a run in a local folder; another one waits here.

    Two would remove each other's checkpoints. In a bucket nobody waits.
    """
    path = _lock(folder) if folder else None
    if path is None:
        yield
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locks.alone(path, f"trains the same run, whose checkpoints lie in {folder}"):
        yield


def save(folder: str | Path, step: int, checkpoint: Checkpoint, keep: int = KEPT) -> None:
    """Writes the checkpoint of `step`, then removes this run's older ones but for the last `keep`.

    Raises:
        WorkError: ``CHECKPOINT_NOT_WRITTEN``; what was written before it stays as it was.
    """
    files = place = None
    try:
        files, root = open_place(folder)
        place = f"{root}/step-{step:06d}"
        _discard(files, place)
        files.makedirs(place, exist_ok=True)
        digests = _write_tensors(files, place, checkpoint.tensors)
        marker = {"run": _run(root), "digests": digests, "state": checkpoint.state}
        _write_marker(files, place, {**marker, "sha256": _marker_digest(marker)})
    except Exception as error:
        if files is not None and place is not None:
            with contextlib.suppress(Exception):
                _discard(files, place)
        raise WorkError(
            "CHECKPOINT_NOT_WRITTEN",
            f"the checkpoint of step {step} could not be written to {folder}: {first_line(error)}",
            "free space there or restore access, then start the same run again: it goes on from "
            "the checkpoint before this one",
        ) from error
    with contextlib.suppress(Exception):  # what could not be removed is no reason to stop
        _prune(files, root, place, keep)


def latest(folder: str | Path) -> Checkpoint | None:
    """The newest valid checkpoint; torn and foreign ones are named on stderr and passed over.

    Raises:
        WorkError: ``CHECKPOINTS_UNREADABLE`` where the folder itself cannot be listed.
    """
    try:
        files, root = open_place(folder)
        places = _places(files, root)
    except Exception as error:
        raise WorkError(
            "CHECKPOINTS_UNREADABLE",
            f"{folder} cannot be listed: {first_line(error)}",
            "restore access, or name another state_dir to start anew",
        ) from error
    for place in reversed(places):
        try:
            return _read(files, place, _run(root))
        except Exception as error:
            print(f"checkpoint {_name(place)} {_verdict(error)}: passed over", file=sys.stderr)
    return None


def remove(folder: str | Path) -> None:
    """Removes all checkpoints of a run; what cannot be removed stays without a word.

    So do those of a run on which another process has begun to work.
    """
    path = _lock(folder)
    if path is None or locks.is_free(path):
        with contextlib.suppress(Exception):
            _discard(*open_place(folder))


class Foreign(Exception):
    """A whole checkpoint that another run wrote."""


def _write_tensors(files: Any, place: str, tensors: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Writes every group of tensors as one file; returns their digests by file name."""
    from safetensors.torch import save_file

    digests = {}
    with _staged(files, place) as stage:
        for name, group in tensors.items():
            path = stage / f"{name}.safetensors"
            save_file({key: value.detach().contiguous() for key, value in group.items()}, path)
            digests[path.name] = file_digest(path)
            if not is_local(files):
                files.put_file(str(path), f"{place}/{path.name}")
                path.unlink()
    return digests


def _write_marker(files: Any, place: str, marker: dict[str, Any]) -> None:
    if is_local(files):
        write_json(Path(place) / STATE_FILE, marker)  # by rename
    else:
        files.pipe_file(f"{place}/{STATE_FILE}", json.dumps(marker).encode())


def _read(files: Any, place: str, run: str) -> Checkpoint:
    from safetensors.torch import load_file

    marker = _marker(files, place)
    if marker["sha256"] != _marker_digest(marker):
        raise ValueError(f"{STATE_FILE} has another content than when it was written")
    if marker["run"] != run:
        raise Foreign(f"of another run: {marker['run'][:12]}, this one is {run[:12]}")
    tensors = {}
    with _staged(files, place) as stage:
        for name, digest in marker["digests"].items():
            if not is_local(files):
                files.get_file(f"{place}/{name}", str(stage / name))
            if file_digest(stage / name) != digest:
                raise ValueError(f"{name} has another content than when it was written")
            tensors[Path(name).stem] = load_file(stage / name)
    return Checkpoint(marker["state"], tensors)


def _marker(files: Any, place: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(files.cat_file(f"{place}/{STATE_FILE}"))
    except FileNotFoundError:
        raise ValueError(f"no {STATE_FILE}: its writing was cut off") from None
    return found


def _marker_digest(marker: dict[str, Any]) -> str:
    """Digest of a marker's contents but for the digest itself."""
    facts = json.loads(json.dumps({name: marker[name] for name in ("run", "digests", "state")}))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _prune(files: Any, root: str, newest: str, keep: int) -> None:
    """Removes what came before `newest`: torn folders, and this run's past the last `keep`."""
    own = []
    for place in (place for place in _places(files, root) if place < newest):
        try:
            if _marker(files, place)["run"] == _run(root):
                own.append(place)
        except (ValueError, KeyError):
            _discard(files, place)
    for place in own[: max(0, len(own) - (keep - 1))]:
        _discard(files, place)


@contextlib.contextmanager
def _staged(files: Any, place: str) -> Iterator[Path]:
    """The local folder of the tensor files: the place itself, or a temporary one for a bucket."""
    if is_local(files):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="pipestill-checkpoint-") as folder:
        yield Path(folder)


def _places(files: Any, root: str) -> list[str]:
    files.invalidate_cache()  # another process may have written since
    try:
        found = files.ls(root, detail=False)
    except FileNotFoundError:
        return []
    return sorted(place.rstrip("/") for place in found if _name(place).startswith("step-"))


def _discard(files: Any, place: str) -> None:
    if files.exists(place):
        files.rm(place, recursive=True)


def _lock(folder: str | Path) -> Path | None:
    """The lock file of a run in a local folder, beside it; None in a bucket."""
    text = str(folder).rstrip("/")
    return None if "://" in text else Path(f"{text}.lock")


def _run(root: str) -> str:
    """The run's name: that of its folder, which `run_folder` makes from all that decides it."""
    return _name(root)


def _name(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2]


def _verdict(error: Exception) -> str:
    return f"is {error}" if isinstance(error, Foreign) else f"is not whole ({first_line(error)})"


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]
