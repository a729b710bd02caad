"""Trains one student: one objective, one seed. What the component `student_train` calls."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.config import TrainConfig, TuneConfig, parse_length, refuse_out_of_range
from pipestill.errors import UserError
from pipestill.models.loading import Loaded, choose_dtype, load
from pipestill.models.render import Renderer, renderer_for
from pipestill.models.student import save_student
from pipestill.records import Labelled, read_jsonl
from pipestill.training import checkpoint as checkpoints
from pipestill.training.audit import audit
from pipestill.training.batches import Encoded, encode, row_lengths
from pipestill.training.distributed import join
from pipestill.training.forward import shape_of
from pipestill.training.launch import over_processes
from pipestill.training.learning_rate import chosen
from pipestill.training.loop import fit
from pipestill.training.objectives import OBJECTIVES, Targets
from pipestill.training.packing import with_packing
from pipestill.training.progress import Progress
from pipestill.training.step import Job
from pipestill.training.tensorboard import Scalars

COUNTS = (
    "train_steps",
    "batch_size",
    "max_output_tokens",
    "evaluation_interval",
    "checkpoint_interval",
)
SWITCHES, SWITCH = ("packing", "compile"), ("auto", "on", "off")


@over_processes
def train_student(
    training_rows_path: str | Path,
    student_path: str | Path,
    *,
    run: str,
    state_dir: str,
    config: TrainConfig,
    keep_checkpoints: bool = False,
) -> dict[str, Any]:
    """Trains a student and writes its folder, the training log in it.

    Before the first step the rows are audited (`pipestill.training.audit`). Beside the folder lie
    the audited sample, ``<folder>.audit.txt`` and ``.audit.json``, and ``<folder>.tensorboard``.

    Args:
        training_rows_path: JSONL of `Labelled`.
        student_path: folder to write (see `pipestill.models.student.save_student`).
        run: ``objective:seed``.
        state_dir: folder that outlives the run; empty for no checkpoints.
        config: the settings.
        keep_checkpoints: leave the checkpoints in place after success.

    Returns:
        A flat summary: losses, steps, tokens, seconds, sizes and digests.

    Raises:
        UserError: ``RUN_UNKNOWN``, ``TRAIN_EMPTY``, ``CONFIG_VALUE``, ``LABEL_TOO_LONG``,
            ``AUDIT_…``, and what `pipestill.models.loading.load` raises.
        WorkError: ``LOSS_NOT_FINITE``.
    """
    objective, seed = parse_run(run)
    fraction = (0 < config.rationale_fraction <= 1, "above 0 to 1")
    check(config, {"alpha": (0 <= config.alpha <= 1, "0 to 1"), "rationale_fraction": fraction})
    use_threads()
    world = join()
    rows = list(read_jsonl(training_rows_path, Labelled))
    if not rows:
        raise UserError(
            "TRAIN_EMPTY",
            f"{training_rows_path}: no training rows",
            "look at the counts of the steps before this one",
        )
    digest = hashlib.sha256(Path(training_rows_path).read_bytes()).hexdigest()
    loaded = load(config.student_model_reference, precision="fp32")
    lengths = parse_length(config.max_context_length), config.max_output_tokens
    renderer = renderer_for(loaded, *lengths)
    train, validation = split(rows, config.validation_fraction)
    job = make_job(loaded, renderer, train, validation, objective, seed, config)
    targets = OBJECTIVES[_taught(objective, config)](train, seed)
    audit_job(loaded, renderer, train, targets, job, student_path if world.is_main else "")
    folder = checkpoints.run_folder(state_dir, config, run, digest, loaded.fingerprint)
    progress, resumed = fit_logged(job, folder, student_path)
    summary = {
        "run": run,
        "objective": objective,
        "seed": seed,
        **counts(job, train, validation),
        **outcome(progress),
        "parameters": loaded.parameters,
        "learning_rate": job.rate,
        "precision": "fp32" if job.shape.autocast is None else "bf16",
        "resumed_from_step": resumed,
        "base_model": config.student_model_reference,
        "base_fingerprint": loaded.fingerprint,
        "rows_digest": digest,
    }
    if not world.is_main:
        return summary
    write(loaded, renderer, student_path, summary, progress)
    if folder and not keep_checkpoints:
        checkpoints.remove(folder)
    return {**summary, "bytes": size_of(student_path)}


def audit_job(
    loaded: Loaded,
    renderer: Renderer,
    rows: Sequence[Labelled],
    targets: Targets,
    job: Job,
    beside: str | Path,
) -> None:
    """The audit against a renderer that is built as the saved model's will be; prints its notes."""
    info = {"style": renderer.style, "instruction": renderer.instruction}
    limits = renderer.max_input_tokens, renderer.max_output_tokens
    serving = renderer_for(loaded, *limits, info)
    seen = audit(rows, targets, job.train, serving, job.shape, beside=beside)
    print(*seen.notes, sep="\n", end="\n" if seen.notes else "", flush=True)


