"""What a model computes inside: states, attention maps, queries, keys and values of a batch."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipestill.errors import UserError
from pipestill.models.shrink import stacks_of
from pipestill.training.forward import Batch, Piece, Shape, recorded

QKV = (("q", "k", "v"), ("q_proj", "k_proj", "v_proj"))
CROSS = ("EncDec", "encoder_attn", "cross")
EPSILON = 1e-6  # of a mean square, so that a state of zeros stays one


@dataclass(frozen=True)
class Inside:
    """What one model computed: by stack the values of every layer, and where they count.

    `states` (N, D) are what the LM head reads. `values` holds, by stack, an entry a layer of hidden
    states (B, T, H) or attention maps (B, A, T, T), or the last layer's queries, keys and values
    (B, T, H). `places` (B, L) are the positions that count, `real` (B, L) which of them exist: the
    target's in a decoder, the input's in an encoder.
    """

    states: Any
    values: Mapping[str, Sequence[Any]]
    places: Mapping[str, Any]
    real: Mapping[str, Any]

    def normed(self, stack: str, layer: int) -> Any:
        """(N, H) states at the positions that count, each over its root mean square, in fp32."""
        values = self.rows(stack, layer)[self.real[stack]].float()
        return values * (values.square().mean(-1, keepdim=True) + EPSILON).rsqrt()

    def rows(self, stack: str, layer: int) -> Any:
        """(B, L, H) of the values (B, T, H)."""
        values, places = self.values[stack][layer], self.places[stack]
        return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))

    def block(self, stack: str, layer: int) -> Any:
        """(B, A, L, L) of the attention maps: queries and keys at the positions that count."""
        attention, places = self.values[stack][layer], self.places[stack]
        heads, keys = attention.shape[1], attention.shape[3]
        queries = places[:, None, :, None].expand(-1, heads, -1, keys)
        columns = places[:, None, None, :].expand(-1, heads, places.shape[1], -1)
        return attention.gather(2, queries).gather(3, columns)


def run_inside(model: Any, batch: Batch, shape: Shape, stacks: Sequence[str], kind: str) -> Inside:
    """Runs a model over a batch of one piece and keeps what it computes.

    Args:
        model: any model.
        batch: made with ``shape.may_split`` off.
        shape: of the model.
        stacks: ``decoder``, and ``encoder`` where the model has one.
        kind: ``hidden_states`` (after every layer, the last one after the norm), ``attentions``
            or ``qkv``.
    """
    import torch

    (piece,) = batch.pieces
    places, real = {}, {}
    places["decoder"], real["decoder"] = target_places(piece)
    if "encoder" in stacks:
        mask = batch.encoder["attention_mask"].bool()
        places["encoder"] = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        real["encoder"] = mask
    if kind == "qkv":
        with _kept_qkv(model, stacks) as values:
            states, _, _ = recorded(model, batch, shape)
        return Inside(states, values, places, real)
    states, output, encoder = recorded(model, batch, shape, **{f"output_{kind}": True})
    decoder = getattr(output, f"decoder_{kind}" if encoder is not None else kind)
    found = {"decoder": decoder, "encoder": getattr(encoder, kind, None)}
    first = 1 if kind == "hidden_states" else 0  # before the first layer stand the embeddings
    return Inside(states, {stack: found[stack][first:] for stack in stacks}, places, real)


def target_places(piece: Piece) -> tuple[Any, Any]:
    """(B, L) positions whose states predict the target's tokens, and which of them exist."""
    import torch

    ids = next(v for k, v in piece.inputs.items() if k.endswith("input_ids"))
    lengths = torch.bincount(piece.row, minlength=piece.rows)
    real = torch.arange(int(lengths.max()), device=ids.device) < lengths[:, None]
    places = torch.zeros(real.shape, dtype=torch.long, device=ids.device)
    places[real] = piece.positions % ids.shape[1]
    return places, real


@contextlib.contextmanager
def _kept_qkv(model: Any, stacks: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """While inside, the queries, keys and values of every stack's last layer are kept."""
    found: dict[str, list[Any]] = {stack: [] for stack in stacks}
    handles = []
    for stack in stacks:
        for module in qkv_of(model, stack):
            keep = partial(_keep, found[stack])
            handles.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: list[Any], _module: Any, _inputs: Any, output: Any) -> None:
    found.append(output)


def qkv_of(model: Any, stack: str) -> list[Any]:
    """The projections to queries, keys and values of a stack's last self-attention.

    Raises:
        UserError: ``MINILM_LAYERS`` where a model has no three of them (GPT-2 has one for all).
    """
    layer = stacks_of(model)[stack][1][-1]
    for name, module in layer.named_modules():
        if any(mark in name for mark in CROSS):
            continue
        for names in QKV:
            if all(hasattr(module, part) for part in names):
                return [getattr(module, part) for part in names]
    raise UserError(
        "MINILM_LAYERS",
        f"{type(model).__name__}: its attention has no separate projections to queries, keys and "
        "values, which feature/minilm compares",
        "use feature/attention or feature/cka",
    )
