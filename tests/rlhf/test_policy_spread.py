"""Two processes (gloo, CPU) train the policy that one trains, also when one goes on from two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipestill.records import write_jsonl
from pipestill.rlhf.policy_train import train_policy
from tests.rlhf import two_policies
from tests.rlhf.policies import config, rows
from tests.rlhf.test_dpo_train import pairs
from tests.training.tiny import make_folder

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5


def train(count: int, *arguments: str) -> None:
    if count == 1:
        two_policies.train(*arguments)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", two_policies.__file__, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same(one: Path, other: Path) -> None:
    logs = [json.loads((folder / "log.json").read_text()) for folder in (one, other)]
    assert logs[0]["best"] == logs[1]["best"]
    for entry, peer in zip(logs[0]["log"], logs[1]["log"], strict=True):
        assert entry.keys() == peer.keys()
        for name in entry.keys() - {"seconds", "rollout_seconds"}:
            assert entry[name] == pytest.approx(peer[name], rel=1e-3, abs=1e-3), name
    weights = [load_file(folder / "weights.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "objective"), [("llama", "ppo"), ("t5_tied", "grpo")])
def test_two_processes_train_like_one(tmp_path, kind, objective):
    """A step's prompts do not divide by 2; advantages are whitened over all answers."""
    for count in (1, 2):
        train(count, kind, objective, str(tmp_path / str(count)))
    assert_same(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    train(1, "llama", "ppo", str(tmp_path / "whole"))
    state = str(tmp_path / "state")
    train(2, "llama", "ppo", str(tmp_path / "end"), state, "3")
    train(1, "llama", "ppo", str(tmp_path / "end"), state)
    assert json.loads((tmp_path / "end" / "log.json").read_text())["resumed"] == 2
    assert_same(tmp_path / "whole", tmp_path / "end")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_direct_objectives_are_sharded(tmp_path, method, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_jsonl(tmp_path / "held_out.jsonl", rows(8, start=100))
    write_jsonl(tmp_path / "pairs.jsonl", pairs(40))
    settings = config(
        policy_objective="dpo", method=method, rollout_batch_size=9,
        large_model_reference=make_folder("t5_tied", tmp_path / "model"),
    )  # fmt: skip
    found = []
    for count in (1, 2):
        monkeypatch.setenv("PIPESTILL_PROCESSES", str(count))
        out = tmp_path / str(count)
        found.append(
            train_policy("", tmp_path / "held_out.jsonl", tmp_path / "pairs.jsonl", "", out,
                         state_dir="", config=settings)
        )  # fmt: skip
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("1", "2")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=TOLERANCE)
    assert found[0]["kl"] == pytest.approx(found[1]["kl"], abs=1e-3)
