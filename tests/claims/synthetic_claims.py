"""A made-up run of the pipeline `claims` with known effects: all of its predictions and metrics."""

from pathlib import Path
from typing import Any

import numpy as np

from pipestill.records import Labelled, Prediction, write_json, write_jsonl
from tests.evaluation import synthetic

SHARES = (0.125, 0.25, 0.5, 1.0)
TRAINING_ROWS = 400
CURVES = {
    "dss": (0.62, 0.72, 0.80, 0.86),
    "finetune": (0.50, 0.60, 0.69, 0.77),
    "distillation": (0.48, 0.58, 0.66, 0.73),
    "dss_teacher": (0.57, 0.66, 0.74, 0.80),
    "shuffled": (0.50, 0.61, 0.70, 0.77),
}
PROMPTED = {
    "tuned": 0.93, "large_0_shot": 0.45, "large_2_shot": 0.66, "large_5_shot": 0.74,
    "large_10_shot": 0.80, "teacher_0_shot": 0.55, "teacher_2_shot": 0.80, "teacher_5_shot": 0.84,
    "teacher_10_shot": 0.82, "base": 0.34, "dss": 0.86, "finetune": 0.77,
}  # fmt: skip
TOKENS = {0: 96, 2: 248, 5: 471, 10: 850}
MS = {0: 182.0, 2: 241.0, 5: 318.0, 10: 455.0}
TIMED = 30


def predictions(
    rows: int = 300,
    curves: dict[str, tuple[float, ...]] | None = None,
    prompted: dict[str, float] | None = None,
    seeds: int = 3,
) -> tuple[dict[str, list[Prediction]], list[Prediction]]:
    """(arm → predictions of its curve, predictions of `evaluate_prompts`)."""
    curves = CURVES if curves is None else curves
    prompted = PROMPTED if prompted is None else prompted
    random = np.random.default_rng(11)
    difficulty = random.normal(0, 1.2, rows)

    def drawn(arm: str, seed: int, share: float) -> list[Prediction]:
        level = np.log(share / (1 - share)) * 1.3
        right = random.random(rows) < 1 / (1 + np.exp(-(level - difficulty)))
        return [_prediction(arm, seed, at, bool(right[at]), random) for at in range(rows)]

    by_arm = {
        arm: [
            item
            for place, level in zip(SHARES, levels, strict=True)
            for seed in range(seeds)
            for item in drawn(f"{arm}:{place:g}", seed, level)
        ]
        for arm, levels in curves.items()
    }
    return by_arm, [item for arm, level in prompted.items() for item in drawn(arm, -1, level)]


def _prediction(
    arm: str, seed: int, at: int, right: bool, random: np.random.Generator
) -> Prediction:
    item, days = synthetic.ITEMS[at % len(synthetic.ITEMS)], 10 + at % 45
    gold = "yes" if days <= 30 else "no"
    more = " It was a gift, and she has not opened it." * (at % 7)
    prompted = arm.endswith("_shot")
    return Prediction(
        id=f"row-{at:04d}",
        arm=arm,
        seed=seed,
        input_text=f"Mara bought a {item} in Lund and asks for a refund after {days} days.{more}",
        gold=gold,
        output_text=gold if right else ("no" if gold == "yes" else "yes"),
        correct=right,
        prompt_tokens=TOKENS[_shots(arm)] if prompted else 38,
        output_tokens=40 if prompted else 2,
        latency_ms=round(_ms(arm) * float(random.uniform(0.9, 1.2)), 3)
        if at < TIMED and ":" not in arm
        else None,
        rationale=f"The limit for a {item} is 30 days." if prompted else None,
        gold_rationale=f"A {item} may come back within 30 days.",
    )


def _shots(arm: str) -> int:
    return int(arm.split("_")[1]) if arm.endswith("_shot") else 0


