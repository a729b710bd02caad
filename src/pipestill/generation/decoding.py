"""A batched decode loop that can start from a shared prefix, with samples of their own seeds.

Plain `generate` cannot give every row its own random stream, stop a row at a string, or start many
rows from one cached prefix. The tokens are those of plain greedy generation: rows of a batch are
padded between prefix and query, the padding is masked and the positions skip it.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipestill.generation.room import can_have_room, with_room

Ids = list[int]


@dataclass(frozen=True)
class Prefix:
    """The keys and values of token ids that many prompts begin with (batch of 1).

    `reach` is the most tokens, padding and new ones included, that a row may come to: the smallest
    sliding window of the model's layers, or None where all layers see everything.
    """

    ids: tuple[int, ...]
    cache: Any
    reach: int | None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When a row ends and how its next token is chosen.

    `stopped` looks at a row's new tokens. `temperature` 0 is greedy; otherwise row i draws from the
    generator of its own seed.
    """

    max_new_tokens: int
    end_ids: frozenset[int]
    stopped: Callable[[Ids], bool]
    temperature: float = 0.0


def compute_prefix(model: Any, ids: Sequence[int]) -> Prefix | None:
    """Runs the model over a prefix once; None where its state cannot be shared that way.

    Only a cache of attention layers is taken: it can be expanded over a batch, and masked padding
    in its middle changes nothing as long as no sliding window ends within the row, because windows
    count padding. Recurrent states cannot be padded in the middle at all.
    """
    if not ids:
        return None
    tokens = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        cache = model(input_ids=tokens, use_cache=True, **_last_logits(model)).past_key_values
    if not can_have_room(cache):
        return None
    windows = [layer.sliding_window for layer in cache.layers if layer.is_sliding]
    reach = min(windows, default=None)
    return None if reach is not None and len(ids) >= reach else Prefix(tuple(ids), cache, reach)


def fits(prefix: Prefix, prompts: Sequence[Ids], max_new_tokens: int) -> bool:
    """Whether a batch of prompts may start from this prefix."""
    size = len(prefix.ids)
    longest = max(len(ids) for ids in prompts) + max_new_tokens
    return (prefix.reach is None or longest <= prefix.reach) and all(
        len(ids) > size and tuple(ids[:size]) == prefix.ids for ids in prompts
    )


def decode_batch(
    model: Any, prompts: Sequence[Ids], rules: Rules, *, seeds: Sequence[int], prefix: Prefix | None
) -> list[Ids]:
    """New tokens of every prompt, for a decoder-only model.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids; where `prefix` is given, every prompt begins with its ids and is longer.
        rules: end and choice of tokens.
        seeds: one per prompt, used at a temperature above 0.
        prefix: from `compute_prefix`, or None to compute everything.

    Returns:
        For each prompt its new ids, the end id not included.
    """
    skip = len(prefix.ids) if prefix else 0
    rest = [prompt[skip:] for prompt in prompts]
    width = max(len(ids) for ids in rest)
    padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in rest], device=model.device)
    own = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rest])
    mask = torch.cat([torch.ones(len(rest), skip, dtype=own.dtype), own], dim=1).to(model.device)
    room = width + rules.max_new_tokens
    cache = with_room(prefix.cache, len(rest), room) if prefix else None
    state: dict[str, Any] = {"mask": mask, "cache": cache}
    with_positions = _takes(model, "position_ids")

    def step(tokens: torch.Tensor) -> torch.Tensor:
        arguments = dict(_last_logits(model))
        if with_positions:
            positions = (state["mask"].cumsum(1) - 1).clamp(min=0)
            arguments["position_ids"] = positions[:, -tokens.shape[1] :]
        out = model(
            input_ids=tokens,
            attention_mask=state["mask"],
            past_key_values=state["cache"],
            use_cache=True,
            **arguments,
        )
        if state["cache"] is None:
            state["cache"] = _grown(out.past_key_values, len(rest), rules.max_new_tokens)
        grown = state["mask"].new_ones(tokens.shape[0], 1)
        state["mask"] = torch.cat([state["mask"], grown], dim=1)
        return out.logits[:, -1]

    def keep(rows: torch.Tensor) -> None:
        state["mask"] = state["mask"][rows]
        state["cache"].batch_select_indices(rows)

    with torch.inference_mode():
        return _loop(padded, step, keep, rules, seeds)


