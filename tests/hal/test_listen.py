"""The listener hears what two machines say, in whatever pieces, with noise between, and finds the next frame again."""

from __future__ import annotations

import struct

import pytest
from hal.modbus import PyRtuMaster
from hypothesis import given
from hypothesis import strategies as st

from hal.listen import ANSWER, EXCEPTION, NOISE, QUIET_NS, REQUEST, SILENCE, Heard, Listener
from tests.bench.rtu import read_frame, with_crc, write_frame

MS = 1_000_000
CHAR_NS = 11 * 1_000_000_000 // 19200


def answer(unit: int, words: list[int], fc: int = 3) -> bytes:
    return with_crc(struct.pack(f">BBB{len(words)}H", unit, fc, 2 * len(words), *words))


class Line:
    """Puts frames on a line of 19200 8E1 and listens."""

    def __init__(self) -> None:
        self.listener, self.now, self.heard = Listener(19200), 1_000 * MS, list[Heard]()

    def say(self, raw: bytes, after_ns: int = 5 * MS, pieces: int = 0) -> None:
        self.now += after_ns
        step = pieces or len(raw)
        for i in range(0, len(raw), step):
            part = raw[i : i + step]
            self.now += len(part) * CHAR_NS
            self.heard += self.listener.feed(part, self.now)

    def quiet(self) -> None:
        self.now += 2 * QUIET_NS
        self.heard += self.listener.expire(self.now)

    def kinds(self) -> list[str]:
        return [h.kind for h in self.heard]


@pytest.mark.parametrize("pieces", [0, 1, 3, 7])
def test_request_and_answer_are_a_pair(pieces: int) -> None:
    line = Line()
    line.say(read_frame(7, 19000, 3), pieces=pieces)
    line.say(answer(7, [0x4366, 0, 0x4367]), after_ns=8 * MS, pieces=pieces)
    ask, got = line.heard
    assert (ask.kind, ask.unit, ask.fc, ask.addr, ask.count, ask.gap_ns) == (REQUEST, 7, 3, 19000, 3, -1)
    assert (got.kind, got.unit, got.addr, got.count, got.words) == (ANSWER, 7, 19000, 3, [0x4366, 0, 0x4367])
    assert got.delay_ns == pytest.approx(8 * MS, abs=1000) and got.gap_ns == pytest.approx(8 * MS, abs=1000) and not got.close


def test_an_answer_sooner_than_three_and_a_half_characters_is_marked() -> None:
    line = Line()
    line.say(read_frame(7, 0, 1))
    line.say(answer(7, [1]), after_ns=1 * MS)  # t3.5 at 19200 8E1: 2.005 ms
    assert line.heard[1].close and not line.heard[0].close
    assert line.listener.t35_ns == pytest.approx(3.5 * CHAR_NS, rel=1e-3)


def test_writes_carry_what_they_write_and_both_directions_of_fc06_are_told_apart() -> None:
    line = Line()
    line.say(write_frame(1, 200, [1, 0xFE0C]))
    line.say(with_crc(struct.pack(">BBHH", 1, 16, 200, 2)))
    single = with_crc(struct.pack(">BBHH", 1, 6, 211, 5))
    line.say(single)
    line.say(single)
    line.say(with_crc(struct.pack(">BBHHHHB2H", 1, 23, 10, 1, 200, 2, 4, 7, 8)))
    line.say(answer(1, [9], fc=23))
    assert line.kinds() == [REQUEST, ANSWER] * 3
    assert (line.heard[0].waddr, line.heard[0].written_words) == (200, [1, 0xFE0C]) and line.heard[1].waddr == 200
    assert (line.heard[2].waddr, line.heard[2].written_words) == (211, [5])
    assert (line.heard[4].addr, line.heard[4].waddr, line.heard[4].written_words, line.heard[5].words) == (10, 200, [7, 8], [9])


def test_exceptions_silence_and_broadcasts() -> None:
    line = Line()
    line.say(read_frame(3, 40000, 2))
    line.say(with_crc(bytes([3, 0x83, 2])))
    line.say(read_frame(4, 0, 1))
    line.say(read_frame(5, 0, 1))
    line.say(with_crc(struct.pack(">BBHH", 0, 6, 1, 1)))
    line.heard += line.listener.end()
    assert line.kinds() == [REQUEST, EXCEPTION, REQUEST, SILENCE, REQUEST, SILENCE, REQUEST]
    assert line.heard[1].data == b"\x02" and line.heard[1].addr == 40000
    assert [h.unit for h in line.heard if h.kind == SILENCE] == [4, 5]


def test_a_wrong_crc_is_noise_and_the_next_frame_is_found() -> None:
    line = Line()
    bad = bytearray(answer(7, [1, 2, 3]))
    bad[5] ^= 1
    line.say(read_frame(7, 0, 3))
    line.say(bytes(bad))
    line.say(read_frame(8, 0, 1))
    line.say(answer(8, [5]))
    line.quiet()
    assert line.kinds() == [REQUEST, NOISE, SILENCE, REQUEST, ANSWER] and line.heard[1].raw == bytes(bad)


def test_half_a_frame_is_noise_after_a_silence() -> None:
    line = Line()
    line.say(answer(7, [1, 2, 3])[:6])
    assert line.heard == []
    line.quiet()
    assert line.kinds() == [NOISE]
    line.say(read_frame(8, 0, 1))
    assert line.kinds() == [NOISE, REQUEST]


def test_an_answer_whose_request_was_not_heard_has_no_address() -> None:
    line = Line()
    line.say(answer(7, [1, 2]))
    (heard,) = line.heard
    assert (heard.kind, heard.addr, heard.words) == (ANSWER, -1, [1, 2])


def test_it_hears_every_frame_that_the_master_sends() -> None:
    line, master = Line(), PyRtuMaster(19200, 11)
    for fc, addr, count, values in ((3, 0, 125, ()), (4, 65535, 1, ()), (6, 5, 0, (9,)), (16, 7, 0, tuple(range(123))), (23, 1, 2, (3, 4))):
        line.say(master.request(9, fc, addr, count, values))
        master.abort(0)
    asked = [h for h in line.heard if h.kind == REQUEST]
    assert [h.fc for h in asked] == [3, 4, 6, 16, 23] and NOISE not in line.kinds()
    assert asked[3].written_words == list(range(123))


@given(st.lists(st.binary(min_size=0, max_size=40), max_size=8), st.integers(1, 300))
def test_whatever_comes_nothing_is_lost_and_it_holds_little(chunks: list[bytes], pieces: int) -> None:
    line = Line()
    frames = read_frame(1, 0, 2)
    total = b""
    for chunk in chunks:
        for part in (chunk, frames):
            if part:
                line.say(part, pieces=pieces)
                total += part
    line.heard += line.listener.end()
    assert b"".join(h.raw for h in line.heard if h.kind != SILENCE) == total
    assert len(line.listener._buf) == 0


@given(st.binary(max_size=3000))
def test_the_buffer_is_bounded(data: bytes) -> None:
    line = Listener(115200)
    for i in range(0, len(data), 64):
        line.feed(data[i : i + 64], i * 1000)
        assert len(line._buf) <= 256 + 64
