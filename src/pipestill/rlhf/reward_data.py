"""Preference pairs as token ids: how they are read, cut, held out and batched.

A pair is two sequences of `pipestill.training.batches.Encoded`: sequence 2p is the preferred answer
of pair p, sequence 2p + 1 the other one, both after the same prompt.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.errors import UserError
from pipestill.models.chat import Conversation
from pipestill.models.heads import Tokens
from pipestill.models.render import Renderer
from pipestill.records import Preference
from pipestill.training.batches import Encoded, gather


@dataclass(frozen=True)
class Pairs:
    """Encoded pairs. `lengths` (P, 2) counts the tokens of both answers before they were cut.

    `identical` pairs were the same tokens after cutting and are left out; they count in no other
    field.
    """

    data: Encoded
    margins: Any
    lengths: Any
    ids: list[str]
    identical: int
    cut_answers: int

    def __len__(self) -> int:
        return len(self.ids)


def style_of(rows: Sequence[Preference]) -> str:
    """How prompts are written: ``chat`` where a row has messages, else ``plain``."""
    return "chat" if any(row.messages for row in rows) else "plain"


def prompt_of(row: Preference) -> str:
    """What the renderer reads: the conversation of a chat row, else the input text."""
    return Conversation(row.input_text, row.messages) if row.messages else row.input_text


def answer_ids(renderer: Renderer, texts: Sequence[str]) -> list[tuple[list[int], int]]:
    """Ids of answers with their end mark, and how many there were before cutting.

    One that is too long loses its end and with it the end mark: nothing then says that it is whole.
    """
    limit = renderer.max_output_tokens
    return [(ids[:limit], len(ids)) for ids in renderer.targets(texts)]


def encode_pairs(rows: Sequence[Preference], renderer: Renderer) -> Pairs:
    """Tokenises prompts and answers; pairs that are identical after cutting are dropped.

    Raises:
        UserError: ``PREFERENCE_CHOICE`` naming the row.
    """
    import torch

    for row in rows:
        if row.choice not in (0, 1):
            raise UserError(
                "PREFERENCE_CHOICE",
                f"row {row.id}: choice: found {row.choice!r}, allowed: 0 or 1",
                "ties teach nothing: leave the row out",
            )
    prompts = renderer.prompts("predict", [prompt_of(row) for row in rows])
    sides = [(row.candidate_0, row.candidate_1)[:: 1 - 2 * row.choice] for row in rows]
    answers = answer_ids(renderer, [text for pair in sides for text in pair])
    kept = [p for p in range(len(rows)) if answers[2 * p][0] != answers[2 * p + 1][0]]
    sequences = [s for p in kept for s in (2 * p, 2 * p + 1)]
    source, source_start, source_length = _flat([prompts[s // 2].ids for s in sequences])
    target, target_start, target_length = _flat([answers[s][0] for s in sequences])
    whole = torch.tensor([answers[s][1] for s in sequences], dtype=torch.long)
    data = Encoded(
        source=source,
        source_start=source_start,
        source_length=source_length,
        target=target,
        target_start=target_start,
        target_length=target_length,
        label_length=target_length,
        of_row=[[2 * k, 2 * k + 1] for k in range(len(kept))],
        cut_inputs=sum(prompts[p].truncated for p in kept),
        cut_rationales=0,
    )
    return Pairs(
        data=data,
        margins=torch.tensor([float(rows[p].margin) for p in kept]),
        lengths=whole.view(-1, 2),
        ids=[rows[p].id for p in kept],
        identical=len(rows) - len(kept),
        cut_answers=int((whole > target_length).sum()),
    )


def hold_out(
    rows: Sequence[Preference], fraction: float
) -> tuple[list[Preference], list[Preference]]:
    """Pairs to train on and pairs to select the checkpoint by; no prompt stands in both.

    The prompts with the smallest hashes are held out, so the same ones whatever the order.
    """
    keys = [hashlib.sha256(row.input_text.encode("utf-8", "replace")).digest() for row in rows]
    ranked = sorted(set(keys))
    held = set(ranked[: min(len(ranked) - 1, max(1, round(len(ranked) * fraction)))])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held]


def pair_batches(data: Encoded, pairs: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """`pairs` in parts of at most `tokens` padded tokens (one pair at least), the longest first."""
    import torch

    chosen = torch.tensor(pairs)
    longest = torch.maximum(data.target_length[2 * chosen], data.target_length[2 * chosen + 1])
    sizes = (2 * (data.source_length[2 * chosen] + longest)).tolist()
    size = dict(zip(pairs, sizes, strict=True))
    part: list[int] = []
    for pair in sorted(pairs, key=lambda pair: -size[pair]):
        if part and (len(part) + 1) * size[part[0]] > tokens:
            yield part
            part = []
        part.append(pair)
    if part:
        yield part


def collate_pairs(
    data: Encoded, pairs: Sequence[int], pad: int, device: str
) -> tuple[Tokens, Tokens, Any]:
    """(n, P) prompts, (2n, T) answers, (2n,) whose prompt: the preferred answers, then the others.

    Each prompt is there once, so that an encoder reads it once.
    """
    import torch

    first = 2 * torch.tensor(pairs)
    both = torch.cat([first, first + 1])
    prompts = gather(data.source, data.source_start[first], data.source_length[first], pad)
    answers = gather(data.target, data.target_start[both], data.target_length[both], pad)
    of_prompt = torch.arange(len(first)).repeat(2)
    asked, said = (Tokens(ids.to(device), real.to(device)) for ids, real in (prompts, answers))
    return asked, said, of_prompt.to(device)


def ids_of(data: Encoded, sequence: int) -> tuple[list[int], list[int]]:
    """Prompt and answer of one sequence, as lists."""
    begin, length = int(data.source_start[sequence]), int(data.source_length[sequence])
    prompt: list[int] = data.source[begin : begin + length].tolist()
    begin, length = int(data.target_start[sequence]), int(data.target_length[sequence])
    answer: list[int] = data.target[begin : begin + length].tolist()
    return prompt, answer


def _flat(rows: Sequence[Sequence[int]]) -> tuple[Any, Any, Any]:
    """All ids end to end, where each row starts, and how long it is."""
    import torch

    length = torch.tensor([len(row) for row in rows], dtype=torch.long)
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    return flat, length.cumsum(0) - length, length
