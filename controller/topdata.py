"""What `ballast top` shows, as plain data: taken from the image, kept for the minutes that are drawn. No drawing in
here.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from _core import image as core
from controller import summary
from controller.instance import Instance, alive
from controller.site import Site

POINT_NS = 500_000_000  # one point of the picture
CALM_POINTS = 60
WINDOW_S = 600.0  # kept; as much is drawn as fits


@dataclass(frozen=True)
class Point:
    """Half a second: the load's extremes, and the means of the rest. W."""

    t_s: float
    load_min_w: float
    load_max_w: float
    load_w: float
    grid_w: float
    batt_w: float
    limit_w: float


@dataclass
class Snapshot:
    """One picture's worth. Powers in W, SoC 0..1, NaN where not known."""

    site: str
    mode: str
    words: str
    up_s: float
    load_w: float = math.nan
    grid_w: float = math.nan
    batt_w: float = math.nan
    ref_w: float = math.nan
    mean_w: float = math.nan
    soc: float = math.nan
    soc_target: float = math.nan
    temp_c: float = math.nan
    f_hz: float = math.nan
    import_limit_w: float = math.nan
    ramp_w_per_s: float = math.nan
    p_min_w: float = math.nan
    p_max_w: float = math.nan
    slot: str = "none"
    slot_words: str = ""
    limits: list[tuple[str, str]] = field(default_factory=list)  # name, words with numbers
    alarms: list[tuple[str, str]] = field(default_factory=list)
    ticks: int = 0
    missed: int = 0
    wake_us: dict[str, float] | None = None
    step_ns: dict[str, float] | None = None
    buses: list[tuple[str, bool, dict[str, int]]] = field(default_factory=list)
    devices: list[tuple[str, bool, int, int]] = field(default_factory=list)  # name, answers, ok, failed
    control_alive: bool = True
    supervisor_alive: bool = True
    points: list[Point] = field(default_factory=list)
    calm: float = math.nan  # share of the load's swing that the grid does not see, over the points


