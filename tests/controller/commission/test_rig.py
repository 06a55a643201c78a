"""The rig: what it promises whatever cuts it, whose word it follows, and that it finds the site as it is now."""

from __future__ import annotations

import json
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from _core import image as core
from controller import operate
from controller.commission import cli, guide
from controller.commission.results import FAIL, Results
from controller.commission.rig import Refused
from controller.commission.talk import Interrupted
from controller.control import remember
from controller.instance import InstanceError
from controller.site import Site
from tests.controller.commission.virtual import World


def results(tmp: Path) -> Results:
    return Results(tmp / "commissioning.json")


def step(name: str) -> guide.Step:
    return next(s for s in guide.STEPS if s.name == name)


# ---------------------------------------------------------------- cut in the middle of the end


def test_a_second_interrupt_in_mid_release_leaves_nothing_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    audit, cut = operate._audit, [True]

    def interrupt(*args: Any) -> int:
        if args[3] == "release" and cut and cut.pop():
            raise KeyboardInterrupt
        return audit(*args)

    monkeypatch.setattr(operate, "_audit", interrupt)
    with pytest.raises(KeyboardInterrupt), world.rig.guarded():
        world.rig.hold(4000.0, 10.0)
        raise Interrupted("Ctrl-C")
    assert world.slot["kind"] == core.SP_NONE and not cut


@pytest.mark.parametrize("first", cli.ENDING)
def test_a_second_signal_is_ignored_until_the_battery_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: signal.Signals
) -> None:
    world = World(tmp_path)
    audit, sent = operate._audit, []

    def interrupt(*args: Any) -> int:
        if args[3] == "release":
            sent.append(args[3])
            for signum in cli.ENDING:
                signal.raise_signal(signum)
        return audit(*args)

    monkeypatch.setattr(operate, "_audit", interrupt)
    before = [signal.getsignal(s) for s in cli.ENDING]
    with cli.ended_once():
        with pytest.raises(Interrupted, match=first.name), world.rig.guarded():
            world.rig.hold(4000.0, 10.0)
            signal.raise_signal(first)
        assert sent == ["release"] and world.slot["kind"] == core.SP_NONE and world.rig.parting() == "no hold stands"
    assert [signal.getsignal(s) for s in cli.ENDING] == before


def test_a_hold_that_could_not_be_released_is_said_and_was_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    tried = []

    def locked(*args: Any) -> int:
        tried.append(args)
        raise InstanceError("another `ballast hold` has been at it for 2 s")

    monkeypatch.setattr(operate, "release", locked)
    with pytest.raises(InstanceError), world.rig.guarded():
        world.rig.hold(4000.0, 10.0)
        world.rig.release()
    assert len(tried) == 2 and world.slot["kind"] == core.SP_HOLD
    (left,) = world.rig.left
    assert "was not released" in left and "+4.0 kW" in left and "by tester" in left and "another 40 s" in left
    assert world.rig.parting() in left


@pytest.mark.parametrize("held", [True, False])
def test_whoever_kept_a_hold_from_being_written_keeps_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    world = World(tmp_path)
    hold = operate.hold

    def locked(*args: Any) -> int:
        hold(world.instance, world.sim.image, -3000.0, 600.0, world.sim.clock, "maria")
        raise InstanceError("another `ballast hold` has been at it for 2 s")

    with pytest.raises(InstanceError), world.rig.guarded():
        if held:
            world.rig.hold(4000.0, 10.0)
        monkeypatch.setattr(operate, "hold", locked)
        world.rig.hold(5000.0, 10.0)
    assert world.slot["value_w"] == -3000.0 and not world.rig.left


@pytest.mark.parametrize("answered", [True, False])
def test_a_second_interrupt_while_the_cabinet_is_put_back_undoes_it_all_the_same(tmp_path: Path, answered: bool) -> None:
    world = World(tmp_path)
    cut = [True]

    def desk(request: dict[str, Any]) -> dict[str, Any]:
        if request["set"]["load.extra_w"] == 0.0 and cut and cut.pop():
            if answered:
                world.desk(request)
            raise KeyboardInterrupt
        return world.desk(request)

    world.rig.ask_desk = desk
    with pytest.raises(KeyboardInterrupt), world.rig.guarded():
        world.rig.hold(4000.0, 10.0)
        world.rig.plant({"load.extra_w": 1000.0}, {"load.extra_w": 0.0})
    assert world.quiet() and world.sim.plant.get("load.extra_w") == 0.0 and not cut


