"""The one place in controller/ that reads a clock. Everything else is handed one of these, so that a test or a
simulation owns time.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Monotonic time for what is measured and leased, wall time for what people and bills go by."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of the image's clock (CLOCK_MONOTONIC in real time)."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump when somebody sets the clock."""
        ...

    def utc_offset_s(self, wall_s: float) -> int:
        """Local time - UTC at that instant, in seconds: the base schedule is in local time."""
        ...


class RealClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC: the clock of the process image."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def wall_s(self) -> float:
        """CLOCK_REALTIME."""
        return time.time()

    def utc_offset_s(self, wall_s: float) -> int:
        """By the system's time zone."""
        return time.localtime(wall_s).tm_gmtoff


class ManualClock:
    """A clock that somebody else moves: virtual time, and tests."""

    def __init__(self, t_ns: int = 0, wall_at_0_s: float = 1_700_000_000.0, offset_s: int = 0) -> None:
        self.t_ns = t_ns
        self.wall_at_0_s = wall_at_0_s
        self.offset_s = offset_s

    def monotonic_ns(self) -> int:
        """What `t_ns` was set to."""
        return self.t_ns

    def wall_s(self) -> float:
        """Runs with `t_ns` from `wall_at_0_s`."""
        return self.wall_at_0_s + self.t_ns / 1e9

    def utc_offset_s(self, wall_s: float) -> int:
        """Fixed, so that a run is the same in every time zone."""
        return self.offset_s


def utc(wall_s: float) -> datetime:
    """The UTC instant of a wall time."""
    return datetime.fromtimestamp(wall_s, UTC)


def utc_text(wall_s: float) -> str:
    """As `2026-01-31 12:00:00.250 UTC`."""
    return utc(wall_s).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def parse_utc(text: str) -> float:
    """Wall time of an ISO date and time; UTC where it names no zone. Raises ValueError."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
