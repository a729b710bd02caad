"""Runs that are told to stop, killed, robbed of their disk or fed poison."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pipestill.components.student_train as student_train_module
from benchmarks.kill_test import kill_runs, make_model
from pipestill.errors import UserError, WorkError
from pipestill.models.render import renderer_for
from pipestill.records import write_jsonl
from pipestill.training.checkpoint import Checkpoint, latest, remove, save
from pipestill.training.loop import fit
from pipestill.training.step import LIKELIHOOD
from pipestill.training.stop import EXIT_STOPPED, Stopped
from pipestill.training.student import make_job
from tests.training.tiny import config, make_loaded, make_rows

ROWS = make_rows(24)


def make(**changes):
    loaded = make_loaded("gpt2")
    settings = config(**{"train_steps": 10, "checkpoint_interval": 2, **changes})
    return make_job(loaded, renderer_for(loaded, 128, 64), ROWS[:20], ROWS[20:], "dss", 1, settings)


def point(value: float, size: int = 3) -> Checkpoint:
    return Checkpoint({"value": value}, {"model": {"w": torch.full((size,), value)}})


@pytest.fixture
def bucket():
    """A folder of fsspec's memory file system, which behaves as a bucket does."""
    import fsspec

    yield "memory://bucket/state/checkpoints/run"
    fsspec.filesystem("memory").store.clear()


def test_a_bucket_holds_checkpoints_like_a_disk(bucket):
    for step in (1, 2, 3):
        save(bucket, step, point(float(step)))
    assert latest(bucket).state == {"value": 3.0}
    assert latest(bucket).tensors["model"]["w"].tolist() == [3.0] * 3
    remove(bucket)
    assert latest(bucket) is None


def test_in_a_bucket_the_marker_comes_last_and_makes_the_checkpoint(bucket, monkeypatch):
    import fsspec

    files, written = fsspec.filesystem("memory"), []
    put, pipe = type(files).put_file, type(files).pipe_file
    monkeypatch.setattr(
        type(files), "put_file", lambda s, a, b, **k: (written.append(b), put(s, a, b, **k))[1]
    )
    monkeypatch.setattr(
        type(files), "pipe_file", lambda s, a, b, **k: (written.append(a), pipe(s, a, b, **k))[1]
    )
    save(bucket, 1, point(1.0))
    assert [name.rpartition("/")[2] for name in written] == ["model.safetensors", "state.json"]
    save(bucket, 2, point(2.0))
    files.rm_file("/bucket/state/checkpoints/run/step-000002/state.json")
    assert latest(bucket).state == {"value": 1.0}


def test_a_resumed_run_in_a_bucket_ends_like_an_uninterrupted_one(bucket):
    whole, again = make(), make()
    fit(whole, None)

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make(), bucket, stop)
    assert fit(again, bucket)[1] == 4
    state, other = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_bucket_that_is_lost_midway_is_one_clear_error(bucket, monkeypatch):
    import fsspec

    def lost(*_, **__):
        raise OSError("bucket not found: bucket")

    def lose(progress):
        if progress.step == 3:
            monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", lost)

    with pytest.raises(WorkError, match=r"CHECKPOINT_NOT_WRITTEN.*step 4.*bucket not found"):
        fit(make(), bucket, lose)
    monkeypatch.undo()
    assert fit(make(), bucket)[1] == 2


def test_a_bucket_that_cannot_be_written_is_refused_before_the_first_step(monkeypatch, bucket):
    import fsspec

    def denied(*_, **__):
        raise PermissionError("403: the account has no storage.objects.create")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", denied)
    steps = []
    with pytest.raises(UserError, match=r"STATE_DIR_UNWRITABLE.*storage\.objects\.create"):
        fit(make(), bucket, lambda progress: steps.append(progress.step))
    assert not steps


