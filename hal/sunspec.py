"""SunSpec devices: scan the model chain, read the scale factors, compile to the rows of hal/rows.py.

Runs before control starts (in the parent or a child): pysunspec2's model files are read here and nowhere else.
Sources: SunSpec Device Information Model Specification V1.1 (chain, "not implemented" values), models 1, 201-203,
701-704, 713, 715, 802, 803.

Signs: 701.W and 704.WSet are generation +, which for a battery is discharge + (the contract's sign). 701.Var injects
+. 201-203 count import + for W, and for VAR consumption (lagging) +, so q_var takes -1. 802 leaves the sign of A open
("flowing to/from"); discharge + is taken, as in 701, and `batt_i_sign` turns it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hal.rows import (
    ALARM_RESET,
    COMMAND,
    FAST,
    HEARTBEAT,
    OP_EXIT_STANDBY,
    OP_START,
    OP_STOP,
    READBACK,
    RENEW,
    REVERSION,
    SECOND,
    SLOW,
    DeviceMap,
    Encode,
    Field,
    Verify,
    Write,
)

Transact = Callable[[int, int, int, int], list[int]]  # (unit, fc, addr, count) -> registers; raises on no answer

BASES = (40000, 50000, 0)  # Device Information Model V1.1, 6.2
MARKER = (0x5375, 0x6E53)  # "SunS"
END = 0xFFFF
MAX_MODELS = 64
CHUNK = 100  # registers a read while scanning
SENTINELS = {
    "int16": (0x8000,), "uint16": (0xFFFF,), "enum16": (0xFFFF,), "bitfield16": (0xFFFF,), "int32": (0x80000000,),
    "uint32": (0xFFFFFFFF,), "enum32": (0xFFFFFFFF,), "bitfield32": (0xFFFFFFFF, 0x80000000), "sunssf": (0x8000,),
}  # fmt: skip
TYPES = {
    "int16": "i16", "uint16": "u16", "enum16": "u16", "bitfield16": "u16", "int32": "i32", "uint32": "u32",
    "enum32": "u32",
    "bitfield32": "u32",
}  # fmt: skip
ROLE_MODELS = {"pcs": (1, 701, 702, 704, 715), "meter": (1, 203), "bms": (1, 802, 803)}


class SunSpecError(Exception):
    """The device cannot be used as a SunSpec device of that role; the text says why and what would do."""


@dataclass(frozen=True)
class Point:
    name: str
    offset: int  # registers from the model ID
    size: int
    type: str
    sf: str | int | None
    units: str = ""


@dataclass(frozen=True)
class Model:
    """A model found in a device: definition, where it starts, the registers read from it (ID and L included)."""

    id: int
    addr: int
    words: tuple[int, ...]
    points: dict[str, Point]

    def raw(self, name: str) -> int | None:
        """Raw bits of a point, None where the model has no such point, is too short for it, or says "not
        implemented"."""
        p = self.points.get(name)
        if p is None or p.offset + p.size > len(self.words):
            return None
        raw = 0
        for w in self.words[p.offset : p.offset + p.size]:
            raw = raw << 16 | w
        return None if raw in SENTINELS.get(p.type, ()) else raw

    def text(self, name: str) -> str:
        p = self.points[name]
        raw = b"".join(w.to_bytes(2, "big") for w in self.words[p.offset : p.offset + p.size])
        return raw.split(b"\0")[0].decode("latin-1").strip()

    def exponent(self, name: str) -> int:
        """Scale factor of a point (power of ten). Raises SunSpecError where the device gives none in -10..10."""
        sf = self.points[name].sf
        if sf is None:
            return 0
        if isinstance(sf, int):
            return sf
        raw = self.raw(sf)
        value = None if raw is None else raw - 0x10000 if raw & 0x8000 else raw
        if value is None or not -10 <= value <= 10:
            raise SunSpecError(
                f"model {self.id}: {name} needs scale factor {sf} (register {self.addr + self.points[sf].offset}), "
                f"but the device gives {'none' if value is None else value}; -10..10 is allowed: ask the vendor "
                f"for a fix"
            )
        return value

    def scale(self, name: str) -> float:
        e = self.exponent(name)
        return 10.0**e if e >= 0 else 1.0 / 10.0**-e

    def value(self, name: str) -> float | None:
        """A point's value in its unit, None where absent."""
        raw = self.raw(name)
        if raw is None:
            return None
        p = self.points[name]
        if p.type.startswith("int") and raw >> (16 * p.size - 1):
            raw -= 1 << (16 * p.size)
        return raw * self.scale(name)


