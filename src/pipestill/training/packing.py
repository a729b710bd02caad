"""Several examples in one row of a decoder-only model, as if each stood alone.

Position ids start anew with every example, and an explicit mask lets a token see only the earlier
tokens of its own example, so values and gradients are those of unpacked rows. Not every model
honours both (state-space layers carry state over, sliding windows ignore the mask), so a model is
tried on two short examples before it is trusted, and otherwise gets one example a row.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from pipestill.errors import UserError
from pipestill.training.batches import Encoded, gather, groups_of
from pipestill.training.forward import Piece, Shape, batch_nll, collate

MODES = ("auto", "on", "off")
LONGEST_ROW = 2048  # tokens; a longer example makes its row as long as itself
# Of log-likelihoods, between packed and unpacked rows, by the type of the weights.
TOLERANCE, TOLERANCE_HALF = 1e-3, 0.1


def with_packing(model: Any, shape: Shape, data: Encoded, mode: str) -> Shape:
    """`shape` with packing, where it is wanted, legal and works; a refusal is a line on stderr.

    Args:
        model: the model, used for a trial without gradients.
        shape: its shape.
        data: the rows to be trained on.
        mode: ``on``, ``off`` or ``auto``: on a GPU. A CPU gains nothing over batches of equal
            lengths, because it computes the masked part of the attention as well.

    Raises:
        UserError: ``PACKING_MODE``.
    """
    if mode not in MODES:
        raise UserError("PACKING_MODE", f"packing: found {mode!r}, allowed: {', '.join(MODES)}")
    wanted = mode == "on" or (mode == "auto" and shape.device != "cpu")
    if not wanted or (shape.is_encoder_decoder and mode == "auto"):
        return shape
    packed = dataclasses.replace(shape, packed=LONGEST_ROW)
    reason = refusal(model, packed, data)
    if reason:
        print(f"packing is off: {reason}", file=sys.stderr, flush=True)
        return shape
    return packed


def refusal(model: Any, packed: Shape, data: Encoded) -> str:
    """Why the model cannot take packed rows; empty where it can."""
    if packed.is_encoder_decoder:
        return "an encoder-decoder model takes one example a row"
    window = getattr(model.config, "sliding_window", None)
    longest = int((data.source_length + data.target_length).max())
    if window and longest > window:
        return f"the longest example ({longest} tokens) exceeds the model's window of {window}"
    try:
        difference = trial(model, packed, data)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"{type(model).__name__} refuses packed rows ({type(error).__name__}: {error})"
    limit = TOLERANCE if model.dtype.itemsize > 2 else TOLERANCE_HALF
    if not difference <= limit:
        return f"{type(model).__name__} gives other values for packed rows (by {difference:.2g})"
    return ""


def trial(model: Any, packed: Shape, data: Encoded) -> float:
    """The largest difference of a token's log-likelihood in packed and unpacked rows."""
    import torch

    if "flash" not in str(model.config._attn_implementation):
        packed = dataclasses.replace(packed, autocast=None)  # a finer comparison
    count = min(2, len(data.target_length))
    short = (data.source_length + data.target_length).argsort()[:count].tolist()
    short = short * (3 - count)  # a single example is packed with itself
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            shapes = (packed, dataclasses.replace(packed, packed=0))
            together, apart = (
                batch_nll(model, collate(data, short, shape), shape).sort().values
                for shape in shapes
            )
    finally:
        model.train(training)
    return float((together - apart).abs().max())


def packed_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which examples share a row: the longest first, each into the first row with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((r for r, left in enumerate(room) if left >= lengths[i]), None)
        if place is None:
            rows.append([])
            room.append(max(capacity, lengths[i]))
            place = len(rows) - 1
        rows[place].append(i)
        room[place] -= lengths[i]
    return rows


def packed_piece(data: Encoded, chosen: Any, shape: Shape) -> Piece:
    """The sequences `chosen` in as few rows as they fit into.

    The piece counts sequences, not rows of the batch. Padding is an example of its own (number 0)
    that nothing else sees and that sees itself, so that no row of the attention is empty.
    """
    import torch

    total = data.source_length[chosen] + data.target_length[chosen]
    rows = packed_rows(total.tolist(), shape.packed)
    order = torch.tensor([i for row in rows for i in row])
    width = max(int(total[row].sum()) for row in rows)
    ids, position, example, target = (torch.zeros(len(rows), width).long() for _ in range(4))
    ids.fill_(shape.pad)
    group = torch.zeros_like(ids)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            place = slice(start, start + int(total[i]))
            fill(data, int(chosen[i]), ids[r, place], target[r, place], group[r, place])
            position[r, place] = torch.arange(int(total[i]))
            example[r, place] = i + 1
            start = place.stop
    return _piece(ids, position, example, target, group, shape, len(order))


def fill(data: Encoded, sequence: int, ids: Any, target: Any, group: Any) -> None:
    """Writes one sequence into views of its row: tokens, which are targets, and their groups."""
    one = slice(sequence, sequence + 1)
    prompt = int(data.source_length[sequence])
    ids[:prompt] = gather(data.source, data.source_start[one], data.source_length[one], 0)[0][0]
    ids[prompt:] = gather(data.target, data.target_start[one], data.target_length[one], 0)[0][0]
    target[prompt:] = 1
    group[prompt:] = groups_of(data.label_length[one], data.target_length[one])[0]


def _piece(
    ids: Any, position: Any, example: Any, target: Any, group: Any, shape: Shape, count: int
) -> Piece:
    # Position p predicts token p + 1. The first token of an example is never a target of another
    # one: every prompt has a token.
    real = target.roll(-1, 1).bool()
    real[:, -1] = False
    labels, group = ids.roll(-1, 1), group.roll(-1, 1)
    inputs = {"input_ids": ids, "position_ids": position}
    moved = {name: value.to(shape.device) for name, value in inputs.items()}
    return Piece(
        rows=count,
        inputs={**moved, "attention_mask": block_mask(example.to(shape.device))},
        positions=real.flatten().nonzero()[:, 0].to(shape.device),
        labels=labels[real].to(shape.device),
        group=group[real].to(shape.device),
        row=(example - 1)[real].to(shape.device),
    )


def block_mask(example: Any) -> Any:
    """(rows, 1, T, T) bool: whether a query may look at a key.

    Args:
        example: (rows, T) number of the example that every token belongs to.
    """
    import torch

    width = example.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=example.device).tril()
    return ((example[:, :, None] == example[:, None, :]) & earlier)[:, None]
