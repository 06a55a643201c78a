"""The converter's own control: states, commands with dead time, reversion timer.

A setpoint write is detected 3.5 characters after its last bit; dead time later it becomes the acting target, and the
terminals follow with lag and slew (physics.pyx). SunSpec 704 as the device sees it: WSetEna, WSetMod, WSet act
together; WSetRvrtTms starts the timer, at its end WSetRvrt acts at the device's own ramp and WSetEna falls to 0.
Whether a setpoint write renews the timer is unsettled between devices: `pcs.setpoint_renews`.
"""

from libc.math cimport fabs, fmax, fmin, sqrt
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint16_t, uint32_t

from bench.plant.physics cimport log_event, new_seg, present, seg_t90_ns
from bench.plant.state cimport (
    CMD_QUEUE,
    EV_COMMAND_DROPPED,
    EV_PCS_STATE,
    EV_REVERSION,
    PCS_FAULT,
    PCS_OFF,
    PCS_RUNNING,
    PCS_STANDBY,
    PCS_STARTING,
    PCS_THROTTLED,
    Command,
    P_grid_connected,
    P_pcs_dead_time_s,
    P_pcs_fault,
    P_pcs_gain,
    P_pcs_ignore_commands,
    P_pcs_initial_rvrt_s,
    P_pcs_initial_state,
    P_pcs_initial_wset_w,
    P_pcs_own_ramp_w_per_s,
    P_pcs_s_rated_va,
    P_pcs_setpoint_renews,
    P_pcs_slew_w_per_s,
    P_pcs_start_s,
    P_pcs_tau_s,
    Pcs,
    Plant,
    Seg,
    Truth,
)


cdef inline uint16_t* _regs(Plant* p) noexcept nogil:
    return p.dev[p.pcs_dev].regs


cdef inline int32_t _i32(const uint16_t* r) noexcept nogil:
    return <int32_t>((<uint32_t>r[0] << 16) | r[1])


cdef double _own_ramp_w_per_s(Plant* p) noexcept nogil:
    return p.par[P_pcs_own_ramp_w_per_s] if p.par[P_pcs_own_ramp_w_per_s] > 0.0 else p.par[P_pcs_s_rated_va]


cdef int _dc_and_grid(Plant* p) noexcept nogil:
    return p.bat.closed and p.par[P_grid_connected] != 0.0


cdef int pcs_shown_state(Plant* p) noexcept nogil:
    """701.InvSt: a clamped setpoint shows as THROTTLED."""
    return PCS_THROTTLED if p.pcs.state == PCS_RUNNING and p.pcs.throttled else p.pcs.state


cdef void _set_state(Plant* p, int64_t t_ns, int state) noexcept nogil:
    if p.pcs.state != state:
        p.pcs.state = state
        log_event(p, t_ns, EV_PCS_STATE, state)


cdef void _retarget(Plant* p, int64_t t_ns, double slew_w_per_s, int jump, int64_t log_i) noexcept nogil:
    """Recompute what the terminals head for, and bend the trajectory there.

    log_i >= 0: a command takes effect, its 90 % instant is entered. The command before it, if still short of 90 %,
    never gets there: -1.
    """
    cdef Pcs* c = &p.pcs
    cdef Truth* tr = &p.truth
    cdef double target_w = 0.0, q_var = 0.0, s_va = p.par[P_pcs_s_rated_va]
    cdef Seg* s = present(p)
    c.throttled = 0
    if c.state == PCS_RUNNING:
        if c.active:
            target_w = fmin(fmax(c.active_w, -s_va), s_va)
            c.throttled = target_w != c.active_w
            target_w *= p.par[P_pcs_gain]
        q_var = fmin(fabs(c.active_q_var), sqrt(fmax(s_va * s_va - target_w * target_w, 0.0)))     # P has priority
        if c.active_q_var < 0.0:
            q_var = -q_var
    if c.open_log_i >= 0 and (log_i >= 0 or s.target_w != target_w or jump):
        if tr.cmd_t90_ns[c.open_log_i] > t_ns:
            tr.cmd_t90_ns[c.open_log_i] = -1
        c.open_log_i = -1
    new_seg(p, t_ns, target_w, slew_w_per_s, q_var, jump)
    if log_i >= 0 and c.state == PCS_RUNNING:
        tr.cmd_effect_ns[log_i] = t_ns
        tr.cmd_t90_ns[log_i] = seg_t90_ns(present(p))
        c.open_log_i = log_i


