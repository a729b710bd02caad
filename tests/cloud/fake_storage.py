"""A loopback Cloud Storage (JSON API) that keeps generations and fails on a schedule.

It answers what google-cloud-storage asks: metadata, whole and ranged downloads, multipart and
resumable uploads, lists in pages, deletion, generation preconditions, checksums, permissions.
"""

import base64
import contextlib
import itertools
import json
import random
import re
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

ALL = ("storage.objects.create", "storage.objects.get", "storage.objects.list",
       "storage.objects.delete")  # fmt: skip
KNOWN = {
    "uploadType", "ifGenerationMatch", "name", "alt", "projection", "prettyPrint", "permissions",
    "fields", "upload_id", "userProject", "prefix", "delimiter", "pageToken", "maxResults",
    "includeTrailingDelimiter", "generation", "softDeleted", "versions",
}  # fmt: skip
PAGE = 4  # entries of a list's page, so that every longer list has several
# busy: 503 or 429 before anything happens; reset: the connection breaks before; lost: it breaks
# after the work is done; late: 503 after it; truncated: half of an announced body; short: half a
# body that says it is all; flipped: one bit, on the way down or up; stale: an older generation.
FAULTS = ("busy", "told", "reset", "lost", "late", "truncated", "short", "flipped", "damaged",
          "stale")  # fmt: skip
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Version:
    """One generation of an object; data None: removed."""

    data: bytes | None
    generation: int
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class Session:
    """A resumable upload."""

    key: str
    facts: dict[str, Any]
    condition: str | None
    data: bytes = b""
    answer: Answer | None = None


