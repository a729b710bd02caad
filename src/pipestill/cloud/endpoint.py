"""Endpoints of the platform: found or made, models deployed to them, traffic."""

import re
from collections.abc import Mapping
from typing import Any

from pipestill.cloud.client import Settings, explained
from pipestill.cloud.deploy_options import DeployOptions, machine_line, machine_of
from pipestill.cloud.registry import Version
from pipestill.errors import UserError, WorkError

ENDPOINT_NAME = re.compile(r"projects/[^/]+/locations/([^/]+)/endpoints/[^/]+")
REHEARSAL = "-rehearsal"
MOST_NAME = 128


def find(name: str, settings: Settings) -> Any:
    """The endpoint with a display name, an id or a resource name; None where none has the name.

    Raises:
        UserError: ``DEPLOY_ENDPOINT`` (a resource that is not there, several of one name),
            ``CLOUD_…``.
    """
    from google.api_core.exceptions import NotFound
    from google.cloud import aiplatform

    if not name or '"' in name or len(name) > MOST_NAME - len(REHEARSAL):
        raise UserError("DEPLOY_ENDPOINT", f"endpoint: found {name!r}, allowed: a name or an id")
    if name.isdigit() or ENDPOINT_NAME.fullmatch(name):
        with explained(settings, f"look at endpoint {name}"):
            try:
                found = aiplatform.Endpoint(name)
                _ = found.traffic_split  # asks the platform
                return found
            except NotFound as error:
                raise UserError(
                    "DEPLOY_ENDPOINT",
                    f"endpoint {name} does not exist in project {settings.project}, region "
                    f"{settings.location}",
                    "correct the id, or give a name: an endpoint of that name is made if missing",
                ) from error
    with explained(settings, f"look for endpoint {name}"):
        listed = aiplatform.Endpoint.list(filter=f'display_name="{name}"')
    if len(listed) > 1:
        raise UserError(
            "DEPLOY_ENDPOINT",
            f"{len(listed)} endpoints are called {name}: "
            + ", ".join(sorted(item.resource_name for item in listed)),
            "give the resource name of the one that is meant",
        )
    return listed[0] if listed else None


def create(name: str, settings: Settings, *, dedicated: bool, labels: Mapping[str, str]) -> Any:
    """A new endpoint without models.

    Raises:
        UserError: ``CLOUD_…``.
    """
    from google.cloud import aiplatform

    with explained(settings, f"create endpoint {name}"):
        return aiplatform.Endpoint.create(
            display_name=name,
            labels=dict(labels),
            encryption_spec_key_name=settings.encryption_spec_key_name or None,
            dedicated_endpoint_enabled=dedicated,
        )


def traffic(endpoint: Any, settings: Settings) -> dict[str, int]:
    """Deployed model id → share of the traffic in percent, all deployed ones."""
    with explained(settings, f"look at endpoint {endpoint.display_name}"):
        endpoint._sync_gca_resource()
        split = dict(endpoint.gca_resource.traffic_split)
        return {item.id: split.get(item.id, 0) for item in endpoint.gca_resource.deployed_models}


def deployed_id(endpoint: Any, version: Version, options: DeployOptions, settings: Settings) -> str:
    """The id under which a version is deployed on such a machine; "" where it is not."""
    traffic(endpoint, settings)
    wanted = (version.model, version.version_id, machine_of(options))
    for item in endpoint.gca_resource.deployed_models:
        there = item.dedicated_resources
        spec = there.machine_spec
        count = spec.accelerator_count
        name = spec.accelerator_type.name if count else ""
        replicas = (there.min_replica_count, there.max_replica_count)
        machine = machine_line(spec.machine_type, name, count, replicas, bool(there.spot))
        if (item.model.partition("@")[0], item.model_version_id, machine) == wanted:
            return str(item.id)
    return ""


def deployed_versions(endpoint: Any, settings: Settings) -> dict[str, str]:
    """Deployed model id → version of the model."""
    traffic(endpoint, settings)
    return {item.id: item.model_version_id for item in endpoint.gca_resource.deployed_models}


def models_of(endpoint: Any, settings: Settings) -> set[str]:
    """Resource names of the models that are deployed, without their versions."""
    traffic(endpoint, settings)
    return {item.model.partition("@")[0] for item in endpoint.gca_resource.deployed_models}


def deploy(
    endpoint: Any,
    version: Version,
    options: DeployOptions,
    settings: Settings,
) -> str:
    """Deploys a version; it gets no traffic, except on an endpoint that has no model yet.

    Returns the deployed model's id.

    Raises:
        UserError: ``CLOUD_…``, ``CLOUD_QUOTA`` among them.
        WorkError: ``DEPLOY_RESOURCES`` where the platform would drop the machine.
    """
    from google.cloud import aiplatform

    before = traffic(endpoint, settings)
    split = {**before, "0": 0} if sum(before.values()) else {"0": 100}
    doing = f"deploy version {version.version_id} to endpoint {endpoint.display_name}"
    with explained(settings, doing):
        model = aiplatform.Model(version.name)
        _check_resources(model, version)
        model.deploy(
            endpoint=endpoint,
            traffic_split=split,
            machine_type=options.machine_type,
            accelerator_type=options.serving_accelerator or None,
            accelerator_count=options.accelerator_count or None,
            min_replica_count=options.min_replicas,
            max_replica_count=options.max_replicas,
            service_account=settings.service_account or None,
            spot=options.spot,
            deployed_model_display_name=f"version-{version.version_id}",
            sync=True,
        )
    (made,) = traffic(endpoint, settings).keys() - before.keys()
    return str(made)


def _check_resources(model: Any, version: Version) -> None:
    """Without this mark the client deploys, and leaves the machine out without an error."""
    kinds = [item.name for item in model.supported_deployment_resources_types]
    if "DEDICATED_RESOURCES" not in kinds:
        raise WorkError(
            "DEPLOY_RESOURCES",
            f"{version.name}: the registry says that it cannot be given a machine (found: "
            f"{', '.join(kinds) or 'nothing'})",
            "upload the model again; look at it in the console",
        )


def set_traffic(endpoint: Any, split: Mapping[str, int], settings: Settings) -> None:
    """Raises:
    UserError: ``CLOUD_…``.
    """
    with explained(settings, f"shift the traffic of endpoint {endpoint.display_name}"):
        endpoint.update(traffic_split=dict(split))


def undeploy(endpoint: Any, deployed: str, settings: Settings) -> None:
    """Takes a model without traffic off the endpoint, or its last one.

    Raises:
        UserError: ``CLOUD_…``.
    """
    with explained(settings, f"undeploy {deployed} from endpoint {endpoint.display_name}"):
        endpoint.undeploy(deployed_model_id=deployed, sync=True)


def shared(before: Mapping[str, int], new: str, share: int) -> dict[str, int]:
    """The split that gives `new` its share, and the others what they had, scaled; sums to 100.

    Args:
        before: shares before the shift, `new` among them or not.
        new: deployed model id.
        share: percent.
    """
    others = {key: value for key, value in before.items() if key != new}
    total, left = sum(others.values()), 100 - share
    if not total:
        return {**others, new: 100}
    split = {key: value * left // total for key, value in others.items()}
    largest = max(others, key=lambda key: others[key])
    split[largest] += left - sum(split.values())
    return {**split, new: share}
