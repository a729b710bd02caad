"""Turns the chosen student into a folder that stands on its own and can be served."""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipestill.errors import UserError, WorkError
from pipestill.serving.card import model_card
from pipestill.serving.files import is_model_file

INFO_FILE = "pipestill.json"
SMOKE_INPUT = "Is anybody there?"


@dataclass(frozen=True)
class Candidate:
    """One trained student: its folder and what its `pipestill.json` says."""

    folder: Path
    info: Mapping[str, Any]

    @property
    def objective(self) -> str:
        return str(self.info["objective"])

    @property
    def score(self) -> tuple[float, float, int]:
        """Sorts the best student first: accuracy, then loss, then the lower seed.

        Both come from the validation rows, which are part of the training data. A score that was
        not measured counts as the worst.
        """
        accuracy = self.measured("val_label_accuracy")
        loss = self.measured("val_label_loss")
        return (
            math.inf if accuracy is None else -accuracy,
            math.inf if loss is None else loss,
            int(self.info.get("seed", 0)),
        )

    def measured(self, name: str) -> float | None:
        """A score of the training; None where it is missing, not finite or negative."""
        value = self.info.get(name)
        known = isinstance(value, int | float) and math.isfinite(value) and value >= 0
        return float(value) if known else None  # type: ignore[arg-type]


