"""Dead time and lag of the converter from many small steps: least squares over what meter and readback showed between
the command's last bit and the settled power.

    r(t) = 0 before D, 1 - exp(-(t - D) / tau) after it

t from the command's last bit on the wire (Inputs.command_t_ns) to the instant a sample stands for (Group.t_ns). A
scan that is locked to the tick samples at a few phases only, so that D and tau may not be separable: the fit says
which pairs the samples allow, not only which fits best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.commission.edges import BEFORE_NS, WIDE_NS, Edge, Floats, Series, series

D_MAX_S, TAU_MIN_S, TAU_MAX_S = 0.63, 1e-4, 2.0  # what the site file may say
FLOOR = 0.004  # of a step: resolution of registers (10 W of some 5 kW), twice
STAMP_S = 3e-4  # instants are known no better (turnaround, detection, wake-up)
CUT = 9.0  # a sample more than three deviations off says no more than that
REGION = 6.0  # chi-squared of two parameters at 95 %
OFF = 0.15  # an edge whose whole move is off by more had a load's pulse in it
GRID = 61


@dataclass(frozen=True)
class Samples:
    """Normalised response: t_s after the command, r (0 to 1), deviation of each, and which came from the meter."""

    t_s: Floats
    r: Floats
    sigma: Floats
    meter: NDArray[np.bool_]
    edges: int


@dataclass(frozen=True)
class Fit:
    """Best pair, and the ranges of dead time (from the last bit), tau and their sum that the samples allow (95 %).

    separable: both ranges are narrow enough to write the pair into a site file.
    believed_fits: the site's own pair is among those that the samples allow.
    """

    dead_s: float
    tau_s: float
    dead_range_s: tuple[float, float]
    tau_range_s: tuple[float, float]
    sum_range_s: tuple[float, float]
    separable: bool
    believed_fits: bool
    rms: float
    edges: int
    samples: int


def response(t_s: Floats, dead_s: Floats | float, tau_s: Floats | float) -> Floats:
    """First-order response after a dead time; shapes broadcast."""
    late = np.maximum(t_s - dead_s, 0.0)
    return np.asarray(1.0 - np.exp(-late / tau_s), float)


def _one(edge: Edge, signal: Series, gain: float, sign: float, end_ns: int) -> tuple[Floats, Floats, Floats] | None:
    """(t_s, r, deviations before) of one edge in one signal; None where something else moved meanwhile."""
    before = signal.between(edge.t_ns + BEFORE_NS[0], edge.t_ns + BEFORE_NS[1])
    a, b = np.searchsorted(signal.t_ns, (edge.t_ns - 10_000_000, edge.t_ns + end_ns))
    if len(before) < 3 or b <= a:
        return None
    base, size = float(np.median(before)), sign * gain * edge.step_w
    t_s = (signal.t_ns[a:b] - edge.t_ns) / 1e9
    return t_s, (signal.w[a:b] - base) / size, (before - base) / size


def gather(rows: NDArray[np.void], edges: list[Edge], settled_ns: int) -> Samples:
    """All samples around all clean edges, normalised by the median move of each signal."""
    t_s, r, sigma, is_meter, used = [], [], [], [], 0
    for name, field, sign in (("meter", "grid_p_w", -1.0), ("pcs", "batt_p_w", 1.0)):
        moves = np.array([sign * (e.grid_w if name == "meter" else e.back_w) / e.step_w for e in edges], float)
        if not len(moves) or not np.isfinite(moves).any():
            continue
        gain = float(np.nanmedian(moves))
        if abs(gain) < 0.3:
            continue
        signal = series(rows, name, field)
        got = [
            one
            for e, move in zip(edges, moves, strict=True)
            if abs(move / gain - 1.0) <= OFF and (one := _one(e, signal, gain, sign, settled_ns + WIDE_NS)) is not None
        ]
        if not got:
            continue
        used = max(used, len(got))
        noise = np.concatenate([one[2] for one in got])
        deviation = max(1.4826 * float(np.median(np.abs(noise))), FLOOR)
        t_s += [one[0] for one in got]
        r += [one[1] for one in got]
        n = sum(len(one[0]) for one in got)
        sigma.append(np.full(n, deviation))
        is_meter.append(np.full(n, name == "meter"))
    if not t_s:
        empty = np.zeros(0)
        return Samples(empty, empty, empty, np.zeros(0, bool), 0)
    return Samples(np.concatenate(t_s), np.concatenate(r), np.concatenate(sigma), np.concatenate(is_meter), used)


def _cost(s: Samples, sigma2: Floats, dead_s: Floats, tau_s: Floats) -> Floats:
    """Cost of each pair of two axes, len(dead) x len(tau); a lone sample far off is cut."""
    out = np.empty((len(dead_s), len(tau_s)))
    for k, dead in enumerate(dead_s):
        off = s.r[None, :] - response(s.t_s[None, :], dead, tau_s[:, None])
        out[k] = np.minimum(off * off / sigma2, CUT).sum(axis=1)
    return out


def _search(s: Samples, sigma2: Floats) -> tuple[float, float]:
    """The best pair: a coarse grid over all that a site file may say, then finer and finer around the best. The cut of
    lone samples begins wide: on a coarse grid every sample is far off, and nothing would point the way.
    """
    latest = max(1e-3, min(D_MAX_S, float(s.t_s.max())))
    dead = np.concatenate(([0.0], np.geomspace(2e-4, latest, 70)))
    tau = np.geomspace(TAU_MIN_S, TAU_MAX_S, 60)
    for widen in (900.0, 225.0, 50.0, 10.0, 3.0, 1.0, 1.0):
        cost = _cost(s, widen * sigma2, dead, tau)
        i, k = divmod(int(np.argmin(cost)), len(tau))
        best = float(dead[i]), float(tau[k])
        wide_d = max(dead[min(i + 1, len(dead) - 1)] - best[0], best[0] - dead[max(i - 1, 0)], 1e-5)
        wide_t = max(tau[min(k + 1, len(tau) - 1)] - best[1], best[1] - tau[max(k - 1, 0)], 1e-5)
        dead = np.linspace(max(0.0, best[0] - 2.0 * wide_d), min(D_MAX_S, best[0] + 2.0 * wide_d), 25)
        tau = np.linspace(max(TAU_MIN_S, best[1] - 2.0 * wide_t), min(TAU_MAX_S, best[1] + 2.0 * wide_t), 25)
    return best


def _region(s: Samples, sigma2: Floats, best: tuple[float, float], worst: float) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Axes and mask of the pairs whose cost is at most `worst`; the axes widen until the mask ends inside them."""
    wide_d, wide_t = 1e-3, 1e-3
    for _ in range(10):
        dead = np.linspace(max(0.0, best[0] - wide_d), min(D_MAX_S, best[0] + wide_d), GRID)
        tau = np.linspace(max(TAU_MIN_S, best[1] - wide_t), min(TAU_MAX_S, best[1] + wide_t), GRID)
        mask = _cost(s, sigma2, dead, tau) <= worst
        low_d, high_d = mask[0].any() and dead[0] > 0.0, mask[-1].any() and dead[-1] < D_MAX_S
        low_t, high_t = mask[:, 0].any() and tau[0] > TAU_MIN_S, mask[:, -1].any() and tau[-1] < TAU_MAX_S
        if not (low_d or high_d or low_t or high_t):
            break
        wide_d *= 2.0 if low_d or high_d else 1.0
        wide_t *= 2.0 if low_t or high_t else 1.0
    return dead, tau, mask


