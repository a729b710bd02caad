"""Component `tick_time`: the moment that a run stands for, in one form."""

from pipestill.components._base import component


@component
def tick_time(tick_time: str = "") -> str:
    """Reads a moment as it is given by a person or by a scheduler.

    Args:
        tick_time: RFC 3339, 14 digits of UTC, or empty for now.

    Returns:
        RFC 3339 in UTC.
    """
    from datetime import UTC, datetime

    from pipestill.retrain.window import parse_time, rfc3339

    return rfc3339(parse_time(tick_time) if tick_time else datetime.now(UTC))
