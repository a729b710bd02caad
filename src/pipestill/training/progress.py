"""How a run is followed: a bar on a terminal, a line for every log entry elsewhere."""

import math
import sys
from dataclasses import dataclass, field
from typing import Any

from pipestill.training.flops import mfu


@dataclass
class Progress:
    """Where a run stands; plain values, kept in every checkpoint."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    best_accuracy: float = 0.0
    stale: int = 0
    stopped: bool = False
    label_tokens: int = 0
    rationale_tokens: int = 0
    input_tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    window: list[dict[str, list[float]]] = field(default_factory=list)
    window_tokens: int = 0
    window_seconds: float = 0.0
    window_flops: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


class Display:
    """Shows a `Progress` on stderr."""

    def __init__(self, steps: int, done: int, *, quiet: bool = False) -> None:
        self._steps, self._quiet = steps, quiet
        self._bar: Any = None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, unit="step", desc="train")

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        """Called after every step."""
        if self._bar is not None:
            self._bar.update(1)
        if self._quiet or not progress.log or progress.log[-1]["step"] != progress.step:
            return
        text = entry_text(progress)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            print(f"step {progress.step}/{self._steps}  {text}", file=sys.stderr, flush=True)


def speed(progress: Progress, device: str, chips: int) -> dict[str, float]:
    """What was done a second since the last log entry, validation and checkpoints not counted.

    Tokens of inputs and targets without padding; the model's floating-point operations over all
    processes; and where the device's peak is known, the share of it (MFU).
    """
    seconds = max(progress.window_seconds, 1e-9)
    found = {
        "tokens_per_second": round(progress.window_tokens / seconds, 1),
        "model_flops_per_second": round(progress.window_flops / seconds),
    }
    share = mfu(progress.window_flops, seconds, device, chips)
    return found if share is None else {**found, "mfu": round(share, 4)}


def entry_text(progress: Progress) -> str:
    """The newest log entry in words."""
    entry = {name: value for name, value in progress.log[-1].items() if name != "step"}
    return "  ".join(
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in entry.items()
        if value is not None
    )


def _short(value: float) -> str:
    return f"{value:.4g}" if value < 1e4 or value >= 1e9 else f"{value:,.0f}"
