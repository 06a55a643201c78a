"""CanScan in memory and over slcan on a PTY with python-can on the other side; what only memory can show; ports."""

from __future__ import annotations

import math
import os

import pytest
from hal.can import to_slcan
from hal.canscan import CanScan
from hypothesis import given
from hypothesis import strategies as st

from hal.canport import open_can
from hal.canrows import Frame
from hal.profile import parse_profile
from hal.wire import PortError
from tests.hal.can_engine import Running
from tests.hal.can_links import MemorySlcan, MemorySocket, SlcanPty, TwoAdapters, table
from tests.hal.can_suite import BURST, CanSuite, feedback, status


class TestMemorySlcan(CanSuite):
    make = MemorySlcan


class TestMemorySocket(CanSuite):
    make = MemorySocket


class TestSlcanPty(CanSuite):
    make = SlcanPty


IDENTITY = """name = "x"
role = "bms"
transport = "can"
[[frame]]
id = 0x100
period_ms = 100.0
lost_ms = 300.0
signals = [{ signal = "soc", start = 0, length = 8, scale = 0.01 }]
[[frame]]
id = 0x101
period_ms = 1000.0
length = 2
identity = [{ start = 7, length = 16, byte_order = "big", value = 0xCAFE }]
"""


def test_a_device_that_is_another_one_is_never_believed() -> None:
    device = parse_profile(IDENTITY, "x.toml")
    link = MemorySlcan(("bms", "x", device))
    link.hear(Frame(0x100, b"\x32" + bytes(7)))
    assert link.bench.device(0)["verified"] == 0
    link.hear(Frame(0x101, b"\xca\xfe"))
    link.hear(Frame(0x100, b"\x33" + bytes(7)))
    assert link.bench.device(0)["verified"] == 1 and link.bench.get("soc") == 0.51
    link.hear(Frame(0x101, b"\xca\xff"), Frame(0x100, b"\x34" + bytes(7)))
    assert link.bench.device(0)["verified"] == -1 and link.bench.get("soc") == 0.51
    link.step(31)
    assert link.bench.group("bms")[3] == 2


def test_who_comes_back_after_a_silence_proves_its_identity_anew() -> None:
    link = MemorySlcan(("bms", "x", parse_profile(IDENTITY, "x.toml")))
    value, name = Frame(0x100, b"\x32" + bytes(7)), Frame(0x101, b"\xca\xfe")
    link.hear(name, value)
    assert link.bench.device(0)["verified"] == 1
    link.step(29)
    link.hear(value)  # late, not lost
    assert link.bench.device(0)["verified"] == 1
    link.step(31)
    link.hear(value)
    assert (link.bench.device(0)["alive"], link.bench.device(0)["verified"]) == (1, 0)
    link.hear(name)
    assert link.bench.device(0)["verified"] == 1
    link.step(31)
    link.hear(Frame(0x101, b"\xca\xff"), value)  # another one came back
    assert link.bench.device(0)["verified"] == -1
    link.step(31)
    link.hear(value)  # and no silence makes it believed
    assert (link.bench.device(0)["alive"], link.bench.device(0)["verified"]) == (0, -1)


MUX = """name = "x"
role = "bms"
transport = "can"
[[frame]]
id = 0x18FF50E5
ext = true
period_ms = 100.0
lost_ms = 300.0
signals = [
    { signal = "soc", start = 8, length = 8, scale = 0.01, mux = { start = 0, length = 8, value = 1 } },
    { signal = "batt_v", start = 8, length = 16, scale = 0.1, mux = { start = 0, length = 8, value = 2 } },
]
"""


CYCLIC = IDENTITY + """[[transmit]]
id = 0x305
purpose = "cyclic"
period_ms = 10.0
length = 8
signals = []
"""


def test_a_frame_of_every_tick_leaves_in_every_tick_however_late_each_is() -> None:
    link = MemorySlcan(("bms", "x", parse_profile(CYCLIC, "x.toml")))
    sent: list[bytes] = []
    link.bench = type(link.bench)([link.scan], lambda bus, data, now: sent.append(data) or len(data))
    link.bench.open(0, 0)
    for tick in range(1, 201):
        at = tick * 10_000_000
        link.bench.tick(tick, at, at + (tick * 7919) % 90_000)
        link.bench.outputs(tick, at + 20_000 + (tick * 7919) % 90_000)  # the next one may wake sooner after its tick than this one
    assert sum(line.startswith(b"t305") for line in sent) == 200


