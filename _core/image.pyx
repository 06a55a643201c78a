"""The process image: shared memory between control (the one writer of State and the ring), supervisor and console.

What control publishes leaves by seqlock; what others ask for comes in as two copies + counter + CRC. Neither side can block the other,
and a writer that dies in mid-write leaves the last good value standing.
"""

import os
import fcntl

from libc.string cimport memcpy, memset
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close as unistd_close
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from cpython.bytes cimport PyBytes_FromStringAndSize

from _core.faults import FAULTS
from _core.site cimport site_refused
from _core.words import LIMIT_WORDS, MODE_NAMES, SLOT_NAMES, SP_NAMES, START_NAMES      # the names are asked for here


cdef extern from *:
    """
    #define ballast_fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define ballast_fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
    #define ballast_load64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define ballast_store64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define ballast_load32(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define ballast_store32(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    """
    void ballast_fence_acquire() nogil
    void ballast_fence_release() nogil
    uint64_t ballast_load64(const uint64_t*) nogil
    void ballast_store64(uint64_t*, uint64_t) nogil
    uint32_t ballast_load32(const uint32_t*) nogil
    void ballast_store32(uint32_t*, uint32_t) nogil


cdef double INF = float("inf")
cdef uint64_t MAGIC = 0x5453414C4C414221        # "!BALLAST"
cdef uint32_t VERSION = 1

LIMIT_TEXT = {1 << k: row for k, row in enumerate(LIMIT_WORDS)}           # LIM_* in their order
ALARM_TEXT = {row.bit: (row.id, row.text) for row in FAULTS if row.bit}      # kernel.pyx holds it against ALM_*


class ImageError(Exception):
    """The shared memory is absent, of another build, or damaged."""


# Byte offsets that hal compiles tables against: signal -> (offset in Inputs, offset of its group in Inputs).
cdef dict _signals():
    cdef dict s = {}
    cdef Inputs i
    cdef char* base = <char*>&i

    def put(group, **fields):
        for name, off in fields.items():
            s[name] = (off, group)

    cdef size_t g = <size_t>(<char*>&i.meter - base)
    put(g, grid_p_w=<char*>&i.meter.grid_p_w - base, q_var=<char*>&i.meter.q_var - base, v1_v=<char*>&i.meter.v1_v - base,
        v2_v=<char*>&i.meter.v2_v - base, v3_v=<char*>&i.meter.v3_v - base, f_hz=<char*>&i.meter.f_hz - base)
    g = <size_t>(<char*>&i.pcs - base)
    put(g, batt_p_w=<char*>&i.pcs.batt_p_w - base, pcs_q_var=<char*>&i.pcs.pcs_q_var - base, pcs_s_va=<char*>&i.pcs.pcs_s_va - base,
        pcs_state=<char*>&i.pcs.pcs_state - base, pcs_conn=<char*>&i.pcs.pcs_conn - base, pcs_alarm=<char*>&i.pcs.pcs_alarm - base,
        pcs_der_mode=<char*>&i.pcs.pcs_der_mode - base, pcs_v_v=<char*>&i.pcs.pcs_v_v - base, pcs_f_hz=<char*>&i.pcs.pcs_f_hz - base)
    g = <size_t>(<char*>&i.pcs_ctl - base)
    put(g, wset_ena=<char*>&i.pcs_ctl.wset_ena - base, wset_w=<char*>&i.pcs_ctl.wset_w - base,
        wset_rvrt_w=<char*>&i.pcs_ctl.wset_rvrt_w - base, wset_rvrt_ena=<char*>&i.pcs_ctl.wset_rvrt_ena - base,
        wset_rvrt_s=<char*>&i.pcs_ctl.wset_rvrt_s - base, wset_rvrt_rem_s=<char*>&i.pcs_ctl.wset_rvrt_rem_s - base)
    g = <size_t>(<char*>&i.pcs_life - base)
    put(g, pcs_local=<char*>&i.pcs_life.pcs_local - base, pcs_heartbeat=<char*>&i.pcs_life.pcs_heartbeat - base)
    g = <size_t>(<char*>&i.bms - base)
    put(g, soc=<char*>&i.bms.soc - base, soh=<char*>&i.bms.soh - base, bms_state=<char*>&i.bms.bms_state - base,
        bms_events=<char*>&i.bms.bms_events - base, bms_heartbeat=<char*>&i.bms.bms_heartbeat - base)
    g = <size_t>(<char*>&i.bms_lim - base)
    put(g, batt_v=<char*>&i.bms_lim.batt_v - base, batt_i_a=<char*>&i.bms_lim.batt_i_a - base,
        batt_i_charge_max_a=<char*>&i.bms_lim.batt_i_charge_max_a - base,
        batt_i_discharge_max_a=<char*>&i.bms_lim.batt_i_discharge_max_a - base,
        batt_p_charge_max_w=<char*>&i.bms_lim.batt_p_charge_max_w - base,
        batt_p_discharge_max_w=<char*>&i.bms_lim.batt_p_discharge_max_w - base)
    g = <size_t>(<char*>&i.bms_temp - base)
    put(g, batt_temp_max_c=<char*>&i.bms_temp.batt_temp_max_c - base, batt_temp_min_c=<char*>&i.bms_temp.batt_temp_min_c - base)
    g = <size_t>(<char*>&i.others - base)
    put(g, pv_p_w=<char*>&i.others.pv_p_w - base, gen_p_w=<char*>&i.others.gen_p_w - base)
    return s


