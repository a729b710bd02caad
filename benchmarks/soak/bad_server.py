"""An OpenAI-compatible server that misbehaves: ``-m benchmarks.soak.bad_server PORT LOG SEED``.

What it does with a request follows from the seed, the row and how often the row has been asked, so
a run can be repeated. Every request becomes a line of LOG before the answer leaves, so that calls
stay counted where the server itself is killed. Rows are known by the ``row:NAME:`` in the prompt.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROW = re.compile(r"row:([A-Za-z0-9_-]+):")
HUGE = 48 << 20
HANG_S = 2.5  # longer than the time-out that the clients of the suite have
# Nothing of these is an answer: nothing is paid, nothing arrives.
UNPAID = ("429", "429 with a wait", "429 with a date", "429 with nonsense", "500", "502", "503",
          "529", "408", "409", "cut before", "html", "not json", "empty", "empty choices",
          "no choices", "null choices", "wrong types", "text is a list", "choice is a word",
          "array", "bare string", "deep", "null", "huge", "wrong length", "drips for ever",
          "never ends")  # fmt: skip
# Of these the server gave an answer that the client could not get: paid once more, honestly.
LOST = ("hang", "cut within", "too late")
# An answer that arrives, in an odd way.
ODD = ("twice", "slow", "no usage", "odd usage", "extra fields")


class State:
    """What the handlers share."""

    def __init__(self, log: Path, seed: str, trouble: float, kinds: tuple[str, ...]) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.seed, self.trouble, self.kinds = seed, trouble, kinds
        self.lock, self.asked = threading.Lock(), Counter[str]()

    def note(self, **facts: Any) -> None:
        """One line of the log, in one write."""
        line = json.dumps({"at": time.time_ns(), **facts}) + "\n"
        os.write(self.log, line.encode())

    def action(self, row: str) -> str:
        """What happens to this request; the fifth time a row is asked it gets its answer."""
        with self.lock:
            self.asked[row] += 1
            turn = self.asked[row]
        dice = random.Random(f"{self.seed}:{row}:{turn}")  # noqa: S311
        if turn >= 5 or dice.random() >= self.trouble:
            return "answer"
        return dice.choice(self.kinds)


def completion(body: dict[str, Any], row: str) -> dict[str, Any]:
    """A right answer, which names its row."""
    text = f"It is about {row}. So the answer is {row}."
    chat = "messages" in body
    inner = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", **inner}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27},
    }  # fmt: skip


def garbage(action: str, good: dict[str, Any]) -> bytes:
    """The body of an answer that is none."""
    choice = good["choices"][0]
    bodies: dict[str, Any] = {
        "html": b"<html><body>Bad gateway</body></html>",
        "not json": b'{"choices": [{"message": {"content": "yes"',
        "empty": b"",
        "empty choices": {**good, "choices": []},
        "no choices": {"object": "error", "message": "busy"},
        "null choices": {**good, "choices": None},
        "wrong types": {**good, "choices": [{**choice, "message": "yes"}]},
        "text is a list": {**good, "choices": [{**choice, "message": {"content": [1]}}]},
        "choice is a word": {**good, "choices": ["yes"]},
        "array": [good],
        "bare string": '"yes"',
        "null": b"null",
        "deep": b"[" * 200_000,
        "huge": b" " * HUGE,
    }
    found = bodies[action]
    return found if isinstance(found, bytes) else json.dumps(found).encode()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        """Answers, or does not."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        row = (ROW.findall(prompt) or ["none"])[-1]
        action = self.state.action(row)
        paid = action not in UNPAID
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.state.note(row=row, action=action, paid=paid, key=key,
                        prompt=prompt if row.startswith("odd") else "")  # fmt: skip
        with contextlib.suppress(OSError):  # the client has gone
            self._act(action, completion(body, row))

    def _act(self, action: str, good: dict[str, Any]) -> None:
        if action[:3].isdigit():
            waits = {"429": "0.02", "429 with a wait": "1",
                     "429 with a date": "Wed, 21 Oct 2015 07:28:00 GMT",
                     "429 with nonsense": "-5 soon"}  # fmt: skip
            headers = {"Retry-After": waits[action]} if action in waits else {}
            return self._send(int(action[:3]), b'{"error": {"message": "busy"}}', headers)
        if action in ("hang", "too late"):
            time.sleep(HANG_S)
        data = json.dumps(good).encode()
        if action in ("cut before", "cut within"):
            return self._cut(data if action == "cut within" else b"")
        if action == "wrong length":
            return self._send(200, data[:20], {"Content-Length": str(len(data))}, close=True)
        if action in ("drips for ever", "never ends"):
            return self._endless(action)
        if action in ODD:
            return self._odd(action, good, data)
        if action in UNPAID:
            return self._send(200, garbage(action, good))
        return self._send(200, data)

    def _odd(self, action: str, good: dict[str, Any], data: bytes) -> None:
        if action == "twice":  # the whole response, head and body, two times in one piece
            head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            self.wfile.write((head % len(data) + data) * 2)
            return
        if action == "slow":
            self._head(200, {"Content-Length": str(len(data))})
            for at in range(0, len(data), 40):
                self.wfile.write(data[at : at + 40])
                self.wfile.flush()
                time.sleep(0.02)
            return
        changes = {"no usage": {"usage": None}, "odd usage": {"usage": {"prompt_tokens": "many"}},
                   "extra fields": {"choices": good["choices"] * 3, "x": [None]}}  # fmt: skip
        self._send(200, json.dumps({**good, **changes[action]}).encode())

    def _endless(self, action: str) -> None:
        self._head(200, {"Content-Length": str(1 << 40)})
        while True:
            self.wfile.write(b" " if action == "drips for ever" else b" " * (1 << 20))
            time.sleep(0.05 if action == "drips for ever" else 0)

    def _cut(self, data: bytes) -> None:
        if data:
            self._head(200, {"Content-Length": str(len(data))})
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True
        self.connection.close()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *,
              close: bool = False) -> None:  # fmt: skip
        self._head(status, {"Content-Length": str(len(data)), **(headers or {})})
        self.wfile.write(data)
        if close:
            self.wfile.flush()
            self.close_connection = True


class Server(ThreadingHTTPServer):
    """Quiet about clients that go away; takes a port over from one that was killed."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        pass


def main(arguments: list[str]) -> None:
    """PORT LOG SEED [share of trouble] [kinds, by comma]."""
    port, log, seed = int(arguments[0]), Path(arguments[1]), arguments[2]
    trouble = float(arguments[3]) if len(arguments) > 3 else 0.0
    given = arguments[4] if len(arguments) > 4 else ""
    kinds = tuple(given.split(",")) if given else (*UNPAID, *LOST, *ODD)
    Handler.state = State(log, seed, trouble, kinds)
    Server(("127.0.0.1", port), Handler).serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
