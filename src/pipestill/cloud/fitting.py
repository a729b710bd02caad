"""Models that a profile has no room for, found before anything starts."""

from collections.abc import Iterator, Sequence

from pipestill.cloud.effort import get
from pipestill.cloud.pipeline_steps import Step
from pipestill.cloud.workload import Workload
from pipestill.errors import UserError

# component → (parameters that may name its model, the first that is set counts; method)
TRAINED = {
    "student_train": (("student_model_reference",), "dss"),
    "train_curve": (("student_model_reference",), "dss"),
    "distill_train": (("student_model_reference",), "distill"),
    "supervised_tune": (("large_model_reference",), "sft"),
    "reward_model_train": (("reward_model_reference", "large_model_reference"), "sft"),
    "policy_train": (("large_model_reference",), "rlhf"),
}
METHOD_PARAMETERS = {"reward_model_train": "reward_method"}
ASKING = (
    *("teacher_label", "rationale_extract", "evaluate", "teacher_logits", "distill_train"),
    "evaluate_prompts",
)


def model_problems(
    steps: Sequence[Step], work: Workload, profile: str, memory_gb: float | None
) -> Iterator[str]:
    """One sentence with the arithmetic for every model that does not fit."""
    for step in steps:
        if step.component in TRAINED:
            names, method = TRAINED[step.component]
            reference = next(
                (str(get(step, work, name)) for name in names if get(step, work, name)), ""
            )
            kind = get(step, work, METHOD_PARAMETERS.get(step.component, "method"), "full")
            # Frozen weights have neither gradients nor moments; the adapter's own are small.
            yield _problem(reference, "inference" if kind == "lora" else method, profile, memory_gb)
        if (
            step.component in ASKING
            and work.parameters.get("teacher_backend", "transformers") == "transformers"
        ):
            teacher = str(get(step, work, "teacher_model_reference"))
            yield _problem(teacher, "inference", profile, memory_gb)
            yield _one_device(teacher, profile)


def _problem(reference: str, method: str, profile: str, memory_gb: float | None) -> str:
    from pipestill.models.catalogue import check_fits
    from pipestill.models.memory import PROFILES

    if not reference or profile not in PROFILES:
        return ""
    try:
        check_fits(reference, method, profile, memory_gb=memory_gb)
    except UserError as error:
        return str(error)
    return ""


def _one_device(reference: str, profile: str) -> str:
    """A teacher of the transformers backend is not sharded: it lies on one GPU."""
    from pipestill.models.catalogue import describe
    from pipestill.models.memory import PROFILES, gigabytes

    if not reference or not profile.startswith("a100"):
        return ""
    machine = PROFILES[profile]
    try:
        weights = (describe(reference).parameters or 0) * 2
    except UserError as error:
        return str(error)
    room = machine.memory / machine.devices
    if weights <= room:
        return ""
    return (
        f"[MODEL_TOO_BIG] {reference}: {gigabytes(weights)} of weights in bf16, and the"
        f" transformers teacher uses one GPU of {gigabytes(room)} → serve it and set"
        " teacher_backend=openai, or choose a smaller teacher"
    )