cdef dict _outputs():
    cdef Outputs o
    cdef char* base = <char*>&o
    return {"p_cmd_w": <char*>&o.p_cmd_w - base, "q_cmd_var": <char*>&o.q_cmd_var - base, "enable": <char*>&o.enable - base,
            "heartbeat": <char*>&o.heartbeat - base, "rvrt_s": <char*>&o.rvrt_s - base}


SIGNALS = _signals()
OUTPUTS = _outputs()
GROUPS = {
    "meter": SIGNALS["grid_p_w"][1], "pcs": SIGNALS["batt_p_w"][1], "pcs_ctl": SIGNALS["wset_ena"][1],
    "pcs_life": SIGNALS["pcs_heartbeat"][1], "bms": SIGNALS["soc"][1], "bms_lim": SIGNALS["batt_v"][1],
    "bms_temp": SIGNALS["batt_temp_max_c"][1], "others": SIGNALS["pv_p_w"][1],
}


cdef uint32_t _crc_table[256]


cdef void _crc_init() noexcept:
    cdef uint32_t c
    cdef int n, k
    for n in range(256):
        c = n
        for k in range(8):
            c = (c >> 1) ^ 0xEDB88320 if c & 1 else c >> 1
        _crc_table[n] = c


_crc_init()


cdef uint32_t crc32(const void* data, size_t n) noexcept nogil:
    """CRC-32 of IEEE 802.3, as zlib's."""
    cdef const uint8_t* p = <const uint8_t*>data
    cdef uint32_t c = 0xFFFFFFFF
    cdef size_t i
    for i in range(n):
        c = _crc_table[(c ^ p[i]) & 0xFF] ^ (c >> 8)
    return ~c


cdef int read_setpoint(const SetpointSlot* s, Setpoint* out) noexcept nogil:
    """1 and the body when the live copy is whole; 0 leaves out alone. One try: the reader never spins on a writer."""
    cdef SlotCopy c
    cdef uint32_t live = ballast_load32(&s.counter)
    memcpy(&c, &s.copy[live & 1], sizeof(SlotCopy))
    ballast_fence_acquire()
    if c.crc != crc32(&c.body, sizeof(Setpoint)):
        return 0
    out[0] = c.body
    return 1