def test_a_multiplexed_frame_gives_each_signal_its_turn() -> None:
    link = MemorySocket(("bms", "x", parse_profile(MUX, "x.toml")))
    link.hear(Frame(0x18FF50E5, bytes([1, 50]) + bytes(6), ext=True), Frame(0x18FF50E5, bytes([2, 0x20, 0x03]) + bytes(5), ext=True))
    assert (link.bench.get("soc"), link.bench.get("batt_v")) == (0.5, pytest.approx(80.0))
    link.hear(Frame(0x0F50E5 & 0x7FF, bytes([1, 99]) + bytes(6)))  # a standard frame is another frame
    assert link.bench.get("soc") == 0.5


def test_a_port_that_comes_back_proves_everything_anew() -> None:
    link = MemorySlcan(("bms", "pylontech_lv"))
    link.hear(*BURST)
    link.bench.bytes(0, b"t3511", link.now)  # half a line
    link.bench.open(0, link.now)
    assert link.bench.device(0)["alive"] == 0 and link.bench.group("bms_lim")[3] == 2
    link.hear(*BURST)
    assert link.bench.device(0)["alive"] == 1 and link.bench.group("bms_lim")[3] == 1


def test_the_adapter_is_asked_for_its_flags_and_let_be_where_it_has_none() -> None:
    link = MemorySlcan(("bms", "pylontech_lv"))
    lines: list[bytes] = []
    link.bench = type(link.bench)([link.scan], lambda bus, data, now: lines.append(data) or len(data))
    link.step(1000)
    assert lines.count(b"F\r") == 3
    link.bench.open(0, link.now)
    for _ in range(5):
        link.step(100)
        link.bench.bytes(0, b"F24\r", link.now)
    assert lines.count(b"F\r") == 8
    errors = link.scan.errors
    assert (errors["passive"], errors["state"], errors["overrun"]) == (1, "passive", 0)


def test_what_is_not_needed_is_unknown_when_it_stops() -> None:
    link = MemorySlcan(("pcs", "generic_can_pcs"))
    link.hear(status(1), feedback(0))
    assert link.bench.get("pcs_v_v") == 230.0
    link.step(101)
    assert math.isnan(link.bench.get("pcs_v_v")) and link.bench.group("pcs_life")[3] == 2


SLOW_STATE = """name = "x"
role = "pcs"
transport = "can"
[[frame]]
id = 0x180
period_ms = 10.0
lost_ms = 1000.0
signals = [{ signal = "batt_p_w", start = 0, length = 16, signed = true }]
[[frame]]
id = 0x181
period_ms = 200.0
lost_ms = 1000.0
signals = [{ signal = "pcs_state", start = 0, length = 8 }]
[[transmit]]
id = 0x200
purpose = "command"
signals = [{ source = "p_cmd_w", start = 0, length = 16, signed = true }]
"""


def test_a_converter_is_deaf_when_one_of_its_frames_is_late_each_by_its_own_period() -> None:
    link = MemorySlcan(("pcs", "x", parse_profile(SLOW_STATE, "x.toml")))
    power, state = Frame(0x180, bytes(8)), Frame(0x181, b"\x03" + bytes(7))

    def deaf(ticks: int, fast: bool, slow: bool) -> list[bool]:
        said = []
        for k in range(ticks):
            link.hear(*[power] * fast, *[state] * (slow and k % 20 == 0))
            link.step()
            said.append(link.bench.deaf)
        return said

    assert deaf(60, True, True) == [False] * 60
    assert deaf(6, False, True) == [False, True, True, True, True, True]  # 20 ms without power, then 30: later than 2.5 periods
    assert deaf(1, True, True) == [False]
    late = deaf(60, True, False)
    assert late.index(True) == 49 and all(late[49:])  # 510 ms without a state, the last of which came 20 ms before


def test_an_adapter_that_refuses_a_line_may_have_refused_the_command() -> None:
    link = MemorySlcan(("pcs", "x", parse_profile(SLOW_STATE, "x.toml")))
    power, state = Frame(0x180, bytes(8)), Frame(0x181, b"\x03" + bytes(7))
    link.hear(power, state)
    link.step()
    assert not link.bench.deaf
    link.bench.bytes(0, b"\x07", link.now)
    assert link.bench.deaf and link.scan.errors["refused"] == 1  # as the next step of the kernel sees it
    link.hear(power)
    link.step()
    link.bench.bytes(0, b"z\r", link.now)
    assert not link.bench.deaf
    link.bench.ask(gate=0)
    link.step()
    link.bench.bytes(0, b"\x07", link.now)
    assert not link.bench.deaf  # no command was to leave


def test_error_frames_reach_the_counters() -> None:
    link = MemorySocket(("bms", "pylontech_lv"))
    error = bytearray(16)
    error[0:4] = (0x20000044).to_bytes(4, "little")  # CAN_ERR_FLAG | BUSOFF | CRTL
    error[4] = 8
    link.bench.bytes(0, bytes(error), link.now)
    assert link.scan.errors["bus_off"] == 1 and link.bench.bus(0)["exceptions"] == 1
    link.bench.bytes(0, b"short", link.now)
    assert link.scan.errors["junk"] == 1


