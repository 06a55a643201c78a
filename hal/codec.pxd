# Registers <-> SI values: the flat rows that profiles and SunSpec models compile to, and the two functions that walk them.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:                      # register types
    T_U16 = 0
    T_I16 = 1
    T_U32 = 2
    T_I32 = 3
    T_F32 = 4
    T_U64 = 5
    T_I64 = 6

cdef enum:
    MAX_NAN = 4                 # sentinels of a field
    MAX_MAP = 16                # pairs of an enumeration
    D_OK = 0
    D_ABSENT = 1                # the sentinel "not implemented", NaN, or a state the map does not know
    D_RANGE = 2

ctypedef struct DecodeRow:      # value = sign * (raw * scale + offset); NaN where the device says it has none
    int32_t word                # first register, counted from the first of the answer
    int32_t type
    int32_t word_little
    int32_t byte_little
    int32_t needed              # absent or out of range makes its group Q_BAD
    int32_t shift
    int32_t n_nan
    int32_t n_map
    uint64_t mask               # 0: all bits
    double scale
    double offset
    double sign
    double lo
    double hi
    uint64_t nan[MAX_NAN]       # raw bits
    int64_t map_raw[MAX_MAP]
    double map_value[MAX_MAP]
    int64_t dest                # byte offset in Inputs

ctypedef struct EncodeRow:      # raw = (sign * value - offset) / scale, rounded, saturated to lo..hi and to the register's type
    int32_t word                # first register, counted from the first of the write
    int32_t type
    int32_t word_little
    int32_t byte_little
    int32_t toward_zero         # a power must never grow by rounding
    int32_t wrap                # a counter: modulo the register instead of saturation
    int64_t source              # byte offset in Outputs; -1: const
    double const_value
    double scale
    double offset
    double sign
    double lo                   # of value, in SI
    double hi


cdef int type_words(int type) noexcept nogil
cdef int decode(const DecodeRow* row, const uint8_t* data, double* value) noexcept nogil
cdef int encode(const EncodeRow* row, const char* outputs, uint8_t* data) noexcept nogil
cdef object fill_decode(DecodeRow* row, object f, int first)
cdef object fill_encode(EncodeRow* row, object e, int first)
