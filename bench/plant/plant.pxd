"""The virtual cabinet as a discrete-event machine. Read this first; state.pxd holds the struct, plant.pyx the event
loop.

Use, in real or virtual time (t_ns: one absolute int64 clock):

    loop:  t = plant_next(p)                    when something is due next
           plant_run(p, t)                      handles it; p.emit gets the bytes that reach the master
           plant_rx(p, port, bytes, n, t_now)   after plant_run(p, t_now): what a master begins to send now

p.emit and p.emit_ctx are set by the user; emit must not call back into the plant.
"""

from libc.stdint cimport int64_t, uint8_t

from bench.plant.state cimport Plant, emit_fn

cdef void plant_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil
cdef int64_t plant_next(Plant* p) noexcept nogil
cdef void plant_run(Plant* p, int64_t t_ns) noexcept nogil
cdef void plant_set(Plant* p, int index, double value, int64_t t_ns) noexcept nogil
cdef void plant_late(Plant* p, int64_t t_ns, int64_t late_ns) noexcept nogil

cdef class VirtualPlant:
    cdef Plant* p
    cdef readonly object config         # bench.plant.config.Config
    cdef readonly dict ports            # name -> port number of plant_rx and emit
    cdef list _keep, _out
    cdef dict _arrays
    cdef void* _zeros(self, str name, int64_t n, object dtype)
