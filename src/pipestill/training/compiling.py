"""torch.compile, block by block, where it pays: on a GPU."""

import sys
from typing import Any

from pipestill.errors import UserError

MODES = ("auto", "on", "off")


def compile_blocks(model: Any, mode: str, device: str, backend: str = "inductor") -> int:
    """Compiles every repeated block of `model` in place; returns how many.

    Block by block, because one block's code serves them all and compiles in seconds, and because
    the LM head stays outside, where it runs at chosen positions. Lengths are compiled as variable,
    so that not every batch is compiled anew. Names of weights stay as they are.

    Args:
        model: a transformers model.
        mode: ``auto`` (on a GPU), ``on``, ``off``. A CPU gains too little for the minutes it takes:
            there ``on`` is a line on stderr and nothing else.
        device: where the model computes.
        backend: of torch.compile.

    Raises:
        UserError: ``COMPILE_MODE``.
    """
    from pipestill.training.distributed import blocks

    if mode not in MODES:
        raise UserError("COMPILE_MODE", f"compile: found {mode!r}, allowed: {', '.join(MODES)}")
    if mode == "off" or (device == "cpu" and backend == "inductor"):
        if mode == "on":
            print("compile is off: it needs a GPU", file=sys.stderr, flush=True)
        return 0
    found = blocks(model)
    for block in found:
        block.compile(dynamic=True, backend=backend)
    return len(found)
