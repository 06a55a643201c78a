"""What can go wrong on a wire, and what then stands in the image: one table for RTU, TCP, CAN and slcan, in virtual time.

The devices tell the truth, and a new one each time: their value is the instant at which it was sampled. Whatever the wire makes of their
frames, no value may appear that was never said, none may be older than its group's stamp claims, and nothing may be commanded to who is not
proven. While the fault lasts the table says what of a device is left; afterwards everything is back by itself.

Not in the table, because no wire of this kind can tell: docs/safety.md, "What a wire cannot know".
"""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hal.can import checksum, to_slcan, to_socket
from hal.modbus import PyRtuMaster

from hal.canrows import Frame
from hal.plan import BusSpec, DeviceSpec, Plan, plan_site
from hal.profile import load_profile
from hal.sunspec import compile_device, scan
from tests.hal import sunspec_image
from tests.hal.can_links import MS, MemorySlcan, MemorySocket
from tests.hal.can_suite import BURST, PCS, status
from tests.hal.world import Slave, World, crc

Pieces = list[tuple[int, bytes]]  # (ns later than it should be, bytes)
STEP_NS = 10_000  # what a value of the meter counts
OLD_NS = 3 * MS  # alignment error that the kernel follows at full bandwidth
POWER_W = 100.0  # steps of the converter's power on CAN
BEHIND_NS = 31 * MS  # on CAN nobody asks: a frame that the wire keeps for 20 ms cannot be told from a new one
COUNTERS = ("crc_errors", "short_frames", "long_frames", "timeouts", "late", "wrong_unit", "unsent", "exceptions", "echoes")
GOOD = 1


# ---------------------------------------------------------------- Modbus

