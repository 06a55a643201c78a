"""One second of the supervisor after another, on a clock that the test moves."""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from _core import image as core
from _core.faults import BY_ID
from controller import site as sites
from controller.clock import ManualClock
from controller.records import RecordWriter, Segment, read
from controller.site import ScheduleRow, Site
from controller.store import Store
from controller.supervisor import Supervisor
from tests.controller.fakes import FakeImage

SECOND = 1_000_000_000
RAMP, IMPORT = 1 << 0, 1 << 1


class Bench:
    """Supervisor, image and clock; `second()` is one step with its 100 ticks."""

    def __init__(self, site: Site | None = None, wall_s: float = 1_700_000_000.0, **parts: object) -> None:
        self.image, self.clock = FakeImage(), ManualClock(wall_at_0_s=wall_s)
        self.site = site or sites.load(None)
        self.sup = Supervisor(self.image, self.site, self.clock, **parts)  # type: ignore[arg-type]

    def second(self, n: int = 100, **out: float) -> None:
        if n:
            self.image.tick(n, **out)
        self.clock.t_ns += SECOND
        self.sup.step(self.clock.t_ns)

    def texts(self, kind: str) -> list[str]:
        return [e.text for e in self.sup.events if e.kind == kind]


def test_limits_are_renewed_every_second_with_a_lease_of_three() -> None:
    bench = Bench()
    for _ in range(3):
        bench.second()
    leases = [w["lease_until_ns"] for w in bench.image.limits_written]
    assert leases == [4 * SECOND, 5 * SECOND, 6 * SECOND]
    assert bench.image.limits_written[0]["import_limit_w"] == 445e3
    assert bench.image.limits_written[0]["p_charge_max_w"] == 250e3


def test_leases_come_first_even_when_the_rest_fails() -> None:
    bench = Bench()
    bench.image.drain = None  # type: ignore[assignment,method-assign]
    with contextlib.suppress(TypeError):
        bench.second()
    assert len(bench.image.limits_written) == 1


def test_base_schedule_into_its_slot_and_out_again() -> None:
    site = sites.load(None)
    site.schedule = [ScheduleRow(10, 12, tuple(range(7)), 20e3)]
    bench = Bench(site, wall_s=7 * 86400.0 + 8)
    for _ in range(5):
        bench.second()
    assert [(s[0], s[1], s[2], s[4]) for s in bench.image.setpoints] == [
        (1, 2, 20e3, 1),
        (1, 2, 20e3, 1),
        (1, 0, 0.0, 0),
    ]
    assert bench.image.setpoints[0][3] == 2 * SECOND + 3 * SECOND
    assert len(bench.texts("schedule")) == 2


def test_events_of_modes_limits_alarms_and_slots() -> None:
    bench = Bench()
    bench.second(mode=1, start_step=2)
    bench.image.tick(50, mode=1, start_step=5)
    bench.second(50, mode=2)
    bench.second(limits_active=RAMP)
    bench.second(limits_active=RAMP, slot=0, slot_id=7)
    bench.second(alarms=1)
    for _ in range(12):
        bench.second()
    assert bench.texts("mode") == ["STANDBY", "STANDBY -> GRID"]
    assert bench.texts("limit")[0].startswith("ramp on") and bench.texts("limit")[1] == "ramp off"
    assert bench.texts("slot") == ["setpoint: operator, command 7", "setpoint: none in force"]
    assert bench.texts("alarm") == ["meter_lost: the meter has not answered", "meter_lost cleared"]
    mode = next(e for e in bench.sup.events if e.text == "STANDBY -> GRID")
    assert mode.t_ns == 151 * 10_000_000, "the tick itself, not the second"


def test_a_chattering_limit_is_two_events() -> None:
    bench = Bench()
    for _ in range(20):
        for k in range(100):
            bench.image.tick(1, limits_active=IMPORT if k % 2 else 0)
        bench.second(0)
    assert len(bench.texts("limit")) == 1


def test_events_a_second_are_bounded() -> None:
    bench = Bench()
    for k in range(100):
        bench.image.tick(1, mode=k % 2 + 1)
    bench.second(0)
    assert len(bench.sup.events) <= 20 and bench.sup.events_total >= 100
    assert "more than" in bench.sup.events[-1].text


