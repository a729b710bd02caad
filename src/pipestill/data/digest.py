"""What the inputs contain, and what the code is, as one string that cached steps are keyed by."""

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipestill.data.source import SourceFile, list_files, open_file, readable

CHUNK_BYTES = 1 << 20
CODE_VERSION_ENV = "PIPESTILL_CODE_VERSION"
# What stores say about an object's content without a download: Google Cloud Storage, then the hub.
IDENTITY_KEYS = ("generation", "crc32c", "blob_id", "lfs")


def run_digest(**uris: str) -> str:
    """sha256 hex over the contents of all inputs and over the library's code.

    Local files are read in blocks; of objects in a store that names their content, generation,
    checksum and size count and nothing is downloaded. Names count relative to the folder or glob,
    so moving the data keeps the digest and renaming a part changes it.

    Args:
        uris: role → what `pipestill.data.source.list_files` takes; "" counts as absent.

    Raises:
        UserError: where an input cannot be found or read.
    """
    whole = hashlib.sha256(code_digest().encode())
    for role, uri in sorted(uris.items()):
        if uri:
            whole.update(f"\n{role}:{content_digest(uri)}".encode())
    return whole.hexdigest()


def content_digest(uri: str) -> str:
    """sha256 hex over the contents that a reference names."""
    files = list_files(uri)
    root = os.path.commonpath([os.path.dirname(file.path) for file in files])
    whole = hashlib.sha256()
    for file in files:
        name = os.path.relpath(file.path, root) if root else file.path
        with readable(file.name):
            whole.update(os.fsencode(name) + b"\0" + _file_digest(file).encode() + b"\n")
    return whole.hexdigest()


def _file_digest(file: SourceFile) -> str:
    if file.filesystem is not None:
        identity = _identity(file.filesystem.info(file.path))
        if identity:
            return hashlib.sha256(identity.encode()).hexdigest()
    whole = hashlib.sha256()
    with open_file(file) as stream:
        while block := stream.read(CHUNK_BYTES):
            whole.update(block)
    return whole.hexdigest()


def _identity(info: dict[str, Any]) -> str:
    """Generation, checksum and size as text; "" where the store gives a size alone."""
    known = [f"{key}={info[key]}" for key in IDENTITY_KEYS if info.get(key)]
    return ";".join([*known, f"size={info.get('size')}"]) if known else ""


def code_digest() -> str:
    """sha256 hex over the package's code, prompts and embedded models.

    ``PIPESTILL_CODE_VERSION``, where set (images set it), is taken instead.
    """
    version = os.environ.get(CODE_VERSION_ENV, "").strip()
    if version:
        return hashlib.sha256(f"version:{version}".encode()).hexdigest()
    whole = hashlib.sha256()
    for name, path in sorted(_code_files()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()


def _code_files() -> Iterator[tuple[str, Path]]:
    """Name and path of every file of the package, wherever an editable install maps its parts.

    Pipelines only wire the steps, so they do not count.
    """
    for package in ("pipestill", "pipestill.components"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in Path(folder).rglob("*"):
                parts = path.relative_to(folder).parts
                inside = package == "pipestill" and parts[0] in ("components", "pipelines")
                if path.is_file() and not inside and _is_code(path):
                    yield f"{package}/{'/'.join(parts)}", path


def _is_code(path: Path) -> bool:
    return "__pycache__" not in path.parts and not path.name.startswith(".")
