"""How much memory a model needs, as arithmetic that a person can check.

Weights, gradients and optimiser states are exact per parameter. Activations and the KV cache are
estimates from a typical shape, good to about a factor of two, because they depend on the length of
the rows and on the attention kernel. Bytes are decimal: 1 GB = 1e9 bytes.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipestill.errors import UserError

METHODS = ("sft", "dss", "distill", "rlhf", "inference")
ARCHITECTURES = ("encoder-decoder", "decoder-only")
LOCAL_MEMORY_VARIABLE = "PIPESTILL_MEMORY_GB"
ROWS_IN_FLIGHT = 32  # one training step, or one batch of a teacher's answers
TOKENS_PER_ROW = 512  # input, label and rationale of one row together
_WEIGHT_BYTES = {"fp32": 4, "bf16": 2}
# AdamW keeps two fp32 moments; bf16 weights get an fp32 master copy besides.
_OPTIMISER_BYTES = {"fp32": 8, "bf16": 12}
# Bytes kept for the backward pass per token and unit of depth x width, with 16-bit activations:
# Korthikanti et al. 2022 (arXiv 2205.05198), eq. 2, without the attention-score term.
_ACTIVATION_BYTES = 34


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes that one job needs over all its devices together.

    `frozen` are models that the job only reads (RLHF: the reference and the reward model).
    """

    parameters: int
    method: str
    precision: str
    weights: int
    gradients: int
    optimiser: int
    frozen: int
    activations: int
    kv_cache: int
    tokens: int

    @property
    def total(self) -> int:
        """All parts together, in bytes."""
        return (
            self.weights
            + self.gradients
            + self.optimiser
            + self.frozen
            + self.activations
            + self.kv_cache
        )

    def arithmetic(self) -> str:
        """The sum in words: ``11.1 B parameters × (2 weights + …) = 178.2 GB + …``."""
        names = ("weights", "gradients", "optimiser", "frozen")
        parts = {name: getattr(self, name) for name in names if getattr(self, name)}
        per_parameter = " + ".join(
            f"{part // self.parameters} {name}" for name, part in parts.items()
        )
        text = f"{count(self.parameters)} parameters × ({per_parameter} bytes)"
        text += f" = {gigabytes(sum(parts.values()))}"
        for name, part in (("activations", self.activations), ("KV cache", self.kv_cache)):
            if part:
                text += f" + {name} of {self.tokens:,} tokens, about {gigabytes(part)}"
        return f"{text} = {gigabytes(self.total)} in {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Memory of a hardware profile, in bytes over all devices; models are sharded over them."""

    name: str
    memory: int
    devices: int
    precision: str
    description: str


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="cpu-local",
            memory=16 * 10**9,
            devices=1,
            precision="fp32",
            description="this computer, 16 GB assumed",
        ),
        Profile(
            name="a100-80gb-x8",
            memory=8 * 80 * 10**9,
            devices=8,
            precision="bf16",
            description="8 GPUs × 80 GB, sharded (FSDP)",
        ),
        Profile(
            name="tpu-v3-64",
            memory=64 * 16 * 2**30,
            devices=64,
            precision="bf16",
            description="32 chips × 32 GiB = 64 cores × 16 GiB, sharded",
        ),
    )
}


def gigabytes(size: float) -> str:
    """Bytes as decimal gigabytes, with more digits where it is small."""
    value = size / 1e9
    return f"{value:,.2f} GB" if value < 1 else f"{value:,.1f} GB"


def count(parameters: int) -> str:
    """A number of parameters as people write it: 11.1 B, 60.5 M, 910 k."""
    for unit, size in (("B", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)):
        if parameters >= size * 0.9995:  # 999.9 M reads as 1 B
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)


def depth_times_width(parameters: int, architecture: str) -> float:
    """Layers × hidden size that one token passes through, guessed from the size alone.

    A transformer stack has about 12 · layers · width² parameters (Kaplan et al. 2020, arXiv
    2001.08361, section 2.1), and layers ≈ width / 128 in common models, so width³ ≈ parameters ·
    128 / 12. In an encoder-decoder a token passes through one of the two stacks.
    """
    stack = parameters / 2 if architecture == "encoder-decoder" else parameters
    width = (float(stack) * 128 / 12) ** (1 / 3)
    return float(width * width / 128)


def memory_need(
    parameters: int,
    method: str,
    precision: str = "bf16",
    architecture: str = "decoder-only",
    *,
    devices: int = 1,
) -> MemoryNeed:
    """Memory of a full tuning job (AdamW, no recomputation), or of a teacher that only answers.

    Args:
        parameters: of the model.
        method: one of `METHODS`; ``inference`` is a teacher or a served student.
        precision: fp32 or bf16.
        architecture: one of `ARCHITECTURES`.
        devices: a step has at least one row on each device.

    Raises:
        UserError: ``MEMORY_OPTION`` for an unknown method, precision or architecture.
    """
    _check_option("method", method, METHODS)
    _check_option("precision", precision, tuple(_WEIGHT_BYTES))
    _check_option("architecture", architecture, ARCHITECTURES)
    size = _WEIGHT_BYTES[precision]
    trains, answers = method != "inference", method in ("inference", "rlhf")
    tokens = max(ROWS_IN_FLIGHT, devices) * TOKENS_PER_ROW
    shape = depth_times_width(parameters, architecture)
    return MemoryNeed(
        parameters=parameters,
        method=method,
        precision=precision,
        weights=parameters * size,
        gradients=parameters * size * trains,
        optimiser=parameters * _OPTIMISER_BYTES[precision] * trains,
        # PPO reads a frozen copy of the policy and a reward model of the same size.
        frozen=parameters * size * (2 if method == "rlhf" else 0),
        activations=int(_ACTIVATION_BYTES * (size / 2) * shape * tokens) * trains,
        # A key and a value per layer: an upper bound, grouped-query attention keeps 4-8 times less.
        kv_cache=int(2 * size * shape * tokens) * answers,
        tokens=tokens,
    )


def profile_named(name: str, memory_gb: float | None = None) -> Profile:
    """A profile; cpu-local's memory comes from `memory_gb` or ``PIPESTILL_MEMORY_GB`` if given.

    Raises:
        UserError: ``PROFILE_UNKNOWN`` or ``MEMORY_GB``.
    """
    if name not in PROFILES:
        raise UserError(
            "PROFILE_UNKNOWN", f"profile: found {name!r}, allowed: {', '.join(PROFILES)}"
        )
    profile = PROFILES[name]
    given = os.environ.get(LOCAL_MEMORY_VARIABLE, "") if memory_gb is None else str(memory_gb)
    if name != "cpu-local" or not given:
        return profile
    try:
        memory = int(float(given) * 1e9)
    except (ValueError, OverflowError):
        memory = 0
    if memory <= 0:
        raise UserError("MEMORY_GB", f"memory: found {given!r}, allowed: gigabytes, such as 32")
    return dataclasses.replace(
        profile, memory=memory, description=f"this computer, {gigabytes(memory)} stated"
    )


def _check_option(name: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise UserError("MEMORY_OPTION", f"{name}: found {found!r}, allowed: {', '.join(allowed)}")
