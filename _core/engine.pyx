"""The engine: tick, deadlines, statistics.

Core is sans-I/O: it is told the time and the bytes, so real time (epoll + timerfd, below) and virtual time (the bench) run the same code.
A tick: fast reads go out; when the last fast answer is in, or at its deadline, the kernel steps; the command leaves at once.
"""

import os
import resource

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, itimerspec, timespec
from posix.unistd cimport close, read, write

from _core.image cimport (
    ALM_GRID_OUTSIDE, ALM_INTERNAL, MODE_TRIP, HIST_BINS, MODE_FAULT, MODE_STOP, START_DONE, Outputs, State, last_outputs, last_state, publish,
)
from _core.kernel cimport reset, step, waits_for_person
from _core.laws cimport smaller
from _core.requests cimport SITE_NS, take_limits, take_operator_limits, take_setpoints, take_site


cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)
    int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    uint32_t EPOLLIN, EPOLLHUP, EPOLLERR

cdef extern from "sys/timerfd.h" nogil:
    int timerfd_create(int, int)
    int timerfd_settime(int, int, const itimerspec*, itimerspec*)
    int TFD_TIMER_ABSTIME, TFD_NONBLOCK, TFD_CLOEXEC

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int, int)
    int EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "sys/mman.h" nogil:
    int mlockall(int)
    int MCL_CURRENT, MCL_FUTURE
    int MCL_ONFAULT

cdef extern from *:
    """
    #define ballast_swap_int(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
    """
    int ballast_swap_int(int*, int) nogil

cdef enum:
    READ_MAX = 4096             # bytes a bus may bring in one tick: a babbling device costs itself, not the tick
    EVENTS_MAX = 64
    STEP_NS_A_BIN = 16
    ASK_TICKS = 50              # after a halt, so long at most without a step
    STALE_NS = 50000000         # a frame that was composed before a halt is not sent after it
    LEAVE_NS = 2000000000       # after 0 W has been commanded: so long for the PCS to go to standby


cdef inline int64_t clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


# ---------------------------------------------------------------- sans-I/O core

cdef uint32_t inherited(const Image* m, int64_t now_ns) noexcept nogil:
    """Alarms of a fault that waited for a person under the control before this one, and of a TRIP not yet over; 0 in a new image.

    Where that control died while it published, its State says nothing: a FAULT or TRIP in its last record then counts."""
    cdef State st
    cdef Outputs out
    if last_state(m, &st):
        return waits_for_person(&st, now_ns)
    if not last_outputs(m, &out):
        return 0
    if out.mode == MODE_FAULT:
        return out.alarms if out.alarms else ALM_INTERNAL
    if out.mode == MODE_TRIP:
        return ALM_GRID_OUTSIDE
    return 0


cdef inline bint unasked(const Core* c) noexcept nogil:
    """After a halt: some group that the kernel judges by its age has not been asked since."""
    cdef const Site* s = &c.m.site
    cdef const Inputs* i = &c.live
    if c.tick >= c.ask_until:
        return False
    return (i.meter.g.t_ns < c.woke_ns or i.pcs.g.t_ns < c.woke_ns or (s.has_bms and i.bms.g.t_ns < c.woke_ns)
            or (s.has_bms_limits and i.bms_lim.g.t_ns < c.woke_ns))


