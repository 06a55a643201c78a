"""The estimators on rows made here, whose truth is known, and on rows of the simulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _core import image as core
from controller.commission import delay, edges, measure

TICK_NS = 10_000_000
STEP_W = 5000.0
CMD_NS, METER_NS, BACK_NS = 3_040_000, 1_940_000, 8_670_000  # within the tick, as the built-in site's plan has them


@dataclass
class Made:
    """A converter and a meter: power at any instant, from commands that hold until the next."""

    dead_s: float = 0.00275
    tau_s: float = 0.002
    gain: float = -1.0  # grid per battery
    follow: float = 1.0
    noise_w: float = 0.0
    pulse_w: float = 0.0
    pulse_ticks: int = 190
    seed: int = 1

    def rows(self, n_edges: int = 14, stand: int = 60) -> np.ndarray:
        """n_edges plateaus of +-5 kW, each ended by one step to 0; the climbs take 50 ticks."""
        cmd = [np.zeros(stand)]
        for k in range(n_edges):
            top = STEP_W if k % 2 == 0 else -STEP_W
            cmd += [np.linspace(0, top, 50), np.full(stand, top), np.zeros(stand)]
        w = np.concatenate(cmd)
        n = len(w)
        rows = np.zeros(n, core.record_dtype())
        t = TICK_NS * (1 + np.arange(n, dtype=np.int64))
        rows["tick"], rows["inp"]["t_ns"] = np.arange(n), t
        rows["inp"]["step_t_ns"], rows["inp"]["command_t_ns"] = t + CMD_NS - 500_000, t + CMD_NS
        rows["out"]["p_cmd_w"], rows["out"]["mode"] = w, core.MODE_GRID
        rng = np.random.default_rng(self.seed)
        load = 300e3 + self.pulse_w * (np.arange(n) // self.pulse_ticks % 2)
        meter_t, back_t = t + METER_NS, t + BACK_NS - TICK_NS  # the readback a step sees is the tick's before
        for group, field, at in (("meter", "grid_p_w", meter_t), ("pcs", "batt_p_w", back_t)):
            g = rows["inp"][group]
            g["g"]["t_ns"], g["g"]["rx_ns"], g["g"]["count"], g["g"]["quality"] = at, at + 500_000, 1 + np.arange(n), core.Q_GOOD
            p = self.power(t + CMD_NS, w, at)
            noise = self.noise_w * rng.standard_normal(n)
            g[field] = load + self.gain * p + noise if group == "meter" else self.follow * p
        rows["out"]["load_w"] = load
        return rows

    def power(self, cmd_ns: np.ndarray, cmd_w: np.ndarray, at_ns: np.ndarray) -> np.ndarray:
        """First order after the dead time, exact between commands."""
        effect = cmd_ns + round(self.dead_s * 1e9)
        state = np.zeros(len(cmd_w))  # power at the instant each command takes effect
        for k in range(1, len(cmd_w)):
            state[k] = cmd_w[k - 1] + (state[k - 1] - cmd_w[k - 1]) * np.exp(-(TICK_NS / 1e9) / self.tau_s)
        k = np.searchsorted(effect, at_ns, side="right") - 1
        since = np.maximum(at_ns - effect[np.maximum(k, 0)], 0) / 1e9
        p = cmd_w[k] + (state[k] - cmd_w[k]) * np.exp(-since / self.tau_s)
        return np.where(k < 0, 0.0, p)


SETTLED = edges.settle_ns(0.00275, 0.002)


def judged(made: Made) -> edges.Polarity:
    rows = made.rows()
    return edges.polarity(edges.find(rows, STEP_W, SETTLED), float(np.median(rows["inp"]["meter"]["grid_p_w"])))


@pytest.mark.parametrize(
    "made,cause",
    [
        (Made(), "ok"), (Made(noise_w=500), "ok"), (Made(pulse_w=100e3), "ok"), (Made(pulse_w=100e3, pulse_ticks=70, noise_w=200), "ok"),
        (Made(dead_s=0.01, tau_s=0.03), "ok"), (Made(gain=1.0), "meter_or_pcs_sign"), (Made(gain=0.0), "no_ct"),
        (Made(gain=0.0, noise_w=50), "no_ct"), (Made(gain=-2 / 3), "one_phase"), (Made(gain=-1 / 3), "one_reversed"),
        (Made(follow=-1.0), "readback_sign"), (Made(gain=1.0, follow=-1.0), "pcs_command_sign"), (Made(gain=-1.5), "gain"),
        (Made(gain=0.0, follow=0.0), "not_following"), (Made(follow=0.0), "no_readback"),
    ],
)  # fmt: skip
def test_polarity_names_the_cause(made: Made, cause: str) -> None:
    p = judged(made)
    assert p.edges == 14 and p.cause == cause
    assert p.verdict == ("pass" if cause == "ok" else "fail")
    if cause == "ok":
        assert abs(p.ratio + 1.0) < 0.06


def test_a_meter_that_counts_all_the_other_way_is_told_from_a_pcs_that_does() -> None:
    rows = Made(gain=-1.0).rows()
    rows["inp"]["meter"]["grid_p_w"] *= -1.0
    p = edges.polarity(edges.find(rows, STEP_W, SETTLED), float(np.median(rows["inp"]["meter"]["grid_p_w"])))
    assert (p.verdict, p.cause) == ("fail", "meter_sign") and p.ratio == pytest.approx(1.0, abs=1e-6)


def test_too_few_edges_and_too_restless_a_load_are_no_verdict() -> None:
    rows = Made().rows(n_edges=8)
    assert edges.polarity(edges.find(rows, STEP_W, SETTLED), 3e5).cause == "few"
    assert judged(Made(noise_w=20e3)).verdict == "unclear"


def test_edges_under_a_limit_or_outside_grid_are_left_out() -> None:
    rows = Made().rows()
    first = edges.find(rows, STEP_W, SETTLED)[0].row
    rows["out"]["limits_active"][first + 3] = core.LIM_IMPORT
    assert len(edges.find(rows, STEP_W, SETTLED)) == 13
    rows["out"]["mode"][first + 200 :] = core.MODE_FAULT
    assert len(edges.find(rows, STEP_W, SETTLED)) <= 1


def fitted(made: Made, dead_s: float = 0.00275, tau_s: float = 0.002) -> delay.Fit:
    settled = edges.settle_ns(max(dead_s, made.dead_s), max(tau_s, made.tau_s))
    rows = made.rows()
    got = delay.fit(delay.gather(rows, edges.find(rows, STEP_W, settled), settled), dead_s, tau_s)
    assert got is not None
    return got


@pytest.mark.parametrize("dead_s,tau_s", [(0.00275, 0.002), (0.00975, 0.03), (0.02, 0.005), (0.004, 0.012), (0.0018, 0.05)])
@pytest.mark.parametrize("noise_w,pulse_w", [(0.0, 0.0), (200.0, 0.0), (50.0, 100e3)])
def test_delay_fit_finds_what_was_put_in_within_what_it_claims(dead_s: float, tau_s: float, noise_w: float, pulse_w: float) -> None:
    got = fitted(Made(dead_s, tau_s, noise_w=noise_w, pulse_w=pulse_w))
    for low_high, truth in ((got.dead_range_s, dead_s), (got.tau_range_s, tau_s), (got.sum_range_s, dead_s + tau_s)):
        assert low_high[0] <= truth <= low_high[1]
    assert abs(got.dead_s + got.tau_s - dead_s - tau_s) < 1.5e-3
    assert got.believed_fits == (dead_s == 0.00275)


def test_a_slow_pcs_is_separable_and_the_site_s_values_are_refused() -> None:
    got = fitted(Made(0.00975, 0.03))
    assert got.separable and not got.believed_fits
    assert got.dead_s == pytest.approx(0.00975, abs=3e-4) and got.tau_s == pytest.approx(0.03, rel=0.02)


def test_noise_that_hides_the_shape_is_said_and_not_written_away() -> None:
    got = fitted(Made(noise_w=1500.0), 0.02, 0.02)
    assert not got.separable
    assert got.dead_range_s[0] <= 0.00275 <= got.dead_range_s[1]


@settings(max_examples=15, deadline=None)
@given(st.floats(0.002, 0.05), st.floats(0.001, 0.05), st.integers(0, 1000))
def test_delay_fit_s_sum_is_right_for_any_converter(dead_s: float, tau_s: float, seed: int) -> None:
    got = fitted(Made(dead_s, tau_s, noise_w=25.0, seed=seed), dead_s, tau_s)
    assert got.believed_fits
    assert got.sum_range_s[0] <= dead_s + tau_s <= got.sum_range_s[1]


def test_the_fit_refuses_too_few_samples() -> None:
    rows = Made().rows(n_edges=1)[:150]
    assert delay.fit(delay.gather(rows, [], SETTLED), 0.002, 0.002) is None


def test_ramp_slopes_away_from_zero_count_and_the_fall_does_not() -> None:
    rows = Made().rows()
    rows["out"]["limits_active"] = core.LIM_HOLD
    got = measure.ramp(rows)
    assert got.up_w_per_s == pytest.approx(STEP_W / 49 * 100, rel=1e-6)
    assert got.down_w_per_s == pytest.approx(STEP_W / 49 * 100, rel=1e-6)
    assert np.isnan(got.ref_up_w_per_s)


def test_trip_counts_from_the_tick_that_shows_it() -> None:
    rows = Made().rows()
    rows["inp"]["bms"]["g"]["quality"] = core.Q_GOOD
    rows["inp"]["bms"]["bms_state"], rows["inp"]["pcs"]["pcs_state"] = 3.0, 3.0
    assert measure.trip(rows) is None
    rows["inp"]["bms"]["bms_state"][100:] = 4.0
    rows["out"]["p_cmd_w"] = 5000.0
    rows["out"]["mode"][103:], rows["out"]["alarms"][103:], rows["out"]["p_cmd_w"][104:] = core.MODE_FAULT, core.ALM_BMS_FAULT, 0.0
    got = measure.trip(rows)
    assert got is not None
    assert (got.row, got.cause, got.fault_ticks, got.zero_ticks, got.alarms) == (100, "contactors open", 3, 4, ("bms_fault",))


def silent(hold_w: float = 25e3, gone_s: float = 5.0, noise_w: float = 0.0, pulse_w: float = 0.0) -> np.ndarray:
    """12 s: the PCS is silent from 2 s to 10 s, the power goes gone_s after its last answer."""
    rows = np.zeros(1200, core.record_dtype())
    t = TICK_NS * (1 + np.arange(1200, dtype=np.int64))
    inp = rows["inp"]
    inp["t_ns"], inp["step_t_ns"] = t, t + 3_000_000
    k = np.arange(1200)
    answers = np.where((k < 200) | (k >= 1000), k, 199)
    inp["pcs"]["g"]["rx_ns"] = inp["pcs"]["g"]["t_ns"] = t[answers]
    power = np.where(k < 200 + round(gone_s * 100), hold_w, 0.0)
    inp["pcs"]["batt_p_w"] = power[answers]
    for group in ("meter", "bms_lim"):
        inp[group]["g"]["quality"], inp[group]["g"]["t_ns"] = core.Q_GOOD, t
    inp["bms_lim"]["batt_v"], inp["bms_lim"]["batt_i_a"] = 800.0, power / 800.0
    load = 300e3 + noise_w * np.random.default_rng(1).standard_normal(1200) + pulse_w * (k // 310 % 2)
    inp["meter"]["grid_p_w"] = load - power
    return rows


def test_reversion_is_timed_by_bms_and_meter_from_the_last_answer() -> None:
    got = measure.reversion(silent(), 25e3)
    assert got is not None
    assert got.dc_s == pytest.approx(5.01, abs=0.011) and got.meter_s == pytest.approx(5.01, abs=0.05)
    assert got.back_w == 0.0


def test_a_restless_load_takes_the_meter_out_of_the_judgement_of_the_reversion() -> None:
    got = measure.reversion(silent(pulse_w=100e3), 25e3)
    assert got is not None and np.isnan(got.meter_s) and got.meter_noise_w > 50e3
    assert got.dc_s == pytest.approx(5.01, abs=0.011)
    noisy = measure.reversion(silent(noise_w=500), 25e3)
    assert noisy is not None and noisy.meter_s == pytest.approx(5.01, abs=0.1)


def test_a_power_that_never_goes_is_no_reversion_and_an_answering_pcs_neither() -> None:
    got = measure.reversion(silent(gone_s=9.0), 25e3)
    assert got is not None and np.isnan(got.dc_s) and np.isnan(got.meter_s) and got.back_w == 25e3
    assert measure.reversion(Made().rows(), 25e3) is None


def test_the_timer_counts_down_and_jumps_back() -> None:
    rows = np.zeros(800, core.record_dtype())
    k = np.arange(800) // 100
    ctl = rows["inp"]["pcs_ctl"]
    ctl["g"]["t_ns"], ctl["wset_rvrt_ena"], ctl["wset_rvrt_s"] = (1 + k) * 10**9, 1.0, 5.0
    ctl["wset_rvrt_rem_s"] = np.array([5, 4, 3, 5, 4, 3, 5, 4])[k]
    got = measure.renewal(rows)
    assert (got.reads, got.renewals, got.rem_min_s, got.span_s, got.enabled, got.setting_s) == (8, 2, 3.0, 7.0, True, 5.0)
    ctl["wset_rvrt_ena"][300:] = 0.0
    assert not measure.renewal(rows).enabled
    assert measure.renewal(rows[:0]).reads == 0
