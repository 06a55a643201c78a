"""A bus over TCP: what the plan makes of it, and what the scan does when the connection is of no more use."""

from __future__ import annotations

import struct

import pytest
from hal.scan import BusScan
from hal.scanbench import ScanBench

from hal.plan import BusSpec, DeviceSpec, Plan, PlanError, plan_site
from hal.profile import load_profile
from hal.rows import DeviceMap
from hal.sunspec import assumed
from hal.wiretime import SETTLE, TcpLine, WireTime

MS = 1_000_000
SERVER = "tcp://192.0.2.9"
METER = load_profile("ballast_virtual_meter")


def site(a: str = "tcp://192.0.2.7", b: str = "", latency_ms: float = 1.0, meter: DeviceMap = METER, unit: int = 1) -> Plan:
    return plan_site(
        [BusSpec("a", a, 460800, latency_ms=latency_ms), BusSpec("b", b, 460800, latency_ms=latency_ms)],
        [
            DeviceSpec("meter", "meter", "a", unit, meter),
            DeviceSpec("bms", "bms", "a", 2, assumed("bms")),
            DeviceSpec("pcs", "pcs", "b", 1, assumed("pcs")),
        ],
    )


# ---------------------------------------------------------------- the plan

def test_a_transaction_is_a_way_there_and_a_way_back_whatever_its_length() -> None:
    for request, answer in ((8, 7), (255, 255)):
        w = WireTime(TcpLine(latency_ms=1.0), request, answer, 0.25)
        assert (w.request_ms, w.answer_ms, w.nominal_ms, w.total_ms) == (0.5, 0.5, 1.25, 1.25)
    assert TcpLine(latency_ms=1.0).room(1.25, 0.25) == 125 and TcpLine(latency_ms=1.0).room(1.2, 0.25) == 0


@pytest.mark.parametrize("latency_ms", [0.2, 1.0, 3.0])
def test_meter_over_tcp_and_pcs_on_a_line(latency_ms: float) -> None:
    plan = site(latency_ms=latency_ms)
    command_ms = 17 * 11 / 460.8
    assert plan.sample_ms == pytest.approx(latency_ms / 2) and plan.step_ms == pytest.approx(latency_ms)
    assert plan.to_command.constant_ms == pytest.approx(latency_ms / 2 + command_ms, abs=1e-6)
    assert plan.to_power.constant_ms - plan.to_command.constant_ms == pytest.approx(1.75 + 1.0 + SETTLE * 2.0)


def test_everything_over_tcp() -> None:
    plan = site(b="tcp://192.0.2.8")
    assert plan.to_command.constant_ms == pytest.approx(1.0)  # half a way back with the value, half a way there with the command
    assert plan.to_power.constant_ms == pytest.approx(1.0 + 1.0 + SETTLE * 2.0)
    assert plan.load_to_power_ms["p99"] == pytest.approx(5.606 + 1.0 + 9.9, abs=2e-3)
    assert plan.cmd_wire_ns == 500_000 and plan.readback_every == 1
    assert "bus a: TCP, 1 ms there and back" in str(plan) and "request 0.500 + answer 0.500 = 1.000 ms" in str(plan)
    assert "baud" not in str(plan) and any("latency_ms = 1" in n for n in plan.notes)


def test_pcs_over_tcp_and_meter_on_a_line() -> None:
    plan = site(a="", b="tcp://192.0.2.8")
    assert plan.to_command.constant_ms == pytest.approx(29 * 11 / 460.8 + 0.5, abs=1e-3)


def test_units_and_refusals() -> None:
    site(unit=0)
    site(unit=255)
    with pytest.raises(PlanError, match=r"unit 256 is outside 0\.\.255"):
        site(unit=256)
    with pytest.raises(PlanError) as e:
        site(latency_ms=12.0)
    assert "a network with less latency (12 ms a transaction)" in str(e.value) and "baud" not in str(e.value)


def three(port: str, latency_ms: float = 1.0, turnaround_ms: float = 0.0) -> Plan:
    """The BMS on a bus of its own, which the tick does not wait for."""
    return plan_site(
        [BusSpec("a", "", 460800), BusSpec("b", "", 460800), BusSpec("c", port, 460800, latency_ms=latency_ms)],
        [
            DeviceSpec("meter", "meter", "a", 1, METER),
            DeviceSpec("bms", "bms", "c", 1, assumed("bms"), turnaround_ms),
            DeviceSpec("pcs", "pcs", "b", 1, assumed("pcs")),
        ],
    )


