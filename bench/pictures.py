"""The pictures of report.html: SVG or PNG by matplotlib, without pyplot (no window system, no global state).

Colours are Okabe and Ito's, told apart by every common form of colour blindness; lines also differ in width or dash.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.signal import welch

from _core import image as core
from bench.rundata import RunData, Series, busiest

LOAD, GRID, BATT, LIMIT, REF, GREY = "#E69F00", "#0072B2", "#009E73", "#D55E00", "#000000", "#8a8a8a"
WIDTH_IN, DPI = 10.0, 110
POINTS = 1500  # columns of an overview: each shows the span from the smallest to the largest value in it


def figure(height_in: float, rows: int = 1, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with `rows` axes below each other."""
    fig = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, 1, squeeze=False, **share)[:, 0]
    for ax in axes:
        ax.grid(True, color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return fig, list(axes)


def png(fig: Figure) -> str:
    """As a data URI."""
    out = io.BytesIO()
    fig.savefig(out, format="png")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _envelope(ax: Axes, t: Series, x: Series, color: str, label: str, **style: Any) -> None:
    """Every value counts: where there are more than columns, the span of each column is filled and its mean drawn."""
    k = max(1, len(x) // POINTS)
    n = len(x) // k
    if k > 1:
        blocks = x[: n * k].reshape(n, k)
        middle = t[: n * k].reshape(n, k).mean(1)
        ax.fill_between(middle, blocks.min(1), blocks.max(1), color=color, alpha=0.4, linewidth=0)
        ax.plot(middle, blocks.mean(1), color=color, label=label, linewidth=style.pop("linewidth", 1.0), **style)
    else:
        ax.plot(t, x, color=color, label=label, linewidth=style.pop("linewidth", 1.2), **style)


def _legend(ax: Axes, n: int = 5) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=n, frameon=False, fontsize=9, borderaxespad=0.2)


def _power_lines(ax: Axes, data: RunData, span: slice, reference: bool) -> None:
    t = data.t_s[span]
    _envelope(ax, t, data.load_w[span] / 1e3, LOAD, "load")
    _envelope(ax, t, data.grid_w[span] / 1e3, GRID, "grid import", linewidth=1.6)
    if reference and data.ref_w is not None and data.rec_t_s is not None and len(t):
        inside = (data.rec_t_s >= t[0]) & (data.rec_t_s <= t[-1])
        ax.plot(data.rec_t_s[inside], data.ref_w[inside] / 1e3, color=REF, linewidth=0.9, linestyle=":", label="reference")
    limit_kw = data.site.num("grid.import_limit_w") / 1e3
    ax.axhline(limit_kw, color=LIMIT, linewidth=1.4, linestyle="--", label=f"import limit {limit_kw:g} kW")
    ax.set_ylabel("power / kW")
    _legend(ax)


def overview(data: RunData) -> Figure:
    """Load and grid import over the whole run."""
    fig, (ax,) = figure(3.6)
    _power_lines(ax, data, slice(None), False)
    if data.judged_s is not None:
        ax.axvspan(data.t_s[0], data.judged_s, color="#eeeeee", zorder=0)
    a, b = busiest(data)
    top = ax.get_ylim()[1]
    ax.plot([a, b], [top, top], color=GREY, linewidth=4, solid_capstyle="butt", clip_on=False)
    ax.set_xlim(data.t_s[0], data.t_s[-1])
    ax.set_xlabel("time from the start of the run / s")
    return fig


def zoom(data: RunData) -> Figure:
    """The span in which the load moves most, with the battery that carries the difference."""
    a, b = busiest(data)
    fig, (ax, low) = figure(5.2, 2, sharex=True, height_ratios=[3, 2])
    first, last = np.searchsorted(data.t_s, [a, b])
    span = slice(int(first), int(last))
    t = data.t_s[span]
    ax.plot(t, data.load_w[span] / 1e3, color=LOAD, linewidth=1.1, label="load")
    ax.plot(t, data.grid_w[span] / 1e3, color=GRID, linewidth=1.7, label="grid import")
    if data.ref_w is not None and data.rec_t_s is not None:
        inside = (data.rec_t_s >= a) & (data.rec_t_s <= b)
        ax.plot(data.rec_t_s[inside], data.ref_w[inside] / 1e3, color=REF, linewidth=1.0, linestyle=":", label="reference of grid import")
    limit_kw = data.site.num("grid.import_limit_w") / 1e3
    bottom, top = ax.get_ylim()
    if limit_kw < top + 0.5 * (top - bottom):  # further off it would press everything else flat
        ax.axhline(limit_kw, color=LIMIT, linewidth=1.4, linestyle="--", label=f"import limit {limit_kw:g} kW")
    else:
        ax.plot([], [], color=LIMIT, linewidth=1.4, linestyle="--", label=f"import limit {limit_kw:g} kW lies above the picture")
    ax.set_ylabel("power / kW")
    _legend(ax)
    low.axhline(0, color=GREY, linewidth=0.8)
    low.plot(t, data.batt_w[span] / 1e3, color=BATT, linewidth=1.1)
    low.set_ylabel("battery / kW\n(discharge +)")
    low.set_xlabel("time from the start of the run / s")
    low.set_xlim(a, b)
    return fig


def battery(data: RunData) -> Figure:
    """Battery power and state of charge."""
    fig, (ax, low) = figure(4.4, 2, sharex=True, height_ratios=[3, 2])
    _envelope(ax, data.t_s, data.batt_w / 1e3, BATT, "battery power at the AC terminals (discharge +)", linewidth=1.2)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_ylabel("power / kW")
    _legend(ax)
    low.plot(data.soc_t_s, 100 * data.soc, color=BATT, linewidth=1.4, label="state of charge")
    low.axhline(100 * data.site.num("battery.soc_target"), color=GREY, linestyle="--", linewidth=1.0, label="its target")
    ends = [100 * data.site.num(f"battery.soc_{k}") for k in ("min", "max")]
    low.set_ylabel("SoC / %")
    low.set_xlabel("time from the start of the run / s")
    low.set_xlim(data.t_s[0], data.t_s[-1])
    middle = 50 * (float(np.nanmin(data.soc)) + float(np.nanmax(data.soc))) if len(data.soc) else 50.0
    reach = max(1.0, 1.2 * float(np.nanmax(np.abs(100 * data.soc - middle)))) if len(data.soc) else 1.0
    low.set_ylim(middle - reach, middle + reach)
    for end in ends:
        low.axhline(end, color=LIMIT, linestyle="--", linewidth=1.2)
    _legend(low)
    return fig


def latency(data: RunData, curves: Mapping[str, Callable[[float], float]]) -> Figure:
    """Shares of load steps answered within x ms: measured against the plan. `curves`: the plan's, by name."""
    fig, axes = figure(3.4)
    ax = axes[0]
    shown = (
        ("load_to_command_ms", "command on the wire", data.command_ms, GRID),
        ("load_to_power_ms", "90 % of power", data.power_ms, BATT),
    )
    right = 5.0
    for key, words, measured, color in shown:
        plan = data.plan[key]
        right = max(right, plan["max"] * 1.25)
        x = np.linspace(0, plan["max"] * 1.05, 400)
        ax.plot(x, [100 * curves[key](v) for v in x], color=color, linestyle="--", linewidth=1.3, label=f"{words}, plan")
        if len(measured):
            values = np.sort(measured)
            ax.step(values, 100 * np.arange(1, len(values) + 1) / len(values), where="post", color=color, linewidth=2.0,
                    label=f"{words}, measured ({len(values)} steps)")  # fmt: skip
            right = max(right, float(np.quantile(values, 0.995)) * 1.1)
    ax.axvline(20, color=LIMIT, linewidth=1.2, linestyle=":", label="20 ms")
    ax.set_xlim(0, max(right, 22))
    ax.set_ylim(0, 102)
    ax.set_xlabel("time from the load's step / ms")
    ax.set_ylabel("answered / % of steps")
    ax.legend(loc="upper left", frameon=False, fontsize=9)
    return fig


def spectrum(data: RunData) -> tuple[Figure, float] | None:
    """Power spectral density of load and grid import (Welch, Hann); None where the run is too short. With the seconds of a window."""
    keep = data.t_s >= (data.judged_s or 0)
    load, grid = data.load_w[keep], data.grid_w[keep]
    n = min(8192, 1 << max(0, (len(load) // 3).bit_length() - 1))  # at least five overlapping windows, or it is noise
    if n < 512:
        return None
    fig, (ax,) = figure(3.6)
    for x, color, label, width in ((load, LOAD, "load: what the grid would see", 1.2), (grid, GRID, "grid import: what it sees", 1.6)):
        f, p = welch(x - x.mean(), fs=100.0, window="hann", nperseg=n)
        ax.loglog(f[1:], np.sqrt(p[1:]), color=color, label=label, linewidth=width)
    bands = data.summary.get("band_db") or {}
    for name, shade in (("0.1-2", "#f2f2f2"), ("2-20", "#e6e6e6")):
        a, b = map(float, name.split("-"))
        ax.axvspan(a, b, color=shade, zorder=0)
        if bands.get(name) is not None:
            words, at = f"{a:g} to {b:g} Hz: {bands[name]:+.1f} dB", ax.get_xaxis_transform()
            ax.text(np.sqrt(a * b), 0.97, words, transform=at, ha="center", va="top", fontsize=9)
    ax.set_xlim(f[1], 50)
    ax.set_xlabel("frequency / Hz")
    ax.set_ylabel("amplitude density / (W/√Hz)")
    _legend(ax)
    return fig, n / 100


def machine(data: RunData, step_bins: Sequence[int] | None) -> Figure | None:
    """How late the control thread woke, and how long the kernel took: histograms of a run in real time."""
    if data.wake_us is None or data.summary.get("wake_latency_us") is None:
        return None
    fig = Figure(figsize=(WIDTH_IN, 2.8), dpi=DPI, layout="constrained")
    FigureCanvasAgg(fig)
    left, right = fig.subplots(1, 2)
    _histogram(left, data.wake_us, "wake-up after the tick / µs", data.summary["wake_latency_us"], "µs")
    if step_bins is not None:
        edges = np.arange(len(step_bins)) * 16.0 + 8.0
        _histogram(right, np.repeat(edges, step_bins), "kernel step / ns", data.summary["step_ns"], "ns")
    else:
        right.set_axis_off()
    return fig


def _histogram(ax: Axes, values: Series, label: str, figures: Mapping[str, float], unit: str) -> None:
    values = np.maximum(values, 1.0)
    low, high = float(np.log10(values.min())), float(np.log10(max(values.max(), values.min() * 1.1)))
    ax.hist(values, bins=np.logspace(low, high, 80).tolist(), color=GRID, log=True)
    ax.set_xscale("log")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for name, dash in (("p50", ":"), ("p99", "--"), ("p999", "-.")):
        ax.axvline(max(figures[name], 1.0), color=LIMIT, linestyle=dash, linewidth=1.3, label=f"{name} {figures[name]:.0f} {unit}")
    ax.set_xlabel(label)
    ax.set_ylabel("ticks")
    ax.legend(fontsize=8, framealpha=0.9, edgecolor="none")


def limits(data: RunData) -> Figure | None:
    """When which limit was active; None where none was, or there is no record."""
    if data.limits is None or data.rec_t_s is None:
        return None
    active = [(name, bit) for bit, (name, _) in core.LIMIT_TEXT.items() if np.any(data.limits & np.uint64(bit))]
    if not active:
        return None
    k = max(1, len(data.limits) // POINTS)
    starts = np.arange(0, len(data.limits), k)
    fig, (ax,) = figure(0.7 + 0.28 * len(active))
    t = np.append(data.rec_t_s[starts], data.rec_t_s[-1])
    for row, (_, bit) in enumerate(active):
        on = np.logical_or.reduceat((data.limits & np.uint64(bit)) != 0, starts)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(int), [0]])))
        bars = [(float(t[a]), max(float(t[b] - t[a]), 0.0)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        ax.broken_barh(bars, (len(active) - 1 - row - 0.35, 0.7), color=GRID)
    ax.set_yticks(range(len(active)), [name for name, _ in reversed(active)], fontsize=8)
    ax.grid(axis="y", visible=False)
    ax.set_xlim(data.t_s[0], data.t_s[-1])
    ax.set_xlabel("time from the start of the run / s")
    return fig
