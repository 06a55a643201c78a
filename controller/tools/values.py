"""What a device says, as rows that a person or a program reads: profile rows, SunSpec points, bare registers."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hal.codec import decode_words

from controller.scan import patient
from controller.signals import UNITS
from controller.summary import clean
from hal import sunspec
from hal.rows import TYPE_WORDS, DeviceMap, Field, pack
from hal.sunspec import Model, Point, Scan
from hal.wire import NoAnswer

Read = Callable[[int, int, int, int], list[int]]  # (unit, function, address, count) -> registers
HIDDEN = ("pad", "sunssf")  # SunSpec types that say nothing by themselves
ANY = "grid_p_w"  # a field needs a signal; bare registers feed none


@dataclass(frozen=True)
class Value:
    """One value. `raw`: the registers in hex; `value` None: the device has none, or it is not to be had (`note` says why)."""

    place: str
    name: str
    raw: str
    value: float | str | None
    unit: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return dict(clean(self.__dict__))


def unit_of(signal: str) -> str:
    """The unit that a signal's name ends with; empty for counts and shares."""
    return UNITS.get(signal.rpartition("_")[2], "")


def hex_words(words: Sequence[int]) -> str:
    """Registers as they stand on the wire: what a frame file takes."""
    return " ".join(f"{w >> 8:02X} {w & 0xFF:02X}" for w in words)


def table(values: Iterable[Value]) -> list[str]:
    """Lines with columns that stand under each other."""
    rows = [(v.place, v.name, v.raw if len(v.raw) <= 23 else v.raw[:23] + "...", _shown(v), v.note) for v in values]
    wide = [max((len(r[i]) for r in rows), default=0) for i in range(4)]
    return ["  ".join(f"{cell:<{wide[i]}}" if i < 4 else cell for i, cell in enumerate(r)).rstrip() for r in rows]


def _shown(v: Value) -> str:
    if v.value is None:
        return "-"
    return f"{v.value if isinstance(v.value, str) else format(v.value, '.9g')} {v.unit}".rstrip()


# ---------------------------------------------------------------- by a profile


def of_profile(read: Read, unit: int, device: DeviceMap) -> list[Value]:
    """Identity rows and every field, in the reads that control makes. Raises NoAnswer where the device is silent."""
    out = []
    for v in device.verify:
        words, why = _try(read, unit, v.fc, v.addr, len(v.words))
        same = "as the profile says" if tuple(words) == v.words else "IS ANOTHER: the profile says " + hex_words(v.words)
        out.append(Value(f"{v.fc}@{v.addr}", v.name, hex_words(words), text_of(words) or None, "", why or same))
    for block in pack(device, device.max_registers):
        words, why = _try(read, unit, block.fc, block.addr, block.count)
        for f in block.fields:
            mine = words[f.addr - block.addr : f.addr - block.addr + f.words]
            out.append(of_field(f, mine) if mine else Value(f"{f.fc}@{f.addr}", f.signal, "", None, "", why))
    return out


def of_field(f: Field, words: Sequence[int]) -> Value:
    """One field out of its registers."""
    x = decode_words(f, words)
    note = "" if math.isfinite(x) else "the device has none, or it is out of range"
    return Value(f"{f.fc}@{f.addr}", f.signal, hex_words(words), x if math.isfinite(x) else None, unit_of(f.signal), note)


def _try(read: Read, unit: int, fc: int, addr: int, count: int) -> tuple[list[int], str]:
    """Registers, or none and why: an exception is an answer, silence is not. Raises NoAnswer."""
    try:
        return read(unit, fc, addr, count), ""
    except NoAnswer as e:
        if not e.exception:
            raise
        return [], str(e)


# ---------------------------------------------------------------- by SunSpec


def of_sunspec(scan: Scan) -> list[Value]:
    """Every point that a person can read, of every model that pysunspec2 describes; the others by number."""
    out = []
    for number, addr, length in scan.chain:
        model = scan.models.get(number)
        if model is None or model.addr != addr:
            note = f"model {number}, {length} registers, not read: no description of it, or a second one"
            out.append(Value(f"3@{addr}", f"{number}", "", None, "", note))
            continue
        out += [of_point(model, p) for p in model.points.values() if p.type not in HIDDEN and p.offset + p.size <= len(model.words)]
    return out


def of_point(model: Model, p: Point) -> Value:
    """One point of a model that was read."""
    words = model.words[p.offset : p.offset + p.size]
    value: float | str | None = None
    note = ""
    if p.type == "string":
        value = model.text(p.name) or None
    elif p.type in sunspec.TYPES:
        try:
            value = model.value(p.name)
            note = "" if value is not None else "not implemented"
        except sunspec.SunSpecError as e:
            note = str(e)
    else:
        note = f"type {p.type} is not decoded here"
    return Value(f"3@{model.addr + p.offset}", f"{model.id}.{p.name}", hex_words(words), value, p.units, note)


# ---------------------------------------------------------------- bare registers


def of_registers(fc: int, addr: int, words: Sequence[int], type_: str = "", little: bool = False) -> list[Value]:
    """Registers one by one, and what pairs and fours of them mean in the types that maps use; `type_`: that one alone."""
    place = f"{fc}@{addr}"
    if type_:
        step = TYPE_WORDS[type_]
        order = "little" if little else "big"
        parts = [(addr + i, words[i : i + step]) for i in range(0, len(words) - step + 1, step)]
        fields = [(Field(ANY, a, type_, fc, word_order=order), w) for a, w in parts]
        return [Value(f"{fc}@{f.addr}", type_, hex_words(w), _finite(decode_words(f, w))) for f, w in fields]
    signed = ["" if w < 0x8000 else f"i16 {w - 0x10000}" for w in words]
    out = [Value(f"{fc}@{addr + i}", "u16", hex_words([w]), float(w), "", signed[i]) for i, w in enumerate(words)]
    if len(words) == 2:
        for name, code in (("u32", "I"), ("i32", "i"), ("f32", "f")):
            big, low = (struct.unpack(">" + code, struct.pack(">2H", *w))[0] for w in (words, words[::-1]))
            out.append(Value(place, name, hex_words(words), _finite(float(big)), "", f"low word first: {low:.9g}"))
    if text := text_of(words):
        out.append(Value(place, "text", hex_words(words), text))
    return out


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def text_of(words: Sequence[int]) -> str:
    """The text that registers hold; empty where they hold none."""
    raw = b"".join(w.to_bytes(2, "big") for w in words).rstrip(b"\0 ")
    return raw.decode("ascii") if len(raw) >= 3 and all(32 <= c < 127 for c in raw) else ""


def scan_sunspec(read: Read, unit: int) -> Scan:
    """The device's models, asked patiently. Raises hal.sunspec.SunSpecError, NoAnswer."""
    return sunspec.scan(patient(read), unit)
