"""Direct preference losses: from log-probabilities of whole answers, without a reward model.

A log-probability here is the sum over the answer's tokens, the end token with it. DPO's implicit
reward of an answer is β·(log π − log π_ref), Rafailov et al. 2023 (arXiv 2305.18290), section 4.
"""

import torch

Lengths = tuple[torch.Tensor, torch.Tensor]


def implicit_rewards(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """β·(log π − log π_ref) of both answers of every pair, detached: for logs, not for training.

    The share of pairs where the first is larger is the accuracy of the policy as a reward model.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: (B,) summed log-probabilities.
        beta: strength of the KL constraint, above 0.

    Returns:
        Two (B,) tensors: rewards of the chosen and of the rejected answers.
    """
    chosen = beta * (policy_chosen - ref_chosen).detach()
    return chosen, beta * (policy_rejected - ref_rejected).detach()


def dpo(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """−log σ(β·Δ) of every pair, Δ the difference of the two log ratios to the reference.

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. With label smoothing ε it is conservative DPO
    (cDPO, Mitchell 2023): (1−ε)·loss + ε·loss of the pair the other way round, for labels that
    are wrong with probability ε. Its minimum is finite, at σ(β·Δ) = 1−ε.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: (B,) summed log-probabilities.
        beta: strength of the KL constraint, above 0.
        label_smoothing: ε, from 0 to below 0.5.

    Returns:
        (B,) losses, differentiable in the policy's log-probabilities.

    Raises:
        ValueError: ε lies outside of its range.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 0.5)")
    logit = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    right, wrong = (torch.nn.functional.logsigmoid(side) for side in (logit, -logit))
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong


def ipo(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
    lengths: Lengths | None = None,
) -> torch.Tensor:
    """(Δ − 1/(2β))² of every pair: the preference gap is pulled to 1/(2β), not to infinity.

    Azar et al. 2023 (arXiv 2310.12036), eq. 17, whose τ is β here. By default Δ is made of summed
    log ratios, as the paper writes it. With `lengths` each log ratio is first divided by the
    answer's tokens, so that the target does not depend on how long answers are (the form of TRL).

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: (B,) summed log-probabilities.
        beta: strength of the KL constraint, above 0.
        lengths: (B,) tokens of the chosen and (B,) of the rejected answers.

    Returns:
        (B,) losses, differentiable in the policy's log-probabilities.

    Raises:
        ValueError: β is not above 0.
    """
    if beta <= 0.0:
        raise ValueError(f"beta is {beta}; IPO needs more than 0")
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    if lengths is not None:
        chosen, rejected = chosen / lengths[0], rejected / lengths[1]
    return (chosen - rejected - 1.0 / (2.0 * beta)).square()
