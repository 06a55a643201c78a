"""Profiles of devices beside the tick: power shelves, battery backup units, coolant pumps. A whole register map by name, decoded in
Python, because nothing of it decides a tick (hal/profile.py is for what does).

A profile (`transport = "shelf"`) has header keys (name, role, units, baud, parity, probe, sweep), [signals] (what Ballast calls some
of the items, in SI), [[write]] rows (what a site may allow), [map].items (one row an item) and [bits] (names of flags). See
hal/profiles/shelf/.

Fixed point as rackmon of OpenBMC defines it: value = shift + scale * raw / 2**p.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal import toml
from hal.profile import Problem, ProfileError, _is_int, _is_number, _Reader, list_profiles, read_profile
from hal.rows import MAX_READ_REGISTERS

SHELF_DIR = Path(__file__).parent / "profiles" / "shelf"
ROLES = ("psu", "bbu", "pmm", "cooling")
# What a role may feed, in SI. `alarm` and `mode` are raw bits, whose names stand in the profile.
SIGNALS = {
    "psu": ("p_out_w", "p_in_w", "v_out_v", "i_out_a", "v_in_v", "i_in_a", "f_hz", "temp_c", "alarm"),
    "bbu": ("p_out_w", "soc", "soh", "temp_c", "alarm", "mode"),
    "pmm": ("alarm",),
    "cooling": ("p_in_w", "flow_l_per_min", "temp_out_c", "temp_in_c", "pump", "alarm"),
}
_TYPE = re.compile(r"(u|i)(?:/2\^(\d{1,2}))?|flags|text")
Value = float | int | str | tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One named item of a device's map."""

    name: str
    addr: int
    words: int
    kind: str  # "number", "flags", "text"
    unit: str = ""
    signed: bool = False
    exponent: int = 0  # raw / 2**exponent
    scale: float = 1.0
    shift: float = 0.0
    bits: tuple[tuple[int, str], ...] = ()

    def decode(self, words: Sequence[int]) -> Value:
        """Its value from `self.words` registers, high word first: a number, the names of the set bits, or text."""
        raw = b"".join(w.to_bytes(2, "big") for w in words)
        if self.kind == "text":
            return raw.decode("ascii", "replace").strip("\0 \ufffd")
        number = int.from_bytes(raw, "big", signed=self.signed)
        if self.kind == "flags":
            known = dict(self.bits)
            return tuple(known.get(k, f"bit_{k}") for k in range(16 * self.words) if number >> k & 1)
        if self.exponent == 0 and self.scale == 1.0 and self.shift == 0.0:
            return number
        return self.shift + self.scale * number / (1 << self.exponent)

    def number(self, words: Sequence[int]) -> float:
        """As decode, flags as their raw bits; NaN for text."""
        if self.kind == "flags":
            return float(int.from_bytes(b"".join(w.to_bytes(2, "big") for w in words), "big"))
        got = self.decode(words)
        return float(got) if isinstance(got, (int, float)) else math.nan


@dataclass(frozen=True)
class Block:
    """Registers that are read together; items that start in it end in it."""

    addr: int
    count: int
    items: tuple[Item, ...]

    def part(self, item: Item, words: Sequence[int]) -> Sequence[int]:
        """The item's registers among those of the block."""
        at = item.addr - self.addr
        return words[at : at + item.words]


@dataclass(frozen=True)
class Writable:
    """One thing that a site may allow to be written: a register, or one bit of it."""

    name: str
    addr: int
    bit: int | None
    values: tuple[int, ...]  # allowed; empty: low..high
    low: int
    high: int

    def refused(self, value: int) -> str:
        """Why this value may not be written; "" where it may."""
        if self.values:
            return "" if value in self.values else f"one of {', '.join(map(str, self.values))}"
        return "" if self.low <= value <= self.high else f"{self.low} to {self.high}"

    def raw(self, value: int, before: int) -> int:
        """What to write, where the register holds `before`."""
        return value if self.bit is None else before & ~(1 << self.bit) | value << self.bit

    def shown(self, raw: int) -> int:
        """What a read register says of it."""
        return raw if self.bit is None else raw >> self.bit & 1


@dataclass(frozen=True)
class ShelfMap:
    """A device beside the tick, as its profile has it."""

    name: str
    role: str
    units: tuple[int, ...]  # addresses on which such a device may answer
    baud: int
    parity: str
    probe: int  # a register that answers
    sweep: Block
    slow: tuple[Block, ...]  # everything else, in turn
    signals: tuple[tuple[str, Item, float], ...]  # (name, item, factor)
    writes: tuple[Writable, ...]

    def find(self, name: str) -> tuple[Block, Item] | None:
        """An item by its name, with the block that has it."""
        return next(((b, i) for b in (self.sweep, *self.slow) for i in b.items if i.name == name), None)

    def writable(self, name: str) -> Writable | None:
        """One of `writes` by its name."""
        return next((w for w in self.writes if w.name == name), None)


