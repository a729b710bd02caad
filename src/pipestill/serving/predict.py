"""One prediction request, from its body to its answer: whole or as a stream, or why there is none.

A request has a time; when it is over, or when the client goes away, the engine drops the work.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, Response

from pipestill.serving.body import Parameters, PredictionRequest, parse, read_body
from pipestill.serving.engine import Engine
from pipestill.serving.jobs import (
    Answer,
    InputRefusedError,
    InputTooLongError,
    NotReadyError,
    QueueFullError,
    RequestTooLargeError,
)
from pipestill.serving.metrics import GONE, Metrics
from pipestill.serving.request_log import RequestLog
from pipestill.serving.settings import Settings
from pipestill.serving.stream import MEDIA_TYPE, EventStream, Pipe, event

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Predictor:
    """Answers prediction requests."""

    engine: Engine
    settings: Settings
    metrics: Metrics
    log: RequestLog | None

    async def respond(self, request: Request) -> Response:
        """The response to one request.

        Raises:
            HTTPException: 400, 408, 413, 429, 503 or 504, with one sentence.
        """
        begun = time.monotonic()
        if (problem := self.engine.problem) is not None:
            raise HTTPException(503, problem)  # before the body is read, which may be large
        asked = parse(await self._body(request), self.settings)
        try:
            if _wants_stream(request, asked):
                return await self._stream(request, asked, begun)
            return await self._whole(request, asked, begun)
        except ClientGoneError:
            return Response(status_code=GONE)
        except Exception as error:
            raise self._explained(error, asked) from error

    async def _body(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await read_body(request, self.settings.max_body_bytes)
        except TimeoutError as error:
            limit = self.settings.timeout_s
            raise HTTPException(408, f"the body did not come within {limit:g} s") from error

    async def _whole(self, request: Request, asked: PredictionRequest, begun: float) -> Response:
        future = self._submit(asked)
        try:
            answers = await self._unless_gone(request, asyncio.wrap_future(future), begun)
        finally:
            future.cancel()
        await self._note(asked, answers)
        return JSONResponse({"predictions": answers})

    async def _stream(self, request: Request, asked: PredictionRequest, begun: float) -> Response:
        """The status is decided by the first piece; what fails before it is an ordinary error."""
        if len(asked.instances) != 1:
            raise HTTPException(400, f"instances: {len(asked.instances)} given, a stream takes one")
        pipe = Pipe()
        future = self._submit(asked, pipe)
        try:
            first = await self._unless_gone(request, asyncio.ensure_future(pipe.next()), begun)
            if first is None:
                future.result()  # raises where there is no answer
            self.metrics.on_first_text(time.monotonic() - begun)
        except BaseException:
            future.cancel()
            raise
        return EventStream(self._events(asked, pipe, first, future, begun), future.cancel)

    async def _events(
        self,
        asked: PredictionRequest,
        pipe: Pipe,
        piece: str | None,
        future: Future[list[Answer]],
        begun: float,
    ) -> AsyncIterator[bytes]:
        try:
            while piece is not None:
                yield event({"text": piece})
                piece = await asyncio.wait_for(pipe.next(), self._left(begun))
            answers = future.result()
            await self._note(asked, answers)
            yield event({"predictions": answers}, "done")
        except Exception as error:  # the status has been sent, so the reason follows it
            yield event({"error": self._explained(error, asked).detail}, "error")

    def _submit(self, asked: PredictionRequest, pipe: Pipe | None = None) -> Future[list[Answer]]:
        wanted = asked.parameters or Parameters()
        future = self.engine.submit(
            [instance.text() for instance in asked.instances],
            max_output_tokens=wanted.max_output_tokens or self.settings.max_output_tokens,
            explain=wanted.explain,
            on_text=pipe.add if pipe else None,
        )
        if pipe:
            pipe.follow(future)
        return future

    async def _unless_gone(
        self, request: Request, wanted: "asyncio.Future[Result]", begun: float
    ) -> Result:
        """What is waited for, as long as there is time and somebody to give it to.

        Raises:
            ClientGoneError, TimeoutError: there is not.
        """
        gone = asyncio.ensure_future(_disconnect(request))
        both: set[asyncio.Future[Any]] = {wanted, gone}
        try:
            await asyncio.wait(both, timeout=self._left(begun), return_when="FIRST_COMPLETED")
            if wanted.done():
                return wanted.result()
            raise ClientGoneError if gone.done() else TimeoutError
        finally:
            gone.cancel()
            wanted.cancel()

    def _left(self, begun: float) -> float:
        return max(0.0, begun + self.settings.timeout_s - time.monotonic())

    async def _note(self, asked: PredictionRequest, answers: list[Answer]) -> None:
        self.metrics.on_answers(answers)
        if self.log is not None:
            await asyncio.to_thread(self.log.add, asked.instances, answers)

    def _explained(self, error: Exception, asked: PredictionRequest) -> HTTPException:
        """What an error is to the client: a status and a sentence."""
        match error:
            case HTTPException():
                return error
            case InputTooLongError(index=index, limit=limit):
                field = f"instances[{index}].{asked.instances[index].field}"
                return HTTPException(
                    400, f"{field}: longer than {limit} tokens, which is what the model reads"
                )
            case InputRefusedError(index=index):
                return HTTPException(400, f"instances[{index}].messages: {error}")
            case RequestTooLargeError():
                return HTTPException(400, f"instances: {error}")
            case QueueFullError():
                return HTTPException(429, f"busy: {error}", {"Retry-After": "1"})
            case NotReadyError():
                return HTTPException(503, str(error))
            case TimeoutError():
                return HTTPException(504, f"no answer within {self.settings.timeout_s:g} s")
        return HTTPException(500, f"the server failed ({type(error).__name__})")


def _wants_stream(request: Request, asked: PredictionRequest) -> bool:
    wanted = asked.parameters.stream if asked.parameters else None
    return MEDIA_TYPE in request.headers.get("accept", "") if wanted is None else wanted


async def _disconnect(request: Request) -> None:
    """Returns when the client has gone away; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
