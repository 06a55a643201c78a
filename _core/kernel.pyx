"""The kernel: step(inputs, limits, state) -> outputs. Pure, bounded, no allocation, no clock of its own.

The order of step() is the order of control; each stage below has the number that design and documentation give it.
No libm beyond sqrt, no fused multiply-add: two machines agree to the last bit.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from _core.image cimport *
from _core.laws cimport (
    clamp, decay, droop, finite, lag, larger, minus, q_room, shave, slew, slew_from_zero, smaller, taper, to_ns, volt_var,
)

from _core import image as _image
from _core.faults import FAULTS, masks as _masks

cdef double NAN = float("nan")
cdef double INF = float("inf")

cdef enum:
    PCS_STARTING = 2
    PCS_RUNNING = 3
    PCS_THROTTLED = 4
    PCS_FAULTED = 6
    BMS_CONNECTED = 3
    BMS_FAULTED = 99

cdef double HEARTBEAT_S = 3.0           # a PCS started cold shows a moving heartbeat for so long
cdef double CLEAN_S = 5.0               # the cause of a fault is gone for so long before an automatic reset
cdef double STOP_MOST_S = 55.0          # ramp of a SIGTERM; a park takes the time that the ramp limit asks for
cdef double PROVED_S = 10.0             # GRID for so long counts as a clean GRID
cdef int64_t HOUR_NS = 3600 * 1000000000
cdef double RB_TIME_S = 1.0             # readback corrects the model's slow error with this time constant
cdef double ALIGN_TIME_S = 10.0         # memory of the on-line alignment estimate
cdef double AHEAD_S = 0.1               # a value may stand for an instant so far after the step
cdef double OBSERVE_S = 0.02            # from this lag on the model is corrected by what the readback shows
cdef double OBSERVE = 0.3
cdef double RING_MEMORY = 20.0          # memory of the ringing detector
cdef double RING_LEVEL = 0.002          # ringing below this share of rating (root mean square a tick) is let alone
cdef double RING_SHARE = 0.35           # so much of it must come back with the other sign
cdef uint32_t RING_HOT = 8             # ticks of it until the assumed error trebles
cdef uint32_t RING_CALM = 6000          # ticks of calm until it halves
cdef uint32_t SIGN_BLOCK = 10           # samples in a block of the sign check
cdef double SOC_TAPER = 0.01            # the last point of SoC before a limit


# What follows from an alarm is said in faults.py alone; a table that contradicts itself or the contract ends the import here.
_made = _masks(FAULTS, {name: bit for name, bit in vars(_image).items() if name.startswith("ALM_")})
cdef uint32_t TO_FAULT = _made.fault    # alarms that lead to FAULT
cdef uint32_t TO_TRIP = _made.trip      # and to TRIP
cdef uint32_t PERSON = _made.person     # and those whose FAULT ends by a person's reset only
cdef uint32_t ACTS = TO_FAULT | TO_TRIP


ctypedef struct Work:                   # what one step hands from stage to stage
    double dt_s
    double net_w                        # what grid and battery carry together: load - pv - gen
    double dis_w                        # device limits of this tick, as magnitudes: SoC, temperature, PCS, BMS
    double cha_w
    double ref_before_w
    uint64_t dis_why                    # which limit set them
    uint64_t cha_why
    double sample_s                     # between the last two meter values
    double share                        # of the power wanted that the ramp to 0 leaves: 1, less in STOP
    uint64_t flags
    int32_t fresh                       # a new meter value came since the last step
    int32_t meter_ok
    int32_t meter_gone
    int32_t frozen
    int32_t bms_ok                      # not lost
    int32_t bms_now                     # and good at this tick
    int32_t pcs_ok
    int32_t grid_ok
    int32_t following                   # the reference was moved by the ramp in this step
    uint32_t causes                     # alarms whose cause stands now


cdef inline double age_s(const Inputs* i, const Group* g) noexcept nogil:
    """Age of a group at this step; inf when it never answered well, or claims to be from the future (it would never grow old)."""
    cdef double age
    if g.t_ns == 0 or g.quality != Q_GOOD:
        return INF
    age = <double>minus(i.step_t_ns, g.t_ns) * 1e-9
    return age if age >= -AHEAD_S else INF


cdef inline double since_s(const Inputs* i, int64_t t_ns) noexcept nogil:
    return <double>minus(i.t_ns, t_ns) * 1e-9


cdef inline bint good(const Inputs* i, int64_t t_ns, double within_s) noexcept nogil:
    """Was it good within that time? Never is not."""
    return t_ns != 0 and <double>minus(i.step_t_ns, t_ns) * 1e-9 <= within_s


# ---------------------------------------------------------------- 1. judge

cdef inline void judge(const Inputs* i, const Site* s, State* st, Work* w) noexcept nogil:
    """Age and plausibility of every group; nothing stale or impossible passes as a measurement."""
    cdef const Meter* m = &i.meter
    cdef double age, low, high
    cdef int k
    cdef double[6] now
    w.dt_s = clamp(since_s(i, st.last_t_ns), 0.0, 1.0) if st.last_t_ns else 0.0
    st.last_t_ns = i.t_ns

    age = age_s(i, &m.g)
    w.meter_ok = age <= s.meter_hold_s and finite(m.grid_p_w) and -8.0 * s.feeder_w <= m.grid_p_w <= 8.0 * s.feeder_w
    w.fresh = w.meter_ok and m.g.count != st.last_meter_count
    if w.fresh:
        w.sample_s = clamp(<double>minus(m.g.t_ns, st.last_meter_t_ns) * 1e-9, 0.0, 1.0)
        st.last_meter_t_ns = m.g.t_ns
        now[0] = m.grid_p_w; now[1] = m.q_var; now[2] = m.v1_v; now[3] = m.v2_v; now[4] = m.v3_v; now[5] = m.f_hz
        for k in range(6):
            if now[k] != st.last_meter[k] and (now[k] == now[k] or st.last_meter[k] == st.last_meter[k]):
                st.frozen_since_ns = i.t_ns
            st.last_meter[k] = now[k]
        st.last_meter_count = m.g.count
    # gone: nothing believable for too long, be it silence or nonsense; one bad answer is only not ok
    w.meter_gone = st.last_meter_t_ns == 0 or <double>minus(i.step_t_ns, st.last_meter_t_ns) * 1e-9 > s.meter_lost_s
    if not w.meter_ok:
        # silence and nonsense are another alarm's business: their time does not count
        st.frozen_since_ns = minus(st.frozen_since_ns, -to_ns(w.dt_s))
    elif s.frozen_s > 0.0 and since_s(i, st.frozen_since_ns) > s.frozen_s:
        w.meter_ok = 0
        w.fresh = 0
        if since_s(i, st.frozen_since_ns) > s.frozen_s + s.meter_lost_s or st.mode == MODE_STANDBY:
            w.meter_gone = 1
            w.frozen = 1

    # lost: nothing good for so long. One answer with a sentinel in it is not: what it leaves empty binds as 0, below
    w.bms_now = 1
    if age_s(i, &i.bms.g) <= s.bms_lost_s and -0.05 <= i.bms.soc <= 1.05:
        st.bms_good_ns = i.bms.g.t_ns
    elif s.has_bms:
        w.bms_now = 0
    if age_s(i, &i.bms_lim.g) <= s.bms_lost_s:
        st.bms_lim_good_ns = i.bms_lim.g.t_ns
    elif s.has_bms_limits:
        w.bms_now = 0
    if age_s(i, &i.pcs.g) <= s.pcs_lost_s and -8.0 * s.s_rated_va <= i.pcs.batt_p_w <= 8.0 * s.s_rated_va:
        st.pcs_good_ns = i.pcs.g.t_ns
    w.bms_ok = (not s.has_bms or good(i, st.bms_good_ns, s.bms_lost_s)) and (not s.has_bms_limits or good(i, st.bms_lim_good_ns, s.bms_lost_s))
    w.pcs_ok = good(i, st.pcs_good_ns, s.pcs_lost_s)
    if not i.pcs_deaf:
        st.deaf_since_ns = 0
    elif st.deaf_since_ns == 0:
        st.deaf_since_ns = i.t_ns

    # The grid's window. No opinion without a fresh meter.
    if w.fresh:
        low = s.v_min_pu * s.v_nom_v
        high = s.v_max_pu * s.v_nom_v
        w.grid_ok = not (m.f_hz < s.f_min_hz or m.f_hz > s.f_max_hz or m.v1_v < low or m.v2_v < low or m.v3_v < low
                         or m.v1_v > high or m.v2_v > high or m.v3_v > high)
        if w.grid_ok:
            st.bad_since_ns = 0
            if st.good_since_ns == 0:
                st.good_since_ns = i.t_ns
        else:
            st.good_since_ns = 0
            if st.bad_since_ns == 0:
                st.bad_since_ns = i.t_ns
    else:
        w.grid_ok = st.bad_since_ns == 0
        if not w.meter_ok:
            st.good_since_ns = 0                # nobody saw the grid: the enter-service delay begins again


# ---------------------------------------------------------------- 1b. modes

cdef inline void enter(State* st, const Inputs* i, int mode) noexcept nogil:
    st.mode = mode
    st.mode_since_ns = i.t_ns
    st.start_step = START_DEVICES
    st.step_since_ns = i.t_ns
    st.clean_since_ns = 0
    st.follow_since_ns = 0
    st.parked = 0
    if mode == MODE_STANDBY:
        st.adopt = 0
        st.hb_first_ns = 0


cdef inline void fault(State* st, const Inputs* i, uint32_t alarm) noexcept nogil:
    st.alarms |= alarm
    if st.mode != MODE_FAULT:
        # in TRIP what GRID proved before it still counts
        if alarm & PERSON:
            st.was_clean = 0
        elif st.mode != MODE_TRIP:
            st.was_clean = st.mode == MODE_GRID and since_s(i, st.mode_since_ns) >= PROVED_S
        enter(st, i, MODE_FAULT)


cdef inline void trip(State* st, const Inputs* i, uint32_t alarm) noexcept nogil:
    st.alarms |= alarm
    st.was_clean = st.mode == MODE_GRID and since_s(i, st.mode_since_ns) >= PROVED_S
    st.tripped = 1
    enter(st, i, MODE_TRIP)


cdef inline void react(State* st, const Inputs* i, Work* w, uint32_t alarm) noexcept nogil:
    """What the table of faults says follows from alarms of this tick."""
    w.causes |= alarm
    if alarm & TO_FAULT:
        fault(st, i, alarm & ACTS)
    elif alarm & TO_TRIP:
        trip(st, i, alarm & ACTS)


cdef inline uint32_t unseen(const Site* s, const State* st) noexcept nogil:
    """Alarms of devices that have not answered since the start: absent yet, not lost."""
    cdef uint32_t a = 0
    if st.last_meter_t_ns == 0:
        a |= ALM_METER_LOST
    if st.pcs_good_ns == 0:
        a |= ALM_PCS_LOST
    if (s.has_bms and st.bms_good_ns == 0) or (s.has_bms_limits and st.bms_lim_good_ns == 0):
        a |= ALM_BMS_LOST
    return a


cdef inline uint32_t causes(const Inputs* i, const Site* s, State* st, const Work* w) noexcept nogil:
    """Alarms whose cause stands now."""
    cdef uint32_t a = 0
    if w.meter_gone:
        a |= ALM_METER_FROZEN if w.frozen else ALM_METER_LOST
    if not w.pcs_ok:
        a |= ALM_PCS_LOST
    elif i.pcs.pcs_state == PCS_FAULTED:
        a |= ALM_PCS_FAULT
    if not w.bms_ok:
        a |= ALM_BMS_LOST
    elif s.has_bms and (i.bms.bms_state == BMS_FAULTED or (st.mode == MODE_GRID and i.bms.g.quality == Q_GOOD
                                                             and i.bms.bms_state != BMS_CONNECTED)):
        a |= ALM_BMS_FAULT                      # faulted, or its contactors have opened under way
    if s.has_pcs_life and i.pcs_life.g.count and i.pcs_life.pcs_local == 1.0:
        a |= ALM_PCS_LOCAL
    if i.verified < 0:
        a |= ALM_IDENTITY
    if w.pcs_ok and st.deaf_since_ns and since_s(i, st.deaf_since_ns) > s.pcs_lost_s:
        a |= ALM_PCS_NOT_FOLLOWING              # it answers, and takes no command
    return a


cdef inline void start(const Inputs* i, const Site* s, State* st, const Work* w, Outputs* o) noexcept nogil:
    """The start sequence, one condition a step; each step is left only by proof."""
    cdef bint live = i.pcs.pcs_state == PCS_RUNNING or i.pcs.pcs_state == PCS_THROTTLED
    cdef bint bms_closed = not s.has_bms or (w.bms_ok and i.bms.bms_state == BMS_CONNECTED)
    cdef bint beat = finite(i.pcs_life.pcs_heartbeat) and i.pcs_life.pcs_heartbeat != st.last_hb
    cdef int before = st.start_step
    if not (w.meter_ok and w.pcs_ok and w.bms_ok and i.verified == 1 and causes(i, s, st, w) & ACTS == 0):
        st.start_step = START_DEVICES
    elif st.adopt and st.start_step > START_DEVICES and (not live or (s.has_pcs_ctl and i.pcs_ctl.wset_ena != 1.0)):
        st.start_step = START_DEVICES           # it stopped or reverted by itself: nothing is left to adopt
    elif st.start_step == START_DEVICES:
        # what the converter was told before us must have been read: on it hangs whether it is adopted
        if (not s.has_pcs_ctl or i.pcs_ctl.g.count) and (not s.has_pcs_life or i.pcs_life.g.count):
            st.adopt = live and (not s.has_pcs_ctl or i.pcs_ctl.wset_ena == 1.0) and st.bad_since_ns == 0 and not st.tripped
            st.start_step = START_REVERSION
    elif st.start_step == START_REVERSION:
        if not s.has_pcs_ctl or (age_s(i, &i.pcs_ctl.g) < 3.0 and i.pcs_ctl.g.t_ns > st.step_since_ns and i.pcs_ctl.wset_rvrt_ena == 1.0
                                 and i.pcs_ctl.wset_rvrt_w == 0.0 and abs_w(i.pcs_ctl.wset_rvrt_s - s.pcs_rvrt_s) < 1.0):
            st.start_step = START_BMS
    elif st.start_step == START_BMS:
        if not bms_closed and s.has_bms:
            o.op_request = OP_START
        elif w.dis_w > 0.0 or w.cha_w > 0.0:
            st.start_step = START_HEARTBEAT
            st.hb_first_ns = 0
    elif st.start_step == START_HEARTBEAT:
        if not s.has_pcs_life:
            st.start_step = START_OPERATE
        elif beat:
            if (st.hb_first_ns == 0 or since_s(i, st.hb_t_ns) > HEARTBEAT_S) and i.pcs_life.g.count > 1:
                st.hb_first_ns = i.t_ns         # it has to go on moving: a pause begins the wait again
            if st.hb_first_ns and (st.adopt or since_s(i, st.hb_first_ns) >= HEARTBEAT_S):
                st.start_step = START_OPERATE
    elif st.start_step == START_OPERATE:
        if st.adopt or (st.good_since_ns != 0 and since_s(i, st.good_since_ns) >= s.enter_service_delay_s):
            if live:
                st.start_step = START_DONE
            else:
                o.op_request = OP_START
    if beat:
        st.last_hb = i.pcs_life.pcs_heartbeat
        st.hb_t_ns = i.t_ns
    if st.start_step != before:
        st.step_since_ns = i.t_ns


cdef inline void follows(const Inputs* i, const Site* s, State* st, Work* w) noexcept nogil:
    """A PCS that acknowledges and does nothing: readback off the model for follow_s."""
    if s.follow_w > 0.0 and not st.rb_abs_w <= s.follow_w:
        if st.follow_since_ns == 0:
            st.follow_since_ns = i.t_ns
        elif since_s(i, st.follow_since_ns) > s.follow_s:
            react(st, i, w, ALM_PCS_NOT_FOLLOWING)
    else:
        st.follow_since_ns = 0


cdef uint32_t waits_for_person(const State* st, int64_t now_ns) noexcept nogil:
    """Alarms of a FAULT that would not have reset by itself, whatever becomes of its cause: by the table of faults, not after a clean GRID, or
    three resets within the hour. ALM_GRID_OUTSIDE too where a TRIP has not been followed by GRID: its enter-service delay is still owed."""
    cdef int k
    cdef bint spent = True
    cdef uint32_t owed = ALM_GRID_OUTSIDE if st.tripped or st.mode == MODE_TRIP else 0
    if st.mode != MODE_FAULT:
        return owed
    for k in range(3):
        spent = spent and st.reset_t_ns[k] != 0 and minus(now_ns, st.reset_t_ns[k]) < HOUR_NS
    if st.was_clean and not spent and not st.alarms & PERSON:
        return owed
    return owed | (st.alarms if st.alarms else ALM_INTERNAL)


cdef inline bint may_reset(const Inputs* i, State* st, uint32_t now) noexcept nogil:
    """By an edge at any time; by itself only after a clean GRID, with the cause gone, and three times an hour."""
    cdef int oldest = 0
    cdef int k
    if i.reset != st.reset_seen:
        st.reset_seen = i.reset
        return now == 0
    if st.alarms & PERSON:
        return False
    if now or not st.was_clean:
        st.clean_since_ns = 0
        return False
    if st.clean_since_ns == 0:
        st.clean_since_ns = i.t_ns
    if since_s(i, st.clean_since_ns) < CLEAN_S:
        return False
    for k in range(1, 3):
        if st.reset_t_ns[k] < st.reset_t_ns[oldest]:
            oldest = k
    if st.reset_t_ns[oldest] and minus(i.t_ns, st.reset_t_ns[oldest]) < HOUR_NS:
        return False
    st.reset_t_ns[oldest] = i.t_ns
    return True


cdef inline bint forming(const Inputs* i) noexcept nogil:
    """The converter says that it forms the grid (bit 1 of a bit field; NaN and what no 32 bits can hold say nothing)."""
    return 0.0 <= i.pcs.pcs_der_mode < 4294967296.0 and (<int64_t>i.pcs.pcs_der_mode) & 2


cdef inline void stop(const Inputs* i, const Site* s, State* st) noexcept nogil:
    """Into STOP: from GRID by the ramp limit."""
    st.stop_since_ns = i.t_ns
    st.stop_s = clamp(abs_w(st.cmd_w) / s.ramp_down_w_per_s, 0.1, STOP_MOST_S if i.stop else INF) if st.mode == MODE_GRID else 0.0
    enter(st, i, MODE_STOP)
    st.parked = not i.stop


cdef inline void stopping(const Inputs* i, State* st, uint32_t now) noexcept nogil:
    """STOP: on the way to 0 W, or parked there."""
    if st.parked and not i.park:
        st.alarms = 0
        enter(st, i, MODE_STANDBY)              # released: all of the start sequence
        return
    if st.parked and st.start_step == START_DONE:
        st.alarms = 0                           # parked for days: what stands is shown, what has passed is not
    if now:                                     # no ramp beside a dead grid or a lost device: 0 now
        st.alarms |= now
        st.stop_s = 0.0


cdef inline void modes(const Inputs* i, const Site* s, State* st, Work* w, Outputs* o) noexcept nogil:
    """Mode transitions: one place, each with its condition."""
    cdef uint32_t now = causes(i, s, st, w), acts = now & ACTS
    cdef bint grid_bad = st.bad_since_ns != 0 and since_s(i, st.bad_since_ns) >= s.trip_s
    w.causes = now
    if st.mode != MODE_FAULT:
        st.reset_seen = i.reset
    if i.latched:                               # control was started again: what waited for a person still does
        if i.latched & ALM_GRID_OUTSIDE:
            st.tripped = 1                      # the enter-service delay counts from the beginning
        if i.latched & ~<uint32_t>ALM_GRID_OUTSIDE:
            st.alarms |= i.latched
            st.was_clean = 0
            if st.mode != MODE_FAULT:
                enter(st, i, MODE_FAULT)
    if i.stop and st.parked:
        st.parked = 0                           # a stop is for good, whatever becomes of the park, and has less time
        st.stop_s = smaller(st.stop_s, since_s(i, st.stop_since_ns) + STOP_MOST_S)
    # parking waits for the end of FAULT and TRIP, and of an island: a person's wish for 0 W is no reason to make it black. A live converter
    # is adopted first, and ramps down from what it does
    if (i.stop and st.mode != MODE_STOP) or (i.park and (st.mode == MODE_GRID or (
            st.mode == MODE_STANDBY and st.start_step > START_REVERSION and not st.adopt))):
        stop(i, s, st)
    if st.mode == MODE_GRID or st.mode == MODE_ISLAND:
        if st.mode == MODE_GRID:
            follows(i, s, st, w)                # in ISLAND the converter answers to the load, not to us
        if st.mode != MODE_GRID and st.mode != MODE_ISLAND:
            pass
        elif acts:
            react(st, i, w, acts)
        elif i.pcs.pcs_state != PCS_RUNNING and i.pcs.pcs_state != PCS_THROTTLED:
            react(st, i, w, ALM_PCS_FAULT)
        elif s.has_pcs_ctl and (i.pcs_ctl.wset_rvrt_ena != 1.0 or not abs_w(i.pcs_ctl.wset_rvrt_s - s.pcs_rvrt_s) < 1.0
                                or not age_s(i, &i.pcs_ctl.g) <= 2.0 * s.pcs_rvrt_s + 2.0):
            react(st, i, w, ALM_REVERSION)
        elif grid_bad and st.mode == MODE_GRID:
            if forming(i):
                enter(st, i, MODE_ISLAND)       # the converter forms the grid: it carries the load, we carry the limits
            else:
                react(st, i, w, ALM_GRID_OUTSIDE)
        elif st.mode == MODE_ISLAND and not forming(i):
            enter(st, i, MODE_RESYNC)
    elif st.mode == MODE_STOP:
        stopping(i, st, acts | (ALM_GRID_OUTSIDE if grid_bad else 0))
    elif st.mode == MODE_RESYNC:
        if acts:
            react(st, i, w, acts)
        elif st.good_since_ns and since_s(i, st.good_since_ns) >= s.enter_service_delay_s:
            enter(st, i, MODE_STANDBY)
    elif st.mode == MODE_TRIP:
        if acts & TO_FAULT:
            fault(st, i, acts)
        elif acts == 0 and st.good_since_ns and since_s(i, st.good_since_ns) >= s.enter_service_delay_s:
            st.alarms = 0
            enter(st, i, MODE_STANDBY)
    elif st.mode == MODE_FAULT:
        st.alarms |= acts & ~unseen(s, st)
        if may_reset(i, st, acts):
            st.alarms = 0
            st.rb_err_w = 0.0
            st.rb_abs_w = 0.0
            enter(st, i, MODE_STANDBY)
    elif st.mode == MODE_STANDBY:
        start(i, s, st, w, o)
        if st.bad_since_ns:
            w.causes |= ALM_GRID_OUTSIDE        # shown, and waited for where a converter has to be started
        if st.start_step == START_DONE:
            go(i, s, st, w)
            if i.park:                          # adopted, and at once on its way to 0: no tick in which it follows the load
                stop(i, s, st)


cdef inline double abs_w(double x) noexcept nogil:
    return -x if x < 0.0 else x


cdef inline double others_w(const Inputs* i, const Site* s) noexcept nogil:
    """PV and genset at the PCC, as far as they are measured and possible: a sum beyond reason would swallow the meter's own digits."""
    cdef double p = 0.0, most = 8.0 * s.feeder_w
    if s.has_others:
        if -most <= i.others.pv_p_w <= most:
            p += i.others.pv_p_w
        if -most <= i.others.gen_p_w <= most:
            p += i.others.gen_p_w
    return p