def fit_logged(job: Job, folder: str | Path | None, model_path: str | Path) -> tuple[Progress, int]:
    """`pipestill.training.loop.fit` with TensorBoard scalars in ``<model_path>.tensorboard``."""
    path = Path(model_path)
    if not join().is_main:
        return fit(job, folder)
    with Scalars(path.with_name(f"{path.name}.tensorboard")) as scalars:
        return fit(job, folder, scalars.after_step)


def parse_run(run: str) -> tuple[str, int]:
    """``"dss:0"`` → ("dss", 0).

    Raises:
        UserError: ``RUN_UNKNOWN``.
    """
    objective, _, seed = run.partition(":")
    if objective not in OBJECTIVES or not (seed.isascii() and seed.isdigit()):
        raise UserError(
            "RUN_UNKNOWN",
            f"run: found {run!r}, allowed: objective:seed with an objective of "
            f"{', '.join(OBJECTIVES)} and a whole number",
            "for example dss:0",
        )
    return objective, int(seed)


def split(rows: Sequence[Labelled], fraction: float) -> tuple[list[Labelled], list[Labelled]]:
    """Training and validation rows: the rows whose ids have the smallest hashes validate.

    The same rows validate whatever their order, the objective and the seed. At least one row
    validates where `fraction` is above 0, and at least one is trained on.
    """
    count = min(len(rows) - 1, max(1, round(len(rows) * fraction))) if fraction else 0
    ranked = sorted(range(len(rows)), key=lambda i: hashlib.sha256(rows[i].id.encode()).digest())
    held = set(ranked[:count])
    train = [row for i, row in enumerate(rows) if i not in held]
    return train, [row for i, row in enumerate(rows) if i in held]


def make_job(
    loaded: Loaded,
    renderer: Renderer,
    train: Sequence[Labelled],
    validation: Sequence[Labelled],
    objective: str,
    seed: int,
    config: TrainConfig,
) -> Job:
    """Tokenises the rows and settles rate, alpha, precision and packing.

    Where the objective has no rationale at all, or alpha is 1, rationales would only add zeros:
    they are left out and the run is standard fine-tuning, bit for bit.
    """
    make = OBJECTIVES[_taught(objective, config)]
    encoded = encode(train, make(train, seed), renderer)
    alone = bool((encoded.label_length == encoded.target_length).all())
    autocast = autocast_of(config.precision)
    if autocast is not None and loaded.model.device.type == "cpu":
        # Measured: the fused kernel's backward pass in bf16 is slower on CPUs than plain products.
        loaded.model.set_attn_implementation("eager")
    rate = chosen(
        config.learning_rate, config.learning_rate_multiplier, loaded.parameters, config.batch_size
    )
    return Job(
        model=loaded.model,
        train=encoded,
        validation=encode(validation, make(validation, seed), renderer) if validation else None,
        lengths=row_lengths(train),
        shape=with_packing(loaded.model, shape_of(loaded, autocast), encoded, config.packing),
        config=config,
        alpha=1.0 if alone else config.alpha,
        rate=rate,
        seed=seed,
        ids=[row.id for row in train],
        rationale_fraction=config.rationale_fraction,
    )


def _taught(objective: str, config: TrainConfig) -> str:
    return "label_only" if config.alpha == 1.0 else objective


