"""What the errors of the Google clients mean: one line each, with what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipestill.errors import PipestillError, UserError, WorkError

if TYPE_CHECKING:
    from pipestill.cloud.client import Settings

# Wordings of a refusal that another region or machine may not give.
CAPACITY_WORDS = (
    "resource_exhausted", "resource exhausted", "resources are insufficient", "stockout",
    "stock-out", "does not have enough resources", "out of capacity", "no capacity",
    "quota exceeded", "quota_exceeded", "exceed quota", "exceeded quota", "quotas",
)  # fmt: skip


def explain(error: BaseException, settings: Settings, doing: str) -> PipestillError | None:
    """What a Google client's error means, or None where it is none of theirs."""
    import requests  # type: ignore[import-untyped]
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError

    if isinstance(error, exceptions.RetryError):
        error = error.cause or error
    unreachable = (TransportError, requests.RequestException, ConnectionError, TimeoutError)
    if isinstance(error, unreachable):
        return _unreachable(error, doing)
    if isinstance(error, GoogleAuthError | exceptions.Unauthorized):
        return no_credentials(error)
    if not isinstance(error, exceptions.GoogleAPICallError):
        return None
    if isinstance(error, exceptions.ServerError) and not is_capacity(error):
        return _unreachable(error, doing)
    return _refused(error, settings, doing)


def _refused(error: Any, settings: Settings, doing: str) -> UserError:
    text, code = _message(error), int(error.code or 0)
    where = f"project {settings.project}, region {settings.location}"
    if is_capacity(error):
        none = re.search(r"limit:? ?0\b|quota is 0\b", text, re.I)
        return UserError(
            "CLOUD_QUOTA",
            f"{doing}: refused for quota or capacity in {where}: {text}"
            + (" (the quota is 0: it was never granted)" if none else ""),
            f"ask for quota at https://console.cloud.google.com/iam-admin/quotas?project="
            f"{settings.project}, or give --fallback",
        )
    if "SERVICE_DISABLED" in text or "has not been used in project" in text:
        return UserError(
            "CLOUD_API_DISABLED",
            f"{doing}: the API is not enabled in project {settings.project}: {text}",
            f"gcloud services enable aiplatform.googleapis.com --project {settings.project}",
        )
    if code == 403 and ("act as" in text or "iam.serviceAccounts.actAs" in text):
        return UserError(
            "CLOUD_ACCOUNT",
            f"{doing}: you may not use service account {settings.service_account or '(default)'}: "
            f"{text}",
            "grant yourself roles/iam.serviceAccountUser on it",
        )
    if code in (403, 404):
        return UserError(
            "CLOUD_PROJECT" if code == 403 else "CLOUD_NOT_FOUND",
            f"{doing}: {'no permission' if code == 403 else 'not found'} in {where}: {text}",
            "check --project, --region and your roles (roles/aiplatform.user)",
        )
    return UserError("CLOUD_REFUSED", f"{doing}: {where} refused it ({code}): {text}")


def is_capacity(error: Any) -> bool:
    """Whether it is a refusal for quota or capacity, which another region may not give."""
    code = getattr(error, "code", 0)
    if code in (429, "CLOUD_QUOTA", "PLAN_QUOTA"):
        return True
    text = str(error).lower()
    return code in (400, 403, 503, 0, "", None) and any(word in text for word in CAPACITY_WORDS)


def _message(error: Any) -> str:
    return " ".join(str(getattr(error, "message", "") or error).split())[:600]


def no_credentials(error: BaseException) -> UserError:
    """No credentials, or none that the platform takes."""
    return UserError(
        "CLOUD_CREDENTIALS",
        f"no valid Google credentials: {_message(error)}",
        "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key "
        "file's path",
    )


def _unreachable(error: BaseException, doing: str) -> WorkError:
    return WorkError(
        "CLOUD_UNREACHABLE",
        f"{doing}: the platform did not answer ({type(error).__name__}: {_message(error)})",
        "try again; check the network and https://status.cloud.google.com",
    )
