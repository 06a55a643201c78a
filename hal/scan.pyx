"""One Modbus bus (RTU, TCP) on the control thread. Header: scan.pxd; tables: tables.pxd; how a tick is laid out: hal/plan.py.

Rules that keep the image honest:
- a group is stamped only by a whole, right answer to the present request; a failed read leaves it alone, so its age shows;
- after an answer was given up, the next read of that device asks for another number of registers ("probe"): devices answer in order, so
  once that has come, no old answer can be taken for a new one. One lost frame costs one tick, in the after-slot of the same tick;
- where slots are rare, any answer that is unlike all those given up serves as the probe (an acknowledgement after a lost readback);
- a device is read and commanded only while its identity and scale factors equal the compiled ones, checked after every return;
- FC23 (command and readback in one) is tried where the plan gains by it and used once it was answered; a device that refuses it gets FC16 in
  the same tick. A late answer to it would look like a new one: after a lost answer commands go by FC16 until a probe was answered;
- a lost device is asked again after 0.1 s, doubling to 5 s, in after-slots only: it costs the others nothing.
"""

from libc.math cimport NAN
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy

from _core.engine cimport Bus, BusPort, stamp
from _core.image cimport (
    Group, Inputs, MODE_STANDBY, OP_NONE, OP_START, OP_STOP, Outputs, Q_BAD, Q_GOOD, DeviceStats,
)
from hal.codec cimport D_OK, decode, encode
from hal.modbus cimport (
    RTU_WAIT, RX_CRC, RX_EXCEPTION, RX_MORE, RX_OK, RX_TIMEOUT, RtuMaster, rtu_abort, rtu_build, rtu_expire, rtu_feed, rtu_init,
    rtu_reset, rtu_sent, tcp_init,
)
from hal.tables cimport *

cdef enum:
    LOST_AFTER = 3              # failures in a row
    DEAF_AFTER = 10             # commands in a row without an acknowledgement, though the device answers reads
    FIT_NS = 100000             # a slot's answer must be due this long before the slot ends
cdef int64_t RETRY_NS = 100000000
cdef int64_t RETRY_MAX_NS = 5000000000
cdef int64_t READBACK_NS = 300000000        # a readback's slot is given to others only while the last one is younger
cdef int64_t AGAIN_NS = 1000000000          # an operation or setting that was asked once is repeated so often while it is still asked
cdef double STANDBY = 7.0                   # 701.InvSt


# ---------------------------------------------------------------- devices

cdef inline DeviceStats* _stats(Bus* b, DevRow* d) noexcept nogil:
    return &b.devices[d.index]


cdef inline bint _readable(Bus* b, DevRow* d) noexcept nogil:
    return b.devices[d.index].alive and b.devices[d.index].verified == 1 and not d.desync


cdef inline bint _commandable(Bus* b, DevRow* d) noexcept nogil:
    # An acknowledgement holds no data, so a late one does no harm: a command needs no probe first.
    return b.devices[d.index].alive and b.devices[d.index].verified == 1


cdef void _blank(Bus* b, ScanCtx* c, int t) noexcept nogil:
    """Fields read more slowly than their group is stamped would stay behind and look fresh: they become NaN."""
    cdef int i
    cdef double nan = NAN
    for i in range(c.txn[t].dec0, c.txn[t].dec0 + c.txn[t].n_dec):
        if not c.part[c.dec_part[i]].owner:
            memcpy(<char*>b.inputs + c.dec[i].dest, &nan, sizeof(double))


cdef void _lose(Bus* b, ScanCtx* c, DevRow* d, int dev, int64_t now) noexcept nogil:
    """No answer three times, or again none while it is lost: wait longer."""
    cdef DeviceStats* s = _stats(b, d)
    cdef int64_t wait = RETRY_NS << (d.backoff if d.backoff < 6 else 6)
    cdef int t
    if s.alive:
        s.alive = 0
        s.lost_count += 1
        for t in range(c.n_txn):
            if c.txn[t].dev == dev:
                _blank(b, c, t)
    s.verified = 0
    d.verify_next = 0
    d.reversion_next = 0
    d.op_done = OP_NONE
    d.desync = 1
    if c.command23 >= 0 and c.txn[c.command23].dev == dev:
        c.fc23 = FC23_UNTRIED               # what comes back may be another one
    d.backoff += 1
    if d.backoff > 30:
        d.backoff = 30
    s.retry_ns = now + (wait if wait < RETRY_MAX_NS else RETRY_MAX_NS)


