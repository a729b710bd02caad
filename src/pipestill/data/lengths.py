"""How long rows are in tokens of the model that will read them."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

BATCH = 1024


def load(reference: str) -> Any:
    """The tokenizer of `reference`, or None for "": words are counted instead."""
    if not reference:
        return None
    from pipestill.models.loading import load_tokenizer

    return load_tokenizer(reference)


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, with the marks that the tokenizer adds; words where it is None."""
    if tokenizer is None:
        return [len(text.split()) for text in texts]
    counts: list[int] = []
    for start in range(0, len(texts), BATCH):
        batch = list(texts[start : start + BATCH])
        ids = tokenizer(batch, truncation=False, return_attention_mask=False, verbose=False)
        counts += map(len, ids["input_ids"])
    return counts


def fingerprint(tokenizer: Any) -> str:
    """sha256 over the tokenizer's whole definition, or ``words``."""
    if tokenizer is None:
        return "words"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def percentiles(name: str, counts: Sequence[int]) -> dict[str, int]:
    """``{name}_p50``, ``_p95`` (nearest rank) and ``_max``; zeros where there is nothing."""
    ordered = sorted(counts) or [0]

    def rank(share: float) -> int:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return {f"{name}_p50": rank(0.5), f"{name}_p95": rank(0.95), f"{name}_max": ordered[-1]}
