"""The component `student_train` through kfp's local runner."""

import json

import pytest

from pipestill.models.student import Student
from pipestill.records import write_jsonl
from tests.training.tiny import make_folder, make_rows


@pytest.mark.slow
def test_runs_under_the_local_runner(tmp_path):
    from kfp import dsl, local

    from pipestill.components.student_train import student_train

    write_jsonl(tmp_path / "rows.jsonl", make_rows(20))
    model = make_folder("t5_tied", tmp_path / "model")

    @dsl.pipeline(name="train-only")
    def train_only(rows: str, model: str, state: str) -> dsl.Metrics:
        source = dsl.importer(artifact_uri=rows, artifact_class=dsl.Dataset, reimport=False)
        step = student_train(
            training_rows=source.output,
            cache_key="x",
            run="label_only:1",
            state_dir=state,
            student_model_reference=model,
            train_steps=4,
            batch_size=4,
        )
        return step.outputs["metrics"]

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "root"),
        workspace_root=str(tmp_path / "workspace"),
    )
    task = train_only(rows=str(tmp_path / "rows.jsonl"), model=model, state=str(tmp_path / "state"))
    assert task.output.metadata["run"] == "label_only:1"
    (description,) = (tmp_path / "root").rglob("pipestill.json")
    assert json.loads(description.read_text())["seed"] == 1
    student = Student.load(str(description.parent))
    (answer,) = student.answer(["a b"], batch_size=1, max_new_tokens=4)
    assert answer.latency_ms > 0
