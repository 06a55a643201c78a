"""CAN codec and framing: against cantools over random signals, against hand-worked lines and structs, under hostile bytes."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import replace
from typing import Any

import cantools.database.can as dbc
import pytest
from cantools.database.conversion import BaseConversion
from hal.can import (
    ErrorCounter,
    SlcanReader,
    checksum,
    decode_signal,
    encode_signal,
    frame_bits,
    from_socket,
    to_slcan,
    to_socket,
)
from hypothesis import given
from hypothesis import strategies as st

from hal.canrows import Frame, Mux, Signal

# ---------------------------------------------------------------- signals, cantools beside us

@st.composite
def signals(draw: st.DrawFn) -> Signal:
    """A signal that fits into 8 bytes."""
    real = draw(st.booleans())
    length = draw(st.sampled_from([32, 64])) if real else draw(st.integers(1, 64))
    first = draw(st.integers(0, 64 - length))  # bit on the wire (big) or in the integer (little)
    order = draw(st.sampled_from(["big", "little"]))
    start = 8 * (first // 8) + 7 - first % 8 if order == "big" else first
    scale = draw(st.sampled_from([1.0, 0.1, 0.01, 0.25, 4.0, 0.001]))
    return Signal("x", start, length, order, not real and draw(st.booleans()), real, scale, draw(st.sampled_from([0.0, -40.0, 273.0])))


def theirs(s: Signal, **more: Any) -> dbc.Signal:
    return dbc.Signal(
        s.name, s.start, s.length, f"{s.byte_order}_endian", s.signed,
        conversion=BaseConversion.factory(s.scale, s.offset, is_float=s.real), **more,
    )  # fmt: skip


def message(*rows: dbc.Signal, length: int = 8) -> dbc.Message:
    return dbc.Message(0x123, "m", length, list(rows), strict=True)


@given(signals(), st.binary(min_size=8, max_size=8))
def test_decode_is_cantools(s: Signal, data: bytes) -> None:
    value, how = decode_signal(s, data)
    expected = message(theirs(s)).decode(data)["x"]
    assert isinstance(expected, (int, float))
    if not math.isfinite(expected):
        assert how == "absent" and math.isnan(value)
    else:
        assert how == "ok" and value == pytest.approx(float(expected), rel=1e-12, abs=1e-9)


@given(signals(), st.data())
def test_encode_is_cantools_and_touches_no_other_bit(s: Signal, data: st.DataObject) -> None:
    if s.real:
        raw: float = struct.unpack("<f", struct.pack("<f", data.draw(st.floats(-1e6, 1e6))))[0]
    else:
        bits = min(s.length, 53) - s.signed
        raw = data.draw(st.integers(-(2**bits) + 1 if s.signed else 0, 2**bits - 1))
    value = raw * s.scale + s.offset
    before = data.draw(st.binary(min_size=8, max_size=8))
    got = encode_signal(s, value, before)
    assert got is not None
    back, how = decode_signal(s, got)
    assert how == "ok" and back == pytest.approx(value, rel=1e-6, abs=1e-6)
    if not s.real and abs(raw) < 2**40:
        assert encode_signal(s, value, bytes(8)) == message(theirs(s)).encode({"x": value}, strict=False)
    mask = int.from_bytes(message(theirs(replace_scale(s))).encode({"x": -1 if s.signed else 2**s.length - 1}), "big") if not s.real else 0
    if mask:
        assert (int.from_bytes(got, "big") ^ int.from_bytes(before, "big")) & ~mask == 0


def replace_scale(s: Signal) -> Signal:
    return Signal(s.name, s.start, s.length, s.byte_order, s.signed)


@given(st.integers(0, 255), st.binary(min_size=8, max_size=8))
def test_a_multiplexed_signal_is_there_only_under_its_number(number: int, data: bytes) -> None:
    mux = dbc.Signal("mux", 7, 8, "big_endian", is_multiplexer=True)
    s = Signal("x", 11, 13, "big", mux=Mux(7, 8, "big", number))
    m = message(mux, theirs(s, multiplexer_ids=[number], multiplexer_signal="mux"))
    value, how = decode_signal(s, data)
    if data[0] == number:
        assert how == "ok" and value == m.decode(data)["x"]
    else:
        assert how == "other"
    sent = encode_signal(s, 5.0, data)
    assert sent is not None and m.decode(sent) == {"mux": number, "x": 5}


def test_sign_magnitude_map_sentinel_range_and_a_short_frame() -> None:
    def row(**more: Any) -> Signal:
        return Signal("x", 16, 16, "little", True, **more)

    data = bytes.fromhex("7a13f2fe6b01")
    assert decode_signal(row(scale=0.1, sign=-1), data) == (pytest.approx(27.0), "ok")
    assert decode_signal(row(scale=0.1, magnitude=True), data) == (pytest.approx(27.0), "ok")
    assert decode_signal(row(map=((-270, 3.0),)), data) == (3.0, "ok")
    assert decode_signal(row(map=((1, 3.0),)), data)[1] == "absent"
    assert decode_signal(row(nan=(0xFEF2,)), data)[1] == "absent"
    assert decode_signal(row(lo=0.0), data)[1] == "range"
    assert decode_signal(row(), data[:4])[1] == "ok" and decode_signal(row(), data[:3])[1] == "short"
    assert decode_signal(Signal("x", 7, 12, "big"), b"\x01")[1] == "short"


def test_what_leaves_the_numbers_a_double_holds_is_none_and_is_not_sent() -> None:
    row = Signal("x", 0, 64, real=True, scale=10.0)
    value, how = decode_signal(row, struct.pack("<d", 1e308))
    assert math.isnan(value) and how == "range"
    assert encode_signal(replace(row, scale=0.1), 1e308, bytes(8)) is None


@given(
    st.one_of(st.floats(-1e9, 1e9), st.floats(-40_000.0, 40_000.0)), st.sampled_from([1, -1]), st.sampled_from([1.0, 10.0, 100.0]),
    st.booleans(), st.integers(0, 32767),
)  # fmt: skip
def test_a_power_never_grows_by_rounding_or_saturation(value: float, sign: int, scale: float, signed: bool, zero: int) -> None:
    """`zero`: the raw number that says 0 W."""
    s = Signal("p_cmd_w", 0, 16, "little", signed, scale=scale, offset=-zero * scale, sign=sign, toward_zero=True)
    data = encode_signal(s, value, bytes(8))
    assert data is not None
    back = decode_signal(s, data)[0]
    assert abs(back) <= abs(value) * (1 + 1e-9) and back * value >= 0.0
    assert encode_signal(s, math.nan, bytes(8)) is None and encode_signal(s, math.inf, bytes(8)) is None


def test_a_counter_wraps_and_a_value_saturates() -> None:
    assert encode_signal(Signal("x", 0, 4, wrap=True), 17.0, bytes(1)) == b"\x01"
    assert encode_signal(Signal("x", 0, 4), 17.0, bytes(1)) == b"\x0f"


# ---------------------------------------------------------------- checksums, bits on the wire

def test_crc8_j1850_is_the_published_one() -> None:
    # AUTOSAR Specification of CRC Routines, 7.2.1.1: check values of CRC8 SAE J1850
    for data, crc in (("00000000", 0x59), ("F20183", 0x37), ("0FAA0055", 0x79), ("00FF5511", 0xB8), ("332255AABBCCDDEEFF", 0xCB)):
        assert checksum("crc8_j1850", bytes.fromhex(data), -1) == crc
    assert checksum("xor", bytes([1, 2, 4, 0xFF]), 3) == 7
    assert checksum("sum", bytes([0xFF, 2, 4]), -1) == 5
    assert checksum("xor", b"\x01", -1, 0x10) == 0x11
    assert checksum("crc8_j1850", b"\x01\x83", -1, 0xF2) == 0x37


def bits_by_hand(f: Frame) -> int:
    """The same figure from strings: ISO 11898-1, frame fields, CRC15 (0x4599), a stuff bit after five equal ones."""
    if f.ext:
        head = f"0{f.id >> 18:011b}11{f.id & 0x3FFFF:018b}{int(f.rtr)}00{len(f.data):04b}"
    else:
        head = f"0{f.id:011b}{int(f.rtr)}00{len(f.data):04b}"
    head += "" if f.rtr else "".join(f"{b:08b}" for b in f.data)
    crc = int(head + "0" * 15, 2)
    for i in range(len(head) + 14, 14, -1):
        if crc >> i & 1:
            crc ^= 0xC599 << (i - 15)
    stuffed, run = "", ""
    for c in head + f"{crc:015b}":
        run = run + c if run[-1:] == c else c
        stuffed += c
        if len(run) == 5:
            run = "1" if c == "0" else "0"
            stuffed += run
    return len(stuffed) + 1 + 2 + 7 + 3


@given(st.integers(0, 2**29 - 1), st.binary(max_size=8), st.booleans(), st.booleans())
def test_bits_on_the_wire_are_exact(number: int, data: bytes, ext: bool, rtr: bool) -> None:
    f = Frame(number if ext else number & 0x7FF, data, ext, rtr)
    n = 0 if rtr else len(data)
    nominal = (67 if ext else 47) + 8 * n
    assert frame_bits(f) == bits_by_hand(f)
    assert nominal <= frame_bits(f) <= nominal + ((54 if ext else 34) + 8 * n - 1) // 4


# ---------------------------------------------------------------- slcan

@given(st.integers(0, 2**29 - 1), st.binary(max_size=8), st.booleans(), st.booleans(), st.integers(1, 7))
def test_slcan_there_and_back_in_any_pieces(number: int, data: bytes, ext: bool, rtr: bool, piece: int) -> None:
    f = Frame(number if ext else number & 0x7FF, b"" if rtr else data, ext, rtr)
    line = to_slcan(f)
    reader = SlcanReader()
    got = [x for i in range(0, len(line), piece) for x in reader.feed(line[i : i + piece])]
    assert got == [("frame", f)]


def test_slcan_lines_of_the_manual() -> None:
    assert to_slcan(Frame(0x100, bytes.fromhex("1122"))) == b"t10021122\r"
    assert to_slcan(Frame(0x12ABCDEF, b"\x33", ext=True)) == b"T12ABCDEF133\r"
    assert to_slcan(Frame(0x7FF, b"", rtr=True)) == b"r7FF0\r"
    reader = SlcanReader()
    assert reader.feed(b"\rz\rZ\r\x07F25\rV1013\rNA123\r") == [
        ("ok", None), ("ok", None), ("ok", None), ("error", None), ("status", 0x25), ("text", None), ("text", None),
    ]  # fmt: skip
    assert reader.feed(b"t100211220A5F\r") == [("frame", Frame(0x100, bytes.fromhex("1122")))]  # Z1: a timestamp follows
    assert reader.feed(b"r1004\r")[0][1].rtr  # a remote request names a length and has no data


@pytest.mark.parametrize(
    "line",
    [
        b"t1", b"t8001AA", b"t1009" + b"00" * 9, b"t10021G22", b"t100211", b"t1002112", b"T20000000011", b"q", b"F2", b"zz",
        b"t10021122A",
    ],
)
def test_wrong_slcan_lines_are_junk_and_cost_nothing_else(line: bytes) -> None:
    reader = SlcanReader()
    assert reader.feed(line + b"\rt10021122\r") == [("junk", None), ("frame", Frame(0x100, bytes.fromhex("1122")))]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_hostile_slcan_is_bounded_and_the_next_line_is_read(pieces: list[bytes]) -> None:
    reader = SlcanReader()
    total = sum(map(len, pieces))
    found = list(itertools.chain.from_iterable(reader.feed(p) for p in pieces))
    assert len(found) <= total
    assert all(len(x.data) <= 8 for what, x in found if what == "frame")
    reader.feed(b"\r")
    assert reader.feed(b"t10021122\r") == [("frame", Frame(0x100, bytes.fromhex("1122")))]


def test_a_line_without_end_counts_once() -> None:
    reader = SlcanReader()
    assert reader.feed(b"t" * 10_000) == [] and reader.feed(b"\r") == [("junk", None)]


# ---------------------------------------------------------------- SocketCAN

@given(st.integers(0, 2**29 - 1), st.binary(max_size=8), st.booleans(), st.booleans())
def test_socketcan_is_python_cans_layout(number: int, data: bytes, ext: bool, rtr: bool) -> None:
    import can
    from can.interfaces.socketcan.socketcan import build_can_frame

    f = Frame(number if ext else number & 0x7FF, b"" if rtr else data, ext, rtr)
    theirs = can.Message(arbitration_id=f.id, data=f.data, is_extended_id=ext, is_remote_frame=rtr)
    ours, built = bytearray(to_socket(f)), bytearray(build_can_frame(theirs))
    built[7] = 0  # len8_dlc: of use to DLCs above 8 alone (linux/can.h)
    assert ours == built
    assert from_socket(build_can_frame(theirs)) == f


def test_other_sizes_than_a_classic_frames_are_none() -> None:
    assert [n for n in (0, 15, 16, 17, 72) if from_socket(bytes(n)) is not None] == [16]  # 72: struct canfd_frame
    assert from_socket(struct.pack("<IB3x8s", 0x123, 9, b"")) is None
    with pytest.raises(ValueError):
        to_socket(Frame(0x800, b""))
    with pytest.raises(ValueError):
        to_socket(Frame(0x123, bytes(9)))


def test_error_frames_count_and_name_the_state() -> None:
    e = ErrorCounter()
    crtl = lambda bits: Frame(0x4, bytes([0, bits, 0, 0, 0, 0, 0, 0]))  # noqa: E731
    e.socket(crtl(0x08))
    e.socket(crtl(0x08))
    assert (e.counts()["warning"], e.counts()["state"]) == (1, "warning")
    e.socket(crtl(0x20))
    e.socket(Frame(0x40, bytes(8)))
    assert (e.counts()["passive"], e.counts()["bus_off"], e.counts()["state"]) == (1, 1, "bus_off")
    e.socket(Frame(0x100, bytes(8)))
    assert (e.counts()["restarted"], e.counts()["state"]) == (1, "active")
    e.socket(crtl(0x01))
    e.socket(Frame(0x28, bytes(8)))
    assert (e.counts()["overrun"], e.counts()["no_ack"], e.counts()["protocol"]) == (1, 1, 1)
    e.status(0x20)
    e.status(0x20)
    e.status(0x00)
    assert (e.counts()["passive"], e.counts()["state"]) == (2, "active")
