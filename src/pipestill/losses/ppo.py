"""PPO for language models as pure functions: rewards, advantages, the two losses, diagnostics.

Schulman et al. 2017 (arXiv 1707.06347) with the details of Ziegler et al. 2019 (arXiv 1909.08593)
and Huang et al. 2024 (arXiv 2403.17031).

Shapes: (B, T) over the RESPONSE tokens of B answers. `mask` (B, T) is true at real tokens, which
stand together from column 0; the end token, where it was sampled, is the last of them. What lies
at padding, NaN included, reaches neither values nor gradients; results are zero there.
Log-probabilities are fp32 (float64 stays float64), all at the same temperature.
"""

from collections.abc import Callable

import torch

from pipestill.losses.common import head_nll, rows_per_chunk

Reduce = Callable[[torch.Tensor], torch.Tensor]
WHITEN_EPS = 1e-8  # pinned to OpenAI's code; so is the biased variance
MAX_ADAPTATION = 0.2


def token_logprobs(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """log softmax(logits/temperature) at the labels, in fp32, chunked where logits are many.

    Args:
        logits: (N, V), any float type.
        labels: (N,), 0 <= label < V.
        temperature: that of sampling, above 0; the same for old, new and reference policy.

    Returns:
        (N,), differentiable in `logits`.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if temperature <= 0.0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")

    def tempered(part: torch.Tensor) -> torch.Tensor:
        return _wide(part) / temperature

    return -head_nll(tempered, logits, labels, rows_per_chunk(logits.shape[-1]))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of every soft-max distribution, in fp32.

    Args:
        logits: (N, V), any float type, finite.

    Returns:
        (N,), differentiable in `logits`.
    """
    return torch.cat([_entropy(part) for part in logits.split(rows_per_chunk(logits.shape[-1]))])


def last_token(mask: torch.Tensor) -> torch.Tensor:
    """(B, T) bool, true at the last real token of every answer."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1), value=False)
    return mask & ~following


def token_rewards(
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    scores: torch.Tensor,
    mask: torch.Tensor,
    kl_coeff: float,
) -> torch.Tensor:
    """−β·(log π − log π_ref) at every token, the score added at the last real one.

    Ziegler et al. 2019, eq. 2, a token at a time. The score belongs to the end token itself, or to
    the last token of an answer that was cut off at full length; never to the padding after it.

    Args:
        logprobs: (B, T) of the policy that sampled.
        ref_logprobs: (B, T) of the frozen reference.
        scores: (B,) rewards of whole answers.
        mask: (B, T) bool.
        kl_coeff: β, 0 or more.

    Returns:
        (B, T), zero at padding.
    """
    penalty = -kl_coeff * _real(logprobs - ref_logprobs, mask)
    return penalty + scores.unsqueeze(1).expand(mask.shape).masked_fill(~last_token(mask), 0.0)


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates and the value targets.

    Schulman et al. 2015 (arXiv 1506.02438), eq. 16: A_t = Σ_l (γλ)^l·δ_{t+l} with
    δ_t = r_t + γ·V_{t+1} − V_t. An answer is a finished episode, so V past its last token is 0.

    Args:
        rewards: (B, T), see `token_rewards`.
        values: (B, T) of the value model, at the state before each token.
        mask: (B, T) bool.
        gamma: discount, 0 to 1.
        lam: λ, 0 to 1; 1 is reward-to-go less value.

    Returns:
        Advantages (B, T), not whitened, and returns (B, T) = advantages + values; zero at padding.
    """
    rewards, values = _real(rewards, mask), _real(values, mask)
    ahead = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = (rewards + gamma * ahead - values).unbind(dim=1)
    found = [deltas[-1]]
    for delta in reversed(deltas[:-1]):
        found.append(delta + gamma * lam * found[-1])
    estimates = torch.stack(found[::-1], dim=1)
    return estimates, estimates + values


def whiten(
    x: torch.Tensor,
    mask: torch.Tensor,
    *,
    shift_mean: bool = True,
    reduce: Reduce | None = None,
) -> torch.Tensor:
    """(x − mean)/√(var + 1e-8) over real tokens, biased variance, as in OpenAI's code.

    Args:
        x: (B, T).
        mask: (B, T) bool.
        shift_mean: false keeps the mean (whitened rewards); true makes it 0 (advantages).
        reduce: sums a small float64 tensor over processes and returns the sum, so that all share
            one mean and variance. Called exactly twice, whatever the mask holds.

    Returns:
        (B, T), zero at padding.
    """
    total = reduce if reduce is not None else _alone
    wide = _real(x, mask).double()
    first = total(torch.stack([wide.sum(), mask.sum().double()]))
    count = first[1].clamp(min=1.0)
    mean = first[0] / count
    centred = _real(wide - mean, mask)
    variance = total(centred.square().sum().reshape(1))[0] / count
    scaled = centred * torch.rsqrt(variance + WHITEN_EPS)
    return _real(scaled if shift_mean else scaled + mean, mask).to(x.dtype)


def policy_loss(
    new: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: float,
    *,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The clipped surrogate, negated: max(−A·ρ, −A·clip(ρ, 1−ε, 1+ε)), ρ = exp(new − old).

    Schulman et al. 2017, eq. 7.

    Args:
        new: (B, T) log-probabilities under the policy in training.
        old: (B, T) under the policy at rollout, constants.
        advantages: (B, T), constants.
        mask: (B, T) bool.
        clip: ε, above 0.
        weights: (B, T) factors of every token's loss, see `importance_weights`.

    Returns:
        (B, T) losses to be averaged over real tokens, differentiable in `new`; zero at padding.
    """
    free, clipped = _surrogates(new, old, advantages, mask, clip)
    loss = torch.maximum(free, clipped)
    return loss if weights is None else loss * _real(weights, mask)


def value_loss(
    new_values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    value_clip: float,
) -> torch.Tensor:
    """½·max((V − R)², (V_clip − R)²), V_clip = V held within ±`value_clip` of its old value.

    Args:
        new_values: (B, T) of the value model in training.
        old_values: (B, T) at rollout, constants.
        returns: (B, T), constants, see `advantages`.
        mask: (B, T) bool.
        value_clip: above 0, in units of reward.

    Returns:
        (B, T) losses to be averaged over real tokens, differentiable in `new_values`.
    """
    new, old, target = (_real(part, mask) for part in (new_values, old_values, returns))
    held = old + (new - old).clamp(-value_clip, value_clip)
    return 0.5 * torch.maximum((new - target).square(), (held - target).square())


def clip_fraction(
    new: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: float,
) -> torch.Tensor:
    """Share of real tokens whose gradient the clip has stopped (a scalar, detached).

    A ratio outside of the range on the side where the loss is larger anyway is not counted.
    Arguments as in `policy_loss`.
    """
    free, clipped = _surrogates(new.detach(), old, advantages, mask, clip)
    return masked_mean((clipped > free).to(new.dtype), mask)


def approx_kl(
    new: torch.Tensor, old: torch.Tensor, mask: torch.Tensor, estimator: str = "k3"
) -> torch.Tensor:
    """Mean over real tokens of an estimate of KL(old‖new), for tokens that `old` has sampled.

    Schulman 2020, "Approximating KL divergence": k1 = −log r is unbiased and may be negative,
    k3 = r − 1 − log r is unbiased and never is; r = new/old. For logs only: as losses both have
    other gradients than the KL itself.

    Args:
        new, old: (B, T) log-probabilities.
        mask: (B, T) bool.
        estimator: "k1" or "k3".

    Returns:
        A scalar in nats a token, detached.

    Raises:
        ValueError: another estimator is named.
    """
    ratio = _real(new.detach() - old.detach(), mask)
    if estimator not in ("k1", "k3"):
        raise ValueError(f"estimator is {estimator!r}; it must be 'k1' or 'k3'")
    return masked_mean(-ratio if estimator == "k1" else torch.expm1(ratio) - ratio, mask)


def kl_to_reference(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """(B,) log π − log π_ref summed over each answer (k1), in nats; negative values are normal."""
    return _real(logprobs - ref_logprobs, mask).sum(dim=1)


def adaptive_kl(kl_coeff: float, kl: float, target: float, count: int, horizon: int) -> float:
    """The next KL coefficient: β·(1 + clip(KL/target − 1, ±0.2)·count/horizon).

    Ziegler et al. 2019, section 2.2.

    Args:
        kl_coeff: β so far.
        kl: mean KL to the reference in nats an answer, see `kl_to_reference`.
        target: wanted KL in nats an answer, above 0.
        count: answers since the last change.
        horizon: answers over which β may change by about 20 %, above 0.

    Raises:
        ValueError: target or horizon is not above 0.
    """
    if target <= 0.0 or horizon <= 0:
        raise ValueError(f"target is {target} and horizon {horizon}; both must be above 0")
    error = min(max(kl / target - 1.0, -MAX_ADAPTATION), MAX_ADAPTATION)
    return kl_coeff * (1.0 + error * count / horizon)


def importance_weights(trainer: torch.Tensor, engine: torch.Tensor, cap: float) -> torch.Tensor:
    """min(π_trainer/π_engine, cap) of every token, detached: another engine has sampled it.

    Ionides 2008, truncated importance sampling: bounded variance for a small bias.

    Args:
        trainer: log-probabilities by the training code at rollout weights, any shape.
        engine: those that the sampling engine gave, same shape.
        cap: largest weight, above 0.
    """
    return torch.exp(trainer.detach() - engine.detach()).clamp(max=cap)


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens; 0 where there is none."""
    return _real(x, mask).sum() / mask.sum().clamp(min=1)


def _surrogates(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # Filled before exp: a NaN or an overflow at padding would turn its zero gradient into NaN.
    ratio = torch.exp(_real(new - old, mask))
    gain = -_real(advantages, mask)
    return gain * ratio, gain * ratio.clamp(1.0 - clip, 1.0 + clip)


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    logp = torch.log_softmax(_wide(logits), dim=-1)
    return -(logp.exp() * logp).sum(dim=-1)


def _real(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(~mask, 0.0)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _alone(total: torch.Tensor) -> torch.Tensor:
    return total
