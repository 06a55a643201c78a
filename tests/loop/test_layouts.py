"""Six layouts of the buses in virtual time: the plan's figures, exactly. bench/perf/layouts.py has them, and the same in real time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from _core import image as im
from bench.perf.layouts import FAST_PAIR, LAYOUTS, REFUSED, TICK_NS, Layout, near, planned_per_s, refused, virtual
from bench.sim import Simulation
from controller.virtual import LoadOptions

EVENTS = 1000


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_what_the_plan_says_is_what_the_cabinet_sees(layout: Layout) -> None:
    plan, seen = virtual(layout)
    assert seen.command_end_ms == pytest.approx(plan.command_end_ms, abs=0.05)  # a CAN frame is planned with all stuff bits it can have
    assert seen.period_ms == pytest.approx(10.0, abs=1e-3)
    assert seen.per_s == pytest.approx(planned_per_s(plan), rel=0.002)
    assert seen.latency["events"] >= EVENTS and seen.missed_ticks == 0
    for q in ("p50", "p99"):
        assert seen.latency[q] == pytest.approx(plan.to_power.figures()[q], rel=0.02)
    assert seen.latency["max"] <= plan.to_power.max_ms + 0.01
    assert layout is not FAST_PAIR or seen.latency["p99"] <= 18.0


def test_one_rtu_bus_at_115200_fits_no_tick() -> None:
    row = refused()
    assert row.ok and "12.920 ms" in row.note and REFUSED.name in row.name


def test_a_bar_has_two_sides() -> None:
    assert [near("x", v, 10.0, 0.05).ok for v in (9.4, 9.6, 10.4, 10.6, None)] == [False, True, True, False, None]


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=lambda layout: layout.name)
def test_where_slots_are_rare_a_site_starts_at_once_and_reads_everything(layout: Layout, tmp_path: Path) -> None:
    """The readback has its turn in STANDBY too, and a slot that begins after its tick is not forgotten."""
    s = Simulation(layout.site(tmp_path), LoadOptions(trace=300e3, repeat=False))
    s.to_grid()
    assert s.cosim.now_ns - s.began_ns < 12e9
    assert not any(e.kind == "alarm" for e in s.supervisor.events)
    s.run_s(30)
    r = np.frombuffer(s.image.drain(max(0, int(s.image.head) - 2900))[0], im.record_dtype())
    assert set(r["out"]["mode"].tolist()) == {im.MODE_GRID}
    t_ns = r["inp"]["t_ns"]
    pcs_s = 0.04 if layout is LAYOUTS[0] else 0.41  # FC23: with the command, but in ticks of a slot
    oldest = {"meter": 0.02, "pcs": pcs_s} | dict.fromkeys(("pcs_ctl", "pcs_life", "bms", "bms_lim", "bms_temp"), 1.02)
    for group, oldest_s in oldest.items():
        assert (t_ns - r["inp"][group]["g"]["rx_ns"]).max() < oldest_s * 1e9, group


@pytest.mark.parametrize("since_s", [0.0, 30.0])
def test_a_pcs_without_fc23_is_commanded_and_read_back_as_before(tmp_path: Path, since_s: float) -> None:
    """Refused at the first try, or one day after it was used: exception 1 costs no mode, no alarm and no command."""
    faults = [{"at_s": since_s, "for_s": None, "key": "pcs.fc23", "value": 0}]
    s = Simulation(LAYOUTS[0].site(tmp_path), LoadOptions(trace="steps", repeat=False), faults=faults)
    s.to_grid()
    s.run_until(s.began_ns + int(60e9))
    r = np.frombuffer(s.image.drain(max(0, int(s.image.head) - 4500))[0], im.record_dtype())
    assert set(r["out"]["mode"].tolist()) == {im.MODE_GRID} and not r["inp"]["pcs_deaf"].any()
    assert not any(e.kind == "alarm" for e in s.supervisor.events)
    assert s.image.bus_stats(0)["exceptions"] == 1 and s.image.device_stats(2)["lost_count"] == 0
    age_ms = (r["inp"]["t_ns"] - r["inp"]["pcs"]["g"]["rx_ns"])[-2500:] / 1e6
    assert 200.0 < age_ms.max() < 410.0, "five readbacks a second, in slots of their own"
    assert len(r) == 4500 and np.diff(s.truth()["cmd_t_end_ns"])[-2500:].max() < 13e6


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=lambda layout: layout.name)
def test_where_slots_are_rare_a_lost_meter_answer_costs_two_ticks(layout: Layout, tmp_path: Path) -> None:
    """One that is not answered, one for the proof that no old answer is still to come, though slots stand 80 or 200 ms apart."""
    faults = [{"at_s": 30 + 0.33 * k, "for_s": 0.003, "key": "a.drop_p", "value": 1} for k in range(30)]
    s = Simulation(layout.site(tmp_path), LoadOptions(trace=300e3, repeat=False), faults=faults)
    s.to_grid()
    s.run_until(s.began_ns + int(42e9))
    assert s.image.bus_stats(0)["timeouts"] >= 25
    r = np.frombuffer(s.image.drain(max(0, int(s.image.head) - 1300))[0], im.record_dtype())
    assert (r["inp"]["t_ns"] - r["inp"]["meter"]["g"]["rx_ns"]).max() < 4 * TICK_NS  # and one more where a slot lies beside it
    assert set(r["out"]["mode"].tolist()) == {im.MODE_GRID}
    assert s.image.engine_stats()["missed_ticks"] == 0


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=lambda layout: layout.name)
def test_no_read_starves_while_answers_are_lost(layout: Layout, tmp_path: Path) -> None:
    """One answer in twenty lost on every bus, for 45 s: no group is older than a few of its turns, and GRID is held."""
    faults = [{"at_s": 15, "for_s": None, "key": f"{port}.drop_p", "value": 0.05} for port in "ab"]
    s = Simulation(layout.site(tmp_path), LoadOptions(trace=300e3, repeat=False), faults=faults)
    s.to_grid()
    s.run_until(s.began_ns + int(60e9))
    r = np.frombuffer(s.image.drain(max(0, int(s.image.head) - 4400))[0], im.record_dtype())
    assert set(r["out"]["mode"].tolist()) == {im.MODE_GRID}
    for group, oldest_s in {"meter": 0.3, "pcs": 0.6, "pcs_ctl": 4.0, "pcs_life": 4.0, "bms": 4.0, "bms_lim": 4.0, "bms_temp": 4.1}.items():
        assert (r["inp"]["t_ns"] - r["inp"][group]["g"]["rx_ns"]).max() < oldest_s * 1e9, group


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=lambda layout: layout.name)
def test_where_slots_are_rare_a_pcs_that_is_away_for_a_moment_is_proven_again_in_time(layout: Layout, tmp_path: Path) -> None:
    """Three lost commands make it a lost device; its identity is read again in ticks that have no command to send."""
    faults = [{"at_s": 30 + 5 * k, "for_s": 0.05, "key": "pcs.dead", "value": 1} for k in range(4)]
    s = Simulation(layout.site(tmp_path), LoadOptions(trace=300e3, repeat=False), faults=faults)
    s.to_grid()
    s.run_until(s.began_ns + int(52e9))
    r = np.frombuffer(s.image.drain(max(0, int(s.image.head) - 2300))[0], im.record_dtype())
    assert s.image.device_stats(2)["lost_count"] == 4
    assert set(r["out"]["mode"].tolist()) == {im.MODE_GRID}
    assert (r["inp"]["t_ns"] - r["inp"]["meter"]["g"]["rx_ns"]).max() < 4 * TICK_NS
    away = (r["inp"]["t_ns"] - r["inp"]["pcs"]["g"]["rx_ns"]).max() / 1e9
    assert away < 0.6, "of control.pcs_lost_s, 1 s"


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=lambda layout: layout.name)
def test_where_slots_are_rare_answers_that_come_a_little_late_cost_no_slot(layout: Layout, tmp_path: Path) -> None:
    """Up to 0.4 ms each, as a machine under load makes them: the site starts, and the readback keeps its turns."""
    faults = [{"at_s": 0, "for_s": None, "key": f"{port}.jitter_s", "value": 0.0004} for port in "ab"]
    s = Simulation(layout.site(tmp_path), LoadOptions(trace=300e3, repeat=False), faults=faults)
    s.to_grid()
    s.run_until(s.began_ns + int(40e9))
    r = np.frombuffer(s.image.drain(max(0, int(s.image.head) - 2500))[0], im.record_dtype())
    assert set(r["out"]["mode"].tolist()) == {im.MODE_GRID}
    assert (r["inp"]["t_ns"] - r["inp"]["pcs"]["g"]["rx_ns"]).max() < 0.41e9
    assert all(port.slots_missed == 0 for port in s.ports) and s.image.bus_stats(0)["timeouts"] == 0