cdef void pcs_init(Plant* p) noexcept nogil:
    """State at start; a running converter stands at its live setpoint already (adoption)."""
    cdef Pcs* c = &p.pcs
    cdef uint16_t* r
    cdef int32_t w
    c.open_log_i = -1
    c.start_done_ns = INT64_MAX
    c.rvrt_ns = INT64_MAX
    c.state = <int>p.par[P_pcs_initial_state]
    if p.pcs_dev < 0 or not _dc_and_grid(p):
        c.state = PCS_STANDBY if c.state != PCS_OFF else PCS_OFF
    if c.state == PCS_THROTTLED:
        c.state = PCS_RUNNING
    if p.pcs_dev >= 0 and c.state == PCS_RUNNING:
        r = _regs(p) + R704
        w = <int32_t>p.par[P_pcs_initial_wset_w]
        r[22] = 1
        r[24] = <uint16_t>(<uint32_t>w >> 16)
        r[25] = <uint16_t>(<uint32_t>w & 0xFFFF)
        c.active = 1
        c.active_w = w
        if p.par[P_pcs_initial_rvrt_s] > 0.0:
            r[30] = 1
            r[31] = 0
            r[32] = <uint16_t>p.par[P_pcs_initial_rvrt_s]
            pcs_restart_timer(p, p.t0_ns)
    _retarget(p, p.t0_ns, 0.0, 1, -1)


cdef void _stop(Plant* p, int64_t t_ns, int state, int jump) noexcept nogil:
    p.pcs.start_done_ns = INT64_MAX
    _set_state(p, t_ns, state)
    _retarget(p, t_ns, 0.0, jump, -1)


cdef void pcs_refresh(Plant* p, int64_t t_ns) noexcept nogil:
    """A parameter, the grid or the contactors changed: stop at once where power has nowhere to go, else carry on from
    here.
    """
    cdef Pcs* c = &p.pcs
    if p.par[P_pcs_fault] != 0.0:
        if c.state != PCS_FAULT:
            _stop(p, t_ns, PCS_FAULT, 1)
            return
    elif c.state == PCS_FAULT:
        _stop(p, t_ns, PCS_STANDBY, 1)
        return
    if (c.state == PCS_RUNNING or c.state == PCS_STARTING) and not _dc_and_grid(p):
        _stop(p, t_ns, PCS_STANDBY, 1)
        return
    _retarget(p, t_ns, present(p).slew_w_per_s, 0, -1)


cdef void pcs_operate(Plant* p, int64_t t_ns, int op) noexcept nogil:
    """715.OpCtl. A start without grid or DC is acknowledged and leads nowhere, as on devices."""
    cdef Pcs* c = &p.pcs
    if c.state == PCS_FAULT:
        return
    if op == OP_STOP:
        _stop(p, t_ns, PCS_OFF, 0)
    elif op == OP_ENTER_STANDBY:
        _stop(p, t_ns, PCS_STANDBY, 0)
    elif c.state == PCS_RUNNING or c.state == PCS_STARTING or not _dc_and_grid(p):
        return
    elif op == OP_START or c.state == PCS_STANDBY:          # EXIT_STANDBY does not wake a converter that is off
        _set_state(p, t_ns, PCS_STARTING)
        c.start_done_ns = t_ns + <int64_t>(p.par[P_pcs_start_s] * 1e9)


cdef void pcs_restart_timer(Plant* p, int64_t t_ns) noexcept nogil:
    """Run the reversion timer from its full length, or not at all when the registers say so."""
    cdef uint16_t* r = _regs(p) + R704
    cdef int64_t tms_s = (<int64_t>r[31] << 16) | r[32]
    if r[22] == 1 and r[30] == 1 and tms_s > 0:
        p.pcs.rvrt_ns = t_ns + tms_s * 1_000_000_000
    else:
        p.pcs.rvrt_ns = INT64_MAX