def _ms(arm: str) -> float:
    if arm.endswith("_shot"):
        return MS[_shots(arm)]
    return 150.0 if arm == "tuned" else 9.0


def curve_metrics(arm: str, **changed: Any) -> dict[str, Any]:
    random = np.random.default_rng(len(arm))
    points = [
        {
            "share": share, "rows": round(share * TRAINING_ROWS), "seed": seed,
            "rationale_rows": round(0.8 * share * TRAINING_ROWS) if arm.startswith("dss") else 0,
            "accuracy": CURVES.get(arm, CURVES["dss"])[at], "validation_loss": 0.4 - 0.05 * at,
            "steps": 120 * (at + 1), "seconds": 8.0 * (at + 1),
            "resumed_from_step": 120 if (share, seed) == (1.0, 1) else 0, "from_journal": at == 0,
        }
        for at, share in enumerate(SHARES)
        for seed in range(3)
    ]  # fmt: skip
    floor = 0.2 + 0.1 * random.random()
    curves = {
        f"{arm}:{share:g}:{seed}": [
            [step, floor + 1.9 * float(np.exp(-step / 55)) + 0.01 * seed,
             None if step % 40 else floor + 0.08 + 1.8 * float(np.exp(-step / 60))]
            for step in range(10, 301, 10)
        ]
        for share in (0.125, 1.0) for seed in range(3)
    }  # fmt: skip
    return {
        "arm": arm, "rows_available": TRAINING_ROWS, "rows_without_label": 3,
        "learning_rate": 1e-3,
        "rate_search": [
            {"learning_rate": rate, "seed": 1000, "validation_loss": loss,
             "validation_accuracy": 0.7, "steps": 120}
            for rate, loss in ((3e-4, 0.61), (1e-3, 0.42), (3e-3, 0.55))
        ],
        "points": points, "curves": curves,
        "restarts": {f"{arm}:1:1": [120]} if arm == "dss" else {},
        "train_seconds": 32.0, "all_seconds": 310.0, "parameters": 1_640_000, "bytes": 6_600_000,
        "base_model": "pocket-base", **changed,
    }  # fmt: skip


def prompt_metrics(arms: Any = tuple(PROMPTED), **changed: Any) -> dict[str, Any]:
    measured = {}
    for arm in arms:
        large = arm.startswith(("large", "teacher")) or arm == "tuned"
        p50 = _ms(arm)
        measured[arm] = {
            "accuracy": PROMPTED.get(arm, 0.5), "p50_ms": p50, "p95_ms": 1.4 * p50,
            "prompt_tokens": TOKENS[_shots(arm)] if arm.endswith("_shot") else 38,
            "output_tokens": 40 if arm.endswith("_shot") else 2,
            "params": 2_360_000 if large else 1_640_000, "bytes": 9_500_000 if large else 6_600_000,
            "peak_memory_bytes": 41_000_000 if large else 24_000_000,
            "usd_per_1000": p50 / 3600 * 0.19, "usd_how": "machine", "shots": _shots(arm),
            "unparsable": 4 if arm.endswith("_shot") else 0,
        }  # fmt: skip
    return {
        "rows": 300, "metric": "exact", "large_is_teacher": False, "shots": [0, 2, 5, 10],
        "arms": measured, "latency_rows": TIMED, "threads": 1,
        "machine": {"name": "n1-standard-4", "source": "public price list", "date": "2025-06-01",
                    "usd_per_hour": {"low": 0.17, "likely": 0.19, "high": 0.25}},
        "config": {"large": "pocket-large", "base": "pocket-base"}, **changed,
    }  # fmt: skip


