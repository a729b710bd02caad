"""How long Cloud Storage is waited for, and what its errors mean: one line each."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipestill.cloud.client import installed
from pipestill.cloud.refusals import no_credentials
from pipestill.errors import PipestillError, UserError, WorkError

SCHEME = "gs://"
FIRST_WAIT_S, LONGEST_WAIT_S, PATIENCE_S = 1.0, 32.0, 300.0
T = TypeVar("T")


class Conflict(UserError):
    """Another writer was first."""


class Damaged(Exception):
    """What came is not what is stored; asked for again."""


def split(uri: str) -> tuple[str, str]:
    """Bucket and object name of ``gs://bucket/name``.

    Raises:
        UserError: ``STORAGE_ADDRESS``.
    """
    bucket, _, name = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise UserError("STORAGE_ADDRESS", f"found {uri!r}, allowed: gs://BUCKET/NAME")
    return bucket, name


def retry() -> Any:
    """The client's own rule of what is asked again, with our waits."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    found = DEFAULT_RETRY.with_delay(FIRST_WAIT_S, LONGEST_WAIT_S, 2.0).with_timeout(PATIENCE_S)
    found._on_error = _wait_as_told
    return found


def _wait_as_told(error: Exception) -> None:
    """Waits as long as a ``Retry-After`` header says, at most the longest wait."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    with contextlib.suppress(ValueError):
        time.sleep(min(float(headers.get("Retry-After", 0)), LONGEST_WAIT_S))


def until_whole(once: Callable[[], T]) -> T:
    """Does `once` again while it raises `Damaged`."""
    from google.api_core.retry import Retry, if_exception_type

    again: Callable[[], T] = Retry(
        predicate=if_exception_type(Damaged),
        initial=FIRST_WAIT_S,
        maximum=LONGEST_WAIT_S,
        timeout=PATIENCE_S,
    )(once)
    return again()


def is_absent(error: Exception) -> bool:
    """Whether an object is not there, in a bucket that is."""
    from google.api_core.exceptions import NotFound

    return isinstance(error, NotFound) and "bucket does not exist" not in str(error)


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns the client's errors into one line each; `FileNotFoundError` for an absent object."""
    with installed():
        import requests  # type: ignore[import-untyped]
        from google.api_core import exceptions as api
        from google.auth.exceptions import GoogleAuthError, TransportError
    gone = (TransportError, requests.RequestException, api.RetryError, api.ServerError,
            api.TooManyRequests, ConnectionError, TimeoutError, Damaged)  # fmt: skip
    try:
        yield
    except (PipestillError, FileNotFoundError):
        raise
    except gone as error:
        cause = getattr(error, "cause", None) or error
        raise WorkError(
            "STORAGE_UNREACHABLE",
            f"{uri}: no whole answer from Cloud Storage within {PATIENCE_S:g} s ({_said(cause)})",
            "run it again; check the network and https://status.cloud.google.com",
        ) from error
    except (GoogleAuthError, api.Unauthorized) as error:
        raise no_credentials(error) from error
    except api.GoogleAPICallError as error:
        raise _refusal(uri, error) from error


def _refusal(uri: str, error: Any) -> PipestillError | FileNotFoundError:
    bucket, _ = split(uri)
    code = int(error.code or 0)
    if code == 404 and not is_absent(error):
        return UserError(
            "STORAGE_BUCKET",
            f"{uri}: bucket {SCHEME}{bucket} does not exist",
            f"correct the name, or: gcloud storage buckets create {SCHEME}{bucket}",
        )
    if code == 404:
        return FileNotFoundError(2, "no such object", uri)
    if code == 403:
        return UserError(
            "STORAGE_DENIED",
            f"{uri}: no permission ({_said(error)})",
            f"ask for roles/storage.objectUser on {SCHEME}{bucket}",
        )
    if code == 412:
        return Conflict(
            "STORAGE_CONFLICT",
            f"{uri}: another writer was here first, so nothing was overwritten",
            "look at what stands there now, then run it again; let one job write to a folder",
        )
    return UserError("STORAGE_REFUSED", f"{uri}: Cloud Storage refused it ({_said(error)})")


def _said(error: Any) -> str:
    text = " ".join(str(getattr(error, "message", "") or error).split())
    return f"{type(error).__name__}: {text}"[:300]
