"""How probable a model finds the right answers, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipestill.models.student import Student
from pipestill.records import Labelled
from pipestill.training.batches import encode
from pipestill.training.forward import batch_chunks, collate, shape_of
from pipestill.training.objectives import label_only
from pipestill.training.step import TOKENS_PER_FORWARD, micro_batches


@dataclass(frozen=True)
class Likelihood:
    """Of all answer tokens, end marks included, each after the right ones before it.

    `nll` is their mean negative log-likelihood in nats, `token_accuracy` the share that is the most
    probable token.
    """

    nll: float
    token_accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def likelihood(student: Student, inputs: Sequence[str], answers: Sequence[str]) -> Likelihood:
    """Scores the right answers under a model, as training would.

    Args:
        student: the model, asked in its own way.
        inputs: texts or conversations.
        answers: the right answers.

    Raises:
        UserError: ``LABEL_TOO_LONG``.
    """
    import torch

    rows = [
        Labelled(id=str(at), input_text=text, output_text=answer, label_source="gold")
        for at, (text, answer) in enumerate(zip(inputs, answers, strict=True))
    ]
    data = encode(rows, label_only(rows, 0), student.renderer)
    shape = shape_of(student.loaded)
    nll, hits, tokens = 0.0, 0, 0
    with torch.inference_mode():
        for part in micro_batches(data, range(len(rows)), TOKENS_PER_FORWARD):
            batch = collate(data, part, shape)
            for piece, places, logits in batch_chunks(student.loaded.model, batch, shape):
                wanted = piece.labels[places]
                cross_entropy = torch.nn.functional.cross_entropy
                nll += float(cross_entropy(logits.float(), wanted, reduction="sum"))
                hits += int((logits.argmax(-1) == wanted).sum())
                tokens += len(wanted)
    return Likelihood(nll / max(1, tokens), hits / max(1, tokens), tokens)
