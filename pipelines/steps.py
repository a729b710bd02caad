"""The steps of one local run: their processes, logs, and lines on the screen."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.pipelines.failure import Failure
from pipestill.pipelines.screen import Screen

LONGEST_ARGUMENT = 131_000  # bytes; Linux refuses a longer single argument (MAX_ARG_STRLEN)
KILL_AFTER_S = 30.0  # for a last checkpoint, which a step writes when it is asked to stop
REPEATS = 3
STOPPED = 75  # SIGTERM came and the checkpoint is written (pipestill.training.stop)
LOOP_INPUTS = ("run", "shard", "arm")
ITERATION = re.compile(r"-iteration-(\d+)/")


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
    lock: Any = field(default_factory=threading.RLock)  # a signal may come while it is held

    def label(self, name: str, arguments: Mapping[str, Any], place: str) -> str:
        """``student_train dss:0``: the step's name, and its loop item where there are several.

        Where the step does not take the item, the iteration's number in `place`, a path of its
        outputs or of its input, tells it apart.
        """
        items = [
            str(arguments[key]) for key in LOOP_INPUTS if key in arguments and self.loops[key] > 1
        ]
        iteration = ITERATION.search(place)
        if iteration and not any(key in arguments for key in LOOP_INPUTS):
            items = [str(int(iteration[1]) + 1)] if max(self.loops.values()) > 1 else []
        return " ".join([re.sub(r"-\d+$", "", name).replace("-", "_"), *items])

    def run(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Runs one step's command line; stands in for KFP's `run_local_subprocess`."""
        given = json.loads(_argument(full_command, "--executor_input"))
        arguments = given.get("inputs", {}).get("parameterValues", {})
        name = _argument(full_command, "--function_to_execute")
        label = self.label(name, arguments, given.get("outputs", {}).get("outputFile", ""))
        with self.lock:
            if self.stopping or self.failure:
                return 1
            self.ran.append(label)
        self.screen.line(f"{label}: started")
        began = time.monotonic()
        log = self.logs / f"{re.sub(r'[^A-Za-z0-9_]+', '.', label)}.log"
        log.unlink(missing_ok=True)
        for repeat in range(1 + REPEATS):
            returncode = self._process(label, full_command, env_vars or {}, arguments, log)
            cause = interruption(returncode)
            if not cause or repeat == REPEATS or self.stopping or self.failure:
                break
            self._again(f"{cause}; started again ({repeat + 1} of {REPEATS})", label, log)
        took = time.monotonic() - began
        self.screen.ended(label)
        if returncode == 0:
            self.screen.line(f"{label}: done in {took:.1f} s")
        elif not self.stopping:
            self._failed(Failure(label, returncode, log), took)
        return returncode

    def _again(self, text: str, label: str, log: Path) -> None:
        """Says why a step is started again, on the screen and in the log, which goes on."""
        with log.open("a", encoding="utf-8") as out:
            out.write(f"--- {text} ---\n")
        self.screen.line(f"{label}: {text}, goes on from its last checkpoint or journal")

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
        with log.open("a", encoding="utf-8") as out:
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
        """Steps that run two at a time share the cores; a person's own settings are kept.

        Waiting threads sleep: where other work shares the cores, threads that spin instead made a
        small model's generation seven times slower (64 rows on 2 busy cores: 30 s, not 4 s).
        """
        waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
        if "OMP_NUM_THREADS" in os.environ:
            return waiting
        parallel = any(key in arguments and self.loops[key] > 1 for key in LOOP_INPUTS)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        threads = str(max(1, cores // 2 if parallel else cores))
        return waiting | {"OMP_NUM_THREADS": threads}

    def _failed(self, failure: Failure, took: float) -> None:
        with self.lock:
            first = self.failure is None
            self.failure = self.failure or failure
        self.screen.line(f"{failure.label}: failed after {took:.1f} s")
        if first and self.running:
            self.screen.line("waiting for the steps that still run; no other will start")

    def stop(self) -> None:
        """Ends every running step: asks first, and after `KILL_AFTER_S` seconds kills.

        Called from a signal handler. A second call does not wait.
        """
        patience = 0.0 if self.stopping else KILL_AFTER_S
        self.stopping = True
        with self.lock:
            running = list(self.running.values())
        for process in running:
            _signal_family(process, signal.SIGTERM)
        if running and patience:
            self.screen.line(f"stopping: steps have {patience:.0f} s to save; once more kills them")
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(map(_family_lives, running)):
            time.sleep(0.05)
        for process in running:
            _signal_family(process, signal.SIGKILL)


def interruption(returncode: int) -> str:
    """What ended a step that did not fail by itself; empty where nothing from outside did.

    A shell that waits for the step reports its signal as 128 + number.
    """
    if returncode == STOPPED:
        return "stopped by SIGTERM after saving a checkpoint"
    number = -returncode if returncode < 0 else returncode - 128
    return f"killed by signal {number}" if 0 < number < signal.NSIG else ""


def _family_lives(process: subprocess.Popen[str]) -> bool:
    """Whether the step or a process of its own still runs.

    The step's shell dies of SIGTERM at once, while the work below it still saves.
    """
    if process.poll() is None:
        return True
    with contextlib.suppress(ChildProcessError):  # where we are a container's first process, the
        os.waitpid(-process.pid, os.WNOHANG)  # shell's children are ours to bury
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


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
