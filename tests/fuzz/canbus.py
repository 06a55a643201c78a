"""CAN frames into the image, as structs of SocketCAN and as lines of slcan: batteries by profile, a converter by DBC.

After every step: no value in Inputs outside its row's range, no good group without what it needs, no group younger than the clock, no
permission to charge or discharge while a permit is withheld, no command to a converter that is not proven.
"""

from __future__ import annotations

import functools
from typing import Any

from hal.can import checksum, to_slcan, to_socket
from hal.canscan import CanScan
from hal.scanbench import ScanBench

from hal.canplan import CanTable
from hal.canrows import Frame, Received, Signal
from tests.fuzz.image import Image, Row
from tests.fuzz.take import Take
from tests.hal.can_links import MS, table
from tests.hal.can_suite import BURST

TICK = 10 * MS
FRAMES_A_TICK = 20
STEPS = 200
BUSES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("bms", "pylontech_lv"), ("pcs", "generic_can_pcs")),
    (("bms", "victron_lv"),),
    (("bms", "sma_lv"),),
    (("bms", "foxbms_2"),),
)


def can(data: bytes) -> None:
    """struct can_frame."""
    Bus("can:memory", Take(data)).run()


def slcan(data: bytes) -> None:
    """Text lines."""
    Bus("slcan:memory", Take(data)).run()


@functools.cache
def _table(port: str, which: int) -> CanTable:
    return table(port, *BUSES[which])


@functools.cache
def _image(which: int) -> Image:
    received = [s for _, device in _table("can:memory", which).devices for f in device.frames for s in f.signals]
    gated = {s.name for s in received if s.permit}
    values: dict[str, list[Signal]] = {}
    for s in received:
        if not s.permit:
            values.setdefault(s.name, []).append(s)
    return Image(
        Row(
            name, min(s.lo for s in rows), max(s.hi for s in rows),
            (*(v for s in rows for _, v in s.map), *(s.offset for s in rows if s.length == 0), *((0.0,) if name in gated else ())),
            any(s.needed for s in rows),
        )
        for name, rows in values.items()
    )  # fmt: skip


class Bus:
    """One CAN bus in ticks of 10 ms."""

    def __init__(self, port: str, take: Take) -> None:
        self.take, self.socket = take, port.startswith("can:")
        self.which = take.below(len(BUSES))
        self.table, self.image = _table(port, self.which), _image(self.which)
        self.scan = CanScan(self.table)
        self.bench = ScanBench([self.scan], self._send)
        self.received: list[Received] = [f for _, device in self.table.devices for f in device.frames]
        self.sent = {t.id: (k, t) for k, (_, device) in enumerate(self.table.devices) for t in device.transmits}
        self.now, self.tick, self.frames = 1000 * MS, 0, 0
        self.counters = dict.fromkeys(range(len(self.received)), 0)
        self.seen: dict[str, tuple[int, int]] = {}
        self.taken, self.wrong = 1.0, ""
        self.bench.ask(gate=1)
        self.bench.open(0, self.now)

    def _send(self, bus: int, data: bytes, now: int) -> int:
        self.frames += 1
        if self.frames >= FRAMES_A_TICK:  # what is raised here, in the middle of a callback, would be lost
            self.wrong = "frames without end"
        return int(len(data) * self.taken)

    def say(self, frame: Frame) -> None:
        self.bench.bytes(0, to_socket(frame) if self.socket else to_slcan(frame), self.now)

    def known(self, k: int, payload: bytes, whole: bool) -> None:
        """A frame that somebody here listens to; `whole`: with the counter and the checksum it should have."""
        f = self.received[k]
        data = bytearray(payload.ljust(f.length, b"\0")[:8] if whole else payload[:8])
        if whole:
            for place, value in f.identity:
                if place.byte_order == "little":
                    for i in range(place.length):
                        bit = place.start + i
                        data[bit // 8] = data[bit // 8] & ~(1 << bit % 8) | (value >> i & 1) << bit % 8
            if f.counter and f.counter.length <= 8 and f.counter.start % 8 + f.counter.length <= 8:
                self.counters[k] += 1
                byte, shift, mask = f.counter.start // 8, f.counter.start % 8, (1 << f.counter.length) - 1
                if f.counter.byte_order == "little":
                    data[byte] = data[byte] & ~(mask << shift) | (self.counters[k] & mask) << shift
            if f.checksum:
                data[f.checksum.byte] = checksum(f.checksum.kind, bytes(data), f.checksum.byte, f.checksum.seed)
        self.say(Frame(f.id, bytes(data), ext=f.ext))

    def step(self) -> None:
        take = self.take
        kind = take.int() & 15
        if kind < 6:
            self.known(take.below(len(self.received)), take.bytes(take.below(9)), whole=kind < 4)
        elif kind in (6, 7):
            self.bench.bytes(0, take.bytes(16 if kind == 6 and self.socket else take.int()), self.now)
        elif kind in (8, 9):
            for _ in range(1 + (take.below(64) if kind == 9 else 0)):
                self.now += TICK
                self.tick += 1
                self.frames = 0
                self.bench.tick(self.tick, self.now, self.now)
                self.bench.outputs(self.tick, self.now)
        elif kind == 10:
            self.bench.open(0, self.now)
        elif kind == 11:
            for f in BURST:
                self.say(f)
        elif kind == 12:
            for k in range(len(self.received)):
                self.known(k, take.bytes(4) * 2, whole=True)
        elif kind == 13:
            self.bench.put("p_cmd_w", take.real())
            self.bench.ask(gate=take.below(2), op_request=take.below(3))
        elif kind == 14:
            self.say(Frame(take.int(2) & 0x7FF, take.bytes(take.below(9)), rtr=bool(take.below(2))))
        else:
            self.taken = (0.0, 0.5, 1.0, 1.0)[take.below(4)]

    def run(self) -> None:
        for _ in range(STEPS):
            if not self.take.more:
                break
            self.step()
            self.check()

    def check(self) -> None:
        assert not self.wrong, self.wrong
        self.image.check(self.bench, self.now, self.seen)
        for k in range(len(self.table.devices)):
            d: dict[str, Any] = self.bench.device(k)
            assert d["alive"] in (0, 1) and d["verified"] in (-1, 0, 1) and not (d["verified"] == 1 and not d["alive"]), d
