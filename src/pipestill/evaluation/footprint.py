"""How much memory a model takes to load and to answer one request.

Measured by ``python -m pipestill.evaluation.footprint FOLDER``, a process that has held no other
model. On a GPU it is the peak of what torch has allocated there; the driver's own share is not in
it. On the CPU it is the growth of the resident memory: the highest value while a fork loads the
model and answers, less the value before, when libraries, tokenizer and the model's code were there
and its weights were not. Every arm gets a fork of its own, because freed memory is not always given
back. The highest value is read from Linux's ``/proc`` (`getrusage` may tell a parent's); elsewhere
a model on the CPU is not measured.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipestill.evaluation.one_request import Asked, open_arms
from pipestill.evaluation.teacher_arms import one_line
from pipestill.records import write_json

JOBS = "jobs.json"
STATUS = Path("/proc/self/status")


def peak_memory(arms: Sequence[Asked], text: str) -> dict[str, int | None]:
    """Arm → bytes at the peak of loading the model and answering `text`; None = not measured.

    Why an arm could not be measured is printed; it costs no other arm its result.

    Args:
        arms: who is asked.
        text: one row's input, best the longest.
    """
    import torch

    if not arms or not (torch.cuda.is_available() or STATUS.is_file()):
        return {arm.arm: None for arm in arms}
    with tempfile.TemporaryDirectory(prefix="pipestill-") as name:
        folder = Path(name)
        asked = [dataclasses.asdict(arm) for arm in arms]
        jobs = {"arms": asked, "text": text, "threads": torch.get_num_threads()}
        write_json(folder / JOBS, jobs)
        done = subprocess.run(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", "pipestill.evaluation.footprint", str(folder)],
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        found = {arm.arm: _read(folder / f"{at}.json", last) for at, arm in enumerate(arms)}
    for arm, result in found.items():
        if "error" in result:
            print(f"evaluate: {arm}: memory not measured: {result['error']}", flush=True)
    return {arm: result.get("bytes") for arm, result in found.items()}


def _read(path: Path, otherwise: str) -> Mapping[str, Any]:
    if not path.is_file():
        return {"error": otherwise[:300]}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measure_all(folder: Path) -> None:
    """Measures every arm of ``jobs.json`` and leaves ``<number>.json`` with bytes or an error."""
    import torch

    jobs = json.loads((folder / JOBS).read_text(encoding="utf-8"))
    arms = [Asked(**arm) for arm in jobs["arms"]]
    on_gpu = torch.cuda.is_available()
    if not on_gpu:  # no fork needs to read the models' code again
        for reference in {arm.reference for arm in arms}:
            _without_weights(reference)
    for at, arm in enumerate(arms):
        path = folder / f"{at}.json"
        if on_gpu:  # torch's own count starts anew, and a fork could not use a GPU in use
            write_json(path, _measured(arm, jobs["text"], _on_gpu))
        else:
            _in_fork(path, arm, jobs)


def _in_fork(path: Path, arm: Asked, jobs: Mapping[str, Any]) -> None:
    child = os.fork()
    if child == 0:
        try:
            import torch

            torch.set_num_threads(jobs["threads"])
            write_json(path, _measured(arm, jobs["text"], _on_cpu))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):  # the system takes what needs more memory than there is
        write_json(path, {"error": f"ended by signal {os.WTERMSIG(status)}"})


def _measured(arm: Asked, text: str, measure: Any) -> dict[str, Any]:
    try:
        return {"bytes": measure(arm, text)}
    except Exception as error:
        return {"error": one_line(error)}


def _on_gpu(arm: Asked, text: str) -> int:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    open_arms([arm])[arm.arm](text)
    return int(torch.cuda.max_memory_allocated() - before)


def _on_cpu(arm: Asked, text: str) -> int:
    import torch

    kept = _without_weights(arm.reference)
    with torch.inference_mode():  # starts torch's threads, with the buffers that they keep
        torch.mm(torch.ones(512, 512), torch.ones(512, 512))
    before = _resident("VmRSS")
    open_arms([arm])[arm.arm](text)
    del kept
    return _resident("VmHWM") - before


def _without_weights(reference: str) -> Any:
    """Tokenizer and code of a model; None where it cannot be had, which opening it will say."""
    from pipestill.models.loading import outline

    try:
        return outline(reference)
    except Exception:
        return None


def _resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (the highest so far) of this process."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    measure_all(Path(sys.argv[1]))
