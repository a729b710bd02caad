"""Tuned against prompted, on tiny real models: every arm, every failure, what a request costs."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipestill.config import CostConfig, EvalConfig, TeacherConfig
from pipestill.errors import UserError
from pipestill.evaluation.prompted import evaluate_prompts
from pipestill.evaluation.request_cost import machine_cost, serving_machine, token_cost
from pipestill.generation.prompts import load_prompt
from pipestill.records import Prediction, read_jsonl, write_json
from tests.evaluation import tiny
from tests.generation.helpers import server, server_config

# Rows are neither timed nor weighed unless a test asks for it: both take seconds.
CONFIG = EvalConfig(eval_shots="0,2", latency_rows=0, eval_batch_size=8, max_output_tokens=16)
REPLAY = TeacherConfig(backend="replay", max_new_tokens=12)


def named(folder: str, **info) -> str:
    """The folder, with more in its description."""
    path = Path(folder) / "pipestill.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **info})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "tuned": tiny.student(folder / "tuned", "tuned", 4, "no"),
        "students": [
            tiny.student(folder / "dss0", "dss", 0, "yes"),
            tiny.student(folder / "dss1", "dss", 1, "no"),
            named(tiny.student(folder / "one", "label_only", 0, "no"), curve_arm="finetune"),
        ],
        "base": tiny.base(folder / "base"),
        "large": tiny.teacher(folder / "gpt2"),
    }


def evaluate(models, folder: Path, teacher=REPLAY, config=CONFIG, cost=None):
    files = tiny.inputs(folder)
    if teacher.prompt == TeacherConfig().prompt:
        teacher = dataclasses.replace(teacher, prompt=files["prompt"])
    if teacher.backend == "replay":
        teacher = dataclasses.replace(teacher, replay_uri=files["recorded"])
    target = folder / "predictions.jsonl"
    summary = evaluate_prompts(
        models["tuned"],
        models["students"],
        files["evaluation"],
        str(target),
        large_reference=models["large"],
        base_reference=models["base"],
        state_dir=str(folder / "state"),
        config=config,
        teacher=teacher,
        cost=cost or CostConfig(machine_usd_per_hour=3.6),
    )
    json.dumps(summary)
    return summary, list(read_jsonl(target, Prediction))


@pytest.fixture(scope="module")
def recorded(models, tmp_path_factory):
    return evaluate(models, tmp_path_factory.mktemp("recorded"))


def test_every_arm_answers_the_same_rows(recorded):
    summary, predictions = recorded
    runs = {(item.arm, item.seed) for item in predictions}
    assert runs == {
        *(("tuned", 4), ("dss", 0), ("dss", 1), ("finetune", 0), ("base", -1)),
        *(("large_0_shot", -1), ("large_2_shot", -1), ("teacher_recorded", -1)),
    }
    for run in runs:
        ids = [item.id for item in predictions if (item.arm, item.seed) == run]
        assert ids == [f"r{at}" for at in range(24)]
    assert (summary["rows"], summary["metric"]) == (24, "exact")
    assert summary["shots"] == [0, 2]
    assert summary["large_is_teacher"] is False


def test_figures_are_those_of_the_known_answers(recorded):
    arms = recorded[0]["arms"]
    assert arms["tuned"]["accuracy"] == pytest.approx(1 / 3)
    assert arms["dss"]["accuracy_by_seed"] == {"0": pytest.approx(2 / 3), "1": pytest.approx(1 / 3)}
    assert arms["base"]["accuracy"] == 0.0
    assert arms["teacher_recorded"]["accuracy"] == pytest.approx(3 / 4)
    assert arms["tuned"]["output_tokens"] == 3  # two letters and the end mark
    shots = load_prompt_of(recorded).prefix(2)
    longer = arms["large_2_shot"]["prompt_tokens"] - arms["large_0_shot"]["prompt_tokens"]
    assert longer == len(shots)  # bytes are tokens
    assert [arms[arm]["shots"] for arm in ("tuned", "large_2_shot")] == [0, 2]
    assert arms["teacher_recorded"]["shots"] is None
    assert arms["large_0_shot"]["unparsable"] == 24  # random weights have no answer
    assert arms["large_0_shot"]["params"] > 1000
    assert arms["large_0_shot"]["bytes"] > 4000


def load_prompt_of(recorded):
    return load_prompt(recorded[0]["config"]["teacher"]["prompt"])


def test_what_was_not_measured_is_none(recorded):
    summary, predictions = recorded
    assert all(item.latency_ms is None for item in predictions)
    for facts in summary["arms"].values():
        found = [facts[name] for name in ("p50_ms", "p95_ms", "peak_memory_bytes", "usd_per_1000")]
        assert found == [None] * 4


def test_recorded_answers_cost_what_their_words_would(models, tmp_path):
    paid = dataclasses.replace(REPLAY, usd_per_million_input=2.0, usd_per_million_output=10.0)
    few = {**models, "students": []}
    summary, predictions = evaluate(
        few, tmp_path, paid, dataclasses.replace(CONFIG, eval_shots="2")
    )
    facts = summary["arms"]["teacher_recorded"]
    own = [item for item in predictions if item.arm == "teacher_recorded"]
    words = sum(2 * item.prompt_tokens + 10 * item.output_tokens for item in own) / len(own)
    assert facts["usd_per_1000"] == pytest.approx(1000 * words / 1e6)
    assert (facts["usd_how"], facts["usd_estimated"]) == ("tokens", True)
    assert facts["p50_ms"] is None
    assert summary["arms"]["large_2_shot"]["usd_per_1000"] is None  # untimed, and not paid


def test_a_paid_server_has_latency_and_a_price_by_tokens(models, tmp_path):
    few = {**models, "students": []}
    with server() as state:
        paid = server_config(
            state, prompt=tiny.inputs(tmp_path)["prompt"], usd_per_million_output=30.0
        )
        summary, predictions = evaluate(few, tmp_path, paid)
    facts = summary["arms"]["teacher_2_shot"]
    assert facts["accuracy"] == pytest.approx(2 / 3)  # it always says yes
    assert facts["usd_per_1000"] == pytest.approx(1000 * 7 * 30 / 1e6)  # 7 tokens an answer
    assert (facts["usd_how"], facts["usd_estimated"]) == ("tokens", False)
    assert facts["p50_ms"] > 0
    assert facts["params"] is None
    assert {item.arm for item in predictions} >= {"teacher_0_shot", "large_0_shot"}


def test_the_large_model_is_asked_once_where_it_is_the_teacher(models, tmp_path):
    link = tmp_path / "same"
    link.symlink_to(models["large"])
    teacher = TeacherConfig(model_reference=str(link), max_new_tokens=12)
    summary, _ = evaluate({**models, "students": []}, tmp_path, teacher)
    assert summary["large_is_teacher"] is True
    assert set(summary["arms"]) == {"tuned", "base", "teacher_0_shot", "teacher_2_shot"}


def test_no_arm_s_failure_costs_another_its_result(models, tmp_path, capsys):
    examples = "".join(
        f'  - {{input: "question {at}", rationale: "It is as it is.", label: "yes"}}\n'
        for at in range(8)
    )
    prompt = tmp_path / "ten.yaml"
    prompt.write_text(tiny.PROMPT + examples, encoding="utf-8")
    lost = TeacherConfig(
        backend="openai", base_url="http://127.0.0.1:9/v1", model_reference="m", max_retries=0,
        timeout_s=2.0, prompt=str(prompt), max_new_tokens=12,
    )  # fmt: skip
    (tmp_path / "empty").mkdir()
    broken = {
        **models,
        "students": [*models["students"], str(tmp_path / "empty"), str(tmp_path / "none")],
        "base": str(tmp_path / "nowhere"),
    }
    config = dataclasses.replace(CONFIG, eval_shots="0,10,12")
    summary, predictions = evaluate(broken, tmp_path, lost, config)
    arms = summary["arms"]
    reasons = {
        "base": "MODEL_NOT_FOUND",
        "student_5": "MODEL_NOT_FOUND",
        "large_10_shot": "prompt too long",  # 256 positions
        "large_12_shot": "PROMPT_SHOTS",
        "teacher_0_shot": "127.0.0.1",
        "teacher_12_shot": "PROMPT_SHOTS",
    }
    for arm, reason in reasons.items():
        assert reason in arms[arm]["error"], arm
        assert set(arms[arm]) == {"shots", "error"}
    assert "allowed: 0 to 10" in arms["large_12_shot"]["error"]
    answered = {item.arm for item in predictions}
    assert answered == {"tuned", "dss", "finetune", "large_0_shot"}
    assert arms["dss"]["accuracy"] == pytest.approx(1 / 2)
    told = capsys.readouterr().out
    assert "large_10_shot: no result" in told
    assert "student 4 is empty" in told


@pytest.mark.parametrize(("name", "most"), [("cqa.v1", 7), ("esnli.v1", 6), ("svamp.v1", 6)])
def test_real_prompts_say_that_they_hold_fewer_than_ten(models, tmp_path, name, most):
    assert len(load_prompt(name).examples) == most
    teacher = TeacherConfig(model_reference=models["large"], prompt=name, max_new_tokens=12)
    config = dataclasses.replace(CONFIG, eval_shots="10", eval_rows=2)
    summary, _ = evaluate({**models, "students": []}, tmp_path, teacher, config)
    assert f"allowed: 0 to {most}" in summary["arms"]["teacher_10_shot"]["error"]
    assert summary["arms"]["tuned"]["accuracy"] is not None


def test_students_must_differ(models, tmp_path):
    twice = named(tiny.student(tmp_path / "again", "label_only", 0, "no"), curve_arm="finetune")
    with pytest.raises(UserError, match="STUDENT_TWICE"):
        evaluate({**models, "students": [*models["students"], twice]}, tmp_path)
    with pytest.raises(UserError, match="STUDENT_TWICE"):
        evaluate({**models, "students": [named(twice, curve_arm="tuned")]}, tmp_path)


@pytest.mark.slow
def test_latency_memory_and_cost_of_what_runs_here(models, tmp_path, capsys):
    teacher = TeacherConfig(model_reference=models["large"], max_new_tokens=12)
    config = dataclasses.replace(CONFIG, latency_rows=3)
    summary, predictions = evaluate(models, tmp_path, teacher, config)
    timed = {(i.arm, i.seed): [] for i in predictions if i.latency_ms is not None}
    assert set(timed) == {
        *(("tuned", 4), ("dss", 0), ("finetune", 0), ("base", -1)),
        *(("teacher_0_shot", -1), ("teacher_2_shot", -1)),
    }
    assert {i.id for i in predictions if i.latency_ms is not None} == {"r0", "r1", "r2"}
    for arm, facts in summary["arms"].items():
        assert 0 < facts["p50_ms"] <= facts["p95_ms"], arm
        assert 0 < facts["peak_memory_bytes"] < 10**9, arm
        assert facts["usd_how"] == "machine"
        assert facts["usd_per_1000"] == pytest.approx(facts["p50_ms"] / 1000, rel=1e-3)  # 3.6 / h
    told = capsys.readouterr().out
    assert "not measured" not in told
    assert "not timed" not in told


def test_the_machine_s_price_comes_from_the_table_with_its_fee():
    found = serving_machine(CostConfig())
    assert found["name"] == "n1-standard-4"
    assert found["usd_per_hour"]["likely"] == pytest.approx(0.2185)  # the price Vertex AI lists
    assert found["usd_per_hour"]["low"] < found["usd_per_hour"]["high"]
    assert found["date"].startswith("20")
    assert "management fee" in found["source"]
    with pytest.raises(UserError, match=r"MACHINE_UNPRICED.*'z9'.*a2-ultragpu-8g"):
        serving_machine(CostConfig(serving_machine="z9"))
    with pytest.raises(UserError, match="MACHINE_UNPRICED"):  # priced by the core-hour
        serving_machine(CostConfig(serving_machine="TPU_V3"))


def test_a_price_of_one_s_own_takes_the_table_s_place():
    found = serving_machine(CostConfig(serving_machine="mine", machine_usd_per_hour=2.0))
    assert found["usd_per_hour"] == {"low": 2.0, "likely": 2.0, "high": 2.0}
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="CONFIG_VALUE"):
            serving_machine(CostConfig(machine_usd_per_hour=wrong))


def test_costs_are_arithmetic_that_a_person_can_check():
    # half a second a request: 1,000 take 500 s = 0.1389 hours
    machine = {"usd_per_hour": {"low": 7.2, "likely": 14.4, "high": 72.0}}
    cost = machine_cost(500.0, machine)
    assert cost["usd_per_1000"] == pytest.approx(2.0)
    assert cost["usd_per_1000_range"] == pytest.approx({"low": 1.0, "likely": 2.0, "high": 10.0})
    teacher = TeacherConfig(usd_per_million_input=0.5, usd_per_million_output=4.0)
    # 1,000 · (700.5 · 0.5 + 20.25 · 4) / 1e6
    assert token_cost(700.5, 20.25, teacher)["usd_per_1000"] == pytest.approx(0.43125)
    assert token_cost(700.5, 20.25, TeacherConfig()) == {}
