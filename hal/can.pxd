# CAN, sans-I/O: frames, signals in their payloads, slcan lines, SocketCAN structs, checksums, error counters. No allocation, no clock.
#
# Sources: ISO 11898-1 (frame, CRC15, stuffing); DBC bit numbering as Vector's and cantools' (start bit of a Motorola signal: its most
# significant bit, in the sawtooth numbering); LAWICEL "CAN232" manual V3 (slcan); linux/can.h, linux/can/error.h (struct can_frame,
# error frames); AUTOSAR Specification of CRC Routines, 7.2.1.1 (CRC8 SAE J1850: 0x1D, init 0xFF, xor 0xFF).
# Classic frames alone: a socket that has not asked for CAN FD is not given any, and slcan has none.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    CAN_DATA = 8
    CAN_STRUCT = 16             # sizeof(struct can_frame)
    SLCAN_LINE = 40             # T + 8 + 1 + 16 + timestamp 4 + CR, and room; longer lines are hostile
    CAN_NAN = 4                 # sentinels of a signal
    CAN_MAP = 16                # pairs of an enumeration

cdef enum:                      # outcome of a decoding; the first three as in codec.pxd
    S_OK = 0
    S_ABSENT = 1                # sentinel, NaN, a state the map does not know
    S_RANGE = 2
    S_SHORT = 3                 # the frame ends before the signal does
    S_OTHER = 4                 # the multiplexer says that another signal stands here

cdef enum:                      # checksums
    SUM_NONE = 0
    SUM_CRC8 = 1                # SAE J1850
    SUM_XOR = 2
    SUM_ADD = 3                 # sum modulo 256

cdef enum:                      # what slcan_next found
    SL_MORE = 0                 # no whole line is left
    SL_FRAME = 1
    SL_OK = 2                   # CR alone, z, Z: a command or frame was taken
    SL_ERROR = 3                # BEL: it was not
    SL_STATUS = 4               # F..: flags
    SL_JUNK = 5                 # a line that is no slcan, or one without end
    SL_TEXT = 6                 # V.., N..: version, serial number

ctypedef struct CanFrame:
    uint32_t id                 # 11 or 29 bits
    uint8_t ext
    uint8_t rtr
    uint8_t err                 # an error frame of SocketCAN: id holds the CAN_ERR_* class
    uint8_t len                 # bytes in data, 0..8
    uint8_t data[CAN_DATA]

ctypedef struct SigRow:         # value = sign * (raw * scale + offset)
    int32_t start               # start bit, DBC numbering
    int32_t length              # 1..64; 0: the constant `offset`
    int32_t big                 # Motorola
    int32_t is_signed
    int32_t is_float            # length 32 or 64
    int32_t magnitude           # |value|: a limit that some devices send negative
    int32_t mux_length          # 0: not multiplexed
    int32_t mux_start
    int32_t mux_big
    int32_t n_nan
    int32_t n_map
    int32_t toward_zero         # written: a power must never grow by rounding
    int32_t wrap                # written: modulo the field instead of saturation
    int64_t mux_value
    double scale
    double offset
    double sign
    double lo
    double hi
    uint64_t nan[CAN_NAN]       # raw bits
    int64_t map_raw[CAN_MAP]
    double map_value[CAN_MAP]

ctypedef struct Slcan:          # receiving half; one a port
    int32_t n
    int32_t skip                # a line without end is being thrown away
    int32_t status              # of the last SL_STATUS
    int32_t pad
    uint8_t line[SLCAN_LINE]    # not at the end: the sanitizer takes the last array of a struct for one without bounds
    const uint8_t* at           # what slcan_feed was given and slcan_next has not yet eaten
    const uint8_t* end

ctypedef struct CanErrors:      # counters since the port was opened
    int64_t bus_off
    int64_t passive             # entries into error-passive
    int64_t warning
    int64_t overrun             # frames the controller or adapter lost
    int64_t no_ack              # nobody acknowledged: alone on the bus
    int64_t protocol            # bit, stuff, form, CRC errors seen on the wire
    int64_t restarted           # back from bus-off
    int64_t refused             # frames the adapter did not take
    int64_t junk                # lines or structs that are none
    int32_t state               # 0 active, 1 warning, 2 passive, 3 bus-off
    int32_t pad


cdef uint64_t can_get(const uint8_t* data, int start, int length, bint big) noexcept nogil
cdef void can_put(uint8_t* data, int start, int length, bint big, uint64_t raw) noexcept nogil
cdef int can_last_byte(int start, int length, bint big) noexcept nogil
cdef int can_decode(const SigRow* row, const uint8_t* data, int n, double* value) noexcept nogil
cdef int can_encode(const SigRow* row, double value, uint8_t* data) noexcept nogil
cdef int can_checksum(int kind, const uint8_t* data, int n, int skip, int seed) noexcept nogil
cdef int can_bits(const CanFrame* f) noexcept nogil

cdef inline int can_most_bits(const CanFrame* f) noexcept nogil:
    """As can_bits, stuffed as far as can be: what hal.canplan.worst_bits counts, at the cost of a sum."""
    cdef int n = 8 * f.len
    return n + 67 + (53 + n) // 4 if f.ext else n + 47 + (33 + n) // 4


cdef void slcan_reset(Slcan* s) noexcept nogil
cdef void slcan_feed(Slcan* s, const uint8_t* buf, int n) noexcept nogil
cdef int slcan_next(Slcan* s, CanFrame* f) noexcept nogil
cdef int slcan_write(const CanFrame* f, uint8_t* out) noexcept nogil

cdef int socket_read(const uint8_t* buf, int n, CanFrame* f) noexcept nogil
cdef int socket_write(const CanFrame* f, uint8_t* out) noexcept nogil
cdef void socket_error(const CanFrame* f, CanErrors* e) noexcept nogil
cdef void slcan_status(int flags, CanErrors* e) noexcept nogil
cdef object fill_signal(SigRow* row, object s)