cdef void _answered(Bus* b, DevRow* d, int64_t now) noexcept nogil:
    cdef DeviceStats* s = _stats(b, d)
    d.fails = 0
    if not s.alive:
        s.alive = 1
        s.retry_ns = 0
        d.backoff = 0
        d.again_ns = 0
        d.verify_next = 0
        d.reset_seen = b.inputs.reset       # only an edge that it could have seen is passed on
        s.verified = 0 if d.n_verify > 0 else 1
    s.last_ok_ns = now


# ---------------------------------------------------------------- answers

cdef int64_t _sampled(const RtuMaster* m, const TxnRow* t, int64_t now) noexcept nogil:
    """The instant the values stand for. Half of what the answer is late is laid before the sampling: where it arose is not known."""
    cdef int64_t excess = now - m.nominal_ns, way
    cdef int64_t at
    if m.mbap:                              # both ways took as long as they took, not as long as planned
        way = (now - m.tx_ns - t.turnaround_ns) // 2 if now - m.tx_ns > t.turnaround_ns else 0
        return (now - way if t.sample_answer else m.tx_ns + way) - t.back_ns
    at = now - t.answer_ns if t.sample_answer else m.tx_end_ns + m.t35_ns
    if excess > 0 and not t.sample_answer:
        at += excess // 2
    elif at > now - t.answer_ns + m.char_ns:    # it knew the request's end without t3.5 of silence: sampled before its answer began
        at = now - t.answer_ns if now - t.answer_ns > m.tx_ns else m.tx_ns
    return at - t.back_ns


cdef void _stamp(Bus* b, ScanCtx* c, int p) noexcept nogil:
    """A group is as old as the oldest of the answers it is made of, and as good as the worst."""
    cdef GroupRow* g = &c.group[c.part[p].group]
    cdef Group* head = <Group*>(<char*>b.inputs + g.offset)
    cdef int64_t t_ns = INT64_MAX, rx_ns = INT64_MAX
    cdef int i, quality = Q_GOOD
    for i in range(g.part0, g.part0 + g.n_part):
        if not c.part[i].owner:
            continue
        if c.part[i].rx_ns == 0:
            return                          # one of them has never answered
        if c.part[i].t_ns < t_ns:
            t_ns = c.part[i].t_ns
        if c.part[i].rx_ns < rx_ns:
            rx_ns = c.part[i].rx_ns
        if c.part[i].quality != Q_GOOD:
            quality = Q_BAD
    stamp(head, t_ns, rx_ns, quality)


cdef void _take(Bus* b, ScanCtx* c, TxnRow* t, int64_t now) noexcept nogil:
    """A whole, right answer: into Inputs with it."""
    cdef int64_t at = _sampled(&c.m, t, now)
    cdef double value
    cdef int i, p, how
    for i in range(t.dec0, t.dec0 + t.n_dec):
        p = c.dec_part[i]
        if c.part[p].rx_ns != now:          # its first field in this answer
            c.part[p].quality = Q_GOOD
            c.part[p].t_ns = at
            c.part[p].rx_ns = now
        how = decode(&c.dec[i], c.m.data, &value)
        memcpy(<char*>b.inputs + c.dec[i].dest, &value, sizeof(double))
        if how != D_OK and c.dec[i].needed:
            c.part[p].quality = Q_BAD
    for i in range(t.dec0, t.dec0 + t.n_dec):
        p = c.dec_part[i]
        if c.part[p].owner and (i == t.dec0 or c.dec_part[i - 1] != p):
            _stamp(b, c, p)


