"""The components `train_curve` and `reward_frontier`: their defaults, and runs of both."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from pipestill.config import (
    CurveConfig,
    EvalConfig,
    FrontierConfig,
    PolicyConfig,
    PreferenceConfig,
    RewardConfig,
    TrainConfig,
    TuneEvalConfig,
)
from pipestill.models.student import Student
from pipestill.records import write_jsonl
from tests.training.test_curve import held_out, taught_rows
from tests.training.tiny import make_folder

# For one name the value of both, because one pipeline has one parameter for them.
SHARED = {"evaluation_interval": 100, "checkpoint_interval": 100}


def parameters_of(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        (TrainConfig, set()),
        (CurveConfig, set()),
        (EvalConfig, {"eval_shots", "latency_rows"}),
    ],
)
def test_every_setting_of_a_curve_is_a_parameter(kind, left_out):
    from pipestill.components.train_curve import train_curve

    found = parameters_of(train_curve.python_func)
    for field in dataclasses.fields(kind):
        assert (field.name in found) == (field.name not in left_out), field.name
        if field.name in found:
            assert found[field.name].default == field.default, field.name
            assert found[field.name].annotation is field.type, field.name


def test_every_parameter_of_the_frontier_is_a_setting_with_its_default():
    from pipestill.components.reward_frontier import reward_frontier

    found = parameters_of(reward_frontier.python_func)
    kinds = (FrontierConfig, RewardConfig, PolicyConfig, PreferenceConfig, TuneEvalConfig)
    fields = {f.name: f for kind in kinds for f in dataclasses.fields(kind)}
    own = {"cache_key", "predictions", "metrics", "state_dir"}
    assert {f.name for f in dataclasses.fields(FrontierConfig)} <= set(found)
    for name in set(found) - own:
        assert found[name].default == SHARED.get(name, fields[name].default), name
        assert found[name].annotation is fields[name].type, name


def root(tmp_path):
    from kfp import local

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "root"),
        workspace_root=str(tmp_path / "workspace"),
    )


def test_the_frontier_without_preferences_runs_under_the_local_runner(tmp_path):
    from pipestill.components.reward_frontier import reward_frontier

    root(tmp_path)
    task = reward_frontier(cache_key="x")
    assert json.loads(Path(task.outputs["metrics"].path).read_text()) == {"points": []}
    assert Path(task.outputs["predictions"].path).read_text() == ""


@pytest.mark.slow
def test_a_curve_runs_under_the_local_runner(tmp_path):
    from kfp import dsl

    from pipestill.components.train_curve import train_curve

    write_jsonl(tmp_path / "rows.jsonl", taught_rows(20))
    write_jsonl(tmp_path / "held_out.jsonl", held_out())
    model = make_folder("t5_tied", tmp_path / "model")

    @dsl.pipeline(name="curve-only")
    def curve_only(rows: str, held_out: str, model: str, state: str, arm: str) -> dsl.Metrics:
        given, asked = (
            dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset, reimport=False)
            for uri in (rows, held_out)
        )
        step = train_curve(
            training_rows=given.output,
            evaluation=asked.output,
            cache_key="x",
            arm=arm,
            state_dir=state,
            student_model_reference=model,
            shares="[0.5, 1]",
            seeds="[3]",
            learning_rates="[0.001, 0.002]",
            train_steps=4,
            batch_size=4,
            max_output_tokens=64,
        )
        return step.outputs["metrics"]

    root(tmp_path)
    task = curve_only(
        rows=str(tmp_path / "rows.jsonl"), held_out=str(tmp_path / "held_out.jsonl"),
        model=model, state=str(tmp_path / "state"), arm="dss_teacher",
    )  # fmt: skip
    assert task.output.metadata["arm"] == "dss_teacher"
    summary = json.loads(Path(task.output.path).read_text())
    assert [(p["share"], p["seed"]) for p in summary["points"]] == [(0.5, 3), (1.0, 3)]
    assert len(summary["rate_search"]) == 2
    (description,) = (tmp_path / "root").rglob("pipestill.json")
    assert json.loads(description.read_text())["curve_arm"] == "dss_teacher"
    assert Student.load(str(description.parent)).answer(["a"], batch_size=1, max_new_tokens=4)
