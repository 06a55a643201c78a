"""CAN, sans-I/O. Header: can.pxd. Pure functions of their arguments; `hal/canrows.py` holds the same rows as Python data."""

from libc.math cimport NAN, fabs, isfinite, rint, trunc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hal.canrows import CHECKSUMS, Frame

# linux/can.h and linux/can/error.h
cdef uint32_t EFF_FLAG = 0x80000000
cdef uint32_t RTR_FLAG = 0x40000000
cdef uint32_t ERR_FLAG = 0x20000000
cdef uint32_t SFF_MASK = 0x7FF
cdef uint32_t EFF_MASK = 0x1FFFFFFF

cdef enum:
    ERR_CRTL = 0x004
    ERR_PROT = 0x008
    ERR_ACK = 0x020
    ERR_BUSOFF = 0x040
    ERR_BUSERROR = 0x080
    ERR_RESTARTED = 0x100
    CRTL_OVERFLOW = 0x03        # receive or transmit
    CRTL_WARNING = 0x0C
    CRTL_PASSIVE = 0x30
    CRTL_ACTIVE = 0x40
    # LAWICEL F: receive or transmit FIFO full, warning, data overrun, passive, bus error
    F_FIFO = 0x03
    F_WARNING = 0x04
    F_OVERRUN = 0x08
    F_PASSIVE = 0x20
    F_BUS = 0x80
    ACTIVE = 0                  # CanErrors.state
    WARNING = 1
    PASSIVE = 2
    BUS_OFF = 3


# ---------------------------------------------------------------- bits of a payload

cdef int can_last_byte(int start, int length, bint big) noexcept nogil:
    """The last payload byte a signal reaches into."""
    if big:
        return (8 * (start >> 3) + 7 - (start & 7) + length - 1) >> 3
    return (start + length - 1) >> 3


cdef uint64_t can_get(const uint8_t* data, int start, int length, bint big) noexcept nogil:
    """Raw bits of a signal, right-aligned. The caller has checked that the payload is long enough."""
    cdef uint64_t raw = 0
    cdef int at, off, take, done = 0
    if big:
        at = 8 * (start >> 3) + 7 - (start & 7)         # counted from the payload's first bit on the wire
        while done < length:
            off = at & 7
            take = 8 - off if 8 - off < length - done else length - done
            raw = (raw << take) | ((data[at >> 3] >> (8 - off - take)) & ((1 << take) - 1))
            at += take
            done += take
    else:
        at = start
        while done < length:
            off = at & 7
            take = 8 - off if 8 - off < length - done else length - done
            raw |= (<uint64_t>((data[at >> 3] >> off) & ((1 << take) - 1))) << done
            at += take
            done += take
    return raw


cdef void can_put(uint8_t* data, int start, int length, bint big, uint64_t raw) noexcept nogil:
    """The inverse of can_get; other bits stay."""
    cdef int at, off, take, shift, mask, done = 0
    at = 8 * (start >> 3) + 7 - (start & 7) if big else start
    while done < length:
        off = at & 7
        take = 8 - off if 8 - off < length - done else length - done
        mask = (1 << take) - 1
        if big:
            shift = 8 - off - take
            data[at >> 3] = <uint8_t>((data[at >> 3] & ~(mask << shift)) | ((<int>((raw >> (length - done - take)) & mask)) << shift))
        else:
            data[at >> 3] = <uint8_t>((data[at >> 3] & ~(mask << off)) | ((<int>((raw >> done) & mask)) << off))
        at += take
        done += take


cdef inline int64_t _signed(uint64_t raw, int length) noexcept nogil:
    return <int64_t>(raw << (64 - length)) >> (64 - length)


