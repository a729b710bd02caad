"""How a server is set up: Vertex AI's variables for custom containers, and our own limits.

Contract: Vertex AI, "Custom container requirements for prediction". Vertex sets ``AIP_HTTP_PORT``,
``AIP_HEALTH_ROUTE``, ``AIP_PREDICT_ROUTE`` and ``AIP_STORAGE_URI``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipestill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the server listens and what it accepts."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0 = any free one
    health_route: str = "/health"
    predict_route: str = "/predict"
    max_batch: int = 32  # instances of several requests that share one generate call
    max_wait_ms: int = 5  # how long a request waits for company
    max_queue: int = 64  # requests that wait; more are answered with 429
    max_instances: int = 128  # of one request
    max_body_bytes: int = 1_500_000  # Vertex's own limit, 1.5 MB
    max_output_tokens: int = 256  # where a request names none; the student's own limit holds too
    log_requests: str = ""  # folder of the request log; "" = none
    log_share: float = 1.0  # of the inputs with consent


def settings_from(
    environment: Mapping[str, str],
    *,
    host: str | None = None,
    port: int | None = None,
    max_batch: int | None = None,
    log_requests: str = "",
    log_share: float = 1.0,
) -> Settings:
    """Settings from Vertex's variables; arguments that are given win over them.

    Without a host the server is reachable from this computer alone, except where Vertex starts it
    (``AIP_HTTP_PORT`` is set), which needs all interfaces.

    Raises:
        UserError: ``SERVE_PORT``, ``SERVE_ROUTE`` or ``SERVE_BATCH``.
    """
    default_host = "0.0.0.0" if "AIP_HTTP_PORT" in environment else "127.0.0.1"  # noqa: S104
    routes = [
        environment.get(name) or fallback
        for name, fallback in (("AIP_HEALTH_ROUTE", "/health"), ("AIP_PREDICT_ROUTE", "/predict"))
    ]
    for name, route in zip(("AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"), routes, strict=True):
        if not route.startswith("/") or any(sign in route for sign in "{}?# "):
            raise UserError(
                "SERVE_ROUTE", f"{name}: found {route!r}, allowed: a path such as /predict"
            )
    if routes[0] == routes[1]:
        raise UserError("SERVE_ROUTE", f"health and predict route are both {routes[0]!r}")
    if max_batch is not None and max_batch < 1:
        raise UserError("SERVE_BATCH", f"max_batch: found {max_batch}, allowed: 1 or more")
    return Settings(
        host=host or default_host,
        port=_port(environment) if port is None else _checked_port("--port", port),
        health_route=routes[0],
        predict_route=routes[1],
        max_batch=max_batch or Settings.max_batch,
        log_requests=log_requests,
        log_share=log_share,
    )


def _port(environment: Mapping[str, str]) -> int:
    text = environment.get("AIP_HTTP_PORT") or str(Settings.port)
    if not text.isdecimal():
        raise UserError("SERVE_PORT", f"AIP_HTTP_PORT: found {text!r}, allowed: 0 to 65535")
    return _checked_port("AIP_HTTP_PORT", int(text))


def _checked_port(name: str, port: int) -> int:
    if not 0 <= port <= 65535:
        raise UserError("SERVE_PORT", f"{name}: found {port}, allowed: 0 to 65535")
    return port
