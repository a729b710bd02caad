"""Objects of Cloud Storage, whole or not at all: reads are checked, writes name what they replace.

Every request is repeated with a growing wait where the service is busy or gone. A download counts
once its size and crc32c are those of the generation that was asked for, which also catches a stale
or spliced answer; an upload carries its crc32c, so that the service refuses damaged bytes, and a
mark of its writer, so that a write whose answer was lost is told from another writer's.
"""

import base64
import functools
import io
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipestill.cloud.client import installed
from pipestill.cloud.retries import (
    SCHEME,
    Damaged,
    explained,
    is_absent,
    retry,
    split,
    until_whole,
)

TIMEOUT_S = 60.0
CHUNK_BYTES = 8 << 20  # of a resumable upload; a multiple of 256 KiB
WHOLE_BYTES = 8 << 20  # up to here an upload is one request
BLOCK_BYTES = 1 << 20
WRITER = "pipestill-writer"  # metadata key


@dataclass(frozen=True)
class Stat:
    """One generation of an object. `crc32c` is base64, `size` in bytes."""

    uri: str
    generation: int
    size: int
    crc32c: str
    writer: str = ""


def stat(uri: str, client: Any = None) -> Stat | None:
    """The object's newest generation; None where there is none."""
    bucket, name = split(uri)
    with explained(uri):
        blob = (client or _client()).bucket(bucket).blob(name)
        try:
            blob.reload(retry=retry(), timeout=TIMEOUT_S)
        except Exception as error:
            if is_absent(error):
                return None
            raise
        return _stat_of(uri, blob)


def read_bytes(uri: str) -> bytes:
    """A whole object; `FileNotFoundError` where there is none."""
    with open_read(uri) as source:
        return source.read()


def open_read(uri: str) -> IO[bytes]:
    """A verified copy of the bytes as stored, in a temporary file that can be sought in."""
    copy = tempfile.TemporaryFile(prefix="pipestill-object-")  # noqa: SIM115
    try:
        _fetch(uri, copy)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy


