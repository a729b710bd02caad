"""Breaks things on purpose, all of them: ``python -m benchmarks.soak [--seed 0] [--only data]``.

Kills, corrupted data, half-written checkpoints, a bad teacher, doubled steps, a wrong clock and
hostile inputs, each in a group of its own. One line a fault, a table at the end, the same as JSON
(``--json FILE``). Exit code 1 where anything was not survived, a row was lost or a call paid twice.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PIPESTILL_CODE_VERSION", "soak")  # the checkout may change under a long run

from benchmarks.soak.tally import Tally, table

# group → module with `run(folder, dice, tally, minutes)`; the longest comes last and gets the rest
GROUPS = {
    name: f"benchmarks.soak.{name}"
    for name in ("data", "checkpoint", "teacher", "doubled", "clock", "hostile", "kill")
}
MINUTES = 14.0


def soak(names: list[str], seed: int, minutes: float, folder: Path) -> list[Tally]:
    """Runs the groups one after the other; a group that breaks is one that was not survived."""
    deadline = time.monotonic() + minutes * 60
    tallies = []
    for name in names:
        tally, began = Tally(name), time.monotonic()
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        left = max(1.0, (deadline - began) / 60)
        try:
            module = importlib.import_module(GROUPS[name])
            module.run(folder / name, random.Random(f"{seed}:{name}"), tally, left)  # noqa: S311
        except Exception as error:
            traceback.print_exc()
            tally.failures.append(f"the group itself broke: {type(error).__name__}: {error}")
        tally.seconds = time.monotonic() - began
        tallies.append(tally)
    return tallies


def main(argv: list[str] | None = None) -> int:
    """Parses, runs, prints the table and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(GROUPS), metavar="GROUP",
                        help=f"one of {', '.join(GROUPS)}; may be repeated")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--json", metavar="FILE", default="")
    parser.add_argument("--keep", metavar="DIR", help="work in this folder and leave it")
    given = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pipestill-soak-") as temporary:
        folder = Path(given.keep or temporary)
        tallies = soak(given.only or list(GROUPS), given.seed, given.minutes, folder)
    print(f"\n{table(tallies)}\n\nseed {given.seed}, {time.monotonic() - began:.0f} s")
    whole = all(item.whole for item in tallies)
    if given.json:
        about = {"seed": given.seed, "whole": whole, "seconds": round(time.monotonic() - began, 1)}
        text = json.dumps({**about, "groups": [item.row() for item in tallies]}, indent=2)
        Path(given.json).write_text(text + "\n", encoding="utf-8")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