@pytest.mark.parametrize(
    ("port", "latency_ms", "turnaround_ms", "every"),
    [(SERVER, 5, 0, 1), (SERVER, 35, 0, 4), (SERVER, 20, 15, 4), (SERVER, 190, 0, 20), ("", 1, 30, 4)],
)
def test_a_bus_that_the_tick_does_not_wait_for_may_be_slow(port: str, latency_ms: float, turnaround_ms: float, every: int) -> None:
    plan = three(port, latency_ms, turnaround_ms)
    c = plan.tables[2]
    assert sum(i >= 0 for i in c.slots) == 100 // every and not c.skips
    assert plan.load_to_power_ms == three(port).load_to_power_ms, "what it takes is nobody's latency"
    assert c.limit_ms <= every * 10.0 + plan.step_ms and c.slack_ms == c.limit_ms
    assert all(t.wire.nominal_ms + plan.step_ms < c.limit_ms for t in c.txns)
    text = str(plan)
    assert ("takes every" in text) == (every > 1) and "over all ticks" not in text


def test_slower_than_that_is_refused() -> None:
    with pytest.raises(PlanError, match="a network with less latency"):
        three(SERVER, 250)


# ---------------------------------------------------------------- the scan

class Hand:
    """Bus a of a site, driven by hand; frames that left it are in `sent`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.takes = 1000
        plan = site()
        self.bench = ScanBench([BusScan(t) for t in plan.tables], self._send)
        self.tick, self.now = 0, 0
        self.bench.open(0, 0)

    def _send(self, bus: int, frame: bytes, now: int) -> int:
        if bus == 0:
            self.sent.append(frame)
        return min(len(frame), self.takes) if bus == 0 else -1

    def answer(self, words: list[int], tid: int = -1) -> bytes:
        last = self.sent[-1]
        body = bytes([last[6], last[7], 2 * len(words)]) + struct.pack(f">{len(words)}H", *words)
        return struct.pack(">HHH", int.from_bytes(last[:2], "big") if tid < 0 else tid, 0, len(body)) + body

    def next_tick(self) -> None:
        """To the next tick, the kernel stepping at 4 ms; requests are not answered."""
        self.now = self.tick * 10 * MS
        self.tick += 1
        self.bench.tick(self.tick, self.now, self.now)
        self.time(4)
        self.bench.outputs(self.tick, self.now)
        self.time(9.99)

    def time(self, ms: float) -> None:
        until = (self.tick - 1) * 10 * MS + round(ms * MS)
        for _ in range(20):
            if self.bench.next_ns > until:
                break
            self.now = max(self.now, self.bench.next_ns)
            self.bench.time(self.now)
        self.now = until


def test_three_times_silence_gives_the_connection_up_and_writes_no_more_to_it() -> None:
    h = Hand()
    for _ in range(60):
        h.next_tick()
        if h.bench.lost(0):
            break
    assert h.bench.lost(0) and len(h.sent) == 3 == h.bench.bus(0)["timeouts"]
    for _ in range(20):
        h.next_tick()
    assert len(h.sent) == 3
    h.bench.open(0, h.now)
    h.next_tick()
    assert len(h.sent) > 3, "a new connection is used at once"


def test_bytes_that_are_no_modbus_give_the_connection_up() -> None:
    h = Hand()
    h.next_tick()
    assert h.sent and not h.bench.lost(0)
    h.bench.bytes(0, b"HTTP/1.1 400 Bad Request\r\n\r\n", h.now)
    assert h.bench.lost(0) and h.bench.bus(0)["crc_errors"] == 1


def test_half_a_frame_gives_the_connection_up() -> None:
    h = Hand()
    h.takes = 5
    h.next_tick()
    assert h.bench.lost(0) and len(h.sent) == 1


def test_a_value_stands_for_the_middle_of_its_transaction() -> None:
    h = Hand()
    for tick in range(1, 20):  # until the meter is asked for its values at the tick
        t = (tick - 1) * 10 * MS
        before = len(h.sent)
        h.bench.tick(tick, t, t)
        if h.bench.pending:
            break
        h.bench.outputs(tick, t)
        while len(h.sent) > before:  # the probe before it: its answer proves that nothing old is on its way
            before = len(h.sent)
            (n,) = struct.unpack(">H", h.sent[-1][10:12])
            h.bench.bytes(0, h.answer([0] * n), t + MS)
    words = list(struct.unpack(">12H", struct.pack(">6f", 123e3, 1, 230, 230, 230, 50)))
    assert h.sent[-1][6:] == bytes.fromhex("01 04 0000 000C") and h.bench.pending == 1
    h.bench.bytes(0, h.answer(words, tid=0x7777), t + MS)
    assert h.bench.pending == 1 and h.bench.bus(0)["wrong_unit"] == 1
    h.bench.bytes(0, h.answer(words), t + 2_400_000)
    assert h.bench.get("grid_p_w") == 123e3
    t_ns, rx_ns, _, quality = h.bench.group("meter")
    assert (t_ns - t, rx_ns - t, quality) == (1_200_000, 2_400_000, 1)
