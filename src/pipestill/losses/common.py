"""Cross-entropy of tokens, computed in full precision whatever the model computes in."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

IGNORED = -100
CHUNK_ELEMENTS = 1 << 24  # 64 MiB of fp32 logits at once


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of every token, in fp32 (float64 stays float64).

    Only positions that carry loss are expected here, so that a batch of T positions of which N
    count never makes T×V logits. Past `CHUNK_ELEMENTS` logits the work is done in chunks whose
    soft-max is recomputed in the backward pass, so that no N×V fp32 tensor exists at once. Where
    the logits themselves would be too large, use `head_nll`.

    Args:
        logits: (N, V), any float type.
        labels: (N,), 0 <= label < V.

    Returns:
        (N,), differentiable in `logits`.
    """
    return head_nll(_same, logits, labels, rows_per_chunk(logits.shape[-1]))


def head_nll(
    head: Callable[[torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    labels: torch.Tensor,
    rows: int,
) -> torch.Tensor:
    """Negative log-likelihood of every token, without N×V logits: the LM head runs in chunks.

    The logits of a chunk live only while its log-likelihoods are made, and once more in the
    backward pass. The head's gradient adds up over the chunks. The last chunk is kept instead of
    recomputed: the backward pass begins with it, so the peak stays that of one chunk.

    Args:
        head: (n, D) states → (n, V) logits; a pure function of the states and weights.
        states: (N, D), what the LM head reads, at positions that carry loss.
        labels: (N,), 0 <= label < V.
        rows: states of one chunk, see `rows_per_chunk`.

    Returns:
        (N,) in fp32 (float64 stays float64), differentiable in `states` and the head's weights.
    """

    def nll(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return _nll(head(part), wanted)

    if len(states) <= rows:
        return nll(states, labels)
    whole, rest = divmod(len(states), rows)
    sizes = [rest] * (rest > 0) + [rows] * whole
    *parts, (last, wanted) = zip(states.split(sizes), labels.split(sizes), strict=True)
    found = [
        checkpoint(nll, *part, use_reentrant=False, preserve_rng_state=False) for part in parts
    ]
    return torch.cat([*found, nll(last, wanted)])


def rows_per_chunk(vocabulary: int) -> int:
    """Rows of (rows, V) logits that make at most `CHUNK_ELEMENTS`; one at least."""
    return max(1, CHUNK_ELEMENTS // max(1, vocabulary))


def masked_mean_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the positions whose label is not `IGNORED`; 0 where there is none.

    Args:
        logits: (..., V).
        labels: (...).

    Returns:
        Scalar, finite and attached to the graph of `logits` in every case.
    """
    kept = labels != IGNORED
    return token_nll(logits[kept], labels[kept]).sum() / kept.sum().clamp(min=1)


def _same(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(wide, labels, reduction="none")