def load_shelf(name_or_path: str | Path) -> ShelfMap:
    """A shipped profile by name ("orv3_psu") or any file by path. Raises ProfileError."""
    return parse_shelf(*read_profile(name_or_path, SHELF_DIR))


def list_shelves() -> list[str]:
    """Names of the shelf profiles that come with Ballast."""
    return list_profiles(SHELF_DIR)


def parse_shelf(text: str, file: str = "<profile>") -> ShelfMap:
    """Compile a profile's text. Raises ProfileError with every problem in it."""
    problems: list[Problem] = []
    try:
        table = toml.read(text)
    except toml.TomlError as e:
        raise ProfileError([Problem(file, "", None, str(e), "correct the syntax")]) from None
    r = _Reader(file, "", table, problems)
    r.choice("transport", ..., ("shelf",))
    name, role = r.text("name", ...), r.choice("role", ..., ROLES)
    units = r.get("units", ..., _ranges, "a list of [first, last] addresses from 1 to 255") or []
    baud, parity = r.integer("baud", 19200, 1200, 4_000_000), r.choice("parity", "E", ("E", "O", "N"))
    probe = r.integer("probe", 0, 0, 65535)
    sweep = r.get("sweep", ..., _block, f"[first register, 1 to {MAX_READ_REGISTERS}]") or [0, 1]
    bits = r.get("bits", {}, lambda v: isinstance(v, dict), "a table: item = \"0 name, 1 name\"")
    inner = _Reader(file, "map", r.get("map", {}, lambda v: isinstance(v, dict), "a table with items = [...]"), problems)
    items = [i for n, row in enumerate(inner.rows("items")) if (i := _item(inner, n, row, bits)) is not None]
    inner.leftovers()
    by_name = _clashes(inner, items)
    for key in bits:
        if key not in by_name or by_name[key].kind != "flags":
            r.fault(f"bits.{key}", None, "names the bits of no item of type flags", "the name of one of [map].items")
    signals = _signals(r, role or "", by_name)
    writes = [w for n, row in enumerate(r.rows("write")) if (w := _write(_Reader(file, f"write[{n}]", row, problems))) is not None]
    r.leftovers()
    if not items and not problems:
        r.fault("map.items", None, "is empty", "at least one row")
    fast, slow = _blocks(items, sweep[0], sweep[1])
    if items and not fast.items:
        r.fault("sweep", sweep, "has no whole item in it", "registers of [map].items")
    if signals and not any(item in fast.items for _, item, _ in signals):
        r.fault("sweep", sweep, "holds none of the signals: nobody could tell whether the device answers", "registers of one of [signals]")
    if problems:
        raise ProfileError(problems)
    flat = tuple(u for first, last in units for u in range(first, last + 1))
    return ShelfMap(name, role, flat, baud, parity, probe, fast, slow, tuple(signals), tuple(writes))


def _ranges(v: Any) -> bool:
    rows = v if isinstance(v, list) and v else [None]
    return all(isinstance(p, list) and len(p) == 2 and all(map(_is_int, p)) and 1 <= p[0] <= p[1] <= 255 for p in rows)


def _block(v: Any) -> bool:
    return isinstance(v, list) and len(v) == 2 and all(map(_is_int, v)) and v[0] >= 0 and 1 <= v[1] <= MAX_READ_REGISTERS


def _item(r: _Reader, number: int, row: Any, bits: dict[str, Any]) -> Item | None:
    where = f"items[{number}]"
    whole = isinstance(row, list) and len(row) in (5, 6) and _is_int(row[0]) and _is_int(row[1])
    if not whole or not all(isinstance(x, str) for x in row[2:5]) or not (len(row) == 5 or isinstance(row[5], dict)):
        r.fault(where, row, "is no item", '[address, registers, type, name, unit] and perhaps { scale = 0.1, shift = 0.0 }')
        return None
    addr, words, kind, name, unit = row[:5]
    more = row[5] if len(row) == 6 else {}
    found = _TYPE.fullmatch(kind)
    before = len(r.problems)
    if not 0 <= addr <= 65535 or not 1 <= words <= MAX_READ_REGISTERS or addr + words > 65536:
        r.fault(where, row[:2], "are no registers", f"an address from 0 to 65535 and 1 to {MAX_READ_REGISTERS} registers")
    if found is None:
        r.fault(where, kind, "is no type", '"u", "i", "u/2^p", "i/2^p", "flags" or "text"')
    elif kind != "text" and words > 4:
        r.fault(where, words, f"registers are too many for {kind}", "1 to 4")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        r.fault(where, name, "is no name", "lower-case letters, digits, _")
    if any(k not in ("scale", "shift") or not _is_number(v) for k, v in more.items()) or more.get("scale", 1.0) == 0.0:
        r.fault(where, more, "is not allowed here", "scale (not 0) and shift, both numbers")
    elif not math.isfinite(abs(more.get("shift", 0.0)) + abs(more.get("scale", 1.0)) * 2.0 ** (16 * min(words, 4))):
        r.fault(where, more, "leaves the numbers that a double holds", "a smaller scale and shift")
    names = _bits(r, name, bits.get(name, "")) if kind == "flags" else ()
    if len(r.problems) > before or found is None:
        return None
    if kind in ("flags", "text"):
        return Item(name, addr, words, kind, unit, bits=names)
    exponent = int(found[2] or 0)
    return Item(name, addr, words, "number", unit, found[1] == "i", exponent, float(more.get("scale", 1)), float(more.get("shift", 0)))


