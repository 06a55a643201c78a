"""summary.json: what a run reached, with the keys of docs/hil.md and nothing else; `ballast sim` and `ballast run`
write the same.

Statistics of the engine come from the image; everything about the physics (latency, grid, suppression, battery) comes
from the judge, who knows the plant's log alone. Values that do not exist are null, never 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller import disk
from controller.site import Site

KEYS = (
    "mode", "seed", "duration_s", "ticks", "missed_ticks", "wake_latency_us", "step_ns", "plan", "measured", "grid",
    "suppression", "spikes_smoothed", "spikes", "band_db", "battery", "buses", "events", "record_sha256",
)  # fmt: skip
LATENCY_KEYS = ("load_to_command_ms", "load_to_power_ms")
GRID_KEYS = (
    "peak_w", "import_limit_w", "ramp_max_w_per_s", "ramp_limit_w_per_s", "ramp_not_held_s", "over_limit_s",
)  # fmt: skip
BATTERY_KEYS = ("soc_start", "soc_end", "throughput_wh", "over_limit_s")
BUS_KEYS = ("transactions", "timeouts", "crc_errors", "late")
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
STEP_BIN_NS = 16
MAX_EVENTS = 1000


def quantiles(histogram: Sequence[int], bin_width: float, largest: float) -> dict[str, float] | None:
    """p50, p99, p999 (upper edge of the bin, so never flattering) and max of a histogram; None where it is empty.

    What lies in the last bin is beyond its edge: there the largest value ever seen stands in.
    """
    total = sum(histogram)
    if not total:
        return None
    out: dict[str, float] = {}
    for name, share in QUANTILES:
        need, seen = math.ceil(share * total), 0
        for i, count in enumerate(histogram):
            seen += count
            if seen >= need:
                edge = (i + 1) * bin_width
                out[name] = largest if i == len(histogram) - 1 else min(edge, largest)
                break
    out["max"] = largest
    return out


def engine(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The four figures of the control thread from EngineStats."""
    return {
        "ticks": stats["ticks"],
        "missed_ticks": stats["missed_ticks"],
        "wake_latency_us": quantiles(stats["wake_us"], 1.0, stats["max_wake_late_ns"] / 1e3),
        "step_ns": quantiles(stats["step_ns"], STEP_BIN_NS, stats["max_step_ns"]),
    }


def buses(image: Any, site: Site) -> dict[str, dict[str, int]]:
    """Counters of each bus, by its name."""
    return {bus.name: {key: int(image.bus_stats(i)[key]) for key in BUS_KEYS} for i, bus in enumerate(site.buses)}


def event_rows(events: Iterable[Any], t0_ns: int) -> list[dict[str, Any]]:
    """Events for people and JSON: at most 1,000, `t_s` counted from the start of the run. Takes objects or Store
    rows.
    """
    rows = []
    for e in events:
        t_ns, kind, text = (e[1], e[2], e[3]) if isinstance(e, tuple) else (e.t_ns, e.kind, e.text)
        rows.append({"t_s": round((t_ns - t0_ns) / 1e9, 3), "kind": kind, "text": text})
    return rows[:MAX_EVENTS]


def compose(
    *,
    site: Site,
    mode: str,
    seed: int | None,
    duration_s: float,
    engine_stats: Mapping[str, Any],
    plan: Any,
    judged: Mapping[str, Any] | None,
    bus_rows: Mapping[str, Mapping[str, int]],
    events: list[dict[str, Any]],
    record_sha256: str | None,
) -> dict[str, Any]:
    """The summary. `mode` is "run" or "sim"; `plan` is a hal.plan.Plan or its dict; `judged` is the judge's JSON
    (None: no plant).

    In "sim" wake latency and step time are null: virtual time has neither.
    """
    figures = engine(engine_stats)
    if mode == "sim":
        figures["wake_latency_us"] = figures["step_ns"] = None
    judged = judged or {}
    grid = dict(judged.get("grid") or {})
    grid.setdefault("import_limit_w", site.num("grid.import_limit_w"))
    grid.setdefault("ramp_limit_w_per_s", max(site.num("grid.ramp_up_w_per_s"), site.num("grid.ramp_down_w_per_s")))
    battery = judged.get("battery")
    out = {
        "mode": mode,
        "seed": seed,
        "duration_s": round(duration_s, 3),
        **figures,
        "plan": latency(plan),
        "measured": judged.get("measured"),
        "grid": {key: grid.get(key) for key in GRID_KEYS},
        "suppression": judged.get("suppression"),
        "spikes_smoothed": judged.get("spikes_smoothed"),
        "spikes": judged.get("spikes"),
        "band_db": judged.get("band_db"),
        "battery": {key: battery.get(key) for key in BATTERY_KEYS} if battery else None,
        "buses": {name: dict(row) for name, row in bus_rows.items()},
        "events": events,
        "record_sha256": record_sha256,
    }
    return {key: clean(out[key]) for key in KEYS}


def latency(plan: Any) -> dict[str, Any] | None:
    """The plan's two latencies, each as p50, p99, max in ms."""
    if plan is None:
        return None
    if isinstance(plan, Mapping):
        return {key: plan[key] for key in LATENCY_KEYS}
    return {key: getattr(plan, key) for key in LATENCY_KEYS}


def clean(x: Any) -> Any:
    """The value as JSON can hold it: what is not finite becomes null, numpy scalars become numbers."""
    if isinstance(x, Mapping):
        return {str(k): clean(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [clean(v) for v in x]
    if hasattr(x, "item") and not isinstance(x, (str, bytes)):
        x = x.item()
    if isinstance(x, float) and not math.isfinite(x):
        return None
    return x


def write(summary: Mapping[str, Any], directory: Path) -> Path:
    """Writes summary.json in one step and returns its path."""
    path = directory / "summary.json"
    disk.replace(path, (json.dumps(clean(summary), indent=2) + "\n").encode(), 0o644, durable=False)
    return path
