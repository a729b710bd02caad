"""The table of a running job."""

import io

import pytest

from pipestill.cloud.watch import Row, Snapshot, changes, closing, duration, follow
from pipestill.errors import WorkError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def states(*words: str) -> Snapshot:
    rows = tuple(Row(str(n), f"step-{n}", word, 100.0, 175.0) for n, word in enumerate(words))
    return Snapshot("SUCCEEDED" if set(words) <= {"done", "cached"} else "RUNNING", rows)


STORY = [states("waiting", "waiting"), states("running", "waiting"), states("cached", "done")]


def test_a_terminal_gets_a_table_that_is_drawn_over():
    looks, screen = iter(STORY), Terminal()
    assert follow(lambda: next(looks), poll_s=0, out=screen).done
    frames = screen.getvalue().split("\x1b[4F\x1b[J")  # two steps, the head and the job's line
    assert len(frames) == 3
    assert frames[2].splitlines()[1].split()[:2] == ["step-0", "cached"]
    assert frames[2].splitlines()[2].endswith("1m15s")
    assert frames[2].endswith("job: succeeded\n")


def test_a_file_gets_a_line_per_change():
    looks, out = iter([*STORY[:2], STORY[1], STORY[2]]), io.StringIO()
    follow(lambda: next(looks), poll_s=0, out=out)
    lines = [line.split("  ")[1] for line in out.getvalue().splitlines()]
    assert lines == ["step-0: running", "step-0: cached", "step-1: done in 1m15s"]
    assert "\x1b" not in out.getvalue()


def test_a_step_seen_first_at_its_end_is_told_once():
    assert len(changes((), STORY[2].rows)) == 2
    assert not changes(STORY[2].rows, STORY[2].rows)


def test_long_silence_ends_the_watch():
    def silent() -> Snapshot:
        raise WorkError("CLOUD_UNREACHABLE", "no answer")

    with pytest.raises(WorkError):
        follow(silent, poll_s=0, out=io.StringIO())


def test_closing_names_the_failed_steps_or_the_job_error():
    failed = Row("1", "train", "FAILED", error="out of\nmemory", log="https://log")
    assert closing(Snapshot("FAILED", (failed,))) == [
        "failed step train: out of memory",
        "its log: https://log",
    ]
    assert closing(Snapshot("CANCELLED", (), "by a person")) == [
        "the job ended as cancelled: by a person"
    ]
    assert not closing(Snapshot("SUCCEEDED", ()))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (-3, "0s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
