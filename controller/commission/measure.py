"""What the record says of ramp, reversion timer, trips and following. Rows: numpy records of struct Record, one a
tick; powers in W, times in s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from _core import image as core
from controller.commission.edges import Floats, Series, series
from controller.status import names

SLOPE_TICKS = 20
RUNNING = (3.0, 4.0)  # SunSpec 701.InvSt: RUNNING, THROTTLED
CONNECTED = 3.0  # SunSpec 802.State
NS = 1e9


@dataclass(frozen=True)
class Ramp:
    """Largest slopes away from zero and of the reference, W/s, over 0.2 s; NaN where nothing moved."""

    up_w_per_s: float  # battery command, discharging
    down_w_per_s: float  # battery command, charging
    ref_up_w_per_s: float  # reference of grid import
    ref_down_w_per_s: float
    not_held_s: float  # how long a device's end forced more than the ramp


def _slopes(t_ns: NDArray[np.int64], w: Floats) -> Floats:
    n = SLOPE_TICKS
    return (w[n:] - w[:-n]) / ((t_ns[n:] - t_ns[:-n]) / NS) if len(w) > n else np.zeros(0)


def ramp(rows: NDArray[np.void]) -> Ramp:
    """Slopes of the command under a hold, and of the reference where the battery follows; only stretches without a
    limit that moves power itself (import, export, feeder, droop).
    """
    t_ns, out = rows["inp"]["t_ns"], rows["out"]
    bad = (out["limits_active"] & (core.LIM_IMPORT | core.LIM_EXPORT | core.LIM_FEEDER | core.LIM_DROOP | core.LIM_NOT_HELD)) != 0
    bad |= out["mode"] != core.MODE_GRID
    hold = (out["limits_active"] & core.LIM_HOLD) != 0
    n = SLOPE_TICKS

    def whole(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """True where a window of n ticks lies inside the mask."""
        run = np.concatenate(([0], np.cumsum(~mask)))
        return np.asarray(run[n + 1 :] - run[: -n - 1] == 0)

    if len(rows) <= n:
        return Ramp(np.nan, np.nan, np.nan, np.nan, 0.0)
    cmd, ref = out["p_cmd_w"], out["ref_w"]
    held, free = whole(hold & ~bad), whole(~hold & ~bad)
    cmd_slope, ref_slope = _slopes(t_ns, cmd), _slopes(t_ns, ref)
    away = held & (np.abs(cmd[n:]) >= np.abs(cmd[:-n])) & (cmd[n:] * cmd[:-n] >= 0)

    def most(x: Floats) -> float:
        return float(x.max()) if len(x) and x.max() > 0 else float("nan")

    return Ramp(
        most(cmd_slope[away & (cmd[n:] > 0)]), most(-cmd_slope[away & (cmd[n:] < 0)]),
        most(ref_slope[free]), most(-ref_slope[free]), float(out["not_held_s"][-1] - out["not_held_s"][0]),
    )  # fmt: skip


@dataclass(frozen=True)
class Renewal:
    """The reversion timer as read back: reads over so long, renewals seen (remaining time jumped up), least and most
    remaining. A readback in step with the renewal never sees the time fall; that it does not run out shows it too.
    """

    reads: int
    span_s: float
    renewals: int
    rem_min_s: float
    rem_max_s: float
    enabled: bool
    setting_s: float


def renewal(rows: NDArray[np.void]) -> Renewal:
    """Counts down and jumps back: each distinct readback of PcsControl."""
    ctl = rows["inp"]["pcs_ctl"]
    t_ns, first = np.unique(ctl["g"]["t_ns"], return_index=True)
    got = ctl[first[t_ns > 0]]
    rem = got["wset_rvrt_rem_s"]
    rem = rem[np.isfinite(rem)]
    if not len(got):
        return Renewal(0, 0.0, 0, np.nan, np.nan, False, np.nan)
    low, high = (float(rem.min()), float(rem.max())) if len(rem) else (np.nan, np.nan)
    return Renewal(
        len(got), float(np.ptp(t_ns[t_ns > 0]) / NS), int((np.diff(rem) > 0).sum()), low, high,
        bool((got["wset_rvrt_ena"] == 1.0).all()), float(got["wset_rvrt_s"][-1]),
    )  # fmt: skip


@dataclass(frozen=True)
class Reversion:
    """After the cable was pulled: when the power was gone, counted from the PCS's last answer. NaN: not seen.

    lost_ns   the last answer
    dc_s      by the BMS's current, which goes on on its own bus
    meter_s   by the meter, where the load was calm enough; meter_noise_w: how calm
    back_w    first readback after the cable was back, before any command could act
    """

    lost_ns: int
    before_w: float
    dc_s: float
    meter_s: float
    meter_noise_w: float
    back_w: float
    back_ns: int


def _gone(one: Series, lost_ns: int, end_ns: int, before_w: float) -> float:
    """Seconds after lost_ns from which on the signal stays under a tenth of what it was; NaN where it does not."""
    a, b = np.searchsorted(one.t_ns, (lost_ns, end_ns))
    w = one.w[a:b]
    on = np.flatnonzero(np.abs(w) > 0.1 * abs(before_w))
    if not len(w) or (len(on) and on[-1] == len(w) - 1):
        return float("nan")
    first = int(on[-1]) + 1 if len(on) else 0
    return float((one.t_ns[a + first] - lost_ns) / NS)


def last_answer_ns(rows: NDArray[np.void]) -> int:
    """The PCS's last answer before its longest silence; 0 where it never fell silent for 0.5 s."""
    rx = np.unique(rows["inp"]["pcs"]["g"]["rx_ns"])
    rx = np.append(rx[rx > 0], rows["inp"]["step_t_ns"][-1]) if len(rows) else rx
    gaps = np.diff(rx)
    return int(rx[int(np.argmax(gaps))]) if len(gaps) and gaps.max() > NS / 2 else 0


