"""The web application: Vertex AI's prediction contract over an `Engine`.

``POST`` predict route: ``{"instances": ["…"], "parameters": {…}}`` → ``{"predictions":
[{"output_text": "…", …}]}``; an instance is a text, ``{"input_text": "…"}`` or, for a chat model,
``{"messages": [{"role": "user", "content": "…"}, …]}``. With ``"stream": true`` among the
parameters the answer comes as server-sent events. ``GET`` health route: 200 while the model
answers, else 503. ``GET`` metrics route: figures for Prometheus. Every error is ``{"error": "…"}``
in one sentence.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from pipestill.serving.engine import Engine
from pipestill.serving.metrics import TYPE, Counted, Metrics
from pipestill.serving.predict import Predictor
from pipestill.serving.request_log import RequestLog
from pipestill.serving.settings import Settings

SENTENCE = 300  # characters of an error at most: names of fields come from the client


def create_app(engine: Engine, settings: Settings, log: RequestLog | None = None) -> FastAPI:
    """The application; the engine starts and stops with it, and the request log is closed.

    ``app.state.metrics`` is its `Metrics`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop, 5.0)  # all requests have ended, or were given up
        if log is not None:
            log.close()

    async def say(_: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        headers = dict(error.headers or {})
        if engine.draining:
            headers["Connection"] = "close"
        return JSONResponse({"error": _tidy(str(error.detail))}, error.status_code, headers)

    async def fail(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"the server failed ({type(error).__name__})"}, 500)

    async def health(_: Request) -> Response:
        if (problem := engine.problem) is not None:
            raise HTTPException(503, problem)
        return JSONResponse({"status": "ok"})

    async def figures(_: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": TYPE})

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    metrics = app.state.metrics = Metrics(engine)
    predictor = Predictor(engine, settings, metrics, log)
    app.add_middleware(Counted, path=settings.predict_route, metrics=metrics)
    app.add_exception_handler(StarletteHTTPException, say)
    app.add_exception_handler(Exception, fail)
    app.add_route(settings.health_route, health, methods=["GET"])
    app.add_route(settings.metrics_route, figures, methods=["GET"])
    app.add_route(settings.predict_route, predictor.respond, methods=["POST"])
    return app


def _tidy(sentence: str) -> str:
    """One line that can be printed, and not a long one, whatever the client wrote into it."""
    line = "".join(sign if sign.isprintable() else " " for sign in sentence[: SENTENCE + 1])
    return line if len(line) <= SENTENCE else f"{line[:SENTENCE]}…"
