"""RTU ports: when the bits of each frame stand on the wire, and what the slaves make of them.

A master's n bytes that start at t occupy the line to t + n characters (8E1: 11 bits each), or later when the line is
still busy. Frame end is 3.5 characters of silence after the last bit: 3.5 characters at <= 19200 baud, 1.75 ms above
(Modbus over serial line V1.02, 2.5.1.1). That instant is the request's detection; after turnaround the answer leaves
and is handed over when its last bit is on the wire.

Silence: frames that start less than 3.5 characters after the last traffic are counted (`silence_violations`) and
answered nevertheless: a real slave would hear garbage, but one count is easier to debug than a timeout.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memmove

from bench.plant.devices cimport device_read, device_write
from bench.plant.physics cimport uniform
from bench.plant.state cimport (
    KIND_BMS,
    KIND_METER,
    KIND_PCS,
    N_PORT_PARS,
    PP_bit_error_p,
    PP_chunk,
    PP_drop_p,
    PP_echo,
    PP_garbage_p,
    PP_jitter_s,
    PP_truncate_p,
    RX_BYTES,
    TX_BYTES,
    TX_QUEUE,
    Device,
    P_bms_corrupt_p,
    P_bms_dead,
    P_bms_delay_answer_s,
    P_bms_turnaround_s,
    P_FIXED_COUNT,
    P_meter_corrupt_p,
    P_meter_dead,
    P_meter_delay_answer_s,
    P_meter_turnaround_s,
    P_pcs_corrupt_p,
    P_pcs_dead,
    P_pcs_delay_answer_s,
    P_pcs_fc23,
    P_pcs_turnaround_s,
    Plant,
    Port,
    Tx,
)

cdef enum:
    # Of the silence check: timers of masters round to microseconds; 50 us is two characters at 460800.
    SLACK_NS = 50_000

cdef uint16_t _CRC[256]


def _build_crc_table():
    """CRC-16/MODBUS, polynomial 0xA001 reflected."""
    for i in range(256):
        c = i
        for _ in range(8):
            c = c >> 1 ^ 0xA001 if c & 1 else c >> 1
        _CRC[i] = c


_build_crc_table()


cdef uint16_t crc16(const uint8_t* buf, int n) noexcept nogil:
    cdef uint16_t c = 0xFFFF
    cdef int i
    for i in range(n):
        c = (c >> 8) ^ _CRC[(c ^ buf[i]) & 0xFF]
    return c


cdef inline int _crc_ok(const uint8_t* buf, int n) noexcept nogil:
    return n >= 4 and crc16(buf, n - 2) == (buf[n - 2] | (<uint16_t>buf[n - 1] << 8))


cdef double port_par(Plant* p, int port, int which) noexcept nogil:
    return p.par[P_FIXED_COUNT + port * N_PORT_PARS + which]


cdef int strikes(Plant* p, int port, double chance) noexcept nogil:
    """Draw for a fault; draws nothing at chance 0, so that faults elsewhere do not shift the dice of a clean port."""
    if chance <= 0.0 or uniform(p) >= chance:
        return 0
    p.port[port].faults_injected += 1
    return 1


cdef void port_init(Plant* p, int port, double baud, int bits) noexcept nogil:
    cdef Port* o = &p.port[port]
    o.used = 1
    o.char_ns = <int64_t>(bits / baud * 1e9 + 0.5)
    o.t35_ns = <int64_t>(3.5 * bits / baud * 1e9 + 0.5) if baud <= 19200 else 1_750_000
    o.line_end_ns = p.t0_ns - 1_000_000_000
    o.rx_n = 0
    o.tx_n = 0


cdef int64_t _busy_until(Port* o, int64_t t_ns) noexcept nogil:
    """End of what is on the line at t: the master's own last frame, and answers that have begun."""
    cdef int64_t end_ns = o.line_end_ns
    cdef int i
    for i in range(o.tx_n):
        if o.tx[i].start_ns <= t_ns and o.tx[i].emit_ns > end_ns:
            end_ns = o.tx[i].emit_ns
    return end_ns


