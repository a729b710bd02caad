"""The teacher of a distillation: a model as it is, or tuned first. Component `teacher_prepare`."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from pipestill.config import DataConfig, TuneConfig
from pipestill.data.prepare import prepare
from pipestill.errors import UserError
from pipestill.models.loading import load, load_tokenizer
from pipestill.models.teacher import HERE, write_reference
from pipestill.training.supervised import tune

VALIDATION_FRACTION = 0.1  # of the teacher's rows; selects the checkpoint


def prepare_teacher(
    train_path: str | Path,
    teacher_path: str | Path,
    *,
    reference: str,
    train_steps: int,
    batch_size: int,
    learning_rate: float,
    dataset_uri: str,
    data: DataConfig,
    precision: str,
    state_dir: str,
) -> dict[str, Any]:
    """Writes the teacher's folder: a name where it is used as it is, else the tuned model.

    Args:
        train_path: JSONL of `Example`; its labelled rows tune the teacher where `dataset_uri` is
            empty.
        teacher_path: folder to write, see `pipestill.models.teacher`.
        reference: the model to begin with.
        train_steps: 0 = use it as it is.
        batch_size: examples a step.
        learning_rate: 0 = the recommended rate.
        dataset_uri: rows of the teacher's own, see `pipestill.data.source.list_files`. What is set
            aside of them is listed in ``<teacher_path>.rejects.jsonl``.
        data: how `dataset_uri` is read; its two lengths also hold for the tuning.
        precision: auto, fp32 or bf16.
        state_dir: folder that outlives the run; empty for no checkpoints.

    Returns:
        A flat summary: reference, fingerprint, parameters, and of a tuning what
        `pipestill.training.supervised.tune` returns, its own rows as ``teacher_rows_…``.

    Raises:
        UserError: ``CONFIG_VALUE``, and what reading rows, loading and tuning raise.
    """
    if train_steps < 0:
        raise UserError(
            "CONFIG_VALUE",
            f"teacher_train_steps: found {train_steps}, allowed: 0 (use the teacher as it is) or "
            "more",
            "correct the value in the configuration file or in --set",
        )
    if train_steps == 0:
        loaded = load(reference)
        write_reference(teacher_path, reference, loaded.fingerprint)
        return _told(reference, loaded, 0)
    load_tokenizer(reference)  # a wrong name fails before the rows are read
    config = TuneConfig(
        large_model_reference=reference,
        train_steps=train_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_context_length=data.max_context_length,
        max_output_tokens=data.max_output_tokens,
        validation_fraction=VALIDATION_FRACTION,
        precision=precision,
    )
    if dataset_uri:
        summary = _tuned_on(dataset_uri, teacher_path, config, data, state_dir)
    else:
        summary = tune(train_path, "", teacher_path, state_dir=state_dir, config=config)
    loaded = load(str(teacher_path))
    write_reference(teacher_path, HERE, loaded.fingerprint)
    return {**summary, **_told(reference, loaded, train_steps)}


def _tuned_on(
    uri: str, teacher_path: str | Path, config: TuneConfig, data: DataConfig, state_dir: str
) -> dict[str, Any]:
    """Tunes on rows of the teacher's own; those that data preparation holds out validate."""
    target = Path(teacher_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pipestill-") as name:
        train, held_out = Path(name) / "train.jsonl", Path(name) / "held_out.jsonl"
        read = prepare(
            uri,
            "",
            config=dataclasses.replace(data, eval_fraction=VALIDATION_FRACTION),
            tokenizer_reference=config.large_model_reference,
            train_path=str(train),
            evaluation_path=str(held_out),
            rejects_path=str(target.with_name(f"{target.name}.rejects.jsonl")),
        )
        summary = tune(train, held_out, target, state_dir=state_dir, config=config)
    return {**summary, **{f"teacher_{key}": value for key, value in read.items()}}


def _told(reference: str, loaded: Any, steps: int) -> dict[str, Any]:
    return {
        "reference": reference,
        "fingerprint": loaded.fingerprint,
        "parameters": loaded.parameters,
        "bytes": loaded.bytes,
        "teacher_train_steps": steps,
    }
