"""CAN profiles: a device as a data file (TOML, `transport = "can"`), validated with every error at once, compiled to the
flat rows of hal/canrows.py.

Header: name, role, byte_order (default of all rows), lost_ms, unit_offset, window_ms, update_ms, dbc. [[frame]]: what the
device sends; [[transmit]]: what it is sent. With `dbc`, a frame may name a `message` and a row a `dbc_signal`: place, coding
and scale then come from there, and `factor` turns the DBC's unit into SI. hal/profiles/pylontech_lv.toml and
generic_can_pcs.toml show all of it in use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal.candbc import DbcError, DbcMessage, DbcSignal, load_dbc
from hal.canrows import (
    CHECKSUMS,
    MAX_FRAMES,
    MAX_SIGNALS,
    MAX_TRANSMITS,
    OPERATE,
    PURPOSES,
    CanMap,
    Checksum,
    Counter,
    Mux,
    Place,
    Received,
    Signal,
    Transmit,
)
from hal.profile import NEEDED, POWERS, Problem, ProfileError, _is_int, _is_number, _Reader, no_zero
from hal.rows import ROLE_SIGNALS, SOURCES

ROLES = ("bms", "pcs")
DATA_BYTES = 8  # of a classic frame
COUNTER_BITS = range(2, 33)
CAN_NEEDED = NEEDED | {"batt_i_charge_max_a", "batt_i_discharge_max_a"}
LOST_PERIODS = 1.5  # a frame that is late by half its period is not lost


@dataclass
class _Context:
    """What rows look up while they are read."""

    file: str
    role: str
    byte_order: str
    lost_ms: float
    messages: dict[str, DbcMessage]
    problems: list[Problem]


def parse_can(table: dict[str, Any], file: str) -> CanMap:
    """Compile a profile's parsed TOML. Raises ProfileError with every problem in it."""
    problems: list[Problem] = []
    r = _Reader(file, "", table, problems)
    r.choice("transport", ..., ("can",))
    name, role = r.text("name", ...), r.choice("role", ..., ROLES)
    lost = float(r.number("lost_ms", 3000.0, 20, 60000))
    window, update = r.number("window_ms", 0.0, 0, 60000), r.number("update_ms", 0.0, 0, 60000)
    offset = r.integer("unit_offset", 0, 0, 0x1000000)
    order = r.choice("byte_order", "little", ("little", "big"))
    c = _Context(file, role or "", order, lost, _messages(r, file), problems)
    frames = [f for i, row in enumerate(r.rows("frame")) if (f := _frame(c, f"frame[{i}]", row)) is not None]
    sent = [t for i, row in enumerate(r.rows("transmit")) if (t := _transmit(c, f"transmit[{i}]", row)) is not None]
    r.leftovers()
    _check(r, frames, sent)
    if problems:
        raise ProfileError(problems)
    return CanMap(
        name, role, window_ms=float(window), update_ms=float(update), info={"profile": file}, frames=tuple(frames),
        transmits=tuple(sent), unit_offset=offset,
    )  # fmt: skip


def _messages(r: _Reader, file: str) -> dict[str, DbcMessage]:
    """The messages of the header's `dbc`, a path relative to the profile."""
    name = r.text("dbc", "")
    if not name:
        return {}
    try:
        return load_dbc(Path(file).parent / name)
    except DbcError as e:
        r.fault("dbc", name, str(e), "the path of a .dbc file, relative to this profile")
        return {}


# ---------------------------------------------------------------- frames


@dataclass(frozen=True)
class _Head:
    """What [[frame]] and [[transmit]] have in common."""

    id: int
    ext: bool
    period_ms: float
    length: int
    message: DbcMessage | None
    counter: Counter | None
    checksum: Checksum | None


