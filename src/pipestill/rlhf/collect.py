"""The answers of one step: sampled, scored, shared by processes, cut into forward passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.config import PolicyConfig
from pipestill.errors import WorkError
from pipestill.rlhf.policy import Answers, Policy, collate
from pipestill.rlhf.rollout import Sampled, sample, uniform
from pipestill.training.distributed import World, all_sum
from pipestill.training.forward import Shape, computing
from pipestill.training.step import budget

ROLLOUT, ORDER = 1, 2  # streams of random numbers
NAMED = 64  # prompts in an error message, at most


@dataclass(frozen=True)
class Question:
    """A prompt: its row's id, its text (perhaps a conversation) and the ids that the policy reads.

    `row` is the row itself, for rewards that want more of it.
    """

    id: str
    text: str
    ids: list[int]
    row: Any = None


# Rewards of answers, given as token ids with their end mark: (B,) floats.
Reward = Callable[[Sequence[Question], Sequence[Sequence[int]]], Sequence[float]]
# Answers to prompts: (policy, prompts, answers a prompt, table of uniform numbers).
Sampler = Callable[[Policy, Sequence[Sequence[int]], int, Any], Sampled]


@dataclass(frozen=True)
class Rollout:
    """This process's answers of one step. `place` is an answer's number among those of all.

    `lengths` holds the length of every answer of the step; `scores` (B,) are the rewards with the
    penalty for answers that do not end.
    """

    questions: list[Question]
    sampled: Sampled
    place: list[int]
    ended: list[bool]
    rewards: Any
    scores: Any
    lengths: Any


@dataclass(frozen=True)
class Part:
    """Answers of one forward pass: their rows in the rollout, and the pass's inputs."""

    rows: list[int]
    batch: Answers


@dataclass(frozen=True)
class Minibatch:
    """This process's parts of the answers of one update, and the tokens of all of them."""

    parts: list[Part]
    tokens: float


def own_sampler(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    samples: int,
    draws: Any,
    model: Any = None,
) -> Sampled:
    """`pipestill.rlhf.rollout.sample` at the policy's temperature, from it or another `model`."""
    with computing(policy.shape):
        return sample(
            model or policy.model, prompts, samples, draws,
            ends=policy.ends, temperature=policy.temperature,
            pad=policy.shape.pad, start=policy.shape.start,
        )  # fmt: skip


def collect(
    policy: Policy,
    questions: Sequence[Question],
    config: PolicyConfig,
    step: int,
    reward: Reward,
    world: World,
    sampler: Sampler = own_sampler,
) -> Rollout:
    """Samples and scores the answers of a step, this process's share of them.

    Raises:
        WorkError: ``REWARD_NOT_FINITE`` naming the prompts.
    """
    import torch

    size, total = config.samples_per_prompt, len(questions) * config.samples_per_prompt
    mine = list(range(len(questions)))[world.rank :: world.size]
    place = [question * size + i for question in mine for i in range(size)]
    draws = uniform(total, config.target_sequence_length, config.train_seed, ROLLOUT, step)
    found = sampler(policy, [questions[i].ids for i in mine], size, draws[place])
    asked = [questions[i] for i in mine for _ in range(size)]
    rewards = torch.tensor(list(reward(asked, found.responses)), dtype=torch.float32)
    bad = [q.id for q, ok in zip(asked, rewards.isfinite().tolist(), strict=True) if not ok]
    if bad:
        raise WorkError(
            "REWARD_NOT_FINITE",
            f"step {step}: no finite reward for answers to {names_of(bad)}",
            "look at these prompts, and at the reward model's normalisation",
        )
    ended = [row[-1] in policy.ends for row in found.responses]
    open_ = torch.tensor([not done for done in ended])
    lengths = torch.zeros(total, dtype=torch.float64, device=policy.shape.device)
    lengths[place] = lengths.new_tensor([float(len(row)) for row in found.responses])
    return Rollout(
        questions=asked,
        sampled=found,
        place=place,
        ended=ended,
        rewards=rewards.to(policy.shape.device),
        scores=(rewards - config.missing_eos_penalty * open_).to(policy.shape.device),
        lengths=all_sum(lengths, world),
    )


def minibatches(
    policy: Policy, rollout: Rollout, config: PolicyConfig, step: int, epoch: int
) -> list[Minibatch]:
    """The updates of an epoch: every answer of the step in one of them, the same in all processes.

    One minibatch holds all answers; more are drawn anew in every epoch, from the seed and the step.
    """
    import torch

    total = len(rollout.lengths)
    order = torch.arange(total)
    if config.minibatches > 1:
        order = uniform(1, total, config.train_seed, ORDER, step, epoch)[0].argsort()
    row_of = {place: row for row, place in enumerate(rollout.place)}
    found = []
    for chosen in order.chunk(config.minibatches):
        rows = [row_of[place] for place in chosen.tolist() if place in row_of]
        tokens = float(rollout.lengths[chosen].sum())
        found.append(Minibatch(parts_of(policy, rollout, rows), tokens))
    return found


def parts_of(policy: Policy, rollout: Rollout, rows: Sequence[int]) -> list[Part]:
    """The forward passes of some rows of a rollout."""
    prompts = [question.ids for question in rollout.questions]
    return parts_of_answers(policy.shape, prompts, rollout.sampled.responses, rows)


def parts_of_answers(
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    rows: Sequence[int] | None = None,
) -> list[Part]:
    """Rows of similar length together, within what suits the device.

    An encoder reads a prompt once for all its answers in a part, so those stay side by side.
    """
    sizes = [len(a) + len(b) for a, b in zip(prompts, responses, strict=True)]

    def rank(row: int) -> tuple[int, int]:
        return -len(prompts[row]) if shape.is_encoder_decoder else -sizes[row], row

    tokens, longest = budget(shape), 0
    found: list[list[int]] = []
    part: list[int] = []
    for row in sorted(range(len(sizes)) if rows is None else rows, key=rank):
        longest = max(longest, sizes[row])
        if part and (len(part) + 1) * longest > tokens:
            found.append(part)
            part, longest = [], sizes[row]
        part.append(row)
    return [
        Part(part, collate(shape, [prompts[i] for i in part], [responses[i] for i in part]))
        for part in [*found, part]
        if part
    ]


def names_of(ids: Sequence[str]) -> str:
    unique = list(dict.fromkeys(ids))
    more = len(unique) - NAMED
    return ", ".join(unique[:NAMED]) + (f" and {more} more" if more > 0 else "")