def test_missed_ticks_and_lost_devices() -> None:
    bench = Bench()
    bench.second()
    bench.image.tick(1)
    bench.image.skip(3)
    bench.second()
    assert bench.texts("ticks") == ["3 missed, 3 in all"]
    bench.image.alive[2] = False
    bench.second()
    bench.second()
    bench.image.alive[2] = True
    bench.second()
    assert bench.texts("device")[-2:] == ["pcs does not answer", "pcs answers"]


def test_billing_phase_follows_the_wall_clock_and_never_jumps_back_a_little() -> None:
    bench = Bench(wall_s=1_700_000_000.0)
    bench.second()
    assert (1 + bench.image.billing_offset_s) % 900 == (1_700_000_001) % 900
    before = bench.image.billing_offset_s
    bench.clock.wall_at_0_s -= 0.5  # NTP
    bench.second()
    assert -0.0051 < bench.image.billing_offset_s - before < 0, "slower than a tick: the phase runs on"
    bench.clock.wall_at_0_s += 400  # somebody set the clock
    bench.second()
    assert abs((3 + bench.image.billing_offset_s) % 900 - bench.clock.wall_s() % 900) < 1e-6
    assert len(bench.texts("clock")) == 1


def test_record_has_every_tick_and_the_state_before_each_segment(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "r", layout=1, settings="s", record_size=core.RECORD_SIZE)
    bench = Bench(writer=writer)
    for _ in range(35):
        bench.second()
    bench.sup.close(bench.clock.t_ns)
    segments = [s for s in read(tmp_path / "r") if isinstance(s, Segment)]
    rows = np.concatenate([np.frombuffer(s.records, core.record_dtype()) for s in segments])
    assert list(rows["tick"]) == list(range(1, 3501))
    for before, segment in pairwise(segments):
        assert segment.state is not None and segment.first == before.next
        last = np.frombuffer(before.records, core.record_dtype())[-1]
        state = np.frombuffer(segment.state, core.record_dtype("State"))[0]
        assert state["last_t_ns"] == last["inp"]["t_ns"]


def test_a_killed_supervisor_loses_nothing(tmp_path: Path) -> None:
    def make() -> RecordWriter:
        return RecordWriter(tmp_path / "r", layout=1, settings="s", record_size=core.RECORD_SIZE)

    bench = Bench(writer=make(), store=Store(tmp_path / "h.sqlite", 1))
    for _ in range(14):
        bench.second()
    # kill -9: no close, no flush
    bench.image.tick(200)
    bench.clock.t_ns += 2 * SECOND
    again = Supervisor(bench.image, bench.site, bench.clock, writer=make(), store=Store(tmp_path / "h.sqlite", 1))
    again.step(bench.clock.t_ns)
    again.close(bench.clock.t_ns)
    rows = b"".join(s.records for s in read(tmp_path / "r") if isinstance(s, Segment))
    assert list(np.frombuffer(rows, core.record_dtype())["tick"]) == list(range(1, 1601))
    positions = [r[0] for r in again.store.db.execute("SELECT position FROM history ORDER BY position")]  # type: ignore[union-attr]
    assert len(positions) == len(set(positions)) and positions[-1] == 1600


def test_overwritten_ticks_are_said(tmp_path: Path) -> None:
    bench = Bench()
    bench.second()
    bench.image.forgotten = 150
    bench.second()
    assert bench.texts("records") == ["50 ticks were overwritten in the ring before they were read"]


def test_store_keeps_history_events_and_audit(tmp_path: Path) -> None:
    store = Store(tmp_path / "h.sqlite", 5)
    bench = Bench(store=store)
    for _ in range(12):
        bench.second()
    bench.sup.close(bench.clock.t_ns)
    rows = store.history(0)
    assert len(rows) == 12 and rows[0][1] == 400e3 and rows[0][2] == 390e3
    assert any(row[2] == "mode" for row in store.events())
    first, second = (store.add_audit(1.0, "me", "hold", 0.0, 60.0, "") for _ in range(2))
    assert second == first + 1 and len(list(store.audit())) == 2
    assert Store(tmp_path / "h.sqlite", 6).events() == []


