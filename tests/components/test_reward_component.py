"""The component `reward_model_train`: its defaults, and through kfp's local runner."""

import dataclasses
import inspect
import json

import pytest

from pipestill.components.reward_model_train import reward_model_train
from pipestill.config import RewardConfig
from pipestill.models.teacher import write_reference
from pipestill.rlhf.scoring import RewardModel
from tests.rlhf.tiny_rl import make_files, make_folder


def test_every_setting_is_a_parameter_with_the_same_default():
    found = inspect.signature(reward_model_train.python_func).parameters
    for field in dataclasses.fields(RewardConfig):
        assert found[field.name].default == field.default
        assert found[field.name].annotation is field.type


@pytest.mark.slow
def test_runs_under_the_local_runner(tmp_path):
    from kfp import dsl, local

    train, evaluation = make_files(tmp_path)
    start = tmp_path / "start"
    write_reference(start, make_folder("t5_tied", tmp_path / "model"), "not checked here")

    @dsl.pipeline(name="reward-only")
    def reward_only(rows: str, held: str, start: str, state: str) -> dsl.Metrics:
        first = dsl.importer(artifact_uri=rows, artifact_class=dsl.Dataset, reimport=False)
        second = dsl.importer(artifact_uri=held, artifact_class=dsl.Dataset, reimport=False)
        third = dsl.importer(artifact_uri=start, artifact_class=dsl.Model, reimport=False)
        step = reward_model_train(
            preferences=first.output,
            preference_evaluation=second.output,
            start=third.output,
            cache_key="x",
            state_dir=state,
            reward_model_train_steps=4,
            reward_batch_size=4,
        )
        return step.outputs["metrics"]

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "root"),
        workspace_root=str(tmp_path / "workspace"),
    )
    state = str(tmp_path / "state")
    task = reward_only(rows=str(train), held=str(evaluation), start=str(start), state=state)
    assert task.output.metadata["objective"] == "reward_model"
    assert task.output.metadata["eval_pairs"] == 20
    (description,) = (tmp_path / "root").rglob("pipestill.json")
    assert json.loads(description.read_text())["evaluation"]["pairs"] == 20
    found = RewardModel.load(description.parent).score_texts(["a"] * 2, ["red", "green"])
    assert found.shape == (2,)