@dataclass(frozen=True)
class Scan:
    """What a walk along the model chain found."""

    unit: int
    base: int
    models: dict[int, Model]
    chain: tuple[tuple[int, int, int], ...]  # (model id, address, length) in the order of the device

    @property
    def identity(self) -> tuple[str, str, str]:
        one = self.models[1]
        return one.text("Mn"), one.text("Md"), one.text("SN")


@functools.cache
def definition(model_id: int) -> dict[str, Point] | None:
    """Points of a model's fixed group with their offsets, from pysunspec2's model files; None where it ships none."""
    spec = importlib.util.find_spec("sunspec2")
    if spec is None or spec.origin is None:
        raise SunSpecError("pysunspec2 is not installed: pip install pysunspec2")
    path = Path(spec.origin).parent / "models" / "json" / f"model_{model_id}.json"
    if not path.exists():
        return None
    points, at = {}, 0
    for p in json.loads(path.read_text(encoding="utf-8"))["group"]["points"]:
        size = int(p.get("size", 1))
        points[p["name"]] = Point(p["name"], at, size, p["type"], p.get("sf"), p.get("units", ""))
        at += size
    return points


def scan(transact: Transact, unit: int, bases: tuple[int, ...] = BASES) -> Scan:
    """Find the chain, walk it, read every model. `transact` reads holding registers. Raises SunSpecError; at most
    MAX_MODELS models."""
    base = _find_base(transact, unit, bases)
    models: dict[int, Model] = {}
    chain = []
    at = base + 2
    for _ in range(MAX_MODELS):
        model_id, length = transact(unit, 3, at, 2)
        if model_id == END:
            break
        if model_id == 0 or at + 2 + length > 65535:
            raise SunSpecError(f"unit {unit}: register {at} says model {model_id}, length {length}: the chain is broken there")
        chain.append((model_id, at, length))
        points = definition(model_id)
        if points is not None and model_id not in models:  # a second one of a kind (another port, string) is not ours
            models[model_id] = Model(model_id, at, tuple(_read(transact, unit, at, length + 2)), points)
        at += 2 + length
    else:
        raise SunSpecError(f"unit {unit}: more than {MAX_MODELS} models and no end model: the chain runs in circles")
    if 1 not in models:
        raise SunSpecError(f"unit {unit}: no model 1 (manufacturer, model, serial number): identity cannot be held")
    return Scan(unit, base, models, tuple(chain))


def _find_base(transact: Transact, unit: int, bases: tuple[int, ...]) -> int:
    errors = []
    for base in bases:
        try:
            words = tuple(transact(unit, 3, base, 2))
        except Exception as e:  # devices answer exception 2, nonsense or nothing where they have no registers
            errors.append(f"{base}: {e}")
            continue
        if words == MARKER:
            return base
        errors.append(f"{base}: {words[0]:04X} {words[1]:04X}")
    raise SunSpecError(
        f"unit {unit}: no 'SunS' at {', '.join(map(str, bases))} ({'; '.join(errors)}): check unit id and wiring, or use a profile"
    )


def _read(transact: Transact, unit: int, addr: int, count: int) -> list[int]:
    words: list[int] = []
    while len(words) < count:
        n = min(CHUNK, count - len(words))
        got = transact(unit, 3, addr + len(words), n)
        if len(got) != n:
            raise SunSpecError(f"unit {unit}: {len(got)} registers at {addr + len(words)} where {n} were asked for")
        words += got
    return words