def download_file(uri: str, path: str | Path) -> Stat:
    """Puts an object at `path` by rename, so that half of it never stands there."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("w+b") as sink:
            found = _fetch(uri, sink)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def write_bytes(uri: str, data: bytes, if_generation: int | None = None) -> int:
    """Writes a whole object.

    Args:
        uri: ``gs://bucket/name``.
        data: the contents.
        if_generation: what must stand there now, 0 = nothing; None: whatever stands there.

    Returns:
        The new generation.

    Raises:
        UserError: `Conflict` ``STORAGE_CONFLICT`` where another writer was first;
            ``STORAGE_BUCKET``, ``STORAGE_DENIED``, ``CLOUD_CREDENTIALS``, ``EXTRA_MISSING``.
        WorkError: ``STORAGE_UNREACHABLE``.
    """
    return _put(uri, io.BytesIO(data), if_generation).generation


def upload_file(
    path: str | Path, uri: str, if_generation: int | None = None, client: Any = None
) -> Stat:
    """As `write_bytes`, from a file; large ones go up in pieces that are repeated one by one."""
    with Path(path).open("rb") as source:
        return _put(uri, source, if_generation, client)


def list_folder(uri: str, *, deep: bool = False) -> tuple[list[Stat], list[str]]:
    """Objects directly in a folder and the addresses of its subfolders; `deep`: all objects below.

    Names that end in a slash, which stand for folders, are left out.
    """
    bucket, name = split(uri)
    prefix = f"{name.rstrip('/')}/" if name.strip("/") else ""
    with explained(uri):
        listing = _client().list_blobs(
            bucket,
            prefix=prefix or None,
            delimiter=None if deep else "/",
            retry=retry(),
            timeout=TIMEOUT_S,
        )
        files = [
            _stat_of(f"{SCHEME}{bucket}/{blob.name}", blob)
            for blob in listing
            if not blob.name.endswith("/")
        ]
        return files, [
            f"{SCHEME}{bucket}/{found}".rstrip("/") for found in sorted(listing.prefixes)
        ]


def delete(uri: str, if_generation: int | None = None) -> None:
    """Removes an object; nothing happens where it is gone already."""
    bucket, name = split(uri)
    with explained(uri):
        blob = _client().bucket(bucket).blob(name)
        try:
            blob.delete(if_generation_match=if_generation, retry=retry(), timeout=TIMEOUT_S)
        except Exception as error:
            if not is_absent(error):
                raise


def crc32c(source: IO[bytes]) -> tuple[int, str]:
    """Bytes and checksum of a stream, from its beginning."""
    with installed():
        import google_crc32c
    source.seek(0)
    checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
    size = 0
    while block := source.read(BLOCK_BYTES):
        checksum.update(block)
        size += len(block)
    return size, base64.b64encode(checksum.digest()).decode()


def _fetch(uri: str, sink: IO[bytes]) -> Stat:
    with installed():
        import urllib3
    bucket, name = split(uri)

    def once() -> Stat:
        found = stat(uri)
        if found is None:
            raise FileNotFoundError(2, "no such object", uri)
        sink.seek(0)
        sink.truncate()
        blob = _client().bucket(bucket).blob(name, generation=found.generation)
        try:
            # Our own check below covers resumed downloads too, which the client's does not.
            blob.download_to_file(
                sink, raw_download=True, checksum=None, retry=retry(), timeout=TIMEOUT_S
            )
        except Exception as error:
            # Clients before 3.0 do not ask again where the connection broke within the body.
            if is_absent(error) or isinstance(error, urllib3.exceptions.HTTPError):
                raise Damaged(f"replaced or cut off while it was read ({error})") from error
            raise
        got = crc32c(sink)
        if got != (found.size, found.crc32c):
            raise Damaged(f"{got[0]} of {found.size} bytes came, crc32c {got[1]}")
        return found

    with explained(uri):
        return until_whole(once)


def _put(uri: str, source: IO[bytes], if_generation: int | None, client: Any = None) -> Stat:
    bucket, name = split(uri)
    size, checksum = crc32c(source)
    token = secrets.token_hex(8)

    def once() -> Stat:
        blob = (client or _client()).bucket(bucket).blob(name, chunk_size=CHUNK_BYTES)
        blob.crc32c, blob.metadata = checksum, {WRITER: token}
        source.seek(0)
        try:
            blob.upload_from_file(
                source,
                size=size if size <= WHOLE_BYTES else None,  # None: resumable
                content_type="application/octet-stream",
                if_generation_match=if_generation,
                checksum="crc32c",
                retry=retry(),
                timeout=TIMEOUT_S,
            )
        except Exception as error:
            return _judged(uri, error, token, client)
        if (blob.size, blob.crc32c) != (size, checksum):
            raise Damaged(f"{size} bytes sent, {blob.size} stored")
        return _stat_of(uri, blob)

    with explained(uri):
        return until_whole(once)


def _judged(uri: str, error: Exception, token: str, client: Any) -> Stat:
    """Whether a refused upload is ours after all, was damaged on its way, or is refused."""
    from google.api_core.exceptions import BadRequest, PreconditionFailed

    if isinstance(error, PreconditionFailed):
        found = stat(uri, client)
        if found and found.writer == token:
            return found  # written at an earlier attempt whose answer was lost
    # The service names the checksum when the bytes that came do not have it; 410: session lost.
    words = ("crc32c", "checksum", "hash")
    damaged = isinstance(error, BadRequest) and any(word in str(error).lower() for word in words)
    if damaged or getattr(error, "code", 0) == 410 or type(error).__name__ == "DataCorruption":
        raise Damaged(str(error)) from error
    raise error


def _stat_of(uri: str, blob: Any) -> Stat:
    return Stat(
        uri=uri,
        generation=int(blob.generation),
        size=int(blob.size),
        crc32c=blob.crc32c,
        writer=(blob.metadata or {}).get(WRITER, ""),
    )


def _client() -> Any:
    """One client per process and server."""
    return _client_of(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST", ""))


@functools.lru_cache(maxsize=1)
def _client_of(process: int, emulator: str) -> Any:
    """Its project is only used to make buckets, which we do not; any name will do."""
    with installed():
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage
    project = os.environ.get("GOOGLE_CLOUD_PROJECT") or "none"
    return storage.Client(project=project, credentials=AnonymousCredentials() if emulator else None)
