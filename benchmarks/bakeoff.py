"""Which family of distillation helps: all of them against their controls, as a Markdown table.

    python -m benchmarks.bakeoff pocket
    python -m benchmarks.bakeoff banking77 --shared ../shared

The pocket set is the refund desk: a teacher tuned on 3,000 rows, students of two layers on 400
others, half of them without a label. Banking77 (Casanueva et al. 2020, 77 intents): a teacher tuned
on 6,000 questions, students on 2,000 others without any label, 1,000 held out. Teacher and students
start from the pocket base. The pipeline is the one that users run; its report lies in the folder.
"""

import argparse
import csv
import json
import random
from pathlib import Path
from typing import Any

from pipestill.cli import settings
from pipestill.cli.run import parameter_types
from pipestill.evaluation.arms import label
from pipestill.evaluation.wording import big_number, interval, number, percent, signed_points
from pipestill.pipelines import build
from pipestill.pipelines.local import run_local
from pipestill.records import write_jsonl

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "distill.yaml"
TEACHER_ROWS, STUDENT_ROWS, HELD_OUT = 6000, 2000, 1000


def banking77(shared: Path, out: Path) -> list[str]:
    """Writes the three files; returns the settings that differ from the example's."""
    with (shared / "data" / "banking77" / "train.csv").open(encoding="utf-8") as source:
        rows = [
            {"id": f"row-{at}", "input_text": row["text"], "output_text": _intent(row["category"])}
            for at, row in enumerate(csv.DictReader(source))
        ]
    random.Random(0).shuffle(rows)  # noqa: S311
    taught, rest = rows[:TEACHER_ROWS], rows[TEACHER_ROWS:]
    asked = [
        {name: value for name, value in row.items() if name != "output_text"}
        for row in rest[:STUDENT_ROWS]
    ]
    files = {"teacher": taught, "train": asked, "eval": rest[STUDENT_ROWS:][:HELD_OUT]}
    for name, found in files.items():
        write_jsonl(out / f"{name}.jsonl", found)
    return [
        "title=Banking77, a tuned pocket teacher and smaller students",
        f"dataset_uri={out / 'train.jsonl'}",
        f"evaluation_data_uri={out / 'eval.jsonl'}",
        f"teacher_dataset_uri={out / 'teacher.jsonl'}",
        "teacher_train_steps=1500",
        "teacher_learning_rate=0.0015",
        "max_output_tokens=32",
        "controls=[teacher_labels]",  # no row has a gold label
        "train_steps=600",
        "evaluation_interval=600",
    ]


def _intent(category: str) -> str:
    return category.replace("_", " ").lower()


def table(summary: dict[str, Any]) -> str:
    """The arms as Markdown; differences are against plain training on the teacher's answers."""
    head = (
        "| arm | right | 95 % | gap closed | against teacher's answers | p (Holm) | CPU s | size |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for arm, entry in summary["arms"].items():
        control = f"teacher_labels{arm[arm.find('@') :] if '@' in arm else ''}"
        found = summary["comparisons"].get(f"{arm}_vs_{control}")
        gap, p = "", ""
        if found:
            low, high = (signed_points(bound) for bound in found["ci95"])
            gap, p = (
                f"{signed_points(found['difference'])} ({low} to {high})",
                f"{found['p_holm']:.3f}",
            )
        cells = [
            label(arm),
            percent(entry["accuracy"]),
            interval(entry["ci95"]),
            percent(entry["gap_closed"], 0),
            gap,
            p,
            number(entry["train_cpu_seconds"]),
            big_number(entry["params"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", summary["verdict_sentence"]])


def main() -> None:
    """Runs one bake-off and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", choices=("pocket", "banking77"))
    parser.add_argument("--shared", default="../shared", help="folder of the real data sets")
    parser.add_argument("--out", default="", help="the run's folder; default runs/bakeoff-DATA")
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    out = Path(given.out or f"runs/bakeoff-{given.data}").absolute()
    out.mkdir(parents=True, exist_ok=True)
    own = banking77(Path(given.shared), out) if given.data == "banking77" else []
    graph = build("distill")
    chosen = ["objective=all", *own, *given.more]
    parameters = settings.load(str(EXAMPLE), chosen, parameter_types(graph))
    summary = run_local(graph, parameters, out)
    print(table(summary))
    print(json.dumps({"rows": summary["rows"], "seconds": summary["seconds"]}))


if __name__ == "__main__":
    main()
