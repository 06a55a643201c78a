"""Profiles: a device as a data file (TOML). Loaded, validated with every error at once, compiled to the flat rows of
hal/rows.py.

A profile has header keys (name, role, window_ms, update_ms, turnaround_ms, sample, max_registers, gap_registers, fc23),
[defaults] for its rows, [[read]] rows (one signal each), [[write]] rows (one transaction each) and [[identity]] rows
(registers that must equal a value). See hal/profiles/generic_pcs.toml for all of it in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal import toml
from hal.rows import (
    COMMAND,
    HEARTBEAT,
    MAX_READ_REGISTERS,
    MAX_WRITE_REGISTERS,
    PURPOSES,
    RATES,
    RENEW,
    ROLE_SIGNALS,
    SOURCES,
    TYPE_WORDS,
    DeviceMap,
    Encode,
    Field,
    Verify,
    Write,
    to_words,
)

PROFILE_DIR = Path(__file__).parent / "profiles"
CYCLIC = (COMMAND, HEARTBEAT, RENEW)  # purposes written again and again
FLASH_CYCLES = 100_000
# What a group needs to be of use; everything else may be absent and is then NaN.
NEEDED = {
    "grid_p_w",
    "batt_p_w",
    "pcs_state",
    "pcs_heartbeat",
    "wset_w",
    "soc",
    "bms_state",
    "batt_v",
    "batt_temp_max_c",
    "pv_p_w",
    "gen_p_w",
}
POWERS = ("p_cmd_w", "q_cmd_var")
# What codec.pyx writes of each integer type at most: a double ends at 2**53, and i16's and i32's lowest says "not implemented".
RAW = {
    "u16": (0, 2**16 - 1), "i16": (1 - 2**15, 2**15 - 1), "u32": (0, 2**32 - 1), "i32": (1 - 2**31, 2**31 - 1),
    "u64": (0, 2**53), "i64": (-(2**53), 2**53),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one file: where, what it says, why that cannot be, what would do."""

    file: str
    key: str
    value: Any
    why: str
    remedy: str

    def __str__(self) -> str:
        shown = f"{self.key} = {self.value!r}" if self.value is not None else self.key
        return ": ".join(part for part in (self.file, shown, self.why) if part) + f"; {self.remedy}"


