"""Run by several processes at once: `two.train` with compiled blocks, and how often they ran.

The backend keeps torch's own operators, so it needs no C++ compiler; all before it is as on a GPU.
``python -m torch.distributed.run … tests/training/two_compiled.py KIND OBJECTIVE OUT``
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

from torch._dynamo.backends.debugging import aot_eager

from pipestill.training import compiling
from pipestill.training.distributed import current, join, leave
from tests.training import tiny, two

counts = {"graphs": 0, "runs": 0}


def backend(graph: Any, inputs: Any) -> Any:
    counts["graphs"] += 1
    compiled = aot_eager(graph, inputs)

    def run(*arguments: Any) -> Any:
        counts["runs"] += 1
        return compiled(*arguments)

    return run


if __name__ == "__main__":
    join()
    compiling.compile_blocks = functools.partial(compiling.compile_blocks, backend=backend)
    two.config = functools.partial(tiny.config, compile="on")
    two.train(*sys.argv[1:])
    Path(f"{sys.argv[3]}.{current().rank}.json").write_text(json.dumps(counts))
    leave()
