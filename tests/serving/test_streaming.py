"""Server-sent events: the pieces joined are the answer, no character is torn, nobody is held."""

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipestill.models.loading import load_tokenizer
from pipestill.models.render import Renderer
from pipestill.models.student import Student
from pipestill.serving.pieces import Pieces
from tests.serving.asking import call, echo_app, echo_client, events, figures, slow_server
from tests.serving.conftest import make_tokenizer
from tests.serving.test_app import TEXTS, client_for, wait_until_healthy
from tests.serving.test_engine import until

STREAM = {"parameters": {"stream": True}}


@pytest.fixture(scope="module")
def client(student_folder):
    with client_for(student_folder, max_output_tokens=12) as client:
        wait_until_healthy(client)
        yield client


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("explain", [False, True])
def test_the_pieces_joined_are_the_answer(client, text, explain):
    body = {"instances": [text], "parameters": {"explain": explain}}
    whole = client.post("/predict", json=body).json()
    asked = {**body, "parameters": {"explain": explain, "stream": True}}
    answer = client.post("/predict", json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events(answer.text)
    assert last == ("done", whole)
    assert all(name == "" and content["text"] for name, content in pieces)
    joined = "".join(content["text"] for _, content in pieces)
    assert joined == whole["predictions"][0]["output_text"]
    assert len(pieces) > 1 or len(joined.split()) < 3


def test_a_header_asks_for_a_stream_too_and_the_parameter_wins(client):
    accept = {"accept": "text/event-stream"}
    body = {"instances": [TEXTS[0]]}
    assert "event: done" in client.post("/predict", json=body, headers=accept).text
    plain = client.post("/predict", json={**body, "parameters": {"stream": False}}, headers=accept)
    assert list(plain.json()) == ["predictions"]


def test_a_stream_takes_one_instance_and_fails_like_any_request(client):
    two = client.post("/predict", json={"instances": TEXTS[:2], **STREAM})
    assert two.status_code == 400
    assert two.json() == {"error": "instances: 2 given, a stream takes one"}
    long = client.post("/predict", json={"instances": ["order " * 65], **STREAM})
    assert long.status_code == 400
    assert "longer than 64 tokens" in long.json()["error"]
    none = client.post("/predict", json={"instances": [TEXTS[0]], "parameters": {"stream": 1}})
    assert none.status_code == 400


def test_an_answer_ends_before_the_separator_of_answer_and_rationale():
    with echo_client() as (client, echo):
        echo.info["objective"] = "label_then_rationale"
        for name in ("answer_part", "rationale_part"):
            setattr(echo.renderer, name, getattr(Renderer, name).__get__(echo.renderer))
        text = "be because: x y"
        steps = echo.steps
        *pieces, last = events(client.post("/predict", json={"instances": [text], **STREAM}).text)
        assert [content["text"] for _, content in pieces] == ["b", "e"]
        answer = {"output_text": "be", "prompt_tokens": 15, "output_tokens": 11}
        assert last == ("done", {"predictions": [answer]})
        assert echo.steps - steps == 11  # what follows the separator is not paid for
        body = {"instances": [text], "parameters": {"explain": True}}
        whole = client.post("/predict", json=body).json()["predictions"]
        assert whole == [{**answer, "rationale": "x y"}]


def test_a_failure_in_the_middle_is_an_event():
    with echo_client() as (client, echo):
        plain = echo.generate

        def breaks(prompts, limit, watch):
            def failing(tokens):
                if tokens[0] == ord("!"):
                    raise RuntimeError("out of memory")
                return watch(tokens)

            plain(prompts, limit, failing)

        echo.generate = breaks
        found = events(client.post("/predict", json={"instances": ["ab!cd"], **STREAM}).text)
        assert [content.get("text") for _, content in found[:-1]] == ["a", "b"]
        assert found[-1] == ("error", {"error": "the model failed (RuntimeError)"})
        assert client.post("/predict", json={"instances": ["ab"]}).status_code == 200


def test_a_stream_that_takes_too_long_ends_with_an_error_event():
    with echo_client(timeout_s=0.2) as (client, echo):
        plain = echo.generate

        def holds(prompts, limit, watch):
            def holding(tokens):
                if tokens[0] == ord("!"):
                    echo.step_gate.clear()
                return watch(tokens)

            plain(prompts, limit, holding)

        echo.generate = holds
        found = events(client.post("/predict", json={"instances": ["ab!cd"], **STREAM}).text)
        assert found[-1] == ("error", {"error": "no answer within 0.2 s"})
        echo.step_gate.set()
        until(lambda: client.post("/predict", json={"instances": ["ab"]}).status_code == 200)


def test_a_reader_that_goes_away_frees_its_place():
    async def go():
        app, engine, echo = echo_app()
        async with app.router.lifespan_context(app):
            await asyncio.to_thread(until, lambda: engine.problem is None)
            gone, plain = asyncio.Event(), echo.generate

            def holds(prompts, limit, watch):
                def holding(tokens):
                    done = watch(tokens)
                    if tokens[0] == ord("!"):
                        echo.step_gate.clear()
                    return done

                plain(prompts, limit, holding)

            echo.generate = holds
            body = json.dumps({"instances": ["ab!" + "c" * 15], **STREAM}).encode()
            reader = asyncio.ensure_future(call(app, body, gone=gone))
            await asyncio.to_thread(until, lambda: not echo.step_gate.is_set())
            steps = echo.steps
            gone.set()
            await reader
            echo.step_gate.set()
            status, _, _ = await call(app, b'{"instances": ["z"]}')
            assert status == 200
            assert echo.steps <= steps + 4
            assert b'pipestill_requests_total{status="499"} 1.0' in app.state.metrics.text()

    asyncio.run(go())


@pytest.mark.slow
def test_over_a_socket_pieces_come_as_they_are_made_and_a_closed_one_frees_the_place():
    text = "abcdefghijklmnopqrst"
    with slow_server(0.05, 5) as (_, address), httpx.Client(base_url=address, timeout=10) as http:
        body = {"instances": [text], **STREAM}
        with http.stream("POST", "/predict", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith('data: {"text"')]
        assert len(lines) == len(text)
        with http.stream("POST", "/predict", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines) == 'data: {"text": "a"}'  # and not at the end of the second it takes
        until(lambda: figures(http)["pipestill_requests_in_flight"] == 0, 0.8)
        until(lambda: figures(http).get('pipestill_requests_total{status="499"}') == 1)


def byte_level_tokenizer():
    """Bytes and a few merges, as GPT-2's: tokens may end within a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<pad>", "</s>"]
    )
    raw.train_from_iterator(["naïve café über 你好 🙂 because: no", "é é 你你"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")


def tidying_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    return tokenizer


TOKENIZERS = {
    "pocket": lambda: load_tokenizer("pocket-base"),  # sentence pieces with byte fallback
    "byte level": byte_level_tokenizer,
    "words": make_tokenizer,
    "tidying": tidying_tokenizer,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("stop", ["", " because:"])
def test_pieces_of_any_tokens_join_to_the_text(kind, stop):
    tokenizer = TOKENIZERS[kind]()
    size = len(tokenizer)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.integers(0, size - 1) | st.integers(0, min(size, 300) - 1), max_size=24))
    def check(ids):
        whole = tokenizer.decode(ids, skip_special_tokens=True).strip()
        if stop:
            whole = whole.split(stop, 1)[0].strip()
        pieces = Pieces(tokenizer, stop)
        told = [pieces.add(ids[: end + 1]) for end in range(len(ids))]
        assert "".join(told) + pieces.rest(whole) == whole

    check()


@pytest.mark.parametrize("kind", ["pocket", "byte level"])
def test_a_character_of_several_tokens_comes_whole(kind):
    tokenizer = TOKENIZERS[kind]()
    text = "a café 你好 🙂 end"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = Pieces(tokenizer)
    told = [pieces.add(ids[: end + 1]) for end in range(len(ids))]
    told.append(pieces.rest(tokenizer.decode(ids).strip()))
    assert "".join(told) == tokenizer.decode(ids).strip() == text
    assert not any("\ufffd" in piece for piece in told)
    assert sum(bool(piece) for piece in told) > 3


@pytest.mark.parametrize("name", ["pocket-base", "pocket-teacher"])
def test_streamed_pocket_models_say_what_they_say_at_once(name):
    text = "Ada brings back a mattress. It looks shiny. The receipt is 63 days old."
    with client_for(name, max_output_tokens=48) as client:
        wait_until_healthy(client)
        whole = client.post("/predict", json={"instances": [text]}).json()["predictions"][0]
        *pieces, _ = events(client.post("/predict", json={"instances": [text], **STREAM}).text)
        assert "".join(content["text"] for _, content in pieces) == whole["output_text"]
        student = Student.load(name)
        (expected,) = student.answer([text], batch_size=1, max_new_tokens=48)
        assert whole["output_text"] == expected.text
