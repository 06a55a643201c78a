"""Lines that are not quite commands: each is a whole command or nothing, and says what would do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from _core import image as core
from controller import operate
from controller.console.context import Refused
from controller.console.look import LIMIT_NAMES
from tests.controller.console.world import TABLE, World, say


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    made.people()
    yield made
    made.end()


def row(world: World) -> dict[str, float]:
    return dict(world.sim.image.latest()["out"])


ACTS = {
    "hold": "hold", "setpoint": "setpoint", "limit": "limit", "mode standby": "mode", "mode auto": "mode", "reset": "reset",
    "record freeze": "freeze", "limit off": "limit",
} | {f"limit {k}": "limit" for k in LIMIT_NAMES}  # fmt: skip


def leaves_a_row(world: World, line: str) -> str:
    """The command that the trail must name when this line is carried out; empty: none."""
    got = TABLE.parse(line)
    if got is None:
        return ""
    name, words = got[0].name, [word.lower() for word in got[1]]
    if name == "release" or (name == "setpoint" and "off" in words):
        return "release" if operate.word(world.sim.image, world.clock) is not None else ""
    return "" if name == "limit" else ACTS.get(name, "")


def rss_kb() -> int:
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])


def test_ten_thousand_fuzzed_lines_change_nothing_but_whole_commands(world: World) -> None:
    """Lines made of commands with letters flipped, cut, doubled: each is a whole command, with its row in the trail, or is refused and
    leaves none; nothing breaks, and nothing grows.
    """
    rng = random.Random(20261124)
    ctx, person = world.context("anna")
    asking = ("top", "test", "restart", "passwd", "user", "exit", "logout", "terminal")  # they talk to the person
    good = [c.line for c in TABLE.rows.values()]
    good += ["hold 20kW for 10min force", "settings set grid.import_limit_w 440kW", "limit import 400kW"]
    good += ["setpoint 5kW force", "setpoint grid -5kW", "setpoint off", "release"]
    good = [g for g in good if not g.startswith((*asking, "settings load"))]
    world.answer = lambda request: {"ok": False, "problems": [{"file": "", "key": "", "value": None, "why": "no", "remedy": ""}]}
    refused = carried_out = small_kb = 0
    rows: Counter[str] = Counter()
    for k in range(10_000):
        line = fuzzed(rng, list(rng.choice(good)))
        if {word.lower() for word in line.split()[:2]} & set(asking) or "load" in line:
            continue
        try:
            row_of = leaves_a_row(world, line)
            TABLE.run(ctx, line)
            rows[row_of] += 1
            carried_out += 1
        except Refused:
            refused += 1
        if k % 500 == 0:
            with person.lock:
                person.got = b""
            world.asked.clear()
            world.run_s(0.05)
        if k == 2000:
            small_kb = rss_kb()
    assert refused > 3000 and carried_out > 500
    assert rss_kb() - small_kb < 4000, "kB"
    del rows[""]
    with ctx.store() as store:
        found = Counter(r.command for r in store.trail(100_000) if r.who == "anna on pair")
    assert found == rows and len(found) == 7 and sum(found.values()) > 200
    assert row(world)["mode"] in (core.MODE_GRID, core.MODE_STOP, core.MODE_STANDBY), "parked or not, by what the fuzz typed"
    out = row(world)
    assert out["p_min_w"] <= out["p_cmd_w"] <= out["p_max_w"]


def fuzzed(rng: random.Random, text: list[str]) -> str:
    """The line with up to four accidents."""
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(text) + 1)
        what = rng.randrange(4)
        if what == 0 and text:
            text[at - 1] = chr(rng.randrange(0x250))
        elif what == 1 and text:
            del text[at - 1]
        elif what == 2:
            text.insert(at, rng.choice("\"'\\ \t;|&$(){}\x00\x1b\r0123456789-+eE.%kWMW"))
        else:
            text = text[:at]
    return "".join(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hold '20kW", "a quote .* not closed: not done"),
        ("hold 20kW\\", "a backslash stands at the end"),
        ("limit now", r"(?s)one of:\n  limit\n  limit import VALUE.*limit soc_max VALUE.*limit off"),
        ("mode manual", r"(?s)  mode\n  mode standby\n  mode auto"),
        ("limit import", r"usage: limit import VALUE \[for TIME\] \[force\]$"),
        ("hold 20kW for", "for how long"),
        ("hold 20kW for force", "for how long"),
        ("hold 20kW for 10 parsecs", "'10parsecs' is no span"),
        ("release for 10min", r"usage: release \[force\]"),
        ("setpoint 5kW for 10min", "is a hold: `hold 20kW for 10min`"),
        ("settings set a.b 1 for", "for how long"),
        ("ballast", "ballast is no command"),
    ],
)
def test_what_is_said_to_a_line_that_is_not_quite_one(world: World, text: str, words: str) -> None:
    ctx, _ = world.context("anna")
    with pytest.raises(Refused, match=words):
        TABLE.run(ctx, text)
    assert operate.word(world.sim.image, world.clock) is None and not world.asked


def test_spans_and_the_habits_of_a_shell(world: World) -> None:
    ctx, person = world.context("anna")
    assert "for 30 s" in say(ctx, person, "hold 20 kW for 30 s") and "for 600 s" in say(ctx, person, "HOLD 20kW FOR 10 min")
    assert "for 90 s" in say(ctx, person, "ballast hold 0 for 90")
    assert "(you)" in say(ctx, person, "Ballast who")
    assert "hold" in TABLE.candidates(ctx, "ballast") and TABLE.candidates(ctx, "ballast mode") == ["auto", "standby"]
    world.answer = lambda request: {"ok": True, "id": 7, "how": "live", "changes": {"a.b": [0, 1]}}
    assert "on trial for 30 s" in say(ctx, person, "settings set a.b 1 kW for 30 s")
    assert world.asked[-1]["changes"] == {"a.b": "1 kW"} and world.asked[-1]["seconds"] == 30


def test_a_completion_that_fails_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, _ = world.context("otto")
    assert "all" in TABLE.candidates(ctx, "ack")
    monkeypatch.setattr("controller.console.standing.alive", lambda pid: Path("/nowhere/at/all").read_text())
    assert TABLE.candidates(ctx, "ack") == []


def test_a_line_with_what_nobody_types_is_refused_whole(world: World) -> None:
    ctx, _ = world.context("anna")
    for text in ("hold 20kW\x00", "hold\x1b[A 20kW", "hold 20kW\u202e", "hold '20kW", "x " * 30, "hold 20kW \x07"):
        with pytest.raises(Refused):
            TABLE.run(ctx, text)
    assert operate.word(world.sim.image, world.clock) is None