def reversion(rows: NDArray[np.void], hold_w: float) -> Reversion | None:
    """What became of the power after the PCS's last answer; None where it never fell silent."""
    lost_ns = last_answer_ns(rows)
    if not lost_ns:
        return None
    pcs = rows["inp"]["pcs"]
    fresh = np.flatnonzero(pcs["g"]["rx_ns"] > lost_ns)
    back_ns = int(pcs["g"]["t_ns"][fresh[0]]) if len(fresh) else 0
    back_w = float(pcs["batt_p_w"][fresh[0]]) if len(fresh) else float("nan")
    end_ns = back_ns or int(rows["inp"]["step_t_ns"][-1])
    amps, volts = series(rows, "bms_lim", "batt_i_a"), series(rows, "bms_lim", "batt_v")
    n = min(len(amps.w), len(volts.w))
    dc = Series(amps.t_ns[:n], amps.w[:n] * volts.w[:n])
    was = dc.between(lost_ns - int(NS), lost_ns)
    dc_s = _gone(dc, lost_ns, end_ns, float(np.median(was))) if len(was) and abs(np.median(was)) > 0.5 * abs(hold_w) else float("nan")
    noise_w, meter_s = _by_meter(rows, lost_ns, end_ns, hold_w)
    return Reversion(lost_ns, hold_w, dc_s, meter_s, noise_w, back_w, back_ns)


def _by_meter(rows: NDArray[np.void], lost_ns: int, end_ns: int, hold_w: float) -> tuple[float, float]:
    """(how restless the load was, when grid import rose by the battery's power): NaN where the load hides it."""
    meter = series(rows, "meter", "grid_p_w")
    a, b = np.searchsorted(meter.t_ns, (lost_ns - int(3 * NS), end_ns))
    t_ns, w = meter.t_ns[a:b], meter.w[a:b]
    if len(w) < 100:
        return float("nan"), float("nan")
    w = np.median(np.lib.stride_tricks.sliding_window_view(w, 9), axis=1)  # noise of single samples goes, an edge stays
    t_ns = t_ns[4:-4]
    base = float(np.median(w[t_ns < lost_ns]))
    on = np.flatnonzero(w - base < 0.5 * hold_w)
    if not len(on) or on[-1] == len(w) - 1:
        return float(np.ptp(w)), float("nan")
    at = int(t_ns[on[-1] + 1])
    # one edge of the battery's size between two calm stretches: anything else may be the load
    calm = [w[t_ns < at - int(1.2 * NS)], w[t_ns > at + int(0.3 * NS)]]
    if min(len(x) for x in calm) < 10:
        return float("nan"), float("nan")
    noise_w = max(float(np.ptp(x)) for x in calm)
    rise = float(np.median(calm[1]) - np.median(calm[0]))
    good = noise_w <= 0.3 * abs(hold_w) and abs(rise - hold_w) <= 0.3 * abs(hold_w)
    return noise_w, (at - lost_ns) / NS if good else float("nan")


