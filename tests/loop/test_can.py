"""The whole loop with a battery, or battery and converter, on CAN: virtual time, and once in real time over slcan on a PTY."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _core import image as im
from bench.plant.params import PARAMS
from bench.sim import T0_NS, Simulation, alarms, figures
from controller import build
from controller.site import BUILTIN
from controller.virtual import LoadOptions

SITE = Path(__file__).with_name("can_site.toml")
S = 1_000_000_000


@pytest.fixture
def pcs_site(tmp_path: Path) -> Path:
    """The same with the converter on the CAN bus, and no Modbus bus of its own."""
    text = SITE.read_text().replace('[[bus]]\nname = "b"\nport = "virtual"\n', "")
    text = text.replace('role = "pcs"\nbus = "b"\nunit = 1', 'role = "pcs"\nbus = "c"\nunit = 1\nprofile = "generic_can_pcs"')
    file = tmp_path / "site.toml"
    file.write_text(text)
    return file


def sim(path: Path, trace: str | float = 300e3, sets: tuple[str, ...] = (), faults: list[dict[str, Any]] | None = None,
        seed: int = 1) -> Simulation:  # fmt: skip
    site = build.load_site(path, sets, lambda: list(PARAMS))
    return Simulation(site, LoadOptions(trace=trace, repeat=False, seed=seed), faults=faults)


def hold(s: Simulation, watts: float) -> None:
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, watts, 1 << 62, 1)


def batt(s: Simulation) -> np.ndarray:
    """10 ms means of what the battery really gave, from the start of the plant."""
    return np.asarray(s.truth()["batt_w"])


def test_a_battery_on_can_carries_the_steps_as_one_on_modbus() -> None:
    s = sim(SITE, "steps")
    s.run_s(150)
    made = figures(s, 1)
    assert made["measured"]["load_to_power_ms"]["events"] >= 1000 and made["missed_ticks"] == 0
    for q in ("p50", "p99"):
        assert made["measured"]["load_to_power_ms"][q] == pytest.approx(made["plan"]["load_to_power_ms"][q], rel=0.02)
    assert made["battery"]["over_limit_s"] == 0.0
    assert made["buses"]["c"]["transactions"] == pytest.approx(150 * 6, abs=6)  # five frames for us and our own sign of life
    assert s.out["soc"] == pytest.approx(float(s.truth()["soc"][-1]), abs=0.006)  # a byte of per cent


def test_three_seconds_without_0x351_end_charging_and_discharging() -> None:
    s = sim(SITE, faults=[{"at_s": 40.0, "for_s": 15, "key": "bms.can_mute", "value": 1}])
    s.to_grid()
    hold(s, 30e3)
    s.run_until(T0_NS + 60 * S)
    p = batt(s)
    # the last burst at 39.1 s; 3 s later, in that tick's step, power is 0
    assert p[4205] == pytest.approx(30e3, rel=0.02) and np.abs(p[4215:5500]).max() < 100.0
    raw, _ = s.image.drain(0)
    r = np.frombuffer(raw, im.record_dtype())
    first = r[(r["inp"]["t_ns"] > T0_NS + 40 * S) & (r["out"]["p_cmd_w"] == 0.0)][0]
    assert (first["inp"]["t_ns"] - T0_NS) / 1e9 == pytest.approx(42.11, abs=0.011)
    assert first["inp"]["bms_lim"]["g"]["quality"] == im.Q_BAD and first["out"]["mode"] == im.MODE_GRID
    faults = r[r["out"]["mode"] == im.MODE_FAULT]
    assert (faults[0]["inp"]["t_ns"] - T0_NS) / 1e9 == pytest.approx(44.11, abs=0.02)  # control.bms_lost_s
    assert alarms(int(faults[0]["out"]["alarms"])) == ["bms_lost"]
    s.run_s(30)
    assert s.out["mode"] == im.MODE_GRID  # by itself, once the frames have come back


def test_a_dead_battery_is_a_fault_and_costs_the_others_nothing() -> None:
    s = sim(SITE, faults=[{"at_s": 20, "for_s": 100, "key": "bms.dead", "value": 1}])
    s.to_grid()
    s.run_until(s.began_ns + 30 * S)
    assert s.out["mode"] == im.MODE_FAULT and alarms(s.out["alarms"]) == ["bms_lost"]
    assert s.image.engine_stats()["missed_ticks"] == 0 and s.image.bus_stats(0)["timeouts"] == 0


def test_a_limit_of_zero_on_can_is_zero_within_its_period() -> None:
    s = sim(SITE, sets=("bms.charge_limit_w=100000",))
    s.to_grid()
    hold(s, -20e3)
    s.run_until(T0_NS + 20 * S)
    assert s.out["p_cmd_w"] == pytest.approx(-20e3)
    s.plant.set("bms.charge_limit_w", 0.0)
    s.run_until(T0_NS + int(20.1e9) + 20_000_000)  # the burst after
    assert s.out["p_cmd_w"] == 0.0


def test_open_contactors_are_seen_in_the_enable_flags() -> None:
    s = sim(SITE, faults=[{"at_s": 20, "for_s": 5, "key": "bms.contactor_open", "value": 1}])
    s.to_grid()
    hold(s, 20e3)
    s.run_until(s.began_ns + 22 * S)
    # the converter has lost its DC and says so at once; the battery's flags follow within their second
    assert s.out["mode"] == im.MODE_FAULT and s.image.latest()["inp"]["bms"]["bms_state"] == 4.0
    s.run_s(30)
    assert s.out["mode"] == im.MODE_GRID


BAD_LINES = [("bit_error_p", 0.05), ("drop_p", 0.02), ("garbage_p", 0.05), ("truncate_p", 0.05), ("chunk", 1)]


@pytest.mark.parametrize("key,value", BAD_LINES)
def test_a_bad_can_line_costs_frames_and_never_a_wrong_command(pcs_site: Path, key: str, value: float) -> None:
    key = f"b.{key}"  # the second bus is the plant's port b
    s = sim(pcs_site, "steps", faults=[{"at_s": 12, "for_s": 20, "key": key, "value": value}])
    s.run_s(45)
    assert s.out["mode"] == im.MODE_GRID
    t = s.truth()
    load = np.asarray(t["load_w"])
    assert np.abs(np.asarray(t["cmd_value_w"])).max() <= 2 * 10e3 + 5e3 + (load.max() - load.min())
    assert float(t["over_s"][-1]) == 0.0
    if key == "b.bit_error_p":
        assert s.plant.counters()["b"]["bad_crc"] > 50  # and each was sent again


def test_a_converter_on_can_answers_as_planned(pcs_site: Path) -> None:
    s = sim(pcs_site, "steps")
    s.run_s(150)
    made = figures(s, 1)
    for key in ("load_to_command_ms", "load_to_power_ms"):
        for q in ("p50", "p99"):
            assert made["measured"][key][q] == pytest.approx(made["plan"][key][q], rel=0.02)
    assert made["measured"]["load_to_power_ms"]["p99"] < 20.0 and made["missed_ticks"] == 0
    worst = s.plan.to_power.max_ms
    assert made["measured"]["load_to_power_ms"]["max"] <= worst + 0.01  # arbitration included
    assert s.image.bus_stats(1)["crc_errors"] == 0 and s.plant.counters()["b"]["exceptions"] == 0


def test_a_converter_that_falls_silent_is_lost_and_goes_to_zero_by_its_own_time_out(pcs_site: Path) -> None:
    s = sim(pcs_site, faults=[{"at_s": 30, "for_s": 10, "key": "pcs.dead", "value": 1}])
    s.to_grid()
    hold(s, 30e3)
    s.run_until(s.began_ns + 33 * S)
    assert s.out["mode"] == im.MODE_FAULT and "pcs_lost" in alarms(s.out["alarms"])
    p = batt(s)
    # 0.1 s after the last command it heard; then its own ramp of its rating a second
    assert p[2990] == pytest.approx(30e3, rel=0.02) and p[3008] == pytest.approx(30e3, rel=0.02) and abs(p[3045]) < 100.0
    s.run_s(30)
    assert s.out["mode"] == im.MODE_GRID


def test_a_live_converter_on_can_is_adopted_without_a_bump(pcs_site: Path) -> None:
    s = sim(pcs_site, sets=("pcs.can_timeout_s=5",))
    s.to_grid()
    hold(s, 30e3)
    s.run_s(20)
    before = len(batt(s))
    again = Simulation.resume(s)
    again.to_grid()
    again.run_s(0.5)  # then the reference, at its ramp
    assert np.abs(batt(again)[before:] - 30e3).max() < 0.02 * 100e3


def test_stop_ramps_to_zero_and_takes_operate_back(pcs_site: Path) -> None:
    s = sim(pcs_site)
    s.to_grid()
    hold(s, 10e3)
    s.run_s(15)
    s.image.request_stop(1)
    assert not s.run_s(70)
    assert s.out["mode"] == im.MODE_STOP and s.out["p_cmd_w"] == 0.0
    assert s.image.latest()["inp"]["pcs"]["pcs_state"] == 7.0


def test_one_seed_one_record(pcs_site: Path) -> None:
    digests = []
    for seed in (1, 1, 2):
        s = sim(pcs_site, "steps", seed=seed)
        s.run_s(20)
        s.close()
        digests.append(s.writer.sha256())
    assert digests[0] == digests[1] != digests[2]


def test_what_the_virtual_cabinet_does_not_speak_is_told(tmp_path: Path) -> None:
    from controller.problems import SiteError

    file = tmp_path / "site.toml"
    file.write_text(SITE.read_text().replace("pylontech_lv", "victron_lv"))
    with pytest.raises(SiteError, match="does not speak that on CAN"):
        sim(file)


@pytest.fixture
def foxbms_site(tmp_path: Path) -> Path:
    """The built-in cabinet with its battery on CAN: foxBMS 2, 800 V."""
    text = BUILTIN.read_text().replace('bus = "a"\nunit = 10', 'bus = "c"\nunit = 1\nprofile = "foxbms_2"')
    file = tmp_path / "site.toml"
    file.write_text(text + '\n[[bus]]\nname = "c"\nport = "virtual-can"\n')
    return file


def test_the_builtin_cabinet_with_a_foxbms_battery(foxbms_site: Path) -> None:
    s = sim(foxbms_site, "steps")
    s.run_s(150)
    made = figures(s, 1)
    assert made["measured"]["load_to_power_ms"]["events"] >= 1000 and made["missed_ticks"] == 0
    assert made["measured"]["load_to_power_ms"]["p99"] == pytest.approx(made["plan"]["load_to_power_ms"]["p99"], rel=0.02)
    assert made["battery"]["over_limit_s"] == 0.0
    now, i = s.plant.now(), s.image.latest()["inp"]
    assert i["bms_lim"]["batt_v"] == pytest.approx(now["v_v"], abs=6.0) and i["bms_temp"]["batt_temp_max_c"] == 25.0
    assert i["bms"]["soc"] == pytest.approx(now["soc"], abs=0.002)
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, -20e3, 1 << 62, 1)
    s.run_s(20)
    i = s.image.latest()["inp"]
    assert i["bms_lim"]["batt_i_a"] == pytest.approx(s.plant.now()["i_a"], abs=0.5) and i["bms_lim"]["batt_i_a"] < -20.0  # discharge +
    assert i["bms_lim"]["batt_p_discharge_max_w"] == pytest.approx(250e3, rel=0.01)


def test_a_foxbms_whose_limits_stop_has_half_a_second(foxbms_site: Path) -> None:
    s = sim(foxbms_site, faults=[{"at_s": 20.05, "for_s": 3, "key": "bms.can_mute", "value": 1}])
    s.to_grid()
    hold(s, 20e3)
    s.run_until(T0_NS + 22 * S)
    p = batt(s)
    assert p[2045] == pytest.approx(20e3, rel=0.02) and np.abs(p[2055:2200]).max() < 100.0  # 0.5 s after the last, at 20.0 s
    assert s.out["mode"] == im.MODE_GRID
    s.run_s(15)
    assert s.out["p_cmd_w"] == pytest.approx(20e3)


@pytest.mark.realtime
def test_a_real_run_over_slcan_on_a_pty(pcs_site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "controller", "run", str(pcs_site), "--trace", "steps", "--for", "15", "--out", str(out)]
    done = subprocess.run([*command, "--no-report", "--quiet"], capture_output=True, text=True, timeout=90, cwd=SITE.parents[2])
    assert done.returncode == 0, done.stderr
    made = json.loads((out / "summary.json").read_text())
    modes = [e["text"] for e in made["events"] if e["kind"] == "mode"]
    assert "STANDBY -> GRID" in modes and not any("FAULT" in m for m in modes), modes
    assert made["buses"]["c"]["transactions"] > 1500 and made["buses"]["c"]["crc_errors"] == 0
    assert made["measured"]["load_to_power_ms"]["events"] > 10
