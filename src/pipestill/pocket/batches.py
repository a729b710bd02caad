"""Batches for pretraining: groups of texts of like length, padded and labelled."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from pipestill.pocket import corpus
from pipestill.pocket.world import dice

IGNORED = -100
POOL = 16  # batches drawn at once and sorted by length, to waste little on padding
BUDGET = 1800  # tokens in a teacher's batch
SHORT_POOLS = 70
Batch = dict[str, Any]


def padded(rows: list[list[int]], value: int) -> Any:
    """Stack rows of unequal length, filled up on the right."""
    import torch

    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def base_batches(tok: Any, seed: int, size: int) -> Iterator[Batch]:
    """Endless source and target batches of similar length."""
    rng = dice(seed)
    while True:
        pairs = [corpus.base_pair(rng) for _ in range(size * POOL)]
        rows = list(
            zip(tok([p[0] for p in pairs]).input_ids, tok([p[1] for p in pairs]).input_ids,
                strict=True)
        )  # fmt: skip
        rows.sort(key=lambda row: (len(row[1]) // 4, len(row[0])))
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(groups)
        for group in groups:
            source = padded([row[0] for row in group], 0)
            labels = padded([row[1] for row in group], IGNORED)
            yield {"input_ids": source, "attention_mask": (source != 0).long(), "labels": labels}


def answer_labels(ids: list[int], opens: int, newline: int) -> list[int]:
    """Keep the loss on answers: names and cities in a question cannot be foreseen."""
    labels, inside = [], False
    for position, token in enumerate(ids):
        labels.append(token if inside or position == 0 else IGNORED)
        before = ids[position - 1] if position else newline
        if token == opens and before == newline:
            inside = True
        elif token == newline and before == newline:
            inside = False
    return [*labels[:-1], ids[-1]]


def teacher_batches(tok: Any, seed: int, size: int) -> Iterator[Batch]:
    """Endless batches of documents; some open with the end mark, as packed text would."""
    rng = dice(seed)
    opens, newline = tok.convert_tokens_to_ids("A"), tok("\n").input_ids[0]
    for count in itertools.count():
        # Short documents first: a look-up is found far sooner with one note in sight than nine.
        most = corpus.FEW if count < SHORT_POOLS else corpus.SHOTS
        texts = [corpus.teacher_document(rng, most) for _ in range(size * POOL)]
        rows = [[*([1] if rng.random() < 0.3 else []), *ids, 1] for ids in tok(texts).input_ids]
        rows.sort(key=len)
        for group in by_tokens(rng, rows, BUDGET):
            answers = [
                row if rng.random() < 0.15 else answer_labels(row, opens, newline) for row in group
            ]
            filled = padded(group, IGNORED)
            yield {
                "input_ids": padded(group, 0),
                "attention_mask": (filled != IGNORED).long(),
                "labels": padded(answers, IGNORED),
            }


def by_tokens(rng: random.Random, rows: list[list[int]], budget: int) -> list[list[list[int]]]:
    """Cut sorted rows into groups of about as many tokens each, in random order."""
    groups: list[list[list[int]]] = [[]]
    for row in rows:
        if groups[-1] and len(row) * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    return groups
