"""The run of a policy: step after step, evaluated, kept, stopped and resumed at will.

Everything random follows from the seed and the step, so a resumed run ends with the weights of an
uninterrupted one. The adaptive KL coefficient stands in the log, which is part of a checkpoint.

Several processes hold the whole model each and average gradients; each reads the checkpoint by
itself, so they need the same state folder.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import PolicyConfig
from pipestill.errors import UserError
from pipestill.losses.ppo import adaptive_kl
from pipestill.rlhf.collect import Question, Reward, Sampler, collect, own_sampler
from pipestill.rlhf.policy import Policy
from pipestill.rlhf.policy_eval import answer_all, figures
from pipestill.rlhf.ppo_step import iterate
from pipestill.training import checkpoint as checkpoints
from pipestill.training.batches import order
from pipestill.training.checkpoint import KEPT
from pipestill.training.distributed import ALONE, World, any_of, current
from pipestill.training.learning_rate import scale
from pipestill.training.loop import make_optimizer
from pipestill.training.progress import Progress, entry_text
from pipestill.training.resume import copy_into, gathered, resume, save, weights_of
from pipestill.training.stop import Stopped, stop_requests

ADAM_EPS = 1e-5  # as in PPO codes since OpenAI's (Huang et al. 2024, arXiv 2403.17031)
SHOWN = ("reward", "kl", "entropy", "length", "eos_share", "val_reward", "val_kl")
LINES = 20  # of a run's progress where there is no terminal


@dataclass(frozen=True)
class Problem:
    """What a run optimises. `rate` is the peak rate; the line falls to 0 from the first step on."""

    policy: Policy
    prompts: Sequence[Question]
    held_out: Sequence[Question]
    config: PolicyConfig
    reward: Reward
    rate: float
    sampler: Sampler = own_sampler


def optimise(
    problem: Problem,
    folder: str | Path | None,
    on_step: Callable[[Progress], None] | None = None,
    *,
    keep: int = KEPT,
) -> tuple[Progress, int]:
    """Trains the policy in place and leaves its best evaluated weights in it.

    The best have the highest mean reward on held-out prompts of all evaluations whose KL is within
    ``config.kl_bound``; the start is one of them. The run ends once the KL of a rollout or of an
    evaluation passes the bound.

    Args:
        problem: policy, prompts, reward and settings.
        folder: where checkpoints of this run lie, a path or a URL; None for no checkpoints.
        on_step: called after every step, after its checkpoint.
        keep: how many checkpoints are kept.

    Returns:
        The progress at the end, and the step that was resumed from (0 where none was). In the
        progress, `best_loss` is the negated reward of the best evaluation and `best_accuracy` its
        KL.

    Raises:
        UserError: ``STATE_DIR_UNWRITABLE``, ``CONFIG_VALUE``.
        WorkError: ``LOSS_NOT_FINITE``, ``REWARD_NOT_FINITE``, ``CHECKPOINT_NOT_WRITTEN``.
        Stopped: SIGTERM came and the checkpoint is written.
    """
    model, world = problem.policy.model, current()
    if _prompts_a_step(problem) < world.size:
        raise UserError(
            "CONFIG_VALUE",
            f"a step has {_prompts_a_step(problem)} prompts, allowed: at least one for each of the "
            f"{world.size} processes",
            "raise rollout_batch_size, give more prompts, or set PIPESTILL_PROCESSES lower",
        )
    optimizer = make_optimizer(model, 0.0)
    for group in optimizer.param_groups:
        group["eps"] = ADAM_EPS
    with checkpoints.alone(folder if world.size == 1 else None):
        return _trained(problem, optimizer, folder, on_step, keep)


def _trained(
    problem: Problem,
    optimizer: Any,
    folder: str | Path | None,
    on_step: Callable[[Progress], None] | None,
    keep: int,
) -> tuple[Progress, int]:
    """All steps that are still to do."""
    model, world = problem.policy.model, current()
    progress, best = resume(model, optimizer, folder, ALONE)
    resumed = progress.step
    if resumed:
        _say(world, f"going on from step {resumed}, whose checkpoint lies in {folder}")
    run = Run(problem, optimizer, progress, best, world)
    with stop_requests(folder is not None) as asked:
        if not progress.log:
            _evaluate(run)
        for questions in _remaining(run):
            _one_step(run, questions)
            stopping = folder is not None and any_of(asked.is_set(), world)
            if folder and world.is_main and (stopping or _checkpoint_due(run)):
                save(model, optimizer, folder, run.progress, run.best, ALONE, keep)
            if on_step:
                on_step(run.progress)
            if stopping:
                _say(world, f"stopped by SIGTERM after step {run.progress.step}: start the same "
                     f"run again to go on from its checkpoint in {folder}")  # fmt: skip
                raise Stopped
    copy_into(model, run.best)
    return run.progress, resumed


@dataclass
class Run:
    """A problem under way: what changes from step to step."""

    problem: Problem
    optimizer: Any
    progress: Progress
    best: dict[str, Any]
    world: World


def _remaining(run: Run) -> Any:
    """The prompts of every step that is still to do."""
    problem, config = run.problem, run.problem.config
    lengths = [len(question.ids) for question in problem.prompts]
    steps = order(
        lengths,
        _prompts_a_step(problem),
        config.reinforcement_learning_train_steps,
        config.train_seed,
    )
    for rows in itertools.islice(steps, run.progress.step, None):
        if run.progress.stopped:
            return
        yield [problem.prompts[row] for row in rows]


def _prompts_a_step(problem: Problem) -> int:
    """Different ones: a step meets a prompt once, also where there are few."""
    config = problem.config
    count = max(1, config.rollout_batch_size // config.samples_per_prompt)
    return min(count, len(problem.prompts))


def _one_step(run: Run, questions: Sequence[Question]) -> None:
    begun, cpu = time.perf_counter(), time.process_time()
    problem, config, progress = run.problem, run.problem.config, run.progress
    step = progress.step + 1
    coefficient = kl_coefficient(progress, config)
    rate = problem.rate * scale(step, config.reinforcement_learning_train_steps, 0.0)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    rollout = collect(
        problem.policy, questions, config, step, problem.reward, run.world, problem.sampler
    )
    sampled = time.perf_counter() - begun
    entry = iterate(problem.policy, run.optimizer, rollout, config, step, coefficient, run.world)
    seconds = time.perf_counter() - begun
    progress.step = step
    progress.label_tokens += int(entry["answer_tokens"])
    progress.log.append(
        {"step": step, **entry, "learning_rate": rate, "rollout_seconds": sampled,
         "seconds": seconds}
    )  # fmt: skip
    progress.stopped = entry["kl"] > config.kl_bound
    last = progress.stopped or step == config.reinforcement_learning_train_steps
    if last or step % config.evaluation_interval == 0:
        _evaluate(run)
    _show(run)
    progress.seconds += time.perf_counter() - begun
    progress.cpu_seconds += time.process_time() - cpu


def kl_coefficient(progress: Progress, config: PolicyConfig) -> float:
    """β of the next step: fixed, or by what the last step measured (all of it in the log)."""
    steps = [entry for entry in progress.log if "kl_coeff" in entry]
    if not steps:
        return config.kl_coeff
    last = steps[-1]
    if config.kl_target <= 0:
        return float(last["kl_coeff"])
    return adaptive_kl(
        last["kl_coeff"], last["kl"], config.kl_target, int(last["answers"]), config.kl_horizon
    )


def _evaluate(run: Run) -> None:
    """Adds the held-out figures to the log, and keeps the weights if they are the best so far."""
    problem, progress = run.problem, run.progress
    answers = answer_all(
        problem.policy, problem.held_out, problem.config, problem.reward, run.world
    )
    found = figures(answers, progress.log[0] if progress.log else None)
    if not progress.log:
        progress.log.append({"step": 0})
    progress.log[-1].update(found)
    kl, reward = found["val_kl"], found["val_reward"]
    if kl > problem.config.kl_bound:
        progress.stopped = True
    elif -reward < progress.best_loss or math.isinf(progress.best_loss):
        progress.best_step, progress.best_loss = progress.step, -reward
        progress.best_accuracy = kl
        run.best = gathered(weights_of(problem.policy.model), ALONE)


def _checkpoint_due(run: Run) -> bool:
    step, config = run.progress.step, run.problem.config
    return (
        step < config.reinforcement_learning_train_steps and step % config.checkpoint_interval == 0
    )


def _show(run: Run) -> None:
    """A line now and then, and for every evaluation."""
    progress, steps = run.progress, run.problem.config.reinforcement_learning_train_steps
    entry = progress.log[-1]
    if not ("val_kl" in entry or progress.step % max(1, steps // LINES) == 0):
        return
    shown = Progress(log=[{name: entry[name] for name in SHOWN if name in entry}])
    _say(run.world, f"step {progress.step}/{steps}  {entry_text(shown)}")


def _say(world: World, text: str) -> None:
    if world.is_main:
        print(text, file=sys.stderr, flush=True)
