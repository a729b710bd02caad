"""The one training loop: any objective, both architectures, stopped and resumed at will.

Everything random follows from the seed and the step, or lies in the checkpoint, so a resumed run
ends with the weights of an uninterrupted one.
"""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import TrainConfig
from pipestill.errors import WorkError
from pipestill.training import checkpoint as checkpoints
from pipestill.training import compiling, xla
from pipestill.training.batches import order
from pipestill.training.checkpoint import KEPT
from pipestill.training.distributed import SEED_STRIDE, all_sum, any_of, current, reshard, wrap
from pipestill.training.learning_rate import scale
from pipestill.training.progress import Display, Progress, speed
from pipestill.training.resume import copy_into, gathered, resume, save, weights_of
from pipestill.training.step import LIKELIHOOD, Job, Objective, Sums
from pipestill.training.stop import Stopped, stop_requests

PATIENCE = 3  # evaluations without a better validation loss before a run stops early
LOG_POINTS = 20  # entries of the training log, at least
NAMED_ROWS = 64  # row ids in an error message, at most


@dataclass
class Run:
    """A job under way: what changes from step to step."""

    job: Job
    optimizer: Any
    progress: Progress
    best: dict[str, Any]  # the best validated weights so far, on the CPU; empty before the first

    @property
    def objective(self) -> Objective:
        return self.job.objective or LIKELIHOOD


def fit(
    job: Job,
    folder: str | Path | None,
    on_step: Callable[[Progress], None] | None = None,
    *,
    keep: int = KEPT,
) -> tuple[Progress, int]:
    """Trains `job.model` in place and leaves the best validated weights in it.

    Where this process has joined others (`pipestill.training.distributed.join`), all of them call
    this with the same job; the weights are then left in the first process only. A second run of
    the same job on the same local `folder` waits for the first.

    Args:
        job: model, data and settings.
        folder: where checkpoints of this run lie, a path or a URL; None for no checkpoints.
        on_step: called after every step, after its checkpoint.
        keep: how many checkpoints are kept.

    Returns:
        The progress at the end, and the step that was resumed from (0 where none was).

    Raises:
        UserError: ``STATE_DIR_UNWRITABLE``.
        WorkError: ``LOSS_NOT_FINITE``, ``CHECKPOINT_NOT_WRITTEN``, ``CHECKPOINTS_UNREADABLE``.
        Stopped: SIGTERM came and the checkpoint is written.
    """
    import torch

    device = job.model.device
    mine = checkpoints.alone(folder if current().is_main else None)
    with mine, torch.random.fork_rng([device] if device.type == "cuda" else []):
        spread = _spread(job)
        torch.manual_seed(job.seed + SEED_STRIDE * spread.world.rank)
        optimizer = make_optimizer(spread.model, job.config.weight_decay)
        run = Run(spread, optimizer, *resume(spread.model, optimizer, folder, spread.world))
        resumed = run.progress.step
        if resumed:
            _say(run, f"going on from step {resumed}, whose checkpoint lies in {folder}")
        _train(run, folder, on_step, keep)
    _finish(run, job)
    return run.progress, resumed


def make_optimizer(model: Any, weight_decay: float) -> Any:
    """AdamW; vectors (norms, biases) are not decayed."""
    import torch

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    fused = model.device.type in ("cpu", "cuda")
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=fused)


