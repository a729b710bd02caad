"""The journal: nothing finished is lost or paid twice, whoever is killed or writes beside it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipestill.errors import UserError
from pipestill.generation import journal as journal_module
from pipestill.generation.ask import ask
from pipestill.generation.journal import Journal, call_key
from pipestill.generation.teacher import Completion
from tests.generation.helpers import rows, server, server_config

DONE = Completion(text="é\u2028x\n", prompt_tokens=3, output_tokens=2, cached_prompt_tokens=1)


def test_what_was_appended_is_found(tmp_path: Path) -> None:
    with Journal(str(tmp_path)) as first:
        first.append([("a", "row", DONE)])
        first.append([])
    with Journal(str(tmp_path)) as second:
        assert second.find(["a", "b"]) == {"a": DONE}
        assert second.find(["b"]) == {}
    assert len(list((tmp_path / "journal").glob("segment-*.jsonl"))) == 1


def test_torn_and_foreign_lines_are_skipped(tmp_path: Path) -> None:
    with Journal(str(tmp_path)) as journal:
        journal.append([("a", "row", DONE), ("b", "row", DONE)])
    (segment,) = (tmp_path / "journal").glob("*.jsonl")
    data = segment.read_bytes()
    for end in range(len(data)):
        segment.write_bytes(data[:end])
        with Journal(str(tmp_path)) as journal:
            found = journal.find(["a", "b"])
        whole = data[:end].count(b"\n") + (data[end : end + 1] == b"\n")
        assert len(found) == whole, end
    segment.write_bytes(b'[]\n7\n{"key": 1}\n\xff\xfe\n{"key": "a", "text": 1, "bad": 2}\n' + data)
    with Journal(str(tmp_path)) as journal:
        assert set(journal.find(["b"])) == {"b"}


def test_segments_are_rotated_and_never_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "ROTATE_BYTES", 300)
    with Journal(str(tmp_path)) as journal:
        for number in range(20):
            journal.append([(str(number), "row", DONE)])
        assert len(journal.find([str(n) for n in range(20)])) == 20
    sizes = [path.stat().st_size for path in (tmp_path / "journal").iterdir()]
    assert len(sizes) > 5
    assert max(sizes) < 700


def test_without_a_state_folder_nothing_is_left_behind() -> None:
    with Journal("") as journal:
        journal.append([("a", "row", DONE)])
        assert journal.find(["a"])
        folder = journal.folder
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"STATE_DIR.*file"):
        Journal(str(tmp_path / "file"))


def test_the_key_changes_with_everything_that_decides_an_answer() -> None:
    base = call_key("teacher", "prompt", {"t": 0.0, "n": 5}, 0)
    assert base == call_key("teacher", "prompt", {"n": 5, "t": 0.0}, 0)
    others = [
        call_key("teacher2", "prompt", {"t": 0.0, "n": 5}, 0),
        call_key("teacher", "prompt2", {"t": 0.0, "n": 5}, 0),
        call_key("teacher", "prompt", {"t": 0.5, "n": 5}, 0),
        call_key("teacher", "prompt", {"t": 0.0, "n": 5}, 1),
        call_key("teacherp", "rompt", {"t": 0.0, "n": 5}, 0),
    ]
    assert len({base, *others}) == 6


def _write_many(folder: str, name: str) -> None:
    with Journal(folder) as journal:
        for number in range(200):
            journal.append([(f"{name}-{number}", "row", DONE)])


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), n)) for n in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with Journal(str(tmp_path)) as journal:
        assert len(journal.find([f"{n}-{i}" for n in "ab" for i in range(200)])) == 400


KILLED = """
import sys
from tests.generation.helpers import Server, rows, server_config
from pipestill.generation.ask import ask
state = Server()
state.url = sys.argv[1]
ask(rows(60), config=server_config(state), state_dir=sys.argv[2], samples=1, shots=2)
"""


@pytest.mark.parametrize("after", [1, 25])
def test_a_killed_step_repeats_no_finished_call(tmp_path: Path, after: int) -> None:
    with server() as state:
        state.delay = 0.05
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, state.url, str(tmp_path)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": root},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while state.answered < after and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state.delay = 0.0
        time.sleep(0.2)
        asked_before = len(state.prompts)
        answers = ask(
            rows(60), config=server_config(state), state_dir=str(tmp_path), samples=1, shots=2
        )
        kept = sum(answer.from_journal for answer in answers)
        assert after <= asked_before < 60
        assert len(state.prompts) - asked_before == 60 - kept
        # At most the calls that were in flight when the step was killed are asked again.
        assert kept >= asked_before - server_config(state).concurrency
        assert [answer.label for answer in answers] == ["yes"] * 60

        again = ask(
            rows(60), config=server_config(state), state_dir=str(tmp_path), samples=1, shots=2
        )
        assert all(answer.from_journal for answer in again)
        assert len(state.prompts) - asked_before == 60 - kept