def fit(s: Samples, dead_s: float, tau_s: float) -> Fit | None:
    """Least squares over dead time and tau; (dead_s, tau_s) is what the site believes, from the command's last bit.

    None where there are fewer than 20 samples after the command.
    """
    if (s.t_s > 0).sum() < 20:
        return None
    first = _search(s, s.sigma**2)
    after = (s.t_s > first[0]) * np.exp(-np.maximum(s.t_s - first[0], 0.0) / first[1]) / first[1]
    sigma2 = s.sigma**2 + (np.minimum(after, 1.0 / 1e-3) * STAMP_S) ** 2
    best = _search(s, sigma2)
    least = float(_cost(s, sigma2, np.array([best[0]]), np.array([best[1]]))[0, 0])
    # what the model does not explain (correlated noise, a real slew) widens what is allowed
    worst = least + REGION * max(1.0, least / len(s.t_s))
    dead, tau, mask = _region(s, sigma2, best, worst)
    mask[np.abs(dead - best[0]).argmin(), np.abs(tau - best[1]).argmin()] = True
    at_d, at_t = dead[mask.any(axis=1)], tau[mask.any(axis=0)]
    total = (dead[:, None] + tau[None, :])[mask]
    ranges = [(max(0.0, float(x.min()) - STAMP_S), float(x.max()) + STAMP_S) for x in (at_d, at_t, total)]
    believed = float(_cost(s, sigma2, np.array([dead_s]), np.array([max(tau_s, TAU_MIN_S)]))[0, 0]) <= worst
    near = abs(dead_s - best[0]) <= 5e-4 and abs(tau_s - best[1]) <= 5e-4
    narrow = max(1.5e-3, 0.15 * (best[0] + best[1]))
    off = s.r - response(s.t_s, *best)
    return Fit(
        dead_s=best[0], tau_s=best[1], dead_range_s=ranges[0], tau_range_s=ranges[1], sum_range_s=ranges[2],
        separable=all((high - low) / 2 <= narrow for low, high in ranges[:2]), believed_fits=believed or near,
        rms=float(np.sqrt(np.mean(np.minimum(off * off, 1.0)))), edges=s.edges, samples=len(s.t_s),
    )  # fmt: skip
