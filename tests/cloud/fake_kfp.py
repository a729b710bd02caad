"""A loopback Kubeflow Pipelines server (API v2beta1) that keeps its runs.

Each body is checked twice: no key that the client's own model lacks, and the pipeline spec and
parameters as `fake_jobs` checks them.
"""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from tests.cloud.fake_jobs import KINDS, ordered
from tests.cloud.fake_vertex import Refusal, serve


class FakeKfp:
    """State: `runs` and `experiments` by id; `failing` maps a task's name to its error."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.failing: dict[str, str] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.token = ""

    @property
    def requests_checked(self) -> int:
        return len(self.requests)

    def __enter__(self) -> "FakeKfp":
        self.server = serve(self._answer)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _answer(
        self, method: str, target: str, headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        parsed = json.loads(body) if body else None
        self.requests.append((method, parts.path, parsed))
        try:
            if self.token and headers.get("Authorization") != f"Bearer {self.token}":
                raise Refusal(401, "Request header error: there is no user identity header.")
            found = self._call(method, parts.path, parse_qs(parts.query), parsed)
            return 200, {}, json.dumps(found).encode()
        except Refusal as refusal:
            return refusal.code, {}, json.dumps(refusal.body()).encode()

    def _call(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        if path.endswith("/healthz"):
            return {"multi_user": False}
        if path.endswith("/experiments") and method == "GET":
            wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"]
            known = [e for e in self.experiments.values() if e["display_name"] == wanted]
            return {"experiments": known}
        if path.endswith("/experiments"):
            _known_keys(body, kfp_server_api.V2beta1Experiment)
            made = {**body, "experiment_id": f"e{len(self.experiments)}"}
            self.experiments[made["experiment_id"]] = made
            return made
        if path.endswith("/runs") and method == "POST":
            return self._create(body)
        run = self.runs.get(path.rpartition("/")[2])
        if run is None:
            raise Refusal(404, f"{path} not found")
        self._advance(run)
        return run

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        _known_keys(body, kfp_server_api.V2beta1Run)
        _known_keys(body["runtime_config"], kfp_server_api.V2beta1RuntimeConfig)
        if body["experiment_id"] not in self.experiments:
            raise Refusal(400, "unknown experiment")
        spec = body["pipeline_spec"]
        spec = spec.get("pipeline_spec", spec)
        json_format.ParseDict(spec, PipelineSpec(), ignore_unknown_fields=False)
        defined = spec["root"]["inputDefinitions"]["parameters"]
        for name, value in body["runtime_config"].get("parameters", {}).items():
            if name not in defined or not isinstance(value, KINDS[defined[name]["parameterType"]]):
                raise Refusal(400, f"parameter {name}: {value!r}")
        names = [name for name, _ in ordered(spec["root"]["dag"]["tasks"])]
        tasks = [
            {"task_id": name, "display_name": name, "state": "PENDING", "parent_task_id": "root"}
            for name in names
        ]
        root = {"task_id": "root", "display_name": "root", "state": "RUNNING"}
        run = {
            **body,
            "run_id": f"r{len(self.runs)}",
            "state": "PENDING",
            "run_details": {"task_details": [root, *tasks]},
        }
        self.runs[run["run_id"]] = run
        return run

    def _advance(self, run: dict[str, Any]) -> None:
        """Two events a look."""
        for _ in range(2):
            if run["state"] in ("SUCCEEDED", "FAILED"):
                return
            run["state"] = "RUNNING"
            tasks = run["run_details"]["task_details"][1:]
            running = next((task for task in tasks if task["state"] == "RUNNING"), None)
            waiting = next((task for task in tasks if task["state"] == "PENDING"), None)
            if running:
                problem = self.failing.get(running["display_name"])
                running["state"] = "FAILED" if problem else "SUCCEEDED"
                running["end_time"] = "2026-01-01T10:01:30Z"
                if problem:
                    running["error"] = {"code": 9, "message": problem}
                    run["state"], run["error"] = "FAILED", {"code": 9, "message": "a task failed"}
            elif waiting:
                waiting["state"], waiting["start_time"] = "RUNNING", "2026-01-01T10:00:00Z"
            else:
                run["state"] = "SUCCEEDED"


def _known_keys(body: dict[str, Any], model: Any) -> None:
    unknown = set(body) - set(model.attribute_map.values())
    if unknown or any(re.search(r"[A-Z]", key) for key in body):
        raise Refusal(400, f"unknown fields: {unknown}")
