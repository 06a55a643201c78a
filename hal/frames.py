"""Frame files: a device's recorded bytes beside what its profile must make of them, one row a value, in `NAME.frames.tsv` next to
`NAME.toml`. They prove a profile without the device, and against its manual instead of against this program.

Columns, separated by tabs; lines that begin with # are comments:

place    Modbus: function@register of the first byte of `data` (3@19000, 4@0x34, 16@200); CAN: the identifier (0x351)
data     what stood on the wire there, in hex: registers high byte first, or the payload; spaces are free
name     a signal of the profile; the name of an [[identity]] row; `permit:SIGNAL` of a CAN frame; the purpose of a write
value    SI with the contract's sign; `-`: the device says that it has none, or it is out of range; identity: `same` or `other`;
         permit: `given` or `withheld`; a write: what it carries, `p_cmd_w=-50000 enable=1` (CAN: `counter=3` too)
working  the arithmetic, done by hand
source   the document (with its page or table) or the capture it comes from
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hal.can import checksum, decode_signal, encode_signal
from hal.canrows import CanMap, Received, Signal, Transmit
from hal.codec import decode_words, encode_words
from hal.profile import PROFILE_DIR, Problem, ProfileError
from hal.rows import DeviceMap, Field, Verify, Write

COLUMNS = ("place", "data", "name", "value", "working", "source")
SUFFIX = ".frames.tsv"
PERMIT = "permit:"
NONE = "-"
MAX_ROWS = 2000
TOLERANCE = 1e-6  # f32 has 24 bits, and people write seven digits


@dataclass(frozen=True)
class Row:
    """One expected value. `fc` -1: a CAN frame, and `at` its identifier."""

    line: int
    fc: int
    at: int
    data: bytes
    name: str
    value: str
    working: str
    source: str

    @property
    def place(self) -> str:
        return f"{self.fc}@{self.at}" if self.fc >= 0 else f"{self.at:#x}"

    @property
    def words(self) -> list[int]:
        return [int.from_bytes(self.data[i : i + 2], "big") for i in range(0, len(self.data), 2)]


@dataclass(frozen=True)
class Result:
    """What the profile made of a row."""

    row: Row
    got: str
    ok: bool


def frame_file(profile: str | Path) -> Path:
    """The frame file of a profile: of a shipped one by name, or beside a file."""
    path = Path(profile)
    if path.suffix != ".toml":
        path = PROFILE_DIR / f"{profile}.toml"
    return path.with_name(path.stem + SUFFIX)


def load_frames(path: Path) -> list[Row]:
    """The rows of a frame file. Raises ProfileError with every problem in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = f"cannot be read: {getattr(e, 'strerror', None) or e}"
        raise ProfileError([Problem(str(path), "", None, why, "`ballast profile new NAME` starts a profile with its frame file")]) from None
    problems: list[Problem] = []
    rows: list[Row] = []
    header_seen = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [c.strip() for c in line.split("\t")]
        if not header_seen:
            header_seen = True
            if tuple(cells) != COLUMNS:
                remedy = "begin with these columns, separated by tabs: " + " ".join(COLUMNS)
                raise ProfileError([Problem(str(path), f"line {number}", line[:60], "is no header", remedy)])
            continue
        row = _row(path, number, cells, problems)
        if row is not None:
            rows.append(row)
    if not rows and not problems:
        problems.append(Problem(str(path), "", None, "has no rows", "one row for each value of the profile"))
    if len(rows) > MAX_ROWS:
        problems.append(Problem(str(path), "", len(rows), f"has more than {MAX_ROWS} rows", "one or two rows a value are enough"))
    if problems:
        raise ProfileError(problems)
    return rows


