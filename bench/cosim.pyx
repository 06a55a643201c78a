"""Engine and virtual cabinet on one seeded clock: the same engine, protocols and kernel against the same emulators, frame by frame.

Nothing here knows a protocol: bytes go from the engine's buses to the plant's ports and back, each at its own instant. A TCP connection
that either side has closed is opened again as control's helper does it: soon, then with growing waits.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.string cimport memcpy

from _core.engine cimport Bus, Core, Engine, core_bytes, core_next, core_tick, core_time
from bench.plant.tcp cimport tcp_accept, tcp_reset
from bench.plant.plant cimport Plant, VirtualPlant, plant_next, plant_run, plant_rx

cdef enum:
    EMIT_MAX = 64
    EMIT_BYTES = 600
cdef int64_t DIAL_NS = 50_000_000           # controller/control.py: HELPER_PERIOD_S, REOPEN_FIRST_S, REOPEN_MOST_S, SETTLED_S
cdef int64_t DIAL_AGAIN_NS = 100_000_000
cdef int64_t DIAL_MOST_NS = 2_000_000_000
cdef int64_t SETTLED_NS = 1_000_000_000


ctypedef struct Emitted:
    int port
    int n
    int64_t t_ns
    uint8_t buf[EMIT_BYTES]


ctypedef struct Outbox:             # what the plant emitted in the present plant_run
    int n
    int overflow
    Emitted at[EMIT_MAX]


ctypedef struct Link:
    Plant* plant
    int port
    int away                        # a TCP connection that has ended
    int64_t dial_ns                 # ... and when it is tried again
    int64_t wait_ns
    int64_t open_ns                 # since when it stands


cdef class Cosim:
    """A plant with an engine on its ports, in virtual time.

    plant    VirtualPlant, started by this class
    """
    cdef VirtualPlant plant
    cdef Engine engine
    cdef Plant* p
    cdef readonly int64_t now_ns
    cdef int64_t t0_ns
    cdef Outbox out
    cdef Link link[8]
    cdef int bus_of_port[16]

    def __init__(self, VirtualPlant plant, int64_t t0_ns=1_000_000_000):
        self.plant = plant
        self.p = plant.p
        self.now_ns = self.t0_ns = t0_ns
        plant.start(t0_ns)
        self.p.emit = _emit
        self.p.emit_ctx = &self.out

    def exchange(self, int port, bytes request, int64_t timeout_ns=100_000_000):
        """Send a frame and collect what comes back, before an engine is attached (scans). Returns [(t_ns, bytes)]."""
        cdef int64_t until = self.now_ns + timeout_ns, t
        cdef list got = []
        cdef int k
        if self.engine is not None:
            raise RuntimeError("the engine owns the ports now")
        plant_run(self.p, self.now_ns)
        plant_rx(self.p, port, request, len(request), self.now_ns)
        while not got:
            t = plant_next(self.p)
            if t > until:
                break
            self.out.n = 0
            plant_run(self.p, t)
            self.now_ns = t
            for k in range(self.out.n):
                if self.out.at[k].port == port and self.out.at[k].n > 0:
                    got.append((self.out.at[k].t_ns, bytes(self.out.at[k].buf[:self.out.at[k].n])))
        self.now_ns = (got[-1][0] if got else until) + 2_000_000     # the silence between frames
        return got

    def attach(self, Engine engine, list ports):
        """Put the engine's buses on plant ports (numbers, one a bus) and set its first tick."""
        cdef int k
        if len(ports) != engine.core.nbus:
            raise ValueError(f"{len(ports)} ports for {engine.core.nbus} buses")
        self.engine = engine
        for k in range(16):
            self.bus_of_port[k] = -1
        for k in range(engine.core.nbus):
            self.link[k].plant = self.p
            self.link[k].port = ports[k]
            self.link[k].away = 0
            self.link[k].wait_ns = DIAL_AGAIN_NS
            self.link[k].open_ns = self.now_ns
            if self.p.port[<int>ports[k]].tcp:
                tcp_reset(self.p, ports[k])
            self.bus_of_port[<int>ports[k]] = k
            engine.core.bus[k].wire = &self.link[k]
            engine.core.bus[k].send = _send
            engine.core.bus[k].stats.is_open = 1
            engine.core.bus[k].on_open(engine.core.bus[k], self.now_ns)
        engine.start((self.now_ns // engine.core.period_ns + 1) * engine.core.period_ns)

    def detach(self):
        """Take the engine away, as a crash would: the plant goes on, its ports are silent."""
        cdef int k
        for k in range(self.engine.core.nbus):
            if self.p.port[self.link[k].port].tcp:
                tcp_reset(self.p, self.link[k].port)
        self.engine = None
        self.now_ns += 200_000_000          # a new process is not here sooner, and frames on the wire have ended by then
        self.out.n = 0
        plant_run(self.p, self.now_ns)

    def run_until(self, int64_t until_ns):
        """Both machines, event by event, to an instant. Returns False when the engine has left its loop."""
        cdef bint on
        with nogil:
            on = self._run(until_ns)
        if self.out.overflow:
            raise RuntimeError("the plant emitted more at once than a wire can carry")
        return on

    cdef bint _run(self, int64_t until_ns) noexcept nogil:
        cdef Core* c = &self.engine.core
        cdef int64_t te, tp, td
        cdef int k, b
        while True:
            te = core_next(c)
            tp = plant_next(self.p)
            td = self._next_dial()
            if td < tp and td < te:
                if td > until_ns:
                    break
                self.now_ns = td
                self._dial(td)
            elif tp <= te:
                if tp > until_ns:
                    break
                self.out.n = 0
                plant_run(self.p, tp)
                self.now_ns = tp
                for k in range(self.out.n):
                    b = self.bus_of_port[self.out.at[k].port]
                    if b >= 0 and self.out.at[k].n == 0:
                        c.bus[b].lost = 1
                    elif b >= 0:
                        core_bytes(c, b, self.out.at[k].buf, self.out.at[k].n, self.out.at[k].t_ns)
            else:
                if te > until_ns:
                    break
                self.now_ns = te
                if te >= c.next_tick_ns:
                    core_tick(c, te)
                core_time(c, te)
            self._hang_up(self.now_ns)
            if c.leave or c.m.stop >= 3:
                return False
        self.now_ns = until_ns
        return True

    cdef int64_t _next_dial(self) noexcept nogil:
        cdef int64_t t = INT64_MAX
        cdef int k
        for k in range(self.engine.core.nbus):
            if self.link[k].away and self.link[k].dial_ns < t:
                t = self.link[k].dial_ns
        return t

    cdef void _hang_up(self, int64_t now_ns) noexcept nogil:
        """Connections that one side has given up: what the engine does to a lost descriptor, and its helper after it."""
        cdef Bus* b
        cdef Link* link
        cdef int k
        for k in range(self.engine.core.nbus):
            b, link = self.engine.core.bus[k], &self.link[k]
            if not b.lost or link.away or not self.p.port[link.port].tcp:
                continue
            tcp_reset(self.p, link.port)
            b.stats.is_open = 0
            link.wait_ns = DIAL_AGAIN_NS if now_ns - link.open_ns > SETTLED_NS else 2 * link.wait_ns
            if link.wait_ns > DIAL_MOST_NS:
                link.wait_ns = DIAL_MOST_NS
            link.away = 1
            link.dial_ns = now_ns + (DIAL_NS if now_ns - link.open_ns > SETTLED_NS else link.wait_ns)

    cdef void _dial(self, int64_t now_ns) noexcept nogil:
        cdef Bus* b
        cdef Link* link
        cdef int k
        for k in range(self.engine.core.nbus):
            b, link = self.engine.core.bus[k], &self.link[k]
            if not link.away or link.dial_ns > now_ns:
                continue
            if not tcp_accept(self.p, link.port):
                link.wait_ns = 2 * link.wait_ns if 2 * link.wait_ns < DIAL_MOST_NS else DIAL_MOST_NS
                link.dial_ns = now_ns + link.wait_ns
                continue
            link.away = b.lost = 0
            link.open_ns = now_ns
            b.stats.is_open = 1
            b.stats.reopened += 1
            b.on_open(b, now_ns)

    @property
    def tick(self):
        return self.engine.core.tick


cdef void _emit(void* ctx, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil:
    """Called inside plant_run: keep the bytes until it has returned, because the engine's answer goes back into the plant."""
    cdef Outbox* o = <Outbox*>ctx
    cdef Emitted* e
    if o.n >= EMIT_MAX or n > EMIT_BYTES:
        o.overflow = 1
        return
    e = &o.at[o.n]
    e.port = port
    e.n = n
    e.t_ns = t_ns
    if n > 0:                               # 0: the cabinet hangs up, and there is no buffer
        memcpy(e.buf, buf, n)
    o.n += 1


cdef int _send(Bus* b, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil:
    cdef Link* link = <Link*>b.wire
    if link.away:
        return -1
    plant_rx(link.plant, link.port, buf, n, now_ns)
    return n
