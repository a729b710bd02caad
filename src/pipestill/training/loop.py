"""The one training loop: any objective, both architectures, stopped and resumed at will.

Everything random follows from the seed and the step, or lies in the checkpoint, so a resumed run
ends with the weights of an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipestill.config import TrainConfig
from pipestill.errors import WorkError
from pipestill.training.batches import order
from pipestill.training.learning_rate import scale
from pipestill.training.progress import Display, Progress
from pipestill.training.resume import copy_into, resume, save, weights_of
from pipestill.training.step import Job, accumulate, validate

PATIENCE = 3  # evaluations without a better validation loss before a run stops early
LOG_POINTS = 20  # entries of the training log, at least


@dataclass
class Run:
    """A job under way: what changes from step to step."""

    job: Job
    optimizer: Any
    progress: Progress
    best: dict[str, Any]  # the best validated weights so far, on the CPU; empty before the first


def fit(
    job: Job, folder: Path | None, on_step: Callable[[Progress], None] | None = None
) -> tuple[Progress, int]:
    """Trains `job.model` in place and leaves the best validated weights in it.

    Args:
        job: model, data and settings.
        folder: where checkpoints of this run lie; None for no checkpoints.
        on_step: called after every step, after its checkpoint.

    Returns:
        The progress at the end, and the step that was resumed from (0 where none was).

    Raises:
        WorkError: ``LOSS_NOT_FINITE``.
    """
    import torch

    device = job.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(job.seed)
        optimizer = make_optimizer(job.model, job.config.weight_decay)
        run = Run(job, optimizer, *resume(job.model, optimizer, folder))
        resumed = run.progress.step
        job.model.train()
        with Display(job.config.train_steps, resumed) as display:
            for rows in _remaining(run):
                _one_step(run, rows)
                display.show(run.progress)
                _keep(run, folder)
                if on_step:
                    on_step(run.progress)
    if run.best:
        copy_into(job.model, run.best)
    job.model.eval()
    return run.progress, resumed


def make_optimizer(model: Any, weight_decay: float) -> Any:
    """AdamW; vectors (norms, biases) are not decayed."""
    import torch

    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def log_interval(config: TrainConfig) -> int:
    """Steps between two entries of the training log."""
    return max(1, min(config.evaluation_interval, config.train_steps // LOG_POINTS))


def _remaining(run: Run) -> Iterator[list[int]]:
    """The rows of every step that is still to do."""
    config = run.job.config
    steps = order(run.job.lengths, config.batch_size, config.train_steps, run.job.seed)
    for number, rows in enumerate(steps, 1):
        if run.progress.stopped:
            return
        if number > run.progress.step:
            yield rows


def _one_step(run: Run, rows: list[int]) -> None:
    """One update, and the log entry and validation that are due after it."""
    begun, cpu = time.perf_counter(), time.process_time()
    config, progress = run.job.config, run.progress
    progress.step += 1
    rate = run.job.rate * scale(progress.step, config.train_steps, config.warmup_fraction)
    _update(run, rows, rate)
    last = progress.step == config.train_steps
    if last or progress.step % log_interval(config) == 0:
        progress.log.append(_summed(progress, rate))
    due = last or progress.step % config.evaluation_interval == 0
    if due and run.job.validation is not None:
        _evaluate(run)
    progress.seconds += time.perf_counter() - begun
    progress.cpu_seconds += time.process_time() - cpu


def _update(run: Run, rows: list[int], rate: float) -> None:
    import torch

    for group in run.optimizer.param_groups:
        group["lr"] = rate
    sums = accumulate(run.job, rows)
    limit = run.job.config.max_grad_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(run.job.model.parameters(), limit, foreach=True)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.progress.window.append(
        [sums.label_nll, sums.rationale_nll, sums.label_count, sums.rationale_count, norm]
    )
    run.progress.label_tokens += sums.label_count
    run.progress.rationale_tokens += sums.rationale_count
    run.progress.input_tokens += sums.input_count


def _summed(progress: Progress, rate: float) -> dict[str, Any]:
    """The log entry of the steps since the last one; empties the window."""
    label, rationale, labels, rationales, norm = (
        sum(map(float, column)) for column in zip(*progress.window, strict=True)
    )
    steps, progress.window = len(progress.window), []
    if not math.isfinite(label + rationale + norm):
        raise WorkError(
            "LOSS_NOT_FINITE",
            f"step {progress.step}: the loss or its gradient is not a finite number",
            "lower learning_rate_multiplier, or set precision to fp32",
        )
    return {
        "step": progress.step,
        "label_loss": label / labels if labels else None,
        "rationale_loss": rationale / rationales if rationales else None,
        "grad_norm": norm / steps,
        "learning_rate": rate,
    }


def _evaluate(run: Run) -> None:
    """Validates, notes it in the log, and keeps the weights if they are the best so far."""
    progress = run.progress
    loss, accuracy = validate(run.job)
    if not progress.log or progress.log[-1]["step"] != progress.step:
        progress.log.append({"step": progress.step})
    progress.log[-1].update({"val_label_loss": loss, "val_label_accuracy": accuracy})
    if loss < progress.best_loss:
        progress.best_step, progress.best_loss = progress.step, loss
        progress.best_accuracy, progress.stale = accuracy, 0
        run.best = {n: v.detach().cpu().clone() for n, v in weights_of(run.job.model).items()}
    else:
        progress.stale += 1
        progress.stopped = run.job.config.enable_early_stopping and progress.stale >= PATIENCE


def _keep(run: Run, folder: Path | None) -> None:
    """Writes a checkpoint where one is due; the last step needs none."""
    step, config = run.progress.step, run.job.config
    if folder and step < config.train_steps and step % config.checkpoint_interval == 0:
        save(run.job.model, run.optimizer, folder, run.progress, run.best)
