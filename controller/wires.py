"""What the wires do, held against what the plan said of them: turnarounds, each wire's share in use, the age of the meter's values.

`told` is what a run keeps of its plan; `collect` reads the image beside it; `bus_lines`, `device_line` and `warnings` are for people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller import summary
from controller.site import Site

NAME = "wires.json"  # in the directory of a run
TURN_BIN_MS = 0.1  # DeviceStats.turn
ENOUGH = 500  # answers, before a p99 says anything
TOLERANCE_MS = 0.5  # the plan's own margin for wake-ups and jitter
LATE_SHARE = 0.01  # of a bus's transactions
TICK_MS = 10.0


def told(plan: Any, site: Site) -> dict[str, Any]:
    """What the plan (hal.plan.Plan) says of buses and devices, as plain data."""
    devices: dict[str, dict[str, Any]] = {}
    for table in plan.tables:
        for i, txn in enumerate(getattr(table, "txns", ())):  # on CAN nobody is asked
            name = site.devices[txn.device].name
            row = devices.setdefault(name, {"bus": table.spec.name, "turnaround_ms": txn.wire.turnaround_ms, "fast": False})
            row["fast"] |= i in table.fast
    return {
        "busy_ms": {table.spec.name: round(table.busy_ms, 3) for table in plan.tables},
        "devices": devices,
        "meter_age_ms": round(plan.meter_age_ms, 3),
        "load_to_power_p99_ms": plan.load_to_power_ms["p99"],
    }


def collect(image: Any, site: Site, plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measured beside planned, in ms; None where there is nothing yet, or no plan (`plan`: what `told` made).

    busy_ms: of a tick, mean since the run began. Turnarounds: of the last some minutes, max ever, to 0.1 ms upward.
    """
    plan = plan or {"busy_ms": {}, "devices": {}, "meter_age_ms": None, "load_to_power_p99_ms": None}
    stats = image.engine_stats()
    ticks = stats["ticks"] + stats["missed_ticks"]
    buses: dict[str, dict[str, Any]] = {}
    for i, bus in enumerate(site.buses):
        row = image.bus_stats(i)
        busy_ms = round(row["busy_ns"] / 1e6 / ticks, 3) if ticks else None
        buses[bus.name] = {"busy_ms": busy_ms, "planned_busy_ms": plan["busy_ms"].get(bus.name)}
        buses[bus.name] |= {key: int(row[key]) for key in summary.BUS_KEYS}
    devices: dict[str, dict[str, Any]] = {}
    for i, device in enumerate(site.devices):
        row, known = image.device_stats(i), plan["devices"].get(device.name, {})
        found = summary.quantiles(row["turn"], TURN_BIN_MS, row["turn_max_ns"] / 1e6) or {}
        devices[device.name] = {
            "bus": device.bus, "alive": bool(row["alive"]), "answers": int(row["turn_n"]), "fast": known.get("fast", False),
            "planned_ms": known.get("turnaround_ms"),
            **{f"{q}_ms": None if q not in found else round(found[q], 3) for q in ("p50", "p99", "max")},
        }  # fmt: skip
    latest = image.latest()
    age_ms = align_ms = None
    if latest is not None and latest["inp"]["meter"]["g"]["t_ns"]:
        age_ms = round((latest["inp"]["step_t_ns"] - latest["inp"]["meter"]["g"]["t_ns"]) / 1e6, 3)
        align_ms = round(1e3 * latest["out"]["align_s"], 3)
    return {
        "buses": buses,
        "devices": devices,
        "meter_age_ms": age_ms,
        "planned_meter_age_ms": plan["meter_age_ms"],
        "align_ms": align_ms,
        "full_align_ms": round(1e3 * site.num("control.align_full_s"), 3),
        "planned_p99_ms": plan["load_to_power_p99_ms"],
    }


def warnings(got: Mapping[str, Any], site: Site) -> list[str]:
    """Where what was measured breaks what the plan promises, and what to write into the site file."""
    tcp = {bus.name for bus in site.buses if bus.tcp}
    out = []
    for name, row in got["devices"].items():
        p99, planned, bus = row["p99_ms"], row["planned_ms"], row["bus"]
        if planned is None or row["answers"] < ENOUGH or p99 <= planned + TOLERANCE_MS:
            continue
        key, value = f"device.{name}.turnaround_ms", math.ceil(10 * p99 - 1e-6) / 10
        costs = f"an answer of it may still be on the wire when bus {bus} is needed"
        if row["fast"] and got["planned_p99_ms"] is not None:
            costs = f"load to power p99 of {got['planned_p99_ms']:.2f} ms does not hold"
        network = f" (or bus.{bus}.latency_ms more, where the network is it)" if bus in tcp else ""
        head = f"{name} takes {value:g} ms to answer (p99), planned with {planned:g}: {costs}"
        machine = " (on the virtual cabinet a busy machine does that too: its devices are a process)" if site.virtual else ""
        out.append(f"{head}; set {key} to {value:g}{network}: `ballast check` then says what holds{machine}")
    for name, row in got["buses"].items():
        lost = [d for d, r in got["devices"].items() if r["bus"] == name and not r["alive"]]
        if lost and row["late"] > LATE_SHARE * max(row["transactions"], 100):
            head = f"bus {name}: {row['late']} answers came when they had been given up, and {', '.join(lost)} counts as lost"
            out.append(f"{head}; set device.{lost[0]}.turnaround_ms some milliseconds higher")
    return out


def bus_line(row: Mapping[str, Any]) -> str:
    """Share of a wire in use, in words; empty before the first tick."""
    if row["busy_ms"] is None:
        return ""
    planned = "" if row["planned_busy_ms"] is None else f" (plan {row['planned_busy_ms']:.2f}, {_share(row['planned_busy_ms'])})"
    return f"wire in use {row['busy_ms']:.2f} ms of a tick, {_share(row['busy_ms'])}{planned}"


def _share(busy_ms: float) -> str:
    return f"{100 * busy_ms / TICK_MS:.0f} %" if busy_ms >= 0.1 or not busy_ms else f"{100 * busy_ms / TICK_MS:.1f} %"


def device_line(row: Mapping[str, Any]) -> str:
    """A device's turnaround in words; empty where it has not answered yet, or is not asked (CAN)."""
    if row["p50_ms"] is None:
        return ""
    planned = "" if row["planned_ms"] is None else f" (plan {row['planned_ms']:g})"
    return f"turnaround p50 {row['p50_ms']:.1f}, p99 {row['p99_ms']:.1f}, max {row['max_ms']:.1f} ms{planned}"


def meter_line(got: Mapping[str, Any]) -> str:
    """Age of the meter's values at the step, and the model's alignment with the readback; empty before the first."""
    if got["meter_age_ms"] is None:
        return ""
    planned = "" if got["planned_meter_age_ms"] is None else f" (plan {got['planned_meter_age_ms']:.2f})"
    align = f"model and readback {got['align_ms']:.2f} ms apart (full bandwidth up to {got['full_align_ms']:g})"
    return f"meter values {got['meter_age_ms']:.2f} ms old when the kernel steps{planned}; {align}"


def write(got: Mapping[str, Any], directory: Path) -> None:
    """wires.json of a run, for its report."""
    (directory / NAME).write_text(json.dumps(summary.clean(got), indent=1) + "\n")