cdef void port_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil:
    """Bytes a master begins to send at t. Pieces of one frame may come in several calls."""
    cdef Port* o = &p.port[port]
    cdef int64_t busy_ns = _busy_until(o, t_ns), start_ns = t_ns if t_ns > busy_ns else busy_ns
    cdef int i
    if n <= 0 or not o.used:
        return
    if o.rx_n > 0 and start_ns > o.rx_end_ns and _crc_ok(o.rx, o.rx_n):
        # A whole frame stands there and its silence never came: the new frame overruns it.
        o.silence_violations += 1
        o.rx_n = 0
    elif o.rx_n == 0 and start_ns < busy_ns + o.t35_ns - SLACK_NS:
        o.silence_violations += 1
    if o.rx_n == 0:
        o.rx_start_ns = start_ns
        o.rx_overrun = 0
    for i in range(o.tx_n):
        if o.tx[i].start_ns > start_ns and o.tx[i].start_ns < start_ns + n * o.char_ns:
            o.collisions += 1
    if o.rx_n + n > RX_BYTES:
        o.rx_overrun = 1
        o.bytes_lost += o.rx_n + n - RX_BYTES
        n = RX_BYTES - o.rx_n
        if n <= 0:
            return
    memcpy(o.rx + o.rx_n, buf, n)
    o.rx_n += n
    o.rx_end_ns = start_ns + n * o.char_ns
    o.line_end_ns = o.rx_end_ns
    if port_par(p, port, PP_echo) != 0.0:
        queue_tx(p, port, buf, n, start_ns, o.rx_end_ns)


cdef int64_t port_next(Plant* p, int port) noexcept nogil:
    cdef Port* o = &p.port[port]
    cdef int64_t t = o.rx_end_ns + o.t35_ns if o.rx_n > 0 else INT64_MAX
    if o.tx_n > 0 and o.tx[0].emit_ns < t:
        t = o.tx[0].emit_ns
    return t


cdef void port_run(Plant* p, int port, int64_t t_ns) noexcept nogil:
    """Handle what is due on this port at t: a finished answer first, then a detected frame."""
    cdef Port* o = &p.port[port]
    if o.tx_n > 0 and o.tx[0].emit_ns <= t_ns:
        if o.tx[0].emit_ns > o.line_end_ns:
            o.line_end_ns = o.tx[0].emit_ns
        if p.emit != NULL:
            p.emit(p.emit_ctx, port, o.tx[0].buf, o.tx[0].n, o.tx[0].emit_ns)
        o.tx_n -= 1
        memmove(&o.tx[0], &o.tx[1], o.tx_n * sizeof(Tx))
    elif o.rx_n > 0 and o.rx_end_ns + o.t35_ns <= t_ns:
        _detect(p, port, o.rx_end_ns + o.t35_ns)


cdef void _detect(Plant* p, int port, int64_t t_ns) noexcept nogil:
    cdef Port* o = &p.port[port]
    cdef int n = o.rx_n, i, heard = 0
    o.rx_n = 0
    if strikes(p, port, port_par(p, port, PP_bit_error_p)):
        i = <int>(uniform(p) * n * 8)
        o.rx[i >> 3] ^= 1 << (i & 7)
    if o.rx_overrun or not _crc_ok(o.rx, n):
        o.bad_crc += 1
        return
    for i in range(p.n_devices):
        if p.dev[i].port == port and (p.dev[i].unit == o.rx[0] or o.rx[0] == 0):
            heard = 1
            _serve(p, port, &p.dev[i], o.rx, n, t_ns)
    if not heard:
        o.no_device += 1


cdef inline int _kind_par(int kind, int meter, int bms, int pcs) noexcept nogil:
    return meter if kind == KIND_METER else bms if kind == KIND_BMS else pcs


