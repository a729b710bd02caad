"""What a student learns from: a teacher's model, a store of its probabilities, itself, or text."""

import sys
from pathlib import Path
from typing import Any

from pipestill.config import DistillConfig, config_value
from pipestill.models.loading import Loaded, folder_fingerprint, resolve_reference
from pipestill.models.render import Renderer
from pipestill.training.distill_checks import open_checked
from pipestill.training.distill_objectives import Objective
from pipestill.training.distill_plan import teaches
from pipestill.training.distill_response import Stored
from pipestill.training.distill_rows import Rows
from pipestill.training.distributed import join
from pipestill.training.step import Job
from pipestill.training.teacher_states import (
    Teacher,
    check_vocabulary,
    load_teacher,
    reference_of,
    shared_ids,
    teacher_for,
)


def source_for(
    store_path: str | Path,
    teacher_path: str | Path,
    student: Loaded,
    renderer: Renderer,
    job: Job,
    rows: Rows,
    objective: Objective,
    config: DistillConfig,
) -> tuple[Teacher | Stored | None, dict[str, Any]]:
    """What the student learns from, and what is told of it.

    ``learns_from`` is text, itself, generations, store, teacher, or uld for a teacher of another
    vocabulary. The facts hold the teacher's reference and fingerprint also where it is not loaded.

    Raises:
        UserError: ``TOKENIZER_MISMATCH``, ``TEACHER_END``, ``STORE_…``, ``CONFIG_VALUE``, and what
            loading a model raises.
    """
    none = {"teacher": "", "teacher_fingerprint": "", "learns_from": "text", "store_digest": ""}
    if not teaches(objective, config):
        return None, {**none, **_named(teacher_path)}
    if not objective.needs_teacher:
        born_again = objective.variant == "born_again"
        return None, {**none, "learns_from": "generations" if born_again else "itself"}
    if config.teacher_source == "stored":
        store = open_checked(store_path, student, config)
        size = shared_ids(student.tokenizer, student.tokenizer)
        told = {**none, **_named(teacher_path), "learns_from": "store"}
        ids = [row.id for row in rows.train]
        return Stored(store, ids, size), {**told, "store_digest": store.digest}
    longest = int(job.train.target_length.max())
    if objective.family == "on_policy":
        longest = renderer.max_output_tokens
    origin = load_teacher(teacher_path, config, longest)
    told = {
        **none,
        "teacher": origin.reference,
        "teacher_fingerprint": origin.loaded.fingerprint,
    }
    names = config.student_model_reference, origin.reference
    same = check_vocabulary(student, origin, names, config.cross_tokenizer)
    if not same and config.cross_tokenizer == "sequence":
        if config.targets != "teacher":
            raise config_value("targets", config.targets, "teacher with cross_tokenizer sequence")
        _say("teacher and student have different vocabularies: training on the teacher's text")
        return None, told
    if not same:
        _say("teacher and student have different vocabularies: compared by sorted probabilities")
    autocast = job.shape.autocast
    source = teacher_for(origin, student, job.train, rows.train, autocast)
    return source, {**told, "learns_from": "teacher" if same else "uld"}


def _named(teacher_path: str | Path) -> dict[str, str]:
    """Reference and fingerprint of a teacher that is not loaded."""
    if not str(teacher_path):
        return {}
    reference = reference_of(teacher_path)
    folder = Path(resolve_reference(reference))
    known = folder_fingerprint(folder) if folder.is_dir() else reference
    return {"teacher": reference, "teacher_fingerprint": known}


def _say(text: str) -> None:
    if join().is_main:
        print(text, file=sys.stderr, flush=True)
