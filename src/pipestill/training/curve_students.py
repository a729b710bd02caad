"""One student of a curve, and one trial of a learning rate: made once, kept, found again."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import EvalConfig, TrainConfig
from pipestill.errors import WorkError
from pipestill.evaluation.scoring import answers_match
from pipestill.evaluation.student_arms import answer_all, read_curve
from pipestill.models.student import INFO_FILE
from pipestill.records import Example, Labelled, Prediction, write_json, write_jsonl
from pipestill.training import parts
from pipestill.training.checkpoint import run_folder
from pipestill.training.curve_rows import ARMS
from pipestill.training.student import train_student

ARM_KEY, SHARE_KEY = "curve_arm", "curve_share"  # of a student's `pipestill.json`
# A part each: a student without its answers, one with them, and the outcome of a trial.
TRAINED, MEASURED, TRIAL = "trained", "measured", "trial"


@dataclass(frozen=True)
class Setting:
    """What all students of an arm share. `base` is the untrained model's fingerprint."""

    arm: str
    held_out: Sequence[Example]
    evaluation: EvalConfig
    metric: str
    base: str
    state_dir: str


@dataclass(frozen=True)
class Member:
    """One student to train: its share of the rows, its seed, its settings with its rate."""

    share: float
    rows: Sequence[Labelled]
    seed: int
    config: TrainConfig


def trial(setting: Setting, member: Member) -> dict[str, Any]:
    """Trains for the validation loss alone, where no earlier run has.

    Returns:
        An entry of ``rate_search``, and ``seconds``; the loss is None where it was not finite.
    """
    with _rows_file(member) as (path, digest):
        place = run_folder(setting.state_dir, TRIAL, *_facts(setting, member, digest))
        found = parts.find(place, TRIAL)
        if found is None:
            found = _tried(setting, member, path)
            parts.keep(place, TRIAL, found)
    return found


def student(
    setting: Setting, member: Member, deployed: Path | None
) -> tuple[dict[str, Any], list[Prediction]]:
    """Trains a student and has it answer the held-out rows, where no earlier run has.

    Args:
        setting: of the arm.
        member: the student.
        deployed: where its folder shall stand in the end; None where it is not needed.

    Returns:
        ``point``, ``curve``, ``restarts``, ``bytes``; and the answers, scored anew.
    """
    with _rows_file(member) as (path, digest):
        held_out = json.dumps([dataclasses.asdict(row) for row in setting.held_out])
        facts = *_facts(setting, member, digest), setting.evaluation, _sha256(held_out)
        place = run_folder(setting.state_dir, MEASURED, member.share, deployed is not None, *facts)
        kept = parts.find(place, MEASURED, deployed)
        found = kept or _measured(setting, member, path, place, deployed)
    found["point"]["from_journal"] = kept is not None
    predictions = [_scored(row, setting.metric) for row in found.pop("predictions")]
    right = sum(row.correct for row in predictions)
    found["point"]["accuracy"] = right / len(predictions)
    return found, predictions


def _tried(setting: Setting, member: Member, rows_path: Path) -> dict[str, Any]:
    found = {
        "learning_rate": member.config.learning_rate,
        "seed": member.seed,
        "validation_loss": None,
        "validation_accuracy": None,
        "steps": 0,
        "seconds": 0.0,
    }
    try:
        summary = _train(setting, member, rows_path, rows_path.parent / "student")
    except WorkError as error:
        if error.code != "LOSS_NOT_FINITE":
            raise
        return found
    measured = {
        "validation_loss": summary["val_label_loss"],
        "validation_accuracy": summary["val_label_accuracy"],
    }
    return found | measured | {name: summary[name] for name in ("steps", "seconds")}


def _measured(
    setting: Setting, member: Member, rows_path: Path, place: str | None, deployed: Path | None
) -> dict[str, Any]:
    """Trains, unless that much was kept; answers; keeps both."""
    folder = rows_path.parent / "student"
    summary = parts.find(place, TRAINED, folder)
    if summary is None:
        summary = _train(setting, member, rows_path, folder)
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        write_json(folder / INFO_FILE, {**info, ARM_KEY: setting.arm, SHARE_KEY: member.share})
        parts.keep(place, TRAINED, summary, folder)
    arm = f"{setting.arm}:{member.share:g}"
    models = {str(folder): (arm, member.seed)}
    predictions, _ = answer_all(models, setting.held_out, setting.evaluation, setting.metric)
    found = _outcome(member, summary, folder)
    found["predictions"] = [dataclasses.asdict(row) for row in predictions]
    if deployed is not None:
        _hand_over(folder, deployed)
    parts.keep(place, MEASURED, found, folder if deployed is not None else None)
    parts.drop(place, TRAINED)
    return found


def _outcome(member: Member, summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    resumed = summary["resumed_from_step"]
    return {
        "point": {
            "share": member.share,
            "rows": len(member.rows),
            "rationale_rows": summary["rationale_rows"],
            "seed": member.seed,
            "validation_loss": summary["val_label_loss"],
            "steps": summary["steps"],
            "seconds": summary["seconds"],
            "resumed_from_step": resumed,
        },
        "curve": read_curve(str(folder)),
        "restarts": [resumed] if resumed else [],
        "bytes": summary["bytes"],
    }


def _train(setting: Setting, member: Member, rows_path: Path, folder: Path) -> dict[str, Any]:
    return train_student(
        rows_path,
        folder,
        run=f"{ARMS[setting.arm][1]}:{member.seed}",
        state_dir=setting.state_dir,
        config=member.config,
    )


def _facts(setting: Setting, member: Member, digest: str) -> tuple[Any, ...]:
    """What decides a training, beside the code."""
    return setting.arm, member.config, member.seed, digest, setting.base


@contextlib.contextmanager
def _rows_file(member: Member) -> Iterator[tuple[Path, str]]:
    """The student's rows as a file in a folder of its own, and the file's digest."""
    with tempfile.TemporaryDirectory(prefix="pipestill-curve-") as name:
        path = Path(name) / "rows.jsonl"
        write_jsonl(path, member.rows)
        yield path, _sha256(path.read_text(encoding="utf-8"))


def _hand_over(folder: Path, target: Path) -> None:
    """Copies the student, its audit and its TensorBoard log to where they are wanted."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in folder.parent.glob(f"{folder.name}*"):
        place = target.with_name(target.name + path.name.removeprefix(folder.name))
        if path.is_dir():
            shutil.copytree(path, place, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, place)


def _scored(row: dict[str, Any], metric: str) -> Prediction:
    correct = answers_match(row["output_text"], row["gold"], metric)
    return Prediction(**{**row, "correct": correct})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
