"""One CAN bus on the control thread. Header: canscan.pxd; the rows: hal/canrows.py; how full the bus is: hal/canplan.py.

Rules that keep the image honest:
- a frame counts only when it is long enough for what is needed in it, its checksum is right and its counter has moved on (by less than half its range);
- a group is as old as the oldest frame it needs, and bad as soon as one of them is older than the profile allows (`lost_ms`): for a battery
  that is the end of charging and discharging in the same tick, and a FAULT after control.bms_lost_s;
- a current limit is 0 while one of its permits is withheld or has not been heard of lately, whatever the limit says;
- a device that fails its identity is not read and not commanded; a converter that is not heard any more is told 0 W and nothing else; a sign of life of constant bytes is sent to everybody.

Frames are stamped with the engine's clock when they are read, less their time on the wire: the engine reads with read(2), which brings no
kernel timestamp, and wakes within some 0.1 ms of a frame.
"""

from libc.math cimport NAN
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from _core.engine cimport Bus, BusPort, stamp
from _core.image cimport DeviceStats, Group, OP_NONE, OP_START, Q_BAD, Q_GOOD
from hal.can cimport (
    S_OK, S_OTHER, SL_ERROR, SL_FRAME, SL_JUNK, SL_MORE, SL_STATUS, SLCAN_LINE, CanFrame, can_bits, can_checksum, can_decode, can_encode,
    can_get, can_last_byte, can_most_bits, can_put, fill_signal, slcan_feed, slcan_next, slcan_reset, slcan_status, slcan_write, socket_error, socket_read,
    socket_write,
)

from _core.image import GROUPS, OUTPUTS, SIGNALS
from hal.canrows import CHECKSUMS, OPERATE

cdef int64_t POLL_NS = 1000000000           # slcan: how often the adapter is asked for its flags
DEAF_PERIODS, DEAF_MS = 2.5, 25.0           # a frame that the pcs group needs: periods and ms without it until nothing is followed
cdef enum:
    POLLS_MOST = 3                          # an adapter that never answers F is not asked again
    RUNNING = 3                             # 701.InvSt
    THROTTLED = 4


cdef inline DeviceStats* _stats(Bus* b, CanCtx* c, int dev) noexcept nogil:
    return &b.devices[c.dev[dev].index]


# ---------------------------------------------------------------- receiving

cdef int _find(const CanCtx* c, uint32_t key) noexcept nogil:
    """Index of a frame by binary search, -1: nobody's."""
    cdef int lo = 0, hi = c.n_rx - 1, mid
    while lo <= hi:
        mid = (lo + hi) >> 1
        if c.rx[mid].key == key:
            return mid
        if c.rx[mid].key < key:
            lo = mid + 1
        else:
            hi = mid - 1
    return -1


cdef void _stamp(Bus* b, CanCtx* c, int g) noexcept nogil:
    """A group is as old as the oldest frame it needs, and as good as the worst."""
    cdef Group* head = <Group*>(<char*>b.inputs + c.group[g].offset)
    cdef int64_t t_ns = INT64_MAX, rx_ns = INT64_MAX
    cdef PartRow* p
    cdef int i, quality = Q_GOOD
    for i in range(c.group[g].part0, c.group[g].part0 + c.group[g].n_part):
        p = &c.part[i]
        if p.rx_ns == 0:
            return                          # one of them has never come
        if p.t_ns < t_ns:
            t_ns = p.t_ns
        if p.rx_ns < rx_ns:
            rx_ns = p.rx_ns
        if p.quality != Q_GOOD or not p.fresh:
            quality = Q_BAD
    stamp(head, t_ns, rx_ns, quality)


cdef void _gate(Bus* b, CanCtx* c, int g) noexcept nogil:
    """The value itself where every permit allows it, else 0."""
    cdef double x = c.gate[g].value
    cdef int i
    for i in range(c.n_sig):
        if c.sig[i].gate == g and c.sig[i].permit != P_NONE and not c.sig[i].ok:
            x = 0.0
    memcpy(<char*>b.inputs + c.gate[g].dest, &x, sizeof(double))