def test_somebody_else_s_release_is_not_overruled(tmp_path: Path) -> None:
    world = World(tmp_path)

    def release() -> None:
        if world.talk.calls == 60:
            operate.release(world.instance, world.sim.image, world.sim.clock, "maria")

    world.talk.hook = release
    done = results(tmp_path)
    assert guide.run_step(world.rig, done, step("polarity"), world.talk) is None
    assert "maria at " in " ".join(world.talk.said) and "released the battery (command" in " ".join(world.talk.said) and done.steps == {}
    with sqlite3.connect(world.instance.store) as db:
        rows = db.execute("SELECT who, command FROM audit WHERE command IS NOT NULL ORDER BY id").fetchall()
    assert rows[-1] == ("maria", "release") and world.slot["kind"] == core.SP_NONE


# ---------------------------------------------------------------- a site that changes under a long test


def test_each_step_finds_the_site_as_it_is_then(tmp_path: Path) -> None:
    world = World(tmp_path)
    site = Site.from_dict(world.site.to_dict())
    site.values["pcs.s_rated_va"] = 200e3
    (tmp_path / "site.json").write_text(json.dumps(site.to_dict()))
    found = [replace(m, info={"serial": f"new {m.name}"}) for m in world.sim.maps]
    remember(tmp_path, site, found)
    with world.rig.guarded():
        assert world.rig.num("pcs.s_rated_va") == 200e3 and world.rig.allowed_w == 40e3
        assert [m.info for m in world.rig.maps] == [m.info for m in found]


def test_devices_that_were_not_read_yet_are_not_compared(tmp_path: Path) -> None:
    world = World(tmp_path)
    site = Site.from_dict(world.site.to_dict())
    site.devices[0] = replace(site.devices[0], unit=77)
    (tmp_path / "site.json").write_text(json.dumps(site.to_dict()))
    got = guide.run_step(world.rig, results(tmp_path), step("identities"), world.talk)
    assert got is not None and got.verdict == FAIL and "not read yet" in got.reason and not world.talk.asked


# ---------------------------------------------------------------- a desk whose answer is lost


class Deaf:
    """A desk that does everything and whose answers to `lost` never come. "confirm unheard": the request itself is lost;
    "confirm over": it comes when the time is over.
    """

    def __init__(self, *lost: str, who: str = "tester") -> None:
        self.lost, self.who = list(lost), who
        self.asked: list[dict[str, Any]] = []
        self.pending: dict[str, Any] | None = None
        self.kept: dict[str, float] = {}

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        do, mine = request["do"], self.pending is not None and request.get("id") == self.pending["id"]
        if do == "try":
            self.pending = {"id": 7, "who": self.who, "changes": {k: [0.0, v] for k, v in request["changes"].items()}}
        lost = next((word for word in self.lost if word.partition(" ")[0] == do), "")
        if lost.endswith("over") or (do == "back" and mine):
            self.pending = None
        elif do == "confirm" and mine and self.pending and not lost.endswith("unheard"):
            self.kept, self.pending = {k: new for k, (_, new) in self.pending["changes"].items()}, None
        if lost:
            self.lost.remove(lost)
            raise InstanceError("its parent has not answered for 5 s; it may still do it")
        if do == "settings":
            running = {k: [0.0, v] for k, v in self.kept.items()}
            return {"ok": True, "pending": self.pending, "values": {"pcs.tau_s": 0.0} | self.kept, "running": running, "file": "x.toml"}
        return {"ok": True, "id": 7} if do == "try" or mine else {"ok": False, "error": "nothing is being tried"}

    @property
    def done(self) -> list[str]:
        return [r["do"] for r in self.asked]


