"""A loopback Vertex AI that keeps state, so that whole stories can be played.

Routes come from the client library's own transport tables, and each request (path, query and body)
is parsed into the library's own message with unknown fields refused; `requests_checked` counts
them. A handler is a method named after the call: ``create_pipeline_job(request) -> message``.
"""

import importlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from google.cloud.aiplatform_v1 import types
from google.protobuf import descriptor, json_format

from tests.cloud.fake_bucket import FakeBucket
from tests.cloud.fake_jobs import Jobs
from tests.cloud.fake_metadata import Metadata
from tests.cloud.fake_serving import Serving

SERVICES = ("pipeline", "schedule", "model", "endpoint", "job", "metadata", "prediction")
STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    409: "ALREADY_EXISTS", 412: "FAILED_PRECONDITION", 429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}  # fmt: skip


class Refusal(Exception):
    """An HTTP error that the server answers."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        status = STATUS.get(self.code, "INTERNAL")
        return {"error": {"code": self.code, "message": self.message, "status": status}}


@dataclass(frozen=True)
class Route:
    """One call: its HTTP rule, the message of its request and where the body goes in it."""

    rpc: str
    method: str
    pattern: re.Pattern[str]
    variables: tuple[str, ...]
    body: str
    request: Any


@dataclass(frozen=True)
class Seen:
    """One request that was checked: the call, its path and its JSON body."""

    rpc: str
    path: str
    body: Any
    request: Any = field(repr=False)


def routes() -> list[Route]:
    """All calls of the services, from the client library's transport tables."""
    found = []
    for service in SERVICES:
        package = f"google.cloud.aiplatform_v1.services.{service}_service.transports.rest_base"
        base = getattr(
            importlib.import_module(package), f"_Base{service.capitalize()}ServiceRestTransport"
        )
        for name, call in vars(base).items():
            request = getattr(types, f"{name.removeprefix('_Base')}Request", None)
            if request is None or not hasattr(call, "_get_http_options"):
                continue
            rpc = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removeprefix("_Base")).lower()
            for rule in call._get_http_options():
                pattern, variables = _pattern(rule["uri"])
                found.append(
                    Route(rpc, rule["method"], pattern, variables, rule.get("body", ""), request)
                )
    return found


