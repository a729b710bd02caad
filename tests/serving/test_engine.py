"""The queue and the worker thread, on a model that is plain Python."""

import threading
import time
from concurrent.futures import wait
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.serving.engine import (
    PROBE,
    Engine,
    InputTooLongError,
    NotReadyError,
    QueueFullError,
)

END, REASON = -1, 2_000_000  # ids: a letter is its code point; a rationale's first one is moved


class Echo:
    """Writes the text itself, a letter a step; `gate` holds a call back, `broken` makes it fail."""

    def __init__(self):
        generation = SimpleNamespace(eos_token_id=[END])
        self.loaded = SimpleNamespace(model=SimpleNamespace(generation_config=generation))
        self.info = {"objective": "none"}
        self.calls: list[list[str]] = []
        self.steps = 0
        self.gate, self.step_gate = threading.Event(), threading.Event()
        self.gate.set()
        self.step_gate.set()
        self.broken = False
        self.renderer = SimpleNamespace(
            max_input_tokens=20, max_output_tokens=1000, prompts=self._prompts, tokenizer=self
        )
        self.all_special_ids = [END]

    def _prompts(self, task, texts):
        moved = REASON if task == "explain" else 0
        rows = [[ord(t[0]) + moved, *map(ord, t[1:])] if t else [END] for t in texts]
        return [SimpleNamespace(ids=row, truncated=len(row) > 20) for row in rows]

    def decode(self, ids, skip_special_tokens=True):
        letters = [("because " + chr(i - REASON)) if i >= REASON else chr(i) for i in ids if i >= 0]
        return "".join(letters)

    def convert_ids_to_tokens(self, token):
        return chr(token)

    def generate(self, prompts, limit, watch):
        self.gate.wait(10)
        texts = [self.decode(ids) for ids in prompts]
        if self.broken or "poison" in texts:
            raise RuntimeError("out of memory")
        if texts != [PROBE]:
            self.calls.append(texts)
        for step in range(limit):
            self.step_gate.wait(10)
            self.steps += 1
            if all(watch([ids[step] if step < len(ids) else END for ids in prompts])):
                return


def no_flow(student):
    return None


def engine_of(echo, **changes):
    options = {"max_batch": 4, "max_wait_ms": 20, "max_queue": 8, **changes}
    return Engine(lambda: echo, generate=Echo.generate, flow=no_flow, **options)


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def engine(echo):
    engine = engine_of(echo)
    engine.start()
    until(lambda: engine.problem is None)
    yield engine
    echo.gate.set()
    engine.stop()


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def texts_of(future):
    return [answer["output_text"] for answer in future.result(10)]


def test_concurrent_requests_share_calls_and_keep_their_answers(engine, echo):
    echo.gate.clear()
    futures = [engine.submit([f"q{i}"], max_output_tokens=9) for i in range(8)]
    echo.gate.set()
    assert [texts_of(future) for future in futures] == [[f"q{i}"] for i in range(8)]
    assert len(echo.calls) < 8
    assert max(map(len, echo.calls)) <= 4


def test_a_large_request_gets_one_call_of_its_own(engine, echo):
    many = [f"m{i}" for i in range(11)]
    assert texts_of(engine.submit(many, max_output_tokens=9)) == many
    assert echo.calls == [many]


def test_requests_that_do_not_fit_together_take_turns(engine, echo):
    echo.gate.clear()
    requests = [["a1", "a2", "a3"], ["b1", "b2", "b3"], ["c1"]]
    futures = [engine.submit(texts, max_output_tokens=9) for texts in requests]
    echo.gate.set()
    assert [texts_of(future) for future in futures] == requests
    assert max(map(len, echo.calls)) <= 4


