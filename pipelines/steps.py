"""The steps of one local run: their processes, logs, cache entries, and lines on the screen.

KFP's local runner starts steps, passes artifacts and caches. Four of its habits do not suit a
person at a terminal, and `hooked` changes them for the time of one run, without touching the
installed package:

- it prints everything and hides the cause of a failure: each step gets its own log file here, and
  the screen one line when it starts and one when it ends;
- after a failure it starts the other iterations of a ParallelFor all the same: here they are not;
- inside a ParallelFor it replaces another task's output parameter (our `cache_key`) by the loop
  item: here the parameter keeps its value;
- its cache key knows a model folder or a prompt file by path alone: here by content as well.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.errors import WorkError
from pipestill.pipelines.screen import Screen

LONGEST_ARGUMENT = 131_000  # bytes; Linux refuses a longer single argument (MAX_ARG_STRLEN)
KILL_AFTER_S = 5.0
LOOP_INPUTS = ("run", "shard")
CONTENT_INPUTS = ("_model_reference", "_prompt")


@dataclass(frozen=True)
class Failure:
    """The first step that failed: how, after how long, and where its log is."""

    label: str
    returncode: int
    log: Path


@dataclass
class Steps:
    """What one run knows about its steps."""

    logs: Path
    screen: Screen
    loops: Mapping[str, int]  # loop input → how many iterations
    environment: Mapping[str, str]
    keep_open: tuple[int, ...] = ()  # file descriptors that the steps inherit (the run's lock)
    failure: Failure | None = None
    stopping: bool = False
    ran: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    running: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def label(self, name: str, arguments: Mapping[str, Any]) -> str:
        """``student_train dss:0``: the step's name, and its loop item where there are several."""
        items = [
            str(arguments[key]) for key in LOOP_INPUTS if key in arguments and self.loops[key] > 1
        ]
        return " ".join([re.sub(r"-\d+$", "", name).replace("-", "_"), *items])

    def run(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Runs one step's command line; stands in for KFP's `run_local_subprocess`."""
        given = json.loads(_argument(full_command, "--executor_input"))
        arguments = given.get("inputs", {}).get("parameterValues", {})
        label = self.label(_argument(full_command, "--function_to_execute"), arguments)
        with self.lock:
            if self.stopping or self.failure:
                return 1
            self.ran.append(label)
        self.screen.line(f"{label}: started")
        began = time.monotonic()
        log = self.logs / f"{re.sub(r'[^A-Za-z0-9_]+', '.', label)}.log"
        returncode = self._process(label, full_command, env_vars or {}, arguments, log)
        took = time.monotonic() - began
        self.screen.ended(label)
        if returncode == 0:
            self.screen.line(f"{label}: done in {took:.1f} s")
        elif not self.stopping:
            self._failed(Failure(label, returncode, log), took)
        return returncode

    def _process(
        self,
        label: str,
        command: list[str],
        env_vars: Mapping[str, str],
        arguments: Mapping[str, Any],
        log: Path,
    ) -> int:
        if len(_argument(command, "--executor_input").encode()) > LONGEST_ARGUMENT:
            log.write_text(
                "pipestill.errors.WorkError: [STEP_INPUT_TOO_LONG] the step's inputs exceed"
                f" {LONGEST_ARGUMENT} bytes → use fewer runs or shards\n"
            )
            return 1
        environment = {**os.environ, **self._threads(arguments), **self.environment, **env_vars}
        with log.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(  # noqa: S603 (the command is our own pipeline's)
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,  # so that its whole family can be ended
                pass_fds=self.keep_open,
            )
            with self.lock:
                self.running[process.pid] = process
            try:
                for text in _worth_showing(process.stdout, out):
                    self.screen.step_line(label, text)
                return process.wait()
            finally:
                with self.lock:
                    del self.running[process.pid]

    def _threads(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Steps that run two at a time share the cores; a person's own setting is kept."""
        if "OMP_NUM_THREADS" in os.environ:
            return {}
        parallel = any(key in arguments and self.loops[key] > 1 for key in LOOP_INPUTS)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        return {"OMP_NUM_THREADS": str(max(1, cores // 2 if parallel else cores))}

    def _failed(self, failure: Failure, took: float) -> None:
        with self.lock:
            first = self.failure is None
            self.failure = self.failure or failure
        self.screen.line(f"{failure.label}: failed after {took:.1f} s")
        if first and self.running:
            self.screen.line("waiting for the steps that still run; no other will start")

    def stop(self) -> None:
        """Ends every running step: asks first, and after `KILL_AFTER_S` seconds kills."""
        self.stopping = True
        with self.lock:
            running = list(self.running.values())
        for process in running:
            _signal_family(process, signal.SIGTERM)
        deadline = time.monotonic() + KILL_AFTER_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_family(process, signal.SIGKILL)


def _signal_family(process: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _argument(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def _worth_showing(lines: Any, log: Any) -> Iterator[str]:
    """Copies all lines to the log and yields those that the library printed for a person."""
    in_executor_input = traceback = False
    for text in lines:
        log.write(text)
        log.flush()
        text = text.rstrip()
        if text.endswith("Got executor_input:"):
            in_executor_input = True
        elif in_executor_input:
            in_executor_input = text != "}"
        elif text.startswith("Traceback "):
            traceback = True
        elif text and not traceback and _for_people(text):
            yield text.split("\r")[-1]


def _for_people(text: str) -> bool:
    noise = ("[KFP Executor", "Warning", "  warnings.warn", "`torch_dtype`")
    return not text.startswith(noise) and "Warning:" not in text and "it/s]" not in text


@contextlib.contextmanager
def hooked(steps: Steps, cache_root: Path) -> Iterator[None]:
    """Puts `steps` in place of KFP's own process runner and cache while a pipeline runs.

    Raises:
        WorkError: ``KFP_VERSION`` where the installed KFP is built differently.
    """
    try:
        from kfp.local import cache, subprocess_task_handler
        from kfp.local.orchestrator import task_spec_utils

        step_cache = make_cache(steps, cache_root)
        replacements = (
            (subprocess_task_handler, "run_local_subprocess", steps.run),
            (cache, "get_local_cache", lambda: step_cache),
            (
                task_spec_utils,
                "create_parameter_loop_iteration_task_spec",
                keep_task_outputs(task_spec_utils.create_parameter_loop_iteration_task_spec),
            ),
        )
        originals = [(module, name, getattr(module, name)) for module, name, _ in replacements]
    except (ImportError, AttributeError) as error:
        raise WorkError(
            "KFP_VERSION",
            f"this version of kfp cannot run pipelines locally ({error})",
            "pip install 'kfp>=2.17,<3'",
        ) from error
    for module, name, new in replacements:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module, name, old in originals:
            setattr(module, name, old)


def keep_task_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """KFP's builder of one loop iteration, with other tasks' outputs left as they were."""

    def build(original_task_spec: Any, loop_item: Any, loop_task_name: str) -> Any:
        spec = original(original_task_spec, loop_item, loop_task_name)
        for name, given in original_task_spec.inputs.parameters.items():
            if given.HasField("task_output_parameter") and not name.endswith("-loop-item"):
                spec.inputs.parameters[name].CopyFrom(given)
        return spec

    return build


def make_cache(steps: Steps, root: Path) -> Any:
    """KFP's file cache, which tells the screen about hits and knows local content inputs."""
    from kfp.local.cache import LocalCache

    class StepCache(LocalCache):  # type: ignore[misc]
        """Keys and hits belong to one thread at a time, so the label waits in a thread local."""

        current = threading.local()

        def compute_key(self, component_name: str, *args: Any, **kwargs: Any) -> str:
            arguments = kwargs["arguments"]
            self.current.label = steps.label(component_name.removeprefix("comp-"), arguments)
            self.current.folder = arguments.get("deploy_dir") or ""
            key: str = super().compute_key(component_name, *args, **kwargs)
            return hashlib.sha256((key + content_digest(arguments)).encode()).hexdigest()

        def get(self, key: str) -> dict[str, Any] | None:
            if steps.stopping or steps.failure:
                return None
            found: dict[str, Any] | None = super().get(key)
            if found is None or (self.current.folder and not Path(self.current.folder).exists()):
                return None
            steps.cached.append(self.current.label)
            steps.screen.line(f"{self.current.label}: cached")
            return found

    return StepCache(str(root))


def content_digest(arguments: Mapping[str, Any]) -> str:
    """What local model folders and prompt files hold: small files' bytes, others' size and time."""
    parts = []
    for name, value in sorted(arguments.items()):
        if name.endswith(CONTENT_INPUTS) and isinstance(value, str) and os.path.exists(value):
            path = Path(value)
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            parts += [_fingerprint(item) for item in files if item.is_file()]
    return "\n".join(parts)


def _fingerprint(path: Path) -> str:
    facts = path.stat()
    if facts.st_size < 1_000_000:
        return f"{path}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return f"{path}:{facts.st_size}:{facts.st_mtime_ns}"
