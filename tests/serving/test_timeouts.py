"""Time limits, clients that go away, and a model that hangs or breaks for a while."""

import asyncio
import json
import threading
import time

from tests.serving.asking import call, echo_app, echo_client, figures
from tests.serving.test_engine import Echo, until

LONG = json.dumps({"instances": ["abcdefghijklmnop"]}).encode()


class Held(Echo):
    """Writes at most so many letters until it is let go."""

    def __init__(self, letters):
        super().__init__()
        self.letters, self.go = letters, threading.Event()

    def generate(self, prompts, limit, watch):
        def held(tokens):
            if self.letters == 0:
                self.go.wait(10)
            else:
                self.letters -= 1
            return watch(tokens)

        super().generate(prompts, limit, held)


def test_a_request_that_takes_too_long_gets_504_and_is_dropped():
    with echo_client(Held(5), timeout_s=0.2) as (client, echo):
        begun = time.monotonic()
        answer = client.post("/predict", content=LONG)
        assert answer.status_code == 504
        assert answer.json() == {"error": "no answer within 0.2 s"}
        assert time.monotonic() - begun < 2
        steps = echo.steps
        echo.go.set()
        until(lambda: client.post("/predict", json={"instances": ["z"]}).status_code == 200)
        assert echo.steps <= steps + 3  # one to notice, and those of z
        assert figures(client)['pipestill_requests_total{status="504"}'] == 1


def test_a_body_that_does_not_come_is_given_up():
    async def go():
        app, engine, _ = echo_app(timeout_s=0.1)
        async with app.router.lifespan_context(app):
            await asyncio.to_thread(until, lambda: engine.problem is None)
            never, sent = asyncio.Event(), []

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
            more = {"query_string": b"", "root_path": "", "http_version": "1.1"}
            await app({**scope, **more}, never.wait, send)
            return sent[0]["status"]

    assert asyncio.run(go()) == 408


def test_a_client_that_goes_away_frees_its_place_waiting_or_running():
    async def go():
        echo = Held(4)  # two are the probe's
        app, engine, _ = echo_app(echo, max_batch=1)
        async with app.router.lifespan_context(app):
            await asyncio.to_thread(until, lambda: engine.problem is None)
            gone = [asyncio.Event(), asyncio.Event()]
            runs = asyncio.ensure_future(call(app, LONG, gone=gone[0]))
            await asyncio.to_thread(until, lambda: echo.letters == 0)
            waits = asyncio.ensure_future(call(app, LONG, gone=gone[1]))
            await asyncio.to_thread(until, lambda: engine.waiting == 1)
            for event in gone:
                event.set()
            assert {(await runs)[0], (await waits)[0]} == {499}
            assert engine.waiting == 0
            steps = echo.steps
            echo.go.set()
            status, _, said = await call(app, b'{"instances": ["z"]}')
            assert (status, json.loads(said)["predictions"][0]["output_text"]) == (200, "z")
            assert echo.steps <= steps + 3
            assert app.state.metrics.active == 0
            assert b'pipestill_requests_total{status="499"} 2.0' in app.state.metrics.text()

    asyncio.run(go())


def test_the_health_is_red_while_a_call_hangs_and_green_again_after():
    with echo_client(Held(5), stall_s=0.15, timeout_s=5) as (client, echo):
        asked = threading.Thread(target=client.post, args=("/predict",), kwargs={"content": LONG})
        asked.start()
        until(lambda: client.get("/health").status_code == 503)
        assert "the model hangs: no token for" in client.get("/health").json()["error"]
        refused = client.post("/predict", json={"instances": ["a"]})
        assert refused.status_code == 503
        assert figures(client)["pipestill_model_ready"] == 0
        echo.go.set()
        until(lambda: client.get("/health").status_code == 200)
        asked.join(5)
        assert client.post("/predict", json={"instances": ["a"]}).status_code == 200


def test_a_broken_model_that_works_again_turns_the_health_green():
    with echo_client() as (client, echo):
        echo.broken = True
        assert client.post("/predict", json={"instances": ["a"]}).status_code == 503
        until(lambda: "no longer answers" in client.get("/health").text)
        assert client.post("/predict", json={"instances": ["a"]}).status_code == 503
        echo.broken = False
        until(lambda: client.get("/health").status_code == 200)
        assert client.post("/predict", json={"instances": ["a"]}).status_code == 200


def test_tokens_of_a_request_and_of_a_call_are_limited():
    limits = {"max_request_tokens": 60, "max_batch_tokens": 30, "max_output_tokens": 10}
    with echo_client(**limits) as (client, echo):
        many = client.post("/predict", json={"instances": ["abcdef"] * 4})
        assert many.status_code == 400
        said = "instances: 64 tokens with the answers, at most 60 are allowed"
        assert many.json()["error"] == said
        texts = ["abcdef", "a", "ab"]
        found = client.post("/predict", json={"instances": texts}).json()["predictions"]
        assert [answer["output_text"] for answer in found] == texts
        assert echo.calls == [["abcdef"], ["ab", "a"]]  # 16 and 2 x 12 tokens, not 3 x 16
