"""Registers <-> SI values. Header: codec.pxd. Pure functions of their arguments; `hal/rows.py` holds the same rows as Python data."""

from libc.math cimport NAN, fabs, isfinite, rint, trunc
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from _core.image import OUTPUTS, SIGNALS
from hal.rows import TYPES


cdef int type_words(int type) noexcept nogil:
    if type == T_U16 or type == T_I16:
        return 1
    return 4 if type == T_U64 or type == T_I64 else 2


cdef uint64_t _gather(const uint8_t* p, int words, bint word_little, bint byte_little) noexcept nogil:
    cdef uint64_t raw = 0
    cdef int i, at
    for i in range(words):
        at = 2 * (words - 1 - i if word_little else i)
        raw = (raw << 16) | (((<uint64_t>p[at + 1]) << 8 | p[at]) if byte_little else ((<uint64_t>p[at]) << 8 | p[at + 1]))
    return raw


cdef void _scatter(uint64_t raw, uint8_t* p, int words, bint word_little, bint byte_little) noexcept nogil:
    cdef int i, at
    cdef uint8_t high, low
    for i in range(words):
        at = 2 * (i if word_little else words - 1 - i)
        high = (raw >> 8) & 0xFF
        low = raw & 0xFF
        p[at] = low if byte_little else high
        p[at + 1] = high if byte_little else low
        raw >>= 16


cdef int decode(const DecodeRow* row, const uint8_t* data, double* value) noexcept nogil:
    """One field out of the register bytes of an answer. D_OK, or why *value is NaN."""
    cdef uint64_t raw = _gather(data + 2 * row.word, type_words(row.type), row.word_little, row.byte_little)
    cdef uint64_t bits
    cdef int64_t number
    cdef uint32_t raw32
    cdef float f
    cdef double x
    cdef int i
    value[0] = NAN
    for i in range(row.n_nan):
        if raw == row.nan[i]:
            return D_ABSENT
    if row.type == T_F32:
        raw32 = <uint32_t>raw
        memcpy(&f, &raw32, 4)
        x = f
        if not isfinite(x):
            return D_ABSENT
    else:
        bits = ((raw & row.mask) >> row.shift) if row.mask else raw
        if row.type == T_I16:
            number = <int16_t>bits
        elif row.type == T_I32:
            number = <int32_t>bits
        else:
            number = <int64_t>bits
        x = <double>bits if row.type == T_U64 else <double>number
        if row.n_map > 0:
            for i in range(row.n_map):
                if row.map_raw[i] == number:
                    value[0] = row.map_value[i]
                    return D_OK
            return D_ABSENT
    x = row.sign * (x * row.scale + row.offset)
    if not (isfinite(x) and x >= row.lo and x <= row.hi):         # scaled, it may have left what a double holds
        return D_RANGE
    value[0] = x
    return D_OK


cdef int encode(const EncodeRow* row, const char* outputs, uint8_t* data) noexcept nogil:
    """One field into the register bytes of a write. -1: the value is not finite, and nothing may be sent."""
    cdef double x = row.const_value
    cdef double top, bottom
    cdef float f
    cdef uint32_t raw32
    cdef uint64_t raw
    if row.source >= 0:
        memcpy(&x, outputs + row.source, sizeof(double))
    if not isfinite(x):
        return -1
    x = row.lo if x < row.lo else row.hi if x > row.hi else x
    if row.type == T_F32:
        x = (row.sign * x - row.offset) / row.scale
        f = <float>(3.4e38 if x > 3.4e38 else -3.4e38 if x < -3.4e38 else x)
        memcpy(&raw32, &f, 4)
        raw = raw32
    else:
        if row.toward_zero:             # toward the raw number that says 0, which an offset moves
            # The tiny factor keeps 12.3 / 0.1 from falling to 122: a decimal scale is never exact in binary.
            x = trunc(row.sign * x / row.scale * (1.0 + 1e-12)) + rint(-row.offset / row.scale)
        else:
            x = rint((row.sign * x - row.offset) / row.scale)
        if row.type == T_U16:
            bottom, top = 0.0, 65535.0
        elif row.type == T_I16:
            bottom, top = -32768.0 + 1.0, 32767.0       # -32768 says "not implemented" in SunSpec
        elif row.type == T_U32:
            bottom, top = 0.0, 4294967295.0
        elif row.type == T_I32:
            bottom, top = -2147483647.0, 2147483647.0
        elif row.type == T_U64:
            bottom, top = 0.0, 9007199254740992.0       # 2**53: beyond, a double has no integers
        else:
            bottom, top = -9007199254740992.0, 9007199254740992.0
        if row.wrap and fabs(x) < 9.0e15:
            raw = <uint64_t><int64_t>x                  # _scatter keeps the low registers
        else:
            raw = <uint64_t><int64_t>(bottom if x < bottom else top if x > top else x)
    _scatter(raw, data + 2 * row.word, type_words(row.type), row.word_little, row.byte_little)
    return 0


