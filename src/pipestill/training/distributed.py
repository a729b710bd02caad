"""One run over several processes, a device each: FSDP2, without a change to the result.

Every process holds the whole data set and draws the same steps. Of each forward pass it computes
its share of the sequences; the loss's token counts are those of the whole step, so that the
gradients add up to those of one process whatever their number. Weights, gradients and optimizer
state are cut into equal parts (`torch.distributed.fsdp.fully_shard`), one a process.
"""

import contextlib
import copy
import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

# Longer than any checkpoint takes to write, during which the other processes wait.
PATIENCE = datetime.timedelta(hours=2)
SEED_STRIDE = 1_000_003  # between the random states of neighbouring processes


@dataclass(frozen=True)
class World:
    """This process among its peers. `device` is its own (``cuda:3``, ``cpu``); empty when alone."""

    rank: int = 0
    size: int = 1
    device: str = ""
    backend: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


ALONE = World()


def join() -> World:
    """Joins the processes that torchrun started (its environment says which), if it did."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Gloo stays beside NCCL: what only the host needs to know never waits for the device.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    return current()


def leave() -> None:
    """Ends what `join` began."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def current() -> World:
    """The world that this process joined, or `ALONE`."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    on_gpu = torch.cuda.is_available()
    device = f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu"
    return World(dist.get_rank(), dist.get_world_size(), device, dist.get_backend())


def all_sum(value: Any, world: World) -> Any:
    """A tensor added up over all processes, in place where there are several. No host sync."""
    if world.size > 1:
        import torch.distributed as dist

        dist.all_reduce(value)
    return value


def any_of(flag: bool, world: World) -> bool:
    """Whether the flag is set in any process. Costs a message between hosts, no device sync."""
    if world.size == 1:
        return flag
    import torch

    return bool(all_sum(torch.tensor([int(flag)]), world).item())


def from_main(value: Any, world: World) -> Any:
    """A plain value as the first process has it."""
    if world.size == 1:
        return value
    import torch
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def share(part: Sequence[Item], world: World) -> tuple[list[Item], float]:
    """This process's items of one forward pass, and the factor of their loss.

    FSDP averages gradients over the processes, so the factor is their number. Every process has to
    run as many passes as its peers: where there are too few items, some repeat one with factor 0.
    """
    mine = list(part[world.rank :: world.size])
    return (mine, float(world.size)) if mine else ([part[0]], 0.0)


def wrap(model: Any, world: World) -> Any:
    """A sharded twin of `model`, within a root whose call is ``root(function, *arguments)``.

    ``root(f, a)`` gives ``f(twin, a)`` with the outer weights gathered meanwhile, so `f` may call
    parts of the model by themselves; each block gathers its own weights when it runs. The twin is
    ``root.inner``. `model` itself keeps its structure, and its weights on the CPU in the first
    process only.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    class Root(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
            return function(self.inner, *arguments)

    # The twin has modules of its own around the same weights, so that nothing is copied.
    twin = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    root = Root(twin)
    mesh = init_device_mesh(torch.device(world.device).type, (world.size,))
    for block in blocks(twin):
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh)
    for weight in model.parameters():
        weight.data = weight.data.cpu() if world.is_main else torch.empty(0, dtype=weight.dtype)
    return root


def blocks(model: Any) -> list[Any]:
    """The repeated layers, as the model class itself names them; none where it names none."""
    named = (getattr(module, "_no_split_modules", None) for module in model.modules())
    names = set(next(filter(None, named), ()))
    # A sharded layer's class is a new one, made from the class that is named.
    return [m for m in model.modules() if names & {kind.__name__ for kind in type(m).__mro__}]


def reshard(root: Any) -> None:
    """Lets go of gathered weights, so that the model's parameters are the sharded ones again."""
    if root is not None:
        for module in root.modules():
            with contextlib.suppress(AttributeError):
                module.reshard()


def whole(value: Any) -> Any:
    """The full tensor of a sharded one (every process has to call this), another one as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def put(target: Any, value: Any, world: World) -> None:
    """Fills `target` in place, in every process, from the `value` that the first one has."""
    if hasattr(target, "full_tensor"):
        target.copy_(like(target, value))
        return
    if world.is_main:
        target.copy_(value)
    if world.size > 1:
        import torch.distributed as dist

        dist.broadcast(target, src=0)


def like(target: Any, value: Any) -> Any:
    """The first process's `value`, sharded as `target` is (of the same shape)."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import distribute_tensor

    device = target.device
    if dist.get_rank() == 0:
        full = value.to(device, target.dtype)
    else:
        full = torch.empty(target.shape, dtype=target.dtype, device=device)
    return distribute_tensor(full, target.device_mesh, target.placements)
