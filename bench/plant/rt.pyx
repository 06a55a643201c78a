"""The virtual cabinet in real time: one thread without the GIL between PTY masters or TCP connections and the plant.

epoll on the masters, listening sockets and connections, a timerfd on absolute CLOCK_MONOTONIC for the plant's next event, an eventfd for messages from
Python. The plant computes every event at its nominal instant even when the thread wakes late; late wakes (> 0.5 ms)
go into the truth, so that the judge can leave out what the bench itself disturbed.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

from bench.plant.plant cimport VirtualPlant, plant_late, plant_next, plant_run, plant_rx, plant_set
from bench.plant.state cimport MAX_PORTS, Plant
from bench.plant.tcp cimport tcp_accept, tcp_reset

import os

from bench.plant import params as _params

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <stdint.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/timerfd.h>
    #include <time.h>
    #include <unistd.h>

    static int64_t plant_clock_ns(void) {
        struct timespec ts;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
    }
    static int plant_arm(int fd, int64_t t_ns) {
        struct itimerspec its = {{0, 0}, {t_ns / 1000000000, t_ns % 1000000000}};
        return timerfd_settime(fd, TFD_TIMER_ABSTIME, &its, NULL);
    }
    static int plant_watch(int ep, int fd, uint32_t tag) {
        struct epoll_event ev = {.events = EPOLLIN, .data = {.u32 = tag}};
        return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    }
    /* Waits; bit k of the result: tag k is readable. */
    static uint32_t plant_wait(int ep) {
        struct epoll_event ev[16];
        uint32_t ready = 0;
        int n = epoll_wait(ep, ev, 16, -1);
        for (int i = 0; i < n; i++) ready |= 1u << ev[i].data.u32;
        return ready;
    }
    static int plant_accept(int fd) {
        int one = 1, conn = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (conn >= 0) setsockopt(conn, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        return conn;
    }
    static int plant_would_wait(void) { return errno == EAGAIN || errno == EINTR; }
    static int plant_timerfd(void) { return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC); }
    static int plant_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    static int plant_epoll(void) { return epoll_create1(EPOLL_CLOEXEC); }
    /* Pages that are touched stay; untouched truth is not pulled in (ONFAULT), later mappings are left alone. */
    static int plant_mlock(void) {
    #ifdef MCL_ONFAULT
        return mlockall(MCL_CURRENT | MCL_ONFAULT);
    #else
        return mlockall(MCL_CURRENT);
    #endif
    }
    #define PLANT_LOAD(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
    #define PLANT_STORE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)
    """
    int64_t plant_clock_ns()
    int plant_arm(int fd, int64_t t_ns)
    int plant_watch(int ep, int fd, uint32_t tag)
    uint32_t plant_wait(int ep)
    int plant_accept(int fd)
    int plant_would_wait()
    int plant_timerfd()
    int plant_eventfd()
    int plant_epoll()
    int plant_mlock()
    uint32_t PLANT_LOAD(uint32_t x)
    void PLANT_STORE(uint32_t x, uint32_t v)
    ssize_t c_read "read"(int fd, void* buf, size_t n)
    ssize_t c_write "write"(int fd, const void* buf, size_t n)
    int c_close "close"(int fd)

cdef enum:
    TAG_LISTEN = 8          # and the port's number
    TAG_TIMER = 30
    TAG_MAIL = 31
    BOX = 256               # messages under way; a power of two
    LATE_NS = 500_000

cdef struct Mail:
    int index
    double value

cdef struct Loop:
    # Single producer (Python, under the GIL), single consumer (the loop): head and tail only ever grow.
    Mail box[BOX]
    uint32_t head, tail, stop
    int ep, tfd, efd
    int fd[MAX_PORTS]       # PTY master or connection; -1: none
    int listen[MAX_PORTS]   # -1: a PTY
    int64_t end_ns, wakes, worst_late_ns
    Plant* p


cdef void _hang_up(Loop* r, int port) noexcept nogil:
    if r.listen[port] >= 0 and r.fd[port] >= 0:
        c_close(r.fd[port])         # epoll forgets it with its last descriptor
        r.fd[port] = -1


cdef void _welcome(Loop* r, int port) noexcept nogil:
    """A master connects. One at a time: the newest, because one that has lost its connection comes back before we see that."""
    cdef int conn = plant_accept(r.listen[port])
    if conn < 0:
        return
    if not tcp_accept(r.p, port):
        c_close(conn)
        return
    _hang_up(r, port)
    r.fd[port] = conn
    plant_watch(r.ep, conn, port)


