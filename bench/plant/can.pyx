"""CAN ports: an slcan adapter with a CAN bus behind it, and the BMS and PCS on that bus. Shares nothing with hal.

The wire: a frame takes its bits, stuffed as its content makes them (ISO 11898-1, CRC15 included), at the bus's rate; when
the bus is free, of all that wait the lowest identifier goes first; a frame that began is not interrupted. It is heard at the
end of its end-of-frame; three bits later the bus is free. A bit error (`<port>.bit_error_p`) destroys a frame: 20 bits of error
flags and delimiter, then it is sent again. The adapter hands over a line the moment a frame ends; it sends its own frames in
the order in which they came.

The BMS speaks the low-voltage Pylontech frames once a second: a burst of 0x351, 0x355, 0x356, 0x359, 0x35C, 0x35E, little-endian,
currents with charging +, a 16-cell pack of the battery's energy (its 250 cells in series show 16 in series and as much more
current). With `bms.can_foxbms` it speaks foxBMS 2 instead: 0x220, 0x230, 0x232, 0x233 every 100 ms and 0x235 every second, Motorola,
the whole battery's voltage. The PCS hears 0x200 (power i24 in W, charge +; reactive power i16 in 100 var; enable, operate; counter; CRC8 SAE J1850)
and says 0x180 every 10 ms and 0x181 every 100 ms; without a command for `pcs.can_timeout_s` it goes to 0 by itself.
"""

from libc.math cimport floor, fmax, fmin
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memmove, memset

from bench.plant.pcs cimport OP_ENTER_STANDBY, OP_START, R704, pcs_command, pcs_operate, pcs_shown_state
from bench.plant.physics cimport batt_w, f_hz, present, uniform
from bench.plant.state cimport (
    CAN_LINE,
    CAN_QUEUE,
    CAN_TEXT,
    PCS_RUNNING,
    PP_bit_error_p,
    PP_chunk,
    PP_drop_p,
    PP_jitter_s,
    Battery,
    CanMessage,
    CanPort,
    P_bms_can_foxbms,
    P_bms_can_mute,
    P_bms_dead,
    P_bms_delay_answer_s,
    P_bms_soc_offset,
    P_grid_connected,
    P_grid_v_ln_v,
    P_pcs_can_timeout_s,
    P_pcs_corrupt_p,
    P_pcs_dead,
    P_pcs_fault,
    P_pcs_hb_stuck,
    Plant,
    Port,
)
from bench.plant.wire cimport mangle, port_par, strikes

cdef enum:
    NODE_ADAPTER = 0
    NODE_BMS = 1
    NODE_PCS = 2
    BURST_NS = 1_000_000_000
    FOXBMS_NS = 100_000_000
    FEEDBACK_NS = 10_000_000
    STATUS_NS = 100_000_000
    ERROR_BITS = 20             # error flag of six, as many again from the others, delimiter of eight
    CELLS = 250                 # of the battery's model, and of the pack that speaks here
    PACK_CELLS = 16


# -- the wire

cdef int can_wire_bits(const CanMessage* m) noexcept nogil:
    """Bits from start of frame to the end of the interframe space. Laid out bit by bit, then counted."""
    cdef uint8_t bit[160]
    cdef int n = 0, i, k, stuffed = 0, run = 0
    cdef int crc = 0
    cdef uint32_t word
    bit[0] = 0
    n = 1
    if m.ext:
        word = m.id >> 18
        for i in range(11):
            bit[n] = (word >> (10 - i)) & 1
            n += 1
        bit[n] = 1
        bit[n + 1] = 1
        n += 2
        for i in range(18):
            bit[n] = (m.id >> (17 - i)) & 1
            n += 1
        bit[n] = m.rtr != 0
        bit[n + 1] = 0
        bit[n + 2] = 0
        n += 3
    else:
        for i in range(11):
            bit[n] = (m.id >> (10 - i)) & 1
            n += 1
        bit[n] = m.rtr != 0
        bit[n + 1] = 0
        bit[n + 2] = 0
        n += 3
    for i in range(4):
        bit[n] = (m.n >> (3 - i)) & 1
        n += 1
    for k in range(0 if m.rtr else m.n):
        for i in range(8):
            bit[n] = (m.data[k] >> (7 - i)) & 1
            n += 1
    for i in range(n):
        crc = (crc << 1) ^ (0x4599 if ((crc >> 14) & 1) != bit[i] else 0)
        crc &= 0x7FFF
    for i in range(15):
        bit[n] = (crc >> (14 - i)) & 1
        n += 1
    k = 2                       # no bit: nothing before the first
    for i in range(n):
        run = run + 1 if bit[i] == k else 1
        k = bit[i]
        if run == 5:
            stuffed += 1
            k = 1 - k
            run = 1
    return n + stuffed + 10 + 3     # CRC delimiter, ACK slot and delimiter, end of frame; interframe space