def test_each_request_keeps_its_own_limit(engine, echo):
    echo.gate.clear()
    futures = [engine.submit(["abcdef"], max_output_tokens=n) for n in (2, 3, 2)]
    explained = engine.submit(["abcdef"], max_output_tokens=2, explain=True)
    echo.gate.set()
    assert [texts_of(f) for f in futures] == [["ab"], ["abc"], ["ab"]]
    assert explained.result(10)[0]["rationale"] == "because ab"
    assert "rationale" not in futures[0].result()[0]


def test_a_full_queue_refuses(engine, echo):
    echo.gate.clear()

    def flood():
        for _ in range(20):
            engine.submit(["q"], max_output_tokens=1)

    with pytest.raises(QueueFullError):
        flood()
    echo.gate.set()
    until(lambda: engine.waiting == 0)
    assert texts_of(engine.submit(["after"], max_output_tokens=9)) == ["after"]


def test_a_too_long_text_is_refused_alone(engine, echo):
    echo.gate.clear()
    good = engine.submit(["good"], max_output_tokens=9)
    bad = engine.submit(["fine", "x" * 21], max_output_tokens=9)
    echo.gate.set()
    with pytest.raises(InputTooLongError) as caught:
        bad.result(10)
    assert caught.value.index == 1
    assert texts_of(good) == ["good"]


def test_one_failing_call_leaves_the_engine_alive(engine):
    with pytest.raises(NotReadyError, match="RuntimeError"):
        engine.submit(["poison"], max_output_tokens=9).result(10)
    assert texts_of(engine.submit(["next"], max_output_tokens=9)) == ["next"]
    assert engine.problem is None


def test_a_model_that_no_longer_answers_turns_the_health_red(engine, echo):
    echo.broken = True
    with pytest.raises(NotReadyError):
        engine.submit(["q"], max_output_tokens=9).result(10)
    until(lambda: engine.problem is not None)
    with pytest.raises(NotReadyError, match="no longer answers"):
        engine.submit(["q"], max_output_tokens=9)


def test_nothing_is_taken_before_the_model_is_loaded(echo):
    loaded = threading.Event()
    options = {"max_batch": 4, "max_wait_ms": 1, "max_queue": 8, "generate": Echo.generate}
    options["flow"] = no_flow
    engine = Engine(lambda: loaded.wait(10) and echo, **options)
    engine.start()
    with pytest.raises(NotReadyError, match="still loading"):
        engine.submit(["q"], max_output_tokens=1)
    loaded.set()
    until(lambda: engine.problem is None)
    engine.stop()
    with pytest.raises(NotReadyError, match="stopping"):
        engine.submit(["q"], max_output_tokens=1)


def test_failing_to_load_is_told():
    told = []

    def broken():
        raise ValueError("no weights")

    engine = Engine(
        broken, max_batch=1, max_wait_ms=1, max_queue=1, on_failure=lambda: told.append(1)
    )
    engine.start()
    until(lambda: told)
    assert isinstance(engine.failure, ValueError)
    assert "no weights" in engine.problem
    engine.stop()


def test_a_cancelled_request_is_skipped(engine, echo):
    echo.gate.clear()
    engine.submit(["first"], max_output_tokens=9)
    until(lambda: engine.waiting == 0)
    time.sleep(0.05)
    gone = engine.submit(["gone"], max_output_tokens=9)
    assert gone.cancel()
    echo.gate.set()
    assert texts_of(engine.submit(["last"], max_output_tokens=9)) == ["last"]
    assert not any("gone" in call for call in echo.calls)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.integers(1, 3)),
        min_size=1,
        max_size=8,
    )
)
def test_every_request_gets_its_own_answers_in_order(requests):
    echo = Echo()
    engine = engine_of(echo, max_wait_ms=1, max_queue=64)
    engine.start()
    until(lambda: engine.problem is None)
    futures = [engine.submit(texts, max_output_tokens=limit) for texts, limit in requests]
    wait(futures, 10)
    engine.stop()
    for future, (texts, limit) in zip(futures, requests, strict=True):
        assert texts_of(future) == [text[:limit].strip() for text in texts]