def log_interval(config: TrainConfig) -> int:
    """Steps between two entries of the training log."""
    return max(1, min(config.evaluation_interval, config.train_steps // LOG_POINTS))


def _spread(job: Job) -> Job:
    """The job over all processes that this one has joined, or on TPUs; else the same job.

    Blocks are compiled here, because a sharded twin would not take that along.
    """
    world = current()
    if xla.wanted():
        shape = dataclasses.replace(job.shape, device=xla.DEVICE)
        return dataclasses.replace(job, model=xla.placed(job.model), shape=shape)
    if world.size == 1:
        compiling.compile_blocks(job.model, job.config.compile, job.shape.device)
        return job
    root = wrap(job.model, world)
    compiling.compile_blocks(root.inner, job.config.compile, world.device)
    shape = dataclasses.replace(job.shape, device=world.device, may_split=False)
    return dataclasses.replace(job, model=root.inner, root=root, world=world, shape=shape)


def _train(
    run: Run, folder: str | Path | None, on_step: Callable[[Progress], None] | None, keep: int
) -> None:
    """All steps that are still to do."""
    config, world = run.job.config, run.job.world
    run.job.model.train()
    with (
        Display(config.train_steps, run.progress.step, quiet=not world.is_main) as display,
        stop_requests(folder is not None) as asked,
    ):
        for rows in _remaining(run):
            _one_step(run, rows)
            display.show(run.progress)
            stopping = folder is not None and any_of(asked.is_set(), world)
            if folder and (stopping or _checkpoint_due(run)):
                _keep(run, folder, keep)
            if on_step:
                on_step(run.progress)
            if stopping:
                _say(
                    run,
                    f"stopped by SIGTERM after step {run.progress.step}, whose checkpoint lies in "
                    f"{folder}: start the same run again to go on",
                )
                raise Stopped


def _remaining(run: Run) -> Iterator[list[int]]:
    """The rows of every step that is still to do."""
    for rows in itertools.islice(_steps(run.job), run.progress.step, None):
        if run.progress.stopped:
            return
        yield rows


def _steps(job: Job) -> Iterator[list[int]]:
    return order(job.lengths, job.config.batch_size, job.config.train_steps, job.seed)


def _one_step(run: Run, rows: list[int]) -> None:
    """One update, and the log entry and validation that are due after it."""
    begun, cpu = time.perf_counter(), time.process_time()
    config, progress = run.job.config, run.progress
    progress.step += 1
    rate = run.job.rate * scale(progress.step, config.train_steps, config.warmup_fraction)
    _update(run, rows, rate)
    last = progress.step == config.train_steps
    if last or progress.step % log_interval(config) == 0:
        _log(run, rate, begun)
    else:
        progress.window_seconds += time.perf_counter() - begun
    due = last or progress.step % config.evaluation_interval == 0
    if due and run.job.validation is not None:
        _evaluate(run)
    progress.seconds += time.perf_counter() - begun
    progress.cpu_seconds += time.process_time() - cpu


def _update(run: Run, rows: list[int], rate: float) -> None:
    import torch

    for group in run.optimizer.param_groups:
        group["lr"] = rate
    sums = run.objective.accumulate(run.job, rows, run.progress.step)
    limit = run.job.config.max_grad_norm or math.inf
    foreach = True if run.optimizer.defaults["fused"] else None  # neither is there for XLA
    norm = torch.nn.utils.clip_grad_norm_(run.job.model.parameters(), limit, foreach=foreach)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.objective.updated:
        run.objective.updated(run.job, run.progress.step)
    if xla.wanted():
        xla.run_step()
    _note(run, sums, norm)


def _note(run: Run, sums: Sums, norm: Any) -> None:
    """Adds the step to the window, still on the device: reading a value would wait for it."""
    import torch

    progress, world = run.progress, run.job.world
    found = [value for value, _ in sums.terms.values()]
    if world.size > 1:
        values = [torch.as_tensor(value, device=world.device).float() for value in found]
        found = list(all_sum(torch.stack(values), world))
        norm = norm.full_tensor()
    counts = [count for _, count in sums.terms.values()]
    entry = {name: list(pair) for name, *pair in zip(sums.terms, found, counts, strict=True)}
    progress.window.append({**entry, "grad_norm": [norm, 1.0]})
    progress.label_tokens += sums.label_count
    progress.rationale_tokens += sums.rationale_count
    progress.input_tokens += sums.input_count
    progress.window_tokens += sums.label_count + sums.rationale_count + sums.input_count
    progress.window_flops += sums.flops


def _log(run: Run, rate: float, begun: float) -> None:
    """Adds the log entry of the steps since the last one, and empties the window."""
    progress = run.progress
    _check_finite(run)
    progress.window_seconds += time.perf_counter() - begun  # now that the device has finished
    progress.log.append(
        {
            "step": progress.step,
            **_means(progress.window),
            "learning_rate": rate,
            **speed(progress, run.job.shape.device, run.job.world.size),
        }
    )
    progress.window, progress.window_tokens = [], 0
    progress.window_seconds = progress.window_flops = 0.0


def _means(window: list[dict[str, list[float]]]) -> dict[str, float | None]:
    """Every term's sum over the window by its count; None where nothing was counted."""
    means: dict[str, float | None] = {}
    for name in dict.fromkeys(name for entry in window for name in entry):
        pairs = [entry[name] for entry in window if name in entry]
        count = sum(float(count) for _, count in pairs)
        means[name] = sum(float(value) for value, _ in pairs) / count if count else None
    return means


def _check_finite(run: Run) -> None:
    """Stops at the first step of the window whose loss or gradient is no number.

    Called where the values are read anyway, before a log entry and before a checkpoint, so that no
    step waits for the device because of it and no checkpoint holds broken weights.
    """
    progress = run.progress
    for back, entry in enumerate(progress.window):
        if math.isfinite(sum(float(value) for value, _ in entry.values())):
            continue
        step = progress.step - len(progress.window) + 1 + back
        rows = next(itertools.islice(_steps(run.job), step - 1, None))
        raise WorkError(
            "LOSS_NOT_FINITE",
            f"step {step}: the loss or its gradient is not a finite number; "
            f"its rows: {_named(run.job, rows)}",
            "look at these rows, lower learning_rate_multiplier, or set precision to fp32",
        )


def _named(job: Job, rows: list[int]) -> str:
    names = [job.ids[row] if job.ids else f"training row {row}" for row in rows[:NAMED_ROWS]]
    more = len(rows) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _evaluate(run: Run) -> None:
    """Validates, notes it in the log, and keeps the weights if they are the best so far."""
    progress, job = run.progress, run.job
    found = run.objective.validate(job)
    loss, accuracy = [*found.values(), math.nan][:2]
    reshard(job.root)
    if not progress.log or progress.log[-1]["step"] != progress.step:
        progress.log.append({"step": progress.step})
    progress.log[-1].update(found)
    if loss < progress.best_loss:
        progress.best_step, progress.best_loss = progress.step, loss
        progress.best_accuracy, progress.stale = accuracy, 0
        run.best = gathered(weights_of(job.model), job.world)
    else:
        progress.stale += 1
        progress.stopped = job.config.enable_early_stopping and progress.stale >= PATIENCE


def _checkpoint_due(run: Run) -> bool:
    """At every interval; the last step needs none."""
    step, config = run.progress.step, run.job.config
    return step < config.train_steps and step % config.checkpoint_interval == 0


def _keep(run: Run, folder: str | Path, keep: int) -> None:
    _check_finite(run)
    save(run.job.model, run.optimizer, folder, run.progress, run.best, run.job.world, keep)


def _say(run: Run, text: str) -> None:
    if run.job.world.is_main:
        print(text, file=sys.stderr, flush=True)


def _finish(run: Run, job: Job) -> None:
    """Leaves the best validated weights, or where none were validated the last, in `job.model`."""
    weights = run.best
    if run.job.model is not job.model and not run.progress.best_step:
        weights = gathered(weights_of(run.job.model), run.job.world)
    if weights:
        copy_into(job.model, weights)
    job.model.eval()
