from libc.stdint cimport int64_t, uint32_t

from _core.image cimport Inputs, Limits, Outputs, Site, State

cdef uint32_t waits_for_person(const State* st, int64_t now_ns) noexcept nogil
cdef void reset(State* st, const Site* s) noexcept nogil
cdef void step(const Inputs* inp, const Limits* lim, const Site* s, State* st, Outputs* o) noexcept nogil
