"""Modbus TCP ports: one connection at a time, half of latency_s each way, and no more of a network than that.

What a master writes at t reaches the server at t + latency / 2, in order; a request is detected when its last byte is there. After
turnaround the answer leaves and is handed over whole, latency / 2 later. The server reads the header by itself (Modbus Messaging on TCP/IP
Implementation Guide V1.0b, 3.1.3): protocol 0, length 2 to 254, else it closes the connection, as servers do that cannot find the next
request. A unit that nobody has is silence.

Faults that mean something here: a device or all answers silent (a peer that vanished), late answers, another transaction identifier
(corrupt_p), a bit in the head of an answer (bit_error_p: TCP's checksum keeps bits of the payload from flipping), bytes before an answer
or an answer that ends early (the stream is out of step from there on), pieces, jitter, and `cut`: the server is down.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.string cimport memcpy, memmove

from bench.plant.physics cimport log_event
from bench.plant.state cimport (
    EV_HANG_UP,
    PP_chunk,
    PP_cut,
    PP_latency_s,
    SEGMENTS,
    STREAM_BYTES,
    TX_BYTES,
    Device,
    Plant,
    Port,
    Tx,
)
from bench.plant.wire cimport corrupt_p, dead, pdu_answer, port_par, queue_tx, spoil, strikes, think_ns

cdef enum:
    HEAD = 6                # bytes before those that the length counts
    APART_NS = 100_000      # the second piece of an answer comes so much later


cdef void tcp_init(Plant* p, int port) noexcept nogil:
    cdef Port* o = &p.port[port]
    o.used = o.tcp = 1
    o.hang_ns = INT64_MAX
    tcp_reset(p, port)


cdef void tcp_reset(Plant* p, int port) noexcept nogil:
    """The connection has ended, by whomever: nothing of it is left."""
    cdef Port* o = &p.port[port]
    o.seg_n = o.arrived = o.stream_n = o.tx_n = 0
    o.hang_ns = INT64_MAX


cdef int tcp_accept(Plant* p, int port) noexcept nogil:
    """A master connects: 1, and the connection before it has ended; 0: refused."""
    if port_par(p, port, PP_cut) != 0.0:
        return 0
    tcp_reset(p, port)
    return 1


cdef inline int64_t _way_ns(Plant* p, int port) noexcept nogil:
    return <int64_t>(0.5e9 * port_par(p, port, PP_latency_s))


cdef void tcp_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil:
    """Bytes that a master writes at t."""
    cdef Port* o = &p.port[port]
    cdef int64_t at_ns = t_ns + _way_ns(p, port)
    if n <= 0 or not o.used or port_par(p, port, PP_cut) != 0.0:
        return
    if o.seg_n == SEGMENTS or o.stream_n + n > STREAM_BYTES:
        o.bytes_lost += n
        o.hang_ns = t_ns            # a stream with a hole cannot be read on
        return
    if o.seg_n > 0 and at_ns < o.seg_at_ns[o.seg_n - 1]:
        at_ns = o.seg_at_ns[o.seg_n - 1]
    memcpy(o.stream + o.stream_n, buf, n)
    o.stream_n += n
    o.seg_at_ns[o.seg_n] = at_ns
    o.seg_len[o.seg_n] = n
    o.seg_n += 1


cdef int64_t tcp_next(Plant* p, int port) noexcept nogil:
    cdef Port* o = &p.port[port]
    cdef int64_t t = o.hang_ns
    if o.seg_n > 0 and o.seg_at_ns[0] < t:
        t = o.seg_at_ns[0]
    if o.tx_n > 0 and o.tx[0].emit_ns < t:
        t = o.tx[0].emit_ns
    return t


cdef void tcp_run(Plant* p, int port, int64_t t_ns) noexcept nogil:
    """Handle what is due at t: the end of the connection, an answer that arrives, or a piece of a request."""
    cdef Port* o = &p.port[port]
    if o.hang_ns <= t_ns:
        tcp_reset(p, port)
        log_event(p, t_ns, EV_HANG_UP, port)
        if p.emit != NULL:
            p.emit(p.emit_ctx, port, NULL, 0, t_ns)
    elif o.tx_n > 0 and o.tx[0].emit_ns <= t_ns:
        if p.emit != NULL:
            p.emit(p.emit_ctx, port, o.tx[0].buf, o.tx[0].n, o.tx[0].emit_ns)
        o.tx_n -= 1
        memmove(&o.tx[0], &o.tx[1], o.tx_n * sizeof(Tx))
    elif o.seg_n > 0 and o.seg_at_ns[0] <= t_ns:
        o.arrived += o.seg_len[0]
        o.seg_n -= 1
        memmove(&o.seg_at_ns[0], &o.seg_at_ns[1], o.seg_n * sizeof(int64_t))
        memmove(&o.seg_len[0], &o.seg_len[1], o.seg_n * sizeof(int))
        _requests(p, port, t_ns)


cdef inline int _be16(const uint8_t* b) noexcept nogil:
    return (b[0] << 8) | b[1]


cdef void _requests(Plant* p, int port, int64_t t_ns) noexcept nogil:
    """Every whole request at the front of the stream."""
    cdef Port* o = &p.port[port]
    cdef int i, n, heard
    while o.arrived >= HEAD:
        n = _be16(o.stream + 4)
        if _be16(o.stream + 2) != 0 or n < 2 or n > 254:
            o.bad_crc += 1
            o.hang_ns = t_ns
            return
        n += HEAD
        if o.arrived < n:
            return
        heard = 0
        for i in range(p.n_devices):
            if p.dev[i].port == port and p.dev[i].unit == o.stream[HEAD]:
                heard = 1
                _serve(p, port, &p.dev[i], n, t_ns)
        if not heard:
            o.no_device += 1
        o.arrived -= n
        o.stream_n -= n
        memmove(o.stream, o.stream + n, o.stream_n)


cdef void _serve(Plant* p, int port, Device* d, int n, int64_t t_ns) noexcept nogil:
    """The request of n bytes at the front of the stream, to one device."""
    cdef Port* o = &p.port[port]
    cdef uint8_t out[TX_BYTES]
    cdef int m
    if dead(p, d):
        return
    o.requests += 1
    m = pdu_answer(p, d, o.stream + HEAD, n - HEAD + 2, out + HEAD, t_ns, t_ns)     # it counts the two bytes of a CRC
    if m < 0:
        o.exceptions += 1
        out[HEAD] = o.stream[HEAD]
        out[HEAD + 1] = o.stream[HEAD + 1] | 0x80
        out[HEAD + 2] = <uint8_t>(-m)
        m = 3
    memcpy(out, o.stream, 4)
    if strikes(p, port, corrupt_p(p, d)):
        out[0] ^= 0x5A
        out[1] ^= 0x5A
    out[4] = m >> 8
    out[5] = m & 0xFF
    _send(p, port, out, HEAD + m, t_ns + think_ns(p, d) + _way_ns(p, port))


cdef void _send(Plant* p, int port, uint8_t* buf, int n, int64_t at_ns) noexcept nogil:
    """Let an answer arrive at `at_ns`, or what the port's faults make of it."""
    cdef Port* o = &p.port[port]
    cdef int half, taken
    n = spoil(p, port, buf, n, HEAD + 2, &at_ns)
    if n == 0:
        return
    if o.tx_n > 0 and at_ns < o.tx[o.tx_n - 1].emit_ns:
        at_ns = o.tx[o.tx_n - 1].emit_ns            # a stream keeps its order
    half = n // 2 if port_par(p, port, PP_chunk) != 0.0 else 0
    taken = queue_tx(p, port, buf, half, at_ns, at_ns) if half > 0 else 1
    if not taken or not queue_tx(p, port, buf + half, n - half, at_ns, at_ns + (APART_NS if half > 0 else 0)):
        o.hang_ns = at_ns                           # a stream with a hole cannot be read on