def autocast_of(precision: str) -> Any:
    """The type that products are computed in, or None for fp32; weights stay fp32 in every case.

    ``auto`` takes bf16 wherever the processor computes in it natively, which also some CPUs do (a
    step then takes less than half the time).
    """
    import torch

    dtype = choose_dtype(precision)
    if precision == "auto" and not torch.cuda.is_available():
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if any(getattr(torch.cpu, name, bool)() for name in names):
            dtype = torch.bfloat16
    return None if dtype == torch.float32 else dtype


def check(
    config: TrainConfig | TuneConfig, more: Mapping[str, tuple[bool, str]] | None = None
) -> None:
    """Refuses settings out of range.

    Args:
        config: the settings.
        more: field → (whether it is fine, what is allowed), beside the shared ones.

    Raises:
        UserError: ``CONFIG_VALUE``.
    """
    rules = {
        **(more or {}),
        "validation_fraction": (0 <= config.validation_fraction < 1, "0 to below 1"),
        "warmup_fraction": (0 <= config.warmup_fraction < 1, "0 to below 1"),
        "learning_rate": (config.learning_rate >= 0, "0 (recommended rate) or more"),
        "learning_rate_multiplier": (config.learning_rate_multiplier > 0, "above 0"),
        "max_grad_norm": (config.max_grad_norm >= 0, "0 (no limit) or more"),
    }
    for name in COUNTS:
        rules[name] = (getattr(config, name) >= 1, "1 or more")
    for name in SWITCHES:
        rules[name] = (getattr(config, name, "auto") in SWITCH, ", ".join(SWITCH))
    refuse_out_of_range(config, rules)


def use_threads() -> None:
    """Takes the number of threads from ``PIPESTILL_THREADS``, where it is set."""
    wanted = os.environ.get("PIPESTILL_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        import torch

        torch.set_num_threads(int(wanted))


def counts(job: Job, train: Sequence[Labelled], validation: Sequence[Labelled]) -> dict[str, Any]:
    """The summary's part about the rows."""
    return {
        "train_rows": len(train),
        "rationale_rows": _rationale_rows(job.train),
        "validation_rows": len(validation),
        "cut_inputs": job.train.cut_inputs,
        "cut_rationales": job.train.cut_rationales,
    }


def _rationale_rows(data: Encoded) -> int:
    has = (data.target_length > data.label_length).tolist()
    return sum(any(has[s] for s in found) for found in data.of_row)


def outcome(progress: Progress) -> dict[str, Any]:
    """The summary's part about the run; a loss that was not measured is -1."""
    validated = progress.best_step > 0
    return {
        "steps": progress.step,
        "best_step": progress.best_step or progress.step,
        "label_loss": _last(progress, "label_loss"),
        "rationale_loss": _last(progress, "rationale_loss"),
        "val_label_loss": progress.best_loss if validated else -1.0,
        "val_label_accuracy": progress.best_accuracy if validated else -1.0,
        "label_tokens": progress.label_tokens,
        "rationale_tokens": progress.rationale_tokens,
        "input_tokens": progress.input_tokens,
        "seconds": round(progress.seconds, 3),
        "cpu_seconds": round(progress.cpu_seconds, 3),
    }


def _last(progress: Progress, name: str) -> float:
    """The newest logged value; steps whose rows had no rationale logged none."""
    values = (entry[name] for entry in reversed(progress.log) if entry.get(name) is not None)
    return float(next(values, -1.0))


def write(
    loaded: Loaded,
    renderer: Renderer,
    student_path: str | Path,
    summary: Mapping[str, Any],
    progress: Progress,
    adapter: Path | None = None,
) -> None:
    """Saves the model with what is known of it; `adapter` is a folder to take along.

    The weights learned in fp32 and are stored as those of the base are: a student of a bf16 model
    takes half the bytes, and a server that goes by the files runs it as it runs the base.
    """
    info = {
        **summary,
        "max_input_tokens": renderer.max_input_tokens,
        "max_output_tokens": renderer.max_output_tokens,
    }
    lines = "".join(json.dumps(entry) + "\n" for entry in progress.log)
    save_student(
        loaded.model,
        loaded.tokenizer,
        student_path,
        info,
        dtype=loaded.stored_dtype,
        adapter=adapter,
        train_log=lines,
    )


def size_of(folder: str | Path) -> int:
    """Bytes of the model's weights."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