cdef int dead(Plant* p, Device* d) noexcept nogil:
    return p.par[_kind_par(d.kind, P_meter_dead, P_bms_dead, P_pcs_dead)] != 0.0


cdef double corrupt_p(Plant* p, Device* d) noexcept nogil:
    return p.par[_kind_par(d.kind, P_meter_corrupt_p, P_bms_corrupt_p, P_pcs_corrupt_p)]


cdef int64_t think_ns(Plant* p, Device* d) noexcept nogil:
    """From the request's detection to the answer's first bit."""
    return <int64_t>(
        (
            p.par[_kind_par(d.kind, P_meter_turnaround_s, P_bms_turnaround_s, P_pcs_turnaround_s)]
            + p.par[_kind_par(d.kind, P_meter_delay_answer_s, P_bms_delay_answer_s, P_pcs_delay_answer_s)]
        )
        * 1e9
    )


cdef void _serve(Plant* p, int port, Device* d, const uint8_t* req, int n, int64_t t_ns) noexcept nogil:
    """One request to one device: run it, send the answer (none to a broadcast)."""
    cdef Port* o = &p.port[port]
    cdef uint8_t out[TX_BYTES]
    cdef int m
    cdef uint16_t crc
    if dead(p, d):
        return
    o.requests += 1
    m = pdu_answer(p, d, req, n, out, t_ns, o.rx_end_ns)
    if req[0] == 0:
        return
    if m < 0:
        o.exceptions += 1
        out[0] = req[0]
        out[1] = req[1] | 0x80
        out[2] = <uint8_t>(-m)
        m = 3
    crc = crc16(out, m)
    if strikes(p, port, corrupt_p(p, d)):
        crc ^= 0x5A5A
    out[m] = crc & 0xFF
    out[m + 1] = crc >> 8
    _send(p, port, out, m + 2, t_ns + think_ns(p, d))


cdef int mangle(Plant* p, int port, uint8_t* buf, int n) noexcept nogil:
    """The port's truncation and garbage (up to 8 bytes more) on n bytes that go out; their new number."""
    cdef int i, extra
    if strikes(p, port, port_par(p, port, PP_truncate_p)):
        n = 1 + <int>(uniform(p) * (n - 1))
    if strikes(p, port, port_par(p, port, PP_garbage_p)):
        extra = 1 + <int>(uniform(p) * 8)
        memmove(buf + extra, buf, n)
        for i in range(extra):
            buf[i] = <uint8_t>(uniform(p) * 256)
        n += extra
    return n


cdef int spoil(Plant* p, int port, uint8_t* buf, int n, int struck, int64_t* at_ns) noexcept nogil:
    """What the port's faults make of an answer of n bytes that comes at `at_ns`: its new length, 0 where it is lost.

    A bit error strikes the first `struck` bytes.
    """
    cdef int i
    cdef double jitter_s = port_par(p, port, PP_jitter_s)
    if strikes(p, port, port_par(p, port, PP_drop_p)):
        return 0
    if jitter_s > 0.0:
        at_ns[0] += <int64_t>(uniform(p) * jitter_s * 1e9)
    if strikes(p, port, port_par(p, port, PP_bit_error_p)):
        i = <int>(uniform(p) * struck * 8)
        buf[i >> 3] ^= 1 << (i & 7)
    return mangle(p, port, buf, n)


cdef void _send(Plant* p, int port, uint8_t* buf, int n, int64_t start_ns) noexcept nogil:
    """Put an answer on the line, through the port's faults."""
    cdef Port* o = &p.port[port]
    cdef int half
    n = spoil(p, port, buf, n, n, &start_ns)
    if n == 0:
        return
    if o.tx_n > 0 and start_ns < o.tx[o.tx_n - 1].emit_ns:
        start_ns = o.tx[o.tx_n - 1].emit_ns         # one answer after the other
    if port_par(p, port, PP_chunk) != 0.0 and n > 1:
        half = n // 2
        queue_tx(p, port, buf, half, start_ns, start_ns + half * o.char_ns)
        queue_tx(p, port, buf + half, n - half, start_ns + half * o.char_ns, start_ns + n * o.char_ns)
    else:
        queue_tx(p, port, buf, n, start_ns, start_ns + n * o.char_ns)


