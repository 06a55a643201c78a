"""A process image in plain Python: what supervisor and console ask of the real one, with a ring that a test fills."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from _core import image as core

TICK_NS = 10_000_000
ZERO_STATS = {"ok": 0, "failed": 0, "last_ok_ns": 0, "retry_ns": 0, "alive": 1, "verified": 1, "lost_count": 0}
ZERO_TURN = {"turn": [0] * core.TURN_BINS, "turn_n": 0, "turn_max_ns": 0}
ZERO_BUS = {"transactions": 0, "timeouts": 0, "crc_errors": 0, "late": 0, "is_open": 1, "busy_ns": 0}


class FakeImage:
    """`tick()` adds records; limits and setpoints that were written are kept in lists."""

    def __init__(self) -> None:
        self.dtype = core.record_dtype()
        self.rows = np.zeros(0, self.dtype)
        self.limits_written: list[dict[str, float]] = []
        self.setpoints: list[tuple[int, int, float, int, int]] = []
        self.billing_offset_s = 0.0
        self.control_pid = 0
        self.fd = os.memfd_create("image")
        self.started_ns = 0
        self.alive = [True] * 3
        self.open = [True] * 2
        self.sites: dict[int, dict[str, float]] = {0: {"f_nom_hz": 50.0}}  # by revision
        self.forgotten = 0  # ring positions below it are gone
        self.stats: dict[str, Any] = {
            "ticks": 0,
            "missed_ticks": 0,
            "start_ns": 1,
            "wake_us": [0] * 2048,
            "step_ns": [0] * 2048,
            "max_wake_late_ns": 0,
            "max_step_ns": 0,
        }

    @property
    def head(self) -> int:
        return len(self.rows)

    def tick(self, n: int = 1, **out: float) -> None:
        """n more ticks with these fields of Outputs; load, grid and battery have sensible values."""
        new = np.zeros(n, self.dtype)
        first = int(self.rows["tick"][-1]) + 1 if len(self.rows) else 1
        new["tick"] = np.arange(first, first + n)
        new["inp"]["t_ns"] = new["tick"] * TICK_NS
        fields = {
            "mode": 2,
            "start_step": 5,
            "load_w": 400e3,
            "grid_p_w": 390e3,
            "batt_p_w": 10e3,
            "soc": 0.5,
            "slot": -1,
        }
        for key, value in (fields | out).items():
            new["out"][key] = value
        new["lim"]["import_limit_w"] = 445e3
        new["inp"]["meter"]["g"]["count"] = new["tick"]
        self.rows = np.concatenate([self.rows, new])

    def skip(self, n: int) -> None:
        """The next tick comes n ticks late."""
        self.rows["tick"][-1] += n

    def drain(self, since: int, limit: int = 6000) -> tuple[bytes, int]:
        first = max(since, self.forgotten)
        last = min(len(self.rows), first + limit)
        return self.rows[first:last].tobytes(), max(last, since)

    def state_bytes(self) -> bytes:
        state = np.zeros(1, core.record_dtype("State"))
        if len(self.rows):
            state["last_t_ns"] = self.rows["inp"]["t_ns"][-1]
        return state.tobytes()

    def site(self) -> dict[str, float]:
        return self.sites[max(self.sites)]

    def site_at(self, rev: int) -> dict[str, float] | None:
        return self.sites.get(rev)

    def write_limits(self, **fields: float) -> None:
        self.limits_written.append(fields)

    def write_setpoint(self, slot: int, kind: int, value_w: float, lease_until_ns: int, number: int) -> None:
        self.setpoints.append((slot, kind, value_w, lease_until_ns, number))

    def device_stats(self, i: int) -> dict[str, Any]:
        return ZERO_STATS | ZERO_TURN | {"alive": int(self.alive[i])}

    def bus_stats(self, i: int) -> dict[str, int]:
        return ZERO_BUS | {"is_open": int(self.open[i])}

    def engine_stats(self) -> dict[str, Any]:
        return self.stats

    def latest(self) -> dict[str, Any] | None:
        if not len(self.rows):
            return None
        return _nested(self.rows[-1])


def _nested(row: Any) -> Any:
    """A numpy record as the nested dict that Cython makes of a struct."""
    if row.dtype.names:
        return {name: _nested(row[name]) for name in row.dtype.names}
    if row.ndim:
        return [_nested(x) for x in row]
    return row.item()