cdef inline void go(const Inputs* i, const Site* s, State* st, const Work* w) noexcept nogil:
    """Into GRID from measured power, so that a live converter is adopted without a bump."""
    enter(st, i, MODE_GRID)
    st.start_step = START_DONE
    st.tripped = 0
    st.model_p_w = i.pcs.batt_p_w
    st.model_target_w = i.pcs.batt_p_w
    st.model_at = st.q_n
    st.rb_p_w = i.pcs.batt_p_w
    st.rb_target_w = i.pcs.batt_p_w
    st.rb_at = st.q_n
    st.sign_n = 0
    st.sign_blocks = 0
    st.sign_m_w = 0.0
    st.sign_p_w = 0.0
    st.sign_num = 0.0
    st.sign_den = 0.0
    st.sign_tick_num = 0.0
    st.sign_tick_den = 0.0
    st.ring_load_w = i.meter.grid_p_w + i.pcs.batt_p_w + others_w(i, s)
    st.rb_err_w = 0.0
    st.rb_abs_w = 0.0
    st.cmd_w = i.pcs.batt_p_w
    st.load_w = i.meter.grid_p_w + i.pcs.batt_p_w + others_w(i, s)
    st.mean_w = st.load_w
    st.ref_w = i.meter.grid_p_w
    st.horizon_s = s.mean_min_s