cdef void _put(Bus* b, CanCtx* c, InRow* s, double value) noexcept nogil:
    if s.gate >= 0:
        c.gate[s.gate].value = value
        _gate(b, c, s.gate)
    else:
        memcpy(<char*>b.inputs + s.dest, &value, sizeof(double))


cdef void _take(Bus* b, CanCtx* c, RxRow* f, const CanFrame* frame, int64_t now) noexcept nogil:
    """A good frame into Inputs."""
    cdef int64_t at = now - can_bits(frame) * c.bit_ns - f.back_ns
    cdef InRow* s
    cdef PartRow* p
    cdef double value
    cdef int i, how
    for i in range(f.in0, f.in0 + f.n_in):
        s = &c.sig[i]
        p = &c.part[s.part]
        how = can_decode(&s.s, frame.data, frame.len, &value)
        if how == S_OTHER:                  # another signal's turn in this frame
            continue
        if i == f.in0 or c.sig[i - 1].part != s.part:
            p.quality = Q_GOOD              # its first signal in this frame: the rows of a part lie together
            p.fresh = 1
            p.t_ns = at
            p.rx_ns = now
        if s.permit != P_NONE:
            s.ok = how == S_OK and (value != 0.0) == (s.permit == P_SET)
            _gate(b, c, s.gate)
            continue
        if how != S_OK and s.needed:
            p.quality = Q_BAD               # the value before stays where it is: who looks at it looks at the quality first
        else:
            _put(b, c, s, value)
    for i in range(f.in0, f.in0 + f.n_in):
        p = &c.part[c.sig[i].part]
        if p.judged and p.rx_ns == now and (i == f.in0 or c.sig[i - 1].part != c.sig[i].part):
            _stamp(b, c, p.group)


cdef void _lose_part(Bus* b, CanCtx* c, int part) noexcept nogil:
    """It has not come for too long: its groups are bad, what is not needed of it is NaN, and permits are withheld."""
    cdef PartRow* p = &c.part[part]
    cdef RxRow* f = &c.rx[p.frame]
    cdef int i
    p.fresh = 0
    f.ctr_last = -1                         # who begins anew may begin anywhere
    for i in range(f.in0, f.in0 + f.n_in):
        if c.sig[i].part != part:
            continue
        if c.sig[i].permit != P_NONE:
            c.sig[i].ok = 0
            _gate(b, c, c.sig[i].gate)
        elif not c.sig[i].needed:
            _put(b, c, &c.sig[i], NAN)
    if not p.judged:
        return
    _stamp(b, c, p.group)
    for i in range(c.n_rx):                 # who comes back may be another: an identity of before the silence proves nothing
        if c.rx[i].dev == f.dev and c.rx[i].n_ident > 0:
            if c.rx[i].ident_ok > 0:
                c.rx[i].ident_ok = 0
            c.rx[i].ctr_last = -1           # and must be able to say it: its counter may begin anywhere


cdef void _judge(Bus* b, CanCtx* c, int dev, int64_t now) noexcept nogil:
    """Alive: everything that its groups are judged by is fresh. Verified: alive, and every identity has been seen and is equal."""
    cdef DeviceStats* s = _stats(b, c, dev)
    cdef int i, alive = 1, verified = 1
    for i in range(c.n_part):
        if c.part[i].judged and not c.part[i].fresh and c.rx[c.part[i].frame].dev == dev:
            alive = 0
    for i in range(c.n_rx):
        if c.rx[i].dev == dev and c.rx[i].n_ident > 0 and c.rx[i].ident_ok < verified:
            verified = c.rx[i].ident_ok
    if s.alive and not alive:
        s.lost_count += 1
        b.stats.timeouts += 1
    if alive and not s.alive:
        c.dev[dev].operate = -1             # it may have started anew
    s.alive = alive
    s.verified = verified if alive or verified < 0 else 0
    if s.verified != 0:
        c.dev[dev].proven = s.verified == 1


