"""Where rows come from: one reference → the files it names, each with a way to open it.

A reference is a local file, folder or glob, ``gs://…``, ``hf://…`` or ``pocket:train`` and
the like for the embedded task. Nothing else is opened: no http, no other object stores.
"""

import difflib
import glob
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipestill.data.text import excerpt, printable
from pipestill.errors import PipestillError, UserError

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
ENDINGS = (*TEXTS, ".parquet", *(f"{ending}.gz" for ending in TEXTS))
# scheme → (module that must be installed, the extra that installs it)
REMOTE = {"gs": ("google.cloud.storage", "gcp"), "hf": ("huggingface_hub", "hub")}
_EMBEDDED = ("train", "eval", "teacher", "preferences", "prompts", "replies")
POCKET = {f"pocket:{name}": f"{name}.jsonl" for name in _EMBEDDED}
_ALLOWED = f"allowed: a local file, folder or glob, gs://…, hf://…, {', '.join(POCKET)}"


@dataclass(frozen=True)
class SourceFile:
    """One file: `name` for messages, `path` for its `filesystem` (None = local)."""

    name: str
    path: str
    filesystem: Any = None


def list_files(uri: str) -> list[SourceFile]:
    """Resolves a reference to its files, in natural order (part_2 before part_10).

    Of a folder the files directly inside with a known ending count; hidden files and those that
    begin with an underscore do not. A glob counts as written; ``**`` goes into subfolders.

    Raises:
        UserError: ``DATA_NOT_FOUND``, ``DATA_UNREADABLE``, ``DATA_SCHEME``, ``EXTRA_MISSING``.
    """
    if not uri.strip() or "\0" in uri:
        raise UserError("DATA_NOT_FOUND", f"no data reference: found {excerpt(uri)}", _ALLOWED)
    if uri.startswith("pocket:"):
        return [_pocket_file(uri)]
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    with readable(uri):
        return _remote_files(uri, scheme.group(1)) if scheme else _local_files(uri)


def open_file(file: SourceFile) -> IO[bytes]:
    """Opens for reading bytes; the caller closes it. Failures surface inside `readable`."""
    if file.filesystem is None:
        return open(file.path, "rb")
    # The buffer gives readline() its limit, which fsspec's own files lack.
    return io.BufferedReader(file.filesystem.open(file.path, "rb"))


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns failures of opening and reading `name` into one-line errors."""
    try:
        yield
    except PipestillError:
        raise
    except FileNotFoundError as error:
        raise _not_found(name) from error
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(
            "DATA_UNREADABLE",
            f"{printable(name)}: cannot be read ({printable(reason)})",
            "check the path and its permissions",
        ) from error
    except Exception as error:
        if not name.startswith(tuple(f"{scheme}://" for scheme in REMOTE)):
            raise
        lines = str(error).splitlines() or [""]
        raise UserError(
            "DATA_UNREADABLE",
            f"{printable(name)}: {type(error).__name__}: {printable(lines[0])}",
            "check the name, the network and your credentials",
        ) from error


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts part_2 before part_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def counts_in_folder(name: str) -> bool:
    """Whether a file of a folder holds rows, by its name."""
    return not name.startswith((".", "_")) and name.lower().endswith(ENDINGS)


def _pocket_file(uri: str) -> SourceFile:
    from pipestill.pocket import DATA_DIR

    if uri not in POCKET:
        raise UserError("DATA_NOT_FOUND", f"{printable(uri)}: no such embedded data", _ALLOWED)
    return SourceFile(uri, str(DATA_DIR / POCKET[uri]))


def _local_files(uri: str) -> list[SourceFile]:
    path = os.path.expanduser(uri)
    if os.path.lexists(path):
        os.stat(path)  # a broken link or a loop says so here
    else:
        return _local_glob(uri, path)
    if os.path.isfile(path):
        return [SourceFile(printable(uri), path)]
    if not os.path.isdir(path):
        raise UserError("DATA_UNREADABLE", f"{printable(uri)}: neither a file nor a folder")
    inside = sorted(os.listdir(path), key=natural_key)
    names = [name for name in inside if counts_in_folder(name)]
    paths = [os.path.join(path, name) for name in names]
    return _some(uri, [p for p in paths if os.path.isfile(p)], inside)


def _local_glob(uri: str, path: str) -> list[SourceFile]:
    if not glob.has_magic(path):
        os.stat(path)  # raises what is wrong: absent, or no permission on the way
    found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    return _some(uri, sorted(found, key=natural_key), [])


def _some(uri: str, paths: list[str], inside: list[str]) -> list[SourceFile]:
    if paths:
        return [SourceFile(printable(path), path) for path in paths]
    seen = f"found {printable(', '.join(inside[:5]))}" if inside else "nothing found"
    raise UserError(
        "DATA_NOT_FOUND",
        f"{printable(uri)}: no data files ({seen}; allowed endings: {' '.join(TEXTS)}, each also "
        "with .gz, and .parquet)",
        "name a file, or a glob such as folder/*.jsonl",
    )


def _remote_files(uri: str, scheme: str) -> list[SourceFile]:
    filesystem = remote_filesystem(uri, scheme)
    root = f"{scheme}://"
    path = uri.removeprefix(root)
    if glob.has_magic(path):
        found = [p for p in filesystem.glob(path) if not p.endswith("/")]
        inside: list[str] = []
    elif filesystem.info(path)["type"] == "directory":
        inside = [
            entry["name"] for entry in filesystem.ls(path, detail=True) if entry["type"] == "file"
        ]
        found = [p for p in inside if counts_in_folder(Path(p).name)]
    else:
        return [SourceFile(printable(uri), path, filesystem)]
    if not found:
        _some(uri, [], inside)
    return [SourceFile(printable(root + p), p, filesystem) for p in sorted(found, key=natural_key)]


def remote_filesystem(uri: str, scheme: str) -> Any:
    """The fsspec file system of a remote reference."""
    if scheme not in REMOTE:
        raise UserError("DATA_SCHEME", f"{printable(uri)}: {scheme}:// is not read here", _ALLOWED)
    module, extra = REMOTE[scheme]
    if not _is_installed(module):
        raise UserError(
            "EXTRA_MISSING",
            f"{printable(uri)}: reading {scheme}:// needs the package {module}",
            f"pip install 'pipestill[{extra}]'",
        )
    if scheme == "gs":
        from pipestill.cloud.filesystem import CloudFiles

        return CloudFiles()
    import fsspec

    return fsspec.filesystem(scheme)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that would hold it
        return False


def _not_found(name: str) -> UserError:
    path = Path(name)
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.5)
    except OSError:
        near = []
    hint = f"did you mean {path.with_name(near[0])}?" if near else _ALLOWED
    return UserError(
        "DATA_NOT_FOUND", f"{printable(name)}: no such file or folder", printable(hint)
    )
