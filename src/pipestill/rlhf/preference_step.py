"""DPO, cDPO and IPO as a plug of the training loop: a policy from preference pairs alone.

Both answers of a pair go through one forward pass, at temperature 1. The reference's
log-probabilities are computed once, before the first step.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from pipestill.config import PolicyConfig, TrainConfig
from pipestill.losses import preference
from pipestill.rlhf.policy import Policy, collate, evaluate_answers
from pipestill.rlhf.reward_data import Pairs, ids_of, pair_batches
from pipestill.training.batches import Encoded
from pipestill.training.distributed import all_sum, share
from pipestill.training.forward import Shape
from pipestill.training.step import Job, Objective, Sums, budget

PAST_BOUND = 1e9  # stands for the loss of weights that lie past the KL bound, in the selection

# Held-out figures of a policy: name in the log → value.
Look = Callable[[], dict[str, float]]


def preference_job(
    policy: Policy, train: Pairs, validation: Pairs, config: PolicyConfig, rate: float, look: Look
) -> Job:
    """The job that `pipestill.training.loop.fit` runs.

    Args:
        policy: as it starts: it is the reference, too.
        train: pairs to learn from.
        validation: pairs of other prompts; the least loss on them, among the evaluations whose KL
            on held-out prompts is within ``config.kl_bound``, selects the weights.
        config: the settings; a step has ``config.rollout_batch_size`` pairs.
        rate: peak rate.
        look: measures the policy on held-out prompts; not called where it is spread over processes.
    """
    references = {id(pairs.data): reference_logprobs(policy, pairs.data) for pairs in
                  (train, validation)}  # fmt: skip

    def loss(job: Job, data: Encoded, pairs: Sequence[int]) -> tuple[Any, Any]:
        logprobs = job.run(pair_logprobs, data, pairs, job.shape)
        return pair_loss(logprobs, references[id(data)][list(pairs)].to(logprobs), config)

    def accumulate(job: Job, rows: Sequence[int], step: int) -> Sums:
        return _accumulate(job, rows, loss)

    def validate(job: Job) -> dict[str, float]:
        found = _validated(job, loss)
        seen = look() if job.root is None else {}
        past = seen.get("val_kl", 0.0) > config.kl_bound
        return {"val_choice": PAST_BOUND if past else found["val_preference_loss"], **found, **seen}

    return Job(
        model=policy.model,
        train=train.data,
        validation=validation.data,
        lengths=(train.data.source_length + train.data.target_length).view(-1, 2).sum(1).tolist(),
        shape=policy.shape,
        config=_train_config(config),
        alpha=1.0,
        rate=rate,
        seed=config.train_seed,
        ids=train.ids,
        objective=Objective(accumulate, validate),
    )


def pair_loss(logprobs: Any, reference: Any, config: PolicyConfig) -> tuple[Any, Any]:
    """Losses of pairs, and the gaps of their implicit rewards (detached).

    Args:
        logprobs: (n, 2) of the policy, the preferred answer first.
        reference: (n, 2) of the reference.
        config: objective, ``kl_coeff`` (β) and label smoothing.

    Returns:
        (n,) and (n,).
    """
    four = (*logprobs.unbind(1), *reference.unbind(1))
    beta = config.kl_coeff
    chosen, rejected = preference.implicit_rewards(*four, beta=beta)
    if config.policy_objective == "ipo":
        return preference.ipo(*four, beta=beta), chosen - rejected
    smoothing = config.label_smoothing if config.policy_objective == "cdpo" else 0.0
    return preference.dpo(*four, beta=beta, label_smoothing=smoothing), chosen - rejected


def pair_logprobs(model: Any, data: Encoded, pairs: Sequence[int], shape: Shape) -> Any:
    """(n, 2) log-probabilities of whole answers, with their graph."""
    rows = [ids_of(data, 2 * pair + side) for pair in pairs for side in (0, 1)]
    batch = collate(shape, [prompt for prompt, _ in rows], [answer for _, answer in rows])
    return evaluate_answers(model, batch, shape, 1.0).logprobs.sum(1).view(-1, 2)


def reference_logprobs(policy: Policy, data: Encoded) -> Any:
    """(P, 2) of the reference, on the CPU."""
    import torch

    found = torch.zeros(len(data.of_row), 2)
    with torch.no_grad(), policy.frozen() as model:
        for part in pair_batches(data, range(len(found)), budget(policy.shape)):
            found[part] = pair_logprobs(model, data, part, policy.shape).cpu()
    return found


def _accumulate(job: Job, rows: Sequence[int], loss: Any) -> Sums:
    import torch

    job.model.eval()  # dropout off: policy and reference have to be one network
    sums = torch.zeros(3, device=job.shape.device)
    for part in pair_batches(job.train, rows, budget(job.shape) * job.world.size):
        mine, factor = share(part, job.world)
        losses, gaps = loss(job, job.train, mine)
        (losses.sum() * (factor / len(rows))).backward()
        if factor:
            sums += torch.stack([losses.detach().sum(), (gaps > 0).float().sum(), gaps.sum()])
    names = ("preference_loss", "preference_accuracy", "implicit_reward_gap")
    sequences = torch.tensor([s for row in rows for s in job.train.of_row[row]])
    terms = {name: (value, float(len(rows))) for name, value in zip(names, sums, strict=True)}
    return Sums(
        terms,
        label_count=int(job.train.target_length[sequences].sum()),
        input_count=int(job.train.source_length[sequences].sum()),
    )


def _validated(job: Job, loss: Any) -> dict[str, float]:
    """Mean loss, and the share of pairs whose preferred answer has the larger implicit reward."""
    import torch

    data = job.validation
    assert data is not None
    sums = torch.zeros(2, dtype=torch.float64, device=job.shape.device)
    job.model.eval()
    with torch.no_grad():
        count = len(data.of_row)
        for part in pair_batches(data, range(count), budget(job.shape) * job.world.size):
            mine, factor = share(part, job.world)
            losses, gaps = loss(job, data, mine)
            if factor:
                right = (gaps > 0).double() + 0.5 * (gaps == 0).double()
                sums += torch.stack([losses.double().sum(), right.sum()])
    value, right = (all_sum(sums, job.world) / max(1, count)).tolist()
    return {"val_preference_loss": value, "val_preference_accuracy": right}


def _train_config(config: PolicyConfig) -> TrainConfig:
    return dataclasses.replace(
        TrainConfig(),
        train_steps=config.reinforcement_learning_train_steps,
        batch_size=config.rollout_batch_size,
        max_grad_norm=config.max_grad_norm,
        evaluation_interval=config.evaluation_interval,
        checkpoint_interval=config.checkpoint_interval,
        enable_early_stopping=False,
        precision=config.precision,
        compile="off",
    )
