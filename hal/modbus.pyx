"""Modbus master as a sans-I/O state machine: `bytes + now -> result + next deadline`. Header and contract: modbus.pxd.

A frame ends when its length says so; silence (t3.5) is kept before every request instead. Sources: Modbus application protocol V1.1b3
(frames), Modbus over serial line V1.02 clause 2.5.1 (t3.5 = 3.5 characters, fixed 1.75 ms above 19200 baud) and 6.2.2 (CRC16).

What an answer must be before it is believed, since a half-duplex line returns more than answers:
  - it names our unit, function and register count (FC06/16: address and value/count) and its CRC is right;
  - it is not our own request come back (an adapter that echoes). FC06's answer equals its request: a copy that is complete before
    request + answer fit on the wire is the echo, and so is the first of two copies, and any first copy on a line known to echo;
  - it is not sooner than physics allows, else it answers an earlier request that had been given up.
What physics cannot tell apart (a late answer of the very same shape) is the caller's: after RX_TIMEOUT, RX_SHORT or RX_LONG it asks that
device for a different number of registers first. Devices answer in order, so the answer to that one proves the old ones are through.

Over TCP (MBAP) there is no CRC and no silence. A frame ends where its length field says; its transaction identifier must be the request's.
A stream that no longer parses cannot be found again: it is `broken`, and so is one on which three requests in a row met silence (a peer
that vanished sends no RST). The owner of the connection closes it and opens another. Source: Modbus Messaging on TCP/IP Implementation
Guide V1.0b, 3.1.3 (header) and 4.4.2 (transaction identifier, no answer).
"""

from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcmp, memcpy, memmove, memset
from _core.image cimport BusStats
from hal.mbap cimport get16, mbap_judge, mbap_len, mbap_seal, mbap_was_given

cdef uint16_t CRC_TABLE[256]

cdef void _fill_crc_table() noexcept:
    cdef int i, bit
    cdef uint16_t c
    for i in range(256):
        c = i
        for bit in range(8):
            c = (c >> 1) ^ 0xA001 if c & 1 else c >> 1
        CRC_TABLE[i] = c

_fill_crc_table()


cdef uint16_t crc16(const uint8_t* p, int n) noexcept nogil:
    cdef uint16_t c = 0xFFFF
    cdef int i
    for i in range(n):
        c = (c >> 8) ^ CRC_TABLE[(c ^ p[i]) & 0xFF]
    return c


