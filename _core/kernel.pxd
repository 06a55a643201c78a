from _core.image cimport Inputs, Limits, Outputs, Site, State

cdef void reset(State* st, const Site* s) noexcept nogil
cdef void step(const Inputs* inp, const Limits* lim, const Site* s, State* st, Outputs* o) noexcept nogil