def test_a_trial_whose_answer_was_lost_is_found_and_goes_on(tmp_path: Path) -> None:
    world, desk = World(tmp_path), Deaf("try")
    world.rig.ask_desk = desk
    with world.rig.guarded():
        assert world.rig.try_settings({"pcs.tau_s": 0.03}, 60.0)["ok"]
        assert world.rig.confirm()["ok"]
    assert desk.done == ["try", "settings", "confirm"] and desk.kept == {"pcs.tau_s": 0.03} and not world.rig.left


def test_a_trial_that_nobody_tells_of_is_looked_for_again_and_given_back(tmp_path: Path) -> None:
    world, desk = World(tmp_path), Deaf("try", "settings")
    world.rig.ask_desk = desk
    with world.rig.guarded():
        got = world.rig.try_settings({"pcs.tau_s": 0.03}, 60.0)
        assert not got["ok"] and "is not known" in got["why"]
    assert desk.done == ["try", "settings", "settings", "back"] and desk.pending is None and not world.rig.left


@pytest.mark.parametrize("lost,kept", [
    (("confirm",), True),  # it was done, the answer was lost
    (("confirm unheard",), True),  # it never arrived: asked once more
    (("confirm", "settings"), None),
    (("confirm over",), False),
])  # fmt: skip
def test_a_confirmation_whose_answer_was_lost_is_never_its_opposite(tmp_path: Path, lost: tuple[str, ...], kept: bool | None) -> None:
    world, desk = World(tmp_path), Deaf(*lost)
    world.rig.ask_desk = desk
    with world.rig.guarded():
        assert world.rig.try_settings({"pcs.tau_s": 0.03}, 60.0)["ok"]
        got = world.rig.confirm()
        assert got["ok"] == bool(kept) and bool(got.get("lost")) == (kept is None)
        if kept:
            assert "written" not in got or (got["written"] is None and "not in the site file" in got["note"])
        if kept is False:
            assert "the time was over" in got["why"]
    assert desk.pending is None and bool(desk.kept) == (kept is not False) and not world.rig.left


def test_a_return_whose_answer_was_lost_is_asked_for_again_and_said_where_nobody_answers(tmp_path: Path) -> None:
    for lost, left in ((("back",), 0), (("back", "back"), 1)):
        world, desk = World(tmp_path), Deaf(*lost)
        world.rig.ask_desk = desk
        with world.rig.guarded():
            world.rig.try_settings({"pcs.tau_s": 0.03}, 60.0)
        assert desk.done == ["try", "back", "back"] and len(world.rig.left) == left
        assert not left or "may still be in force" in world.rig.left[0]


def test_a_site_that_goes_away_hides_neither_what_was_kept_nor_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Any) -> None:
        raise InstanceError("nothing runs")

    world, desk = World(tmp_path), Deaf()
    world.rig.ask_desk = lambda request: {"ok": False, "error": "no"} if request["do"] == "plant" else desk(request)
    with world.rig.guarded():
        with pytest.raises(Refused):
            world.rig.plant({"pcs.dead": 1.0}, {"pcs.dead": 0.0})
        world.rig.try_settings({"pcs.tau_s": 0.03}, 60.0)
        monkeypatch.setattr(type(world.rig), "refresh", gone)
        assert world.rig.confirm()["ok"]
        monkeypatch.setattr(world.rig, "_trial", 7)  # as if it had been tried once more
    assert len(world.rig.left) == 1 and "still has a fault" in world.rig.left[0]


def test_somebody_else_s_trial_is_not_given_back(tmp_path: Path) -> None:
    world, desk = World(tmp_path), Deaf("try", who="maria")
    world.rig.ask_desk = desk
    with world.rig.guarded():
        assert not world.rig.try_settings({"pcs.tau_s": 0.03}, 60.0)["ok"]
    assert "back" not in desk.done and desk.pending is not None


def test_a_trial_that_was_refused_is_not_looked_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.rig.guarded():
        assert not world.rig.try_settings({"pcs.tau_s": 0.03}, 60.0)["ok"]
    assert [r["do"] for r in world.asked] == ["try"]
