"""Which units answer on a Modbus line or server: the most likely speed and addresses first, one small read each, never longer than
a budget. A line on which somebody else asks is left alone.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from controller import build
from controller.site import Bus
from controller.tools import known
from controller.tools.known import Found
from hal import wire
from hal.wire import BlockingLine, NoAnswer, PortError, is_pty

# Most likely first: Modbus's own default, what meters ship with, then what converters and this project use.
SETTINGS = (
    (19200, "E"), (9600, "N"), (115200, "N"), (9600, "E"), (115200, "E"), (19200, "N"), (460800, "E"), (38400, "N"), (38400, "E"),
    (57600, "N"), (57600, "E"), (460800, "N"), (230400, "E"), (230400, "N"), (4800, "N"), (4800, "E"),
)  # fmt: skip
FIRST = (1, 2, 3, 10)  # units as delivered, and as people number them
SHELVES: tuple[int, ...] = ()  # Open Rack: the addresses go with the speed
NEXT = (*range(4, 33), 100, 126, 200, 240, 247)
TCP_FIRST = (1, 255, 0, 2, 3, 10, 100, 126, 247)
LISTEN_S = 1.2  # a master that polls once a second is heard
PATIENCE_S = 0.12  # beyond the wire: a slow meter's turnaround
SHELF_S = 0.05  # the same where many addresses are asked, most of them in vain
READ_S = 0.6  # for whole blocks, once a device is known to be there
RESERVE_S = 8.0  # of the budget, to find out what the devices are
ALL = range(1, 256)  # 248 to 255 are reserved, and used by power shelves
ASK = ((3, 0, 2), (4, 0, 2))  # (function, register, count): an exception is an answer too
MAX_FOUND = 32
TCP_S = 0.3  # a request, its answer, and a gateway's line behind it
MAX_SILENCES = 12
LATENCY_READS = 40
NOBODY = (4, 10, 11)  # exceptions by which servers and gateways say that there is no such unit


@dataclass
class Result:
    """What a bus showed. `bus`: with the speed at which it answered; `said`: what a person has to know."""

    bus: Bus
    found: list[Found] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


class Budget:
    """Seconds that are left of so many, for all buses together; none after stop()."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end_s = seconds, time.monotonic() + seconds

    def left(self) -> float:
        return self.end_s - time.monotonic()

    def stop(self) -> None:
        """Whoever asks ends after the question that is under way."""
        self.end_s = 0.0


# ---------------------------------------------------------------- a serial line


def line(bus: Bus, fd: int, settings: Iterable[tuple[int, str]], budget: Budget, units: range = ALL) -> Result:
    """Finds the line's speed, then its devices at addresses `units`. `fd`: the open, locked port."""
    pty, result = is_pty(fd), Result(bus)
    heard = _listen(fd, min(LISTEN_S, budget.left() / 2))
    if heard:
        result.said.append(
            f"{heard} bytes came without a question: another master talks here, or noise; nothing was sent (`ballast sniff {bus.port}`)"
        )
        return result
    tried: dict[str, None] = {}
    for likely in (FIRST, SHELVES, NEXT, tuple(units)):
        for baud, parity in settings:
            if budget.left() < 1.0:
                break
            try:
                wire.configure(bus.port, fd, baud, parity, 1)
            except PortError:  # an adapter that has not this rate
                continue
            tried[f"{baud} 8{parity}1"] = None
            now = replace(bus, baud=baud, parity=parity, stop_bits=1)
            here = likely or known.shelf_units(baud, parity)
            asker = _master(fd, now, pty, PATIENCE_S if likely else SHELF_S)
            first = _first_answer(asker, [u for u in here if u in units], budget)
            if first is not None:
                return _all(fd, now, pty, first, budget, result, units)
    remedy = "check A and B, the ground, the device's address, or give --baud and --parity"
    result.said.append(f"nobody answers at {', '.join(tried)}: {remedy}")
    return result


def _all(fd: int, bus: Bus, pty: bool, first: tuple[int, float], budget: Budget, result: Result, wanted: range) -> Result:
    """Every other address at the speed that is known now, then what they are."""
    result.bus = replace(bus, baud=460800, parity="E") if pty else bus
    if pty:
        result.said.append("a pseudo terminal has no speed: 460800 8E1 is assumed")
    units = [first]
    rest = dict.fromkeys(u for u in (*FIRST, *NEXT, *known.shelf_units(bus.baud, bus.parity), *wanted) if u != first[0] and u in wanted)
    reserve_s = min(RESERVE_S, budget.left() / 3)
    patient, quick = _master(fd, bus, pty, PATIENCE_S), _master(fd, bus, pty, min(PATIENCE_S, max(SHELF_S, 3 * first[1])))
    asked = 0
    for u in rest:
        if budget.left() < reserve_s or len(units) >= MAX_FOUND:
            break
        asked += 1
        took = _there(patient if u in FIRST + NEXT else quick, u, ASK[:1])
        if took is not None:
            units.append((u, took))
    if asked < len(rest):
        result.said.append(f"asked {asked + 1} of {len(rest) + 1} addresses in the time there was (--for)")
    reader = _master(fd, bus, pty, READ_S)
    for u, took in sorted(units):
        if budget.left() < 0:
            result.said.append(f"unit {u} answers; no time was left to find out what it is")
            continue
        result.found.append(_named(reader, u, took, bus.baud, budget))
    return result


