"""Rows, models and settings of the tests of distillation."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pipestill.config import DistillConfig
from pipestill.models.loading import Loaded
from pipestill.records import Labelled, write_jsonl
from pipestill.training.distill import begin, distill_student
from pipestill.training.distill_objectives import parse_run
from pipestill.training.distill_plan import Setting, plan_for
from pipestill.training.distill_rows import read_rows
from pipestill.training.distill_step import accumulate, attach, detach  # noqa: F401
from pipestill.training.step import Job
from pipestill.training.teacher_states import load_teacher, teacher_for
from tests.training.tiny import make_model, make_rows, make_tokenizer

CONFIG = DistillConfig(
    train_steps=5,
    batch_size=4,
    evaluation_interval=5,
    checkpoint_interval=2,
    learning_rate=1e-3,
    precision="fp32",
    max_output_tokens=32,
    max_context_length="128",
    validation_fraction=0.2,
)


def settings(**changes: Any) -> DistillConfig:
    return dataclasses.replace(CONFIG, **changes)


def distill_rows(count: int = 20) -> list[Labelled]:
    """Rows with a gold label and another answer of the teacher; every fifth has no gold."""
    rows = []
    for i, row in enumerate(make_rows(count, every=0)):
        other = " ".join(reversed(row.output_text.split())) + " green"
        gold = i % 5 < 4
        text, source = (row.output_text, "gold") if gold else (other, "teacher")
        given = {"teacher_label": other, "output_text": text, "label_source": source}
        rows.append(dataclasses.replace(row, **given, rationale=None))
    return rows


def written(folder: Path, count: int = 20) -> Path:
    write_jsonl(folder / "rows.jsonl", distill_rows(count))
    return folder / "rows.jsonl"


def other_model(kind: str, seed: int) -> Any:
    """`make_model` with other weights, large enough that its probabilities are not flat."""
    model = make_model(kind)
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(torch.randn(weight.shape, generator=dice) * 0.1)
    return model.eval()


def folder_of(kind: str, folder: Path, seed: int = 1) -> str:
    """A saved tiny model whose weights follow from `seed`."""
    model = other_model(kind, seed)
    model.save_pretrained(folder)
    make_tokenizer(bool(model.config.is_encoder_decoder)).save_pretrained(folder)
    return str(folder)


def run(folder: Path, student: str, teacher: str, objective: str, **more: Any) -> dict[str, Any]:
    """A whole run in `folder`, its student in ``folder/student``."""
    state, store = more.pop("state", ""), more.pop("store", "")
    config = settings(student_model_reference=student, **more)
    rows = folder / "rows.jsonl"
    if not rows.exists():
        written(folder)
    return distill_student(
        rows, store, teacher, folder / "student", run=f"{objective}:0", state_dir=state,
        config=config,
    )  # fmt: skip


def made(
    folder: Path, student: str, teacher: str, objective: str, source: Any = None, **more: Any
) -> tuple[Any, Job, Loaded]:
    """Plan and job of a run before its first step."""
    config = settings(student_model_reference=student, **more)
    rows_path = folder / "rows.jsonl"
    if not rows_path.exists():
        written(folder)
    wanted = parse_run(f"{objective}:0")
    rows = read_rows(rows_path, wanted.objective, config)
    start = begin(rows, wanted, config)
    if source is None and wanted.objective.needs_teacher:
        origin = load_teacher(teacher, config, 32)
        source = teacher_for(origin, start.loaded, start.job.train, rows.train, None)
    setting = Setting(
        wanted.objective, config, start.loaded, start.renderer, rows.train, start.job, source
    )
    plan = plan_for(setting)
    start.loaded.model.train()
    return plan, start.job, start.loaded


def gradients(plan: Any, job: Job, rows: list[int], tokens: int = 0, step: int = 1) -> Any:
    """What one step adds: its terms as numbers, and the gradient of every weight."""
    job.model.zero_grad()
    sums = accumulate(plan, job, rows, step, tokens)
    terms = {name: float(value) / max(1.0, count) for name, (value, count) in sums.terms.items()}
    found = {name: w.grad.clone() for name, w in job.model.named_parameters() if w.grad is not None}
    return terms, found
