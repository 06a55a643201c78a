"""`ballast top`: the live view. Load drawn as what it is, grid import as the line the battery makes of it."""

from __future__ import annotations

import math
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controller.canvas import Canvas
from controller.topdata import POINT_NS, Point, Snapshot

LOAD, GRID, LIMIT, BATT = "dark_orange3", "bold bright_green", "red", "deep_sky_blue1"
MODE_STYLE = {"GRID": "bold black on bright_green", "ISLAND": "bold black on bright_cyan", "FAULT": "bold white on red"}
REFRESH_S = 0.5
AXIS = 8  # characters left of the picture
FIXED_ROWS = 11  # all but the picture and the lists below it
MIN_CHART_ROWS = 6
SWEEP_GAP = 8  # dots between the newest value and the oldest that is still there


def render(snap: Snapshot, width: int, height: int, *, sweep: bool = False) -> Group:
    """The whole screen as one renderable, `width` x `height` characters (made for 80 x 24 and more). `sweep`: the picture does
    not scroll; like an oscilloscope it is overwritten from the left, which changes few characters.
    """
    width = max(60, width)
    notes = _notes(snap, width, max(2, min(6, height // 8)))
    rows = max(MIN_CHART_ROWS, height - FIXED_ROWS - len(notes))
    return Group(
        _head(snap, width),
        Text(),
        *_numbers(snap, width),
        Text(),
        *chart(snap, width, rows, sweep=sweep),
        *notes,
        *_health(snap, width),
    )


def _head(snap: Snapshot, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(" ballast ", "bold reverse")
    line.append(f" {snap.site} ", "bold")
    line.append(f" {snap.mode} ", MODE_STYLE.get(snap.mode, "bold black on yellow"))
    line.append(f" {snap.words}")
    clock = _clock(snap.up_s)
    line.truncate(width - len(clock) - 1, overflow="ellipsis", pad=True)
    line.append(f" {clock}", "dim")
    return line


def _numbers(snap: Snapshot, width: int) -> list[Any]:
    """Load, grid, battery, state of charge: a number and a bar each, and what is behind it."""
    bar = max(10, width - 58)
    top_w = _scale_top(snap)
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8)
    table.add_column(width=10, justify="right")
    table.add_column(width=bar)
    table.add_column(no_wrap=True, overflow="ellipsis", width=width - bar - 22)
    swing = _swing([(p.load_min_w, p.load_max_w) for p in snap.points[-120:]])
    calm = f"calmer than the load by {100 * snap.calm:.1f} %" if math.isfinite(snap.calm) else f"limit {_kw(snap.import_limit_w)}"
    flow = "discharging" if snap.batt_w > 500 else "charging" if snap.batt_w < -500 else "resting"
    window = f"{flow}, may {snap.p_min_w / 1e3:+.0f} to {snap.p_max_w / 1e3:+.0f} kW"
    soc = "" if not math.isfinite(snap.soc) else f"{100 * snap.soc:.1f} %"
    target = f"target {100 * snap.soc_target:.0f} %, {snap.temp_c:.0f} °C, {snap.f_hz:.3f} Hz"
    table.add_row("load", _kw(snap.load_w), _bar(snap.load_w / top_w, bar, LOAD), f"swings by {_kw(swing)} within a minute")
    table.add_row(Text("grid", GRID), Text(_kw(snap.grid_w), GRID), _bar(snap.grid_w / top_w, bar, GRID), calm)
    table.add_row("battery", _kw(snap.batt_w, sign=True), _centre_bar(snap.batt_w, snap.p_min_w, snap.p_max_w, bar), window)
    table.add_row("charge", soc, _bar(snap.soc, bar, BATT), target)
    table.add_row("setpoint", snap.slot, "", snap.slot_words)
    return [table]


def chart(snap: Snapshot, width: int, rows: int, *, sweep: bool = False) -> list[Text]:
    """Load (area between its extremes), grid import (line), import limit (dashes) over the last minutes."""
    columns = width - AXIS - 1
    canvas = Canvas(columns, rows)
    points, merged = _fit(snap.points[-(canvas.width - SWEEP_GAP) :] if sweep else snap.points, canvas.width)
    low, high = _range(points, snap.import_limit_w)
    places = [round(p.t_s * 1e9 / POINT_NS) % canvas.width for p in points] if sweep else []

    def y(watts: float) -> int:
        return round((high - watts) / (high - low) * (canvas.height - 1))

    first = canvas.width - len(points)
    places = places or [first + i for i in range(len(points))]
    for x in range(0, canvas.width, 6):
        limit = snap.import_limit_w
        if low <= limit <= high:
            canvas.span(x, y(limit), y(limit), LIMIT)
            canvas.dot(x + 1, y(limit), LIMIT)
    before: Point | None = None
    for x, point in zip(places, points, strict=True):
        top, bottom = point.load_max_w, point.load_min_w
        if before is not None:  # joined to its neighbour, or a fast edge would look like two dots
            top, bottom = max(top, before.load_min_w), min(bottom, before.load_max_w)
        canvas.span(x, y(top), y(bottom), LOAD)
        before = point
    for x, point in zip(places, points, strict=True):
        canvas.clear_cell(x, y(point.grid_w))
    previous: int | None = None
    for x, point in zip(places, points, strict=True):
        at = y(point.grid_w)
        canvas.span(x, at if previous is None or x == 0 else previous, at, GRID)
        previous = at
    labels = {0: high, rows - 1: low, rows // 2: (high + low) / 2}
    lines = []
    for i, runs in enumerate(canvas.lines()):
        line = Text(f"{labels[i] / 1e3:6.0f}kW" if i in labels else " " * AXIS, "dim", no_wrap=True, end="")
        line.append("│", "dim")
        for text, style in runs:
            line.append(text, style)
        lines.append(line)
    lines.append(_legend(merged, columns, sweep))
    return [Text.assemble(line, no_wrap=True) for line in lines]


def _fit(points: list[Point], width: int) -> tuple[list[Point], int]:
    """At most `width` points, each made of 1, 2 or 4: the picture is fine at first and becomes minutes wide as it
    fills.
    """
    merged = next((n for n in (1, 2, 4) if len(points) <= n * width), 4)
    points = points[-width * merged :]
    groups = [points[i : i + merged] for i in range(len(points) % merged, len(points), merged)]
    return [
        Point(
            t_s=g[-1].t_s,
            load_min_w=min(p.load_min_w for p in g),
            load_max_w=max(p.load_max_w for p in g),
            load_w=sum(p.load_w for p in g) / len(g),
            grid_w=sum(p.grid_w for p in g) / len(g),
            batt_w=sum(p.batt_w for p in g) / len(g),
            limit_w=g[-1].limit_w,
        )
        for g in groups
    ], merged


def _legend(merged: int, columns: int, sweep: bool) -> Text:
    seconds = columns * 2 * merged * POINT_NS / 1e9
    line = Text(" " * AXIS + "└", "dim", no_wrap=True, end="")
    parts = [("⣿ load ", LOAD), ("━ grid ", GRID), ("╌ import limit ", LIMIT)]
    used = sum(len(text) for text, _ in parts)
    start = f"-{_clock(seconds)} "
    line.append(start, "dim")
    room = columns - len(start) - used - 5
    line.append("─" * max(1, room // 2), "dim")
    line.append(" ")
    for text, style in parts:
        line.append(text, style)
    line.append("─" * max(1, room - room // 2), "dim")
    line.append(" >>>" if sweep else " now", "dim")
    return line


def _notes(snap: Snapshot, width: int, most: int) -> list[Text]:
    """Alarms, then active limits, in words with numbers."""
    rows = [("ALARM", name, words, "bold red") for name, words in snap.alarms]
    rows += [("limit", name, words, "yellow") for name, words in snap.limits]
    if not snap.control_alive:
        rows.insert(0, ("ALARM", "control", "is not running: the PCS is at its reversion power", "bold red"))
    if not snap.supervisor_alive:
        rows.insert(0, ("note", "supervisor", "is not running; it is started again at once", "yellow"))
    if not rows:
        rows = [("limit", "none", "power is what the reference asks for", "dim")]
    lines = []
    for kind, name, words, style in rows[:most]:
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{kind:<6}{name:<14}", style)
        line.append(words)
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    if len(rows) > most:
        lines[-1] = Text(f"      … and {len(rows) - most + 1} more", "dim")
    return lines


def _health(snap: Snapshot, width: int) -> list[Text]:
    wake = snap.wake_us or {}
    ticks = Text(no_wrap=True)
    ticks.append(f"ticks {snap.ticks:,}  ")
    ticks.append(f"missed {snap.missed}", "bold red" if snap.missed else "green")
    if wake:
        ticks.append(f"  wake p50 {wake['p50']:.0f} p99 {wake['p99']:.0f} max {wake['max']:.0f} µs")
    if snap.step_ns:
        ticks.append(f"  kernel p50 {snap.step_ns['p50']:.0f} ns")
    wires = Text(no_wrap=True)
    for name, is_open, row in snap.buses:
        bad = row["timeouts"] + row["crc_errors"]
        wires.append(f"bus {name} ", "" if is_open else "bold red")
        wires.append(f"{row['transactions']:,}", "dim")
        wires.append(f" {bad} bad  " if is_open else " port gone  ", "dim" if is_open and not bad else "yellow")
    for name, answers, _, failed in snap.devices:
        wires.append("● " if answers else "○ ", "green" if answers else "bold red")
        wires.append(f"{name} ")
        wires.append(f"{failed} failed  " if failed else " ", "dim")
    for line in (ticks, wires):
        line.truncate(width, overflow="ellipsis")
    return [ticks, wires]


def _bar(share: float, width: int, style: str) -> Text:
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    eighths = round(share * width * 8)
    text = "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
    return Text(text.ljust(width), style)


def _centre_bar(value_w: float, low_w: float, high_w: float, width: int) -> Text:
    """Charge to the left, discharge to the right of the middle."""
    half = width // 2
    span = max((abs(x) for x in (low_w, high_w) if math.isfinite(x)), default=0.0) or 250e3
    n = round(min(1.0, abs(value_w) / span) * half) if math.isfinite(value_w) else 0
    left, right = ("█" * n, "") if value_w < 0 else ("", "█" * n)
    return Text(left.rjust(half) + "│" + right.ljust(width - half - 1), BATT)


def _range(points: list[Point], limit_w: float) -> tuple[float, float]:
    """Bottom and top of the picture: all that is drawn, rounded to 20 kW, never flat."""
    values = [w for p in points for w in (p.load_min_w, p.load_max_w, p.grid_w)] or [0.0, 100e3]
    low, high = min(values), max(values)
    if math.isfinite(limit_w) and limit_w < high + (high - low):
        high = max(high, limit_w)
    step = 20e3 if high - low > 50e3 else 5e3
    low, high = math.floor(low / step) * step, math.ceil((high + 1) / step) * step
    return low, max(high, low + 2 * step)


def _scale_top(snap: Snapshot) -> float:
    known = [w for w in (snap.import_limit_w, snap.load_w, snap.grid_w) if math.isfinite(w)]
    known += [p.load_max_w for p in snap.points]
    return max([*known, 1.0])


def _swing(spans: list[tuple[float, float]]) -> float:
    return max(b for _, b in spans) - min(a for a, _ in spans) if spans else math.nan


def _kw(watts: float, *, sign: bool = False) -> str:
    return f"{watts / 1e3:{'+' if sign else ''}.1f} kW" if math.isfinite(watts) else "- kW"


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


class View:
    """The Live display; `draw` is called by whoever owns the loop (the parent in `ballast run`, `watch` in `ballast
    top`).
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.live = Live(console=self.console, screen=self.console.is_terminal, auto_refresh=False, redirect_stderr=False)

    def __enter__(self) -> View:
        self.live.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.live.__exit__(*args)

    def draw(self, snap: Snapshot) -> None:
        """One picture."""
        size = self.console.size
        self.live.update(render(snap, size.width, size.height), refresh=True)


def watch(next_snapshot: Callable[[], Snapshot | None], *, once: bool = False) -> int:
    """Draws until `next_snapshot` gives None, or q or Ctrl-C; `once` prints one picture (for a pipe). Returns the
    exit code.
    """
    console = Console()
    if once or not console.is_terminal:
        snap = next_snapshot()
        if snap is not None:
            console.print(render(snap, console.size.width, console.size.height))
        return 0
    with _raw_keys(), View(console) as view:
        try:
            while (snap := next_snapshot()) is not None:
                view.draw(snap)
                if select.select([sys.stdin], [], [], REFRESH_S)[0] and os.read(sys.stdin.fileno(), 16)[:1] in (
                    b"q",
                    b"Q",
                    b"",
                ):
                    break
        except KeyboardInterrupt:
            pass
    return 0


class _raw_keys:
    """Keys without Enter and without echo, put back on the way out."""

    def __enter__(self) -> None:
        import termios
        import tty

        self._old = None
        if sys.stdin.isatty():
            self._old = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)

    def __exit__(self, *args: Any) -> None:
        import termios

        if self._old is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._old)