cdef void can_init(Plant* p, int port, int bitrate) noexcept nogil:
    cdef CanPort* c = &p.can[port]
    cdef int i
    memset(c, 0, sizeof(CanPort))
    p.port[port].used = 2
    c.bit_ns = 1_000_000_000 // bitrate
    c.free_ns = p.t0_ns
    c.bms_ns = c.feedback_ns = c.status_ns = INT64_MAX
    c.command_n = -1
    for i in range(p.n_devices):
        if p.dev[i].port == port and i == p.bms_dev:
            c.bms_ns = p.t0_ns + 100_000_000
        if p.dev[i].port == port and i == p.pcs_dev:
            c.feedback_ns = p.t0_ns + 3_000_000
            c.status_ns = p.t0_ns + 53_000_000


cdef void _queue(Plant* p, int port, CanMessage* m, int node, int64_t t_ns) noexcept nogil:
    """A node wants to send. What finds no room is lost and counted."""
    cdef CanPort* c = &p.can[port]
    m.node = node
    m.ready_ns = t_ns
    m.key = (m.id << 21) | (<uint32_t>(m.rtr != 0) << 20)
    if m.ext:
        m.key = ((m.id >> 18) << 21) | (3 << 19) | ((m.id & 0x3FFFF) << 1) | (m.rtr != 0)
    if c.q_n == CAN_QUEUE:
        c.overflows += 1
        p.port[port].tx_dropped += 1
        return
    c.queue[c.q_n] = m[0]
    c.q_n += 1


cdef int64_t _start_ns(CanPort* c) noexcept nogil:
    """When the next frame begins; INT64_MAX: nobody waits, or one is on the wire."""
    cdef int64_t t = INT64_MAX
    cdef int i
    if c.busy:
        return INT64_MAX
    for i in range(c.q_n):
        if c.queue[i].ready_ns < t:
            t = c.queue[i].ready_ns
    return c.free_ns if t < c.free_ns else t


cdef void _begin(Plant* p, int port, int64_t t_ns) noexcept nogil:
    """Arbitration: of all that are ready the smallest key; of the adapter only its oldest takes part."""
    cdef CanPort* c = &p.can[port]
    cdef int i, best = -1, own = 0, rivals = 0
    for i in range(c.q_n):
        if c.queue[i].ready_ns > t_ns:
            continue
        if c.queue[i].node == NODE_ADAPTER:
            own += 1
            if own > 1:
                continue
        rivals += 1
        if best < 0 or c.queue[i].key < c.queue[best].key:
            best = i
    if best < 0:
        return
    c.arbitrations_lost += rivals - 1
    c.now = c.queue[best]
    c.q_n -= 1
    memmove(&c.queue[best], &c.queue[best + 1], (c.q_n - best) * sizeof(CanMessage))
    c.busy = 1
    i = can_wire_bits(&c.now)
    c.end_ns = t_ns + (i - 3) * c.bit_ns
    c.free_ns = t_ns + i * c.bit_ns
    c.destroyed = strikes(p, port, port_par(p, port, PP_bit_error_p))
    if c.destroyed:
        c.free_ns += ERROR_BITS * c.bit_ns


cdef void _end(Plant* p, int port, int64_t t_ns) noexcept nogil:
    """The frame on the wire is over: it is heard by the others, or sent again."""
    cdef CanPort* c = &p.can[port]
    cdef CanMessage m = c.now
    c.busy = 0
    if c.destroyed:
        p.port[port].bad_crc += 1
        if c.q_n < CAN_QUEUE:
            memmove(&c.queue[1], &c.queue[0], c.q_n * sizeof(CanMessage))
            c.queue[0] = m
            c.q_n += 1
        return
    c.frames += 1
    if m.node == NODE_ADAPTER:
        _heard(p, port, &m, t_ns)
    elif c.open:
        _hand_over(p, port, &m, t_ns)


# -- the adapter: lines to and from the master

