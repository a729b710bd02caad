"""Distilling step-by-step: label loss and rationale loss as two separate means.

Hsieh et al. 2023 (arXiv 2305.02301), equations 2 to 4: L = L_label + λ·L_rationale. As in the
authors' code the weights are written α and 1−α, so λ = (1−α)/α. Each loss is the mean over ITS
OWN tokens. One mean over both tasks' tokens would be another objective: rationales are 10 to 20
times longer than labels and would take λ with them.

Both tasks' tokens may come from one forward pass. A token then weighs α/N_label or
(1−α)/N_rationale, and the weighted sum over all tokens is L, exactly. The counts are those of the
whole step, so that the sums of micro-batches and of processes add up to the same L.
"""

import torch

LABEL, RATIONALE = 0, 1


def token_weights(
    group: torch.Tensor, alpha: float, label_count: int, rationale_count: int
) -> torch.Tensor:
    """The weight of every token in the step's loss.

    Args:
        group: (N,), `LABEL` or `RATIONALE`.
        alpha: share of the label loss, 0 to 1.
        label_count: label tokens in the whole step, over all micro-batches and processes.
        rationale_count: rationale tokens likewise.

    Returns:
        (N,) fp64 weights; they sum to 1 over a step that has tokens of both groups.
    """
    pair = [alpha / max(1, label_count), (1.0 - alpha) / max(1, rationale_count)]
    return torch.tensor(pair, dtype=torch.float64, device=group.device)[group]


def dss_loss(
    nll: torch.Tensor, group: torch.Tensor, alpha: float, label_count: int, rationale_count: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """α·mean label NLL + (1−α)·mean rationale NLL of the tokens given.

    A step without rationales gives α·mean label NLL, one without labels the other term: the
    missing mean counts as zero, never as 0/0.

    Args:
        nll: (N,) negative log-likelihoods from `pipestill.losses.common.token_nll`.
        group: (N,), `LABEL` or `RATIONALE`.
        alpha: share of the label loss, 0 to 1; 1 is standard fine-tuning.
        label_count: label tokens in the whole step.
        rationale_count: rationale tokens in the whole step.

    Returns:
        The scalar loss, and the detached sums ``label_nll`` and ``rationale_nll``.
    """
    weights = token_weights(group, alpha, label_count, rationale_count).to(nll.dtype)
    detached, explains = nll.detach(), group == RATIONALE
    rationale = (detached * explains).sum()
    sums = {"label_nll": detached.sum() - rationale, "rationale_nll": rationale}
    return (weights * nll).sum(), sums
