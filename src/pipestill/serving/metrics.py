"""Figures of a server for Prometheus, and the layer that counts its requests.

Nothing of a request gets into them but its status, its time, and how many tokens it had.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipestill.serving.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GONE = 499  # the client went away; nobody is sent this status
TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self.active = 0  # prediction requests that are not answered to the last byte
        self._requests = Counter(
            "pipestill_requests", "Prediction requests by HTTP status; 499: the client went away.",
            ["status"], registry=registry,
        )  # fmt: skip
        self._seconds = _histogram(registry, "request_seconds", "Time of a prediction request.")
        self._first = _histogram(registry, "first_text_seconds", "Time to a stream's first text.")
        self._steps = _histogram(
            registry, "step_seconds", "Time of a step, a token of each.", STEPS
        )
        self._rows = _histogram(registry, "batch_rows", "Prompts answered together, a step.", ROWS)
        self._prompt = _counter(registry, "prompt_tokens", "Tokens read for answers.")
        self._output = _counter(registry, "output_tokens", "Tokens written in answers.")
        _gauge(registry, "queue_depth", "Requests that wait.", lambda: engine.waiting)
        _gauge(registry, "requests_in_flight", "Requests under way.", lambda: self.active)
        _gauge(registry, "model_ready", "1 while the health is green.", lambda: not engine.problem)
        engine.on_step = self.on_step

    def on_step(self, rows: int, seconds: float) -> None:
        """Counts one step: so many prompts got a token each."""
        self._rows.observe(rows)
        self._steps.observe(seconds)

    def on_answers(self, answers: Sequence[dict[str, Any]]) -> None:
        """Counts the tokens of a request that was answered."""
        self._prompt.inc(sum(answer["prompt_tokens"] for answer in answers))
        self._output.inc(sum(answer["output_tokens"] for answer in answers))

    def on_first_text(self, seconds: float) -> None:
        """Notes when a stream's text began to come."""
        self._first.observe(seconds)

    def on_request(self, status: int, seconds: float) -> None:
        """Counts one request that has ended."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """All figures as Prometheus reads them."""
        return generate_latest(self.registry)


class Counted:
    """Counts the requests of one path, up to the last byte of the answer."""

    def __init__(self, app: ASGIApp, *, path: str, metrics: Metrics) -> None:
        self._app, self._path, self._metrics = app, path, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        begun, status, ended, gone = time.monotonic(), 500, False, False

        async def noting(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        async def hearing() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not ended)
            return message

        self._metrics.active += 1
        try:
            await self._app(scope, hearing, noting)
        finally:
            self._metrics.active -= 1
            self._metrics.on_request(GONE if gone else status, time.monotonic() - begun)


def _histogram(
    registry: CollectorRegistry, name: str, says: str, buckets: Sequence[float] = SECONDS
) -> Histogram:
    return Histogram(f"pipestill_{name}", says, registry=registry, buckets=buckets)


def _counter(registry: CollectorRegistry, name: str, says: str) -> Counter:
    return Counter(f"pipestill_{name}", says, registry=registry)


def _gauge(registry: CollectorRegistry, name: str, says: str, of: Callable[[], float]) -> None:
    Gauge(f"pipestill_{name}", says, registry=registry).set_function(lambda: float(of()))
