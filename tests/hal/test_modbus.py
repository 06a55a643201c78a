"""Modbus RTU master: golden frames, the ways a line lies, and arbitrary bytes."""

from __future__ import annotations

import struct

import pytest
from hal.modbus import RESULTS, PyRtuMaster, crc
from hypothesis import given, settings
from hypothesis import strategies as st

MS = 1_000_000

# request -> frame; CRCs from the frames printed in public Modbus material and checked against pymodbus below
GOLDEN = [
    (dict(unit=17, fc=3, addr=0x6B, count=3), "11 03 00 6B 00 03 76 87"),
    (dict(unit=1, fc=4, addr=8, count=1), "01 04 00 08 00 01 B0 08"),
    (dict(unit=17, fc=6, addr=1, values=[3]), "11 06 00 01 00 03 9A 9B"),
    (dict(unit=17, fc=16, addr=1, values=[10, 0x0102]), "11 10 00 01 00 02 04 00 0A 01 02 C6 F0"),
]


def frame(*body: int) -> bytes:
    raw = bytes(body)
    return raw + struct.pack("<H", crc(raw))


def answer(unit: int, fc: int, words: list[int]) -> bytes:
    return frame(unit, fc, 2 * len(words), *b"".join(struct.pack(">H", w) for w in words))


def started(baud: int = 460800, **ask: object) -> tuple[PyRtuMaster, bytes]:
    m = PyRtuMaster(baud, 11)
    tx = m.request(**(ask or dict(unit=1, fc=4, addr=0, count=2)))
    m.sent(0, timeout_ns=10 * MS)
    return m, tx


@pytest.mark.parametrize(("ask", "expected"), GOLDEN)
def test_golden_requests(ask: dict[str, object], expected: str) -> None:
    assert PyRtuMaster().request(**ask) == bytes.fromhex(expected)


def test_golden_fc23() -> None:
    tx = PyRtuMaster().request(unit=1, fc=23, addr=3, count=6, waddr=14, values=[255, 255, 255])
    assert tx[:-2] == bytes.fromhex("01 17 0003 0006 000E 0003 06 00FF 00FF 00FF")
    assert crc(tx[:-2]) == int.from_bytes(tx[-2:], "little")


@given(st.binary(min_size=1, max_size=250))
def test_crc_equals_pymodbus(data: bytes) -> None:
    from pymodbus.framer.rtu import FramerRTU

    assert int.from_bytes(struct.pack("<H", crc(data)), "big") == FramerRTU.compute_CRC(data)


def test_frames_equal_pymodbus() -> None:
    from pymodbus.framer.rtu import FramerRTU
    from pymodbus.pdu import DecodePDU
    from pymodbus.pdu import register_message as pdu

    framer = FramerRTU(DecodePDU(False))
    cases = [
        (pdu.ReadInputRegistersRequest(address=5, count=12, dev_id=9), dict(unit=9, fc=4, addr=5, count=12)),
        (
            pdu.ReadHoldingRegistersRequest(address=40000, count=125, dev_id=247),
            dict(unit=247, fc=3, addr=40000, count=125),
        ),
        (
            pdu.WriteSingleRegisterRequest(address=7, registers=[65535], dev_id=1),
            dict(unit=1, fc=6, addr=7, values=[65535]),
        ),
        (
            pdu.WriteMultipleRegistersRequest(address=40092, registers=[1, 1, 0xFFFF, 0xFF38], dev_id=2),
            dict(unit=2, fc=16, addr=40092, values=[1, 1, 0xFFFF, 0xFF38]),
        ),
    ]
    for request, ask in cases:
        assert PyRtuMaster().request(**ask) == framer.buildFrame(request)


@pytest.mark.parametrize(
    "ask",
    [
        dict(unit=0, fc=3, addr=0, count=1),
        dict(unit=256, fc=3, addr=0, count=1),
        dict(unit=1, fc=3, addr=0, count=126),
        dict(unit=1, fc=3, addr=65535, count=2),
        dict(unit=1, fc=3, addr=0, count=0),
        dict(unit=1, fc=16, addr=0, values=[0] * 124),
        dict(unit=1, fc=23, addr=0, count=1, values=[0] * 122),
        dict(unit=1, fc=5, addr=0, values=[1]),
        dict(unit=1, fc=6, addr=0, values=[65536]),
    ],
)
def test_no_such_request(ask: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PyRtuMaster().request(**ask)


def test_silence_and_nominal_times() -> None:
    m, _ = started(unit=1, fc=4, addr=0, count=12)
    char = m.char_ns
    assert (char, m.t35_ns) == (23872, 1750000)
    assert m.nominal_ns == 8 * char + 1750000 + 29 * char  # 2.633 ms: the figure of the bus plan
    assert m.feed(answer(1, 4, [0] * 12), m.nominal_ns) == "ok"
    assert m.ready_ns == m.nominal_ns + 1750000
    assert PyRtuMaster(9600, 11).t35_ns == 4010417
    assert PyRtuMaster(19200, 11).t35_ns == 2005208


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=125), st.data())
def test_any_chunking_of_a_good_answer(words: list[int], data: st.DataObject) -> None:
    m, _ = started(unit=3, fc=3, addr=100, count=len(words))
    raw = answer(3, 3, words)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=8)))
    t = m.nominal_ns
    for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        result = m.feed(raw[a:b], t)
        assert result == ("ok" if b == len(raw) else "more")
    assert m.words == words
    assert not m.waiting


