"""What is timed without Python in the way: an RTU transaction as the engine drives one, and the micro loops.

Transaction: write, timerfd at the answer's deadline, epoll_wait, clock, one read, rtu_feed, decode through hal.codec. This is the engine's
loop (_core/engine.pyx) with one bus and without a tick.
"""

import os
import struct

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, clock_nanosleep, itimerspec, timespec
from posix.unistd cimport read, write

from _core.image cimport BusStats, Group, Inputs, Limits, Outputs, ProcessImage, Record, Site, State, publish
from _core.kernel cimport step
from hal.codec cimport D_OK, DecodeRow, decode, fill_decode
from hal.modbus cimport RX_MORE, RX_OK, RtuMaster, crc16, rtu_abort, rtu_build, rtu_expire, rtu_feed, rtu_init, rtu_sent, tcp_init

from hal.rows import Field


cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)
    int EPOLL_CTL_ADD, EPOLL_CLOEXEC
    uint32_t EPOLLIN

cdef extern from "sys/timerfd.h" nogil:
    int timerfd_create(int, int)
    int timerfd_settime(int, int, const itimerspec*, itimerspec*)
    int TFD_TIMER_ABSTIME, TFD_NONBLOCK, TFD_CLOEXEC

cdef enum:
    REGS = 20
    VALUES = 10
    TIMER = 1

FIRST, PITCH = 100.25, 3.5                      # value k of the slave's holding table is FIRST + PITCH * k
_SIGNALS = ("grid_p_w", "q_var", "v1_v", "v2_v", "v3_v", "f_hz", "batt_p_w", "pcs_q_var", "pcs_s_va", "pcs_v_v")


cdef inline int64_t clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef fill_rows(DecodeRow* rows):
    memset(rows, 0, VALUES * sizeof(DecodeRow))
    for k in range(VALUES):
        fill_decode(&rows[k], Field(_SIGNALS[k], 2 * k, "f32"), 0)


cdef class Client:
    """Our master on a descriptor: Client(fd, unit, timeout_ns=1 s, tcp=False).

    The line is untimed: t3.5 is the bus's, not the client's, and a PTY has none.
    """
    cdef RtuMaster m
    cdef BusStats stats
    cdef DecodeRow rows[VALUES]
    cdef int fd, unit, epoll_fd, timer_fd
    cdef int64_t timeout_ns

    def __cinit__(self, int fd, int unit, int64_t timeout_ns=1_000_000_000, bint tcp=False):
        cdef epoll_event ev
        self.fd, self.unit, self.timeout_ns = fd, unit, timeout_ns
        memset(&self.stats, 0, sizeof(BusStats))
        if tcp:
            tcp_init(&self.m, 0, 0, &self.stats)
        else:
            rtu_init(&self.m, 460800, 11, True, &self.stats)
        fill_rows(self.rows)
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.epoll_fd < 0 or self.timer_fd < 0:
            raise OSError("epoll or timerfd is not to be had")
        ev.events = EPOLLIN
        for tag, what in ((0, fd), (TIMER, self.timer_fd)):
            ev.data.u64 = tag
            if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, what, &ev) != 0:
                raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        for fd in (self.epoll_fd, self.timer_fd):
            if fd > 0:
                os.close(fd)

    cdef void _arm(self, int64_t t_ns) noexcept nogil:
        cdef itimerspec spec
        memset(&spec, 0, sizeof(spec))
        spec.it_value.tv_sec = t_ns // 1000000000
        spec.it_value.tv_nsec = t_ns % 1000000000
        timerfd_settime(self.timer_fd, TFD_TIMER_ABSTIME, &spec, NULL)

    cdef int64_t _once(self, double* value) noexcept nogil:
        """One read of 20 registers; ns from the write to the decoded values, -1 for anything but ten good ones."""
        cdef epoll_event ev[4]
        cdef uint8_t buf[1024]
        cdef uint64_t junk
        cdef int64_t t0, now
        cdef ssize_t n
        cdef int k, i, bad = 0, result = RX_MORE
        t0 = clock_ns()
        if rtu_build(&self.m, self.unit, 3, 0, REGS, NULL, 0, 0) < 0:
            return -1
        if write(self.fd, self.m.tx, self.m.tx_len) != self.m.tx_len:
            rtu_abort(&self.m, t0)
            return -1
        rtu_sent(&self.m, t0, 0, t0 + self.timeout_ns)
        self._arm(self.m.deadline_ns)
        while result == RX_MORE:
            n = epoll_wait(self.epoll_fd, ev, 4, -1)
            now = clock_ns()
            for i in range(n):
                if ev[i].data.u64 == TIMER:
                    read(self.timer_fd, &junk, 8)
                    continue
                n = read(self.fd, buf, sizeof(buf))
                if n <= 0:
                    if n < 0 and (errno == EAGAIN or errno == EINTR):
                        continue
                    rtu_abort(&self.m, now)
                    return -1
                result = rtu_feed(&self.m, buf, <int>n, now)
                break
            if result == RX_MORE:
                result = rtu_expire(&self.m, now)
        if result != RX_OK:
            return -1
        for k in range(VALUES):
            if decode(&self.rows[k], self.m.data, &value[k]) != D_OK:
                bad = 1
        return -1 if bad else clock_ns() - t0

    def run(self, int n, int64_t pause_ns):
        """Nanoseconds of n reads, each after a pause; -1 for one that failed or brought wrong values."""
        cdef int64_t* took = <int64_t*>malloc(n * sizeof(int64_t))
        cdef double value[VALUES]
        cdef timespec pause
        cdef int i, k
        if took == NULL:
            raise MemoryError
        pause.tv_sec = pause_ns // 1000000000
        pause.tv_nsec = pause_ns % 1000000000
        try:
            with nogil:
                for i in range(n):
                    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL)
                    took[i] = self._once(value)
                    for k in range(VALUES):
                        if took[i] >= 0 and value[k] != 100.25 + 3.5 * k:
                            took[i] = -1
            return [took[i] for i in range(n)]
        finally:
            free(took)


