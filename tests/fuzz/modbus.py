"""Modbus answers, RTU and MBAP, into the image: the built-in site's buses, driven by hand in virtual time by what the bytes say.

Slaves answer rightly; what reaches the master is their answers, spoiled, cut, late, repeated or forged, with a right checksum or
header where the bytes want one. After every step: no value in Inputs outside its row's range, no good group without what it needs,
no group younger than the clock, no command to a device that is not proven.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

from _core.image import SIGNALS
from hal.scan import BusScan
from hal.scanbench import ScanBench

from hal.plan import BusSpec, DeviceSpec, Plan, plan_site
from hal.profile import load_profile
from hal.rows import RATES, Field
from hal.sunspec import compile_device, scan
from tests.fuzz.image import Image, Row
from tests.fuzz.take import Take
from tests.hal import sunspec_image
from tests.hal.world import MS, Slave, crc

TICK = 10 * MS
CHAR_NS = 24_000  # 460800 8E1
FRAMES_A_TICK = 40  # one request at a time, each with its answer: more in a tick is a loop
STEPS = 64
HONEST_TICKS = 128  # of one input; after 20 of them everything is proven


def rtu(data: bytes) -> None:
    """RTU frames."""
    Site(_plan(False), Take(data), tcp=False).run()


def tcp(data: bytes) -> None:
    """MBAP frames."""
    Site(_plan(True), Take(data), tcp=True).run()


@functools.cache
def _plan(tcp: bool) -> Plan:
    def reader(image: dict[int, int]) -> Any:
        def transact(unit: int, fc: int, addr: int, count: int) -> list[int]:
            if any(addr + i not in image for i in range(count)):
                raise OSError("exception 2")
            return [image[addr + i] for i in range(count)]

        return transact

    bms, pcs = sunspec_image.battery()[0], sunspec_image.pcs()[0]
    ports = ("tcp://192.0.2.7", "tcp://192.0.2.8") if tcp else ("", "")
    return plan_site(
        [BusSpec("a", ports[0], 460800), BusSpec("b", ports[1], 460800)],
        [
            DeviceSpec("meter", "meter", "a", 1, load_profile("ballast_virtual_meter")),
            DeviceSpec("bms", "bms", "a", 2, compile_device(scan(reader(bms), 2), "bms", connect=True)),
            DeviceSpec("pcs", "pcs", "b", 1, compile_device(scan(reader(pcs), 1), "pcs")),
        ],
    )


@functools.cache
def _image(tcp: bool) -> Image:
    """What the plan's rows say about the values in Inputs."""
    fields: dict[str, tuple[Field, int]] = {}
    best: dict[int, int] = {}
    for t in (t for table in _plan(tcp).tables for t in table.txns):
        for f in t.fields:
            group, rate = SIGNALS[f.signal][1], RATES.index(t.rate)
            fields[f.signal] = f, rate
            best[group] = min(best.get(group, rate), rate)
    return Image(
        # what is read more slowly than its group is stamped is not needed for it to be good
        Row(s, f.lo, f.hi, tuple(v for _, v in f.map), f.needed and rate == best[SIGNALS[s][1]])
        for s, (f, rate) in fields.items()
    )  # fmt: skip