# ---------------------------------------------------------------- 2. load

cdef inline void model_advance(const Site* s, const State* st, int64_t* at_ns, double* p_w, double* target_w, uint32_t* at, int64_t t_ns) noexcept nogil:
    """A PCS model, driven by our own commands, forward to t_ns; never backward. There are two: on the meter's clock and on the readback's,
    because one of them may be 200 ms behind the other."""
    cdef int64_t until
    cdef uint32_t guard = 0
    if st.q_n - at[0] > MODEL_QUEUE:        # more on its way than the queue holds: what fell out is due anyway
        at[0] = st.q_n - MODEL_QUEUE
    while at_ns[0] < t_ns and guard <= 2 * MODEL_QUEUE:
        guard += 1
        until = t_ns
        if at[0] != st.q_n:
            if st.q_t_ns[at[0] % MODEL_QUEUE] <= at_ns[0]:
                target_w[0] = st.q_w[at[0] % MODEL_QUEUE]
                at[0] += 1
                continue
            if st.q_t_ns[at[0] % MODEL_QUEUE] < until:
                until = st.q_t_ns[at[0] % MODEL_QUEUE]
        p_w[0] = lag(p_w[0], target_w[0], <double>minus(until, at_ns[0]) * 1e-9, s.pcs_tau_s)
        at_ns[0] = until


