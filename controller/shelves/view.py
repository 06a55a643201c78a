"""Shelves for people: the same lines for `ballast shelves` and the console, and how a write is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller import lines, operate, signals
from controller.clock import Clock
from controller.instance import Instance
from controller.shelves.table import ITEMS, SOCKET, Reading, Table, slots, total
from controller.site import Site
from controller.walk import near as nearest

UNITS = signals.UNITS | {"min": "l/min"}  # by the last part of a signal's name
PATIENCE_S = 6.0  # longer than the shelves' process takes for any answer


@dataclass
class Seen:
    """What is known of the shelves now. `problem`: why nothing is."""

    readings: list[Reading] = field(default_factory=list)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    ports: dict[str, dict[str, Any]] = field(default_factory=dict)
    problem: str = ""

    @property
    def names(self) -> list[str]:
        return [r.slot.name for r in self.readings]


@dataclass(frozen=True)
class Written:
    """What became of a write. `refused`: nothing was sent."""

    ok: bool
    text: str
    refused: bool = False


def look(directory: Path, site: Site) -> Seen:
    """Table and items of a running site."""
    seen = Seen()
    try:
        seen.readings = Table(directory, slots(site.shelves)).readings()
    except Exception as e:  # whatever lies there: who looks goes on
        seen.problem = f"the shelves are not read: {e}"
    try:
        got = json.loads((directory / ITEMS).read_text())
        seen.items, seen.ports = dict(got["devices"]), dict(got["ports"])
    except Exception:  # not written yet, or by another one
        seen.items, seen.ports = {}, {}
    return seen


def near(name: str, seen: Seen) -> str:
    """A remedy for a device's name that is none."""
    return seen.problem or nearest(name, seen.names) or f"they are {', '.join(seen.names)}"[:200]


def overview(seen: Seen, now_ns: int) -> Iterator[str]:
    """A line a shelf and port, then what does not answer and what raises an alarm."""
    if seen.problem:
        yield seen.problem
    groups: dict[str, list[Reading]] = {}
    for r in seen.readings:
        groups.setdefault(r.slot.shelf.name, []).append(r)
    for name, rows in groups.items():
        role = rows[0].slot.map.role
        online = sum(r.answers(now_ns) for r in rows)
        text = f"{name:<12} {role:<8} {online}/{len(rows)} answer"
        for signal, words in (("p_out_w", "out"), ("p_in_w", "in")):
            if any(signal in r.values for r in rows):
                text += f"   {words} {total(rows, signal, role, now_ns)[0] / 1e3:.2f} kW"
        text += "".join(_extra([r for r in rows if r.answers(now_ns)]))
        sweep = online == len(rows) and seen.ports.get(rows[0].slot.shelf.port, {}).get("sweep_s")
        ages = [a for r in rows if r.answers(now_ns) for a in [_age_s(r, now_ns)] if math.isfinite(a)]
        text += f"   oldest {max(ages):.2f} s" if ages else ""
        yield text + (f"   sweep {sweep:.3f} s" if sweep else "")
    silent = [r.slot.name for r in seen.readings if not r.answers(now_ns)]
    if silent:
        yield f"no answer: {', '.join(silent)}"
    for r in seen.readings:
        if r.answers(now_ns) and (bits := alarms(r)):
            yield f"ALARM {r.slot.name}: {', '.join(bits)} (read {r.age_s('alarm', now_ns):.0f} s ago)"


def warnings(seen: Seen, now_ns: int) -> list[str]:
    """A line where shelves are not read, or devices of them do not answer."""
    if seen.problem:
        return [f"{seen.problem}; the console's `log` says more"]
    silent = [r.slot.name for r in seen.readings if not r.answers(now_ns)]
    return [f"{len(silent)} of {len(seen.readings)} devices beside the tick do not answer: `ballast shelves` names them"] if silent else []


def _extra(rows: list[Reading]) -> Iterator[str]:
    """What only some roles have."""
    for signal, words, factor, unit in (
        ("soc", "SoC", 100, "%"), ("flow_l_per_min", "flow", 1, "l/min"), ("temp_out_c", "outlet", 1, "degC"), ("pump", "pump", 100, "%"),
    ):  # fmt: skip
        known = [r.values[signal][0] for r in rows if r.values.get(signal, (0, 0))[1]]
        if known:
            yield f"   {words} {factor * min(known):.1f} {unit}"


