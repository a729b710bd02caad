"""Reward against KL: one start, one reward model, a policy a coefficient, nothing done twice."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from pipestill.config import (
    FrontierConfig,
    PolicyConfig,
    PreferenceConfig,
    RewardConfig,
    TuneEvalConfig,
)
from pipestill.errors import UserError
from pipestill.records import write_jsonl
from pipestill.rlhf import frontier_run
from pipestill.rlhf.frontier import coefficients_of, reward_frontier
from pipestill.rlhf.policy_gate import read_answers
from tests.rlhf.tiny_rl import make_preferences
from tests.training.tiny import make_folder

PREFERENCES = PreferenceConfig(prompt_sequence_length=64, target_sequence_length=10)
REWARD = RewardConfig(
    reward_model_train_steps=4, reward_batch_size=8, reward_model_learning_rate=1e-3,
    evaluation_interval=4, prompt_sequence_length=64, target_sequence_length=10, precision="fp32",
)  # fmt: skip
POLICY = PolicyConfig(
    reinforcement_learning_train_steps=2, rollout_batch_size=8, ppo_epochs=1,
    reinforcement_learning_rate=3e-3, evaluation_interval=1, rlhf_eval_rows=4, kl_bound=1e6,
    prompt_sequence_length=64, target_sequence_length=10, precision="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder("t5_tied", tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(tmp_path, model):
    rows = make_preferences(60)
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    answered = [{"input_text": row.input_text, "output_text": row.candidate_0} for row in rows]
    write_jsonl(tmp_path / "replies.jsonl", answered)

    def call(coefficients="0.1,0.8", state="", out="frontier.json", **changes):
        own = {"supervised_dataset": str(tmp_path / "replies.jsonl"), "supervised_train_steps": 2}
        found = reward_frontier(
            tmp_path / out,
            state_dir=str(tmp_path / state) if state else "",
            config=FrontierConfig(
                preference_dataset=str(tmp_path / "pairs.jsonl"), kl_coeffs=coefficients,
                **{**own, **changes},
            ),
            preferences=PREFERENCES, reward=REWARD, evaluation=TuneEvalConfig(eval_batch_size=16),
            policy=dataclasses.replace(POLICY, large_model_reference=model),
            predictions_path=tmp_path / "answers.jsonl",
        )  # fmt: skip
        assert json.loads((tmp_path / out).read_text()) == json.loads(json.dumps(found))
        return found

    return call


@pytest.fixture
def done(monkeypatch):
    """The names of the trainings that were begun."""
    calls = []

    def noting(name, original):
        def note(*args, **named):
            calls.append((name, getattr(named.get("config"), "kl_coeff", None)))
            return original(*args, **named)

        return note

    for name in ("prepare_teacher", "train_reward_model", "train_policy"):
        monkeypatch.setattr(frontier_run, name, noting(name, getattr(frontier_run, name)))
    return calls


def same(found):
    points = [{k: v for k, v in point.items() if k != "seconds"} for point in found["points"]]
    return found["rows"], found["start"], points, found["reward_model"]


def test_without_preferences_there_are_no_points_and_torch_stays_out(tmp_path):
    program = f"""
import sys
from pipestill import config
from pipestill.rlhf.frontier import reward_frontier
found = reward_frontier({str(tmp_path / "out.json")!r}, state_dir="",
    config=config.FrontierConfig(), preferences=config.PreferenceConfig(),
    reward=config.RewardConfig(), policy=config.PolicyConfig(),
    evaluation=config.TuneEvalConfig())
assert found == {{"points": []}}, found
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert json.loads((tmp_path / "out.json").read_text()) == {"points": []}


def test_every_coefficient_gives_a_point(run, tmp_path, done):
    found = run()
    assert done == [
        ("prepare_teacher", None), ("train_reward_model", None), ("train_policy", 0.1),
        ("train_policy", 0.8),
    ]  # fmt: skip
    assert [point["kl_coeff"] for point in found["points"]] == [0.1, 0.8]
    for point in found["points"]:
        for name in ("reward", "gain", "kl"):
            low, high = point[f"{name}_ci95"]
            assert low <= point[name] <= high
        assert point["perplexity"] > 1
        assert point["decision"] in ("promote", "keep", "cannot_tell")
        assert [entry[0] for entry in point["curve"]] == [0, 1, 2]
        assert point["curve"][0][2] == pytest.approx(0, abs=1e-4)
        assert all(math.isfinite(value) for entry in point["curve"] for value in entry)
        gain = point["reward"] - found["start"]["reward"]
        assert point["gain"] == pytest.approx(gain)
    low, high = found["reward_model"]["accuracy_ci95"]
    assert 0 <= low <= found["reward_model"]["accuracy"] <= high <= 1
    rows = read_answers(tmp_path / "answers.jsonl")
    assert len(rows) == 2 * 4 * found["rows"]
    tuned = [
        row["reward"] for row in rows
        if (row["kl_coeff"], row["arm"], row["mode"]) == (0.8, "tuned", "sampled")
    ]  # fmt: skip
    assert sum(tuned) / len(tuned) == pytest.approx(found["points"][1]["reward"])


@pytest.mark.parametrize("where", ["train_policy", "evaluate_policy"])
def test_a_killed_run_goes_on_and_trains_nothing_twice(run, done, monkeypatch, where):
    whole = run(state="")
    original, calls = getattr(frontier_run, where), []
    begun = len(done)

    def kill(*args, **named):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **named)

    monkeypatch.setattr(frontier_run, where, kill)
    with pytest.raises(KeyboardInterrupt):
        run(state="state")
    monkeypatch.setattr(frontier_run, where, original)
    found = run(state="state")
    assert done[begun:] == done[:begun]
    assert same(found) == same(whole)


def test_another_coefficient_costs_one_more_policy(run, done, capsys):
    first = run(coefficients="0.1", state="state")
    found = run(coefficients="[0.8, 0.1]", state="state")
    assert [name for name, _ in done].count("prepare_teacher") == 1
    assert [coefficient for name, coefficient in done if name == "train_policy"] == [0.1, 0.8]
    assert found["points"][0] == first["points"][0]
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("frontier: ")]
    assert said[1].startswith("frontier: KL coefficient 0.1: 1 of 2, reward ")


def test_other_data_or_settings_are_not_taken_for_the_same(run, done, tmp_path):
    run(coefficients="0.1", state="state")
    run(coefficients="0.1", state="state", supervised_train_steps=3)
    write_jsonl(tmp_path / "pairs.jsonl", make_preferences(50))
    run(coefficients="0.1", state="state", supervised_train_steps=3)
    assert [name for name, _ in done].count("train_policy") == 3


def test_without_a_supervised_start_the_model_begins_as_it_is(run, done):
    found = run(coefficients="0.1", supervised_dataset="", supervised_train_steps=150)
    assert len(found["points"]) == 1
    assert done[0] == ("prepare_teacher", None)


@pytest.mark.parametrize("text", ["", "high", "-1", "0.1,-0.1"])
def test_coefficients_out_of_range_are_refused_before_anything_is_read(text):
    with pytest.raises(UserError, match="CONFIG_VALUE"):
        coefficients_of(FrontierConfig(kl_coeffs=text), POLICY)


def test_coefficients_are_read_in_their_order_and_once():
    config = FrontierConfig(kl_coeffs="[0.8, 0.1, 0.10]")
    assert coefficients_of(config, POLICY) == [0.1, 0.8]
