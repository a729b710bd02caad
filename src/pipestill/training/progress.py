"""How a run is followed: a bar on a terminal, a line for every log entry elsewhere."""

import math
import sys
from dataclasses import dataclass, field
from typing import Any


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
    window: list[list[float]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)


class Display:
    """Shows a `Progress` on stderr."""

    def __init__(self, steps: int, done: int) -> None:
        self._steps, self._seen = steps, 0
        self._bar: Any = None
        if sys.stderr.isatty():
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
        if not progress.log or progress.log[-1]["step"] != progress.step:
            return
        text = entry_text(progress)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            print(f"step {progress.step}/{self._steps}  {text}", file=sys.stderr, flush=True)


def entry_text(progress: Progress) -> str:
    """The newest log entry in words, with the speed in target and input tokens a second."""
    tokens = progress.input_tokens + progress.label_tokens + progress.rationale_tokens
    parts = [
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in progress.log[-1].items()
        if name != "step" and value is not None
    ]
    return "  ".join([*parts, f"{tokens / max(progress.seconds, 1e-9):,.0f} tokens/s"])