def frontier_metrics() -> dict[str, Any]:
    points = [
        {"kl_coeff": coeff, "reward": reward, "reward_ci95": [reward - 0.1, reward + 0.1],
         "gain": reward - 0.1, "gain_ci95": [reward - 0.25, reward + 0.05], "kl": kl,
         "kl_ci95": [0.9 * kl, 1.1 * kl], "perplexity": 2.4 + kl / 4, "decision": "promote",
         "seconds": 41.0,
         "curve": [[step, 0.1 + (reward - 0.1) * step / 60, kl * step / 60]
                   for step in range(0, 61, 10)]}
        for coeff, reward, kl in ((0.1, 0.92, 3.1), (0.4, 0.71, 1.2), (1.6, 0.22, 0.3))
    ]  # fmt: skip
    model = {"pairs": 60, "accuracy": 0.9, "accuracy_ci95": [0.8, 0.97]}
    start = {"reward": 0.1, "reward_ci95": [0.0, 0.2]}
    return {"rows": 64, "start": start, "points": points, "reward_model": model, "seconds": 180.0}


def training_rows(count: int = 120) -> list[Labelled]:
    return [
        Labelled(
            id=f"train-{at}", input_text=f"A kettle comes back after {at} days. May it?",
            output_text="yes" if at <= 30 else "no", label_source="gold",
            teacher_label=("yes" if at <= 30 else "no") if at % 7 else "perhaps",
            agreement=1.0 if at % 3 else 0.6,
            rationale=f"The limit is 30 days. {at} is {'fewer' if at <= 30 else 'more'}."
            if at % 5 else None,
            rationale_status="kept" if at % 5 else "too_short",
            gold_rationale=f"A kettle may come back within 30 days; {at} days are not the same."
            if at % 2 else None,
        )
        for at in range(count)
    ]  # fmt: skip


TUNE_METRICS = {
    "run": "tuned:0", "steps": 200, "seconds": 64.0, "label_loss": 0.12, "val_label_loss": 0.2,
    "learning_rate": 2e-4, "base_model": "pocket-large", "parameters": 2_360_000,
}  # fmt: skip
LABELS = synthetic.LABEL_METRICS | {"rows": TRAINING_ROWS, "rows_labelled": TRAINING_ROWS}


def write_run(folder: Path, rows: int = 300, **changed: Any) -> dict[str, Any]:
    """Writes all inputs; returns `write_claims_report`'s arguments."""
    by_arm, prompted = changed.get("predictions") or predictions(rows)
    curves = changed.get("curve_metrics") or [curve_metrics(arm) for arm in by_arm]
    curve_paths, metric_paths = [], []
    for at, items in enumerate(by_arm.values()):
        curve_paths.append(str(folder / f"curve-{at}.jsonl"))
        write_jsonl(curve_paths[-1], items)
    for at, metrics in enumerate(curves):
        metric_paths.append(str(folder / f"curve-{at}.json"))
        write_json(metric_paths[-1], metrics)
    write_jsonl(folder / "prompted.jsonl", prompted)
    write_jsonl(folder / "training_rows.jsonl", changed.get("rows_", training_rows()))
    write_jsonl(folder / "rejects.jsonl", changed.get("rejects", synthetic.rejects()))
    named = {
        "prompt": changed.get("prompts", prompt_metrics()),
        "frontier": changed.get("frontier", frontier_metrics()),
        "data": changed.get("data", synthetic.DATA_METRICS),
        "label": changed.get("labels", LABELS),
        "tune": changed.get("tune", TUNE_METRICS),
    }
    for name, metrics in named.items():
        write_json(folder / f"{name}.json", metrics)
    return {
        "curve_predictions_paths": curve_paths,
        "curve_metrics_paths": metric_paths,
        "prompt_predictions_path": str(folder / "prompted.jsonl"),
        "training_rows_path": str(folder / "training_rows.jsonl"),
        "rejects_path": str(folder / "rejects.jsonl"),
        **{f"{name}_metrics_path": str(folder / f"{name}.json") for name in named},
        "page_path": str(folder / "claims.html"),
        "summary_path": str(folder / "claims-summary.json"),
        "title": changed.get("title", "The claims, measured"),
    }