class FakeStorage:
    """State and server. Use as a context manager; `url` goes to ``STORAGE_EMULATOR_HOST``.

    Attributes:
        buckets: name → permissions of whoever asks.
        objects: ``bucket/name`` → its generations, the newest last.
        plan: called for every request (method, path) → a fault of `FAULTS` or "".
        seen: requests (method, path); faulted: how often each fault happened.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, tuple[str, ...]] = {"box": ALL}
        self.objects: dict[str, list[Version]] = {}
        self.sessions: dict[str, Session] = {}
        self.plan: Callable[[str, str], str] = lambda method, path: ""
        self.seen: list[tuple[str, str]] = []
        self.faulted: Counter[str] = Counter()
        self.generations = itertools.count(1_700_000_000_000_001)
        self.lock = threading.RLock()
        self.retry_after = "0.01"
        self.problems: list[BaseException] = []

    def fail(self, seed: int, rate: float, kinds: tuple[str, ...] = FAULTS) -> None:
        """From now on a share `rate` of the requests fails, in ways drawn from `kinds`."""
        draw = random.Random(seed)
        self.plan = lambda method, path: draw.choice(kinds) if draw.random() < rate else ""

    def heal(self) -> None:
        self.plan = lambda method, path: ""

    def data(self, key: str) -> bytes | None:
        """What an object holds now."""
        versions = self.objects.get(key)
        return versions[-1].data if versions else None

    def put(self, key: str, data: bytes) -> int:
        """Stores an object behind the clients' back."""
        self.objects.setdefault(key, []).append(Version(data, next(self.generations)))
        return self.objects[key][-1].generation

    def names(self) -> list[str]:
        return sorted(key for key in self.objects if self.data(key) is not None)

    # -- requests ----------------------------------------------------------------------------

    def answer(
        self, method: str, target: str, headers: Any, body: bytes, fault: str = ""
    ) -> Answer:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        assert set(query) <= KNOWN, f"unknown query parameters: {set(query) - KNOWN}"
        match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/(.+))?", parts.path)
        bucket, rest = (match.group(2), match.group(3) or "") if match else ("", "")
        if not match or bucket not in self.buckets:
            return error(404, "The specified bucket does not exist.")
        if rest == "iam/testPermissions":
            asked = parse_qs(parts.query)["permissions"]
            return reply({"permissions": [name for name in asked if name in self.buckets[bucket]]})
        needed = "storage.objects." + (
            "create" if match.group(1) == "/upload" else "delete" if method == "DELETE"
            else "list" if rest == "o" else "get"
        )  # fmt: skip
        if needed not in self.buckets[bucket]:
            return error(403, f"caller does not have {needed} access to the bucket.")
        if match.group(1) == "/upload":
            return self._upload(method, bucket, query, headers, body, fault)
        if rest == "o":
            return self._list(bucket, query)
        if not rest:
            return reply({"kind": "storage#bucket", "name": bucket, "projectNumber": "1"})
        key = f"{bucket}/{unquote(rest.removeprefix('o/'))}"
        return self._delete(key, query) if method == "DELETE" else self._get(
            key, query, headers, fault)  # fmt: skip

    def _get(self, key: str, query: dict[str, str], headers: Any, fault: str) -> Answer:
        versions = self.objects.get(key, [])
        if self.data(key) is None:
            return error(404, f"No such object: {key}")
        found, media = versions[-1], query.get("alt") == "media"
        older = [item for item in versions[:-1] if item.data is not None]
        if media and query.get("generation", str(found.generation)) != str(found.generation):
            return error(404, f"No such object: {key}#{query['generation']}")
        if older and fault == ("stale" if media else "stale_facts"):
            found = older[-1]
        if not media:
            return reply(facts_of(key, found))
        assert found.data is not None
        extra = {
            "Content-Type": "application/octet-stream",
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Hash": f"crc32c={crc32c(found.data)}",
            "X-Goog-Stored-Content-Length": str(len(found.data)),
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range") or "")
        if not asked:
            return 200, extra, found.data
        begin, total = int(asked.group(1)), len(found.data)
        if begin >= total:
            return error(416, "the range is beyond the end")
        end = min(int(asked.group(2) or total), total - 1)
        return (
            206,
            {**extra, "Content-Range": f"bytes {begin}-{end}/{total}"},
            found.data[begin : end + 1],
        )

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, bool] = {}  # name → whether it is a folder
        for key in self.names():
            name = key.removeprefix(f"{bucket}/")
            if not key.startswith(f"{bucket}/{prefix}"):
                continue
            tail = name[len(prefix) :]
            cut = tail.find(delimiter) if delimiter else -1
            entries[name if cut < 0 else prefix + tail[: cut + 1]] = cut >= 0
        names = sorted(entries)
        begin = int(query.get("pageToken", "0"))
        page = names[begin : begin + PAGE]
        found: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [facts_of(f"{bucket}/{name}", self.objects[f"{bucket}/{name}"][-1])
                      for name in page if not entries[name]],
            "prefixes": [name for name in page if entries[name]],
        }  # fmt: skip
        if begin + PAGE < len(names):
            found["nextPageToken"] = str(begin + PAGE)
        return reply(found)

    def _delete(self, key: str, query: dict[str, str]) -> Answer:
        if self.data(key) is None:
            return error(404, f"No such object: {key}")
        if self._refused(key, query.get("ifGenerationMatch")):
            return error(412, "At least one of the pre-conditions you specified did not hold.")
        self.objects[key].append(Version(None, next(self.generations)))
        return 204, {}, b""

    def _upload(
        self, method: str, bucket: str, query: dict[str, str], headers: Any, body: bytes, fault: str
    ) -> Answer:
        condition = query.get("ifGenerationMatch")
        if "upload_id" in query:
            return self._piece(self.sessions[query["upload_id"]], headers, spoiled(body, fault))
        if query["uploadType"] == "resumable":
            facts = json.loads(body)
            number = f"s{len(self.sessions)}"
            self.sessions[number] = Session(f"{bucket}/{facts['name']}", facts, condition)
            link = f"http://{headers['Host']}/upload/storage/v1/b/{bucket}/o"
            return 200, {"Location": f"{link}?uploadType=resumable&upload_id={number}"}, b"{}"
        boundary = re.search(r'boundary="?([^";]+)"?', headers["Content-Type"])
        assert boundary
        mark = b"--" + boundary.group(1).encode()
        pieces = [b"".join(piece.split(b"\r\n\r\n", 1)[1:]) for piece in body.split(mark)]
        facts = json.loads(pieces[1])
        data = spoiled(pieces[2].removesuffix(b"\r\n"), fault)
        return self._store(f"{bucket}/{facts['name']}", data, facts, condition)

    def _piece(self, session: Session, headers: Any, body: bytes) -> Answer:
        if session.answer is not None:
            return session.answer
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers["Content-Range"])
        begin = int(span.group(1)) if span else len(session.data)
        if begin > len(session.data):
            return error(400, "a piece is missing before this one")
        session.data += body[len(session.data) - begin :]
        total = headers["Content-Range"].rpartition("/")[2]
        if total == "*" or int(total) > len(session.data):
            return 308, {"Range": f"bytes=0-{len(session.data) - 1}"}, b""
        session.answer = self._store(session.key, session.data, session.facts, session.condition)
        return session.answer

    def _store(self, key: str, data: bytes, facts: dict[str, Any], condition: str | None) -> Answer:
        given = facts.get("crc32c")
        assert given, "an upload without a checksum"
        if given != crc32c(data):
            return error(400, f"Provided CRC32C {given!r} doesn't match calculated CRC32C.")
        if self._refused(key, condition):
            return error(412, "At least one of the pre-conditions you specified did not hold.")
        version = Version(data, next(self.generations), facts.get("metadata", {}))
        self.objects.setdefault(key, []).append(version)
        return reply(facts_of(key, version))

    def _refused(self, key: str, condition: str | None) -> bool:
        there = self.objects[key][-1].generation if self.data(key) is not None else 0
        return condition is not None and int(condition) != there

    # -- the server --------------------------------------------------------------------------

    def __enter__(self) -> "FakeStorage":
        self._server = Server(("127.0.0.1", 0), handler(self))
        self._server.problems = self.problems
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        assert not self.problems, self.problems