cdef int can_decode(const SigRow* row, const uint8_t* data, int n, double* value) noexcept nogil:
    """One signal out of a payload of n bytes. S_OK, or why *value is NaN."""
    cdef uint64_t raw
    cdef int64_t number
    cdef uint32_t raw32
    cdef float f
    cdef double x
    cdef int i
    value[0] = NAN
    if row.length == 0:         # a constant, true while the frame comes
        value[0] = row.offset
        return S_OK
    if row.mux_length:
        if can_last_byte(row.mux_start, row.mux_length, row.mux_big) >= n:
            return S_SHORT
        if <int64_t>can_get(data, row.mux_start, row.mux_length, row.mux_big) != row.mux_value:
            return S_OTHER
    if can_last_byte(row.start, row.length, row.big) >= n:
        return S_SHORT
    raw = can_get(data, row.start, row.length, row.big)
    for i in range(row.n_nan):
        if raw == row.nan[i]:
            return S_ABSENT
    if row.is_float:
        if row.length == 32:
            raw32 = <uint32_t>raw
            memcpy(&f, &raw32, 4)
            x = f
        else:
            memcpy(&x, &raw, 8)
        if not isfinite(x):
            return S_ABSENT
    else:
        number = _signed(raw, row.length) if row.is_signed else <int64_t>raw
        if row.n_map > 0:
            for i in range(row.n_map):
                if row.map_raw[i] == number:
                    value[0] = row.map_value[i]
                    return S_OK
            return S_ABSENT
        x = <double>number if row.is_signed else <double>raw
    x = row.sign * (x * row.scale + row.offset)
    if row.magnitude:
        x = fabs(x)
    if not (isfinite(x) and x >= row.lo and x <= row.hi):         # scaled, it may have left what a double holds
        return S_RANGE
    value[0] = x
    return S_OK


cdef int can_encode(const SigRow* row, double value, uint8_t* data) noexcept nogil:
    """One signal into a payload. -1: the value is not finite, and nothing may be sent."""
    cdef double top, bottom, x = value
    cdef float f
    cdef uint32_t raw32
    cdef uint64_t raw
    if not isfinite(x):
        return -1
    x = row.lo if x < row.lo else row.hi if x > row.hi else x
    if row.is_float:
        x = (row.sign * x - row.offset) / row.scale
        if row.length == 32:
            f = <float>(3.4e38 if x > 3.4e38 else -3.4e38 if x < -3.4e38 else x)
            memcpy(&raw32, &f, 4)
            raw = raw32
        elif isfinite(x):
            memcpy(&raw, &x, 8)
        else:
            return -1
    else:
        if row.toward_zero:             # as encode() of codec.pyx: toward the raw number that says 0
            x = trunc(row.sign * x / row.scale * (1.0 + 1e-12)) + rint(-row.offset / row.scale)
        else:
            x = rint((row.sign * x - row.offset) / row.scale)
        top = <double>((<uint64_t>1 << (row.length - row.is_signed if row.length - row.is_signed < 53 else 53)) - 1)
        bottom = -top if row.is_signed else 0.0
        if row.wrap and fabs(x) < 9.0e15:
            raw = <uint64_t><int64_t>x
        else:
            raw = <uint64_t><int64_t>(bottom if x < bottom else top if x > top else x)
    can_put(data, row.start, row.length, row.big, raw)
    if row.mux_length:
        can_put(data, row.mux_start, row.mux_length, row.mux_big, <uint64_t>row.mux_value)
    return 0


# ---------------------------------------------------------------- checksums and wire length

cdef uint8_t _CRC8[256]


def _build_crc8():
    """SAE J1850: polynomial 0x1D."""
    for i in range(256):
        c = i
        for _ in range(8):
            c = (c << 1 ^ 0x1D) & 0xFF if c & 0x80 else c << 1
        _CRC8[i] = c


_build_crc8()


