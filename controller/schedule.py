"""The base schedule: which row of the site's table is in force at a local instant."""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.site import ScheduleRow

DAY_S = 86400


def active_row(rows: Sequence[ScheduleRow], local_s: float) -> int | None:
    """Index of the row in force (the first that matches), or None. `local_s`: seconds since 1970-01-01, local time."""
    day, second = divmod(local_s, DAY_S)
    weekday = (math.floor(day) + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    for i, row in enumerate(rows):
        if row.start_s < row.end_s:
            if row.start_s <= second < row.end_s and weekday in row.days:
                return i
        # Across midnight the row belongs to the day on which it begins.
        elif (second >= row.start_s and weekday in row.days) or (second < row.end_s and (weekday - 1) % 7 in row.days):
            return i
    return None
