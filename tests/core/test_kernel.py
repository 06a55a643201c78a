"""The kernel against a converter with dead time and lag: start, following, limits, loss, faults."""

from __future__ import annotations

import math

import pytest

from _core import image as im
from bench.rig import Rig

GRID, STANDBY, FAULT, TRIP, STOP = 2, 1, 0, 5, 6


def active(out: dict) -> set[str]:
    return {name for bit, (name, _) in im.LIMIT_TEXT.items() if out["limits_active"] & bit}


def alarms(out: dict) -> set[str]:
    return {name for bit, (name, _) in im.ALARM_TEXT.items() if out["alarms"] & bit}


def test_cold_start_waits_for_a_heartbeat_that_moves_three_seconds() -> None:
    r = Rig()
    r.to_grid()
    assert 3.0 < r.tick * 0.01 < 6.0
    assert r.out["p_cmd_w"] == 0.0


def test_a_live_converter_is_adopted_without_a_bump() -> None:
    r = Rig(load_w=400e3)
    r.running = True
    r.p_w = r.target_w = 30e3
    r.inp["pcs_ctl"].update(wset_ena=1.0, wset_w=30e3)
    while r.step()["mode"] != GRID:
        assert r.tick < 400
        if r.out["gate"]:
            assert r.out["p_cmd_w"] == 30e3
    assert r.tick * 0.01 < 3.0
    assert r.out["p_cmd_w"] == pytest.approx(30e3, abs=50)
    assert r.step(50)["p_cmd_w"] == pytest.approx(30e3, abs=1200)


def test_a_load_step_is_answered_in_full_by_the_next_command() -> None:
    r = Rig().to_grid()
    r.step(200)
    before = r.out["p_cmd_w"]
    out = r.step(1, load_w=425e3)
    assert out["p_cmd_w"] - before == pytest.approx(25e3, rel=0.01)
    r.step(5)
    assert r.load_w - r.p_w == pytest.approx(400e3, abs=300)


