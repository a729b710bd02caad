"""The rows of a distillation run, and the text that each of them is trained on."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipestill.config import DistillConfig
from pipestill.errors import UserError
from pipestill.records import Labelled, read_jsonl
from pipestill.training.distill_objectives import CONTROLS, Objective
from pipestill.training.student import split


@dataclass(frozen=True)
class Rows:
    """The rows of a run; `output_text` is what the student is trained to write."""

    train: list[Labelled]
    validation: list[Labelled]
    left_out: int
    digest: str


def read_rows(path: str | Path, objective: Objective, config: DistillConfig) -> Rows:
    """Training and validation rows of a run, with the text that it is trained on.

    Rows without that text are left out: of ``gold`` those whose label is not gold, of the teacher's
    text those that the teacher answered with nothing. Which rows validate does not depend on the
    objective.

    Raises:
        UserError: ``TRAIN_EMPTY``, ``ROW_UNREADABLE``.
    """
    rows = list(read_jsonl(path, Labelled))
    parts = [
        [taught for row in part if (taught := _taught(row, objective, config)) is not None]
        for part in (split(rows, config.validation_fraction) if rows else ([], []))
    ]
    if not parts[0]:
        raise UserError(
            "TRAIN_EMPTY",
            f"{path}: none of {len(rows)} rows has a text for {objective.family}",
            "gold needs labelled rows; the other objectives the answers of teacher_logits",
        )
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return Rows(parts[0], parts[1], len(rows) - len(parts[0]) - len(parts[1]), digest)


def targets_of(objective: Objective, config: DistillConfig) -> str:
    """Whose text is trained on: ``teacher`` or ``label``."""
    return CONTROLS.get(objective.family, config.targets)


def _taught(row: Labelled, objective: Objective, config: DistillConfig) -> Labelled | None:
    if objective.family == "gold" and row.label_source != "gold":
        return None
    whose = targets_of(objective, config)
    text = row.teacher_label if whose == "teacher" else row.output_text
    return dataclasses.replace(row, output_text=text) if text and text.strip() else None
