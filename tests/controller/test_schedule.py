"""The base schedule across midnight, weekdays and overlaps."""

from __future__ import annotations

import pytest

from controller.schedule import DAY_S, active_row
from controller.site import ScheduleRow

MONDAY_S = 4 * DAY_S  # 1970-01-05
EVERY_DAY = tuple(range(7))


def at(day: int, clock: str) -> float:
    """Local seconds of a weekday (Monday 0) and a time."""
    hours, minutes = clock.split(":")
    return MONDAY_S + day * DAY_S + int(hours) * 3600 + int(minutes) * 60


NIGHT = [ScheduleRow(22 * 3600, 6 * 3600, EVERY_DAY, 20e3), ScheduleRow(12 * 3600, 13 * 3600, EVERY_DAY, -10e3)]


@pytest.mark.parametrize(
    ("clock", "row"),
    [
        ("21:59", None),
        ("22:00", 0),
        ("23:59", 0),
        ("00:00", 0),
        ("05:59", 0),
        ("06:00", None),
        ("12:30", 1),
        ("13:00", None),
    ],
)
def test_rows_begin_and_end_on_the_minute(clock: str, row: int | None) -> None:
    assert active_row(NIGHT, at(2, clock)) == row


def test_a_row_across_midnight_belongs_to_the_day_it_begins_on() -> None:
    rows = [ScheduleRow(22 * 3600, 6 * 3600, (4,), 20e3)]  # Fridays
    assert active_row(rows, at(4, "23:00")) == 0
    assert active_row(rows, at(5, "05:00")) == 0
    assert active_row(rows, at(4, "05:00")) is None
    assert active_row(rows, at(5, "23:00")) is None


def test_until_midnight_and_all_day() -> None:
    assert active_row([ScheduleRow(18 * 3600, 0, EVERY_DAY, 1.0)], at(0, "23:59")) == 0
    assert active_row([ScheduleRow(18 * 3600, 0, EVERY_DAY, 1.0)], at(1, "00:00")) is None
    assert all(active_row([ScheduleRow(0, 0, EVERY_DAY, 1.0)], at(3, c)) == 0 for c in ("00:00", "12:00", "23:59"))


def test_the_first_row_that_matches_wins() -> None:
    rows = [ScheduleRow(0, 7200, EVERY_DAY, 1.0), ScheduleRow(3600, 10800, EVERY_DAY, 2.0)]
    assert [active_row(rows, at(0, c)) for c in ("00:30", "01:30", "02:30")] == [0, 0, 1]
