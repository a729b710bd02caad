"""Files of a retraining's folder, local or ``gs://``: whole, created once, replaced in one move.

In Cloud Storage a creation asks for generation 0 and a replacement for the generation that was
read, so of two writers one is refused. Locally a rename and a lock do the same.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipestill.records import write_bytes
from pipestill.serving.files import is_model_file

SCHEME = "gs://"
TRIES = 20


def join(root: str, *names: str) -> str:
    """The address of a file below `root`."""
    return "/".join([root.rstrip("/"), *names])


def mounted(uri: str) -> str:
    """Where a step that reads models as files finds a ``gs://`` folder: the platform's mount."""
    return uri.replace(SCHEME, "/gcs/", 1) if uri.startswith(SCHEME) else uri


def read(uri: str) -> bytes | None:
    """The whole file, None where there is none."""
    return _read(uri)[0]


def _read(uri: str) -> tuple[bytes | None, int]:
    if not uri.startswith(SCHEME):
        path = Path(uri)
        return (path.read_bytes() if path.exists() else None), 0
    from pipestill.cloud import objects

    found = objects.stat(uri)
    if found is None:
        return None, 0
    return objects.read_bytes(uri), found.generation


def create(uri: str, data: bytes) -> bool:
    """Writes a whole file unless there is one; False where another was first."""
    if uri.startswith(SCHEME):
        from pipestill.cloud import objects
        from pipestill.cloud.retries import Conflict

        try:
            objects.write_bytes(uri, data, 0)
        except Conflict:
            return False
        return True
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            raise
        except OSError:  # a mounted bucket has no links; it refuses a second creation by itself
            with path.open("xb") as out:
                out.write(data)
    except FileExistsError:
        return False
    finally:
        os.unlink(name)
    return True


def change(uri: str, edit: Callable[[bytes | None], bytes | None]) -> bool:
    """Replaces a file by what `edit` makes of it; False where that is None.

    `edit` may be called again where another writer came between reading and writing.
    """
    for attempt in range(TRIES):
        with _locked(uri):
            before, generation = _read(uri)
            after = edit(before)
            if after is None:
                return False
            if not uri.startswith(SCHEME):
                write_bytes(uri, after)
                return True
        from pipestill.cloud import objects
        from pipestill.cloud.retries import Conflict

        try:
            objects.write_bytes(uri, after, generation)
            return True
        except Conflict:
            if attempt + 1 == TRIES:
                raise
    raise AssertionError  # the loop returns or raises


@contextlib.contextmanager
def _locked(uri: str) -> Iterator[None]:
    if uri.startswith(SCHEME):
        yield
        return
    path = Path(uri)
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        with contextlib.suppress(OSError):  # a mounted bucket has no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def put(path: str | Path, uri: str) -> None:
    """Copies a local file there, over what stands there."""
    if uri.startswith(SCHEME):
        from pipestill.cloud import objects

        objects.upload_file(path, uri)
        return
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(path, temporary)
    os.replace(temporary, target)


@contextlib.contextmanager
def local(uri: str) -> Iterator[Path | None]:
    """The file as a local one, None where there is none."""
    if not uri.startswith(SCHEME):
        yield Path(uri) if Path(uri).is_file() else None
        return
    from pipestill.cloud import objects

    if objects.stat(uri) is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pipestill-") as folder:
        path = Path(folder) / uri.rpartition("/")[2]
        objects.download_file(uri, path)
        yield path


def put_model(folder: Path, uri: str) -> None:
    """Copies a model's files: weights, configuration and text, nothing that can run."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.is_symlink() and is_model_file(path):
            put(path, join(uri, path.name))


def has_model(uri: str) -> bool:
    """Whether a model's folder is there."""
    if not uri.startswith(SCHEME):
        return Path(uri, "config.json").is_file()
    from pipestill.cloud import objects

    return objects.stat(join(uri, "config.json")) is not None