cdef void _verified(Bus* b, ScanCtx* c, DevRow* d, TxnRow* t, bint equal, int64_t now) noexcept nogil:
    cdef DeviceStats* s = _stats(b, d)
    cdef int i
    for i in range(t.count if equal else 0):
        if ((<uint16_t>c.m.data[2 * i]) << 8 | c.m.data[2 * i + 1]) != c.words[t.word0 + i]:
            equal = False
    if not equal:
        s.verified = -1
        d.verify_next = 0
        d.again_ns = now + RETRY_MAX_NS
        return
    d.verify_next += 1
    if d.verify_next >= d.n_verify:
        s.verified = 1
        d.reversion_next = 0
        d.op_done = OP_NONE
        d.again_ns = 0


cdef void _done(Bus* b, ScanCtx* c, DevRow* d, TxnRow* t, bint ok, int64_t now) noexcept nogil:
    """The device has answered a transaction, or refused it (exception): what follows from either."""
    if t.kind == K_VERIFY:
        _verified(b, c, d, t, ok, now)
    elif t.kind == K_OP_START or t.kind == K_OP_EXIT or t.kind == K_OP_STOP:
        d.op_done = OP_STOP if t.kind == K_OP_STOP else OP_START
        d.again_ns = now + AGAIN_NS
    elif t.kind == K_ALARM_RESET:
        d.reset_seen = b.inputs.reset
    elif t.kind == K_REVERSION:
        if ok:
            d.reversion_next += 1
            d.again_ns = 0
        else:
            d.again_ns = now + AGAIN_NS
    if ok and t.n_dec > 0:
        _take(b, c, t, now)


cdef inline bint _commands(const ScanCtx* c, int t) noexcept nogil:
    return t >= 0 and (t == c.command or t == c.command23)


cdef void _finish(Bus* b, ScanCtx* c, int result, int64_t now) noexcept nogil:
    """The transaction in flight has ended, one way or the other."""
    cdef DevRow* d = &c.dev[c.current_dev]
    cdef DeviceStats* s = _stats(b, d)
    cdef TxnRow* t = NULL
    if c.current >= 0:
        t = &c.txn[c.current]
    if c.current_fast and b.fast_pending > 0:
        b.fast_pending -= 1
    if result == RX_OK or result == RX_EXCEPTION:
        b.stats.busy_ns += now - c.m.tx_ns
        _answered(b, d, now)
        if t == NULL or (c.proves and result == RX_OK):
            d.desync = 0                    # devices answer in order: nothing older is still to come
        if t != NULL:
            _done(b, c, d, t, result == RX_OK, now)
    if result == RX_OK:
        s.ok += 1
        turned(s, now - c.m.nominal_ns + (t.turnaround_ns if t != NULL else d.turnaround_ns))
        if t != NULL:
            t.fails = 0
            if t.readback:
                c.readback_ns = now
        if _commands(c, c.current):
            b.inputs.pcs_deaf = 0
            c.txn[c.command].fails = 0
            if c.current == c.command23:
                c.fc23 = FC23_PROVEN
    elif c.current == c.command23 and result == RX_EXCEPTION and (c.m.exception == 1 or c.fc23 == FC23_UNTRIED):
        c.fc23 = FC23_REFUSED               # nothing was written: the same again, as every device has it
        c.command_pending = b.outputs.gate == 1
    else:
        s.failed += 1
        if c.current == c.command23 and (c.fc23 == FC23_UNTRIED or t.fails + 1 >= DEAF_AFTER):
            c.fc23 = FC23_REFUSED           # silent to what it does not know, or takes it no more: FC16 and readback tell what is wrong
            t.fails = 0
        if _commands(c, c.current):
            b.inputs.pcs_deaf = 1           # refused, unsent, unanswered: what it does now is not known
        if t != NULL:
            t.fails += 1
            if t.fails == LOST_AFTER:
                _blank(b, c, c.current)
        if result != RX_EXCEPTION:
            if result != RX_CRC:            # a broken answer is still an answer; anything else may yet come
                d.desync = 1
            d.fails += 1
            if d.fails >= LOST_AFTER or not s.alive or (t != NULL and t.kind == K_COMMAND and t.fails >= DEAF_AFTER):
                _lose(b, c, d, c.current_dev, now)
    c.current = IDLE
    c.current_fast = 0


