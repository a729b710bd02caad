"""Cron expressions against hand-made tables, the change of clocks included."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipestill.errors import UserError
from pipestill.retrain.cron import parse
from pipestill.retrain.story import preview
from pipestill.retrain.window import rfc3339, window_of

BERLIN = "Europe/Berlin"


def instant(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "zone", "now", "expected"),
    [
        # every Monday at 3: winter time is one hour ahead of UTC, summer time two
        ("0 3 * * 1", BERLIN, "2026-03-20T00:00", ["2026-03-23T02:00", "2026-03-30T01:00"]),
        ("0 3 * * mon", "UTC", "2026-01-05T03:00", ["2026-01-12T03:00", "2026-01-19T03:00"]),
        ("*/20 9-10 * * *", "UTC", "2026-01-01T09:30",
         ["2026-01-01T09:40", "2026-01-01T10:00", "2026-01-01T10:20", "2026-01-01T10:40",
          "2026-01-02T09:00"]),
        ("0 0 1 jan,JUL *", "UTC", "2026-02-01T00:00", ["2026-07-01T00:00", "2027-01-01T00:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        # both kinds of days are restricted: either suffices (13th, or a Friday)
        ("0 12 13 * 5", "UTC", "2026-02-01T00:00",
         ["2026-02-06T12:00", "2026-02-13T12:00", "2026-02-20T12:00"]),
        ("0 12 */10 * 0", "UTC", "2026-02-01T00:00", ["2026-02-01T12:00", "2026-03-01T12:00"]),
        ("5 4 * * 7", "UTC", "2026-01-01T00:00", ["2026-01-04T04:05"]),
        ("0 9 * * 5-7", "UTC", "2026-01-01T00:00",
         ["2026-01-02T09:00", "2026-01-03T09:00", "2026-01-04T09:00"]),
        ("10/25 0 1 1 *", "UTC", "2026-01-01T00:00", ["2026-01-01T00:10", "2026-01-01T00:35"]),
        # 2026-03-29: 02:30 does not exist in Berlin
        ("30 2 * * *", BERLIN, "2026-03-27T12:00", ["2026-03-28T01:30", "2026-03-30T00:30"]),
        # 2026-10-25: 02:30 comes twice
        ("30 2 * * *", BERLIN, "2026-10-24T12:00",
         ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-26T01:30"]),
        ("0 0 * * *", "Asia/Kolkata", "2026-01-01T00:00", ["2026-01-01T18:30"]),
        ("0 3 * * *", "Pacific/Auckland", "2026-01-01T00:00", ["2026-01-01T14:00"]),
    ],
)  # fmt: skip
def test_ticks(cron, zone, now, expected):
    found = islice(parse(cron, zone).after(instant(now)), len(expected))
    assert [tick.strftime("%Y-%m-%dT%H:%M") for tick in found] == expected


@pytest.mark.parametrize(
    ("cron", "zone", "message"),
    [
        ("every monday", "UTC", "found 2 fields, allowed: 5"),
        ("0 3 * * * *", "UTC", "found 6 fields"),
        ("60 3 * * 1", "UTC", "minute: found '60', allowed: \\*, 0 to 59"),
        ("0 24 * * 1", "UTC", "hour: found '24'"),
        ("0 3 0 * *", "UTC", "day of the month: found '0', allowed: \\*, 1 to 31"),
        ("0 3 * 13 *", "UTC", "month: found '13', allowed: \\*, 1 to 12 or jan to dec"),
        ("0 3 * * 8", "UTC", "day of the week: found '8'"),
        ("0 3 * * fun", "UTC", "found 'fun'"),
        ("0 5-3 * * *", "UTC", "hour: found '5-3'"),
        ("*/0 3 * * 1", "UTC", r"minute: found '\*/0'"),
        ("0 3 * * 1,", "UTC", "day of the week: found ''"),
        ("0 3 L * *", "UTC", "found 'L'"),
        ("@daily", "UTC", "found 1 fields"),
        ("-1 3 * * *", "UTC", "minute: found '-1'"),
        ("0 3 * * 1", "Berlin", r"TIME_ZONE.*closest: Europe/Berlin"),
        ("0 3 * * 1", "Europe/Atlantis", "TIME_ZONE"),
        ("0 3 * * 1", "../etc/passwd", "TIME_ZONE"),
        ("0 3 * * 1", "", "TIME_ZONE"),
    ],
)
def test_a_bad_cron_or_zone_is_one_line(cron, zone, message):
    with pytest.raises(UserError, match=message) as error:
        parse(cron, zone)
    assert "\n" not in str(error.value)


def test_a_day_that_never_comes():
    with pytest.raises(UserError, match="CRON_NEVER"):
        next(parse("0 0 30 2 *").after(instant("2026-01-01")))


@given(
    st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)),
    st.sampled_from(["0 3 * * 1", "*/15 * * * *", "30 2 * * *", "0 0 1 * *", "59 23 31 12 *"]),
    st.sampled_from([BERLIN, "UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
def test_windows_hold_their_ticks(moment, cron, zone):
    """The window of any moment ends at or before it, and the next tick comes after it."""
    schedule, moment = parse(cron, zone), moment.replace(tzinfo=UTC)
    window = window_of(moment, schedule)
    assert window.start < window.end <= moment
    following = next(schedule.after(moment))
    assert following > moment
    assert next(schedule.after(window.end)) == following
    assert window_of(following, schedule).start == window.end
    wall = window.end.astimezone(schedule.zone)
    assert wall.minute in schedule.minutes
    assert wall.hour in schedule.hours


def test_preview_shows_local_time_utc_window_and_the_clocks():
    found = preview("0 3 * * 1", BERLIN, 3, instant("2026-03-20T00:00"))
    assert [row["local"] for row in found] == [
        "Mon 2026-03-23 03:00 CET",
        "Mon 2026-03-30 03:00 CEST",
        "Mon 2026-04-06 03:00 CEST",
    ]
    assert [row["utc"] for row in found][:2] == ["2026-03-23T02:00:00Z", "2026-03-30T01:00:00Z"]
    assert [row["hours"] for row in found] == ["168", "167", "168"]
    assert found[1]["window"] == "[2026-03-23T02:00:00Z, 2026-03-30T01:00:00Z)"
    assert [row["note"] for row in found] == ["", "clocks +1 h in the window", ""]
    twice = preview("30 2 * * *", BERLIN, 2, instant("2026-10-24T12:00"))
    assert [row["local"][-4:] for row in twice] == ["CEST", " CET"]
    assert "second time" in twice[1]["note"]
    assert twice[1]["hours"] == "1"


def test_a_moment_between_ticks_belongs_to_the_last_one():
    schedule = parse("0 3 * * 1", BERLIN)
    window = window_of(instant("2026-01-08T17:00"), schedule)
    assert window.tick == "20260105T020000Z"
    assert rfc3339(window.start) == "2025-12-29T02:00:00Z"
    assert window_of(window.end, schedule) == window
    assert window_of(window.end - timedelta(seconds=1), schedule).end == window.start
