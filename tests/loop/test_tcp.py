"""The whole loop over TCP in virtual time: the plan's figures, and what a network does to it. Every figure is exact for its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _core import image as im
from bench.plant.params import PARAMS
from bench.sim import Simulation, alarms, figures
from controller import build
from controller import site as sites
from controller.virtual import LoadOptions
from tests.loop.test_virtual import commands

METER = ("bus.a.port=virtual-tcp",)  # meter and BMS
BOTH = (*METER, "bus.b.port=virtual-tcp")


def sim(sets: tuple[str, ...] = BOTH, trace: str | float = 300e3, faults: list[dict[str, Any]] | None = None, seed: int = 1) -> Simulation:
    site = build.load_site(None, sets, lambda: list(PARAMS))
    return Simulation(site, LoadOptions(trace=trace, repeat=False, seed=seed), faults=faults)


def holding(key: str, value: float, for_s: float) -> Simulation:
    """A site that holds 40 kW, and a fault from the 30th second on; run to 29.9 s."""
    s = sim(faults=[{"at_s": 30, "for_s": for_s, "key": key, "value": value}])
    s.to_grid()
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, 40e3, 1 << 62, 1)
    s.run_until(s.began_ns + int(29.9e9))
    assert s.out["p_cmd_w"] == pytest.approx(40e3)
    return s


def battery(s: Simulation, from_s: float, to_s: float) -> np.ndarray:
    return np.asarray(s.truth()["batt_w"])[int(100 * from_s) : int(100 * to_s)]


@pytest.mark.parametrize("sets", [METER, BOTH, (*BOTH, "bus.a.latency_ms=3"), ("bus.b.port=virtual-tcp",)], ids=["a", "a,b", "3 ms", "b"])
def test_measured_latency_is_the_planned_one(sets: tuple[str, ...]) -> None:
    s = sim(sets, "steps")
    s.run_s(150)
    made = figures(s, 1)
    assert made["measured"]["load_to_power_ms"]["events"] >= 1000
    for key in ("load_to_command_ms", "load_to_power_ms"):
        for q in ("p50", "p99"):
            assert made["measured"][key][q] == pytest.approx(made["plan"][key][q], rel=0.02)
        assert made["measured"][key]["max"] <= made["plan"][key]["max"] + 0.01
    assert made["missed_ticks"] == 0 and s.out["mode"] == im.MODE_GRID
    assert all(row["timeouts"] == row["late"] == 0 for row in made["buses"].values())


def test_one_seed_one_record_and_another_seed_another() -> None:
    digests = []
    for seed in (1, 1, 2):
        s = sim(trace="steps", seed=seed, faults=[{"at_s": 8, "for_s": 2, "key": "a.jitter_s", "value": 0.003},
                                                  {"at_s": 12, "for_s": 1, "key": "b.cut", "value": 1}])  # fmt: skip
        s.run_s(20)
        s.close()
        digests.append(s.writer.sha256())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("key", ["b.cut", "b.drop_p"])
def test_a_pcs_that_is_away_for_a_moment_keeps_its_power(key: str) -> None:
    """Closed, or silent without a word (no RST): another connection within 0.3 s, every device proven anew, no mode lost."""
    s = holding(key, 1, 0.2)
    s.run_s(10)
    assert s.out["mode"] == im.MODE_GRID and s.image.bus_stats(1)["reopened"] >= 1
    assert s.image.engine_stats()["missed_ticks"] == 0
    assert np.abs(battery(s, 30, 39) - 40e3).max() < 0.02 * 40e3


@pytest.mark.parametrize("key", ["b.cut", "b.drop_p"])
def test_a_pcs_that_stays_away_is_a_fault_and_its_timer_takes_it_to_zero(key: str) -> None:
    s = holding(key, 1, 12)
    s.run_s(2)
    assert s.out["mode"] == im.MODE_FAULT and alarms(s.out["alarms"]) == ["pcs_lost"]
    s.run_s(8)
    assert np.abs(battery(s, 36.5, 39)).max() < 100.0
    s.run_s(20)
    assert s.out["mode"] == im.MODE_GRID and s.image.engine_stats()["missed_ticks"] == 0
    assert s.image.bus_stats(1)["timeouts"] < 40, "growing waits, not one timeout a tick for 12 s"


@pytest.mark.parametrize("key", ["a.cut", "a.drop_p"])
def test_a_meter_and_a_bms_that_are_away_take_power_to_zero_then_fault_and_come_back(key: str) -> None:
    s = holding(key, 1, 12)
    s.run_s(2.2)
    assert s.out["p_cmd_w"] == 0.0 and np.abs(battery(s, 31.9, 32.0)).max() < 100.0
    s.run_s(6)
    assert s.out["mode"] == im.MODE_FAULT and set(alarms(s.out["alarms"])) == {"meter_lost", "bms_lost"}
    s.run_s(22)
    assert s.out["mode"] == im.MODE_GRID and s.image.engine_stats()["missed_ticks"] == 0


def test_nothing_that_waited_for_a_silent_pcs_reaches_it_later() -> None:
    s = holding("b.drop_p", 1, 3)
    t0 = s.cosim.now_ns
    s.run_s(0.6)
    s.image.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, -40e3, 1 << 62, 2)
    s.run_s(40)
    end, value = commands(s)
    heard = value[end > t0 + int(3.2e9)]
    assert len(heard) > 1000 and not (heard > 100.0).any(), "40 kW is old by then"


@pytest.mark.parametrize(
    ("key", "value"),
    [("a.garbage_p", 0.01), ("a.truncate_p", 0.01), ("a.bit_error_p", 0.01), ("a.drop_p", 0.05), ("meter.corrupt_p", 0.05),
     ("a.jitter_s", 0.02), ("a.chunk", 1), ("b.jitter_s", 0.02), ("b.chunk", 1), ("b.latency_s", 0.05)],
)  # fmt: skip
def test_a_bad_network_costs_answers_and_never_a_wrong_command(key: str, value: float) -> None:
    s = sim(trace="steps", faults=[{"at_s": 17, "for_s": 20, "key": key, "value": value}])
    s.run_s(60)
    assert s.out["mode"] == im.MODE_GRID and s.image.engine_stats()["missed_ticks"] == 0
    truth = s.truth()
    load = np.asarray(truth["load_w"])
    _, value_w = commands(s)
    assert np.abs(value_w).max() <= 2 * 25e3 + 5e3 + (load.max() - load.min())
    assert float(truth["over_s"][-1]) == 0.0


@pytest.mark.parametrize(("key", "value"), [("b.garbage_p", 0.01), ("b.truncate_p", 0.01), ("b.bit_error_p", 0.01)])
def test_a_stream_out_of_step_costs_the_connection_and_never_a_wrong_command(key: str, value: float) -> None:
    s = holding(key, value, 20)
    t0 = s.cosim.now_ns
    s.run_s(50)
    assert s.out["mode"] == im.MODE_GRID and s.image.engine_stats()["missed_ticks"] == 0
    assert 3 < s.image.bus_stats(1)["reopened"] < 30
    end, value_w = commands(s)
    assert value_w[end > t0].min() >= 0.0 and value_w.max() <= 40e3
    assert s.out["p_cmd_w"] == pytest.approx(40e3)


def test_a_restarted_control_finds_its_devices_over_new_connections() -> None:
    s = holding("a.cut", 0, 1)
    before = len(s.truth()["batt_w"])
    again = Simulation.resume(s)
    again.to_grid()
    again.run_s(2)
    assert np.abs(np.asarray(again.truth()["batt_w"])[before:] - 40e3).max() < 0.02 * 250e3


def test_a_slow_bms_on_a_connection_of_its_own(tmp_path: Path) -> None:
    """35 ms there and back: read in every fourth tick, and the loop is as fast as without it."""
    text = sites.BUILTIN.read_text().replace('bus = "a"\nunit = 10', 'bus = "c"\nunit = 10')
    text += '\n[[bus]]\nname = "c"\nport = "virtual-tcp"\nlatency_ms = 35.0\n'
    (tmp_path / "site.toml").write_text(text)
    site = build.load_site(tmp_path / "site.toml", [], lambda: list(PARAMS))
    s = Simulation(site, LoadOptions(trace="steps", repeat=False), faults=[{"at_s": 60, "for_s": 60, "key": "c.jitter_s", "value": 0.001}])
    s.run_s(150)
    made = figures(s, 1)
    assert s.out["mode"] == im.MODE_GRID and made["plan"]["load_to_power_ms"]["p99"] == pytest.approx(18.354, abs=1e-3)
    assert made["measured"]["load_to_power_ms"]["p99"] == pytest.approx(18.354, rel=0.02)
    assert made["buses"]["c"]["timeouts"] == made["buses"]["c"]["late"] == 0 and made["missed_ticks"] == 0
    assert made["buses"]["c"]["transactions"] == pytest.approx(150 * 25, rel=0.02)