cdef int can_checksum(int kind, const uint8_t* data, int n, int skip, int seed) noexcept nogil:
    """Checksum over n bytes without byte `skip`, which holds it. `seed`: a byte taken in first (AUTOSAR's data id), -1: none."""
    cdef int i
    cdef uint8_t c = 0xFF if kind == SUM_CRC8 else 0
    for i in range(-1 if seed >= 0 else 0, n):
        if i >= 0 and i == skip:
            continue
        if kind == SUM_CRC8:
            c = _CRC8[c ^ (data[i] if i >= 0 else <uint8_t>seed)]
        elif kind == SUM_XOR:
            c ^= data[i] if i >= 0 else <uint8_t>seed
        else:
            c += data[i] if i >= 0 else <uint8_t>seed
    return c ^ 0xFF if kind == SUM_CRC8 else c


cdef struct _Wire:              # bits so far: CRC15 over the unstuffed ones, stuffing over all
    int bits
    int run
    int last
    int crc


cdef inline void _bit(_Wire* w, int b, bint in_crc) noexcept nogil:
    cdef int top
    if in_crc:
        top = (w.crc >> 14) & 1
        w.crc = (w.crc << 1) & 0x7FFF
        if top ^ b:
            w.crc ^= 0x4599
    w.bits += 1
    if b == w.last:
        w.run += 1
    else:
        w.last = b
        w.run = 1
    if w.run == 5:
        w.bits += 1             # the stuff bit is the first of its own run
        w.last = 1 - b
        w.run = 1


cdef inline void _field(_Wire* w, uint64_t value, int n, bint in_crc) noexcept nogil:
    cdef int i
    for i in range(n - 1, -1, -1):
        _bit(w, <int>((value >> i) & 1), in_crc)


cdef int can_bits(const CanFrame* f) noexcept nogil:
    """Bits of a classic frame on the wire, start of frame to the end of the interframe space (3 bits), stuff bits as its content makes them."""
    cdef _Wire w
    cdef int i, n = f.len
    memset(&w, 0, sizeof(w))
    w.last = 1                  # the idle bus
    _field(&w, 0, 1, True)
    if f.ext:
        _field(&w, f.id >> 18, 11, True)
        _field(&w, 3, 2, True)                          # SRR, IDE
        _field(&w, f.id & 0x3FFFF, 18, True)
        _field(&w, (1 if f.rtr else 0) << 2, 3, True)   # RTR, r1, r0
    else:
        _field(&w, f.id & 0x7FF, 11, True)
        _field(&w, (1 if f.rtr else 0) << 2, 3, True)   # RTR, IDE, r0
    _field(&w, n, 4, True)
    for i in range(0 if f.rtr else n):
        _field(&w, f.data[i], 8, True)
    _field(&w, w.crc, 15, False)
    return w.bits + 1 + 2 + 7 + 3                       # CRC delimiter, ACK and delimiter, end of frame, interframe space


# ---------------------------------------------------------------- slcan

cdef void slcan_reset(Slcan* s) noexcept nogil:
    memset(s, 0, sizeof(Slcan))


cdef void slcan_feed(Slcan* s, const uint8_t* buf, int n) noexcept nogil:
    """Bytes of the port; valid until slcan_next has said SL_MORE."""
    s.at = buf
    s.end = buf + n


