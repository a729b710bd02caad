"""`pipestill run`: a whole pipeline on this machine, each step in its own process."""

import argparse
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
    from pipestill.cli import settings
    from pipestill.pipelines import build
    from pipestill.pipelines.local import run_local

    graph = build(args.pipeline)
    parameters = settings.load(args.config, args.assignments, parameter_types(graph))
    out = Path(
        args.out or Path("runs") / (Path(args.config).stem if args.config else args.pipeline)
    )
    print(f"{args.pipeline} → {out}", flush=True)
    summary = run_local(graph, parameters, out, fresh=args.fresh)
    print(closing(summary, out))
    return 0


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
    from pipestill.evaluation.summary import format_table

    steps = summary["steps"]
    lines = ["", format_table(summary), "", str(summary.get("verdict_sentence", ""))]
    lines += [f"{note}" for note in summary.get("notes", [])]
    lines += [
        "",
        f"{summary['seconds']:.0f} s, {steps['ran']} steps run, {steps['cached']} from the cache",
        f"report   {out / 'report.html'}",
        f"summary  {out / 'summary.json'}",
    ]
    return "\n".join(lines)
