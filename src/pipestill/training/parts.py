"""Finished parts of a long step, kept so that a killed step goes on after the last of them.

A part is a JSON document ``<name>.json``, perhaps with a folder's files in ``<name>/``, on a local
disk or under a URL that fsspec knows. The document holds the files' digests and is written last: a
part without it, or with other files than it says, does not count and is made again.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pipestill.errors import WorkError
from pipestill.records import write_json
from pipestill.training.places import file_digest, first_line, is_local, open_place


def find(place: str | None, name: str, folder: str | Path | None = None) -> dict[str, Any] | None:
    """What `keep` was given, or None where there is no such part; one that is not whole is named.

    Args:
        place: see `pipestill.training.checkpoint.run_folder`; None keeps nothing.
        name: of the part.
        folder: where the part's files are copied to; a folder that is there is replaced.
    """
    if not place:
        return None
    try:
        files, root = open_place(place)
        files.invalidate_cache()
        document = json.loads(files.cat_file(f"{root}/{name}.json"))
        if folder is not None:
            _fetch(files, f"{root}/{name}", document["files"], Path(folder))
        value: dict[str, Any] = document["value"]
        return value
    except Exception as error:  # every file system has exceptions of its own
        if not isinstance(error, FileNotFoundError):
            reason = first_line(error)
            print(f"part {name} in {place} is not whole ({reason}): made again", file=sys.stderr)
        return None


def keep(
    place: str | None, name: str, value: dict[str, Any], folder: str | Path | None = None
) -> None:
    """Writes a part.

    Args:
        place: as of `find`.
        name: of the part.
        value: plain JSON.
        folder: whose files belong to it.

    Raises:
        WorkError: ``PART_NOT_KEPT``.
    """
    if not place:
        return
    try:
        files, root = open_place(place)
        digests = {} if folder is None else _store(files, f"{root}/{name}", Path(folder))
        document = {"files": digests, "value": value}
        files.makedirs(root, exist_ok=True)
        if is_local(files):
            write_json(f"{root}/{name}.json", document)  # by rename
        else:
            files.pipe_file(f"{root}/{name}.json", json.dumps(document).encode())
    except Exception as error:
        raise WorkError(
            "PART_NOT_KEPT",
            f"a finished part could not be written to {place}: {first_line(error)}",
            "free space there or restore access, then start the same run again",
        ) from error


def drop(place: str | None, name: str) -> None:
    """Removes a part; what cannot be removed stays without a word."""
    if not place:
        return
    with contextlib.suppress(Exception):
        files, root = open_place(place)
        files.rm_file(f"{root}/{name}.json")
        files.rm(f"{root}/{name}", recursive=True)


def _store(files: Any, root: str, folder: Path) -> dict[str, str]:
    """Copies the folder's files; returns their digests by relative path."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder).as_posix()
        target = f"{root}/{relative}"
        files.makedirs(target.rpartition("/")[0], exist_ok=True)
        files.put_file(str(path), target)
        digests[relative] = file_digest(path)
    return digests


def _fetch(files: Any, root: str, digests: dict[str, str], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for relative, digest in digests.items():
        target = folder / relative
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{relative} lies outside of its folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(f"{root}/{relative}", str(target))
        if file_digest(target) != digest:
            raise ValueError(f"{relative} has another content than when it was written")
