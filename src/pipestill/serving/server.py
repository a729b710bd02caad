"""Runs the prediction server: finds the model, listens, and ends cleanly on SIGTERM."""

import gc
import json
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipestill.errors import PipestillError, UserError, WorkError
from pipestill.serving.engine import Answerer, Engine
from pipestill.serving.files import is_model_file
from pipestill.serving.request_log import LogSettings, RequestLog
from pipestill.serving.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI


def serve(model: str, settings: Settings) -> None:
    """Serves `model` until SIGTERM or Ctrl-C; requests that are here then are answered first.

    From the signal on, the health is red and new requests get 503. A second signal ends at once.

    Args:
        model: a student's folder, a pocket model, a hub name, or a ``gs://`` folder.
        settings: where to listen and what to accept.

    Raises:
        UserError: ``SERVE_ADDRESS`` where the port is taken; ``SERVE_STORAGE``; as
            `pipestill.models.student.Student.load`.
        WorkError: ``SERVE_MODEL`` where the model loads and cannot answer.
    """
    from pipestill.serving.app import create_app

    with _clean_end(), local_copy(model) as folder, _listen(settings) as listener:
        port = listener.getsockname()[1]
        engine = Engine(
            lambda: load_student(folder),
            max_batch=settings.max_batch,
            max_wait_ms=settings.max_wait_ms,
            max_queue=settings.max_queue,
            max_batch_tokens=settings.max_batch_tokens,
            max_request_tokens=settings.max_request_tokens,
            stall_s=settings.stall_s,
            on_ready=lambda: announce(settings, port),
            on_failure=lambda: setattr(server, "should_exit", True),
        )
        app = create_app(engine, settings, request_log(settings, model))
        server = draining_server(app, engine, settings.drain_s)
        print(f"loading {model} on {settings.host}:{port}", flush=True)
        server.run(sockets=[listener])
        if engine.failure is not None:
            raise _as_pipestill_error(model, engine.failure)


def draining_server(app: "FastAPI", engine: Engine, drain_s: float) -> "uvicorn.Server":
    """A uvicorn server that goes on listening while the requests that it has are answered.

    The first signal begins the end: the engine takes nothing more, so the application answers 503,
    and uvicorn's own end follows when no request is left or `drain_s` seconds are over; what is
    left then gets 503 too. uvicorn alone would close the port first, and a client could not tell a
    server that ends from one that is broken.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit or engine.draining or engine.failure is not None:
                super().handle_exit(sig, frame)
                return
            self._captured_signals.append(sig)  # raised again by uvicorn when it has ended
            engine.drain()
            threading.Thread(target=self.drain, name="pipestill-drain", daemon=True).start()

        def drain(self) -> None:
            end = time.monotonic() + drain_s
            while app.state.metrics.active and time.monotonic() < end:
                time.sleep(0.02)
            engine.abandon()
            self.should_exit = True

    return Server(
        uvicorn.Config(app, log_level="info", timeout_graceful_shutdown=5, access_log=False)
    )


@contextmanager
def _clean_end() -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C end in a return, so that the exit code is 0 and copies are removed.

    uvicorn stops on the first signal and then raises it again for whoever was there before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def request_log(settings: Settings, model: str) -> RequestLog | None:
    """The log that the settings ask for.

    Raises:
        UserError: ``SERVE_LOG``.
    """
    if not settings.log_requests:
        return None
    kept = LogSettings(folder=settings.log_requests, share=settings.log_share)
    return RequestLog(kept, model.rstrip("/").rpartition("/")[2])


def load_student(folder: str) -> Answerer:
    """The student to serve; imported here because torch takes seconds."""
    from pipestill.models.student import Student

    return Student.load(folder)


def announce(settings: Settings, port: int) -> None:
    """Says that the model answers, and lets Python's garbage collector look at it no more.

    A full collection over all that torch and the model hold stopped every request for 0.2 s.
    """
    gc.collect()
    gc.freeze()
    print(curl_line(settings, port), flush=True)


def curl_line(settings: Settings, port: int) -> str:
    """A command that tries the server."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    body = json.dumps({"instances": ["your text"]})
    return (
        f"ready; try it:\n  curl -s http://{host}:{port}"
        f"{settings.predict_route} -H 'Content-Type: application/json' -d '{body}'"
    )


@contextmanager
def local_copy(model: str) -> Iterator[str]:
    """`model` itself, or, for an address such as ``gs://…``, a temporary copy of its folder.

    Raises:
        UserError: ``SERVE_STORAGE`` naming what could not be read; of ``gs://…`` as
            `pipestill.cloud.storage.download_folder`.
    """
    if "://" not in model:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="pipestill-model-") as folder:
        if model.startswith("gs://"):
            from pipestill.cloud.storage import download_folder

            yield str(download_folder(model, is_model_file, Path(folder)))
        else:
            _download(model, Path(folder))
            yield folder


def _download(uri: str, folder: Path) -> None:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(uri)
        names = [path for path in system.ls(root, detail=False) if is_model_file(path)]
        for name in names:
            system.get_file(name, str(folder / name.rstrip("/").rpartition("/")[2]))
    except Exception as error:  # each storage has its own exceptions
        raise UserError(
            "SERVE_STORAGE",
            f"{uri}: cannot be read ({type(error).__name__}: {str(error)[:200]})",
            "check the address and the permissions",
        ) from error
    if not names:
        raise UserError("SERVE_STORAGE", f"{uri}: holds no model file", "give a model's folder")


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
        # Connections inherit it. asyncio sets it only on sockets that name their protocol, and
        # without it every answer waits 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise UserError(
            "SERVE_ADDRESS",
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror or error})",
            "choose another --port or --host",
        ) from error


def _as_pipestill_error(model: str, error: Exception) -> PipestillError:
    if isinstance(error, PipestillError):
        return error
    return WorkError(
        "SERVE_MODEL",
        f"{model}: the model cannot answer ({type(error).__name__}: {str(error)[:200]})",
        "check the folder with: pipestill models FOLDER",
    )
