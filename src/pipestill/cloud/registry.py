"""The model registry: one model, a version per contents, one alias that names production.

A version's description carries the digest of what answers (the served files and the image), so that
the same one is found again and never uploaded twice. (Labels would not do: the registry merges
those of the model and of its versions.)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipestill.cloud.client import Settings, explained
from pipestill.errors import UserError
from pipestill.serving.settings import Settings as Server

MODEL_NAME = re.compile(r"projects/[^/]+/locations/([^/]+)/models/[^/@]+")
ALIAS = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
DIGEST = re.compile(r"\bdigest ([0-9a-f]{32})\b")


@dataclass(frozen=True)
class Version:
    """One version of a model: `model` is its resource name without the version."""

    model: str
    version_id: str
    aliases: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version_id}"


def find_model(name: str, settings: Settings) -> str:
    """The resource name of the model with a display name (or of a given one); "" where none is.

    Raises:
        UserError: ``DEPLOY_MODEL`` where several have the name, or it is empty; ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    if not name or '"' in name or len(name) > 128:
        raise UserError("DEPLOY_MODEL", f"model name: found {name!r}, allowed: 1 to 128 characters")
    with explained(settings, f"look for model {name}"):
        if "/" in name:
            return str(aiplatform.Model(name).resource_name)
        found = aiplatform.Model.list(filter=f'display_name="{name}"')
    if len(found) > 1:
        raise UserError(
            "DEPLOY_MODEL",
            f"{len(found)} models are called {name}: "
            + ", ".join(sorted(item.resource_name for item in found)),
            "give the resource name of the one that is meant",
        )
    return str(found[0].resource_name) if found else ""


def versions(model: str, settings: Settings) -> list[Version]:
    """All versions of a model; none for "".

    Raises:
        UserError: ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    if not model:
        return []
    with explained(settings, f"list the versions of {model}"):
        registry = aiplatform.models.ModelRegistry(model)
        listed = registry.list_versions()
    return [
        Version(model, item.version_id, tuple(item.version_aliases), _digest(item))
        for item in listed
    ]


def _digest(info: Any) -> str:
    found = DIGEST.search(info.version_description or "")
    return found[1] if found else ""


def aliased(found: list[Version], alias: str) -> Version | None:
    """The version that the alias names."""
    return next((item for item in found if alias in item.aliases), None)


def with_digest(found: list[Version], digest: str) -> Version | None:
    """The newest version of these contents."""
    fitting = [item for item in found if item.digest == digest]
    return max(fitting, key=lambda item: int(item.version_id), default=None)


def upload(
    settings: Settings,
    *,
    display_name: str,
    parent: str,
    artifact_uri: str,
    digest: str,
    image: str,
    labels: Mapping[str, str],
) -> Version:
    """A new version of `parent`, or the first of a new model where `parent` is empty.

    It gets no alias but the first version's ``default``, which every model has.

    Args:
        settings: project, region, encryption key.
        display_name: the model's.
        parent: resource name.
        artifact_uri: ``gs://`` folder with the served files.
        digest: 32 hex digits over the files and the image.
        image: the serving image; it keeps the contract of `pipestill.serving.settings`.
        labels: of the version.

    Raises:
        UserError: ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    with explained(settings, f"upload a version of model {display_name}"):
        made = aiplatform.Model.upload(
            display_name=display_name,
            parent_model=parent or None,
            is_default_version=not parent,
            version_description=f"digest {digest}",
            artifact_uri=artifact_uri,
            serving_container_image_uri=image,
            serving_container_predict_route=Server.predict_route,
            serving_container_health_route=Server.health_route,
            serving_container_ports=[Server.port],
            labels=dict(labels),
            encryption_spec_key_name=settings.encryption_spec_key_name or None,
            sync=True,
        )
        aliases = tuple(made.version_aliases or ())
    return Version(made.resource_name, made.version_id, aliases, digest)


def move_alias(version: Version, alias: str, settings: Settings) -> None:
    """The alias names this version from now on, and no other.

    Raises:
        UserError: ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    with explained(settings, f"move alias {alias} to version {version.version_id}"):
        registry = aiplatform.models.ModelRegistry(version.model)
        registry.add_version_aliases([alias], version.version_id)


def remove_alias(version: Version, alias: str, settings: Settings) -> None:
    """The alias names no version.

    Raises:
        UserError: ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    with explained(settings, f"remove alias {alias}"):
        registry = aiplatform.models.ModelRegistry(version.model)
        registry.remove_version_aliases([alias], version.version_id)


def check_alias(alias: str) -> None:
    """Refuses an alias that the registry refuses, or keeps for itself.

    Raises:
        UserError: ``DEPLOY_ALIAS``.
    """
    if not ALIAS.fullmatch(alias) or alias == "default":
        raise UserError(
            "DEPLOY_ALIAS",
            f"alias: found {alias!r}, allowed: small letter first, letters, digits and -, not "
            "default",
        )
