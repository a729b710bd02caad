"""The component `distill_train` through kfp's local runner, and its defaults."""

import dataclasses
import inspect
import json

import pytest

from pipestill.components.distill_train import distill_train
from pipestill.config import DistillConfig
from pipestill.models.student import Student
from pipestill.models.teacher import write_reference
from tests.training.distilling import folder_of, written


def test_every_setting_is_a_parameter_with_its_default():
    found = inspect.signature(distill_train.python_func).parameters
    for field in dataclasses.fields(DistillConfig):
        assert found[field.name].default == field.default, field.name
        assert found[field.name].annotation is field.type


@pytest.mark.slow
def test_runs_under_the_local_runner(tmp_path):
    from kfp import dsl, local

    rows = written(tmp_path)
    model = folder_of("t5_tied", tmp_path / "model")
    write_reference(tmp_path / "teacher", folder_of("llama", tmp_path / "big", 2), "x")
    (tmp_path / "store").mkdir()

    @dsl.pipeline(name="distil-only")
    def distil_only(rows: str, store: str, teacher: str, model: str, state: str) -> dsl.Metrics:
        given = dsl.importer(artifact_uri=rows, artifact_class=dsl.Dataset, reimport=False)
        kept = dsl.importer(artifact_uri=store, artifact_class=dsl.Dataset, reimport=False)
        named = dsl.importer(artifact_uri=teacher, artifact_class=dsl.Model, reimport=False)
        step = distill_train(
            training_rows=given.output,
            store=kept.output,
            teacher=named.output,
            cache_key="x",
            run="response/jsd@1:3",
            state_dir=state,
            student_model_reference=model,
            train_steps=3,
            batch_size=4,
        )
        return step.outputs["metrics"]

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "root"),
        workspace_root=str(tmp_path / "workspace"),
    )
    task = distil_only(
        rows=str(rows),
        store=str(tmp_path / "store"),
        teacher=str(tmp_path / "teacher"),
        model=model,
        state=str(tmp_path / "state"),
    )
    assert task.output.metadata["run"] == "response/jsd@1:3"
    (description,) = (tmp_path / "root").rglob("pipestill.json")
    info = json.loads(description.read_text())
    assert (info["objective"], info["seed"]) == ("response/jsd@1", 3)
    student = Student.load(str(description.parent))
    assert len(student.answer(["a b"], batch_size=1, max_new_tokens=4)) == 1
