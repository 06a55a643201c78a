# What others ask of the engine, read once a tick and judged on its side: settings, limits, setpoints. What is damaged or out of range is
# counted (EngineStats.setpoint_rejects) and leaves the last good value standing.

from libc.stdint cimport uint32_t

from _core.engine cimport Core
from _core.image cimport (
    LIMITS_OPERATOR, SLOTS, SP_BASE, Limits, LimitsSlot, Setpoint, Site, SiteCopy, keep_site, read_limits, read_setpoint, read_site,
)
from _core.laws cimport clamp, finite, larger, smaller
from _core.site cimport site_refused

cdef enum:
    SITE_NS = 1000000000        # between two changes of Site


cdef inline void take_site(Core* c) noexcept nogil:
    """A new Site, whole, between two ticks: at most one a second, so that who looks once a second can name the Site of every tick.

    While nothing was written this is one comparison. What is damaged is looked at again, what contradicts itself is refused; the old one
    stands."""
    cdef SiteCopy new
    cdef uint32_t counter = c.m.site_new.counter
    if counter == c.seen_site or c.live.t_ns - c.site_t_ns < SITE_NS:
        return
    c.site_t_ns = c.live.t_ns
    if not read_site(&c.m.site_new, &new):
        c.m.engine.setpoint_rejects += 1
        return
    c.seen_site = counter
    if new.rev <= c.m.site_rev:
        return                                  # of before the start
    if site_refused(&new.body, &c.m.site) != NULL:
        c.m.engine.setpoint_rejects += 1
        return
    keep_site(c.m, &new)


cdef inline bint sound(const Limits* l) noexcept nogil:
    """An operator's limits: no NaN, no negative power, ramps above 0; infinite is not set."""
    return (l.import_limit_w >= 0.0 and l.export_limit_w >= 0.0 and l.p_charge_max_w >= 0.0 and l.p_discharge_max_w >= 0.0
            and l.ramp_up_w_per_s > 0.0 and l.ramp_down_w_per_s > 0.0 and l.soc_min == l.soc_min and l.soc_max == l.soc_max)


cdef inline void tighten(double* value, double bound, double sign, Limits* l) noexcept nogil:
    """value = the tighter of value and bound, marked where it is the bound; sign -1: the higher one is the tighter."""
    if sign * bound < sign * value[0]:
        value[0] = bound
        l.flags |= LIMITS_OPERATOR


cdef inline void take_operator_limits(Core* c) noexcept nogil:
    """While its lease lives, an operator's limit that is tighter than what site and supervisor leave; after it, as if it had never been."""
    cdef Limits new
    cdef Limits* l = &c.rec.lim
    cdef uint32_t counter = c.m.limits_op.counter
    if counter != c.seen_op:
        if read_limits(&c.m.limits_op, &new) and sound(&new):
            c.last_op = new
            c.seen_op = counter
        else:
            c.m.engine.setpoint_rejects += 1
    if c.last_op.lease_until_ns <= c.live.t_ns:
        return
    tighten(&l.import_limit_w, c.last_op.import_limit_w, 1.0, l)
    tighten(&l.export_limit_w, c.last_op.export_limit_w, 1.0, l)
    tighten(&l.ramp_up_w_per_s, c.last_op.ramp_up_w_per_s, 1.0, l)
    tighten(&l.ramp_down_w_per_s, c.last_op.ramp_down_w_per_s, 1.0, l)
    tighten(&l.p_charge_max_w, c.last_op.p_charge_max_w, 1.0, l)
    tighten(&l.p_discharge_max_w, c.last_op.p_discharge_max_w, 1.0, l)
    tighten(&l.soc_min, c.last_op.soc_min, -1.0, l)
    tighten(&l.soc_max, c.last_op.soc_max, 1.0, l)
    l.soc_target = clamp(l.soc_target, l.soc_min, l.soc_max)


cdef inline void take_limits(Core* c) noexcept nogil:
    """The supervisor's limits, never looser than the site's: with its lease over, they stay the tighter of its last word and the site's."""
    cdef const Site* s = &c.m.site
    cdef Limits new
    cdef Limits* l = &c.rec.lim
    cdef LimitsSlot* slot = &c.m.limits
    cdef uint32_t counter = slot.counter        # before the copy: a writer in between is read again in the next tick
    if counter != c.seen_limits:
        if read_limits(slot, &new) and finite(
            new.import_limit_w + new.export_limit_w + new.ramp_up_w_per_s + new.ramp_down_w_per_s + new.p_charge_max_w
            + new.p_discharge_max_w + new.soc_min + new.soc_max + new.soc_target
        ) and new.ramp_up_w_per_s > 0.0 and new.ramp_down_w_per_s > 0.0:
            c.last_limits = new
            c.have_limits = 1
            c.seen_limits = counter
        else:
            c.m.engine.setpoint_rejects += 1
    l.lease_until_ns = 0
    l.import_limit_w = s.import_limit_w
    l.export_limit_w = s.export_limit_w
    l.ramp_up_w_per_s = s.ramp_up_w_per_s
    l.ramp_down_w_per_s = s.ramp_down_w_per_s
    l.p_charge_max_w = s.p_charge_max_w
    l.p_discharge_max_w = s.p_discharge_max_w
    l.soc_min = s.soc_min
    l.soc_max = s.soc_max
    l.soc_target = s.soc_target
    l.flags = 0
    if c.have_limits:
        new = c.last_limits
        l.lease_until_ns = new.lease_until_ns
        l.import_limit_w = smaller(new.import_limit_w, l.import_limit_w)
        l.export_limit_w = smaller(new.export_limit_w, l.export_limit_w)
        l.ramp_up_w_per_s = smaller(new.ramp_up_w_per_s, l.ramp_up_w_per_s)
        l.ramp_down_w_per_s = smaller(new.ramp_down_w_per_s, l.ramp_down_w_per_s)
        l.p_charge_max_w = smaller(new.p_charge_max_w, l.p_charge_max_w)
        l.p_discharge_max_w = smaller(new.p_discharge_max_w, l.p_discharge_max_w)
        l.soc_min = larger(new.soc_min, l.soc_min)
        l.soc_max = smaller(new.soc_max, l.soc_max)
        l.soc_target = clamp(new.soc_target, l.soc_min, l.soc_max)


cdef inline void take_setpoints(Core* c) noexcept nogil:
    """Slots whose counter moved: range and NaN are judged here, on the engine's side; what fails leaves the last good value standing."""
    cdef Setpoint sp
    cdef uint32_t counter
    cdef int k
    for k in range(SLOTS):
        counter = c.m.setpoint[k].counter
        if counter == c.seen[k]:
            continue
        if read_setpoint(&c.m.setpoint[k], &sp) and 0 <= sp.kind <= SP_BASE and finite(sp.value_w) \
                and -10.0 * c.m.site.s_rated_va <= sp.value_w <= 10.0 * c.m.site.s_rated_va:
            c.live.slot[k] = sp
            c.seen[k] = counter
        else:
            c.m.engine.setpoint_rejects += 1
