"""Servers for the tests: an application called directly, and a process on a loopback port."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys

from fastapi.testclient import TestClient

from pipestill.serving.app import create_app
from pipestill.serving.engine import Engine
from pipestill.serving.settings import Settings
from tests.serving.test_app import wait_until_healthy
from tests.serving.test_engine import Echo


def echo_app(echo=None, **changes):
    """An application over the model that repeats what it is told; (app, engine, echo)."""
    echo = echo or Echo()
    settings = Settings(**changes)
    engine = Engine(
        lambda: echo,
        max_batch=settings.max_batch,
        max_wait_ms=settings.max_wait_ms,
        max_queue=settings.max_queue,
        max_batch_tokens=settings.max_batch_tokens,
        max_request_tokens=settings.max_request_tokens,
        stall_s=settings.stall_s,
        retry_s=0.02,
        generate=lambda model, *call: model.generate(*call),
        flow=lambda model: model.flow() if hasattr(model, "flow") else None,
    )
    return create_app(engine, settings), engine, echo


@contextlib.contextmanager
def echo_client(echo=None, **changes):
    """A client of `echo_app` and the echo."""
    app, engine, echo = echo_app(echo, **changes)
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_healthy(client)
        client.engine = engine
        yield client, echo
        echo.gate.set()
        echo.step_gate.set()


async def call(app, body, *, method="POST", path="/predict", headers=(), gone=None):
    """One request straight into the application; (status, headers, body).

    `gone` is an event that, once set, tells the application that the client went away.
    """
    pieces, sent = [], []
    never = gone or asyncio.Event()

    async def receive():
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": body, "more_body": False}
        await never.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pieces.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "scheme": "http", "headers": list(headers), "state": {},
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    await app(scope, receive, send)
    said = b"".join(piece.get("body", b"") for piece in pieces)
    return pieces[0]["status"], dict(pieces[0]["headers"]), said


def figures(client):
    """The metrics of a server, by name with labels."""
    lines = client.get("/metrics").text.splitlines()
    return {k: float(v) for k, v in (n.rsplit(" ", 1) for n in lines if not n.startswith("#"))}


def events(text):
    """Server-sent events: (name, content)."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found


RUN = """
import sys, threading, time
from pipestill.serving import server
from pipestill.serving.settings import Settings
import pipestill.serving.engine as engine_module
from tests.serving.test_engine import Echo

class Slow(Echo):
    def generate(self, prompts, limit, watch):
        def slow(tokens):
            time.sleep(float(sys.argv[1]))
            return watch(tokens)
        super().generate(prompts, limit, slow)

server.load_student = lambda folder: Slow()
default = engine_module.Engine.__init__.__kwdefaults__
default["generate"] = lambda model, *call: model.generate(*call)
default["flow"] = lambda model: None
server.serve("echo", Settings(port=0, drain_s=float(sys.argv[2]), max_batch=2, max_queue=4))
"""


@contextlib.contextmanager
def slow_server(step_s, drain_s):
    """A real server process whose model needs `step_s` for a letter; (process, address)."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(step_s), str(drain_s)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        address = re.search(r"http://127\.0\.0\.1:\d+", lines[2])
        assert address, (lines, process.stderr.read())
        yield process, address.group()
    finally:
        process.kill()
        process.communicate()
