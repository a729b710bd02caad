"""How a model is served: machine, replicas, traffic; checked before anything is asked for."""

from dataclasses import dataclass

from pipestill.cloud.checks import read_labels
from pipestill.cloud.registry import check_alias
from pipestill.errors import UserError


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


def machine_of(options: DeployOptions) -> str:
    """The machines in one line: ``1 to 2 x g2-standard-8 + 1 NVIDIA_L4, spot``."""
    return machine_line(
        options.machine_type,
        options.serving_accelerator,
        options.accelerator_count,
        (options.min_replicas, options.max_replicas),
        options.spot,
    )


def machine_line(kind: str, name: str, count: int, replicas: tuple[int, int], spot: bool) -> str:
    """As `machine_of`, from the parts."""
    accelerator = f" + {count} {name}" if count else ""
    low, high = replicas
    return f"{low} to {high} x {kind}{accelerator}{', spot' if spot else ''}"


def labels_of(text: str) -> dict[str, str]:
    """``KEY=VALUE`` with commas between them; none for "".

    Raises:
        UserError: ``USAGE``.
    """
    return read_labels([text]) if text else {}
