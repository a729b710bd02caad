"""The policy: a model, its frozen reference, a value head on the same trunk, and its forward pass.

One teacher-forced pass gives log-probabilities and values at the positions that predict response
tokens, and nowhere else. Old, new and reference log-probabilities all come from it, at one
temperature and with dropout off. Token t of a response is predicted, and valued, at the state
before it: for a decoder at the last prompt token or the response token before, for an
encoder-decoder at the start mark or the response token before.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.config import PolicyConfig
from pipestill.losses.common import head_nll, rows_per_chunk
from pipestill.losses.ppo import entropy
from pipestill.models import lora
from pipestill.models.heads import ScalarHead, width_of
from pipestill.models.loading import Loaded, choose_dtype, load
from pipestill.models.render import Renderer, renderer_for
from pipestill.models.student import padded, plain_greedy
from pipestill.training.forward import Shape, computing, head_of, head_reads, shape_of, vocabulary

VALUE_HEAD = "value_head"


@dataclass(frozen=True)
class Policy:
    """A model in training. `reference` is a frozen copy, or None where the adapter is switched off.

    `adapted` is peft's model around `loaded.model`, or None. `ends` are the ids that end an answer.
    """

    loaded: Loaded
    renderer: Renderer
    shape: Shape
    ends: list[int]
    temperature: float
    reference: Any
    adapted: Any

    @property
    def model(self) -> Any:
        return self.loaded.model

    @contextlib.contextmanager
    def frozen(self) -> Iterator[Any]:
        """The reference model."""
        if self.adapted is None:
            yield self.reference
            return
        with self.adapted.disable_adapter():
            yield self.model


@dataclass(frozen=True)
class Answers:
    """Prompts with responses, as inputs of one forward pass over B rows of up to T tokens.

    `positions` are flat indices into the (rows × length) states, row by row; the state at
    ``positions[i]`` predicts ``labels[i]``. `mask` (B, T) is true at response tokens, and takes
    flat values back to their places. `encoder` holds each prompt once, `prompt_of` (B,) says whose.
    """

    encoder: dict[str, Any]
    prompt_of: Any
    inputs: dict[str, Any]
    positions: Any
    labels: Any
    mask: Any


@dataclass(frozen=True)
class Outputs:
    """(B, T) each, zero at padding; `values` and `entropy` only where asked for."""

    logprobs: Any
    values: Any
    entropy: Any
    mask: Any


def make_policy(config: PolicyConfig, style: str, *, value_head: bool) -> Policy:
    """Loads the model and puts beside it what policy training needs.

    Args:
        config: model, method, lengths and temperature.
        style: ``plain`` or ``chat``, see `pipestill.models.render`.
        value_head: whether the objective needs values.

    Raises:
        UserError: what `pipestill.models.loading.load` and `pipestill.models.lora.add` raise.
    """
    loaded = load(config.large_model_reference, precision="fp32")
    return policy_of(loaded, config, style, value_head=value_head)


def policy_of(loaded: Loaded, config: PolicyConfig, style: str, *, value_head: bool) -> Policy:
    """`make_policy` of a model that is loaded; it is changed in place."""
    limits = config.prompt_sequence_length, config.target_sequence_length
    info = {"style": style, "instruction": config.instruction}
    renderer = renderer_for(loaded, *limits, info)
    model = loaded.model.eval()
    adapted = reference = None
    if config.method == "lora":
        adapted = lora.add(
            model, rank=config.lora_rank, alpha=2.0 * config.lora_rank, dropout=0.0,
            seed=config.train_seed,
        )  # fmt: skip
    else:
        reference = _frozen_copy(model)
    if value_head:
        # Zeros: the first advantages are then the rewards themselves (Huang et al. 2024, detail 8).
        setattr(model, VALUE_HEAD, ScalarHead(width_of(model), zeros=True).to(model.device))
    return Policy(
        loaded=loaded,
        renderer=renderer,
        shape=shape_of(loaded, _autocast_type(config.precision, model.device.type)),
        ends=sorted(plain_greedy(loaded, renderer.end).eos_token_id),
        temperature=config.temperature,
        reference=reference,
        adapted=adapted,
    )


def collate(
    shape: Shape, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Answers:
    """One batch, padded on the right; an encoder reads equal prompts that adjoin once.

    Args:
        shape: of the model.
        prompts: (B) rows of token ids.
        responses: (B) rows of token ids, one token each at least, end mark included.
    """
    import torch

    ids, real = padded(responses, shape.pad)
    mask = real.bool()
    labels = ids[mask]
    if shape.is_encoder_decoder:
        unique, prompt_of = _unique(prompts)
        read, read_mask = padded(unique, shape.pad)
        inputs = {"decoder_input_ids": ids.roll(1, 1)}
        inputs["decoder_input_ids"][:, 0] = shape.start
        encoder = {"input_ids": read, "attention_mask": read_mask}
        positions = mask.flatten().nonzero()[:, 0]
    else:
        rows = [[*a, *b] for a, b in zip(prompts, responses, strict=True)]
        read, read_mask = padded(rows, shape.pad)
        inputs = {"input_ids": read, "attention_mask": read_mask}
        encoder, prompt_of = {}, torch.arange(len(rows))
        begin = torch.tensor([len(row) for row in prompts]) - 1
        places = begin[:, None] + torch.arange(mask.shape[1])
        positions = (places + torch.arange(len(rows))[:, None] * read.shape[1])[mask]
    device = shape.device
    return Answers(
        {name: value.to(device) for name, value in encoder.items()},
        prompt_of.to(device),
        {name: value.to(device) for name, value in inputs.items()},
        positions.to(device),
        labels.to(device),
        mask.to(device),
    )


def evaluate_answers(
    model: Any,
    batch: Answers,
    shape: Shape,
    temperature: float,
    *,
    values: bool = False,
    spread: bool = False,
) -> Outputs:
    """Log-probabilities of the responses, with their graph where grad mode is on.

    The LM head runs at response positions only, and in chunks where logits are many.

    Args:
        model: the policy or its reference.
        batch: from `collate`.
        shape: of the model.
        temperature: divides the logits.
        values: also the value head's outputs.
        spread: also the entropies, without graph.
    """
    import torch

    with computing(shape):
        states, trunk = _states(model, batch)
        head = head_of(model)

        def tempered(part: Any) -> Any:
            logits = head(part)
            return (logits if logits.dtype == torch.float64 else logits.float()) / temperature

        rows = rows_per_chunk(vocabulary(model))
        logprobs = -head_nll(tempered, states, batch.labels, rows)
        found = getattr(model, VALUE_HEAD)(trunk) if values else None
        chaos = _entropies(tempered, states, rows) if spread else None
    placed = [None if part is None else _placed(part, batch.mask) for part in (found, chaos)]
    return Outputs(_placed(logprobs, batch.mask), placed[0], placed[1], batch.mask)


def drop_value_head(model: Any) -> None:
    """Takes the value head off, where there is one."""
    if hasattr(model, VALUE_HEAD):
        delattr(model, VALUE_HEAD)


def _frozen_copy(model: Any) -> Any:
    """The reference.

    T5's attention takes another kernel where its bias learns. So that equal weights give equal bits
    (in grad mode, see `pipestill.rlhf.ppo_step.prepare`), the copy's bias looks as if it learnt.
    """
    frozen = copy.deepcopy(model).requires_grad_(False)
    for name, weight in frozen.named_parameters():
        weight.requires_grad_("relative_attention_bias" in name)
    return frozen


def _states(model: Any, batch: Answers) -> tuple[Any, Any]:
    """(N, D) twice: what the LM head reads, and the last states of the trunk.

    They differ where a model scales its states before the head (T5 with tied embeddings); values
    are read from the trunk's, whose size does not depend on that.
    """
    inputs = dict(batch.inputs)
    if batch.encoder:
        encoded = model.get_encoder()(**batch.encoder).last_hidden_state
        inputs["encoder_outputs"] = (encoded[batch.prompt_of],)
        inputs["attention_mask"] = batch.encoder["attention_mask"][batch.prompt_of]
    body = model.get_decoder() if batch.encoder else model.base_model
    found: dict[str, Any] = {}

    def keep(states: Any) -> Any:
        found["head"] = states.flatten(0, 1).index_select(0, batch.positions)
        return states[:1, :0]

    def note(_: Any, __: Any, out: Any) -> None:
        states = out.last_hidden_state
        found["trunk"] = states.flatten(0, 1).index_select(0, batch.positions)

    handle = body.register_forward_hook(note)
    try:
        with head_reads(model, keep):
            model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return found["head"], found["trunk"]


def _entropies(head: Any, states: Any, rows: int) -> Any:
    import torch

    with torch.no_grad():
        return torch.cat([entropy(head(part)) for part in states.detach().split(rows)])


def _placed(flat: Any, mask: Any) -> Any:
    """(N,) values of response tokens at their (B, T) places, zero elsewhere."""
    import torch

    flat = flat.float() if flat.dtype != torch.float64 else flat
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def _unique(prompts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], Any]:
    """Runs of equal prompts once, and for every row the place of its own."""
    import torch

    kept: list[Sequence[int]] = []
    places = []
    for row in prompts:
        if not kept or kept[-1] != row:
            kept.append(row)
        places.append(len(kept) - 1)
    return kept, torch.tensor(places)


def _autocast_type(precision: str, device: str) -> Any:
    """What products are computed in; ``auto`` is fp32 on a CPU, where ratios deserve the digits."""
    import torch

    if precision == "auto" and device == "cpu":
        return None
    dtype = choose_dtype(precision)
    return None if dtype == torch.float32 else dtype
