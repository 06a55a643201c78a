"""Signs, sides and ranks: what a single swapped character in the kernel would change and nothing else would show."""

from __future__ import annotations

import pytest

from bench.rig import Rig
from tests.core.test_kernel import active, alarms

FOREVER = 1 << 62


def test_above_its_target_the_battery_gives_and_below_it_takes() -> None:
    for soc, gap_w in ((0.51, 10e3), (0.49, -10e3), (0.9, 62.5e3)):  # (soc - target) * 250 kWh over 900 s; at most a quarter of rating
        r = Rig(load_w=300e3).to_grid()
        r.inp["bms"]["soc"] = soc
        out = r.step(2)
        assert out["mean_w"] - out["target_w"] == pytest.approx(gap_w, rel=1e-6)


@pytest.mark.parametrize("rating", ["pcs_p_max_w", "s_rated_va"])
def test_the_converter_bounds_power_where_nobody_else_does(rating: str) -> None:
    r = Rig(has_bms=0, has_bms_limits=0, has_bms_temp=0, **{rating: 100e3}).to_grid()
    out = r.step()
    assert (out["p_min_w"], out["p_max_w"]) == (-100e3, 100e3)
    assert "pcs" in active(r.step(3, load_w=540e3)) and r.out["p_cmd_w"] == 100e3


def test_droop_outranks_the_contract_and_the_breaker_outranks_droop() -> None:
    r = Rig(load_w=10e3).to_grid()
    r.inp["meter"]["f_hz"] = 49.0
    assert r.step(200)["p_cmd_w"] > 75e3  # exports with an export limit of 0
    r = Rig(load_w=440e3, import_limit_w=490e3)
    r.lim["import_limit_w"] = 490e3
    r.to_grid()
    r.inp["meter"]["f_hz"] = 51.0
    out = r.step(200)
    assert "feeder" in active(out)
    assert out["load_w"] - out["p_cmd_w"] == pytest.approx(500e3, abs=1e-3)  # beyond the contract, not beyond the breaker
    r = Rig(load_w=-460e3, export_limit_w=480e3)
    r.lim["export_limit_w"] = 480e3
    r.to_grid()
    r.inp["meter"]["f_hz"] = 49.0
    out = r.step(200)
    assert out["load_w"] - out["p_cmd_w"] == pytest.approx(-500e3, abs=1e-3)


def test_the_bms_outranks_the_contract() -> None:
    r = Rig(load_w=300e3).to_grid()
    r.lim["import_limit_w"] = 200e3
    r.inp["bms_lim"]["batt_i_discharge_max_a"] = 50.0
    out = r.step()
    assert out["p_cmd_w"] == pytest.approx(0.95 * 800.0 * 50.0) and "bms_discharge" in active(out)


def test_the_ramp_is_per_second_whatever_the_tick() -> None:
    r = Rig().to_grid()
    r.step(20)
    r.inp["slot"][1].update(kind=2, value_w=-5e3, lease_until_ns=FOREVER)
    before = r.step()["ref_w"]
    r.tick += 4  # four ticks missed
    assert before - r.step()["ref_w"] == pytest.approx(100.0, rel=1e-6)


def test_up_is_grid_import_up() -> None:
    r = Rig().to_grid()
    r.lim.update(ramp_up_w_per_s=1000.0, ramp_down_w_per_s=3000.0)
    for value, moved in ((5e3, 10.0), (-5e3, -30.0)):
        r.inp["slot"][1].update(kind=2, value_w=value, lease_until_ns=FOREVER)
        before = r.step()["ref_w"]
        assert r.step()["ref_w"] - before == pytest.approx(moved, rel=1e-6)


def test_the_target_stays_between_export_and_import_limit() -> None:
    r = Rig(load_w=50e3).to_grid()
    r.inp["slot"][1].update(kind=2, value_w=-600e3, lease_until_ns=FOREVER)
    out = r.step(2)
    assert out["target_w"] == 0.0 and "export" in active(out)
    r.inp["slot"][1]["value_w"] = 600e3
    out = r.step(2)
    assert out["target_w"] == 445e3 and "import" in active(out)


def test_efficiency_counts_in_discharge_only() -> None:
    r = Rig().to_grid()
    r.inp["bms_lim"].update(batt_i_discharge_max_a=100.0, batt_i_charge_max_a=100.0)
    out = r.step()
    assert (out["p_min_w"], out["p_max_w"]) == (pytest.approx(-80e3), pytest.approx(76e3))


def test_a_cold_battery_tapers_too() -> None:
    r = Rig().to_grid()
    r.inp["bms_temp"]["batt_temp_min_c"] = 2.5
    assert r.step()["p_max_w"] == pytest.approx(125e3)


def test_the_supervisor_may_forbid_one_direction() -> None:
    r = Rig().to_grid()
    r.lim["p_discharge_max_w"] = 5e3
    out = r.step(2, load_w=420e3)
    assert out["p_cmd_w"] == 5e3 and out["p_min_w"] < -200e3 and "site_p" in active(out)


def test_the_past_of_the_first_window_counts_as_used_in_full() -> None:
    r = Rig(billing_window_s=900.0)
    r.inp["billing_phase_s"] = 600.0
    r.step()
    assert r.kernel.get_state()["billing_wh"] == pytest.approx(445e3 * 600.0 / 3600.0)


@pytest.mark.parametrize("field,value", [("wset_rvrt_ena", 0.0), ("wset_rvrt_s", 60.0)])
def test_a_lost_reversion_timer_is_a_fault(field: str, value: float) -> None:
    r = Rig().to_grid()
    r.inp["pcs_ctl"][field] = value
    out = r.step()
    assert out["mode"] == 0 and alarms(out) == {"reversion"}


def test_a_converter_that_ran_for_somebody_else_is_not_adopted() -> None:
    r = Rig(load_w=400e3)
    r.running = True
    r.inp["pcs_ctl"].update(wset_ena=0.0, wset_w=30e3)
    while r.step()["mode"] == 1:
        assert r.out["p_cmd_w"] == 0.0 and r.tick < 1000
