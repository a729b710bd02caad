"""A small Cloud Storage: buckets, permissions, whole uploads with generation preconditions."""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ALL = ("storage.objects.create", "storage.objects.get", "storage.objects.list")
KNOWN = {
    "uploadType", "ifGenerationMatch", "name", "alt", "projection", "prettyPrint", "permissions",
    "fields", "upload_id", "userProject", "prefix", "delimiter", "pageToken", "maxResults",
    "predefinedAcl", "includeTrailingDelimiter",
}  # fmt: skip


@dataclass
class Stored:
    """An object."""

    data: bytes
    generation: int


class FakeBucket:
    """State of the storage part: bucket → permissions, and the objects by ``bucket/name``."""

    def __init__(self) -> None:
        self.buckets: dict[str, tuple[str, ...]] = {"stage": ALL}
        self.objects: dict[str, Stored] = {}
        self.sessions: dict[str, tuple[str, bool]] = {}
        self.blind = 0  # so many looks do not see an object that another writer has just made
        self.requests: list[tuple[str, str]] = []

    def answer(
        self, method: str, target: str, headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        assert set(query) <= KNOWN, f"unknown query parameters: {set(query) - KNOWN}"
        self.requests.append((method, parts.path))
        match = re.fullmatch(r"(/upload)?/storage/v1/b/([^/]+)(?:/(.+))?", parts.path)
        bucket = match.group(2) if match else ""
        rest = unquote(match.group(3) or "") if match else ""
        if bucket not in self.buckets:
            return self._error(404, "The specified bucket does not exist.")
        if rest == "iam/testPermissions":
            asked = parse_qs(parts.query)["permissions"]
            granted = [name for name in asked if name in self.buckets[bucket]]
            return self._json(
                {"kind": "storage#testIamPermissionsResponse", "permissions": granted}
            )
        if method in ("POST", "PUT") and match and match.group(1):
            return self._upload(method, bucket, query, headers, body)
        if not rest:
            return self._json({"kind": "storage#bucket", "name": bucket, "projectNumber": "1"})
        return self._get(f"{bucket}/{rest.removeprefix('o/')}", query)

    def _get(self, key: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if self.blind or key not in self.objects:
            self.blind = max(0, self.blind - 1)
            return self._error(404, f"No such object: {key}")
        if query.get("alt") == "media":
            return 200, {"Content-Type": "application/octet-stream"}, self.objects[key].data
        return self._json(self._facts(key))

    def _upload(
        self, method: str, bucket: str, query: dict[str, str], headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if "storage.objects.create" not in self.buckets[bucket]:
            return self._error(403, "caller does not have storage.objects.create access")
        if query["uploadType"] == "resumable" and method == "POST":
            session = f"s{len(self.sessions)}"
            name = json.loads(body)["name"]
            self.sessions[session] = (f"{bucket}/{name}", query.get("ifGenerationMatch") == "0")
            link = f"http://{headers['Host']}/upload/storage/v1/b/{bucket}/o"
            link += f"?uploadType=resumable&upload_id={session}"
            return 200, {"Location": link}, b"{}"
        if "upload_id" in query:
            key, absent = self.sessions[query["upload_id"]]
            return self._store(key, body, absent, None)
        boundary = re.search(r'boundary="?([^";]+)"?', headers["Content-Type"])
        assert boundary
        pieces = body.split(b"--" + boundary.group(1).encode())
        meta, data = (piece.split(b"\r\n\r\n", 1)[1][:-2] for piece in pieces[1:3])
        facts = json.loads(meta)
        absent = query.get("ifGenerationMatch") == "0"
        return self._store(f"{bucket}/{facts['name']}", data, absent, facts.get("crc32c"))

    def _store(
        self, key: str, data: bytes, absent: bool, checksum: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        if absent and key in self.objects:
            return self._error(412, "At least one of the pre-conditions did not hold.")
        if checksum and checksum != crc32c(data):
            return self._error(400, "the checksum does not match the data")
        generation = self.objects[key].generation + 1 if key in self.objects else 1
        self.objects[key] = Stored(data, generation)
        return self._json(self._facts(key))

    def _facts(self, key: str) -> dict[str, Any]:
        bucket, _, name = key.partition("/")
        stored = self.objects[key]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(stored.data)),
            "generation": str(stored.generation),
            "metageneration": "1",
            "crc32c": crc32c(stored.data),
        }

    @staticmethod
    def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps(value).encode()

    @staticmethod
    def _error(code: int, message: str) -> tuple[int, dict[str, str], bytes]:
        return code, {}, json.dumps({"error": {"code": code, "message": message}}).encode()


def crc32c(data: bytes) -> str:
    """Base64 of the checksum, as Cloud Storage writes it."""
    import google_crc32c

    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
