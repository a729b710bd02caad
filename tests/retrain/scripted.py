"""A world in which training is scripted and everything else is real."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipestill.config import DataConfig
from pipestill.records import Example, Prediction, read_jsonl, write_jsonl
from pipestill.retrain.settings import GateRule, TrainingRule
from pipestill.retrain.story import Plot

COLOURS = ("red", "green", "blue")
START = datetime(2026, 1, 5, 3, tzinfo=UTC)  # a Monday
WEEK = timedelta(days=7)


def write_rows(path: Path, name: str, count: int, words: str = "a b c d e f g h") -> Path:
    """Labelled rows whose inputs nobody else has."""
    rows = []
    for at in range(count):
        seed = hashlib.sha256(f"{name}:{at}".encode()).digest()
        pool = words.split()
        text = " ".join(pool[byte % len(pool)] for byte in seed[: 5 + seed[5] % 4])
        rows.append({"input_text": f"{name} {at} {text}", "output_text": COLOURS[seed[6] % 3]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fill(folder: Path, week: int, count: int = 300, **options) -> Path:
    """Rows of the window that ends at tick `week` (0 = START)."""
    day = (START + (week - 1) * WEEK + timedelta(days=2)).strftime("%Y-%m-%d")
    return write_rows(folder / f"rows-{day}.jsonl", f"w{week}", count, **options)


def plot(folder: Path, **changes) -> Plot:
    """Weekly ticks over ``rows/``; small thresholds."""
    write_rows(folder / "regression.jsonl", "regression", 200)
    (folder / "rows").mkdir(exist_ok=True)
    given = {
        "retrain_dir": str(folder / "book"),
        "dataset_uri": str(folder / "rows"),
        "cron": "0 3 * * 1",
        "champion": make_model(folder / "first", 0.6),
        "evaluation_data_uri": str(folder / "regression.jsonl"),
        "training": TrainingRule(min_new_rows=200, least_new_rows=20),
        "gate": GateRule(gate_min_new=40),
        "data": DataConfig(eval_fraction=0.3),
        **changes,
    }
    return Plot(**given)


def make_model(folder: Path, skill: float, seed: str = "") -> str:
    """A model's folder that says how often it is right; `seed` names its lucky rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"skill": skill, "seed": seed}))
    return str(folder)


def is_right(model: str, row_id: str) -> bool:
    """Rows are right in the order of their hash, so a skilled model is right where others are."""
    facts = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(f"{facts['seed']}{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < facts["skill"] * 2**64


class Trainer:
    """`train` and `compare` of a story; each training takes the next skill of the script."""

    def __init__(self, *skills: float) -> None:
        self.skills = list(skills)
        self.trained_on: list[list[Example]] = []
        self.asked: list[list[str]] = []

    def train(self, rows: str, folder: str) -> None:
        self.trained_on.append(list(read_jsonl(rows, Example)))
        make_model(Path(folder), self.skills.pop(0))

    def compare(self, challenger: str, champion: str, rows: str, predictions: str) -> None:
        found = list(read_jsonl(rows, Example))
        self.asked.append([row.id for row in found])
        write_jsonl(
            predictions,
            [
                Prediction(
                    id=row.id,
                    arm=arm,
                    seed=0,
                    input_text=row.input_text,
                    gold=row.output_text or "",
                    output_text="",
                    correct=is_right(model, row.id),
                    prompt_tokens=1,
                    output_tokens=1,
                )
                for arm, model in (("tuned", challenger), ("base", champion))
                for row in found
            ],
        )