class _Compiler:
    """Collects rows of one device and the registers they rest on."""

    def __init__(self, scan: Scan, role: str) -> None:
        self.scan, self.role = scan, role
        self.fields: list[Field] = []
        self.writes: list[Write] = []
        self.blocks: list[tuple[int, int, int, str]] = []
        self.used: dict[int, set[str]] = {1: set()}  # model -> scale factors in use

    def model(self, model_id: int, why: str) -> Model:
        m = self.scan.models.get(model_id)
        if m is None:
            have = ", ".join(str(i) for i, _, _ in self.scan.chain)
            raise SunSpecError(f"unit {self.scan.unit}: no model {model_id} ({why}); the device has {have}: use a profile")
        return m

    def _scale(self, m: Model, point: str) -> float:
        sf = m.points[point].sf
        used = self.used.setdefault(m.id, set())
        if isinstance(sf, str):
            used.add(sf)
        return m.scale(point)

    def read(self, m: Model, point: str, signal: str, rate: str, **more: Any) -> bool:
        """A row for `point`, unless the device does not implement it. `unit` turns its unit into SI."""
        if m.raw(point) is None:
            return False
        p = m.points[point]
        unit = float(more.pop("unit", 1.0))
        scale = self._scale(m, point) * unit if unit == 1.0 else self._scale(m, point) / (1.0 / unit)
        self.fields.append(Field(signal, m.addr + p.offset, TYPES[p.type], 3, rate, scale=scale, nan=SENTINELS[p.type], **more))
        return True

    def must_read(self, m: Model, point: str, signal: str, rate: str, **more: Any) -> None:
        if not self.read(m, point, signal, rate, needed=True, **more):
            raise SunSpecError(
                f"unit {self.scan.unit}: model {m.id} does not implement {point}, and a {self.role} cannot do without {signal}"
            )

    def block(self, m: Model, first: int, last: int, rate: str) -> None:
        """Offsets first..last of a model are read in one request, as far as the model reaches."""
        last = min(last, len(m.words) - 1)
        if last >= first:
            self.blocks.append((3, m.addr + first, last - first + 1, rate))

    def register(self, m: Model, point: str, **more: Any) -> Encode:
        p = m.points[point]
        return Encode(m.addr + p.offset, TYPES[p.type], scale=self._scale(m, point), **more)

    def write(self, purpose: str, *registers: Encode) -> None:
        self.writes.append(Write(purpose, registers, 16, "ok"))

    def verify(self) -> tuple[Verify, ...]:
        """Identity strings, headers of the models in use, and the scale factors in use (in runs: neighbours share a
        read)."""
        one = self.scan.models[1]
        rows = []
        for name in ("Mn", "Md", "SN"):
            p = one.points[name]
            rows.append(Verify(f"1.{name}", one.addr + p.offset, one.words[p.offset : p.offset + p.size]))
        for model_id, names in sorted(self.used.items()):
            m = self.scan.models[model_id]
            rows.append(Verify(f"{model_id}.ID,L", m.addr, m.words[:2]))
            factors = {p.offset for p in m.points.values() if p.type == "sunssf"}
            run: list[int] = []
            for at in [*sorted(m.points[n].offset for n in names), 1 << 20]:
                if run and (at - run[-1] > 8 or not all(o in factors for o in range(run[-1], at))):
                    rows.append(Verify(f"{model_id}.SF", m.addr + run[0], m.words[run[0] : run[-1] + 1]))
                    run = []
                run.append(at)
        return tuple(rows)


def compile_device(scan: Scan, role: str, *, window_ms: float = 0.0, update_ms: float = 0.0, turnaround_ms: float = 0.0,
                   connect: bool = False, batt_i_sign: int = 1, p_sign: int = 1) -> DeviceMap:  # fmt: skip
    """Rows of a scanned device in `role` (pcs, meter, bms).

    window_ms, update_ms, turnaround_ms: what no SunSpec model says of a measurement; from the data sheet.
    connect: OP_START also asks 802.SetOp to connect. batt_i_sign, p_sign: -1 where the device counts the other way
    round. Raises SunSpecError.
    """
    c = _Compiler(scan, role)
    if role == "pcs":
        _pcs(c)
    elif role == "meter":
        _meter(c, p_sign)
    elif role == "bms":
        _bms(c, connect, batt_i_sign)
    else:
        raise SunSpecError(f"role {role}: SunSpec devices are compiled as pcs, meter or bms; use a profile")
    mn, md, sn = scan.identity
    info: dict[str, Any] = {"manufacturer": mn, "model": md, "serial": sn, "base": scan.base, "chain": list(scan.chain)}
    info |= _ratings(scan)
    return DeviceMap(
        f"{mn} {md}".strip() or "SunSpec device", role, tuple(c.fields), tuple(c.writes), c.verify(), window_ms,
        update_ms, turnaround_ms, blocks=tuple(c.blocks), fc23=role == "pcs", info=info,
    )  # fmt: skip


