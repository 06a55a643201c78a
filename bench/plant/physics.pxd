"""Load, AC power trajectory, battery: everything between the commands and the watts. All instants absolute ns, all
powers W.
"""

from libc.stdint cimport int64_t, uint64_t

from bench.plant.state cimport Plant, Seg

cdef enum:
    BIN_NS = 10_000_000

cdef double load_w(Plant* p, int64_t t_ns) noexcept nogil
cdef double load_integral_j(Plant* p, int64_t a_ns, int64_t b_ns) noexcept nogil
cdef double seg_power_w(const Seg* s, int64_t t_ns) noexcept nogil
cdef double seg_integral_j(const Seg* s, int64_t a_ns, int64_t b_ns) noexcept nogil
cdef int64_t seg_t90_ns(const Seg* s) noexcept nogil
cdef double batt_w(Plant* p, int64_t t_ns) noexcept nogil
cdef double grid_w(Plant* p, int64_t t_ns) noexcept nogil
cdef double grid_mean_w(Plant* p, int64_t a_ns, int64_t b_ns) noexcept nogil
cdef double f_hz(Plant* p, int64_t t_ns) noexcept nogil
cdef Seg* present(Plant* p) noexcept nogil
cdef void advance(Plant* p, int64_t t_ns) noexcept nogil
cdef void new_seg(Plant* p, int64_t t_ns, double target_w, double slew_w_per_s, double q_var, int jump) noexcept nogil
cdef void close_bin(Plant* p) noexcept nogil
cdef void battery_init(Plant* p) noexcept nogil
cdef void log_event(Plant* p, int64_t t_ns, int code, double value) noexcept nogil
cdef void log_step(Plant* p, int64_t t_ns, double delta_w) noexcept nogil
cdef double uniform(Plant* p) noexcept nogil
cdef double normal(Plant* p) noexcept nogil
