"""The whole evaluation on tiny real models: every arm, its errors, its latency, and the report."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipestill.config import EvalConfig, TeacherConfig
from pipestill.errors import UserError
from pipestill.evaluation.latency import percentiles, time_rows
from pipestill.evaluation.report import write_report
from pipestill.evaluation.run import evaluate_arms, held_out_rows, parse_shots
from pipestill.records import Prediction, read_jsonl, write_json, write_jsonl
from tests.evaluation import synthetic, tiny

CONFIG = EvalConfig(latency_rows=2, eval_batch_size=8, max_output_tokens=16)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    students = [
        tiny.student(folder / "dss0", "dss", 0, "yes"),
        tiny.student(folder / "dss1", "dss", 1, "yes"),
        tiny.student(folder / "label0", "label_only", 0, "no"),
    ]
    return {"students": students, "base": tiny.base(folder / "base"), "teacher": folder / "gpt2"}


def _evaluate(models, folder: Path, config=CONFIG, **teacher):
    files = tiny.inputs(folder)
    settings = TeacherConfig(prompt=files["prompt"], max_new_tokens=12, **teacher)
    if settings.backend == "replay":
        settings = dataclasses.replace(settings, replay_uri=files["recorded"])
    target = folder / "predictions.jsonl"
    metrics = evaluate_arms(
        models["students"],
        files["evaluation"],
        str(target),
        base_reference=models["base"],
        state_dir=str(folder / "state"),
        config=config,
        teacher=settings,
    )
    return metrics, list(read_jsonl(target, Prediction))


@pytest.fixture(scope="module")
def recorded(models, tmp_path_factory):
    return _evaluate(models, tmp_path_factory.mktemp("recorded"), backend="replay")


def test_every_arm_answers_the_same_rows(recorded):
    metrics, predictions = recorded
    runs = {(item.arm, item.seed) for item in predictions}
    assert runs == {
        ("dss", 0),
        ("dss", 1),
        ("label_only", 0),
        ("base", -1),
        ("teacher_recorded", -1),
    }
    for run in runs:
        ids = [item.id for item in predictions if (item.arm, item.seed) == run]
        assert ids == [f"r{at}" for at in range(24)]
    assert metrics["rows"] == 24


def test_accuracies_are_those_of_the_known_answers(recorded):
    arms = recorded[0]["arms"]
    assert arms["dss"]["accuracy_by_seed"] == {"0": pytest.approx(2 / 3), "1": pytest.approx(2 / 3)}
    assert arms["label_only"]["accuracy"] == pytest.approx(1 / 3)
    assert arms["base"]["accuracy"] == 0.0
    assert arms["teacher_recorded"]["accuracy"] == pytest.approx(3 / 4)


def test_tokens_size_and_latency_are_measured(recorded):
    metrics, predictions = recorded
    dss = metrics["arms"]["dss"]
    assert dss["output_tokens"] == 4  # three letters and the end mark
    assert dss["prompt_tokens"] == pytest.approx(len("predict: is 10 fine") + 1, abs=1)
    assert dss["params"] > 10_000
    assert dss["bytes"] > 4 * 10_000
    assert 0 < dss["p50_ms"] <= dss["p95_ms"]
    timed = {(item.arm, item.seed) for item in predictions if item.latency_ms is not None}
    assert timed == {("dss", 0), ("label_only", 0), ("base", -1)}
    assert metrics["arms"]["teacher_recorded"]["p50_ms"] is None
    assert metrics["arms"]["teacher_recorded"]["params"] is None


def test_the_first_dss_student_explains_up_to_twenty_rows(recorded):
    explained = {(i.arm, i.seed) for i in recorded[1] if i.rationale and i.arm == "dss"}
    assert explained == {("dss", 0)}
    assert sum(item.rationale is not None for item in recorded[1] if item.arm == "dss") == 20


def test_training_curves_come_from_the_students_folders(recorded):
    assert recorded[0]["curves"]["dss:1"][0] == [10, 0.2, 0.3]


def test_the_teacher_runs_with_each_number_of_shots(models, tmp_path):
    reference = tiny.teacher(tmp_path / "gpt2")
    config = dataclasses.replace(CONFIG, eval_shots="0, 2")
    metrics, predictions = _evaluate(models, tmp_path, config, model_reference=reference)
    arms = metrics["arms"]
    assert {"teacher_0_shot", "teacher_2_shot"} <= set(arms)
    assert arms["teacher_0_shot"]["prompt_tokens"] < arms["teacher_2_shot"]["prompt_tokens"]
    assert arms["teacher_2_shot"]["p50_ms"] > 0
    assert arms["teacher_2_shot"]["params"] > 1000
    timed = [i for i in predictions if i.arm == "teacher_2_shot" and i.latency_ms is not None]
    assert len(timed) == 2


def test_a_teacher_that_cannot_be_reached_costs_no_student_its_result(models, tmp_path, capsys):
    config = dataclasses.replace(CONFIG, eval_shots="2")
    metrics, predictions = _evaluate(
        models, tmp_path, config, backend="openai", base_url="http://127.0.0.1:9/v1",
        model_reference="m", max_retries=0, timeout_s=2.0,
    )  # fmt: skip
    assert metrics["arms"]["teacher_2_shot"]["error"]
    assert metrics["arms"]["dss"]["accuracy"] == pytest.approx(2 / 3)
    assert not [item for item in predictions if item.arm.startswith("teacher")]
    assert "teacher_2_shot: no result" in capsys.readouterr().out


def test_more_shots_than_the_prompt_has_is_that_arms_error(models, tmp_path):
    reference = tiny.teacher(tmp_path / "gpt2")
    config = dataclasses.replace(CONFIG, eval_shots="0,5", latency_rows=0)
    metrics, _ = _evaluate(models, tmp_path, config, model_reference=reference)
    assert "PROMPT_SHOTS" in metrics["arms"]["teacher_5_shot"]["error"]
    assert metrics["arms"]["teacher_0_shot"]["accuracy"] is not None
    assert metrics["arms"]["dss"]["p50_ms"] is None


def test_its_output_makes_a_report(recorded, tmp_path):
    metrics, predictions = recorded
    arguments = synthetic.write_run(tmp_path, predictions, evaluation=metrics, training=[])
    assert write_report(**arguments) == "cannot_tell"  # 24 rows are few
    page = Path(arguments["page_path"]).read_text(encoding="utf-8")
    assert "Validation loss" in page
    assert "Row 1 says so." in page


def test_only_labelled_rows_and_a_fixed_choice_of_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    items = [*tiny.rows(40), dataclasses.replace(tiny.rows(1)[0], id="x", output_text=None)]
    write_jsonl(path, items)
    assert len(held_out_rows(str(path), 0)) == 40
    few = [row.id for row in held_out_rows(str(path), 10)]
    write_jsonl(path, items[::-1])
    assert sorted(few) == sorted(row.id for row in held_out_rows(str(path), 10))
    write_jsonl(path, items[-1:])
    with pytest.raises(UserError, match="NO_EVALUATION_ROWS"):
        held_out_rows(str(path), 0)


def test_shots_are_read_and_refused():
    assert parse_shots("0, 2,5") == [0, 2, 5]
    assert parse_shots("") == []
    for wrong in ("two", "1;2", "-1", "1.5"):
        with pytest.raises(UserError, match="SHOTS_UNREADABLE"):
            parse_shots(wrong)


def test_students_must_be_students_and_differ(models, tmp_path):
    doubled = {**models, "students": [models["students"][0]] * 1 + [_copy(models, tmp_path)]}
    with pytest.raises(UserError, match="STUDENT_TWICE"):
        _evaluate(doubled, tmp_path, backend="replay")
    with pytest.raises(UserError, match="STUDENT_UNREADABLE"):
        _evaluate({**models, "students": [models["base"]]}, tmp_path, backend="replay")


def _copy(models, folder: Path) -> str:
    info = json.loads((Path(models["students"][0]) / "pipestill.json").read_text())
    write_json(folder / "again" / "pipestill.json", info)
    return str(folder / "again")


def test_timing_is_interleaved_and_does_not_count_the_warm_up():
    calls = []
    arms = {
        "a": lambda text: calls.append(("a", text)),
        "b": lambda text: calls.append(("b", text)),
    }
    spent = time_rows(arms, ["x", "y"])
    assert calls == [("a", "x"), ("b", "x"), ("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")]
    assert [len(spent[arm]) for arm in "ab"] == [2, 2]
    assert percentiles([1.0, 2.0, 3.0])["p50_ms"] == 2.0
    assert time_rows(arms, []) == {"a": [], "b": []}
