"""The end on SIGTERM: what is here is answered, what comes is told, nothing hangs."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.serving.asking import echo_client, slow_server
from tests.serving.test_engine import until


def ask(address, text):
    return httpx.post(f"{address}/predict", json={"instances": [text]}, timeout=20)


@pytest.mark.slow
def test_requests_are_answered_and_new_ones_told_after_sigterm():
    with slow_server(0.1, 10) as (process, address), ThreadPoolExecutor(4) as pool:
        texts = ["abcdefghij", "ABCDEFGHIJ", "1234567890", "0987654321"]  # two run, two wait
        running = [pool.submit(ask, address, text) for text in texts]
        time.sleep(0.6)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        health = httpx.get(f"{address}/health")
        late = ask(address, "late")
        for answer in (health, late):
            assert answer.status_code == 503
            assert answer.json() == {"error": "the server is stopping"}
            assert answer.headers["connection"] == "close"
        said = [r.result().json()["predictions"][0]["output_text"] for r in running]
        assert said == texts
        process.wait(10)
        assert process.returncode == 0


@pytest.mark.slow
def test_what_is_not_done_in_the_drain_time_gets_503():
    with slow_server(0.5, 0.5) as (process, address), ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, address, "abcdefghijklmnopqrst")
        time.sleep(0.7)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        answer = running.result()
        assert (answer.status_code, answer.json()) == (503, {"error": "the server is stopping"})
        process.wait(10)
        assert process.returncode == 0
        assert time.monotonic() - begun < 5


def test_draining_answers_what_waits_and_refuses_what_comes():
    with echo_client(max_batch=1) as (client, echo), ThreadPoolExecutor(3) as pool:
        echo.step_gate.clear()
        early = [pool.submit(client.post, "/predict", json={"instances": [t]}) for t in ("a", "b")]
        until(lambda: client.engine.waiting == 1)
        client.engine.drain()
        late = client.post("/predict", json={"instances": ["c"]})
        assert (late.status_code, late.headers["connection"]) == (503, "close")
        assert client.get("/health").status_code == 503
        assert client.get("/metrics").status_code == 200
        echo.step_gate.set()
        said = [found.result(5).json()["predictions"][0]["output_text"] for found in early]
        assert said == ["a", "b"]
