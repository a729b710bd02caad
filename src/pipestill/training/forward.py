"""From sequences to the log-likelihood of their target tokens, for both architectures.

All tasks of a step go through one forward pass. Three things make that cheap: the LM head sees only
the positions that carry loss, and those in chunks; an encoder-decoder's decoder runs over short and
long targets apart (labels have 2 to 5 tokens, rationales 20 to 100), so that labels are not padded
to the length of rationales; and a decoder-only model may take several examples in one row
(`pipestill.training.packing`). None of them changes a value.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.losses.common import head_nll, rows_per_chunk
from pipestill.training.batches import Encoded, gather, groups_of

WORTH_SPLITTING = 0.8  # the decoder runs twice where that leaves less than this share of its tokens
LEAST_SAVED = 64  # and saves this many; a second run costs one more gradient of the embedding


@dataclass(frozen=True)
class Shape:
    """What a forward pass needs to know of the model. `autocast` is a torch dtype or None.

    `may_split` is false where several processes compute together: sharded layers have to run as
    often in each of them, and the lengths in one share may be worth two decoder runs and those in
    another one. `packed` is the length of a row that several examples share; 0 for one a row.
    """

    is_encoder_decoder: bool
    pad: int
    start: int
    device: str
    autocast: Any = None
    may_split: bool = True
    packed: int = 0


@dataclass(frozen=True)
class Piece:
    """Sequences of the batch that the decoder runs over together; `rows` says how many.

    `positions` are flat indices into (rows × length) hidden states; the state at ``positions[i]``
    predicts ``labels[i]``, which belongs to sequence ``row[i]`` of the piece and to ``group[i]``.
    """

    rows: int
    inputs: dict[str, Any]
    positions: Any
    labels: Any
    group: Any
    row: Any


@dataclass(frozen=True)
class Batch:
    """One forward pass: encoder inputs (empty for decoder-only models) and one or two pieces.

    Where several sequences have one input, the encoder reads it once: `inputs` then says which of
    its rows belongs to each sequence. It is None where every sequence has a row of its own.
    """

    encoder: dict[str, Any]
    pieces: tuple[Piece, ...]
    inputs: Any = None

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
    if shape.is_encoder_decoder:
        return _encoder_decoder(data, chosen, shape)
    if shape.packed:
        from pipestill.training.packing import packed_piece

        return Batch({}, (packed_piece(data, chosen, shape),))
    return _decoder(data, chosen, shape)


def batch_nll(model: Any, batch: Batch, shape: Shape) -> Any:
    """(N,) negative log-likelihood of every target token, with its graph.

    More logits than `pipestill.losses.common.CHUNK_ELEMENTS` never exist at once.
    """
    import torch

    parts = []
    rows = rows_per_chunk(vocabulary(model))
    with computing(shape):
        for piece, inputs in _inputs(model, batch):
            if len(piece.labels) <= rows or not has_body(model):
                logits = position_logits(model, inputs, piece.positions)
                parts.append(head_nll(_same, logits, piece.labels, rows))
            else:
                states = position_states(model, inputs, piece.positions)
                parts.append(head_nll(head_of(model), states, piece.labels, rows))
    return torch.cat(parts)


def batch_states(model: Any, batch: Batch, shape: Shape) -> Any:
    """(N, D) what the LM head reads at every target position, in the order of `batch_nll`.

    `reading_head` makes logits of them, which are these states where the head does not stand apart.
    """
    import torch

    read = position_states if has_body(model) else position_logits
    with computing(shape):
        found = [read(model, inputs, piece.positions) for piece, inputs in _inputs(model, batch)]
    return torch.cat(found)


def recorded(model: Any, batch: Batch, shape: Shape, **flags: bool) -> tuple[Any, Any, Any]:
    """`batch_states` of a batch of one piece, with what the model records on the way.

    Args:
        model: any model.
        batch: made with ``shape.may_split`` off.
        shape: of the model.
        flags: ``output_hidden_states``, ``output_attentions``.

    Returns:
        (N, D) states, the model's output, and the encoder's (None for decoder-only models).
    """
    (piece,) = batch.pieces
    inputs, encoder, found = dict(piece.inputs), None, []

    def keep(states: Any) -> Any:
        found.append(states.flatten(0, 1).index_select(0, piece.positions))
        return states[:1, :0]

    with computing(shape):
        if batch.encoder:
            encoder = model.get_encoder()(**batch.encoder, **flags)
            inputs["encoder_outputs"] = (encoder.last_hidden_state,)
            inputs["attention_mask"] = batch.encoder["attention_mask"]
        with head_reads(model, keep):
            output = model(**_with_mask(model, inputs), use_cache=False, **flags)
    return found[0], output, encoder


def reading_head(model: Any) -> Callable[[Any], Any]:
    """What makes logits of `batch_states`: the LM head, or nothing where it has run already."""
    return head_of(model) if has_body(model) else _same


def batch_labels(batch: Batch) -> Any:
    """(N,) the id of every target token, in the order of `batch_nll`."""
    import torch

    return torch.cat([piece.labels for piece in batch.pieces])


def batch_rows(batch: Batch) -> Any:
    """(N,) which sequence of the batch every target token belongs to, in the order of `batch_nll`.

    The batch's sequences are numbered as `collate` sorts them: by the length of their target.
    """
    import torch

    starts = itertools.accumulate((piece.rows for piece in batch.pieces), initial=0)
    return torch.cat(
        [piece.row + start for piece, start in zip(batch.pieces, starts, strict=False)]
    )


def batch_logits(model: Any, batch: Batch, shape: Shape) -> Iterator[tuple[Piece, Any]]:
    """Every piece with all of its (N, V) logits; `batch_chunks` needs less memory."""
    with computing(shape):
        for piece, inputs in _inputs(model, batch):
            yield piece, position_logits(model, inputs, piece.positions)


def batch_chunks(model: Any, batch: Batch, shape: Shape) -> Iterator[tuple[Piece, Any, Any]]:
    """The batch in chunks of logits that are freed before the next; for use without gradients.

    Yields:
        A piece, a slice of its ``positions``, and the (n, V) logits there.
    """
    if not has_body(model):
        for piece, logits in batch_logits(model, batch, shape):
            yield piece, slice(None), logits
        return
    head, rows = head_of(model), rows_per_chunk(vocabulary(model))
    with computing(shape):
        for piece, inputs in _inputs(model, batch):
            states = position_states(model, inputs, piece.positions)
            for start in range(0, len(states), rows):
                yield piece, slice(start, start + rows), head(states[start : start + rows])


def position_logits(model: Any, inputs: dict[str, Any], positions: Any) -> Any:
    """Logits at flat `positions` only, by the model's own code.

    A hook hands the LM head only the chosen states. What a model does around its head (T5's scaling
    where embeddings are tied, Gemma's soft cap, Granite's and Cohere's scaling, BART's bias) is
    therefore done as ever.

    Returns:
        (N, V) logits in the model's type.
    """

    def choose(states: Any) -> Any:
        return states.flatten(0, 1).index_select(0, positions)[None]

    with head_reads(model, choose):
        return model(**inputs, use_cache=False).logits[0]


def position_states(model: Any, inputs: dict[str, Any], positions: Any) -> Any:
    """(N, D): what the LM head would read at flat `positions`. The head itself runs over nothing.

    T5's scaling, which comes before the head, is in the states; what comes after it is not.
    """
    found = []

    def keep(states: Any) -> Any:
        found.append(states.flatten(0, 1).index_select(0, positions))
        return states[:1, :0]

    with head_reads(model, keep):
        model(**inputs, use_cache=False)
    return found[0]


def head_of(model: Any) -> Callable[[Any], Any]:
    """The model's LM head with all that the model does after it: (n, D) states → (n, V) logits.

    It calls the model itself, with the body below the head taken out for the moment, so that soft
    caps, scalings and biases are the model's own code, as in `position_logits`.
    """
    import torch

    body = _body(model)

    def head(states: Any) -> Any:
        nothing = states.new_zeros(1, 1, states.shape[-1])
        # Nobody reads the token, but a padding one would make the model warn of a missing mask.
        token = torch.full((1, 1), int(model.config.pad_token_id == 0), device=states.device)
        if model.config.is_encoder_decoder:
            inputs = {"encoder_outputs": (nothing,), "decoder_input_ids": token}
        else:
            inputs = {"input_ids": token}
        with head_reads(model, lambda _: states[None]), _replaced(body, nothing):
            return model(**inputs, use_cache=False).logits[0]

    return head


def has_body(model: Any) -> bool:
    """Whether the LM head stands apart from the rest; where not, it cannot run in chunks."""
    return _body(model) is not model


def vocabulary(model: Any) -> int:
    """V, as far as the LM head writes it (a padded vocabulary counts whole)."""
    head = model.get_output_embeddings()
    return int(getattr(head, "out_features", 0) or model.config.get_text_config().vocab_size)


def split_point(lengths: Sequence[int]) -> int:
    """How many of the ascending lengths make a first padded block of their own; 0 for none."""
    total = len(lengths)
    sizes = [k * lengths[k - 1] + (total - k) * lengths[-1] for k in range(1, total)]
    best = min(range(len(sizes)), key=sizes.__getitem__, default=0)
    padded = total * lengths[-1]
    worth = sizes and sizes[best] <= min(WORTH_SPLITTING * padded, padded - LEAST_SAVED)
    return best + 1 if worth else 0


class _Nothing:
    """What a body gave, for the code around the LM head: one state, and None for all else."""

    def __init__(self, states: Any) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _body(model: Any) -> Any:
    """The module whose output the LM head reads."""
    return model.get_decoder() if model.config.is_encoder_decoder else model.base_model


@contextlib.contextmanager
def _replaced(body: Any, states: Any) -> Iterator[None]:
    """While inside, calls of `body` give `states` and compute nothing."""
    own = vars(body).get("forward")
    body.forward = lambda *_, **__: _Nothing(states)
    try:
        yield
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own


@contextlib.contextmanager
def head_reads(model: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """While inside, the LM head reads ``change(states)``."""
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, arguments: (change(arguments[0]), *arguments[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def _same(logits: Any) -> Any:
    return logits


def computing(shape: Shape) -> Any:
    """The context in which a model of this shape computes: its autocast type, if it has one."""
    import torch

    kind = torch.device(shape.device).type
    return torch.autocast(kind, shape.autocast, enabled=shape.autocast is not None)


def _inputs(model: Any, batch: Batch) -> Iterator[tuple[Piece, dict[str, Any]]]:
    """Every piece with all inputs of the model."""
    for piece, encoded in zip(batch.pieces, _encoded(model, batch), strict=True):
        yield piece, _with_mask(model, {**piece.inputs, **encoded})


def _with_mask(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Gives a mask over pairs of positions the form that the model's attention reads.

    SDPA takes it as it is; flash attention takes none, because transformers finds the examples by
    their position ids; everything else adds it to its scores.
    """
    import torch

    mask, kind = inputs.get("attention_mask"), str(model.config._attn_implementation)
    if mask is None or mask.dim() < 4 or kind == "sdpa":
        return inputs
    if "flash" in kind:
        return {name: value for name, value in inputs.items() if name != "attention_mask"}
    added = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
    return {**inputs, "attention_mask": added.masked_fill_(~mask, torch.finfo(model.dtype).min)}


