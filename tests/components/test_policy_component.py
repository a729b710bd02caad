"""The component `policy_train`: its defaults, and a run through kfp's local runner."""

import dataclasses
import inspect
import json

import pytest

from pipestill.config import PolicyConfig
from pipestill.models.student import Student
from pipestill.models.teacher import write_reference
from pipestill.records import write_jsonl
from tests.rlhf.policies import rows
from tests.rlhf.test_dpo_train import pairs
from tests.rlhf.test_policy_reward import trained
from tests.training.tiny import make_folder


def test_every_field_is_a_parameter_with_the_same_default_and_type():
    from pipestill.components.policy_train import policy_train

    parameters = inspect.signature(policy_train.python_func).parameters
    assert "large_model_reference" not in parameters  # it is what `start` stands for
    for field in dataclasses.fields(PolicyConfig):
        if field.name == "large_model_reference":
            continue
        assert parameters[field.name].default == field.default, field.name
        assert parameters[field.name].annotation is field.type, field.name


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ppo", "dpo"])
def test_runs_under_the_local_runner(tmp_path, objective):
    from kfp import dsl, local

    from pipestill.components.policy_train import policy_train

    write_jsonl(tmp_path / "prompts.jsonl", rows(12))
    write_jsonl(tmp_path / "held_out.jsonl", rows(6, start=50))
    model = make_folder("t5_tied", tmp_path / "model")
    write_reference(tmp_path / "start", model, "")
    trained(tmp_path, model)
    write_jsonl(tmp_path / "pairs.jsonl", pairs(20))

    @dsl.pipeline(name="policy-only")
    def policy_only(folder: str, objective: str) -> dsl.Metrics:
        def data(name: str, kind: type = dsl.Dataset):
            uri = f"{tmp_path}/{name}"
            return dsl.importer(artifact_uri=uri, artifact_class=kind, reimport=False).output

        step = policy_train(
            prompts=data("prompts.jsonl"),
            prompt_evaluation=data("held_out.jsonl"),
            preferences=data("pairs.jsonl"),
            reward_model=data("rm", dsl.Model),
            start=data("start", dsl.Model),
            cache_key="x",
            policy_objective=objective,
            reinforcement_learning_train_steps=2,
            rollout_batch_size=8,
            target_sequence_length=8,
            rlhf_eval_rows=4,
            state_dir=folder,
        )
        return step.outputs["metrics"]

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "root"),
        workspace_root=str(tmp_path / "workspace"),
    )
    task = policy_only(folder=str(tmp_path / "state"), objective=objective)
    assert task.output.metadata["objective"] == objective
    (description,) = (tmp_path / "root").rglob("pipestill.json")
    assert json.loads(description.read_text())["steps"] == 2
    assert Student.load(str(description.parent)).answer(["a b"], batch_size=1, max_new_tokens=4)
    (told,) = (tmp_path / "root").rglob("samples")
    assert len(told.read_text().splitlines()) == 4
