"""From sequences to the log-likelihood of their target tokens, for both architectures.

All tasks of a step go through one forward pass. Two things make that cheap: the LM head sees only
the positions that carry loss, and an encoder-decoder's decoder runs over short and long targets
apart (labels have 2 to 5 tokens, rationales 20 to 100), so that labels are not padded to the
length of rationales. Neither changes a value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.losses.common import token_nll
from pipestill.training.batches import Encoded, gather, groups_of

WORTH_SPLITTING = 0.8  # the decoder runs twice where that leaves less than this share of its tokens


@dataclass(frozen=True)
class Shape:
    """What a forward pass needs to know of the model. `autocast` is a torch dtype or None."""

    is_encoder_decoder: bool
    pad: int
    start: int
    device: str
    autocast: Any = None


@dataclass(frozen=True)
class Piece:
    """Rows of the batch that the decoder runs over together.

    `positions` are flat indices into (rows × length) hidden states; the state at ``positions[i]``
    predicts ``labels[i]``, which belongs to row ``row[i]`` of the piece and to ``group[i]``.
    """

    rows: int
    inputs: dict[str, Any]
    positions: Any
    labels: Any
    group: Any
    row: Any


@dataclass(frozen=True)
class Batch:
    """One forward pass: encoder inputs (empty for decoder-only models) and one or two pieces."""

    encoder: dict[str, Any]
    pieces: tuple[Piece, ...]

    @property
    def group(self) -> Any:
        """(N,) group of every target token, in the order of `batch_nll`."""
        import torch

        return torch.cat([piece.group for piece in self.pieces])


def shape_of(loaded: Any, autocast: Any = None) -> Shape:
    """The `Shape` of a loaded model."""
    config = loaded.model.config
    start = getattr(config, "decoder_start_token_id", None) if loaded.is_encoder_decoder else None
    pad = loaded.tokenizer.pad_token_id
    return Shape(
        is_encoder_decoder=loaded.is_encoder_decoder,
        pad=pad,
        start=pad if start is None else start,
        device=str(loaded.model.device),
        autocast=autocast,
    )


def collate(data: Encoded, sequences: Sequence[int], shape: Shape) -> Batch:
    """The batch of `sequences`, on the model's device."""
    import torch

    chosen = torch.tensor(sequences)
    chosen = chosen[data.target_length[chosen].argsort(stable=True)]
    return (
        _encoder_decoder(data, chosen, shape)
        if shape.is_encoder_decoder
        else _decoder(data, chosen, shape)
    )


def batch_nll(model: Any, batch: Batch, shape: Shape) -> Any:
    """(N,) negative log-likelihood of every target token, with its graph."""
    import torch

    parts = [token_nll(logits, piece.labels) for piece, logits in batch_logits(model, batch, shape)]
    return torch.cat(parts)


def batch_logits(model: Any, batch: Batch, shape: Shape) -> Iterator[tuple[Piece, Any]]:
    """Every piece with the (N, V) logits at its positions."""
    import torch

    kind = torch.device(shape.device).type
    with torch.autocast(kind, shape.autocast, enabled=shape.autocast is not None):
        states = _encoded(model, batch)
        for piece, encoded in zip(batch.pieces, states, strict=True):
            yield piece, position_logits(model, {**piece.inputs, **encoded}, piece.positions)


def position_logits(model: Any, inputs: dict[str, Any], positions: Any) -> Any:
    """Logits at flat `positions` only, by the model's own code.

    A hook hands the LM head only the chosen states. What a model does around its head (T5's scaling
    where embeddings are tied, Gemma's soft cap, Granite's and Cohere's scaling, BART's bias) is
    therefore done as ever.

    Returns:
        (N, V) logits in the model's type.
    """

    def choose(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states = arguments[0].flatten(0, 1).index_select(0, positions)
        return (states[None], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        return model(**inputs, use_cache=False).logits[0]
    finally:
        handle.remove()


def split_point(lengths: Sequence[int]) -> int:
    """How many of the ascending lengths make a first padded block of their own; 0 for none."""
    total = len(lengths)
    sizes = [k * lengths[k - 1] + (total - k) * lengths[-1] for k in range(1, total)]
    best = min(range(len(sizes)), key=sizes.__getitem__, default=0)
    worth = sizes and sizes[best] < WORTH_SPLITTING * total * lengths[-1]
    return best + 1 if worth else 0


def _encoded(model: Any, batch: Batch) -> Iterator[dict[str, Any]]:
    """The encoder's part of every piece's inputs: one run over all rows, then cut by rows."""
    if not batch.encoder:
        return iter([{} for _ in batch.pieces])
    rows = [piece.rows for piece in batch.pieces]
    states = model.get_encoder()(**batch.encoder).last_hidden_state.split(rows)
    masks = batch.encoder["attention_mask"].split(rows)
    pairs = zip(states, masks, strict=True)
    return ({"encoder_outputs": (state,), "attention_mask": mask} for state, mask in pairs)


def _encoder_decoder(data: Encoded, chosen: Any, shape: Shape) -> Batch:
    ids, real = gather(
        data.source, data.source_start[chosen], data.source_length[chosen], shape.pad
    )
    encoder = {"input_ids": ids.to(shape.device), "attention_mask": real.long().to(shape.device)}
    first = split_point(data.target_length[chosen].tolist())
    parts = [chosen[:first], chosen[first:]] if first else [chosen]
    return Batch(encoder, tuple(_decoder_piece(data, part, shape) for part in parts))


def _decoder_piece(data: Encoded, chosen: Any, shape: Shape) -> Piece:
    """Position t of the decoder reads target t-1 (the start mark at 0) and predicts target t."""
    length = data.target_length[chosen]
    targets, real = gather(data.target, data.target_start[chosen], length, shape.pad)
    inputs = targets.roll(1, 1)
    inputs[:, 0] = shape.start
    group = groups_of(data.label_length[chosen], length)
    return _piece({"decoder_input_ids": inputs}, real, targets, group, shape)


def _decoder(data: Encoded, chosen: Any, shape: Shape) -> Batch:
    """Input and target in one row; position p predicts token p+1, where that is a target token."""
    import torch

    prompt, target = data.source_length[chosen], data.target_length[chosen]
    ids, _ = gather(data.source, data.source_start[chosen], prompt, shape.pad)
    answers, _ = gather(data.target, data.target_start[chosen], target, shape.pad)
    places = torch.arange(int((prompt + target).max()))
    into = places - prompt[:, None]  # place within the target
    is_target = (into >= 0) & (into < target[:, None])
    rows = torch.full((len(chosen), len(places)), shape.pad)
    rows[places < prompt[:, None]] = ids[torch.arange(ids.shape[1]) < prompt[:, None]]
    rows[is_target] = answers[torch.arange(answers.shape[1]) < target[:, None]]
    group = (into >= data.label_length[chosen][:, None]).long()
    real, labels, group = (value.roll(-1, 1) for value in (is_target, rows, group))
    inputs = {"input_ids": rows, "attention_mask": (into < target[:, None]).long()}
    return Batch({}, (_piece(inputs, real, labels, group, shape),))


def _piece(inputs: dict[str, Any], real: Any, labels: Any, group: Any, shape: Shape) -> Piece:
    import torch

    rows = torch.arange(len(real))[:, None].expand_as(real)
    return Piece(
        rows=len(real),
        inputs={name: value.to(shape.device) for name, value in inputs.items()},
        positions=real.flatten().nonzero()[:, 0].to(shape.device),
        labels=labels[real].to(shape.device),
        group=group[real].to(shape.device),
        row=rows[real].to(shape.device),
    )