def _encoded(model: Any, batch: Batch) -> Iterator[dict[str, Any]]:
    """The encoder's part of every piece's inputs: one run over all rows, then cut by rows."""
    if not batch.encoder:
        return iter([{} for _ in batch.pieces])
    rows = [piece.rows for piece in batch.pieces]
    states = model.get_encoder()(**batch.encoder).last_hidden_state
    masks = batch.encoder["attention_mask"]
    if batch.inputs is not None:
        states, masks = states[batch.inputs], masks[batch.inputs]
    pairs = zip(states.split(rows), masks.split(rows), strict=True)
    return ({"encoder_outputs": (state,), "attention_mask": mask} for state, mask in pairs)


def _encoder_decoder(data: Encoded, chosen: Any, shape: Shape) -> Batch:
    import torch

    places = torch.stack([data.source_start[chosen], data.source_length[chosen]], dim=1)
    different, inputs = places.unique(dim=0, return_inverse=True)
    shares = len(different) < len(chosen)
    read = chosen.new_empty(len(different)).scatter_(0, inputs, chosen) if shares else chosen
    ids, real = gather(data.source, data.source_start[read], data.source_length[read], shape.pad)
    encoder = {"input_ids": ids.to(shape.device), "attention_mask": real.long().to(shape.device)}
    first = split_point(data.target_length[chosen].tolist()) if shape.may_split else 0
    parts = [chosen[:first], chosen[first:]] if first else [chosen]
    pieces = tuple(_decoder_piece(data, part, shape) for part in parts)
    return Batch(encoder, pieces, inputs.to(shape.device) if shares else None)


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