def _row(path: Path, number: int, cells: list[str], problems: list[Problem]) -> Row | None:
    def fault(key: str, value: str | None, why: str, remedy: str) -> None:
        problems.append(Problem(str(path), f"line {number}.{key}", value, why, remedy))

    before = len(problems)
    if len(cells) != len(COLUMNS):
        fault("columns", None, f"has {len(cells)} columns", f"{len(COLUMNS)}, separated by tabs: {' '.join(COLUMNS)}")
        return None
    place, data_text, name, value, working, source = cells
    fc, at, data = -1, 0, b""
    try:
        head, sign, tail = place.partition("@")
        fc, at = (int(head, 0), int(tail, 0)) if sign else (-1, int(head, 0))
        if (sign and (fc not in (3, 4, 6, 16, 23) or not 0 <= at <= 0xFFFF)) or not 0 <= at <= 0x1FFFFFFF:
            raise ValueError
    except ValueError:
        fault("place", place, "is no place", "function@register such as 3@19000, or a CAN identifier such as 0x351")
    try:
        data = bytes.fromhex(data_text)
    except ValueError:
        fault("data", data_text, "is no hex", "bytes as they stand on the wire, such as 43 66 80 00")
    if fc >= 0 and (len(data) % 2 or len(data) > 250):
        fault("data", data_text, f"is {len(data)} bytes, not whole registers of one answer", "two bytes a register, at most 125 of them")
    if fc < 0 and len(data) > 8:
        fault("data", data_text, f"is {len(data)} bytes", "a CAN frame has at most 8")
    for key, text, what in (("name", name, "a signal"), ("value", value, "the expected value"), ("source", source, "the document")):
        if not text:
            fault(key, None, "is empty", f"write {what}" + (" it was worked out from" if key == "source" else ""))
    return Row(number, fc, at, data, name, value, working, source) if len(problems) == before else None


# ---------------------------------------------------------------- what the profile makes of them


def check(device: DeviceMap, rows: list[Row]) -> list[Result]:
    """One result a row. A row that names nothing of the profile is a mismatch, and says so."""
    return [_check_can(device, row) if isinstance(device, CanMap) else _check_modbus(device, row) for row in rows]


def untested(device: DeviceMap, rows: list[Row]) -> list[str]:
    """What the profile reads, verifies or writes and no row tests, as the rows would name it."""
    have = {(row.fc, row.at, row.name) for row in rows}
    names = {row.name for row in rows}
    if isinstance(device, CanMap):
        wanted = [(f.id, s) for f in device.frames for s in _names(f)] + [(t.id, t.purpose) for t in device.transmits if t.signals]
        return [f"{name} of {at:#x}" for at, name in wanted if (-1, at, name) not in have]
    missing = [f.signal for f in device.fields if f.signal not in names] + [v.name for v in device.verify if v.name not in names]
    return missing + [f"{w.purpose} at {w.addr}" for w in device.writes if (w.fc, w.addr, w.purpose) not in have]


def _names(frame: Received) -> Iterator[str]:
    return iter(dict.fromkeys((PERMIT if s.permit else "") + s.name for s in frame.signals))


def _check_modbus(device: DeviceMap, row: Row) -> Result:
    if row.fc < 0:
        return Result(row, "a CAN identifier, the profile speaks Modbus", False)
    for write in device.writes:
        if (write.fc, write.addr, write.purpose) == (row.fc, row.at, row.name):
            return _judge_sent(row, _registers(write, row))
    for v in device.verify:
        if v.name == row.name:
            return _identity(row, v)
    field = next((f for f in _fields(device) if f.signal == row.name), None)
    if field is None:
        return Result(row, f"nothing of the profile is called so at {row.place}", False)
    first = field.addr - row.at
    if row.fc not in (field.fc, 23) or first < 0 or first + field.words > len(row.words):
        return Result(row, f"the profile reads it at {field.fc}@{field.addr}, {field.words} registers: not in this data", False)
    return _judge(row, decode_words(field, row.words[first : first + field.words]))


def _fields(device: DeviceMap) -> list[Field]:
    return [*device.fields, *(f for w in device.writes for f in w.read_fields)]


def _identity(row: Row, v: Verify) -> Result:
    first = v.addr - row.at
    if v.fc != row.fc or first < 0 or first + len(v.words) > len(row.words):
        return Result(row, f"the profile reads it at {v.fc}@{v.addr}, {len(v.words)} registers: not in this data", False)
    got = "same" if tuple(row.words[first : first + len(v.words)]) == v.words else "other"
    return Result(row, got, got == row.value)


