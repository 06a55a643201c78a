"""DBC files, by way of cantools: where a message's signals stand, as plain data. Loaded by the parent and by the child that compiles
devices, never by control.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hal.canrows import Mux

MAX_DBC_BYTES = 4_000_000


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
    import cantools
    from cantools.database.errors import Error

    try:
        if path.stat().st_size > MAX_DBC_BYTES:
            raise DbcError(f"is larger than {MAX_DBC_BYTES} bytes")
        database = cantools.database.load_file(path, database_format="dbc", strict=True)
    except (OSError, UnicodeDecodeError, Error, ValueError) as e:
        raise DbcError(f"cannot be read: {e}") from None
    if not isinstance(database, cantools.database.can.Database):
        raise DbcError("describes no CAN bus")
    return {m.name: _message(m) for m in database.messages}


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
            mux = Mux(switch.start, switch.length, _order(switch.byte_order), int(s.multiplexer_ids[0]))
        signals[s.name] = DbcSignal(
            s.name, s.start, s.length, _order(s.byte_order), s.is_signed, s.is_float, float(s.scale), float(s.offset), s.unit or "", mux
        )
    return DbcMessage(m.name, m.frame_id, m.is_extended_frame, m.length, float(m.cycle_time or 0.0), signals)


def _order(text: str) -> str:
    return "big" if text == "big_endian" else "little"
