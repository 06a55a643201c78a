"""What CanScan does on any wire: one test class, run in memory, over slcan on a PTY, and over SocketCAN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import cantools
import pytest
from hal.can import checksum

from hal.canrows import Frame
from hal.profile import PROFILE_DIR
from tests.hal.can_links import MS, Link

# A US5000 of setfirelabs.com (hal/profiles/pylontech_lv.frames.tsv)
BURST = [
    Frame(0x351, bytes.fromhex("1402C012C012C201")),
    Frame(0x355, bytes.fromhex("58005E00")),
    Frame(0x356, bytes.fromhex("7A13F2FE6B01")),
    Frame(0x359, bytes.fromhex("0000000006504E")),
    Frame(0x35C, bytes.fromhex("C000")),
    Frame(0x35E, bytes.fromhex("50594C4F4E202020")),
]
PCS = cantools.database.load_file(PROFILE_DIR / "generic_can_pcs.dbc")


def feedback(counter: int, power: float = 0.0, state: int = 3) -> Frame:
    """A PcsFeedback as cantools lays it out, checksum by the published polynomial."""
    values = {"ActivePower": power, "ReactivePower": 0.0, "State": state, "Local": 0, "Counter": counter % 16, "Checksum": 0}
    data = bytearray(PCS.encode_message("PcsFeedback", values))
    data[7] = checksum("crc8_j1850", bytes(data), 7)
    return Frame(0x180, bytes(data))


def status(alive: int) -> Frame:
    return Frame(0x181, PCS.encode_message("PcsStatus", {"Voltage": 230.0, "Frequency": 50.0, "Alarms": 0, "Alive": alive}))


class CanSuite:
    """Subclasses set `make`."""

    make: Callable[..., Link]

    @pytest.fixture
    def bms(self) -> Iterator[Link]:
        link = type(self).make(("bms", "pylontech_lv"))
        yield link
        link.close()

    @pytest.fixture
    def pcs(self) -> Iterator[Link]:
        link = type(self).make(("pcs", "generic_can_pcs"))
        yield link
        link.close()

    def test_a_burst_of_the_battery_fills_its_groups(self, bms: Link) -> None:
        b = bms.bench
        bms.hear(*BURST[:2])
        bms.step()
        assert b.group("bms")[3] == 0 and b.device(0)["alive"] == 0  # not before everything it needs has come
        bms.hear(*BURST[2:])
        bms.step()
        for group in ("bms", "bms_lim", "bms_temp"):
            t_ns, rx_ns, count, quality = b.group(group)
            assert quality == 1 and count >= 1 and bms.now - 30 * MS < t_ns < rx_ns <= bms.now
        got = {s: b.get(s) for s in ("soc", "soh", "bms_state", "bms_events", "batt_v", "batt_i_a", "batt_temp_max_c", "batt_temp_min_c")}
        expected = {"soc": 0.88, "soh": 0.94, "bms_state": 3, "bms_events": 0, "batt_v": 49.86, "batt_i_a": 27.0}
        assert got == pytest.approx(expected | {"batt_temp_max_c": 36.3, "batt_temp_min_c": 36.3})
        assert (b.get("batt_i_charge_max_a"), b.get("batt_i_discharge_max_a")) == pytest.approx((480.0, 480.0))
        assert (b.device(0)["alive"], b.device(0)["verified"], b.device(0)["ok"]) == (1, 1, 5)

    def test_no_group_is_younger_than_the_oldest_frame_it_needs(self, bms: Link) -> None:
        bms.hear(*BURST)
        first = bms.bench.group("bms_lim")[1]
        bms.step(50)
        bms.hear(*BURST[1:])
        assert bms.bench.group("bms_lim")[1] == first and bms.bench.group("bms_temp")[1] == bms.now

    def test_three_seconds_without_the_limits_end_them(self, bms: Link) -> None:
        bms.hear(*BURST)
        for _ in range(2):
            bms.step(100)
            bms.hear(*BURST[1:])
        bms.step(99)
        assert bms.bench.group("bms_lim")[3] == 1 and bms.bench.get("batt_i_charge_max_a") == pytest.approx(480.0)
        bms.hear(*BURST[1:])
        bms.step(2)  # 3.01 s
        assert bms.bench.group("bms_lim")[3] == 2
        assert bms.bench.group("bms")[3] == 1  # the rest still comes
        assert (bms.bench.device(0)["alive"], bms.bench.device(0)["lost_count"]) == (0, 1)
        bms.hear(*BURST)
        bms.step()
        assert bms.bench.group("bms_lim")[3] == 1 and bms.bench.device(0)["alive"] == 1

    @pytest.mark.parametrize(
        ("frame", "charge", "discharge"),
        [
            (Frame(0x35C, b"\x40\x00"), 0.0, 480.0),
            (Frame(0x35C, b"\x80\x00"), 480.0, 0.0),
            (Frame(0x35C, b"\x00\x00"), 0.0, 0.0),
            (Frame(0x359, bytes.fromhex("0200000006504E")), 0.0, 480.0),  # over voltage
            (Frame(0x359, bytes.fromhex("0400000006504E")), 480.0, 0.0),  # under voltage
            (Frame(0x359, bytes.fromhex("0008000006504E")), 0.0, 0.0),  # BMS internal
            (Frame(0x359, bytes.fromhex("0000FFFF06504E")), 480.0, 480.0),  # warnings alone
        ],
    )  # fmt: skip
    def test_flags_and_alarms_take_the_permission_back(self, bms: Link, frame: Frame, charge: float, discharge: float) -> None:
        bms.hear(*BURST, frame)
        assert bms.bench.get("batt_i_charge_max_a") == pytest.approx(charge)
        assert bms.bench.get("batt_i_discharge_max_a") == pytest.approx(discharge)
        bms.hear(*BURST)
        assert bms.bench.get("batt_i_charge_max_a") == pytest.approx(480.0)

    def test_our_sign_of_life_goes_out_once_a_second(self, bms: Link) -> None:
        bms.step(301)
        assert bms.heard(4) == [Frame(0x305, bytes(8))] * 4

    def test_hostile_frames_change_nothing(self, bms: Link) -> None:
        bms.hear(*BURST)
        before = [bms.bench.group(g) for g in ("bms", "bms_lim")], bms.bench.get("soc")
        bms.hear(Frame(0x351, b"\x14\x02"), Frame(0x355, b"", rtr=True), Frame(0x351, bytes(8), ext=True), Frame(0x7FF, b"\xff" * 8))
        assert ([bms.bench.group(g) for g in ("bms", "bms_lim")], bms.bench.get("soc")) == before
        bms.hear(Frame(0x355, bytes.fromhex("FFFF5E00")))  # 655 %
        assert bms.bench.group("bms")[3] == 2 and bms.bench.get("soc") == pytest.approx(0.88)
        bms.hear(BURST[1])
        assert bms.bench.group("bms")[3] == 1

    def test_a_thousand_frames_are_a_thousand_answers(self, bms: Link) -> None:
        bms.hear(*BURST)
        ok = bms.bench.device(0)["ok"]
        for k in range(250):
            bms.hear(*(Frame(0x355, (k % 100).to_bytes(2, "little") + b"\x5e\x00"), *BURST[2:5]))
        assert bms.bench.device(0)["ok"] == ok + 1000
        assert bms.bench.get("soc") == pytest.approx(0.49)

    def _running(self, pcs: Link) -> None:
        pcs.hear(status(1), feedback(0, -50_000.0))
        pcs.bench.put("enable", 1.0)
        pcs.bench.put("p_cmd_w", 12_345.6)

    def test_the_command_leaves_with_the_kernels_step(self, pcs: Link) -> None:
        pcs.step()
        self._running(pcs)
        assert (pcs.bench.get("batt_p_w"), pcs.bench.get("pcs_state"), pcs.bench.get("pcs_heartbeat")) == (50_000.0, 3.0, 1.0)
        for k in range(20):
            pcs.hear(feedback(k + 1))
            pcs.step()
        sent = pcs.heard(20)
        assert [f.id for f in sent] == [0x200] * 20
        got = [PCS.decode_message("PcsCommand", f.data) for f in sent]
        assert [g["Counter"] for g in got] == [k % 16 for k in range(20)]
        assert {g["ActivePower"] for g in got} == {-12345} and {(g["Enable"], g["Operate"]) for g in got} == {(1, 1)}
        assert all(f.data[7] == checksum("crc8_j1850", f.data, 7) for f in sent)

    def test_no_command_without_gate_feedback_or_a_finite_value(self, pcs: Link) -> None:
        pcs.step(5)
        self._running(pcs)
        pcs.bench.ask(gate=0)
        pcs.step(5)
        pcs.bench.ask(gate=1)
        pcs.bench.put("p_cmd_w", math.nan)
        pcs.step(4)
        pcs.bench.put("p_cmd_w", 1.0)
        pcs.step()  # the one that leaves
        pcs.step(12)  # 0.1 s without feedback: it is lost
        first, *_ = pcs.heard(1)
        assert PCS.decode_message("PcsCommand", first.data)["Counter"] == 0
        assert pcs.bench.group("pcs")[3] == 2 and pcs.bench.device(0)["alive"] == 0
        count = pcs.bench.bus(0)["transactions"]
        pcs.step(20)
        assert pcs.bench.bus(0)["transactions"] == count

    def test_a_converter_that_is_not_heard_any_more_is_told_zero_and_nothing_else(self, pcs: Link) -> None:
        pcs.bench.put("p_cmd_w", 0.0)
        pcs.step(5)  # never heard: nothing at all, though the command is 0
        self._running(pcs)
        pcs.bench.put("p_cmd_w", 1.0)
        pcs.step(20)  # lost after ten
        pcs.bench.put("p_cmd_w", 0.0)
        pcs.step(3)
        got = [PCS.decode_message("PcsCommand", f.data) for f in pcs.heard(13)[-4:]]
        assert [g["ActivePower"] for g in got] == [-1, 0, 0, 0] and {g["Operate"] for g in got} == {1}
        pcs.bench.ask(gate=0)
        pcs.step(3)
        pcs.bench.open(0, pcs.now)  # another port, perhaps another device: it is not told anything
        pcs.bench.ask(gate=1)
        count = pcs.bench.bus(0)["transactions"]
        pcs.step(3)
        assert pcs.bench.bus(0)["transactions"] == count

    def test_operate_is_what_was_asked_last(self, pcs: Link) -> None:
        pcs.hear(status(1), feedback(0, state=1))
        said: list[Any] = []
        for k, request in enumerate((0, 1, 0, 2, 0)):
            pcs.bench.ask(op_request=request)
            pcs.hear(feedback(k + 1, state=1))
            pcs.step()
            said += [PCS.decode_message("PcsCommand", f.data)["Operate"] for f in pcs.heard(1)]
        assert said == [0, 1, 1, 0, 0]

    def test_a_wrong_checksum_and_a_counter_that_stands_still_are_no_answers(self, pcs: Link) -> None:
        self._running(pcs)
        good = feedback(1, -1000.0)
        pcs.hear(good)
        count = pcs.bench.group("pcs")[2]
        pcs.step()
        pcs.hear(good, Frame(good.id, good.data[:7] + bytes([good.data[7] ^ 1])), Frame(good.id, b"\x01" + feedback(2).data[1:]))
        assert pcs.bench.group("pcs")[2] == count and pcs.bench.get("batt_p_w") == 1000.0
        assert (pcs.bench.bus(0)["late"], pcs.bench.bus(0)["crc_errors"]) == (1, 2)
        pcs.hear(feedback(2, -2000.0))
        assert pcs.bench.get("batt_p_w") == 2000.0

    def test_a_frame_from_before_is_no_answer_and_who_begins_anew_is_heard_again(self, pcs: Link) -> None:
        self._running(pcs)
        pcs.hear(feedback(5, -5000.0), feedback(3, -3000.0), feedback(15, -1000.0))
        assert pcs.bench.get("batt_p_w") == 5000.0 and pcs.bench.bus(0)["late"] == 2
        pcs.hear(feedback(8, -8000.0))  # two were lost
        assert pcs.bench.get("batt_p_w") == 8000.0 and pcs.scan.errors["gaps"] == 2
        pcs.step(11)  # lost_ms
        pcs.hear(feedback(2, -2000.0))
        assert pcs.bench.get("batt_p_w") == 2000.0