def _bits(r: _Reader, name: str, text: Any) -> tuple[tuple[int, str], ...]:
    out: dict[int, str] = {}
    for part in text.split(",") if isinstance(text, str) and text else []:
        found = re.fullmatch(r"\s*(\d{1,2})\s+([a-z0-9_]+)\s*", part)
        if found is None or int(found[1]) in out:
            r.fault(f"bits.{name}", part.strip(), "names no bit, or one twice", '"0 name, 1 name"')
        else:
            out[int(found[1])] = found[2]
    return tuple(sorted(out.items()))


def _clashes(r: _Reader, items: list[Item]) -> dict[str, Item]:
    names: dict[str, Item] = {}
    taken: dict[int, Item] = {}
    for item in items:
        if item.name in names:
            r.fault("items", item.name, f"stands twice (addresses {names[item.name].addr} and {item.addr})", "one row a name")
        names[item.name] = item
        for a in range(item.addr, item.addr + item.words):
            other = taken.setdefault(a, item)
            if other is not item:
                r.fault("items", item.name, f"register {a} belongs to {other.name} already", "check address and length of both")
                break
    return names


def _signals(r: _Reader, role: str, items: dict[str, Item]) -> list[tuple[str, Item, float]]:
    table = r.get("signals", {}, lambda v: isinstance(v, dict), "a table: p_out_w = \"item\"")
    out = []
    for signal, what in table.items():
        name, factor = (what, 1.0) if isinstance(what, str) else (tuple(what) if isinstance(what, list) and len(what) == 2 else ("", 0.0))
        if signal not in SIGNALS.get(role, ()):
            r.fault(f"signals.{signal}", what, f"is no signal of a {role}", f"one of {', '.join(SIGNALS.get(role, ()))}")
        elif not isinstance(name, str) or name not in items or not _is_number(factor) or factor == 0:
            r.fault(f"signals.{signal}", what, "is no item of this map", 'signal = "item", or ["item", factor]')
        elif items[name].kind == "text":
            r.fault(f"signals.{signal}", what, "is text", "an item that is a number or flags")
        else:
            out.append((signal, items[name], float(factor)))
    return out


def _write(r: _Reader) -> Writable | None:
    name, addr = r.text("name", ...), r.integer("address", ..., 0, 65535)
    bit = r.integer("bit", None, 0, 15)
    raws = lambda v: isinstance(v, list) and v != [] and all(_is_int(x) and 0 <= x <= 0xFFFF for x in v)  # noqa: E731
    values = r.get("values", None, raws, "a list of raw values, 0..65535")
    span = r.get("range", None, lambda v: raws(v) and len(v) == 2 and v[0] <= v[1], "[lowest, highest], raw")
    r.leftovers()
    if (values is None) == (span is None):
        r.fault("values", values, "a write has values or a range, one of them", "values = [0, 1] or range = [0, 100]")
        return None
    low, high = span if span is not None else (min(values), max(values))
    if bit is not None and high > 1:
        r.fault("values", values or span, "do not fit one bit", "values = [0, 1]")
    return None if name is None or addr is None else Writable(name, addr, bit, tuple(values or ()), low, high)


def _blocks(items: list[Item], first: int, count: int) -> tuple[Block, tuple[Block, ...]]:
    """The sweep's block, and everything else in runs without a hole: what a device does with a register it does not have
    is not known.
    """
    inside = [i for i in items if first <= i.addr and i.addr + i.words <= first + count]
    runs: list[list[Item]] = []
    for item in sorted((i for i in items if i not in inside), key=lambda i: i.addr):
        run = runs[-1] if runs else []
        if run and item.addr == run[-1].addr + run[-1].words and item.addr + item.words - run[0].addr <= MAX_READ_REGISTERS:
            run.append(item)
        else:
            runs.append([item])
    slow = tuple(Block(run[0].addr, run[-1].addr + run[-1].words - run[0].addr, tuple(run)) for run in runs)
    return Block(first, count, tuple(inside)), slow


__all__ = ["ROLES", "SIGNALS", "Block", "Item", "ShelfMap", "Value", "Writable", "list_shelves", "load_shelf", "parse_shelf"]