cdef void _emit(void* ctx, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil:
    """One write for one answer. A full PTY (nobody reads) loses bytes, as a line would; n = 0 ends a connection."""
    cdef Loop* r = <Loop*>ctx
    cdef ssize_t sent
    if n == 0:
        _hang_up(r, port)
        return
    sent = c_write(r.fd[port], buf, n)
    if sent < n:
        r.p.port[port].bytes_lost += n - (sent if sent > 0 else 0)


cdef void _mail(Loop* r, int64_t now_ns) noexcept nogil:
    cdef uint32_t head = PLANT_LOAD(r.head), tail = r.tail
    while tail != head:
        plant_set(r.p, r.box[tail % BOX].index, r.box[tail % BOX].value, now_ns)
        tail += 1
    PLANT_STORE(r.tail, tail)


cdef void _loop(Loop* r) noexcept nogil:
    cdef uint8_t buf[512]
    cdef uint64_t ticks
    cdef uint32_t ready
    cdef int64_t next_ns, now_ns, armed_ns = -1
    cdef ssize_t n
    cdef int i
    while not PLANT_LOAD(r.stop):
        next_ns = plant_next(r.p)
        if next_ns > r.end_ns:
            next_ns = r.end_ns
        if next_ns != armed_ns:
            plant_arm(r.tfd, next_ns)
            armed_ns = next_ns
        ready = plant_wait(r.ep)
        now_ns = plant_clock_ns()
        r.wakes += 1
        if now_ns > r.end_ns:
            now_ns = r.end_ns
        if now_ns - next_ns > LATE_NS:
            plant_late(r.p, next_ns, now_ns - next_ns)
        if now_ns - next_ns > r.worst_late_ns:
            r.worst_late_ns = now_ns - next_ns
        plant_run(r.p, now_ns)
        if ready & (<uint32_t>1 << TAG_TIMER):
            c_read(r.tfd, &ticks, 8)
            armed_ns = -1
        if ready & (<uint32_t>1 << TAG_MAIL):
            c_read(r.efd, &ticks, 8)
            _mail(r, now_ns)
        for i in range(MAX_PORTS):
            if ready & (<uint32_t>1 << i) and r.fd[i] >= 0:
                n = c_read(r.fd[i], buf, 512)
                if n > 0:
                    plant_rx(r.p, i, buf, <int>n, now_ns)
                elif r.listen[i] >= 0 and (n == 0 or not plant_would_wait()):
                    _hang_up(r, i)
                    tcp_reset(r.p, i)
            if ready & (<uint32_t>1 << (TAG_LISTEN + i)):
                _welcome(r, i)
        if now_ns >= r.end_ns:
            return


cdef class RealTime:
    """Runs a VirtualPlant on PTY masters and listening sockets: `RealTime(plant, {"a": master_fd, "b": listening_fd})`, then
    `run()` in a thread of its own; `post`, `stop` from others.
    """

    cdef Loop r
    cdef VirtualPlant plant

    def __cinit__(self, VirtualPlant plant, dict masters):
        self.plant = plant
        self.r.p = plant.p
        self.r.ep, self.r.tfd, self.r.efd = plant_epoll(), plant_timerfd(), plant_eventfd()
        if min(self.r.ep, self.r.tfd, self.r.efd) < 0:
            raise OSError("epoll, timerfd or eventfd is not to be had")
        plant_watch(self.r.ep, self.r.tfd, TAG_TIMER)
        plant_watch(self.r.ep, self.r.efd, TAG_MAIL)
        cdef int i
        for i in range(MAX_PORTS):
            self.r.fd[i] = self.r.listen[i] = -1
        for name, fd in masters.items():
            i = plant.ports[name]
            if plant.config.ports[name].tcp:
                self.r.listen[i] = fd
                plant_watch(self.r.ep, fd, TAG_LISTEN + i)
            else:
                self.r.fd[i] = fd
                plant_watch(self.r.ep, fd, i)
        plant.p.emit = _emit
        plant.p.emit_ctx = &self.r

    def __dealloc__(self):
        for i in range(MAX_PORTS):
            _hang_up(&self.r, i)
        for fd in (self.r.ep, self.r.tfd, self.r.efd):
            if fd > 0:
                os.close(fd)

    def start(self):
        """Start the plant at the present CLOCK_MONOTONIC; returns t0_ns."""
        t0_ns = plant_clock_ns()
        seconds = self.plant.config.duration_s
        self.r.end_ns = INT64_MAX if seconds is None else t0_ns + <int64_t>(seconds * 1e9)
        self.plant.start(t0_ns)
        return t0_ns

    def run(self):
        """The loop; returns at stop() or at the end of duration_s."""
        with nogil:
            _loop(&self.r)

    def post(self, str key, value):
        """Queue a setting for the loop (never blocks it). Raises ParamError, or BufferError when 256 are under way."""
        cdef double x = _params.check(key, value, running=True)
        cdef uint32_t head = self.r.head
        if head - PLANT_LOAD(self.r.tail) >= BOX:
            raise BufferError("256 settings are under way already: send fewer, or wait")
        self.r.box[head % BOX].index = _params.INDEX[key]
        self.r.box[head % BOX].value = x
        PLANT_STORE(self.r.head, head + 1)
        os.write(self.r.efd, (1).to_bytes(8, "little"))

    def stop(self):
        """End run() at its next wake, which is now."""
        PLANT_STORE(self.r.stop, 1)
        os.write(self.r.efd, (1).to_bytes(8, "little"))

    def stats(self):
        """{"wakes", "worst_late_ns"} of the loop so far."""
        return {"wakes": self.r.wakes, "worst_late_ns": self.r.worst_late_ns}


def lock_memory():
    """Lock what the process has touched; False where the system does not allow it."""
    return plant_mlock() == 0