cdef inline void model_push(State* st, int64_t t_ns, double w) noexcept nogil:
    st.q_t_ns[st.q_n % MODEL_QUEUE] = t_ns
    st.q_w[st.q_n % MODEL_QUEUE] = w
    st.q_n += 1


cdef inline void align(const Inputs* i, const Site* s, State* st, const Work* w) noexcept nogil:
    """Readback against model: the slow part of the difference is a bias, the part that goes with the slope is a time error."""
    cdef double err, slope, keep, worth
    if st.pcs_good_ns != i.pcs.g.t_ns or i.pcs.g.count == st.last_pcs_count or i.pcs.g.t_ns < st.rb_t_ns:
        return
    st.last_pcs_count = i.pcs.g.count
    model_advance(s, st, &st.rb_t_ns, &st.rb_p_w, &st.rb_target_w, &st.rb_at, i.pcs.g.t_ns)
    err = i.pcs.batt_p_w - st.rb_p_w
    slope = (st.rb_target_w - st.rb_p_w) / s.pcs_tau_s if s.pcs_tau_s > 0.0 else 0.0
    keep = decay(w.dt_s / ALIGN_TIME_S)
    st.align_num = st.align_num * keep + (err - st.rb_err_w) * slope
    st.align_den = st.align_den * keep + slope * slope
    # worth a verdict once steps of 2 % of rating have been seen: slope of such a step one time constant on, over ten of them
    worth = 0.02 * 0.37 * s.s_rated_va / (s.pcs_tau_s + 1e-4)
    if st.align_den > 10.0 * worth * worth:
        st.align_s = st.align_num / st.align_den
    st.rb_err_w += (err - st.rb_err_w) * clamp(w.dt_s / RB_TIME_S, 0.0, 1.0)
    if s.pcs_tau_s >= OBSERVE_S:
        # a slow converter is seen many times on its way: what is seen outranks what was thought
        err = OBSERVE * (err - st.rb_err_w)
        st.rb_p_w += err
        st.model_p_w += err
        err = i.pcs.batt_p_w - st.rb_p_w
    st.rb_abs_w += (abs_w(err) - st.rb_abs_w) * clamp(w.dt_s / RB_TIME_S, 0.0, 1.0)


cdef inline void ringing(const Site* s, State* st, double load_w) noexcept nogil:
    """The loop's own ringing, from the reconstructed load alone: what the readback cannot see is a meter that stands for another instant than
    it says. Such an error makes every battery move look like a load change that is taken back a few ticks later; a load does not do
    that for half a second on end. While it does, the assumed error trebles; a minute of calm halves it.
    """
    cdef double keep = 1.0 - 1.0 / RING_MEMORY, worst = 0.0, recent = 0.0, e = load_w - st.ring_load_w
    cdef int k
    st.ring_var = st.ring_var * keep + e * e / RING_MEMORY
    for k in range(RING_LAGS):
        st.ring_cov[k] = st.ring_cov[k] * keep + e * st.ring_e[k] / RING_MEMORY
        # noise of the meter alone comes back by half at once: that is no ringing
        worst = smaller(worst, st.ring_cov[k] + 0.25 * st.ring_var if k == 0 else st.ring_cov[k])
    for k in range(RING_LAGS - 1, 0, -1):
        st.ring_e[k] = st.ring_e[k - 1]
        recent += st.ring_e[k] * st.ring_e[k]
    st.ring_e[0] = e
    recent = (recent + e * e) / RING_LAGS   # what rang a while ago and no more needs no stronger filter
    st.ring_load_w = load_w
    if smaller(recent, st.ring_var) > (RING_LEVEL * s.s_rated_va) * (RING_LEVEL * s.s_rated_va) and worst < -RING_SHARE * st.ring_var:
        st.ring_calm = 0
        st.ring_hot += 1
        if st.ring_hot >= RING_HOT:
            st.ring_hot = 0
            st.ring_s = clamp(3.0 * st.ring_s, 0.01, 0.1)
    else:
        st.ring_hot = 0
        st.ring_calm += 1
        if st.ring_calm >= RING_CALM:
            st.ring_calm = 0
            st.ring_s = 0.5 * st.ring_s if st.ring_s > s.align_full_s else 0.0


