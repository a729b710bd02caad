"""What the steps of the pipeline `claims` take: many students, many prompts, several policies."""

from dataclasses import replace
from functools import reduce
from operator import add

from pipestill.cloud.answering_effort import (
    answering,
    evaluated_policy,
    held_out_rows,
    with_teacher,
)
from pipestill.cloud.effort import Estimate, get
from pipestill.cloud.machines import Machine
from pipestill.cloud.pipeline_steps import Step
from pipestill.cloud.training_effort import policy, reward, student, tuned
from pipestill.cloud.workload import Workload

TRIALS = 3  # learning rates that are tried where none are named
WITHOUT_RATIONALES = ("finetune", "distillation")


def _parts(step: Step, work: Workload, name: str) -> list[str]:
    return [part for part in str(get(step, work, name)).split(",") if part.strip()]


def _with(step: Step, **arguments: object) -> Step:
    return replace(step, arguments={**step.arguments, **arguments})


def curve(step: Step, work: Workload, machine: Machine) -> Estimate:
    """One arm: a student for each share and seed, and those that try the learning rates."""
    plain = str(get(step, work, "arm", step.item)) in WITHOUT_RATIONALES
    cells = len(_parts(step, work, "shares")) * len(_parts(step, work, "seeds"))
    trials = len(_parts(step, work, "learning_rates")) or TRIALS
    one = student(_with(step, run="label_only:0" if plain else "dss:0"), work, machine)
    asked = [str(get(step, work, "student_model_reference"))] * cells
    answers = answering(
        _with(step, latency_rows=0), work, machine, asked, held_out_rows(step, work)
    )
    return reduce(add, [one] * (cells + trials)) + answers


def prompted(step: Step, work: Workload, machine: Machine) -> Estimate:
    """The tuned model and a student an arm; the teacher and the model untuned by every prompt."""
    large = str(get(step, work, "large_model_reference"))
    base = str(get(step, work, "student_model_reference"))
    rows = held_out_rows(step, work)
    models = [large, *[base] * (len(work.parameters.get("arms", [])) + 1)]
    found = with_teacher(step, work, machine, answering(step, work, machine, models, rows), rows)
    if large == get(step, work, "teacher_model_reference"):
        return found
    untuned = _with(step, teacher_model_reference=large, teacher_backend="transformers")
    return with_teacher(untuned, work, machine, found, rows)


def frontier(step: Step, work: Workload, machine: Machine) -> Estimate:
    """A start, a reward model, and a policy for each coefficient; nothing without preferences."""
    if not get(step, work, "preference_dataset"):
        return Estimate()
    work.say(f"{step.component}: its rows are taken to be as long as the training rows")
    steps = get(step, work, "supervised_train_steps", 0)
    start = tuned(_with(step, train_steps=steps), work, machine)
    coefficients = len(_parts(step, work, "kl_coeffs"))
    one = policy(step, work, machine) + evaluated_policy(step, work, machine)
    return reduce(add, [one] * coefficients, start + reward(step, work, machine))
