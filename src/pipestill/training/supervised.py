"""Supervised tuning: any model, on given answers. What the component `supervised_tune` calls.

Text and code rows are an input and its answer; a chat row is a conversation and the assistant's
next turn. The loss is the mean over answer tokens, end mark included; nothing else is trained.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import DataConfig, TrainConfig, TuneConfig, parse_length, pick
from pipestill.errors import UserError
from pipestill.models import chat, lora
from pipestill.models.loading import Loaded, choose_dtype, load, outline
from pipestill.models.render import Renderer, renderer_for
from pipestill.models.student import plain_greedy
from pipestill.records import Example, Labelled, read_jsonl
from pipestill.training import checkpoint as checkpoints
from pipestill.training.audit import Audit, audit
from pipestill.training.batches import encode
from pipestill.training.distributed import join
from pipestill.training.forward import shape_of
from pipestill.training.launch import over_processes
from pipestill.training.objectives import label_only
from pipestill.training.step import Job
from pipestill.training.student import (
    audit_job,
    check,
    counts,
    fit_logged,
    make_job,
    outcome,
    size_of,
    split,
    use_threads,
    write,
)

OBJECTIVE = "tuned"
# task → how its rows are written for the model
STYLES = {"text": "plain", "code": "plain", "chat": "chat"}
METHODS = ("full", "lora")


@dataclass(frozen=True)
class Rows:
    """The rows of one run, with a digest of the files that they came from."""

    train: list[Labelled]
    validation: list[Labelled]
    unlabelled: int
    digest: str


@over_processes
def tune(
    train_path: str | Path,
    validation_path: str | Path,
    model_path: str | Path,
    *,
    state_dir: str,
    config: TuneConfig,
    keep_checkpoints: bool = False,
) -> dict[str, Any]:
    """Tunes a model and writes its folder, ready to be served, the training log in it.

    With LoRA the folder holds the merged model, and the adapters in ``adapter/``. Beside the folder
    lie ``<folder>.audit.txt`` and ``.audit.json``, and ``<folder>.tensorboard``.

    Args:
        train_path: JSONL of `Example`; rows without an answer are left out.
        validation_path: the same, to select the checkpoint by; "" splits them off `train_path`.
        model_path: folder to write (see `pipestill.models.student.save_student`).
        state_dir: folder that outlives the run; empty for no checkpoints.
        config: the settings.
        keep_checkpoints: leave the checkpoints in place after success.

    Returns:
        A flat summary: losses, steps, tokens, seconds, sizes and digests.

    Raises:
        UserError: ``CONFIG_VALUE``, ``TRAIN_EMPTY``, ``TRAIN_NO_MESSAGES``, ``LABEL_TOO_LONG``,
            ``AUDIT_…``, ``CHAT_TEMPLATE``, ``LORA_NO_LAYERS``, and what loading a model raises.
        WorkError: ``LOSS_NOT_FINITE``.
    """
    _check(config)
    use_threads()
    world = join()
    rows = read_rows(train_path, validation_path, config)
    loaded = load(config.large_model_reference, precision=_load_precision(config))
    renderer = tuning_renderer(loaded, config)
    adapted = _adapted(loaded, config)
    learning = lora.trainable(loaded.model)
    job = _job(loaded, renderer, rows, config)
    targets = label_only(rows.train, 0)
    beside = model_path if world.is_main else ""
    audit_job(loaded, renderer, rows.train, targets, job, beside)
    folder = checkpoints.run_folder(state_dir, config, OBJECTIVE, rows.digest, loaded.fingerprint)
    progress, resumed = fit_logged(job, folder, model_path)
    summary = {
        "run": f"{OBJECTIVE}:{config.train_seed}",
        "objective": OBJECTIVE,
        "seed": config.train_seed,
        "task": config.task,
        "method": config.method,
        **counts(job, rows.train, rows.validation),
        "unlabelled_rows": rows.unlabelled,
        **outcome(progress),
        "parameters": loaded.parameters,
        "trained_parameters": learning,
        "learning_rate": job.rate,
        "precision": "fp32" if job.shape.autocast is None else "bf16",
        "resumed_from_step": resumed,
        "base_model": config.large_model_reference,
        "base_fingerprint": loaded.fingerprint,
        "rows_digest": rows.digest,
        "style": renderer.style,
        "instruction": config.instruction,
    }
    if not world.is_main:
        return summary
    with tempfile.TemporaryDirectory() as kept:
        loaded, adapter = _exported(loaded, adapted, renderer, Path(kept))
        write(loaded, renderer, model_path, summary, progress, adapter)
    if folder and not keep_checkpoints:
        checkpoints.remove(folder)
    return {**summary, "bytes": size_of(model_path)}


def read_rows(train_path: str | Path, validation_path: str | Path, config: TuneConfig) -> Rows:
    """Reads the rows that have an answer, and those to validate on.

    Raises:
        UserError: ``TRAIN_EMPTY``, ``TRAIN_NO_MESSAGES``, ``ROW_UNREADABLE``.
    """
    digest = hashlib.sha256(Path(train_path).read_bytes())
    train, unlabelled = answered(read_jsonl(train_path, Example), config.task)
    if validation_path:
        digest.update(Path(validation_path).read_bytes())
        validation, _ = answered(read_jsonl(validation_path, Example), config.task)
    else:
        train, validation = split(train, config.validation_fraction)
    if not train:
        raise UserError(
            "TRAIN_EMPTY",
            f"{train_path}: no training rows with an answer ({unlabelled} without)",
            "tuning needs output_text in the rows; a teacher can write it: distill_step_by_step",
        )
    return Rows(train, validation, unlabelled, digest.hexdigest())


def answered(rows: Iterable[Example], task: str) -> tuple[list[Labelled], int]:
    """The rows that have an answer, as rows to train on, and how many have none.

    Raises:
        UserError: ``TRAIN_NO_MESSAGES`` where a chat row has none.
    """
    found, unlabelled = [], 0
    for row in rows:
        if task == "chat" and not row.messages:
            raise UserError(
                "TRAIN_NO_MESSAGES",
                f"row {row.id}: task is chat and the row has no messages",
                "set data_format to chat_messages for chat rows, or task to text",
            )
        if row.output_text is None:
            unlabelled += 1
            continue
        found.append(
            Labelled(
                id=row.id,
                input_text=model_input(row, task),
                output_text=row.output_text,
                label_source="gold",
                source_row=row.source_row,
            )
        )
    return found, unlabelled


def model_input(row: Example, task: str) -> str:
    """What the model is given: the conversation of a chat row, else the input text."""
    if task == "chat" and row.messages:
        return chat.Conversation(row.input_text, row.messages)
    return row.input_text


def tuning_renderer(loaded: Loaded, config: TuneConfig) -> Renderer:
    """The renderer of a tuning run, and of the model that comes out of it."""
    info = {"style": STYLES[config.task], "instruction": config.instruction}
    limits = parse_length(config.max_context_length), config.max_output_tokens
    return renderer_for(loaded, *limits, info)


def audit_data(uri: str, data: DataConfig, config: TuneConfig, into: Audit) -> Audit:
    """The audit of raw rows for a model whose weights are not loaded.

    Args:
        uri: see `pipestill.data.source.list_files`.
        data: how the rows are read.
        config: model, task, instruction and lengths.
        into: filled, also where the audit fails.

    Raises:
        UserError: ``AUDIT_…`` and what `tune` raises before its first step.
    """
    from pipestill.data.raw import BadRow
    from pipestill.data.rows import read_rows as raw_rows

    _check(config)
    examples, bad = [], 0
    for at, item in enumerate(raw_rows(uri, data)):
        if isinstance(item, BadRow):
            bad += 1
        else:
            name = item.fields["id"] or f"{Path(item.file).name}:{item.line}#{at}"
            examples.append(Example(**{**item.fields, "id": name}))
    rows, unlabelled = answered(examples, config.task)
    into.facts |= {"rows": len(rows), "bad_rows": bad, "unlabelled_rows": unlabelled}
    if not rows:
        raise UserError("TRAIN_EMPTY", f"{uri}: no rows with an answer ({unlabelled} without)")
    loaded = outline(config.large_model_reference)
    renderer = tuning_renderer(loaded, config)
    shape = dataclasses.replace(shape_of(loaded), device="cpu")
    targets = label_only(rows, 0)
    encoded = encode(rows, targets, renderer)
    return audit(rows, targets, encoded, renderer, shape, into=into)


def _job(loaded: Loaded, renderer: Renderer, rows: Rows, config: TuneConfig) -> Job:
    shared = pick(TrainConfig, dataclasses.asdict(config))
    job = make_job(
        loaded, renderer, rows.train, rows.validation, "label_only", config.train_seed, shared
    )
    if config.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    higher = lora.HIGHER_RATE if config.method == "lora" and not config.learning_rate else 1.0
    return dataclasses.replace(job, rate=job.rate * higher)


def _adapted(loaded: Loaded, config: TuneConfig) -> Any:
    if config.method != "lora":
        return None
    return lora.add(
        loaded.model,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        seed=config.train_seed,
    )


def _exported(
    loaded: Loaded, adapted: Any, renderer: Renderer, kept: Path
) -> tuple[Loaded, Path | None]:
    """The plain model, asked to stop where it was taught to, and the folder of its adapters."""
    adapter = None
    if adapted is not None:
        adapter = kept / "adapter"
        lora.save(adapted, adapter)
        loaded = dataclasses.replace(loaded, model=lora.merge(adapted))
    loaded.model.generation_config = plain_greedy(loaded, renderer.end)
    return loaded, adapter


def _load_precision(config: TuneConfig) -> str:
    """Weights that learn are kept in fp32; frozen ones may be as small as the device computes."""
    import torch

    if config.method == "lora" and torch.cuda.is_available():
        return "fp32" if choose_dtype(config.precision) == torch.float32 else "bf16"
    return "fp32"


def _check(config: TuneConfig) -> None:
    check(
        config,
        {
            "task": (config.task in STYLES, ", ".join(STYLES)),
            "method": (config.method in METHODS, ", ".join(METHODS)),
            "lora_rank": (config.lora_rank >= 1, "1 or more"),
            "lora_alpha": (config.lora_alpha > 0, "above 0"),
            "lora_dropout": (0 <= config.lora_dropout < 1, "0 to below 1"),
        },
    )
