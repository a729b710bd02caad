"""Runs a pipeline on this machine by KFP's local runner, each step in its own process.

Everything lies in the run's folder: ``artifacts/`` (what the steps wrote), ``cache/`` (which of
them are finished, so that a second run skips them), ``state/`` (the journal of paid calls and the
checkpoints), ``logs/``, and at the end ``model/``, ``report.html`` and ``summary.json``.
"""

import builtins
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipestill.errors import UserError, WorkError
from pipestill.pipelines import build
from pipestill.pipelines.failure import explain
from pipestill.pipelines.hooks import hooked
from pipestill.pipelines.screen import Screen
from pipestill.pipelines.steps import LOOP_INPUTS, Steps
from pipestill.records import write_json

# KFP's local runner replaces these inside every argument: the first by the interpreter's path.
FORBIDDEN = ("python3", "{{$")
OWN_FOLDERS = {"state_dir": "state", "deploy_dir": "model"}  # where a run keeps them by default
PLATFORM_ONLY = ("tensorboard_resource_id", "encryption_spec_key_name")


def run_local(
    pipeline: str | Any,
    parameters: Mapping[str, Any],
    out_dir: str | Path,
    *,
    fresh: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs a pipeline to its end; a second call with the same inputs skips the finished steps.

    Args:
        pipeline: a name of `pipestill.pipelines.PIPELINES`, or a kfp pipeline.
        parameters: by name; the others have the pipeline's defaults.
        out_dir: the run's folder, made if missing.
        fresh: forget finished steps and checkpoints; the journal of paid calls stays.
        say: prints a line on the screen; default: standard output.

    Returns:
        The summary that `summary.json` holds, with ``seconds``, ``config`` and ``steps`` added.

    Raises:
        UserError: a step found the user's input wrong, or ``RUN_PARAMETER``, ``RUN_BUSY`` …
        WorkError: a step failed otherwise.
        KeyboardInterrupt: after the running steps were ended.
    """
    graph = build(pipeline) if isinstance(pipeline, str) else pipeline
    out = Path(out_dir).absolute()
    config = resolve(graph, parameters, out)
    refuse_unsafe(config, out)
    for name in ("logs", "state"):
        (out / name).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with locked(out) as lock:
        if fresh:
            forget(out)
        steps = Steps(
            logs=out / "logs",
            screen=Screen(say),
            loops={name: len(config.get(f"{name}s", "1")) for name in LOOP_INPUTS},
            environment=step_environment(config),
            keep_open=(lock,),
        )
        outputs = _run(graph, config, out, steps)
    summary = _collect(outputs, out)
    summary |= {
        "seconds": round(time.monotonic() - began, 1),
        "config": config,
        "steps": {"ran": len(steps.ran), "cached": len(steps.cached)},
    }
    write_json(out / "summary.json", summary)
    return summary


def resolve(graph: Any, parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """All parameters of the run: the given ones, the defaults, and this run's own folders.

    Raises:
        UserError: ``RUN_PARAMETER`` where one is unknown, missing or without effect here.
    """
    inputs = graph.component_spec.inputs or {}
    unknown = [name for name in parameters if name not in inputs]
    missing = [
        name for name, spec in inputs.items() if not spec.optional and name not in parameters
    ]
    if unknown or missing:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise UserError("RUN_PARAMETER", f"parameters of {graph.name}: {problem}")
    config = {name: parameters.get(name, spec.default) for name, spec in inputs.items()}
    for name, folder in OWN_FOLDERS.items():
        if config.get(name) == "":
            config[name] = str(out / folder)
    for name in PLATFORM_ONLY:
        if config.get(name):
            raise UserError(
                "RUN_PARAMETER",
                f"{name} has no effect in a local run",
                "leave it out here; it belongs to a run on the platform",
            )
    if str(config.get("accelerator_type", "CPU")).upper() != "CPU":
        raise UserError(
            "RUN_PARAMETER",
            f"accelerator_type: found {config['accelerator_type']!r}, a local run has CPU"
            " (a GPU of this machine is used without being named)",
            "leave it out here, or compile the template for that hardware",
        )
    return config


def refuse_unsafe(config: Mapping[str, Any], out: Path) -> None:
    """Refuses what KFP's local runner would silently change inside an argument.

    Raises:
        UserError: ``RUN_UNSAFE_TEXT``.
    """
    for name, value in {**config, "out": str(out)}.items():
        for text in FORBIDDEN:
            if text in json.dumps(value, ensure_ascii=False):
                raise UserError(
                    "RUN_UNSAFE_TEXT",
                    f"{name}: the text {text!r} in {value!r} would be changed on its way to a step",
                    "put prompts and data in files, and use a path or name without it",
                )


def step_environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Environment of every step: quiet tokenizers, and no hub look-ups where all is local."""
    environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    references = [
        value for name, value in config.items() if name.endswith("model_reference") and value
    ]
    references += [text.partition("=")[2] or text for text in config.get("models", [])]
    remote = any(str(value).startswith("hf://") for value in config.values())
    local = all(str(ref).startswith("pocket-") or os.path.isdir(str(ref)) for ref in references)
    if local and not remote:
        environment |= {"HF_HUB_OFFLINE": "1"}
    return environment


@contextlib.contextmanager
def locked(out: Path) -> Iterator[int]:
    """One run at a time in a folder; a step that outlived a killed run still holds the lock.

    Raises:
        UserError: ``RUN_BUSY``.
    """
    with (out / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "RUN_BUSY",
                f"{out}: another run works in this folder (or a step of a killed run still does)",
                "wait for it, or choose another --out",
            ) from None
        yield handle.fileno()


def forget(out: Path) -> None:
    """Removes finished steps, their artifacts and checkpoints; journals of paid calls stay."""
    for name in ("artifacts", "cache"):
        shutil.rmtree(out / name, ignore_errors=True)
    for item in (out / "state").iterdir():
        if item.is_dir() and not item.name.startswith("journal"):
            shutil.rmtree(item)


def _run(graph: Any, config: Mapping[str, Any], out: Path, steps: Steps) -> dict[str, Any]:
    from kfp import local

    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(out / "artifacts"),
        raise_on_error=False,
        enable_caching=True,
        cache_root=str(out / "cache"),
    )
    log = out / "logs" / "run.log"
    with hooked(steps, out / "cache"), ended_by_signals(steps), quiet(log):
        try:
            task = graph(**config)
        finally:
            steps.screen.close()
    if steps.failure:
        raise explain(steps.failure)
    if not task.outputs:
        raise WorkError("RUN_FAILED", f"{graph.name} ended without its outputs", f"full log: {log}")
    outputs: dict[str, Any] = task.outputs
    return outputs


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """KFP's own prints, logs and warnings go to `log`. Its threads swap `print`: undone here."""
    original_print, root = builtins.print, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with (
        log.open("w", encoding="utf-8") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        root.handlers = [logging.StreamHandler(out)]
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            builtins.print = original_print
            root.handlers = handlers
            root.setLevel(level)


@contextlib.contextmanager
def ended_by_signals(steps: Steps) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the running steps before they end us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        steps.stop()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _collect(outputs: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Copies the report beside the artifacts and reads the summary."""
    if "page" in outputs:
        shutil.copyfile(outputs["page"].path, out / "report.html")
    if "summary" not in outputs:
        return {name: value for name, value in outputs.items() if isinstance(value, str)}
    text = Path(outputs["summary"].path).read_text(encoding="utf-8")
    summary: dict[str, Any] = json.loads(text)
    return summary
