"""What is logged of a policy step: figures of its rollout and of its updates."""

import math
from collections.abc import Sequence
from typing import Any

from pipestill.losses import ppo
from pipestill.rlhf.collect import Rollout
from pipestill.training.distributed import World, all_sum


def _figures(rollout: Rollout, targets: Any) -> dict[str, Any]:
    """Sums over this process's answers (or tokens, in those ending in _tokens)."""
    mask, rewards = targets.mask, rollout.rewards.double()
    found = {
        "reward": rewards.sum(),
        "reward_squares": rewards.square().sum(),
        "score": rollout.scores.double().sum(),
        "kl": ppo.kl_to_reference(targets.old, targets.ref, mask).double().sum(),
        "eos_share": rewards.new_tensor(float(sum(rollout.ended))),
        "entropy_tokens": targets.entropy.double().sum(),
    }
    if targets.returns is not None:
        missed = (targets.returns - targets.values).double()
        for name, value in (("missed", missed), ("returns", targets.returns.double())):
            found |= {f"{name}_tokens": value.sum(), f"{name}_squares_tokens": value.square().sum()}
    return found


def described(rollout: Rollout, targets: Any, kl_coeff: float, world: World) -> dict[str, float]:
    """What is logged of a rollout, over all processes."""
    import torch

    figures = _figures(rollout, targets)
    names = list(figures)
    sums = all_sum(torch.stack(list(figures.values())), world).tolist()
    answers, tokens = len(rollout.lengths), float(rollout.lengths.sum())
    mean = {
        name: value / (tokens if name.endswith("_tokens") else answers)
        for name, value in zip(names, sums, strict=True)
    }
    variance = max(mean["reward_squares"] - mean["reward"] ** 2, 0.0)
    entry = {
        "reward": mean["reward"],
        "reward_std": math.sqrt(variance),
        "score": mean["score"],
        "kl": mean["kl"],
        "kl_coeff": kl_coeff,
        "entropy": mean["entropy_tokens"],
        "length": tokens / answers,
        "eos_share": mean["eos_share"],
        "answers": answers,
        "answer_tokens": int(tokens),
    }
    if targets.returns is not None:
        entry["explained_variance"] = _explained(mean)
    return entry


def _explained(mean: dict[str, float]) -> float:
    """1 − Var(R − V)/Var(R): 1 for perfect values, 0 for a constant, below 0 for worse than one."""
    missed = mean["missed_squares_tokens"] - mean["missed_tokens"] ** 2
    whole = mean["returns_squares_tokens"] - mean["returns_tokens"] ** 2
    return 1.0 - missed / whole if whole > 0 else 0.0


def of_updates(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the updates of a step."""
    if not updates:
        return {}
    names = [name for name in updates[0] if name != "kl_sum"]
    return {name: sum(found[name] for found in updates) / len(updates) for name in names}
