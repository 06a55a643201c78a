"""Buses driven by hand in virtual time: what the engine does with them, without the kernel. For tests and the bench of hal alone."""

from cpython.ref cimport PyObject
from libc.math cimport NAN
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from _core.engine cimport Bus, BusPort
from _core.image cimport MAX_BUSES, MAX_DEVICES, BusStats, DeviceStats, Group, Inputs, Outputs
from hal.scan cimport BusScan

from _core.image import GROUPS, OUTPUTS, SIGNALS


cdef int _bench_send(Bus* b, const uint8_t* buf, int n, int64_t now) noexcept with gil:
    return (<ScanBench><object>b.wire)._sent(b.index, <bytes>buf[:n], now)


cdef class ScanBench:
    """ScanBench(ports, send): send(bus index, frame, now_ns) -> bytes taken. Times are integer nanoseconds."""
    cdef Inputs inp
    cdef Outputs out
    cdef BusStats stats[MAX_BUSES]
    cdef DeviceStats devices[MAX_DEVICES]
    cdef list ports
    cdef object send
    cdef bint stepped

    def __init__(self, list ports, send):
        self.ports = ports
        self.send = send
        self.stepped = True
        memset(&self.inp, 0, sizeof(Inputs))
        memset(&self.out, 0, sizeof(Outputs))
        memset(self.stats, 0, sizeof(self.stats))
        memset(self.devices, 0, sizeof(self.devices))
        for k, port in enumerate(ports):
            b = <BusPort?>port
            b.bus.index = k
            b.bus.wire = <void*>self
            b.bus.inputs = &self.inp
            b.bus.outputs = &self.out
            b.bus.stats = &self.stats[k]
            b.bus.devices = self.devices
            b.bus.send = _bench_send

    def _sent(self, int bus, bytes frame, int64_t now):
        return self.send(bus, frame, now)

    def tick(self, int64_t tick, int64_t t_ns, int64_t now):
        """A tick of nominal instant t_ns begins. Returns fast answers to come, all buses."""
        self.inp.tick = tick
        self.inp.t_ns = t_ns
        self.stepped = False
        for port in self.ports:
            (<BusPort>port).bus.on_tick(&(<BusPort>port).bus, tick, now)
        return self.pending

    @property
    def pending(self):
        return sum((<BusPort>p).bus.fast_pending for p in self.ports)

    def bytes(self, int bus, bytes data, int64_t now):
        cdef int n = len(data)
        cdef uint8_t* p = <uint8_t*>malloc(n if n > 0 else 1)       # of its own, so that the checked build sees whoever reads on behind it
        if p == NULL:
            raise MemoryError(f"{n} bytes")
        memcpy(p, <const uint8_t*>data, n)
        b = <BusPort>self.ports[bus]
        b.bus.on_bytes(&b.bus, p, n, now)
        free(p)

    def time(self, int64_t now):
        for port in self.ports:
            if (<BusPort>port).bus.deadline_ns <= now:
                (<BusPort>port).bus.on_time(&(<BusPort>port).bus, now)

    def outputs(self, int64_t tick, int64_t now):
        for port in self.ports:
            (<BusPort>port).bus.on_outputs(&(<BusPort>port).bus, tick, now)

    def open(self, int bus, int64_t now):
        b = <BusPort>self.ports[bus]
        b.bus.lost = 0
        b.bus.on_open(&b.bus, now)

    def lost(self, int bus):
        """True once the bus has given its descriptor up."""
        return bool((<BusPort>self.ports[bus]).bus.lost)

    @property
    def next_ns(self):
        return min((<BusPort>p).bus.deadline_ns for p in self.ports)

    def get(self, str signal):
        cdef double x
        cdef size_t at = SIGNALS[signal][0]
        memcpy(&x, <char*>&self.inp + at, sizeof(double))
        return x

    @property
    def inputs(self):
        """All of Inputs as it lies in memory (numpy type: _core.image.RECORD's "inp")."""
        return (<const char*>&self.inp)[:sizeof(Inputs)]

    def group(self, str name):
        """(t_ns, rx_ns, count, quality)"""
        cdef size_t at = GROUPS[name]
        cdef Group* g = <Group*>(<char*>&self.inp + at)
        return g.t_ns, g.rx_ns, g.count, g.quality

    def put(self, str output, double value):
        cdef size_t at = OUTPUTS[output]
        memcpy(<char*>&self.out + at, &value, sizeof(double))

    def ask(self, *, gate=None, op_request=None, reset=None):
        if gate is not None:
            self.out.gate = gate
        if op_request is not None:
            self.out.op_request = op_request
        if reset is not None:
            self.inp.reset = reset

    def turned(self, int k, int bin, int n):
        """As if device k had answered n times with that turnaround (a bin of DeviceStats.turn)."""
        self.devices[k].turn[bin] += n
        self.devices[k].turn_n += n

    @property
    def deaf(self):
        """True where the PCS did not take the last command, as far as is known."""
        return bool(self.inp.pcs_deaf)

    def bus(self, int k):
        return self.stats[k]

    def device(self, int k):
        return self.devices[k]