def _pattern(uri: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    variables: list[str] = []

    def group(match: re.Match[str]) -> str:
        variables.append(match.group(1))
        return "(" + match.group(2).replace("**", ".+").replace("*", "[^/:]+") + ")"

    text = re.sub(r"\{([\w.]+)=([^}]+)\}", group, uri)
    return re.compile(text), tuple(variables)


class FakeVertex(Jobs, Serving, Metadata):
    """The server. Use as a context manager; `url` is the client's endpoint.

    Attributes:
        requests: what was asked, in order.
        refusals: (call, text that must be in the path) → refusals, given one by one.
        quotas: what the quota service lists, as `QuotaInfo` in JSON.
        bucket: the Cloud Storage part, at the same address.
    """

    routes: ClassVar[list[Route]] = []

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Seen] = []
        self.refusals: dict[tuple[str, str], list[Refusal]] = {}
        self.quotas: list[dict[str, Any]] = []
        self.operations: dict[str, dict[str, Any]] = {}
        self.bucket = FakeBucket()
        self.lock = threading.RLock()
        type(self).routes = self.routes or routes()

    @property
    def requests_checked(self) -> int:
        """How many requests were parsed and checked, those of Cloud Storage included."""
        return len(self.requests) + len(self.bucket.requests)

    def calls(self) -> Counter[str]:
        """How often each call came."""
        return Counter(seen.rpc for seen in self.requests)

    def refuse(self, rpc: str, code: int, message: str, *, where: str = "", times: int = 1) -> None:
        """The next `times` calls whose path holds `where` are refused."""
        self.refusals.setdefault((rpc, where), []).extend([Refusal(code, message)] * times)

    def __enter__(self) -> "FakeVertex":
        self.server = serve(self._answer)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _answer(
        self, method: str, target: str, headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        with self.lock:
            try:
                if "/storage/v1/" in target or target.startswith("/download/"):
                    return self.bucket.answer(method, target, headers, body)
                return 200, {}, json.dumps(self._call(method, target, body)).encode()
            except Refusal as refusal:
                return refusal.code, {}, json.dumps(refusal.body()).encode()

    def _call(self, method: str, target: str, body: bytes) -> dict[str, Any]:
        parts = urlsplit(target)
        path = unquote(parts.path)
        if match := re.fullmatch(r"/v1/(.*/operations/[^/]+)", path):
            return self.operations[match.group(1)]
        if re.fullmatch(r"/v1/projects/[^/]+/locations/global/services/[^/]+/quotaInfos", path):
            return {"quotaInfos": self.quotas}
        for route in self.routes:
            match = route.pattern.fullmatch(path)
            if match and route.method == method.lower():
                request = self._checked(route, match, parts.query, body)
                self._maybe_refuse(route.rpc, path)
                handler = getattr(self, route.rpc, None)
                if handler is None:
                    raise Refusal(501, f"the fake has no {route.rpc}")
                return self._as_json(handler(request))
        raise Refusal(404, f"no such method: {method} {path}")

    def _checked(self, route: Route, match: re.Match[str], query: str, body: bytes) -> Any:
        given: dict[str, Any] = {}
        parsed = json.loads(body) if body else None
        if parsed is not None and not route.body:
            raise Refusal(400, f"{route.rpc} takes no body")
        if route.body == "*":
            given |= parsed or {}
        elif route.body:
            given[route.body] = parsed
        kind = route.request.pb(route.request()).DESCRIPTOR
        for key, values in parse_qs(query).items():
            if not key.startswith("$"):
                _put(given, key, values, kind)
        for name, value in zip(route.variables, match.groups(), strict=True):
            _put(given, name, [value], kind)
        message = route.request.pb(route.request())
        try:
            json_format.ParseDict(given, message, ignore_unknown_fields=False)
        except json_format.ParseError as error:
            raise Refusal(400, f"{route.rpc}: {error}") from error
        request = route.request.wrap(message)
        self.requests.append(Seen(route.rpc, match.group(0), parsed, request))
        return request

    def _maybe_refuse(self, rpc: str, path: str) -> None:
        for (name, where), waiting in self.refusals.items():
            if name == rpc and where in path and waiting:
                raise waiting.pop(0)

    def _as_json(self, answer: Any) -> dict[str, Any]:
        if answer is None:
            return {}
        if isinstance(answer, dict):
            return answer
        made: dict[str, Any] = json.loads(type(answer).to_json(answer))
        return made

    def done(self, parent: str, response: Any) -> dict[str, Any]:
        """A long-running operation that has ended with `response` (a message, or None)."""
        name = f"{parent}/operations/{len(self.operations) + 1}"
        kind = "google.protobuf.Empty"
        content: dict[str, Any] = {}
        if response is not None:
            kind = type(response).pb(response).DESCRIPTOR.full_name
            content = self._as_json(response)
        answer = {"@type": f"type.googleapis.com/{kind}", **content}
        self.operations[name] = {"name": name, "done": True, "response": answer}
        return self.operations[name]


def _put(given: dict[str, Any], dotted: str, values: list[str], kind: Any) -> None:
    """One path variable or query value into the nested request, typed as its field."""
    *folders, last = dotted.split(".")
    for folder in folders:
        kind = _field(kind, folder).message_type
        given = given.setdefault(folder, {})
    found = _field(kind, last)
    if found is None:
        raise Refusal(400, f"unknown query parameter {dotted}")
    boolean = found.type == descriptor.FieldDescriptor.TYPE_BOOL
    typed: list[Any] = [value == "true" if boolean else value for value in values]
    repeated = getattr(found, "is_repeated", None)
    repeated = found.label == found.LABEL_REPEATED if repeated is None else repeated
    given[last] = typed if repeated else typed[0]


def _field(kind: Any, name: str) -> Any:
    return kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)


Answer = Callable[[str, str, Any, bytes], tuple[int, dict[str, str], bytes]]


def serve(answer: Answer) -> ThreadingHTTPServer:
    """Starts a loopback HTTP server in a thread; every request goes to `answer`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, headers, content = answer(self.command, self.path, self.headers, body)
            self.send_response(code)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server