def test_a_step_is_fast(tmp_path: Path) -> None:
    bench = Bench(writer=RecordWriter(None, layout=1, settings="s", record_size=core.RECORD_SIZE))
    bench.image.tick(100 * 60)
    rows = bench.image.rows
    bench.image.rows = rows[:0]
    spent = []
    for k in range(60):
        bench.image.rows = rows[: 100 * (k + 1)]
        bench.clock.t_ns += SECOND
        t0 = time.perf_counter()
        bench.sup.step(bench.clock.t_ns)
        spent.append(time.perf_counter() - t0)
    assert sorted(spent)[30] < 0.001, "median of a step with 100 records"


def test_a_restarted_supervisor_repeats_no_event(tmp_path: Path) -> None:
    bench = Bench(store=Store(tmp_path / "h.sqlite", 1))
    for _ in range(11):
        bench.second(limits_active=RAMP, slot=0, slot_id=3)
    again = Supervisor(bench.image, bench.site, bench.clock, store=Store(tmp_path / "h.sqlite", 1))  # type: ignore[arg-type]
    bench.image.tick(100, limits_active=RAMP, slot=0, slot_id=3)
    again.step(bench.clock.t_ns)
    assert [e.kind for e in again.events] == ["supervisor"]


def test_faults_are_found_by_their_id_in_the_audit_trail(tmp_path: Path) -> None:
    store = Store(tmp_path / "h.sqlite", 1)
    bench = Bench(store=store)
    bench.second()
    bench.image.alive[2] = False
    bench.image.open[1] = False
    bench.image.skip(3)
    bench.second(alarms=core.ALM_METER_LOST, limits_active=core.LIM_LEASE | core.LIM_RAMP)
    bench.second(mode=0, alarms=core.ALM_METER_LOST | core.ALM_PCS_LOST)
    bench.second()
    told = {row.command: row.text for row in store.faults(0)}
    assert told["meter_lost"] == "meter_lost cleared" and told["pcs_lost"] == "pcs_lost cleared"
    assert told["device_lost"].endswith("does not answer") and told["bus_lost"].endswith("port is gone")
    assert told["ticks_missed"] == "3 missed, 3 in all" and told["lease"].startswith("lease on")
    assert set(told) <= set(BY_ID), "every id stands in the table"
    meter = [(r.text, r.over) for r in store.faults(0) if r.command == "meter_lost"]
    assert meter == [("meter_lost: the meter has not answered", False), ("meter_lost cleared", True)]
    assert all(r.kind not in ("mode", "start") for r in store.faults(0))
    assert store.audit() == [], "no command of anybody"


def revised(bench: Bench, rev: int) -> None:
    """A second whose ticks ran with another revision of the settings."""
    bench.image.tick(100)
    bench.image.rows["inp"]["site_rev"][-100:] = rev
    bench.second(0)


@pytest.mark.parametrize(("old", "new"), [(900, 1800), (1800, 900), (3600, 900), (0, 900), (900, 0)])
@pytest.mark.parametrize("told", [False, True])
def test_another_billing_window_while_control_runs_is_no_jump_of_the_clock(old: int, new: int, told: bool) -> None:
    """The supervisor is told (a trial) before control runs with it, or sees it in the ticks alone."""
    bench = Bench(sites.load(None, [f"grid.billing_window_s={old}"]), wall_s=1_700_001_300.0)
    bench.image.sites[0] |= {"billing_window_s": float(old)}
    for _ in range(3):
        bench.second()
    if told:
        bench.sup.take_site(sites.load(None, [f"grid.billing_window_s={new}"]), bench.clock.t_ns)
        bench.second()  # control starts again meanwhile
    bench.image.sites[1] = {"f_nom_hz": 50.0, "billing_window_s": float(new)}
    for _ in range(3):
        revised(bench, 1)
    assert bench.texts("clock") == []
    if new:
        assert bench.image.billing_offset_s == pytest.approx(1_700_001_300 % new, abs=0.01)


def test_a_loosened_limit_is_leased_and_told_and_a_forgotten_revision_is_said() -> None:
    bench = Bench()
    bench.image.sites[0] |= {"import_limit_w": 445e3}
    bench.second()
    bench.image.sites[1] = {"f_nom_hz": 50.0, "import_limit_w": 480e3}
    revised(bench, 1)
    assert bench.texts("settings") == ["revision 1 is in force: import_limit_w 445000 -> 480000"]
    revised(bench, 1)
    assert bench.image.limits_written[-1]["import_limit_w"] == 480e3
    revised(bench, 7)
    assert any("revision 7 of the settings is not known any more" in text for text in bench.texts("records"))
