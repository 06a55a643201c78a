# Modbus master, sans-I/O: bytes + now -> result, and the instant it wants to be called again. One C struct a line, no allocation.
#
# Two framings, chosen by rtu_init or tcp_init: RTU on a line, MBAP on a TCP connection. Everything else is the same machine.
#
# Who drives it: rtu_build() lays the frame into m.tx, the caller sends it, then rtu_sent(); every read goes to rtu_feed(); at
# m.deadline_ns rtu_expire(). Nothing may be sent before m.ready_ns. Sources: Modbus over serial line V1.02, clauses 2.5.1 and 2.3;
# Modbus Messaging on TCP/IP Implementation Guide V1.0b, clause 3.1.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from _core.image cimport BusStats


cdef enum:
    RTU_MAX = 260               # longest frame: 256 on a line, 7 + 253 over TCP
    RTU_BUF = 544               # an echo and an answer in one read, and some noise; more than that is hostile
    MBAP_HEAD = 6               # bytes before those that the length field counts (unit and PDU)
    MBAP_SILENT = 3             # requests in a row without any answer: the peer is gone, though the connection stands
    RTU_GIVEN = 4               # requests given up that are still remembered

cdef enum:                      # results
    RX_MORE = 0                 # nothing decided yet
    RX_OK = 1                   # m.data / m.words hold the answer
    RX_EXCEPTION = 2            # m.exception holds the code
    RX_CRC = 3
    RX_SHORT = 4                # our device and function, fewer registers than asked, or an answer that stopped
    RX_LONG = 5                 # more registers than asked, or more bytes than a line can carry
    RX_TIMEOUT = 6
    RX_REFUSED = 7              # the request itself cannot be framed
    RX_BROKEN = 8               # TCP: what came is no Modbus, and nothing behind it can be told apart: connect anew

cdef enum:
    RTU_IDLE = 0
    RTU_WAIT = 1

ctypedef struct RtuAsk:         # what was asked, as far as an answer can be told from another
    uint8_t unit
    uint8_t fc
    uint16_t addr               # registers read; for FC06/16 the registers written
    uint16_t count
    int32_t len                 # of the normal answer
    uint16_t value              # FC06: an answer repeats it
    uint16_t tid                # TCP: the transaction identifier that an answer repeats

ctypedef struct RtuMaster:
    int64_t char_ns             # one character on the wire; 0: an untimed wire (socket, PTY): nothing is too soon
    int64_t t35_ns
    int32_t state
    int32_t echo                # does the adapter return our own bytes: -1 not known, 0, 1
    int32_t echo_done           # the echo of this request has been taken off
    int32_t tx_len
    int32_t rx_len
    int32_t exception
    int32_t given_n
    int32_t junk                # bytes nobody asked for have been counted for this request
    int32_t mbap                # framed for TCP
    int32_t broken              # TCP: the connection is of no more use; what comes is ignored until rtu_reset
    int32_t silent              # TCP: requests in a row without any answer
    uint16_t tid                # TCP: of the next request
    int64_t lead_ns             # RS-485 switched by the driver: from the write to the request's first bit
    int64_t path_ns             # TCP: there and back, as planned; 0 on a line
    int64_t tx_ns               # when the request was handed to the wire
    int64_t tx_end_ns           # when its last bit leaves
    int64_t rx_ns               # when the last byte came
    int64_t first_ns            # when the first byte in rx came
    int64_t ready_ns            # the line may be used again
    int64_t deadline_ns         # rtu_expire wants to be called; INT64_MAX while idle
    int64_t nominal_ns          # when the answer is complete if the device answers as planned
    RtuAsk ask
    RtuAsk given[RTU_GIVEN]
    uint8_t tx[RTU_MAX]
    uint8_t rx[RTU_BUF]
    uint8_t answer[RTU_MAX]     # TCP: the good answer, because the stream goes on in rx
    const uint8_t* data         # into rx or answer: the register bytes of a good answer
    int32_t data_len
    BusStats* stats


cdef uint16_t crc16(const uint8_t* p, int n) noexcept nogil
cdef int64_t rtu_char_ns(int baud, int bits) noexcept nogil
cdef int64_t rtu_t35_ns(int baud, int bits) noexcept nogil
cdef void rtu_init(RtuMaster* m, int baud, int bits, bint untimed, BusStats* stats) noexcept nogil
cdef void tcp_init(RtuMaster* m, int64_t path_ns, uint16_t tid, BusStats* stats) noexcept nogil
cdef int rtu_build(RtuMaster* m, int unit, int fc, int addr, int count, const uint8_t* data, int waddr, int wcount) noexcept nogil
cdef void rtu_sent(RtuMaster* m, int64_t now_ns, int64_t turnaround_ns, int64_t deadline_ns) noexcept nogil
cdef int rtu_feed(RtuMaster* m, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil
cdef int rtu_expire(RtuMaster* m, int64_t now_ns) noexcept nogil
cdef void rtu_abort(RtuMaster* m, int64_t now_ns) noexcept nogil
cdef void rtu_reset(RtuMaster* m, int64_t now_ns) noexcept nogil
