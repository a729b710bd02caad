"""Second implementations of the RLHF formulas, written another way, and the oracles' inputs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

BETA, GAMMA, LAM, CLIP = 0.05, 1.0, 0.95, 0.2


def stored(shared_data: Path, group: str) -> Any:
    """One group of the shared oracles; the test is skipped where they are absent."""
    file = shared_data.parent / "oracles" / "oracles.json"
    if not file.is_file():
        pytest.skip(f"oracles not found at {file}")
    return json.loads(file.read_text())[group]


def table(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mask_of(lengths: list[int], columns: int) -> torch.Tensor:
    return torch.arange(columns) < torch.tensor(lengths).unsqueeze(1)


class Rollout:
    """The deterministic rollout of the oracles: answers of 5 and 3 tokens, and an update of it."""

    index = torch.arange(10, dtype=torch.float64).reshape(2, 5)
    logprobs = -torch.sin(0.6 * index + 0.5).abs()
    ref = -torch.cos(0.3 * index + 0.1).abs()
    values = 0.3 * torch.sin(index)
    scores = table([1.0, -0.5])
    mask = mask_of([5, 3], 5)
    new = logprobs + 0.3 * torch.sin(2.1 * index)
    new_values = values + 0.35 * torch.cos(index)


def random_rollout(lengths: list[int], columns: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Values at padding are garbage on purpose: nothing may read them."""
    generator = torch.Generator().manual_seed(seed)
    mask = mask_of(lengths, columns)

    def draw() -> torch.Tensor:
        made = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
        return made.masked_fill(~mask, math.nan)

    names = ("new", "old", "ref", "rewards", "values", "new_values", "advantages")
    return {"mask": mask} | {name: draw() for name in names}


def widened(rollout: dict[str, torch.Tensor], extra: int) -> dict[str, torch.Tensor]:
    """The same rollout with columns of padding after it, which hold infinities."""
    fill = {name: False if part.dtype == torch.bool else math.inf for name, part in rollout.items()}
    return {
        name: torch.nn.functional.pad(part, (0, extra), value=fill[name])
        for name, part in rollout.items()
    }


def temporal_differences(
    rewards: torch.Tensor, values: torch.Tensor, lengths: list[int], gamma: float
) -> list[list[float]]:
    rows = []
    for reward, value, length in zip(rewards.tolist(), values.tolist(), lengths, strict=True):
        ahead = [*value[1:length], 0.0]
        rows.append([reward[t] + gamma * ahead[t] - value[t] for t in range(length)])
    return rows


def gae_double_sum(
    rewards: torch.Tensor, values: torch.Tensor, lengths: list[int], gamma: float, lam: float
) -> torch.Tensor:
    """A_t = Σ_l (γλ)^l δ_{t+l}, term by term."""
    found = torch.zeros_like(rewards)
    for row, deltas in enumerate(temporal_differences(rewards, values, lengths, gamma)):
        for t in range(len(deltas)):
            found[row, t] = sum(
                (gamma * lam) ** ahead * delta for ahead, delta in enumerate(deltas[t:])
            )
    return found


def gae_matrix(
    rewards: torch.Tensor, values: torch.Tensor, lengths: list[int], gamma: float, lam: float
) -> torch.Tensor:
    """A = δ·D with D[l, t] = (γλ)^(l−t) for l >= t: the sum as one matrix product."""
    columns = rewards.shape[1]
    deltas = torch.zeros_like(rewards)
    for row, found in enumerate(temporal_differences(rewards, values, lengths, gamma)):
        deltas[row, : len(found)] = table(found)
    steps = torch.arange(columns)
    gap = (steps.unsqueeze(1) - steps).clamp(min=0).double()
    return deltas @ torch.tril(torch.full_like(gap, gamma * lam) ** gap)


def gae_scan(
    rewards: torch.Tensor, values: torch.Tensor, lengths: list[int], gamma: float, lam: float
) -> torch.Tensor:
    """The recurrence A_t = δ_t + γλ·A_{t+1} as an associative scan: log2(T) doublings."""
    total = torch.zeros_like(rewards)
    for row, found in enumerate(temporal_differences(rewards, values, lengths, gamma)):
        total[row, : len(found)] = table(found)
    factor, step = gamma * lam, 1
    while step < total.shape[1]:
        total = total + factor * torch.nn.functional.pad(total[:, step:], (0, step))
        factor, step = factor * factor, step * 2
    return total


def gae_with_score_on_padding(
    logprobs: torch.Tensor,
    ref: torch.Tensor,
    values: torch.Tensor,
    scores: torch.Tensor,
    lengths: list[int],
) -> torch.Tensor:
    """TRL's PPO: the score goes on the first PAD (on the last token where there is no PAD).

    The value at that PAD is kept, as `padding_mask_p1` keeps it, and so joins the episode.
    """
    found = torch.zeros_like(logprobs)
    for row, length in enumerate(lengths):
        end = min(length, logprobs.shape[1] - 1)
        rewards = [-BETA * float(logprobs[row, t] - ref[row, t]) for t in range(length)]
        rewards += [0.0] * (end + 1 - length)
        rewards[end] += float(scores[row])
        kept = [float(values[row, t]) for t in range(end + 1)] + [0.0]
        ahead = 0.0
        for t in range(end, -1, -1):
            ahead = rewards[t] + GAMMA * kept[t + 1] - kept[t] + GAMMA * LAM * ahead
            found[row, t] = ahead
    return found


def ppo_loss_by_hand(new: float, old: float, advantage: float, clip: float) -> float:
    """The clipped surrogate by cases (Schulman et al. 2017, figure 1), without a max."""
    ratio = math.exp(new - old)
    if advantage >= 0:
        return -advantage * min(ratio, 1 + clip)
    return -advantage * max(ratio, 1 - clip)