# ---------------------------------------------------------------- micro loops: each call runs `n` rounds without the GIL

cdef class Steps:
    """kernel.step() alone, from the rig's site, inputs and state (bench/rig.py): every group fresh each tick, a load that pulses by 8 kW every
    80 ms and a PCS that follows with a tick's delay, so that the step stays in GRID with all of its work to do."""
    cdef Site site
    cdef State state
    cdef Inputs inp
    cdef Limits lim
    cdef Outputs out
    cdef double load_w

    def __init__(self, dict site, dict inp, dict lim, dict state):
        self.site = site
        self.inp = inp
        self.lim = lim
        self.state = state
        self.load_w = self.inp.meter.grid_p_w + self.inp.pcs.batt_p_w
        self.out.p_cmd_w = self.inp.pcs.batt_p_w

    cdef void _next(self) noexcept nogil:
        cdef Inputs* i = &self.inp
        cdef Group* g
        cdef Group* fresh[5]
        fresh[0], fresh[1], fresh[2], fresh[3], fresh[4] = &i.pcs_ctl.g, &i.pcs_life.g, &i.bms.g, &i.bms_lim.g, &i.bms_temp.g
        i.tick += 1
        i.t_ns += 10000000
        i.step_t_ns = i.t_ns + 2633000
        i.command_t_ns = i.step_t_ns + 406000
        i.meter.g.t_ns = i.meter.g.rx_ns = i.t_ns + 1941000
        i.meter.g.count += 1
        i.pcs.g.t_ns = i.pcs.g.rx_ns = i.t_ns - 1300000
        i.pcs.g.count += 1
        for g in fresh:
            g.t_ns = g.rx_ns = i.t_ns
            g.count += 1
        if i.tick % 100 == 0:
            i.pcs_life.pcs_heartbeat += 1.0
            i.bms.bms_heartbeat += 1.0
        i.pcs.batt_p_w = self.out.p_cmd_w
        i.meter.grid_p_w = self.load_w + (8000.0 if i.tick & 8 else -8000.0) - i.pcs.batt_p_w

    def run(self, int n):
        """n ticks."""
        cdef int k
        with nogil:
            for k in range(n):
                self._next()
                step(&self.inp, &self.lim, &self.site, &self.state, &self.out)

    def times(self, int n):
        """Nanoseconds of n steps, each timed by itself, sorted; the clock's own cost is in them."""
        cdef int64_t* took = <int64_t*>malloc(n * sizeof(int64_t))
        cdef int64_t t
        cdef int k
        if took == NULL:
            raise MemoryError
        try:
            with nogil:
                for k in range(n):
                    self._next()
                    t = clock_ns()
                    step(&self.inp, &self.lim, &self.site, &self.state, &self.out)
                    took[k] = clock_ns() - t
            return sorted([took[k] for k in range(n)])
        finally:
            free(took)

    @property
    def mode(self):
        return self.out.mode


cdef class Memory:
    """One transaction without a wire: frame the request, feed the answer, decode ten f32."""
    cdef RtuMaster m
    cdef BusStats stats
    cdef DecodeRow rows[VALUES]
    cdef uint8_t answer[5 + 2 * REGS]
    cdef public double total

    def __init__(self):
        cdef int i
        cdef object raw = bytes([1, 3, 2 * REGS]) + b"".join(struct.pack(">f", FIRST + PITCH * k) for k in range(VALUES))
        memset(&self.stats, 0, sizeof(BusStats))
        rtu_init(&self.m, 460800, 11, True, &self.stats)
        fill_rows(self.rows)
        for i in range(len(raw)):
            self.answer[i] = raw[i]
        i = crc16(self.answer, len(raw))
        self.answer[len(raw)] = i & 0xFF
        self.answer[len(raw) + 1] = i >> 8

    def run(self, int n):
        cdef double x, total = 0.0
        cdef int64_t now = 1
        cdef int i, k, bad = 0
        with nogil:
            for i in range(n):
                now += 1000000
                if rtu_build(&self.m, 1, 3, 0, REGS, NULL, 0, 0) < 0:
                    bad = 1
                rtu_sent(&self.m, now, 0, now + 500000)
                if rtu_feed(&self.m, self.answer, 5 + 2 * REGS, now + 400000) != RX_OK:
                    bad = 1
                    break
                for k in range(VALUES):
                    if decode(&self.rows[k], self.m.data, &x) != D_OK:
                        bad = 1
                    total += x
        if bad:
            raise RuntimeError("the answer was not taken")
        self.total = total


def crc_run(bytes data, int n):
    """CRC16 of `data`, n times over."""
    cdef const uint8_t* p = data
    cdef int length = len(data), i
    cdef uint32_t c = 0
    with nogil:
        for i in range(n):
            c += crc16(p, length)
    return c


cdef class Publisher:
    """publish() of whole ticks into a process image."""
    cdef ProcessImage image
    cdef Record rec
    cdef State st

    def __init__(self, ProcessImage image):
        self.image = image
        memset(&self.rec, 0, sizeof(Record))
        memset(&self.st, 0, sizeof(State))

    def run(self, int n):
        cdef int k
        with nogil:
            for k in range(n):
                self.rec.tick += 1
                publish(self.image.m, &self.rec, &self.st)
