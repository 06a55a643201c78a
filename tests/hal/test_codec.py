"""Registers <-> SI values, against struct and plain arithmetic."""

from __future__ import annotations

import math
import struct

import pytest
from hal.codec import decode_words, encode_words
from hypothesis import given
from hypothesis import strategies as st

from hal.rows import TYPE_WORDS, Encode, Field, to_words

CODES = {"u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "u64": "Q", "i64": "q"}
RANGES = {"u16": (0, 65535), "i16": (-32767, 32767), "u32": (0, 2**32 - 1), "i32": (-(2**31) + 1, 2**31 - 1)}
orders = st.sampled_from(["big", "little"])


@given(st.sampled_from(sorted(CODES)), st.binary(min_size=8, max_size=8), orders, orders)
def test_decode_equals_struct(type_: str, raw: bytes, word_order: str, byte_order: str) -> None:
    raw = raw[: 2 * TYPE_WORDS[type_]]
    expected = float(struct.unpack(">" + CODES[type_], raw)[0])
    words = [int.from_bytes(raw[i : i + 2], byte_order) for i in range(0, len(raw), 2)]  # type: ignore[arg-type]
    if word_order == "little":
        words.reverse()
    got = decode_words(Field("grid_p_w", 0, type_, word_order=word_order, byte_order=byte_order), words)
    assert got == expected or (math.isnan(got) and not math.isfinite(expected))


def test_scale_sign_offset_mask_map_sentinel_range() -> None:
    def row(**more: object) -> Field:
        return Field("grid_p_w", 5, "i16", **more)  # type: ignore[arg-type]

    assert decode_words(row(scale=10.0, offset=3.0, sign=-1), [0xFFFE]) == 17.0
    assert decode_words(row(mask=0x0F00), [0x0A55]) == 10.0
    assert decode_words(row(map=((1, 7.0), (-2, 3.0))), [0xFFFE]) == 3.0
    assert math.isnan(decode_words(row(map=((1, 7.0),)), [2]))
    assert math.isnan(decode_words(row(nan=(0x8000,)), [0x8000]))
    assert math.isnan(decode_words(row(lo=0.0, hi=10.0), [11]))
    assert decode_words(row(lo=0.0, hi=10.0), [10]) == 10.0


@given(
    st.sampled_from(sorted(RANGES)),
    st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.floats(-40_000.0, 40_000.0)),
    st.sampled_from([0.001, 0.01, 0.1, 1.0, 10.0, 100.0]),
    st.sampled_from([1, -1]),
    st.integers(0, 32767),
)
def test_a_power_never_grows_by_rounding_or_saturation(type_: str, value: float, scale: float, sign: int, zero: int) -> None:
    """`zero`: the raw number that says 0 W."""
    words = encode_words(Encode(0, type_, "p_cmd_w", scale=scale, offset=-zero * scale, sign=sign, toward_zero=True), value)
    assert words is not None
    raw = struct.unpack(">" + CODES[type_], b"".join(w.to_bytes(2, "big") for w in words))[0]
    assert RANGES[type_][0] <= raw <= RANGES[type_][1]
    said = (raw - zero) * scale
    assert abs(said) <= abs(value) * (1 + 1e-9) and sign * said * value >= 0.0
    if (RANGES[type_][0] - zero) * scale < sign * value < (RANGES[type_][1] - zero) * scale:
        assert abs(sign * said - value) <= scale * (1 + 1e-6)


@given(st.integers(-(2**31) + 1, 2**31 - 1), orders, orders)
def test_encode_and_decode_are_inverse(value: int, word_order: str, byte_order: str) -> None:
    words = encode_words(Encode(0, "i32", "p_cmd_w", word_order=word_order, byte_order=byte_order), float(value))
    assert words == list(to_words(value, "i32", word_order, byte_order))
    assert decode_words(Field("grid_p_w", 0, "i32", word_order=word_order, byte_order=byte_order), words) == value


def test_decimal_scales_do_not_lose_a_step() -> None:
    register = Encode(0, "i32", "p_cmd_w", scale=0.1, toward_zero=True)
    for tenths in range(-3000, 3000, 7):
        assert encode_words(register, tenths / 10) == list(to_words(tenths, "i32"))


@pytest.mark.parametrize("type_", sorted(CODES))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_sent(type_: str, bad: float) -> None:
    assert encode_words(Encode(0, type_, "p_cmd_w"), bad) is None


def test_counters_wrap_and_floats_saturate() -> None:
    assert encode_words(Encode(0, "u16", "heartbeat", wrap=True), 65537.0) == [1]
    assert encode_words(Encode(0, "u16", "heartbeat"), 65537.0) == [65535]
    (value,) = struct.unpack(">f", struct.pack(">HH", *encode_words(Encode(0, "f32", "p_cmd_w"), 1e300)))
    assert math.isfinite(value) and value > 3e38


@pytest.mark.parametrize(("type_", "words"), [("i64", [0x7FFF, 0, 0, 0]), ("i64", [0x8000, 0, 0, 0]), ("f32", [0x7F00, 0])])
def test_a_value_that_leaves_what_a_double_holds_is_none(type_: str, words: list[int]) -> None:
    assert math.isnan(decode_words(Field("grid_p_w", 0, type_, scale=1e300), words))
