"""The teacher of a distillation: named or tuned, and what the two components hand on."""

import json

import pytest

from pipestill.config import DataConfig
from pipestill.errors import UserError
from pipestill.generation.logits_store import open_store
from pipestill.models.loading import load
from pipestill.models.student import INFO_FILE, Student
from pipestill.models.teacher import (
    HERE,
    TEACHER_FILE,
    check_fingerprint,
    teacher_reference,
    write_reference,
)
from pipestill.records import Example, Labelled, read_jsonl, write_jsonl
from pipestill.training.teacher_tuning import prepare_teacher
from tests.training.tiny import COLOURS, make_folder

ASKED = {
    "train_steps": 0, "batch_size": 8, "learning_rate": 3e-3, "dataset_uri": "",
    "data": DataConfig(max_output_tokens=16), "precision": "fp32", "state_dir": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder("llama", tmp_path_factory.mktemp("model") / "llama")


def examples(count=40, unlabelled=4):
    return [
        Example(
            id=f"w{i}",
            input_text="abc"[i % 3] * 3 + f" {i}",
            output_text=None if i < unlabelled else COLOURS[i % 3],
        )
        for i in range(count)
    ]


def prepared(folder, reference, **changes):
    write_jsonl(folder / "train.jsonl", examples())
    asked = {**ASKED, "reference": reference, **changes}
    return prepare_teacher(folder / "train.jsonl", folder / "teacher", **asked)


def test_a_teacher_that_is_used_as_it_is_is_only_named(tmp_path, model):
    summary = prepared(tmp_path, model)
    assert [path.name for path in (tmp_path / "teacher").iterdir()] == [TEACHER_FILE]
    assert teacher_reference(tmp_path / "teacher") == model
    fingerprint = load(model).fingerprint
    assert (summary["reference"], summary["fingerprint"]) == (model, fingerprint)
    assert summary["parameters"] == load(model).parameters
    check_fingerprint(tmp_path / "teacher", fingerprint)


def test_a_local_folder_is_named_in_full(tmp_path, model, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(Path(model).parent)
    write_reference(tmp_path / "teacher", "llama", "f")
    monkeypatch.chdir(tmp_path)
    assert teacher_reference("teacher") == model


def test_a_pocket_name_stays_a_name(tmp_path):
    write_reference(tmp_path, "pocket-base", "f")
    assert teacher_reference(tmp_path) == "pocket-base"


def test_a_tuned_teacher_has_learned_and_lies_in_its_folder(tmp_path, model):
    summary = prepared(tmp_path, model, train_steps=30)
    folder = tmp_path / "teacher"
    assert teacher_reference(folder) == str(folder)
    assert json.loads((folder / TEACHER_FILE).read_text())["reference"] == HERE
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    losses = [entry["label_loss"] for entry in log if "label_loss" in entry]
    assert losses[-1] < losses[0] - 1
    assert summary["val_label_loss"] < losses[0] - 1
    assert summary["unlabelled_rows"] == 4
    assert summary["reference"] == model
    student = Student.load(str(folder))
    check_fingerprint(folder, student.loaded.fingerprint)
    rows = examples()[4:16]
    found = student.answer([r.input_text for r in rows], batch_size=4, max_new_tokens=8)
    right = sum(a.text == r.output_text for a, r in zip(found, rows, strict=True))
    assert right > len(rows) / 2  # untuned: none


def test_rows_of_its_own_are_read_as_every_data_set_is(tmp_path, model):
    good = [{"question": f"{'xyz'[i % 3] * 3} {i}", "answer": COLOURS[i % 3]} for i in range(40)]
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*good, {"question": 7, "answer": "red"}])
    )
    data = DataConfig(input_field="question", output_field="answer", max_output_tokens=16)
    own = {"dataset_uri": str(tmp_path / "own.jsonl"), "data": data, "train_steps": 2}
    summary = prepared(tmp_path, model, **own)
    assert (summary["teacher_rows_read"], summary["teacher_rows_rejected"]) == (41, 1)
    assert summary["train_rows"] == summary["teacher_rows_train"]
    assert summary["validation_rows"] == summary["teacher_rows_eval"] > 0
    (reject,) = (tmp_path / "teacher.rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["line"] == 41
    (tmp_path / "bad.jsonl").write_text('{"question": 7, "answer": "red"}\n' * 3)
    with pytest.raises(UserError, match="DATA_NO_VALID_ROWS"):
        prepared(tmp_path, model, **{**own, "dataset_uri": str(tmp_path / "bad.jsonl")})


def test_mistakes_are_named(tmp_path, model):
    with pytest.raises(UserError, match=r"CONFIG_VALUE.*teacher_train_steps"):
        prepared(tmp_path, model, train_steps=-1)
    with pytest.raises(UserError, match="MODEL_NOT_FOUND"):
        prepared(tmp_path, "./nowhere", train_steps=3)
    with pytest.raises(UserError, match="MODEL_NOT_FOUND"):
        prepared(tmp_path, "./nowhere")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"reference": "x"}'])
def test_a_folder_that_is_no_teacher_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / TEACHER_FILE).write_text(text)
    with pytest.raises(UserError, match="TEACHER_UNREADABLE"):
        teacher_reference(tmp_path)


@pytest.mark.slow
def test_both_steps_run_under_the_local_runner(tmp_path, model):
    from kfp import dsl, local

    from pipestill.components.teacher_logits import teacher_logits
    from pipestill.components.teacher_prepare import teacher_prepare

    write_jsonl(tmp_path / "train.jsonl", examples())

    @dsl.pipeline(name="teacher-only")
    def teacher_only(rows: str, model: str, state: str) -> dsl.Metrics:
        source = dsl.importer(artifact_uri=rows, artifact_class=dsl.Dataset, reimport=False)
        teacher = teacher_prepare(
            train=source.output,
            cache_key="x",
            state_dir=state,
            teacher_model_reference=model,
            teacher_train_steps=20,
            teacher_batch_size=8,
            teacher_learning_rate=3e-3,
            max_output_tokens=16,
        )
        answers = teacher_logits(
            train=source.output,
            teacher=teacher.outputs["teacher"],
            cache_key="x",
            student_model_reference=model,
            state_dir=state,
            top_k=8,
            max_output_tokens=16,
        )
        return answers.outputs["metrics"]

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "root"),
        workspace_root=str(tmp_path / "workspace"),
    )
    task = teacher_only(
        rows=str(tmp_path / "train.jsonl"), model=model, state=str(tmp_path / "state")
    )
    found = task.output.metadata
    assert (found["rows"], found["top_k"], found["gold_rows"]) == (40, 8, 36)
    (description,) = (tmp_path / "root").rglob(INFO_FILE)
    assert teacher_reference(description.parent) == str(description.parent)
    (about,) = (tmp_path / "root").rglob("store.json")
    store = open_store(about.parent)
    (path,) = (tmp_path / "root").rglob("training_rows")
    rows = list(read_jsonl(path, Labelled))
    assert [len(row.tokens) for row in store.rows([row.id for row in rows])]
    assert store.digest == found["store_digest"]