class ProfileError(Exception):
    """A profile cannot be used. `problems` holds every reason found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(p) for p in problems))


class _Reader:
    """Reads one table key by key, noting what is wrong instead of stopping at it."""

    def __init__(self, file: str, where: str, table: Any, problems: list[Problem]) -> None:
        self.file, self.where, self.problems = file, where, problems
        self.table: dict[str, Any] = table if isinstance(table, dict) else {}
        self.seen: set[str] = set()
        if not isinstance(table, dict):
            self.fault("", table, "is not a table", "write it as key = value pairs")

    def fault(self, key: str, value: Any, why: str, remedy: str) -> None:
        name = f"{self.where}.{key}" if self.where and key else self.where or key
        self.problems.append(Problem(self.file, name, value, why, remedy))

    def get(self, key: str, default: Any, ok: Callable[[Any], bool], remedy: str) -> Any:
        """The key's value, or `default` where it is absent or fails `ok` (noted). A default of ... makes the key
        mandatory."""
        self.seen.add(key)
        if key not in self.table:
            if default is ...:
                self.fault(key, None, "is missing", remedy)
                return None
            return default
        value = self.table[key]
        if not ok(value):
            self.fault(key, value, "is not allowed", remedy)
            return None if default is ... else default
        return value

    def choice(self, key: str, default: Any, choices: tuple[Any, ...]) -> Any:
        return self.get(key, default, lambda v: v in choices and not isinstance(v, bool), "one of " + ", ".join(map(str, choices)))

    def number(self, key: str, default: Any, lo: float = -math.inf, hi: float = math.inf) -> Any:
        return self.get(key, default, lambda v: _is_number(v) and lo <= v <= hi, f"a finite number from {lo:g} to {hi:g}")

    def integer(self, key: str, default: Any, lo: int, hi: int) -> Any:
        return self.get(key, default, lambda v: _is_int(v) and lo <= v <= hi, f"an integer from {lo} to {hi}")

    def text(self, key: str, default: Any) -> Any:
        return self.get(key, default, lambda v: isinstance(v, str) and v.strip() != "", "a text")

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, default, lambda v: isinstance(v, bool), "true or false"))

    def pairs(self, key: str) -> tuple[tuple[int, float], ...]:
        def ok(v: Any) -> bool:
            rows = v if isinstance(v, list) and len(v) <= 16 else [None]
            return all(isinstance(p, list) and len(p) == 2 and _is_int(p[0]) and abs(p[0]) < 1 << 63 and _is_number(p[1]) for p in rows)

        return tuple((int(a), float(b)) for a, b in self.get(key, [], ok, "at most 16 pairs [raw, value], raw within 64 bits"))

    def rows(self, key: str) -> list[Any]:
        return list(self.get(key, [], lambda v: isinstance(v, list), f"[[{key}]] tables"))

    def leftovers(self) -> None:
        for key in self.table:
            if key not in self.seen:
                self.fault(
                    key,
                    self.table[key],
                    "is not a key of this table",
                    "remove it, or one of " + ", ".join(sorted(self.seen)),
                )


def _is_int(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool)


def _is_number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)


def _coding(r: _Reader) -> dict[str, Any]:
    """The keys that read rows and written registers share."""
    coding = {
        "addr": r.integer("address", ..., 0, 65535),
        "type": r.choice("type", ..., tuple(TYPE_WORDS)),
        "word_order": r.choice("word_order", "big", ("big", "little")),
        "byte_order": r.choice("byte_order", "big", ("big", "little")),
        "scale": float(r.number("scale", 1.0)),
        "offset": float(r.number("offset", 0.0)),
        "sign": r.choice("sign", 1, (1, -1)),
    }
    if coding["scale"] <= 0.0:
        r.fault("scale", coding["scale"], "is not above 0: a sign hidden in a scale is found by nobody", "use sign = -1")
        coding["scale"] = 1.0
    limits = r.get(
        "range",
        [-math.inf, math.inf],
        lambda v: isinstance(v, list) and len(v) == 2 and all(_is_number(x) for x in v) and v[0] < v[1],
        "[lowest, highest] in SI",
    )
    coding["lo"], coding["hi"] = float(limits[0]), float(limits[1])
    if coding["addr"] is not None and coding["type"] is not None and coding["addr"] + TYPE_WORDS[coding["type"]] > 65536:
        r.fault("address", coding["addr"], f"a {coding['type']} there ends beyond register 65535", "a lower address")
    return coding


def no_zero(r: _Reader, source: str, coding: dict[str, Any], raw: tuple[int, int] | None, wrap: bool) -> None:
    """Faults a power that cannot be sent as 0: a range that leaves 0 out, an offset whose raw number of 0 the field does not have. And one
    that would turn over instead of being held at the field's end. raw: lowest and highest number of the field, None for a float."""
    if source not in POWERS:
        return
    if not coding["lo"] <= 0.0 <= coding["hi"]:
        why = "holds no 0: a command of 0 would be sent as power"
        r.fault("range", [coding["lo"], coding["hi"]], why, "[lowest, highest] in SI with 0 between them")
    zero = -coding["offset"] / coding["scale"]
    if raw is not None and not (raw[0] <= zero <= raw[1] and abs(zero - round(zero)) < 1e-6):
        why = f"a command of 0 would be sent as power: its raw number {zero:g} is no integer from {raw[0]} to {raw[1]}"
        r.fault("offset", coding["offset"], why, "a multiple of the scale, within the field")
    if wrap:
        r.fault("wrap", True, "a power beyond the field would be sent as another one", "no wrap: it is held at the field's end")


def _read_row(r: _Reader, role: str) -> Field | None:
    signal = r.choice("signal", ..., ROLE_SIGNALS.get(role, ()))
    coding = _coding(r)
    width = 16 * TYPE_WORDS.get(coding["type"] or "u16", 1)
    is_raw = lambda v: _is_int(v) and 0 <= v < 1 << width  # noqa: E731
    bit = r.integer("bit", -1, 0, width - 1)
    mask = r.get("mask", 0, is_raw, f"raw bits below 2**{width}")
    if bit >= 0 and mask:
        r.fault("bit", bit, "stands beside a mask", "keep one of them")
    sentinels = r.get(
        "nan",
        [],
        lambda v: isinstance(v, list) and len(v) <= 4 and all(is_raw(x) for x in v),
        f"at most 4 raw values below 2**{width}",
    )
    pairs = r.pairs("map")
    if coding["type"] == "f32" and (mask or bit >= 0 or pairs):
        r.fault("type", "f32", "has no bits and no enumeration", "an integer type, or no bit, mask, map")
    fc = r.choice("fc", 3, (3, 4))
    rate = r.choice("group", "slow", RATES)
    needed = r.flag("needed", signal in NEEDED)
    r.leftovers()
    if signal is None or coding["addr"] is None or coding["type"] is None:
        return None
    return Field(
        signal=signal, fc=fc, rate=rate, mask=1 << bit if bit >= 0 else mask, nan=tuple(sentinels),
        map=pairs, needed=needed, **coding,
    )  # fmt: skip


