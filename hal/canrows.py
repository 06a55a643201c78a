"""The flat rows a CAN device compiles to, whether it came as a profile's own rows or by way of a DBC. Frozen data, no
behaviour at run time.

Signs, units and scales live here and nowhere else: `value = sign * (raw * scale + offset)` when received, its inverse
when sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hal.rows import DeviceMap

MAX_FRAMES, MAX_SIGNALS, MAX_TRANSMITS = 64, 256, 16  # of one bus
MAX_CAN_DEVICES = 16  # of one bus: MAX_DEV of canscan.pxd
CHECKSUMS = ("none", "crc8_j1850", "xor", "sum")  # order = SUM_* of can.pxd
PURPOSES = ("command", "cyclic")
# What a transmitted signal may carry: fields of Outputs, and `operate`: 1 from OP_START (or a live converter) to OP_STOP.
OPERATE = "operate"


@dataclass(frozen=True)
class Frame:
    """One classic CAN frame as data: id of 11 bits (ext: 29), at most 8 bytes."""

    id: int
    data: bytes = b""
    ext: bool = False
    rtr: bool = False
    err: bool = False


@dataclass(frozen=True)
class Place:
    """Bits of a payload. `start`: DBC start bit (byte_order "big": of the most significant bit, sawtooth numbering)."""

    start: int
    length: int
    byte_order: str = "little"

    @property
    def last_byte(self) -> int:
        """The last payload byte it reaches into."""
        if self.byte_order == "big":
            return (8 * (self.start // 8) + 7 - self.start % 8 + self.length - 1) // 8
        return (self.start + self.length - 1) // 8


@dataclass(frozen=True)
class Mux:
    """A signal stands in the payload only while these bits hold `value`."""

    start: int
    length: int
    byte_order: str
    value: int


@dataclass(frozen=True)
class Signal:
    """One value in a payload, in SI and with the contract's sign once decoded.

    `name`: a signal of the image (received), a source (sent; "" with `const`), or anything in tests. `permit`: "" for
    a value; "set" or "clear": the signal is forced to 0 unless these bits are all that.
    """

    name: str
    start: int
    length: int
    byte_order: str = "little"
    signed: bool = False
    real: bool = False  # IEEE 754, 32 or 64 bits
    scale: float = 1.0
    offset: float = 0.0
    sign: int = 1
    lo: float = -math.inf
    hi: float = math.inf
    magnitude: bool = False
    nan: tuple[int, ...] = ()
    map: tuple[tuple[int, float], ...] = ()
    mux: Mux | None = None
    needed: bool = True
    permit: str = ""
    const: float = 0.0
    toward_zero: bool = False
    wrap: bool = False

    @property
    def place(self) -> Place:
        return Place(self.start, self.length, self.byte_order)


@dataclass(frozen=True)
class Counter:
    """A number that grows by one from frame to frame, modulo its width. Received: the same again is no new frame."""

    start: int
    length: int
    byte_order: str = "little"


@dataclass(frozen=True)
class Checksum:
    """Byte `byte` of the payload guards the others. `seed`: a byte taken in first (-1: none)."""

    kind: str
    byte: int
    seed: int = -1


@dataclass(frozen=True)
class Received:
    """One frame a device sends: who, how often, what is in it."""

    id: int
    ext: bool
    period_ms: float
    length: int  # payload bytes at least, so that every needed signal is in it
    signals: tuple[Signal, ...]
    counter: Counter | None = None
    checksum: Checksum | None = None
    identity: tuple[tuple[Place, int], ...] = ()  # bits that must hold a value: another device is never believed
    lost_ms: float = 3000.0  # older: what it feeds is bad


@dataclass(frozen=True)
class Transmit:
    """One frame for a device. "command": at once when the kernel has stepped; "cyclic": every period_ms."""

    id: int
    ext: bool
    purpose: str
    period_ms: float
    length: int
    signals: tuple[Signal, ...]
    counter: Counter | None = None
    checksum: Checksum | None = None


@dataclass(frozen=True)
class CanMap(DeviceMap):
    """A CAN device as data. `unit_offset`: added to every id for each unit above 1."""

    frames: tuple[Received, ...] = ()
    transmits: tuple[Transmit, ...] = ()
    unit_offset: int = 0

    def signals(self) -> set[str]:
        return {s.name for f in self.frames for s in f.signals if not s.permit}

    @property
    def commands(self) -> int:
        """How many of its frames carry the power command."""
        return sum(t.purpose == "command" for t in self.transmits)

    def at(self, unit: int) -> CanMap:
        """The same device as its `unit`th instance: 1 has the ids of the profile."""
        shift = (unit - 1) * self.unit_offset
        return replace(
            self,
            frames=tuple(replace(f, id=f.id + shift) for f in self.frames),
            transmits=tuple(replace(t, id=t.id + shift) for t in self.transmits),
        )
