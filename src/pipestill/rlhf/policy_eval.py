"""How good a policy is on held-out prompts, and what that reward has cost.

Answers are sampled at the temperature of training, not taken greedily: KL to the reference can
only be estimated on the policy's own samples, and the reward is then of the same distribution. The
random numbers are the same in every evaluation, so that two of them differ by the policy alone,
far less than their standard errors say.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.config import PolicyConfig
from pipestill.rlhf.collect import Question, Reward, own_sampler, parts_of_answers
from pipestill.rlhf.policy import Policy, evaluate_answers
from pipestill.rlhf.rollout import uniform
from pipestill.training.distributed import World

EVALUATION = 3  # stream of random numbers
BATCH = 64  # prompts that are sampled together


@dataclass(frozen=True)
class Answer:
    """One held-out answer. `reward` is NaN where there is no reward model.

    `kl` is log π − log π_ref of the whole answer, `reference_nll` that of the reference at
    temperature 1, `entropy` the sum over tokens; all in nats.
    """

    ids: list[int]
    ended: bool
    reward: float
    kl: float
    reference_nll: float
    entropy: float


def answer_all(
    policy: Policy,
    questions: Sequence[Question],
    config: PolicyConfig,
    reward: Reward | None,
    world: World,
    *,
    base: bool = False,
) -> list[Answer]:
    """One sampled answer to each question, in their order; every process gets all of them.

    Args:
        policy: its `model` answers, or with `base` its reference.
        questions: held-out prompts.
        config: seed, temperature and lengths.
        reward: of answers; None where there is none.
        world: the processes that share the work.
        base: whether the reference answers.
    """
    import torch

    mine = list(range(len(questions)))[world.rank :: world.size]
    draws = uniform(len(questions), config.target_sequence_length, config.train_seed, EVALUATION)
    found: dict[int, Answer] = {}
    with torch.no_grad():
        for start in range(0, len(mine), BATCH):
            rows = mine[start : start + BATCH]
            asked = [questions[row] for row in rows]
            answers = _answers(policy, asked, draws[rows], reward, base)
            found |= dict(zip(rows, answers, strict=True))
    if world.size > 1:
        everyone: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(everyone, found)
        found = {row: answer for part in everyone for row, answer in part.items()}
    return [found[row] for row in range(len(questions))]


def figures(answers: Sequence[Answer], baseline: Mapping[str, float] | None) -> dict[str, float]:
    """What is logged of an evaluation.

    `val_reward_length_controlled` is the mean reward as it would be at the mean length of the
    start: reward less slope × (length − length at the start), the slope being that of reward on
    length among the answers of the start.

    Args:
        answers: from `answer_all`.
        baseline: the figures of the start; None where these are they.
    """
    tokens = sum(len(answer.ids) for answer in answers)
    length = tokens / len(answers)
    kl, kl_error = _mean([answer.kl for answer in answers])
    found = {
        "val_kl": kl,
        "val_kl_se": kl_error,
        "val_length": length,
        "val_eos_share": sum(answer.ended for answer in answers) / len(answers),
        "val_distinct_1": distinct([answer.ids for answer in answers], 1),
        "val_distinct_2": distinct([answer.ids for answer in answers], 2),
        "val_entropy": sum(answer.entropy for answer in answers) / tokens,
        "val_perplexity": math.exp(
            min(sum(answer.reference_nll for answer in answers) / tokens, 700.0)
        ),
    }
    rewards = [answer.reward for answer in answers]
    if any(map(math.isnan, rewards)):
        return found
    reward, error = _mean(rewards)
    start = baseline or {
        "val_length": length,
        "val_length_slope": slope([len(answer.ids) for answer in answers], rewards),
    }
    controlled = reward - start["val_length_slope"] * (length - start["val_length"])
    return {
        "val_reward": reward,
        "val_reward_se": error,
        "val_reward_length_controlled": controlled,
        "val_length_slope": start["val_length_slope"],
        **found,
    }


def distinct(rows: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams by all n-grams (Li et al. 2016, arXiv 1510.03055); 0 where none is."""
    grams = Counter(tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1))
    return len(grams) / total if (total := grams.total()) else 0.0


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line of y on x; 0 where x does not vary."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    both = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return both / spread if spread else 0.0


def _answers(
    policy: Policy, asked: Sequence[Question], draws: Any, reward: Reward | None, base: bool
) -> list[Answer]:
    import torch

    if base:
        with policy.frozen() as model:
            found = own_sampler(policy, [q.ids for q in asked], 1, draws, model)
    else:
        found = own_sampler(policy, [q.ids for q in asked], 1, draws)
    responses = found.responses
    rewards = reward(asked, responses) if reward else [math.nan] * len(asked)
    sums = torch.zeros(len(asked), 3, dtype=torch.float64)
    for part in parts_of_answers(policy.shape, [q.ids for q in asked], responses):
        with policy.frozen() as model:
            ref = evaluate_answers(model, part.batch, policy.shape, policy.temperature)
            plain = ref
            if policy.temperature != 1.0:
                plain = evaluate_answers(model, part.batch, policy.shape, 1.0)
            own = ref
            if base:
                own = evaluate_answers(
                    model, part.batch, policy.shape, policy.temperature, spread=True
                )
        if not base:
            own = evaluate_answers(
                policy.model, part.batch, policy.shape, policy.temperature, spread=True
            )
        kl = (own.logprobs - ref.logprobs).double().sum(1)
        nll = -plain.logprobs.double().sum(1)
        sums[part.rows] = torch.stack([kl, nll, own.entropy.double().sum(1)], 1).cpu()
    return [
        Answer(ids, ids[-1] in policy.ends, float(value), *numbers)
        for ids, value, numbers in zip(responses, rewards, sums.tolist(), strict=True)
    ]


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / max(1, count - 1)
    return mean, math.sqrt(variance / count)
