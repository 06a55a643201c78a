"""Engine and virtual cabinet on one seeded clock: the same engine, protocols and kernel against the same emulators, frame by frame.

Nothing here knows a protocol: bytes go from the engine's buses to the plant's ports and back, each at its own instant.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from _core.engine cimport Bus, Core, Engine, core_bytes, core_next, core_tick, core_time
from bench.plant.plant cimport Plant, VirtualPlant, plant_next, plant_run, plant_rx

cdef enum:
    EMIT_MAX = 64
    EMIT_BYTES = 600


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
                if self.out.at[k].port == port:
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
            self.bus_of_port[<int>ports[k]] = k
            engine.core.bus[k].wire = &self.link[k]
            engine.core.bus[k].send = _send
            engine.core.bus[k].stats.is_open = 1
            engine.core.bus[k].on_open(engine.core.bus[k], self.now_ns)
        engine.start((self.now_ns // engine.core.period_ns + 1) * engine.core.period_ns)

    def detach(self):
        """Take the engine away, as a crash would: the plant goes on, its ports are silent."""
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
        cdef int64_t te, tp
        cdef int k, b
        while True:
            te = core_next(c)
            tp = plant_next(self.p)
            if tp <= te:
                if tp > until_ns:
                    break
                self.out.n = 0
                plant_run(self.p, tp)
                self.now_ns = tp
                for k in range(self.out.n):
                    b = self.bus_of_port[self.out.at[k].port]
                    if b >= 0:
                        core_bytes(c, b, self.out.at[k].buf, self.out.at[k].n, self.out.at[k].t_ns)
            else:
                if te > until_ns:
                    break
                self.now_ns = te
                if te >= c.next_tick_ns:
                    core_tick(c, te)
                core_time(c, te)
            if c.leave or c.m.stop >= 3:
                return False
        self.now_ns = until_ns
        return True

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
    memcpy(e.buf, buf, n)
    o.n += 1


cdef int _send(Bus* b, const uint8_t* buf, int n, int64_t now_ns) noexcept nogil:
    cdef Link* link = <Link*>b.wire
    plant_rx(link.plant, link.port, buf, n, now_ns)
    return n
