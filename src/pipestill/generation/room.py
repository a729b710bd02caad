"""A key-value cache that starts from a shared prefix and writes new tokens in place.

The library's own cache is joined anew at every step, which copies the whole prefix for every row
and token. Here the prefix is copied once into a buffer that has room for the rest.
"""

import copy
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

KINDS = (DynamicLayer, DynamicSlidingWindowLayer)


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer. `keys` and `values` are views of the filled part: [rows, heads, tokens, width]."""

    def __init__(self, layer: Any, rows: int, room: int) -> None:
        super().__init__()
        self._buffers = [_buffer(layer.keys, rows, room), _buffer(layer.values, rows, room)]
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.is_initialized = True
        self._show(rows, layer.keys.shape[-2])

    def _show(self, rows: int, tokens: int) -> None:
        self._rows, self._tokens = rows, tokens
        self.keys, self.values = (part[:rows, :, :tokens] for part in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, begin = self._rows, self._tokens
        end = begin + key_states.shape[-2]
        for part, new in zip(self._buffers, (key_states, value_states), strict=True):
            part[:rows, :, begin:end] = new
        self._show(rows, end)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows, in this order; a row may only move to a place before its own."""
        kept = [int(row) for row in indices]
        for place, row in enumerate(kept):
            if place != row:
                for part in self._buffers:
                    part[place, :, : self._tokens] = part[row, :, : self._tokens]
        self._show(len(kept), self._tokens)


def can_have_room(cache: Any) -> bool:
    """Whether all layers are plain attention, perhaps with a sliding window."""
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) in KINDS for layer in layers)


def with_room(cache: Any, rows: int, room: int) -> Any:
    """A copy of `cache` for so many rows, with room for so many more tokens; `cache` stays intact.

    The caller makes sure that no sliding window ends within prefix and room together.
    """
    roomy = copy.copy(cache)
    roomy.layers = [RoomyLayer(layer, rows, room) for layer in cache.layers]
    return roomy


def _buffer(filled: torch.Tensor, rows: int, room: int) -> torch.Tensor:
    _, heads, tokens, width = filled.shape
    buffer = filled.new_empty(rows, heads, tokens + room, width)
    buffer[:, :, :tokens] = filled
    return buffer
