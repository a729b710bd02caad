"""Generation that rows join and leave at any step (continuous batching), for models that allow it.

The rows of a batch share one key-value cache. A row that joins is read on its own, and its cache is
padded on the left and put under the others'; the padding is masked. So positions must not depend on
the place in the cache: a decoder has to take ``position_ids``, an encoder-decoder has to use
relative positions, as T5 does. Rows that are done leave at once. Greedy: the tokens are those of
`generate`, up to rounding. (Iteration-level scheduling: Yu et al. 2022, Orca, OSDI, section 4.)
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from pipestill.models.student import padded

RELATIVE = ("t5", "mt5", "umt5")


class Flow:
    """The rows under way. Places are those of the rows that were added, in order, and kept."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        self._both = bool(model.config.is_encoder_decoder)
        self._last_only = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}
        self.clear()

    def clear(self) -> None:
        """Forgets all rows."""
        self._cache: Any = None
        self._mask = self._encoded = self._encoder_mask = self._tokens = torch.empty(0)

    def add(self, prompts: Sequence[list[int]]) -> list[int]:
        """Lets rows join; returns the first new token of each."""
        with torch.inference_mode():
            old = self._state()
            self._read(prompts)
            first: list[int] = self._tokens.tolist()
            if old:
                self._join(old)
        return first

    def step(self) -> list[int]:
        """The next token of every row."""
        with torch.inference_mode():
            self._mask = pad(self._mask, (0, 1), value=1)
            self._run(self._tokens[:, None])
            tokens: list[int] = self._tokens.tolist()
        return tokens

    def keep(self, places: Sequence[int]) -> None:
        """Lets all other rows leave."""
        if not places:
            self.clear()
            return
        rows = torch.tensor(places, device=self._mask.device)
        self._tokens, mask = self._tokens[rows], self._mask[rows]
        empty = int(mask.any(0).int().argmax())  # columns that only the leaving rows had filled
        self._mask = mask[:, empty:]
        for layer in _self_layers(self._cache):
            layer.keys, layer.values = (p[rows, :, empty:] for p in (layer.keys, layer.values))
        for layer in _cross_layers(self._cache):
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if self._both:
            self._encoded, self._encoder_mask = self._encoded[rows], self._encoder_mask[rows]

    def _state(self) -> tuple[Any, ...] | None:
        if self._cache is None:
            return None
        return self._cache, self._mask, self._tokens, self._encoded, self._encoder_mask

    def _read(self, prompts: Sequence[list[int]]) -> None:
        """Makes the prompts the only rows."""
        ids, mask = padded(prompts, self._pad_id, left=not self._both)
        ids, mask, self._cache = ids.to(self._model.device), mask.to(self._model.device), None
        if not self._both:
            self._mask = mask
            self._run(ids)
            return
        self._encoder_mask = mask
        encoder = self._model.get_encoder()
        self._encoded = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        start = self._model.generation_config.decoder_start_token_id
        start = self._model.config.decoder_start_token_id if start is None else start
        first = torch.full((len(prompts), 1), int(start), device=ids.device)
        self._mask = torch.ones_like(first)
        self._run(first)

    def _run(self, tokens: torch.Tensor) -> None:
        arguments: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        if self._both:
            arguments |= {"decoder_input_ids": tokens, "decoder_attention_mask": self._mask}
            arguments |= {"encoder_outputs": (self._encoded,), "attention_mask": self._encoder_mask}
        else:
            places = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            arguments |= {"input_ids": tokens, "attention_mask": self._mask, "position_ids": places}
        out = self._model(**arguments, **self._last_only)
        self._cache, self._tokens = out.past_key_values, out.logits[:, -1].argmax(-1)

    def _join(self, old: tuple[Any, ...]) -> None:
        """Puts the rows that were there before the new ones."""
        cache, mask, tokens, encoded, encoder_mask = old
        pairs = zip(_self_layers(cache), _self_layers(self._cache), strict=True)
        for before, after in pairs:
            after.keys = _under(before.keys, after.keys, -2, left=True)
            after.values = _under(before.values, after.values, -2, left=True)
        pairs = zip(_cross_layers(cache), _cross_layers(self._cache), strict=True)
        for before, after in pairs:
            after.keys = _under(before.keys, after.keys, -2, left=False)
            after.values = _under(before.values, after.values, -2, left=False)
        self._mask = _under(mask, self._mask, -1, left=True)
        self._tokens = torch.cat([tokens, self._tokens])
        if self._both:
            self._encoded = _under(encoded, self._encoded, -2, left=False)
            self._encoder_mask = _under(encoder_mask, self._encoder_mask, -1, left=False)


def flow_of(student: Any) -> Flow | None:
    """A `Flow` for a `Student`, or None where its model does not allow one."""
    model = student.loaded.model
    flow = Flow(model, student.renderer.tokenizer.pad_token_id)
    if student.loaded.is_encoder_decoder:
        return flow if model.config.model_type in RELATIVE else None
    if not _takes(model, "position_ids"):
        return None
    flow.add([[flow._pad_id]])
    plain = _is_plain(flow._cache)
    flow.clear()
    return flow if plain else None


def _is_plain(cache: Any) -> bool:
    """Whether all layers are full attention: no window, no recurrent state."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _self_layers(cache: Any) -> list[Any]:
    return list(getattr(cache, "self_attention_cache", cache).layers)


def _cross_layers(cache: Any) -> list[Any]:
    cross = getattr(cache, "cross_attention_cache", None)
    return list(cross.layers) if cross is not None else []


def _under(above: torch.Tensor, below: torch.Tensor, axis: int, *, left: bool) -> torch.Tensor:
    """Both, one under the other along the first axis, padded with 0 to the same size of `axis`."""
    width = max(above.shape[axis], below.shape[axis])

    def widened(part: torch.Tensor) -> torch.Tensor:
        missing = width - part.shape[axis]
        sides = (missing, 0) if left else (0, missing)
        return pad(part, (0, 0) * (-axis - 1) + sides) if missing else part

    return torch.cat([widened(above), widened(below)])


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters
