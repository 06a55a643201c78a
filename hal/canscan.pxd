# One CAN bus on the control thread: frames in, groups of Inputs out; the command frame and the cyclic ones in the other direction.

from libc.stdint cimport int32_t, int64_t, uint32_t
from _core.engine cimport Bus, BusPort
from hal.can cimport CanErrors, CanFrame, SigRow, Slcan

cdef enum:
    P_NONE = 0                  # InRow.permit: a value
    P_SET = 1                   # allowed while the bits are not 0
    P_CLEAR = 2
    FROM_CONST = -1             # OutRow.source
    FROM_OPERATE = -2
    MAX_DEV = 16

ctypedef struct InRow:          # one signal of a received frame
    SigRow s
    int64_t dest                # byte offset in Inputs
    int32_t part
    int32_t needed
    int32_t permit
    int32_t ok                  # of a permit: 1 allowed; 0 not, or not known
    int32_t gate                # index of the value that permits guard, -1: none
    int32_t pad

ctypedef struct GateRow:        # a value that is 0 unless all its permits allow it
    int64_t dest
    double value

ctypedef struct IdentRow:       # bits that must hold a value
    int32_t start
    int32_t length
    int32_t big
    int32_t pad
    uint32_t low
    uint32_t high

ctypedef struct RxRow:          # one received frame; the table is sorted by key
    uint32_t key                # id, and bit 31 where it is extended
    int32_t dev
    int32_t in0
    int32_t n_in
    int32_t ident0
    int32_t n_ident
    int32_t ident_ok            # 1 equal, 0 not yet seen, -1 differs
    int32_t min_len
    int32_t ctr_start
    int32_t ctr_length          # 0: no counter
    int32_t ctr_big
    int32_t sum_kind
    int32_t sum_byte
    int32_t sum_seed
    int64_t ctr_last            # -1: none yet
    int64_t lost_ns
    int64_t deaf_ns             # of what the pcs group needs: later than this, it is not known what the commanded converter does
    int64_t back_ns             # half the window and half the refresh: the value is so much older
    int64_t gaps                # counters that jumped

ctypedef struct PartRow:        # what one frame (under one multiplexer number) gives one group
    int32_t group
    int32_t frame
    int32_t judged              # the group is stamped by it, and the device lives on it
    int32_t fresh
    int32_t quality
    int32_t pad
    int64_t t_ns                # the instant its values stand for
    int64_t rx_ns               # of the last good one; 0: never

ctypedef struct GroupRow:
    int64_t offset              # of the Group header in Inputs
    int32_t part0               # the parts it is judged by lie together
    int32_t n_part

ctypedef struct OutRow:         # one signal of a sent frame
    SigRow s
    int64_t source              # byte offset in Outputs, or FROM_*
    double const_value

ctypedef struct TxRow:
    CanFrame f
    int32_t dev
    int32_t live                # carries something of Outputs: needs an open gate and a device that is proven
    int32_t out0
    int32_t n_out
    int32_t ctr_start
    int32_t ctr_length
    int32_t ctr_big
    int32_t sum_kind
    int32_t sum_byte
    int32_t sum_seed
    uint32_t counter
    int32_t pad
    int64_t period_ns           # 0: the command
    int64_t next_ns

ctypedef struct DevRow:
    int32_t index               # in Image.device
    int32_t operate             # what it is told: 1, 0; -1: as it says itself
    int32_t proven              # it has been verified since the port was opened, and nothing has spoken against it
    int32_t pad

ctypedef struct CanCtx:
    RxRow* rx
    InRow* sig
    GateRow* gate
    IdentRow* ident
    PartRow* part
    GroupRow* group
    TxRow* tx
    OutRow* out
    int32_t n_rx
    int32_t n_sig
    int32_t n_gate
    int32_t n_part
    int32_t n_group
    int32_t n_tx
    int32_t n_dev
    int32_t command             # index in tx, -1: none
    int32_t socket
    int32_t polls               # status requests without an answer
    int32_t pcs                 # index of the pcs group, -1: none
    int32_t pad
    int64_t poll_ns
    int64_t bit_ns
    int64_t command_end_ns
    int64_t seen                # frames that were for us
    Slcan reader
    CanErrors errors
    DevRow dev[MAX_DEV]


cdef class CanScan(BusPort):
    cdef CanCtx c
    cdef readonly object table
    cdef readonly str name