cdef int64_t rtu_char_ns(int baud, int bits) noexcept nogil:
    return (<int64_t>bits * 1000000000 + baud // 2) // baud


cdef int64_t rtu_t35_ns(int baud, int bits) noexcept nogil:
    if baud > 19200:
        return 1750000
    return (<int64_t>bits * 7 * 500000000 + baud // 2) // baud


cdef void rtu_init(RtuMaster* m, int baud, int bits, bint untimed, BusStats* stats) noexcept nogil:
    memset(m, 0, sizeof(RtuMaster))
    m.char_ns = 0 if untimed else rtu_char_ns(baud, bits)
    m.t35_ns = 0 if untimed else rtu_t35_ns(baud, bits)
    m.echo = -1
    m.deadline_ns = INT64_MAX
    m.stats = stats


cdef void tcp_init(RtuMaster* m, int64_t path_ns, uint16_t tid, BusStats* stats) noexcept nogil:
    """MBAP framing. `tid`: identifier of the first request; whoever takes a connection over begins far from its former owner's."""
    rtu_init(m, 115200, 11, True, stats)
    m.mbap = 1
    m.path_ns = path_ns
    m.tid = tid


cdef inline int _put16(uint8_t* p, int at, int v) noexcept nogil:
    p[at] = (v >> 8) & 0xFF
    p[at + 1] = v & 0xFF
    return at + 2


cdef int rtu_build(RtuMaster* m, int unit, int fc, int addr, int count, const uint8_t* data, int waddr, int wcount) noexcept nogil:
    """Frame a request into m.tx; returns its length, or -1 where the standard has no such frame. `data`: wcount * 2 bytes, big endian."""
    cdef bint reads = fc == 3 or fc == 4 or fc == 23
    cdef bint writes = fc == 6 or fc == 16 or fc == 23
    cdef int n = MBAP_HEAD if m.mbap else 0
    cdef uint16_t c
    # Unit 0 on a line is a broadcast: nobody answers it, so nothing built on answers may use it. Over TCP it is the device itself.
    # 248 to 255 are reserved by the standard, and used by power shelves: for devices of the tick the site file refuses them.
    if m.state != RTU_IDLE or not (reads or writes) or unit < (0 if m.mbap else 1) or unit > 255:
        return -1
    if reads and (count < 1 or count > 125 or addr < 0 or addr + count > 65536):
        return -1
    if writes and (data == NULL or waddr < 0 or wcount < 1 or waddr + wcount > 65536):
        return -1
    if (fc == 6 and wcount != 1) or (fc == 16 and wcount > 123) or (fc == 23 and wcount > 121):
        return -1
    m.tx[n] = unit
    m.tx[n + 1] = fc
    n += 2
    if reads:
        n = _put16(m.tx, n, addr)
        n = _put16(m.tx, n, count)
    if writes:
        n = _put16(m.tx, n, waddr)
        if fc != 6:
            n = _put16(m.tx, n, wcount)
            m.tx[n] = 2 * wcount
            n += 1
        memcpy(&m.tx[n], data, 2 * wcount)
        n += 2 * wcount
    m.ask.unit = unit
    m.ask.fc = fc
    m.ask.addr = addr if reads else waddr
    m.ask.count = count if reads else wcount
    m.ask.len = 3 + 2 * count if reads else 6
    m.ask.value = ((<uint16_t>data[0]) << 8) | data[1] if fc == 6 else 0
    if m.mbap:
        return mbap_seal(m, n)
    c = crc16(m.tx, n)
    m.tx[n] = c & 0xFF
    m.tx[n + 1] = c >> 8
    m.ask.len += 2
    m.tx_len = n + 2
    return m.tx_len


cdef void rtu_sent(RtuMaster* m, int64_t now_ns, int64_t turnaround_ns, int64_t deadline_ns) noexcept nogil:
    """The frame in m.tx was handed to the wire at `now_ns`; `deadline_ns` is the instant at which its answer is given up."""
    if m.rx_len > 0 and not m.mbap:         # what lay there unasked and fitted nothing
        m.stats.long_frames += 1
        m.rx_len = 0
    m.state = RTU_WAIT
    m.echo_done = 0
    m.junk = 0
    m.exception = 0
    m.tx_ns = now_ns
    m.tx_end_ns = now_ns + m.lead_ns + m.tx_len * m.char_ns
    m.nominal_ns = m.tx_end_ns + m.t35_ns + turnaround_ns + m.ask.len * m.char_ns + m.path_ns
    m.ready_ns = m.tx_end_ns + m.t35_ns
    m.deadline_ns = deadline_ns
    m.stats.transactions += 1


# ---------------------------------------------------------------- what has come

cdef inline bint _crc_ok(const uint8_t* p, int n) noexcept nogil:
    return crc16(p, n - 2) == (p[n - 2] | (<uint16_t>p[n - 1]) << 8)


cdef inline bint _too_soon(const RtuMaster* m, int off, int n, int64_t now_ns) noexcept nogil:
    # 3 % and a character: two oscillators at the ends of what the standard allows, and our own clock read after the fact.
    cdef int64_t slack = m.char_ns
    cdef int64_t request = m.lead_ns + m.tx_len * m.char_ns * 97 // 100
    if now_ns < m.tx_ns + request + n * m.char_ns * 97 // 100 - slack:
        return True
    # Bytes that began while our request was still going out answer something else, whenever they end.
    return off == 0 and not m.echo_done and m.first_ns < m.tx_ns + request - slack


cdef enum:
    _NO = 0
    _PART = 1
    _GOOD = 2
    _BAD = 3


cdef int _match(const RtuAsk* a, const uint8_t* p, int n, int* length) noexcept nogil:
    """Does p[:n] begin with the answer to `a`? _PART: so far yes, more bytes are needed. *length: of that answer."""
    cdef int i, known
    cdef uint8_t head[6]
    head[0] = a.unit
    head[1] = a.fc
    if n >= 2 and p[0] == a.unit and p[1] == (a.fc | 0x80):
        length[0] = 5
        if n < 5:
            return _PART
        return _GOOD if _crc_ok(p, 5) else _BAD
    length[0] = a.len
    if a.fc == 6 or a.fc == 16:
        _put16(head, 2, a.addr)
        _put16(head, 4, a.value if a.fc == 6 else a.count)
        known = 6
    else:
        head[2] = 2 * a.count
        known = 3
    for i in range(known if known < n else n):
        if p[i] != head[i]:
            return _NO
    if n < a.len:
        return _PART
    return _GOOD if _crc_ok(p, a.len) else _BAD


cdef int _other_len(const uint8_t* p, int n) noexcept nogil:
    """Length of the frame p begins with if it is any answer at all; 0 where it cannot be one or cannot be told yet."""
    if n < 3:
        return 0
    if p[1] & 0x80:
        return 5
    if p[1] == 5 or p[1] == 6 or p[1] == 15 or p[1] == 16:
        return 8
    if p[1] == 3 or p[1] == 4 or p[1] == 23:
        return 5 + p[2] if p[2] >= 2 and p[2] <= 250 and not p[2] & 1 else 0
    return 0


cdef void _give_up(RtuMaster* m) noexcept nogil:
    """Remember the present request, so that its answer is known when it comes late. The oldest makes room."""
    if m.given_n == RTU_GIVEN:
        memmove(&m.given[0], &m.given[1], (RTU_GIVEN - 1) * sizeof(RtuAsk))
        m.given_n -= 1
    m.given[m.given_n] = m.ask
    m.given_n += 1


cdef bint _was_given(RtuMaster* m, const uint8_t* p, int n) noexcept nogil:
    """Is p[:n] a whole answer to a request that was given up? Then that request is forgotten."""
    cdef int i, length = 0
    for i in range(m.given_n):
        if _match(&m.given[i], p, n, &length) == _GOOD and length == n:
            memmove(&m.given[i], &m.given[i + 1], (m.given_n - i - 1) * sizeof(RtuAsk))
            m.given_n -= 1
            return True
    return False


cdef void _forget_unit(RtuMaster* m, uint8_t unit) noexcept nogil:
    """This unit has answered something newer: it answers in order, so nothing older of it is still to come."""
    cdef int i, k = 0
    for i in range(m.given_n):
        if m.given[i].unit != unit:
            m.given[k] = m.given[i]
            k += 1
    m.given_n = k


cdef void _drop(RtuMaster* m, int n, int64_t now_ns) noexcept nogil:
    m.rx_len -= n
    if m.rx_len > 0:
        memmove(m.rx, &m.rx[n], m.rx_len)
    m.first_ns = now_ns


cdef int _end(RtuMaster* m, int result) noexcept nogil:
    m.state = RTU_IDLE
    m.deadline_ns = INT64_MAX
    if not m.mbap:
        m.rx_len = 0
    if result == RX_SHORT or result == RX_LONG or result == RX_TIMEOUT:
        _give_up(m)
    return result


cdef bint _take_echo(RtuMaster* m, int64_t now_ns) noexcept nogil:
    """Take our own request off the front of rx if it is the adapter's echo."""
    cdef int n = m.tx_len
    if m.echo_done or m.rx_len < n or memcmp(m.rx, m.tx, n) != 0:
        return False
    if m.ask.fc == 6 and m.echo != 1 and not _too_soon(m, 0, n, now_ns):
        if m.rx_len < 2 * n or memcmp(&m.rx[n], m.tx, n) != 0:
            return False                    # one copy, in its time, on a line that is not known to echo: the answer
    m.echo = 1
    m.echo_done = 1
    m.stats.echoes += 1
    _drop(m, n, now_ns)
    return True


cdef int _deliver(RtuMaster* m, int off, int length) noexcept nogil:
    """rx[off:off+length] is the answer. m.data stays valid until the next rtu_feed or rtu_sent."""
    cdef uint8_t fc = m.rx[off + 1]
    if (off > 0 and not m.junk) or m.rx_len > off + length:
        m.stats.long_frames += 1            # a glitch before it (driver turn-on) or bytes after it: unasked, but the CRC vouches
    if not m.echo_done and m.ask.fc != 6:
        m.echo = 0
    _forget_unit(m, m.ask.unit)
    if fc & 0x80:
        m.exception = m.rx[off + 2]
        m.stats.exceptions += 1
        return _end(m, RX_EXCEPTION)
    m.data = &m.rx[off + 3]
    m.data_len = length - 5 if m.ask.fc != 6 and m.ask.fc != 16 else 0
    return _end(m, RX_OK)


cdef int _other(RtuMaster* m, int64_t now_ns) noexcept nogil:
    """A whole frame at the front that is not the present answer: counted and taken off (RX_MORE), or the end of the wait.
    -1: there is none."""
    cdef int n = _other_len(m.rx, m.rx_len)
    if n == 0 or n > m.rx_len or not _crc_ok(m.rx, n):
        return -1
    if _was_given(m, m.rx, n):
        m.stats.late += 1
    elif m.rx[0] == m.ask.unit and m.rx[1] == m.ask.fc and m.ask.fc != 6 and m.ask.fc != 16:
        if n < m.ask.len:                   # the device answers, but not what was asked
            m.stats.short_frames += 1
            return _end(m, RX_SHORT)
        m.stats.long_frames += 1
        return _end(m, RX_LONG)
    else:
        m.stats.wrong_unit += 1
    _drop(m, n, now_ns)
    return RX_MORE


cdef int _parse(RtuMaster* m, int64_t now_ns) noexcept nogil:
    """Everything in rx, from the front. Every turn takes bytes off or ends: at most RTU_BUF turns."""
    cdef int off, how, length = 0
    while m.rx_len > 0:
        if _take_echo(m, now_ns):
            continue
        how = _match(&m.ask, m.rx, m.rx_len, &length)
        if how == _GOOD:
            if not _too_soon(m, 0, length, now_ns):
                return _deliver(m, 0, length)
            m.stats.late += 1
            _was_given(m, m.rx, length)
            _drop(m, length, now_ns)
            continue
        if how == _BAD and (m.echo_done or m.rx_len >= m.tx_len or memcmp(m.rx, m.tx, m.rx_len) != 0):
            m.stats.crc_errors += 1         # (the start of an echo of FC16 looks like its answer: wait for the rest of it)
            return _end(m, RX_CRC)
        if how == _NO:
            how = _other(m, now_ns)
            if how > RX_MORE:
                return how
            if how == RX_MORE:
                continue
            for off in range(1, m.rx_len - 4):
                if _match(&m.ask, &m.rx[off], m.rx_len - off, &length) == _GOOD and not _too_soon(m, off, length, now_ns):
                    return _deliver(m, off, length)
        return RX_MORE
    return RX_MORE


# ---------------------------------------------------------------- TCP

cdef int _answer_mbap(RtuMaster* m, const uint8_t* p, int n) noexcept nogil:
    """A whole frame with the present transaction identifier: the end of the wait, unless it is of another unit or function (RX_MORE)."""
    cdef int result = mbap_judge(&m.ask, p, n)
    if result == RX_MORE:
        m.stats.wrong_unit += 1
        return RX_MORE
    if result == RX_EXCEPTION:
        m.exception = p[8]
        m.stats.exceptions += 1
    elif result == RX_SHORT:
        m.stats.short_frames += 1
    elif result == RX_LONG:
        m.stats.long_frames += 1
    elif result == RX_CRC:
        m.stats.crc_errors += 1
    else:
        memcpy(m.answer, p, n)
        m.data = &m.answer[MBAP_HEAD + 3]
        m.data_len = n - MBAP_HEAD - 3 if m.ask.fc != 6 and m.ask.fc != 16 else 0
    if result == RX_OK or result == RX_EXCEPTION:
        _forget_unit(m, m.ask.unit)
    return _end(m, result)


cdef int _parse_mbap(RtuMaster* m, int64_t now_ns) noexcept nogil:
    """Every whole frame in rx, from the front; at most one of them ends the wait. Every turn takes a frame off, waits, or breaks."""
    cdef int n, result = RX_MORE
    while m.rx_len >= MBAP_HEAD:
        n = mbap_len(m.rx)
        if n < 0:
            m.broken = 1
            m.rx_len = 0
            m.stats.crc_errors += 1         # as on a line: bytes, but no frame
            return _end(m, RX_BROKEN) if m.state == RTU_WAIT else result
        if m.rx_len < n:
            return result
        m.silent = 0
        if m.state == RTU_WAIT and get16(m.rx) == m.ask.tid:
            result = _answer_mbap(m, m.rx, n)
        elif mbap_was_given(m, get16(m.rx)):
            m.stats.late += 1
        else:
            m.stats.wrong_unit += 1
        _drop(m, n, now_ns)
    return result


cdef int _feed_mbap(RtuMaster* m, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil:
    """A piece of the stream, however the network has cut or joined it. A frame is shorter than rx, so there is always room."""
    cdef int take, got, result = RX_MORE
    while n > 0 and not m.broken:
        take = n if n < RTU_BUF - m.rx_len else RTU_BUF - m.rx_len
        memcpy(&m.rx[m.rx_len], buf, take)
        m.rx_len, buf, n = m.rx_len + take, buf + take, n - take
        got = _parse_mbap(m, now_ns)
        if got != RX_MORE:
            result = got
    return result


cdef int _expire_mbap(RtuMaster* m) noexcept nogil:
    """No answer in time. A frame that has begun may still be completed later: the stream stays as it is."""
    m.silent += 1
    if m.silent >= MBAP_SILENT:
        m.broken = 1
    if m.rx_len > 0:
        m.stats.short_frames += 1
        return _end(m, RX_SHORT)
    m.stats.timeouts += 1
    return _end(m, RX_TIMEOUT)


cdef int _idle(RtuMaster* m, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil:
    """Nobody was asked. Usually the answer to a request that was given up; it must not lie there as the next one's."""
    if m.rx_len > 0 and now_ns - m.rx_ns > m.t35_ns:
        m.stats.long_frames += 1
        m.rx_len = 0
    if n > RTU_BUF - m.rx_len:
        m.stats.long_frames += 1
        m.rx_len = 0
        return RX_MORE
    memcpy(&m.rx[m.rx_len], buf, n)
    m.rx_len += n
    if _was_given(m, m.rx, m.rx_len):
        m.stats.late += 1
        m.rx_len = 0
    return RX_MORE


cdef int rtu_feed(RtuMaster* m, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil:
    """Bytes from the line, at most what one read() gave. Returns RX_MORE or the end of the present request."""
    cdef int result = RX_MORE
    if n <= 0:
        return RX_MORE
    if m.mbap:
        result = _feed_mbap(m, buf, n, now_ns)
    elif m.state == RTU_IDLE:
        _idle(m, buf, n, now_ns)
    elif n > RTU_BUF - m.rx_len:            # a line that babbles: no frame of the standard is this long
        m.stats.long_frames += 1
        result = _end(m, RX_LONG)
    else:
        if m.rx_len == 0:
            m.first_ns = now_ns
        memcpy(&m.rx[m.rx_len], buf, n)
        m.rx_len += n
        result = _parse(m, now_ns)
    m.rx_ns = now_ns
    if now_ns + m.t35_ns > m.ready_ns:
        m.ready_ns = now_ns + m.t35_ns
    return result


cdef int rtu_expire(RtuMaster* m, int64_t now_ns) noexcept nogil:
    """The deadline has passed: name what came instead of an answer. RX_MORE before the deadline or while idle."""
    cdef int length = 0
    if m.state != RTU_WAIT or now_ns < m.deadline_ns:
        return RX_MORE
    if m.mbap:
        return _expire_mbap(m)
    if m.rx_len == 0 or (not m.echo_done and m.rx_len < m.tx_len and memcmp(m.rx, m.tx, m.rx_len) == 0):
        m.stats.timeouts += 1
    elif m.rx_len >= 2 and _match(&m.ask, m.rx, m.rx_len, &length) == _PART:
        m.stats.short_frames += 1
        return _end(m, RX_SHORT)
    else:
        m.stats.crc_errors += 1             # bytes, but no frame: noise, or a collision
    return _end(m, RX_TIMEOUT)


cdef void rtu_abort(RtuMaster* m, int64_t now_ns) noexcept nogil:
    """The frame could not be sent, or only in part: the slave may have heard half of it, so the line needs its silence."""
    m.state = RTU_IDLE
    m.deadline_ns = INT64_MAX
    if not m.mbap:
        m.rx_len = 0
    m.ready_ns = now_ns + m.lead_ns + m.tx_len * m.char_ns + m.t35_ns


cdef void rtu_reset(RtuMaster* m, int64_t now_ns) noexcept nogil:
    """The port has just been opened: half frames are gone, and it may be another adapter."""
    m.state = RTU_IDLE
    m.deadline_ns = INT64_MAX
    m.rx_len = 0
    m.given_n = 0
    m.broken = 0
    m.silent = 0
    m.echo = -1
    m.ready_ns = now_ns + m.t35_ns


# ---------------------------------------------------------------- Python's face

RESULTS = ("more", "ok", "exception", "crc", "short", "long", "timeout", "refused", "broken")
EXCEPTIONS = {
    1: "illegal function", 2: "illegal data address", 3: "illegal data value", 4: "device failure", 5: "acknowledge", 6: "device busy",
    8: "memory parity error", 10: "gateway path unavailable", 11: "gateway target failed to respond",
}


cdef class PyRtuMaster:
    """The state machine with a Python face: for scans, probes and tests. Times are integer nanoseconds of any one clock.

    baud, bits: line speed and bits a character (11 for 8E1). untimed: a PTY, where no answer is too soon. tcp: MBAP frames instead,
    the first with transaction identifier `tid` (a scan counts from the other end of the range than control, which takes over).
    """
    cdef RtuMaster m
    cdef BusStats counts

    def __init__(self, int baud=115200, int bits=11, bint untimed=False, *, bint tcp=False, uint16_t tid=0x8000):
        if baud <= 0 or bits < 9 or bits > 12:
            raise ValueError(f"baud {baud}, bits a character {bits}: expected baud > 0 and 9..12 bits")
        memset(&self.counts, 0, sizeof(BusStats))
        if tcp:
            tcp_init(&self.m, 0, tid, &self.counts)
        else:
            rtu_init(&self.m, baud, bits, untimed, &self.counts)

    def request(self, int unit, int fc, int addr=0, int count=0, values=(), int waddr=-1):
        """Frame a request: `count` registers read from `addr`, 16-bit `values` written to `waddr` (default: addr). Returns the bytes.
        Raises ValueError where the standard has no such frame or a request is under way."""
        cdef uint8_t data[256]
        cdef int i, n = len(values)
        if n > 123:
            raise ValueError(f"{n} registers in one write: the standard allows 123 (FC23: 121)")
        for i in range(n):
            if not 0 <= values[i] <= 0xFFFF:
                raise ValueError(f"register value {values[i]} outside 0..65535")
            _put16(data, 2 * i, values[i])
        if rtu_build(&self.m, unit, fc, addr, count, data, addr if waddr < 0 else waddr, n) < 0:
            raise ValueError(f"no such request: unit {unit}, FC{fc:02d}, address {addr}, count {count}, {n} values"
                             + (" (a request is under way)" if self.m.state != RTU_IDLE else ""))
        return bytes(self.m.tx[:self.m.tx_len])

    def sent(self, int64_t now_ns, int64_t timeout_ns=1000000000, int64_t turnaround_ns=0):
        """The frame left at now_ns; its answer is given up timeout_ns later."""
        rtu_sent(&self.m, now_ns, turnaround_ns, now_ns + timeout_ns)

    def feed(self, bytes data, int64_t now_ns):
        """Bytes from the line. Returns one of RESULTS."""
        cdef const uint8_t* p = data
        return RESULTS[rtu_feed(&self.m, p, len(data), now_ns)]

    def expire(self, int64_t now_ns):
        return RESULTS[rtu_expire(&self.m, now_ns)]

    def reset(self, int64_t now_ns):
        rtu_reset(&self.m, now_ns)

    def abort(self, int64_t now_ns):
        rtu_abort(&self.m, now_ns)

    @property
    def words(self):
        """Registers of the last good answer (list of int, 0..65535); only right after feed() returned "ok"."""
        cdef int i
        return [(self.m.data[2 * i] << 8) | self.m.data[2 * i + 1] for i in range(self.m.data_len // 2)]

    @property
    def exception(self):
        return self.m.exception

    @property
    def waiting(self):
        return self.m.state == RTU_WAIT

    @property
    def broken(self):
        """TCP: the connection is of no more use."""
        return bool(self.m.broken)

    @property
    def ready_ns(self):
        return self.m.ready_ns

    @property
    def deadline_ns(self):
        return self.m.deadline_ns

    @property
    def nominal_ns(self):
        return self.m.nominal_ns

    @property
    def char_ns(self):
        return self.m.char_ns

    @property
    def t35_ns(self):
        return self.m.t35_ns

    @property
    def echo(self):
        return self.m.echo

    @property
    def stats(self):
        return self.counts


def crc(bytes data):
    """CRC16 of Modbus over `data`; goes on the wire low byte first."""
    cdef const uint8_t* p = data
    return crc16(p, len(data))
