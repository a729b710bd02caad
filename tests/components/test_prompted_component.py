"""The component `evaluate_prompts` as Kubeflow Pipelines calls it, on the pocket models."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kfp import dsl

from pipestill import pocket
from pipestill.components.evaluate_prompts import evaluate_prompts
from pipestill.config import CostConfig, EvalConfig, TeacherConfig
from pipestill.records import Example, Prediction, read_jsonl, write_jsonl

UNUSED = {"shots", "samples", "temperature", "min_success", "audit_rows"}


def _artifact(folder: Path, name: str, kind: type = dsl.Dataset) -> Any:
    return kind(name=name, uri=str(folder / name))


def test_defaults_are_those_of_the_configuration() -> None:
    found = inspect.signature(evaluate_prompts.python_func).parameters
    for config, prefix in ((EvalConfig, ""), (CostConfig, ""), (TeacherConfig, "teacher_")):
        for field in dataclasses.fields(config):
            name = prefix + field.name
            if prefix and field.name in UNUSED:
                assert name not in found
            elif name == "eval_shots":  # the published comparison goes up to ten
                assert found[name].default == "0,2,5,10"
            else:
                assert found[name].default == field.default, name


@pytest.mark.skipif(
    not pocket.POCKET["pocket-teacher"].is_dir(), reason="the pocket models are not built"
)
def test_tuned_untuned_and_teacher_on_the_pocket_task(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    lines = (pocket.DATA_DIR / "eval.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    evaluation = _artifact(tmp_path, "evaluation")
    write_jsonl(evaluation.path, [Example(**json.loads(line)) for line in lines])
    # A model that was tuned for nothing serves: what is shown is that it is asked zero-shot.
    tuned = dsl.Model(name="tuned", uri=str(pocket.POCKET["pocket-teacher"]))
    predictions = _artifact(tmp_path, "predictions")
    metrics = _artifact(tmp_path, "metrics", dsl.Metrics)
    evaluate_prompts.python_func(
        tuned=tuned,
        students=[],
        evaluation=evaluation,
        cache_key="k",
        large_model_reference="pocket-teacher",
        predictions=predictions,
        metrics=metrics,
        eval_shots="2,10,13",
        latency_rows=0.0,  # whole numbers may arrive as floats
        teacher_prompt="refund_desk.v2",
        teacher_max_new_tokens=48.0,
        state_dir=str(tmp_path / "state"),
    )
    summary = json.loads(Path(metrics.path).read_text(encoding="utf-8"))
    arms = summary["arms"]
    assert set(arms) == {"tuned", "base", *(f"teacher_{k}_shot" for k in (2, 10, 13))}
    assert "allowed: 0 to 12" in arms["teacher_13_shot"]["error"]
    assert arms["teacher_10_shot"]["prompt_tokens"] > 10 * arms["tuned"]["prompt_tokens"]
    assert arms["teacher_2_shot"]["accuracy"] > 0.5
    assert summary["large_is_teacher"] is True
    assert predictions.metadata["rows"] == 6
    assert len(list(read_jsonl(predictions.path, Prediction))) == 4 * 6