cdef bint _identical(CanCtx* c, RxRow* f, const CanFrame* frame) noexcept nogil:
    cdef IdentRow* d
    cdef int i
    for i in range(f.ident0, f.ident0 + f.n_ident):
        d = &c.ident[i]
        if can_last_byte(d.start, d.length, d.big) >= frame.len:
            return False
        if can_get(frame.data, d.start, d.length, d.big) != (<uint64_t>d.high << 32 | d.low):
            return False
    return True


cdef bint _whole(Bus* b, CanCtx* c, RxRow* f, const CanFrame* frame) noexcept nogil:
    """Long enough, right checksum, a counter that has moved on."""
    cdef int64_t counter, ahead
    if frame.rtr:
        return False
    if frame.len < f.min_len:
        b.stats.short_frames += 1
        return False
    if f.sum_kind and (f.sum_byte >= frame.len
                       or can_checksum(f.sum_kind, frame.data, frame.len, f.sum_byte, f.sum_seed) != frame.data[f.sum_byte]):
        b.stats.crc_errors += 1
        return False
    if f.ctr_length:
        if can_last_byte(f.ctr_start, f.ctr_length, f.ctr_big) >= frame.len:
            b.stats.short_frames += 1
            return False
        counter = <int64_t>can_get(frame.data, f.ctr_start, f.ctr_length, f.ctr_big)
        if f.ctr_last >= 0:
            ahead = (counter - f.ctr_last) & ((<int64_t>1 << f.ctr_length) - 1)
            if ahead == 0 or ahead > <int64_t>1 << (f.ctr_length - 1):
                b.stats.late += 1           # the same again, or one from before: its values are as old as then
                return False
            f.gaps += ahead != 1
        f.ctr_last = counter
    return True


cdef void _frame(Bus* b, CanCtx* c, const CanFrame* frame, int64_t now) noexcept nogil:
    """One frame off the bus."""
    cdef RxRow* f
    cdef DeviceStats* s
    cdef int at, i
    if frame.err:
        b.stats.exceptions += 1
        socket_error(frame, &c.errors)
        b.stats.overruns = c.errors.overrun
        return
    b.stats.busy_ns += can_most_bits(frame) * c.bit_ns
    at = _find(c, frame.id | (<uint32_t>1 << 31 if frame.ext else 0))
    if at < 0:
        b.stats.wrong_unit += 1
        return
    f = &c.rx[at]
    s = _stats(b, c, f.dev)
    if not _whole(b, c, f, frame):
        s.failed += 1
        return
    c.seen += 1
    b.stats.transactions += 1
    if f.n_ident > 0:
        f.ident_ok = 1 if _identical(c, f, frame) else -1
    s.last_ok_ns = now
    for i in range(c.n_rx):
        if c.rx[i].dev == f.dev and c.rx[i].n_ident > 0 and c.rx[i].ident_ok < 0:
            s.failed += 1                   # another device under our ids: nothing it says is believed
            _judge(b, c, f.dev, now)
            return
    s.ok += 1
    _take(b, c, f, frame, now)
    _judge(b, c, f.dev, now)


# ---------------------------------------------------------------- sending

cdef int _out(Bus* b, CanCtx* c, const CanFrame* f, int64_t now) noexcept nogil:
    """One frame to the wire, whole or not at all. False: the port did not take it."""
    cdef uint8_t buf[SLCAN_LINE]            # a struct can_frame is shorter
    cdef int n = socket_write(f, buf) if c.socket else slcan_write(f, buf)
    if b.send(b, buf, n, now) != n:
        return False
    b.stats.transactions += 1
    b.stats.busy_ns += can_most_bits(f) * c.bit_ns
    return True


