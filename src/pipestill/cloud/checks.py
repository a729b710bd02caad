"""Settings that the platform would refuse, or take and fail on hours later, are refused here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipestill import __version__
from pipestill.errors import UserError

if TYPE_CHECKING:
    from pipestill.cloud.client import Settings

LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
MOST_LABELS = 64
KEY_NAME = re.compile(r"projects/[^/]+/locations/([^/]+)/keyRings/[^/]+/cryptoKeys/[^/]+")
NETWORK_NAME = re.compile(r"projects/[^/]+/global/networks/[^/]+")
ACCOUNT_NAME = re.compile(r"[^@\s]+@[^@\s]+")
BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(/.*)?")


def check(settings: Settings) -> Settings:
    """Refuses what the platform would refuse, or worse, take and fail on hours later.

    Raises:
        UserError: ``CLOUD_PROJECT``, ``CLOUD_REGION``, ``CLOUD_BUCKET``, ``CLOUD_LABEL``,
            ``CLOUD_KEY``, ``CLOUD_NETWORK`` or ``CLOUD_ACCOUNT``.
    """
    if not settings.project:
        raise UserError(
            "CLOUD_PROJECT", "no project", "give --project, or set GOOGLE_CLOUD_PROJECT"
        )
    check_region(settings.location)
    bucket = settings.staging_bucket
    if bucket and not BUCKET.fullmatch(bucket):
        raise UserError("CLOUD_BUCKET", f"bucket: found {bucket!r}, allowed: gs://BUCKET[/FOLDER]")
    check_labels(settings.labels)
    key = KEY_NAME.fullmatch(settings.encryption_spec_key_name)
    if settings.encryption_spec_key_name and not key:
        raise UserError(
            "CLOUD_KEY",
            f"encryption key: found {settings.encryption_spec_key_name!r}, allowed: "
            "projects/P/locations/REGION/keyRings/RING/cryptoKeys/KEY",
        )
    if key and key.group(1) != settings.location:
        raise UserError(
            "CLOUD_KEY",
            f"encryption key: it lies in {key.group(1)}, the job runs in {settings.location}",
            "a key serves its own region only: name one there",
        )
    if settings.network and not NETWORK_NAME.fullmatch(settings.network):
        raise UserError(
            "CLOUD_NETWORK",
            f"network: found {settings.network!r}, allowed: projects/NUMBER/global/networks/NAME",
        )
    if settings.service_account and not ACCOUNT_NAME.fullmatch(settings.service_account):
        raise UserError(
            "CLOUD_ACCOUNT",
            f"service account: found {settings.service_account!r}, allowed: "
            "NAME@PROJECT.iam.gserviceaccount.com",
        )
    return settings


def check_region(location: str) -> None:
    """Refuses a region that Vertex AI does not have (the installed client's list).

    Raises:
        UserError: ``CLOUD_REGION`` with the closest ones.
    """
    from pipestill.cloud.client import installed

    with installed():
        from google.cloud.aiplatform.constants.base import SUPPORTED_REGIONS
    regions = sorted(SUPPORTED_REGIONS - {"global"})
    if location not in regions:
        close = difflib.get_close_matches(location, regions, n=3) or regions
        raise UserError(
            "CLOUD_REGION",
            f"region: found {location!r}, closest of the platform's: {', '.join(close)}",
            "correct --region",
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuses labels that the platform refuses.

    Raises:
        UserError: ``CLOUD_LABEL``.
    """
    if len(labels) > MOST_LABELS:
        raise UserError("CLOUD_LABEL", f"labels: found {len(labels)}, at most {MOST_LABELS}")
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            raise UserError(
                "CLOUD_LABEL",
                f"label {key}={value}: allowed are small letters, digits, - and _, at most 63, and "
                "a letter first in the name",
                "correct --labels",
            )


def read_labels(texts: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` each, or several with commas between them.

    Raises:
        UserError: ``USAGE``.
    """
    labels = {}
    for text in ",".join(texts).split(",") if texts else []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError("USAGE", f"--labels: found {text!r}, allowed: KEY=VALUE")
        labels[key] = value
    return labels


def label_value(text: str) -> str:
    """A text as a label's value: ``0.1.0`` → ``0-1-0``."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def own_labels(pipeline: str, profile: str) -> dict[str, str]:
    """The labels that every job of ours carries."""
    return {
        "pipestill-version": label_value(__version__),
        "pipeline": label_value(pipeline),
        "profile": label_value(profile),
    }
