"""Asking: budget, journal, order, equal questions, and the recorded answers of `replay`."""

import json
from pathlib import Path

import pytest

from pipestill.config import TeacherConfig
from pipestill.errors import UserError, WorkError
from pipestill.generation.ask import ask, few_shot_answers
from pipestill.generation.budget import Budget, price
from pipestill.generation.replay import recorded_files
from pipestill.generation.teacher import Completion, Failure
from pipestill.records import Example
from tests.generation.helpers import rows, server, server_config


def test_a_token_budget_ends_the_step_before_it_is_exceeded(tmp_path: Path) -> None:
    with server() as state:
        limit = server_config(state, budget_tokens=6000, max_new_tokens=20)
        with pytest.raises(WorkError, match="BUDGET_REACHED") as caught:
            ask(rows(100), config=limit, state_dir=str(tmp_path), samples=1, shots=2)
        first = state.answered
        spent = sum(len(prompt) // 4 + 7 for prompt in state.prompts)
        assert 6000 - 700 < spent <= 6000
        assert f"{spent} of 6000 tokens" in caught.value.message
        assert f"{100 - first} of 100 calls not made" in caught.value.message

        # The same limit does not pay again; a higher one goes on after the answers that are kept.
        with pytest.raises(WorkError, match="BUDGET_REACHED"):
            ask(rows(100), config=limit, state_dir=str(tmp_path), samples=1, shots=2)
        assert state.answered <= first + 4
        free = server_config(state, max_new_tokens=20)
        answers = ask(rows(100), config=free, state_dir=str(tmp_path), samples=1, shots=2)
        assert state.answered == 100
        assert sum(answer.from_journal for answer in answers) >= first


def test_a_budget_in_money_counts_both_prices(tmp_path: Path) -> None:
    with server() as state:
        config = server_config(
            state, budget_usd=0.01, usd_per_million_input=1.0, usd_per_million_output=50.0,
            max_new_tokens=20,
        )  # fmt: skip
        with pytest.raises(WorkError, match=r"0\.0\d+ of 0\.0100 USD"):
            ask(rows(100), config=config, state_dir=str(tmp_path), samples=1, shots=2)
        spent = sum((len(prompt) // 4 + 50 * 7) / 1e6 for prompt in state.prompts)
        assert 0.005 < spent <= 0.01


def test_a_budget_smaller_than_one_call_makes_none() -> None:
    with server() as state:
        with pytest.raises(WorkError, match=r"BUDGET_REACHED.*0 of 50 tokens"):
            ask(
                rows(3), config=server_config(state, budget_tokens=50), state_dir="",
                samples=1, shots=2,
            )  # fmt: skip
        assert state.prompts == []


def test_reservations_keep_calls_in_flight_within_the_budget() -> None:
    budget = Budget(TeacherConfig(budget_tokens=400, max_new_tokens=100))
    assert budget.admit(100)
    assert budget.admit(100)
    assert not budget.admit(1)
    assert budget.exhausted
    budget.settle(100, Completion(text="", prompt_tokens=90, output_tokens=10))
    budget.settle(100, Failure(reason="gone"))
    assert (budget.prompt_tokens, budget.output_tokens) == (90, 10)
    assert budget.admit(200)
    assert not budget.admit(1)
    assert price(TeacherConfig(usd_per_million_input=2.0, usd_per_million_output=4.0), 10, 5) == (
        pytest.approx(4e-5)
    )


def test_equal_questions_are_asked_once_and_order_is_kept(tmp_path: Path) -> None:
    with server() as state:
        state.reply = lambda prompt: f"Seen {prompt[-20:]!r}. So the answer is {len(prompt)}."
        four = [
            Example(id=name, input_text=text)
            for name, text in [("d", "long question indeed"), ("a", "x"), ("c", "x"), ("b", "yy")]
        ]
        answers = ask(
            four, config=server_config(state), state_dir=str(tmp_path), samples=1, shots=2
        )
        assert [answer.id for answer in answers] == ["d", "a", "c", "b"]
        assert len(state.prompts) == 3
        assert [answer.from_journal for answer in answers] == [False, False, True, False]
        assert answers[1].label == answers[2].label != answers[0].label
        assert ask([], config=server_config(state), state_dir="", samples=1, shots=2) == []


def test_other_parameters_are_other_questions(tmp_path: Path) -> None:
    with server() as state:
        for change in ({}, {"max_new_tokens": 7}, {"model_reference": "other"}, {"shots": 1}):
            config = server_config(state, **change)
            ask(rows(1), config=config, state_dir=str(tmp_path), samples=1, shots=config.shots)
        assert len(state.prompts) == 4
        # Batch size, concurrency and limits do not change an answer.
        config = server_config(state, concurrency=1, batch_size=3, timeout_s=9.0, budget_tokens=99)
        ask(rows(1), config=config, state_dir=str(tmp_path), samples=1, shots=2)
        assert len(state.prompts) == 4


@pytest.mark.parametrize(("samples", "temperature"), [(0, 0.7), (3, 0.0)])
def test_samples_that_make_no_sense(samples: int, temperature: float) -> None:
    with server() as state, pytest.raises(UserError, match="TEACHER_SAMPLES"):
        ask(
            rows(1), config=server_config(state, temperature=temperature), state_dir="",
            samples=samples, shots=0,
        )  # fmt: skip


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UserError, match=r"BACKEND_UNKNOWN.*'vllm', allowed: transformers, replay"):
        ask(
            rows(1), config=TeacherConfig(backend="vllm", prompt="generic.v1"), state_dir="",
            samples=1, shots=0,
        )  # fmt: skip


def _recorded(folder: Path) -> TeacherConfig:
    for part in range(12):
        texts = [f"It is {part}. So the answer is {part}-{n}." for n in range(2)]
        path = folder / f"part_{part}.json"
        as_lines = part % 2 == 1
        path.write_text("\n".join(map(json.dumps, texts)) if as_lines else json.dumps(texts))
    return TeacherConfig(
        backend="replay", prompt="generic.v1", replay_uri=str(folder / "part_*.json")
    )


def test_recorded_answers_are_joined_in_numeric_order(tmp_path: Path) -> None:
    config = _recorded(tmp_path)
    assert [path.stem for path in recorded_files(config.replay_uri)][-3:] == [
        "part_9",
        "part_10",
        "part_11",
    ]
    answers = few_shot_answers(rows(25), config, str(tmp_path / "state"), shots=5)
    assert [a.label for a in answers[:24]] == [f"{p}-{n}" for p in range(12) for n in range(2)]
    assert answers[24].raw is None
    assert "no recorded answer for source row 24" in answers[24].error
    assert few_shot_answers(rows(24), config, str(tmp_path / "state"), shots=0)[3].label == "1-1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('["a", 5]', "entry 2: found int"),
        ('"a"\n"b', "line 2: not JSON"),
        ('"a"\n{"b": 1}', "entry 2: found dict"),
        ("[" * 100000, "line 1: not JSON"),
    ],
)
def test_a_broken_recording_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "x.json").write_text(content)
    config = TeacherConfig(
        backend="replay", prompt="generic.v1", replay_uri=str(tmp_path / "x.json")
    )
    with pytest.raises(UserError, match=f"REPLAY_UNREADABLE.*x.json, {words}"):
        few_shot_answers(rows(1), config, "", shots=0)


def test_replay_asks_for_what_it_can_give(tmp_path: Path) -> None:
    config = _recorded(tmp_path)
    with pytest.raises(UserError, match="REPLAY_SAMPLES"):
        ask(rows(1), config=config, state_dir="", samples=2, shots=0)
    for uri in ("", str(tmp_path / "none*.json"), str(tmp_path)):
        with pytest.raises(UserError, match="REPLAY_NOT_FOUND"):
            recorded_files(uri)


def test_changed_recordings_are_other_teachers(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    config = TeacherConfig(backend="replay", prompt="generic.v1", replay_uri=str(path))
    for label in ("one", "two"):
        path.write_text(json.dumps([f"Because. So the answer is {label}. \ud800"]))
        (answer,) = few_shot_answers(rows(1), config, str(tmp_path / "state"), shots=0)
        assert answer.label is not None
        assert answer.label.startswith(label)
        assert answer.raw is not None
        assert answer.raw.encode("utf-8")