def _listen(fd: int, seconds: float) -> int:
    """Bytes that come by themselves."""
    end, n = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0 and n < 4096:
        if select.select([fd], [], [], left)[0]:
            n += len(os.read(fd, 512))
    return n


def _master(fd: int, bus: Bus, pty: bool, patience_s: float) -> BlockingLine:
    """A master whose patience begins when request and a short answer are through."""
    bits = 9 + (bus.parity != "N") + bus.stop_bits
    wire_s = 0.0 if pty else 30 * bits / bus.baud
    return BlockingLine(fd, bus.baud, bits, untimed=pty, timeout_s=wire_s + patience_s)


def _first_answer(line: BlockingLine, units: Iterable[int], budget: Budget) -> tuple[int, float] | None:
    """(unit, seconds it took) of the first that answers. Both functions are tried at the likeliest: few meters have only one."""
    for i, u in enumerate(units):
        if budget.left() < 0.5:
            return None
        took = _there(line, u, ASK if i == 0 else ASK[:1])
        if took is not None:
            return u, took
    return None


def _there(line: BlockingLine, unit: int, asks: Iterable[tuple[int, int, int]], nobody: tuple[int, ...] = ()) -> float | None:
    """Seconds an answer took, exceptions but `nobody` included; None: silence."""
    for fc, addr, count in asks:
        t = time.monotonic()
        try:
            line(unit, fc, addr, count)
        except NoAnswer as e:
            if not e.exception or e.exception in nobody:
                continue
        return time.monotonic() - t
    return None


def _named(line: BlockingLine, unit: int, took: float, baud: int, budget: Budget) -> Found:
    """What it is, as far as the time goes."""

    def read(unit: int, fc: int, addr: int, count: int) -> list[int]:
        if budget.left() < 0:
            raise NoAnswer("no time is left", "timeout")
        return line(unit, fc, addr, count)

    found = known.identify(read, unit, baud)
    found.answer_ms = 1e3 * took
    return found


# ---------------------------------------------------------------- a server


def server(bus: Bus, budget: Budget, wanted: range = ALL) -> Result:
    """The units behind a Modbus TCP server. One that answers for every address is one device."""
    result = Result(bus)
    units: list[tuple[int, float]] = []
    dial = _Dial(bus)
    try:
        for u in dict.fromkeys(u for u in (*TCP_FIRST, *wanted) if u in wanted or u in (0, 255)):
            # Silence costs time, an exception does not: after the likely addresses only quick refusals are worth going on for.
            tired = dial.silences >= MAX_SILENCES and u not in TCP_FIRST
            if budget.left() < min(20.0, budget.seconds / 2) or tired or len(units) >= MAX_FOUND:
                break
            took = dial.there(u)
            if took is not None:
                units.append((u, took))
        if len(units) >= MAX_FOUND:
            result.said.append("it answers for every address: taken for one device")
            units = units[:1]
        empty: list[int] = []
        for u, took in units:
            if budget.left() < 1.0:
                result.said.append(f"unit {u} answers; no time was left to find out what it is")
                continue
            found = dial.named(u, took, budget)
            if not found.data:
                empty.append(u)
            elif u not in (0, 255) or not any(found.what == other.what for other in result.found):
                result.found.append(found)  # 0 and 255 are often other addresses of the same device
        if empty:
            result.said.append(
                f"exceptions alone from unit {', '.join(map(str, empty))}: nobody, or a device whose registers stand elsewhere"
            )
        if result.found:
            result.bus = replace(bus, latency_ms=dial.latency_ms(result.found[0].unit))
    finally:
        dial.close()
    if not result.found and not result.said:
        result.said.append("connects, and nobody answers: check the unit's address")
    return result


class _Dial:
    """A connection that is made again when it is of no more use. Raises PortError where the server is not there."""

    def __init__(self, bus: Bus) -> None:
        self.bus, self.silences = bus, 0
        self.fd = build.open_port(bus, bus.port)
        self.line = BlockingLine(self.fd, tcp=True, timeout_s=TCP_S)

    def _again(self) -> None:
        if self.line.master.broken:
            self.close()
            self.fd = build.open_port(self.bus, self.bus.port)
            self.line = BlockingLine(self.fd, tcp=True, timeout_s=TCP_S)

    def there(self, unit: int) -> float | None:
        self._again()
        t = time.monotonic()
        took = _there(self.line, unit, ASK, NOBODY)
        if took is None and time.monotonic() - t > TCP_S:
            self.silences += 1
        return took

    def named(self, unit: int, took: float, budget: Budget) -> Found:
        self._again()
        self.line.timeout_ns = round(READ_S * 1e9)
        return _named(self.line, unit, took, 0, budget)

    def latency_ms(self, unit: int) -> float:
        """What nine of ten answers keep, of so many one after the other; the device's own time included."""
        took = sorted(t for _ in range(LATENCY_READS) if (t := _there(self.line, unit, ASK[:1])) is not None)
        return max(0.05, round(1e3 * took[len(took) * 9 // 10], 2)) if took else self.bus.latency_ms

    def close(self) -> None:
        if self.fd >= 0:
            build.close_port(self.fd)
        self.fd = -1
