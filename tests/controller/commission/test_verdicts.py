"""What makes a step fail, and what it says then: each verdict against a site that has earned it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _core import image as core
from controller import operate
from controller.commission import delay, guide, steps_power
from controller.commission.results import FAIL, PASS, Result, Results
from controller.instance import InstanceError
from controller.site import Site
from tests.controller.commission.virtual import World, Writer

SLOW = ("plant.pcs.tau_s=0.03", "plant.pcs.dead_time_s=0.008")  # of a PCS that the site believes to be fast


def run(world: World, name: str) -> Result:
    """The step's result; the slot is released whatever it is."""
    step = next(s for s in guide.STEPS if s.name == name)
    got = guide.run_step(world.rig, Results(world.tmp / "commissioning.json"), step, world.talk)
    assert got is not None and world.quiet()
    return got


def at_call(world: World, number: int, what: Callable[[], object]) -> None:
    """Does something at that call of the person's line."""

    def hook() -> None:
        if world.talk.calls == number:
            what()

    world.talk.hook = hook


def showing(world: World, change: Callable[[np.ndarray], None]) -> None:
    """Changes what the record shows."""
    rows = world.rig.rows

    def changed() -> np.ndarray:
        got = rows().copy()
        change(got)
        return got

    world.rig.rows = changed  # type: ignore[method-assign]


# ---------------------------------------------------------------- ramp


@pytest.mark.parametrize("limit_w_per_s,words", [
    (4000.0, "moved at 4000 W/s, the limit is 2000 W/s"), (1000.0, "climbed at 1000 W/s only"),
])  # fmt: skip
def test_a_slope_that_is_not_the_site_s_fails_the_ramp(tmp_path: Path, limit_w_per_s: float, words: str) -> None:
    world = Writer(tmp_path)
    site = Site.from_dict(world.site.to_dict())
    site.values["grid.ramp_up_w_per_s"] = limit_w_per_s
    at_call(world, 30, lambda: world.put(site))
    got = run(world, "ramp")
    assert got.verdict == FAIL and words in got.reason and got.numbers["ramp_up_w_per_s"] == 2000.0


def test_a_load_that_leaves_no_room_fails_the_ramp(tmp_path: Path) -> None:
    got = run(World(tmp_path, 5e3, ("grid.import_limit_w=20000",)), "ramp")
    assert got.verdict == FAIL and "no step could be made" in got.reason
    assert [f.partition(":")[0] for f in got.facts] == ["discharging", "charging"]


def rows_of(grid_w: float, load_w: float, batt_w: float = 0.0) -> np.ndarray:
    rows = np.zeros(100, core.record_dtype())
    rows["out"]["grid_p_w"], rows["out"]["load_w"], rows["out"]["batt_p_w"] = grid_w, load_w, batt_w
    rows["lim"]["import_limit_w"], rows["lim"]["export_limit_w"] = 445e3, 0.0
    return rows


def test_room_is_what_pv_and_genset_leave(tmp_path: Path) -> None:
    """A load of 500 kW of which PV carries 480: nothing to discharge into, and all room to charge."""
    world = World(tmp_path)
    charge, discharge = steps_power._room(rows_of(20e3, 500e3), world.rig)
    assert (charge, discharge) == (445e3 - 20e3 - 10e3, 20e3 - 10e3)
    assert steps_power._room(rows_of(5e3, 500e3, 15e3), world.rig) == (charge, discharge)  # the battery's own share is none of it
    assert steps_power._plateau(rows_of(300e3, 500e3), world.rig, 5e3) == 0.0
    assert steps_power._plateau(rows_of(12e3, 500e3), world.rig, 5e3) == 2e3 - 5e3


# ---------------------------------------------------------------- reversion


def test_a_pcs_that_goes_down_too_slowly_fails_the_reversion(tmp_path: Path) -> None:
    got = run(World(tmp_path, 300e3, ("plant.pcs.own_ramp_w_per_s=12000",)), "reversion")
    assert got.verdict == FAIL and "by the BMS's current it took" in got.reason and "more than 6.5 s" in got.reason
    assert got.numbers["back_in_grid"] == 1


def test_a_power_that_still_stands_when_the_cable_is_back_fails_the_reversion(tmp_path: Path) -> None:
    world = World(tmp_path)

    def stands(rows: np.ndarray) -> None:
        rows["inp"]["pcs"]["batt_p_w"] = 20e3
        rows["inp"]["bms_lim"]["batt_i_a"], rows["inp"]["meter"]["grid_p_w"] = 40.0, 300e3

    showing(world, stands)
    got = run(world, "reversion")
    assert got.verdict == FAIL and "the first readback after the cable was back is 20000 W, not 0" in got.reason
    assert "neither BMS nor meter shows when the power went" in got.reason


