"""The CAN benchmark runs, briefly: frames are read right and none is lost. Its times are judged in `make bench`, not here."""

from __future__ import annotations

import pytest

from bench.perf import can


@pytest.mark.realtime
def test_every_frame_is_answered_and_none_is_lost() -> None:
    own, whole = can.latency(rounds=50)
    assert len(own) == len(whole) == 50 and all(0 < a < b for a, b in zip(own, whole, strict=True))
    got = can.load(seconds=1.0, priority=0)
    assert got["sent"] >= 1000 and got["taken"] == got["sent"]


@pytest.mark.realtime
def test_a_frame_leaves_every_tick_and_python_can_sends_as_many() -> None:
    ours, missed = can.transmit(0.5, 0)
    assert 45 <= len(ours) + missed <= 52 and min(ours) >= 0 and can.quantile(ours, 0.5) < can.TICK_NS
    theirs = can.python_can(0.5, 0)
    assert 45 <= len(theirs) <= 52 and min(theirs) == 0


def test_a_frame_that_leaves_in_the_next_tick_is_late_and_not_early() -> None:
    t = can.TICK_NS
    assert can.after_ticks([100, t + 200, 2 * t + 300], 0) == [100, 200, 300]
    assert can.after_ticks([100, 2 * t + 50, 2 * t + 90], 0) == [100, t + 50, 90]
    assert can.after_ticks([100, 2 * t + 50, 3 * t + 90], 1) == [100, 50, 90], "a tick that the engine missed has no frame"
