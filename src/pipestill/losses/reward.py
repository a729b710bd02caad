"""The reward model's pairwise loss, and the statistics that put its rewards on a known scale."""

import torch

CONSTANT = 1e-8  # a spread below this is rounding, not preference


def bradley_terry(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    *,
    margin: float | torch.Tensor = 0.0,
    centering: float = 0.0,
) -> torch.Tensor:
    """−log σ(r_c − r_r − margin) + centering·(r_c + r_r)² of every pair.

    Bradley & Terry 1952 as in Ouyang et al. 2022 (arXiv 2203.02155), eq. 1; the margin is that of
    Touvron et al. 2023 (arXiv 2307.09288), eq. 2. The loss alone fixes rewards only up to a
    constant a prompt; the centring term of Eisenstein et al. 2023 (arXiv 2312.09244) keeps the two
    rewards of a pair around zero.

    Args:
        chosen: (B,) rewards of the preferred answers.
        rejected: (B,) rewards of the others.
        margin: by how much the preferred answer should win; one number, or (B,) one a pair.
        centering: weight of the squared sum of the two rewards, 0 or more.

    Returns:
        (B,) losses, differentiable in both rewards.
    """
    ranking = -torch.nn.functional.logsigmoid(chosen - rejected - margin)
    return ranking + centering * (chosen + rejected).square()


def normalisation(rewards: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation that make these rewards (r − mean)/std, of mean 0 and spread 1.

    Ziegler et al. 2019 (arXiv 1909.08593), section 2: rewards of the reference policy's answers
    are brought to mean 0 and variance 1. The variance is the biased one. Where all rewards are
    equal the spread is given as 1, so that normalising only shifts them.

    Args:
        rewards: (N,) rewards of answers of the reference policy, N >= 1.

    Raises:
        ValueError: there is no reward, or one of them is not finite.
    """
    wide = rewards.detach().double()
    if not wide.numel() or not bool(torch.isfinite(wide).all()):
        raise ValueError("normalisation needs one finite reward or more")
    std = float(wide.std(correction=0))
    return float(wide.mean()), std if std > CONSTANT else 1.0
