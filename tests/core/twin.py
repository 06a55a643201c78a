"""The kernel again, in plain Python: kernel.pyx and laws.pxd operation by operation, bit-equal in f64.

Nothing here imports compiled code; the table of faults is data, and shared. It is written to be compared, not to be fast or short: the
same names, the same order of operations, C's rules where Python's differ (division by zero, int64 that saturates, uint32 that wraps).
`Twin` has the face of `_core.kernel.Kernel`: Twin(site).step(inputs, limits) -> outputs, get_state(), set_state().
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from _core.faults import FAULTS, masks

Obj = Any

NAN = math.nan
INF = math.inf
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
U32 = (1 << 32) - 1

RING_LAGS = 6
OBSERVE_S, OBSERVE, RING_MEMORY, RING_LEVEL, RING_SHARE, RING_HOT, RING_CALM, SIGN_BLOCK = 0.02, 0.3, 20.0, 0.002, 0.35, 8, 6000, 10
SLOTS, MODEL_QUEUE = 3, 64
Q_GOOD = 1
FAULT, STANDBY, GRID, ISLAND, RESYNC, TRIP, STOP = range(7)
START_DEVICES, START_REVERSION, START_BMS, START_HEARTBEAT, START_OPERATE, START_DONE = range(6)
SP_NONE, SP_HOLD, SP_BASE = range(3)
OP_START, OP_STOP = 1, 2
(
    LIM_RAMP, LIM_IMPORT, LIM_EXPORT, LIM_BILLING, LIM_FEEDER, LIM_SOC_MIN, LIM_SOC_MAX, LIM_TEMP, LIM_PCS_S, LIM_BMS_CHARGE,
    LIM_BMS_DISCHARGE, LIM_BATT_V, LIM_SLEW, LIM_METER_STALE, LIM_BMS_STALE, LIM_HOLD, LIM_LEASE, LIM_FILTER, LIM_DROOP, LIM_MODE,
    LIM_SITE_P, LIM_NOT_HELD, LIM_OPERATOR, LIM_PCS_DEAF,
) = (1 << k for k in range(24))  # fmt: skip
(
    ALM_METER_LOST, ALM_METER_FROZEN, ALM_PCS_LOST, ALM_PCS_FAULT, ALM_PCS_NOT_FOLLOWING, ALM_BMS_LOST, ALM_BMS_FAULT, ALM_IDENTITY,
    ALM_GRID_OUTSIDE, ALM_PCS_LOCAL, ALM_REVERSION, ALM_METER_SIGN, ALM_INTERNAL,
) = (1 << k for k in range(13))  # fmt: skip

LIMITS_OPERATOR = 1
ALARMS = {name: bit for name, bit in dict(globals()).items() if name.startswith("ALM_")}
MASKS = masks(FAULTS, ALARMS)
TO_FAULT, TO_TRIP, PERSON = MASKS.fault, MASKS.trip, MASKS.person
ACTS = TO_FAULT | TO_TRIP
PCS_STARTING, PCS_RUNNING, PCS_THROTTLED, PCS_FAULTED = 2, 3, 4, 6
BMS_CONNECTED, BMS_FAULTED = 3, 99
HEARTBEAT_S = 3.0
CLEAN_S = 5.0
PROVED_S = 10.0
HOUR_NS = 3600 * 1000000000
RB_TIME_S = 1.0
ALIGN_TIME_S = 10.0
AHEAD_S = 0.1
SOC_TAPER = 0.01


# ---------------------------------------------------------------- C where Python differs


def div(a: float, b: float) -> float:
    """a / b as IEEE 754 has it."""
    if b == 0.0:
        if a == 0.0 or a != a:
            return NAN
        return math.copysign(INF, a) * math.copysign(1.0, b)
    return a / b


def obj(x: Any) -> Any:
    """A dict as something with fields, lists copied."""
    if isinstance(x, dict):
        return SimpleNamespace(**{k: obj(v) for k, v in x.items()})
    return [obj(v) for v in x] if isinstance(x, list | tuple) else x


# ---------------------------------------------------------------- laws.pxd


def finite(x: float) -> bool:
    return x - x == 0.0


def clamp(x: float, low: float, high: float) -> float:
    if x < low:
        x = low
    if x > high:
        x = high
    return x


def smaller(a: float, b: float) -> float:
    return a if a < b else b


def larger(a: float, b: float) -> float:
    return a if a > b else b


def minus(a: int, b: int) -> int:
    return min(max(a - b, INT64_MIN), INT64_MAX)


def to_ns(t_s: float) -> int:
    x = t_s * 1e9
    return int(x) if -9e18 < x < 9e18 else 0


def slew(x: float, target: float, up_per_s: float, down_per_s: float, dt_s: float) -> float:
    d = target - x
    if d > up_per_s * dt_s:
        d = up_per_s * dt_s
    if d < -down_per_s * dt_s:
        d = -down_per_s * dt_s
    return x + d


def slew_from_zero(x: float, target: float, rate_per_s: float, dt_s: float) -> float:
    if (x > 0.0 and target < x) or (x < 0.0 and target > x):
        x = target if (x > 0.0) == (target > 0.0) else 0.0
    return slew(x, target, rate_per_s, rate_per_s, dt_s)


def deadband(x: float, half_width: float) -> float:
    if x > half_width:
        return x - half_width
    if x < -half_width:
        return x + half_width
    return 0.0


def droop(f_hz: float, f_nom_hz: float, db_hz: float, r_pu: float, p_rated_w: float) -> float:
    return div(-deadband(f_hz - f_nom_hz, db_hz), f_nom_hz * r_pu) * p_rated_w


def volt_var(v_pu: float, db_pu: float, full_pu: float, q_max_var: float) -> float:
    return clamp(div(-deadband(v_pu - 1.0, db_pu), full_pu - db_pu), -1.0, 1.0) * q_max_var


def decay_small(z: float) -> float:
    y = 1.0
    for k in range(12, 0, -1):
        y = 1.0 + z / k * y
    return 1.0 / y


def decay(x: float) -> float:
    if not x > 0.0:
        return 1.0
    if x > 700.0:
        return 0.0
    z = x / 64.0
    if z > 1.0:
        y = decay_small(z / 16.0)
        y = y * y
        y = y * y
        y = y * y
        y = y * y
    else:
        y = decay_small(z)
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    return y * y


def lag(x: float, target: float, dt_s: float, tau_s: float) -> float:
    if not tau_s > 0.0:
        return target
    return target + (x - target) * decay(dt_s / tau_s)


def taper(distance: float, width: float) -> float:
    if not width > 0.0:
        return 1.0 if distance > 0.0 else 0.0
    return clamp(distance / width, 0.0, 1.0)


def shave(net_w: float, ref_w: float) -> float:
    return net_w - ref_w


def q_room(s_va: float, p_w: float) -> float:
    d = s_va * s_va - p_w * p_w
    return math.sqrt(d) if d > 0.0 else 0.0


# ---------------------------------------------------------------- kernel.pyx


def abs_w(x: float) -> float:
    return -x if x < 0.0 else x


def new_work() -> Obj:
    return SimpleNamespace(
        dt_s=0.0, net_w=0.0, dis_w=0.0, cha_w=0.0, dis_why=0, cha_why=0, sample_s=0.0, share=0.0, flags=0, fresh=False, meter_ok=False,
        meter_gone=False, frozen=False, bms_ok=False, pcs_ok=False, grid_ok=False, causes=0,
        ref_before_w=0.0, following=False, bms_now=True,
    )  # fmt: skip


def new_outputs() -> Obj:
    return SimpleNamespace(
        p_cmd_w=0.0, q_cmd_var=0.0, load_w=0.0, mean_w=0.0, target_w=0.0, ref_w=0.0, grid_p_w=0.0, batt_p_w=0.0, droop_w=0.0, p_min_w=0.0,
        p_max_w=0.0, horizon_s=0.0, align_s=0.0, filter_s=0.0, not_held_s=0.0, soc=0.0, rvrt_s=0.0, enable=0.0, heartbeat=0.0, slot_id=0,
        limits_active=0, alarms=0, mode=0, start_step=0, gate=0, op_request=0, slot=-1,
    )  # fmt: skip


def new_state(s: Obj) -> Obj:
    """reset()."""
    st = SimpleNamespace(
        last_t_ns=0, mode_since_ns=0, clean_since_ns=0, stop_since_ns=0, step_since_ns=0, model_t_ns=0, good_since_ns=0, bad_since_ns=0,
        follow_since_ns=0, frozen_since_ns=0, hb_t_ns=0, hb_first_ns=0, reset_t_ns=[0] * 3,
        q_t_ns=[0] * MODEL_QUEUE, q_w=[0.0] * MODEL_QUEUE, model_target_w=0.0, model_p_w=0.0,
        rb_t_ns=0, rb_target_w=0.0, rb_p_w=0.0, rb_err_w=0.0, rb_abs_w=0.0, align_num=0.0,
        align_den=0.0, align_s=0.0, load_w=0.0, stop_s=0.0, mean_w=0.0,
        horizon_s=0.0, ref_w=0.0, cmd_w=0.0, droop_w=0.0, volt_var=0.0, billing_wh=0.0, billing_phase_s=0.0, billing_limit_w=0.0,
        deaf_since_ns=0,
        last_grid_w=0.0,
        last_meter=[0.0] * 6, last_hb=0.0, not_held_s=0.0, last_meter_t_ns=0, last_meter_count=0, last_pcs_count=0,
        q_n=0, model_at=0, rb_at=0,
        ring_s=0.0, ring_e=[0.0] * RING_LAGS, ring_load_w=0.0, ring_var=0.0, ring_cov=[0.0] * RING_LAGS, ring_calm=0, ring_hot=0,
        sign_m_w=0.0, sign_p_w=0.0, sign_last_m_w=0.0, sign_last_p_w=0.0, sign_num=0.0, sign_den=0.0, sign_tick_num=0.0,
        sign_tick_den=0.0, sign_prev_m_w=0.0, sign_prev_p_w=0.0, pcs_good_ns=0, bms_good_ns=0, bms_lim_good_ns=0, sign_n=0, sign_blocks=0,
        mode=0, start_step=0, reset_seen=0, tripped=0, alarms=0, adopt=0, was_clean=0, stale=0, proven=0, parked=0,
    )  # fmt: skip
    st.mode = STANDBY
    st.horizon_s = s.mean_min_s
    st.billing_phase_s = -1.0
    st.last_hb = -1.0
    return st


def age_s(i: Obj, g: Obj) -> float:
    if g.t_ns == 0 or g.quality != Q_GOOD:
        return INF
    age = float(minus(i.step_t_ns, g.t_ns)) * 1e-9
    return age if age >= -AHEAD_S else INF


def since_s(i: Obj, t_ns: int) -> float:
    return float(minus(i.t_ns, t_ns)) * 1e-9


def good(i: Obj, t_ns: int, within_s: float) -> bool:
    return t_ns != 0 and float(minus(i.step_t_ns, t_ns)) * 1e-9 <= within_s


def judge(i: Obj, s: Obj, st: Obj, w: Obj) -> None:
    m = i.meter
    w.dt_s = clamp(since_s(i, st.last_t_ns), 0.0, 1.0) if st.last_t_ns else 0.0
    st.last_t_ns = i.t_ns

    age = age_s(i, m.g)
    w.meter_ok = age <= s.meter_hold_s and finite(m.grid_p_w) and -8.0 * s.feeder_w <= m.grid_p_w <= 8.0 * s.feeder_w
    w.fresh = w.meter_ok and m.g.count != st.last_meter_count
    if w.fresh:
        w.sample_s = clamp(float(minus(m.g.t_ns, st.last_meter_t_ns)) * 1e-9, 0.0, 1.0)
        st.last_meter_t_ns = m.g.t_ns
        now = [m.grid_p_w, m.q_var, m.v1_v, m.v2_v, m.v3_v, m.f_hz]
        for k in range(6):
            if now[k] != st.last_meter[k] and (now[k] == now[k] or st.last_meter[k] == st.last_meter[k]):
                st.frozen_since_ns = i.t_ns
            st.last_meter[k] = now[k]
        st.last_meter_count = m.g.count
    w.meter_gone = st.last_meter_t_ns == 0 or float(minus(i.step_t_ns, st.last_meter_t_ns)) * 1e-9 > s.meter_lost_s
    if not w.meter_ok:
        st.frozen_since_ns = minus(st.frozen_since_ns, -to_ns(w.dt_s))
    elif s.frozen_s > 0.0 and since_s(i, st.frozen_since_ns) > s.frozen_s:
        w.meter_ok = False
        w.fresh = False
        if since_s(i, st.frozen_since_ns) > s.frozen_s + s.meter_lost_s or st.mode == STANDBY:
            w.meter_gone = True
            w.frozen = True

    if age_s(i, i.bms.g) <= s.bms_lost_s and -0.05 <= i.bms.soc <= 1.05:
        st.bms_good_ns = i.bms.g.t_ns
    elif s.has_bms:
        w.bms_now = False
    if age_s(i, i.bms_lim.g) <= s.bms_lost_s:
        st.bms_lim_good_ns = i.bms_lim.g.t_ns
    elif s.has_bms_limits:
        w.bms_now = False
    if age_s(i, i.pcs.g) <= s.pcs_lost_s and -8.0 * s.s_rated_va <= i.pcs.batt_p_w <= 8.0 * s.s_rated_va:
        st.pcs_good_ns = i.pcs.g.t_ns
    if not i.pcs_deaf:
        st.deaf_since_ns = 0
    elif st.deaf_since_ns == 0:
        st.deaf_since_ns = i.t_ns
    w.bms_ok = (not s.has_bms or good(i, st.bms_good_ns, s.bms_lost_s)) and (
        not s.has_bms_limits or good(i, st.bms_lim_good_ns, s.bms_lost_s)
    )
    w.pcs_ok = good(i, st.pcs_good_ns, s.pcs_lost_s)

    if w.fresh:
        low = s.v_min_pu * s.v_nom_v
        high = s.v_max_pu * s.v_nom_v
        w.grid_ok = not (
            m.f_hz < s.f_min_hz or m.f_hz > s.f_max_hz or m.v1_v < low or m.v2_v < low or m.v3_v < low
            or m.v1_v > high or m.v2_v > high or m.v3_v > high
        )  # fmt: skip
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
            st.good_since_ns = 0


def enter(st: Obj, i: Obj, mode: int) -> None:
    st.mode = mode
    st.mode_since_ns = i.t_ns
    st.start_step = START_DEVICES
    st.step_since_ns = i.t_ns
    st.clean_since_ns = 0
    st.follow_since_ns = 0
    st.parked = 0
    if mode == STANDBY:
        st.adopt = 0
        st.hb_first_ns = 0


def fault(st: Obj, i: Obj, alarm: int) -> None:
    st.alarms |= alarm
    if st.mode != FAULT:
        if alarm & PERSON:
            st.was_clean = 0
        elif st.mode != TRIP:
            st.was_clean = int(st.mode == GRID and since_s(i, st.mode_since_ns) >= PROVED_S)
        enter(st, i, FAULT)


def trip(st: Obj, i: Obj, alarm: int) -> None:
    st.alarms |= alarm
    st.was_clean = int(st.mode == GRID and since_s(i, st.mode_since_ns) >= PROVED_S)
    st.tripped = 1
    enter(st, i, TRIP)


def react(st: Obj, i: Obj, w: Obj, alarm: int) -> None:
    w.causes |= alarm
    if alarm & TO_FAULT:
        fault(st, i, alarm & ACTS)
    elif alarm & TO_TRIP:
        trip(st, i, alarm & ACTS)


def unseen(s: Obj, st: Obj) -> int:
    a = 0
    if st.last_meter_t_ns == 0:
        a |= ALM_METER_LOST
    if st.pcs_good_ns == 0:
        a |= ALM_PCS_LOST
    if (s.has_bms and st.bms_good_ns == 0) or (s.has_bms_limits and st.bms_lim_good_ns == 0):
        a |= ALM_BMS_LOST
    return a


def causes(i: Obj, s: Obj, st: Obj, w: Obj) -> int:
    a = 0
    if w.meter_gone:
        a |= ALM_METER_FROZEN if w.frozen else ALM_METER_LOST
    if not w.pcs_ok:
        a |= ALM_PCS_LOST
    elif i.pcs.pcs_state == PCS_FAULTED:
        a |= ALM_PCS_FAULT
    if not w.bms_ok:
        a |= ALM_BMS_LOST
    elif s.has_bms and (
        i.bms.bms_state == BMS_FAULTED or (st.mode == GRID and i.bms.g.quality == Q_GOOD and i.bms.bms_state != BMS_CONNECTED)
    ):
        a |= ALM_BMS_FAULT
    if s.has_pcs_life and i.pcs_life.g.count and i.pcs_life.pcs_local == 1.0:
        a |= ALM_PCS_LOCAL
    if i.verified < 0:
        a |= ALM_IDENTITY
    if w.pcs_ok and st.deaf_since_ns and since_s(i, st.deaf_since_ns) > s.pcs_lost_s:
        a |= ALM_PCS_NOT_FOLLOWING
    return a


def start(i: Obj, s: Obj, st: Obj, w: Obj, o: Obj) -> None:
    live = i.pcs.pcs_state == PCS_RUNNING or i.pcs.pcs_state == PCS_THROTTLED
    bms_closed = not s.has_bms or (w.bms_ok and i.bms.bms_state == BMS_CONNECTED)
    beat = finite(i.pcs_life.pcs_heartbeat) and i.pcs_life.pcs_heartbeat != st.last_hb
    before = st.start_step
    proven = w.meter_ok and w.pcs_ok and w.bms_ok and i.verified == 1 and causes(i, s, st, w) & ACTS == 0
    reverted = s.has_pcs_ctl and i.pcs_ctl.wset_ena != 1.0
    if not proven or (st.adopt and st.start_step > START_DEVICES and (not live or reverted)):
        st.start_step = START_DEVICES
    elif st.start_step == START_DEVICES:
        if (not s.has_pcs_ctl or i.pcs_ctl.g.count) and (not s.has_pcs_life or i.pcs_life.g.count):
            told = not s.has_pcs_ctl or i.pcs_ctl.wset_ena == 1.0
            st.adopt = int(live and told and st.bad_since_ns == 0 and not st.tripped)
            st.start_step = START_REVERSION
    elif st.start_step == START_REVERSION:
        c = i.pcs_ctl
        if not s.has_pcs_ctl or (
            age_s(i, c.g) < 3.0 and c.g.t_ns > st.step_since_ns and c.wset_rvrt_ena == 1.0 and c.wset_rvrt_w == 0.0
            and abs_w(c.wset_rvrt_s - s.pcs_rvrt_s) < 1.0
        ):  # fmt: skip
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
                st.hb_first_ns = i.t_ns
            if st.hb_first_ns and (st.adopt or since_s(i, st.hb_first_ns) >= HEARTBEAT_S):
                st.start_step = START_OPERATE
    elif st.start_step == START_OPERATE and (
        st.adopt or (st.good_since_ns != 0 and since_s(i, st.good_since_ns) >= s.enter_service_delay_s)
    ):
        if live:
            st.start_step = START_DONE
        else:
            o.op_request = OP_START
    if beat:
        st.last_hb = i.pcs_life.pcs_heartbeat
        st.hb_t_ns = i.t_ns
    if st.start_step != before:
        st.step_since_ns = i.t_ns


def follows(i: Obj, s: Obj, st: Obj, w: Obj) -> None:
    if s.follow_w > 0.0 and not st.rb_abs_w <= s.follow_w:
        if st.follow_since_ns == 0:
            st.follow_since_ns = i.t_ns
        elif since_s(i, st.follow_since_ns) > s.follow_s:
            react(st, i, w, ALM_PCS_NOT_FOLLOWING)
    else:
        st.follow_since_ns = 0


def may_reset(i: Obj, st: Obj, now: int) -> bool:
    oldest = 0
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


def forming(i: Obj) -> bool:
    return 0.0 <= i.pcs.pcs_der_mode < 4294967296.0 and int(i.pcs.pcs_der_mode) & 2 != 0


def modes(i: Obj, s: Obj, st: Obj, w: Obj, o: Obj) -> None:
    now = causes(i, s, st, w)
    acts = now & ACTS
    grid_bad = st.bad_since_ns != 0 and since_s(i, st.bad_since_ns) >= s.trip_s
    w.causes = now
    if st.mode != FAULT:
        st.reset_seen = i.reset
    if i.latched:
        if i.latched & ALM_GRID_OUTSIDE:
            st.tripped = 1
        if i.latched & ~ALM_GRID_OUTSIDE:
            st.alarms |= i.latched
            st.was_clean = 0
            if st.mode != FAULT:
                enter(st, i, FAULT)
    if i.stop and st.parked:
        st.parked = 0
        st.stop_s = smaller(st.stop_s, since_s(i, st.stop_since_ns) + 55.0)
    waits = st.mode == STANDBY and st.start_step > START_REVERSION and not st.adopt
    if (i.stop and st.mode != STOP) or (i.park and (st.mode == GRID or waits)):
        stop(i, s, st)
    if st.mode == GRID or st.mode == ISLAND:
        if st.mode == GRID:
            follows(i, s, st, w)
        if st.mode != GRID and st.mode != ISLAND:
            pass
        elif acts:
            react(st, i, w, acts)
        elif i.pcs.pcs_state != PCS_RUNNING and i.pcs.pcs_state != PCS_THROTTLED:
            react(st, i, w, ALM_PCS_FAULT)
        elif s.has_pcs_ctl and (
            i.pcs_ctl.wset_rvrt_ena != 1.0 or not abs_w(i.pcs_ctl.wset_rvrt_s - s.pcs_rvrt_s) < 1.0
            or not age_s(i, i.pcs_ctl.g) <= 2.0 * s.pcs_rvrt_s + 2.0
        ):
            react(st, i, w, ALM_REVERSION)
        elif grid_bad and st.mode == GRID:
            if forming(i):
                enter(st, i, ISLAND)
            else:
                react(st, i, w, ALM_GRID_OUTSIDE)
        elif st.mode == ISLAND and not forming(i):
            enter(st, i, RESYNC)
    elif st.mode == STOP:
        if st.parked and not i.park:
            st.alarms = 0
            enter(st, i, STANDBY)
            return
        if st.parked and st.start_step == START_DONE:
            st.alarms = 0
        if acts or grid_bad:
            st.alarms |= acts | (ALM_GRID_OUTSIDE if grid_bad else 0)
            st.stop_s = 0.0
    elif st.mode == RESYNC:
        if acts:
            react(st, i, w, acts)
        elif st.good_since_ns and since_s(i, st.good_since_ns) >= s.enter_service_delay_s:
            enter(st, i, STANDBY)
    elif st.mode == TRIP:
        if acts & TO_FAULT:
            fault(st, i, acts)
        elif acts == 0 and st.good_since_ns and since_s(i, st.good_since_ns) >= s.enter_service_delay_s:
            st.alarms = 0
            enter(st, i, STANDBY)
    elif st.mode == FAULT:
        st.alarms |= acts & ~unseen(s, st)
        if may_reset(i, st, acts):
            st.alarms = 0
            st.rb_err_w = 0.0
            st.rb_abs_w = 0.0
            enter(st, i, STANDBY)
    elif st.mode == STANDBY:
        start(i, s, st, w, o)
        if st.bad_since_ns:
            w.causes |= ALM_GRID_OUTSIDE
        if st.start_step == START_DONE:
            go(i, s, st, w)
            if i.park:
                stop(i, s, st)


def others_w(i: Obj, s: Obj) -> float:
    p, most = 0.0, 8.0 * s.feeder_w
    if s.has_others:
        if -most <= i.others.pv_p_w <= most:
            p += i.others.pv_p_w
        if -most <= i.others.gen_p_w <= most:
            p += i.others.gen_p_w
    return p


def stop(i: Obj, s: Obj, st: Obj) -> None:
    st.stop_since_ns = i.t_ns
    ramp_s = clamp(div(abs_w(st.cmd_w), s.ramp_down_w_per_s), 0.1, 55.0 if i.stop else INF)
    st.stop_s = ramp_s if st.mode == GRID else 0.0
    enter(st, i, STOP)
    st.parked = int(not i.stop)


def go(i: Obj, s: Obj, st: Obj, w: Obj) -> None:
    enter(st, i, GRID)
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
    st.sign_m_w = st.sign_p_w = st.sign_num = st.sign_den = st.sign_tick_num = st.sign_tick_den = 0.0
    st.ring_load_w = i.meter.grid_p_w + i.pcs.batt_p_w + others_w(i, s)
    st.rb_err_w = 0.0
    st.rb_abs_w = 0.0
    st.cmd_w = i.pcs.batt_p_w
    st.load_w = i.meter.grid_p_w + i.pcs.batt_p_w + others_w(i, s)
    st.mean_w = st.load_w
    st.ref_w = i.meter.grid_p_w
    st.horizon_s = s.mean_min_s


def model_advance(s: Obj, st: Obj, which: str, t_ns: int) -> None:
    """which: "model" on the meter's clock, "rb" on the readback's."""
    at_ns, p, target, at = (getattr(st, f"{which}_{x}") for x in ("t_ns", "p_w", "target_w", "at"))
    guard = 0
    if (st.q_n - at) & U32 > MODEL_QUEUE:
        at = (st.q_n - MODEL_QUEUE) & U32
    while at_ns < t_ns and guard <= 2 * MODEL_QUEUE:
        guard += 1
        until = t_ns
        if at != st.q_n:
            if st.q_t_ns[at % MODEL_QUEUE] <= at_ns:
                target = st.q_w[at % MODEL_QUEUE]
                at = (at + 1) & U32
                continue
            if st.q_t_ns[at % MODEL_QUEUE] < until:
                until = st.q_t_ns[at % MODEL_QUEUE]
        p = lag(p, target, float(minus(until, at_ns)) * 1e-9, s.pcs_tau_s)
        at_ns = until
    for x, v in (("t_ns", at_ns), ("p_w", p), ("target_w", target), ("at", at)):
        setattr(st, f"{which}_{x}", v)


def model_push(st: Obj, t_ns: int, p_w: float) -> None:
    st.q_t_ns[st.q_n % MODEL_QUEUE] = t_ns
    st.q_w[st.q_n % MODEL_QUEUE] = p_w
    st.q_n = (st.q_n + 1) & U32


def align(i: Obj, s: Obj, st: Obj, w: Obj) -> None:
    if st.pcs_good_ns != i.pcs.g.t_ns or i.pcs.g.count == st.last_pcs_count or i.pcs.g.t_ns < st.rb_t_ns:
        return
    st.last_pcs_count = i.pcs.g.count
    model_advance(s, st, "rb", i.pcs.g.t_ns)
    err = i.pcs.batt_p_w - st.rb_p_w
    slope = (st.rb_target_w - st.rb_p_w) / s.pcs_tau_s if s.pcs_tau_s > 0.0 else 0.0
    keep = decay(w.dt_s / ALIGN_TIME_S)
    st.align_num = st.align_num * keep + (err - st.rb_err_w) * slope
    st.align_den = st.align_den * keep + slope * slope
    worth = div(0.02 * 0.37 * s.s_rated_va, s.pcs_tau_s + 1e-4)
    if st.align_den > 10.0 * worth * worth:
        st.align_s = div(st.align_num, st.align_den)
    st.rb_err_w += (err - st.rb_err_w) * clamp(w.dt_s / RB_TIME_S, 0.0, 1.0)
    if s.pcs_tau_s >= OBSERVE_S:
        err = OBSERVE * (err - st.rb_err_w)
        st.rb_p_w += err
        st.model_p_w += err
        err = i.pcs.batt_p_w - st.rb_p_w
    st.rb_abs_w += (abs_w(err) - st.rb_abs_w) * clamp(w.dt_s / RB_TIME_S, 0.0, 1.0)


def ringing(s: Obj, st: Obj, load_w: float) -> None:
    keep = 1.0 - 1.0 / RING_MEMORY
    worst = recent = 0.0
    e = load_w - st.ring_load_w
    st.ring_var = st.ring_var * keep + e * e / RING_MEMORY
    for k in range(RING_LAGS):
        st.ring_cov[k] = st.ring_cov[k] * keep + e * st.ring_e[k] / RING_MEMORY
        worst = smaller(worst, st.ring_cov[k] + 0.25 * st.ring_var if k == 0 else st.ring_cov[k])
    for k in range(RING_LAGS - 1, 0, -1):
        st.ring_e[k] = st.ring_e[k - 1]
        recent += st.ring_e[k] * st.ring_e[k]
    st.ring_e[0] = e
    recent = (recent + e * e) / RING_LAGS
    st.ring_load_w = load_w
    level = (RING_LEVEL * s.s_rated_va) * (RING_LEVEL * s.s_rated_va)
    if smaller(recent, st.ring_var) > level and worst < -RING_SHARE * st.ring_var:
        st.ring_calm = 0
        st.ring_hot = (st.ring_hot + 1) & U32
        if st.ring_hot >= RING_HOT:
            st.ring_hot = 0
            st.ring_s = clamp(3.0 * st.ring_s, 0.01, 0.1)
    else:
        st.ring_hot = 0
        st.ring_calm = (st.ring_calm + 1) & U32
        if st.ring_calm >= RING_CALM:
            st.ring_calm = 0
            st.ring_s = 0.5 * st.ring_s if st.ring_s > s.align_full_s else 0.0


def watch_sign(i: Obj, s: Obj, st: Obj, w: Obj) -> None:
    m, p, keep, floor = i.meter.grid_p_w, st.model_p_w + st.rb_err_w, 0.998, 0.05 * s.s_rated_va
    dm, dp = m - st.sign_prev_m_w, p - st.sign_prev_p_w
    if st.sign_n or st.sign_blocks:
        st.sign_tick_num = st.sign_tick_num * keep + dm * dp
        st.sign_tick_den = st.sign_tick_den * keep + dp * dp
    st.sign_prev_m_w = m
    st.sign_prev_p_w = p
    st.sign_m_w += m
    st.sign_p_w += p
    st.sign_n = (st.sign_n + 1) & U32
    if st.sign_n < SIGN_BLOCK:
        return
    m = div(st.sign_m_w, float(st.sign_n))
    p = div(st.sign_p_w, float(st.sign_n))
    st.sign_n = 0
    st.sign_m_w = st.sign_p_w = 0.0
    dm, dp = m - st.sign_last_m_w, p - st.sign_last_p_w
    st.sign_last_m_w = m
    st.sign_last_p_w = p
    st.sign_blocks = (st.sign_blocks + 1) & U32
    if st.sign_blocks < 2:
        return
    st.sign_num = 0.98 * st.sign_num + dm * dp
    st.sign_den = 0.98 * st.sign_den + dp * dp
    least = smaller(st.sign_den, st.sign_tick_den)
    if least > floor * floor and st.sign_num > 0.5 * st.sign_den and st.sign_tick_num > 0.5 * st.sign_tick_den:
        react(st, i, w, ALM_METER_SIGN)


def reconstruct(i: Obj, s: Obj, st: Obj, w: Obj, o: Obj) -> None:
    others = others_w(i, s)
    align(i, s, st, w)
    if w.fresh:
        model_advance(s, st, "model", i.meter.g.t_ns)
        load = i.meter.grid_p_w + st.model_p_w + st.rb_err_w + others
        if st.mode == GRID:
            ringing(s, st, load)
            watch_sign(i, s, st, w)
        t_f = larger(abs_w(st.align_s), st.ring_s) + float(minus(st.model_t_ns, i.meter.g.t_ns)) * 1e-9
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


def less_dis(w: Obj, bound: float, flag: int) -> None:
    if not bound > 0.0:
        bound = 0.0
    if bound < w.dis_w:
        w.dis_w = bound
        w.dis_why = flag


def less_cha(w: Obj, bound: float, flag: int) -> None:
    if not bound > 0.0:
        bound = 0.0
    if bound < w.cha_w:
        w.cha_w = bound
        w.cha_why = flag


def device_limits(i: Obj, lim: Obj, s: Obj, w: Obj) -> None:
    w.dis_w = w.cha_w = INF
    w.dis_why = w.cha_why = 0
    less_dis(w, s.pcs_p_max_w, LIM_PCS_S)
    less_cha(w, s.pcs_p_max_w, LIM_PCS_S)
    less_dis(w, s.s_rated_va, LIM_PCS_S)
    less_cha(w, s.s_rated_va, LIM_PCS_S)
    less_dis(w, lim.p_discharge_max_w, LIM_SITE_P)
    less_cha(w, lim.p_charge_max_w, LIM_SITE_P)
    if not w.bms_now:
        less_dis(w, 0.0, LIM_BMS_STALE)
        less_cha(w, 0.0, LIM_BMS_STALE)
        return
    if s.has_bms:
        less_dis(w, s.pcs_p_max_w * taper(i.bms.soc - lim.soc_min, SOC_TAPER), LIM_SOC_MIN)
        less_cha(w, s.pcs_p_max_w * taper(lim.soc_max - i.bms.soc, SOC_TAPER), LIM_SOC_MAX)
        if i.bms.bms_state != BMS_CONNECTED:
            less_dis(w, 0.0, LIM_BMS_DISCHARGE)
            less_cha(w, 0.0, LIM_BMS_CHARGE)
    if s.has_bms_temp:
        b = i.bms_temp
        if age_s(i, b.g) > 10.0 * s.bms_lost_s or not finite(b.batt_temp_max_c + b.batt_temp_min_c):
            k = 0.0
        else:
            k = taper(s.temp_max_c - b.batt_temp_max_c, s.temp_taper_c)
            t = taper(b.batt_temp_min_c - s.temp_min_c, s.temp_taper_c)
            if k == k and not k < t:
                k = t
        less_dis(w, s.pcs_p_max_w * k, LIM_TEMP)
        less_cha(w, s.pcs_p_max_w * k, LIM_TEMP)
    if s.has_bms_limits:
        b = i.bms_lim
        less_dis(w, s.batt_eta * b.batt_v * b.batt_i_discharge_max_a, LIM_BMS_DISCHARGE)
        less_cha(w, b.batt_v * b.batt_i_charge_max_a, LIM_BMS_CHARGE)
        if b.batt_p_discharge_max_w == b.batt_p_discharge_max_w:
            less_dis(w, s.batt_eta * b.batt_p_discharge_max_w, LIM_BMS_DISCHARGE)
        if b.batt_p_charge_max_w == b.batt_p_charge_max_w:
            less_cha(w, b.batt_p_charge_max_w, LIM_BMS_CHARGE)
        t = 0.02 * (s.batt_v_max_v - s.batt_v_min_v)
        if not t < INF:
            t = 0.02 * i.bms_lim.batt_v
        less_dis(w, s.pcs_p_max_w * taper(b.batt_v - s.batt_v_min_v, t), LIM_BATT_V)
        less_cha(w, s.pcs_p_max_w * taper(s.batt_v_max_v - b.batt_v, t), LIM_BATT_V)


def bounded(p: float, low: float, high: float, low_flag: int, high_flag: int, w: Obj) -> float:
    if p < low:
        w.flags |= low_flag
        p = low
    if p > high:
        w.flags |= high_flag
        p = high
    return p


def bill(i: Obj, lim: Obj, s: Obj, st: Obj, w: Obj) -> None:
    if not s.billing_window_s > 0.0 or not i.billing_phase_s >= 0.0:
        return
    elapsed = clamp(i.billing_phase_s, 0.0, s.billing_window_s)
    if s.import_limit_w < st.billing_limit_w:
        owed = larger(st.billing_wh - st.billing_limit_w * st.billing_phase_s / 3600.0, 0.0)
        st.billing_wh = smaller(st.billing_wh, s.import_limit_w * st.billing_phase_s / 3600.0 + owed)
    st.billing_limit_w = s.import_limit_w
    if elapsed < st.billing_phase_s or st.billing_phase_s < 0.0:
        st.billing_wh = s.import_limit_w * elapsed / 3600.0
    elif not w.meter_ok:
        st.billing_wh += s.import_limit_w * (elapsed - st.billing_phase_s) / 3600.0
    elif st.last_grid_w > 0.0:
        st.billing_wh += st.last_grid_w * (elapsed - st.billing_phase_s) / 3600.0
    st.billing_phase_s = elapsed


def import_allowed(i: Obj, lim: Obj, s: Obj, st: Obj) -> float:
    if not s.billing_window_s > 0.0 or not i.billing_phase_s >= 0.0:
        return lim.import_limit_w
    left = s.billing_window_s - st.billing_phase_s
    over = clamp(st.billing_wh * 3600.0 - s.import_limit_w * st.billing_phase_s, 0.0, INF)
    return clamp(s.import_limit_w - over / (left if left > 60.0 else 60.0), 0.0, lim.import_limit_w)


def slow_mean(i: Obj, lim: Obj, s: Obj, st: Obj, w: Obj) -> None:
    off = 0.0
    if s.has_bms and w.bms_now:
        off = abs_w(i.bms.soc - lim.soc_target)
    longest = s.mean_min_s + (s.mean_max_s - s.mean_min_s) * clamp((0.3 - off) / 0.2, 0.0, 1.0)
    st.horizon_s = slew(st.horizon_s, longest, 1.0, 10.0, w.dt_s)
    st.mean_w += (st.load_w - st.mean_w) * clamp(div(w.dt_s, st.horizon_s), 0.0, 1.0)


def reference(i: Obj, lim: Obj, s: Obj, st: Obj, w: Obj, o: Obj, base_w: float) -> None:
    others = st.load_w - w.net_w
    slow_mean(i, lim, s, st, w)
    allowed = import_allowed(i, lim, s, st)
    target = st.mean_w - others + base_w
    if s.has_bms and w.bms_now:
        gap = div((i.bms.soc - lim.soc_target) * s.energy_wh * 3600.0, s.soc_time_s)
        target -= clamp(gap, -0.25 * s.s_rated_va, 0.25 * s.s_rated_va)
    bound = clamp(target, -lim.export_limit_w, allowed)
    if bound < target:
        w.flags |= LIM_IMPORT if allowed >= lim.import_limit_w else LIM_BILLING
    elif bound > target:
        w.flags |= LIM_EXPORT
    o.target_w = bound
    w.ref_before_w = st.ref_w
    w.following = True
    st.ref_w = slew(st.ref_w, bound, lim.ramp_up_w_per_s, lim.ramp_down_w_per_s, w.dt_s)
    if st.ref_w != bound:
        w.flags |= LIM_RAMP
    st.ref_w = bounded(st.ref_w, w.net_w - w.dis_w, w.net_w + w.cha_w, w.dis_why, w.cha_why, w)


def ramp_held(lim: Obj, st: Obj, w: Obj) -> None:
    moved = st.ref_w - w.ref_before_w
    if moved > lim.ramp_up_w_per_s * w.dt_s * 1.000001 + 1e-6 or moved < -lim.ramp_down_w_per_s * w.dt_s * 1.000001 - 1e-6:
        st.not_held_s += w.dt_s
        w.flags |= LIM_NOT_HELD


def choose(i: Obj) -> int:
    for k in range(SLOTS):
        if i.slot[k].kind != SP_NONE and i.slot[k].lease_until_ns > i.t_ns and finite(i.slot[k].value_w):
            return k
    return -1


def battery(i: Obj, lim: Obj, s: Obj, st: Obj, w: Obj, o: Obj) -> float:
    base_w = 0.0
    o.slot = choose(i)
    if o.slot >= 0:
        o.slot_id = i.slot[o.slot].id
        if i.slot[o.slot].kind == SP_BASE:
            base_w = i.slot[o.slot].value_w
    hold = o.slot >= 0 and i.slot[o.slot].kind == SP_HOLD
    w.share = 1.0
    if st.mode == STOP:
        ramping = st.stop_s > 0.0 and i.stop < 2
        w.share = clamp(1.0 - since_s(i, st.stop_since_ns) / st.stop_s, 0.0, 1.0) if ramping else 0.0
        if w.share == 0.0:
            return 0.0
    if not w.meter_ok:
        w.flags |= LIM_METER_STALE
        st.stale = 1
        return slew(st.cmd_w, 0.0, s.s_rated_va / 2.0, s.s_rated_va / 2.0, w.dt_s)
    if st.stale:
        st.stale = 0
        st.ref_w = w.net_w - (st.cmd_w - st.droop_w)
    if hold and st.mode != STOP:
        w.flags |= LIM_HOLD
        slow_mean(i, lim, s, st, w)
        p = slew_from_zero(st.cmd_w - st.droop_w, i.slot[o.slot].value_w, lim.ramp_up_w_per_s, w.dt_s)
        st.ref_w = w.net_w - p
        o.target_w = st.ref_w
    elif st.mode != STOP and i.pcs_deaf:
        o.target_w = st.ref_w
        st.not_held_s += w.dt_s
        w.flags |= LIM_NOT_HELD
        p = st.cmd_w - st.droop_w
    elif st.mode != STOP:
        reference(i, lim, s, st, w, o, base_w)
        p = shave(w.net_w, st.ref_w)
    else:
        o.target_w = st.ref_w
        p = shave(w.net_w, st.ref_w)
    p *= w.share
    if (hold or i.pcs_deaf) and st.mode == STOP:
        p = clamp(p, smaller(st.cmd_w, 0.0), larger(st.cmd_w, 0.0))
    return p


def frequency(i: Obj, s: Obj, st: Obj, w: Obj) -> float:
    p = 0.0
    if s.droop_r > 0.0 and w.meter_ok and abs_w(i.meter.f_hz - s.f_nom_hz) < 0.2 * s.f_nom_hz:
        p = clamp(droop(i.meter.f_hz, s.f_nom_hz, s.droop_db_hz, s.droop_r, s.s_rated_va), -s.s_rated_va, s.s_rated_va)
    st.droop_w = lag(st.droop_w, p, w.dt_s, s.droop_tr_s / 2.302585092994046)
    if abs_w(st.droop_w) > 1e-3 * s.s_rated_va:
        w.flags |= LIM_DROOP
    elif p == 0.0:
        st.droop_w = 0.0 if abs_w(st.droop_w) < 1.0 else st.droop_w
    return st.droop_w


def reactive(i: Obj, s: Obj, st: Obj, w: Obj, p_w: float) -> float:
    q, room = 0.0, q_room(s.s_rated_va, p_w)
    if not s.q_max_var > 0.0:
        return 0.0
    v = div(i.meter.v1_v + i.meter.v2_v + i.meter.v3_v, 3.0 * s.v_nom_v)
    if w.meter_ok and finite(v):
        q = volt_var(v, s.volt_db_pu, s.volt_full_pu, s.q_max_var)
    st.volt_var = lag(st.volt_var, q, w.dt_s, s.volt_tr_s / 2.302585092994046)
    return clamp(st.volt_var, -room, room)


def limit(i: Obj, lim: Obj, s: Obj, st: Obj, w: Obj, o: Obj, p: float, before_w: float, droop_w: float) -> float:
    if i.pcs_deaf and st.mode == GRID:
        p = clamp(p + (droop_w if w.meter_ok else 0.0), smaller(st.cmd_w, 0.0), larger(st.cmd_w, 0.0))
        return bounded(p, -w.cha_w, w.dis_w, w.cha_why, w.dis_why, w)
    if s.cmd_slew_w_per_s < INF:
        o.p_cmd_w = slew_from_zero(before_w, p, s.cmd_slew_w_per_s, w.dt_s)
        if o.p_cmd_w != p:
            w.flags |= LIM_SLEW
        p = o.p_cmd_w
    if w.meter_ok and st.mode == GRID:
        want = p
        p = bounded(p, w.net_w - lim.import_limit_w, w.net_w + lim.export_limit_w, LIM_IMPORT, LIM_EXPORT, w)
        if p != want:
            st.ref_w = w.net_w - clamp(p, -w.cha_w, w.dis_w)
        p += droop_w
        p = bounded(p, w.net_w - s.feeder_w, w.net_w + s.feeder_w, LIM_FEEDER, LIM_FEEDER, w)
    elif w.meter_ok:
        low, high = smaller(w.net_w - lim.import_limit_w, 0.0), larger(w.net_w + lim.export_limit_w, 0.0)
        p = bounded(p, low, high, LIM_IMPORT, LIM_EXPORT, w)
        p += droop_w * w.share
        p = bounded(p, smaller(w.net_w - s.feeder_w, 0.0), larger(w.net_w + s.feeder_w, 0.0), LIM_FEEDER, LIM_FEEDER, w)
    p = bounded(p, -w.cha_w, w.dis_w, w.cha_why, w.dis_why, w)
    return p


def gate(i: Obj, lim: Obj, s: Obj, st: Obj, w: Obj, o: Obj, p: float) -> None:
    if not finite(p):
        p = 0.0
        fault(st, i, ALM_INTERNAL)
    if not finite(o.q_cmd_var):
        o.q_cmd_var = 0.0
        st.volt_var = 0.0
    kept = i.pcs_ctl.wset_w if s.has_pcs_ctl else i.pcs.batt_p_w
    if st.mode == STANDBY and st.adopt and finite(kept):
        p = clamp(kept, -w.cha_w, w.dis_w)
    elif st.mode != GRID and st.mode != STOP:
        p = 0.0
        w.flags |= LIM_MODE
    known = w.bms_now and not (s.has_bms_temp and age_s(i, i.bms_temp.g) > 10.0 * s.bms_lost_s)
    barred = st.start_step == START_BMS and known and w.dis_w == 0.0 and w.cha_w == 0.0
    ready = st.start_step >= (START_HEARTBEAT if st.adopt else START_BMS) or barred
    o.gate = int(st.mode != STANDBY or (i.verified == 1 and ready))
    if st.mode == STOP and p == 0.0 and (i.stop >= 2 or not since_s(i, st.stop_since_ns) < st.stop_s):
        st.start_step = START_DONE
        state = i.pcs.pcs_state
        if not st.parked or state != state or PCS_STARTING <= state <= PCS_THROTTLED:
            o.op_request = OP_STOP
    if i.pcs_deaf:
        w.flags |= LIM_PCS_DEAF
        running = w.pcs_ok and PCS_STARTING <= i.pcs.pcs_state <= PCS_THROTTLED
        if (st.mode == FAULT or st.mode == TRIP) and running and abs_w(i.pcs.batt_p_w) > s.follow_w:
            o.op_request = OP_STOP
    p += 0.0
    o.p_cmd_w = p
    st.cmd_w = p
    o.enable = 1.0
    o.rvrt_s = 0.0 if st.mode == STANDBY and st.start_step == START_DEVICES else s.pcs_rvrt_s
    st.proven = (st.proven + 1) & U32 if o.gate else 0
    hundreds = i.tick // 100 if i.tick >= 0 else -(-i.tick // 100)  # C divides toward zero
    o.heartbeat = float(hundreds & 0x3FFFFFFF) + 1.0 if o.gate else 0.0
    if o.gate:
        model_push(st, minus(i.command_t_ns, -to_ns(s.pcs_dead_s)), p)
    if i.step_t_ns > lim.lease_until_ns:
        w.flags |= LIM_LEASE
    if lim.flags & LIMITS_OPERATOR:
        w.flags |= LIM_OPERATOR


def step(i: Obj, lim: Obj, s: Obj, st: Obj) -> Obj:
    w, o = new_work(), new_outputs()
    p = extra = 0.0
    judge(i, s, st, w)
    device_limits(i, lim, s, w)
    modes(i, s, st, w, o)
    reconstruct(i, s, st, w, o)
    bill(i, lim, s, st, w)
    if st.mode == GRID or st.mode == STOP:
        before = st.cmd_w - st.droop_w if w.meter_ok else st.cmd_w
        p = battery(i, lim, s, st, w, o)
        extra = frequency(i, s, st, w)
        p = limit(i, lim, s, st, w, o, p, before, extra)
        if w.following:
            ramp_held(lim, st, w)
    else:
        st.droop_w = 0.0
        st.ref_w = st.last_grid_w
        st.mean_w = st.load_w
        st.horizon_s = s.mean_min_s
    o.q_cmd_var = reactive(i, s, st, w, p) if st.mode == GRID else 0.0
    gate(i, lim, s, st, w, o, p)
    o.load_w = st.load_w
    o.mean_w = st.mean_w
    o.ref_w = st.ref_w
    o.grid_p_w = st.last_grid_w
    o.droop_w = st.droop_w
    o.horizon_s = st.horizon_s
    o.align_s = st.align_s
    o.not_held_s = st.not_held_s
    o.soc = i.bms.soc if s.has_bms else NAN
    o.limits_active = w.flags
    o.p_min_w = -w.cha_w
    o.p_max_w = w.dis_w
    o.alarms = st.alarms | (w.causes if st.mode == STANDBY or st.mode == FAULT else w.causes & ~ACTS)
    o.mode = st.mode
    o.start_step = st.start_step
    return o


class Twin:
    """The face of _core.kernel.Kernel over the plain functions above."""

    def __init__(self, site: dict[str, Any]) -> None:
        self.site = obj(site)
        self.state = new_state(self.site)

    def step(self, inp: dict[str, Any], lim: dict[str, Any]) -> dict[str, Any]:
        return vars(step(obj(inp), obj(lim), self.site, self.state))

    def get_state(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, list) else v for k, v in vars(self.state).items()}

    def set_state(self, st: dict[str, Any]) -> None:
        self.state = obj(st)
