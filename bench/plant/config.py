"""Configuration of the virtual cabinet: a plain dict (JSON), checked as a whole.

    {"params": {"battery.soc": 0.55}, "ports": {"a": {"baud": 460800, "parity": "E", "stop_bits": 1}, "b": {"tcp": true | PORT}},
     "devices": [{"kind": "meter", "port": "a", "unit": 1}],
     "load": {"trace": "FILE[:COLUMN]" | "steps" | "cluster" | WATTS, "edge": "step" | "linear" | MS, "scale": 1,
     "repeat": true}, "seed": 1, "out": DIR | null, "duration_s": null, "faults": [{"at_s": 5, "for_s": 2, "key":
     "meter.dead", "value": 1}], "rt": {"priority": 80, "cpu": 0}}

A port {"bitrate": 500000} is an slcan adapter on a CAN bus: what BMS and PCS speak there says
bench/plant/can.pyx. Every part has a default: builtin(). `for_s` missing or null: the fault stays. rt.cpu null: any; rt.priority 0: normal
scheduling.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

from bench.plant import load as loads
from bench.plant import params

KINDS = ("meter", "bms", "pcs")
MAX_FAULTS = 512
_DEFAULT_PORT = {"baud": 460800, "parity": "E", "stop_bits": 1}
_CAN_RATES = (10_000, 20_000, 50_000, 100_000, 125_000, 250_000, 500_000, 800_000, 1_000_000)


class ConfigError(ValueError):
    """A configuration that cannot be used; `problems` holds one line each, all of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class PortConfig:
    """Serial line: baud, and bits per character with start, parity and stop bits. tcp: a Modbus TCP server in its place, in real time
    on loopback port `listen` (0: any that is free). bitrate: an slcan adapter on a CAN bus in its place.
    """

    baud: int
    char_bits: int
    tcp: bool = False
    listen: int = 0
    bitrate: int = 0


@dataclass(frozen=True)
class DeviceConfig:
    """One emulated device."""

    kind: str
    port: str
    unit: int


@dataclass(frozen=True)
class Fault:
    """`key` takes `value` at at_s from start, for for_s (None: for good)."""

    at_s: float
    for_s: float | None
    key: str
    value: float


@dataclass(frozen=True)
class Config:
    """A checked configuration; par in the order of Plant.par. load.duration_s: length of the trace (inf for a
    constant).
    """

    par: list[float]
    ports: dict[str, PortConfig]
    devices: list[DeviceConfig]
    load: loads.Load
    seed: int
    out: str | None
    duration_s: float | None
    faults: list[Fault]
    rt_priority: int
    rt_cpu: int | None


def builtin() -> dict[str, Any]:
    """The built-in site: two buses at 460800 8E1, meter and BMS on a, PCS on b, generated cluster load."""
    return {
        "params": {},
        "ports": {"a": dict(_DEFAULT_PORT), "b": dict(_DEFAULT_PORT)},
        "devices": [
            {"kind": "meter", "port": "a", "unit": 1},
            {"kind": "bms", "port": "a", "unit": 10},
            {"kind": "pcs", "port": "b", "unit": 1},
        ],
        "load": {"trace": "cluster", "edge": 20, "scale": 1, "repeat": True},
        "seed": 1,
        "out": None,
        "duration_s": None,
        "faults": [],
        "rt": {"priority": 80, "cpu": None},
    }


