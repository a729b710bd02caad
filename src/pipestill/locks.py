"""One process at a time: a lock that ends with its holder, however that ends.

For steps that are started twice, such as by a platform that thinks a machine is lost: the second
waits, and then finds what the first has done. Where files cannot be locked (some mounts), nobody
waits.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Holds the lock file `path`, made here and removed at the end; waits while another has it.

    Args:
        path: the lock; its folder has to be there.
        doing: what the other one does, for the line that says why we wait.
    """
    handle = _take(path, doing)
    try:
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock right now."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _take(path: Path, doing: str) -> int | None:
    """The locked file's number; None where there can be no lock."""
    told = False
    while True:
        handle = None
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    print(f"another process {doing}: waiting for it", file=sys.stderr, flush=True)
                told = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:  # else its holder removed it while we waited
                return handle
        except OSError:
            if handle is not None:
                os.close(handle)
            return None
        os.close(handle)
