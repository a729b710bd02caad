"""Endpoints: found or made, models deployed to them, traffic, smoke predictions.

The platform sends a prediction to a deployed model by the endpoint's traffic split alone: a model
without traffic on a shared endpoint cannot be asked anything. So a new version is first asked on an
endpoint of its own (`pipestill.cloud.deploying` says when).
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipestill.cloud.checks import read_labels
from pipestill.cloud.client import Settings, explained, quiet
from pipestill.cloud.registry import Version, check_alias
from pipestill.errors import PipestillError, UserError, WorkError

ENDPOINT_NAME = re.compile(r"projects/[^/]+/locations/([^/]+)/endpoints/[^/]+")
SMOKE_TRIES, SMOKE_WAIT_S = 3, 10.0
REHEARSAL = "-rehearsal"
MOST_NAME = 128


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """How a model is served. Component `deploy_endpoint`."""

    machine_type: str = "n1-standard-4"
    serving_accelerator: str = ""  # such as NVIDIA_L4; empty = none
    accelerator_count: int = 0
    min_replicas: int = 1
    max_replicas: int = 1
    spot: bool = False
    dedicated_endpoint: bool = True  # of an endpoint that is made
    traffic_stages: str = "100"  # shares that the new version gets one after another: 10,50,100
    stage_wait_s: float = 0.0  # before the predictions that follow each share
    alias: str = "production"


def check(options: DeployOptions) -> list[int]:
    """Refuses options that make no sense; returns the shares of traffic.

    Raises:
        UserError: ``DEPLOY_OPTION``, ``DEPLOY_ALIAS``.
    """
    check_alias(options.alias)
    stages = [int(part) if part.strip().isdigit() else 0 for part in
              options.traffic_stages.split(",")]  # fmt: skip
    if stages != sorted(set(stages)) or not stages[0] >= 1 or stages[-1] != 100:
        raise _option("traffic_stages", options.traffic_stages, "rising shares up to 100: 10,100")
    if not 1 <= options.min_replicas <= options.max_replicas:
        found = f"{options.min_replicas} to {options.max_replicas}"
        raise _option("min_replicas and max_replicas", found, "1 or more, and min <= max")
    if not options.machine_type:
        raise _option("machine_type", "", "a machine such as n1-standard-4 or g2-standard-8")
    if bool(options.serving_accelerator) != (options.accelerator_count > 0):
        found = f"{options.serving_accelerator or 'none'} x {options.accelerator_count}"
        raise _option("serving_accelerator and accelerator_count", found, "both or neither")
    if options.serving_accelerator:
        _check_accelerator(options.serving_accelerator)
    if options.stage_wait_s < 0:
        raise _option("stage_wait_s", options.stage_wait_s, "0 or more")
    return stages


def _check_accelerator(name: str) -> None:
    from google.cloud.aiplatform_v1.types import AcceleratorType

    known = [item.name for item in AcceleratorType if item.value]
    if name not in known:
        raise _option("serving_accelerator", name, ", ".join(known))


def _option(name: str, found: object, allowed: str) -> UserError:
    return UserError("DEPLOY_OPTION", f"{name}: found {found!r}, allowed: {allowed}")


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
        machine = _machine(spec.machine_type, name, count, replicas, bool(there.spot))
        if (item.model.partition("@")[0], item.model_version_id, machine) == wanted:
            return str(item.id)
    return ""


def machine_of(options: DeployOptions) -> str:
    """The machines in one line: ``1 to 2 x g2-standard-8 + 1 NVIDIA_L4, spot``."""
    return _machine(
        options.machine_type,
        options.serving_accelerator,
        options.accelerator_count,
        (options.min_replicas, options.max_replicas),
        options.spot,
    )


def _machine(kind: str, name: str, count: int, replicas: tuple[int, int], spot: bool) -> str:
    accelerator = f" + {count} {name}" if count else ""
    low, high = replicas
    return f"{low} to {high} x {kind}{accelerator}{', spot' if spot else ''}"


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


def smoke(endpoint: Any, instances: Sequence[Any], settings: Settings) -> None:
    """Sends the predictions, one a request; each has to be answered with text.

    Raises:
        WorkError: ``DEPLOY_SMOKE`` naming the prediction and what came.
    """
    for number, instance in enumerate(instances, 1):
        problem = ""
        for attempt in range(SMOKE_TRIES):
            if attempt:
                time.sleep(SMOKE_WAIT_S)
            problem, final = _problem(endpoint, instance)
            if not problem or final:
                break
        if problem:
            raise WorkError(
                "DEPLOY_SMOKE",
                f"smoke prediction {number} of {len(instances)} failed on endpoint "
                f"{endpoint.display_name}: {problem}",
            )


def _problem(endpoint: Any, instance: Any) -> tuple[str, bool]:
    """What is wrong with the answer, and whether asking again cannot help."""
    dedicated = bool(endpoint.gca_resource.dedicated_endpoint_enabled)
    try:
        with quiet():
            answer = endpoint.predict(instances=[instance], use_dedicated_endpoint=dedicated)
    except Exception as error:  # whatever it is, users would see it too
        text = " ".join(str(getattr(error, "message", "") or error).split())[:300]
        return f"{type(error).__name__}: {text}", False
    found = answer.predictions
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        return f"the answer is not one prediction: {str(found)[:200]}", True
    tokens = found[0].get("output_tokens", 0)
    spoken = isinstance(tokens, int | float) and tokens >= 1
    if not spoken or not isinstance(found[0].get("output_text"), str):
        return f"the prediction holds no answer: {str(found[0])[:200]}", True
    return "", True


@contextmanager
def rehearsal(name: str, settings: Settings, labels: Mapping[str, str]) -> Iterator[Any]:
    """An endpoint for one test, removed afterwards with all that is deployed to it.

    One that a killed run left behind is removed first.
    """
    left = find(name + REHEARSAL, settings)
    if left is not None:
        _remove(left, settings)
    marked = {**labels, "pipestill-rehearsal": "yes"}
    endpoint = create(name + REHEARSAL, settings, dedicated=False, labels=marked)
    try:
        yield endpoint
    except BaseException:
        with suppress(PipestillError):  # what went wrong first is the news
            _remove(endpoint, settings)
        raise
    _remove(endpoint, settings)


def _remove(endpoint: Any, settings: Settings) -> None:
    """With all that is deployed to it."""
    with explained(settings, f"remove endpoint {endpoint.display_name}"):
        endpoint.delete(force=True, sync=True)


def labels_of(text: str) -> dict[str, str]:
    """``KEY=VALUE`` with commas between them; none for "".

    Raises:
        UserError: ``USAGE``.
    """
    return read_labels([text]) if text else {}


def reason_of(error: BaseException) -> str:
    """One line for the ledger."""
    if isinstance(error, PipestillError):
        return f"[{error.code}] {error.message}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
