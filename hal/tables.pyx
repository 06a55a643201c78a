"""From the plan's plain data to C tables. Header: tables.pxd. Runs before control starts; nothing here is called at run time."""

from libc.math cimport NAN
from libc.stdint cimport int32_t, uint16_t
from libc.stdlib cimport calloc, free

from hal.codec cimport DecodeRow, EncodeRow, fill_decode, fill_encode

from _core.image import SIGNALS
from hal.rows import RATES, READBACK

KINDS = ("read", "verify", "command", "heartbeat", "reversion", "renew", "op_start", "op_exit_standby", "op_stop", "alarm_reset")


cdef object build_tables(ScanCtx* c, object table):
    """Fill a zeroed ScanCtx from a hal.plan.BusTable. Raises ValueError for a table that is not of one piece."""
    _allocate(c, table)
    _fill(c, table)
    _fill_parts(c, table)


cdef void free_tables(ScanCtx* c) noexcept nogil:
    free(c.txn)
    free(c.dev)
    free(c.dec)
    free(c.dec_part)
    free(c.enc)
    free(c.part)
    free(c.group)
    free(c.words)


cdef void* _alloc(size_t n, size_t size) except NULL:
    cdef void* p = calloc(n if n > 0 else 1, size)
    if p == NULL:
        raise MemoryError(f"{n} rows")
    return p


cdef object _allocate(ScanCtx* c, table):
    n_dec = sum(len(t.fields) for t in table.txns)
    if len(table.fast) > MAX_FAST or len(table.slots) != HYPER:
        raise ValueError(f"bus {table.spec.name}: {len(table.fast)} fast reads (at most {MAX_FAST}), {len(table.slots)} slots ({HYPER})")
    c.txn = <TxnRow*>_alloc(len(table.txns), sizeof(TxnRow))
    c.dev = <DevRow*>_alloc(len(table.txns), sizeof(DevRow))
    c.dec = <DecodeRow*>_alloc(n_dec, sizeof(DecodeRow))
    c.dec_part = <int32_t*>_alloc(n_dec, sizeof(int32_t))
    c.enc = <EncodeRow*>_alloc(sum(len(t.encodes) for t in table.txns), sizeof(EncodeRow))
    c.part = <PartRow*>_alloc(n_dec, sizeof(PartRow))
    c.group = <GroupRow*>_alloc(n_dec, sizeof(GroupRow))
    c.words = <uint16_t*>_alloc(sum(len(t.verify) for t in table.txns), sizeof(uint16_t))


cdef object _fill(ScanCtx* c, table):
    cdef TxnRow* row
    cdef int i, j, n_dec = 0, n_enc = 0, n_word = 0
    for i, t in enumerate(table.txns):
        row = &c.txn[i]
        row.dev = _device(c, t, i)
        row.kind = KINDS.index(t.kind)
        row.readback = t.rate == READBACK
        row.unit, row.fc, row.addr, row.count, row.waddr, row.wcount = t.unit, t.fc, t.addr, t.count, t.waddr, t.wcount
        row.nominal_ns = round(t.wire.nominal_ms * 1e6)
        row.turnaround_ns = round(t.wire.turnaround_ms * 1e6)
        row.answer_ns = round(t.wire.answer_ms * 1e6)
        row.back_ns = round(0.5e6 * (t.window_ms + t.update_ms))
        row.sample_answer = t.sample == "answer"
        row.dec0, row.n_dec, row.enc0, row.n_enc, row.word0 = n_dec, len(t.fields), n_enc, len(t.encodes), n_word
        # Fields of one group lie together, so that a group is stamped once an answer.
        for f in sorted(t.fields, key=lambda f: SIGNALS[f.signal][1]):
            if not 0 <= f.addr - t.addr <= t.count - f.words:
                raise ValueError(f"{t.what}: {f.signal} at {f.addr} lies outside")
            fill_decode(&c.dec[n_dec], f, t.addr)
            n_dec += 1
        for e in t.encodes:
            if not 0 <= e.addr - t.waddr <= t.wcount - e.words:
                raise ValueError(f"{t.what}: register {e.addr} lies outside")
            fill_encode(&c.enc[n_enc], e, t.waddr)
            n_enc += 1
        for w in t.verify:
            c.words[n_word] = w
            n_word += 1
    c.n_txn = len(table.txns)
    c.n_fast = len(table.fast)
    for i in range(c.n_fast):
        c.fast[i] = table.fast[i]
    c.fast_next = c.n_fast
    for i in range(HYPER):
        c.slot[i] = table.slots[i]
        c.slot23[i] = table.slots23[i] if table.slots23 else SLOT_NONE
    c.command23, c.fc23, c.next_ns = table.command23, FC23_UNTRIED, round(table.next_ms * 1e6)
    for i in range(c.n_txn):
        if c.txn[i].kind == 0 and i not in table.fast and not c.txn[i].readback and c.n_hurry < MAX_HURRY:
            c.hurry[c.n_hurry] = i
            c.n_hurry += 1
    c.early, c.skips, c.carries = table.early, table.skips, table.carries
    c.limit_ns, c.slack_ns = round(table.limit_ms * 1e6), round(table.slack_ms * 1e6)


