"""SIGTERM during training: a checkpoint at the next step, then an exit code of its own.

Kubernetes and Vertex send SIGTERM before they take a machine away. The code is 75 (``EX_TEMPFAIL``
of sysexits.h: failed for now, try again), so that a runner can tell it from an error.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

EXIT_STOPPED = 75


class Stopped(SystemExit):
    """The run was asked to stop and its checkpoint is written; the exit code is `EXIT_STOPPED`."""

    def __init__(self) -> None:
        super().__init__(EXIT_STOPPED)


@contextlib.contextmanager
def stop_requests(wanted: bool) -> Iterator[threading.Event]:
    """An event that SIGTERM sets. Only the main thread can listen; elsewhere it stays unset.

    Args:
        wanted: false leaves SIGTERM as it is, for runs that have nowhere to write a checkpoint.
    """
    asked = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(*_: Any) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
