"""From a run's objective to what its steps do. One function a family, one line in `PLANS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from pipestill.config import DistillConfig
from pipestill.errors import UserError
from pipestill.models.loading import Loaded
from pipestill.models.render import Renderer
from pipestill.records import Labelled
from pipestill.training import self_distill
from pipestill.training.distill_feature import FEATURE, feature_works
from pipestill.training.distill_objectives import Objective
from pipestill.training.distill_relation import RELATION, ranking_works, relation_works
from pipestill.training.distill_response import (
    KD,
    Stored,
    divergence_of,
    response_work,
)
from pipestill.training.distill_step import LABEL, Plan, attach
from pipestill.training.flops import costs_of
from pipestill.training.on_policy import SAMPLED, on_policy_works
from pipestill.training.step import Job
from pipestill.training.teacher_states import Teacher


@dataclass(frozen=True)
class Setting:
    """What a plan is made from. `rows` are the training rows, `output_text` what is trained on.

    `teacher` is None for self-distillation and in runs that need none.
    """

    objective: Objective
    config: DistillConfig
    loaded: Loaded
    renderer: Renderer
    rows: list[Labelled]
    job: Job
    teacher: Teacher | Stored | None = None


def plan_for(setting: Setting) -> Plan | None:
    """The plan of a run; None where its loss is the cross-entropy alone.

    Modules and buffers that are trained along are attached to the model.

    Raises:
        UserError: ``CONFIG_VALUE``, ``RANKING_TEXTS``, ``MINILM_LAYERS``, ``TOKENIZER_MISMATCH``.
    """
    import torch

    if not teaches(setting.objective, setting.config):
        return None
    costs = costs_of(setting.loaded.model)
    works, names, updated = PLANS[setting.objective.family](setting)
    if setting.config.auto_balance:
        attach(setting.loaded.model, balance=torch.zeros(len(names), dtype=torch.float64))
    return Plan(works, names, costs, setting.config.auto_balance, updated)


def teaches(objective: Objective, config: DistillConfig) -> bool:
    """Whether there is more to learn from than the text.

    With ``kd_weight`` 0 a run by response is training on the text, bit for bit.
    """
    responds = objective.family in ("response", "self")
    return not objective.is_control and not (responds and config.kd_weight == 0)


Made = tuple[Callable[..., Any], tuple[str, ...], Callable[[Job, int], None] | None]


def _response(setting: Setting) -> Made:
    return _by_response(setting, setting.teacher, setting.objective.variant), (LABEL, KD), None


def _by_response(setting: Setting, teacher: Any, name: str) -> Callable[..., Any]:
    how = divergence_of(name, setting.config)
    return lambda job, rows, step: [response_work(job, rows, teacher, how, setting.config)]


def _self(setting: Setting) -> Made:
    """EMA and context; a born-again student is taught as by any other teacher."""
    if setting.objective.variant == "born_again":
        return _by_response(setting, setting.teacher, "forward_kl"), (LABEL, KD), None
    config, job = setting.config, setting.job
    data = job.train
    if setting.objective.variant == "context":
        data, fewer = self_distill.with_demonstrations(
            data, setting.rows, setting.renderer, config.context_shots, job.seed
        )
        if fewer:
            print(
                f"Note: {fewer} of {len(setting.rows)} rows have fewer than {config.context_shots} "
                "demonstrations, because more do not fit into max_context_length.",
                flush=True,
            )
    attach(setting.loaded.model, average=self_distill.average_of(setting.loaded.model))
    size = max(setting.loaded.tokenizer.get_vocab().values()) + 1
    teacher = Teacher(None, job.shape, data, size)
    follow = partial(_follow, decay=config.ema_decay)
    return _by_response(setting, teacher, "forward_kl"), (LABEL, KD), follow


def _follow(job: Job, step: int, *, decay: float) -> None:
    self_distill.follow(job, decay)


def _on_policy(setting: Setting) -> Made:
    teacher = _online(setting)
    how = divergence_of(setting.objective.variant, setting.config)
    works = partial(
        on_policy_works,
        teacher=teacher,
        how=how,
        config=setting.config,
        end=setting.renderer.end,
        limit=setting.renderer.max_output_tokens,
    )
    return works, (LABEL, KD, SAMPLED), None


def _feature(setting: Setting) -> Made:
    works = feature_works(
        setting.loaded.model,
        _online(setting),
        setting.job,
        setting.objective.variant,
        setting.config,
    )
    return works, (LABEL, FEATURE), None


def _relation(setting: Setting) -> Made:
    teacher, config = cast(Teacher, setting.teacher), setting.config
    if setting.objective.variant == "ranking":
        works = ranking_works(setting.job, setting.rows, teacher, config)
    else:
        works = relation_works(teacher, setting.objective.variant, config)
    return works, (LABEL, RELATION), None


def _online(setting: Setting) -> Teacher:
    """The teacher's model, which shares the student's vocabulary."""
    if isinstance(setting.teacher, Teacher) and setting.teacher.size:
        return setting.teacher
    raise UserError(
        "TOKENIZER_MISMATCH",
        f"{setting.objective.family}: teacher and student have different vocabularies, and this "
        "objective pairs their tokens one to one",
        "use response or relation with cross_tokenizer uld, or cross_tokenizer sequence",
    )


PLANS: dict[str, Callable[[Setting], Made]] = {
    "response": _response,
    "feature": _feature,
    "relation": _relation,
    "self": _self,
    "on_policy": _on_policy,
}