cdef bint _fill(Bus* b, CanCtx* c, TxRow* t) noexcept nogil:
    """The payload as Outputs want it now. False: a value is not finite, and nothing may leave."""
    cdef OutRow* o
    cdef double x
    cdef int i
    for i in range(t.out0, t.out0 + t.n_out):
        o = &c.out[i]
        x = o.const_value
        if o.source == FROM_OPERATE:
            x = c.dev[t.dev].operate == 1
        elif o.source >= 0:
            memcpy(&x, <const char*>b.outputs + o.source, sizeof(double))
        if can_encode(&o.s, x, t.f.data) < 0:
            return False
    if t.ctr_length:
        can_put(t.f.data, t.ctr_start, t.ctr_length, t.ctr_big, t.counter)
        t.counter += 1
    if t.sum_kind:
        t.f.data[t.sum_byte] = <uint8_t>can_checksum(t.sum_kind, t.f.data, t.f.len, t.sum_byte, t.sum_seed)
    return True


cdef void _operate(Bus* b, CanCtx* c, int dev) noexcept nogil:
    """OP_START and OP_STOP are asked once; on CAN the wish stands in every frame. Before either, the device keeps doing what it says it does."""
    cdef double state = b.inputs.pcs.pcs_state
    cdef DevRow* d = &c.dev[dev]
    if b.outputs.op_request == OP_START:
        d.operate = 1
    elif b.outputs.op_request != OP_NONE:
        d.operate = 0
    elif d.operate < 0 and _stats(b, c, dev).alive:
        d.operate = state == RUNNING or state == THROTTLED


cdef bint _commandable(Bus* b, CanCtx* c, int dev) noexcept nogil:
    """A device that is proven and heard. One that is no longer heard may still hear: it is told 0 W, and nothing else."""
    cdef DeviceStats* s = _stats(b, c, dev)
    if b.outputs.gate != 1 or s.verified < 0:
        return False
    return (s.alive and s.verified == 1) or (c.dev[dev].proven and b.outputs.p_cmd_w == 0.0)


cdef bint _deaf(Bus* b, CanCtx* c, int64_t now) noexcept nogil:
    """Nobody acknowledges a CAN command to its sender: the converter's own frames are the only sign that it listens."""
    cdef int i
    if b.inputs.pcs.g.quality != Q_GOOD:
        return True
    for i in range(c.n_part):
        if c.part[i].judged and c.part[i].group == c.pcs and now - c.part[i].rx_ns > c.rx[c.part[i].frame].deaf_ns:
            return True
    return False


cdef void _poll(Bus* b, CanCtx* c, int64_t now) noexcept nogil:
    """Once a second the adapter's flags: slcan has no error frames."""
    cdef uint8_t ask[2]
    if c.socket or c.polls >= POLLS_MOST or now < c.poll_ns:
        return
    ask[0] = c'F'
    ask[1] = 13
    c.poll_ns = now + POLL_NS
    c.polls += 1
    b.send(b, ask, 2, now)


# ---------------------------------------------------------------- callbacks of struct Bus

cdef void _on_tick(Bus* b, int64_t tick, int64_t now) noexcept nogil:
    cdef CanCtx* c = <CanCtx*>b.ctx
    cdef int i
    cdef RxRow* f
    for i in range(c.n_part):
        f = &c.rx[c.part[i].frame]
        if c.part[i].fresh and now - c.part[i].rx_ns > f.lost_ns:
            _lose_part(b, c, i)
            _judge(b, c, f.dev, now)


