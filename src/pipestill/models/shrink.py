"""A student with fewer layers, cut from a bigger model of the same kind.

The layers that stay are picked evenly, first and last among them, with the weights that they have
(as DistilBERT starts from every other layer of its teacher: Sanh et al. 2019, arXiv 1910.01108,
section 3). Embeddings, norms and head stay as they are. T5's relative positions are computed in its
first layer for all others, which is always kept.
"""

import copy
import dataclasses
from typing import Any

from pipestill.errors import UserError
from pipestill.models.loading import Loaded

# What configurations call the number of layers of a stack, in the order of trust.
DECODER_COUNTS = ("num_decoder_layers", "decoder_layers", "num_hidden_layers", "n_layer")
ENCODER_COUNTS = ("encoder_layers", "num_layers", "num_hidden_layers")
# Lists in a configuration that have an entry a layer.
PER_LAYER = ("layer_types",)


def shrink(loaded: Loaded, layers: str) -> Loaded:
    """A copy of the model with fewer layers; `loaded` itself where `layers` is empty.

    Args:
        loaded: the model.
        layers: a number for every stack (a stack that has no more keeps all), or of an
            encoder-decoder two, ``3+1`` for encoder and decoder.

    Raises:
        UserError: ``LAYERS_UNREADABLE``, ``LAYERS_TOO_MANY``, ``LAYERS_NOT_FOUND`` (a model whose
            layers cannot be told apart).
    """
    if not layers:
        return loaded
    stacks = stacks_of(loaded.model)
    kept = {
        name: even_layers(len(stacks[name][1]), wanted)
        for name, wanted in _wanted(layers, stacks).items()
    }
    small = _cut(loaded.model, stacks, kept)
    size = sum(weight.numel() for weight in small.parameters())
    return dataclasses.replace(loaded, model=small, parameters=size)


def even_layers(total: int, wanted: int) -> list[int]:
    """`wanted` of `total` layers, evenly; the first and the last, or of one the first."""
    if wanted == 1:
        return [0]
    return [round(i * (total - 1) / (wanted - 1)) for i in range(wanted)]


def stacks_of(model: Any) -> dict[str, tuple[str, Any]]:
    """Stack (``encoder``, ``decoder``) → the name and the list of its layers within the model.

    Raises:
        UserError: ``LAYERS_NOT_FOUND``.
    """
    both = bool(model.config.is_encoder_decoder)
    roots = {"decoder": model.get_decoder() if both else model.base_model}
    if both:
        roots = {"encoder": model.get_encoder(), **roots}
    return {name: _layers(model, root, name) for name, root in roots.items()}


def _layers(model: Any, root: Any, stack: str) -> tuple[str, Any]:
    import torch

    count = _count(model.config, stack)[1]
    inside = {id(module) for module in root.modules()}
    for name, module in model.named_modules():
        if (
            isinstance(module, torch.nn.ModuleList)
            and id(module) in inside
            and len(module) == count
        ):
            return name, module
    raise UserError(
        "LAYERS_NOT_FOUND",
        f"{type(model).__name__}: its {stack} has no list of {count} layers",
        "give a student of the wanted size as student_model_reference, and no @LAYERS",
    )


def _count(config: Any, stack: str) -> tuple[str, int]:
    """The name of the field that holds the number of layers, and the number."""
    encoder = config.is_encoder_decoder and stack == "encoder"
    for name in ENCODER_COUNTS if encoder else DECODER_COUNTS:
        found = getattr(config, config.attribute_map.get(name, name), None)
        if found is not None:
            return config.attribute_map.get(name, name), int(found)
    raise UserError("LAYERS_NOT_FOUND", f"{type(config).__name__} does not say how many layers")


def _wanted(text: str, stacks: dict[str, Any]) -> dict[str, int]:
    have = {name: len(layers) for name, (_, layers) in stacks.items()}
    numbers = text.split("+")
    both = len(numbers) == 2
    if not all(number.isdigit() and int(number) for number in numbers) or len(numbers) > 2:
        raise _unreadable(text, have)
    if both and len(have) < 2:
        raise _unreadable(text, have)
    wanted = dict(zip(have, map(int, numbers if both else numbers * len(have)), strict=True))
    if both and any(wanted[name] > have[name] for name in have):
        raise _too_many(text, have)
    if all(wanted[name] > have[name] for name in have):
        raise _too_many(text, have)
    return {name: min(wanted[name], have[name]) for name in have}


def _cut(model: Any, stacks: dict[str, tuple[str, Any]], kept: dict[str, list[int]]) -> Any:
    config = copy.deepcopy(model.config)
    for name, layers in kept.items():
        setattr(config, _count(config, name)[0], len(layers))
    for field in PER_LAYER:
        if getattr(config, field, None):
            setattr(config, field, [getattr(config, field)[i] for i in kept["decoder"]])
    small = type(model)(config).to(device=model.device, dtype=model.dtype)
    small.load_state_dict(_renamed(model.state_dict(), stacks, kept))
    small.generation_config = copy.deepcopy(model.generation_config)
    return small.train(model.training)


def _renamed(
    weights: dict[str, Any], stacks: dict[str, tuple[str, Any]], kept: dict[str, list[int]]
) -> dict[str, Any]:
    """The weights of the layers that are kept, under the numbers that they have now."""
    found = dict(weights)
    for stack, (name, _) in stacks.items():
        inside = {key: value for key, value in found.items() if key.startswith(f"{name}.")}
        for key in inside:
            del found[key]
        for new, old in enumerate(kept[stack]):
            start = f"{name}.{old}."
            for key, value in inside.items():
                if key.startswith(start):
                    found[f"{name}.{new}.{key.removeprefix(start)}"] = value
    return found


def _unreadable(text: str, have: dict[str, int]) -> UserError:
    allowed = "a number from 1, or encoder+decoder" if len(have) == 2 else "a number from 1"
    return UserError(
        "LAYERS_UNREADABLE",
        f"layers: found {text!r}, allowed: {allowed}",
        "for example response@2:0",
    )


def _too_many(text: str, have: dict[str, int]) -> UserError:
    sizes = ", ".join(f"{name} {count}" for name, count in have.items())
    return UserError(
        "LAYERS_TOO_MANY",
        f"layers: found {text!r}, the model has fewer ({sizes})",
        "name a smaller number, or a bigger student_model_reference",
    )
