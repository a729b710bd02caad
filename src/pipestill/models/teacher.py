"""Which model the teacher is: a folder that names one, or holds one.

The folder that a pipeline hands on has `teacher.json`, ``{"reference": …, "fingerprint": …}``. The
reference is what `pipestill.models.loading.load` takes, or ``.`` where the model lies in the folder
itself.
"""

import json
from pathlib import Path

from pipestill.errors import UserError
from pipestill.records import write_json

TEACHER_FILE = "teacher.json"
HERE = "."


def write_reference(folder: str | Path, reference: str, fingerprint: str) -> None:
    """Writes `teacher.json`.

    Args:
        folder: made where it is missing.
        reference: pocket name, hub name, local folder, or `HERE`.
        fingerprint: of the loaded model, `pipestill.models.loading.Loaded.fingerprint`.
    """
    if reference != HERE and Path(reference).expanduser().is_dir():
        reference = str(Path(reference).expanduser().resolve())  # steps have their own folders
    write_json(Path(folder) / TEACHER_FILE, {"reference": reference, "fingerprint": fingerprint})


def teacher_reference(folder: str | Path) -> str:
    """The model that a teacher's folder stands for, as `pipestill.models.loading.load` takes it.

    Raises:
        UserError: ``TEACHER_UNREADABLE``.
    """
    reference = _read(folder)["reference"]
    return str(folder) if reference == HERE else reference


def check_fingerprint(folder: str | Path, found: str) -> None:
    """Refuses a teacher that is no longer the one that was prepared.

    Args:
        folder: with `teacher.json`.
        found: fingerprint of the model that was loaded for it.

    Raises:
        UserError: ``TEACHER_CHANGED``, ``TEACHER_UNREADABLE``.
    """
    kept = _read(folder)
    if kept["fingerprint"] != found:
        raise UserError(
            "TEACHER_CHANGED",
            f"teacher {kept['reference']!r}: fingerprint {found[:16]}, prepared was "
            f"{kept['fingerprint'][:16]}",
            "run teacher_prepare again, or put the model back",
        )


def _read(folder: str | Path) -> dict[str, str]:
    path = Path(folder) / TEACHER_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {name: str(value[name]) for name in ("reference", "fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "TEACHER_UNREADABLE",
            f"{path}: not a teacher's description ({type(error).__name__}: {error})",
            "run teacher_prepare again",
        ) from error