def test_exception_is_told_apart() -> None:
    m, _ = started()
    assert m.feed(frame(1, 0x84, 2), 5 * MS) == "exception"
    assert (m.exception, m.stats["exceptions"], m.stats["crc_errors"]) == (2, 1, 0)


def test_crc_error_ends_at_once_and_is_counted() -> None:
    m, _ = started()
    raw = bytearray(answer(1, 4, [1, 2]))
    raw[4] ^= 1
    assert m.feed(bytes(raw), 5 * MS) == "crc"
    assert m.stats["crc_errors"] == 1


@pytest.mark.parametrize("other", [answer(2, 4, [1, 2]), answer(1, 3, [1, 2]), frame(2, 0x84, 1), frame(9, 16, 0, 1, 0, 2)])
def test_wrong_unit_or_function_is_not_the_answer(other: bytes) -> None:
    m, _ = started()
    assert m.feed(other, 5 * MS) == "more"
    assert m.stats["wrong_unit"] == 1
    assert m.feed(answer(1, 4, [7, 8]), 6 * MS) == "ok"
    assert m.words == [7, 8]


def test_short_and_long_answers() -> None:
    m, _ = started()
    assert m.feed(answer(1, 4, [1]), 5 * MS) == "short"
    m, _ = started()
    assert m.feed(answer(1, 4, [1, 2, 3]), 5 * MS) == "long"
    m, _ = started()
    assert m.feed(answer(1, 4, [1, 2])[:6], 5 * MS) == "more"
    assert m.expire(m.deadline_ns) == "short"
    assert m.stats["short_frames"] == 1
    m, _ = started()
    assert m.feed(answer(1, 4, [1, 2]) + b"\x00\x00", 5 * MS) == "ok"  # unasked bytes behind a good answer
    assert m.stats["long_frames"] == 1
    m, _ = started()
    assert m.feed(b"\x00" + answer(1, 4, [5, 6]), 5 * MS) == "ok"  # driver turn-on glitch in front
    assert (m.words, m.stats["long_frames"]) == ([5, 6], 1)


def test_nothing_at_all_is_a_timeout() -> None:
    m, _ = started()
    assert m.expire(10 * MS - 1) == "more"
    assert m.expire(10 * MS) == "timeout"
    assert m.stats["timeouts"] == 1


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("ask", [dict(unit=1, fc=4, addr=0, count=2), dict(unit=1, fc=16, addr=5, values=[1, 2])])
def test_own_echo_is_taken_off(ask: dict[str, object], joined: bool) -> None:
    m, tx = started(**ask)
    good = answer(1, 4, [1, 2]) if ask["fc"] == 4 else frame(*tx[:6])
    if joined:
        assert m.feed(tx + good, 5 * MS) == "ok"
    else:
        assert m.feed(tx[:5], m.char_ns * 5) == "more"
        assert m.feed(tx[5:], m.char_ns * len(tx)) == "more"
        assert m.feed(good, 5 * MS) == "ok"
    assert (m.stats["echoes"], m.echo) == (1, 1)


def test_fc06_echo_is_not_its_answer() -> None:
    ask = dict(unit=1, fc=6, addr=5, values=[77])
    m, tx = started(**ask)
    assert m.feed(tx, 8 * m.char_ns) == "more"  # sooner than request + answer fit on the wire
    assert m.stats["echoes"] == 1
    assert m.feed(tx, 4 * MS) == "ok"
    m, tx = started(**ask)
    assert m.feed(tx + tx, 4 * MS) == "ok"  # both copies in one read
    assert m.stats["echoes"] == 1
    m, tx = started(**ask)
    assert m.feed(tx, 4 * MS) == "ok"  # one copy in its time on a line not known to echo
    assert m.stats["echoes"] == 0


