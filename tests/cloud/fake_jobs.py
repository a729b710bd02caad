"""The fake's pipeline jobs and schedules.

A created job runs through the tasks of its own spec, in order; each look at it moves it on by
`steps_per_look` events. Finished tasks with caching on are found again (state SKIPPED) by a later
job with the same component, the same parameters and the same name.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from google.cloud.aiplatform_v1 import types
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

Task = types.PipelineTaskDetail.State
JOB = types.PipelineState
KEY_NAME = r"projects/.+/locations/.+/keyRings/.+/cryptoKeys/.+"
LABEL_KEY, LABEL_VALUE = r"[a-z][a-z0-9_-]{0,62}", r"[a-z0-9_-]{0,63}"
KINDS: dict[str, Any] = {
    "STRING": str, "NUMBER_INTEGER": (int, float), "NUMBER_DOUBLE": (int, float), "BOOLEAN": bool,
    "LIST": list, "STRUCT": dict,
}  # fmt: skip
FINISHED = (
    JOB.PIPELINE_STATE_SUCCEEDED,
    JOB.PIPELINE_STATE_FAILED,
    JOB.PIPELINE_STATE_CANCELLED,
)


class Jobs:
    """State: `jobs` and `schedules` by name; `failing` maps a task's name to its error."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, types.PipelineJob] = {}
        self.schedules: dict[str, types.Schedule] = {}
        self.cache: set[str] = set()
        self.failing: dict[str, str] = {}
        self.steps_per_look = 3
        self.clock = 1_790_000_000

    # pipeline jobs

    def create_pipeline_job(self, request: Any) -> types.PipelineJob:
        from tests.cloud.fake_vertex import Refusal

        name = f"{request.parent}/pipelineJobs/{request.pipeline_job_id}"
        if name in self.jobs:
            raise Refusal(409, f"{name} exists")
        job = request.pipeline_job
        check_job(job, request.pipeline_job_id)
        job.name, job.state = name, JOB.PIPELINE_STATE_PENDING
        job.create_time = self._now()
        context = types.Context(
            name=f"{request.parent}/metadataStores/default/contexts/{request.pipeline_job_id}",
            schema_title="system.PipelineRun",
        )
        job.job_detail.pipeline_run_context = context
        self.jobs[name] = job
        self._unroll(job)
        return job

    def get_pipeline_job(self, request: Any) -> types.PipelineJob:
        from tests.cloud.fake_vertex import Refusal

        if request.name not in self.jobs:
            raise Refusal(404, f"PipelineJob {request.name} is not found.")
        job = self.jobs[request.name]
        for _ in range(self.steps_per_look):
            self.advance(job)
        return job

    def list_pipeline_jobs(self, request: Any) -> types.ListPipelineJobsResponse:
        found = [job for name, job in self.jobs.items() if name.startswith(request.parent + "/")]
        return types.ListPipelineJobsResponse(pipeline_jobs=found[: request.page_size or 50])

    def cancel_pipeline_job(self, request: Any) -> None:
        self.jobs[request.name].state = JOB.PIPELINE_STATE_CANCELLED

    def delete_pipeline_job(self, request: Any) -> Any:
        del self.jobs[request.name]
        return self.done(request.name.split("/pipelineJobs")[0], None)  # type: ignore[attr-defined]

    def advance(self, job: types.PipelineJob) -> None:
        """One event: a task starts, ends, fails or is found in the cache; or the job ends."""
        if job.state in FINISHED:
            return
        job.state = JOB.PIPELINE_STATE_RUNNING
        leaves = [task for task in job.job_detail.task_details if _is_leaf(job, task)]
        running = next((task for task in leaves if task.state == Task.RUNNING), None)
        if running is not None:
            self._finish(job, running)
            return
        waiting = next((task for task in leaves if task.state == Task.PENDING), None)
        if waiting is None:
            job.state, job.end_time = JOB.PIPELINE_STATE_SUCCEEDED, self._now()
        elif self._key(job, waiting) in self.cache:
            waiting.state = Task.SKIPPED
            waiting.start_time = waiting.end_time = self._now()
        else:
            waiting.state, waiting.start_time = Task.RUNNING, self._now()

    def _finish(self, job: types.PipelineJob, task: Any) -> None:
        task.end_time = self._now()
        problem = self.failing.get(task.task_name)
        if problem is None:
            task.state = Task.SUCCEEDED
            if key := self._key(job, task):
                self.cache.add(key)
            return
        task.state = Task.FAILED
        task.error = status_pb2.Status(code=9, message=problem)
        job.state, job.end_time = JOB.PIPELINE_STATE_FAILED, self._now()
        names = (
            f"The DAG failed because some tasks failed. The failed tasks are: [{task.task_name}]."
        )
        job.error = status_pb2.Status(code=9, message=names)

    def _unroll(self, job: types.PipelineJob) -> None:
        spec = spec_of(job)
        root = types.PipelineTaskDetail(
            task_id=1, task_name=spec["pipelineInfo"]["name"], state=Task.RUNNING
        )
        details, numbers = [root], iter(range(2, 10_000))

        def add(dag: dict[str, Any], parent: int) -> None:
            for name, task in ordered(dag["tasks"]):
                number = next(numbers)
                job_name = f"projects/1/locations/here/customJobs/{number}"
                detail = types.PipelineTaskDetail(
                    task_id=number, parent_task_id=parent, task_name=name, state=Task.PENDING
                )
                detail.executor_detail.container_detail.main_job = job_name
                details.append(detail)
                component = spec["components"][task["componentRef"]["name"]]
                if "dag" in component:
                    add(component["dag"], number)

        add(spec["root"]["dag"], 1)
        job.job_detail.task_details = details

    def _key(self, job: types.PipelineJob, task: Any) -> str:
        """What the platform's cache looks for; "" where caching is off for the task."""
        spec = spec_of(job)
        for name, found in all_tasks(spec):
            if name == task.task_name:
                if not found.get("cachingOptions", {}).get("enableCache"):
                    return ""
                component = spec["components"][found["componentRef"]["name"]]
                values = json_format.MessageToDict(type(job).pb(job).runtime_config)
                facts = json.dumps([name, component, values.get("parameterValues")], sort_keys=True)
                return hashlib.sha256(facts.encode()).hexdigest()
        return ""

    def _now(self) -> Timestamp:
        self.clock += 7
        return Timestamp(seconds=self.clock)

    # schedules

    def create_schedule(self, request: Any) -> types.Schedule:
        from tests.cloud.fake_vertex import Refusal

        schedule = request.schedule
        cron = re.sub(r"^(CRON_)?TZ=\S+ ", "", schedule.cron)
        if len(cron.split()) != 5:
            raise Refusal(400, f"Invalid cron expression: {schedule.cron}")
        if not schedule.max_concurrent_run_count or not schedule.display_name:
            raise Refusal(400, "max_concurrent_run_count and display_name are required")
        job = schedule.create_pipeline_job_request
        check_job(job.pipeline_job, job.pipeline_job_id or "from-schedule")
        schedule.name = f"{request.parent}/schedules/{len(self.schedules) + 1}"
        schedule.state = types.Schedule.State.ACTIVE
        schedule.create_time = self._now()
        self.schedules[schedule.name] = schedule
        return schedule

    def get_schedule(self, request: Any) -> types.Schedule:
        from tests.cloud.fake_vertex import Refusal

        if request.name not in self.schedules:
            raise Refusal(404, f"Schedule {request.name} is not found.")
        return self.schedules[request.name]

    def list_schedules(self, request: Any) -> types.ListSchedulesResponse:
        found = [s for name, s in self.schedules.items() if name.startswith(request.parent + "/")]
        return types.ListSchedulesResponse(schedules=found)

    def pause_schedule(self, request: Any) -> None:
        self.get_schedule(request).state = types.Schedule.State.PAUSED

    def resume_schedule(self, request: Any) -> None:
        schedule = self.get_schedule(request)
        schedule.state = types.Schedule.State.ACTIVE
        schedule.catch_up = request.catch_up

    def update_schedule(self, request: Any) -> types.Schedule:
        stored = self.get_schedule(request.schedule)
        for path in request.update_mask.paths:
            setattr(stored, path, getattr(request.schedule, path))
        return stored

    def delete_schedule(self, request: Any) -> Any:
        self.get_schedule(request)
        del self.schedules[request.name]
        return self.done(request.name.split("/schedules")[0], None)  # type: ignore[attr-defined]

    def tick(self, name: str) -> types.PipelineJob:
        """A scheduled run starts now: the job that the schedule's request asks for."""
        asked = self.schedules[name].create_pipeline_job_request
        request = types.CreatePipelineJobRequest(
            parent=asked.parent,
            pipeline_job=types.PipelineJob(asked.pipeline_job),
            pipeline_job_id=asked.pipeline_job_id or f"tick-{len(self.jobs) + 1}",
        )
        return self.create_pipeline_job(request)