def decode_batch_seq2seq(
    model: Any, prompts: Sequence[Ids], rules: Rules, *, seeds: Sequence[int]
) -> list[Ids]:
    """New tokens of every prompt, for an encoder-decoder model; arguments as `decode_batch`."""
    width = max(len(ids) for ids in prompts)
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in prompts], device=model.device)
    lengths = torch.tensor([[len(ids)] for ids in prompts], device=model.device)
    mask = (torch.arange(width, device=model.device) < lengths).long()
    with torch.inference_mode():
        encoded = model.get_encoder()(input_ids=padded, attention_mask=mask).last_hidden_state
    state: dict[str, Any] = {"mask": mask, "encoded": encoded, "cache": None}

    def step(tokens: torch.Tensor) -> torch.Tensor:
        out = model(
            encoder_outputs=(state["encoded"],),
            attention_mask=state["mask"],
            decoder_input_ids=tokens,
            past_key_values=state["cache"],
            use_cache=True,
        )
        state["cache"] = out.past_key_values
        return out.logits[:, -1]

    def keep(rows: torch.Tensor) -> None:
        state["mask"], state["encoded"] = state["mask"][rows], state["encoded"][rows]
        state["cache"].batch_select_indices(rows)

    start = model.generation_config.decoder_start_token_id
    start = model.config.decoder_start_token_id if start is None else start
    first = torch.full((len(prompts), 1), int(start), device=model.device)
    with torch.inference_mode():
        return _loop(first, step, keep, rules, seeds)


def _loop(
    tokens: torch.Tensor,
    step: Callable[[torch.Tensor], torch.Tensor],
    keep: Callable[[torch.Tensor], None],
    rules: Rules,
    seeds: Sequence[int],
) -> list[Ids]:
    """Steps until every row has ended; ended rows leave the batch at once."""
    new: list[Ids] = [[] for _ in seeds]
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    alive = list(range(len(seeds)))
    for _ in range(rules.max_new_tokens):
        chosen = _choose(step(tokens), rules.temperature, [streams[row] for row in alive])
        going = []
        for place, (row, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            if token in rules.end_ids:
                continue
            new[row].append(token)
            if not rules.stopped(new[row]):
                going.append(place)
        if not going:
            break
        if len(going) < len(alive):
            order = _closed_up(going)
            rows = torch.tensor(order, device=chosen.device)
            keep(rows)
            chosen, alive = chosen[rows], [alive[place] for place in order]
        tokens = chosen[:, None]
    return new


def _closed_up(going: Sequence[int]) -> list[int]:
    """The same places with the gaps filled from the end, so that few rows have to move."""
    stay, last = set(going), [place for place in going if place >= len(going)]
    return [place if place in stay else last.pop() for place in range(len(going))]


def _choose(
    logits: torch.Tensor, temperature: float, streams: Sequence[torch.Generator]
) -> torch.Tensor:
    """Greedy, or by inverse distribution function with one uniform draw from each row's stream."""
    if temperature <= 0:
        return logits.argmax(-1)
    shares = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    draws = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in streams])
    # Scaled by the sum, which rounding leaves a little beside 1.
    points = draws.to(logits.device)[:, None] * shares[:, -1:]
    return torch.searchsorted(shares, points, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _grown(cache: Any, rows: int, room: int) -> Any:
    """The cache of a first step without a prefix, with room where no window could end in it."""
    plain = can_have_room(cache) and not any(layer.is_sliding for layer in cache.layers)
    return with_room(cache, rows, room) if plain else cache


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _last_logits(model: Any) -> dict[str, int]:
    """The head is needed on the last position alone."""
    return {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}