def _head(c: _Context, r: _Reader) -> _Head | None:
    wanted = r.text("message", "")
    message = c.messages.get(wanted) if wanted else None
    if wanted and message is None:
        r.fault("message", wanted, "is no message of the DBC", f"one of {', '.join(list(c.messages)[:20]) or '(no DBC is named)'}")
    if message is not None:  # what the DBC says is judged as if it stood here
        r.table = {"id": message.id, "ext": message.ext, **({"period_ms": message.period_ms} if message.period_ms else {}), **r.table}
        if message.length > DATA_BYTES:
            why = f"has {message.length} bytes: is more than a classic CAN frame carries; CAN FD is not spoken here"
            r.fault("message", wanted, why, f"a message of at most {DATA_BYTES} bytes")
    ext = r.flag("ext", False)
    number = r.integer("id", ..., 0, 0x1FFFFFFF if ext else 0x7FF)
    length = r.integer("length", min(message.length, DATA_BYTES) if message else DATA_BYTES, 0, DATA_BYTES)
    period = r.number("period_ms", None, 1, 60000)
    counter, checksum = _counter(r, message), _checksum(r, message, length)
    if number is None or (wanted and message is None):
        return None
    lasts = {"counter": Place(counter.start, counter.length, counter.byte_order).last_byte if counter else -1}
    for key, last in (lasts | {"checksum": checksum.byte if checksum else -1}).items():
        if last >= length:
            r.fault(key, last, f"lies outside the {length} bytes of the frame", "another place, or a longer frame")
    return _Head(number, ext, float(period or 0.0), length, message, counter, checksum)


def _counter(r: _Reader, message: DbcMessage | None) -> Counter | None:
    value = r.get("counter", None, lambda v: isinstance(v, (str, dict)), "{ start = 0, length = 4 }, or a signal of the DBC")
    if value is None:
        return None
    if isinstance(value, str):
        s = message.signals.get(value) if message else None
        if s is None:
            r.fault("counter", value, "is no signal of the DBC's message", _known(message))
            return None
        if s.length not in COUNTER_BITS:
            r.fault("counter", value, f"has {s.length} bits", f"a signal of {COUNTER_BITS[0]} to {COUNTER_BITS[-1]} bits")
            return None
        return Counter(s.start, s.length, s.byte_order)
    inner = _Reader(r.file, f"{r.where}.counter", value, r.problems)
    start, length = inner.integer("start", ..., 0, 63), inner.integer("length", ..., COUNTER_BITS[0], COUNTER_BITS[-1])
    order = inner.choice("byte_order", "little", ("little", "big"))
    inner.leftovers()
    return None if start is None or length is None else Counter(start, length, order)