def test_fc06_on_a_line_known_to_echo() -> None:
    m = PyRtuMaster(460800, 11)
    tx = m.request(unit=1, fc=4, addr=0, count=1)
    m.sent(0)
    assert m.feed(tx + answer(1, 4, [1]), 3 * MS) == "ok"
    tx = m.request(unit=1, fc=6, addr=5, values=[1])
    m.sent(10 * MS, timeout_ns=20 * MS)
    assert m.feed(tx, 26 * MS) == "more"  # the echo, kept back by a USB adapter's latency timer: not an answer
    assert m.expire(30 * MS) == "timeout"


def test_late_answer_before_the_next_request() -> None:
    m, _ = started()
    m.expire(10 * MS)
    assert m.feed(answer(1, 4, [1, 2]), 12 * MS) == "more"
    assert m.stats["late"] == 1
    assert m.ready_ns == 12 * MS + m.t35_ns  # the line must be quiet again first


def test_late_answer_of_another_shape_is_not_taken() -> None:
    m, _ = started()
    m.expire(10 * MS)
    m.request(unit=1, fc=4, addr=0, count=1)
    m.sent(20 * MS, timeout_ns=10 * MS)
    assert m.feed(answer(1, 4, [1, 2]), 24 * MS) == "more"
    assert (m.stats["late"], m.stats["long_frames"]) == (1, 0)
    assert m.feed(answer(1, 4, [9]), 25 * MS) == "ok"
    assert m.words == [9]


@pytest.mark.parametrize("when_chars", [0.2, 6, 15])
def test_late_answer_of_the_same_shape_too_soon(when_chars: float) -> None:
    m, _ = started()
    m.expire(10 * MS)
    m.request(unit=1, fc=4, addr=0, count=2)
    m.sent(20 * MS, timeout_ns=10 * MS)
    assert m.feed(answer(1, 4, [1, 2]), 20 * MS + int(when_chars * m.char_ns)) == "more"
    assert m.stats["late"] == 1
    assert m.feed(answer(1, 4, [3, 4]), 23 * MS) == "ok"
    assert m.words == [3, 4]


def test_late_answer_that_began_during_our_request() -> None:
    m, _ = started()
    m.expire(10 * MS)
    m.request(unit=1, fc=4, addr=0, count=2)
    m.sent(20 * MS, timeout_ns=10 * MS)
    late = answer(1, 4, [1, 2])
    assert m.feed(late[:3], 20 * MS + 2 * m.char_ns) == "more"
    assert m.feed(late[3:], 22 * MS) == "more"
    assert m.stats["late"] == 1


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.binary(max_size=700), st.integers(0, 3 * MS)), max_size=20),
    st.sampled_from([3, 4, 6, 16, 23]),
)
def test_arbitrary_bytes_never_hurt(chunks: list[tuple[bytes, int]], fc: int) -> None:
    m = PyRtuMaster(115200, 11)
    t = 0
    for chunk, wait in chunks:
        if not m.waiting and t >= m.ready_ns:
            m.request(unit=1, fc=fc, addr=0, count=4, values=[1] if fc == 6 else [1, 2])
            m.sent(t, timeout_ns=5 * MS)
        assert m.feed(chunk, t) in RESULTS
        t += wait
        assert m.expire(t) in RESULTS
    s = m.stats
    assert all(v >= 0 for v in s.values())


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 65535), min_size=12, max_size=12),
    st.lists(st.tuples(st.integers(0, 28), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_mutated_answer_is_never_believed(words: list[int], flips: list[tuple[int, int]]) -> None:
    m, _ = started(unit=1, fc=4, addr=0, count=12)
    raw = bytearray(answer(1, 4, words))
    for at, bits in flips:
        raw[at] ^= bits
    good = answer(1, 4, words)
    if bytes(raw) == good or crc(bytes(raw[:-2])) == int.from_bytes(raw[-2:], "little"):
        return  # flips cancelled out, or the 1 in 65536
    assert m.feed(bytes(raw), 5 * MS) not in ("ok", "exception")


def test_babbling_line_ends_the_wait() -> None:
    m, _ = started()
    assert m.feed(b"\x55" * 540, 5 * MS) == "more"
    assert m.feed(b"\x55" * 20, 5 * MS) == "long"
    for i in range(10):
        m.feed(b"\x55" * 4000, (6 + i) * MS)
    assert m.ready_ns == 15 * MS + m.t35_ns


def test_echo_of_fc16_in_pieces_is_not_a_broken_answer() -> None:
    m, tx = started(unit=1, fc=16, addr=5, values=[1, 2])
    assert m.feed(tx[:10], 10 * m.char_ns) == "more"  # an answer has eight bytes, six of them the same
    assert m.feed(tx[10:], len(tx) * m.char_ns) == "more"
    assert m.feed(frame(*tx[:6]), 5 * MS) == "ok"
    assert (m.stats["echoes"], m.stats["crc_errors"]) == (1, 0)
