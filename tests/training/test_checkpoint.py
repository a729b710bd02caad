"""Stopped runs go on where they were; broken checkpoints are passed over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pipestill.models.render import renderer_for
from pipestill.records import write_jsonl
from pipestill.training import checkpoint
from pipestill.training.checkpoint import Checkpoint, alone, latest, remove, run_folder, save
from pipestill.training.loop import fit
from pipestill.training.student import make_job, train_student
from tests.training.tiny import config, make_folder, make_loaded, make_rows

ROWS = make_rows(24)
KEPT_FILES = ("model.safetensors", "train_log.jsonl")
TIMES = ("tokens_per_second", "model_flops_per_second", "mfu")


class Stop(Exception):
    """Stands for a kill between two steps."""


def job_with_dropout(kind: str, **changes):
    loaded = make_loaded(kind)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    settings = config(train_steps=10, evaluation_interval=3, checkpoint_interval=2, **changes)
    return make_job(loaded, renderer_for(loaded, 128, 64), ROWS[:20], ROWS[20:], "dss", 1, settings)


def stopped_at(step: int):
    def stop(progress):
        if progress.step == step:
            raise Stop

    return stop


def comparable(log: list[dict]) -> list[dict]:
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in log]


@pytest.mark.parametrize("kind", ["t5_tied", "gpt2"])
@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, kind, step):
    whole = job_with_dropout(kind)
    progress, resumed = fit(whole, None)
    assert resumed == 0
    with pytest.raises(Stop):
        fit(job_with_dropout(kind), tmp_path, stopped_at(step))
    again = job_with_dropout(kind)
    progress_again, resumed = fit(again, tmp_path)
    assert resumed == step // 2 * 2
    state, other = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert comparable(progress.log) == comparable(progress_again.log)
    assert progress.label_tokens == progress_again.label_tokens


def test_dropout_would_show_a_lost_random_state(tmp_path, monkeypatch):
    whole = job_with_dropout("t5_tied")
    fit(whole, None)
    with pytest.raises(Stop):
        fit(job_with_dropout("t5_tied"), tmp_path, stopped_at(5))
    monkeypatch.setattr(torch, "set_rng_state", lambda _: None)
    again = job_with_dropout("t5_tied")
    fit(again, tmp_path)
    state, other = whole.model.state_dict(), again.model.state_dict()
    assert not all(torch.equal(state[name], other[name]) for name in state)


def test_training_leaves_the_caller_s_random_state_alone():
    job = job_with_dropout("t5_tied")
    before = torch.get_rng_state()
    fit(job, None)
    assert torch.equal(torch.get_rng_state(), before)


def point(value: float) -> Checkpoint:
    return Checkpoint({"value": value}, {"model": {"w": torch.full((3,), value)}})


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, point(float(step)))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-000002", "step-000003"]
    found = latest(tmp_path)
    assert found.state == {"value": 3.0}
    assert found.tensors["model"]["w"].tolist() == [3.0] * 3


@pytest.mark.parametrize("damage", ["flip", "truncate", "no_tensors", "no_state", "bad_state"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys, damage):
    for step in (1, 2):
        save(tmp_path, step, point(float(step)))
    weights = tmp_path / "step-000002" / "model.safetensors"
    state = tmp_path / "step-000002" / "state.json"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "no_tensors":
        weights.unlink()
    elif damage == "no_state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:-9])
    assert latest(tmp_path).state == {"value": 1.0}
    assert "step-000002 is not whole" in capsys.readouterr().err


def test_nothing_to_resume(tmp_path):
    assert latest(tmp_path / "none") is None
    assert run_folder("", 1) is None


def test_whatever_changes_the_result_changes_the_folder(tmp_path, monkeypatch):
    facts = (config(), "dss:0", "rows", "model")
    folder = run_folder(str(tmp_path), *facts)
    assert folder == run_folder(str(tmp_path), *facts)
    others = [(config(alpha=0.4), *facts[1:]), (facts[0], "dss:1", *facts[2:])]
    others += [(*facts[:2], "rows2", "model"), (*facts[:3], "model2")]
    folders = {run_folder(str(tmp_path), *other) for other in others}
    monkeypatch.setattr(checkpoint, "code_version", lambda: "other code")
    folders.add(run_folder(str(tmp_path), *facts))
    assert len(folders | {folder}) == 6


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from tests.training.test_checkpoint import run_it
run_it(*sys.argv[1:])
"""


def run_it(rows: Path | str, model: str, out: Path | str, state: Path | str) -> int:
    settings = config(student_model_reference=model, train_steps=150, checkpoint_interval=5)
    summary = train_student(rows, out, run="dss:0", state_dir=str(state), config=settings)
    return summary["resumed_from_step"]


@pytest.mark.slow
def test_kill_9_and_run_again(tmp_path):
    rows, state, killed = tmp_path / "rows.jsonl", tmp_path / "state", tmp_path / "killed"
    write_jsonl(rows, ROWS)
    model = make_folder("t5_tied", tmp_path / "model")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, *map(str, (rows, model, killed, state))]
    victim = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not list(state.glob("checkpoints/*/step-*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not killed.exists()
    assert run_it(rows, model, killed, state) > 0
    assert run_it(rows, model, tmp_path / "whole", "") == 0
    weights, log = ([f / name for f in (killed, tmp_path / "whole")] for name in KEPT_FILES)
    assert weights[0].read_bytes() == weights[1].read_bytes()
    logs = [[json.loads(line) for line in path.read_text().splitlines()] for path in log]
    assert comparable(logs[0]) == comparable(logs[1])
    assert not list(state.glob("checkpoints/*"))


def test_a_state_that_was_changed_is_passed_over(tmp_path, capsys):
    for step in (1, 2):
        save(tmp_path, step, Checkpoint({"step": step}, {"model": {"w": torch.ones(3)}}))
    path = tmp_path / "step-000002" / "state.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))
    assert latest(tmp_path).state == {"step": 1}
    assert "state.json has another content" in capsys.readouterr().err


def test_a_second_run_waits_for_the_first_whose_checkpoints_stay(tmp_path, capsys):
    folder, order = tmp_path / "run", []

    def second():
        with alone(folder):
            order.append("second")

    with alone(folder):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
        save(folder, 1, Checkpoint({}, {"model": {"w": torch.ones(3)}}))
        remove(folder)  # somebody works there
        assert latest(folder) is not None
    thread.join()
    assert order == ["first", "second"]
    assert "another process trains the same run" in capsys.readouterr().err
    remove(folder)
    assert list(tmp_path.iterdir()) == []
