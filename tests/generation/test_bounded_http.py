"""Servers whose responses come twice, never end, or drip: on real sockets."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from pipestill.generation import bounded_http, openai_backend
from pipestill.generation.ask import ask
from tests.generation.helpers import Server, rows, server, server_config


def response(text: str) -> bytes:
    body = json.dumps(
        {
            "id": "x", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop",
                         "message": {"role": "assistant", "content": text}}],
        }
    ).encode()  # fmt: skip
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@contextmanager
def raw_server(answer):
    """A server on bare sockets: `answer(connection, prompt)` writes what it likes."""
    listener = socket.create_server(("127.0.0.1", 0))
    state = Server()
    state.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    def serve(connection):
        with connection, connection.makefile("rb") as source:
            while line := source.readline():
                length = 0
                while line.strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                    line = source.readline()
                body = json.loads(source.read(length))
                state.bodies.append(body)
                try:
                    answer(connection, body["messages"][0]["content"])
                except OSError:
                    return

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield state
    finally:
        listener.close()


def asked(state, count, **changes):
    config = server_config(state, **{"concurrency": 1, "max_retries": 1, **changes})
    return ask(rows(count), config=config, state_dir="", samples=1, shots=0)


def test_a_response_that_comes_twice_is_not_the_next_row_s_answer():
    def twice(connection, prompt):
        last = prompt.strip().splitlines()[-2]
        connection.sendall(response(f"It is so. So the answer is {last}.") * 2)

    with raw_server(twice) as state:
        answers = asked(state, 4)
    texts = [row.input_text for row in rows(4)]
    for answer, text in zip(answers, texts, strict=True):
        assert text in answer.raw or answer.raw.endswith(f"{text}.")
    assert len({answer.raw for answer in answers}) == len(set(texts))


def test_a_response_that_drips_ends_with_the_time_out(monkeypatch):
    monkeypatch.setattr(openai_backend, "FIRST_WAIT_S", 0.01)

    def drip(connection, prompt):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)

    begun = time.monotonic()
    with raw_server(drip) as state:
        (answer,) = asked(state, 1, timeout_s=0.3)
    assert answer.raw is None
    assert time.monotonic() - begun < 5


def test_a_response_without_an_end_is_not_held(monkeypatch):
    monkeypatch.setattr(openai_backend, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(bounded_http, "MOST_BYTES", 1 << 20)
    sent = []

    def endless(connection, prompt):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            sent.append(connection.send(b" " * 65_536))

    with raw_server(endless) as state:
        (answer,) = asked(state, 1, timeout_s=20.0)
    assert answer.raw is None
    assert sum(sent) < 50 << 20


def test_a_body_of_brackets_is_tried_again(monkeypatch):
    monkeypatch.setattr(openai_backend, "FIRST_WAIT_S", 0.01)
    brackets = b"[" * 200_000
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n\r\n"

    def deep(connection, prompt):
        connection.sendall(head + brackets)

    with raw_server(deep) as state:
        (answer,) = asked(state, 1)
    assert answer.raw is None
    assert len(state.bodies) == 2


@pytest.mark.parametrize("shots", [0, 2])
def test_two_that_ask_the_same_pay_once(tmp_path, shots):
    with server() as state:
        state.delay = 0.05
        config = server_config(state)
        found = [[], []]

        def work(place):
            found[place] = ask(
                rows(12), config=config, state_dir=str(tmp_path), samples=1, shots=shots
            )

        threads = [threading.Thread(target=work, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(state.bodies) == 12
    assert [answer.raw for answer in found[0]] == [answer.raw for answer in found[1]]
    assert sorted(sum(a.from_journal for a in part) for part in found) == [0, 12]
    assert not list(tmp_path.glob("**/.lock-*"))
