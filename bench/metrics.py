"""The figures of merit: suppression, tracking, spikes, band, peak, ramp; and the memoryless follower they are read
against.

Carried over from the definition that everyone shares (the house's design notes, metrics.py): same functions, same
results, with types; a test holds the two equal where the original is at hand. Load and grid are 10 ms means in watts
on one clock, import positive.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import lfilter, welch

TICK_S = 0.01
EDGE_S = 60.0  # left out at both ends: the centred mean needs it
Series = NDArray[np.float64]


def reference(load_w: Series, mean_s: float = 60.0, ramp_w_per_s: float = 2000.0) -> Series:
    """First-order mean of the true load (time constant mean_s), then the site's ramp limit, sample by sample."""
    ref, mean, r = np.empty(len(load_w)), load_w[0], load_w[0]
    most = ramp_w_per_s * TICK_S
    for k, x in enumerate(load_w):
        mean += TICK_S / mean_s * (x - mean)
        r += min(max(mean - r, -most), most)
        ref[k] = r
    return ref


def _swing(x: Series) -> Series:
    """Deviation from the centred 60 s mean."""
    return np.asarray(x - uniform_filter1d(x, int(60 / TICK_S)))


def _band(x: Series, low_hz: float, high_hz: float) -> float:
    f, p = welch(x - x.mean(), fs=1 / TICK_S, window="hann", nperseg=8192)
    return float(p[(f >= low_hz) & (f < high_hz)].sum())


def means(x: Series, seconds: float) -> Series:
    """Means over consecutive blocks; a block that does not fill is left out."""
    n = round(seconds / TICK_S)
    return np.asarray(x[: len(x) // n * n].reshape(-1, n).mean(1))


def ramp(x: Series) -> float:
    """Largest difference of adjacent 1 s means, sliding by one sample, W/s. Needs at least 2 s."""
    n = int(1 / TICK_S)
    mean = np.convolve(x, np.ones(n) / n, "valid")
    return float(np.abs(mean[n:] - mean[:-n]).max())


def spikes_smoothed(load_w: Series, grid_w: Series) -> tuple[float, int]:
    """Share of load excursions whose image in grid import stays under 15 %, and their count.

    Excursion: 1 s means, more than 10 % of the load's swing off its 60 s mean, shorter than 60 s."""
    load, grid = means(_swing(load_w), 1.0), means(_swing(grid_w), 1.0)
    threshold = 0.1 * np.ptp(means(load_w, 1.0))
    out = np.abs(load) > threshold
    edges = np.flatnonzero(np.diff(np.concatenate([[0], out.astype(int), [0]])))
    spans = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a < 60]
    good = sum(bool(np.abs(grid[a:b]).max() < 0.15 * np.abs(load[a:b]).max()) for a, b in spans)
    return (good / len(spans) if spans else float("nan")), len(spans)


def figures(
    load_w: ArrayLike, grid_w: ArrayLike, mean_s: float = 60.0, ramp_w_per_s: float = 2000.0, edge_s: float = EDGE_S
) -> dict[str, Any]:
    """All figures; the first and last edge_s seconds are left out of the means. Raises ValueError below 3 edge_s."""
    load, grid = np.asarray(load_w, float), np.asarray(grid_w, float)
    if len(load) * TICK_S < 3 * edge_s:
        raise ValueError(f"figures need at least {3 * edge_s:g} s, got {len(load) * TICK_S:g} s")
    ref = reference(load, mean_s, ramp_w_per_s)
    s = slice(int(edge_s / TICK_S), -int(edge_s / TICK_S))
    share, count = spikes_smoothed(load[s], grid[s])
    bands = ((0.1, 2.0), (2.0, 20.0)) if len(grid[s]) >= 2 * 8192 else ()
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "suppression": 1 - np.abs(_swing(grid)[s]).mean() / np.abs(_swing(load)[s]).mean(),
            "tracking": 1 - np.abs(grid - ref)[s].mean() / np.abs(load - ref)[s].mean(),
            "spikes_smoothed": share,
            "spikes": count,
            "band_db": {
                f"{a:g}-{b:g}": 10 * np.log10(np.float64(_band(grid[s], a, b)) / _band(load[s], a, b)) for a, b in bands
            },
            "peak_w": means(grid[s], 0.1).max(),
            "ramp_max_w_per_s": ramp(grid[s]),
        }


def replay(t_s: ArrayLike, p_w: ArrayLike, seconds: float, edge_s: float = 0.02) -> Series:
    """A logged series as 1 ms samples: each new value is reached within edge_s after its time stamp.

    Where the time restarts (a file of several runs) the next run follows one median period later."""
    step, p = np.diff(np.asarray(t_s, float)), np.asarray(p_w, float)
    t = np.concatenate([[0.0], np.cumsum(np.where(step > 0, step, np.median(step[step > 0])))])
    now = np.arange(int(min(seconds, t[-1]) * 1000)) / 1000
    i = np.searchsorted(t, now, side="right") - 1
    before = p[np.maximum(i - 1, 0)]
    return np.asarray(before + (p[i] - before) * np.clip((now - t[i]) / edge_s, 0, 1))


def follower(
    load_1ms: Series, latency_ms: int, lag_s: float = 0.002, mean_s: float = 60.0, ramp_w_per_s: float = 2000.0
) -> tuple[Series, Series]:
    """Grid import and load (10 ms means) with a battery that does exactly load - reference, sampled at the tick,
    latency_ms later.
    """
    n = len(load_1ms) // 10
    sampled = load_1ms[: n * 10 : 10]
    command = np.repeat(sampled - reference(sampled, mean_s, ramp_w_per_s), 10)
    command = np.concatenate([np.zeros(latency_ms), command])[: n * 10]
    a = np.exp(-0.001 / lag_s)
    battery = lfilter([1 - a], [1, -a], command)
    return (load_1ms[: n * 10] - battery).reshape(-1, 10).mean(1), load_1ms[: n * 10].reshape(-1, 10).mean(1)
