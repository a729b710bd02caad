"""Steps that were interrupted are started again and go on; steps that failed are not."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipestill import pipelines
from pipestill.config import TuneConfig, pick
from pipestill.errors import UserError, WorkError
from pipestill.pipelines.local import run_local
from pipestill.pipelines.steps import REPEATS, interruption
from pipestill.training.supervised import tune
from tests.pipelines.test_local import Run
from tests.training.tiny import COLOURS, make_folder


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("stop", "stopped by SIGTERM after saving a checkpoint"),
        ("kill", "killed by signal 9"),
    ],
)
def test_an_interrupted_step_is_started_again(run, how, cause):
    summary = run(fail=f"{how} once:b:1")
    assert summary["weights"] == ["a:0", "b:1", "c:2"]
    assert sorted(run.calls) == ["a:0", "b:1", "b:1", "c:2"]
    again = f"student b:1: {cause}; started again (1 of 3), goes on from its last checkpoint"
    assert sum(again in line for line in run.lines) == 1
    log = (run.out / "logs" / "student.b.1.log").read_text()
    assert log.index("first attempt") < log.index(f"--- {cause}; started again (1 of 3) ---")
    assert log.count("Looking for component") == 2


def test_the_log_of_an_earlier_run_is_not_kept(run):
    run()
    run(fresh=True)
    log = (run.out / "logs" / "student.b.1.log").read_text()
    assert log.count("Looking for component") == 1


@pytest.mark.parametrize(("kind", "error"), [("user", UserError), ("work", WorkError)])
def test_a_failed_step_is_not_repeated(run, kind, error):
    with pytest.raises(error):
        run(fail=f"{kind}:b:1", runs=["b:1"])
    assert run.calls == ["b:1"]


def test_a_failure_is_told_at_once(tmp_path):
    """The steps' retries, with minutes between them, are for the platform."""
    begun = time.monotonic()
    with pytest.raises(UserError, match="nowhere"):
        run_local("supervised_tuning", {"dataset_uri": str(tmp_path / "nowhere.jsonl")}, tmp_path)
    assert time.monotonic() - begun < 50


def test_a_step_that_is_killed_every_time_fails_in_the_end(run):
    with pytest.raises(WorkError, match="signal 9"):
        run(fail="kill:b:1", runs=["b:1"])
    assert run.calls == ["b:1"] * (1 + REPEATS)


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, ""), (1, ""), (2, ""), (75, "stopped"), (-9, "signal 9"), (137, "signal 9"), (255, "")],
)
def test_what_counts_as_interrupted(code, said):
    assert said in interruption(code)
    assert bool(interruption(code)) is bool(said)


def rows(path: Path) -> str:
    found = [
        {"input_text": f"row {i} {'abc'[i % 3]}", "output_text": COLOURS[i % 3]} for i in range(30)
    ]
    path.write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    return str(path)


def kill_after_a_checkpoint(out: Path, killed: list[int]) -> None:
    """kill -9 of the process that trains, as soon as it has written a checkpoint."""
    for _ in range(1200):
        if list(out.glob("state/checkpoints/*/step-*/state.json")):
            for place in Path("/proc").glob("[0-9]*"):
                try:
                    command = (place / "cmdline").read_bytes()
                except OSError:
                    continue
                mine = str(out).encode() in command and b"supervised_tune" in command
                if mine and not command.startswith(b"sh"):
                    os.kill(int(place.name), signal.SIGKILL)
                    killed.append(int(place.name))
                    return
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_9_in_training_ends_with_the_weights_of_an_undisturbed_run(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process, where the other run is
    given = {
        "dataset_uri": rows(tmp_path / "rows.jsonl"),
        "large_model_reference": make_folder("t5_tied", tmp_path / "base"),
        "train_steps": 200,
        "batch_size": 4,
        "checkpoint_interval": 3,
        "max_output_tokens": 16,
        "latency_rows": 1,
        "deploy_model": False,
    }
    out, killed, lines = tmp_path / "run", [], []
    killer = threading.Thread(target=kill_after_a_checkpoint, args=(out, killed))
    killer.start()
    run_local(pipelines.build("supervised_tuning"), given, out, say=lines.append)
    killer.join()
    assert killed
    assert any("supervised_tune: killed by signal 9; started again" in line for line in lines)
    assert "going on from step" in (out / "logs" / "supervised_tune.log").read_text()

    (train,) = out.glob("artifacts/**/data-prep/train")
    tune(train, "", tmp_path / "calm", state_dir="", config=pick(TuneConfig, given))
    (disturbed,) = map(load_file, out.glob("artifacts/**/model.safetensors"))
    calm = load_file(tmp_path / "calm" / "model.safetensors")
    assert calm.keys() == disturbed.keys()
    assert all(calm[name].equal(disturbed[name]) for name in calm)