cdef void _on_bytes(Bus* b, const uint8_t* buf, int n, int64_t now) noexcept nogil:
    cdef CanCtx* c = <CanCtx*>b.ctx
    cdef CanFrame f
    cdef int what
    if c.socket:
        if socket_read(buf, n, &f):
            _frame(b, c, &f, now)
        else:
            c.errors.junk += 1
            b.stats.long_frames += 1
        return
    slcan_feed(&c.reader, buf, n)
    while True:                             # at most once a byte
        what = slcan_next(&c.reader, &f)
        if what == SL_MORE:
            return
        if what == SL_FRAME:
            _frame(b, c, &f, now)
        elif what == SL_STATUS:
            c.polls = 0
            slcan_status(c.reader.status, &c.errors)
            b.stats.overruns = c.errors.overrun
        elif what == SL_ERROR:
            c.errors.refused += 1
            if c.command >= 0 and b.outputs.gate == 1:
                b.inputs.pcs_deaf = 1       # it does not say what it refused: perhaps the command
        elif what == SL_JUNK:
            c.errors.junk += 1
            b.stats.long_frames += 1


cdef void _on_time(Bus* b, int64_t now) noexcept nogil:
    b.deadline_ns = INT64_MAX               # nothing here waits for an instant between ticks


cdef void _on_outputs(Bus* b, int64_t tick, int64_t now) noexcept nogil:
    """The kernel has stepped: the command first, then what is due of the rest."""
    cdef CanCtx* c = <CanCtx*>b.ctx
    cdef TxRow* t
    cdef int64_t at = b.inputs.t_ns         # periods are counted on ticks: a wake-up that was late makes the next frame no later
    cdef bint sent
    cdef int i
    for i in range(c.n_dev):
        _operate(b, c, i)
    if c.command >= 0:
        t = &c.tx[c.command]
        sent = _commandable(b, c, t.dev) and _fill(b, c, t) and _out(b, c, &t.f, now)
        if sent:
            c.command_end_ns = now + can_bits(&t.f) * c.bit_ns
        b.inputs.pcs_deaf = b.outputs.gate == 1 and (not sent or _deaf(b, c, now))
    for i in range(c.n_tx):
        t = &c.tx[i]
        if t.period_ns == 0 or at < t.next_ns or (t.live and not _commandable(b, c, t.dev)):
            continue
        t.next_ns = t.next_ns + t.period_ns if at - t.next_ns < t.period_ns else at + t.period_ns
        if _fill(b, c, t):
            _out(b, c, &t.f, now)
    _poll(b, c, now)


cdef void _on_open(Bus* b, int64_t now) noexcept nogil:
    """The port is here (again): perhaps another bus with other devices behind it. Everything is proven anew."""
    cdef CanCtx* c = <CanCtx*>b.ctx
    cdef int i
    slcan_reset(&c.reader)
    c.polls = 0
    c.errors.state = 0
    for i in range(c.n_rx):
        c.rx[i].ident_ok = 0
        c.rx[i].ctr_last = -1
    for i in range(c.n_part):
        if c.part[i].fresh:
            _lose_part(b, c, i)
    for i in range(c.n_dev):
        c.dev[i].proven = 0
        _judge(b, c, i, now)
    b.fast_pending = 0
    b.deadline_ns = INT64_MAX


# ---------------------------------------------------------------- tables

cdef void* _alloc(size_t n, size_t size) except NULL:
    cdef void* p = calloc(n if n > 0 else 1, size)
    if p == NULL:
        raise MemoryError(f"{n} rows")
    return p


cdef object _allocate(CanCtx* c, list frames, list sent):
    n_sig = sum(len(f.signals) for _, _, f in frames)
    c.rx = <RxRow*>_alloc(len(frames), sizeof(RxRow))
    c.sig = <InRow*>_alloc(n_sig, sizeof(InRow))
    c.gate = <GateRow*>_alloc(n_sig, sizeof(GateRow))
    c.part = <PartRow*>_alloc(n_sig, sizeof(PartRow))
    c.group = <GroupRow*>_alloc(n_sig, sizeof(GroupRow))
    c.ident = <IdentRow*>_alloc(sum(len(f.identity) for _, _, f in frames), sizeof(IdentRow))
    c.tx = <TxRow*>_alloc(len(sent), sizeof(TxRow))
    c.out = <OutRow*>_alloc(sum(len(t.signals) for _, t in sent), sizeof(OutRow))