def _pcs(c: _Compiler) -> None:
    m = c.model(701, "power, state and frequency of the converter")
    c.must_read(m, "W", "batt_p_w", READBACK)
    if not c.read(m, "InvSt", "pcs_state", READBACK):
        # St knows only OFF and ON; a device without InvSt is taken as RUNNING while ON.
        c.must_read(m, "St", "pcs_state", READBACK, map=((0, 0.0), (1, 3.0)))
    c.read(m, "ConnSt", "pcs_conn", READBACK, needed=False)
    c.read(m, "Alrm", "pcs_alarm", READBACK, needed=False)
    c.read(m, "DERMode", "pcs_der_mode", READBACK, needed=False)
    c.read(m, "VA", "pcs_s_va", READBACK, needed=False)
    c.read(m, "Var", "pcs_q_var", READBACK, needed=False)
    if not c.read(m, "LNV", "pcs_v_v", READBACK, needed=False):
        c.read(m, "LLV", "pcs_v_v", READBACK, needed=False, unit=1 / math.sqrt(3))
    c.read(m, "Hz", "pcs_f_hz", READBACK, needed=False)
    c.block(m, 3, 18, READBACK)  # St .. Hz
    _pcs_control(c, c.model(704, "the power setpoint"))
    if 715 in c.scan.models:
        _pcs_life(c, c.scan.models[715])


def _pcs_control(c: _Compiler, m: Model) -> None:
    """Offsets 22-34. 28-29 belong to WSetPct, so the reversion setting takes two writes."""
    c.must_read(m, "WSetEna", "wset_ena", SECOND)
    c.must_read(m, "WSet", "wset_w", SECOND)
    c.read(m, "WSetRvrt", "wset_rvrt_w", SECOND, needed=False)
    c.read(m, "WSetEnaRvrt", "wset_rvrt_ena", SECOND, needed=False)
    has_timer = c.read(m, "WSetRvrtTms", "wset_rvrt_s", SECOND, needed=False)
    c.read(m, "WSetRvrtRem", "wset_rvrt_rem_s", SECOND, needed=False)
    c.block(m, 22, 34, SECOND)
    c.write(
        COMMAND,
        c.register(m, "WSetEna", source="enable"),
        c.register(m, "WSetMod", const=1.0),  # watts
        c.register(m, "WSet", source="p_cmd_w", toward_zero=True),
    )
    if has_timer:
        c.write(REVERSION, c.register(m, "WSetRvrt", const=0.0))
        timer = c.register(m, "WSetRvrtTms", source="rvrt_s")
        c.write(REVERSION, c.register(m, "WSetEnaRvrt", const=1.0), timer)
        c.write(RENEW, timer)


def _pcs_life(c: _Compiler, m: Model) -> None:
    c.used.setdefault(715, set())
    c.read(m, "LocRemCtl", "pcs_local", SECOND, needed=False)
    c.read(m, "DERHb", "pcs_heartbeat", SECOND)
    c.block(m, 2, 6, SECOND)
    c.write(HEARTBEAT, c.register(m, "ControllerHb", source="heartbeat", wrap=True))
    for purpose, value in ((OP_START, 1.0), (OP_EXIT_STANDBY, 3.0), (OP_STOP, 2.0)):
        c.write(purpose, c.register(m, "OpCtl", const=value))
    c.write(ALARM_RESET, c.register(m, "AlarmReset", const=1.0))


def _meter(c: _Compiler, p_sign: int) -> None:
    model_id = next((i for i in (203, 202, 201) if i in c.scan.models), 203)
    m = c.model(model_id, "power at the point of common coupling")
    for point, signal in (("PhVphA", "v1_v"), ("PhVphB", "v2_v"), ("PhVphC", "v3_v")):
        c.read(m, point, signal, FAST, needed=False)
    c.read(m, "Hz", "f_hz", FAST, needed=False)
    c.must_read(m, "W", "grid_p_w", FAST, sign=p_sign)
    c.read(m, "VAR", "q_var", FAST, needed=False, sign=-p_sign)