cdef inline void watch_sign(const Inputs* i, const Site* s, State* st, Work* w) noexcept nogil:
    """A reversed meter turns following into running away: grid power then moves with battery power, sample by sample and in means of ten.

    A right one moves against it, or not at all while the battery follows; a ringing loop or a saturated battery may look wrong in one of
    the two, never in both. Judged once moves of 5 % of rating have been seen, over some five seconds.
    """
    cdef double m = i.meter.grid_p_w, p = st.model_p_w + st.rb_err_w, dm, dp, keep = 0.998, floor = 0.05 * s.s_rated_va
    dm = m - st.sign_prev_m_w
    dp = p - st.sign_prev_p_w
    if st.sign_n or st.sign_blocks:
        st.sign_tick_num = st.sign_tick_num * keep + dm * dp
        st.sign_tick_den = st.sign_tick_den * keep + dp * dp
    st.sign_prev_m_w = m
    st.sign_prev_p_w = p
    st.sign_m_w += m
    st.sign_p_w += p
    st.sign_n += 1
    if st.sign_n < SIGN_BLOCK:
        return
    m = st.sign_m_w / st.sign_n
    p = st.sign_p_w / st.sign_n
    st.sign_n = 0
    st.sign_m_w = 0.0
    st.sign_p_w = 0.0
    dm = m - st.sign_last_m_w
    dp = p - st.sign_last_p_w
    st.sign_last_m_w = m
    st.sign_last_p_w = p
    st.sign_blocks += 1
    if st.sign_blocks < 2:
        return
    st.sign_num = 0.98 * st.sign_num + dm * dp
    st.sign_den = 0.98 * st.sign_den + dp * dp
    if smaller(st.sign_den, st.sign_tick_den) > floor * floor and st.sign_num > 0.5 * st.sign_den and st.sign_tick_num > 0.5 * st.sign_tick_den:
        react(st, i, w, ALM_METER_SIGN)


cdef inline void reconstruct(const Inputs* i, const Site* s, State* st, Work* w, Outputs* o) noexcept nogil:
    """Load at the meter's sampling instant: what grid and battery carried together then."""
    cdef double load, t_f, others = others_w(i, s)
    align(i, s, st, w)
    if w.fresh:
        model_advance(s, st, &st.model_t_ns, &st.model_p_w, &st.model_target_w, &st.model_at, i.meter.g.t_ns)
        load = i.meter.grid_p_w + st.model_p_w + st.rb_err_w + others
        if st.mode == MODE_GRID:
            ringing(s, st, load)
            watch_sign(i, s, st, w)
        # a meter value from before where the model already stands is misaligned by as much
        t_f = larger(abs_w(st.align_s), st.ring_s) + <double>minus(st.model_t_ns, i.meter.g.t_ns) * 1e-9
        if t_f > s.align_full_s:
            t_f = 2.0 * t_f if t_f > 0.01 else 0.02
            st.load_w += (load - st.load_w) * w.sample_s / (t_f + w.sample_s)
            o.filter_s = t_f
            w.flags |= LIM_FILTER
        else:
            st.load_w = load
        st.last_grid_w = i.meter.grid_p_w
    w.net_w = st.load_w - others
    o.batt_p_w = st.model_p_w + st.rb_err_w


# ---------------------------------------------------------------- device limits: needed by 3 (no wind-up) and 6

cdef inline void less(double* limit, uint64_t* why, double bound, uint64_t flag) noexcept nogil:
    """limit = min(limit, bound), remembering who set it; a bound below 0 or NaN counts as 0."""
    if not bound > 0.0:
        bound = 0.0
    if bound < limit[0]:
        limit[0] = bound
        why[0] = flag


cdef inline void device_limits(const Inputs* i, const Limits* lim, const Site* s, Work* w) noexcept nogil:
    """How much may be discharged and charged now, from SoC to BMS; each bound a magnitude at the AC terminals."""
    cdef double t, k
    w.dis_w = INF
    w.cha_w = INF
    w.dis_why = 0
    w.cha_why = 0
    less(&w.dis_w, &w.dis_why, s.pcs_p_max_w, LIM_PCS_S)
    less(&w.cha_w, &w.cha_why, s.pcs_p_max_w, LIM_PCS_S)
    less(&w.dis_w, &w.dis_why, s.s_rated_va, LIM_PCS_S)
    less(&w.cha_w, &w.cha_why, s.s_rated_va, LIM_PCS_S)
    less(&w.dis_w, &w.dis_why, lim.p_discharge_max_w, LIM_SITE_P)
    less(&w.cha_w, &w.cha_why, lim.p_charge_max_w, LIM_SITE_P)
    # what is not good now is no permission now, even where it is not lost yet
    if not w.bms_now:
        less(&w.dis_w, &w.dis_why, 0.0, LIM_BMS_STALE)
        less(&w.cha_w, &w.cha_why, 0.0, LIM_BMS_STALE)
        return
    if s.has_bms:
        less(&w.dis_w, &w.dis_why, s.pcs_p_max_w * taper(i.bms.soc - lim.soc_min, SOC_TAPER), LIM_SOC_MIN)
        less(&w.cha_w, &w.cha_why, s.pcs_p_max_w * taper(lim.soc_max - i.bms.soc, SOC_TAPER), LIM_SOC_MAX)
        if i.bms.bms_state != BMS_CONNECTED:
            less(&w.dis_w, &w.dis_why, 0.0, LIM_BMS_DISCHARGE)
            less(&w.cha_w, &w.cha_why, 0.0, LIM_BMS_CHARGE)
    if s.has_bms_temp:
        if age_s(i, &i.bms_temp.g) > 10.0 * s.bms_lost_s or not finite(i.bms_temp.batt_temp_max_c + i.bms_temp.batt_temp_min_c):
            k = 0.0
        else:
            k = taper(s.temp_max_c - i.bms_temp.batt_temp_max_c, s.temp_taper_c)
            t = taper(i.bms_temp.batt_temp_min_c - s.temp_min_c, s.temp_taper_c)
            if k == k and not k < t:            # NaN counts as the smaller one, and less() turns it into 0
                k = t
        less(&w.dis_w, &w.dis_why, s.pcs_p_max_w * k, LIM_TEMP)
        less(&w.cha_w, &w.cha_why, s.pcs_p_max_w * k, LIM_TEMP)
    if s.has_bms_limits:
        less(&w.dis_w, &w.dis_why, s.batt_eta * i.bms_lim.batt_v * i.bms_lim.batt_i_discharge_max_a, LIM_BMS_DISCHARGE)
        less(&w.cha_w, &w.cha_why, i.bms_lim.batt_v * i.bms_lim.batt_i_charge_max_a, LIM_BMS_CHARGE)
        if i.bms_lim.batt_p_discharge_max_w == i.bms_lim.batt_p_discharge_max_w:
            less(&w.dis_w, &w.dis_why, s.batt_eta * i.bms_lim.batt_p_discharge_max_w, LIM_BMS_DISCHARGE)
        if i.bms_lim.batt_p_charge_max_w == i.bms_lim.batt_p_charge_max_w:
            less(&w.cha_w, &w.cha_why, i.bms_lim.batt_p_charge_max_w, LIM_BMS_CHARGE)
        t = 0.02 * (s.batt_v_max_v - s.batt_v_min_v)
        if not t < INF:                         # no upper limit given
            t = 0.02 * i.bms_lim.batt_v
        less(&w.dis_w, &w.dis_why, s.pcs_p_max_w * taper(i.bms_lim.batt_v - s.batt_v_min_v, t), LIM_BATT_V)
        less(&w.cha_w, &w.cha_why, s.pcs_p_max_w * taper(s.batt_v_max_v - i.bms_lim.batt_v, t), LIM_BATT_V)


