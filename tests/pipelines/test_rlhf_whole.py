"""The RLHF pipeline, end to end, on the pocket base: every step for real."""

import json
from pathlib import Path

import pytest

from pipestill import pipelines
from pipestill.pipelines.local import run_local

FEW = {
    "preference_dataset": "pocket:preferences",
    "prompt_dataset": "pocket:prompts",
    "max_rows": 60,
    "eval_fraction": 0.3,
    "prompt_sequence_length": 64,
    "target_sequence_length": 20,
    "reward_model_train_steps": 4,
    "reward_batch_size": 8,
    "evaluation_interval": 4,
    "reinforcement_learning_train_steps": 2,
    "rollout_batch_size": 8,
    "policy_evaluation_interval": 2,
    "rlhf_eval_rows": 6,
    "latency_rows": 1,
    "eval_rows": 8,
    "precision": "fp32",
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ppo", "dpo"])
def test_the_whole_pipeline(tmp_path, objective):
    graph, lines = pipelines.build("rlhf"), []
    given = {**FEW, "policy_objective": objective, "deploy_dir": str(tmp_path / "served")}
    summary = run_local(graph, given, tmp_path / "run", say=lines.append)
    assert summary["verdict"] in ("better", "worse", "cannot_tell")
    assert summary["decision"] in ("keep", "cannot_tell")  # eight rows promote nothing
    assert not (tmp_path / "served").exists()
    assert not any("deploy_policy" in line for line in lines)
    assert set(summary["arms"]) == {"base", "tuned"}
    assert summary["comparisons"]["kl"]["value"] == pytest.approx(0, abs=5)
    assert summary["reward_model"]["evaluation"]["pairs"] > 5
    assert summary["data"]["pairs_train"] > summary["data"]["pairs_eval"]
    rules = {rule["name"]: rule["outcome"] for rule in summary["gate"]["rules"]}
    assert rules["rows"] == "open"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "The gate: " in page
    assert "The reward model" in page
    assert len(page) < 2_000_000
    made = {path.name for path in (tmp_path / "run" / "artifacts").rglob("*")}
    assert {"preferences", "reward_model", "policy", "samples", "decision", "page"} <= made


@pytest.mark.slow
def test_a_supervised_start_and_a_person_s_override(tmp_path):
    graph = pipelines.build("rlhf")
    given = {
        **FEW,
        "supervised_dataset": "pocket:replies",
        "supervised_train_steps": 2,
        "policy_objective": "dpo",
        "gate_override": "a person has read the answers",
        "deploy_dir": str(tmp_path / "served"),
    }
    summary = run_local(graph, given, tmp_path / "run", say=lambda _: None)
    assert summary["decision"] == "promote"
    assert summary["gate"]["by_rules"] != "promote"
    assert "a person has read the answers" in summary["verdict_sentence"]
    info = json.loads((tmp_path / "served" / "pipestill.json").read_text(encoding="utf-8"))
    assert info["objective"] == "dpo"
    start = Path(info["base_model"])  # the tuned start, which lies in the run's own folder
    assert (start / "model.safetensors").is_file()
    assert (tmp_path / "served" / "model.safetensors").is_file()
