"""RTU ports: frames in time. See wire.pyx for the model."""

from libc.stdint cimport int64_t, uint8_t, uint16_t

from bench.plant.state cimport Plant

cdef uint16_t crc16(const uint8_t* buf, int n) noexcept nogil
cdef void port_init(Plant* p, int port, double baud, int bits) noexcept nogil
cdef void port_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil
cdef int64_t port_next(Plant* p, int port) noexcept nogil
cdef void port_run(Plant* p, int port, int64_t t_ns) noexcept nogil
