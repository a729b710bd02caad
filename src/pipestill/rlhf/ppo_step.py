"""One iteration of policy optimisation: rollout, scoring, and the updates on it.

PPO as in Ziegler et al. 2019 (arXiv 1909.08593) and Huang et al. 2024 (arXiv 2403.17031): rewards
and KL penalty a token, generalised advantages, whitened, clipped policy and value losses. RLOO
(Ahmadian et al. 2024, arXiv 2402.14740) and GRPO (Shao et al. 2024, arXiv 2402.03300) share all but
the advantages; RLOO pays for KL in the reward, GRPO in the loss (k3).

Several processes hold the whole model each and share the prompts. Every mean is one over all of
them, and gradients are added up, so that the result is that of one process.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipestill.config import PolicyConfig
from pipestill.errors import WorkError
from pipestill.losses import group, ppo
from pipestill.models.heads import width_of
from pipestill.rlhf.collect import Minibatch, Part, Rollout, minibatches, names_of
from pipestill.rlhf.policy import Outputs, Policy, evaluate_answers
from pipestill.rlhf.step_log import described, of_updates
from pipestill.training.distributed import World, all_sum
from pipestill.training.forward import vocabulary

KEPT_BYTES = 1 << 30  # of a first pass that is kept with its graph for the first update
FLOATS = 34  # of a layer's activations, in widths of the model (Korthikanti et al. 2022, eq. 1)


@dataclass(frozen=True)
class Targets:
    """What the updates of a step hold fixed: (B, T) each; `values` and `returns` with PPO only.

    `entropy` is for the log; `weights` are there where another engine has sampled.
    """

    old: Any
    ref: Any
    entropy: Any
    mask: Any
    advantages: Any
    values: Any = None
    returns: Any = None
    weights: Any = None


def iterate(
    policy: Policy,
    optimizer: Any,
    rollout: Rollout,
    config: PolicyConfig,
    step: int,
    kl_coeff: float,
    world: World,
) -> dict[str, float]:
    """The updates on one rollout; returns what is logged of the step.

    The epochs end early where the policy's KL to the reference passes ``config.kl_bound`` on this
    rollout; a rollout that is past it from the start is not trained on.

    Raises:
        WorkError: ``LOSS_NOT_FINITE`` naming the prompts; the weights are those before the update.
    """
    plan = minibatches(policy, rollout, config, step, 0)
    targets, kept = prepare(policy, rollout, plan, config, kl_coeff, world)
    entry = described(rollout, targets, kl_coeff, world)
    updates: list[dict[str, float]] = []
    epoch, kl = 0, entry["kl"]
    while epoch < config.ppo_epochs and kl <= config.kl_bound:
        if epoch and config.minibatches > 1:
            plan = minibatches(policy, rollout, config, step, epoch)
        done = []
        for batch in plan:
            done.append(update(policy, batch, kept, targets, config, kl_coeff, world))
            _check(done[-1], rollout, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            kept = {}
        kl = sum(found["kl_sum"] for found in done) / len(rollout.lengths)
        updates += done
        epoch += 1
    return {**entry, **of_updates(updates), "epochs": epoch}


def prepare(
    policy: Policy,
    rollout: Rollout,
    plan: Sequence[Minibatch],
    config: PolicyConfig,
    kl_coeff: float,
    world: World,
) -> tuple[Targets, dict[int, Outputs]]:
    """What the updates hold fixed, from one pass of the reference and one of the policy.

    Both run over the parts of the first epoch, and both in grad mode: the first update then
    computes the same numbers again, bit for bit, and its ratios are exactly 1. Where the parts make
    one minibatch and are small, they are kept with their graphs, and that update saves its pass.

    Returns:
        The targets, and the outputs that were kept, by the first row of their part.
    """
    parts = [part for batch in plan for part in batch.parts]
    with policy.frozen() as frozen:
        ref = [_detached(_outputs(policy, frozen, part, False, False)) for part in parts]
    values = config.policy_objective == "ppo"
    small = _graph_bytes(policy, parts) <= KEPT_BYTES
    kept, old = {}, []
    for part in parts:
        found = _outputs(policy, policy.model, part, values, True)
        if small and len(plan) == 1:
            kept[part.rows[0]] = found
        old.append(_detached(found))
    return _targets(rollout, parts, old, ref, config, kl_coeff, world), kept


def _graph_bytes(policy: Policy, parts: Sequence[Part]) -> int:
    """About what the graphs of a pass over all parts hold: activations, and logits in fp32."""
    model = policy.model
    layers = int(model.config.get_text_config().num_hidden_layers)
    read = sum(
        ids.numel()
        for part in parts
        for name, ids in [*part.batch.inputs.items(), *part.batch.encoder.items()]
        if name.endswith("input_ids")
    )
    written = sum(len(part.batch.labels) for part in parts)
    found: int = 4 * (FLOATS * width_of(model) * layers * read + vocabulary(model) * written)
    return found


def update(
    policy: Policy,
    batch: Minibatch,
    kept: dict[int, Outputs],
    targets: Targets,
    config: PolicyConfig,
    kl_coeff: float,
    world: World,
) -> dict[str, float]:
    """Leaves the clipped gradient of one update in the model; returns its figures.

    Losses are means over the minibatch's tokens, in whatever parts and processes they lie.
    """
    import torch

    device = policy.shape.device
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    for part in batch.parts:
        found = kept.get(part.rows[0])
        if found is None:
            values = targets.values is not None
            found = _outputs(policy, policy.model, part, values, False)
        loss, figures = _loss(found, part.rows, targets, config, kl_coeff)
        (loss / batch.tokens).backward()
        sums += figures
    weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
    _add_up(weights, world)
    limit = config.max_grad_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(weights, limit, foreach=True)
    policy_loss, value_loss, clipped, moved, kl = all_sum(sums, world).tolist()
    return {
        "policy_loss": policy_loss / batch.tokens,
        "value_loss": value_loss / batch.tokens,
        "clip_fraction": clipped / batch.tokens,
        "approx_kl": moved / batch.tokens,
        "kl_sum": kl,
        "grad_norm": float(norm),
    }


def _loss(
    found: Outputs, rows: Sequence[int], targets: Targets, config: PolicyConfig, kl_coeff: float
) -> tuple[Any, Any]:
    """The summed loss of a part, with its graph, and sums for the log."""
    import torch

    mask, width = found.mask, found.mask.shape[1]
    part = Targets(*(None if t is None else t[rows, :width] for t in vars(targets).values()))
    new, old = found.logprobs, part.old
    surrogate = ppo.policy_loss(
        new, old, part.advantages, mask, config.clip, weights=part.weights
    ).sum()
    loss, value_loss = surrogate, surrogate.new_zeros(())
    if part.values is not None:
        value_loss = ppo.value_loss(
            found.values, part.values, part.returns, mask, config.value_clip
        ).sum()
        loss = loss + config.value_coeff * value_loss
    if config.policy_objective == "grpo":
        loss = loss + kl_coeff * group.k3(new, part.ref).sum()  # both are 0 at padding
    count = mask.sum()
    with torch.no_grad():
        clipped = ppo.clip_fraction(new, old, part.advantages, mask, config.clip) * count
        moved = ppo.approx_kl(new, old, mask) * count
        kl = ppo.kl_to_reference(new, part.ref, mask).sum()
        figures = torch.stack([surrogate, value_loss, clipped, moved, kl]).double()
    return loss, figures


def _targets(
    rollout: Rollout,
    parts: Sequence[Part],
    old: Sequence[Outputs],
    ref: Sequence[Outputs],
    config: PolicyConfig,
    kl_coeff: float,
    world: World,
) -> Targets:
    """Advantages by the objective, and for PPO the value targets."""

    def whole(pick: Callable[[Outputs], Any], outputs: Sequence[Outputs]) -> Any:
        return _joined(rollout, parts, [pick(found) for found in outputs])

    mask = whole(lambda found: found.mask, old)
    logprobs, reference = (whole(lambda found: found.logprobs, each) for each in (old, ref))
    chaos = whole(lambda found: found.entropy, old)
    fixed: dict[str, Any] = {"old": logprobs, "ref": reference, "entropy": chaos, "mask": mask}
    fixed["weights"] = _importance(rollout, logprobs, config)
    groups = (-1, config.samples_per_prompt)
    if config.policy_objective == "grpo":
        gains = group.grpo_advantages(rollout.scores.view(groups))
        made = Targets(**fixed, advantages=group.over_tokens(gains, mask))
    elif config.policy_objective == "rloo":
        paid = rollout.scores - kl_coeff * ppo.kl_to_reference(logprobs, reference, mask)
        gains = group.rloo_advantages(paid.view(groups))
        made = Targets(**fixed, advantages=group.over_tokens(gains, mask))
    else:
        values = whole(lambda found: found.values, old)
        rewards = ppo.token_rewards(logprobs, reference, rollout.scores, mask, kl_coeff)

        def reduce(total: Any) -> Any:
            return all_sum(total, world)

        if config.whiten_rewards:
            rewards = ppo.whiten(rewards, mask, shift_mean=False, reduce=reduce)
        gains, returns = ppo.advantages(rewards, values, mask, config.gamma, config.gae_lambda)
        gains = ppo.whiten(gains, mask, reduce=reduce)
        made = Targets(**fixed, advantages=gains, values=values, returns=returns)
    return made


def _importance(rollout: Rollout, logprobs: Any, config: PolicyConfig) -> Any:
    """Weights of the tokens that another engine sampled; None where the policy did itself."""
    import torch

    if not rollout.sampled.foreign:
        return None
    engine = torch.zeros_like(logprobs)
    for row, found in enumerate(rollout.sampled.logprobs):
        engine[row, : len(found)] = engine.new_tensor(found)
    return ppo.importance_weights(logprobs, engine, config.importance_cap)


def _outputs(policy: Policy, model: Any, part: Part, values: bool, spread: bool) -> Outputs:
    return evaluate_answers(
        model, part.batch, policy.shape, policy.temperature, values=values, spread=spread
    )


def _detached(found: Outputs) -> Outputs:
    return Outputs(*(None if part is None else part.detach() for part in vars(found).values()))


def _joined(rollout: Rollout, parts: Sequence[Part], found: Sequence[Any]) -> Any:
    """(B, T) of the rollout from the (b, t) of its parts; zero where nothing was."""
    width = max(map(len, rollout.sampled.responses))
    whole = found[0].new_zeros(len(rollout.place), width)
    for part, values in zip(parts, found, strict=True):
        whole[part.rows, : values.shape[1]] = values
    return whole


def _add_up(weights: Sequence[Any], world: World) -> None:
    """Gradients summed over the processes, in one message."""
    import torch

    if world.size == 1:
        return
    grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    flat = all_sum(torch.cat([grad.flatten() for grad in grads]), world)
    sizes = [grad.numel() for grad in grads]
    for weight, part in zip(weights, flat.split(sizes), strict=True):
        weight.grad = part.view_as(weight)


def _check(found: dict[str, float], rollout: Rollout, step: int) -> None:
    if math.isfinite(sum(found.values())):
        return
    raise WorkError(
        "LOSS_NOT_FINITE",
        f"step {step}: the loss or its gradient is not a finite number; its prompts: "
        f"{names_of([question.id for question in rollout.questions])}",
        "look at these prompts, lower reinforcement_learning_rate_multiplier, or set precision to "
        "fp32",
    )
