"""The converter's own control: states, commands with dead time, reversion timer. Instants absolute ns."""

from libc.stdint cimport int64_t

from bench.plant.state cimport Plant

# Registers from the map's start (bench/plant/maps.py lays the models out and checks these numbers).
cdef enum:
    R701 = 70
    R702 = 225
    R704 = 277
    R715 = 344
    PCS_REGS = 355
    OP_STOP = 0
    OP_START = 1
    OP_ENTER_STANDBY = 2
    OP_EXIT_STANDBY = 3

cdef void pcs_init(Plant* p) noexcept nogil
cdef void pcs_refresh(Plant* p, int64_t t_ns) noexcept nogil
cdef void pcs_command(Plant* p, int64_t detect_ns, int64_t end_ns) noexcept nogil
cdef void pcs_operate(Plant* p, int64_t t_ns, int op) noexcept nogil
cdef void pcs_restart_timer(Plant* p, int64_t t_ns) noexcept nogil
cdef int64_t pcs_next(Plant* p) noexcept nogil
cdef void pcs_run(Plant* p, int64_t t_ns) noexcept nogil
cdef int pcs_shown_state(Plant* p) noexcept nogil
