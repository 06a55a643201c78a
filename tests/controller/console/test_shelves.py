"""`shelves` and `shelves write` in the console."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from controller import lines
from controller.console.context import Refused
from controller.shelves.table import ROW, Table, slots
from controller.site import Shelf
from tests.controller.console.world import TABLE, World, say

SHELF = Shelf("rack1", "/dev/x", "orv3_psu", (200, 201), 19200, "E", allow=("led",))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    made.people()
    made.site = dataclasses.replace(made.site, shelves=[SHELF])
    (made.directory / "site.json").write_text(json.dumps(made.site.to_dict()))
    yield made
    made.end()


def test_what_is_known_of_the_shelves(world: World) -> None:
    ctx, person = world.context("vera", width=200)
    assert "the shelves are not read" in say(ctx, person, "shelves")
    table = Table(world.directory, slots([SHELF]), write=True)
    row = np.zeros((), ROW)
    row["online"], row["ok"] = 1, 7
    row["value"][0], row["t_ns"][0] = 1500.0, world.clock.monotonic_ns() - 10**8  # p_out_w
    row["value"][8], row["t_ns"][8] = 0x0101, world.clock.monotonic_ns() - 10**9  # alarm
    table.put(0, row)
    text = say(ctx, person, "shelves")
    assert "1/2 answer" in text and "out 1.50 kW" in text and "no answer: rack1.201" in text
    assert "ALARM rack1.200: pfc, pfc_converter_fail" in text
    text = say(ctx, person, "shelves rack1.200")
    assert "orv3_psu" in text and "0.10 s ago" in text and "may be written: led" in text and "not read yet" in text
    with pytest.raises(Refused, match=r"did you mean rack1\.20"):
        TABLE.run(ctx, "shelves rack.200")


def test_a_write_is_the_engineers_and_says_what_became_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    done = {"ok": True, "sent": True, "before": 0, "after": 33}
    answers: list[dict[str, object]] = [done, {"ok": False, "sent": False, "error": "is not allowed by the site"}]

    def ask(path: Path, request: dict[str, object], patience_s: float) -> dict[str, object]:
        assert path.parent == world.directory and patience_s > 3
        asked.append(request)
        return answers[len(asked) - 1]

    monkeypatch.setattr(lines, "ask", ask)
    ctx, person = world.context("anna", width=200)
    assert "rack1.200 led = 33 (was 0), read back" in say(ctx, person, "shelves write rack1.200 led=33")
    with pytest.raises(Refused, match="not allowed by the site"):
        TABLE.run(ctx, "shelves write rack1.200 clear_faults=1")
    assert asked[0] == {"do": "write", "device": "rack1.200", "item": "led", "value": 33}
    for bad in ("led", "led=x", "led=", "=3"):
        with pytest.raises(Refused, match=r"ITEM=VALUE|whole number"):
            TABLE.run(ctx, f"shelves write rack1.200 {bad}")
    with pytest.raises(Refused, match="no device"):
        TABLE.run(ctx, "shelves write rack9.1 led=33")
    assert len(asked) == 2, "nothing else was sent"
    trail = "\n".join(map(str, world.sim.supervisor.store.trail(50)))
    assert "rack1.200 led = 33 (was 0)" in trail and "anna" in trail and "clear_faults = 1: is not allowed" in trail