def test_reference_never_moves_faster_than_the_ramp() -> None:
    r = Rig().to_grid()
    r.step(100)
    last = r.out["ref_w"]
    for k in range(3000):
        out = r.step(1, load_w=350e3 + 80e3 * (k // 300 % 2))
        assert abs(out["ref_w"] - last) <= 2000.0 * 0.01 * 1.000001
        last = out["ref_w"]
    assert out["not_held_s"] == 0.0


def test_beyond_the_battery_the_ramp_is_counted_as_not_held() -> None:
    r = Rig(load_w=100e3).to_grid()
    r.step(100)
    out = r.step(1, load_w=400e3)
    assert {"ramp_not_held", "bms_discharge"} <= active(out)
    out = r.step(20)
    assert out["p_cmd_w"] == pytest.approx(237.5e3)  # 0.95 * 800 V * 312.5 A
    assert out["not_held_s"] > 0.0


def test_import_limit_is_held_at_once_by_the_battery() -> None:
    r = Rig(load_w=440e3).to_grid()
    r.step(100)
    out = r.step(6, load_w=480e3)
    assert r.load_w - r.p_w <= 445e3 + 500
    r.lim["import_limit_w"] = 400e3
    out = r.step(1)
    assert "import" in active(out)
    assert out["p_cmd_w"] == pytest.approx(80e3, rel=0.02)


def test_export_limit_outranks_a_held_setpoint() -> None:
    r = Rig(load_w=50e3).to_grid()
    r.inp["slot"][0].update(kind=1, value_w=200e3, lease_until_ns=1 << 62, id=7)
    out = r.step(12000)
    assert out["p_cmd_w"] == pytest.approx(50e3, rel=1e-3)
    assert {"hold", "export"} <= active(out)
    assert out["slot"] == 0 and out["slot_id"] == 7


def test_operator_outranks_schedule_outranks_planner_and_leases_end() -> None:
    r = Rig().to_grid()
    for k, w in ((0, 0.0), (1, 10e3), (2, 20e3)):
        r.inp["slot"][k].update(kind=1, value_w=w, lease_until_ns=r.tick * 10_000_000 + (3 - k) * 100_000_000, id=k)
    assert [r.step()["slot"], r.step(30)["slot"]] == [0, -1]
    r.inp["slot"][2]["lease_until_ns"] = 1 << 62
    assert r.step()["slot"] == 2
    r.inp["slot"][1]["lease_until_ns"] = 1 << 62
    assert r.step()["slot"] == 1


def test_hold_zero_is_immediate_and_release_follows_again() -> None:
    r = Rig().to_grid()
    r.step(100)
    r.step(5, load_w=450e3)
    assert r.out["p_cmd_w"] > 45e3
    r.lim["import_limit_w"] = r.site["import_limit_w"] = 490e3
    r.inp["slot"][0].update(kind=1, value_w=0.0, lease_until_ns=1 << 62)
    assert r.step()["p_cmd_w"] == 0.0
    r.step(50)
    assert r.load_w - r.p_w == pytest.approx(450e3)
    r.inp["slot"][0]["kind"] = 0
    out = r.step(1, load_w=420e3)
    assert out["p_cmd_w"] == pytest.approx(-30e3, rel=0.02)


def test_base_schedule_moves_the_grid_at_the_ramp() -> None:
    r = Rig(load_w=300e3).to_grid()
    r.step(50)
    r.inp["slot"][1].update(kind=2, value_w=-40e3, lease_until_ns=1 << 62)
    r.step(1000)
    assert r.load_w - r.p_w == pytest.approx(300e3 - 20e3, abs=500)
    r.step(1500)
    assert r.load_w - r.p_w == pytest.approx(300e3 - 40e3, abs=2500)


def test_charge_limit_zero_in_mid_flight_is_zero_in_the_next_command() -> None:
    r = Rig().to_grid()
    r.step(100)
    r.step(5, load_w=350e3)
    assert r.out["p_cmd_w"] < -45e3
    r.inp["bms_lim"]["batt_i_charge_max_a"] = 0.0
    out = r.step()
    assert out["p_cmd_w"] == 0.0 and "bms_charge" in active(out)


@pytest.mark.parametrize(
    "field,value",
    [
        ("batt_v", math.nan),
        ("batt_i_discharge_max_a", math.nan),
        ("batt_i_discharge_max_a", -5.0),
        ("batt_v", math.inf),
    ],
)
def test_nonsense_from_the_bms_never_allows_more(field: str, value: float) -> None:
    r = Rig().to_grid()
    r.inp["bms_lim"][field] = value
    out = r.step(5, load_w=450e3)
    assert 0.0 <= out["p_cmd_w"] <= 250e3 and math.isfinite(out["p_cmd_w"])
    if value != math.inf:
        assert out["p_cmd_w"] == 0.0


def test_soc_window_tapers_discharge() -> None:
    r = Rig().to_grid()
    r.inp["bms"]["soc"] = 0.055
    assert r.step(1, load_w=440e3)["p_max_w"] == pytest.approx(125e3)
    r.inp["bms"]["soc"] = 0.05
    out = r.step()
    assert out["p_max_w"] == 0.0 and out["p_cmd_w"] <= 0.0


def test_temperature_tapers_and_a_missing_one_counts_as_zero() -> None:
    r = Rig().to_grid()
    r.inp["bms_temp"]["batt_temp_max_c"] = 52.5
    assert r.step(1)["p_max_w"] == pytest.approx(125e3)
    r.inp["bms_temp"]["batt_temp_max_c"] = math.nan
    assert r.step(1)["p_max_w"] == 0.0


def test_a_lost_bms_ends_charging_and_discharging_after_three_seconds() -> None:
    r = Rig().to_grid()
    r.step(5, load_w=440e3)
    r.stale |= {"bms", "bms_lim"}
    assert r.step(299)["mode"] == GRID
    out = r.step(3)
    assert out["p_cmd_w"] == 0.0 and out["mode"] == FAULT and "bms_lost" in alarms(out)


def test_one_lost_meter_answer_holds_and_a_lost_meter_goes_to_zero_then_fault() -> None:
    r = Rig().to_grid()
    r.step(200)
    r.step(5, load_w=440e3)
    held = r.out["p_cmd_w"]
    r.stale.add("meter")
    assert r.step(3)["p_cmd_w"] == pytest.approx(held, abs=100)
    assert "meter_stale" in active(r.step(5))
    assert r.step(200)["p_cmd_w"] == 0.0
    assert r.step(320)["mode"] == FAULT
    assert "meter_lost" in alarms(r.out)


def test_a_frozen_meter_is_not_believed() -> None:
    r = Rig(frozen_s=2.0, load_w=400e3, jitter_hz=1e-6).to_grid()
    r.step(300)
    r.step(10, load_w=440e3)
    assert r.out["p_cmd_w"] == pytest.approx(40e3, rel=0.05)
    r.frozen = True
    assert r.step(199)["mode"] == GRID and "meter_stale" not in active(r.out)
    assert r.step(300)["p_cmd_w"] == 0.0
    assert r.step(300)["mode"] == FAULT
    assert "meter_frozen" in alarms(r.out)


def test_a_converter_that_ignores_commands_is_a_fault_that_resets_by_itself_only_when_it_was_clean() -> None:
    r = Rig().to_grid()
    r.step(100)
    r.follow = False
    for k in range(400):
        r.step(1, load_w=400e3 + 40e3 * (k > 5))
        if r.out["mode"] == FAULT:
            break
    assert r.out["mode"] == FAULT and alarms(r.out) == {"pcs_not_following"}
    assert r.step()["p_cmd_w"] == 0.0
    assert r.step(1000)["mode"] == FAULT  # GRID had stood for less than 10 s: a person decides
    r.follow = True
    r.inp["reset"] += 1
    assert r.step(600)["mode"] == GRID


def test_at_most_three_automatic_resets_an_hour() -> None:
    r = Rig().to_grid()
    modes = []
    for _ in range(5):
        r.step(1100)
        modes.append(r.out["mode"])
        r.inp["pcs"]["pcs_state"] = 6.0
        r.stale.add("pcs_state")
        real, r.running = r.running, False
        r.step(3)
        r.running = real
        r.step(1000)
    assert modes == [GRID, GRID, GRID, GRID, FAULT]


def test_outside_the_grid_window_trips_and_comes_back_after_the_delay() -> None:
    r = Rig(enter_service_delay_s=2.0).to_grid()
    r.inp["meter"]["f_hz"] = 47.0
    assert r.step(9)["mode"] == GRID
    out = r.step(3)
    assert out["mode"] == TRIP and out["p_cmd_w"] == 0.0 and alarms(out) == {"grid_outside"}
    r.inp["meter"]["f_hz"] = 50.0
    assert r.step(190)["mode"] == TRIP
    r.to_grid()


def test_droop_answers_beyond_the_deadband_and_ignores_the_ramp() -> None:
    r = Rig(load_w=300e3).to_grid()
    r.inp["meter"]["f_hz"] = 49.9
    assert r.step(100)["droop_w"] == 0.0
    r.inp["meter"]["f_hz"] = 49.5
    out = r.step(100)
    # 0.3 Hz beyond the deadband over 50 Hz * 5 % of 250 kW, 90 % after 0.5 s
    assert out["droop_w"] == pytest.approx(0.3 / (50 * 0.05) * 250e3, rel=0.02)
    assert "droop" in active(out)


def test_sigterm_ramps_to_zero_and_a_second_one_is_zero_now() -> None:
    r = Rig().to_grid()
    r.step(5, load_w=440e3)
    r.inp["stop"] = 1
    last = r.out["p_cmd_w"]
    while r.step()["p_cmd_w"] != 0.0:
        assert r.out["p_cmd_w"] <= last + 1.0
        last = r.out["p_cmd_w"]
        assert r.tick < 10_000
    assert r.out["mode"] == STOP and r.out["start_step"] == 5
    r2 = Rig().to_grid()
    r2.step(5, load_w=440e3)
    r2.inp["stop"] = 2
    assert r2.step()["p_cmd_w"] == 0.0


def test_billing_window_gives_back_what_was_used_too_much() -> None:
    r = Rig(billing_window_s=900.0, load_w=400e3)
    r.inp["billing_phase_s"] = 800.0
    r.to_grid()
    st = r.kernel.get_state()
    st["billing_wh"] = 445e3 * 801 / 3600 + 1e3  # 1 kWh too much so far
    st["billing_phase_s"] = 800.0
    r.kernel.set_state(st)
    r.load_w = 444e3
    out = r.step(1)
    assert out["target_w"] < 445e3 - 1e3 * 3600 / 100 + 500


def test_stale_or_unverified_devices_keep_the_gate_shut() -> None:
    r = Rig()
    r.inp["verified"] = 0
    assert r.step(100)["gate"] == 0
    r.inp["verified"] = -1
    out = r.step(10)
    assert out["gate"] == 0 and out["mode"] == STANDBY
    r.inp["verified"] = 1
    r.to_grid()
    r.inp["verified"] = -1
    out = r.step()
    assert out["mode"] == FAULT and "identity" in alarms(out)
    assert out["gate"] == 1 and out["p_cmd_w"] == 0.0  # 0 W leaves: hal alone judges whether the PCS is the right one


def test_a_meter_or_battery_that_has_to_be_proven_again_does_not_stop_the_commands() -> None:
    r = Rig().to_grid()
    r.step(100)
    r.step(5, load_w=440e3)
    r.inp["verified"] = 0
    r.stale.add("meter")
    assert r.step(400)["p_cmd_w"] == 0.0 and r.out["gate"] == 1
    assert abs(r.p_w) < 1.0  # the converter has heard it


def test_a_live_converter_is_not_kept_alive_by_a_start_that_waits() -> None:
    r = Rig()
    r.running = True
    r.p_w = r.target_w = 150e3
    r.inp["pcs_ctl"].update(wset_ena=1.0, wset_w=150e3)
    r.stale.add("bms")
    out = r.step(500)
    assert out["gate"] == 0 and out["rvrt_s"] == 0.0 and out["start_step"] == 0  # nothing renews its timer


def test_a_live_converter_goes_to_zero_where_the_battery_forbids_all_power() -> None:
    r = Rig()
    r.running = True
    r.p_w = r.target_w = 150e3
    r.inp["pcs_ctl"].update(wset_ena=1.0, wset_w=150e3)
    r.inp["bms_lim"].update(batt_i_charge_max_a=0.0, batt_i_discharge_max_a=0.0)
    out = r.step(200)
    assert out["start_step"] == 2 and out["gate"] == 1 and out["p_cmd_w"] == 0.0
    assert abs(r.p_w) < 1.0


def test_stop_beside_a_dead_grid_is_zero_now() -> None:
    r = Rig().to_grid()
    r.step(5, load_w=440e3)
    r.inp["stop"] = 1
    assert r.step(20)["p_cmd_w"] > 20e3
    r.inp["meter"]["f_hz"] = 46.0
    assert r.step(15)["p_cmd_w"] == 0.0 and "grid_outside" in alarms(r.out)


def test_the_enter_service_delay_counts_after_a_trip_even_for_a_running_converter() -> None:
    r = Rig(enter_service_delay_s=20.0, meter_lost_s=1.0)
    while r.step()["mode"] != GRID:
        assert r.tick < 3000
    r.step(1200)
    r.inp["meter"]["v1_v"] = 0.0
    assert r.step(20)["mode"] == TRIP
    r.stale.add("meter")
    assert r.step(200)["mode"] == FAULT
    r.stale.clear()
    r.inp["meter"]["v1_v"] = 230.0
    assert r.step(1800)["mode"] == STANDBY
    assert r.step(600)["mode"] == GRID


def test_no_upper_battery_voltage_is_no_limit() -> None:
    r = Rig(batt_v_max_v=math.inf, batt_v_min_v=0.0).to_grid()
    assert r.out["p_max_w"] > 200e3 and r.out["p_min_w"] < -200e3


def test_a_reversed_meter_trips_within_a_second_and_waits_for_a_person() -> None:
    r = Rig(load_w=300e3).to_grid()
    r.step(1200)
    r.meter_sign = -1.0
    r.step(60, load_w=302e3)
    assert r.out["mode"] == FAULT and "meter_sign" in alarms(r.out) and r.out["p_cmd_w"] == 0.0
    assert r.step(3000)["mode"] == FAULT


def test_no_load_looks_like_a_reversed_meter() -> None:
    import random

    rng = random.Random(5)
    r = Rig(load_w=300e3).to_grid()
    shapes = [
        lambda k: 120e3 * (k % 200 < 100),
        lambda k: 1500.0 * (k % 300),
        lambda k: rng.uniform(-60e3, 60e3),
        lambda k: 400e3 * (k > 50),
    ]
    for shape in shapes:
        for k in range(600):
            r.step(1, load_w=100e3 + shape(k))
            assert "meter_sign" not in alarms(r.out)


def test_contactors_that_open_under_way_are_a_fault() -> None:
    r = Rig().to_grid()
    r.inp["bms"]["bms_state"] = 1.0
    out = r.step()
    assert out["mode"] == FAULT and "bms_fault" in alarms(out) and out["p_cmd_w"] == 0.0


def test_one_answer_with_a_sentinel_is_no_permission_for_its_tick_and_no_fault() -> None:
    r = Rig().to_grid()
    r.step(5, load_w=430e3)
    r.inp["bms_lim"]["g"]["quality"] = 2
    assert r.step()["p_cmd_w"] == 0.0 and r.out["mode"] == GRID
    r.inp["bms_lim"]["g"]["quality"] = 1
    assert r.step(500)["p_cmd_w"] > 8e3  # the reference comes back at the ramp


def test_a_blackout_after_a_trip_comes_back_by_itself() -> None:
    r = Rig().to_grid()
    r.step(1200)
    r.inp["meter"]["v1_v"] = 0.0
    assert r.step(20)["mode"] == TRIP
    r.stale |= {"pcs", "pcs_ctl"}
    assert r.step(200)["mode"] == FAULT
    r.stale.clear()
    r.inp["meter"]["v1_v"] = 230.0
    assert r.step(1500)["mode"] == GRID
