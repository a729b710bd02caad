"""The components `evaluate` and `report` call the library with their parameters; defaults agree."""

import dataclasses
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipestill.components.evaluate import evaluate
from pipestill.components.report import report
from pipestill.config import EvalConfig, TeacherConfig
from pipestill.records import Prediction, read_jsonl
from tests.evaluation import synthetic, tiny

# The teacher's settings that only labelling uses.
LABELLING_ONLY = {"shots", "samples", "temperature", "min_success", "audit_rows"}


def _artifact(path: Path | str) -> SimpleNamespace:
    return SimpleNamespace(path=str(path), uri=str(path), metadata={})


def _defaults(component) -> dict:
    parameters = inspect.signature(component.python_func).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_defaults_of_evaluate_are_those_of_the_configuration():
    defaults = _defaults(evaluate)
    for field in dataclasses.fields(EvalConfig):
        assert defaults[field.name] == field.default, field.name
    for field in dataclasses.fields(TeacherConfig):
        if field.name not in LABELLING_ONLY:
            assert defaults[f"teacher_{field.name}"] == field.default, field.name


def test_evaluate_runs_and_writes_predictions_and_metrics(tmp_path):
    files = tiny.inputs(tmp_path, count=6)
    students = [
        tiny.student(tmp_path / "dss", "dss", 0, "yes"),
        tiny.student(tmp_path / "label", "label_only", 0, "no"),
    ]
    predictions, metrics = _artifact(tmp_path / "p" / "out"), _artifact(tmp_path / "m" / "out")
    evaluate.python_func(
        students=[_artifact(path) for path in students],
        evaluation=_artifact(files["evaluation"]),
        cache_key="x",
        predictions=predictions,
        metrics=metrics,
        student_model_reference=tiny.base(tmp_path / "base"),
        latency_rows=1.0,  # whole numbers may arrive as floats
        teacher_backend="replay",
        teacher_prompt=files["prompt"],
        teacher_replay_uri=files["recorded"],
    )
    found = json.loads(Path(metrics.path).read_text(encoding="utf-8"))
    assert predictions.metadata == {
        "rows": 6,
        "arms": ["base", "dss", "label_only", "teacher_recorded"],
    }
    assert found["arms"]["dss"]["accuracy"] == pytest.approx(4 / 6)
    assert len(list(read_jsonl(predictions.path, Prediction))) == 4 * 6


def test_report_writes_page_and_summary_and_returns_the_verdict(tmp_path):
    paths = synthetic.write_run(tmp_path, synthetic.predictions(rows=200))
    word = report.python_func(
        predictions=_artifact(paths["predictions_path"]),
        evaluation_metrics=_artifact(paths["evaluation_metrics_path"]),
        training_rows=_artifact(paths["training_rows_path"]),
        rejects=_artifact(paths["rejects_path"]),
        data_metrics=_artifact(paths["data_metrics_path"]),
        label_metrics=_artifact(paths["label_metrics_path"]),
        train_metrics=[_artifact(path) for path in paths["train_metrics_paths"]],
        page=_artifact(tmp_path / "page" / "out.html"),
        summary=_artifact(tmp_path / "summary" / "out.json"),
        title="A title",
    )
    assert word == "better"
    assert "A title" in (tmp_path / "page" / "out.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "summary" / "out.json").read_text())["verdict"] == word
