"""Run by several processes at once: whole runs of distillation, one after the other.

``python -m torch.distributed.run … tests/training/two_distilled.py ROWS TEACHER STUDENT OUT RUN…``
"""

import json
import sys
from pathlib import Path

from pipestill.training.distill import distill_student
from pipestill.training.distributed import current, join, leave
from tests.training.distilling import settings


def main(rows: str, teacher: str, student: str, out: str, *runs: str) -> None:
    """Arguments are texts because they come from a command line."""
    config = settings(student_model_reference=student, batch_size=5, train_steps=4)
    for run in runs:
        place = Path(out) / run.replace("/", "-")
        summary = distill_student(
            rows, "", teacher, place, run=f"{run}:0", state_dir="", config=config
        )
        if current().is_main:
            (place / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    join()
    main(*sys.argv[1:])
    leave()
