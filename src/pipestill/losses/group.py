"""Advantages of several answers to one prompt, without a value model: RLOO and GRPO.

Both give one advantage an answer. Spread over its tokens (`over_tokens`) it goes into
`pipestill.losses.ppo.policy_loss`. RLOO carries the KL penalty in the rewards
(`pipestill.losses.ppo.kl_to_reference`), GRPO in the loss (`k3`).
"""

import torch

SPREAD_EPS = 1e-4  # added to a group's standard deviation, as public GRPO implementations do


def rloo_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Reward less the mean reward of the prompt's other answers (leave one out).

    Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740), section 3.3. The baseline of an
    answer does not depend on that answer, so the gradient stays unbiased.

    Args:
        rewards: (P, G), G answers to each of P prompts, G >= 2.

    Returns:
        (P, G); every row sums to 0.

    Raises:
        ValueError: G is below 2.
    """
    size = _group_size(rewards)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (size - 1)
    return rewards - others


def grpo_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(R − mean)/(std + 1e-4) within the answers to one prompt.

    Shao et al. 2024 (arXiv 2402.03300), section 4.1.2. The standard deviation is pinned to the
    unbiased one (divisor G − 1). A group whose rewards are all equal teaches nothing: zeros.

    Args:
        rewards: (P, G), G answers to each of P prompts, G >= 2.

    Returns:
        (P, G); every row sums to 0.

    Raises:
        ValueError: G is below 2.
    """
    _group_size(rewards)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True, correction=1) + SPREAD_EPS)


def over_tokens(advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The advantage of an answer at each of its tokens, zero at padding.

    Args:
        advantages: (P, G).
        mask: (P·G, T) bool, real tokens; the answers of one prompt stand together.

    Returns:
        (P·G, T).
    """
    return advantages.reshape(-1, 1).expand(mask.shape).masked_fill(~mask, 0.0)


def k3(new: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """Per token π_ref/π − 1 − log(π_ref/π): never negative, its mean over π's samples is KL(π‖ref).

    Schulman 2020, "Approximating KL divergence"; in GRPO's loss, Shao et al. 2024
    (arXiv 2402.03300), eq. 4. Its gradient alone is that of KL(π_ref‖π) at π = π_old; multiplied
    by exp(new − old), as in DeepSeek-V3.2 (arXiv 2512.02556), it is that of KL(π‖π_ref).

    Args:
        new: log-probabilities of the policy, any shape.
        ref: those of the reference, same shape.

    Returns:
        The same shape, differentiable in `new`.
    """
    ratio = ref - new
    # expm1 keeps the digits that exp(x) − 1 loses near 0, where this term spends its time.
    return torch.expm1(ratio) - ratio


def _group_size(rewards: torch.Tensor) -> int:
    size = int(rewards.shape[1])
    if size < 2:
        raise ValueError(f"{size} answer(s) a prompt; advantages within a group need 2 or more")
    return size
