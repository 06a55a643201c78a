"""The two codecs alone, with rows no profile has: registers and payload bits against a reading in plain Python."""

from __future__ import annotations

import math
import struct

from hal.can import decode_signal, encode_signal
from hal.codec import decode_words, encode_words

from hal.canrows import Mux, Place, Signal
from hal.rows import TYPE_WORDS, TYPES, Encode, Field
from tests.fuzz.image import check_value
from tests.fuzz.take import Take

WIDTH = {"u16": 16, "i16": 16, "u32": 32, "i32": 32, "f32": 32, "u64": 64, "i64": 64}


def codec(data: bytes) -> None:
    """One row and its bytes."""
    take = Take(data)
    for _ in range(8):
        if not take.more:
            return
        (_registers, _payload)[take.below(2)](take)


def _scaling(take: Take) -> dict[str, float | int]:
    scale = abs(take.finite(1.0)) or 1.0
    lo, hi = sorted((take.finite(0.0), take.finite(0.0)))
    if take.below(4) == 0 or lo == hi:
        lo, hi = -math.inf, math.inf
    return {"scale": scale, "offset": take.finite(0.0), "sign": 1 if take.below(2) else -1, "lo": lo, "hi": hi}


def _registers(take: Take) -> None:
    type_ = TYPES[take.below(len(TYPES))]
    orders = [("big", "little")[take.below(2)] for _ in range(2)]
    coding = {"type": type_, "word_order": orders[0], "byte_order": orders[1]} | _scaling(take)
    mask = 0 if type_ == "f32" else take.int(8) & (1 << WIDTH[type_]) - 1 if take.below(2) else 0
    nan = tuple(take.int(WIDTH[type_] // 8) for _ in range(take.below(5)))
    pairs = () if type_ == "f32" else tuple((take.int(2), float(take.int())) for _ in range(take.below(3)))
    f = Field("grid_p_w", 0, mask=mask, nan=nan, map=pairs, **coding)  # type: ignore[arg-type]
    words = [take.int(2) for _ in range(TYPE_WORDS[type_])]
    x = decode_words(f, words)
    check_value(f"{f} {words}", x, f.lo, f.hi, tuple(v for _, v in f.map))
    if not pairs:
        _same(x, _plain(f, words), (f, words))
    e = Encode(0, source="p_cmd_w", toward_zero=bool(take.below(2)), wrap=bool(take.below(2)), **coding)  # type: ignore[arg-type]
    value = take.real()
    out = encode_words(e, value)
    assert (out is None) or all(0 <= w <= 0xFFFF for w in out)
    assert math.isfinite(value) or out is None, f"{value} was sent as {out}"
    if out is not None and type_ == "f32":
        assert math.isfinite(struct.unpack(">f", _raw(e, out).to_bytes(4, "big"))[0]), f"{value} was sent as no number"


def _raw(f: Field | Encode, words: list[int]) -> int:
    data = [w.to_bytes(2, "big" if f.byte_order == "big" else "little") for w in words]
    return int.from_bytes(b"".join(data if f.word_order == "big" else reversed(data)), "big")


def _plain(f: Field, words: list[int]) -> float:
    raw = _raw(f, words)
    if raw in f.nan:
        return math.nan
    if f.type == "f32":
        number: float = struct.unpack(">f", raw.to_bytes(4, "big"))[0]
    else:
        bits = (raw & f.mask) >> ((f.mask & -f.mask).bit_length() - 1) if f.mask else raw
        half = 1 << WIDTH[f.type] - 1
        number = bits - 2 * half if f.type[0] == "i" and bits >= half else bits
    return _ranged(f, number)


def _ranged(f: Field | Signal, number: float) -> float:
    if not math.isfinite(number):
        return math.nan
    x = f.sign * (float(number) * f.scale + f.offset)
    x = abs(x) if isinstance(f, Signal) and f.magnitude else x
    return x if math.isfinite(x) and f.lo <= x <= f.hi else math.nan


def _same(got: float, wanted: float, what: object) -> None:
    assert got == wanted or (math.isnan(got) and math.isnan(wanted)), f"{what}: {got!r}, should be {wanted!r}"


def _payload(take: Take) -> None:
    order = ("little", "big")[take.below(2)]
    real = take.below(4) == 0
    place = Place(take.below(64), (32, 64)[take.below(2)] if real else 1 + take.below(64), order)
    if place.last_byte > 7:
        return
    mux = Mux(take.below(64), 1 + take.below(32), ("little", "big")[take.below(2)], take.int(4)) if take.below(4) == 0 else None
    nan = tuple(take.int(8) for _ in range(take.below(5)))
    s = Signal(
        "p_cmd_w", place.start, place.length, order, signed=bool(take.below(2)), real=real, magnitude=bool(take.below(2)), nan=nan, mux=mux,
        toward_zero=bool(take.below(2)), wrap=bool(take.below(2)), **_scaling(take),  # type: ignore[arg-type]
    )  # fmt: skip
    data = take.bytes(8)
    x, how = decode_signal(s, data)
    check_value(f"{s} {data!r}", x, s.lo, s.hi)
    assert (how == "ok") == (not math.isnan(x))
    assert how in ("short", "other") or place.last_byte < len(data), f"{s} read behind the end of {data!r}"
    if mux is None and len(data) > place.last_byte:
        _same(x, _plain_signal(s, data), (s, data))
    value = take.real()
    if mux is None:
        out = encode_signal(s, value, bytes(8))
        assert math.isfinite(value) or out is None, f"{value} was sent as {out!r}"
        if out is not None and real:
            number = _number(s, out)
            assert math.isfinite(number), f"{value} was sent as {number}"


def _number(s: Signal, data: bytes) -> float:
    if s.byte_order == "little":
        raw = int.from_bytes(data, "little") >> s.start & (1 << s.length) - 1
    else:
        first = 8 * (s.start // 8) + 7 - s.start % 8
        raw = int.from_bytes(data, "big") >> 8 * len(data) - first - s.length & (1 << s.length) - 1
    if s.real:
        return float(struct.unpack(">f" if s.length == 32 else ">d", raw.to_bytes(s.length // 8, "big"))[0])
    return raw - (1 << s.length) if s.signed and raw >> s.length - 1 else raw


def _plain_signal(s: Signal, data: bytes) -> float:
    number = _number(s, data)
    as_bits = _number(Signal("", s.start, s.length, s.byte_order), data)
    return math.nan if as_bits in s.nan else _ranged(s, number)