# ---------------------------------------------------------------- from rows.Field and rows.Encode

cdef object fill_decode(DecodeRow* row, object f, int first):
    """A hal.rows.Field into a C row; `first`: first register of the answer it stands in."""
    cdef int i
    row.word = f.addr - first
    row.type = TYPES.index(f.type)
    row.word_little = f.word_order == "little"
    row.byte_little = f.byte_order == "little"
    row.needed = f.needed
    row.mask = f.mask
    row.shift = (f.mask & -f.mask).bit_length() - 1 if f.mask else 0
    row.scale, row.offset, row.sign, row.lo, row.hi = f.scale, f.offset, f.sign, f.lo, f.hi
    row.n_nan = len(f.nan)
    row.n_map = len(f.map)
    if row.n_nan > MAX_NAN or row.n_map > MAX_MAP:
        raise ValueError(f"{f.signal}: at most {MAX_NAN} sentinels and {MAX_MAP} map entries")
    for i in range(row.n_nan):
        row.nan[i] = f.nan[i]
    for i in range(row.n_map):
        row.map_raw[i] = f.map[i][0]
        row.map_value[i] = f.map[i][1]
    row.dest = SIGNALS[f.signal][0]


cdef object fill_encode(EncodeRow* row, object e, int first):
    """A hal.rows.Encode into a C row; `first`: first register of the write it stands in."""
    row.word = e.addr - first
    row.type = TYPES.index(e.type)
    row.word_little = e.word_order == "little"
    row.byte_little = e.byte_order == "little"
    row.toward_zero = e.toward_zero
    row.wrap = e.wrap
    row.source = OUTPUTS[e.source] if e.source else -1
    row.const_value = e.const
    row.scale, row.offset, row.sign, row.lo, row.hi = e.scale, e.offset, e.sign, e.lo, e.hi


def decode_words(field, words):
    """Value of a hal.rows.Field in `words` (its registers); NaN where the device says it has none or it is out of range."""
    cdef DecodeRow row
    cdef uint8_t data[8]
    cdef double value
    cdef int i
    if len(words) != field.words:
        raise ValueError(f"{len(words)} registers for a {field.type}")
    memset(&row, 0, sizeof(DecodeRow))
    fill_decode(&row, field, field.addr)
    for i in range(len(words)):
        data[2 * i] = (words[i] >> 8) & 0xFF
        data[2 * i + 1] = words[i] & 0xFF
    decode(&row, data, &value)
    return value


def encode_words(register, double value):
    """Registers that a hal.rows.Encode makes of `value` (its source), None where nothing may be sent."""
    cdef EncodeRow row
    cdef uint8_t data[8]
    cdef int i
    memset(&row, 0, sizeof(EncodeRow))
    fill_encode(&row, register, register.addr)
    row.source = -1
    row.const_value = value
    if encode(&row, NULL, data) < 0:
        return None
    return [(data[2 * i] << 8) | data[2 * i + 1] for i in range(register.words)]