cdef int read_limits(const LimitsSlot* s, Limits* out) noexcept nogil:
    """As read_setpoint."""
    cdef LimitsCopy c
    cdef uint32_t live = ballast_load32(&s.counter)
    memcpy(&c, &s.copy[live & 1], sizeof(LimitsCopy))
    ballast_fence_acquire()
    if c.crc != crc32(&c.body, sizeof(Limits)):
        return 0
    out[0] = c.body
    return 1


cdef void publish(Image* m, const Record* rec, const State* st) noexcept nogil:
    """One tick into the ring, and the State behind its seqlock. The one writer calls this; it never waits."""
    cdef uint64_t head = m.head
    cdef RingEntry* e = &m.ring[head % RING_TICKS]
    ballast_store64(&e.seq, 2 * head + 1)
    ballast_fence_release()
    memcpy(&e.rec, rec, sizeof(Record))
    ballast_store64(&e.seq, 2 * (head + 1))
    ballast_store64(&m.state_seq, (m.state_seq + 1) | 1)    # odd, also after a control that was killed in mid-write
    ballast_fence_release()
    memcpy(&m.state, st, sizeof(State))
    ballast_store64(&m.state_seq, m.state_seq + 1)
    ballast_store64(&m.head, head + 1)


cdef int read_site(const SiteSlot* s, SiteCopy* out) noexcept nogil:
    """1 and the live copy, with its revision, when it is whole and has ever been written; 0: what out then holds is of no use. One try."""
    cdef uint32_t live = ballast_load32(&s.counter)
    memcpy(out, &s.copy[live & 1], sizeof(SiteCopy))
    ballast_fence_acquire()
    return out.rev > 0 and out.crc == site_crc(out)


cdef uint32_t site_crc(const SiteCopy* c) noexcept nogil:
    return crc32(c, <size_t>(<const char*>&c.crc - <const char*>c))


cdef void keep_site(Image* m, const SiteCopy* c) noexcept nogil:
    """A revision comes into force; one writer at a time: set_site before the engine starts, then the engine."""
    m.site_history[c.rev % SITE_REVISIONS] = c[0]
    m.site = c.body
    m.site_rev = c.rev


cdef bint read_entry(const Image* m, uint64_t n, Record* out) noexcept nogil:
    """Ring position n, whole; False where it is not there any more, or not yet."""
    cdef const RingEntry* e = &m.ring[n % RING_TICKS]
    cdef int k
    for k in range(64):                         # bounded: a writer needs microseconds, and its thread outranks this one
        if ballast_load64(&e.seq) == 2 * (n + 1):
            memcpy(out, &e.rec, sizeof(Record))
            ballast_fence_acquire()
            if ballast_load64(&e.seq) == 2 * (n + 1):
                return True
    return False


cdef int last_outputs(const Image* m, Outputs* out) noexcept nogil:
    """Outputs of the newest whole record that a control left behind, also where it was killed before the head moved; 0: there is none."""
    cdef Record r
    cdef uint64_t head = ballast_load64(&m.head)
    if not read_entry(m, head, &r) and (head == 0 or not read_entry(m, head - 1, &r)):
        return 0
    out[0] = r.out
    return 1


cdef int last_state(const Image* m, State* out) noexcept nogil:
    """1 and the State that a control left behind, if it is whole and the one after the newest record; 0: control died in mid-publish."""
    cdef Record r
    cdef uint64_t head = ballast_load64(&m.head)
    if ballast_load64(&m.state_seq) & 1:
        return 0
    out[0] = m.state
    return (read_entry(m, head, &r) or (head > 0 and read_entry(m, head - 1, &r))) and r.inp.t_ns == out.last_t_ns


