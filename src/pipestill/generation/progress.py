"""Progress of a labelling step: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_SECONDS = 10.0


class Progress:
    """Counts calls and shows rows a second, tokens and cost so far. A context manager."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what = total, what
        self._done = 0
        self._began = self._shown = time.monotonic()
        self._bar = tqdm(total=total, desc=what, unit="call") if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, calls: int, tokens: int, usd: float) -> None:
        """So many more calls ended; `tokens` and `usd` are the sums so far."""
        self._done += calls
        if self._bar is not None:
            self._bar.set_postfix_str(f"{tokens} tokens, {usd:.2f} USD", refresh=False)
            self._bar.update(calls)
            return
        now = time.monotonic()
        if now - self._shown >= LINE_SECONDS or self._done == self._total:
            self._shown = now
            rate = self._done / max(now - self._began, 1e-9)
            print(
                f"{self._what}: {self._done} of {self._total} calls, {rate:.1f} a second, "
                f"{tokens} tokens, {usd:.4f} USD",
                flush=True,
            )
