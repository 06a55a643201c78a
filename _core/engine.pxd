# The control thread, and the interface that hal fills. One thread, one epoll, no locks; everything below runs without the GIL.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from _core.image cimport (
    BusStats, DeviceStats, Group, Image, Inputs, Limits, MAX_BUSES, MAX_DEVICES, Outputs, ProcessImage, Record, SLOTS, Site, State,
)


ctypedef struct Bus:            # one bus: filled by hal (on_*), its wire by whoever carries the bytes (tty, socket, virtual)
    void* ctx                   # hal's own
    void* wire                  # the wire's own
    int fd                      # what epoll waits on; -1: none (virtual, or the port is away)
    int lost                    # set by send or read on EIO/hang-up: the helper thread brings a new descriptor
    int index                   # in Image.bus
    int fast_pending            # fast answers of this tick still to come; at 0 on every bus the kernel steps
    int64_t deadline_ns         # when on_time wants to be called; INT64_MAX: never
    Inputs* inputs              # hal decodes into it
    const Outputs* outputs      # hal encodes from it
    BusStats* stats
    DeviceStats* devices        # the whole table; hal indexes it
    void (*on_tick)(Bus*, int64_t tick, int64_t now_ns) noexcept nogil              # a tick begins: start the fast reads
    void (*on_bytes)(Bus*, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil
    void (*on_time)(Bus*, int64_t now_ns) noexcept nogil
    void (*on_outputs)(Bus*, int64_t tick, int64_t now_ns) noexcept nogil           # the kernel has stepped: the command leaves at once
    void (*on_open)(Bus*, int64_t now_ns) noexcept nogil                            # the port is (back) here: forget half frames
    int (*send)(Bus*, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil     # bytes taken, or -1


cdef inline void stamp(Group* head, int64_t t_ns, int64_t rx_ns, int quality) noexcept nogil:
    """A group of Inputs as hal has it now: `t_ns` its values stand for, `rx_ns` the oldest of their frames has come; count moves with rx_ns."""
    if rx_ns > head.rx_ns:
        head.count += 1
    head.t_ns = t_ns
    head.rx_ns = rx_ns
    head.quality = quality


cdef class BusPort:             # Python's handle on a Bus; hal.scan.BusScan derives from it and fills the callbacks
    cdef Bus bus


ctypedef struct Core:           # the engine without a clock or a descriptor: the same code in real and in virtual time
    Image* m
    Bus* bus[MAX_BUSES]
    int nbus
    int stepped                 # the kernel has stepped in this tick
    int leave                   # 1: stopped at 0 W and said so; the loop may end
    int ndev
    int32_t device[MAX_DEVICES] # indices of the devices that must be verified
    int64_t period_ns
    int64_t tick
    int64_t tick_t_ns           # nominal instant of this tick
    int64_t next_tick_ns
    int64_t step_by_ns          # after the tick: the kernel steps even if a fast answer is missing
    int64_t cmd_wire_ns         # from the step to the last bit of the command frame, by the plan
    int64_t stopped_ns
    int64_t woke_ns             # end of the last halt of the process
    int64_t ask_until           # first tick that steps whatever has been asked since
    uint32_t seen[SLOTS]        # slot counters already read
    uint32_t seen_limits
    uint32_t seen_op
    uint32_t seen_site
    int64_t site_t_ns           # tick at which a new Site was looked at last
    int have_limits
    Limits last_limits
    Limits last_op              # an operator's; all 0 (lease over) where there are none
    Inputs live                 # hal writes here; the kernel sees a frozen copy
    Record rec
    State st


cdef void core_tick(Core* c, int64_t now_ns) noexcept nogil                 # now >= next_tick_ns
cdef void core_bytes(Core* c, int b, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil
cdef void core_time(Core* c, int64_t now_ns) noexcept nogil                 # every deadline that is due
cdef int64_t core_next(const Core* c) noexcept nogil                        # the next instant that needs the engine


cdef class Engine:
    cdef Core core
    cdef readonly ProcessImage image
    cdef readonly list ports
    cdef readonly list notes
    cdef int priority
    cdef object cpu
    cdef int epoll_fd
    cdef int timer_fd
    cdef int wake_fd
    cdef int latency_fd
    cdef int pending_fd[MAX_BUSES]
    cdef int dropped_fd[MAX_BUSES]
    cdef int masked[MAX_BUSES]
    cdef int got[MAX_BUSES]
    cdef int64_t slept_ns
    cdef int _loop(self) noexcept nogil
    cdef void _read(self, int b, int64_t now) noexcept nogil
    cdef void _adopt(self, int64_t now) noexcept nogil
    cdef void _drop(self, int b) noexcept nogil