cdef inline double bounded(double p, double low, double high, uint64_t low_flag, uint64_t high_flag, Work* w) noexcept nogil:
    if p < low:
        w.flags |= low_flag
        p = low
    if p > high:
        w.flags |= high_flag
        p = high
    return p


# ---------------------------------------------------------------- 3. reference

cdef inline void bill(const Inputs* i, const Limits* lim, const Site* s, State* st, const Work* w) noexcept nogil:
    """Energy the billing window has used: in every mode, because the meter of the utility counts in every mode."""
    cdef double elapsed, owed
    if not s.billing_window_s > 0.0 or not i.billing_phase_s >= 0.0:
        return
    elapsed = clamp(i.billing_phase_s, 0.0, s.billing_window_s)
    if s.import_limit_w < st.billing_limit_w:   # lowered while we run: what was allowed until now is not owed, what was owed stays owed
        owed = larger(st.billing_wh - st.billing_limit_w * st.billing_phase_s / 3600.0, 0.0)
        st.billing_wh = smaller(st.billing_wh, s.import_limit_w * st.billing_phase_s / 3600.0 + owed)
    st.billing_limit_w = s.import_limit_w
    if elapsed < st.billing_phase_s or st.billing_phase_s < 0.0:
        # a new window; at the very start of control its past is unknown and counts as used in full
        st.billing_wh = s.import_limit_w * elapsed / 3600.0
    elif not w.meter_ok:
        st.billing_wh += s.import_limit_w * (elapsed - st.billing_phase_s) / 3600.0      # unknown counts as used in full here too
    elif st.last_grid_w > 0.0:
        st.billing_wh += st.last_grid_w * (elapsed - st.billing_phase_s) / 3600.0
    st.billing_phase_s = elapsed


cdef inline double import_allowed(const Inputs* i, const Limits* lim, const Site* s, const State* st) noexcept nogil:
    """Instantaneous limit, lowered where the billing window has already used more than its share; in [0, limit]."""
    cdef double left, over
    if not s.billing_window_s > 0.0 or not i.billing_phase_s >= 0.0:
        return lim.import_limit_w
    left = s.billing_window_s - st.billing_phase_s
    over = clamp(st.billing_wh * 3600.0 - s.import_limit_w * st.billing_phase_s, 0.0, INF)
    # what was used beyond the share of the elapsed time is given back over what is left, and never faster than over a minute
    return clamp(s.import_limit_w - over / (left if left > 60.0 else 60.0), 0.0, lim.import_limit_w)


cdef inline void slow_mean(const Inputs* i, const Limits* lim, const Site* s, State* st, const Work* w) noexcept nogil:
    """Mean of the load over a horizon that grows to mean_max_s while the battery's energy allows, and shrinks as SoC leaves its target."""
    cdef double off = 0.0, longest
    if s.has_bms and w.bms_now:                 # one answer with a sentinel in it is no SoC
        off = abs_w(i.bms.soc - lim.soc_target)
    longest = s.mean_min_s + (s.mean_max_s - s.mean_min_s) * clamp((0.3 - off) / 0.2, 0.0, 1.0)
    st.horizon_s = slew(st.horizon_s, longest, 1.0, 10.0, w.dt_s)
    st.mean_w += (st.load_w - st.mean_w) * clamp(w.dt_s / st.horizon_s, 0.0, 1.0)


cdef inline void reference(const Inputs* i, const Limits* lim, const Site* s, State* st, Work* w, Outputs* o, double base_w) noexcept nogil:
    """Reference of grid import: mean + base + SoC term, between the limits, no faster than the ramp, never beyond what the battery can hold."""
    cdef double target, bound, allowed, others = st.load_w - w.net_w
    slow_mean(i, lim, s, st, w)
    allowed = import_allowed(i, lim, s, st)
    target = st.mean_w - others + base_w
    if s.has_bms and w.bms_now:                 # one answer with a sentinel in it is no SoC
        # no faster than a quarter of rating: a full battery is no reason to stop importing
        target -= clamp((i.bms.soc - lim.soc_target) * s.energy_wh * 3600.0 / s.soc_time_s, -0.25 * s.s_rated_va, 0.25 * s.s_rated_va)
    bound = clamp(target, -lim.export_limit_w, allowed)
    if bound < target:
        w.flags |= LIM_IMPORT if allowed >= lim.import_limit_w else LIM_BILLING
    elif bound > target:
        w.flags |= LIM_EXPORT
    o.target_w = bound
    w.ref_before_w = st.ref_w
    w.following = 1
    st.ref_w = slew(st.ref_w, bound, lim.ramp_up_w_per_s, lim.ramp_down_w_per_s, w.dt_s)
    if st.ref_w != bound:
        w.flags |= LIM_RAMP
    # no wind-up: the reference never stands where the battery cannot hold it
    st.ref_w = bounded(st.ref_w, w.net_w - w.dis_w, w.net_w + w.cha_w, w.dis_why, w.cha_why, w)


cdef inline void ramp_held(const Limits* lim, State* st, Work* w) noexcept nogil:
    """Did the reference move within the ramp, after every limit has had its word? Counted where not."""
    cdef double moved = st.ref_w - w.ref_before_w
    if moved > lim.ramp_up_w_per_s * w.dt_s * 1.000001 + 1e-6 or moved < -lim.ramp_down_w_per_s * w.dt_s * 1.000001 - 1e-6:
        st.not_held_s += w.dt_s
        w.flags |= LIM_NOT_HELD


# ---------------------------------------------------------------- 4. battery, 5. droop

cdef inline int choose(const Inputs* i) noexcept nogil:
    """The highest live slot: operator > schedule > planner; -1 none."""
    cdef int k
    for k in range(SLOTS):
        if i.slot[k].kind != SP_NONE and i.slot[k].lease_until_ns > i.t_ns and finite(i.slot[k].value_w):
            return k
    return -1