cdef int _digit(uint8_t c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'A' <= c <= c'F':
        return c - c'A' + 10
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


cdef int _hex(uint8_t* out, uint32_t x, int n) noexcept nogil:
    cdef int i, d
    for i in range(n):
        d = (x >> (4 * (n - 1 - i))) & 15
        out[i] = <uint8_t>(c'0' + d) if d < 10 else <uint8_t>(c'A' + d - 10)
    return n


cdef void _hand_over(Plant* p, int port, CanMessage* m, int64_t t_ns) noexcept nogil:
    """A frame of the bus as a line to the master, through the port's faults."""
    cdef uint8_t out[CAN_LINE]
    cdef int n, i
    if p.emit == NULL or strikes(p, port, port_par(p, port, PP_drop_p)):
        return
    out[0] = (c'R' if m.ext else c'r') if m.rtr else (c'T' if m.ext else c't')
    n = 1 + _hex(out + 1, m.id, 8 if m.ext else 3)
    n += _hex(out + n, m.n, 1)
    for i in range(0 if m.rtr else m.n):
        n += _hex(out + n, m.data[i], 2)
    out[n] = 13
    n += 1
    n = mangle(p, port, out, n)
    if port_par(p, port, PP_chunk) != 0.0 and n > 1:
        p.emit(p.emit_ctx, port, out, n // 2, t_ns)
        p.emit(p.emit_ctx, port, out + n // 2, n - n // 2, t_ns)
    else:
        p.emit(p.emit_ctx, port, out, n, t_ns)


cdef void _say(CanPort* c, const char* text, int n, int64_t t_ns) noexcept nogil:
    """An answer of the adapter itself, handed over at the present instant."""
    if c.text_n + n > CAN_TEXT:
        return
    memcpy(c.text + c.text_n, text, n)
    c.text_n += n
    c.text_ns = t_ns


cdef int _parse(CanPort* c, CanMessage* m) noexcept nogil:
    """The line as a frame; False: it is none."""
    cdef int kind = c.line[0], digits = 8 if kind == c'T' or kind == c'R' else 3, i, d
    memset(m, 0, sizeof(CanMessage))
    if c.line_n < digits + 2:
        return False
    m.ext = digits == 8
    m.rtr = kind == c'r' or kind == c'R'
    for i in range(digits):
        d = _digit(c.line[1 + i])
        if d < 0:
            return False
        m.id = (m.id << 4) | d
    m.n = _digit(c.line[1 + digits])
    if m.id > (0x1FFFFFFF if m.ext else 0x7FF) or m.n < 0 or m.n > 8 or c.line_n != digits + 2 + (0 if m.rtr else 2 * m.n):
        return False
    for i in range(0 if m.rtr else 2 * m.n):
        d = _digit(c.line[2 + digits + i])
        if d < 0:
            return False
        m.data[i >> 1] = (m.data[i >> 1] << 4) | d
    return True


cdef void _line(Plant* p, int port, int64_t t_ns) noexcept nogil:
    cdef CanPort* c = &p.can[port]
    cdef CanMessage m
    cdef int kind = c.line[0] if c.line_n else 0
    if kind == 0 or kind == c'S':
        _say(c, b"\r", 1, t_ns)
    elif kind == c'O' or kind == c'L' or kind == c'C':
        c.open = 1 if kind == c'O' else 2 if kind == c'L' else 0    # L: it listens and does not acknowledge
        _say(c, b"\r", 1, t_ns)
    elif kind == c'F':
        _say(c, b"F00\r", 4, t_ns)
    elif kind == c'V':
        _say(c, b"V1013\r", 6, t_ns)
    elif (kind == c't' or kind == c'T' or kind == c'r' or kind == c'R') and c.open == 1 and _parse(c, &m):
        _queue(p, port, &m, NODE_ADAPTER, t_ns)
        _say(c, b"Z\r" if m.ext else b"z\r", 2, t_ns)
    else:
        _say(c, b"\x07", 1, t_ns)


cdef void can_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil:
    """Characters of the master, whole lines or pieces."""
    cdef CanPort* c = &p.can[port]
    cdef int i
    for i in range(n):
        if buf[i] == 13:
            if c.line_skip:
                _say(c, b"\x07", 1, t_ns)
            else:
                _line(p, port, t_ns)
            c.line_n = 0
            c.line_skip = 0
        elif c.line_n < CAN_LINE:
            c.line[c.line_n] = buf[i]
            c.line_n += 1
        else:
            c.line_skip = 1
            p.port[port].bytes_lost += 1


# -- events of the port

cdef int64_t can_next(Plant* p, int port) noexcept nogil:
    cdef CanPort* c = &p.can[port]
    cdef int64_t t = _start_ns(c)
    if c.busy and c.end_ns < t:
        t = c.end_ns
    if c.text_n > 0 and c.text_ns < t:
        t = c.text_ns
    if c.bms_ns < t:
        t = c.bms_ns
    if c.feedback_ns < t:
        t = c.feedback_ns
    return c.status_ns if c.status_ns < t else t


cdef void can_run(Plant* p, int port, int64_t t_ns) noexcept nogil:
    """One thing that is due at t: what the adapter says, the end of a frame, what devices want to send, the next frame."""
    cdef CanPort* c = &p.can[port]
    cdef int n = c.text_n
    if n > 0 and c.text_ns <= t_ns:
        c.text_n = 0
        if p.emit != NULL:
            p.emit(p.emit_ctx, port, c.text, n, t_ns)
    elif c.busy and c.end_ns <= t_ns:
        _end(p, port, t_ns)
    elif c.bms_ns <= t_ns:
        c.bms_ns += FOXBMS_NS if p.par[P_bms_can_foxbms] != 0.0 else BURST_NS
        if p.par[P_bms_dead] == 0.0 and p.par[P_bms_can_foxbms] != 0.0:
            _foxbms(p, port, t_ns)
        elif p.par[P_bms_dead] == 0.0:
            _burst(p, port, t_ns)
    elif c.feedback_ns <= t_ns:
        c.feedback_ns += FEEDBACK_NS
        if p.par[P_pcs_dead] == 0.0:
            _feedback(p, port, t_ns)
    elif c.status_ns <= t_ns:
        c.status_ns += STATUS_NS
        if p.par[P_pcs_dead] == 0.0:
            _status(p, port, t_ns)
    elif _start_ns(c) <= t_ns:
        _begin(p, port, t_ns)


# -- devices

cdef inline void _le16(uint8_t* out, int x) noexcept nogil:
    out[0] = x & 0xFF
    out[1] = (x >> 8) & 0xFF


cdef inline int _s16(double x) noexcept nogil:
    return <int>floor(fmin(fmax(x, -32767.0), 32767.0) + 0.5)


cdef void _send(Plant* p, int port, uint32_t number, int n, const uint8_t* data, int node, int64_t t_ns) noexcept nogil:
    cdef CanMessage m
    memset(&m, 0, sizeof(m))
    m.id = number
    m.n = n
    memcpy(m.data, data, n)
    _queue(p, port, &m, node, t_ns)


cdef void _burst(Plant* p, int port, int64_t t_ns) noexcept nogil:
    """What a Pylontech says once a second. Limits are rounded down: a shown limit must never be above the true one."""
    cdef Battery* b = &p.bat
    cdef double v = fmax(b.v_v, 1.0) * PACK_CELLS / CELLS
    cdef double soc = fmin(fmax(b.soc + p.par[P_bms_soc_offset], 0.0), 1.0)
    cdef double jitter_s = port_par(p, port, PP_jitter_s)
    cdef uint8_t d[8]
    t_ns += <int64_t>((p.par[P_bms_delay_answer_s] + (uniform(p) * jitter_s if jitter_s > 0.0 else 0.0)) * 1e9)
    memset(d, 0, 8)
    _le16(d, _s16(3.65 * PACK_CELLS * 10.0))
    _le16(d + 2, <int>fmin(fmax(b.lim_charge_w, 0.0) / v * 10.0, 32767.0))
    _le16(d + 4, <int>fmin(fmax(b.lim_discharge_w, 0.0) / v * 10.0, 32767.0))
    _le16(d + 6, _s16(2.5 * PACK_CELLS * 10.0))
    if p.par[P_bms_can_mute] == 0.0:
        _send(p, port, 0x351, 8, d, NODE_BMS, t_ns)
    _le16(d, _s16(soc * 100.0))
    _le16(d + 2, 100)
    _send(p, port, 0x355, 4, d, NODE_BMS, t_ns)
    _le16(d, _s16(v * 100.0))
    _le16(d + 2, _s16(-b.p_dc_w / v * 10.0))
    _le16(d + 4, _s16(b.temp_c * 10.0))
    _send(p, port, 0x356, 6, d, NODE_BMS, t_ns)
    memset(d, 0, 8)
    d[1] = 0x08 if b.evt1 else 0
    d[2] = 0x08 if b.temp_c > 45.0 else 0
    d[4] = 1
    d[5] = c'P'
    d[6] = c'N'
    _send(p, port, 0x359, 7, d, NODE_BMS, t_ns)
    memset(d, 0, 8)
    d[0] = 0xC0 if b.closed and not b.evt1 else 0
    _send(p, port, 0x35C, 2, d, NODE_BMS, t_ns)
    _send(p, port, 0x35E, 8, <const uint8_t*>b"VIRTUAL ", NODE_BMS, t_ns)


cdef void _motorola(uint8_t* d, int start, int length, double x) noexcept nogil:
    """x, rounded down, into bits from `start` (the most significant one) on, saturating at the field's top."""
    cdef int64_t v = <int64_t>floor(fmin(x, <double>((<int64_t>1 << length) - 1)))
    cdef int i, at = 8 * (start >> 3) + 7 - (start & 7)
    for i in range(length):
        if (v >> (length - 1 - i)) & 1:
            d[(at + i) >> 3] |= <uint8_t>(0x80 >> ((at + i) & 7))


cdef void _foxbms(Plant* p, int port, int64_t t_ns) noexcept nogil:
    """What foxBMS 2 says every 100 ms; its state of charge every second."""
    cdef Battery* b = &p.bat
    cdef double v = fmax(b.v_v, 1.0)
    cdef double soc = fmin(fmax(b.soc + p.par[P_bms_soc_offset], 0.0), 1.0)
    cdef uint8_t d[8]
    memset(d, 0, 8)
    _motorola(d, 3, 4, 10.0 if b.evt1 else 7.0 if b.closed else 5.0)
    _motorola(d, 10, 1, b.evt1 != 0)
    _send(p, port, 0x220, 8, d, NODE_BMS, t_ns)
    memset(d, 0, 8)
    _motorola(d, 39, 8, b.temp_c)
    _motorola(d, 47, 8, b.temp_c)
    _send(p, port, 0x230, 8, d, NODE_BMS, t_ns)
    memset(d, 0, 8)
    _motorola(d, 7, 12, fmax(b.lim_discharge_w, 0.0) / v / 0.25)
    _motorola(d, 11, 12, fmax(b.lim_charge_w, 0.0) / v / 0.25)
    _motorola(d, 31, 12, fmax(b.lim_discharge_w, 0.0) / 100.0)
    _motorola(d, 35, 12, fmax(b.lim_charge_w, 0.0) / 100.0)
    if p.par[P_bms_can_mute] == 0.0:
        _send(p, port, 0x232, 8, d, NODE_BMS, t_ns)
    memset(d, 0, 8)
    _motorola(d, 7, 15, v * 10.0)
    _motorola(d, 40, 17, fmax(b.p_dc_w / v * 100.0, -65536.0))
    _send(p, port, 0x233, 8, d, NODE_BMS, t_ns)
    if (t_ns - p.t0_ns) // FOXBMS_NS % 10 == 1:
        memset(d, 0, 8)
        _motorola(d, 7, 10, soc * 1000.0)
        _motorola(d, 47, 8, 200.0)
        _send(p, port, 0x235, 8, d, NODE_BMS, t_ns)


cdef uint8_t _crc8(const uint8_t* d, int n) noexcept nogil:
    """CRC8 SAE J1850, bit by bit: polynomial 0x1D, start and final 0xFF."""
    cdef int i, k, c = 0xFF
    for i in range(n):
        c ^= d[i]
        for k in range(8):
            c = ((c << 1) ^ 0x1D) & 0xFF if c & 0x80 else c << 1
    return <uint8_t>(c ^ 0xFF)


cdef void _feedback(Plant* p, int port, int64_t t_ns) noexcept nogil:
    cdef CanPort* c = &p.can[port]
    cdef int shown = pcs_shown_state(p), w = <int>floor(-batt_w(p, t_ns) + 0.5)
    cdef uint8_t d[8]
    memset(d, 0, 8)
    d[0] = w & 0xFF
    d[1] = (w >> 8) & 0xFF
    d[2] = (w >> 16) & 0xFF
    _le16(d + 3, _s16(present(p).q_var / 100.0))
    # its own numbering: 0 stopped, 1 standby, 2 starting, 3 running, 9 fault
    d[5] = 3 if shown == 4 or shown == PCS_RUNNING else 1 if shown == 7 else 9 if shown == 6 else 2 if shown == 2 else 0
    d[6] = c.feedback_n & 15
    c.feedback_n += 1
    d[7] = _crc8(d, 7)
    if p.par[P_pcs_corrupt_p] > 0.0 and uniform(p) < p.par[P_pcs_corrupt_p]:
        d[7] ^= 0x5A
    _send(p, port, 0x180, 8, d, NODE_PCS, t_ns)


cdef void _status(Plant* p, int port, int64_t t_ns) noexcept nogil:
    cdef uint8_t d[8]
    cdef int v = _s16(p.par[P_grid_v_ln_v] * 10.0 if p.par[P_grid_connected] != 0.0 else 0.0)
    cdef int f = <int>(f_hz(p, t_ns) * 1000.0 + 0.5), alive = <int>((t_ns - p.t0_ns) // STATUS_NS) & 0xFFFF
    d[0] = (v >> 8) & 0xFF
    d[1] = v & 0xFF
    d[2] = (f >> 8) & 0xFF
    d[3] = f & 0xFF
    d[4] = 0
    d[5] = (not p.bat.closed) | ((p.par[P_pcs_fault] != 0.0) << 1)
    if p.par[P_pcs_hb_stuck] != 0.0:
        alive = 1
    d[6] = (alive >> 8) & 0xFF
    d[7] = alive & 0xFF
    _send(p, port, 0x181, 8, d, NODE_PCS, t_ns)


cdef void _heard(Plant* p, int port, CanMessage* m, int64_t t_ns) noexcept nogil:
    """A frame of the master, by whoever listens to it."""
    cdef Port* o = &p.port[port]
    if m.id == 0x200 and not m.ext and not m.rtr and m.n == 8 and p.can[port].feedback_ns != INT64_MAX:
        if p.par[P_pcs_dead] == 0.0:
            o.requests += 1
            _commanded(p, port, m.data, t_ns)
    elif (m.id == 0x305 or m.id == 0x307) and not m.ext:
        o.requests += 1
    else:
        o.no_device += 1


cdef void _commanded(Plant* p, int port, const uint8_t* d, int64_t t_ns) noexcept nogil:
    """The command frame into the registers from which the converter takes its commands (pcs.pyx)."""
    cdef CanPort* c = &p.can[port]
    cdef uint16_t* r = p.dev[p.pcs_dev].regs + R704
    cdef int32_t w = d[0] | (d[1] << 8) | (d[2] << 16)
    cdef int32_t q = <short>(d[3] | (d[4] << 8))
    cdef int operate = (d[5] >> 1) & 1
    if _crc8(d, 7) != d[7]:
        p.port[port].bad_crc += 1
        return
    if (d[6] & 15) == c.command_n:
        p.port[port].exceptions += 1        # its sender repeats itself
        return
    c.command_n = d[6] & 15
    if w & 0x800000:
        w -= 0x1000000
    w = -w
    q *= 100
    if operate != c.operate:
        c.operate = operate
        pcs_operate(p, t_ns, OP_START if operate else OP_ENTER_STANDBY)
    r[22] = d[5] & 1
    r[23] = 1
    r[24] = (<uint32_t>w >> 16) & 0xFFFF
    r[25] = <uint32_t>w & 0xFFFF
    r[26] = r[27] = 0
    r[30] = r[31] = r[32] = 0
    r[35] = q != 0
    r[36] = 4
    r[38] = (<uint32_t>q >> 16) & 0xFFFF
    r[39] = <uint32_t>q & 0xFFFF
    pcs_command(p, t_ns, t_ns)
    if p.par[P_pcs_can_timeout_s] > 0.0 and r[22] == 1:
        p.pcs.rvrt_ns = t_ns + <int64_t>(p.par[P_pcs_can_timeout_s] * 1e9)


# -- Python's face, for tests

def wire_bits(int number, bytes data, bint ext=False, bint rtr=False):
    """Bits of a frame on the wire, interframe space included."""
    cdef CanMessage m
    memset(&m, 0, sizeof(m))
    if len(data) > 8:
        raise ValueError("at most 8 bytes")
    m.id, m.ext, m.rtr, m.n = number, ext, rtr, len(data)
    for i in range(len(data)):
        m.data[i] = data[i]
    return can_wire_bits(&m)