# ---------------------------------------------------------------- requests

cdef void _send(Bus* b, ScanCtx* c, int what, int dev, bint fast, int64_t turnaround, int64_t deadline, int64_t now) noexcept nogil:
    """m.tx is framed: out with it, whole or not at all."""
    cdef int taken
    c.current = what
    c.current_dev = dev
    c.current_fast = fast
    taken = -1 if c.m.broken else b.send(b, c.m.tx, c.m.tx_len, now)
    if taken == c.m.tx_len:
        rtu_sent(&c.m, now, turnaround, deadline)
        if _commands(c, what):
            c.command_end_ns = c.m.tx_end_ns + c.m.path_ns // 2
    else:
        if c.m.mbap and taken > 0:
            c.m.broken = 1                  # half a frame in a stream: what followed would be read as its other half
            b.lost = 1
        rtu_abort(&c.m, now)
        _finish(b, c, RX_TIMEOUT, now)


cdef bint _unlike(const ScanCtx* c, const TxnRow* t) noexcept nogil:
    """Where slots are rare: does the answer to `t` differ from those to all requests of its device that were given up?"""
    cdef int i
    for i in range(c.m.given_n):
        if c.m.given[i].unit == t.unit and c.m.given[i].fc == t.fc and (t.wcount > 0 or c.m.given[i].count == t.count):
            return False
    return c.skips or c.carries


cdef bint _start(Bus* b, ScanCtx* c, int what, bint fast, int64_t limit, int64_t now) noexcept nogil:
    """Frame and send transaction `what`; its answer is waited for until the slack is over, at most until `limit`.
    False: nothing was sent (a value that is not finite)."""
    cdef TxnRow* t = &c.txn[what]
    cdef uint8_t data[256]
    cdef int64_t deadline = now + t.nominal_ns + c.slack_ns
    cdef int i
    for i in range(t.enc0, t.enc0 + t.n_enc):
        if encode(&c.enc[i], <const char*>b.outputs, data) < 0:
            return False
    if rtu_build(&c.m, t.unit, t.fc, t.addr, t.count, data, t.waddr, t.wcount) < 0:
        return False
    c.proves = _unlike(c, t)
    _send(b, c, what, t.dev, fast, t.turnaround_ns, deadline if deadline < limit else limit, now)
    return True


cdef bint _probe(Bus* b, ScanCtx* c, int dev, int64_t limit, int64_t now) noexcept nogil:
    """One to four registers: a count that no given-up request of this device had. The answer's length tells it from all late ones."""
    cdef DevRow* d = &c.dev[dev]
    cdef int i, k, n = d.probe_count
    cdef bint taken
    cdef int64_t deadline, nominal
    for k in range(4):
        n = n % 4 + 1
        taken = False
        for i in range(c.m.given_n):
            if c.m.given[i].unit == d.unit and c.m.given[i].fc == d.probe_fc and c.m.given[i].count == n:
                taken = True
        if not taken:
            break
    d.probe_count = n
    if rtu_build(&c.m, d.unit, d.probe_fc, d.probe_addr, n, NULL, 0, 0) < 0:
        return False
    nominal = c.m.lead_ns + (c.m.tx_len + c.m.ask.len) * c.m.char_ns + c.m.t35_ns + c.m.path_ns + d.turnaround_ns
    deadline = now + nominal + c.slack_ns
    if now + nominal + FIT_NS > limit:
        c.slots_missed += 1
        return False
    _send(b, c, PROBE, dev, False, d.turnaround_ns, deadline if deadline < limit else limit, now)
    return True


