"""The Google clients: whose project, which region, which account.

Everything goes over REST, so that a test against a loopback server sends the requests that a user
sends. ``PIPESTILL_API_ENDPOINT`` names another endpoint (a private one, or a loopback server, which
is spoken to without credentials).
"""

import contextlib
import dataclasses
import ipaddress
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pipestill.cloud.checks import check
from pipestill.cloud.refusals import explain, no_credentials
from pipestill.errors import PipestillError, UserError

API_ENDPOINT = "PIPESTILL_API_ENDPOINT"
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and as whom everything runs. Empty = the platform's default.

    `staging_bucket` is ``gs://bucket`` or a folder in it; artifacts go to `pipeline_root`.
    `credentials` empty = the application default ones.
    """

    project: str
    location: str
    staging_bucket: str = ""
    service_account: str = ""
    network: str = ""
    encryption_spec_key_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    experiment: str = ""
    api_endpoint: str = field(default_factory=lambda: os.environ.get(API_ENDPOINT, ""))
    credentials: Any = None

    @property
    def pipeline_root(self) -> str:
        """Folder of the pipeline's artifacts."""
        return f"{self.staging_bucket.rstrip('/')}/pipeline_root" if self.staging_bucket else ""

    @property
    def parent(self) -> str:
        """Resource name of the region."""
        return f"projects/{self.project}/locations/{self.location}"


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Turns a missing Google client into a line that says how to install it."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            "EXTRA_MISSING",
            f"the Google Cloud clients are not installed ({error.name} is missing)",
            "pip install 'pipestill[gcp]'",
        ) from error


def init(settings: Settings) -> Settings:
    """Checks the settings, points google-cloud-aiplatform at them and adds the credentials.

    Only project, region, bucket and credentials become global. The account, network and key do
    not: the client keeps those of an earlier call where a later one leaves them empty.

    Raises:
        UserError: what `check` finds, ``EXTRA_MISSING``, ``CLOUD_CREDENTIALS``.
    """
    with installed():
        from google.cloud import aiplatform
    check(settings)
    found = dataclasses.replace(settings, credentials=credentials(settings))
    aiplatform.init(
        project=found.project,
        location=found.location,
        staging_bucket=found.staging_bucket or None,
        credentials=found.credentials,
        api_endpoint=found.api_endpoint or f"{found.location}-aiplatform.googleapis.com",
        api_transport="rest",
    )
    return found


def credentials(settings: Settings) -> Any:
    """The given credentials, none for a loopback endpoint, else the application default ones.

    Raises:
        UserError: ``CLOUD_CREDENTIALS``.
    """
    with installed():
        import google.auth
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import GoogleAuthError
    if settings.credentials:
        return settings.credentials
    if is_loopback(settings.api_endpoint):
        return AnonymousCredentials()
    try:
        return google.auth.default(scopes=SCOPES)[0]
    except GoogleAuthError as error:
        raise no_credentials(error) from error


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint is on this machine."""
    host = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def client_for(settings: Settings, client_class: Any) -> Any:
    """One of `google.cloud.aiplatform_v1`'s clients, for calls that have no high-level form."""
    endpoint = settings.api_endpoint or f"{settings.location}-aiplatform.googleapis.com"
    return client_class(
        credentials=credentials(settings),
        transport="rest",
        client_options={"api_endpoint": endpoint},
    )


def storage_client(settings: Settings) -> Any:
    """A Cloud Storage client; the library itself follows ``STORAGE_EMULATOR_HOST``."""
    with installed():
        from google.cloud import storage
    return storage.Client(project=settings.project, credentials=credentials(settings))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The client's own log lines are left out: we print ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def explained(settings: Settings, doing: str) -> Iterator[None]:
    """Turns the errors of the Google clients into one line each."""
    try:
        with quiet():
            yield
    except PipestillError:
        raise
    except Exception as error:
        if explanation := explain(error, settings, doing):
            raise explanation from error
        raise