@dataclass(frozen=True)
class Trip:
    """From the first tick that shows the cause. Ticks: 0 is that very tick; -1 not seen."""

    cause: str  # what the first frame showed
    row: int
    fault_ticks: int
    zero_ticks: int
    alarms: tuple[str, ...]
    before_w: float


def trip(rows: NDArray[np.void]) -> Trip | None:
    """The first tick whose inputs show open contactors, a BMS or a PCS that has stopped, and what followed; None where
    nothing of the kind came in.
    """
    bms, pcs, mode = rows["inp"]["bms"], rows["inp"]["pcs"], rows["out"]["mode"]
    opened = (bms["g"]["quality"] == core.Q_GOOD) & (bms["bms_state"] != CONNECTED)
    stopped = (pcs["g"]["quality"] == core.Q_GOOD) & ~np.isin(pcs["pcs_state"], RUNNING)
    shown = np.flatnonzero(opened | stopped)
    if not len(shown):
        return None
    k = int(shown[0])
    words = [w for w, it in (("contactors open", opened[k]), ("PCS stopped", stopped[k])) if it]
    fault, zero = np.flatnonzero(mode[k:] == core.MODE_FAULT), np.flatnonzero(rows["out"]["p_cmd_w"][k:] == 0.0)
    end = k + int(fault[0]) if len(fault) else k
    return Trip(
        " and ".join(words), k, int(fault[0]) if len(fault) else -1, int(zero[0]) if len(zero) else -1,
        tuple(names(int(rows["out"]["alarms"][end]), core.ALARM_TEXT)), float(rows["out"]["p_cmd_w"][max(k - 1, 0)]),
    )  # fmt: skip


@dataclass(frozen=True)
class Following:
    """A minute of following. Powers W; share_*: of ticks; wake in us."""

    seconds: float
    load_swing_w: float  # 5th to 95th percentile
    grid_swing_w: float
    calmer: float  # share of the load's movement (half-second means) that grid import does not show
    limits: dict[str, float]  # limit -> share of ticks
    grid_share: float  # of ticks in GRID
    missed: int
    wake_p50_us: float
    wake_p99_us: float
    wake_max_us: float


def following(rows: NDArray[np.void], missed: int) -> Following | None:
    """What following made of the load; a glance, not the figure of metrics.py. None below 5 s."""
    if len(rows) < 500:
        return None
    load, grid = rows["out"]["load_w"], rows["out"]["grid_p_w"]
    n = len(rows) // 50 * 50
    means = [x[:n].reshape(-1, 50).mean(axis=1) for x in (load, grid)]
    moved = [float(np.abs(np.diff(x)).sum()) for x in means]
    wake = rows["wake_late_ns"] / 1e3
    bits = {name: float(((rows["out"]["limits_active"] & bit) != 0).mean()) for bit, (name, _) in core.LIMIT_TEXT.items()}
    low_high = [np.percentile(x, (5, 95)) for x in (load, grid)]
    return Following(
        float((rows["inp"]["t_ns"][-1] - rows["inp"]["t_ns"][0]) / NS), float(np.ptp(low_high[0])), float(np.ptp(low_high[1])),
        1.0 - moved[1] / moved[0] if moved[0] > 0 else float("nan"), {k: v for k, v in bits.items() if v > 0},
        float((rows["out"]["mode"] == core.MODE_GRID).mean()), missed,
        *(float(np.percentile(wake, q)) for q in (50, 99, 100)),
    )  # fmt: skip
