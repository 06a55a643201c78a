"""Each law on its own point, through the compiled functions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _core import _laws_face as laws

number = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)
rate = st.floats(min_value=0.0, max_value=1e9)


@given(number, number, rate, rate, st.floats(min_value=0.0, max_value=1.0))
def test_slew_never_exceeds_its_rates_and_never_overshoots(x: float, target: float, up: float, down: float, dt: float) -> None:
    y = laws.slew(x, target, up, down, dt)
    slack = 1e-9 * (abs(x) + abs(target) + 1.0)
    assert -down * dt - slack <= y - x <= up * dt + slack
    assert min(x, target) - slack <= y <= max(x, target) + slack


@given(number, number, rate)
def test_a_reduction_toward_zero_is_never_slewed(x: float, target: float, per_s: float) -> None:
    y = laws.slew_from_zero(x, target, per_s, 0.01)
    if x * target >= 0 and abs(target) <= abs(x):
        assert y == target
    else:
        assert abs(y) <= abs(x) + per_s * 0.01 + 1e-6 * abs(x) + 1e-9


@given(st.floats(min_value=0.0, max_value=800.0))
def test_decay_is_exp(x: float) -> None:
    assert laws.decay(x) == pytest.approx(math.exp(-x), rel=2e-8, abs=1e-300)
    if x < 5:
        assert laws.decay(x) == pytest.approx(math.exp(-x), rel=1e-12)


@pytest.mark.parametrize("f,p", [(50.0, 0.0), (49.8, 0.0), (50.2, 0.0), (49.7, 10e3), (50.3, -10e3), (47.5, 230e3)])
def test_droop_of_five_percent_with_200_mhz_deadband(f: float, p: float) -> None:
    # 5 % of 50 Hz is 2.5 Hz for 250 kW beyond the deadband: 100 kW per Hz
    assert laws.droop(f, 50.0, 0.2, 0.05, 250e3) == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("v,q", [(1.0, 0.0), (0.98, 0.0), (0.95, 22e3), (0.92, 44e3), (0.8, 44e3), (1.08, -44e3)])
def test_volt_var_category_b(v: float, q: float) -> None:
    # IEEE 1547-2018 table 8, category B: V2 0.98, V1 0.92, Q 44 %
    assert laws.volt_var(v, 0.02, 0.08, 44e3) == pytest.approx(q, abs=1e-6)


@given(number, number, number)
def test_clamp_the_high_end_wins(x: float, low: float, high: float) -> None:
    y = laws.clamp(x, low, high)
    assert y <= high and (y >= low or low > high)


def test_taper_falls_to_zero_at_the_limit() -> None:
    assert [laws.taper(d, 0.01) for d in (0.02, 0.01, 0.005, 0.0, -1.0)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert laws.taper(math.nan, 0.01) != laws.taper(math.nan, 0.01)  # NaN stays visible; less() turns it into 0


def test_q_room_is_what_apparent_power_leaves() -> None:
    assert laws.q_room(250e3, 150e3) == pytest.approx(200e3)
    assert laws.q_room(250e3, 260e3) == 0.0