cdef inline double battery(const Inputs* i, const Limits* lim, const Site* s, State* st, Work* w, Outputs* o) noexcept nogil:
    """Battery power wanted: load minus reference, or what a setpoint holds; in STOP the share of it that is left."""
    cdef double p, base_w = 0.0
    cdef bint hold
    o.slot = choose(i)
    if o.slot >= 0:
        o.slot_id = i.slot[o.slot].id
        if i.slot[o.slot].kind == SP_BASE:
            base_w = i.slot[o.slot].value_w
    hold = o.slot >= 0 and i.slot[o.slot].kind == SP_HOLD
    w.share = 1.0
    if st.mode == MODE_STOP:
        w.share = clamp(1.0 - since_s(i, st.stop_since_ns) / st.stop_s, 0.0, 1.0) if st.stop_s > 0.0 and i.stop < 2 else 0.0
        if w.share == 0.0:
            return 0.0
    if not w.meter_ok:
        # nothing to follow: toward 0 over two seconds at the most, and back in from measured power
        w.flags |= LIM_METER_STALE
        st.stale = 1
        return slew(st.cmd_w, 0.0, s.s_rated_va / 2.0, s.s_rated_va / 2.0, w.dt_s)
    if st.stale:
        st.stale = 0
        st.ref_w = w.net_w - (st.cmd_w - st.droop_w)     # droop comes on top of it
    if hold and st.mode != MODE_STOP:
        w.flags |= LIM_HOLD
        slow_mean(i, lim, s, st, w)
        p = slew_from_zero(st.cmd_w - st.droop_w, i.slot[o.slot].value_w, lim.ramp_up_w_per_s, w.dt_s)
        st.ref_w = w.net_w - p                  # what is left for the grid; following begins again from here
        o.target_w = st.ref_w
    elif st.mode != MODE_STOP and i.pcs_deaf:
        o.target_w = st.ref_w                   # mean and reference wait as well; grid import does what the load does
        st.not_held_s += w.dt_s
        w.flags |= LIM_NOT_HELD
        p = st.cmd_w - st.droop_w
    elif st.mode != MODE_STOP:
        reference(i, lim, s, st, w, o, base_w)
        p = shave(w.net_w, st.ref_w)
    else:
        o.target_w = st.ref_w                   # it stands still: the falling share alone moves the grid, at the ramp
        p = shave(w.net_w, st.ref_w)
    p *= w.share
    if (hold or i.pcs_deaf) and st.mode == MODE_STOP:
        p = clamp(p, smaller(st.cmd_w, 0.0), larger(st.cmd_w, 0.0))     # who held the battery sees it only come down
    return p


cdef inline double frequency(const Inputs* i, const Site* s, State* st, Work* w) noexcept nogil:
    """P(f) with deadband, droop and open-loop response time. The ramp limit does not apply to it (IEEE 1547-2018 4.10.3, RfG art. 15)."""
    cdef double p = 0.0
    if s.droop_r > 0.0 and w.meter_ok and abs_w(i.meter.f_hz - s.f_nom_hz) < 0.2 * s.f_nom_hz:     # what no grid can have moves no power
        p = clamp(droop(i.meter.f_hz, s.f_nom_hz, s.droop_db_hz, s.droop_r, s.s_rated_va), -s.s_rated_va, s.s_rated_va)
    st.droop_w = lag(st.droop_w, p, w.dt_s, s.droop_tr_s / 2.302585092994046)
    if abs_w(st.droop_w) > 1e-3 * s.s_rated_va:
        w.flags |= LIM_DROOP
    elif p == 0.0:
        st.droop_w = 0.0 if abs_w(st.droop_w) < 1.0 else st.droop_w
    return st.droop_w


cdef inline double reactive(const Inputs* i, const Site* s, State* st, const Work* w, double p_w) noexcept nogil:
    """Q(V), within what apparent power leaves beside p_w."""
    cdef double q = 0.0, room = q_room(s.s_rated_va, p_w), v
    if not s.q_max_var > 0.0:
        return 0.0
    v = (i.meter.v1_v + i.meter.v2_v + i.meter.v3_v) / (3.0 * s.v_nom_v)
    if w.meter_ok and finite(v):
        q = volt_var(v, s.volt_db_pu, s.volt_full_pu, s.q_max_var)
    st.volt_var = lag(st.volt_var, q, w.dt_s, s.volt_tr_s / 2.302585092994046)
    return clamp(st.volt_var, -room, room)


# ---------------------------------------------------------------- 6. limits

cdef inline double limit(const Inputs* i, const Limits* lim, const Site* s, State* st, Work* w, Outputs* o, double p, double before_w, double droop_w) noexcept nogil:
    """Slew (from before_w, the last command without droop), then contract < droop < breaker < SoC, temperature, PCS, BMS: later outranks."""
    cdef double want
    if i.pcs_deaf and st.mode == MODE_GRID:
        # What it does now nobody knows. Whoever went on as if it had obeyed would take the own wish for load, more of it with each tick,
        # and let all of it loose when the PCS listens again. The last command stands, and only comes down.
        p = clamp(p + (droop_w if w.meter_ok else 0.0), smaller(st.cmd_w, 0.0), larger(st.cmd_w, 0.0))
        return bounded(p, -w.cha_w, w.dis_w, w.cha_why, w.dis_why, w)
    if s.cmd_slew_w_per_s < INF:
        o.p_cmd_w = slew_from_zero(before_w, p, s.cmd_slew_w_per_s, w.dt_s)
        if o.p_cmd_w != p:
            w.flags |= LIM_SLEW
        p = o.p_cmd_w
    if w.meter_ok and st.mode == MODE_GRID:
        want = p
        p = bounded(p, w.net_w - lim.import_limit_w, w.net_w + lim.export_limit_w, LIM_IMPORT, LIM_EXPORT, w)
        if p != want:
            # the contract has moved grid import, as far as the battery can: following begins again from there
            st.ref_w = w.net_w - clamp(p, -w.cha_w, w.dis_w)
        p += droop_w
        p = bounded(p, w.net_w - s.feeder_w, w.net_w + s.feeder_w, LIM_FEEDER, LIM_FEEDER, w)
    elif w.meter_ok:
        # on the way to 0 no limit may ask for power, each may still forbid it
        p = bounded(p, smaller(w.net_w - lim.import_limit_w, 0.0), larger(w.net_w + lim.export_limit_w, 0.0), LIM_IMPORT, LIM_EXPORT, w)
        p += droop_w * w.share
        p = bounded(p, smaller(w.net_w - s.feeder_w, 0.0), larger(w.net_w + s.feeder_w, 0.0), LIM_FEEDER, LIM_FEEDER, w)
    p = bounded(p, -w.cha_w, w.dis_w, w.cha_why, w.dis_why, w)
    return p


# ---------------------------------------------------------------- 7. gate

