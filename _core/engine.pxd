# The control thread, and the interface that hal fills. One thread, one epoll, no locks; everything below runs without the GIL.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from _core.image cimport BusStats, DeviceStats, Image, Inputs, Limits, Outputs, Site, State


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


cdef class BusPort:             # Python's handle on a Bus; hal.scan.BusScan derives from it and fills the callbacks
    cdef Bus bus
