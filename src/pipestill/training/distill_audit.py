"""The audit before a distillation's first step: student and teacher see the same target tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipestill.errors import UserError
from pipestill.models.render import Renderer, renderer_for
from pipestill.records import Labelled
from pipestill.training.audit import Audit, Sample, Segment, audit, trained_tokens
from pipestill.training.batches import Encoded
from pipestill.training.forward import Shape, collate
from pipestill.training.objectives import label_only
from pipestill.training.step import Job
from pipestill.training.teacher_states import Teacher

TEACHER_ROWS_SHOWN = 5


def audit_distilled(
    loaded: Any,
    renderer: Renderer,
    rows: Sequence[Labelled],
    job: Job,
    teacher: Teacher | None,
    beside: str | Path,
) -> Audit:
    """`pipestill.training.audit.audit`, with some rows as the teacher reads them among the samples.

    Args:
        loaded: the student.
        renderer: its renderer.
        rows: the training rows, `output_text` is what is trained on.
        job: their tokens.
        teacher: the teacher where it works online.
        beside: as in `audit`.

    Raises:
        UserError: ``AUDIT_…``; ``AUDIT_TEACHER_TOKENS`` where the teacher does not see the tokens
            that the student is taught.
    """
    info = {"style": renderer.style, "instruction": renderer.instruction}
    limits = renderer.max_input_tokens, renderer.max_output_tokens
    serving = renderer_for(loaded, *limits, info)
    found = Audit()
    if teacher is not None:
        found.facts["teacher_shares_tokens"] = bool(teacher.size)
        found.facts["teacher_cut_inputs"] = teacher.data.cut_inputs
    if teacher is not None and teacher.size:
        for s, row in enumerate(rows[:TEACHER_ROWS_SHOWN]):
            found.samples.append(_as_read(row.id, s, job, teacher, loaded.tokenizer))
    targets = label_only(rows, 0)
    seen = audit(rows, targets, job.train, serving, job.shape, beside=beside, into=found)
    print(*seen.notes, sep="\n", end="\n" if seen.notes else "", flush=True)
    return seen


def _as_read(row: str, s: int, job: Job, teacher: Teacher, tokenizer: Any) -> Sample:
    """One row as the teacher reads it, from the tensors that it is given."""
    read, written = _split(teacher.data, s, teacher.shape)
    if written != _split(job.train, s, job.shape)[1]:
        raise UserError(
            "AUDIT_TEACHER_TOKENS",
            f"row {row}: teacher and student see different target tokens",
            "this is a fault of this library; nothing was trained",
        )
    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in (read, written)]
    parts = (Segment(texts[0], False), Segment(texts[1], True))
    return Sample(row, "teacher", len(read) + len(written), len(written), parts)


def _split(data: Encoded, s: int, shape: Shape) -> tuple[list[int], list[int]]:
    """The ids of a sequence that are read, and those that carry loss."""
    ids, mask = trained_tokens(collate(data, [s], shape), shape)
    pairs = list(zip(ids, mask, strict=True))
    return [i for i, loss in pairs if not loss], [i for i, loss in pairs if loss]