def _register(r: _Reader) -> Encode | None:
    source = r.choice("source", "", SOURCES)
    const = r.number("const", None)
    if (source == "") == (const is None):
        r.fault(
            "source",
            source or None,
            "a register carries a source or a const, one of them",
            "source = one of " + ", ".join(SOURCES),
        )
    coding = _coding(r)
    toward_zero = r.flag("toward_zero", source in POWERS)
    wrap = r.flag("wrap", False)
    no_zero(r, source, coding, RAW.get(coding["type"]), wrap)
    r.leftovers()
    if coding["addr"] is None or coding["type"] is None:
        return None
    return Encode(source=source, const=float(const or 0.0), toward_zero=toward_zero, wrap=wrap, **coding)


def _write_row(r: _Reader, role: str) -> Write | None:
    purpose = r.choice("purpose", ..., PURPOSES)
    fc = r.choice("fc", 16, (6, 16, 23))
    cyclic = r.choice("cyclic_write", "unknown", ("ok", "flash", "unknown"))
    if purpose in CYCLIC and cyclic != "ok":
        seconds = FLASH_CYCLES / (100.0 if purpose == COMMAND else 1.0)
        r.fault(
            "cyclic_write",
            cyclic,
            f"{purpose} is written again and again; in flash, {FLASH_CYCLES} cycles would last {seconds / 60:.0f} minutes",
            'cyclic_write = "ok" where the manual says that the register lives in RAM; otherwise another register',
        )
    encodes = []
    for i, row in enumerate(r.rows("registers")):
        e = _register(_Reader(r.file, f"{r.where}.registers[{i}]", row, r.problems))
        if e is not None:
            encodes.append(e)
    reads = []
    for i, row in enumerate(r.rows("read")):
        f = _read_row(_Reader(r.file, f"{r.where}.read[{i}]", row, r.problems), role)
        if f is not None:
            reads.append(f)
    r.leftovers()
    if (fc == 23) != bool(reads):
        r.fault("fc", fc, "FC23 reads in the same transaction; FC06 and FC16 do not", "read = [...] with FC23 only")
    if not encodes or purpose is None:
        if not encodes:
            r.fault("registers", None, "is empty", "at least one register to write")
        return None
    write = Write(purpose, tuple(sorted(encodes, key=lambda e: e.addr)), fc, cyclic, tuple(reads))
    _check_write(r, write)
    return write


def _check_write(r: _Reader, write: Write) -> None:
    """One write is one block without holes: a hole would be filled with what nobody asked for."""
    at = write.addr
    for e in write.encodes:
        if e.addr != at:
            what = "overlaps the register before it" if e.addr < at else f"leaves registers {at}..{e.addr - 1} undefined"
            r.fault("registers", e.addr, what, "registers of one write follow each other; use two writes")
        at = max(at, e.addr + e.words)
    if write.count > (1 if write.fc == 6 else MAX_WRITE_REGISTERS):
        limit = 1 if write.fc == 6 else MAX_WRITE_REGISTERS
        r.fault("registers", write.count, f"FC{write.fc:02d} writes at most {limit} register(s)", "FC16, or fewer registers")


def _identity_row(r: _Reader) -> Verify | None:
    name = r.text("name", ...)
    addr = r.integer("address", ..., 0, 65535)
    fc = r.choice("fc", 3, (3, 4))
    words = r.get(
        "words",
        None,
        lambda v: isinstance(v, list) and 1 <= len(v) <= MAX_READ_REGISTERS and all(_is_int(x) and 0 <= x <= 0xFFFF for x in v),
        "1 to 125 register values, 0..65535",
    )
    value, type_ = r.number("value", None), r.choice("type", "u16", tuple(TYPE_WORDS))
    order = r.choice("word_order", "big", ("big", "little"))
    r.leftovers()
    if (words is None) == (value is None):
        r.fault("words", words, "an identity row has words or a value, one of them", "words = [..] or value = ..")
        return None
    if words is None:
        try:
            words = to_words(value, type_, order)
        except Exception as e:  # struct.error has no common base with OverflowError
            r.fault("value", value, f"does not fit {type_} ({e})", "another type")
            return None
    return None if name is None or addr is None else Verify(name, addr, tuple(words), fc)


