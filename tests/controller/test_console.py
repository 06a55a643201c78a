"""Status, top, hold and release, from canned images."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path

import pytest
from rich.console import Console

from controller import operate, status
from controller import site as sites
from controller.canvas import Canvas
from controller.clock import ManualClock
from controller.instance import Instance
from controller.problems import SiteError
from controller.store import Store
from controller.top import render
from controller.topdata import Point, Snapshot, Source, calm
from tests.controller.fakes import FakeImage

SITE = sites.load(None)


def instance(tmp_path: Path) -> Instance:
    me = os.getpid()
    store = str(tmp_path / "h.sqlite")
    return Instance("builtin", me, 1, 3, str(tmp_path), store, control_pid=me, supervisor_pid=me)


def picture(snap: Snapshot, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=False)
    console.print(render(snap, width, height))
    return console.file.getvalue().rstrip("\n").split("\n")  # type: ignore[attr-defined]


def canned(points: int = 300) -> Snapshot:
    rows = []
    for i in range(points):
        load = 316e3 if i // 11 % 4 == 0 else 450e3
        rows.append(Point(i / 2, load - 5e3, load + 5e3, load, 400e3 + 20 * i, load - 400e3, 445e3))
    return Snapshot(
        site="builtin",
        mode="GRID",
        words="the battery carries the difference",
        up_s=754,
        load_w=451e3,
        grid_w=398e3,
        batt_w=53e3,
        soc=0.503,
        soc_target=0.5,
        temp_c=26.0,
        f_hz=50.01,
        import_limit_w=445e3,
        p_min_w=-250e3,
        p_max_w=250e3,
        limits=[("ramp", "2 kW/s: grid import moves toward its target no faster than the ramp limit")],
        ticks=75_400,
        wake_us={"p50": 36, "p99": 95, "p999": 120, "max": 212},
        buses=[("a", True, {"transactions": 9, "timeouts": 0, "crc_errors": 0, "late": 0})],
        devices=[("meter", True, 9, 0), ("pcs", False, 9, 2)],
        points=rows,
        calm=0.97,
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (60, 20)])
def test_the_picture_fits_the_terminal(width: int, height: int) -> None:
    lines = picture(canned(), width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height, 21)
    text = "\n".join(lines)
    for part in ("GRID", "451.0 kW", "398.0 kW", "+53.0 kW", "50.3 %", "ramp", "missed 0", "bus a", "○ pcs"):
        assert part in text, part


def test_the_grid_is_one_line_across_the_picture() -> None:
    lines = picture(canned(140), 80, 24)
    rows = [line for line in lines if "│" in line and any("⠀" < c <= "⣿" for c in line)]
    assert len(rows) >= 8
    assert sum(sum(c in "⠉⠒⠤⣀⠙⠚⠦⠴⠲⠋⠖⠓⡠⢄⠔⠢" for c in line) for line in rows) > 40


def test_an_empty_picture_before_the_first_tick() -> None:
    lines = picture(Snapshot("builtin", "-", "waiting for the first tick", 0.0), 80, 24)
    assert "waiting for the first tick" in lines[0]


def test_nothing_known_draws_dashes() -> None:
    assert any("- kW" in line for line in picture(Snapshot("s", "STANDBY", "", 1.0, points=[]), 80, 24))


def test_source_makes_half_second_points_from_the_ring() -> None:
    image = FakeImage()
    source = Source(image, SITE, None)
    for k in range(10):
        image.tick(50, load_w=400e3 + 1e3 * k, grid_p_w=390e3, limits_active=3, slot=-1)
        snap = source.snapshot(10**9)
    assert len(snap.points) == 9 or len(snap.points) == 10
    assert snap.points[3].load_w == pytest.approx(403e3, abs=30)
    assert [name for name, _ in snap.limits] == ["ramp", "import"]
    assert "445 kW" in snap.limits[1][1]


def test_calm_is_one_for_a_straight_grid_line() -> None:
    rows = [Point(i, 0, 0, 400e3 + 50e3 * (i % 2), 400e3, 0, 445e3) for i in range(80)]
    assert calm(rows) == 1.0
    assert math.isnan(calm(rows[:5]))


def test_canvas_dots() -> None:
    canvas = Canvas(2, 1)
    canvas.dot(0, 0, "red")
    canvas.span(3, 0, 3, "green")
    canvas.dot(9, 9, "red")
    assert list(canvas.lines()) == [[("⠁", "red"), ("⢸", "green")]]


def test_status_tells_health(tmp_path: Path) -> None:
    image = FakeImage()
    image.tick(200, limits_active=3, soc=float("nan"))
    clock = ManualClock(t_ns=200 * 10_000_000)
    got = status.collect(instance(tmp_path), SITE, image, clock)
    assert got["health"] == {"code": 0, "reasons": []}
    assert got["mode"] == "GRID" and got["limits_active"] == ["ramp", "import"]
    assert got["control"]["pid"] == os.getpid() and got["supervisor"]["pid"] == os.getpid()
    assert got["image"]["out"]["soc"] is None, "NaN is no JSON"
    json.dumps(got, allow_nan=False)
    assert "healthy" in status.text(got) and "load 400.0 kW" in status.line(got)


@pytest.mark.parametrize(
    ("out", "late_s", "says"),
    [
        ({"mode": 0}, 0, "mode is FAULT"),
        ({"mode": 1, "start_step": 2}, 0, "battery contactors"),
        ({"alarms": 4}, 0, "alarm pcs_lost"),
        ({}, 5, "does not tick"),
    ],
)
def test_status_says_why_it_is_degraded(tmp_path: Path, out: dict[str, float], late_s: float, says: str) -> None:
    image = FakeImage()
    image.tick(100, **out)
    got = status.collect(instance(tmp_path), SITE, image, ManualClock(t_ns=int((1 + late_s) * 1e9)))
    assert got["health"]["code"] == 1
    assert says in " ".join(got["health"]["reasons"])


def test_status_sees_dead_processes(tmp_path: Path) -> None:
    image = FakeImage()
    image.tick(100)
    image.alive[0] = False
    dead = instance(tmp_path)
    dead.supervisor_pid = 0
    got = status.collect(dead, SITE, image, ManualClock(t_ns=10**9))
    assert any("supervisor" in r for r in got["health"]["reasons"])
    assert any("device meter" in r for r in got["health"]["reasons"])


@pytest.mark.parametrize(
    ("text", "value_w"),
    [("0", 0.0), ("50000", 50e3), ("50kW", 50e3), (" -20kW", -20e3), ("-2e4", -2e4), ("0.1 MW", 100e3)],
)
def test_powers_people_write(text: str, value_w: float) -> None:
    assert operate.parse_power(text, SITE) == pytest.approx(value_w)


@pytest.mark.parametrize("text", ["", "much", "nan", "inf", "300kW", "-251000", "5 V"])
def test_powers_that_are_refused(text: str) -> None:
    with pytest.raises(SiteError):
        operate.parse_power(text, SITE)


def test_leases() -> None:
    assert operate.parse_lease(None) == 3600 and operate.parse_lease(60) == 60
    for bad in (0.0, -1.0, float("nan"), 1e6):
        with pytest.raises(SiteError):
            operate.parse_lease(bad)


def test_hold_and_release_stand_in_the_audit_trail_before_they_act(tmp_path: Path) -> None:
    image, clock, where = FakeImage(), ManualClock(t_ns=10**9), instance(tmp_path)
    number = operate.hold(where, image, -20e3, 60.0, clock)
    last = operate.release(where, image, clock)
    assert image.setpoints == [(0, 1, -20e3, 61 * 10**9, number), (0, 0, 0.0, 0, last)]
    rows = list(Store(tmp_path / "h.sqlite").audit())
    assert [row[3] for row in rows] == ["release", "hold"] and rows[1][0] == number and rows[1][4] == -20e3
