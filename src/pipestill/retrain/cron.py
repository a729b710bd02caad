"""Five-field cron expressions in a time zone: which instants they name.

A tick is every instant at which a clock on the wall of that zone shows a matching time. So a time
that the change to summer time leaves out has no tick, and one that the change back shows twice has
two; every tick is one instant of UTC all the same.
"""

import difflib
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from pipestill.errors import UserError

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
# name, first value, last value, names of values (from the first on)
FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of the month", 1, 31, []),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 7, DAYS),  # 0 and 7 are Sunday
)
FARTHEST_DAYS = 366 * 9  # 29 February is at most eight years away


@dataclass(frozen=True)
class Cron:
    """An expression and its zone. Of the days, either kind suffices where both are restricted."""

    text: str
    zone: zoneinfo.ZoneInfo
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    def matches_day(self, day: date) -> bool:
        """Whether the expression has times on a calendar day."""
        if day.month not in self.months:
            return False
        by_date, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return by_date and by_week
        return by_date or by_week

    def on(self, day: date) -> list[datetime]:
        """The instants (UTC, sorted) of one calendar day of the zone."""
        if not self.matches_day(day):
            return []
        found = set()
        for hour in self.hours:
            for minute in self.minutes:
                for fold in (0, 1):
                    wall = datetime(day.year, day.month, day.day, hour, minute, fold=fold)
                    instant = wall.replace(tzinfo=self.zone).astimezone(UTC)
                    if instant.astimezone(self.zone).replace(tzinfo=None) == wall:
                        found.add(instant)
        return sorted(found)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The ticks after `moment`, in order.

        Raises:
            UserError: ``CRON_NEVER`` where there is none.
        """
        return self._walk(moment, 1)

    def before(self, moment: datetime) -> Iterator[datetime]:
        """The ticks at or before `moment`, the latest first."""
        return self._walk(moment, -1)

    def _walk(self, moment: datetime, step: int) -> Iterator[datetime]:
        moment = moment.astimezone(UTC)
        day, idle = moment.astimezone(self.zone).date() - timedelta(days=step), 0
        while idle < FARTHEST_DAYS:
            ticks = [tick for tick in self.on(day) if (tick > moment) == (step > 0)]
            idle = 0 if ticks else idle + 1
            yield from ticks[::step]
            day += timedelta(days=step)
        raise UserError(
            "CRON_NEVER", f"cron {self.text!r}: names no day that exists", "correct the expression"
        )


def parse(text: str, time_zone: str = "UTC") -> Cron:
    """Reads ``minute hour day-of-month month day-of-week``: ``*``, ``a``, ``a-b``, ``/n``, ``,``.

    Months and days of the week may be written as their first three English letters.

    Raises:
        UserError: ``CRON_SYNTAX`` naming the field, ``TIME_ZONE`` with the closest names.
    """
    parts = text.split()
    if len(parts) != len(FIELDS):
        raise UserError(
            "CRON_SYNTAX",
            f"cron {text!r}: found {len(parts)} fields, allowed: 5 (minute hour day month weekday)",
            "for 3 o'clock every Monday write '0 3 * * 1'; the zone goes into --time-zone",
        )
    values = [_field(text, part, *field) for part, field in zip(parts, FIELDS, strict=True)]
    return Cron(
        text=" ".join(parts),
        zone=zone_of(time_zone),
        minutes=tuple(sorted(values[0])),
        hours=tuple(sorted(values[1])),
        days=frozenset(values[2]),
        months=frozenset(values[3]),
        weekdays=frozenset(value % 7 for value in values[4]),
        any_day=parts[2].startswith("*"),
        any_weekday=parts[4].startswith("*"),
    )


def _field(text: str, part: str, name: str, low: int, high: int, words: list[str]) -> set[int]:
    """The values of one field."""
    values: set[int] = set()
    for item in part.split(","):
        found = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d{1,4}))?", item)
        if not found:
            raise _wrong(text, name, item, low, high, words)
        first, last, step = found.groups()
        start = low if first is None else _number(first, low, words)
        end = _end(start, first, last, step, low, high, words)
        every = int(step) if step else 1
        if start is None or end is None or not low <= start <= end <= high or every < 1:
            raise _wrong(text, name, item, low, high, words)
        values.update(range(start, end + 1, every))
    return values


def _end(
    start: int | None,
    first: str | None,
    last: str | None,
    step: str | None,
    low: int,
    high: int,
    words: list[str],
) -> int | None:
    """The last value of a range: ``a/n`` and ``*`` run to the field's end."""
    if last is not None:
        return _number(last, low, words)
    return high if first is None or step is not None else start


def _number(word: str, low: int, words: list[str]) -> int | None:
    if word.lower() in words:
        return low + words.index(word.lower())
    return int(word) if re.fullmatch(r"[0-9]{1,4}", word) else None


def _wrong(text: str, name: str, item: str, low: int, high: int, words: list[str]) -> UserError:
    named = f" or {words[0]} to {words[-1]}" if words else ""
    return UserError(
        "CRON_SYNTAX",
        f"cron {text!r}: {name}: found {item!r}, allowed: *, {low} to {high}{named}, ranges a-b, "
        "steps /n, lists a,b",
        "correct the expression",
    )


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """A zone of the IANA database.

    Raises:
        UserError: ``TIME_ZONE``.
    """
    try:
        if name:
            return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        pass
    known = sorted(zoneinfo.available_timezones())
    folded = {zone.lower().rpartition("/")[2]: zone for zone in known}
    wanted = name.lower().replace(" ", "_").rpartition("/")[2]
    close = [folded[word] for word in difflib.get_close_matches(wanted, folded, n=3, cutoff=0.6)]
    raise UserError(
        "TIME_ZONE",
        f"time zone: found {name!r}, allowed: a name such as Europe/Berlin or UTC"
        + (f"; closest: {', '.join(close)}" if close else ""),
        "correct --time-zone",
    )