def _check_clashes(r: _Reader, fields: list[Field]) -> None:
    """Two rows may share a register only if both take bits of it; one signal has one source."""
    taken: dict[tuple[int, int], Field] = {}
    signals: dict[str, Field] = {}
    for f in fields:
        if f.signal in signals:
            r.fault("read", f.signal, f"is fed twice (addresses {signals[f.signal].addr} and {f.addr})", "one row a signal")
        signals[f.signal] = f
        for a in range(f.addr, f.addr + f.words):
            other = taken.setdefault((f.fc, a), f)
            if other is not f and (other.addr != f.addr or other.type != f.type or not (other.mask and f.mask)):
                r.fault(
                    "read",
                    f.signal,
                    f"register {a} belongs to {other.signal} already",
                    "check address and type of both",
                )
                break


def parse_profile(text: str, file: str = "<profile>") -> DeviceMap:
    """Compile a profile's text; `transport = "can"`: hal.canprofile. Raises ProfileError with every problem in it."""
    problems: list[Problem] = []
    try:
        table = toml.read(text)
    except toml.TomlError as e:
        raise ProfileError([Problem(file, "", None, str(e), "correct the syntax")]) from None
    if table.get("transport") == "can":
        from hal.canprofile import parse_can  # it builds on this file

        return parse_can(table, file)
    r = _Reader(file, "", table, problems)
    name, role = r.text("name", ...), r.choice("role", ..., tuple(ROLE_SIGNALS))
    window, update = r.number("window_ms", 0.0, 0, 60000), r.number("update_ms", 0.0, 0, 60000)
    turnaround, sample = r.number("turnaround_ms", 0.0, 0, 1000), r.choice("sample", "request", ("request", "answer"))
    max_registers = r.integer("max_registers", MAX_READ_REGISTERS, 1, MAX_READ_REGISTERS)
    gap = r.integer("gap_registers", 48, 0, MAX_READ_REGISTERS)
    fc23 = r.flag("fc23", False)
    defaults = r.get("defaults", {}, lambda v: isinstance(v, dict), "a table of defaults for [[read]] rows")
    fields, writes, verify = [], [], []
    for i, row in enumerate(r.rows("read")):
        f = _read_row(_Reader(file, f"read[{i}]", {**defaults, **row} if isinstance(row, dict) else row, problems), role or "")
        if f is not None:
            fields.append(f)
    for i, row in enumerate(r.rows("write")):
        w = _write_row(_Reader(file, f"write[{i}]", row, problems), role or "")
        if w is not None:
            writes.append(w)
    for i, row in enumerate(r.rows("identity")):
        v = _identity_row(_Reader(file, f"identity[{i}]", row, problems))
        if v is not None:
            verify.append(v)
    r.leftovers()
    _check_clashes(r, fields)
    if not fields and not problems:
        r.fault("read", None, "is empty", "at least one [[read]] row")
    if problems:
        raise ProfileError(problems)
    return DeviceMap(
        name, role, tuple(fields), tuple(writes), tuple(verify), float(window), float(update), float(turnaround),
        sample,
        max_registers, gap, fc23=fc23, info={"profile": file},
    )  # fmt: skip


def read_profile(name_or_path: str | Path, shipped: Path = PROFILE_DIR) -> tuple[str, str]:
    """Text and file name of a profile: one in the folder `shipped` by its name, or any file by path. Raises ProfileError."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = shipped / f"{name_or_path}.toml"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as e:
        remedy = f"a path to a .toml file, or one of {', '.join(list_profiles(shipped))}"
        raise ProfileError([Problem(str(path), "", None, f"cannot be read: {e}", remedy)]) from None


def load_profile(name_or_path: str | Path) -> DeviceMap:
    """A shipped profile by name ("eastron_sdm630") or any file by path. Raises ProfileError."""
    return parse_profile(*read_profile(name_or_path))


def list_profiles(shipped: Path = PROFILE_DIR) -> list[str]:
    """Names of the profiles that come with Ballast."""
    return sorted(p.stem for p in shipped.glob("*.toml"))
