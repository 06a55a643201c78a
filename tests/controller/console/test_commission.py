"""`test` on the console: the guide on a person's line, and every way that line can end in the middle of a step."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from _core import image as core
from controller import operate
from controller.console.context import Context
from controller.console.line import Gone, Idle, Noise
from controller.instance import InstanceError
from tests.controller.console.wires import Person
from tests.controller.console.world import PASSWORDS, TABLE, World, say


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    made.accounts.add("anna", "engineer", PASSWORDS["anna"], first=True)

    def desk(request: dict[str, Any]) -> dict[str, Any]:
        for key, value in request.get("set", {}).items():
            made.sim.plant.set(key, value)
        return {"ok": True}

    made.answer = desk
    yield made
    made.end()


def sit(world: World, *typed: str) -> tuple[Context, Person, list[Callable[[], object]]]:
    """An engineer at a line by the site's own clock: waiting for a key moves the site on. The last of it: what is done then."""
    ctx, person = world.context("anna")
    line, key, then = ctx.line, ctx.line.key, list[Callable[[], object]]()
    line.clock = world.clock
    line.idle_s, line._typed_ns = 600.0, world.clock.monotonic_ns()

    def wait(seconds: float) -> str:
        world.run_s(seconds)
        for what in then:
            what()
        return key(0.0)

    line.key = wait  # type: ignore[method-assign]
    for text in typed:
        person.type(f"{text}\r")
    return ctx, person, then


def slot(world: World) -> dict[str, Any]:
    return dict(world.sim.image.setpoint(core.SLOT_OPERATOR))


def held(world: World) -> bool:
    return bool(slot(world)["kind"] == core.SP_HOLD and slot(world)["value_w"] != 0.0)


def trail(world: World) -> list[tuple[str, str]]:
    with sqlite3.connect(world.instance.store) as db:
        return db.execute("SELECT who, command FROM audit WHERE command IN ('hold', 'release') ORDER BY id").fetchall()


def nobody_types(ctx: Context) -> None:
    ctx.line._typed_ns -= int(3601e9)


ENDS: dict[str, tuple[Callable[[Context, Person], object], type[Exception] | None, str]] = {
    "ctrl-c": (lambda ctx, person: person.type("\x03"), None, "stopped (Ctrl-C); no hold stands; `test` goes on from here"),
    "idle": (lambda ctx, person: nobody_types(ctx), Idle, "stopped; no hold stands"),
    "noise": (lambda ctx, person: person.type(b"\xff" * 200), Noise, "stopped; no hold stands"),
    "told to end": (lambda ctx, person: setattr(ctx.line.wire, "here", False), Gone, ""),
    "hung up": (lambda ctx, person: person.hang_up(), Gone, ""),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_line_that_ends_in_mid_step_leaves_the_battery_released(world: World, how: str) -> None:
    act, raised, words = ENDS[how]
    ctx, person, then = sit(world, "go")
    seen: list[float] = []

    def end() -> None:
        if held(world) and not seen:
            seen.append(slot(world)["value_w"])
            act(ctx, person)

    then.append(end)
    since = person.mark
    if raised is None:
        TABLE.run(ctx, "test polarity")
    else:
        with pytest.raises(raised):
            TABLE.run(ctx, "test polarity")
    assert seen and slot(world)["kind"] == core.SP_NONE
    if words:
        person.sees(words, since=since)
    by = {who for who, _ in trail(world)}
    assert by == {"anna on pair"} and trail(world)[-1][1] == "release"
    assert ctx.line.idle_s == 600.0 and ctx.presence.own.holds == ""
    assert not (world.state / "commissioning.json").exists()  # what was cut is no result


def test_a_log_out_while_the_cabinet_has_a_fault_sets_it_back(world: World) -> None:
    ctx, _, then = sit(world, "go", "yes")
    then.append(lambda: nobody_types(ctx) if world.sim.plant.get("bms.contactor_open") else None)
    with pytest.raises(Idle):
        TABLE.run(ctx, "test trip")
    assert [r["set"]["bms.contactor_open"] for r in world.asked] == [1.0, 0.0] and world.sim.plant.get("bms.contactor_open") == 0.0
    assert slot(world)["kind"] == core.SP_NONE


def test_a_hold_that_cannot_be_released_is_the_last_thing_that_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*args: Any) -> int:
        raise InstanceError("another `ballast hold` has been at it for 2 s")

    ctx, person, then = sit(world, "go")
    monkeypatch.setattr(operate, "release", locked)
    then.append(lambda: person.type("\x03") if held(world) else None)
    since = person.mark
    TABLE.run(ctx, "test polarity")
    text = " ".join(person.sees("`ballast release` ends it; `test` goes on from here", since=since).split())
    assert "ATTENTION: the hold was not released" in text and "stopped (Ctrl-C); ATTENTION: a hold at" in text
    assert held(world)


def test_ctrl_d_at_a_question_and_a_step_that_is_finished(world: World) -> None:
    ctx, person, _ = sit(world, "go")
    text = say(ctx, person, "test ports")
    assert "Ports: passed" in text and (world.state / "commissioning.json").exists()
    person.type("\x04")
    text = say(ctx, person, "test identities")
    assert "stopped (Ctrl-D); no hold stands" in text


@pytest.mark.parametrize("what", ["list", "report"])
def test_results_that_were_damaged_are_spoken_of_wherever_they_are_shown(world: World, what: str) -> None:
    (world.state / "commissioning.json").write_text("{")
    ctx, person, _ = sit(world)
    text = say(ctx, person, f"test {what}")
    assert "put aside as commissioning.damaged" in " ".join(text.split())
