"""TPUs through torch_xla, imported only where ``PJRT_DEVICE`` is set.

One process drives all chips of its host (SPMD): it runs the same program as on one device, weights
are cut over the chips by their first dimension, and the compiler puts in what has to be exchanged.
So the loop, the loss and the token counts are those of one process. What is not done here: several
hosts, and shapes that repeat (every new batch shape is compiled anew).
"""

import copy
import os
from typing import Any

DEVICE = "xla:0"


def wanted() -> bool:
    """Whether this process is to use XLA: ``PJRT_DEVICE`` is ``TPU``, or ``CPU`` for a trial."""
    return bool(os.environ.get("PJRT_DEVICE"))


def start() -> None:
    """Makes the chips one logical device. To be called before anything is put on them."""
    import torch_xla.runtime as runtime

    runtime.use_spmd()


def placed(model: Any) -> Any:
    """A twin of `model` on the device, its weights cut over the chips."""
    import numpy
    import torch_xla
    import torch_xla.distributed.spmd as spmd
    import torch_xla.runtime as runtime

    start()
    chips = runtime.global_runtime_device_count()
    mesh = spmd.Mesh(numpy.arange(chips), (chips,), ("chips",))
    twin = copy.deepcopy(model).to(torch_xla.device())
    if hasattr(twin, "tie_weights"):
        twin.tie_weights()  # moving to the device gave tied weights a tensor each
    for weight in twin.parameters():
        if weight.dim() > 1 and weight.shape[0] % chips == 0:
            spmd.mark_sharding(weight, mesh, ("chips", *[None] * (weight.dim() - 1)))
    return twin


def run_step() -> None:
    """Compiles and runs what was recorded since the last call."""
    import torch_xla

    torch_xla.sync()
