"""What each kind of step takes: one estimator a component.

A new component that trains or generates gets a line in `ESTIMATORS`; one that only handles rows
needs none. A step on a machine of its own without an estimator is shown as not counted.
"""

from collections.abc import Callable

from pipestill.cloud import answering_effort, claims_effort, training_effort
from pipestill.cloud.effort import Estimate
from pipestill.cloud.machines import Machine
from pipestill.cloud.pipeline_steps import Step
from pipestill.cloud.prices import Range
from pipestill.cloud.workload import Workload

Estimator = Callable[[Step, Workload, Machine], Estimate]

ESTIMATORS: dict[str, Estimator] = {
    "teacher_label": answering_effort.labelled,
    "rationale_extract": answering_effort.explained,
    "student_train": training_effort.student,
    "evaluate": answering_effort.evaluated,
    "supervised_tune": training_effort.tuned,
    "evaluate_tuned": answering_effort.evaluated_tuned,
    "teacher_prepare": training_effort.teacher_tuned,
    "teacher_logits": answering_effort.teacher_answers,
    "distill_train": training_effort.distilled,
    "evaluate_distilled": answering_effort.evaluated_distilled,
    "evaluate_models": answering_effort.evaluated_models,
    "reward_model_train": training_effort.reward,
    "policy_train": training_effort.policy,
    "batch_predict": answering_effort.batch_answers,
    "evaluate_policy": answering_effort.evaluated_policy,
    "train_curve": claims_effort.curve,
    "evaluate_prompts": claims_effort.prompted,
    "reward_frontier": claims_effort.frontier,
}


def estimate(step: Step, work: Workload, machine: Machine) -> Estimate:
    """The work of one step on its machine, without the machine's start."""
    estimator = ESTIMATORS.get(step.component)
    if estimator is not None:
        return estimator(step, work, machine)
    if step.is_job:
        work.say(f"{step.component}: not known to the estimate, only its start is counted")
        return Estimate(counted=False)
    return rows_only(work)


def rows_only(work: Workload) -> Estimate:
    """Reading, checking, copying, drawing: no model."""
    rows = max(work.rows.read, work.rows.train + work.rows.held_out)
    return Estimate(rows=rows, seconds=Range(1, 4, 20) + Range(2e-5, 1e-4, 1e-3) * rows)