class Server(ThreadingHTTPServer):
    """Keeps what went wrong in a request, but for connections that were broken off."""

    daemon_threads = True
    problems: list[BaseException]

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error and not isinstance(error, ConnectionError):
            self.problems.append(error)


def handler(fake: FakeStorage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # heads and bodies go out together
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            path = urlsplit(self.path).path
            with fake.lock:
                fault = fake.plan(self.command, path)
                fake.seen.append((self.command, path))
                fake.faulted[fault] += 1
                if fault == "reset":
                    return self.break_off()
                if fault in ("busy", "told"):
                    told = {"Retry-After": fake.retry_after} if fault == "told" else {}
                    code, extra, _ = error(429 if fault == "told" else 503, "try again")
                    return self.send(code, {**extra, **told}, b"{}")
                code, extra, data = fake.answer(self.command, self.path, self.headers, body, fault)
            if fault == "lost":
                return self.break_off()
            if fault == "late":
                return self.send(503, {}, b"{}")
            self.send(code, extra, data, fault)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def send(self, code: int, extra: dict[str, str], data: bytes, fault: str = "") -> None:
            media = "X-Goog-Hash" in extra
            if fault == "flipped" and media:
                data = flipped(data)
            if fault == "short" and media:
                data = data[: len(data) // 2]
            self.send_response(code)
            for name, value in extra.items():
                self.send_header(name, value)
            if code != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if fault == "truncated" and data:
                self.wfile.write(data[: len(data) // 2])
                self.break_off()
            else:
                self.wfile.write(data)

        def break_off(self) -> None:
            linger = struct.pack("ii", 1, 0)  # a reset, not an orderly end
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # it was broken off
                super().finish()

    return Handler


def facts_of(key: str, version: Version) -> dict[str, Any]:
    bucket, _, name = key.partition("/")
    assert version.data is not None
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(version.data)),
        "generation": str(version.generation),
        "metageneration": "1",
        "crc32c": crc32c(version.data),
        "metadata": version.metadata,
    }


def flipped(data: bytes) -> bytes:
    """One bit of the middle byte is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


def spoiled(data: bytes, fault: str) -> bytes:
    return flipped(data) if fault == "damaged" else data


def crc32c(data: bytes) -> str:
    """Base64 of the checksum, as Cloud Storage writes it."""
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def reply(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def error(code: int, message: str) -> Answer:
    return code, {}, json.dumps({"error": {"code": code, "message": message}}).encode()


def led_to(fake: FakeStorage, monkeypatch: Any) -> FakeStorage:
    """Leads the real client to the server, and lets it wait for thousandths of a second only."""
    from pipestill.cloud import retries

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retries, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(retries, "PATIENCE_S", 20.0)
    return fake