cdef int _asked(Bus* b, ScanCtx* c, DevRow* d, int64_t now) noexcept nogil:
    """What Outputs and the start sequence ask of a verified device outside the table; -1: nothing."""
    cdef const Outputs* o = b.outputs
    cdef int t
    if d.txn[K_ALARM_RESET] >= 0 and d.reset_seen != b.inputs.reset:
        return d.txn[K_ALARM_RESET]
    if o.op_request == OP_NONE:
        d.op_done = OP_NONE
    if o.rvrt_s > 0.0 and d.n_reversion > 0:
        if o.rvrt_s != d.rvrt_s:
            d.rvrt_s = o.rvrt_s
            d.reversion_next = 0
        if d.reversion_next < d.n_reversion and now >= d.again_ns:
            return d.reversion0 + d.reversion_next
    if o.op_request != OP_NONE and (o.op_request != d.op_done or now >= d.again_ns):
        if o.op_request == OP_STOP:
            return d.txn[K_OP_STOP]
        t = d.txn[K_OP_EXIT]
        if t >= 0 and b.inputs.pcs.pcs_state == STANDBY:
            return t
        return d.txn[K_OP_START]
    return -1


cdef inline int _of(Bus* b, ScanCtx* c, int64_t tick) noexcept nogil:
    """What the table in use has for a tick. Without FC23's answers, and while the device is started, the readback needs its slots."""
    if c.command23 >= 0 and c.fc23 == FC23_PROVEN and b.outputs.mode != MODE_STANDBY and _readable(b, &c.dev[c.txn[c.command].dev]):
        return c.slot23[tick % HYPER]
    return c.slot[tick % HYPER]


cdef int _command(Bus* b, ScanCtx* c, int64_t now) noexcept nogil:
    """The command as this tick takes it: with the readback, where neither this tick nor the one before has a slot and there is time."""
    if (c.command23 < 0 or c.fc23 == FC23_REFUSED or not _readable(b, &c.dev[c.txn[c.command].dev]) or c.slot_tick >= c.tick - 1
            or _of(b, c, c.tick) != SLOT_NONE or now + c.txn[c.command23].nominal_ns + FIT_NS > c.tick_t_ns + c.next_ns):
        return c.command
    return c.command23


cdef bint _slot(Bus* b, ScanCtx* c, int64_t now) noexcept nogil:
    """The slot of tick `slot_of`: a probe, a verify, what is asked, or what the table says. True: something was sent."""
    cdef int64_t limit = c.slot_t_ns + c.limit_ns
    cdef int i, dev, t = _of(b, c, c.slot_of)
    cdef bint due = False                   # a readback that has given its turns away
    cdef DevRow* d
    cdef DeviceStats* s
    if t == SLOT_NONE:
        if c.command < 0 or _commandable(b, &c.dev[c.txn[c.command].dev]):
            return False
        limit = c.slot_t_ns + c.next_ns     # a PCS that is not commanded leaves its place in the tick, to be proven again in
    else:
        due = t >= 0 and c.txn[t].readback and 0 < c.readback_ns < now - READBACK_NS and _commandable(b, &c.dev[c.txn[t].dev])
    if b.outputs.mode == MODE_STANDBY and c.n_hurry > 0 and not due and (t == SLOT_FREE or (t >= 0 and c.txn[t].kind == K_READ)):
        # The start sequence waits for what is else read once a second; of its slots every other one is enough for the rest. Where slots
        # are rare, not for the readback: a PCS that is not read is a lost one, and the start would begin again and again.
        c.hurry_turn ^= 1
        if c.hurry_turn:
            t = c.hurry[c.hurry_next]
            c.hurry_next = (c.hurry_next + 1) % c.n_hurry
    for i in range(c.n_dev):
        dev = (c.round + i) % c.n_dev
        d = &c.dev[dev]
        s = _stats(b, d)
        if (s.alive and d.desync) or (not s.alive and now >= s.retry_ns):
            if t >= 0 and c.txn[t].dev == dev and c.txn[t].kind == K_READ and _commandable(b, d) and _unlike(c, &c.txn[t]):
                continue
            c.round = dev + 1
            return _probe(b, c, dev, limit, now)
    for i in range(c.n_dev):
        d = &c.dev[i]
        s = _stats(b, d)
        if s.alive and d.n_verify > 0 and s.verified <= 0 and now >= d.again_ns:
            t = d.verify0 + d.verify_next
            break
        if s.alive and s.verified == 1 and not due and _asked(b, c, d, now) >= 0:
            t = _asked(b, c, d, now)
            break
    if t < 0:
        return False
    d = &c.dev[c.txn[t].dev]
    if c.txn[t].kind == K_READ and not _readable(b, d) and not _unlike(c, &c.txn[t]):
        return False
    if c.txn[t].kind != K_VERIFY and not _commandable(b, d):
        return False
    if c.txn[t].kind == K_RENEW and (not b.outputs.rvrt_s > 0.0 or b.outputs.gate != 1 or b.inputs.pcs_deaf):
        return False                        # the timer lives on commands that were taken: nothing else may keep old power alive
    if c.early and c.txn[t].readback:       # the kernel waits for it
        if not _start(b, c, t, True, INT64_MAX, now):
            return False
        b.fast_pending += c.current_fast
        return True
    if now + c.txn[t].nominal_ns + FIT_NS > limit:
        c.slots_missed += 1
        return False
    return _start(b, c, t, False, limit, now)