def package_student(
    student_paths: Sequence[str | Path],
    summary_path: str | Path,
    served_path: str | Path,
    *,
    objective: str,
    display_name: str = "",
    deploy_dir: str = "",
) -> tuple[str, dict[str, Any]]:
    """Copies the objective's best student, with a model card, and proves that it answers.

    Args:
        student_paths: folders of trained students, any objectives and seeds.
        summary_path: the report's `summary.json`.
        served_path: the folder to write.
        objective: whose student to serve.
        display_name: name in the card; empty = student and date.
        deploy_dir: another place for the same folder; what stood there is kept as
            ``<deploy_dir>.previous``, in a bucket (``gs://``) under its own digest. Empty = none.

    Returns:
        The folder to serve (`deploy_dir` where given), and facts about the model: display_name,
        base_model, objective, seed, validation scores, sha256, bytes, parameters.

    Raises:
        UserError: ``STUDENT_NONE`` (no such objective), ``STUDENT_UNREADABLE``,
            ``SUMMARY_UNREADABLE``, ``STUDENT_NO_WEIGHTS`` (no safetensors), ``DEPLOY_DIR``.
        WorkError: ``STUDENT_MUTE`` where the packaged folder cannot answer.
    """
    best = choose([_candidate(Path(path)) for path in student_paths], objective)
    summary = _read_object(Path(summary_path), "SUMMARY_UNREADABLE", "run the report step again")
    target = Path(served_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        work = Path(temporary) / "model"
        _copy_model(best.folder, work)
        facts = {**_facts(best, work), "display_name": display_name or _default_name(best)}
        (work / "summary.json").write_bytes(Path(summary_path).read_bytes())
        (work / "README.md").write_text(model_card(facts, best.info, summary), encoding="utf-8")
        facts["parameters"] = _smoke_request(work)
        _swap(work, target, keep_previous=False)
    if deploy_dir:
        return str(deploy(target, deploy_dir)), facts
    return str(target), facts


def choose(candidates: Sequence[Candidate], objective: str) -> Candidate:
    """The objective's student with the best validation score; held-out rows choose nothing.

    Raises:
        UserError: ``STUDENT_NONE`` listing the objectives that are there.
    """
    fitting = [item for item in candidates if item.objective == objective]
    if not fitting:
        present = ", ".join(sorted({item.objective for item in candidates})) or "no students at all"
        raise UserError(
            "STUDENT_NONE",
            f"objective: found {objective!r}, trained in this run: {present}",
            "set the objective to one of these, or add it to the runs that are trained",
        )
    return min(fitting, key=lambda item: item.score)


def deploy(folder: Path, deploy_dir: str | Path) -> str | Path:
    """Copies a packaged folder to `deploy_dir` by rename; the old one stays as ``.previous``.

    In a bucket (``gs://``) it is published as `pipestill.cloud.storage.upload_folder` does.

    Raises:
        UserError: ``DEPLOY_DIR`` where it cannot be written, or holds something else than a model.
    """
    if str(deploy_dir).startswith("gs://"):
        from pipestill.cloud.storage import upload_folder

        return upload_folder(folder, str(deploy_dir))
    target = Path(deploy_dir).expanduser().absolute()
    if target.exists() and not (target / INFO_FILE).is_file() and any(_listed(target)):
        raise UserError(
            "DEPLOY_DIR",
            f"{target}: exists and is no packaged model (it has no {INFO_FILE})",
            "choose an empty or a new folder",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            work = Path(temporary) / "model"
            _copy_model(folder, work)
            _swap(work, target, keep_previous=True)
    except OSError as error:
        raise UserError(
            "DEPLOY_DIR",
            f"{target}: cannot be written ({error.strerror or error})",
            "choose another deploy_dir",
        ) from error
    return target


def _listed(target: Path) -> list[Path]:
    return list(target.iterdir()) if target.is_dir() else [target]


def _swap(work: Path, target: Path, *, keep_previous: bool) -> None:
    """Puts `work` where `target` is; at no moment does half a model stand there.

    On mounts that cannot rename folders, such as /gcs, moving falls back to copying.
    """
    previous = target.with_name(f"{target.name}.previous")
    aside = previous if keep_previous else work.with_name("old")
    if target.exists():
        if aside.exists():
            shutil.rmtree(aside)
        shutil.move(target, aside)
    shutil.move(work, target)


def _candidate(folder: Path) -> Candidate:
    again = "train the student again"
    info = _read_object(folder / INFO_FILE, "STUDENT_UNREADABLE", again)
    if "objective" not in info:
        raise UserError("STUDENT_UNREADABLE", f"{folder / INFO_FILE}: has no objective", again)
    return Candidate(folder, info)


def _read_object(path: Path, code: str, hint: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(code, f"{path}: cannot be read ({error})", hint) from error
    if not isinstance(value, dict):
        raise UserError(code, f"{path}: found {type(value).__name__}, allowed: an object", hint)
    return value


def _copy_model(source: Path, target: Path) -> None:
    """Copies the folder's files that belong to a model: none that could run code, no links."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.is_symlink() and is_model_file(file):
            shutil.copyfile(file, target / file.name)
    if not list(target.glob("*.safetensors")):
        raise UserError(
            "STUDENT_NO_WEIGHTS", f"{source}: has no safetensors file", "train the student again"
        )


def _facts(best: Candidate, folder: Path) -> dict[str, Any]:
    weights = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as source:
            while block := source.read(1 << 20):
                digest.update(block)
    return {
        "base_model": str(best.info.get("base_model") or "unknown"),
        "objective": best.objective,
        "seed": int(best.info.get("seed", 0)),
        "val_label_accuracy": best.measured("val_label_accuracy"),
        "val_label_loss": best.measured("val_label_loss"),
        "sha256": digest.hexdigest(),
        "bytes": sum(file.stat().st_size for file in weights),
    }


def _default_name(best: Candidate) -> str:
    base = str(best.info.get("base_model") or "student").rstrip("/").split("/")[-1]
    return f"{base} {best.objective} {datetime.now(UTC):%Y-%m-%d}"


def _smoke_request(folder: Path) -> int:
    """Loads the folder as the server will and lets it answer once; returns its parameters.

    Raises:
        WorkError: ``STUDENT_MUTE``.
    """
    from pipestill.models.student import Student

    try:
        student = Student.load(str(folder))
        (answer,) = student.answer([SMOKE_INPUT], batch_size=1, max_new_tokens=8)
    except Exception as error:  # whatever stops it here would stop it in front of users
        raise WorkError(
            "STUDENT_MUTE",
            f"the packaged model cannot answer ({type(error).__name__}: {error})",
            "look at the training step's log; nothing was deployed",
        ) from error
    if answer.output_tokens < 1:
        raise WorkError("STUDENT_MUTE", "the packaged model answered nothing, not even an end mark")
    return student.parameters
