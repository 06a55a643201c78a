"""The guide against the simulation: walks, resumes, repeats, and leaves nothing behind whatever interrupts it."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from _core import image as core
from controller import operate
from controller.commission import guide, steps_power
from controller.commission.results import FAIL, PASS, SKIPPED, Result, Results
from controller.commission.rig import Busy, Refused
from controller.commission.talk import Interrupted
from controller.instance import InstanceError
from tests.controller.commission.virtual import Script, World, Writer

SIGNED = {"Your name": "A. Tester", "Remarks": "cable <b> of PCS relabelled"}


def results(tmp: Path) -> Results:
    return Results(tmp / "commissioning.json")


def step(name: str) -> guide.Step:
    return next(s for s in guide.STEPS if s.name == name)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Results, bool]:
    """All steps on the virtual cabinet with a training cluster behind it, by a person who presses Enter."""
    tmp = tmp_path_factory.mktemp("walk")
    world = World(tmp, "cluster", answers=SIGNED)
    done = results(tmp)
    return world, done, guide.run(world.rig, done, world.talk)


def test_a_stranger_who_presses_enter_passes_every_step_in_half_an_hour(walked: tuple[World, Results, bool]) -> None:
    world, done, passed = walked
    assert {name: row["verdict"] for name, row in done.steps.items()} == dict.fromkeys(guide.NAMES, PASS), "\n".join(world.talk.said)
    assert passed and world.quiet() and world.rig.mode == core.MODE_GRID
    assert world.talk.waited_s < 1200  # the rest of 30 min is for reading
    assert done.signed and done.signed["name"] == "A. Tester" and done.signed["sha256"] == done.sha256()


def test_the_numbers_of_the_walk_are_those_of_the_cabinet(walked: tuple[World, Results, bool]) -> None:
    _, done, _ = walked
    numbers = {name: row["numbers"] for name, row in done.steps.items()}
    assert numbers["polarity"]["grid_per_battery"] == pytest.approx(-1.0, abs=0.02)
    assert numbers["delay"]["dead_s"] == pytest.approx(0.00275, abs=5e-4)
    assert numbers["delay"]["tau_s"] == pytest.approx(0.002, abs=5e-4)
    assert numbers["ramp"]["up_w_per_s"] == pytest.approx(2000.0, rel=0.01)
    assert 3.0 < numbers["reversion"]["dc_s"] < 6.5 and abs(numbers["reversion"]["back_w"]) < 5000
    assert all(0 <= numbers["trip"][f"{k}_{what}_ticks"] <= 2 for k in ("contactors", "pcs_fault") for what in ("fault", "zero"))
    assert numbers["following"]["missed"] == 0 and numbers["following"]["grid_share"] == 1.0


def test_every_action_stands_in_the_audit_trail_with_its_author(walked: tuple[World, Results, bool]) -> None:
    world, _, _ = walked
    with sqlite3.connect(world.instance.store) as db:
        rows = db.execute("SELECT who, command FROM audit WHERE command IS NOT NULL").fetchall()
        held_w = [abs(row[0]) for row in db.execute("SELECT value_w FROM audit WHERE command = 'hold'")]
    assert {who for who, _ in rows} == {"tester"}
    assert {command for _, command in rows} == {"hold", "release", "reset"}
    assert max(held_w) <= 50e3 + 1e-6


def test_a_passed_test_begins_at_the_signature_and_one_step_can_be_repeated(walked: tuple[World, Results, bool]) -> None:
    world, done, _ = walked
    again = results(world.tmp)
    assert again.steps == done.steps and again.signed == done.signed
    world.talk.asked.clear()
    assert guide.run(world.rig, again, world.talk, "ports")
    assert [q for q in world.talk.asked if "Begin" in q] == ["Begin?"]
    assert again.signed is None  # what was signed was another result
    world.talk.asked.clear()
    assert guide.run(world.rig, again, world.talk)
    assert "Begin?" not in world.talk.asked


# ---------------------------------------------------------------- resuming


def test_it_goes_on_at_the_first_step_that_is_not_passed(tmp_path: Path) -> None:
    world = World(tmp_path)
    done = results(tmp_path)
    world.talk.answers = {"Is that what the nameplate of bms": "no", "What does the nameplate say": "BMS-0002", "And now": "stop"}
    assert not guide.run(world.rig, done, world.talk)
    assert done.steps["ports"]["verdict"] == PASS and done.steps["identities"]["verdict"] == FAIL
    assert "BMS-0002" in done.steps["identities"]["reason"]
    world.talk.answers = {"Begin?": "stop"}
    world.talk.said.clear()
    assert not guide.run(world.rig, results(tmp_path), world.talk)
    assert any("Identities" in line for line in world.talk.said) and not any("---" in s and "Ports" in s for s in world.talk.said)


def test_a_changed_site_shows_which_steps_are_to_be_repeated(tmp_path: Path) -> None:
    world = World(tmp_path)
    done = results(tmp_path)
    for name in guide.NAMES:
        done.put(world.rig, name, step(name).depends, Result(PASS, ""), "tester")
    states = lambda: {s.name: done.state(world.rig, s.name, s.depends) for s in guide.STEPS}  # noqa: E731
    assert set(states().values()) == {PASS}
    world.rig.site.values["grid.ramp_up_w_per_s"] = 3000.0
    assert [n for n, s in states().items() if s == "changed"] == ["ramp", "following"]
    world.rig.site.values["pcs.tau_s"] = 0.03
    assert [n for n, s in states().items() if s == "changed"] == ["delay", "ramp", "following"]
    world.rig.maps[2].info["serial"] = "PCS-0002"
    assert set(states().values()) == {"changed"}


@pytest.mark.parametrize("change", ["sign", "scale", "addr", "cyclic_write", "window_ms", "virtual"])
def test_a_device_that_is_compiled_to_other_rows_asks_for_every_step_again(tmp_path: Path, change: str) -> None:
    world = World(tmp_path)
    done = results(tmp_path)
    for name in guide.NAMES:
        done.put(world.rig, name, step(name).depends, Result(PASS, ""), "tester")
    world.rig.maps = pickle.loads(pickle.dumps(world.rig.maps))  # as the next run finds them
    assert {done.state(world.rig, s.name, s.depends) for s in guide.STEPS} == {PASS}
    meter, _, pcs = world.rig.maps
    if change == "virtual":
        world.rig.instance.virtual = False
    elif change == "window_ms":
        world.rig.maps[0] = replace(meter, window_ms=meter.window_ms + 20.0)
    elif change == "cyclic_write":
        world.rig.maps[2] = replace(pcs, writes=(replace(pcs.writes[0], cyclic_write="flash"), *pcs.writes[1:]))
    else:
        was = getattr(meter.fields[0], change)
        row = replace(meter.fields[0], **{change: {"sign": -was, "scale": 10 * was, "addr": was + 2}[change]})
        world.rig.maps[0] = replace(meter, fields=(row, *meter.fields[1:]))
    assert {done.state(world.rig, s.name, s.depends) for s in guide.STEPS} == {"changed"}


def test_a_skipped_step_keeps_its_reason_and_the_report_says_so(tmp_path: Path) -> None:
    world = World(tmp_path, answers={"Begin?": "skip", "Why is it skipped": "no key to the cabinet", **SIGNED})
    done = results(tmp_path)
    assert not guide.run(world.rig, done, world.talk)
    assert {row["verdict"] for row in done.steps.values()} == {SKIPPED}
    page = next(tmp_path.glob("commissioning-*.html")).read_text()
    assert page.count("no key to the cabinet") == 2 * len(guide.NAMES) and 'class="skipped"' in page


@pytest.mark.parametrize("text", ["", "{", '{"version": 7}', '{"version": 1, "head": {}, "steps": {"ports": 3}}', "[1]", "\x00\xff"])
def test_a_damaged_file_is_put_aside_and_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "commissioning.json").write_text(text)
    done = results(tmp_path)
    assert done.steps == {} and "put aside" in done.note
    assert (tmp_path / "commissioning.damaged").read_text() == text


# ---------------------------------------------------------------- nothing stays


@pytest.mark.parametrize("name", guide.NAMES)
def test_an_interruption_anywhere_leaves_the_slot_released_and_the_cabinet_whole(tmp_path: Path, name: str) -> None:
    """Cuts the line at the first call, the last, and some twenty in between."""
    world = World(tmp_path)
    done = results(tmp_path)
    assert guide.run_step(world.rig, done, step(name), world.talk) is not None
    calls = world.talk.calls
    before = dict(done.steps)
    for cut in sorted({*range(1, calls, max(1, calls // 20)), calls}):
        world.talk.calls, world.talk.cut_at = 0, cut
        try:
            with pytest.raises(Interrupted):
                guide.run_step(world.rig, done, step(name), world.talk)
        finally:
            world.talk.cut_at = 0
        assert world.quiet(), f"cut at call {cut} of {calls}"
        assert done.steps == before
        world.sim.run_s(12)
        if world.rig.mode == core.MODE_FAULT:
            world.rig.reset()
            world.sim.run_s(12)
        assert world.rig.mode == core.MODE_GRID


def test_somebody_else_s_hold_is_named_and_never_touched(tmp_path: Path) -> None:
    world = World(tmp_path)
    operate.hold(world.instance, world.sim.image, 7000.0, 600.0, world.sim.clock, "maria")
    assert guide.run_step(world.rig, results(tmp_path), step("polarity"), world.talk) is None
    assert "maria" in " ".join(world.talk.said) and "+7.0 kW" in " ".join(world.talk.said)
    assert world.slot["value_w"] == 7000.0


def test_a_hold_that_takes_over_in_mid_step_ends_the_step_and_stays(tmp_path: Path) -> None:
    world = World(tmp_path)

    def take() -> None:
        if world.talk.calls == 60:
            operate.hold(world.instance, world.sim.image, -3000.0, 600.0, world.sim.clock, "maria")

    world.talk.hook = take
    done = results(tmp_path)
    assert guide.run_step(world.rig, done, step("polarity"), world.talk) is None
    assert "taken over" in " ".join(world.talk.said) and "maria" in " ".join(world.talk.said)
    assert world.slot["value_w"] == -3000.0 and done.steps == {}


def test_only_one_test_of_a_site_at_a_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    with results(tmp_path).alone():
        assert not guide.run(world.rig, results(tmp_path), world.talk)
    assert "another test" in " ".join(world.talk.said) and not world.talk.asked


def test_a_control_that_stops_ticking_ends_the_step_with_its_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.talk.step = lambda seconds: setattr(world.sim.clock, "t_ns", world.sim.clock.t_ns + int(seconds * 1e9))
    got = guide.run_step(world.rig, results(tmp_path), step("ports"), world.talk)
    assert got is not None and got.verdict == FAIL and "control is gone" in got.reason


def test_the_battery_is_led_down_from_where_following_put_it(tmp_path: Path) -> None:
    world = World(tmp_path, 300e3)
    world.sim.plant.set("load.extra_w", 120e3)  # the battery takes it: far more than a test may ask for
    world.sim.run_s(2)
    before_w = world.sim.out["p_cmd_w"]
    assert before_w > 1.5 * world.rig.allowed_w
    with world.rig.guarded():
        world.rig.record()
        world.rig.glide(0.0, 60.0)
        world.rig.wait(1.0)
        cmd = world.rig.rows()["out"]["p_cmd_w"]
    assert cmd[-1] == 0.0 and abs(cmd[1:] - cmd[:-1]).max() <= 0.021 * world.rig.rating_w


def test_no_power_above_a_fifth_of_rating_without_being_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(Refused, match="50000"), world.rig.guarded():
        world.rig.hold(50001.0, 1.0)
    with pytest.raises(Refused), world.rig.guarded():
        world.rig.hold(float("nan"), 1.0)
    assert world.quiet()


def test_a_hold_of_a_killed_test_ends_by_itself(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.rig.guarded():
        world.rig.hold(4000.0, 10.0)
        left_s = (world.slot["lease_until_ns"] - world.sim.clock.monotonic_ns()) / 1e9
        assert left_s == pytest.approx(40.0)
    with pytest.raises(Busy), world.rig.guarded():
        operate.hold(world.instance, world.sim.image, 1.0, 60.0, world.sim.clock, "maria")
        world.rig.wait(0.5)


# ---------------------------------------------------------------- what is wrong with a site


def failed(tmp_path: Path, name: str, *sets: str, trace: str | float = 300e3, **how: Any) -> tuple[World, Result]:
    world = World(tmp_path, trace, sets, **how)
    got = guide.run_step(world.rig, results(tmp_path), step(name), world.talk)
    assert got is not None and world.quiet()
    return world, got


def test_a_reversed_meter_fails_with_the_sign_to_change(tmp_path: Path) -> None:
    _, got = failed(tmp_path, "polarity", "plant.meter.gain=-1", grid=False)
    assert got.verdict == FAIL and "meter" in got.reason and "sign" in got.reason and "ballast_virtual_meter" in got.reason


def test_a_dead_current_transformer_fails_with_what_to_look_at(tmp_path: Path) -> None:
    _, got = failed(tmp_path, "polarity", "plant.meter.gain=0", "plant.meter.offset_w=200000")
    assert got.verdict == FAIL and "current transformers" in got.reason
    assert got.numbers["grid_per_battery"] == pytest.approx(0.0, abs=0.02)


def test_a_site_that_is_not_in_grid_is_refused_with_its_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sim.plant.set("bms.contactor_open", 1)
    world.sim.run_s(1)
    got = guide.run_step(world.rig, results(tmp_path), step("polarity"), world.talk)
    assert got is not None and got.verdict == FAIL and "FAULT" in got.reason and "_fault" in got.reason
    assert world.slot["kind"] == core.SP_NONE


def test_contactors_close_under_a_hold_of_0_w_before_the_sign_is_known(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sim.plant.set("bms.contactor_open", 1)
    world.sim.run_s(1)
    world.rig.reset()
    world.sim.run_s(2)
    assert world.rig.mode == core.MODE_STANDBY

    def close() -> None:
        if "Close the battery contactors" in " ".join(s.strip() for s in world.talk.said) and world.sim.plant.get("bms.contactor_open"):
            assert world.slot["kind"] == core.SP_HOLD and world.slot["value_w"] == 0.0
            world.sim.plant.set("bms.contactor_open", 0)

    world.talk.hook = close
    got = guide.run_step(world.rig, results(tmp_path), step("polarity"), world.talk)
    assert got is not None and got.verdict == PASS and world.quiet()


def test_a_bad_line_fails_the_ports(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sim.plant.set("a.drop_p", 0.1)
    got = guide.run_step(world.rig, results(tmp_path), step("ports"), world.talk)
    assert got is not None and got.verdict == FAIL and "bus a" in got.reason and "timeouts" in got.reason and "bus b" not in got.reason


def test_without_a_desk_the_real_thing_is_asked_of_a_person(tmp_path: Path) -> None:
    world, got = failed(tmp_path, "trip", desk=False)
    assert got.verdict == SKIPPED and "nobody at the cabinet" in got.reason
    assert any("Is somebody at the cabinet" in q for q in world.talk.asked)


def test_a_slow_pcs_is_measured_and_without_a_desk_the_lines_to_type_are_said(tmp_path: Path) -> None:
    _, got = failed(tmp_path, "delay", "plant.pcs.tau_s=0.03", "plant.pcs.dead_time_s=0.008", desk=False)
    assert got.verdict == FAIL and "dead_time_s = 0.00" in got.reason and "tau_s = 0.030" in got.reason
    assert got.numbers["dead_s"] == pytest.approx(0.00975, abs=5e-4) and got.numbers["tau_s"] == pytest.approx(0.03, rel=0.03)
    assert got.writes and got.writes[0].startswith("not written")


def test_a_very_slow_pcs_is_looked_at_again_with_longer_stands(tmp_path: Path) -> None:
    world, got = failed(tmp_path, "delay", "plant.pcs.tau_s=0.25", "plant.pcs.dead_time_s=0.05", desk=False)
    assert any("slower than the site believes" in line for line in world.talk.said)
    assert got.numbers["dead_s"] == pytest.approx(0.05175, abs=2e-3) and got.numbers["tau_s"] == pytest.approx(0.25, rel=0.03)


def test_a_fault_in_mid_measurement_is_the_reason_that_is_given(tmp_path: Path) -> None:
    world = World(tmp_path)

    def fault() -> None:
        if world.talk.calls == 60:
            world.sim.plant.set("pcs.fault", 1)

    world.talk.hook = fault
    got = guide.run_step(world.rig, results(tmp_path), step("delay"), world.talk)
    assert got is not None and got.verdict == FAIL and "mid-measurement" in got.reason and "pcs_fault" in got.reason
    assert world.slot["kind"] == core.SP_NONE


def test_a_meter_that_is_silent_while_the_command_falls_is_no_sample(tmp_path: Path) -> None:
    world = World(tmp_path)

    def mute() -> None:
        world.sim.plant.set("a.drop_p", 0.6 if world.talk.calls % 3 == 0 else 0.0)

    world.talk.hook = mute
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a median of nothing would be a line of numpy's on the person's screen
        got = guide.run_step(world.rig, results(tmp_path), step("polarity"), world.talk)
    assert got is not None and (got.verdict == FAIL or got.numbers["grid_per_battery"] == pytest.approx(-1.0, abs=0.15))
    world.sim.plant.set("a.drop_p", 0.0)


@pytest.mark.parametrize("confirms", [True, False])
def test_measured_values_are_tried_measured_again_and_confirmed(tmp_path: Path, confirms: bool) -> None:
    world = Writer(tmp_path, 300e3, ("plant.pcs.tau_s=0.03", "plant.pcs.dead_time_s=0.008"), confirms=confirms)
    done = results(tmp_path)
    got = guide.run_step(world.rig, done, step("delay"), world.talk)
    assert got is not None
    tried, confirmed, *back = [r for r in world.asked if r["do"] != "plant"]
    assert tried["who"] == "tester" and tried["changes"]["pcs.tau_s"] == pytest.approx(0.03, rel=0.03)
    assert confirmed["id"] == 7
    assert abs(float(got.numbers["align_after_s"] or 0.0)) < steps_power.ALIGN_MOST_S
    assert got.verdict == (PASS if confirms else FAIL)
    if confirms:
        assert got.writes[0].startswith("pcs.dead_time_s = ") and done.state(world.rig, "delay", step("delay").depends) == PASS
        assert world.rig.num("pcs.tau_s") == tried["changes"]["pcs.tau_s"] and not back
        assert got.writes[-1] == "no file of yours"
    else:
        assert "the time to confirm is over" in got.reason and got.writes[0].startswith("not written")
        assert back == [{"do": "back", "id": 7, "who": "tester"}] and world.rig.num("pcs.tau_s") == 0.002
    assert world.quiet()


def test_values_that_a_second_look_does_not_bear_out_are_given_back(tmp_path: Path) -> None:
    world = Writer(tmp_path, 300e3, ("plant.pcs.tau_s=0.03", "plant.pcs.dead_time_s=0.008"), worse=0.02)
    got = guide.run_step(world.rig, results(tmp_path), step("delay"), world.talk)
    assert got is not None and got.verdict == FAIL and "not kept" in got.reason
    assert [r["do"] for r in world.asked] == ["try", "back"] and world.rig.num("pcs.tau_s") == 0.002


def test_an_interruption_while_values_are_tried_gives_them_back(tmp_path: Path) -> None:
    world = Writer(tmp_path, 300e3, ("plant.pcs.tau_s=0.03", "plant.pcs.dead_time_s=0.008"))

    def cut() -> None:
        if any(r["do"] == "try" for r in world.asked) and world.talk.calls % 50 == 0:
            raise Interrupted("log-out")

    world.talk.hook = cut
    with pytest.raises(Interrupted):
        guide.run_step(world.rig, results(tmp_path), step("delay"), world.talk)
    assert [r["do"] for r in world.asked] == ["try", "back"] and world.quiet() and world.rig.num("pcs.tau_s") == 0.002


def test_a_parent_that_is_gone_is_a_desk_that_says_no(tmp_path: Path) -> None:
    world = World(tmp_path)

    def gone(_: dict[str, Any]) -> dict[str, Any]:
        raise InstanceError("its parent is gone")

    world.rig.ask_desk = gone
    got = guide.run_step(world.rig, results(tmp_path), step("trip"), world.talk)
    assert got is not None and got.verdict == FAIL and "its parent is gone" in got.reason
    assert world.slot["kind"] == core.SP_NONE


def test_a_step_of_which_something_was_not_tried_is_passed_in_part() -> None:
    row = {"reason": "", "facts": ["discharging: 2.0 kW/s", "charging: not tried, the load leaves no room within the grid's limits"]}
    assert guide._part(row, PASS) == " in part" and guide._part(row, FAIL) == ""
    assert guide._part({"reason": "", "facts": ["discharging: 2.0 kW/s"]}, PASS) == "" and guide._part(None, "open") == ""


@pytest.mark.parametrize(("answer", "resets"), [("yes", 1), ("no", 0)])
def test_a_site_in_fault_is_offered_its_reset_before_a_step_fails(answer: str, resets: int) -> None:
    asked: list[str] = []
    talk = Script(lambda seconds: None, {"Reset it now?": answer})
    rig = SimpleNamespace(
        mode=core.MODE_FAULT, talk=talk, alarms=lambda: ["pcs_lost"], reset=lambda: asked.append("reset"), until=lambda *_: bool(asked)
    )
    with contextlib.nullcontext() if resets else pytest.raises(Refused, match=r"pcs_lost.*ballast reset"):
        steps_power.grid_or_refuse(rig)  # type: ignore[arg-type]
    assert len(asked) == resets and "pcs_lost" in talk.asked[0]