class _Check:
    """Collects problems while it reads; every getter returns something usable so that checking goes on."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def table(self, value: object, where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.problems.append(f"{where}: must be an object, is {type(value).__name__}")
            return {}
        for key in value:
            if key not in allowed:
                near = difflib.get_close_matches(str(key), allowed, n=1)
                self.problems.append(
                    f"{where}.{key}: no such key"
                    + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(allowed)}")
                )
        return value

    def rows(self, value: object, where: str, most: int) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            self.problems.append(f"{where}: must be a list of at most {most}")
            return []
        return value

    def number(self, value: object, where: str, low: float, high: float, default: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            self.problems.append(f"{where} = {value!r}: must be a number from {low:g} to {high:g}")
            return default
        return float(value)

    def one_of(self, value: object, where: str, choices: tuple[Any, ...], default: Any) -> Any:
        if value not in choices:
            self.problems.append(f"{where} = {value!r}: must be one of {', '.join(map(str, choices))}")
            return default
        return value


def _ports(c: _Check, raw: object) -> dict[str, PortConfig]:
    out = {}
    for name, row in c.table(raw, "ports", params.PORT_NAMES).items():
        t = _DEFAULT_PORT | {"tcp": False, "bitrate": 0} | c.table(row, f"ports.{name}", (*_DEFAULT_PORT, "tcp", "bitrate"))
        listen = 0 if isinstance(t["tcp"], bool) else int(c.number(t["tcp"], f"ports.{name}.tcp", 1, 65535, 1))
        baud = c.number(t["baud"], f"ports.{name}.baud", 300, 12_000_000, 460800)
        parity = c.one_of(t["parity"], f"ports.{name}.parity", ("N", "E", "O"), "E")
        stop = c.one_of(t["stop_bits"], f"ports.{name}.stop_bits", (1, 2), 1)
        if name in params.PORT_NAMES:
            rate = c.one_of(t["bitrate"], f"ports.{name}.bitrate", (0, *_CAN_RATES), 0)
            out[name] = PortConfig(int(baud), 9 + (parity != "N") + stop, t["tcp"] is not False, listen, rate)
    return out


def _devices(c: _Check, raw: object, ports: dict[str, PortConfig]) -> list[DeviceConfig]:
    out: list[DeviceConfig] = []
    for i, row in enumerate(c.rows(raw, "devices", 8)):
        where = f"devices[{i}]"
        t = c.table(row, where, ("kind", "port", "unit"))
        kind = c.one_of(t.get("kind"), f"{where}.kind", KINDS, "meter")
        port = c.one_of(t.get("port"), f"{where}.port", tuple(ports), "a")
        low, high = (0, 255) if port in ports and ports[port].tcp else (1, 247)
        unit = int(c.number(t.get("unit"), f"{where}.unit", low, high, 1))
        can = bool(ports.get(port, PortConfig(0, 0)).bitrate)  # there the identifiers tell devices apart
        if not can and any(d.port == port and d.unit == unit for d in out):
            c.problems.append(f"{where}: unit {unit} on port {port} is taken: choose another unit")
        if kind == "meter" and can:
            c.problems.append(f"{where}: the plant's meter does not speak CAN")
        if kind != "meter" and any(d.kind == kind for d in out):
            c.problems.append(f"{where}: a second {kind}: the plant has one")
        out.append(DeviceConfig(kind, port, unit))
    return out


def _load(c: _Check, raw: object, seed: int, s_rated_va: float) -> loads.Load:
    t = {"trace": "cluster", "edge": 20, "scale": 1, "repeat": True} | c.table(
        raw, "load", ("trace", "edge", "scale", "repeat")
    )
    what, edge = t["trace"], str(t["edge"])
    scale = c.number(t["scale"], "load.scale", 0, 1e6, 1)
    wrong = loads.check_edge(edge)
    if wrong:
        c.problems.append(f"load: {wrong}")
        edge = "20"
    try:
        if isinstance(what, (int, float)) and not isinstance(what, bool):
            return loads.constant(c.number(what, "load.trace", -1e9, 1e9, 0) * scale)
        if what == "steps":
            return loads.steps(seed=seed, step_w=0.1 * s_rated_va, scale=scale)
        if what == "cluster":
            return loads.cluster(seed=seed, scale=scale, edge=edge)
        if isinstance(what, str):
            return loads.trace(what, edge=edge, scale=scale, repeat=bool(t["repeat"]), seed=seed)
        c.problems.append(f"load.trace = {what!r}: FILE[:COLUMN], steps, cluster or a power in watts")
    except loads.TraceError as e:
        c.problems += e.problems
    return loads.constant(0)


def _faults(c: _Check, raw: object) -> list[Fault]:
    out = []
    for i, row in enumerate(c.rows(raw, "faults", MAX_FAULTS)):
        where = f"faults[{i}]"
        t = c.table(row, where, ("at_s", "for_s", "key", "value"))
        at_s = c.number(t.get("at_s"), f"{where}.at_s", 0, 1e7, 0)
        for_s = None if t.get("for_s") is None else c.number(t["for_s"], f"{where}.for_s", 0, 1e7, 0)
        try:
            out.append(
                Fault(at_s, for_s, str(t.get("key")), params.check(str(t.get("key")), t.get("value"), running=True))
            )
        except params.ParamError as e:
            c.problems.append(f"{where}: {e}")
    return out


def parse(raw: dict[str, Any]) -> Config:
    """Check a configuration; parts left out come from builtin(). Raises ConfigError with all problems at once."""
    c = _Check()
    base = builtin()
    top = base | c.table(raw, "config", tuple(base))
    seed = int(c.number(top["seed"], "seed", 0, 2**53, 1))
    par, problems = params.values(
        c.table(top["params"], "params", tuple(top["params"]) if isinstance(top["params"], dict) else ())
    )
    c.problems += [f"params: {p}" for p in problems]
    ports = _ports(c, top["ports"])
    devices = _devices(c, top["devices"], ports)
    faults = _faults(c, top["faults"])
    rt = base["rt"] | c.table(top["rt"], "rt", ("priority", "cpu"))
    priority = int(c.number(rt["priority"], "rt.priority", 0, 98, 80))
    cpu = None if rt["cpu"] is None else int(c.number(rt["cpu"], "rt.cpu", 0, 1023, 0))
    duration_s = None if top["duration_s"] is None else c.number(top["duration_s"], "duration_s", 0.01, 1e9, 1)
    if top["out"] is not None and not isinstance(top["out"], str):
        c.problems.append("out: a directory or null")
    load = _load(c, top["load"], seed, par[params.INDEX["pcs.s_rated_va"]])
    if c.problems:
        raise ConfigError(c.problems)
    if not math.isfinite(float(load.p_w.sum())):
        raise ConfigError(["load: power is not finite"])
    return Config(par, ports, devices, load, seed, top["out"], duration_s, faults, priority, cpu)
