"""The picture of a run's buses: one tick as planned, with what the record knows of it, and each wire's share in use.

Planned and measured stand beside each other: bars are the plan, black whiskers (first to last percentile, dot at the median) the run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.pictures import BATT, GREY, GRID, LIMIT, REF, figure
from bench.rundata import RunData, Series

HIGH, LOW = 0.42, 0.28  # of a bar: the fast part of the tick; what takes turns after it
CAN = "#CC79A7"
PALE = {GRID: "#9cc9e3", LIMIT: "#f0c3a0", BATT: "#a5d8c8", CAN: "#efd3e1"}
FAST, COMMAND, AFTER = "fast", "command", "after"
COLOR = {FAST: GRID, COMMAND: LIMIT, AFTER: BATT, "can": CAN}
WORDS = {FAST: "fast read", COMMAND: "command", AFTER: "after-slot: these take turns", "can": "our CAN frame, and how long it may wait"}
GROUP_ROLE = {"meter": "meter", "pcs": "pcs", "bms": "bms"}  # groups of Inputs whose answers' instants the record holds
ENOUGH = 20  # instants, before their percentiles say anything


def bus(data: RunData) -> Figure:
    """The tick of every bus and the kernel, and below it the share of each wire that is in use."""
    names = [b.name for b in data.site.buses]
    fig, (ax, low) = figure(2.2 + 0.95 * len(names), 2, height_ratios=[1.3 + len(names), 0.5 + 0.6 * len(names)])
    _tick(ax, data, names)
    _shares(low, data, names)
    return fig


def _tick(ax: Axes, data: RunData, names: list[str]) -> None:
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, data.plan["tick_ms"])
    ax.set_xticks(range(round(data.plan["tick_ms"]) + 1))
    rows = {name: len(names) - i for i, name in enumerate(names)}  # the kernel's is 0
    places: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in data.plan["timeline"]:
        places.setdefault((row["bus"], row["start_ms"]), []).append(row)
    for (name, _), here in places.items():  # several at one place take turns: the longest is drawn
        _transaction(ax, rows[name], max(here, key=lambda r: r["end_ms"]), _words(here))
    for name, table in data.plan["can"].items():
        others = len(table["frames"]) - any(r["bus"] == name for r in data.plan["timeline"])
        words = f"{others} other frames at any time"
        ax.text(data.plan["tick_ms"], rows[name] - 0.12, words, fontsize=8, va="top", ha="right", color=GREY)
        ax.barh(rows[name], data.plan["tick_ms"], height=0.08, color=PALE[CAN], zorder=1)
    _kernel(ax, data)
    for (group, role), y in ((pair, rows) for pair in GROUP_ROLE.items()):
        device = next((d for d in data.site.devices if d.role == role), None)
        if device is not None and device.bus not in data.plan["can"]:
            _whisker(ax, y[device.bus] - 0.33, data.answer_ms.get(group, np.zeros(0)))
    _key(ax, data)
    ax.set_yticks([*rows.values(), 0], [*(f"bus {name}" for name in rows), "kernel"])
    ax.set_ylim(-0.5, len(names) + 0.75)
    ax.set_xlabel("time after the tick / ms")


def _words(rows: list[dict[str, Any]]) -> str:
    """Whose transactions stand at one place."""
    kinds = list(dict.fromkeys(" ".join(w for w in r["what"].split(" FC")[0].split() if not w.isdigit()) for r in rows))
    return kinds[0] if len(rows) == 1 else "in turn: " + ", ".join(kinds)


def _transaction(ax: Axes, y: float, row: dict[str, Any], words: str) -> None:
    color, height = COLOR[row["kind"]], LOW if row["kind"] == AFTER else HIGH
    start, sent, answer, end = (row[f"{key}_ms"] for key in ("start", "sent", "answer", "end"))
    ax.barh(y, sent - start, left=start, height=height, color=color, zorder=3)
    if row["kind"] == "can":
        ax.barh(y, end - sent, left=sent, height=height, color="white", edgecolor=color, hatch="////", linewidth=0.8, zorder=2)
    else:
        ax.barh(y, answer - sent, left=sent, height=height, color="white", edgecolor=PALE[color], hatch="....", linewidth=0.8, zorder=2)
        ax.barh(y, end - answer, left=answer, height=height, color=PALE[color], edgecolor=color, linewidth=0.8, zorder=3)
        ax.plot([end, row["free_ms"]], [y, y], color=GREY, linewidth=1.0, linestyle=":", zorder=1)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    tick_ms = ax.get_xlim()[1]
    late = start > 0.55 * tick_ms  # no room to the right
    ax.text(tick_ms if late else start + 0.03, y + 0.25, words, fontsize=8, va="bottom", ha="right" if late else "left", bbox=behind)


def _kernel(ax: Axes, data: RunData) -> None:
    step, latest, end = (data.plan[key] for key in ("step_ms", "step_deadline_ms", "command_end_ms"))
    ax.barh(0, latest - step, left=step, height=0.12, color="#dddddd", zorder=1)
    marks = [(step, "kernel steps", REF, "-"), (end, "command's last bit", LIMIT, "--"), (latest, "steps at the latest", GREY, ":")]
    for x, words, color, dash in marks:
        ax.axvline(x, color=color, linewidth=1.2, linestyle=dash, label=f"{words}, {x:.3f} ms", zorder=0)
    if data.step_ms is not None:
        _whisker(ax, 0, data.step_ms)


def _whisker(ax: Axes, y: float, values_ms: Series) -> None:
    """First to last percentile and median of instants in the tick."""
    if len(values_ms) < ENOUGH:
        return
    low, middle, high = (float(np.percentile(values_ms, q)) for q in (1, 50, 99))
    ax.plot([low, high], [y, y], color=REF, linewidth=1.6, marker="|", markersize=6, zorder=5)
    ax.plot([middle], [y], color=REF, marker="o", markersize=4, zorder=6)


def _key(ax: Axes, data: RunData) -> None:
    kinds = {row["kind"] for row in data.plan["timeline"]}
    for kind in (k for k in WORDS if k in kinds):
        ax.barh([-9], [0], color=COLOR[kind], label=WORDS[kind])
    ax.barh([-9], [0], color="white", edgecolor=GREY, hatch="....", label="t3.5 and turnaround; then, pale, the answer")
    ax.plot([], [], color=GREY, linestyle=":", label="silence")
    ax.plot([], [], color=REF, marker="o", markersize=4, label="measured: answer whole, kernel's step (1, 50, 99 %)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2)


def _shares(ax: Axes, data: RunData, names: list[str]) -> None:
    """How long of each tick a wire is in use, planned and measured, with its errors."""
    ax.grid(axis="y", visible=False)
    measured = (data.wires or {}).get("buses", {})
    tick_ms = data.plan["tick_ms"]
    for i, name in enumerate(names):
        y = len(names) - 1 - i
        planned, busy = data.plan["busy_ms"][name], (measured.get(name) or {}).get("busy_ms")
        ax.barh(y + 0.17, planned, height=0.3, color="white", edgecolor=GRID, linewidth=1.2, label="plan" if i == 0 else None)
        if busy is not None:
            ax.barh(y - 0.17, busy, height=0.3, color=GRID, label="measured" if i == 0 else None)
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        ax.text(max(planned, busy or 0.0) + 0.08, y, share_words(data, name), fontsize=8, va="center", bbox=behind)
    ax.set_yticks(range(len(names)), [f"bus {name}" for name in reversed(names)])
    ax.set_xlim(0, max(1.4 * tick_ms, tick_ms + 4))
    ax.axvline(tick_ms, color=GREY, linewidth=1.0)
    ax.set_xticks(range(round(tick_ms) + 1))
    ax.set_xlabel(f"wire in use, ms of a tick of {tick_ms:g} ms")
    ax.set_ylim(-0.5, len(names) - 0.3)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=8, borderaxespad=0.2)


def share_words(data: RunData, name: str) -> str:
    """A bus in one line: share in use, planned and measured, and what went wrong on it."""
    row, busy = data.summary["buses"][name], ((data.wires or {}).get("buses", {}).get(name) or {}).get("busy_ms")
    planned, tick_ms = data.plan["busy_ms"][name], data.plan["tick_ms"]
    got = "" if busy is None else f", measured {100 * busy / tick_ms:.1f} %"
    wrong = f"{row['timeouts']} timeouts, {row['crc_errors']} CRC errors of {row['transactions']}"
    return f"plan {100 * planned / tick_ms:.1f} %{got}; {wrong}"