def test_a_port_that_takes_nothing_is_no_transaction() -> None:
    link = MemorySlcan(("bms", "pylontech_lv"))
    link.bench = type(link.bench)([link.scan], lambda bus, data, now: -1)
    link.step(200)
    assert link.bench.bus(0)["transactions"] == 0


def test_filters_name_what_is_listened_to() -> None:
    scan = CanScan(table("can:x", ("bms", "pylontech_lv")))
    assert scan.filters == [(i, False) for i in (0x351, 0x355, 0x356, 0x359, 0x35C)]


def test_slcan_is_opened_at_its_rate_and_a_refusal_is_told() -> None:
    wire = TwoAdapters()
    try:
        fd = open_can("slcan:" + wire.paths[0], 250_000)
        os.close(fd)
        assert [c for c in wire.commands if c] == [b"C", b"S5", b"O"] and wire.open[0]
        with pytest.raises(PortError, match="no rate of slcan"):
            open_can("slcan:" + wire.paths[0], 333_000)
        wire._line = lambda i, line: os.write(wire.masters[i], b"\x07") and None  # type: ignore[method-assign]
        with pytest.raises(PortError, match="refuses 500000"):
            open_can("slcan:" + wire.paths[0], 500_000)
    finally:
        wire.close()


def test_a_can_interface_that_is_not_here_is_told() -> None:
    with pytest.raises(PortError) as e:
        open_can("can:nope0", 500_000)
    assert "no CAN" in str(e.value) or "interfaces here" in str(e.value)


def test_one_multiplexed_value_does_not_keep_another_fresh() -> None:
    link = MemorySlcan(("bms", "x", parse_profile(MUX, "x.toml")))
    volt = Frame(0x18FF50E5, bytes([2, 0x20, 0x03]) + bytes(5), ext=True)
    link.hear(Frame(0x18FF50E5, bytes([1, 50]) + bytes(6), ext=True), volt)
    for _ in range(4):
        link.step(10)
        link.hear(volt)
    link.step()
    assert link.bench.group("bms")[3] == 2
    assert link.bench.group("bms_lim")[3] == 1 and link.bench.get("batt_v") == pytest.approx(80.0)


@pytest.mark.realtime
def test_the_engine_reads_an_slcan_adapter() -> None:
    wire = TwoAdapters()
    fd = open_can("slcan:" + wire.paths[0], 500_000)
    running = Running(fd, "slcan:", ("bms", "pylontech_lv"))
    try:
        wire.open[1] = True
        for f in BURST:
            wire._line(1, to_slcan(f)[:-1])
        running.until(lambda: running.image.device_stats(0)["alive"])
        assert running.until(lambda: running.inputs().get("bms_lim", {}).get("batt_v")) == pytest.approx(49.86)
        assert running.image.device_stats(0)["ok"] == 5
        running.until(lambda: b"F" in wire.commands)
    finally:
        running.close()
        os.close(fd)
        wire.close()


@given(st.lists(st.one_of(st.binary(max_size=64), st.builds(to_slcan, st.builds(Frame, st.integers(0x350, 0x360), st.binary(max_size=8))))))
def test_whatever_comes_no_good_group_holds_a_value_outside_its_range(pieces: list[bytes]) -> None:
    link = MemorySlcan(("bms", "pylontech_lv"))
    b = link.bench
    for p in pieces:
        b.bytes(0, p, link.now)
        link.step()
        if b.group("bms")[3] == 1:
            assert 0.0 <= b.get("soc") <= 1.0 and b.get("bms_state") in (3.0, 4.0)
        if b.group("bms_lim")[3] == 1:
            assert 0.0 <= b.get("batt_v") <= 100.0
            assert 0.0 <= b.get("batt_i_charge_max_a") <= 3276.8 and 0.0 <= b.get("batt_i_discharge_max_a") <= 3276.8
    link.hear(Frame(0x7FF, b""), *BURST)
    link.hear(*BURST)  # the first of them may have ended a half line
    assert b.group("bms_lim")[3] == 1 and b.get("batt_v") == pytest.approx(49.86)


@given(st.lists(st.binary(max_size=80), max_size=30))
def test_whatever_a_socket_gives_is_a_frame_or_counted(reads: list[bytes]) -> None:
    link = MemorySocket(("pcs", "generic_can_pcs"))
    for r in reads:
        link.bench.bytes(0, r, link.now)
        link.step()
    assert link.scan.errors["junk"] >= sum(len(r) != 16 for r in reads)
    assert link.bench.device(0)["alive"] == 0  # no random frame has a right checksum and comes with its status