cdef int queue_tx(Plant* p, int port, const uint8_t* buf, int n, int64_t start_ns, int64_t emit_ns) noexcept nogil:
    cdef Port* o = &p.port[port]
    cdef int i
    cdef Tx* x
    if o.tx_n == TX_QUEUE or n > TX_BYTES:
        o.tx_dropped += 1
        return 0
    i = o.tx_n
    while i > 0 and o.tx[i - 1].emit_ns > emit_ns:
        i -= 1
    memmove(&o.tx[i + 1], &o.tx[i], (o.tx_n - i) * sizeof(Tx))
    x = &o.tx[i]
    x.start_ns = start_ns
    x.emit_ns = emit_ns
    x.n = n
    memcpy(x.buf, buf, n)
    o.tx_n += 1
    return 1


# -- Modbus PDU (Modbus Application Protocol V1.1b3, section 6)

cdef inline int _be16(const uint8_t* b) noexcept nogil:
    return (b[0] << 8) | b[1]


cdef int _put_read(Plant* p, Device* d, int fc, int addr, int count, uint8_t* out, int64_t t_ns) noexcept nogil:
    cdef uint16_t regs[128]
    cdef int i, refused = device_read(p, d, fc, addr, count, regs, t_ns)
    if refused:
        return -refused
    out[2] = 2 * count
    for i in range(count):
        out[3 + 2 * i] = regs[i] >> 8
        out[4 + 2 * i] = regs[i] & 0xFF
    return 3 + 2 * count


cdef int _write(
    Plant* p, Device* d, int addr, int count, const uint8_t* data, int64_t t_ns, int64_t end_ns
) noexcept nogil:
    cdef uint16_t regs[128]
    cdef int i
    if count < 1 or count > 123:
        return 3
    for i in range(count):
        regs[i] = _be16(data + 2 * i)
    return device_write(p, d, addr, count, regs, t_ns, end_ns)


cdef int pdu_answer(
    Plant* p, Device* d, const uint8_t* req, int n, uint8_t* out, int64_t t_ns, int64_t end_ns
) noexcept nogil:
    """Length of the answer without CRC, or minus the exception code. req is n bytes with a good CRC."""
    cdef int fc = req[1], refused
    out[0] = req[0]
    out[1] = fc
    if fc == 3 or fc == 4:
        if n != 8:
            return -3
        return _put_read(p, d, fc, _be16(req + 2), _be16(req + 4), out, t_ns)
    if fc == 6:
        refused = _write(p, d, _be16(req + 2), 1, req + 4, t_ns, end_ns) if n == 8 else 3
        memcpy(out + 2, req + 2, 4)
        return -refused if refused else 6
    if fc == 16:
        if n < 9 or n != 9 + req[6] or req[6] != 2 * _be16(req + 4):
            return -3
        refused = _write(p, d, _be16(req + 2), _be16(req + 4), req + 7, t_ns, end_ns)
        memcpy(out + 2, req + 2, 4)
        return -refused if refused else 6
    if fc == 23 and (d.kind != KIND_PCS or p.par[P_pcs_fc23] != 0.0):
        # Writes before it reads: the data answer the write, not the instant before it.
        if n < 13 or n != 13 + req[10] or req[10] != 2 * _be16(req + 8):
            return -3
        refused = _write(p, d, _be16(req + 6), _be16(req + 8), req + 11, t_ns, end_ns)
        return -refused if refused else _put_read(p, d, 3, _be16(req + 2), _be16(req + 4), out, t_ns)
    return -1