def test_another_run_s_checkpoint_is_passed_over_by_name(tmp_path, capsys):
    save(tmp_path / "mine", 1, point(1.0))
    save(tmp_path / "other", 2, point(2.0))
    (tmp_path / "other" / "step-000002").rename(tmp_path / "mine" / "step-000002")
    assert latest(tmp_path / "mine").state == {"value": 1.0}
    assert "checkpoint step-000002 is of another run: other" in capsys.readouterr().err
    save(tmp_path / "mine", 3, point(3.0), keep=1)
    left = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert left == ["step-000002", "step-000003"]  # it is not ours to remove


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_n_are_kept_and_torn_ones_do_not_count(tmp_path, keep):
    for step in range(1, 7):
        save(tmp_path, step, point(float(step)), keep=keep)
        if step == 4:
            (tmp_path / "step-000004" / "state.json").unlink()
    names = [f"step-{step:06d}" for step in (1, 2, 3, 5, 6)][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("step", [1, 3, 10])
def test_sigterm_saves_at_the_next_step_and_exits_with_75(tmp_path, capsys, step):
    def ask(progress):
        if progress.step == step - 1 or step == 1 == progress.step:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        fit(make(), tmp_path, ask)
    assert stopped.value.code == EXIT_STOPPED == 75
    reached = max(step, 2)
    assert f"stopped by SIGTERM after step {reached}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    whole, again = make(), make()
    fit(whole, None)
    assert fit(again, tmp_path)[1] == reached
    state, other = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_batch_that_gives_no_number_is_named_by_its_row_ids(tmp_path):
    job, bad = make(train_steps=100), 8

    def poisoned(job, rows, step):
        sums = LIKELIHOOD.accumulate(job, rows, step)
        steps.append(rows)
        nan = torch.tensor(float("nan"))
        terms = {**sums.terms, "label_loss": (nan, sums.label_count)}
        return dataclasses.replace(sums, terms=terms) if len(steps) == bad else sums

    steps: list[list[int]] = []
    job = dataclasses.replace(job, objective=dataclasses.replace(LIKELIHOOD, accumulate=poisoned))
    with pytest.raises(WorkError, match="LOSS_NOT_FINITE") as error:
        fit(job, tmp_path)
    ids = ", ".join(job.ids[row] for row in steps[bad - 1])
    assert f"step {bad}: " in error.value.message
    assert error.value.message.endswith(f"its rows: {ids}")
    # No checkpoint holds what came of it, also where the log would have noticed only later.
    assert all(int(path.name[-6:]) < bad for path in tmp_path.iterdir())


class Watched:
    """A loss that notes when it is read, which on a GPU waits for the device."""

    def __init__(self, value, notes: list[int], now: list[int]) -> None:
        self.value, self.notes, self.now = value, notes, now

    def __float__(self) -> float:
        self.notes += self.now
        return float(self.value)


def test_no_step_reads_its_loss_between_log_entries():
    read: list[int] = []
    now = [1]

    def watched(job, rows, step):
        sums = LIKELIHOOD.accumulate(job, rows, step)
        value, count = sums.terms["label_loss"]
        return dataclasses.replace(sums, terms={"label_loss": (Watched(value, read, now), count)})

    job = make(train_steps=100, checkpoint_interval=100)
    job = dataclasses.replace(job, objective=dataclasses.replace(LIKELIHOOD, accumulate=watched))
    fit(job, None, lambda progress: now.__setitem__(0, progress.step + 1))
    assert set(read) == set(range(2, 101, 2))  # an entry is due at every second step here


def fill(folder: Path) -> None:
    """Writes into a folder until nothing more goes in."""
    with (folder / "filler").open("wb") as out:
        try:
            while True:
                out.write(b"0" * 65_536)
                out.flush()
        except OSError:
            pass


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk of a given size can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stays(small_disk):
    save(small_disk / "run", 1, point(1.0))
    fill(small_disk)
    with pytest.raises(WorkError, match=r"CHECKPOINT_NOT_WRITTEN.*step 2.*No space left"):
        save(small_disk / "run", 2, point(2.0, size=300_000))
    assert latest(small_disk / "run").state == {"value": 1.0}
    assert [path.name for path in (small_disk / "run").iterdir()] == ["step-000001"]


def test_a_read_only_folder_is_refused_before_the_first_step(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"STATE_DIR_UNWRITABLE.*Read-only file system"):
        fit(make(), small_disk / "run")


def test_a_file_in_the_folder_s_place_is_refused(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(UserError, match="STATE_DIR_UNWRITABLE"):
        fit(make(), tmp_path / "state" / "run")


def test_a_file_that_may_not_grow_is_one_clear_error(tmp_path):
    """The same as a full disk, for those who are not root: files are limited to 16 kB."""
    save(tmp_path, 1, point(1.0))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limit[1]))
    try:
        with pytest.raises(WorkError, match="CHECKPOINT_NOT_WRITTEN"):
            save(tmp_path, 2, point(2.0, size=300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert latest(tmp_path).state == {"value": 1.0}


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_no_trace(tmp_path):
    found = kill_runs(tmp_path, kills=20, seed=0)
    assert found.kills == 20
    assert found.same_weights
    assert found.same_losses
    assert found.lost_rows == found.doubled_rows == 0
    assert found.resumed > 0


def artifact(name: str, kind: str, path: Path) -> dict:
    return {"artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": str(path)}]}


def component_command(folder: Path, steps: int) -> list[str]:
    """The command line that every runner starts for the component."""
    write_jsonl(folder / "rows.jsonl", ROWS)
    rows = artifact("r", "system.Dataset", folder / "rows.jsonl")
    outputs = {
        "student": artifact("student", "system.Model", folder / "student"),
        "metrics": artifact("metrics", "system.Metrics", folder / "metrics"),
    }
    parameters = {
        "cache_key": "", "state_dir": str(folder / "state"), "train_steps": steps,
        "student_model_reference": make_model(folder / "model"), "checkpoint_interval": 1000,
        "enable_early_stopping": False, "batch_size": 4, "evaluation_interval": 1000,
    }  # fmt: skip
    given = {
        "inputs": {
            "artifacts": {"training_rows": rows},
            "parameterValues": parameters,
        },
        "outputs": {"artifacts": outputs, "outputFile": str(folder / "outputs.json")},
    }
    module = Path(student_train_module.__file__)
    command = [sys.executable, "-m", "kfp.dsl.executor_main"]
    command += ["--component_module_path", str(module), "--function_to_execute", "student_train"]
    return [*command, "--executor_input", json.dumps(given)]


@pytest.mark.slow
def test_the_component_s_process_exits_with_75_and_goes_on_when_run_again(tmp_path):
    command = component_command(tmp_path, steps=600)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    victim = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen = next(line for line in victim.stdout if line.startswith("step "))
    victim.send_signal(signal.SIGTERM)
    rest = victim.stdout.read()
    assert victim.wait(60) == EXIT_STOPPED, seen + rest
    assert "stopped by SIGTERM" in rest
    assert "Traceback" not in rest
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "metrics").read_text())["resumed_from_step"] > 0
