"""Answers sampled from the policy itself: plain ancestral sampling, nothing cut off or forced.

Every token is drawn from softmax(logits/temperature) over the whole vocabulary: top-k, top-p, a
minimum length or a forced end mark would make the sampled distribution another one than the
policy's, and the ratios of PPO wrong (Huang et al. 2024, arXiv 2403.17031, detail 5).

A decoder-only model reads its prompts padded on the left, with explicit position ids; an encoder
reads them padded on the right. Each prompt is read once, however many answers it gets: its keys and
values are then repeated. An answer that has ended leaves the batch. What is drawn depends on a
table of uniform numbers alone, one for every answer and position, so it is the same whichever rows
are computed together and however many processes share them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.models.student import padded

WORTH_SHRINKING = 0.75  # rows leave the cache where less than this share of it still writes
MASK = (1 << 48) - 1  # of a seed


@dataclass(frozen=True)
class Sampled:
    """Answers as token ids, end mark included where it was sampled; those of a prompt adjoin.

    `logprobs` are the sampler's own, one a token. `foreign` says that another engine than the
    policy's training code has sampled, so that its probabilities are only nearly the policy's.
    """

    responses: list[list[int]]
    logprobs: list[list[float]]
    foreign: bool = False


def uniform(rows: int, columns: int, *keys: int) -> Any:
    """(rows, columns) float64 in [0, 1), a function of `keys` (seed and step) alone."""
    import torch

    seed = 0
    for key in keys:
        seed = (seed * 1_000_003 + key + 0x9E3779B9) & MASK
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, dtype=torch.float64, generator=generator)


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    samples: int,
    draws: Any,
    *,
    ends: Sequence[int],
    temperature: float,
    pad: int,
    start: int,
) -> Sampled:
    """Samples `samples` answers to every prompt.

    Args:
        model: a transformers model, either architecture, in eval mode.
        prompts: token ids.
        samples: answers a prompt, 1 or more.
        draws: (prompts·samples, T) of `uniform`; answers have at most T tokens.
        ends: token ids that end an answer.
        temperature: divides the logits; 0 takes the most probable token.
        pad: fills rows up; masked everywhere.
        start: what an encoder-decoder's decoder begins with.
    """
    import torch

    with torch.no_grad():
        state = _first(model, prompts, pad, start)
        state.repeat(samples)
        return _continue(state, draws, list(ends), temperature)


class _State:
    """A batch under way: the cache, and what the next call of the model needs."""

    def __init__(self, model: Any, inputs: dict[str, Any], places: Any, out: Any) -> None:
        self.model, self.inputs, self.places = model, inputs, places
        self.cache, self.logits = out.past_key_values, out.logits[:, -1]

    def repeat(self, count: int) -> None:
        if count == 1:
            return
        self.cache.batch_repeat_interleave(count)
        self._change(lambda value: value.repeat_interleave(count, 0))

    def keep(self, rows: Any) -> None:
        """Drops all rows but `rows`, a tensor of their places."""
        self.cache.batch_select_indices(rows)
        self._change(lambda value: value[rows])

    def _change(self, change: Any) -> None:
        self.inputs = {name: change(value) for name, value in self.inputs.items()}
        self.logits = change(self.logits)
        self.places = None if self.places is None else change(self.places)

    def advance(self, tokens: Any) -> None:
        """Feeds one token a row; `logits` are then those of the token after it."""
        given = {"past_key_values": self.cache, "use_cache": True}
        if "states" in self.inputs:
            encoded = (self.inputs["states"],)
            given |= {"encoder_outputs": encoded, "attention_mask": self.inputs["mask"]}
            out = self.model(decoder_input_ids=tokens[:, None], **given)
        else:
            import torch

            mask = torch.nn.functional.pad(self.inputs["mask"], (0, 1), value=1)
            self.inputs["mask"], self.places = mask, self.places + 1
            given |= {"attention_mask": mask, "position_ids": self.places[:, None]}
            out = self.model(input_ids=tokens[:, None], **given)
        self.logits = out.logits[:, -1]


def _first(model: Any, prompts: Sequence[Sequence[int]], pad: int, start: int) -> _State:
    """The state after the prompts, each of which is read once."""
    import torch

    both = bool(model.config.is_encoder_decoder)
    ids, mask = padded(prompts, pad, left=not both)
    ids, mask = ids.to(model.device), mask.to(model.device)
    if both:
        states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        first = torch.full((len(prompts), 1), start, device=model.device)
        given = {"encoder_outputs": (states,), "attention_mask": mask, "use_cache": True}
        out = model(decoder_input_ids=first, **given)
        return _State(model, {"states": states, "mask": mask}, None, out)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"attention_mask": mask, "position_ids": places, "use_cache": True}
    out = model(input_ids=ids, logits_to_keep=1, **given)
    return _State(model, {"mask": mask}, places[:, -1], out)


def _continue(state: _State, draws: Any, ends: list[int], temperature: float) -> Sampled:
    """Writes until every row has ended or is full."""
    import torch

    count, limit = draws.shape
    device = state.logits.device
    draws = draws.to(device)
    closing = torch.tensor(ends, device=device)
    alive = torch.arange(count, device=device)  # the answer that each row of the batch writes
    open_ = torch.ones(count, dtype=torch.bool, device=device)
    ids = torch.zeros(count, limit, dtype=torch.long, device=device)
    logp = torch.zeros(count, limit, dtype=torch.float32, device=device)
    length = torch.zeros(count, dtype=torch.long, device=device)
    for column in range(limit):
        tokens, found = _drawn(state.logits, draws[alive, column], temperature)
        rows = alive[open_]
        ids[rows, column], logp[rows, column] = tokens[open_], found[open_]
        length[rows] = column + 1
        open_ = open_ & ~torch.isin(tokens, closing)
        writing = int(open_.sum())
        if not writing or column + 1 == limit:
            break
        if writing <= WORTH_SHRINKING * len(open_):
            kept = open_.nonzero()[:, 0]
            state.keep(kept)
            alive, tokens, open_ = alive[kept], tokens[kept], open_[kept]
        state.advance(tokens)
    sizes = length.tolist()
    responses = [row[:size] for row, size in zip(ids.tolist(), sizes, strict=True)]
    chances = [row[:size] for row, size in zip(logp.tolist(), sizes, strict=True)]
    return Sampled(responses, chances)


def _drawn(logits: Any, draws: Any, temperature: float) -> tuple[Any, Any]:
    """The token of every row by inverse distribution function, and its log-probability."""
    logp = (logits.float() / (temperature or 1.0)).log_softmax(-1)
    if not temperature:
        tokens = logp.argmax(-1)
    else:
        upto = logp.double().exp().cumsum(-1)
        # The first token past the draw has a probability above 0, whatever was rounded.
        wanted = (draws * upto[:, -1])[:, None]
        tokens = (upto > wanted).int().argmax(-1)
    return tokens, logp.gather(-1, tokens[:, None])[:, 0]
