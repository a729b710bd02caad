"""The names of distillation runs: families with their variants, controls, and students' sizes.

A run is ``objective:seed`` or ``objective@LAYERS:seed``; an objective is a control, a family, or
``family/variant``. What stands before the seed is the arm's name.
"""

import re
from dataclasses import dataclass

from pipestill.errors import UserError

# control → whose text it is trained on by cross-entropy alone
CONTROLS = {"gold": "label", "teacher_labels": "teacher"}
# family → its variants, the first of which the bare name means
FAMILIES = {
    "response": ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"),
    "feature": ("hidden_mse", "cosine", "cka", "attention", "minilm"),
    "relation": ("rkd", "similarity", "pkt", "ranking"),
    "self": ("born_again", "ema", "context"),
    "on_policy": ("reverse_kl", "jsd", "forward_kl"),
}


@dataclass(frozen=True)
class Objective:
    """One objective. A control is a family of its own, without a variant."""

    family: str
    variant: str = ""

    @property
    def is_control(self) -> bool:
        return self.family in CONTROLS

    @property
    def needs_teacher(self) -> bool:
        """Whether another model's probabilities or states are read."""
        return not self.is_control and self.family != "self"


@dataclass(frozen=True)
class DistillRun:
    """One run. `arm` is its name in comparisons; `layers` as in `pipestill.models.shrink.shrink`.

    `layers` is empty for a student of full size.
    """

    arm: str
    objective: Objective
    layers: str
    seed: int


def parse_objective(text: str) -> Objective:
    """``"response/jsd"`` → response by jsd; ``"response"`` → by its first variant.

    Raises:
        UserError: ``OBJECTIVE_UNKNOWN``.
    """
    family, slash, variant = text.partition("/")
    if text in CONTROLS:
        return Objective(text)
    if family in FAMILIES and (variant in FAMILIES[family] or not slash):
        return Objective(family, variant or FAMILIES[family][0])
    known = [*CONTROLS, *(f"{name}[/{'|'.join(of)}]" for name, of in FAMILIES.items())]
    raise UserError(
        "OBJECTIVE_UNKNOWN",
        f"objective: found {text!r}, allowed: {', '.join(known)}",
        "for example response, response/jsd or relation/pkt",
    )


def parse_run(run: str) -> DistillRun:
    """``"response/jsd@2:0"`` → arm response/jsd@2, layers "2", seed 0.

    Raises:
        UserError: ``RUN_UNKNOWN``, ``OBJECTIVE_UNKNOWN``.
    """
    found = re.fullmatch(r"([^:@]+)(?:@(\d+(?:\+\d+)?))?:(\d+)", run, re.ASCII)
    if not found:
        raise UserError(
            "RUN_UNKNOWN",
            f"run: found {run!r}, allowed: objective:seed or objective@LAYERS:seed, where LAYERS "
            "is a number, or two for encoder+decoder",
            "for example response:0, response/jsd@2:1 or gold@3+1:0",
        )
    name, layers, seed = found[1], found[2] or "", int(found[3])
    return DistillRun(run.rpartition(":")[0], parse_objective(name), layers, seed)