class Source:
    """Reads one instance's image; call `snapshot` a few times a second."""

    def __init__(self, image: Any, site: Site, instance: Instance | None) -> None:
        self.image, self.site, self.instance = image, site, instance
        self.points: deque[Point] = deque(maxlen=int(WINDOW_S * 1e9 / POINT_NS))
        self._position = 0
        self._dtype = core.record_dtype()
        self._open: list[np.ndarray] = []
        self._open_bin: int | None = None

    def _take(self) -> None:
        """Moves the ring's new records into points."""
        raw, self._position = self.image.drain(self._position)
        rows = np.frombuffer(raw, self._dtype)
        if not len(rows):
            return
        bins = rows["inp"]["t_ns"] // POINT_NS
        cuts = np.flatnonzero(bins[1:] != bins[:-1]) + 1
        for part in np.split(rows, cuts):
            own = int(part["inp"]["t_ns"][0] // POINT_NS)
            if self._open_bin is not None and own != self._open_bin:
                self._close_point()
            self._open_bin = own
            self._open.append(part)

    def _close_point(self) -> None:
        rows = np.concatenate(self._open)
        self._open.clear()
        rows = rows[rows["inp"]["meter"]["g"]["count"] > 0]  # before the meter has spoken there is nothing to draw
        if not len(rows):
            return
        load, grid = rows["out"]["load_w"], rows["out"]["grid_p_w"]
        if not (np.isfinite(load).all() and np.isfinite(grid).all()):
            return
        point = Point(
            t_s=float(rows["inp"]["t_ns"][-1]) / 1e9,
            load_min_w=float(load.min()),
            load_max_w=float(load.max()),
            load_w=float(load.mean()),
            grid_w=float(grid.mean()),
            batt_w=float(rows["out"]["batt_p_w"].mean()),
            limit_w=float(rows["lim"]["import_limit_w"][-1]),
        )
        self.points.append(point)

    def snapshot(self, now_ns: int) -> Snapshot:
        """The newest picture."""
        self._take()
        latest, stats = self.image.latest(), self.image.engine_stats()
        up_s = max(0.0, (now_ns - self.image.started_ns) / 1e9)
        if latest is None:
            return Snapshot(self.site.name, "-", "waiting for the first tick", up_s)
        inp, lim, out = latest["inp"], latest["lim"], latest["out"]
        mode = core.MODE_NAMES[out["mode"]]
        snap = Snapshot(
            site=self.site.name,
            mode=mode,
            words=core.START_NAMES[out["start_step"]] if mode == "STANDBY" else _mode_words(mode),
            up_s=up_s,
            load_w=out["load_w"],
            grid_w=out["grid_p_w"],
            batt_w=out["batt_p_w"],
            ref_w=out["ref_w"],
            mean_w=out["mean_w"],
            soc=out["soc"],
            soc_target=lim["soc_target"],
            temp_c=inp["bms_temp"]["batt_temp_max_c"],
            f_hz=inp["meter"]["f_hz"],
            import_limit_w=lim["import_limit_w"],
            ramp_w_per_s=lim["ramp_up_w_per_s"],
            p_min_w=out["p_min_w"],
            p_max_w=out["p_max_w"],
            limits=limit_words(latest),
            alarms=[row for bit, row in core.ALARM_TEXT.items() if out["alarms"] & bit],
            ticks=stats["ticks"],
            missed=stats["missed_ticks"],
            points=list(self.points),
            calm=calm(list(self.points)[-240:]),
        )
        snap.slot, snap.slot_words = _slot_words(out, inp, now_ns)
        figures = summary.engine(stats)
        snap.wake_us, snap.step_ns = figures["wake_latency_us"], figures["step_ns"]
        self._wires(snap)
        return snap

    def _wires(self, snap: Snapshot) -> None:
        for i, bus in enumerate(self.site.buses):
            row = self.image.bus_stats(i)
            snap.buses.append((bus.name, bool(row["is_open"]), {key: int(row[key]) for key in summary.BUS_KEYS}))
        for i, device in enumerate(self.site.devices):
            row = self.image.device_stats(i)
            snap.devices.append((device.name, bool(row["alive"]), int(row["ok"]), int(row["failed"])))
        if self.instance is not None:
            snap.control_alive = alive(self.instance.control_pid)
            snap.supervisor_alive = alive(self.instance.supervisor_pid)


def calm(points: list[Point]) -> float:
    """Share of the load's movement that grid import does not show, over the points; a glance, not the figure of
    metrics.py.
    """
    if len(points) < CALM_POINTS:
        return math.nan
    load = np.array([p.load_w for p in points])
    grid = np.array([p.grid_w for p in points])
    moved = np.abs(np.diff(load)).sum()
    return 1.0 - float(np.abs(np.diff(grid)).sum() / moved) if moved > 0 else math.nan


def limit_words(latest: dict[str, Any]) -> list[tuple[str, str]]:
    """The active limits in words, each with the number that makes it one."""
    inp, lim, out = latest["inp"], latest["lim"], latest["out"]
    bms = inp["bms_lim"]
    numbers = {
        "ramp": f"{lim['ramp_up_w_per_s'] / 1e3:g} kW/s",
        "import": _kw(lim["import_limit_w"]),
        "export": _kw(lim["export_limit_w"]),
        "billing": f"{_kw(lim['import_limit_w'])} mean",
        "soc_min": f"{100 * lim['soc_min']:.0f} %",
        "soc_max": f"{100 * lim['soc_max']:.0f} %",
        "temp": f"{inp['bms_temp']['batt_temp_max_c']:.1f} °C",
        "bms_charge": f"{bms['batt_i_charge_max_a']:.0f} A",
        "bms_discharge": f"{bms['batt_i_discharge_max_a']:.0f} A",
        "batt_v": f"{bms['batt_v']:.0f} V",
        "pcs": f"{_kw(out['p_min_w'])} to {_kw(out['p_max_w'])}",
        "site_p": f"{_kw(-lim['p_charge_max_w'])} to {_kw(lim['p_discharge_max_w'])}",
        "filter": f"{1e3 * out['filter_s']:.0f} ms, misaligned by {1e3 * out['align_s']:.1f} ms",
        "droop": f"{_kw(out['droop_w'])} at {inp['meter']['f_hz']:.3f} Hz",
        "ramp_not_held": f"{out['not_held_s']:.1f} s so far",
    }
    rows = []
    for bit, (name, words) in core.LIMIT_TEXT.items():
        if out["limits_active"] & bit:
            rows.append((name, f"{numbers[name]}: {words}" if name in numbers else words))
    return rows


def _slot_words(out: dict[str, Any], inp: dict[str, Any], now_ns: int) -> tuple[str, str]:
    slot = out["slot"]
    if slot < 0:
        return "none", "the battery follows the load"
    body = inp["slot"][slot]
    name = core.SLOT_NAMES[slot]
    left_s = max(0.0, (body["lease_until_ns"] - now_ns) / 1e9)
    what = f"battery held at {_kw(body['value_w'])}" if body["kind"] == 1 else f"{_kw(body['value_w'])} on top of the mean"
    return name, f"{what}, lease {left_s:.0f} s"


def _mode_words(mode: str) -> str:
    return {
        "FAULT": "power 0; clears by itself after a clean GRID, else `ballast reset`",
        "GRID": "the battery carries the difference",
        "ISLAND": "the PCS makes voltage and frequency",
        "RESYNC": "matching the grid before closing",
        "TRIP": "grid outside its window; power 0",
        "STOP": "ramping to 0, or parked there",
    }.get(mode, "")


def _kw(watts: float) -> str:
    return f"{watts / 1e3:.0f} kW" if math.isfinite(watts) else "- kW"
