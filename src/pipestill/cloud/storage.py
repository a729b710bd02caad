"""Files and folders between here and Cloud Storage, each moved once, by its contents.

A folder that is published lies under the digest of its contents and never changes; ``current.json``
beside it, the pointer, is written last and names it, its files and the folder before it. So readers
see the old folder or the new one, and never a mixture.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipestill.cloud import objects
from pipestill.cloud.objects import Stat
from pipestill.cloud.retries import Conflict
from pipestill.errors import UserError, WorkError

CHUNK_BYTES = 1 << 20
DIGEST_LENGTH = 32  # hex digits of sha256 in the object's name
POINTER = "current.json"
CACHE_ENV = "PIPESTILL_CACHE"


def upload_once(path: str, prefix: str, client: Any = None) -> str:
    """Uploads a file, a folder or what a glob names, unless the same contents lie there already.

    The object's name holds the digest of the contents, so one that exists is the same; the write
    asks the store to refuse where one exists (`if_generation_match=0`), so two people who submit
    at once do not overwrite each other.

    Args:
        path: local file, folder or glob.
        prefix: ``gs://bucket/folder``.
        client: a `google.cloud.storage.Client`; default: one with the default credentials.

    Returns:
        ``gs://…`` of the file, or of the folder.

    Raises:
        UserError: ``DATA_NOT_FOUND``; as `pipestill.cloud.objects.write_bytes`.
    """
    root = target(path, prefix)
    for name, file in local_files(path):
        uri = root if os.path.isfile(path) else f"{root}/{name}"
        if objects.stat(uri, client):
            continue
        with contextlib.suppress(Conflict):  # the same contents, by somebody else
            objects.upload_file(file, uri, if_generation=0, client=client)
    return root


def target(path: str, prefix: str) -> str:
    """Where `upload_once` puts a path, computed without a connection."""
    root = f"{prefix.rstrip('/')}/{content_name(path)}"
    return f"{root}/{Path(path).name}" if os.path.isfile(path) else root


def local_files(path: str) -> list[tuple[str, Path]]:
    """The files of a path by the names they get, sorted; hidden files are left out.

    Raises:
        UserError: ``DATA_NOT_FOUND``.
    """
    given = Path(path)
    if given.is_file():
        return [(given.name, given)]
    if given.is_dir():
        found = [(file.relative_to(given).as_posix(), file) for file in given.rglob("*")]
    else:
        matches = [Path(match) for match in glob.glob(path, recursive=True)]
        root = os.path.commonpath([match.parent for match in matches]) if matches else ""
        found = [(match.relative_to(root).as_posix(), match) for match in matches]
    files = [(name, file) for name, file in sorted(found) if file.is_file() and _counts(name)]
    if not files:
        raise UserError("DATA_NOT_FOUND", f"{path}: no such file, or an empty folder")
    return files


def _counts(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def content_name(path: str) -> str:
    """Hex digest over names and contents."""
    whole = hashlib.sha256()
    for name, file in local_files(path):
        whole.update(f"{name}\0{_file_digest(file)}\n".encode())
    return whole.hexdigest()[:DIGEST_LENGTH]


def _file_digest(file: Path) -> str:
    whole = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            whole.update(block)
    return whole.hexdigest()


def upload_folder(folder: str | Path, uri: str) -> str:
    """Publishes a local folder at `uri`: readers see what stood there before, or all of it.

    Args:
        folder: its files, subfolders included; hidden ones are left out.
        uri: ``gs://bucket/folder``. What was published there before stays, one folder per content.

    Returns:
        ``<uri>/<digest>``, the folder of these contents, for readers that do not follow pointers.

    Raises:
        UserError: ``DEPLOY_DIR`` where other files lie there; ``STORAGE_CONFLICT`` where somebody
            else published at the same time; as `pipestill.cloud.objects.write_bytes`.
    """
    place, name = uri.rstrip("/"), content_name(str(folder))
    pointer = f"{place}/{POINTER}"
    before = objects.stat(pointer)
    foreign = [] if before else objects.list_folder(place)[0]
    if foreign:
        raise UserError(
            "DEPLOY_DIR",
            f"{uri}: holds {foreign[0].uri}, and no {POINTER} of a published folder",
            "choose an empty or a new folder",
        )
    previous = _pointer(pointer)["folder"] if before else None
    files = {}
    for file_name, file in local_files(str(folder)):
        stored = _stored(file, f"{place}/{name}/{file_name}")
        files[file_name] = [stored.size, stored.crc32c]
    text = json.dumps({"folder": name, "previous": previous, "files": files}, indent=1)
    if previous != name:
        objects.write_bytes(pointer, text.encode(), before.generation if before else 0)
    return f"{place}/{name}"


def download_folder(
    uri: str, wanted: Callable[[str], bool] = lambda name: True, cache: Path | None = None
) -> Path:
    """A local copy of a folder, made once per contents and checked file by file.

    It lies in the cache under a digest of the objects' names and generations. A published folder's
    pointer is followed.

    Args:
        uri: ``gs://bucket/folder``; the objects directly in it count.
        wanted: which file names are copied.
        cache: default: ``$PIPESTILL_CACHE``, else ``~/.cache/pipestill``.

    Raises:
        UserError: ``STORAGE_NOT_FOUND`` where no wanted object lies there; ``STORAGE_LOCAL`` where
            the copy cannot be written; as `pipestill.cloud.objects.write_bytes`.
        WorkError: ``STORAGE_DAMAGED`` where a published folder lacks a file.
    """
    found = {Path(item.uri).name: item for item in _current(uri.rstrip("/"))}
    files = {name: found[name] for name in sorted(found) if wanted(name)}
    if not files:
        raise UserError(
            "STORAGE_NOT_FOUND", f"{uri}: no such folder, or no file to load in it", "correct it"
        )
    facts = json.dumps([[item.uri, item.generation, item.crc32c] for item in files.values()])
    default = Path(os.environ.get(CACHE_ENV) or "~/.cache/pipestill").expanduser() / "folders"
    cache = cache or default
    target = cache / hashlib.sha256(facts.encode()).hexdigest()[:DIGEST_LENGTH]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # processes of one machine share one download
            if not target.is_dir():
                _fill(target, files)
    except OSError as error:
        raise UserError(
            "STORAGE_LOCAL",
            f"{uri}: cannot be copied to {target} ({error.strerror or error})",
            f"free space there, or set {CACHE_ENV} to another folder",
        ) from error
    return target


def _fill(target: Path, files: Mapping[str, Stat]) -> None:
    """Downloads to a temporary folder that becomes `target` when it is whole."""
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for name, expected in files.items():
            if objects.download_file(expected.uri, work / name) != expected:
                raise WorkError(
                    "STORAGE_DAMAGED",
                    f"{expected.uri}: was replaced while its folder was copied",
                    "run it again",
                )
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _current(uri: str) -> list[Stat]:
    """The objects of a folder, or of the folder that its pointer names."""
    files, _ = objects.list_folder(uri)
    if not any(item.uri == f"{uri}/{POINTER}" for item in files):
        return files
    pointer = _pointer(f"{uri}/{POINTER}")
    files, _ = objects.list_folder(f"{uri}/{pointer['folder']}", deep=True)
    there = {item.uri: [item.size, item.crc32c] for item in files}
    for name, facts in pointer["files"].items():
        if there.get(f"{uri}/{pointer['folder']}/{name}") != facts:
            raise WorkError(
                "STORAGE_DAMAGED",
                f"{uri}/{pointer['folder']}/{name}: missing or changed since it was published",
                "publish the folder again",
            )
    return files


def _pointer(uri: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(objects.read_bytes(uri))
        if re.fullmatch(r"[0-9a-f]+", found["folder"]) and isinstance(found["files"], dict):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError("DEPLOY_DIR", f"{uri}: is no pointer to a published folder", "remove it")


def _stored(file: Path, uri: str) -> Stat:
    """Uploads a file where nothing stands; what stands there has to be the same."""
    try:
        return objects.upload_file(file, uri, if_generation=0)
    except Conflict:
        there = objects.stat(uri)
        with file.open("rb") as source:
            if there and (there.size, there.crc32c) == objects.crc32c(source):
                return there
        raise
