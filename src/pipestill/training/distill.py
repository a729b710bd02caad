"""Distils one student: one objective, one seed. What the component `distill_train` calls.

The loss of a step, with w = ``kd_weight``, every mean over the whole step:

- gold, teacher_labels: CE of the target tokens, alone;
- response, self: (1 − w)·CE + w·τ²·divergence (`distill_response`, `self_distill`);
- feature: (1 − w)·CE + feature_weight·feature (`distill_feature`);
- relation: (1 − w)·CE + relation_weight·relation (`distill_relation`);
- on_policy: as response for stored text, τ²·divergence for samples (`on_policy`).

``targets`` says whose text the target tokens are: the teacher's answers, or the rows' labels (gold
where there is one). Without ``scale_by_tau2`` the factor τ² is 1. Examples are not packed.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import DistillConfig, TrainConfig, parse_length, pick
from pipestill.models.loading import Loaded, load
from pipestill.models.render import Renderer, renderer_for
from pipestill.models.shrink import shrink
from pipestill.models.student import plain_greedy
from pipestill.training import checkpoint as checkpoints
from pipestill.training.distill_audit import audit_distilled
from pipestill.training.distill_checks import check_distill
from pipestill.training.distill_objectives import DistillRun, Objective, parse_run
from pipestill.training.distill_plan import Setting, plan_for
from pipestill.training.distill_response import Stored
from pipestill.training.distill_rows import Rows, read_rows, targets_of
from pipestill.training.distill_source import source_for
from pipestill.training.distill_step import detach, several_backwards
from pipestill.training.distill_summary import last_terms, teacher_tokens
from pipestill.training.distributed import World, join
from pipestill.training.launch import over_processes
from pipestill.training.progress import Progress
from pipestill.training.resume import copy_into, weights_of
from pipestill.training.step import Job
from pipestill.training.student import (
    counts,
    fit_logged,
    make_job,
    outcome,
    size_of,
    use_threads,
    write,
)
from pipestill.training.teacher_states import (
    Origin,
    Teacher,
    teacher_for,
)

PLAIN = Objective("teacher_labels")


@dataclass(frozen=True)
class Beginning:
    """A student before its first step. `base` is what the run's students are made from."""

    base: Loaded
    loaded: Loaded
    renderer: Renderer
    job: Job


@dataclass(frozen=True)
class Trained:
    """One training that is done."""

    progress: Progress
    resumed: int


@over_processes
def distill_student(
    training_rows_path: str | Path,
    store_path: str | Path,
    teacher_path: str | Path,
    student_path: str | Path,
    *,
    run: str,
    state_dir: str,
    config: DistillConfig,
    keep_checkpoints: bool = False,
) -> dict[str, Any]:
    """Distils a student and writes its folder, the training log in it.

    Beside the folder lie ``<folder>.audit.txt`` and ``.audit.json``, ``<folder>.tensorboard``, and
    where states are projected ``<folder>.projections.safetensors``: the student itself has no more
    tensors than any model of its kind.

    Args:
        training_rows_path: JSONL of `Labelled`, written by `teacher_logits`.
        store_path: the folder of stored probabilities; read where ``teacher_source`` is stored.
        teacher_path: the folder of `teacher_prepare`, or a model reference.
        student_path: folder to write (see `pipestill.models.student.save_student`).
        run: ``objective:seed`` or ``objective@LAYERS:seed``, see
            `pipestill.training.distill_objectives`.
        state_dir: folder that outlives the run; empty for no checkpoints.
        config: the settings.
        keep_checkpoints: leave the checkpoints in place after success.

    Returns:
        A flat summary: losses, shares, steps, tokens, seconds, sizes and digests.

    Raises:
        UserError: ``RUN_UNKNOWN``, ``OBJECTIVE_UNKNOWN``, ``CONFIG_VALUE``, ``TRAIN_EMPTY``,
            ``TOKENIZER_MISMATCH``, ``STORE_…``, ``LAYERS_…``, ``LABEL_TOO_LONG``, ``AUDIT_…`` and
            what loading a model raises.
        WorkError: ``LOSS_NOT_FINITE``.
    """
    wanted = parse_run(run)
    world = join()
    check_distill(config, wanted.objective, world)
    use_threads()
    rows = read_rows(training_rows_path, wanted.objective, config)
    student = begin(rows, wanted, config)
    source, told = source_for(
        store_path,
        teacher_path,
        student.loaded,
        student.renderer,
        student.job,
        rows,
        wanted.objective,
        config,
    )
    online = source if isinstance(source, Teacher) else None
    beside = student_path if world.is_main else ""
    audit_distilled(student.loaded, student.renderer, rows.train, student.job, online, beside)
    facts = (config, run, rows.digest, student.base.fingerprint, *told.values())
    folders = [checkpoints.run_folder(state_dir, *facts, turn) for turn in _turns(told, config)]
    trained = []
    for turn, folder in enumerate(folders):
        if turn:
            before = _handed_on(student, rows, wanted, config, world)
            student = begin(rows, wanted, config)
            source = _as_teacher(before, student, rows)
        objective = wanted.objective if _learns(told, turn) else PLAIN
        trained.append(_trained(student, rows, objective, config, source, folder, student_path))
    summary = _summary(wanted, student, rows, config, told, trained)
    if not world.is_main:
        return summary
    _save_projections(detach(student.loaded.model), student_path)
    write(student.loaded, student.renderer, student_path, summary, trained[-1].progress)
    for folder in folders:
        if folder and not keep_checkpoints:
            checkpoints.remove(folder)
    return {**summary, "bytes": size_of(student_path)}


