"""Modbus TCP: golden frames, whatever the network does to a stream, hostile headers; and what both framings have in common."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hal.modbus import RESULTS, PyRtuMaster
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hal.test_modbus import frame as rtu

MS = 1_000_000
TID = 0x1501

# Request and answers of the Modbus Messaging on TCP/IP Implementation Guide V1.0b, 4.4.2 (read one word at address 5 of unit 255);
# the PDUs of the others are the examples of the Modbus application protocol V1.1b3, 6.3 (FC03), 6.6 (FC06), 6.12 (FC16), 6.17 (FC23).
GOLDEN = [
    (dict(unit=255, fc=3, addr=4, count=1), "1501 0000 0006 FF 03 0004 0001", "1501 0000 0005 FF 03 02 0005", [5]),
    (dict(unit=1, fc=3, addr=107, count=3), "1501 0000 0006 01 03 006B 0003", "1501 0000 0009 01 03 06 022B 0000 0064", [0x22B, 0, 100]),
    (dict(unit=0, fc=4, addr=8, count=1), "1501 0000 0006 00 04 0008 0001", "1501 0000 0005 00 04 02 000A", [10]),
    (dict(unit=1, fc=6, addr=1, values=[3]), "1501 0000 0006 01 06 0001 0003", "1501 0000 0006 01 06 0001 0003", []),
    (dict(unit=1, fc=16, addr=1, values=[10, 0x102]), "1501 0000 000B 01 10 0001 0002 04 000A 0102", "1501 0000 0006 01 10 0001 0002", []),
    (
        dict(unit=1, fc=23, addr=3, count=6, waddr=14, values=[255, 255, 255]),
        "1501 0000 0011 01 17 0003 0006 000E 0003 06 00FF 00FF 00FF",
        "1501 0000 000F 01 17 0C 00FE 0ACD 0001 0003 000D 00FF",
        [0xFE, 0xACD, 1, 3, 13, 255],
    ),
]


def tcp(*body: int, tid: int = TID, protocol: int = 0, length: int = -1) -> bytes:
    raw = bytes(body)
    return struct.pack(">HHH", tid, protocol, len(raw) if length < 0 else length) + raw


def answer(unit: int, fc: int, words: list[int], tid: int = TID) -> bytes:
    return tcp(unit, fc, 2 * len(words), *b"".join(struct.pack(">H", w) for w in words), tid=tid)


def started(**ask: object) -> PyRtuMaster:
    m = PyRtuMaster(tcp=True, tid=TID)
    m.request(**(ask or dict(unit=1, fc=4, addr=0, count=2)))
    m.sent(0, timeout_ns=10 * MS)
    return m


@pytest.mark.parametrize(("ask", "request_hex", "answer_hex", "words"), GOLDEN)
def test_golden_transactions(ask: dict[str, object], request_hex: str, answer_hex: str, words: list[int]) -> None:
    m = PyRtuMaster(tcp=True, tid=TID)
    assert m.request(**ask) == bytes.fromhex(request_hex)
    m.sent(0)
    assert m.feed(bytes.fromhex(answer_hex), MS) == "ok"
    assert (m.words, m.waiting, m.ready_ns) == (words, False, MS)  # no silence to keep: the next request may leave at once


def test_frames_equal_pymodbus() -> None:
    from pymodbus.framer.socket import FramerSocket
    from pymodbus.pdu import DecodePDU
    from pymodbus.pdu import register_message as pdu

    framer = FramerSocket(DecodePDU(False))
    for request, ask in [
        (pdu.ReadHoldingRegistersRequest(address=40000, count=125, dev_id=255), dict(unit=255, fc=3, addr=40000, count=125)),
        (pdu.WriteSingleRegisterRequest(address=7, registers=[65535], dev_id=1), dict(unit=1, fc=6, addr=7, values=[65535])),
        (pdu.WriteMultipleRegistersRequest(address=9, registers=[1] * 123, dev_id=2), dict(unit=2, fc=16, addr=9, values=[1] * 123)),
    ]:
        request.transaction_id = TID
        assert PyRtuMaster(tcp=True, tid=TID).request(**ask) == framer.buildFrame(request)


def test_units_of_both_framings() -> None:
    for unit in (0, 248, 255):
        assert PyRtuMaster(tcp=True).request(unit, 3, 0, 1)[6] == unit
    for unit in (1, 248, 255):  # those above 247 are reserved on a line, and power shelves have them
        assert PyRtuMaster().request(unit, 3, 0, 1)[0] == unit
    for tcp, unit in ((False, 0), (False, 256), (True, -1), (True, 256)):
        with pytest.raises(ValueError, match="no such request"):
            PyRtuMaster(tcp=tcp).request(unit, 3, 0, 1)


def test_transaction_identifiers_count_and_wrap() -> None:
    m = PyRtuMaster(tcp=True, tid=0xFFFE)
    seen = []
    for k in range(4):
        seen.append(int.from_bytes(m.request(1, 3, 0, 1)[:2], "big"))
        m.sent(k * MS)
        assert m.feed(answer(1, 3, [k], seen[-1]), k * MS) == "ok"
    assert seen == [0xFFFE, 0xFFFF, 0, 1]


# ---------------------------------------------------------------- what a stream does

@given(st.lists(st.integers(0, 65535), min_size=1, max_size=125), st.data())
def test_any_splitting_of_a_good_answer(words: list[int], data: st.DataObject) -> None:
    m = started(unit=3, fc=3, addr=100, count=len(words))
    raw = answer(3, 3, words)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=12)))
    for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        assert m.feed(raw[a:b], MS) == ("ok" if b == len(raw) else "more")
    assert m.words == words and not m.waiting


@given(st.lists(st.integers(1, 125), min_size=1, max_size=3), st.data())
def test_late_answers_and_the_present_one_in_any_segments(counts: list[int], data: st.DataObject) -> None:
    """Given-up answers come joined with the present one, cut anywhere: each is counted as late, the present one is believed."""
    m = PyRtuMaster(tcp=True, tid=TID)
    stream = b""
    for k, count in enumerate(counts):
        m.request(1, 3, 0, count)
        m.sent(k * 100, 50)
        if k < len(counts) - 1:
            assert m.expire(k * 100 + 50) == "timeout"
        stream += answer(1, 3, [k] * count, TID + k)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=8)))
    results = [m.feed(stream[a:b], MS) for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert results == ["more"] * len(cuts) + ["ok"]
    assert m.words == [len(counts) - 1] * counts[-1]
    assert (m.stats["late"], m.stats["wrong_unit"], m.broken) == (len(counts) - 1, 0, False)


def test_the_answer_and_what_comes_behind_it_in_one_segment() -> None:
    m = started()
    assert m.feed(answer(1, 4, [7, 8]) + answer(1, 4, [9, 9], 1) + b"\x15", MS) == "ok"
    assert m.words == [7, 8] and m.stats["wrong_unit"] == 1
    m.request(1, 4, 0, 1)
    m.sent(2 * MS)
    assert m.feed(b"\x02" + answer(1, 4, [5])[2:], 3 * MS) == "ok"  # the rest of the frame that had begun
    assert m.words == [5]


def test_a_frame_that_has_begun_is_completed_after_its_time() -> None:
    m = started()
    raw = answer(1, 4, [1, 2])
    assert m.feed(raw[:9], MS) == "more"
    assert m.expire(10 * MS) == "short"
    m.request(1, 4, 0, 1)
    m.sent(20 * MS)
    assert m.feed(raw[9:] + answer(1, 4, [3], TID + 1), 21 * MS) == "ok"
    assert (m.words, m.stats["short_frames"], m.stats["late"], m.broken) == ([3], 1, 1, False)


# ---------------------------------------------------------------- hostile headers, silence

@pytest.mark.parametrize("length", [0, 1, 255, 256, 4096, 65535])
@pytest.mark.parametrize("asked", [True, False])
def test_a_length_that_no_frame_has_breaks_the_connection(length: int, asked: bool) -> None:
    m = started() if asked else PyRtuMaster(tcp=True)
    assert m.feed(tcp(1, 4, 2, 0, 5, length=length), MS) == ("broken" if asked else "more")
    assert m.broken and not m.waiting and m.stats["crc_errors"] == 1
    assert m.feed(answer(1, 4, [1, 2]) * 100, 2 * MS) == "more"  # nothing behind it is believed
    m.reset(3 * MS)
    tid = int.from_bytes(m.request(1, 4, 0, 2)[:2], "big")
    m.sent(3 * MS)
    assert m.feed(answer(1, 4, [1, 2], tid), 4 * MS) == "ok" and not m.broken


@pytest.mark.parametrize("protocol", [1, 0x100, 0xFFFF])
def test_another_protocol_breaks_the_connection(protocol: int) -> None:
    m = started()
    assert m.feed(tcp(1, 4, 4, 0, 1, 0, 2, protocol=protocol), MS) == "broken"


def test_three_requests_without_any_answer_break_the_connection() -> None:
    m = PyRtuMaster(tcp=True, tid=0)
    for k in range(3):
        assert not m.broken
        m.request(1, 4, 0, 2)
        m.sent(k * 20 * MS, 10 * MS)
        assert m.expire(k * 20 * MS + 10 * MS) == "timeout"
    assert m.broken and m.stats["timeouts"] == 3


def test_an_answer_that_comes_late_shows_that_the_peer_is_there() -> None:
    m = PyRtuMaster(tcp=True, tid=0)
    for k in range(20):
        m.request(1, 4, 0, 2)
        m.sent(k * 20 * MS, 10 * MS)
        assert m.expire(k * 20 * MS + 10 * MS) == "timeout"
        assert m.feed(answer(1, 4, [1, 2], k), k * 20 * MS + 15 * MS) == "more"
    assert not m.broken and (m.stats["late"], m.stats["timeouts"]) == (20, 20)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.binary(max_size=700), st.integers(0, 3 * MS)), max_size=20), st.sampled_from([3, 4, 6, 16, 23]))
def test_arbitrary_bytes_never_hurt(chunks: list[tuple[bytes, int]], fc: int) -> None:
    m = PyRtuMaster(tcp=True, tid=0)
    t = 0
    for chunk, wait in chunks:
        if not m.waiting:
            m.request(unit=1, fc=fc, addr=0, count=4, values=[1] if fc == 6 else [1, 2])
            m.sent(t, timeout_ns=5 * MS)
        assert m.feed(chunk, t) in RESULTS
        t += wait
        assert m.expire(t) in RESULTS
    assert all(v >= 0 for v in m.stats.values())


@settings(max_examples=300)
@given(st.lists(st.integers(0, 65535), min_size=12, max_size=12), st.integers(0, 8), st.integers(1, 255))
def test_an_answer_with_a_broken_head_is_never_believed(words: list[int], at: int, bits: int) -> None:
    m = started(unit=1, fc=4, addr=0, count=12)
    raw = bytearray(answer(1, 4, words))
    raw[at] ^= bits
    assert m.feed(bytes(raw), MS) != "ok"
    if m.waiting:
        assert m.expire(10 * MS) in ("timeout", "short")


# ---------------------------------------------------------------- the same behaviour under both framings

class Framing:
    def __init__(self, name: str, wrap: Callable[..., bytes]) -> None:
        self.name, self.wrap = name, wrap

    def started(self, **ask: object) -> PyRtuMaster:
        m = PyRtuMaster(tcp=True, tid=TID) if self.name == "tcp" else PyRtuMaster(460800, 11)
        m.request(**(ask or dict(unit=1, fc=4, addr=0, count=2)))
        m.sent(0, timeout_ns=10 * MS)
        return m

    def read(self, unit: int, fc: int, words: list[int]) -> bytes:
        return self.wrap(unit, fc, 2 * len(words), *b"".join(struct.pack(">H", w) for w in words))


@pytest.fixture(params=["rtu", "tcp"])
def framing(request: pytest.FixtureRequest) -> Framing:
    return Framing(request.param, rtu if request.param == "rtu" else tcp)


class TestBothFramings:
    def test_good_answer(self, framing: Framing) -> None:
        m = framing.started()
        assert m.feed(framing.read(1, 4, [1, 65535]), 5 * MS) == "ok"
        assert (m.words, m.stats["transactions"]) == ([1, 65535], 1)

    def test_exception(self, framing: Framing) -> None:
        m = framing.started()
        assert m.feed(framing.wrap(1, 0x84, 2), 5 * MS) == "exception"
        assert (m.exception, m.stats["exceptions"], m.stats["crc_errors"]) == (2, 1, 0)

    @pytest.mark.parametrize("body", [(2, 4, 4, 0, 1, 0, 2), (1, 3, 4, 0, 1, 0, 2), (2, 0x84, 1), (9, 16, 0, 1, 0, 2)])
    def test_another_unit_or_function_is_counted_and_not_the_answer(self, framing: Framing, body: tuple[int, ...]) -> None:
        m = framing.started()
        assert m.feed(framing.wrap(*body), 5 * MS) == "more"
        assert m.stats["wrong_unit"] == 1
        assert m.feed(framing.read(1, 4, [7, 8]), 6 * MS) == "ok" and m.words == [7, 8]

    @pytest.mark.parametrize(("words", "result"), [([1], "short"), ([1, 2, 3], "long")])
    def test_fewer_or_more_registers(self, framing: Framing, words: list[int], result: str) -> None:
        m = framing.started()
        assert m.feed(framing.read(1, 4, words), 5 * MS) == result
        assert m.stats[f"{result}_frames"] == 1

    def test_silence(self, framing: Framing) -> None:
        m = framing.started()
        assert m.expire(10 * MS - 1) == "more" and m.expire(10 * MS) == "timeout" and m.stats["timeouts"] == 1

    def test_a_late_answer_is_counted_and_not_believed(self, framing: Framing) -> None:
        m = framing.started()
        m.expire(10 * MS)
        assert m.feed(framing.read(1, 4, [1, 2]), 12 * MS) == "more"
        assert (m.stats["late"], m.stats["wrong_unit"]) == (1, 0)

    @pytest.mark.parametrize("body", [(1, 6, 0, 5, 0, 78), (1, 6, 0, 6, 0, 77)])
    def test_fc06_repeats_address_and_value(self, framing: Framing, body: tuple[int, ...]) -> None:
        m = framing.started(unit=1, fc=6, addr=5, values=[77])
        assert m.feed(framing.wrap(*body), 5 * MS) == "more" and m.stats["wrong_unit"] == 1
        assert m.feed(framing.wrap(1, 6, 0, 5, 0, 77), 6 * MS) == "ok"
