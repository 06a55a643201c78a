# The flat C tables of one Modbus bus, as hal/plan.py laid them out and hal/scan.pyx walks them.

from libc.stdint cimport int32_t, int64_t, uint16_t
from _core.image cimport TURN_BINS, DeviceStats
from hal.codec cimport DecodeRow, EncodeRow
from hal.modbus cimport RtuMaster


cdef enum:
    HYPER = 100                 # ticks of the slot table
    MAX_FAST = 16
    MAX_HURRY = 64
    SLOT_FREE = -2
    SLOT_NONE = -1
    IDLE = -1                   # nothing in flight
    PROBE = -2                  # in flight: a read whose shape differs from everything given up

cdef enum:
    FC23_REFUSED = 0
    FC23_UNTRIED = 1
    FC23_PROVEN = 2

cdef enum:                      # TxnRow.kind; order = KINDS in scan.pyx
    K_READ = 0
    K_VERIFY = 1
    K_COMMAND = 2
    K_HEARTBEAT = 3
    K_REVERSION = 4
    K_RENEW = 5
    K_OP_START = 6
    K_OP_EXIT = 7
    K_OP_STOP = 8
    K_ALARM_RESET = 9
    N_KINDS = 10

ctypedef struct PartRow:        # what one transaction gives one group
    int32_t group               # index
    int32_t owner               # of the group's fastest rate: stamps it
    int32_t quality
    int32_t pad
    int64_t t_ns                # of its last answer
    int64_t rx_ns

ctypedef struct GroupRow:
    int64_t offset              # of the Group header in Inputs
    int32_t part0               # its parts lie together
    int32_t n_part

ctypedef struct TxnRow:
    int32_t dev                 # index in ScanCtx.dev
    int32_t kind
    int32_t readback
    int32_t unit
    int32_t fc
    int32_t addr
    int32_t count
    int32_t waddr
    int32_t wcount
    int32_t dec0
    int32_t n_dec
    int32_t enc0
    int32_t n_enc
    int32_t word0               # expected registers of a verify
    int32_t sample_answer
    int32_t fails               # in a row
    int64_t nominal_ns          # first bit of the request to last bit of the answer
    int64_t turnaround_ns
    int64_t answer_ns           # wire time of the answer
    int64_t back_ns             # half the window and half the refresh: the value is so much older

ctypedef struct DevRow:
    int32_t index               # in Image.device
    int32_t unit
    int32_t probe_fc
    int32_t probe_addr
    int32_t probe_count         # of the last probe
    int32_t desync              # an answer was given up: ask something of another shape before believing a read
    int32_t fails               # in a row
    int32_t backoff             # attempts since it was lost
    int32_t verify0             # its verify transactions lie together
    int32_t n_verify
    int32_t verify_next
    int32_t reversion0
    int32_t n_reversion
    int32_t reversion_next
    int32_t txn[N_KINDS]        # its (one) transaction of a kind, -1
    int32_t op_done             # the OP_* last served
    int32_t reset_seen
    int64_t again_ns            # verify, op, reversion: not before
    int64_t turnaround_ns
    double rvrt_s               # as last written

ctypedef struct ScanCtx:
    RtuMaster m
    TxnRow* txn
    DevRow* dev
    DecodeRow* dec
    int32_t* dec_part           # which part each DecodeRow belongs to
    EncodeRow* enc
    PartRow* part
    GroupRow* group
    uint16_t* words
    int32_t n_txn
    int32_t n_dev
    int32_t n_part
    int32_t n_fast
    int32_t fast[MAX_FAST]
    int32_t fast_next           # next of fast[] to be sent in this tick
    int32_t slot[HYPER]
    int32_t slot23[HYPER]       # while command23 is in use: without readbacks
    int32_t hurry[MAX_HURRY]    # reads that the start sequence waits for
    int32_t n_hurry
    int32_t hurry_next
    int32_t hurry_turn          # every other slot is theirs
    int32_t command
    int32_t command23           # the same with the readback in its answer, -1
    int32_t fc23                # FC23_*: of the device since it is here
    int32_t early
    int32_t skips
    int32_t carries             # a slot may begin after the next tick
    int32_t current             # in flight: index, IDLE, PROBE
    int32_t current_dev
    int32_t proves              # no late answer of its device can be taken for its answer
    int32_t current_fast        # it counts in Bus.fast_pending
    int32_t command_pending
    int32_t slot_pending
    int32_t round               # round robin of probes
    int32_t slots_missed        # after-slots that no longer fitted their tick
    int64_t slot_tick           # last tick whose slot was used
    int64_t slot_of             # the tick that the pending slot belongs to: it may lie in the one after
    int64_t slot_t_ns
    int64_t tick
    int64_t tick_t_ns
    int64_t readback_ns         # when one was last answered
    int64_t limit_ns
    int64_t next_ns             # what ends so long after its tick costs nothing
    int64_t slack_ns
    int64_t command_end_ns      # the last command's last bit


cdef object build_tables(ScanCtx* c, object table)
cdef void free_tables(ScanCtx* c) noexcept nogil


cdef enum:
    TURN_NS = 100000            # a bin of DeviceStats.turn
    TURN_FORGET = 65536         # answers: some six minutes of a converter's, ten of a meter's

cdef inline void turned(DeviceStats* s, int64_t took_ns) noexcept nogil:
    """One more turnaround. Sooner than planned for the wire alone (a device that does not wait for t3.5) counts as 0."""
    cdef int i
    if took_ns > s.turn_max_ns:
        s.turn_max_ns = took_ns
    i = <int>(took_ns // TURN_NS) if 0 < took_ns < TURN_NS * TURN_BINS else (0 if took_ns <= 0 else TURN_BINS - 1)
    s.turn[i] += 1
    s.turn_n += 1
    if s.turn_n >= TURN_FORGET:
        s.turn_n = 0
        for i in range(TURN_BINS):
            s.turn[i] >>= 1
            s.turn_n += s.turn[i]