cdef inline int _hex(int c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    if 65 <= c <= 70:
        return c - 55
    if 97 <= c <= 102:
        return c - 87
    return -1


cdef int64_t _number(const uint8_t* p, int n) noexcept nogil:
    """n hexadecimal digits; -1: they are not."""
    cdef int64_t x = 0
    cdef int i, d
    for i in range(n):
        d = _hex(p[i])
        if d < 0:
            return -1
        x = (x << 4) | d
    return x


cdef int _line(Slcan* s, CanFrame* f) noexcept nogil:
    """A whole line without its CR."""
    cdef const uint8_t* p = s.line
    cdef int kind, digits, i
    cdef int64_t x
    if s.n == 0:
        return SL_OK
    kind = p[0]
    if kind == c'z' or kind == c'Z':
        return SL_OK if s.n == 1 else SL_JUNK
    if kind == c'F':
        x = _number(p + 1, 2) if s.n == 3 else -1
        if x < 0:
            return SL_JUNK
        s.status = <int>x
        return SL_STATUS
    if kind == c'V' or kind == c'N' or kind == c'v':
        return SL_TEXT
    if kind != c't' and kind != c'T' and kind != c'r' and kind != c'R':
        return SL_JUNK
    memset(f, 0, sizeof(CanFrame))
    f.ext = kind == c'T' or kind == c'R'
    f.rtr = kind == c'r' or kind == c'R'
    digits = 8 if f.ext else 3
    x = _number(p + 1, digits) if s.n >= 2 + digits else -1
    if x < 0 or x > (EFF_MASK if f.ext else SFF_MASK):
        return SL_JUNK
    f.id = <uint32_t>x
    i = _hex(p[1 + digits])
    if i < 0 or i > 8:
        return SL_JUNK
    f.len = i
    digits += 2                 # of the line so far
    i = 0 if f.rtr else 2 * f.len
    if s.n != digits + i and s.n != digits + i + 4:     # with Z1 a timestamp of four digits follows
        return SL_JUNK
    if _number(p + digits + i, s.n - digits - i) < 0:
        return SL_JUNK
    for i in range(0 if f.rtr else f.len):
        x = _number(p + digits + 2 * i, 2)
        if x < 0:
            return SL_JUNK
        f.data[i] = <uint8_t>x
    return SL_FRAME


cdef int slcan_next(Slcan* s, CanFrame* f) noexcept nogil:
    """The next thing in what was fed: one of SL_*. A line may come in pieces; one that does not end is thrown away whole and counts once."""
    cdef int c, what
    while s.at < s.end:
        c = s.at[0]
        s.at += 1
        if c == 7:              # BEL stands alone and ends whatever stood before it
            s.n = 0
            s.skip = 0
            return SL_ERROR
        if c == 13:
            if s.skip:
                s.skip = 0
                s.n = 0
                return SL_JUNK
            what = _line(s, f)
            s.n = 0
            return what
        if s.skip or c == 10:
            continue
        if s.n == SLCAN_LINE:
            s.skip = 1
            continue
        s.line[s.n] = <uint8_t>c
        s.n += 1
    return SL_MORE


cdef inline void _digits(uint8_t* out, uint64_t x, int n) noexcept nogil:
    cdef int i, d
    for i in range(n):
        d = <int>((x >> (4 * (n - 1 - i))) & 0xF)
        out[i] = <uint8_t>(48 + d if d < 10 else 55 + d)


cdef int slcan_write(const CanFrame* f, uint8_t* out) noexcept nogil:
    """A frame as a line with its CR, at most SLCAN_LINE bytes; returns its length."""
    cdef int n = 8 if f.ext else 3, i
    out[0] = (c'R' if f.ext else c'r') if f.rtr else (c'T' if f.ext else c't')
    _digits(out + 1, f.id, n)
    n += 1
    _digits(out + n, f.len, 1)
    n += 1
    for i in range(0 if f.rtr else f.len):
        _digits(out + n, f.data[i], 2)
        n += 2
    out[n] = 13
    return n + 1


cdef void slcan_status(int flags, CanErrors* e) noexcept nogil:
    """LAWICEL's status flags: what is new in them counts."""
    if flags & (F_FIFO | F_OVERRUN):
        e.overrun += 1
    if flags & F_BUS:
        e.protocol += 1
    _state(e, PASSIVE if flags & F_PASSIVE else WARNING if flags & F_WARNING else ACTIVE)


cdef void _state(CanErrors* e, int state) noexcept nogil:
    if state == e.state:
        return
    if state == WARNING and e.state < WARNING:
        e.warning += 1
    elif state == PASSIVE:
        e.passive += 1
    elif state == BUS_OFF:
        e.bus_off += 1
    e.state = state


# ---------------------------------------------------------------- SocketCAN
cdef int socket_read(const uint8_t* buf, int n, CanFrame* f) noexcept nogil:
    """struct can_frame as read() gives it; False: it is none."""
    cdef uint32_t word
    if n != CAN_STRUCT:
        return False
    memset(f, 0, sizeof(CanFrame))
    memcpy(&word, buf, 4)
    f.err = (word & ERR_FLAG) != 0
    f.ext = (word & EFF_FLAG) != 0
    f.rtr = (word & RTR_FLAG) != 0
    f.id = word & (EFF_MASK if f.ext or f.err else SFF_MASK)
    f.len = buf[4]
    if f.len > CAN_DATA:
        return False
    memcpy(f.data, buf + 8, f.len)
    return True


cdef int socket_write(const CanFrame* f, uint8_t* out) noexcept nogil:
    """A frame as the struct can_frame that write() wants; returns its length."""
    cdef uint32_t word = f.id | (EFF_FLAG if f.ext else 0) | (RTR_FLAG if f.rtr else 0)
    memset(out, 0, CAN_STRUCT)
    memcpy(out, &word, 4)
    out[4] = f.len
    memcpy(out + 8, f.data, f.len)
    return CAN_STRUCT


cdef void socket_error(const CanFrame* f, CanErrors* e) noexcept nogil:
    """An error frame into the counters."""
    cdef int crtl = f.data[1] if f.len > 1 else 0
    if f.id & ERR_BUSOFF:
        _state(e, BUS_OFF)
    if f.id & ERR_RESTARTED:
        e.restarted += 1
        _state(e, ACTIVE)
    if f.id & ERR_CRTL:
        if crtl & CRTL_OVERFLOW:
            e.overrun += 1
        if crtl & CRTL_PASSIVE:
            _state(e, PASSIVE)
        elif crtl & CRTL_WARNING:
            _state(e, WARNING)
        elif crtl & CRTL_ACTIVE:
            _state(e, ACTIVE)
    if f.id & ERR_ACK:
        e.no_ack += 1
    if f.id & (ERR_PROT | ERR_BUSERROR):
        e.protocol += 1


# ---------------------------------------------------------------- from hal.canrows, and Python's face for tests and tools

cdef object fill_signal(SigRow* row, object s):
    """A hal.canrows.Signal into a C row."""
    cdef int i
    memset(row, 0, sizeof(SigRow))
    row.start, row.length, row.big, row.is_signed = s.start, s.length, s.byte_order == "big", s.signed
    row.is_float, row.magnitude, row.toward_zero, row.wrap = s.real, s.magnitude, s.toward_zero, s.wrap
    row.scale, row.offset, row.sign, row.lo, row.hi = s.scale, s.offset, s.sign, s.lo, s.hi
    if s.mux is not None:
        row.mux_start, row.mux_length, row.mux_big, row.mux_value = s.mux.start, s.mux.length, s.mux.byte_order == "big", s.mux.value
    row.n_nan, row.n_map = len(s.nan), len(s.map)
    if row.n_nan > CAN_NAN or row.n_map > CAN_MAP:
        raise ValueError(f"{s.name}: at most {CAN_NAN} sentinels and {CAN_MAP} map entries")
    for i in range(row.n_nan):
        row.nan[i] = s.nan[i]
    for i in range(row.n_map):
        row.map_raw[i] = s.map[i][0]
        row.map_value[i] = s.map[i][1]


cdef object _to_c(CanFrame* f, object frame):
    memset(f, 0, sizeof(CanFrame))
    if len(frame.data) > CAN_DATA or not 0 <= frame.id <= (EFF_MASK if frame.ext else SFF_MASK):
        raise ValueError(f"{frame}: no CAN frame")
    f.id, f.ext, f.rtr, f.len = frame.id, frame.ext, frame.rtr, len(frame.data)
    for i in range(len(frame.data)):
        f.data[i] = frame.data[i]


cdef object _from_c(const CanFrame* f):
    return Frame(f.id, bytes(f.data[:f.len]), ext=bool(f.ext), rtr=bool(f.rtr), err=bool(f.err))


def decode_signal(signal, bytes data):
    """(value, outcome) of a hal.canrows.Signal in a payload; outcome "ok", "absent", "range", "short" or "other" (multiplexed away)."""
    cdef SigRow row
    cdef double value
    cdef const uint8_t* p = data
    fill_signal(&row, signal)
    how = can_decode(&row, p, len(data), &value)
    return value, ("ok", "absent", "range", "short", "other")[how]


def encode_signal(signal, double value, bytes data):
    """The payload with a hal.canrows.Signal written into it; None where nothing may be sent."""
    cdef SigRow row
    cdef uint8_t out[CAN_DATA]
    cdef const uint8_t* p = data
    cdef int n = len(data)
    fill_signal(&row, signal)
    if n > CAN_DATA or can_last_byte(row.start, row.length, row.big) >= n:
        raise ValueError(f"{signal.name} does not fit into {n} bytes")
    memcpy(out, p, n)
    if can_encode(&row, value, out) < 0:
        return None
    return bytes(out[:n])


def checksum(str kind, bytes data, int skip, int seed=-1):
    """Checksum byte of a payload without byte `skip`; kind "crc8_j1850", "xor" or "sum"."""
    return can_checksum(CHECKSUMS.index(kind), <const uint8_t*>data, len(data), skip, seed)


def frame_bits(frame):
    """Bits of a hal.canrows.Frame on the wire, interframe space included, exactly as stuffed."""
    cdef CanFrame f
    _to_c(&f, frame)
    return can_bits(&f)


def to_socket(frame):
    """hal.canrows.Frame -> struct can_frame."""
    cdef CanFrame f
    cdef uint8_t out[CAN_STRUCT]
    _to_c(&f, frame)
    return bytes(out[:socket_write(&f, out)])


def from_socket(bytes data):
    """What read() gave -> hal.canrows.Frame, None where it is none."""
    cdef CanFrame f
    return _from_c(&f) if socket_read(<const uint8_t*>data, len(data), &f) else None


def to_slcan(frame):
    """hal.canrows.Frame -> one slcan line."""
    cdef CanFrame f
    cdef uint8_t out[SLCAN_LINE]
    _to_c(&f, frame)
    return bytes(out[:slcan_write(&f, out)])


cdef class SlcanReader:
    """The receiving half of slcan: feed(bytes) -> [("frame", Frame) | ("ok" | "error" | "junk" | "text", None) | ("status", flags)]."""
    cdef Slcan s

    def __cinit__(self):
        slcan_reset(&self.s)

    def feed(self, bytes data):
        cdef CanFrame f
        cdef const uint8_t* p = data
        cdef int what
        out = []
        slcan_feed(&self.s, p, len(data))
        while True:
            what = slcan_next(&self.s, &f)
            if what == SL_MORE:
                return out
            name = ("more", "frame", "ok", "error", "status", "junk", "text")[what]
            out.append((name, _from_c(&f) if what == SL_FRAME else self.s.status if what == SL_STATUS else None))


cdef class ErrorCounter:
    """SocketCAN's error frames and slcan's status flags, counted: socket(frame), status(flags), counts()."""
    cdef CanErrors e

    def socket(self, frame):
        cdef CanFrame f
        _to_c(&f, frame)
        f.err = 1
        socket_error(&f, &self.e)

    def status(self, int flags):
        slcan_status(flags, &self.e)

    def counts(self):
        out = dict(self.e)
        out.pop("pad")
        out["state"] = ("active", "warning", "passive", "bus_off")[out["state"]]
        return out