cdef int64_t _log_command(Plant* p, int64_t end_ns, double value_w) noexcept nogil:
    cdef Truth* tr = &p.truth
    cdef int64_t i = tr.cmd_n
    if i >= tr.cmd_cap:
        return -1
    tr.cmd_end_ns[i] = end_ns
    tr.cmd_value_w[i] = value_w
    tr.cmd_effect_ns[i] = -1
    tr.cmd_t90_ns[i] = -1
    tr.cmd_n += 1
    return i


cdef void pcs_command(Plant* p, int64_t detect_ns, int64_t end_ns) noexcept nogil:
    """The setpoint registers were written (last bit at end_ns, detected at detect_ns): queue what they say for after
    the dead time.
    """
    cdef Pcs* c = &p.pcs
    cdef uint16_t* r = _regs(p) + R704
    cdef int i
    cdef Command* q
    cdef double w = _i32(r + 24)
    if r[23] == 0:          # W_MAX_PCT: WSetPct in 0.01 %
        w = <short>r[28] * 1e-4 * p.par[P_pcs_s_rated_va]
    if r[22] != 1:
        c.rvrt_ns = INT64_MAX
    elif c.rvrt_ns == INT64_MAX or p.par[P_pcs_setpoint_renews] != 0.0:
        pcs_restart_timer(p, detect_ns)
    if c.q_n == CMD_QUEUE:
        log_event(p, detect_ns, EV_COMMAND_DROPPED, c.queue[0].value_w)
        for i in range(1, CMD_QUEUE):
            c.queue[i - 1] = c.queue[i]
        c.q_n -= 1
    q = &c.queue[c.q_n]
    q.t_ns = detect_ns + <int64_t>(p.par[P_pcs_dead_time_s] * 1e9)
    if c.q_n > 0 and q.t_ns < c.queue[c.q_n - 1].t_ns:
        q.t_ns = c.queue[c.q_n - 1].t_ns        # dead time was shortened meanwhile: keep the order
    q.enabled = r[22] == 1
    q.value_w = w
    q.q_var = <double>_i32(r + 38) if r[35] == 1 and r[36] == 4 else 0.0
    q.log_i = _log_command(p, end_ns, w if q.enabled else 0.0)
    if p.par[P_pcs_ignore_commands] == 0.0:
        c.q_n += 1


cdef void _activate(Plant* p, int64_t t_ns) noexcept nogil:
    cdef Pcs* c = &p.pcs
    cdef Command cmd = c.queue[0]
    cdef int i
    for i in range(1, c.q_n):
        c.queue[i - 1] = c.queue[i]
    c.q_n -= 1
    c.active = cmd.enabled
    c.active_w = cmd.value_w
    c.active_q_var = cmd.q_var
    _retarget(p, t_ns, p.par[P_pcs_slew_w_per_s] if cmd.enabled else _own_ramp_w_per_s(p), 0, cmd.log_i)


cdef void _revert(Plant* p, int64_t t_ns) noexcept nogil:
    cdef uint16_t* r = _regs(p) + R704
    p.pcs.rvrt_ns = INT64_MAX
    r[22] = 0
    p.pcs.active = 1
    p.pcs.active_w = _i32(r + 26)
    p.pcs.q_n = 0           # what was still in its dead time belongs to the enabled time that just ended
    log_event(p, t_ns, EV_REVERSION, p.pcs.active_w)
    _retarget(p, t_ns, _own_ramp_w_per_s(p), 0, -1)


cdef int64_t pcs_next(Plant* p) noexcept nogil:
    cdef int64_t t = p.pcs.start_done_ns
    if p.pcs.rvrt_ns < t:
        t = p.pcs.rvrt_ns
    if p.pcs.q_n > 0 and p.pcs.queue[0].t_ns < t:
        t = p.pcs.queue[0].t_ns
    return t


cdef void pcs_run(Plant* p, int64_t t_ns) noexcept nogil:
    """Handle what is due exactly at t (the event loop calls for one instant at a time)."""
    cdef Pcs* c = &p.pcs
    if c.start_done_ns <= t_ns:
        c.start_done_ns = INT64_MAX
        _set_state(p, t_ns, PCS_RUNNING)
        _retarget(p, t_ns, _own_ramp_w_per_s(p), 0, -1)
    elif c.rvrt_ns <= t_ns:
        _revert(p, t_ns)
    elif c.q_n > 0 and c.queue[0].t_ns <= t_ns:
        _activate(p, t_ns)
