"""How a server is set up: Vertex AI's variables for custom containers, and our own limits.

Contract: Vertex AI, "Custom container requirements for prediction". Vertex sets ``AIP_HTTP_PORT``,
``AIP_HEALTH_ROUTE``, ``AIP_PREDICT_ROUTE`` and ``AIP_STORAGE_URI``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pipestill.errors import UserError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the server listens and what it accepts."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0 = any free one
    health_route: str = "/health"
    predict_route: str = "/predict"
    metrics_route: str = "/metrics"
    max_batch: int = 32  # prompts that are answered at once
    max_batch_tokens: int = 65_536  # of those, padding and answers included
    max_wait_ms: int = 10  # how long a request waits for company, where it can be expected
    max_queue: int = 64  # requests that wait; more are answered with 429
    max_instances: int = 128  # of one request
    max_body_bytes: int = 1_500_000  # Vertex's own limit, 1.5 MB
    max_request_tokens: int = 200_000  # of one request, answers included
    max_output_tokens: int = 256  # where a request names none; the student's own limit holds too
    timeout_s: float = 60.0  # of one request, from its first byte to its last
    stall_s: float = 60.0  # without a new token, until the health turns red
    drain_s: float = 25.0  # for the requests that are here when the end is asked for
    log_requests: str = ""  # folder of the request log; "" = none
    log_share: float = 1.0  # of the inputs with consent


def settings_from(
    environment: Mapping[str, str],
    *,
    host: str | None = None,
    port: int | None = None,
    max_batch: int | None = None,
    max_queue: int | None = None,
    timeout_s: float | None = None,
    drain_s: float | None = None,
    log_requests: str = "",
    log_share: float = 1.0,
) -> Settings:
    """Settings from Vertex's variables; arguments that are given win over them.

    Without a host the server is reachable from this computer alone, except where Vertex starts it
    (``AIP_HTTP_PORT`` is set), which needs all interfaces.

    Raises:
        UserError: ``SERVE_PORT``, ``SERVE_ROUTE``, ``SERVE_BATCH``, ``SERVE_QUEUE``,
            ``SERVE_TIMEOUT`` or ``SERVE_DRAIN``.
    """
    default_host = "0.0.0.0" if "AIP_HTTP_PORT" in environment else "127.0.0.1"  # noqa: S104
    health, predict = _routes(environment)
    return Settings(
        host=host or default_host,
        port=_port(environment) if port is None else _checked_port("--port", port),
        health_route=health,
        predict_route=predict,
        max_batch=_at_least(1, "max_batch", max_batch, Settings.max_batch),
        max_queue=_at_least(1, "max_queue", max_queue, Settings.max_queue),
        timeout_s=_at_least(0.001, "timeout", timeout_s, Settings.timeout_s),
        drain_s=_at_least(0, "drain", drain_s, Settings.drain_s),
        log_requests=log_requests,
        log_share=log_share,
    )


def _routes(environment: Mapping[str, str]) -> tuple[str, str]:
    names = ("AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE")
    defaults = (Settings.health_route, Settings.predict_route)
    health, predict = (environment.get(n) or d for n, d in zip(names, defaults, strict=True))
    for name, route in zip(names, (health, predict), strict=True):
        if not route.startswith("/") or any(sign in route for sign in "{}?# "):
            raise UserError(
                "SERVE_ROUTE", f"{name}: found {route!r}, allowed: a path such as /predict"
            )
        if route == Settings.metrics_route:
            raise UserError("SERVE_ROUTE", f"{name}: {route!r} is the path of the metrics")
    if health == predict:
        raise UserError("SERVE_ROUTE", f"health and predict route are both {health!r}")
    return health, predict


def _at_least(low: Number, name: str, value: Number | None, default: Number) -> Number:
    if value is None:
        return default
    if not low <= value < float("inf"):
        allowed = "more than 0" if 0 < low < 1 else f"{low} or more"
        raise UserError(
            f"SERVE_{name.removeprefix('max_').upper()}",
            f"{name}: found {value}, allowed: {allowed}",
        )
    return value


def _port(environment: Mapping[str, str]) -> int:
    text = environment.get("AIP_HTTP_PORT") or str(Settings.port)
    if not text.isdecimal():
        raise UserError("SERVE_PORT", f"AIP_HTTP_PORT: found {text!r}, allowed: 0 to 65535")
    return _checked_port("AIP_HTTP_PORT", int(text))


def _checked_port(name: str, port: int) -> int:
    if not 0 <= port <= 65535:
        raise UserError("SERVE_PORT", f"{name}: found {port}, allowed: 0 to 65535")
    return port