def monotonic_ns():
    """CLOCK_MONOTONIC in nanoseconds: the clock of every time in the image."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef uint64_t _layout() noexcept:
    """Hash of the sizes and of some offsets: two builds that differ in the contract do not talk past each other."""
    cdef size_t[13] v
    cdef uint64_t h = 0xCBF29CE484222325ULL
    cdef int k
    v[0] = sizeof(Image); v[1] = sizeof(Inputs); v[2] = sizeof(Outputs); v[3] = sizeof(State); v[4] = sizeof(Limits)
    v[5] = sizeof(Site); v[6] = sizeof(RingEntry); v[7] = sizeof(EngineStats); v[8] = sizeof(BusStats) * 1000 + sizeof(DeviceStats)
    v[9] = sizeof(Record); v[10] = sizeof(SetpointSlot) * 1000 + sizeof(LimitsSlot); v[11] = VERSION; v[12] = sizeof(SiteSlot)
    for k in range(13):
        h = (h ^ v[k]) * 0x100000001B3ULL
    return h


LAYOUT = _layout()
RECORD_SIZE = sizeof(Record)
SLOT_SIZE = sizeof(SetpointSlot)


def record_dtype(name="Record"):
    """numpy dtype of a struct of image.pxd, nested as the structs are (imports numpy; never called in control).

    Read from image.pxd itself, the one source of the layout, and held against the compiled size. Raises ImageError where they differ."""
    import re
    from pathlib import Path

    import numpy
    scalars = {"int32_t": "<i4", "uint32_t": "<u4", "int64_t": "<i8", "uint64_t": "<u8", "double": "<f8"}
    text = Path(__file__).with_name("image.pxd").read_text()
    consts = {k: int(v) for k, v in re.findall(r"^    ([A-Z_]+) = (\d+)\b", text, re.M)}
    types = {}
    for struct, body in re.findall(r"^ctypedef struct (\w+):[^\n]*\n((?:    [^\n]*\n|\n(?=    ))+)", text, re.M):
        fields = []
        for kind, field, n in re.findall(r"^    (\w+) (\w+)(?:\[(\w+)\])?", body, re.M):
            base = scalars.get(kind) or types[kind]
            fields.append((field, base, (int(consts.get(n, n) if n in consts else n),)) if n else (field, base))
        types[struct] = numpy.dtype(fields, align=True)
        if struct == name:
            break
    sizes = {"Record": sizeof(Record), "State": sizeof(State), "Inputs": sizeof(Inputs), "Outputs": sizeof(Outputs)}
    if types[name].itemsize != sizes.get(name, types[name].itemsize):
        raise ImageError(f"image.pxd says {types[name].itemsize} bytes for {name}, the build {sizes[name]}: build again")
    return types[name]


def state_from_bytes(bytes raw):
    """State struct (as kept in a record's segment header) -> dict."""
    cdef State s
    if len(raw) != sizeof(State):
        raise ImageError(f"state of {len(raw)} bytes, this build has {sizeof(State)}: it was recorded by another build")
    memcpy(&s, <const char*>raw, sizeof(State))
    return s


cdef void _write_limits(LimitsSlot* s, const Limits* b) noexcept:
    cdef uint32_t nxt = s.counter + 1
    cdef LimitsCopy* c = &s.copy[nxt & 1]
    c.body = b[0]
    c.crc = crc32(&c.body, sizeof(Limits))
    ballast_store32(&s.counter, nxt)


cdef void _write_site(Image* m, SiteCopy* c) noexcept:
    cdef uint32_t nxt = m.site_new.counter + 1
    c.crc = site_crc(c)
    m.site_new.copy[nxt & 1] = c[0]
    ballast_store32(&m.site_new.counter, nxt)


cdef dict _without_flags(Limits lim):
    """What a writer gave: flags are the engine's."""
    values = <dict>lim
    del values["flags"]
    return values


def _why_not(str name, value):
    """Why an operator may not write this limit; empty: he may."""
    if value != value:
        return "is no number"
    if name.startswith("ramp_") and not value > 0:
        return "is not above 0: a reference that may not move follows nothing"
    if name.endswith("_w") and value < 0:
        return "is negative: write 0 for none"
    return ""


def _write_operator_limits_unchecked(ProcessImage image, dict values):
    """Test helper: operator limits as a writer with a fault would leave them, CRC and all."""
    cdef Limits b
    memset(&b, 0, sizeof(Limits))
    b.ramp_up_w_per_s = b.ramp_down_w_per_s = INF
    b = <dict>b | values
    _write_limits(&image.m.limits_op, &b)


def _update_site_unchecked(ProcessImage image, dict values):
    """Test helper: as update_site, without its checks."""
    cdef SiteCopy c
    c.body = image.site() | values
    c.rev = image.m.site_rev + 1
    _write_site(image.m, &c)


def _write_prefix(bytes image, Py_ssize_t n, ProcessImage target, Py_ssize_t at):
    """Test helper: the first n bytes of image into the shared memory at an offset, as a killed writer would leave them."""
    if at < 0 or n < 0 or at + n > <Py_ssize_t>sizeof(Image) or n > len(image):
        raise ValueError("outside the image")
    memcpy(<char*>target.m + at, <const char*>image, n)


cdef class ProcessImage:
    """The shared memory of one site: create() in the parent, open() elsewhere."""

    RECORD_SIZE = sizeof(Record)
    SIZE = sizeof(Image)

    def __cinit__(self):
        self.m = NULL
        self.fd = -1

    def __init__(self):
        raise TypeError("use ProcessImage.create() or ProcessImage.open()")

    @staticmethod
    def create():
        """A new image in a sealed memfd (0600). Raises OSError where the system has no memfd."""
        cdef ProcessImage p = ProcessImage.__new__(ProcessImage)
        fd = os.memfd_create("ballast-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, sizeof(Image))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        p._map(fd, True)
        p.owner = True
        p.m.magic = MAGIC
        p.m.version = VERSION
        p.m.size = sizeof(Image)
        p.m.layout = LAYOUT
        p.m.started_ns = monotonic_ns()
        cdef int k
        for k in range(SLOTS):
            p.write_setpoint(k, SP_NONE, 0.0, 0, 0)
        return p

    @staticmethod
    def open(where, writable=True):
        """Map an existing image: a path such as /proc/PID/fd/N, or a descriptor (it is duplicated).

        Raises ImageError with the reason: gone, forbidden, not an image, of another build."""
        cdef ProcessImage p = ProcessImage.__new__(ProcessImage)
        flags = os.O_RDWR if writable else os.O_RDONLY
        try:
            fd = os.dup(where) if isinstance(where, int) else os.open(where, flags | os.O_CLOEXEC)
        except OSError as e:
            raise ImageError(f"{where}: {e.strerror}; is ballast running, and are you its user or root?") from e
        if os.fstat(fd).st_size != sizeof(Image):
            size = os.fstat(fd).st_size
            os.close(fd)
            raise ImageError(f"{where}: {size} bytes, this build has {sizeof(Image)}: the running ballast is of another build; restart it")
        p._map(fd, writable)
        if p.m.magic != MAGIC or p.m.layout != LAYOUT:
            raise ImageError(f"{where}: not an image of this build; restart ballast so that all its processes are of one build")
        return p

    cdef _map(self, int fd, bint writable):
        cdef void* at = mmap(NULL, sizeof(Image), PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, fd, 0)
        if at == MAP_FAILED:
            os.close(fd)
            raise ImageError("mmap of the process image failed: out of memory or address space")
        self.m = <Image*>at
        self.fd = fd
        self.writable = writable

    def __dealloc__(self):
        if self.m != NULL:
            munmap(self.m, sizeof(Image))
            self.m = NULL
        if self.fd >= 0:
            unistd_close(self.fd)
            self.fd = -1

    def close(self):
        """Close the descriptor (the mapping lives as long as the object)."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _need_writable(self):
        if not self.writable:
            raise ImageError("the image was opened for reading only")

    # ---- reading

    @property
    def head(self):
        """Ticks written so far."""
        return ballast_load64(&self.m.head)

    cdef bint _entry(self, uint64_t n, Record* out) noexcept nogil:
        return read_entry(self.m, n, out)

    def latest(self):
        """The newest whole Record as a nested dict, or None before the first tick."""
        cdef Record r
        cdef uint64_t h = ballast_load64(&self.m.head)
        if h == 0 or not self._entry(h - 1, &r):
            return None
        return r

    def state(self):
        """The kernel's State as a dict, consistent (seqlock); None when no consistent copy came in 1,000 tries."""
        cdef State s
        cdef uint64_t a
        cdef int k
        for k in range(1000):
            a = ballast_load64(&self.m.state_seq)
            if a & 1:
                continue
            memcpy(&s, &self.m.state, sizeof(State))
            ballast_fence_acquire()
            if ballast_load64(&self.m.state_seq) == a:
                return s
        return None

    def state_bytes(self):
        """The State as raw bytes, for a record's segment header."""
        cdef State s
        cdef uint64_t a
        cdef int k
        for k in range(1000):
            a = ballast_load64(&self.m.state_seq)
            memcpy(&s, &self.m.state, sizeof(State))
            ballast_fence_acquire()
            if not a & 1 and ballast_load64(&self.m.state_seq) == a:
                break
        return PyBytes_FromStringAndSize(<char*>&s, sizeof(State))

    def drain(self, since, limit=RING_TICKS):
        """Whole Records from ring position `since` on, at most `limit`.

        Returns (bytes, next): `next` is the position to ask for the next time; positions that the ring has already overwritten are skipped,
        which the caller sees as next - since > len(bytes) / RECORD_SIZE."""
        cdef uint64_t h = ballast_load64(&self.m.head)
        cdef uint64_t n = since
        if h > RING_TICKS - 64 and n < h - (RING_TICKS - 64):
            n = h - (RING_TICKS - 64)
        cdef uint64_t last = min(h, n + <uint64_t>limit)
        if last <= n:
            return b"", n
        raw = bytearray((last - n) * sizeof(Record))
        cdef char* p = raw
        cdef Py_ssize_t used = 0
        while n < last:
            if self._entry(n, <Record*>(p + used)):
                used += sizeof(Record)
            n += 1
        return bytes(raw[:used]), n

    def engine_stats(self):
        """EngineStats as a dict; wake_us and step_ns are histograms (1 us and 16 ns a bin, the last bin holds what is beyond)."""
        return self.m.engine

    def bus_stats(self, int i):
        """BusStats of bus i as a dict."""
        if not 0 <= i < MAX_BUSES:
            raise IndexError(i)
        return self.m.bus[i]

    def device_stats(self, int i):
        """DeviceStats of device i as a dict."""
        if not 0 <= i < MAX_DEVICES:
            raise IndexError(i)
        return self.m.device[i]

    def setpoint(self, int slot):
        """The Setpoint that stands in a slot as a dict; None when its live copy is damaged."""
        cdef Setpoint s
        if not 0 <= slot < SLOTS:
            raise IndexError(slot)
        if not read_setpoint(&self.m.setpoint[slot], &s):
            return None
        return s

    def limits(self):
        """The Limits that the supervisor wrote last as a dict; None when damaged or never written."""
        cdef Limits lim
        if not read_limits(&self.m.limits, &lim):
            return None
        return _without_flags(lim)

    def operator_limits(self):
        """The Limits that an operator wrote last as a dict, infinite where not set, without soc_target; None when damaged or never written.
        They count until lease_until_ns."""
        cdef Limits lim
        if not read_limits(&self.m.limits_op, &lim):
            return None
        values = _without_flags(lim)
        del values["soc_target"]
        return values

    def site(self):
        """The Site in force as a dict (before the first: all 0)."""
        return self.site_at(self.m.site_rev) or self.m.site

    def site_at(self, int rev):
        """Revision `rev` of Site (Inputs.site_rev) as a dict; None where it is not one of the last SITE_REVISIONS."""
        cdef SiteCopy c
        cdef int k
        for k in range(64):                     # bounded: a writer needs a microsecond
            c = self.m.site_history[rev % SITE_REVISIONS if rev >= 0 else 0]
            ballast_fence_acquire()
            if c.crc == site_crc(&c):
                return c.body if c.rev == rev and rev > 0 else None
        return None

    @property
    def site_rev(self):
        """Revision of the Site in force; 0 before the first."""
        return self.m.site_rev

    @property
    def control_pid(self):
        return self.m.control_pid

    def set_control_pid(self, pid):
        self._need_writable()
        self.m.control_pid = pid

    @property
    def started_ns(self):
        return self.m.started_ns

    @property
    def billing_offset_s(self):
        """(wall-clock phase of the billing window) - t_ns / 1e9, modulo the window: phase = (t_s + offset) mod window."""
        return self.m.billing_offset_s

    @billing_offset_s.setter
    def billing_offset_s(self, double value):
        self._need_writable()
        self.m.billing_offset_s = value

    # ---- writing: requests to the engine; it checks them again on its side

    def write_setpoint(self, int slot, int kind, double value_w, int64_t lease_until_ns, int64_t id):
        """Into a ranked slot. Raises ValueError for an unknown slot or kind, or a value that is not finite."""
        self._need_writable()
        if not 0 <= slot < SLOTS or not 0 <= kind <= SP_BASE:
            raise ValueError(f"slot {slot}, kind {kind}: slots are 0 operator, 1 schedule, 2 planner; kinds 0 none, 1 hold, 2 base")
        if value_w - value_w != 0.0:
            raise ValueError(f"setpoint {value_w} W is not finite")
        cdef SetpointSlot* s = &self.m.setpoint[slot]
        cdef uint32_t nxt = s.counter + 1
        cdef SlotCopy* c = &s.copy[nxt & 1]
        c.body.kind = kind
        c.body.pad = 0
        c.body.value_w = value_w
        c.body.lease_until_ns = lease_until_ns
        c.body.id = id
        c.crc = crc32(&c.body, sizeof(Setpoint))
        ballast_store32(&s.counter, nxt)

    def write_limits(self, *, int64_t lease_until_ns, double import_limit_w, double export_limit_w, double ramp_up_w_per_s,
                     double ramp_down_w_per_s, double p_charge_max_w, double p_discharge_max_w, double soc_min, double soc_max,
                     double soc_target):
        """The supervisor's limits with their lease. Raises ValueError naming what is not finite."""
        self._need_writable()
        cdef Limits b
        b.lease_until_ns = lease_until_ns
        b.import_limit_w = import_limit_w
        b.export_limit_w = export_limit_w
        b.ramp_up_w_per_s = ramp_up_w_per_s
        b.ramp_down_w_per_s = ramp_down_w_per_s
        b.p_charge_max_w = p_charge_max_w
        b.p_discharge_max_w = p_discharge_max_w
        b.soc_min = soc_min
        b.soc_max = soc_max
        b.soc_target = soc_target
        b.flags = 0
        for name, value in (<dict>b).items():
            if value - value != 0:
                raise ValueError(f"limit {name} = {value} is not finite")
        _write_limits(&self.m.limits, &b)

    def write_operator_limits(self, *, int64_t lease_until_ns, double import_limit_w=INF, double export_limit_w=INF,
                              double ramp_up_w_per_s=INF, double ramp_down_w_per_s=INF, double p_charge_max_w=INF,
                              double p_discharge_max_w=INF, double soc_min=-INF, double soc_max=INF):
        """A person's limits, in force until lease_until_ns (CLOCK_MONOTONIC) beside the site's and the supervisor's: the tightest counts.
        Infinite: not set. A lease of 0 takes them back. They need no supervisor, and outlive control.

        Raises ValueError naming what is NaN, negative (powers), or not above 0 (ramps)."""
        self._need_writable()
        cdef Limits b
        memset(&b, 0, sizeof(Limits))
        b.lease_until_ns = lease_until_ns
        b.import_limit_w = import_limit_w
        b.export_limit_w = export_limit_w
        b.ramp_up_w_per_s = ramp_up_w_per_s
        b.ramp_down_w_per_s = ramp_down_w_per_s
        b.p_charge_max_w = p_charge_max_w
        b.p_discharge_max_w = p_discharge_max_w
        b.soc_min = soc_min
        b.soc_max = soc_max
        wrong = [f"{name} = {value}: {why}" for name, value in (<dict>b).items() for why in [_why_not(name, value)] if why]
        if wrong:
            raise ValueError("operator limits: " + "; ".join(wrong))
        _write_limits(&self.m.limits_op, &b)

    def set_site(self, dict values):
        """Every field of Site, before the engine starts: a new revision. Raises ValueError naming fields that are missing or unknown.

        What update_site has written before is over: a restarted control begins with the settings it was started with."""
        self._need_writable()
        cdef SiteCopy c, pending
        known = set(self.m.site)
        given = set(values)
        if known != given:
            raise ValueError(f"site fields missing: {sorted(known - given)}, unknown: {sorted(given - known)}")
        c.body = values
        c.rev = self.m.site_rev + 1
        if read_site(&self.m.site_new, &pending) and pending.rev >= c.rev:
            c.rev = pending.rev + 1
        c.crc = site_crc(&c)
        keep_site(self.m, &c)

    def update_site(self, dict values):
        """Some or all fields of Site while the engine runs, all or nothing; the others stay as they are (or as the last update wants them).

        Returns the revision: in force when `site_rev` has reached it, within a second; refused (EngineStats.setpoint_rejects) when it does
        not come. Raises ValueError naming every field that is unknown or NaN, and what a running engine does not take."""
        self._need_writable()
        cdef SiteCopy c, pending
        cdef Site now = self.site()
        cdef const char* why
        c.body = now
        c.rev = self.m.site_rev + 1
        if read_site(&self.m.site_new, &pending) and pending.rev > self.m.site_rev:
            c.body = pending.body
            c.rev = pending.rev + 1
        whole = <dict>c.body
        unknown = sorted(set(values) - set(whole))
        bad = [f"{k} = {v}" for k, v in values.items() if v != v]
        if unknown or bad:
            raise ValueError("; ".join([f"site fields unknown: {unknown}"] * bool(unknown) + [f"not a number: {', '.join(bad)}"] * bool(bad)))
        c.body = whole | values
        why = site_refused(&c.body, &now)
        if why != NULL:
            raise ValueError(f"site is not changed: {why.decode()} ({', '.join(f'{k} = {v}' for k, v in values.items())})")
        _write_site(self.m, &c)
        return c.rev

    def request_park(self, on):
        """True: ramp to 0 as SIGTERM does, PCS to standby, and stay there until False: then the normal start. Outlives control."""
        self._need_writable()
        self.m.park = 1 if on else 0

    @property
    def park(self):
        """True while a person wants the site parked."""
        return self.m.park != 0

    def request_stop(self, int level):
        """1: ramp to 0, then leave; 2: 0 now, then leave; 3: leave the loop at once. Never lowered."""
        self._need_writable()
        if level > self.m.stop:
            self.m.stop = level

    @property
    def stop(self):
        return self.m.stop

    def clear_stop(self):
        """Before a restarted control begins."""
        self._need_writable()
        self.m.stop = 0

    def request_reset(self):
        """One edge of the fault reset."""
        self._need_writable()
        self.m.reset += 1

    def reset_engine_stats(self):
        """Zero the engine's statistics (a restarted control starts its own)."""
        self._need_writable()
        memset(&self.m.engine, 0, sizeof(EngineStats))


def _crc32(bytes data):
    """crc32 as Python sees it, for tests."""
    return crc32(<const char*>data, len(data))