class Site:
    """Two buses, their slaves, and what has been said on them."""

    def __init__(self, plan: Plan, take: Take, tcp: bool) -> None:
        self.take, self.tcp, self.image = take, tcp, _image(tcp)
        meter = Slave(1, {})
        meter.f32(0, 400e3, 12e3, 231.0, 232.0, 233.0, 50.01)
        self.slaves = [[meter, Slave(2, dict(sunspec_image.battery()[0]))], [Slave(1, dict(sunspec_image.pcs()[0]))]]
        self.bench = ScanBench([BusScan(t) for t in plan.tables], self._send)
        self.now = self.tick = self.frames = 0
        self.left, self.wrong = HONEST_TICKS, ""
        self.taken = [1.0, 1.0]
        self.last: list[bytes | None] = [None, None]  # request not yet answered
        self.said = [b"", b""]
        self.kept = [b"", b""]
        self.seen: dict[str, tuple[int, int]] = {}
        self.bench.put("rvrt_s", 5.0)
        self.bench.put("enable", 1.0)
        for k in (0, 1):
            self.bench.open(k, 0)

    def _send(self, bus: int, frame: bytes, now: int) -> int:
        self.frames += 1
        body = frame[6:] if self.tcp else frame
        # what is raised here, in the middle of a callback, would be lost
        if self.frames >= FRAMES_A_TICK:
            self.wrong = "requests without end"
        if bus == 1 and body[1] in (6, 16) and self.bench.device(2)["verified"] != 1:
            self.wrong = "written to a device that is not proven"
        self.last[bus] = frame
        return int(len(frame) * self.taken[bus])

    # ---------------------------------------------------------------- what is said

    def right(self, bus: int) -> bytes:
        """The answer to the last request, b"" where there is none."""
        frame, self.last[bus] = self.last[bus], None
        if frame is None:
            return b""
        body = frame[6:] + crc(frame[6:]) if self.tcp else frame
        for slave in self.slaves[bus]:
            answer = slave.answer(body, self.now)
            if answer is not None:
                return frame[:4] + struct.pack(">H", len(answer) - 2) + answer[:-2] if self.tcp else answer
        return b""

    def sealed(self, bus: int, body: bytes) -> bytes:
        """Unit and PDU with a right checksum, or a right header that names the last request."""
        frame = self.last[bus]
        return (frame[:2] if frame else b"\0\0") + struct.pack(">HH", 0, len(body)) + body if self.tcp else body + crc(body)

    def say(self, bus: int, data: bytes) -> None:
        if data:
            self.said[bus] = data
            self.bench.bytes(bus, data, self.now)

    def wait(self) -> None:
        """To the next instant at which a bus wants to be told the time."""
        due = self.bench.next_ns
        if due < self.now + 10 * TICK:
            self.now = max(self.now, due)
            self.bench.time(self.now)

    def next_tick(self) -> None:
        self.frames = 0
        self.now = max(self.now, self.tick * TICK)
        self.tick += 1
        self.bench.tick(self.tick, self.now, self.now)

    def outputs(self) -> None:
        self.bench.outputs(self.tick, self.now)

    def honest(self, ticks: int, spoiled: bool = False) -> None:
        """Ticks in which every request is answered in time, rightly or as the bytes have it."""
        ticks = min(ticks, self.left)
        self.left -= ticks
        for _ in range(ticks):
            self.next_tick()
            self._answer(spoiled)
            self.outputs()
            self._answer(spoiled)

    def _answer(self, spoiled: bool) -> None:
        """Answers in their time, until the buses wait for the kernel or for the next tick."""
        for _ in range(2 * FRAMES_A_TICK):
            asked = [k for k in (0, 1) if self.last[k] is not None]
            if not asked and self.bench.next_ns > self.tick * TICK:
                return
            if not asked:
                self.wait()
            for k in asked:
                size = len(self.last[k] or b"")
                answer = self.right(k)
                self.now += 0 if self.tcp else (size + len(answer)) * CHAR_NS
                self.say(k, self.spoiled(answer, True) if spoiled and self.take.more else answer)

    def spoiled(self, answer: bytes, sealed: bool) -> bytes:
        """Up to three bytes changed; `sealed`: under a right checksum."""
        out, tail = bytearray(answer), 0 if self.tcp else 2
        for _ in range(self.take.below(4)):
            at, bits = self.take.int(), self.take.int()
            if len(out) > tail:
                out[at % (len(out) - tail)] ^= bits
        return bytes(out[:-2]) + crc(bytes(out[:-2])) if sealed and out and not self.tcp else bytes(out)

    def in_time(self, bus: int) -> bytes:
        """The right answer, at the instant at which its last byte can be there."""
        size = len(self.last[bus] or b"")
        answer = self.right(bus)
        self.now += 0 if self.tcp else (size + len(answer)) * CHAR_NS
        return answer

    # ---------------------------------------------------------------- the bytes' own will

    def step(self) -> None:
        take = self.take
        op = take.int()
        bus, kind = op & 1, op >> 1 & 15
        if kind == 0:
            self.say(bus, take.bytes(take.int()) * (1 + take.below(4)))
        elif kind in (1, 2):
            self.say(bus, self.spoiled(self.in_time(bus) if op < 128 else self.right(bus), sealed=kind == 1))
        elif kind == 3:
            self.say(bus, self.sealed(bus, take.bytes(take.int())))
        elif kind == 4:
            self.say(bus, self.in_time(bus)[: take.int()])
        elif kind == 5:
            self.wait()
        elif kind == 6:
            self.next_tick()
        elif kind == 7:
            self.outputs()
        elif kind == 8:
            self.bench.open(bus, self.now)
            self.last[bus] = None
        elif kind == 9:
            self.bench.bytes(bus, self.said[bus] * (1 + take.below(8)), self.now)
        elif kind == 10:
            self.kept[bus] = self.right(bus)
        elif kind == 11:
            self.say(bus, self.kept[bus])
        elif kind == 12:
            self.bench.put("p_cmd_w", take.real())
            self.bench.ask(gate=take.below(2), op_request=take.below(3), reset=take.below(3))
        elif kind == 13:
            self.honest(1 + take.below(64), spoiled=op >= 128)
        elif kind == 14:
            self.now += take.int() * MS // 8
        else:
            self.taken[bus] = (0.0, 0.5, 1.0, 1.0)[take.below(4)]

    def run(self) -> None:
        for _ in range(STEPS):
            if not self.take.more:
                break
            self.step()
            self.check()

    def check(self) -> None:
        assert not self.wrong, self.wrong
        self.image.check(self.bench, self.now, self.seen)
        for k in range(3):
            d = self.bench.device(k)
            assert d["alive"] in (0, 1) and d["verified"] in (-1, 0, 1) and (d["alive"] or d["verified"] <= 0), d
