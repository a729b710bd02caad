"""The backend `openai` against a local server that answers, refuses, hangs and babbles."""

from pathlib import Path

import pytest

from pipestill.errors import UserError, WorkError
from pipestill.generation import openai_backend
from pipestill.generation.ask import Answer, ask, usage
from pipestill.generation.openai_backend import api_key, wait_seconds
from pipestill.generation.prompts import load_prompt
from tests.generation.helpers import Server, rows, server, server_config


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_backend, "FIRST_WAIT_S", 0.01)


def _ask(state: Server, count: int, folder: Path | str = "", **changes: object) -> list[Answer]:
    config = server_config(state, **changes)
    return ask(rows(count), config=config, state_dir=str(folder), samples=1, shots=2)


def test_chat_request_and_answer() -> None:
    with server() as state:
        (answer,) = _ask(state, 1)
        prompt = load_prompt("generic.v1")
        (body,) = state.bodies
        question = prompt.prefix(2) + prompt.ask(rows(1)[0].input_text)
        assert body["messages"] == [{"role": "user", "content": question}]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("some-model", 96, 0)
        assert body["stop"] == ["\n\nQ:", "\nQ:"]
        assert (answer.label, answer.rationale) == ("yes", "It is new.")
        assert answer.prompt_tokens == len(question) // 4
        assert (answer.output_tokens, answer.cached_prompt_tokens) == (7, 5)
        assert answer.latency_ms > 0
        assert not answer.from_journal


def test_completions_for_models_without_a_chat_template() -> None:
    with server() as state:
        (answer,) = _ask(state, 1, backend="openai_completions")
        assert "messages" not in state.bodies[0]
        assert state.bodies[0]["prompt"].startswith("Answer")
        assert answer.label == "yes"


@pytest.mark.parametrize("trouble", ["429", "500", "503", "408", "409", "garbage", "no choices"])
def test_passing_trouble_is_tried_again(trouble: str) -> None:
    with server() as state:
        state.script = [trouble, trouble]
        (answer,) = _ask(state, 1)
        assert answer.label == "yes"
        assert answer.error is None
        assert len(state.bodies) == 3


def test_a_time_out_is_tried_again() -> None:
    with server() as state:
        state.script = ["hang"]
        (answer,) = _ask(state, 1, timeout_s=0.3)
        assert answer.label == "yes"
        assert len(state.bodies) == 2


def test_all_kinds_of_trouble_at_once() -> None:
    with server() as state:
        state.script = ["429", "500", "hang", "garbage", "502", "no choices"]
        answers = _ask(state, 12, timeout_s=0.4)
        assert [answer.label for answer in answers] == ["yes"] * 12
        assert [answer.id for answer in answers] == [row.id for row in rows(12)]
        assert len(state.bodies) == 18


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_refused_row_fails_alone_and_at_once(status: str, tmp_path: Path) -> None:
    with server() as state:
        state.script = [status]
        answers = _ask(state, 3, tmp_path, concurrency=1)
        errors = [answer.error for answer in answers if answer.error]
        assert len(errors) == 1
        assert f"HTTP {status}" in errors[0]
        assert len(state.bodies) == 3
        # A failure is not journaled: the next run asks again.
        assert sum(answer.from_journal for answer in _ask(state, 3, tmp_path)) == 2


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_wrong_key_or_model_is_the_users_mistake(status: str) -> None:
    with server() as state:
        state.script = [status] * 50
        with pytest.raises(UserError, match=f"TEACHER_REFUSED.*some-model.*HTTP {status}"):
            _ask(state, 50, concurrency=2)
        assert len(state.bodies) <= 4


def test_attempts_end_and_the_reason_is_kept() -> None:
    with server() as state:
        state.script = ["500"] * 3
        (answer,) = _ask(state, 1, max_retries=2)
        assert answer.raw is None
        assert answer.label is None
        assert answer.error
        assert "3 attempts" in answer.error
        assert "HTTP 500" in answer.error


def test_a_server_that_is_gone_ends_the_step_and_keeps_what_was_answered(tmp_path: Path) -> None:
    with server() as state:
        state.script = ["answer"] * 5 + ["503"] * 500
        with pytest.raises(WorkError, match="TEACHER_UNREACHABLE"):
            _ask(state, 200, tmp_path, max_retries=1, concurrency=2)
        assert len(state.bodies) < 60
        state.script = []
        answers = _ask(state, 200, tmp_path)
        assert sum(answer.from_journal for answer in answers) == 5


def test_samples_are_calls_of_their_own() -> None:
    with server() as state:
        config = server_config(state)
        answers = ask(rows(2), config=config, state_dir="", samples=3, shots=0)
        assert [(a.id, a.sample) for a in answers] == [(f"r000{i}", s) for i in (0, 1) for s in
                                                       (0, 1, 2)]  # fmt: skip
        assert len(state.bodies) == 6
        assert state.bodies[0]["temperature"] == 0.7


def test_keys_come_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as state:
        monkeypatch.setenv("MY_KEY", "sk-secret-0123")
        _ask(state, 1, api_key_env="MY_KEY")
        assert state.keys == {"Bearer sk-secret-0123"}
        state.script = ["401"]
        state.reply = lambda prompt: "x"
        with pytest.raises(UserError) as caught:
            _ask(state, 1, api_key_env="MY_KEY")
        assert "sk-secret" not in str(caught.value)


def test_missing_and_misplaced_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPESTILL_TEST_NO_KEY", raising=False)
    state = Server()
    state.url = "https://models.example.org/v1"
    with pytest.raises(UserError, match=r"API_KEY_MISSING.*PIPESTILL_TEST_NO_KEY is not set"):
        api_key(server_config(state))
    for key in ("sk-proj-abc", "AIzaSyAbc", "", "a b"):
        with pytest.raises(UserError) as caught:
            api_key(server_config(state, api_key_env=key))
        assert caught.value.code == "API_KEY_NAME"
        assert not key or key not in str(caught.value)
    state.url = "http://localhost:8000/v1"
    assert api_key(server_config(state)) == "none"


def test_waits_grow_and_follow_the_server() -> None:
    openai_backend.FIRST_WAIT_S = 0.5
    assert [wait_seconds(n, None, lambda: 1.0) for n in range(4)] == [0.5, 1, 2, 4]
    assert wait_seconds(3, None, lambda: 0.0) == 2
    assert wait_seconds(50, None, lambda: 1.0) == 30
    assert wait_seconds(0, "7") == 7
    assert wait_seconds(0, "99999") == 300
    assert wait_seconds(0, "Wed, 21 Oct 2015 07:28:00 GMT", lambda: 1.0) == 0.5


def test_usage_counts_calls_tokens_and_cost(tmp_path: Path) -> None:
    with server() as state:
        prices = {"usd_per_million_input": 10.0, "usd_per_million_output": 100.0}
        config = server_config(state, **prices)
        answers = _ask(state, 4, tmp_path, **prices)
        sums = usage(answers, config)
        assert sums["calls_made"] == 4
        assert sums["calls_from_journal"] == 0
        assert sums["output_tokens"] == 28
        assert sums["cached_prompt_tokens"] == 20
        assert sums["cost_usd"] == pytest.approx(
            (10 * sums["prompt_tokens"] + 100 * 28) / 1e6, abs=1e-6
        )
        again = usage(_ask(state, 4, tmp_path, **prices), config)
        assert again["calls_made"] == 0
        assert again["cost_usd"] == 0
        assert again["journal_tokens"] == sums["prompt_tokens"] + 28