cdef void core_step(Core* c, int64_t now_ns) noexcept nogil:
    """Freeze, step, send, publish: in this order, because only the command is in a hurry."""
    cdef int k, v = 1
    cdef int64_t a
    cdef double w, phase
    c.stepped = 1
    if unasked(c):
        # Everything is old because we did not ask, not because nobody answered. The PCS still holds the last command; it gets it again.
        c.m.engine.missed_ticks += 1
        for k in range(c.nbus):
            c.bus[k].on_outputs(c.bus[k], c.tick, now_ns)
        return
    take_site(c)
    take_limits(c)
    take_operator_limits(c)
    take_setpoints(c)
    for k in range(c.ndev):
        if c.m.device[c.device[k]].verified < 0:
            v = -1
        elif c.m.device[c.device[k]].verified == 0 and v > 0:
            v = 0
    c.live.verified = v
    c.live.stop = c.m.stop if c.m.stop < 3 else 2
    c.live.reset = c.m.reset
    c.live.step_t_ns = now_ns
    c.live.command_t_ns = now_ns + c.cmd_wire_ns
    c.live.park = 1 if c.m.park else 0
    c.live.site_rev = c.m.site_rev
    w = c.m.site.billing_window_s
    phase = <double>c.live.t_ns * 1e-9 + c.m.billing_offset_s
    c.live.billing_phase_s = phase - w * <double>(<int64_t>(phase / w)) if w > 0.0 and 0.0 <= phase < 1e15 else -1.0
    c.rec.inp = c.live
    c.rec.tick = c.tick
    c.rec.wake_late_ns = c.m.engine.last_wake_late_ns
    a = clock_ns()
    step(&c.rec.inp, &c.rec.lim, &c.m.site, &c.st, &c.rec.out)
    a = clock_ns() - a
    c.live.latched = 0
    for k in range(c.nbus):
        c.bus[k].on_outputs(c.bus[k], c.tick, now_ns)
    c.m.engine.last_step_ns = a
    if a > c.m.engine.max_step_ns:
        c.m.engine.max_step_ns = a
    c.m.engine.step_ns[a // STEP_NS_A_BIN if a < STEP_NS_A_BIN * (HIST_BINS - 1) else HIST_BINS - 1] += 1
    publish(c.m, &c.rec, &c.st)
    if c.rec.out.mode == MODE_STOP and c.rec.out.start_step == START_DONE:
        if c.stopped_ns == 0:
            c.stopped_ns = now_ns
        # parked: there it stays. Asked to stop, leave when the PCS has gone to standby, or has had its time to
        if c.live.stop and (now_ns - c.stopped_ns > LEAVE_NS or (now_ns - c.stopped_ns > 3 * c.period_ns
                                                                 and c.live.pcs.pcs_state != 3.0 and c.live.pcs.pcs_state != 4.0)):
            c.leave = 1
    else:
        c.stopped_ns = 0


cdef inline void maybe_step(Core* c, int64_t now_ns) noexcept nogil:
    cdef int k
    if c.stepped:
        return
    for k in range(c.nbus):
        if c.bus[k].fast_pending > 0:
            return
    core_step(c, now_ns)


cdef void core_tick(Core* c, int64_t now_ns) noexcept nogil:
    """Begin the tick that is due. Whole missed periods are skipped and counted; the grid of ticks never moves."""
    cdef int64_t late = now_ns - c.next_tick_ns
    cdef int64_t skipped = late // c.period_ns
    cdef int k
    if skipped > 0 and c.rec.tick and <double>late > 0.4e9 * smaller(smaller(c.m.site.pcs_lost_s, c.m.site.bms_lost_s), c.m.site.meter_lost_s):
        c.stepped = 1                   # the tick that was halted is lost like those that never began
        c.woke_ns = now_ns
        c.ask_until = c.tick + skipped + ASK_TICKS
    if not c.stepped:
        core_step(c, now_ns)            # cannot happen while step_by_ns < period_ns, save after a stop of the whole process
    if skipped > 0:
        c.m.engine.missed_ticks += skipped
        c.next_tick_ns += skipped * c.period_ns
        c.tick += skipped
    c.tick += 1
    c.tick_t_ns = c.next_tick_ns
    c.next_tick_ns += c.period_ns
    c.stepped = 0
    c.live.tick = c.tick
    c.live.t_ns = c.tick_t_ns
    c.m.engine.ticks += 1
    c.m.engine.last_wake_late_ns = late
    if late > c.m.engine.max_wake_late_ns:
        c.m.engine.max_wake_late_ns = late
    c.m.engine.wake_us[late // 1000 if late < 1000 * (HIST_BINS - 1) else HIST_BINS - 1] += 1
    for k in range(c.nbus):
        c.bus[k].on_tick(c.bus[k], c.tick, now_ns)
    maybe_step(c, now_ns)


cdef void core_bytes(Core* c, int b, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil:
    c.m.engine.bytes_in += n
    c.bus[b].on_bytes(c.bus[b], buf, n, now_ns)
    maybe_step(c, now_ns)


cdef void core_time(Core* c, int64_t now_ns) noexcept nogil:
    cdef int k
    for k in range(c.nbus):
        if c.bus[k].deadline_ns <= now_ns:
            c.bus[k].on_time(c.bus[k], now_ns)
    maybe_step(c, now_ns)
    if not c.stepped and now_ns >= c.tick_t_ns + c.step_by_ns:
        core_step(c, now_ns)


cdef int64_t core_next(const Core* c) noexcept nogil:
    cdef int64_t t = c.next_tick_ns
    cdef int k
    for k in range(c.nbus):
        if c.bus[k].deadline_ns < t:
            t = c.bus[k].deadline_ns
    if not c.stepped and c.tick_t_ns + c.step_by_ns < t:
        t = c.tick_t_ns + c.step_by_ns
    return t


# ---------------------------------------------------------------- real time

cdef int fd_send(Bus* b, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil:
    """One write() a frame. What the kernel does not take at once is lost and counted: a half frame is garbage anyway. A full queue (of a CAN
    interface whose frames nobody acknowledges, or that is bus-off) is no lost port: reading goes on."""
    cdef ssize_t k
    if b.fd < 0:
        return -1
    if clock_ns() - now_ns > STALE_NS:
        b.stats.unsent += 1             # halted between thinking and speaking: the PCS may have reverted meanwhile
        return -1
    k = write(b.fd, buf, n)
    if k == n:
        return n
    b.stats.unsent += 1
    if k < 0 and errno != EAGAIN and errno != EINTR and errno != ENOBUFS:
        b.lost = 1
    return <int>k


cdef class BusPort:
    """One bus as the engine sees it; hal fills the callbacks."""

    def __cinit__(self):
        memset(&self.bus, 0, sizeof(Bus))
        self.bus.fd = -1
        self.bus.deadline_ns = INT64_MAX


cdef class Engine:
    """The control thread's work: Engine(image, ports, ...).run() until asked to stop.

    image          ProcessImage whose Site is set
    ports          list of BusPort (hal.scan.BusScan), in the order of Image.bus
    devices        indices of the devices whose identity must be verified before anything is commanded
    priority       SCHED_FIFO priority, 0: leave the scheduler alone
    cpu            CPU to run on, None: any
    step_by_ns     after the tick, the kernel steps even if a fast answer is missing
    cmd_wire_ns    from the step to the last bit of the command on the wire, by the plan
    """

    def __init__(self, ProcessImage image, list ports, *, devices=(), priority=90, cpu=None, step_by_ns=5_000_000, cmd_wire_ns=406_000,
                 period_ns=10_000_000):
        cdef int k
        if len(ports) > MAX_BUSES or not 0 < step_by_ns < period_ns:
            raise ValueError(f"{len(ports)} buses (at most {MAX_BUSES}), step_by_ns {step_by_ns} (within the period of {period_ns})")
        if len(devices) > MAX_DEVICES:
            raise ValueError(f"{len(devices)} devices, at most {MAX_DEVICES}")
        self.image = image
        self.ports = list(ports)
        self.notes = []
        self.priority = priority
        self.cpu = cpu
        self.epoll_fd = self.timer_fd = self.wake_fd = self.latency_fd = -1
        memset(&self.core, 0, sizeof(Core))
        self.core.m = image.m
        self.core.period_ns = period_ns
        self.core.step_by_ns = step_by_ns
        self.core.cmd_wire_ns = cmd_wire_ns
        self.core.stepped = 1
        self.core.nbus = len(ports)
        self.core.ndev = len(devices)
        for k in range(self.core.ndev):
            self.core.device[k] = devices[k]
        for k in range(self.core.nbus):
            self.pending_fd[k] = self.dropped_fd[k] = -1
            b = <BusPort?>ports[k]
            b.bus.index = k
            b.bus.inputs = &self.core.live
            b.bus.outputs = &self.core.rec.out
            b.bus.stats = &image.m.bus[k]
            b.bus.devices = &image.m.device[0]
            if b.bus.send == NULL:
                b.bus.send = fd_send
            self.core.bus[k] = &b.bus
        nan = float("nan")
        self.core.live.others.pv_p_w = self.core.live.others.gen_p_w = nan
        self.core.live.bms_lim.batt_p_charge_max_w = self.core.live.bms_lim.batt_p_discharge_max_w = nan
        reset(&self.core.st, &image.m.site)

    def start(self, int64_t first_tick_ns):
        """Set the first tick (virtual time does this; run() does it by itself), and take over a fault that waits for a person."""
        self.core.site_t_ns = first_tick_ns - SITE_NS
        self.core.live.latched = inherited(self.image.m, first_tick_ns)
        self.core.next_tick_ns = first_tick_ns
        self.image.m.engine.start_ns = first_tick_ns

    def set_fd(self, int bus, int fd):
        """Hand over a ready descriptor from any thread; the control thread takes it at its next wake."""
        if not 0 <= bus < self.core.nbus:
            raise IndexError(bus)
        old = ballast_swap_int(&self.pending_fd[bus], fd)
        if old >= 0:
            os.close(old)
        if self.wake_fd >= 0:
            os.write(self.wake_fd, (1).to_bytes(8, "little"))

    def lost(self, int bus):
        """True while the bus has no descriptor and none is on its way."""
        if not 0 <= bus < self.core.nbus:
            raise IndexError(bus)
        return self.core.bus[bus].fd < 0 and self.pending_fd[bus] < 0

    def take_dropped(self, int bus):
        """The descriptor that the engine let go, for the caller to close (closing a tty may block); -1: none."""
        if not 0 <= bus < self.core.nbus:
            raise IndexError(bus)
        return ballast_swap_int(&self.dropped_fd[bus], -1)

    def _privileges(self):
        """Ask for what a control thread wants; note honestly what the system did not give."""
        cdef int flags = MCL_CURRENT | MCL_ONFAULT
        if self.cpu is not None:
            try:
                os.sched_setaffinity(0, {self.cpu})
            except OSError as e:
                self.notes.append(f"no CPU affinity to {self.cpu}: {e.strerror}")
        if self.priority:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(self.priority))
                resource.setrlimit(resource.RLIMIT_RTTIME, (1_000_000, 2_000_000))
            except (OSError, ValueError) as e:
                self.notes.append(f"no SCHED_FIFO {self.priority}: {e}; ticks will be late under load. Remedy: run as root, CAP_SYS_NICE or LimitRTPRIO=")
        if resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY or os.geteuid() == 0:
            flags |= MCL_FUTURE
        if mlockall(flags) != 0:
            self.notes.append("memory is not locked: a page fault may cost a tick. Remedy: run as root, CAP_IPC_LOCK or LimitMEMLOCK=")
        try:
            self.latency_fd = os.open("/dev/cpu_dma_latency", os.O_WRONLY | os.O_CLOEXEC)
            os.write(self.latency_fd, (0).to_bytes(4, "little"))
        except OSError as e:
            self.notes.append(f"/dev/cpu_dma_latency not held at 0: {e.strerror}; wake-ups from idle cost up to 100 us more")

    def prepare(self):
        """Descriptors of the loop; run() calls it when it has not been done."""
        cdef epoll_event ev
        if self.epoll_fd >= 0:
            return
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.epoll_fd < 0 or self.timer_fd < 0 or self.wake_fd < 0:
            raise OSError("epoll, timerfd or eventfd: too many open files?")
        for fd, tag in ((self.timer_fd, MAX_BUSES), (self.wake_fd, MAX_BUSES + 1)):
            ev.events = EPOLLIN
            ev.data.u64 = tag
            epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, &ev)

    def run(self):
        """Run in the calling thread, without the GIL, until stopped. Returns 'stop', or 'slept' after a halt in which the PCS may have reverted."""
        cdef int why, k
        self.prepare()
        self._privileges()
        # What a control before this one had proven, or held open, is nothing to this one.
        for k in range(self.core.ndev):
            self.image.m.device[self.core.device[k]].verified = 0
        for k in range(self.core.nbus):
            self.image.m.bus[k].is_open = 0
        self.start((clock_ns() // self.core.period_ns + 2) * self.core.period_ns)
        try:
            with nogil:
                why = self._loop()
        finally:
            for fd in (self.latency_fd, self.epoll_fd, self.timer_fd, self.wake_fd):
                if fd >= 0:
                    os.close(fd)
            self.epoll_fd = self.timer_fd = self.wake_fd = self.latency_fd = -1
        return "slept" if why else "stop"

    cdef void _adopt(self, int64_t now) noexcept nogil:
        """Take descriptors that the helper thread has left."""
        cdef epoll_event ev
        cdef int k, fd
        for k in range(self.core.nbus):
            fd = ballast_swap_int(&self.pending_fd[k], -1)
            if fd < 0:
                continue
            if self.core.bus[k].fd >= 0:
                self._drop(k)
            self.core.bus[k].fd = fd
            self.core.bus[k].lost = 0
            self.masked[k] = 0
            ev.events = EPOLLIN
            ev.data.u64 = k
            epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, &ev)
            self.core.bus[k].stats.is_open = 1
            self.core.bus[k].stats.reopened += 1
            self.core.bus[k].on_open(self.core.bus[k], now)

    cdef void _drop(self, int b) noexcept nogil:
        """A hung-up descriptor that stays in epoll spins: out with it. The helper thread sees lost(), closes it and opens anew."""
        cdef int old
        if self.core.bus[b].fd >= 0:
            epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, self.core.bus[b].fd, NULL)
            old = ballast_swap_int(&self.dropped_fd[b], self.core.bus[b].fd)
            if old >= 0:
                close(old)              # nobody came for the one before
            self.core.bus[b].fd = -1
            self.core.bus[b].stats.is_open = 0

    cdef void _read(self, int b, int64_t now) noexcept nogil:
        cdef uint8_t buf[1024]
        cdef epoll_event ev
        cdef ssize_t n
        while self.got[b] < READ_MAX:
            n = read(self.core.bus[b].fd, buf, sizeof(buf))
            if n <= 0:
                if n < 0 and (errno == EAGAIN or errno == EINTR):
                    return
                self.core.bus[b].lost = 1
                return
            self.got[b] += <int>n
            core_bytes(&self.core, b, buf, <int>n, now)
            if n < <ssize_t>sizeof(buf):
                return
        ev.events = 0                       # enough for this tick
        ev.data.u64 = b
        epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, self.core.bus[b].fd, &ev)
        self.masked[b] = 1

    cdef int _loop(self) noexcept nogil:
        cdef Core* c = &self.core
        cdef epoll_event ev[EVENTS_MAX]
        cdef epoll_event one
        cdef itimerspec spec
        cdef int64_t armed = 0, nxt, now, before = clock_ns()
        # The timer is renewed every third of it at the latest: after a longer halt than this the PCS may have reverted.
        cdef int64_t halt_ns = <int64_t>(0.6 * c.m.site.pcs_rvrt_s * 1e9)
        cdef uint64_t junk
        cdef int n, k, tag
        memset(&spec, 0, sizeof(spec))
        while True:
            nxt = core_next(c)
            if nxt != armed:
                spec.it_value.tv_sec = nxt // 1000000000
                spec.it_value.tv_nsec = nxt % 1000000000
                timerfd_settime(self.timer_fd, TFD_TIMER_ABSTIME, &spec, NULL)
                armed = nxt
            n = epoll_wait(self.epoll_fd, ev, EVENTS_MAX, -1)
            now = clock_ns()
            if halt_ns > 0 and now - before > halt_ns:
                return 1                    # everything known is old: begin again
            before = now
            for k in range(n):
                tag = <int>ev[k].data.u64
                if tag < MAX_BUSES:
                    if c.bus[tag].fd >= 0:
                        if ev[k].events & EPOLLIN and not self.masked[tag]:
                            self._read(tag, now)
                        elif ev[k].events & (EPOLLHUP | EPOLLERR):
                            c.bus[tag].lost = 1
                elif tag == MAX_BUSES:
                    read(self.timer_fd, &junk, 8)
                    armed = 0
                else:
                    read(self.wake_fd, &junk, 8)
                    self._adopt(now)
            if now >= c.next_tick_ns:
                core_tick(c, now)
                for k in range(c.nbus):
                    self.got[k] = 0
                    if self.masked[k] and c.bus[k].fd >= 0:
                        one.events = EPOLLIN
                        one.data.u64 = k
                        epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, c.bus[k].fd, &one)
                        self.masked[k] = 0
            core_time(c, now)
            for k in range(c.nbus):
                if c.bus[k].lost and c.bus[k].fd >= 0:
                    self._drop(k)
            if c.m.stop >= 3 or c.leave:
                return 0

    # ---- the sans-I/O core from Python, for tests

    def on_tick(self, int64_t now_ns):
        core_tick(&self.core, now_ns)

    def on_time(self, int64_t now_ns):
        core_time(&self.core, now_ns)

    def on_bytes(self, int bus, bytes data, int64_t now_ns):
        core_bytes(&self.core, bus, data, len(data), now_ns)

    def next_ns(self):
        return core_next(&self.core)
