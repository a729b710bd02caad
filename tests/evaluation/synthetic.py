"""A made-up run with a known effect: predictions of all arms and every metrics file of a report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipestill.records import Labelled, Prediction, Reject, write_json, write_jsonl

ITEMS = ("kettle", "lamp", "laptop", "camera", "jacket", "blender")
EFFECT = {"dss": 0.78, "label_only": 0.68, "shuffled": 0.69, "base": 0.34}
TEACHER = {"teacher_0_shot": 0.52, "teacher_2_shot": 0.79, "teacher_5_shot": 0.88}
SIZES = {"student": (1_450_000, 5_900_000), "teacher": (4_100_000, 16_500_000)}
PROMPT_TOKENS = {"teacher_0_shot": 96, "teacher_2_shot": 248, "teacher_5_shot": 471}


def predictions(
    rows: int = 400, accuracy: dict[str, float] | None = None, seeds: int = 3
) -> list[Prediction]:
    """Rows differ in difficulty, which all arms share, so that pairing matters."""
    accuracy = accuracy or EFFECT | TEACHER
    random = np.random.default_rng(7)
    difficulty = random.normal(0, 1.2, rows)
    out = []
    for arm, share in accuracy.items():
        trained = arm not in ("base",) and not arm.startswith("teacher")
        for seed in range(seeds) if trained else (-1,):
            level = np.log(share / (1 - share)) * 1.3
            right = random.random(rows) < 1 / (1 + np.exp(-(level - difficulty)))
            out += [_prediction(arm, seed, at, bool(right[at])) for at in range(rows)]
    return out


def _prediction(arm: str, seed: int, at: int, right: bool) -> Prediction:
    item, days = ITEMS[at % len(ITEMS)], 10 + at % 45
    gold = "yes" if days <= 30 else "no"
    answer = gold if right else ("no" if gold == "yes" else "yes")
    order = "fewer" if days <= 30 else "more"
    explains = (arm == "dss" and seed == 0 and at % 20 == 0) or arm.startswith("teacher")
    because = f"The limit for a {item} is 30 days. {days} is {order} than 30."
    return Prediction(
        id=f"row-{at:04d}",
        arm=arm,
        seed=seed,
        input_text=f"Mara bought a {item} in Lund and asks for a refund after {days} days. It is"
        " unopened. May she have it?",
        gold=gold,
        output_text=answer,
        correct=right,
        prompt_tokens=PROMPT_TOKENS.get(arm, 38),
        output_tokens=40 if arm.startswith("teacher") else 2,
        rationale=(because if right else f"The limit for a {item} is 14 days.")
        if explains
        else None,
        gold_rationale=f"A {item} may come back within 30 days; {days} days are {order}.",
    )


def evaluation_metrics(items: list[Prediction]) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for place, arm in enumerate(dict.fromkeys(item.arm for item in items)):
        kind = "teacher" if arm.startswith("teacher") else "student"
        p50 = {"teacher_0_shot": 182.0, "teacher_2_shot": 241.0, "teacher_5_shot": 318.0}.get(arm)
        p50 = p50 or 9.4 + 0.3 * place
        arms[arm] = {
            "prompt_tokens": PROMPT_TOKENS.get(arm, 38.4),
            "output_tokens": 40.2 if kind == "teacher" else 2.0,
            "p50_ms": p50,
            "p95_ms": p50 * 1.4,
            "params": SIZES[kind][0],
            "bytes": SIZES[kind][1],
        }
    return {
        "rows": len({item.id for item in items}),
        "metric": "exact",
        "arms": arms,
        "latency_rows": 30,
        "cpu_seconds": 41.2,
        "config": {"base": "pocket-base", "teacher": {"model_reference": "pocket-teacher"}},
    }


def training_metrics(seeds: int = 3) -> list[dict[str, Any]]:
    out = []
    for objective, floor in (("dss", 0.21), ("label_only", 0.33), ("shuffled", 0.35)):
        for seed in range(seeds):
            curve = [
                [step, floor + 1.9 * np.exp(-step / 55) + 0.01 * seed, None if step % 50 else
                 floor + 0.08 + 1.8 * np.exp(-step / 60) + 0.02 * seed]
                for step in range(10, 301, 10)
            ]  # fmt: skip
            out.append(
                {"run": f"{objective}:{seed}", "objective": objective, "seed": seed, "steps": 300,
                 "seconds": 21.4 + seed, "input_tokens": 812_000, "rationale_loss": -1.0,
                 "label_loss": floor, "val_label_loss": floor + 0.08, "curve": curve}
            )  # fmt: skip
    return out


def training_rows(count: int = 300) -> list[Labelled]:
    statuses = ("kept",) * 7 + ("disagrees", "unparsed", "too_short")
    return [
        Labelled(
            id=f"train-{at}",
            input_text=f"question {at}",
            output_text="yes",
            label_source="gold" if at % 4 else "teacher",
            rationale="The limit is 30 days." if at % 10 < 7 else None,
            rationale_status=statuses[at % 10],
        )
        for at in range(count)
    ]


def rejects() -> list[Reject]:
    return [
        Reject(file="data/train.jsonl", line=17 + at, field="output_text", reason="missing",
               found='{"input_text": "…"}')
        for at in range(12)
    ]  # fmt: skip


LABEL_METRICS = {
    "rows": 300, "rows_gold": 225, "rows_missing": 75, "rows_labelled": 300, "rows_failed": 0,
    "audit_rows": 200, "audit_correct": 171, "audit_unparsable": 4, "calls_made": 310,
    "calls_from_journal": 190, "prompt_tokens": 146_000, "cached_prompt_tokens": 121_000,
    "output_tokens": 12_800, "cost_usd": 0.0, "journal_tokens": 96_000, "teacher_accuracy": 0.855,
    "rationale_asked": 300, "rationale_kept": 210, "rationale_yield": 0.7,
}  # fmt: skip
DATA_METRICS = {
    "rows_read": 740, "rows_rejected": 12, "duplicates_dropped": 21, "leaks_dropped": 7,
    "rows_train": 300, "rows_eval": 400,
}  # fmt: skip


def write_run(folder: Path, items: list[Prediction], **changed: Any) -> dict[str, Any]:
    """Writes all inputs of a report; returns `write_report`'s arguments."""
    write_jsonl(folder / "predictions.jsonl", items)
    write_jsonl(folder / "training_rows.jsonl", changed.get("rows", training_rows()))
    write_jsonl(folder / "rejects.jsonl", changed.get("rejects", rejects()))
    write_json(folder / "evaluation.json", changed.get("evaluation", evaluation_metrics(items)))
    write_json(folder / "data.json", changed.get("data", DATA_METRICS))
    write_json(folder / "labels.json", changed.get("labels", LABEL_METRICS))
    training = changed.get("training", training_metrics())
    paths = [folder / f"train-{at}.json" for at in range(len(training))]
    for path, metrics in zip(paths, training, strict=True):
        write_json(path, json.loads(json.dumps(metrics)))
    return {
        "predictions_path": str(folder / "predictions.jsonl"),
        "evaluation_metrics_path": str(folder / "evaluation.json"),
        "training_rows_path": str(folder / "training_rows.jsonl"),
        "rejects_path": str(folder / "rejects.jsonl"),
        "data_metrics_path": str(folder / "data.json"),
        "label_metrics_path": str(folder / "labels.json"),
        "train_metrics_paths": [str(path) for path in paths],
        "page_path": str(folder / "report.html"),
        "summary_path": str(folder / "summary.json"),
        "title": changed.get("title", "Distilling step-by-step"),
    }
