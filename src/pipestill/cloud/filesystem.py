"""``gs://`` as the file system that the rest of the library opens, lists and writes.

It knows whole objects only: there is no handle for writing, because closing one after an error
would store half a file.
"""

from pathlib import Path
from typing import IO, Any

from fsspec import AbstractFileSystem

from pipestill.cloud import objects
from pipestill.cloud.objects import Stat
from pipestill.cloud.retries import SCHEME, split


def open_url(url: str | Path) -> tuple[Any, str]:
    """The file system of a path or address, and the path within it; ``gs://`` is this module's.

    Raises:
        UserError: ``STORAGE_ADDRESS``.
    """
    from fsspec.core import url_to_fs

    text = str(url)
    if not text.startswith(SCHEME):
        files, path = url_to_fs(text)
        return files, path
    bucket, name = split(text)
    return CloudFiles(), f"{bucket}/{name}".rstrip("/")


class CloudFiles(AbstractFileSystem):  # type: ignore[misc]
    """Paths are ``bucket/name``. Errors are those of `pipestill.cloud.objects`."""

    protocol = ("gs", "gcs")
    cachable = False  # nothing is kept between calls, so nothing can be out of date

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Of an object also `generation` and `crc32c`.

        Raises:
            FileNotFoundError: neither an object nor a folder.
        """
        path = self._strip_protocol(path)
        found = objects.stat(SCHEME + path) if "/" in path else None
        if found:
            return _entry(found)
        files, folders = objects.list_folder(SCHEME + path)
        if "/" in path and not files and not folders:
            raise FileNotFoundError(2, "no such object", SCHEME + path)
        return {"name": path, "size": 0, "type": "directory"}

    def exists(self, path: str, **_: Any) -> bool:
        """False only where the service says so; a failure is raised."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        files, folders = objects.list_folder(SCHEME + path)
        found = [_entry(item) for item in files]
        found += [
            {"name": item.removeprefix(SCHEME), "size": 0, "type": "directory"} for item in folders
        ]
        if not found:
            described = self.info(path)
            found = [described] if described["type"] == "file" else []
        return found if detail else [item["name"] for item in found]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> IO[bytes]:
        if mode != "rb":
            raise NotImplementedError("objects are written whole: pipe_file or put_file")
        return objects.open_read(SCHEME + path)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        return objects.read_bytes(SCHEME + self._strip_protocol(path))[start:end]

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        objects.download_file(SCHEME + self._strip_protocol(rpath), lpath)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """`mode` create: `Conflict` where something stands there."""
        objects.write_bytes(SCHEME + self._strip_protocol(path), value, _generation(mode))

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **_: Any) -> None:
        objects.upload_file(lpath, SCHEME + self._strip_protocol(rpath), _generation(mode))

    def rm_file(self, path: str) -> None:
        objects.delete(SCHEME + self._strip_protocol(path))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        path = self._strip_protocol(path)
        if recursive:
            for found in objects.list_folder(SCHEME + path, deep=True)[0]:
                objects.delete(found.uri)
        self.rm_file(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: a bucket has no folders."""


def _entry(found: Stat) -> dict[str, Any]:
    return {
        "name": found.uri.removeprefix(SCHEME),
        "size": found.size,
        "type": "file",
        "generation": str(found.generation),
        "crc32c": found.crc32c,
    }


def _generation(mode: str) -> int | None:
    return 0 if mode == "create" else None
