"""Modbus TCP ports: a stream of requests in time. See tcp.pyx for the model."""

from libc.stdint cimport int64_t, uint8_t

from bench.plant.state cimport Plant

cdef void tcp_init(Plant* p, int port) noexcept nogil
cdef int tcp_accept(Plant* p, int port) noexcept nogil
cdef void tcp_reset(Plant* p, int port) noexcept nogil
cdef void tcp_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil
cdef int64_t tcp_next(Plant* p, int port) noexcept nogil
cdef void tcp_run(Plant* p, int port, int64_t t_ns) noexcept nogil