def _checksum(r: _Reader, message: DbcMessage | None, length: int) -> Checksum | None:
    value = r.get("checksum", None, lambda v: isinstance(v, dict), '{ kind = "crc8_j1850", byte = 7 }')
    if value is None:
        return None
    inner = _Reader(r.file, f"{r.where}.checksum", value, r.problems)
    kind = inner.choice("kind", ..., CHECKSUMS[1:])
    seed = inner.integer("seed", -1, 0, 255)
    name = inner.text("dbc_signal", "")
    s = message.signals.get(name) if message and name else None
    if name and (s is None or s.length != 8 or (s.start % 8 != (7 if s.byte_order == "big" else 0))):
        inner.fault("dbc_signal", name, "is no whole byte of the DBC's message", _known(message))
    byte = inner.integer("byte", s.start // 8 if s else ... if not name else 0, 0, 7)
    inner.leftovers()
    return None if kind is None or byte is None else Checksum(kind, byte, seed)


def _known(message: DbcMessage | None) -> str:
    return f"one of {', '.join(list(message.signals)[:20])}" if message else "name the frame's message first"


def _frame(c: _Context, where: str, row: Any) -> Received | None:
    r = _Reader(c.file, where, row, c.problems)
    h = _head(c, r)
    lost = float(r.number("lost_ms", c.lost_ms, 20, 60000))
    signals = [s for i, x in enumerate(r.rows("signals")) if (s := _received(c, f"{where}.signals[{i}]", x, h)) is not None]
    identity = [p for i, x in enumerate(r.rows("identity")) if (p := _identity(c, f"{where}.identity[{i}]", x)) is not None]
    r.leftovers()
    if h is None:
        return None
    if not h.period_ms:
        r.fault("period_ms", None, "is missing: how old is too old, and how full the bus is, follow from it", "the device's cycle time")
    elif lost < LOST_PERIODS * h.period_ms:
        r.fault("lost_ms", lost, f"is under {LOST_PERIODS:g} periods of {h.period_ms:g} ms: one late frame would take the power", "more")
    return Received(h.id, h.ext, h.period_ms, h.length, tuple(signals), h.counter, h.checksum, tuple(identity), lost)


def _transmit(c: _Context, where: str, row: Any) -> Transmit | None:
    r = _Reader(c.file, where, row, c.problems)
    h = _head(c, r)
    purpose = r.choice("purpose", ..., PURPOSES)
    signals = [s for i, x in enumerate(r.rows("signals")) if (s := _sent(c, f"{where}.signals[{i}]", x, h)) is not None]
    r.leftovers()
    if h is None or purpose is None:
        return None
    if purpose == "cyclic" and h.period_ms < 10:
        r.fault("period_ms", h.period_ms, "is less than a tick", "10 or more")
    if purpose == "command" and not any(s.name == "p_cmd_w" for s in signals):
        r.fault("signals", None, "a command without p_cmd_w commands nothing", 'a row with source = "p_cmd_w"')
    return Transmit(h.id, h.ext, purpose, 10.0 if purpose == "command" else h.period_ms, h.length, tuple(signals), h.counter, h.checksum)


# ---------------------------------------------------------------- signals


def _coding(c: _Context, r: _Reader, h: _Head | None) -> dict[str, Any] | None:
    """Place, type and scale of a row, its own or the DBC's; None where they are not to be had."""
    name = r.text("dbc_signal", "")
    found: DbcSignal | None = None
    if name:
        message = h.message if h else None
        found = message.signals.get(name) if message else None
        if found is None:
            r.fault("dbc_signal", name, "is no signal of the DBC's message (or one under two multiplexers)", _known(message))
            return None
    factor = float(r.number("factor", 1.0))
    if found is not None:
        coding: dict[str, Any] = {
            "start": found.start, "length": found.length, "byte_order": found.byte_order, "signed": found.signed, "real": found.real,
            "scale": found.scale * factor, "offset": found.offset * factor, "mux": found.mux,
        }  # fmt: skip
    else:
        start, length = r.integer("start", ..., 0, 63), r.integer("length", ..., 1, 64)
        if start is None or length is None:
            return None
        coding = {
            "start": start, "length": length, "byte_order": r.choice("byte_order", c.byte_order, ("little", "big")),
            "signed": r.flag("signed", False), "real": r.flag("real", False),
            "scale": float(r.number("scale", 1.0)) * factor, "offset": float(r.number("offset", 0.0)) * factor, "mux": _mux(c, r),
        }  # fmt: skip
    if coding["scale"] <= 0.0:
        r.fault("scale", coding["scale"], "is not above 0: a sign hidden in a scale is found by nobody", "use sign = -1")
        coding["scale"] = 1.0
    if not (math.isfinite(coding["scale"]) and math.isfinite(coding["offset"])):
        r.fault("factor", factor, "makes a scale or an offset that is no finite number", "a smaller one")
        coding["scale"], coding["offset"] = 1.0, 0.0
    if coding["real"] and coding["length"] not in (32, 64):
        r.fault("length", coding["length"], "is no IEEE 754 number", "32 or 64")
    coding["sign"] = r.choice("sign", 1, (1, -1))
    limits = r.get(
        "range",
        [-math.inf, math.inf],
        lambda v: isinstance(v, list) and len(v) == 2 and all(_is_number(x) for x in v) and v[0] < v[1],
        "[lowest, highest] in SI",
    )
    coding["lo"], coding["hi"] = float(limits[0]), float(limits[1])
    place = Place(coding["start"], coding["length"], coding["byte_order"])
    if h is not None and place.last_byte > 7:
        r.fault("start", coding["start"], "the signal ends beyond the eighth byte", "start is the DBC's start bit; check byte_order")
        return None
    return coding


def _mux(c: _Context, r: _Reader) -> Mux | None:
    value = r.get("mux", None, lambda v: isinstance(v, dict), "{ start = 0, length = 8, value = 1 }")
    if value is None:
        return None
    inner = _Reader(r.file, f"{r.where}.mux", value, r.problems)
    start, length = inner.integer("start", ..., 0, 63), inner.integer("length", ..., 1, 32)
    order, number = inner.choice("byte_order", c.byte_order, ("little", "big")), inner.integer("value", ..., 0, 2**32 - 1)
    inner.leftovers()
    if start is None or length is None or number is None:
        return None
    if Place(start, length, order).last_byte > 7 or number >> length:
        inner.fault("value", number, f"does not fit into {length} bits from {start}", "check start, length and byte_order")
        return None
    return Mux(start, length, order, number)


def _received(c: _Context, where: str, row: Any, h: _Head | None) -> Signal | None:
    r = _Reader(c.file, where, row, c.problems)
    signal = r.choice("signal", ..., ROLE_SIGNALS.get(c.role, ()))
    permit = r.choice("permit", "", ("set", "clear"))
    const = r.number("const", None)
    if const is not None:  # what a device that sends this frame at all is taken to be
        r.leftovers()
        return None if signal is None else Signal(signal, 0, 0, offset=float(const))
    coding = _coding(c, r, h)
    magnitude = r.flag("magnitude", False)
    sentinels = r.get(
        "nan", [], lambda v: isinstance(v, list) and len(v) <= 4 and all(_is_int(x) and 0 <= x < 2**64 for x in v), "at most 4 raw values"
    )
    pairs = r.pairs("map")
    needed = r.flag("needed", bool(permit) or signal in CAN_NEEDED)
    r.leftovers()
    if signal is None or coding is None:
        return None
    s = Signal(
        name=signal, magnitude=magnitude, nan=tuple(sentinels), map=pairs, needed=needed,
        permit=permit, **coding,
    )  # fmt: skip
    if needed and h is not None and s.place.last_byte >= h.length:
        r.fault("start", s.start, f"is needed, but lies outside the {h.length} bytes the frame has at least", "length, or needed = false")
    return s


def _sent(c: _Context, where: str, row: Any, h: _Head | None) -> Signal | None:
    r = _Reader(c.file, where, row, c.problems)
    source = r.choice("source", "", (*SOURCES, OPERATE))
    const = r.number("const", None)
    if (source == "") == (const is None):
        why = "a row carries a source or a const, one of them"
        r.fault("source", source or None, why, "source = one of " + ", ".join((*SOURCES, OPERATE)))
    coding = _coding(c, r, h)
    toward_zero, wrap = r.flag("toward_zero", source in POWERS), r.flag("wrap", False)
    r.leftovers()
    if coding is None:
        return None
    top = 2 ** min(coding["length"] - coding["signed"], 53) - 1
    no_zero(r, source, coding, None if coding["real"] else (-top if coding["signed"] else 0, top), wrap)
    s = Signal(name=source, const=float(const or 0.0), toward_zero=toward_zero, wrap=wrap, **coding)
    if h is not None and s.place.last_byte >= h.length:
        r.fault("start", s.start, f"lies outside the {h.length} bytes of the frame", "another place, or a longer frame")
    return s


def _identity(c: _Context, where: str, row: Any) -> tuple[Place, int] | None:
    r = _Reader(c.file, where, row, c.problems)
    start, length = r.integer("start", ..., 0, 63), r.integer("length", ..., 1, 64)
    order, value = r.choice("byte_order", c.byte_order, ("little", "big")), r.integer("value", ..., 0, 2**64 - 1)
    r.leftovers()
    if start is None or length is None or value is None:
        return None
    place = Place(start, length, order)
    if place.last_byte > 7 or value >> length:
        r.fault("value", value, f"does not fit into {length} bits from {start}", "check start, length and byte_order")
        return None
    return place, value


# ---------------------------------------------------------------- the whole


def _check(r: _Reader, frames: list[Received], sent: list[Transmit]) -> None:
    """What must hold between frames."""
    seen: dict[tuple[int, bool], str] = {}
    ids = [("frame", f.id, f.ext) for f in frames] + [("transmit", t.id, t.ext) for t in sent]
    for kind, number, ext in ids:
        if (number, ext) in seen:
            r.fault(kind, hex(number), f"is the id of a [[{seen[number, ext]}]] already", "one table an id")
        seen[number, ext] = kind
    fed: set[str] = set()
    for s in (s for f in frames for s in f.signals if not s.permit and s.mux is None):
        if s.name in fed:
            r.fault("frame", s.name, "is fed twice", "one row a signal")
        fed.add(s.name)
    for name in sorted({s.name for f in frames for s in f.signals} - fed - {s.name for f in frames for s in f.signals if s.mux}):
        r.fault("frame", name, "has a permit row and no value", "a row that gives the value")
    for t in sent:
        _check_overlap(r, t)
    if sum(t.purpose == "command" for t in sent) > 1:
        r.fault("transmit", None, "has two commands", "one frame carries the command")
    signals = sum(len(f.signals) for f in frames) + sum(len(t.signals) for t in sent)
    if len(frames) > MAX_FRAMES or len(sent) > MAX_TRANSMITS or signals > MAX_SIGNALS:
        remedy = f"at most {MAX_FRAMES} frames, {MAX_TRANSMITS} transmits, {MAX_SIGNALS} signals"
        r.fault("frame", len(frames), "is more than a bus carries", remedy)
    if not any(not s.permit for f in frames for s in f.signals) and not r.problems:
        r.fault("frame", None, "is empty", "at least one [[frame]] with a signal")


def _check_overlap(r: _Reader, t: Transmit) -> None:
    """Two rows of one sent frame must not write the same bit. A multiplexer is written with each of its rows: one number passes."""
    muxes = dict.fromkeys(s.mux for s in t.signals if s.mux is not None)
    rows = [(f"mux {m.value}", Place(m.start, m.length, m.byte_order)) for m in muxes]
    for name, place in rows:
        if place.last_byte >= t.length:
            r.fault("transmit", name, f"lies outside the {t.length} bytes of {t.id:#x}", "another place, or a longer frame")
    rows += [(s.name or "const", s.place) for s in t.signals]
    rows += [("counter", Place(t.counter.start, t.counter.length, t.counter.byte_order))] if t.counter else []
    rows += [("checksum", Place(8 * t.checksum.byte, 8))] if t.checksum else []
    taken: dict[int, int] = {}
    for k, (name, place) in enumerate(rows):
        for bit in _bits(place):
            if (other := taken.setdefault(bit, k)) != k:
                r.fault("transmit", name, f"shares bit {bit} of {t.id:#x} with {rows[other][0]}", "check start and length of both")
                break


def _bits(p: Place) -> list[int]:
    """DBC numbers of the bits of a place."""
    if p.byte_order == "little":
        return list(range(p.start, p.start + p.length))
    first = 8 * (p.start // 8) + 7 - p.start % 8
    return [8 * (n // 8) + 7 - n % 8 for n in range(first, first + p.length)]