cdef void _pump(Bus* b, ScanCtx* c, int64_t now) noexcept nogil:
    """Send what is due next, if the line is free and has had its silence. Every turn sends, waits, or strikes something off."""
    cdef int t
    if c.m.broken:
        b.lost = 1                          # the connection is of no more use: the helper thread brings another
    while True:
        if c.m.state == RTU_WAIT:
            b.deadline_ns = c.m.deadline_ns
            return
        while c.fast_next < c.n_fast and not _readable(b, &c.dev[c.txn[c.fast[c.fast_next]].dev]):
            if c.skips and _commandable(b, &c.dev[c.txn[c.fast[c.fast_next]].dev]):
                break                       # an answer was given up, and slots are rare: the probe takes the fast read's place
            c.fast_next += 1
        if c.fast_next >= c.n_fast and not c.command_pending and not c.slot_pending:
            b.deadline_ns = INT64_MAX
            return
        if now < c.m.ready_ns:
            b.deadline_ns = c.m.ready_ns
            return
        if c.fast_next < c.n_fast:
            t = c.fast[c.fast_next]
            c.fast_next += 1
            if not _readable(b, &c.dev[c.txn[t].dev]):
                _probe(b, c, c.txn[t].dev, INT64_MAX, now)
                continue
            _start(b, c, t, True, INT64_MAX, now)
        elif c.command_pending and not (c.slot_pending and c.slot_of != c.tick):    # a slot of the tick before has its turn
            c.command_pending = 0
            if _commandable(b, &c.dev[c.txn[c.command].dev]):
                _start(b, c, _command(b, c, now), False, INT64_MAX, now)
            else:
                b.inputs.pcs_deaf = 1
        else:
            c.slot_pending = 0
            if _slot(b, c, now):
                c.slot_tick = c.slot_of


# ---------------------------------------------------------------- callbacks of struct Bus

cdef inline void _open_slot(ScanCtx* c) noexcept nogil:
    c.slot_pending = 1
    c.slot_of = c.tick
    c.slot_t_ns = c.tick_t_ns


cdef void _on_tick(Bus* b, int64_t tick, int64_t now) noexcept nogil:
    cdef ScanCtx* c = <ScanCtx*>b.ctx
    cdef int i
    c.m.stats = b.stats
    c.tick = tick
    c.tick_t_ns = b.inputs.t_ns
    if c.early:
        _open_slot(c)
    elif not c.carries:
        c.slot_pending = 0                  # else it begins once the last command is answered, which may be after this tick
    c.fast_next = 0
    b.fast_pending = 0
    c.current_fast = 0                      # an answer of the tick before is not what this one waits for
    if c.skips and c.slot_tick == tick - 1 and c.m.state == RTU_WAIT:
        c.fast_next = c.n_fast              # by plan: the slot before reaches into this tick
    for i in range(c.fast_next, c.n_fast):
        b.fast_pending += _readable(b, &c.dev[c.txn[c.fast[i]].dev])
    if b.fast_pending > 0 and (c.m.state == RTU_WAIT or now < c.m.ready_ns):
        b.stats.overruns += 1
    _pump(b, c, now)


cdef void _on_bytes(Bus* b, const uint8_t* buf, int n, int64_t now) noexcept nogil:
    cdef ScanCtx* c = <ScanCtx*>b.ctx
    cdef int result
    c.m.stats = b.stats
    result = rtu_feed(&c.m, buf, n, now)
    if result != RX_MORE:
        _finish(b, c, result, now)
    _pump(b, c, now)


