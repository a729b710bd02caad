"""A loopback Cloud Quotas service: pages of quotas, checked requests, refusals on demand.

Answers are written by the client library's own messages, and each request's path and query must
be those of `ListQuotaInfos`.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.cloud.cloudquotas_v1 import types

SERVICE = "aiplatform.googleapis.com"
ALLOWED_QUERY = {"pageSize", "pageToken", "$alt"}


def quota(
    metric: str,
    display: str,
    limits: Mapping[str, int],
    *,
    everywhere: int | None = None,
    dimensions: Sequence[str] = ("region",),
) -> types.QuotaInfo:
    """One quota with its limits by region, and one for all other regions."""
    entries = [
        types.DimensionsInfo(
            dimensions={"region": region},
            details=types.QuotaDetails(value=value),
            applicable_locations=[region],
        )
        for region, value in limits.items()
    ]
    if everywhere is not None:
        entries.append(types.DimensionsInfo(details=types.QuotaDetails(value=everywhere)))
    return types.QuotaInfo(
        name=f"projects/1/locations/global/services/{SERVICE}/quotaInfos/{metric}",
        quota_id=metric,
        metric=f"{SERVICE}/{metric}",
        service=SERVICE,
        dimensions=list(dimensions),
        metric_display_name=display,
        quota_display_name=f"{display} per region",
        dimensions_infos=entries,
    )


class FakeQuotas:
    """Serves `quotas` of any project, `page_size` at a time, or refuses with `refusal`."""

    def __init__(self, quotas: Sequence[types.QuotaInfo], page_size: int = 2) -> None:
        self.quotas, self.page_size = list(quotas), page_size
        self.refusal: tuple[int, str] | None = None
        self.requests: list[str] = []
        self.wrong: list[str] = []

    def __enter__(self) -> "FakeQuotas":
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, body = fake.answer(self.path)
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, target: str) -> tuple[int, bytes]:
        """Status and body for one request."""
        self.requests.append(target)
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        places = parts.path.strip("/").split("/")
        expected = ["v1", "projects", places[2], "locations", "global", "services", SERVICE]
        if places != [*expected, "quotaInfos"] or not set(query) <= ALLOWED_QUERY:
            self.wrong.append(target)
            return 400, json.dumps({"error": {"code": 400, "message": target}}).encode()
        if self.refusal:
            code, message = self.refusal
            return code, json.dumps({"error": {"code": code, "message": message}}).encode()
        first = int(query.get("pageToken", ["0"])[0])
        last = first + self.page_size
        page = types.ListQuotaInfosResponse(
            quota_infos=self.quotas[first:last],
            next_page_token=str(last) if last < len(self.quotas) else "",
        )
        return 200, types.ListQuotaInfosResponse.to_json(page).encode()