def _registers(write: Write, row: Row) -> bytes | str:
    values = _assignments(row.value)
    out: list[int] = []
    for e in write.encodes:
        if e.source and e.source not in values:
            return f"carries {e.source}: say with which value, {e.source}=..."
        words = encode_words(e, values[e.source] if e.source else e.const)
        if words is None:
            return "nothing: a value that is not finite is never sent"
        out += words
    return b"".join(w.to_bytes(2, "big") for w in out)


def _check_can(device: CanMap, row: Row) -> Result:
    if row.fc >= 0:
        return Result(row, "a Modbus place, the profile speaks CAN", False)
    transmit = next((t for t in device.transmits if t.id == row.at and t.purpose == row.name), None)
    if transmit is not None:
        return _judge_sent(row, _payload(transmit, row))
    frame = next((f for f in device.frames if f.id == row.at), None)
    if frame is None:
        return Result(row, f"the profile knows no {row.place}", False)
    if frame.checksum is not None and len(row.data) > frame.checksum.byte:
        want = checksum(frame.checksum.kind, row.data, frame.checksum.byte, frame.checksum.seed)
        if want != row.data[frame.checksum.byte]:
            return Result(row, f"a frame that is dropped: its checksum should be {want:02X}", False)
    if row.name.startswith(PERMIT):
        got = permit(frame, row.name.removeprefix(PERMIT), row.data)
        return Result(row, got or f"the profile has no such permit in {row.place}", got == row.value)
    signal = next((s for s in frame.signals if s.name == row.name and not s.permit), None)
    if signal is None:
        return Result(row, f"the profile has no such signal in {row.place}", False)
    return _judge(row, decode_signal(signal, row.data)[0])


def permit(frame: Received, name: str, data: bytes) -> str:
    """`given` or `withheld` as control judges it (hal/canscan.pyx): every permit row of the signal counts; empty: the frame has none."""
    rows = [s for s in frame.signals if s.permit and s.name == name]
    got = [how == "ok" and (value != 0.0) == (s.permit == "set") for s in rows for value, how in (decode_signal(s, data),)]
    return ("given" if all(got) else "withheld") if rows else ""


def _payload(t: Transmit, row: Row) -> bytes | str:
    values = _assignments(row.value)
    data: bytes | None = bytes(t.length)
    for s in t.signals:
        if s.name and s.name not in values:
            return f"carries {s.name}: say with which value, {s.name}=..."
        data = encode_signal(s, values[s.name] if s.name else s.const, data)
        if data is None:
            return "nothing: a value that is not finite is never sent"
    if t.counter is not None:
        if "counter" not in values:
            return "carries a counter: say with which value, counter=..."
        place = Signal("counter", t.counter.start, t.counter.length, t.counter.byte_order, wrap=True)
        data = encode_signal(place, values["counter"], data)
    assert data is not None
    if t.checksum is not None:
        at = t.checksum.byte
        data = data[:at] + bytes([checksum(t.checksum.kind, data, at, t.checksum.seed)]) + data[at + 1 :]
    return data


def _assignments(text: str) -> dict[str, float]:
    """`p_cmd_w=-50000 enable=1`; what is no number is left out, and then missed by whoever needs it."""
    out: dict[str, float] = {}
    for word in text.split():
        key, sign, value = word.partition("=")
        number = _number(value)
        if sign and number is not None:
            out[key] = number
    return out


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _judge(row: Row, value: float) -> Result:
    got = NONE if math.isnan(value) else f"{value:.9g}"
    if row.value == NONE or got == NONE:
        return Result(row, got, got == row.value)
    want = _number(row.value)
    return Result(row, got, want is not None and math.isclose(value, want, rel_tol=TOLERANCE, abs_tol=1e-9))


def _judge_sent(row: Row, data: bytes | str) -> Result:
    if isinstance(data, str):
        return Result(row, data, False)
    return Result(row, data.hex(" "), data == row.data)
