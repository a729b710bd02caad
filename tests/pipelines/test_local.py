"""The local runner, on a toy pipeline through KFP's real SubprocessRunner."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipestill.errors import UserError, WorkError
from pipestill.pipelines.local import run_local, step_environment
from tests.pipelines import toy


class Run:
    """A toy run in its own folder, with everything that it printed."""

    def __init__(self, folder: Path):
        self.out = folder / "run"
        self.data = folder / "rows.jsonl"
        self.data.write_text('{"input_text": "a"}\n', encoding="utf-8")
        self.lines: list[str] = []

    def __call__(self, fresh: bool = False, **parameters):
        self.lines.clear()
        given = {"dataset_uri": str(self.data), **parameters}
        return run_local(toy.build(), given, self.out, fresh=fresh, say=self.lines.append)

    @property
    def events(self) -> list[str]:
        return [line.split(" s  ", 1)[1].split(" in ")[0] for line in self.lines]

    @property
    def calls(self) -> list[str]:
        return (self.out / "state" / "calls").read_text().split()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_runs_and_collects(run, capfd):
    summary = run()
    assert summary["weights"] == ["a:0", "b:1", "c:2"]
    assert summary["steps"] == {"ran": 6, "cached": 0}
    assert summary["config"]["rate"] == 0.5
    assert summary["seconds"] > 0
    assert json.loads((run.out / "summary.json").read_text()) == summary
    assert (run.out / "report.html").read_text() == "<p>done</p>"
    assert {"prep: started", "prep: done", "student b:1: started", "student b:1: done"} <= set(
        run.events
    )
    assert "  prep: read the rows" in run.events  # what a step prints for people is shown
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""  # kfp's own chatter is in the log
    assert "toy" in (run.out / "logs" / "run.log").read_text()
    assert not [line for line in run.lines if "KFP" in line or "executor" in line]


def test_the_digest_reaches_steps_inside_a_loop(run):
    """KFP's local runner would hand the loop item to `cache_key` there."""
    summary = run()
    keys = {item["cache_key"] for item in summary["runs"]}
    assert len(keys) == 1
    assert keys.isdisjoint({"a:0", "b:1", "c:2"})
    assert len(keys.pop()) >= 32


def test_same_data_hits(run):
    run()
    summary = run()
    assert summary["steps"] == {"ran": 1, "cached": 5}  # the digest itself always runs
    assert run.calls == sorted(run.calls)[:3] or len(run.calls) == 3
    assert run.events.count("student a:0: cached") == 1


def test_changed_data_at_the_same_path_misses(run):
    before = run()
    run.data.write_text('{"input_text": "b"}\n', encoding="utf-8")
    after = run()
    assert after["steps"] == {"ran": 6, "cached": 0}
    assert before["runs"][0]["cache_key"] != after["runs"][0]["cache_key"]


def test_touched_data_hits(run):
    run()
    os.utime(run.data, (1, 1))
    assert run()["steps"]["cached"] == 5


def test_changed_code_misses(run, monkeypatch):
    monkeypatch.setenv("PIPESTILL_CODE_VERSION", "1")
    run()
    assert run()["steps"] == {"ran": 1, "cached": 5}
    monkeypatch.setenv("PIPESTILL_CODE_VERSION", "2")
    assert run()["steps"] == {"ran": 6, "cached": 0}


def test_changed_parameter_reruns_what_takes_it(run):
    run()
    summary = run(runs=["a:0", "b:1", "d:3"])
    assert summary["steps"] == {"ran": 3, "cached": 3}
    assert summary["weights"] == ["a:0", "b:1", "d:3"]


