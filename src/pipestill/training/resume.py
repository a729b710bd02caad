"""What a run keeps in its checkpoints, and how it goes on from one.

Tensors lie in a checkpoint whole, whatever the number of processes that wrote them: weights are
gathered one by one to the first process, and handed out from there, so that a run goes on with
another number. Every process has to call these functions together.
"""

import dataclasses
from pathlib import Path
from typing import Any

from pipestill.training import checkpoint as checkpoints
from pipestill.training.distributed import (
    ALONE,
    SEED_STRIDE,
    World,
    from_main,
    like,
    put,
    whole,
)
from pipestill.training.progress import Progress


def save(
    model: Any,
    optimizer: Any,
    folder: str | Path,
    progress: Progress,
    best: dict[str, Any],
    world: World,
    keep: int = checkpoints.KEPT,
) -> None:
    """Writes the checkpoint of `progress.step`; `best` are the best validated weights, or empty.

    Raises:
        WorkError: ``CHECKPOINT_NOT_WRITTEN``, in the first process.
    """
    progress.window = [
        {name: [float(value) for value in pair] for name, pair in entry.items()}
        for entry in progress.window
    ]
    moments = {
        f"{kind}/{name}": value
        for name, weight in model.named_parameters()
        for kind, value in optimizer.state.get(weight, {}).items()
    }
    tensors = {
        "model": gathered(weights_of(model), world),
        "optimizer": gathered(moments, world),
        "random": _random_states(model, world),
        "best": best,
    }
    if world.is_main:
        kept = {name: found for name, found in tensors.items() if found}
        state = dataclasses.asdict(progress)
        checkpoints.save(folder, progress.step, checkpoints.Checkpoint(state, kept), keep)


def resume(
    model: Any, optimizer: Any, folder: str | Path | None, world: World
) -> tuple[Progress, dict[str, Any]]:
    """Fills model, optimizer and random state from the newest valid checkpoint, if there is one.

    Returns:
        The progress, and in the first process the best validated weights.

    Raises:
        UserError: ``STATE_DIR_UNWRITABLE``.
        WorkError: ``CHECKPOINTS_UNREADABLE``.
    """
    found = None
    if folder and world.is_main:
        checkpoints.probe(folder)
        found = checkpoints.latest(folder)
    state = from_main(found.state if found else None, world)
    if state is None:
        return Progress(), {}
    tensors = found.tensors if found else {}
    progress = Progress(**state)
    copy_into(model, tensors.get("model", {}), world)
    _fill_optimizer(model, optimizer, tensors.get("optimizer", {}), world)
    _set_random_states(model, tensors.get("random", {}), progress.step, world)
    return progress, {name: value.clone() for name, value in tensors.get("best", {}).items()}


def weights_of(model: Any) -> dict[str, Any]:
    """Every trained weight once (tied ones share a tensor), and the buffers saved with a model."""
    names = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in names}
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {**weights, **buffers}


def gathered(tensors: dict[str, Any], world: World) -> dict[str, Any]:
    """Copies on the CPU in the first process; nothing in the others, which help to gather."""
    found = {}
    for name, value in tensors.items():
        full = whole(value.detach())
        if world.is_main:
            found[name] = full.cpu().clone()
    return found


def copy_into(model: Any, tensors: dict[str, Any], world: World = ALONE) -> None:
    """Overwrites the weights of `model`, in place, by those that the first process has."""
    import torch

    with torch.no_grad():
        for name, value in weights_of(model).items():
            put(value, tensors.get(name), world)


def _fill_optimizer(model: Any, optimizer: Any, moments: dict[str, Any], world: World) -> None:
    """Puts every moment beside its weight. A step count is a scalar that no process cuts."""
    weights = dict(model.named_parameters())
    names = from_main([(key, value.dim()) for key, value in moments.items()], world)
    for key, dimensions in names:
        kind, _, name = key.partition("/")
        weight = weights[name]
        value: Any = moments.get(key)  # None but in the first process
        if hasattr(weight, "full_tensor"):
            value = like(weight, value) if dimensions else from_main(value, world)
        optimizer.state[weight][kind] = value.to(weight.device, copy=True)


def _random_states(model: Any, world: World) -> dict[str, Any]:
    """The random states of all processes by rank, in the first process."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(model.device)
    if world.size == 1:
        everyone: list[Any] = [states]
    else:
        everyone = [None] * world.size
        torch.distributed.all_gather_object(everyone, states)
    return {
        f"{kind}-{rank}": state for rank, own in enumerate(everyone) for kind, state in own.items()
    }


def _set_random_states(model: Any, states: dict[str, Any], step: int, world: World) -> None:
    """Each process's own state; a number of processes that it was not written by draws anew."""
    import torch

    states = from_main(states, world)
    if f"cpu-{world.size - 1}" not in states or f"cpu-{world.size}" in states:
        torch.manual_seed(step + SEED_STRIDE * (world.rank + 1))
        return
    torch.set_rng_state(states[f"cpu-{world.rank}"])
    if f"device-{world.rank}" in states:
        torch.cuda.set_rng_state(states[f"device-{world.rank}"], model.device)
