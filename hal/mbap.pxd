# MBAP, the header that frames Modbus over TCP: what hal/modbus.pyx knows of it, each function of bytes and struct alone.
#
#   transaction identifier (2) | protocol identifier (2), 0 | length of what follows (2) | unit (1) | PDU (2..253)
#
# Source: Modbus Messaging on TCP/IP Implementation Guide V1.0b, 3.1.3.

from libc.stdint cimport uint8_t
from libc.string cimport memmove

from hal.modbus cimport MBAP_HEAD, RTU_MAX, RX_CRC, RX_EXCEPTION, RX_LONG, RX_MORE, RX_OK, RX_SHORT, RtuAsk, RtuMaster


cdef inline int get16(const uint8_t* p) noexcept nogil:
    return (<int>p[0]) << 8 | p[1]


cdef inline int mbap_seal(RtuMaster* m, int n) noexcept nogil:
    """The header before the unit and PDU that stand in m.tx up to byte n. Returns the frame's length."""
    m.ask.tid = m.tid
    m.tid += 1
    m.ask.len += MBAP_HEAD
    m.tx[0], m.tx[1] = m.ask.tid >> 8, m.ask.tid & 0xFF
    m.tx[2] = m.tx[3] = 0
    m.tx[4], m.tx[5] = (n - MBAP_HEAD) >> 8, (n - MBAP_HEAD) & 0xFF
    m.tx_len = n
    return n


cdef inline int mbap_len(const uint8_t* p) noexcept nogil:
    """Length of the frame that these six bytes begin; -1 where they begin none, and nothing behind them can be told apart."""
    cdef int n = get16(p + 4)
    return MBAP_HEAD + n if get16(p + 2) == 0 and 2 <= n <= RTU_MAX - MBAP_HEAD else -1


cdef inline int mbap_judge(const RtuAsk* a, const uint8_t* p, int n) noexcept nogil:
    """A whole frame with the transaction identifier of `a`: RX_MORE where it is not its answer, else what it is."""
    cdef bint reads = a.fc != 6 and a.fc != 16
    if p[6] != a.unit or (p[7] & 0x7F) != a.fc or n < MBAP_HEAD + 3:
        return RX_MORE
    if p[7] & 0x80:
        return RX_EXCEPTION if n == MBAP_HEAD + 3 else RX_LONG
    if n != a.len:
        return RX_SHORT if n < a.len else RX_LONG
    if reads:
        return RX_OK if p[8] == 2 * a.count else RX_CRC     # the right length, and it says another: no better than a wrong CRC
    return RX_OK if get16(p + 8) == a.addr and get16(p + 10) == (a.value if a.fc == 6 else a.count) else RX_MORE


cdef inline bint mbap_was_given(RtuMaster* m, int tid) noexcept nogil:
    """Was this a request that had been given up? Then it is forgotten."""
    cdef int i
    for i in range(m.given_n):
        if m.given[i].tid == tid:
            memmove(&m.given[i], &m.given[i + 1], (m.given_n - i - 1) * sizeof(RtuAsk))
            m.given_n -= 1
            return True
    return False