def _age_s(r: Reading, now_ns: int) -> float:
    """Age of what the sweep reads: of the newest value."""
    ages = [r.age_s(name, now_ns) for name in r.values]
    return min((a for a in ages if math.isfinite(a)), default=math.nan)


def alarms(r: Reading) -> tuple[str, ...]:
    """The names of its alarm bits."""
    item = next((i for name, i, _ in r.slot.map.signals if name == "alarm"), None)
    value, t_ns = r.values.get("alarm", (0.0, 0))
    if item is None or not t_ns or not math.isfinite(value) or item.kind != "flags":
        return ()
    got = item.decode([int(value) >> 16 * k & 0xFFFF for k in reversed(range(item.words))])
    return got if isinstance(got, tuple) else ()


def device(seen: Seen, name: str, now_ns: int) -> Iterator[str]:
    """Everything of one device."""
    r = next(r for r in seen.readings if r.slot.name == name)
    s = r.slot
    yield f"{name}   {s.map.name} ({s.map.role}) at {s.unit} on {s.shelf.port}, {s.shelf.baud} Bd 8{s.shelf.parity}{s.shelf.stop_bits}"
    state = "answers" if r.answers(now_ns) else "DOES NOT ANSWER"
    yield f"{state}   ok {r.ok}   timeouts {r.timeouts}   errors {r.errors}   writes {r.writes}"
    for signal, (value, t_ns) in r.values.items():
        unit = UNITS.get(signal.rpartition("_")[2], "") if "_" in signal else ""
        yield f"  {signal:<36} {value:>12.6g} {unit:<6} {(now_ns - t_ns) / 1e9:8.2f} s ago" if t_ns else f"  {signal:<36} not read yet"
    units = {i.name: i.unit for b in (s.map.sweep, *s.map.slow) for i in b.items}
    for item, (value, t_ns) in seen.items.get(name, {}).items():
        shown = ", ".join(value) or "-" if isinstance(value, list) else f"{value:.6g}" if isinstance(value, float) else str(value)
        yield f"  {item:<36} {shown:>12} {units.get(item, ''):<6} {(now_ns - t_ns) / 1e9:8.1f} s ago"
    allowed = [w for w in s.map.writes if w.name in s.shelf.allow]
    yield "may be written: " + (", ".join(w.name for w in allowed) or "nothing ([[shelf]] allow)")


def as_json(seen: Seen, now_ns: int) -> dict[str, Any]:
    """The overview as plain data; ages in seconds."""
    rows = {}
    for r in seen.readings:
        values = {k: {"value": v, "age_s": (now_ns - t_ns) / 1e9} for k, (v, t_ns) in r.values.items() if t_ns}
        rows[r.slot.name] = {
            "role": r.slot.map.role, "online": r.answers(now_ns),
            "ok": r.ok, "timeouts": r.timeouts, "errors": r.errors, "writes": r.writes,
            "values": values, "alarms": list(alarms(r)),
        }  # fmt: skip
    return {"devices": rows, "ports": seen.ports, "problem": seen.problem}


def write(instance: Instance, clock: Clock, who: str, name: str, text: str) -> Written:
    """Asks the shelves' process for one write. That it is asked stands in the audit trail before, what became of it after."""
    item, sign, value = text.partition("=")
    try:
        number = int(value, 0)
    except ValueError:
        return Written(False, f"{text!r} is not ITEM=VALUE with a whole number", refused=True)
    if not sign or not item.strip():
        return Written(False, f"{text!r} is not ITEM=VALUE", refused=True)
    asked = f"{name} {item} = {number}"
    operate.audit(instance, clock, who, "shelves write", None, None, f"{asked}: asked")
    try:
        request = {"do": "write", "device": name, "item": item.strip(), "value": number}
        got = lines.ask(Path(instance.directory) / SOCKET, request, PATIENCE_S)
    except (FileNotFoundError, ConnectionRefusedError, PermissionError) as e:
        got = {"ok": False, "sent": False, "error": f"nobody reads the shelves ({e.strerror}); `ballast status` says what runs"}
    except (OSError, ValueError):
        got = {"ok": False, "sent": True, "error": "no answer: whether it was done is not known; look at the device"}
    said = f"{asked} (was {got['before']}), read back" if got["ok"] else f"{asked}: {got.get('error', 'refused')}"
    operate.audit(instance, clock, who, "shelves write", None, None, said)
    return Written(bool(got["ok"]), said, refused=not got["ok"] and not got.get("sent", True))


__all__ = ["Seen", "Written", "alarms", "as_json", "device", "look", "near", "overview", "warnings", "write"]