class Modbus(World):
    """Meter and BMS on bus 0, PCS on bus 1; every answer goes through `fault`."""

    def __init__(self, tcp: bool) -> None:
        self.tcp = tcp
        self.fault: Callable[[random.Random, bytes], Pieces] = lambda rng, data: [(0, data)]
        self.each: Callable[[Any], None] = lambda wire: None  # before every tick
        self.rng = random.Random(1)
        self.down = self.stranger = False
        bms, pcs = sunspec_image.battery()[0], sunspec_image.pcs()[0]
        self.meter = Slave(1, {})
        self.meter.at = lambda now: self.meter.f32(0, float(now // STEP_NS), 12e3, 231.0, 232.0, 233.0, 50.01)
        super().__init__(_plan(tcp), [[self.meter, Slave(2, bms)], [Slave(1, pcs)]])
        self.meter.at(0)
        self.bench.ask(gate=1)
        self.bench.put("p_cmd_w", 12345.6)
        self.bench.put("enable", 1.0)
        self.run(100)
        self.soc = self.bench.get("soc")
        assert self.well() and self.age_ms() < 20.0 and 0.0 < self.soc < 1.0

    def _char(self, bus: int) -> float:
        return 0.0 if self.tcp else super()._char(bus)

    def _send(self, bus: int, frame: bytes, now: int) -> int:
        body = frame[6:] if self.tcp else frame
        if bus == 1 and body[1] == 16 and self.bench.device(2)["verified"] != 1:
            self.stranger = True  # what is raised in a callback would be lost
        if self.down and bus == 0:
            return -1
        if not self.tcp:
            return super()._send(bus, frame, now)
        self.sent.append((bus, now, frame))
        self.after(now + MS // 2, lambda: self._detect(bus, frame))
        return len(frame)

    def _detect(self, bus: int, frame: bytes) -> None:
        body = frame[6:] + crc(frame[6:]) if self.tcp else frame
        for slave in self.slaves[bus]:
            good = slave.answer(body, self.now)
            if good is None:
                continue
            if self.tcp:
                good = frame[:4] + struct.pack(">H", len(good) - 2) + good[:-2]
            for late, data in self.fault(self.rng, good) if bus == 0 else [(0, good)]:
                slave.free_at = self.say(bus, data, max(slave.free_at, self.now + late + (MS // 2 if self.tcp else 0)))

    def tell(self, ticks: int) -> None:
        """So many ticks; the image stays true in each, and a TCP connection that is of no more use is replaced."""
        for _ in range(ticks):
            self.each(self)
            self.run(1)
            if self.tcp and self.bench.lost(0) and not self.down:
                self.bench.open(0, self.now)
            self.true()

    def true(self) -> None:
        assert not self.stranger, "written to a device that is not proven"
        t_ns, rx_ns, _, quality = self.bench.group("meter")
        value = self.bench.get("grid_p_w")
        if quality == GOOD and not math.isnan(value):
            assert abs(value * STEP_NS - t_ns) < OLD_NS and t_ns <= rx_ns <= self.now, "not what the meter said at that instant"
            assert self.bench.get("q_var") == 12e3 and self.bench.get("f_hz") == pytest.approx(50.01)
        assert self.bench.get("soc") == self.soc or math.isnan(self.bench.get("soc"))

    def age_ms(self) -> float:
        return (self.now - self.bench.group("meter")[1]) / MS

    def well(self) -> bool:
        return [self.bench.device(k)["verified"] for k in range(3)] == [1, 1, 1]

    def counted(self) -> int:
        b = self.bench.bus(0)
        return sum(b[k] for k in COUNTERS)

    def noise(self, data: bytes) -> None:
        """Bytes that nobody was asked for."""
        self.bench.bytes(0, data, self.now)

    def adapter(self, there: bool) -> None:
        self.down = not there
        if there:
            self.bench.open(0, self.now)


def _plan(tcp: bool) -> Plan:
    def reader(image: dict[int, int]) -> Any:
        return lambda unit, fc, addr, count: [image[addr + i] for i in range(count)]

    class Image(dict[int, int]):
        def __missing__(self, key: int) -> int:
            raise OSError("exception 2")

    ports = ("tcp://192.0.2.7", "tcp://192.0.2.8") if tcp else ("", "")
    bms, pcs = Image(sunspec_image.battery()[0]), Image(sunspec_image.pcs()[0])
    return plan_site(
        [BusSpec("a", ports[0], 460800), BusSpec("b", ports[1], 460800)],
        [
            DeviceSpec("meter", "meter", "a", 1, load_profile("ballast_virtual_meter")),
            DeviceSpec("bms", "bms", "a", 2, compile_device(scan(reader(bms), 2), "bms", connect=True)),
            DeviceSpec("pcs", "pcs", "b", 1, compile_device(scan(reader(pcs), 1), "pcs")),
        ],
    )


# ---------------------------------------------------------------- CAN

class Can:
    """A converter that says its power every 10 ms, with counter and CRC8; its power is the number of the tick."""

    def __init__(self, socket: bool) -> None:
        self.link = (MemorySocket if socket else MemorySlcan)(("pcs", "generic_can_pcs"))
        self.bench, self.socket = self.link.bench, socket
        self.fault: Callable[[random.Random, bytes], Pieces] = lambda rng, data: [(0, data)]
        self.each: Callable[[Any], None] = lambda wire: None  # before every tick
        self.rng = random.Random(1)
        self.silent = self.down = False
        self.count, self.said, self.later = 0, dict[float, int](), list[tuple[int, bytes]]()
        self.link.bench.put("p_cmd_w", 0.0)
        self.tell(30)
        assert self.well() and self.age_ms() < 20.0

    def _frame(self) -> bytes:
        """The next feedback as it stands on the wire; from 8,000 on its power begins anew."""
        self.count += 1
        power = POWER_W * (self.count % 320)
        self.said[-power] = self.link.now + 10 * MS
        return self.wire(feedback_of(self.count, power))

    def wire(self, frame: Frame) -> bytes:
        return to_socket(frame) if self.socket else to_slcan(frame)

    def tell(self, ticks: int) -> None:
        for _ in range(ticks):
            self.each(self)
            data = self._frame()
            extra = self.wire(status(self.count)) if self.count % 50 == 1 else b""
            self.link.step()
            now = self.link.now
            if not self.down and not self.silent:
                self.later += [(now + late, piece) for late, piece in self.fault(self.rng, data)] + ([(now, extra)] if extra else [])
            due, self.later = [p for t, p in self.later if t <= now], [(t, p) for t, p in self.later if t > now]
            for piece in due:
                self.bench.bytes(0, piece, now)
            self.true()

    def true(self) -> None:
        t_ns, rx_ns, _, quality = self.bench.group("pcs")
        if quality == GOOD:
            x = self.bench.get("batt_p_w")
            assert x in self.said and t_ns <= rx_ns <= self.link.now, f"{x} W was never said"
            assert rx_ns - self.said[x] <= BEHIND_NS, "from before"

    def age_ms(self) -> float:
        return (self.link.now - self.bench.group("pcs")[1]) / MS

    def well(self) -> bool:
        return self.bench.device(0)["verified"] == 1 and self.bench.group("pcs")[3] == GOOD

    def counted(self) -> int:
        b, e = self.bench.bus(0), self.link.scan.errors
        return sum(b[k] for k in COUNTERS) + e["gaps"]

    def noise(self, data: bytes) -> None:
        self.bench.bytes(0, data, self.link.now)

    def adapter(self, there: bool) -> None:
        self.down = not there
        if there:
            self.bench.open(0, self.link.now)


def feedback_of(count: int, power: float) -> Frame:
    values = {"ActivePower": power, "ReactivePower": 0.0, "State": 3, "Local": 0, "Counter": count % 16, "Checksum": 0}
    data = bytearray(PCS.encode_message("PcsFeedback", values))
    data[7] = checksum("crc8_j1850", bytes(data), 7)
    return Frame(0x180, bytes(data))


# ---------------------------------------------------------------- the faults

RTU, TCP, CAN, SLCAN = "rtu", "tcp", "can", "slcan"
ALL = (RTU, TCP, CAN, SLCAN)


def make(kind: str) -> Any:
    return Modbus(kind == TCP) if kind in (RTU, TCP) else Can(kind == CAN)


Spoil = Callable[[random.Random, bytes], Pieces]


def flips(rate: float) -> Callable[[str], Spoil]:
    """Each bit turns over with this chance. TCP: of the header alone (below it are Ethernet's and TCP's own checksums). CAN: the controller
    throws the frame away, and an error frame says so."""

    def of(kind: str) -> Spoil:
        def spoil(rng: random.Random, data: bytes) -> Pieces:
            out = bytearray(data)
            for i in range(8 * (9 if kind == TCP else len(out))):
                if rng.random() < rate:
                    out[i // 8] ^= 1 << i % 8
            if kind == CAN and out != data:
                return [(0, struct.pack("<IB3x8s", 0x20000088, 8, b""))]
            return [(0, bytes(out))]

        return spoil

    return of


def half_of_them(spoil: Callable[[str, random.Random, bytes], Pieces]) -> Callable[[str], Spoil]:
    """Every other frame, by chance."""
    return lambda kind: lambda rng, data: spoil(kind, rng, data) if rng.random() < 0.5 else [(0, data)]


def merged(kind: str, rng: random.Random, data: bytes) -> Pieces:
    if kind == SLCAN:
        return [(0, data[:-1])]  # its CR is lost: the next line is part of it
    return [(0, rng.randbytes(rng.randrange(4)) * (kind == RTU) + data + data[: rng.randrange(1, len(data))])]


def foreign(kind: str, rng: random.Random, data: bytes) -> Pieces:
    """Somebody else's frame, whole and right, before ours."""
    if kind == RTU:
        body = bytes([rng.randrange(3, 248), data[1]]) + data[2:-2]
        other = body + crc(body)
    elif kind == TCP:
        other = bytes([data[0] ^ 0x55]) + data[1:]
    else:
        frame = Frame(rng.choice([0x182, 0x200, 0x7FF]), rng.randbytes(8))
        other = Can.wire(_Kind(kind), frame)  # type: ignore[arg-type]
    return [(0, other), (0, data)]


@dataclass
class _Kind:
    kind: str

    @property
    def socket(self) -> bool:
        return self.kind == CAN


def replayed() -> Callable[[str], Spoil]:
    """Each frame is followed by one that had been recorded before."""

    def of(kind: str) -> Spoil:
        tape: list[bytes] = []

        def spoil(rng: random.Random, data: bytes) -> Pieces:
            tape.append(data)
            return [(0, data), (0, rng.choice(tape[-7:]))]

        return spoil

    return of


def babble(wire: Any) -> None:
    """A node that does not stop. On CAN it has the lowest identifier, so that nobody else gets through."""
    if isinstance(wire, Can):
        wire.silent = True
        for _ in range(40):
            wire.noise(wire.wire(Frame(0, wire.rng.randbytes(8))) if wire.socket else wire.rng.randbytes(25))
    else:
        wire.noise(wire.rng.randbytes(250))


def second_master(wire: Any) -> None:
    """RTU: somebody else's question to our meter, and its answer. TCP: somebody else has the gateway. CAN: another node with our
    converter's identifier, and a counter of its own."""
    if isinstance(wire, Can):
        n = wire.count + 11
        wire.said[-POWER_W * 7] = wire.link.now
        wire.noise(wire.wire(feedback_of(n, POWER_W * 7)))
    elif not wire.tcp and wire.rng.random() < 0.5:
        question = bytes([1, 4, 0, 0, 0, 5])
        answer = bytes([1, 4, 10]) + wire.rng.randbytes(10)
        wire.noise(question + crc(question) + answer + crc(answer))


def busy(kind: str, rng: random.Random, data: bytes) -> Pieces:
    """Exception 6 of a gateway that is serving somebody else."""
    body = bytes([data[6], data[7] | 0x80, 6]) if kind == TCP else b""
    return [(0, data[:4] + struct.pack(">H", 3) + body)] if body else [(0, data)]


def bus_off(wire: Any) -> None:
    if not wire.silent:
        wire.noise(struct.pack("<IB3x8s", 0x20000040, 8, b""))
    wire.silent = True


@dataclass(frozen=True)
class Fault:
    """One row. `left`: what a device is while it lasts: "well" (its answers go on), "some" (some of them), "lost"."""

    name: str
    wires: tuple[str, ...]
    left: str
    spoil: Callable[[str], Spoil] | None = None
    each: Callable[[Any], None] | None = None
    counted: bool = True


NOTHING = lambda kind: lambda rng, data: []  # noqa: E731
FAULTS = (
    Fault("bits flip, 1e-6", ALL, "well", flips(1e-6), counted=False),
    Fault("bits flip, 1e-5", ALL, "well", flips(1e-5), counted=False),
    Fault("bits flip, 1e-4", ALL, "some", flips(1e-4)),
    Fault("bits flip, 1e-3", ALL, "some", flips(1e-3)),
    Fault("truncated", ALL, "some", half_of_them(lambda kind, rng, data: [(0, data[: rng.randrange(1, len(data))])])),
    Fault("merged", ALL, "some", half_of_them(merged)),
    Fault("duplicated", ALL, "some", half_of_them(lambda kind, rng, data: [(0, data), (0, data)])),
    Fault("late", ALL, "some", half_of_them(lambda kind, rng, data: [(rng.choice([1, 5, 12, 20]) * MS, data)])),
    Fault("foreign", ALL, "some", half_of_them(foreign)),
    Fault("replayed", ALL, "some", replayed()),
    Fault("a babbling node", ALL, "lost", lambda kind: lambda rng, data: [(0, rng.randbytes(250))], babble),
    Fault("silence", ALL, "lost", NOTHING),
    Fault("bus-off", (CAN,), "lost", None, bus_off),
    Fault("the adapter is gone", ALL, "lost", None, lambda wire: wire.adapter(False), counted=False),
    Fault("two masters", ALL, "some", half_of_them(busy), second_master),
)
ROWS = [(f, kind) for f in FAULTS for kind in f.wires]
LASTS, RETURNS = 400, 700  # ticks; a device that was lost is asked again after 5 s at the latest


@pytest.mark.parametrize(("fault", "kind"), ROWS, ids=[f"{f.name}-{kind}" for f, kind in ROWS])
def test_what_a_wire_does_never_makes_a_value_that_was_not_said(fault: Fault, kind: str) -> None:
    wire = make(kind)
    before, count = wire.counted(), wire.bench.group("pcs" if isinstance(wire, Can) else "meter")[2]
    quiet, still = wire.fault, wire.each
    if fault.spoil:
        wire.fault = fault.spoil(kind)
    if fault.each:
        wire.each = fault.each
    wire.tell(LASTS)
    taken = wire.bench.group("pcs" if isinstance(wire, Can) else "meter")[2] - count
    if fault.left == "well":
        assert taken > 0.9 * LASTS
    elif fault.left == "some":
        assert 0 < taken <= LASTS
    else:
        assert taken <= 3 and wire.age_ms() > 1000 * 0.9 * LASTS / 100 and not wire.well()
    assert wire.counted() > before or not fault.counted, "nobody would know"
    wire.fault, wire.each = quiet, still
    if isinstance(wire, Can) and wire.silent:
        wire.silent = False
        wire.noise(struct.pack("<IB3x8s", 0x20000100, 8, b"") if kind == CAN else b"\r")
    if wire.down:
        wire.adapter(True)
    wire.tell(RETURNS)
    assert wire.well() and wire.age_ms() < 20.0, "it is not back"
    count = wire.bench.group("pcs" if isinstance(wire, Can) else "meter")[2]
    wire.tell(100)
    assert wire.bench.group("pcs" if isinstance(wire, Can) else "meter")[2] - count >= 98


# ---------------------------------------------------------------- how much a checksum is worth

WORDS = tuple(struct.unpack(">12H", struct.pack(">6f", 400e3, 12e3, 231.0, 232.0, 233.0, 50.01)))
ANSWER = bytes([1, 4, 24]) + struct.pack(">12H", *WORDS)
ANSWER += crc(ANSWER)


def believed(data: bytes) -> bool:
    """Would a master take these bytes for the answer to its question, though they are not?"""
    m = PyRtuMaster(115200, untimed=True)
    m.request(1, 4, 0, 12)
    m.sent(0)
    return bool(m.feed(data, 0) in ("ok", "exception")) and data != ANSWER


def flipped(bits: tuple[int, ...]) -> bytes:
    out = bytearray(ANSWER)
    for i in bits:
        out[i // 8] ^= 1 << i % 8
    return bytes(out)


def test_one_or_two_flipped_bits_are_always_found() -> None:
    """CRC16 has a Hamming distance of 4 at this length (Koopman and Chakravarty, DSN 2004): the whole of what one and two bits can do."""
    m = PyRtuMaster(115200, untimed=True)
    m.request(1, 4, 0, 12)
    m.sent(0)
    assert m.feed(ANSWER, 0) == "ok" and tuple(m.words) == WORDS
    n = 8 * len(ANSWER)
    assert not any(believed(flipped(bits)) for k in (1, 2) for bits in itertools.combinations(range(n), k))


def test_no_more_of_many_flipped_bits_slip_through_than_crc_theory_says() -> None:
    """From 4 on: an odd number never (x + 1 divides the polynomial), an even one with 2**-15."""
    rng, n, tries = random.Random(7), 8 * len(ANSWER), 60_000
    assert not any(believed(flipped(tuple(rng.sample(range(n), rng.choice((3, 5, 7)))))) for _ in range(tries // 4))
    slipped = sum(believed(flipped(tuple(rng.sample(range(n), 2 * rng.randrange(2, 20))))) for _ in range(tries))
    expected = tries / 2**15
    assert slipped <= expected + 5 * math.sqrt(expected)


def test_slcan_has_no_checksum_and_only_a_range_or_the_profiles_own_stands_in_the_way() -> None:
    """One digit of a line turned over between adapter and computer: a battery without checksums is believed, a converter with CRC8
    is not."""
    bms = MemorySlcan(("bms", "pylontech_lv"))
    bms.hear(*BURST)
    line = to_slcan(Frame(0x355, bytes.fromhex("58005E00")))
    bms.bench.bytes(0, line.replace(b"58", b"48"), bms.now)
    assert bms.bench.get("soc") == pytest.approx(0.72), "nobody can tell"
    bms.bench.bytes(0, line.replace(b"58005E", b"58FF5E"), bms.now)
    assert bms.bench.group("bms")[3] != GOOD, "a range can"
    can = Can(socket=False)
    good = can.wire(feedback_of(can.count + 1, POWER_W))
    for i in range(4, len(good) - 1):
        for digit in b"0123456789ABCDEF":
            if digit != good[i]:
                can.bench.bytes(0, good[:i] + bytes([digit]) + good[i + 1 :], can.link.now)
                can.true()
    assert can.bench.get("batt_p_w") != -POWER_W and can.bench.bus(0)["crc_errors"] >= 15 * 14
