"""Cross-entropy of tokens, computed in full precision whatever the model computes in."""

import torch
from torch.utils.checkpoint import checkpoint

IGNORED = -100
CHUNK_ELEMENTS = 1 << 24  # 64 MiB of fp32 logits at once


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of every token, in fp32 (float64 stays float64).

    Only positions that carry loss are expected here, so that a batch of T positions of which N
    count never makes T×V logits. Past `CHUNK_ELEMENTS` logits the work is done in chunks whose
    soft-max is recomputed in the backward pass, so that no N×V fp32 tensor exists at once.

    Args:
        logits: (N, V), any float type.
        labels: (N,), 0 <= label < V.

    Returns:
        (N,), differentiable in `logits`.
    """
    rows = max(1, CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    if logits.shape[0] <= rows:
        return _nll(logits, labels)
    parts = zip(logits.split(rows), labels.split(rows), strict=True)
    return torch.cat([checkpoint(_nll, a, b, use_reentrant=False) for a, b in parts])


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


def _nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(wide, labels, reduction="none")
