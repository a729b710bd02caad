"""Every kind of report page, from made-up data: what the browser test looks at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipestill.claims.report import write_claims_report
from pipestill.evaluation.distilled_report import write_distilled_report
from pipestill.evaluation.gate import Rule, decide
from pipestill.evaluation.models_report import write_models_report
from pipestill.evaluation.report import write_report
from pipestill.evaluation.rlhf_report import write_rlhf_report
from pipestill.evaluation.text_metrics import score_arms
from pipestill.evaluation.tuned_report import write_tuned_report
from pipestill.records import write_json, write_jsonl
from tests.claims import synthetic_claims
from tests.evaluation import synthetic, test_rlhf_report

LONG = "Supercalifragilisticexpialidocious" * 6  # a word that no phone is wide enough for


def _files(folder: Path, **values: Any) -> dict[str, str]:
    for name, value in values.items():
        path = folder / name
        write_jsonl(path, value) if isinstance(value, list) else write_json(path, value)
    return {name: str(folder / name) for name in values}


def _common(folder: Path, scores: dict[str, float], title: str) -> dict[str, Any]:
    """What the pages of two and more models share: predictions, metrics, data, rejects."""
    made = synthetic.predictions(200, scores, seeds=1)
    evaluation = synthetic.evaluation_metrics(made) | {
        "baseline": next(iter(scores)),
        "curves": {
            f"{next(iter(scores))}:0": [[s, 2 / s, 2.2 / s if s % 5 == 0 else None]
                                        for s in range(1, 60)]
        },
    }  # fmt: skip
    text = score_arms(made, "base")
    for arm, found in text.pop("scores").items():
        evaluation["arms"][arm]["scores"] = found
    evaluation |= text
    paths = _files(
        folder, predictions=made, evaluation=evaluation, data=synthetic.DATA_METRICS,
        rejects=synthetic.rejects(),
    )  # fmt: skip
    return {
        "predictions_path": paths["predictions"],
        "evaluation_metrics_path": paths["evaluation"],
        "rejects_path": paths["rejects"],
        "data_metrics_path": paths["data"],
        "page_path": str(folder / "page.html"),
        "summary_path": str(folder / "summary.json"),
        "title": title,
    }


def _report(folder: Path) -> str:
    arguments = synthetic.write_run(folder, synthetic.predictions())
    return write_report(**{**arguments, "page_path": str(folder / "page.html")})


def _tuned(folder: Path) -> str:
    arguments = _common(folder, {"tuned": 0.8, "base": 0.35}, "Supervised tuning")
    segments = [["What is it? ", False], ["a kettle</s>", True]]
    audit = {"samples": [{"row": "r1", "loss_tokens": 3, "tokens": 9, "segments": segments}]}
    paths = _files(
        folder, train=synthetic.training_metrics()[0] | {"run": "tuned:0"},
        **{"model.audit.json": audit},
    )  # fmt: skip
    return write_tuned_report(
        **arguments, train_metrics_path=paths["train"], model_path=str(folder / "model")
    )


def _models(folder: Path) -> str:
    scores = {"base": 0.35, "small": 0.6, "middle": 0.62, LONG: 0.7, "teacher_2_shot": 0.8}
    return write_models_report(**_common(folder, scores, "Models side by side"))


def _distilled(folder: Path) -> str:
    scores = {"response/reverse_kl": 0.74, "feature/hidden_mse@2": 0.7, "teacher_labels": 0.62,
              "gold": 0.66, "base": 0.3, "teacher": 0.86}  # fmt: skip
    arguments = _common(folder, scores, "Bake-off")
    training = [
        {"run": f"{arm}:0", "objective": arm, "seed": 0, "cpu_seconds": 12.0, "steps": 200,
         "ce_share": 0.6, "kd_share": 0.4}
        for arm in ("response/reverse_kl", "feature/hidden_mse@2", "teacher_labels")
    ]  # fmt: skip
    trained = {f"train-{at}": item for at, item in enumerate(training)}
    paths = _files(
        folder, teacher={"reference": "pocket-teacher", "parameters": 5_000_000},
        labels={"rows": 300, "accuracy": 0.91, "top_k": 64}, **trained,
    )  # fmt: skip
    return write_distilled_report(
        **arguments, teacher_metrics_path=paths["teacher"], label_metrics_path=paths["labels"],
        train_metrics_paths=[paths[name] for name in trained],
    )  # fmt: skip


def _rlhf(folder: Path) -> str:
    made = test_rlhf_report
    (folder / "policy").mkdir(exist_ok=True)
    write_jsonl(folder / "policy" / "train_log.jsonl", made.LOG)
    rules = [
        Rule(name="reward", outcome="pass", text="difference +0.6"),
        Rule(name="KL_to_the_start", outcome="open", text="1.2 nats"),
    ]
    paths = _files(
        folder, predictions=made.answers(), evaluation=made.evaluation(), gate=decide(rules),
        data=made.DATA, reward=made.reward_metrics(), rejects=synthetic.rejects(),
        train={"objective": "ppo", "steps": 6, "best_step": 6, "seconds": 1.5},
    )  # fmt: skip
    return write_rlhf_report(
        predictions_path=paths["predictions"],
        evaluation_metrics_path=paths["evaluation"],
        decision_path=paths["gate"],
        rejects_path=paths["rejects"],
        data_metrics_path=paths["data"],
        reward_metrics_path=paths["reward"],
        train_metrics_path=paths["train"],
        model_path=str(folder / "policy"),
        page_path=str(folder / "page.html"),
        summary_path=str(folder / "summary.json"),
        kl_bound=20.0,
        title="RLHF",
    )


def _claims(folder: Path) -> str:
    arguments = synthetic_claims.write_run(folder)
    return write_claims_report(**{**arguments, "page_path": str(folder / "page.html")})


KINDS: dict[str, Callable[[Path], str]] = {
    "claims": _claims,
    "report": _report,
    "tuned": _tuned,
    "distilled": _distilled,
    "rlhf": _rlhf,
    "models": _models,
}


def build(kind: str, folder: Path) -> Path:
    """Writes the page of a kind and returns its path."""
    KINDS[kind](folder)
    return folder / "page.html"
