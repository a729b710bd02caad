"""`pipestill run`: a whole pipeline on this machine, each step in its own process."""

import argparse
import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pipestill run`."""
    parser.description = __doc__
    parser.add_argument("pipeline", metavar="PIPELINE", help="such as distill_step_by_step")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file of parameters")
    parser.add_argument(
        "--set",
        dest="assignments",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one parameter, as teacher_backend=replay or teacher.backend=replay; may be repeated",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="the run's folder; default: runs/<config's name>"
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="run every step again (the journal of paid teacher calls is kept)",
    )


def main(args: argparse.Namespace) -> int:
    """Runs the pipeline; prints a line per step, then the table, the verdict and the report."""
    from pipestill.claims.settings import check_settings
    from pipestill.cli import settings
    from pipestill.pipelines import build
    from pipestill.pipelines.local import run_local

    graph = build(args.pipeline)
    parameters = settings.load(args.config, args.assignments, parameter_types(graph))
    refuse_too_big(parameters)
    check_settings(args.pipeline, parameters)
    out = Path(
        args.out or Path("runs") / (Path(args.config).stem if args.config else args.pipeline)
    )
    print(f"{args.pipeline} → {out}", flush=True)
    summary = run_local(graph, parameters, out, fresh=args.fresh)
    print(closing(summary, out))
    return 0


def refuse_too_big(parameters: dict[str, Any]) -> None:
    """Refuses models that this machine has no memory for, before a step starts.

    A folder is counted; a name outside the catalogue is allowed, its size being unknown here.

    Raises:
        UserError: ``MODEL_TOO_BIG`` with the arithmetic.
    """
    from pipestill.models.catalogue import check_fits, find

    asked = [("student_model_reference", "dss"), ("model_reference", "inference")]
    if parameters.get("teacher_backend", "transformers") == "transformers":
        asked.append(("teacher_model_reference", "inference"))
    for name, method in asked:
        reference = str(parameters.get(name, ""))
        if reference and (find(reference) or Path(reference).is_dir()):
            check_fits(reference, method, "cpu-local", memory_gb=machine_memory_gb())


def machine_memory_gb() -> float | None:
    """Memory of this machine's GPUs or of the machine itself; None where a person has set it."""
    if os.environ.get("PIPESTILL_MEMORY_GB"):
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    gpus: list[int] = []
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        shown = subprocess.run(  # noqa: S603 (a fixed command)
            query, capture_output=True, text=True, timeout=10, check=True
        )
        gpus = [int(line) for line in shown.stdout.split()]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return max(sum(gpus) * 1.048576 / 1e3, whole)


def parameter_types(graph: Any) -> dict[str, type]:
    """A pipeline's parameters and their Python types."""
    from pipestill.cli.settings import TYPES

    inputs = graph.component_spec.inputs or {}
    return {name: TYPES[_kind(spec.type)] for name, spec in inputs.items()}


def _kind(name: str) -> str:
    words = {"String": "STRING", "Integer": "NUMBER_INTEGER", "Float": "NUMBER_DOUBLE"}
    return words.get(name) or {"Boolean": "BOOLEAN", "List": "LIST"}.get(name, name)


def closing(summary: dict[str, Any], out: Path) -> str:
    """What the screen shows at the end of a run."""
    from pipestill.cli.report import findings

    steps = summary["steps"]
    lines = [
        "",
        *findings(summary),
        "",
        f"{summary['seconds']:.0f} s, {steps['ran']} steps run, {steps['cached']} from the cache",
        *([f"report   {page}"] if (page := out / "report.html").is_file() else []),
        f"summary  {out / 'summary.json'}",
    ]
    served = Path(summary["config"].get("deploy_dir") or out / "none")
    if served.is_dir():
        shown = out / served.name if served == out.absolute() / served.name else served
        lines.append(f"model    {shown}   (pipestill serve {shown})")
    return "\n".join(lines)
