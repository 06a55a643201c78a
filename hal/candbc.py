"""DBC files, by way of cantools: where a message's signals stand, as plain data. Loaded by the parent and by the child that compiles
devices, never by control.
"""

from __future__ import annotations

import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from hal.canrows import Mux

MAX_DBC_BYTES = 4_000_000
MAX_MESSAGE_BYTES = 1785  # of J1939 in many frames; one frame has 8, or 64
MAX_MUX_RANGE = 65_536


@dataclass(frozen=True)
class DbcSignal:
    """One signal of a message; scale and offset in the DBC's own unit."""

    name: str
    start: int
    length: int
    byte_order: str
    signed: bool
    real: bool
    scale: float
    offset: float
    unit: str
    mux: Mux | None


@dataclass(frozen=True)
class DbcMessage:
    """One message: identifier, payload bytes, cycle time (0: not given), signals by name."""

    name: str
    id: int
    ext: bool
    length: int
    period_ms: float
    signals: dict[str, DbcSignal]


class DbcError(Exception):
    """A DBC file cannot be used; the text says why."""


def load_dbc(path: Path) -> dict[str, DbcMessage]:
    """Messages of a file by name. Raises DbcError."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a device or a pipe may have no end
            raise DbcError("is no file")
        if found.st_size > MAX_DBC_BYTES:
            raise DbcError(f"is larger than {MAX_DBC_BYTES} bytes")
        return parse_dbc(path.read_bytes())
    except OSError as e:
        raise DbcError(f"cannot be read: {e}") from None


def parse_dbc(data: bytes) -> dict[str, DbcMessage]:
    """Messages of a file's content by name. Raises DbcError."""
    import cantools

    try:
        text = data.decode("cp1252")
        _check_lengths(text)
        database = cantools.database.load_string(text, database_format="dbc", strict=True)
    except DbcError:
        raise
    except Exception as e:  # whatever the library makes of somebody's file
        raise DbcError(f"cannot be read: {e or type(e).__name__}") from None
    if not isinstance(database, cantools.database.can.Database):
        raise DbcError("describes no CAN bus")
    messages: dict[str, DbcMessage] = {}
    for m in database.messages:
        if m.name in messages:
            raise DbcError(f"has two messages named {m.name}")
        messages[m.name] = _message(m)
    return messages


def _check_lengths(text: str) -> None:
    """The library lays out every byte of a message and every number of a range: one that was mistyped would keep it busy for hours."""
    for version in (text, re.sub(r"//.*", "", text)):
        for name, digits in re.findall(r"\bBO_\s+\d+\s+(\w+)\s*:\s*(\d+)", version):
            if len(digits) > 9 or int(digits) > MAX_MESSAGE_BYTES:
                raise DbcError(f"message {name} has {digits[:12]} bytes, and at most {MAX_MESSAGE_BYTES} are possible")


        for ranges in re.findall(r"\bSG_MUL_VAL_\b([^;]*)", version):
            for low, high in re.findall(r"(\d+)\s*-\s*(\d+)", ranges):
                if max(len(low), len(high)) > 9 or int(high) - int(low) > MAX_MUX_RANGE:
                    raise DbcError(f"a multiplexer's range {low[:12]}-{high[:12]} has more than {MAX_MUX_RANGE} numbers")


def _message(m: object) -> DbcMessage:
    from cantools.database.can import Message

    assert isinstance(m, Message)
    by_name = {s.name: s for s in m.signals}
    signals = {}
    for s in m.signals:
        mux = None
        if s.multiplexer_ids:
            switch = by_name.get(s.multiplexer_signal or "")
            if switch is None or switch.multiplexer_ids or len(s.multiplexer_ids) != 1:
                continue  # extended multiplexing: whoever asks for this signal is told that it is not here
            number = int(s.multiplexer_ids[0])
            if not 0 <= number < 1 << min(switch.length, 32):
                raise DbcError(f"signal {m.name}.{s.name} stands under the number {number}, which {switch.length} bits never hold")
            mux = Mux(switch.start, switch.length, _order(switch.byte_order), number)
        scale, offset = float(s.scale), float(s.offset)
        if not (math.isfinite(scale) and math.isfinite(offset)) or not 1 <= s.length <= 64:
            raise DbcError(f"signal {m.name}.{s.name} has length {s.length}, scale {scale:g}, offset {offset:g}: no number comes of it")
        signals[s.name] = DbcSignal(
            s.name, s.start, s.length, _order(s.byte_order), s.is_signed, s.is_float, scale, offset, s.unit or "", mux
        )
    period_ms = float(m.cycle_time or 0.0)
    if not 0.0 <= period_ms < math.inf:
        raise DbcError(f"message {m.name} has a cycle time of {period_ms:g} ms")
    return DbcMessage(m.name, m.frame_id, m.is_extended_frame, m.length, period_ms, signals)


def _order(text: str) -> str:
    return "big" if text == "big_endian" else "little"