cdef void _on_time(Bus* b, int64_t now) noexcept nogil:
    cdef ScanCtx* c = <ScanCtx*>b.ctx
    cdef int result
    c.m.stats = b.stats
    result = rtu_expire(&c.m, now)
    if result != RX_MORE:
        _finish(b, c, result, now)
    _pump(b, c, now)


cdef void _on_outputs(Bus* b, int64_t tick, int64_t now) noexcept nogil:
    """The kernel has stepped. Fast reads that have not even been sent by now would only delay the command."""
    cdef ScanCtx* c = <ScanCtx*>b.ctx
    c.m.stats = b.stats
    c.fast_next = c.n_fast
    b.fast_pending = 0
    c.current_fast = 0
    if c.command >= 0 and (b.outputs.gate != 1 or c.command_pending):
        b.inputs.pcs_deaf = b.outputs.gate == 1     # nothing is to get through; or the line was busy for all of the tick, and nothing has
    c.command_pending = c.command >= 0 and b.outputs.gate == 1
    if not c.early and not c.slot_pending:
        _open_slot(c)
    _pump(b, c, now)


cdef void _on_open(Bus* b, int64_t now) noexcept nogil:
    """The port is here (again): perhaps another adapter with other devices behind it. Everything is proven anew."""
    cdef ScanCtx* c = <ScanCtx*>b.ctx
    cdef int i
    c.m.stats = b.stats
    rtu_reset(&c.m, now)
    c.current = IDLE
    c.current_fast = 0
    c.fast_next = c.n_fast
    c.command_pending = 0
    c.slot_pending = 0
    b.fast_pending = 0
    for i in range(c.n_dev):
        c.dev[i].backoff = 0
        _lose(b, c, &c.dev[i], i, now)
        c.dev[i].backoff = 0
        _stats(b, &c.dev[i]).retry_ns = 0
    b.deadline_ns = INT64_MAX


# ---------------------------------------------------------------- Python's handle

cdef class BusScan(BusPort):
    """One bus of the plan, ready for the engine: BusScan(table), table a hal.plan.BusTable.

    The engine gives inputs, outputs, statistics and the wire (struct Bus). Raises ValueError for a table that is not of one piece.
    """

    def __cinit__(self, table):
        self.table = table
        self.name = table.spec.name
        self.c.current = IDLE
        self.c.command = table.command
        self.c.slot_tick = -2
        if table.spec.tcp:
            tcp_init(&self.c.m, round(1e6 * table.spec.latency_ms), 0, NULL)
        else:
            rtu_init(&self.c.m, table.spec.baud, table.spec.line.bits, table.spec.untimed, NULL)
            self.c.m.lead_ns = round(1e6 * table.spec.line.lead_ms)
        build_tables(&self.c, table)
        self.bus.ctx = &self.c
        self.bus.on_tick = _on_tick
        self.bus.on_bytes = _on_bytes
        self.bus.on_time = _on_time
        self.bus.on_outputs = _on_outputs
        self.bus.on_open = _on_open

    def __dealloc__(self):
        free_tables(&self.c)

    @property
    def command_end_ns(self):
        """When the last command's last bit left the wire (ns of the engine's clock); 0: none yet."""
        return self.c.command_end_ns

    @property
    def slots_missed(self):
        """After-slots that no longer fitted their tick (the fast part was late)."""
        return self.c.slots_missed


def compile_site(buses, devices, maps=None, timing=None):
    """(Plan, [BusScan or CanScan, ...] in the order of `buses`), ready for the engine; arguments of hal.plan.plan_site. Raises PlanError."""
    from hal.plan import SiteTiming, plan_site

    plan = plan_site(buses, devices, maps, timing or SiteTiming())
    return plan, [_port(table) for table in plan.tables]


def _port(table):
    from hal.canplan import CanTable

    if isinstance(table, CanTable):
        from hal.canscan import CanScan

        return CanScan(table)
    return BusScan(table)