def spec_of(job: types.PipelineJob) -> dict[str, Any]:
    """The job's pipeline spec as a dict."""
    spec: dict[str, Any] = json_format.MessageToDict(type(job).pb(job).pipeline_spec)
    return spec


def check_job(job: types.PipelineJob, job_id: str) -> None:
    """Refuses what Vertex AI refuses: spec, parameters, root, labels, key, job id."""
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

    from tests.cloud.fake_vertex import Refusal

    spec = spec_of(job)
    try:
        json_format.ParseDict(spec, PipelineSpec(), ignore_unknown_fields=False)
    except json_format.ParseError as error:
        raise Refusal(400, f"pipeline_spec: {error}") from error
    runtime = json_format.MessageToDict(type(job).pb(job).runtime_config)
    if not runtime.get("gcsOutputDirectory", "").startswith("gs://"):
        raise Refusal(400, "runtime_config.gcs_output_directory must be a Cloud Storage path")
    given = runtime.get("parameterValues", {})
    defined = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, value in given.items():
        if name not in defined:
            raise Refusal(400, f"parameter {name} is not defined")
        kind = KINDS[defined[name]["parameterType"]]
        wrong_bool = isinstance(value, bool) and kind is not bool
        fraction = defined[name]["parameterType"] == "NUMBER_INTEGER" and value != int(value)
        if not isinstance(value, kind) or wrong_bool or fraction:
            raise Refusal(400, f"parameter {name}: {value!r} is no {defined[name]}")
    missing = [
        name for name in defined if not defined[name].get("isOptional") and name not in given
    ]
    if missing:
        raise Refusal(400, f"parameters without a value: {missing}")
    for key, value in job.labels.items():
        if not re.fullmatch(LABEL_KEY, key) or not re.fullmatch(LABEL_VALUE, value):
            raise Refusal(400, f"label {key}={value} is invalid")
    key_name = job.encryption_spec.kms_key_name
    if key_name and not re.fullmatch(
        r"projects/.+/locations/.+/keyRings/.+/cryptoKeys/.+", key_name
    ):
        raise Refusal(400, f"encryption_spec.kms_key_name: {key_name}")
    if not re.fullmatch(r"[a-z][-a-z0-9]{0,127}", job_id):
        raise Refusal(400, f"pipeline_job_id: {job_id}")


def all_tasks(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of the spec by name."""
    for component in [spec["root"], *spec["components"].values()]:
        yield from component.get("dag", {}).get("tasks", {}).items()


def ordered(tasks: dict[str, Any]) -> list[tuple[str, Any]]:
    """Tasks after those that they depend on."""
    done: list[str] = []
    while len(done) < len(tasks):
        ready = [
            name
            for name, task in sorted(tasks.items())
            if name not in done and set(task.get("dependentTasks", [])) <= set(done)
        ]
        done += ready
    return [(name, tasks[name]) for name in done]


def _is_leaf(job: types.PipelineJob, task: Any) -> bool:
    parents = {other.parent_task_id for other in job.job_detail.task_details}
    return task.task_id not in parents
