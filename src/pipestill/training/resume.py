"""What a run keeps in its checkpoints, and how it goes on from one."""

import dataclasses
from pathlib import Path
from typing import Any

from pipestill.training import checkpoint as checkpoints
from pipestill.training.progress import Progress


def save(
    model: Any, optimizer: Any, folder: Path, progress: Progress, best: dict[str, Any]
) -> None:
    """Writes the checkpoint of `progress.step`; `best` are the best validated weights, or empty."""
    import torch

    progress.window = [[float(value) for value in entry] for entry in progress.window]
    random = {"cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        random["device"] = torch.cuda.get_rng_state(model.device)
    moments = {
        f"{kind}/{name}": value
        for name, weight in model.named_parameters()
        for kind, value in optimizer.state.get(weight, {}).items()
    }
    tensors = {"model": weights_of(model), "optimizer": moments, "random": random, "best": best}
    kept = {name: found for name, found in tensors.items() if found}
    state = dataclasses.asdict(progress)
    checkpoints.save(folder, progress.step, checkpoints.Checkpoint(state, kept))


def resume(model: Any, optimizer: Any, folder: Path | None) -> tuple[Progress, dict[str, Any]]:
    """Fills model, optimizer and random state from the newest whole checkpoint, if there is one."""
    import torch

    found = checkpoints.latest(folder) if folder else None
    if found is None:
        return Progress(), {}
    copy_into(model, found.tensors["model"])
    weights = dict(model.named_parameters())
    for key, value in found.tensors["optimizer"].items():
        kind, _, name = key.partition("/")
        optimizer.state[weights[name]][kind] = value.to(weights[name].device)
    torch.set_rng_state(found.tensors["random"]["cpu"])
    if "device" in found.tensors["random"]:
        torch.cuda.set_rng_state(found.tensors["random"]["device"], model.device)
    return Progress(**found.state), found.tensors.get("best", {})


def weights_of(model: Any) -> dict[str, Any]:
    """Every weight once (tied ones share a tensor) and the buffers that are saved with a model."""
    names = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in names}
    return {**dict(model.named_parameters()), **buffers}


def copy_into(model: Any, tensors: dict[str, Any]) -> None:
    """Overwrites the weights of `model`, in place, by those that `weights_of` gave."""
    import torch

    with torch.no_grad():
        for name, value in weights_of(model).items():
            value.copy_(tensors[name])
