"""The whole loop in virtual time: real frames, emulated devices, faults by schedule. Every figure here is exact for its seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from _core import image as im
from bench.plant.params import PARAMS
from bench.sim import Simulation, alarms, figures
from controller import build
from controller.virtual import LoadOptions


def sim(trace: str | float = "steps", faults: list[dict[str, Any]] | None = None, sets: tuple[str, ...] = (), **options: Any) -> Simulation:
    site = build.load_site(None, sets, lambda: list(PARAMS))
    return Simulation(site, LoadOptions(trace=trace, repeat=False, **options), faults=faults)


def active(out: dict[str, Any]) -> set[str]:
    return {name for bit, (name, _) in im.LIMIT_TEXT.items() if out["limits_active"] & bit}


def commands(s: Simulation) -> tuple[np.ndarray, np.ndarray]:
    t = s.truth()
    return np.asarray(t["cmd_t_end_ns"]), np.asarray(t["cmd_value_w"])


def test_measured_latency_is_the_planned_one() -> None:
    s = sim()
    s.run_s(150)
    made = figures(s, 1)
    assert made["measured"]["load_to_power_ms"]["events"] >= 1000
    for key in ("load_to_command_ms", "load_to_power_ms"):
        for q in ("p50", "p99"):
            assert made["measured"][key][q] == pytest.approx(made["plan"][key][q], rel=0.02)
        assert made["measured"][key]["max"] <= made["plan"][key]["max"] + 0.01
    assert made["measured"]["load_to_power_ms"]["p99"] < 20.0
    assert made["missed_ticks"] == 0


def test_one_seed_one_record_and_another_seed_another() -> None:
    digests = []
    for seed in (1, 1, 2):
        s = sim(seed=seed)
        s.run_s(20)
        s.close()
        digests.append(s.writer.sha256())
    assert digests[0] == digests[1] != digests[2]


def test_no_frame_breaks_the_silence_of_the_line() -> None:
    s = sim()
    s.run_s(60)
    truth = s.truth()
    at = list(truth["counter_names"]).index("silence_violations")
    assert [int(row[at]) for row in truth["counters"]] == [0, 0]


def test_charge_limit_zero_in_mid_flight_is_zero_in_the_frame_after_the_bms_has_said_so() -> None:
    s = sim(trace=300e3, sets=("bms.charge_limit_w=250000",))
    s.to_grid()
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, -50e3, 1 << 62, 1)
    s.run_s(30)
    assert s.out["p_cmd_w"] == pytest.approx(-50e3)
    t0 = s.cosim.now_ns
    s.plant.set("bms.charge_limit_w", 0.0)
    s.run_s(1)
    # the answer that carried the limit, and the command of the same tick's step
    raw, _ = s.image.drain(0)
    r = np.frombuffer(raw, im.record_dtype())
    r = r[r["inp"]["t_ns"] > t0]
    said = r[(r["inp"]["bms_lim"]["batt_i_charge_max_a"] == 0.0) | (r["inp"]["bms_lim"]["batt_p_charge_max_w"] == 0.0)][0]
    assert said["out"]["p_cmd_w"] == 0.0
    assert (said["inp"]["step_t_ns"] - t0) * 1e-9 < 0.25  # the BMS is read in turns
    end, value = commands(s)
    after = value[end > said["inp"]["step_t_ns"]]
    assert (after == 0.0).all() and len(after) > 50
    assert active(s.out) >= {"bms_charge", "hold"}


def test_a_dead_meter_takes_power_to_zero_then_fault_and_comes_back_by_itself() -> None:
    s = sim(trace=300e3, faults=[{"at_s": 40, "for_s": 12, "key": "meter.dead", "value": 1}])
    s.to_grid()
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, 50e3, 1 << 62, 1)
    s.run_until(s.began_ns + int(38e9))
    assert s.out["mode"] == im.MODE_GRID and s.out["p_cmd_w"] == pytest.approx(50e3)
    s.run_s(5)
    assert s.out["p_cmd_w"] == 0.0 and "meter_stale" in active(s.out)
    s.run_s(5)
    assert s.out["mode"] == im.MODE_FAULT and alarms(s.out["alarms"]) == ["meter_lost"]
    batt = np.asarray(s.truth()["batt_w"])
    assert batt[3900] == pytest.approx(50e3, rel=0.02) and np.abs(batt[4330:]).max() < 100.0  # what the plant did, not what was meant
    s.run_s(25)
    assert s.out["mode"] == im.MODE_GRID
    assert s.image.bus_stats(0)["timeouts"] < 200  # growing waits, not one timeout a tick for 12 s


def test_a_dead_bms_costs_the_meter_nothing() -> None:
    s = sim(trace=300e3, faults=[{"at_s": 40, "for_s": 100, "key": "bms.dead", "value": 1}])
    s.to_grid()
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, 50e3, 1 << 62, 1)
    s.run_until(s.began_ns + int(50e9))
    batt = np.asarray(s.truth()["batt_w"])
    assert batt[3900] == pytest.approx(50e3, rel=0.02) and np.abs(batt[4600:]).max() < 100.0
    raw, _ = s.image.drain(0)
    r = np.frombuffer(raw, im.record_dtype())
    assert (np.diff(r["inp"]["meter"]["g"]["count"].astype(int))[-900:] == 1).all()
    assert s.out["mode"] == im.MODE_FAULT and alarms(s.out["alarms"]) == ["bms_lost"]


@pytest.mark.parametrize("mode,alarm", [(1, "meter_lost"), (2, "meter_lost"), (3, "meter_frozen")])
def test_a_meter_that_says_nan_sentinels_or_always_the_same_is_not_believed(mode: int, alarm: str) -> None:
    s = sim(faults=[{"at_s": 20, "for_s": 500, "key": "meter.mode", "value": mode}])
    s.run_s(19)
    assert s.out["mode"] == im.MODE_GRID
    s.run_s(13)
    assert s.out["mode"] == im.MODE_FAULT and alarms(s.out["alarms"]) == [alarm] and s.out["p_cmd_w"] == 0.0
    assert np.isfinite(commands(s)[1]).all()


def test_a_pcs_that_ignores_commands_is_a_fault_that_stays() -> None:
    s = sim(faults=[{"at_s": 20, "for_s": 500, "key": "pcs.ignore_commands", "value": 1}])
    s.run_s(19)
    assert s.out["mode"] == im.MODE_GRID
    s.run_s(15)
    assert "pcs_not_following" in alarms(s.out["alarms"]) and s.out["p_cmd_w"] == 0.0


def test_a_dead_pcs_is_found_and_its_timer_takes_it_to_zero() -> None:
    s = sim(trace=300e3, faults=[{"at_s": 30, "for_s": 20, "key": "pcs.dead", "value": 1}])
    s.to_grid()
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, 40e3, 1 << 62, 1)
    s.run_until(s.began_ns + int(29.5e9))
    assert s.out["p_cmd_w"] == pytest.approx(40e3)
    s.run_s(3)
    assert s.out["mode"] == im.MODE_FAULT
    s.run_s(6)
    batt = np.asarray(s.truth()["batt_w"])
    assert batt[2900] == pytest.approx(40e3, rel=0.02) and abs(batt[-100:]).max() < 100.0
    s.run_s(30)
    assert s.out["mode"] == im.MODE_GRID


@pytest.mark.parametrize("key,value", [("pcs.dead", 1), ("b.drop_p", 1), ("b.bit_error_p", 1)])
@pytest.mark.parametrize("for_s", [0.03, 0.05, 0.2, 0.5, 0.7])
def test_a_pcs_that_does_not_listen_for_a_moment_finds_nothing_wound_up(key: str, value: float, for_s: float) -> None:
    """It does not get the commands, or its acknowledgements are lost: the load steps by 25 kW meanwhile, no more comes after."""
    s = sim(faults=[{"at_s": 30, "for_s": for_s, "key": key, "value": value}])
    s.run_until(s.began_ns + int(34e9))
    truth = s.truth()
    t, value_w = commands(s)
    swing = np.ptp(np.asarray(truth["load_w"]))
    calm = np.abs(value_w[(t > s.began_ns + 20e9) & (t < s.began_ns + 29e9)]).max()
    assert calm > 5e3 and np.abs(value_w).max() <= calm + swing + 2e3
    assert np.abs(np.asarray(truth["batt_w"])).max() <= calm + swing + 2e3
    assert s.out["mode"] == im.MODE_GRID, "followed again"
    late = np.abs(np.asarray(truth["grid_w"])[-100:] - np.asarray(truth["grid_w"])[2800:2900].mean())
    assert np.median(late) < 5e3, "and grid import is the line that it was"


BAD_LINES = [("a.bit_error_p", 2e-4), ("b.bit_error_p", 2e-4), ("a.drop_p", 1e-3), ("a.echo", 1), ("b.echo", 1), ("a.garbage_p", 0.01)]


@pytest.mark.parametrize("key,value", BAD_LINES)
def test_a_bad_line_costs_answers_and_never_a_wrong_command(key: str, value: float) -> None:
    if key not in PARAMS:
        pytest.fail(f"the plant has no {key}")
    s = sim(faults=[{"at_s": 12, "for_s": 20, "key": key, "value": value}])
    s.run_s(45)
    assert s.out["mode"] == im.MODE_GRID
    truth = s.truth()
    load = np.asarray(truth["load_w"])
    _, value_w = commands(s)
    assert np.abs(value_w).max() <= 2 * 25e3 + 5e3 + (load.max() - load.min())
    assert float(truth["over_s"][-1]) == 0.0
    assert np.abs(np.asarray(truth["grid_w"])[-500:] - np.median(truth["grid_w"][-500:])).max() < 60e3


def test_a_wrong_grid_trips_and_returns() -> None:
    s = sim(faults=[{"at_s": 20, "for_s": 3, "key": "grid.f_hz", "value": 46.0}])
    s.run_s(21)
    assert s.out["mode"] == im.MODE_TRIP and s.out["p_cmd_w"] == 0.0
    s.run_s(12)
    assert s.out["mode"] == im.MODE_GRID


def test_stop_ramps_to_zero_and_the_loop_leaves() -> None:
    s = sim(trace=300e3)
    s.to_grid()
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, 20e3, 1 << 62, 1)
    s.run_s(15)
    assert s.out["p_cmd_w"] == pytest.approx(20e3)
    s.image.request_stop(1)
    assert not s.run_s(70)
    grid = np.asarray(s.truth()["grid_w"])
    assert np.abs(np.diff(grid[-800:].reshape(-1, 100).mean(1))).max() <= 2100.0
    assert s.out["mode"] == im.MODE_STOP and s.out["p_cmd_w"] == 0.0
    assert s.out and s.image.latest()["inp"]["pcs"]["pcs_state"] == 7.0


def test_a_live_pcs_is_adopted_without_a_bump() -> None:
    s = sim(trace=300e3)
    s.to_grid()
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, 30e3, 1 << 62, 1)
    s.run_s(20)
    # the controller vanishes and another one comes: same plant, new engine and image
    before = len(s.truth()["batt_w"])
    again = Simulation.resume(s)
    again.to_grid()
    again.run_s(2)
    batt = np.asarray(again.truth()["batt_w"])[before:]
    assert np.abs(batt - 30e3).max() < 0.02 * 250e3
    assert (again.grid_ns - again.began_ns) * 1e-9 < 3.5


def test_the_supervisors_lease_ends_and_the_loop_goes_on() -> None:
    s = sim()
    s.to_grid()
    s.cosim.run_until(s.cosim.now_ns + 10_000_000_000)
    assert "lease" in active(s.out) and s.out["mode"] == im.MODE_GRID
    s.run_s(2)
    assert "lease" not in active(s.out)


@pytest.mark.parametrize(
    "args,words",
    [
        (["--set", "battery.sox=0.5"], ["battery.sox", "did you mean battery.soc"]),
        (["--trace", "absent.csv"], ["absent.csv"]),
        (["--set", "battery.soc=7"], ["battery.soc", "7"]),
    ],
)
def test_sim_says_what_is_wrong_in_a_line_and_ends_with_2(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from bench.sim import main

    assert main([*args, "--for", "1"]) == 2
    err = capsys.readouterr().err
    assert all(w in err for w in words) and "Problem(" not in err and "Traceback" not in err


def test_parked_stays_at_zero_in_standby_and_comes_back_when_released_without_a_supervisor() -> None:
    s = sim(trace=300e3)
    s.to_grid()
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, 20e3, 1 << 62, 1)
    s.run_s(15)
    assert s.out["p_cmd_w"] == pytest.approx(20e3)
    run = s.cosim.run_until  # nobody but control from here on
    s.image.request_park(True)
    assert run(s.cosim.now_ns + 25 * 10**9), "the loop does not leave"
    grid = np.asarray(s.truth()["grid_w"])
    assert np.abs(np.diff(grid[-2500:].reshape(-1, 100).mean(1))).max() <= 2100.0
    before = s.image.bus_stats(1)["transactions"]
    assert run(s.cosim.now_ns + 60 * 10**9)
    r = s.image.latest()
    assert (r["out"]["mode"], r["out"]["p_cmd_w"], r["out"]["op_request"], r["inp"]["pcs"]["pcs_state"]) == (im.MODE_STOP, 0.0, 0, 7.0)
    assert s.image.bus_stats(1)["transactions"] > before + 6000, "0 W is still said a hundred times a second"
    s.image.request_park(False)
    assert run(s.cosim.now_ns + 10 * 10**9)
    assert s.out["mode"] == im.MODE_GRID
    s.image.request_park(True)
    assert run(s.cosim.now_ns + 20 * 10**9)
    s.image.request_stop(1)
    assert not run(s.cosim.now_ns + 10**9), "parked already: it leaves at once"


def test_at_115200_the_converter_is_read_back_in_slots_that_reach_into_the_next_tick() -> None:
    s = sim(sets=("bus.a.baud=115200", "bus.b.baud=115200"))
    s.run_s(20)
    latest = s.image.latest()
    assert latest is not None and latest["out"]["mode"] == im.MODE_GRID
    step_ns = latest["inp"]["step_t_ns"]
    ages_s = {name: (step_ns - latest["inp"][name]["g"]["rx_ns"]) / 1e9 for name in ("pcs", "pcs_ctl", "pcs_life")}
    assert ages_s["pcs"] < 0.35 and ages_s["pcs_ctl"] < 1.1 and ages_s["pcs_life"] < 1.1
    assert latest["inp"]["pcs_ctl"]["wset_rvrt_rem_s"] > 3.0, "the reversion timer is renewed"
    assert s.image.bus_stats(1)["timeouts"] == 0 and s.image.engine_stats()["missed_ticks"] == 0
