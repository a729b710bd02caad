"""A local teacher in several processes: the same answers, none twice, failures told."""

from pathlib import Path

import pytest

from pipestill.config import TeacherConfig
from pipestill.generation import share
from pipestill.generation.ask import Answer, ask
from pipestill.records import Example
from tests.generation.helpers import rows, save_tiny

LONG = Example(id="long", input_text="word " * 2000, source_row=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


def _ask(model: str, state_dir: str = "", samples: int = 1, **changes: object) -> list[Answer]:
    values: dict = {"model_reference": model, "prompt": "generic.v1", "max_new_tokens": 8}
    config = TeacherConfig(**values | {"batch_size": 4, "samples": samples} | changes)
    asked = [*rows(9), LONG, *rows(3)]  # the last three are asked already
    return ask(asked, config=config, state_dir=state_dir, samples=samples, shots=2)


def _told(answers: list[Answer]) -> list[tuple]:
    return [(a.id, a.sample, a.raw, a.error, a.prompt_tokens, a.from_journal) for a in answers]


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2])
def test_two_processes_answer_as_one_does(
    model: str,
    samples: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = _ask(model, samples=samples)
    monkeypatch.setenv("PIPESTILL_PROCESSES", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    both = _ask(model, str(tmp_path), samples)
    assert f"2 processes answer {10 * samples} calls" in capsys.readouterr().out
    assert _told(both) == _told(alone)
    long = both[9 * samples]
    assert (long.raw, "too long" in str(long.error)) == (None, True)
    monkeypatch.setattr(share, "launch", None)  # what is in the journal is not asked again
    again = _ask(model, str(tmp_path), samples)
    assert [a.raw for a in again] == [a.raw for a in alone]
    assert sum(not a.from_journal for a in again) == samples  # the one that fails


@pytest.mark.parametrize(
    ("processes", "changes"),
    [("1", {}), ("8", {"batch_size": 64}), ("8", {"budget_tokens": 10**6})],
)
def test_one_process_answers_where_more_would_not_help_or_would_break_a_budget(
    model: str, processes: str, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPESTILL_PROCESSES", processes)
    monkeypatch.setattr(share, "launch", None)
    assert sum(a.raw is None for a in _ask(model, **changes)) == 1