def _bms(c: _Compiler, connect: bool, batt_i_sign: int) -> None:
    m = c.scan.models.get(802)
    if m is None:
        s = c.model(713, "state of charge (802 is missing too)")
        c.must_read(s, "SoC", "soc", SLOW, unit=0.01, lo=0.0, hi=1.0)
        c.read(s, "SoH", "soh", SLOW, needed=False, unit=0.01)
        c.read(s, "Sta", "bms_state", SLOW, map=((0, 3.0), (1, 3.0), (2, 99.0)))
        return
    c.read(m, "WChaRteMax", "batt_p_charge_max_w", SLOW, needed=False)
    c.read(m, "WDisChaRteMax", "batt_p_discharge_max_w", SLOW, needed=False)
    # The range leaves room for a device that calibrates to 100.4 %; the kernel clamps.
    c.must_read(m, "SoC", "soc", SLOW, unit=0.01, lo=-0.01, hi=1.05)
    c.read(m, "SoH", "soh", SLOW, needed=False, unit=0.01)
    c.read(m, "Hb", "bms_heartbeat", SLOW, needed=False)
    c.must_read(m, "State", "bms_state", SLOW)
    c.read(m, "Evt1", "bms_events", SLOW, needed=False)
    c.block(m, 4, 27, SLOW)
    c.must_read(m, "V", "batt_v", SLOW)
    c.read(m, "A", "batt_i_a", SLOW, needed=False, sign=batt_i_sign)
    c.read(m, "AChaMax", "batt_i_charge_max_a", SLOW, needed=False)
    c.read(m, "ADisChaMax", "batt_i_discharge_max_a", SLOW, needed=False)
    c.block(m, 34, 46, SLOW)
    if 803 in c.scan.models:
        t = c.scan.models[803]
        c.read(t, "ModTmpMax", "batt_temp_max_c", SLOW, needed=True)
        c.read(t, "ModTmpMin", "batt_temp_min_c", SLOW, needed=False)
        c.block(t, 4, 7, SLOW)
    if connect:
        c.write(OP_START, c.register(m, "SetOp", const=1.0))
    c.write(ALARM_RESET, c.register(m, "AlmRst", const=1.0))


def _ratings(scan: Scan) -> dict[str, float]:
    """Nameplate values, in SI, for the site check."""
    wanted = {
        702: (("WMaxRtg", "p_rated_w"), ("VAMaxRtg", "s_rated_va"), ("WChaRteMaxRtg", "p_charge_rated_w"),
              ("WDisChaRteMaxRtg", "p_discharge_rated_w"), ("VNomRtg", "v_rated_v")),
        802: (("WHRtg", "energy_wh"), ("AHRtg", "charge_ah")),
        713: (("WHRtg", "energy_wh"),),
    }  # fmt: skip
    found: dict[str, float] = {}
    for model_id, pairs in wanted.items():
        m = scan.models.get(model_id)
        for point, name in pairs if m is not None else ():
            assert m is not None
            try:
                value = m.value(point)
            except SunSpecError:  # a rating without a scale factor is worth nothing, but nothing rests on it
                continue
            if value is not None:
                found.setdefault(name, value)
    return found


def assumed(role: str) -> DeviceMap:
    """The transactions a complete device of `role` has, without a device: so that `ballast check` can plan offline.
    Scale factors are taken as 0 and addresses from base 40000; nothing compiled from it may drive a device
    (DeviceMap.assumed)."""
    if role not in ROLE_MODELS:
        raise SunSpecError(f"role {role}: SunSpec shapes are known for {', '.join(ROLE_MODELS)}")
    models, chain, at = {}, [], 40002
    for model_id in ROLE_MODELS[role]:
        points = definition(model_id)
        assert points is not None
        size = sum(p.size for p in points.values())
        words = [0] * size
        words[0], words[1] = model_id, size - 2
        models[model_id] = Model(model_id, at, tuple(words), points)
        chain.append((model_id, at, size - 2))
        at += size
    device = compile_device(Scan(1, 40000, models, tuple(chain)), role)
    return replace(device, name=f"assumed SunSpec {role}", assumed=True, info={})