cdef int _device(ScanCtx* c, t, int i) except -1:
    """The DevRow of a transaction's device; transactions of a device and kind that come in numbers must lie together."""
    cdef DevRow* d
    cdef int k, n, kind = KINDS.index(t.kind)
    for k in range(c.n_dev):
        if c.dev[k].index == t.device:
            break
    else:
        k = c.n_dev
        c.n_dev += 1
        d = &c.dev[k]
        d.index, d.unit, d.rvrt_s = t.device, t.unit, NAN
        d.desync = 1
        for n in range(N_KINDS):
            d.txn[n] = -1
    d = &c.dev[k]
    d.turnaround_ns = max(d.turnaround_ns, round(t.wire.turnaround_ms * 1e6))
    if t.count and d.probe_fc == 0 and t.fc != 23:
        d.probe_fc, d.probe_addr = t.fc, t.addr
    if d.txn[kind] < 0:
        d.txn[kind] = i
    if kind == K_VERIFY:
        if d.n_verify == 0:
            d.verify0 = i
        if d.verify0 + d.n_verify != i:
            raise ValueError(f"{t.what}: verify transactions of a device must follow each other")
        d.n_verify += 1
    if kind == K_REVERSION:
        if d.n_reversion == 0:
            d.reversion0 = i
        if d.reversion0 + d.n_reversion != i:
            raise ValueError(f"{t.what}: reversion writes of a device must follow each other")
        d.n_reversion += 1
    return k


cdef object _fill_parts(ScanCtx* c, table):
    """Which transactions make up which group; those of its fastest rate stamp it."""
    cdef int n_group = 0, n_part = 0
    order = {r: k for k, r in enumerate(RATES)}
    by_group = {}
    # What comes with a command feeds the same parts as the read it stands for: the same values, whichever brings them.
    alike = {}
    for i, t in enumerate(table.txns):
        if i == table.command23:
            alike[i] = next(j for j, other in enumerate(table.txns) if other.kind == "read" and other.fields == t.fields)
            continue
        for f in t.fields:
            by_group.setdefault(SIGNALS[f.signal][1], {})[i] = order[t.rate]
    found = {}
    for offset, txns in by_group.items():
        c.group[n_group].offset = offset
        c.group[n_group].part0 = n_part
        c.group[n_group].n_part = len(txns)
        for i, rate in txns.items():
            c.part[n_part].group = n_group
            c.part[n_part].owner = rate == min(txns.values())
            found[i, offset] = n_part
            n_part += 1
        n_group += 1
    c.n_part = n_part
    for i, t in enumerate(table.txns):
        for j, f in enumerate(sorted(t.fields, key=lambda f: SIGNALS[f.signal][1])):
            c.dec_part[c.txn[i].dec0 + j] = found[alike.get(i, i), SIGNALS[f.signal][1]]