def begin(rows: Rows, run: DistillRun, config: DistillConfig) -> Beginning:
    """Loads the student of a run and tokenises its rows."""
    base = load(config.student_model_reference, precision="fp32")
    loaded = shrink(base, run.layers)
    limits = parse_length(config.max_context_length), config.max_output_tokens
    renderer = renderer_for(loaded, *limits, {"style": "plain"})
    loaded.model.generation_config = plain_greedy(loaded, renderer.end)
    # The teacher's positions are those of unpacked rows. Compiled layers record no states, and
    # would be compiled anew for every length of a sample.
    shared = dataclasses.replace(
        pick(TrainConfig, dataclasses.asdict(config)),
        packing="off",
        compile="off" if run.objective.family in ("feature", "on_policy") else "auto",
    )
    job = make_job(loaded, renderer, rows.train, rows.validation, "label_only", run.seed, shared)
    return Beginning(base, loaded, renderer, job)


def _turns(told: dict[str, Any], config: DistillConfig) -> range:
    """The trainings of a run: one, or the first student and the generations after it."""
    return range(config.generations + 1 if told["learns_from"] == "generations" else 1)


def _learns(told: dict[str, Any], turn: int) -> bool:
    """Whether a training has a teacher."""
    return turn > 0 if told["learns_from"] == "generations" else told["learns_from"] != "text"


def _trained(
    student: Beginning,
    rows: Rows,
    objective: Objective,
    config: DistillConfig,
    source: Teacher | Stored | None,
    folder: str | None,
    student_path: str | Path,
) -> Trained:
    """Trains the student in place."""
    job = student.job
    setting = Setting(objective, config, student.loaded, student.renderer, rows.train, job, source)
    plan = plan_for(setting)
    if plan is not None:
        job = dataclasses.replace(job, objective=plan.objective)
    with several_backwards():
        return Trained(*fit_logged(job, folder, student_path))


def _as_teacher(before: Loaded, student: Beginning, rows: Rows) -> Teacher:
    """The generation before, asked as this one is."""
    before.model.eval().requires_grad_(False)
    origin = Origin(before, student.renderer, "the generation before")
    autocast = student.job.shape.autocast
    return teacher_for(origin, student.loaded, student.job.train, rows.train, autocast)


def _handed_on(
    student: Beginning, rows: Rows, run: DistillRun, config: DistillConfig, world: World
) -> Loaded:
    """The trained student in every process; after training only the first one has its weights."""
    detach(student.loaded.model)
    if world.size == 1:
        return student.loaded
    fresh = begin(rows, run, config).loaded
    weights = weights_of(student.loaded.model) if world.is_main else {}
    copy_into(fresh.model, weights, world)
    return fresh


def _summary(
    run: DistillRun,
    student: Beginning,
    rows: Rows,
    config: DistillConfig,
    told: dict[str, Any],
    trained: Sequence[Trained],
) -> dict[str, Any]:
    """Losses and shares are the last training's; seconds and tokens those of all generations."""
    job, last = student.job, trained[-1]
    every = [one.progress for one in trained]
    return {
        "run": f"{run.arm}:{run.seed}",
        "objective": run.arm,
        "arm": run.arm,
        "family": run.objective.family,
        "variant": run.objective.variant,
        "layers": run.layers or "all",
        "seed": run.seed,
        **counts(job, rows.train, rows.validation),
        "left_out_rows": rows.left_out,
        **outcome(last.progress),
        **last_terms(last.progress),
        "seconds": round(sum(one.seconds for one in every), 3),
        "cpu_seconds": round(sum(one.cpu_seconds for one in every), 3),
        "trainings": len(trained),
        "teacher_tokens": sum(teacher_tokens(one) for one in every),
        "parameters": student.loaded.parameters,
        "learning_rate": job.rate,
        "precision": "fp32" if job.shape.autocast is None else "bf16",
        "resumed_from_step": last.resumed,
        "targets": targets_of(run.objective, config),
        **told,
        "base_model": config.student_model_reference,
        "base_fingerprint": student.base.fingerprint,
        "rows_digest": rows.digest,
        "style": student.renderer.style,
        "instruction": student.renderer.instruction,
    }


def _save_projections(extra: Any, student_path: str | Path) -> None:
    from safetensors.torch import save_file

    projections = getattr(extra, "projections", None)
    if projections is not None:
        path = Path(student_path)
        weights = {name: value.detach().cpu() for name, value in projections.state_dict().items()}
        save_file(weights, path.with_name(f"{path.name}.projections.safetensors"))