cdef inline void gate(const Inputs* i, const Limits* lim, const Site* s, State* st, Work* w, Outputs* o, double p) noexcept nogil:
    """What may leave: only finite numbers, only in a mode that commands, only to devices that are the ones compiled."""
    cdef double kept
    if not finite(p):
        p = 0.0
        fault(st, i, ALM_INTERNAL)              # the way out is the way in: GRID takes load, mean and reference from what is measured
    if not finite(o.q_cmd_var):
        o.q_cmd_var = 0.0
        st.volt_var = 0.0
    kept = i.pcs_ctl.wset_w if s.has_pcs_ctl else i.pcs.batt_p_w
    if st.mode == MODE_STANDBY and st.adopt and finite(kept):
        p = clamp(kept, -w.cha_w, w.dis_w)      # a live converter keeps what it does until GRID takes it over
    elif st.mode != MODE_GRID and st.mode != MODE_STOP:
        p = 0.0
        w.flags |= LIM_MODE
    # What the kernel decides always leaves: 0 W most of all when meter or BMS are gone. (hal lets nothing out to a PCS that is not the one
    # that was compiled.) Only the start waits: a live converter keeps its setpoint until the battery's limits are known, and goes to 0 when
    # they are known to be 0; its reversion timer is renewed with commands only, so that a wait without end ends at 0 W by itself.
    o.gate = st.mode != MODE_STANDBY or (i.verified == 1 and (
        st.start_step >= (START_HEARTBEAT if st.adopt else START_BMS)
        or (st.start_step == START_BMS and w.bms_now and w.dis_w == 0.0 and w.cha_w == 0.0
            and not (s.has_bms_temp and age_s(i, &i.bms_temp.g) > 10.0 * s.bms_lost_s))))
    if st.mode == MODE_STOP and p == 0.0 and (i.stop >= 2 or not since_s(i, st.stop_since_ns) < st.stop_s):
        st.start_step = START_DONE              # the engine may leave once the command has gone out
        # parked, it is asked where it runs, not once a second for days
        if not st.parked or not (i.pcs.pcs_state == i.pcs.pcs_state) or PCS_STARTING <= i.pcs.pcs_state <= PCS_THROTTLED:
            o.op_request = OP_STOP
    if i.pcs_deaf:
        w.flags |= LIM_PCS_DEAF
        # it does not take 0 W: perhaps it takes the way to standby. Its reversion timer is no longer renewed either (hal)
        if (st.mode == MODE_FAULT or st.mode == MODE_TRIP) and w.pcs_ok and PCS_STARTING <= i.pcs.pcs_state <= PCS_THROTTLED \
                and abs_w(i.pcs.batt_p_w) > s.follow_w:
            o.op_request = OP_STOP
    p += 0.0                                # -0.0 becomes 0.0: nobody should have to ask what it means
    o.p_cmd_w = p
    st.cmd_w = p
    o.enable = 1.0
    o.rvrt_s = 0.0 if st.mode == MODE_STANDBY and st.start_step == START_DEVICES else s.pcs_rvrt_s
    st.proven = st.proven + 1 if o.gate else 0
    o.heartbeat = <double>((i.tick // 100) & 0x3FFFFFFF) + 1.0 if o.gate else 0.0      # a sign of life from proven ticks only
    if o.gate:
        model_push(st, minus(i.command_t_ns, -to_ns(s.pcs_dead_s)), p)
    if i.step_t_ns > lim.lease_until_ns:
        w.flags |= LIM_LEASE
    if lim.flags & LIMITS_OPERATOR:
        w.flags |= LIM_OPERATOR


cdef void reset(State* st, const Site* s) noexcept nogil:
    """The state before the first tick."""
    memset(st, 0, sizeof(State))
    st.mode = MODE_STANDBY
    st.horizon_s = s.mean_min_s
    st.billing_phase_s = -1.0
    st.last_hb = -1.0


cdef void step(const Inputs* inp, const Limits* lim, const Site* s, State* st, Outputs* o) noexcept nogil:
    """One tick. Read it top to bottom: this is the order of control."""
    cdef Work w
    cdef double p = 0.0, extra = 0.0, before
    memset(&w, 0, sizeof(Work))
    memset(o, 0, sizeof(Outputs))
    o.slot = -1
    judge(inp, s, st, &w)                                   # 1. what can be believed
    device_limits(inp, lim, s, &w)
    modes(inp, s, st, &w, o)                                #    and which mode follows from it
    reconstruct(inp, s, st, &w, o)                          # 2. the load, at the meter's instant
    bill(inp, lim, s, st, &w)
    if st.mode == MODE_GRID or st.mode == MODE_STOP:
        before = st.cmd_w - st.droop_w if w.meter_ok else st.cmd_w
        p = battery(inp, lim, s, st, &w, o)                 # 3., 4. reference of grid import; the battery carries the rest
        extra = frequency(inp, s, st, &w)                   # 5. droop bypasses the ramp
        p = limit(inp, lim, s, st, &w, o, p, before, extra) # 6. contract, breaker, SoC, temperature, PCS, BMS
        if w.following:
            ramp_held(lim, st, &w)
    else:
        st.droop_w = 0.0
        st.ref_w = st.last_grid_w                           # outside GRID the reference follows the measured grid
        st.mean_w = st.load_w
        st.horizon_s = s.mean_min_s
    o.q_cmd_var = reactive(inp, s, st, &w, p) if st.mode == MODE_GRID else 0.0
    gate(inp, lim, s, st, &w, o, p)                         # 7. what may leave
    o.load_w = st.load_w
    o.mean_w = st.mean_w
    o.ref_w = st.ref_w
    o.grid_p_w = st.last_grid_w
    o.droop_w = st.droop_w
    o.horizon_s = st.horizon_s
    o.align_s = st.align_s
    o.not_held_s = st.not_held_s
    o.soc = inp.bms.soc if s.has_bms else NAN
    o.limits_active = w.flags
    o.p_min_w = -w.cha_w
    o.p_max_w = w.dis_w
    o.alarms = st.alarms | (
        w.causes if st.mode == MODE_STANDBY or st.mode == MODE_FAULT else w.causes & ~ACTS)     # what start or reset wait for, or nobody
    o.mode = st.mode
    o.start_step = st.start_step


# ---------------------------------------------------------------- the Python face: for tests, twin and replay

cdef class Kernel:
    """step() with its state, fed by dicts. Raises ValueError for unknown fields; values themselves are not checked: the kernel must stand them."""
    cdef Site site
    cdef State state
    cdef Outputs out

    def __init__(self, dict site):
        self.site = site
        reset(&self.state, &self.site)

    def step(self, dict inp, dict lim):
        """One tick; returns Outputs as a dict."""
        cdef Inputs i = inp
        cdef Limits l = lim
        with nogil:
            step(&i, &l, &self.site, &self.state, &self.out)
        return self.out

    def get_state(self):
        """The State as a dict."""
        return self.state

    def set_state(self, dict st):
        """Every field of State."""
        self.state = st

    def run_records(self, bytes raw):
        """Run step() over whole Records (as ProcessImage.drain gives them) from the present State.

        Returns the index of the first Record whose Outputs differ in any bit, or -1; the State moves on."""
        cdef Py_ssize_t n = len(raw) // sizeof(Record), k
        cdef const char* p = raw
        cdef Record r
        for k in range(n):
            memcpy(&r, p + k * sizeof(Record), sizeof(Record))
            step(&r.inp, &r.lim, &self.site, &self.state, &self.out)
            if memcmp_outputs(&self.out, &r.out):
                return k
        return -1

    def time_steps(self, dict inp, dict lim, int n):
        """Nanoseconds of n steps with moving inputs, each timed by itself; the list is sorted."""
        from _core.image import monotonic_ns
        cdef Inputs i = inp
        cdef Limits l = lim
        cdef list times = []
        cdef int64_t a, b
        cdef int k
        for k in range(n):
            i.tick += 1
            i.t_ns += 10000000
            i.step_t_ns = i.t_ns + 2633000
            i.command_t_ns = i.step_t_ns + 406000
            i.meter.g.t_ns = i.t_ns + 1941000
            i.meter.g.count += 1
            i.meter.grid_p_w += 1000.0 if k & 8 else -1000.0
            i.pcs.g.t_ns = i.t_ns - 1300000
            i.pcs.g.count += 1
            a = now_ns()
            step(&i, &l, &self.site, &self.state, &self.out)
            b = now_ns()
            times.append(b - a)
        times.sort()
        return times


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline int memcmp_outputs(const Outputs* a, const Outputs* b) noexcept nogil:
    return memcmp(a, b, sizeof(Outputs))


def bounds(dict inp, dict lim, dict site):
    """What the battery may do in this tick, and whose limit that is: p_discharge_max_w, p_charge_max_w (magnitudes, W),
    why_discharge, why_charge (LIM_*; 0: nobody's). From a record's inp and lim, for people; the laws are those of the step."""
    cdef Inputs i = inp
    cdef Limits l = lim
    cdef Site s = site
    cdef State st
    cdef Work w
    memset(&w, 0, sizeof(Work))
    reset(&st, &s)
    judge(&i, &s, &st, &w)
    device_limits(&i, &l, &s, &w)
    return {"p_discharge_max_w": w.dis_w, "p_charge_max_w": w.cha_w, "why_discharge": w.dis_why, "why_charge": w.cha_why}