def test_changed_model_folder_at_the_same_path_misses(run, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("1")
    assert run(student_model_reference=str(model))["steps"]["cached"] == 0
    assert run(student_model_reference=str(model))["steps"]["cached"] == 5
    (model / "config.json").write_text("2")
    assert run(student_model_reference=str(model))["steps"] == {"ran": 5, "cached": 1}


def test_deleted_artifact_misses(run):
    run()
    for path in (run.out / "artifacts").rglob("student/model/weights"):
        path.unlink()
        path.parent.rmdir()
        break
    assert run()["steps"]["ran"] >= 2


def test_fresh_runs_all_again_and_keeps_the_journal(run):
    run()
    for name in ("journal", "checkpoints"):
        (run.out / "state" / name).mkdir()
    assert run(fresh=True)["steps"] == {"ran": 6, "cached": 0}
    assert (run.out / "state" / "journal").exists()
    assert not (run.out / "state" / "checkpoints").exists()


def test_a_failed_run_goes_on_where_it_stopped(run):
    with pytest.raises(UserError):
        run(fail="user:b:1")
    done = run.calls
    summary = run(fail="")  # `fail` is an input, so every student runs again
    assert summary["steps"]["ran"] == 1 + 3 + 1
    assert len(run.calls) == len(done) + 3


def test_an_interrupted_cause_does_not_rerun_finished_steps(run, monkeypatch):
    """The failure lies outside the inputs, so the second run finds the finished steps."""
    (run.out / "state" / "calls").parent.mkdir(parents=True)
    (run.out / "state" / "calls").mkdir()  # opening it fails
    with pytest.raises(WorkError, match="IsADirectoryError"):
        run()
    (run.out / "state" / "calls").rmdir()
    assert run()["steps"]["cached"] == 1  # prep


def test_users_mistake(run):
    with pytest.raises(UserError) as failed:
        run(fail="user:a:0")
    error = failed.value
    assert (error.code, error.exit_code) == ("ROW_BAD", 2)
    assert error.message == "student a:0: line 3: no label"
    assert error.hint == f"add it; full log: {run.out / 'logs' / 'student.a.0.log'}"
    assert "\n" not in str(error)
    assert "Traceback" in (run.out / "logs" / "student.a.0.log").read_text()
    assert "student a:0: failed after" in "\n".join(run.lines)
    assert "Traceback" not in "\n".join(run.lines)


def test_work_that_failed(run):
    with pytest.raises(WorkError, match=r"\[SERVER_GONE\] student c:2: no answer"):
        run(fail="work:c:2")


def test_a_bug_shows_its_cause(run):
    with pytest.raises(WorkError, match=r"\[STEP_FAILED\] student a:0: ZeroDivisionError: one "):
        run(fail="bug:a:0")


def test_a_killed_step_says_so(run):
    with pytest.raises(WorkError, match="signal 9, most likely because memory ran out"):
        run(fail="kill:b:1")
    assert run.calls.count("b:1") == 4  # it might have been another program's fault


def test_no_other_iteration_starts_after_a_failure(run):
    runs = [f"a:{i}" for i in range(12)]
    with pytest.raises(UserError):
        run(runs=runs, fail="user:a:0")
    assert len(run.calls) <= 5


def test_steps_that_run_in_parallel_share_the_cores(run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    first = run()["runs"][0]
    assert first["threads"] == str(max(1, cores // 2))
    assert first["waiting"] == "PASSIVE"
    assert run(runs=["y:0"])["runs"][0]["threads"] == str(cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run(runs=["z:0"])["runs"][0]["threads"] == "7"


@pytest.mark.parametrize("text", ["my python3 prompt", "a {{$}} b"])
def test_text_that_kfp_would_change_is_refused(run, text):
    with pytest.raises(UserError, match=r"RUN_UNSAFE_TEXT.*student_model_reference"):
        run(student_model_reference=text)
    assert run.lines == []


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [({"nope": 1}, "unknown: nope"), ({"dataset_uri": None}, "missing")],
)
def test_parameters_are_checked(run, parameters, problem):
    given = {"dataset_uri": str(run.data), **parameters}
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(UserError, match=problem):
        run_local(toy.build(), given, run.out, say=run.lines.append)


SCRIPT = """
import sys
from tests.pipelines import toy
from pipestill.pipelines.local import run_local
try:
    run_local(toy.build(), {"dataset_uri": sys.argv[1], "fail": sys.argv[3]}, sys.argv[2])
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(run, fail: str = "sleep") -> tuple[subprocess.Popen, list[int]]:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(run.data), str(run.out), fail],
        cwd=root,
        stdout=subprocess.DEVNULL,
    )
    for _ in range(200):
        sleeping = list((run.out / "state").glob("sleeping.*"))
        if len(sleeping) == 2:
            time.sleep(0.1)
            return process, [int(path.read_text()) for path in sleeping]
        time.sleep(0.1)
    process.kill()
    raise AssertionError("the steps did not start")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_the_steps_too(run, number):
    process, children = start(run)
    process.send_signal(number)
    assert process.wait(10) == 130
    assert not any(alive(pid) for pid in children)


def test_stopped_steps_have_time_to_save(run):
    """The shell around a step dies of SIGTERM at once; the step below it is waited for."""
    process, children = start(run, "save")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert time.monotonic() - began < 10
    assert len(list((run.out / "state").glob("saved.*"))) == 2
    assert not any(alive(pid) for pid in children)
    assert len(run.calls) == 2  # what the user stopped is not repeated


def test_two_runs_in_one_folder_are_refused_also_when_the_first_was_killed(run):
    process, children = start(run)
    with pytest.raises(UserError, match="RUN_BUSY"):
        run()
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="RUN_BUSY"):  # its steps still work
        run()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    assert run()["steps"]["cached"] == 1  # prep


@pytest.mark.parametrize(
    ("config", "offline"),
    [
        ({"teacher_model_reference": "pocket-teacher", "reward_model_reference": ""}, True),
        ({"model_reference": "google/flan-t5-base"}, False),
        ({"models": ["pocket-base", "mine=google/flan-t5-base"]}, False),
        ({"models": ["mine=pocket-base"]}, True),
    ],
)
def test_hub_look_ups_are_off_only_where_every_model_is_local(config, offline):
    assert ("HF_HUB_OFFLINE" in step_environment(config)) is offline
