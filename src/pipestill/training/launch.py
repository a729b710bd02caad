"""Starts one process a GPU inside one container, and hands back what the function returned.

A step's container is started once, however many GPUs its machine has. So a training function that
is marked by `over_processes` first asks how many there should be: above 1, torchrun starts that
many processes, each of which calls the function again, with its peers joined.

Run by torchrun: ``python -m torch.distributed.run … -m pipestill.training.launch FOLDER``.
"""

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pipestill import config as configs
from pipestill.errors import PipestillError, UserError, WorkError
from pipestill.records import write_json
from pipestill.training.distributed import join, leave
from pipestill.training.stop import Stopped

Function = TypeVar("Function", bound=Callable[..., Any])

CALL, RESULT, STOPPED = "call.json", "result.json", "stopped"
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def processes() -> int:
    """How many processes a training run should have in this container.

    ``PIPESTILL_PROCESSES`` where it is set, else the visible GPUs, at least 1. Always 1 within a
    process that torchrun has started, and on TPUs, whose runtime starts its own.
    """
    if "WORLD_SIZE" in os.environ or "PJRT_DEVICE" in os.environ:
        return 1
    wanted = os.environ.get("PIPESTILL_PROCESSES", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    import torch

    return max(1, int(torch.cuda.device_count()))


def over_processes(function: Function) -> Function:
    """Has a training function run in as many processes as `processes` says.

    Its arguments and result are those that `launch` takes. It is also run by every process that
    torchrun started by itself.
    """

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        count = processes()
        if count == 1:
            return function(*given, **named)
        arguments = inspect.signature(function).bind(*given, **named).arguments
        return launch(f"{function.__module__}:{function.__qualname__}", arguments, count)

    return cast(Function, call)


def launch(function: str, arguments: Mapping[str, Any], count: int) -> Any:
    """Calls a function in `count` processes that have joined; returns what the first one returned.

    SIGTERM is passed on, and the processes' checkpoint awaited.

    Args:
        function: ``package.module:name``; its result has to be plain JSON.
        arguments: by name: plain JSON values, paths, and dataclasses of `pipestill.config`.
        count: from `processes`.

    Raises:
        UserError, WorkError: what a process raised; ``PROCESS_FAILED`` where one ended otherwise.
        Stopped: SIGTERM came and the checkpoint is written.
    """
    with tempfile.TemporaryDirectory(prefix="pipestill-launch-") as name:
        folder = Path(name)
        packed = {key: _packed(value) for key, value in arguments.items()}
        write_json(folder / CALL, {"function": function, "arguments": packed})
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={count}", "-m", "pipestill.training.launch", name]
        agent = subprocess.Popen(  # noqa: S603
            command, env=_environment(count), preexec_fn=_end_with_parent
        )
        with _passing_on(agent, folder) as asked:
            code = agent.wait()
        return _outcome(folder, code, asked.is_set())


def main(folder: Path) -> None:
    """What each of the processes does."""
    _end_with_parent(signal.SIGKILL)
    rank = os.environ["RANK"]
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    call = json.loads((folder / CALL).read_text(encoding="utf-8"))
    module, _, name = call["function"].partition(":")
    world = join()
    try:
        arguments = {key: _unpacked(value) for key, value in call["arguments"].items()}
        result = getattr(importlib.import_module(module), name)(**arguments)
    except Stopped:
        (folder / STOPPED).touch()
        return
    except PipestillError as error:
        told = {"kind": type(error).__name__, "code": error.code}
        told |= {"message": error.message, "hint": error.hint}
        write_json(folder / f"error-{rank}.json", told)
        sys.exit(error.exit_code)
    if world.is_main:
        write_json(folder / RESULT, result)
    leave()


def _outcome(folder: Path, code: int, stopped: bool) -> Any:
    if (folder / STOPPED).exists():
        raise Stopped
    errors = sorted(folder.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        told = json.loads(errors[0].read_text(encoding="utf-8"))
        kind = UserError if told["kind"] == "UserError" else WorkError
        raise kind(told["code"], told["message"], told["hint"])
    if stopped:
        raise Stopped  # before the first step: there was nothing to save yet
    if code or not (folder / RESULT).exists():
        raise WorkError(
            "PROCESS_FAILED",
            f"a training process ended before its time (code {code})",
            "its own message stands above in this log",
        )
    return json.loads((folder / RESULT).read_text(encoding="utf-8"))


@contextlib.contextmanager
def _passing_on(agent: "subprocess.Popen[bytes]", folder: Path) -> Iterator[threading.Event]:
    """Sends a SIGTERM of ours to the training processes themselves.

    Torchrun would kill them 30 seconds later, which may be too soon for a large checkpoint; it is
    asked only where no process has begun.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(*_: Any) -> None:
        asked.set()
        begun = list(folder.glob("pid-*"))
        for path in begun:
            with contextlib.suppress(ValueError, ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGTERM)
        if not begun:
            agent.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent(number: int = signal.SIGTERM) -> None:
    """Has Linux send a signal when the parent dies, so that a killed step leaves nobody behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, int(number))


def _environment(count: int) -> dict[str, str]:
    cores = os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // count)), **os.environ}


def _packed(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"config": type(value).__name__, "values": dataclasses.asdict(value)}
    return str(value) if isinstance(value, Path) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"config", "values"}:
        return getattr(configs, value["config"])(**value["values"])
    return value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
