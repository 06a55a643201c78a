"""Register faces of meter, BMS and PCS."""

from libc.stdint cimport int64_t, uint16_t

from bench.plant.state cimport Device, Plant

cdef enum:
    R802 = 70
    R803 = 134
    BMS_REGS = 196
    METER_REGS = 12

cdef void meter_latch(Plant* p, int64_t t_ns) noexcept nogil
cdef void bms_refresh(Plant* p, int64_t t_ns) noexcept nogil
cdef int device_read(Plant* p, Device* d, int fc, int addr, int n, uint16_t* out, int64_t t_ns) noexcept nogil
cdef int device_write(
    Plant* p, Device* d, int addr, int n, const uint16_t* val, int64_t detect_ns, int64_t end_ns
) noexcept nogil