cdef object _fill_received(CanCtx* c, list frames):
    """frames: (device, map, Received), sorted by key."""
    cdef RxRow* r
    cdef InRow* s
    cdef int n_ident = 0
    gates = {}                                  # (device, signal) -> index, where the signal has permits
    for dev, _, f in frames:
        for x in f.signals:
            if x.permit:
                gates.setdefault((dev, x.name), len(gates))
    for (_, name), k in gates.items():
        c.gate[k].dest, c.gate[k].value = SIGNALS[name][0], NAN
    c.n_gate = len(gates)
    for i, (dev, device, f) in enumerate(frames):
        r = &c.rx[i]
        r.key, r.dev, r.in0, r.n_in = f.id | (1 << 31 if f.ext else 0), dev, c.n_sig, len(f.signals)
        r.ident0, r.n_ident = n_ident, len(f.identity)
        r.min_len = max((x.place.last_byte + 1 for x in f.signals if x.needed and x.length), default=0)
        r.lost_ns, r.back_ns, r.ctr_last = round(f.lost_ms * 1e6), round(0.5e6 * (device.window_ms + device.update_ms)), -1
        turns = len({x.mux.value for x in f.signals if x.mux}) or 1    # each multiplexer number comes when all have had theirs
        r.deaf_ns = round(1e6 * max(DEAF_PERIODS * turns * f.period_ms, DEAF_MS))
        if f.counter:
            r.ctr_start, r.ctr_length, r.ctr_big = f.counter.start, f.counter.length, f.counter.byte_order == "big"
        if f.checksum:
            r.sum_kind, r.sum_byte, r.sum_seed = CHECKSUMS.index(f.checksum.kind), f.checksum.byte, f.checksum.seed
        for place, value in f.identity:
            c.ident[n_ident].start, c.ident[n_ident].length, c.ident[n_ident].big = place.start, place.length, place.byte_order == "big"
            c.ident[n_ident].low, c.ident[n_ident].high = value & 0xFFFFFFFF, value >> 32
            n_ident += 1
        for x in sorted(f.signals, key=_part_of):
            s = &c.sig[c.n_sig]
            fill_signal(&s.s, x)
            s.dest, s.needed, s.permit = SIGNALS[x.name][0], x.needed, ("", "set", "clear").index(x.permit)
            s.gate = gates.get((dev, x.name), -1)
            c.n_sig += 1
    c.n_rx = len(frames)


def _part_of(x):
    """Group and multiplexer number of a signal: what makes up a part of its frame."""
    return SIGNALS[x.name][1], x.mux.value if x.mux else -1


cdef object _fill_groups(CanCtx* c, list frames):
    """Which parts a group is judged by: those with a needed value or a permit of it; where there are none, all of them."""
    cdef int k = 0
    by_group = {}                               # group offset -> {(frame, group, number): needed}
    for i, (_, _, f) in enumerate(frames):
        for x in f.signals:
            key = (i, *_part_of(x))
            of = by_group.setdefault(key[1], {})
            of[key] = of.get(key, False) or x.needed
    parts = {}
    c.pcs = -1
    for offset, of in by_group.items():
        if offset == GROUPS["pcs"]:
            c.pcs = c.n_group
        judged = [key for key, needed in of.items() if needed] or list(of)
        c.group[c.n_group].offset, c.group[c.n_group].part0, c.group[c.n_group].n_part = offset, c.n_part, len(judged)
        for key in (*judged, *(key for key in of if key not in judged)):
            c.part[c.n_part].group, c.part[c.n_part].frame, c.part[c.n_part].judged = c.n_group, key[0], key in judged
            parts[key] = c.n_part
            c.n_part += 1
        c.n_group += 1
    for i, (_, _, f) in enumerate(frames):
        for x in sorted(f.signals, key=_part_of):
            c.sig[k].part = parts[(i, *_part_of(x))]
            k += 1


