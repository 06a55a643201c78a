"""RTU ports: frames in time. See wire.pyx for the model. Below the ports: what tcp.pyx shares with them."""

from libc.stdint cimport int64_t, uint8_t, uint16_t

from bench.plant.state cimport Device, Plant

cdef uint16_t crc16(const uint8_t* buf, int n) noexcept nogil
cdef void port_init(Plant* p, int port, double baud, int bits) noexcept nogil
cdef void port_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil
cdef int64_t port_next(Plant* p, int port) noexcept nogil
cdef void port_run(Plant* p, int port, int64_t t_ns) noexcept nogil

cdef double port_par(Plant* p, int port, int which) noexcept nogil
cdef int strikes(Plant* p, int port, double chance) noexcept nogil
cdef int dead(Plant* p, Device* d) noexcept nogil
cdef double corrupt_p(Plant* p, Device* d) noexcept nogil
cdef int64_t think_ns(Plant* p, Device* d) noexcept nogil
cdef int mangle(Plant* p, int port, uint8_t* buf, int n) noexcept nogil
cdef int spoil(Plant* p, int port, uint8_t* buf, int n, int struck, int64_t* at_ns) noexcept nogil
cdef int queue_tx(Plant* p, int port, const uint8_t* buf, int n, int64_t start_ns, int64_t emit_ns) noexcept nogil
cdef int pdu_answer(Plant* p, Device* d, const uint8_t* req, int n, uint8_t* out, int64_t t_ns, int64_t end_ns) noexcept nogil
