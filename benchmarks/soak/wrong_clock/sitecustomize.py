"""Put first on ``PYTHONPATH``: the wall clock of the process jumps, at random, by up to a year.

Seed in ``SOAK_CLOCK``. What measures spans (`time.monotonic`, `time.perf_counter`) is right, as on
a machine whose clock is set by hand or by the network.
"""

import datetime
import os
import random
import time

SPANS = (0.0, 3600.0, -3600.0, 86_400.0 * 365, -86_400.0 * 365, -1e9)
_dice = random.Random(os.environ.get("SOAK_CLOCK", "0"))  # noqa: S311
_right, _right_ns, _datetime = time.time, time.time_ns, datetime.datetime


def _jump() -> float:
    return _dice.choice(SPANS)


class _Kind(type):
    """Moments that other code made are moments as well."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)


class _Wrong(_datetime, metaclass=_Kind):
    """`datetime`, whose present is wrong."""

    @classmethod
    def now(cls, tz=None):  # type: ignore[no-untyped-def]
        return cls.fromtimestamp(_right() + _jump(), tz)

    @classmethod
    def utcnow(cls):  # type: ignore[no-untyped-def]
        return cls.now(datetime.UTC).replace(tzinfo=None)


if "SOAK_CLOCK" in os.environ:
    time.time = lambda: _right() + _jump()
    time.time_ns = lambda: int(_right_ns() + _jump() * 1e9)
    datetime.datetime = _Wrong  # type: ignore[misc]
