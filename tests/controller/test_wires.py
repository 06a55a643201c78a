"""Wires as measured beside the plan: turnarounds and shares, what a person reads of them, and when they are warned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from _core import image as im
from bench.plant.params import PARAMS
from bench.sim import Simulation
from controller import __main__ as command
from controller import build, status, wires
from controller import site as sites
from controller.console.look import show_buses
from controller.virtual import LoadOptions
from tests.controller.console.world import World
from tests.controller.fakes import FakeImage

SITE = sites.load(None)
SLOW_METER = "plant.meter.turnaround_s=0.00126"


def told(site: sites.Site = SITE) -> dict[str, Any]:
    return wires.told(build.plan(site), site)


class Image(FakeImage):
    """Devices with these (turnaround in ms, answers)."""

    def __init__(self, *turns: tuple[float, int]) -> None:
        super().__init__()
        self.turns = turns
        self.late = 0

    def device_stats(self, i: int) -> dict[str, Any]:
        row, bins = super().device_stats(i), [0] * 256
        ms, n = self.turns[i] if i < len(self.turns) else (0.0, 0)
        bins[min(int(10 * ms), 255)] = n
        return row | {"turn": bins, "turn_n": n, "turn_max_ns": int(ms * 1e6) if n else 0}

    def bus_stats(self, i: int) -> dict[str, int]:
        return super().bus_stats(i) | {"late": self.late, "transactions": 1000}


def test_the_plan_says_of_each_wire_what_it_expects() -> None:
    plan = told()
    assert {k: (v["bus"], v["turnaround_ms"], v["fast"]) for k, v in plan["devices"].items()} == {
        "meter": ("a", 0.0, True), "bms": ("a", 0.0, False), "pcs": ("b", 0.0, False),
    }  # fmt: skip
    # meter 2.633 and one of three BMS reads of 3.206, 2.681, 2.252; command 2.347 and a readback of 2.824 or what takes its place
    assert plan["busy_ms"]["a"] == pytest.approx(2.633 + 0.34 * 3.206 + 0.33 * (2.681 + 2.252), abs=0.002)
    assert plan["busy_ms"]["b"] == pytest.approx(2.347 + 0.96 * 2.824 + 0.01 * (2.681 + 2.299 + 2 * 2.251), abs=0.002)
    assert plan["meter_age_ms"] == pytest.approx(2.633 - 1.941, abs=1e-3)
    slow = told(sites.load(None, ["device.meter.turnaround_ms=1.5"]))
    assert slow["devices"]["meter"]["turnaround_ms"] == 1.5


def test_nothing_measured_is_nothing_said() -> None:
    got = wires.collect(FakeImage(), SITE, None)
    assert got["devices"]["meter"]["p99_ms"] is None and got["meter_age_ms"] is None
    assert wires.warnings(got, SITE) == []
    assert [wires.device_line(got["devices"]["meter"]), wires.meter_line(got), wires.bus_line(got["buses"]["a"])] == ["", "", ""]


@pytest.mark.parametrize(
    ("turns", "warned"),
    [
        ([(0.0, 9999), (0.3, 9999), (0.4, 9999)], []),
        ([(2.55, 499)], []),  # too few to say
        ([(2.55, 500)], ["meter takes 2.6 ms to answer (p99), planned with 0: load to power p99 of 18.35 ms does not hold; "
                         "set device.meter.turnaround_ms to 2.6"]),
        ([(0.0, 9999), (30.0, 9999)], ["bms takes 30 ms to answer (p99), planned with 0: an answer of it may still be on the wire when "
                                       "bus a is needed; set device.bms.turnaround_ms to 30:"]),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_hold_is_told_with_what_to_write(turns: list[tuple[float, int]], warned: list[str]) -> None:
    said = wires.warnings(wires.collect(Image(*turns), SITE, told()), SITE)
    assert len(said) == len(warned)
    for text, start in zip(said, warned, strict=True):
        assert text.startswith(start), text


def test_a_busy_machine_is_named_where_the_cabinet_is_a_process_and_not_where_it_stands_in_a_hall() -> None:
    real = sites.load(None, ["bus.a.port=/dev/ttyS8", "bus.b.port=/dev/ttyS9"])
    for site, named in ((SITE, True), (real, False)):
        (said,) = wires.warnings(wires.collect(Image((2.55, 500)), site, told(site)), site)
        assert ("a busy machine does that too" in said) == named


def test_over_tcp_the_network_may_be_it() -> None:
    site = sites.load(None, ["bus.a.port=virtual-tcp"])
    (said,) = wires.warnings(wires.collect(Image((1.9, 9999)), site, told(site)), site)
    assert "set device.meter.turnaround_ms to 1.9 (or bus.a.latency_ms more, where the network is it)" in said


def test_a_device_whose_answers_all_come_too_late_is_told_of() -> None:
    image = Image()
    assert wires.warnings(wires.collect(image, SITE, told()), SITE) == []
    image.alive[0], image.late = False, 40
    (said,) = wires.warnings(wires.collect(image, SITE, told()), SITE)
    assert "40 answers came when they had been given up, and meter counts as lost; set device.meter.turnaround_ms" in said


def sim(*sets: str) -> tuple[Simulation, sites.Site]:
    site = build.load_site(None, sets, lambda: list(PARAMS))
    s = Simulation(site, LoadOptions(trace="steps", repeat=False))
    s.run_s(20)
    return s, site


def test_the_remedy_makes_the_plan_true() -> None:
    s, site = sim(SLOW_METER)
    got = wires.collect(s.image, site, wires.told(s.plan, site))
    (said,) = wires.warnings(got, site)
    assert "set device.meter.turnaround_ms to 1.3:" in said
    assert got["meter_age_ms"] == pytest.approx(got["planned_meter_age_ms"] + 0.63, abs=0.02), "half of what is late lies before the sample"
    assert s.out["mode"] != im.MODE_GRID, "behind such a meter the BMS's reads have no room left"
    s, site = sim(SLOW_METER, "device.meter.turnaround_ms=1.3")
    assert s.out["mode"] == im.MODE_GRID
    got = wires.collect(s.image, site, wires.told(s.plan, site))
    assert wires.warnings(got, site) == [] and got["devices"]["meter"]["planned_ms"] == 1.3
    for name, row in got["buses"].items():
        assert row["busy_ms"] == pytest.approx(row["planned_busy_ms"], rel=0.15), f"{name}: the start is in it"


def test_status_console_and_check_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    w = World(tmp_path, monkeypatch, sets=["plant.pcs.turnaround_s=0.00063"])
    try:
        w.run_s(8)
        got = status.collect(w.instance, w.site, w.sim.image, w.clock)
        warned = "pcs takes 0.7 ms to answer (p99), planned with 0: an answer of it may still be on the wire when bus b is needed"
        assert [t.startswith(warned) for t in got["warnings"]] == [True] and json.dumps(got["wires"])
        assert got["health"]["code"] == status.HEALTHY, "it is told of, and the site goes on"
        text = status.text(got)
        shown = ("turnaround p50 0.6, p99 0.6, max 0.6 ms (plan 0)", "wire in use", "(plan 5.35, 54 %)", "ms apart", f"warning: {warned}")
        assert [words for words in shown if words not in text] == []
        ctx, _ = w.context()
        said = "\n".join(show_buses(ctx, []))
        assert f"WARNING {warned}" in said and "pcs: turnaround p50 0.6" in said and "wire in use" in said
        capsys.readouterr()
        assert command.main(["check"]) == 0
        told_text = capsys.readouterr().out
        assert "measured by the site builtin that runs here:" in told_text and f"warning: {warned}" in told_text
    finally:
        w.end()
    assert command.main(["check"]) == 0 and "measured by" not in capsys.readouterr().out
