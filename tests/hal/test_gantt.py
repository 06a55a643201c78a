"""The tick in characters: every letter where the plan has it, 80 columns, ASCII."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import pytest

from controller import build
from controller import site as sites
from hal.gantt import CELLS, NAME, draw
from hal.plan import Plan

CAN_SITE = Path(__file__).parents[1] / "loop/can_site.toml"
TCP = ["bus.a.port=virtual-tcp", "bus.b.port=virtual-tcp"]
CAN_PCS = ["device.pcs.bus=c", "device.pcs.profile=generic_can_pcs"]


def planned(path: Path | None, *sets: str) -> Plan:
    return build.plan(sites.load(path, sets))


def row(plan: Plan, name: str) -> str:
    return next(line for line in draw(plan) if line.split()[0] == name)[NAME:]


def runs(text: str) -> list[tuple[str, float, float]]:
    """(letter, from, to) in ms of a row, blanks left out."""
    out, at = [], 0
    for letter, cells in groupby(text):
        n = len(list(cells))
        out.append((letter, at * 10 / CELLS, (at + n) * 10 / CELLS))
        at += n
    return [r for r in out if r[0] != " "]


def test_letters_stand_where_the_plan_has_them() -> None:
    plan = planned(None)
    spans = runs(row(plan, "a"))
    assert [r[0] for r in spans] == ["R", "-", "A", ".", "r", "~", "a", "."]
    # request 0.191, t3.5 to 1.941, answer to 2.633, silence to 4.383; the after-slot's longest: to 7.589
    ends = [0.191, 1.941, 2.633, 4.383, 4.574, 6.324, 7.589, 9.339]
    for (_, _, end), want in zip(spans, ends, strict=True):
        assert end == pytest.approx(want, abs=10 / CELLS)
    command = next(r for r in runs(row(plan, "b")) if r[0] == "C")
    assert command[1:] == pytest.approx((plan.step_ms, plan.command_end_ms), abs=10 / CELLS)
    kernel = {r[0]: r[1] for r in runs(row(plan, "kernel"))}
    want = {"K": plan.step_ms, "L": plan.step_deadline_ms, "E": plan.command_end_ms}
    assert {k: kernel[k] for k in want} == pytest.approx(want, abs=10 / CELLS)


def test_a_millisecond_is_seven_columns() -> None:
    numbers, marks = draw(planned(None))[:2]
    for ms in range(10):
        assert re.match(rf"{ms}\b", numbers[NAME + 7 * ms :]) and marks[NAME + 7 * ms] == "+"
    assert numbers.endswith(" 10") and len(numbers) == len(marks) == NAME + 71 and marks[-1] == "+"


@pytest.mark.parametrize(
    ("path", "sets", "has", "has_not"),
    [
        (None, (), "RC-A.r~a>", "#=:"),
        (None, TCP, "RCAra", "-~.>#=:"),
        (None, ("bus.a.baud=115200", "bus.b.baud=115200"), "RC-A.r~a>", "#=:"),
        (CAN_SITE, (), "RC-A.r~a:>", "#="),
        (CAN_SITE, CAN_PCS, "R-A.#=:", "Cr~a>"),
    ],
)
def test_each_kind_of_bus_and_a_legend_of_what_is_there(path: Path | None, sets: tuple[str, ...], has: str, has_not: str) -> None:
    plan = planned(path, *sets)
    lines = draw(plan)
    assert all(len(line) < 80 and line.isascii() for line in lines)
    buses = [line for line in lines if line.split()[0] in [t.spec.name for t in plan.tables]]
    assert [line.split()[0] for line in buses] == [t.spec.name for t in plan.tables]
    drawn = set("".join(line[NAME:] for line in buses)) - {" "}
    assert drawn == set(has) and not drawn & set(has_not)
    legend = " ".join(lines[lines.index(next(x for x in lines if x.startswith("kernel"))) + 1 :])
    for letter, words in (("R", "R request"), ("C", "C command"), ("r", "r ~ a the same"), ("#", "# our CAN frame"), (">", "> on into")):
        assert (words in legend) == (letter in has), words


def test_a_can_command_and_what_it_may_wait() -> None:
    plan = planned(CAN_SITE, *CAN_PCS)
    (sent,) = [p for p in plan.timeline if p.kind == "can"]
    frame, wait = (r for r in runs(row(plan, "c")) if r[0] in "#=")
    assert (frame[0], wait[0]) == ("#", "=")
    assert (frame[1], frame[2], wait[2]) == pytest.approx((plan.step_ms, sent.sent_ms, sent.end_ms), abs=10 / CELLS)


def test_a_long_name_is_cut_and_check_shows_the_picture() -> None:
    text = sites.BUILTIN.read_text().replace('name = "b"', 'name = "converters"').replace('bus = "b"', 'bus = "converters"')
    plan = build.plan(sites.load(None, text=text))
    assert any(line.startswith("conver* ") and len(line) < 80 for line in draw(plan))
    assert str(plan).splitlines()[1:4] == draw(plan)[:3]
