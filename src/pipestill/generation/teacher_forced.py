"""The teacher-forced pass: what the teacher thinks of every target token, shard by shard."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipestill.generation import logits_shard as shard_files
from pipestill.generation.teacher_answers import progress
from pipestill.losses.sparse import top_k
from pipestill.training.forward import batch_chunks
from pipestill.training.step import budget, micro_batches
from pipestill.training.teacher_states import Teacher, in_order


def write_shards(
    teacher: Teacher,
    names: Sequence[str],
    folder: Path,
    *,
    k: int,
    tau: float,
    batch_size: int,
    shard_bytes: int,
) -> list[dict[str, Any]]:
    """Writes the shards that `folder` does not hold yet; returns the entries of all.

    Args:
        teacher: with its data, one sequence a row.
        names: the rows' ids.
        folder: where to.
        k: 1 to the size of the vocabulary.
        tau: divides the logits.
        batch_size: most rows of one forward pass.
        shard_bytes: most bytes of one shard.
    """
    tokens = max(1, shard_bytes // shard_files.token_bytes(k, teacher.size))
    shards = []
    with progress(len(names), "teacher's probabilities", "row") as step:
        for number, part in enumerate(_parts(teacher, names, tokens)):
            path = folder / shard_files.shard_name(number)
            entry = shard_files.kept_shard(path)
            if entry is None:
                rows = _stored_rows(teacher, part, names, k, tau, batch_size)
                entry = shard_files.write_shard(path, rows, teacher.size)
            shards.append(entry)
            step(len(part))
    return shards


def _parts(teacher: Teacher, names: Sequence[str], tokens: int) -> Iterator[list[int]]:
    """The sequences of every shard, longest first; of a length by id, whatever the rows' order."""
    lengths = (teacher.data.source_length + teacher.data.target_length).tolist()
    part: list[int] = []
    filled = 0
    for s in sorted(range(len(names)), key=lambda s: (-lengths[s], names[s])):
        size = int(teacher.data.target_length[s])
        if part and filled + size > tokens:
            yield part
            part, filled = [], 0
        part.append(s)
        filled += size
    if part:
        yield part


def _stored_rows(
    teacher: Teacher,
    sequences: Sequence[int],
    names: Sequence[str],
    k: int,
    tau: float,
    batch_size: int,
) -> list[shard_files.StoredRow]:
    """What is stored of some sequences, in their order."""
    found: dict[int, shard_files.StoredRow] = {}
    for part in micro_batches(teacher.data, sequences, budget(teacher.shape)):
        for start in range(0, len(part), batch_size):
            chosen = part[start : start + batch_size]
            found.update(_one_pass(teacher, chosen, names, k, tau))
    return [found[s] for s in sequences]


def _one_pass(
    teacher: Teacher, sequences: Sequence[int], names: Sequence[str], k: int, tau: float
) -> dict[int, shard_files.StoredRow]:
    """One forward pass over targets that are given; the LM head runs in chunks of positions."""
    import torch

    parts = []
    batch = teacher.batch(sequences)
    with torch.inference_mode():
        for piece, place, logits in batch_chunks(teacher.model, batch, teacher.shape):
            labels = piece.labels[place]
            ids, logprobs, label = top_k(logits[..., : teacher.size], labels, k, tau)
            kept = (labels.int(), ids, shard_files.half(logprobs), shard_files.half(label))
            parts.append([value.cpu() for value in kept])
    tensors = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = in_order(teacher.data, sequences)
    lengths = teacher.data.target_length[order].tolist()
    columns = (value.split(lengths) for value in tensors)
    return {
        s: shard_files.StoredRow(tokens, ids, logprobs, label, names[s])
        for s, tokens, ids, logprobs, label in zip(order, *columns, strict=True)
    }
