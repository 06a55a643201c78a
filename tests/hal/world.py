"""A site in virtual time: BusScans, baud-true wires, small slaves. The slaves share no code with hal: frames are built
by hand."""

from __future__ import annotations

import functools
import heapq
import itertools
import struct
from collections.abc import Callable
from typing import Any

from hal.scan import BusScan
from hal.scanbench import ScanBench

from hal.plan import Plan

MS = 1_000_000


@functools.lru_cache(10_000)  # the same frames come again and again
def crc(data: bytes) -> bytes:
    c = 0xFFFF
    for byte in data:
        c ^= byte
        for _ in range(8):
            c = (c >> 1) ^ 0xA001 if c & 1 else c >> 1
    return struct.pack("<H", c)


class Slave:
    """Registers behind a unit id. `before` may change or drop an answer: before(frame, answer) -> (answer or None,
    extra delay ns)."""

    def __init__(self, unit: int, registers: dict[int, int], turnaround_ns: int = 0) -> None:
        self.unit, self.registers, self.turnaround_ns = unit, registers, turnaround_ns
        self.dead = False
        self.fc23 = True
        self.free_at = 0  # a slave answers in order: never before its last answer is out
        self.before: Callable[[bytes, bytes], tuple[bytes | None, int]] = lambda frame, answer: (answer, 0)
        self.writes: list[tuple[int, int, list[int]]] = []  # (time, addr, words)
        self.reads: list[tuple[int, int, int, int]] = []  # (time, fc, addr, count)
        self.at: Callable[[int], None] = lambda now: None  # called at the sampling instant

    def f32(self, addr: int, *values: float) -> None:
        for i, v in enumerate(values):
            self.registers[addr + 2 * i], self.registers[addr + 2 * i + 1] = struct.unpack(">HH", struct.pack(">f", v))

    def answer(self, frame: bytes, now: int) -> bytes | None:
        if self.dead or frame[0] != self.unit or crc(frame[:-2]) != frame[-2:]:
            return None
        fc, addr, n = frame[1], *struct.unpack(">HH", frame[2:6])
        self.at(now)
        if fc in (3, 4):
            self.reads.append((now, fc, addr, n))
            if not all(addr + i in self.registers for i in range(n)):
                return self._close(bytes([self.unit, fc | 0x80, 2]))
            body = struct.pack(f">{n}H", *(self.registers[addr + i] for i in range(n)))
            return self._close(bytes([self.unit, fc, 2 * n]) + body)
        if fc == 23:
            if not self.fc23:
                return self._close(bytes([self.unit, 0x97, 1]))
            at, count = struct.unpack(">HH", frame[6:10])
            self._written(now, at, list(struct.unpack(f">{count}H", frame[11 : 11 + 2 * count])))
            self.reads.append((now, fc, addr, n))
            body = struct.pack(f">{n}H", *(self.registers[addr + i] for i in range(n)))
            return self._close(bytes([self.unit, fc, 2 * n]) + body)
        words = [n] if fc == 6 else list(struct.unpack(f">{n}H", frame[7 : 7 + 2 * n]))
        self._written(now, addr, words)
        return self._close(frame[:6])

    def _written(self, now: int, addr: int, words: list[int]) -> None:
        self.writes.append((now, addr, words))
        for i, w in enumerate(words):
            self.registers[addr + i] = w

    def _close(self, body: bytes) -> bytes:
        return body + crc(body)


class World:
    """Ticks of 10 ms; a stand-in for the engine: steps when the last fast answer is in, or at the plan's deadline."""

    def __init__(self, plan: Plan, slaves: list[list[Slave]]) -> None:
        self.plan, self.slaves = plan, slaves
        self.ports = [BusScan(t) for t in plan.tables]
        self.bench = ScanBench(self.ports, self._send)
        self.now = 0
        self.tick = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.sent: list[tuple[int, int, bytes]] = []  # (bus, time, frame)
        self.steps: list[int] = []
        self.busy_until = [0] * len(plan.tables)
        self.collisions = 0
        self.take = 1.0  # share of a frame that the port takes

    def after(self, when: int, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), do))

    def _char(self, bus: int) -> float:
        return self.plan.tables[bus].spec.line.char_ms * 1e6

    def _send(self, bus: int, frame: bytes, now: int) -> int:
        if self.take < 1.0:
            return int(len(frame) * self.take)
        self.sent.append((bus, now, frame))
        if now < self.busy_until[bus]:
            self.collisions += 1
        end = now + round(len(frame) * self._char(bus) + self.plan.tables[bus].spec.line.lead_ms * 1e6)
        self.busy_until[bus] = end
        self.after(end + round(self.plan.tables[bus].spec.line.t35_ms * 1e6), lambda: self._detect(bus, frame))
        return len(frame)

    def _detect(self, bus: int, frame: bytes) -> None:
        for slave in self.slaves[bus]:
            good = slave.answer(frame, self.now)
            if good is None:
                continue
            answer, delay = slave.before(frame, good)
            if answer is not None:
                slave.free_at = self.say(bus, answer, max(slave.free_at, self.now + slave.turnaround_ns + delay))

    def say(self, bus: int, data: bytes, start: int) -> int:
        """Bytes on the wire from `start` on; the master reads them when the last is in. Returns that instant."""
        end = start + round(len(data) * self._char(bus))
        self.busy_until[bus] = max(self.busy_until[bus], end)
        self.after(end, lambda: self.bench.bytes(bus, data, self.now))
        return end

    def run(self, ticks: int, kernel: Callable[[World], None] = lambda w: None) -> None:
        for _ in range(ticks):
            start = self.tick * 10 * MS
            stop = start + 10 * MS
            self.now = start
            self.tick += 1
            self.bench.tick(self.tick, start, start)
            stepped = self._step(False, kernel)
            while True:
                due = min(self.bench.next_ns, self.events[0][0] if self.events else stop)
                if not stepped:
                    due = min(due, start + self.plan.step_by_ns)
                if due >= stop:
                    break
                self.now = max(self.now, due)
                while self.events and self.events[0][0] <= self.now:
                    heapq.heappop(self.events)[2]()
                    stepped = self._step(stepped, kernel)
                self.bench.time(self.now)
                stepped = self._step(stepped, kernel, self.now >= start + self.plan.step_by_ns)

    def _step(self, stepped: bool, kernel: Callable[[World], None], late: bool = False) -> bool:
        if stepped or (self.bench.pending > 0 and not late):
            return stepped
        kernel(self)
        self.steps.append(self.now)
        self.bench.outputs(self.tick, self.now)
        return True


def frames(world: World, bus: int, **want: Any) -> list[tuple[int, bytes]]:
    """(time after its tick in ns, frame) of frames sent on a bus with the given unit/fc/addr."""
    out = []
    for b, t, f in world.sent:
        have = {"unit": f[0], "fc": f[1], "addr": struct.unpack(">H", f[2:4])[0]}
        if b == bus and all(have[k] == v for k, v in want.items()):
            out.append((t % (10 * MS), f))
    return out
