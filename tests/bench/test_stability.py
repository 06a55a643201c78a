"""The loop under wrong knowledge: a seeded share of the points that `python -m bench.stability` runs in full."""

from __future__ import annotations

from bench.stability import Point, points, residuals, settles


def test_points_settle_and_do_not_cycle() -> None:
    some = list(points(600))[::12]
    assert len(some) == 50
    assert [x for x in some if not settles(x)[0]] == []


def test_what_is_known_right_is_answered_at_full_bandwidth() -> None:
    late = [r for t, r in residuals(Point(0.0, 0.002, 0.0, 1.0, 50e3, False)) if t > 0.04]
    assert max(late) < 0.01


def test_the_measure_sees_a_loop_that_rings() -> None:
    # without the ringing detector this point swings by many times the step: the measure must be able to fail
    early = [r for t, r in residuals(Point(0.02, 0.001, -0.02, 1.0, 50e3, False)) if 0.05 < t < 0.2]
    assert max(early) > 0.5
