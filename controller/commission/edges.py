"""Steps of the battery's command in the record, and what the meter and the converter's own readback make of each.

Edge-synchronous: only what changes within 200 ms of our own step counts, and the median over many steps is taken, so
that a training cluster's pulses, which know nothing of our steps, fall out. Rows are numpy records of
_core/image.pxd, struct Record, one a tick; powers in W, times in ns of the image's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from _core import image as core

BEFORE_NS = (-100_000_000, -5_000_000)  # relative to the command's last bit on the wire
WIDE_NS = 100_000_000  # of the window after a step has settled
SETTLE_S = 0.1  # at least, before the window after begins
SHARE = 0.6  # of the step asked for: what one tick must move to be that step
DISTURBED = core.LIM_IMPORT | core.LIM_EXPORT | core.LIM_FEEDER | core.LIM_DROOP | core.LIM_METER_STALE | core.LIM_MODE
FEWEST = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Edge:
    """One clean step of the command. grid_w, back_w: how far meter and readback moved with it."""

    row: int
    t_ns: int
    step_w: float
    grid_w: float
    back_w: float


@dataclass(frozen=True)
class Series:
    """One measured signal, one value a sample (not a tick): t_ns ascending, w in W."""

    t_ns: NDArray[np.int64]
    w: Floats

    def between(self, low_ns: int, high_ns: int) -> Floats:
        """Values of samples in [low, high)."""
        a, b = np.searchsorted(self.t_ns, (low_ns, high_ns))
        return self.w[a:b]


def series(rows: NDArray[np.void], group: str, field: str) -> Series:
    """The distinct good samples of one group: a value that stands for several ticks counts once."""
    g = rows["inp"][group]
    keep = (g["g"]["quality"] == core.Q_GOOD) & np.isfinite(g[field])
    t_ns, w = g["g"]["t_ns"][keep], g[field][keep]
    t_ns, first = np.unique(t_ns, return_index=True)
    return Series(t_ns.astype(np.int64), w[first].astype(float))


def settle_ns(dead_s: float, tau_s: float) -> int:
    """How long after a command the power stands, by what is believed of the converter; at least 100 ms."""
    return int(1e9 * max(SETTLE_S, 1.5 * (dead_s + 5.0 * tau_s)))


def find(rows: NDArray[np.void], step_w: float, settled_ns: int) -> list[Edge]:
    """Steps of one tick of at least 60 % of step_w with a quiet command on both sides and no limit in the way."""
    if len(rows) < 3:
        return []
    cmd, t_ns = rows["out"]["p_cmd_w"], rows["inp"]["t_ns"]
    meter, back = series(rows, "meter", "grid_p_w"), series(rows, "pcs", "batt_p_w")
    limits = rows["out"]["limits_active"]
    edges = []
    for i in np.flatnonzero(np.abs(np.diff(cmd)) >= SHARE * step_w) + 1:
        end_ns = settled_ns + WIDE_NS
        a, b = np.searchsorted(t_ns, (t_ns[i] + BEFORE_NS[0], t_ns[i] + end_ns))
        if t_ns[i] + BEFORE_NS[0] < t_ns[0] or t_ns[-1] < t_ns[i] + end_ns:
            continue
        quiet = max(np.ptp(cmd[a:i]), np.ptp(cmd[i:b])) <= 0.1 * step_w
        if not quiet or np.bitwise_or.reduce(limits[a:b]) & DISTURBED or (rows["out"]["mode"][a:b] != core.MODE_GRID).any():
            continue
        at = int(rows["inp"]["command_t_ns"][i])
        moved = []
        for one in (meter, back):
            before, after = one.between(at + BEFORE_NS[0], at + BEFORE_NS[1]), one.between(at + settled_ns, at + end_ns)
            moved.append(float(np.median(after) - np.median(before)) if len(before) and len(after) else np.nan)
        edges.append(Edge(int(i), at, float(cmd[i] - cmd[i - 1]), *moved))
    return edges


@dataclass(frozen=True)
class Polarity:
    """Ratios of the moves over all edges: grid to battery as measured (as commanded where the readback stands still),
    and readback to command. `spread`: standard error of the first, from the median absolute deviation.
    """

    edges: int
    ratio: float
    spread: float
    follow: float
    grid_w: float  # median grid import before the steps
    verdict: str  # pass, fail, unclear
    cause: str  # a key of CAUSES, what to do about it


def _share(moves: Floats, of: Floats) -> tuple[float, float]:
    good = np.isfinite(moves) & (np.abs(of) > 0)
    if not good.any():
        return np.nan, np.nan
    r = moves[good] / of[good]
    mid = float(np.median(r))
    return mid, float(1.4826 * np.median(np.abs(r - mid)) * 1.2533 / np.sqrt(len(r)))


def polarity(edges: list[Edge], grid_w: float) -> Polarity:
    """What the edges say of meter and converter. Passes with a ratio of -1 +- 0.15 and a readback that follows."""
    step, grid, back = (np.array([getattr(e, k) for e in edges], float) for k in ("step_w", "grid_w", "back_w"))
    follow, _ = _share(back, step)
    moved = back if np.isfinite(follow) and abs(follow) > 0.5 else step
    ratio, spread = _share(grid, moved)
    if len(edges) < FEWEST or not np.isfinite(ratio) or spread > 0.1:
        return Polarity(len(edges), ratio, spread, follow, grid_w, "unclear", "few" if len(edges) < FEWEST else "restless")
    cause = _cause(ratio, follow, grid_w)
    return Polarity(len(edges), ratio, spread, follow, grid_w, "pass" if cause == "ok" else "fail", cause)


def _cause(ratio: float, follow: float, grid_w: float) -> str:
    if not np.isfinite(follow) or abs(follow) < 0.5:
        return "no_readback" if abs(ratio) > 0.5 else "not_following"
    if follow < 0:
        # the readback runs against the command; the meter tells which of the two is right: ratio is to the readback
        return "readback_sign" if ratio > 0 else "pcs_command_sign"
    if abs(ratio + 1.0) <= 0.15:
        return "ok"
    if abs(ratio - 1.0) <= 0.15:
        return "meter_sign" if grid_w < 0 else "meter_or_pcs_sign"
    for value, cause in ((0.0, "no_ct"), (-2.0 / 3.0, "one_phase"), (-1.0 / 3.0, "one_reversed")):
        if abs(ratio - value) <= 0.15:
            return cause
    return "gain"
