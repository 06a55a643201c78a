"""CAN ports: an slcan adapter, the bus behind it, and what hangs on it. See can.pyx for the model."""

from libc.stdint cimport int64_t, uint8_t

from bench.plant.state cimport CanMessage, Plant

cdef int can_wire_bits(const CanMessage* m) noexcept nogil
cdef void can_init(Plant* p, int port, int bitrate) noexcept nogil
cdef void can_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil
cdef int64_t can_next(Plant* p, int port) noexcept nogil
cdef void can_run(Plant* p, int port, int64_t t_ns) noexcept nogil
