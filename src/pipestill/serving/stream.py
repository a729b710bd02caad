"""Answers as server-sent events: ``data: {"text": "…"}`` for each piece, then the whole answer.

The texts joined are the ``output_text`` of the last event, byte for byte. That event is named
``done`` and holds what the same request gets without streaming; a failure in the middle is an event
named ``error``, with ``{"error": "…"}``.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pipestill.serving.jobs import Answer

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may hold it back


class Pipe:
    """The pieces of one answer on their way from the worker's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def add(self, piece: str | None) -> None:
        """Takes a piece, from any thread; None is the end."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def follow(self, future: Future[list[Answer]]) -> None:
        """Ends when `future` is done, in whatever way."""
        future.add_done_callback(lambda _: self.add(None))

    async def next(self) -> str | None:
        """The next piece; None after the last one."""
        return await self._pieces.get()


class EventStream(StreamingResponse):
    """A response of events; `drop` is called when it ends, also when its reader went away."""

    def __init__(self, events: AsyncIterator[bytes], drop: Callable[[], Any]) -> None:
        super().__init__(events, media_type=MEDIA_TYPE, headers=HEADERS)
        self._drop = drop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._drop()


def event(content: dict[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