cdef object _fill_sent(CanCtx* c, list sent):
    """sent: (device, Transmit)."""
    cdef TxRow* r
    cdef int n_out = 0, k
    c.command = -1
    for k, (dev, t) in enumerate(sent):
        r = &c.tx[k]
        r.f.id, r.f.ext, r.f.len = t.id, t.ext, t.length
        r.dev, r.out0, r.n_out = dev, n_out, len(t.signals)
        r.live = any(x.name for x in t.signals)
        r.period_ns = 0 if t.purpose == "command" else round(t.period_ms * 1e6)
        if t.purpose == "command":
            if c.command >= 0:
                raise ValueError(f"{t.id:#x}: a second command on this bus")
            c.command = k
        if t.counter:
            r.ctr_start, r.ctr_length, r.ctr_big = t.counter.start, t.counter.length, t.counter.byte_order == "big"
        if t.checksum:
            r.sum_kind, r.sum_byte, r.sum_seed = CHECKSUMS.index(t.checksum.kind), t.checksum.byte, t.checksum.seed
        for x in t.signals:
            fill_signal(&c.out[n_out].s, x)
            c.out[n_out].source = FROM_OPERATE if x.name == OPERATE else OUTPUTS[x.name] if x.name else FROM_CONST
            c.out[n_out].const_value = x.const
            n_out += 1
    c.n_tx = len(sent)


# ---------------------------------------------------------------- Python's handle

cdef class CanScan(BusPort):
    """One CAN bus of the plan, ready for the engine: CanScan(table), table a hal.canplan.CanTable. Raises ValueError for one not of one piece."""

    def __cinit__(self, table):
        memset(&self.c, 0, sizeof(CanCtx))
        self.table = table
        self.name = table.spec.name
        if len(table.devices) > MAX_DEV:
            raise ValueError(f"bus {self.name}: {len(table.devices)} devices, at most {MAX_DEV}")
        frames = [(k, device, f) for k, (_, device) in enumerate(table.devices) for f in device.frames]
        frames.sort(key=lambda x: x[2].id | (1 << 31 if x[2].ext else 0))
        sent = [(k, t) for k, (_, device) in enumerate(table.devices) for t in device.transmits]
        _allocate(&self.c, frames, sent)
        _fill_received(&self.c, frames)
        _fill_groups(&self.c, frames)
        _fill_sent(&self.c, sent)
        for k, (index, _) in enumerate(table.devices):
            self.c.dev[k].index, self.c.dev[k].operate = index, -1
        self.c.n_dev = len(table.devices)
        self.c.socket = table.spec.socket
        self.c.bit_ns = round(1e9 / table.spec.bitrate)
        self.bus.ctx = &self.c
        self.bus.on_tick = _on_tick
        self.bus.on_bytes = _on_bytes
        self.bus.on_time = _on_time
        self.bus.on_outputs = _on_outputs
        self.bus.on_open = _on_open

    def __dealloc__(self):
        free(self.c.rx)
        free(self.c.sig)
        free(self.c.gate)
        free(self.c.ident)
        free(self.c.part)
        free(self.c.group)
        free(self.c.tx)
        free(self.c.out)

    @property
    def command_end_ns(self):
        """When the last command's last bit left an idle bus (ns of the engine's clock); 0: none yet."""
        return self.c.command_end_ns

    @property
    def filters(self):
        """(id, extended) of every frame that somebody here listens to: for the receive filters of a socket."""
        return [(self.c.rx[i].key & 0x1FFFFFFF, bool(self.c.rx[i].key >> 31)) for i in range(self.c.n_rx)]

    @property
    def errors(self):
        """Counters of the bus's own errors (struct CanErrors), and frames that were for us."""
        out = dict(self.c.errors)
        out.pop("pad")
        out["state"] = ("active", "warning", "passive", "bus_off")[out["state"]]
        return out | {"seen": self.c.seen, "gaps": sum(self.c.rx[i].gaps for i in range(self.c.n_rx))}
