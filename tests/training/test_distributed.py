"""Two processes (gloo, CPU) give what one gives; checkpoints go from one number to another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipestill.errors import UserError, WorkError
from pipestill.records import write_jsonl
from pipestill.training import launch
from pipestill.training.distributed import ALONE, World, blocks, share
from pipestill.training.stop import EXIT_STOPPED, Stopped
from pipestill.training.student import train_student
from tests.training import two
from tests.training.test_checkpoint import comparable
from tests.training.tiny import config, make_folder, make_model, make_rows

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def train(count: int, *arguments: str) -> None:
    """Trains in `count` processes; one stays in this process."""
    if count == 1:
        two.train(*arguments)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", two.__file__, *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def result(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((folder / "log.json").read_text()), load_file(folder / "weights.safetensors")


def assert_same(one: Path, other: Path) -> None:
    (told, weights), (told_other, weights_other) = result(one), result(other)
    assert told["best"] == told_other["best"]
    for entry, peer in zip(comparable(told["log"]), comparable(told_other["log"]), strict=True):
        assert entry.keys() == peer.keys()
        for name, value in entry.items():
            wanted = peer[name]  # None where a step had no rationale
            assert value == (wanted and pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE))
    assert weights.keys() == weights_other.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, weights_other[name], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_two_processes_train_like_one(tmp_path, kind):
    """The step's 5 rows do not divide by 2; the curve holds both losses, the norm, validation."""
    for count in (1, 2):
        train(count, kind, "dss", str(tmp_path / str(count)))
    assert_same(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5_tied", "llama"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, kind):
    train(1, kind, "dss", str(tmp_path / "whole"))
    state = str(tmp_path / "state")
    train(1, kind, "dss", str(tmp_path / "end"), state, "3")
    train(2, kind, "dss", str(tmp_path / "end"), state, "7")
    train(1, kind, "dss", str(tmp_path / "end"), state)
    assert result(tmp_path / "end")[0]["resumed"] == 6
    assert_same(tmp_path / "whole", tmp_path / "end")


@pytest.mark.slow
def test_more_processes_than_sequences_and_only_labels(tmp_path):
    """A share may be empty: that process still takes part in every pass, with no weight."""
    for count in (1, 3):
        train(count, "llama", "label_only", str(tmp_path / str(count)), "", "0", "2")
    assert_same(tmp_path / "1", tmp_path / "3")


def test_shares_are_disjoint_and_whole():
    part = list(range(7))
    shares = [share(part, World(rank, 3)) for rank in range(3)]
    assert sorted(item for mine, _ in shares for item in mine) == part
    assert {factor for _, factor in shares} == {3.0}
    assert share([4], World(1, 2)) == ([4], 0.0)
    assert share(part, ALONE) == (part, 1.0)


@pytest.mark.parametrize(("kind", "count"), [("t5_tied", 4), ("gpt2", 2), ("llama", 2)])
def test_the_repeated_layers_are_found(kind, count):
    assert len(blocks(make_model(kind))) == count


def test_how_many_processes(monkeypatch):
    for name in ("WORLD_SIZE", "PJRT_DEVICE", "PIPESTILL_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert launch.processes() == 8
    monkeypatch.setenv("PIPESTILL_PROCESSES", "2")
    assert launch.processes() == 2
    monkeypatch.setenv("WORLD_SIZE", "8")  # torchrun has started this process
    assert launch.processes() == 1
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    assert launch.processes() == 1


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """The arguments of a student's training, for two processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_jsonl(tmp_path / "rows.jsonl", make_rows(30))
    settings = config(student_model_reference=make_folder("t5_tied", tmp_path / "model"))
    return {"training_rows_path": tmp_path / "rows.jsonl", "run": "dss:0", "config": settings}


@pytest.mark.slow
def test_a_launched_student_is_the_one_of_a_single_process(tmp_path, launched, monkeypatch):
    one = train_student(student_path=tmp_path / "one", state_dir="", **launched)
    monkeypatch.setenv("PIPESTILL_PROCESSES", "2")
    both = train_student(student_path=tmp_path / "two", state_dir=str(tmp_path / "s"), **launched)
    assert both.keys() == one.keys()
    exact = ("steps", "train_rows", "label_tokens", "rationale_tokens", "rows_digest", "bytes")
    assert all(both[name] == one[name] for name in exact)
    assert both["label_loss"] == pytest.approx(one["label_loss"], rel=TOLERANCE)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=TOLERANCE)
    logs = [(tmp_path / name / "train_log.jsonl").read_text() for name in ("one", "two")]
    assert len(logs[0].splitlines()) == len(logs[1].splitlines())


@pytest.mark.slow
def test_a_launched_process_s_error_is_the_caller_s(tmp_path, launched):
    launched["run"] = "nonsense:0"
    with pytest.raises(UserError, match=r"RUN_UNKNOWN.*nonsense"):
        launch.launch(
            "pipestill.training.student:train_student",
            {**launched, "student_path": tmp_path / "s", "state_dir": ""},
            2,
        )
    with pytest.raises(WorkError, match="PROCESS_FAILED"):
        launch.launch("pipestill.training.student:no_such_function", {}, 1)


SCRIPT = """
import json, sys
from pathlib import Path
from pipestill.training.student import train_student
from tests.training.tiny import config
folder = Path(sys.argv[1])
settings = config(
    student_model_reference=str(folder / "model"), train_steps=4000, checkpoint_interval=4000,
    evaluation_interval=1, enable_early_stopping=False,
)
train_student(folder / "rows.jsonl", folder / "s", run="dss:0", state_dir=str(folder / "state"),
    config=settings)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_all_processes(tmp_path, launched, number):
    victim = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment(PIPESTILL_PROCESSES="2"), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    next(line for line in victim.stderr if line.startswith("step "))
    family = descendants(victim.pid)
    assert len(family) == 3  # torchrun and two workers
    victim.send_signal(number)
    code = victim.wait(90)
    if number == signal.SIGTERM:
        assert code == EXIT_STOPPED
        assert len(list((tmp_path / "state").glob("checkpoints/*/step-*/state.json"))) == 1
    deadline = time.monotonic() + 40
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, family))


def descendants(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_being_stopped_is_an_exit_not_an_error():
    assert issubclass(Stopped, SystemExit)
    assert not issubclass(Stopped, Exception)