def test_a_cable_that_was_not_the_pcs_s_fails_the_reversion(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.rig.ask_desk = lambda request: {"ok": True}
    got = run(world, "reversion")
    assert got.verdict == FAIL and "was that its cable?" in got.reason


def put(field: str, value: float) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows["inp"]["pcs_ctl"][field] = value

    return change


@pytest.mark.parametrize("field,value,words", [
    ("wset_rvrt_ena", 0.0, "is not enabled"),
    ("wset_rvrt_s", 60.0, "holds a reversion timer of 60 s, the site says 5 s"),
    ("wset_rvrt_s", float("nan"), "holds a reversion timer of nan s"),
    ("wset_rvrt_rem_s", 1.0, "renewed late: 1 of 5 s were left"),
])  # fmt: skip
def test_a_timer_that_is_not_what_was_written_fails_with_what_is_wrong(tmp_path: Path, field: str, value: float, words: str) -> None:
    world = World(tmp_path)
    showing(world, put(field, value))
    got = run(world, "reversion")
    assert got.verdict == FAIL and words in got.reason and "Shall I?" not in world.talk.asked


def test_a_pcs_that_does_not_tell_what_is_left_of_its_timer_is_judged_by_the_real_thing(tmp_path: Path) -> None:
    world = World(tmp_path)
    showing(world, put("wset_rvrt_rem_s", float("nan")))
    got = run(world, "reversion")
    assert got.verdict == PASS and got.numbers["timer_rem_min_s"] is None
    assert "is not told" in got.facts[0] and "nan" not in " ".join(got.facts)


# ---------------------------------------------------------------- trip


def test_a_trip_without_a_load_on_the_battery_shows_nothing(tmp_path: Path) -> None:
    """A load of 1 kW and no export: the hold of 5 kW cannot stand, and 0 W is where the battery is already."""
    got = run(World(tmp_path, 1e3), "trip")
    assert got.verdict == FAIL and got.reason.count("nothing to trip") == 2
    assert got.numbers["contactors_fault_ticks"] == 0  # which would have passed


def test_a_cause_that_never_shows_fails_the_trip(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.rig.ask_desk = lambda request: {"ok": True}
    got = run(world, "estop")
    assert got.verdict == FAIL and "no frame showed" in got.reason


def test_a_fault_that_comes_late_fails_the_trip(tmp_path: Path) -> None:
    world = World(tmp_path)

    def late(rows: np.ndarray) -> None:
        fault = np.flatnonzero(rows["out"]["mode"] == core.MODE_FAULT)
        rows["out"]["mode"][fault[:5]] = core.MODE_GRID

    showing(world, late)
    got = run(world, "trip")
    assert got.verdict == FAIL and "they came in 5 and 0" in got.reason


def test_a_fault_left_standing_ends_the_trips_and_what_was_seen_stays(tmp_path: Path) -> None:
    world = World(tmp_path, answers={"Reset it now?": "no"})
    got = run(world, "trip")
    assert got.verdict == FAIL
    assert "contactors: it did not come back to GRID" in got.reason and "pcs_fault: the site is in FAULT" in got.reason
    assert got.facts[0].startswith("contactors: contactors open") and got.numbers["contactors_zero_ticks"] == 0
    assert "trip_contactors" in got.series


def test_a_first_trip_that_cannot_begin_says_that_the_second_was_not_tried(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sim.plant.set("bms.contactor_open", 1)
    world.sim.run_s(1)
    got = run(world, "trip")
    assert got.verdict == FAIL and "contactors: the site is in FAULT" in got.reason and got.reason.endswith("pcs_fault: not tried")


# ---------------------------------------------------------------- following


class Missing:
    """The image of an engine that misses 30 ticks from one look to the next."""

    def __init__(self, image: Any) -> None:
        self.image, self.missed = image, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.image, name)

    def engine_stats(self) -> dict[str, Any]:
        self.missed += 30
        return self.image.engine_stats() | {"missed_ticks": self.missed}


@pytest.mark.parametrize("virtual,verdict", [(True, PASS), (False, FAIL)])
def test_missed_ticks_fail_the_following_of_a_real_site(tmp_path: Path, virtual: bool, verdict: str) -> None:
    world = World(tmp_path)
    world.rig.image, world.rig.instance.virtual = Missing(world.sim.image), virtual
    got = run(world, "following")
    assert got.verdict == verdict and got.numbers["missed"] == 30
    assert virtual or "30 ticks were missed" in got.reason


def test_a_fault_in_the_minute_fails_the_following(tmp_path: Path) -> None:
    world = World(tmp_path)
    at_call(world, 60, lambda: world.sim.plant.set("pcs.fault", 1))
    got = run(world, "following")
    assert got.verdict == FAIL and "GRID stood for" in got.reason and float(got.numbers["grid_share"] or 0.0) < 0.6


def test_what_a_person_does_not_accept_is_no_pass(tmp_path: Path) -> None:
    got = run(World(tmp_path, answers={"Do you accept this?": "no", "Why not?": "it hums"}), "following")
    assert got.verdict == FAIL and got.reason == "not accepted: it hums"


# ---------------------------------------------------------------- delay


def test_a_sign_trip_in_mid_measurement_is_no_measurement_of_the_delay(tmp_path: Path) -> None:
    world = World(tmp_path)

    def trip() -> None:
        world.sim.plant.set("pcs.fault", 1)
        world.rig.alarms = lambda: ["meter_sign"]  # type: ignore[method-assign]

    at_call(world, 60, trip)
    got = run(world, "delay")
    assert got.verdict == FAIL and "went to FAULT in mid-measurement (alarms: meter_sign)" in got.reason


def test_an_alignment_that_was_never_judged_is_none_and_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    latest = world.rig.latest

    def unjudged() -> dict[str, Any]:
        got = latest()
        return got | {"out": got["out"] | {"align_s": 0.0}}

    world.rig.latest = unjudged  # type: ignore[method-assign]
    got = run(world, "delay")
    assert got.verdict == PASS and got.numbers["align_s"] is None and "were not compared" in got.facts[-1]


def test_an_alignment_that_is_off_fails_the_delay(tmp_path: Path) -> None:
    world = World(tmp_path)
    latest = world.rig.latest
    world.rig.latest = lambda: latest() | {"out": latest()["out"] | {"align_s": -0.004}}  # type: ignore[method-assign]
    got = run(world, "delay")
    assert got.verdict == FAIL and "-4.0 ms apart" in got.reason


def after_try(world: Writer, what: Callable[[], object]) -> None:
    def hook() -> None:
        if any(r["do"] == "try" for r in world.asked):
            what()

    world.talk.hook = hook


def test_a_second_look_without_clean_steps_keeps_nothing(tmp_path: Path) -> None:
    world = Writer(tmp_path, 300e3, SLOW)

    def weak() -> None:
        """Half a step and no more."""
        if not operate.standing_limits(world.sim.image, world.sim.clock):
            most = {"p_charge_max_w": 2500.0, "p_discharge_max_w": 2500.0}
            operate.limit(world.instance, world.sim.image, most, 3600.0, world.sim.clock, "maria")

    after_try(world, weak)
    got = run(world, "delay")
    assert got.verdict == FAIL and "too few clean steps" in got.reason and "not kept" in got.reason
    assert [r["do"] for r in world.asked] == ["try", "back"]


def test_a_fault_in_the_second_look_keeps_the_first(tmp_path: Path) -> None:
    world = Writer(tmp_path, 300e3, SLOW)
    after_try(world, lambda: world.sim.plant.set("pcs.fault", 1))
    got = run(world, "delay")
    assert got.verdict == FAIL and "FAULT" in got.reason and "not kept" in got.reason
    assert got.numbers["tau_s"] == pytest.approx(0.03, rel=0.03) and [r["do"] for r in world.asked] == ["try", "back"]


def test_a_site_that_is_parked_at_the_end_of_the_second_look_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Writer(tmp_path, 300e3, SLOW)
    fit, looks = delay.fit, []

    def park(samples: Any, *believed: float) -> Any:
        looks.append(believed)
        if believed[1] > 0.02:
            operate.park(world.instance, world.sim.image, True, world.sim.clock, "maria")
            world.sim.run_s(3)
        return fit(samples, *believed)

    monkeypatch.setattr(delay, "fit", park)
    got = run(world, "delay")
    assert len(looks) > 1 and got.verdict == FAIL and "the site went to STOP" in got.reason and "not kept" in got.reason


class Unheard(Writer):
    """A desk that does everything; the answers to these never come."""

    lost: tuple[str, ...] = ()

    def desk(self, request: dict[str, Any]) -> dict[str, Any]:
        before = {k: self.rig.num(k) for k in ("pcs.tau_s", "pcs.dead_time_s")}
        got = super().desk(request) if request["do"] != "settings" else {
            "ok": True, "pending": None, "values": before, "running": {}, "file": "/etc/ballast/hall-3.toml"}  # fmt: skip
        if request["do"] in self.lost:
            raise InstanceError("its parent has not answered for 5 s")
        return got


@pytest.mark.parametrize("lost,verdict,words,row", [
    (("confirm",), PASS, "tried and confirmed", ", written into /etc/ballast/hall-3.toml"),
    (("confirm", "settings"), FAIL, "whether they were kept is not known", "perhaps not written: "),
])  # fmt: skip
def test_a_confirmation_that_nobody_answered_is_reported_as_what_it_was(
    tmp_path: Path, lost: tuple[str, ...], verdict: str, words: str, row: str
) -> None:
    world = Unheard(tmp_path, 300e3, SLOW)
    world.lost = lost
    got = run(world, "delay")
    assert got.verdict == verdict and words in got.reason and row in got.writes[0]


def test_the_report_says_written_only_where_it_was(tmp_path: Path) -> None:
    world = Writer(tmp_path, 300e3, SLOW)
    got = run(world, "delay")
    assert got.verdict == PASS and got.writes[0].endswith(", in force, not written into a file")
    page = guide.write_report(world.rig, Results(tmp_path / "commissioning.json")).read_text()
    assert "in force, not written into a file" in page and "written into the site" not in page
