"""Load, AC power trajectory, battery.

Power is exact in time: the load is piecewise linear and the converter's answer to a target is a straight line (slew)
followed by an exponential (lag), so point values and integrals are closed forms. Nothing is stepped faster than the
10 ms bins of the truth; heat, charge and open-circuit voltage move once per bin, far slower than they could change.

Sources: cell and converter tables in data/ (TUM EES simses); pack current from power is the smaller root of R i^2 - V
i + P = 0.
"""

from libc.math cimport M_PI, cos, exp, fabs, fmax, fmin, log, sin, sqrt
from libc.stdint cimport int64_t, uint64_t

from bench.plant.state cimport (
    EV_CONTACTOR_OPEN,
    N_EVENTS,
    N_LOSS,
    N_OCV,
    N_RSOC,
    N_RTEMP,
    SEG_RING,
    Battery,
    Load,
    P_battery_ambient_c,
    P_battery_cooling_w_per_k,
    P_battery_energy_wh,
    P_battery_soc,
    P_battery_temp_c,
    P_bms_charge_limit_w,
    P_bms_discharge_limit_w,
    P_bms_initial_connected,
    P_grid_connected,
    P_grid_f_hz,
    P_grid_f_sine_hz,
    P_grid_f_sine_period_s,
    P_load_extra_w,
    P_load_scale,
    P_pcs_s_rated_va,
    P_pcs_tau_s,
    Plant,
    Seg,
    Truth,
)

cdef enum:
    SERIES = 250            # cells in series: 800 V class
    IDEAL_EDGE_NS = 1_000_000

# 802.Evt1 bits (sunspec_points.csv names the registers; bits from the model's symbols)
cdef enum:
    EVT_OVER_TEMP = 1 << 1
    EVT_OVER_TEMP_WARN = 1 << 2
    EVT_UNDER_TEMP = 1 << 3
    EVT_OVER_CHARGE = 1 << 5
    EVT_OVER_DISCHARGE = 1 << 7
    EVT_UNDER_SOC = 1 << 13
    EVT_OVER_SOC = 1 << 15

cdef double CELL_AS = 3.0 * 3600        # US26650FTC1: 3.0 Ah
cdef double CELL_HEAT_J_PER_K = 85.0    # 84.5 g at about 1000 J/(kg K)


# -- random numbers: xorshift64*, seeded, the plant's own so that a run repeats bit for bit

cdef double uniform(Plant* p) noexcept nogil:
    """Evenly spread in [0, 1)."""
    p.rng ^= p.rng >> 12
    p.rng ^= p.rng << 25
    p.rng ^= p.rng >> 27
    return <double>((p.rng * <uint64_t>2685821657736338717) >> 11) / 9007199254740992.0


cdef double normal(Plant* p) noexcept nogil:
    """Standard normal (Box-Muller, one of the pair)."""
    cdef double u = uniform(p), v = uniform(p)
    return sqrt(-2.0 * log(fmax(u, 1e-300))) * cos(2.0 * M_PI * v)


# -- truth: bounded logs

cdef void log_event(Plant* p, int64_t t_ns, int code, double value) noexcept nogil:
    cdef Truth* tr = &p.truth
    if tr.ev_n < N_EVENTS:
        tr.ev_ns[tr.ev_n] = t_ns
        tr.ev_code[tr.ev_n] = code
        tr.ev_value[tr.ev_n] = value
        tr.ev_n += 1


cdef void log_step(Plant* p, int64_t t_ns, double delta_w) noexcept nogil:
    cdef Truth* tr = &p.truth
    if delta_w != 0.0 and tr.step_n < tr.step_cap:
        tr.step_ns[tr.step_n] = t_ns
        tr.step_w[tr.step_n] = delta_w
        tr.step_n += 1


# -- load: value k stands from t_ns[k] on and is reached within edge_ns[k]

cdef inline void _split(Load* ld, int64_t since_ns, int64_t* lap, int64_t* u_ns) noexcept nogil:
    lap[0] = since_ns // ld.repeat_ns if ld.repeat_ns > 0 else 0
    u_ns[0] = since_ns - lap[0] * ld.repeat_ns


cdef inline int64_t _locate(Load* ld, int64_t u_ns) noexcept nogil:
    """Largest k with t_ns[k] <= u_ns, -1 before the first. Walks from the last answer: calls come close together."""
    cdef int64_t k = ld.cursor
    while k >= 0 and ld.t_ns[k] > u_ns:
        k -= 1
    while k + 1 < ld.n and ld.t_ns[k + 1] <= u_ns:
        k += 1
    ld.cursor = k
    return k


cdef inline double _before(Load* ld, int64_t k, int64_t lap) noexcept nogil:
    """The value that stood before entry k (k = 0: end of the lap before; the very first lap starts at its first
    value).
    """
    if k > 0:
        return ld.p_w[k - 1]
    return ld.p_w[ld.n - 1] if lap > 0 else ld.p_w[0]


cdef inline double _value(Load* ld, int64_t k, int64_t lap, int64_t u_ns) noexcept nogil:
    cdef double b
    cdef int64_t d_ns
    if k < 0:
        return _before(ld, 0, lap)
    d_ns = u_ns - ld.t_ns[k]
    if d_ns >= ld.edge_ns[k]:
        return ld.p_w[k]
    b = _before(ld, k, lap)
    return b + (ld.p_w[k] - b) * (<double>d_ns / <double>ld.edge_ns[k])


cdef double _raw_load_w(Plant* p, int64_t t_ns) noexcept nogil:
    cdef int64_t lap, u_ns
    _split(&p.load, t_ns - p.t0_ns, &lap, &u_ns)
    return _value(&p.load, _locate(&p.load, u_ns), lap, u_ns)


cdef double load_w(Plant* p, int64_t t_ns) noexcept nogil:
    """Load at an instant, with the present scale and extra."""
    return _raw_load_w(p, t_ns) * p.par[P_load_scale] + p.par[P_load_extra_w]


cdef double load_integral_j(Plant* p, int64_t a_ns, int64_t b_ns) noexcept nogil:
    """Integral of the unscaled load over [a, b], exact: pieces are straight lines."""
    cdef Load* ld = &p.load
    cdef double total = 0.0, va, vb
    cdef int64_t x_ns = a_ns - p.t0_ns, end_ns = b_ns - p.t0_ns, lap, u_ns, k, e_ns
    while x_ns < end_ns:
        _split(ld, x_ns, &lap, &u_ns)
        k = _locate(ld, u_ns)
        va = _value(ld, k, lap, u_ns)
        if k >= 0 and u_ns < ld.t_ns[k] + ld.edge_ns[k]:
            e_ns = ld.t_ns[k] + ld.edge_ns[k]           # on an edge: to its end
        elif k + 1 < ld.n:
            e_ns = ld.t_ns[k + 1]                       # on a flat: to the next value
        elif ld.repeat_ns > 0:
            e_ns = ld.repeat_ns
        else:
            e_ns = end_ns
        if e_ns > end_ns - (x_ns - u_ns):
            e_ns = end_ns - (x_ns - u_ns)
        vb = _value(ld, k, lap, e_ns)
        total += 0.5 * (va + vb) * (<double>(e_ns - u_ns) * 1e-9)
        x_ns += e_ns - u_ns
    return total


cdef void _log_load_steps(Plant* p, int64_t until_ns) noexcept nogil:
    """Enter the ideal steps (edge <= 1 ms) up to an instant into the truth."""
    cdef Load* ld = &p.load
    cdef int64_t k, t_ns
    while True:
        k = ld.logged_n
        if k >= ld.n:
            if ld.repeat_ns <= 0:
                return
            ld.lap += 1
            ld.logged_n = 0
            continue
        t_ns = p.t0_ns + ld.lap * ld.repeat_ns + ld.t_ns[k]
        if t_ns >= until_ns:
            return
        if ld.edge_ns[k] <= IDEAL_EDGE_NS:
            log_step(p, t_ns, (ld.p_w[k] - _before(ld, k, ld.lap)) * p.par[P_load_scale])
        ld.logged_n += 1


# -- AC power trajectory

cdef inline double _line_s(const Seg* s) noexcept nogil:
    """Seconds for which the slew limit holds the piece on a straight line."""
    cdef double d
    if s.slew_w_per_s <= 0.0:
        return 0.0
    d = fabs(s.target_w - s.p0_w) - s.slew_w_per_s * s.tau_s
    return d / s.slew_w_per_s if d > 0.0 else 0.0


cdef double seg_power_w(const Seg* s, int64_t t_ns) noexcept nogil:
    cdef double t = <double>(t_ns - s.t_ns) * 1e-9, line = _line_s(s), p0 = s.p0_w
    cdef double slope = s.slew_w_per_s if s.target_w > s.p0_w else -s.slew_w_per_s
    if t < line:
        return p0 + slope * t
    p0 += slope * line
    if s.tau_s <= 0.0:
        return s.target_w
    return s.target_w + (p0 - s.target_w) * exp(-(t - line) / s.tau_s)


cdef double _seg_from_start_j(const Seg* s, int64_t t_ns) noexcept nogil:
    cdef double t = <double>(t_ns - s.t_ns) * 1e-9, line = _line_s(s), p0 = s.p0_w, total
    cdef double slope = s.slew_w_per_s if s.target_w > s.p0_w else -s.slew_w_per_s
    if t < line:
        return p0 * t + 0.5 * slope * t * t
    total = p0 * line + 0.5 * slope * line * line
    p0 += slope * line
    t -= line
    total += s.target_w * t
    if s.tau_s > 0.0 and p0 != s.target_w:
        total += (p0 - s.target_w) * s.tau_s * (1.0 - exp(-t / s.tau_s))
    return total


cdef double seg_integral_j(const Seg* s, int64_t a_ns, int64_t b_ns) noexcept nogil:
    """Integral of the piece over [a, b], a >= its start."""
    if a_ns == s.t_ns:
        return _seg_from_start_j(s, b_ns)
    return _seg_from_start_j(s, b_ns) - _seg_from_start_j(s, a_ns)


cdef int64_t seg_t90_ns(const Seg* s) noexcept nogil:
    """When 90 % of the piece's own change stands at the terminals (2.303 tau without slew)."""
    cdef double d = fabs(s.target_w - s.p0_w), line = _line_s(s)
    if d == 0.0:
        return s.t_ns
    if line > 0.0 and s.slew_w_per_s * line >= 0.9 * d:
        return s.t_ns + <int64_t>(0.9 * d / s.slew_w_per_s * 1e9 + 0.5)
    return s.t_ns + <int64_t>((line + s.tau_s * log((d - s.slew_w_per_s * line) / (0.1 * d))) * 1e9 + 0.5)


cdef Seg* present(Plant* p) noexcept nogil:
    return &p.seg[(p.seg_n - 1) % SEG_RING]


cdef double batt_w(Plant* p, int64_t t_ns) noexcept nogil:
    """Battery power at the AC terminals, discharge +."""
    return seg_power_w(present(p), t_ns)


cdef double grid_w(Plant* p, int64_t t_ns) noexcept nogil:
    """Grid power, import +; 0 in an outage."""
    return load_w(p, t_ns) - batt_w(p, t_ns) if p.par[P_grid_connected] != 0.0 else 0.0


cdef double grid_mean_w(Plant* p, int64_t a_ns, int64_t b_ns) noexcept nogil:
    """Mean grid power over [a, b], b <= now: what a meter with an averaging window shows."""
    cdef int64_t i = p.seg_n - 1, hi_ns = b_ns, lo_ns
    cdef double total = 0.0
    cdef Seg* s
    if a_ns < p.t0_ns:
        a_ns = p.t0_ns
    if b_ns <= a_ns:
        return grid_w(p, b_ns)
    while hi_ns > a_ns and i >= 0 and i > p.seg_n - SEG_RING:
        s = &p.seg[i % SEG_RING]
        if s.t_ns < hi_ns:
            lo_ns = s.t_ns if s.t_ns > a_ns else a_ns
            if s.connected:
                total += load_integral_j(p, lo_ns, hi_ns) * s.load_scale
                total += s.load_extra_w * (<double>(hi_ns - lo_ns) * 1e-9)
                total -= seg_integral_j(s, lo_ns, hi_ns)
            hi_ns = lo_ns
        i -= 1
    return total / (<double>(b_ns - hi_ns) * 1e-9) if b_ns > hi_ns else grid_w(p, b_ns)


cdef double f_hz(Plant* p, int64_t t_ns) noexcept nogil:
    if p.par[P_grid_connected] == 0.0:
        return 0.0
    cdef double f = p.par[P_grid_f_hz]
    cdef double t_s = <double>(t_ns - p.t0_ns) * 1e-9
    if p.par[P_grid_f_sine_hz] != 0.0:
        f += p.par[P_grid_f_sine_hz] * sin(2.0 * M_PI * t_s / p.par[P_grid_f_sine_period_s])
    return f


cdef void advance(Plant* p, int64_t t_ns) noexcept nogil:
    """Integrate the present piece up to t into the open bin. Call before anything that bends power, load or grid."""
    cdef Seg* s = present(p)
    cdef double load_j, batt_j
    if t_ns <= p.acc_ns:
        return
    load_j = load_integral_j(p, p.acc_ns, t_ns) * s.load_scale + s.load_extra_w * (<double>(t_ns - p.acc_ns) * 1e-9)
    batt_j = seg_integral_j(s, p.acc_ns, t_ns)
    p.acc_load_j += load_j
    p.acc_batt_j += batt_j
    if s.connected:
        p.acc_grid_j += load_j - batt_j
    p.acc_ns = t_ns


cdef void new_seg(Plant* p, int64_t t_ns, double target_w, double slew_w_per_s, double q_var, int jump) noexcept nogil:
    """Bend the trajectory at t: from the power that stands there (jump: from the target itself) toward a target."""
    cdef double now_w = target_w if jump else batt_w(p, t_ns)
    cdef Seg* s
    advance(p, t_ns)
    p.seg_n += 1
    s = present(p)
    s.t_ns = t_ns
    s.p0_w = now_w
    s.target_w = target_w
    s.slew_w_per_s = slew_w_per_s
    s.tau_s = p.par[P_pcs_tau_s]
    s.q_var = q_var
    s.load_scale = p.par[P_load_scale]
    s.load_extra_w = p.par[P_load_extra_w]
    s.connected = p.par[P_grid_connected] != 0.0


# -- battery

cdef void battery_init(Plant* p) noexcept nogil:
    """Size the pack so that SoC 0 to 1 at open circuit is battery.energy_wh."""
    cdef Battery* b = &p.bat
    cdef double mean_v = 0.0
    cdef int i
    for i in range(N_OCV - 1):
        mean_v += 0.5 * (p.ocv_v[i] + p.ocv_v[i + 1]) / (N_OCV - 1)
    b.parallel = p.par[P_battery_energy_wh] * 3600.0 / (SERIES * mean_v * CELL_AS)
    b.capacity_as = CELL_AS * b.parallel
    b.heat_j_per_k = CELL_HEAT_J_PER_K * SERIES * b.parallel
    b.rated_w = p.par[P_battery_energy_wh]          # 1 C
    b.soc = p.par[P_battery_soc]
    b.temp_c = p.par[P_battery_temp_c]
    b.closed = p.par[P_bms_initial_connected] != 0.0
    _solve_pack(p, 0.0)
    _limits(p)


cdef double _r_ohm(Plant* p, int discharge) noexcept nogil:
    """Cell resistance, bilinear in temperature and SoC, held at the table's edges."""
    cdef double x = fmin(fmax(p.bat.soc, 0.0), 1.0) * (N_RSOC - 1), y = 0.0, a, b
    cdef int i = <int>fmin(x, N_RSOC - 2), j = 0
    x -= i
    while j < N_RTEMP - 2 and p.bat.temp_c > p.r_temp_c[j + 1]:
        j += 1
    y = fmin(fmax((p.bat.temp_c - p.r_temp_c[j]) / (p.r_temp_c[j + 1] - p.r_temp_c[j]), 0.0), 1.0)
    a = p.r_ohm[discharge][j][i] * (1.0 - x) + p.r_ohm[discharge][j][i + 1] * x
    b = p.r_ohm[discharge][j + 1][i] * (1.0 - x) + p.r_ohm[discharge][j + 1][i + 1] * x
    return a * (1.0 - y) + b * y


cdef void _solve_pack(Plant* p, double p_dc_w) noexcept nogil:
    """Current, voltage and resistance of the pack at a DC power (discharge +)."""
    cdef Battery* b = &p.bat
    cdef double x = fmin(fmax(b.soc, 0.0), 1.0) * (N_OCV - 1), d
    cdef int i = <int>fmin(x, N_OCV - 2)
    b.ocv_v = SERIES * (p.ocv_v[i] + (p.ocv_v[i + 1] - p.ocv_v[i]) * (x - i))
    b.r_ohm = _r_ohm(p, p_dc_w > 0.0) * SERIES / b.parallel
    # Beyond V^2/4R there is no current that gives the power: the pack gives its most.
    d = fmax(b.ocv_v * b.ocv_v - 4.0 * b.r_ohm * p_dc_w, 0.0)
    b.i_a = (b.ocv_v - sqrt(d)) / (2.0 * b.r_ohm)
    b.v_v = b.ocv_v - b.i_a * b.r_ohm
    b.p_dc_w = b.v_v * b.i_a


cdef double _dc_w(Plant* p, double ac_w) noexcept nogil:
    """DC power behind an AC power: the converter's loss is taken from the battery in both directions."""
    cdef double s = p.par[P_pcs_s_rated_va]
    cdef double x = fmin(fabs(ac_w) / s, 1.0) * (N_LOSS - 1)
    cdef int i = <int>fmin(x, N_LOSS - 2), d = ac_w > 0.0
    return ac_w + s * (p.loss_pu[d][i] + (p.loss_pu[d][i + 1] - p.loss_pu[d][i]) * (x - i))


cdef inline double _taper(double x, double zero, double full) noexcept nogil:
    """0 at `zero`, 1 at `full`, straight between."""
    return fmin(fmax((x - zero) / (full - zero), 0.0), 1.0)


cdef void _limits(Plant* p) noexcept nogil:
    """The true DC limits, as the BMS shows them: parameter, SoC taper, temperature taper (LFP: no charge below 0
    degC).
    """
    cdef Battery* b = &p.bat
    cdef double hot = _taper(b.temp_c, 55.0, 45.0)
    b.lim_charge_w = p.par[P_bms_charge_limit_w] if p.par[P_bms_charge_limit_w] >= 0.0 else b.rated_w
    b.lim_discharge_w = p.par[P_bms_discharge_limit_w] if p.par[P_bms_discharge_limit_w] >= 0.0 else b.rated_w
    b.lim_charge_w *= _taper(b.soc, 1.0, 0.95) * hot * _taper(b.temp_c, 0.0, 5.0)
    b.lim_discharge_w *= _taper(b.soc, 0.0, 0.05) * hot * _taper(b.temp_c, -20.0, -10.0)
    if not b.closed:
        b.lim_charge_w = 0.0
        b.lim_discharge_w = 0.0


cdef void _protect(Plant* p, double dt_s) noexcept nogil:
    """Count time over the limits; open the contactors after 1 s at 2 % over, or outside SoC or temperature.

    The count (truth) starts at 0.5 % + 0.1 % of rating over: a limit is shown in steps of 10 W and a controller may
    use all of it.
    """
    cdef Battery* b = &p.bat
    cdef double lim_w = b.lim_discharge_w if b.p_dc_w > 0.0 else b.lim_charge_w
    cdef double over_w = fabs(b.p_dc_w) - lim_w
    cdef unsigned int evt = 0
    if over_w > 0.005 * lim_w + 0.001 * b.rated_w:
        b.over_limit_s += dt_s
    b.over_for_s = b.over_for_s + dt_s if over_w > 0.02 * lim_w + 0.002 * b.rated_w else 0.0
    if b.over_for_s > 1.0:
        evt = EVT_OVER_DISCHARGE if b.p_dc_w > 0.0 else EVT_OVER_CHARGE
    if b.soc >= 1.0 and b.i_a < 0.0:
        evt |= EVT_OVER_SOC
    if b.soc <= 0.0 and b.i_a > 0.0:
        evt |= EVT_UNDER_SOC
    if b.temp_c > 60.0:
        evt |= EVT_OVER_TEMP
    if evt and b.closed:
        b.evt1 |= evt
        b.closed = 0            # the event loop stops the PCS at once
        b.over_for_s = 0.0
        log_event(p, p.acc_ns, EV_CONTACTOR_OPEN, evt)


cdef void close_bin(Plant* p) noexcept nogil:
    """End a 10 ms bin: write the truth, move charge and heat, judge the limits."""
    cdef Truth* tr = &p.truth
    cdef Battery* b = &p.bat
    cdef double dt_s = BIN_NS * 1e-9, heat_w, away_w, ac_w, dc_w
    advance(p, p.bin_end_ns)
    if tr.bin_n < tr.bin_cap:
        tr.load_w[tr.bin_n] = <float>(p.acc_load_j / dt_s)
        tr.grid_w[tr.bin_n] = <float>(p.acc_grid_j / dt_s)
        tr.batt_w[tr.bin_n] = <float>(p.acc_batt_j / dt_s)
    ac_w = p.acc_batt_j / dt_s
    dc_w = _dc_w(p, ac_w)
    _solve_pack(p, dc_w)
    heat_w = b.i_a * b.i_a * b.r_ohm
    b.soc = fmin(fmax(b.soc - b.i_a * dt_s / b.capacity_as, 0.0), 1.0)
    away_w = p.par[P_battery_cooling_w_per_k] * (b.temp_c - p.par[P_battery_ambient_c])
    b.temp_c += (heat_w - away_w) * dt_s / b.heat_j_per_k
    b.energy_out_wh += fmax(ac_w, 0.0) * dt_s / 3600.0
    b.energy_in_wh += fmax(-ac_w, 0.0) * dt_s / 3600.0
    b.dc_out_j += b.p_dc_w * dt_s
    b.conv_loss_j += (b.p_dc_w - ac_w) * dt_s
    b.heat_j += heat_w * dt_s
    _limits(p)
    _protect(p, dt_s)
    _log_load_steps(p, p.bin_end_ns)
    tr.bin_n += tr.bin_n < tr.bin_cap
    if (p.bin_end_ns - p.t0_ns) % 1_000_000_000 == 0 and tr.sec_n < tr.sec_cap:
        tr.soc[tr.sec_n] = <float>b.soc
        tr.temp_c[tr.sec_n] = <float>b.temp_c
        tr.over_s[tr.sec_n] = <float>b.over_limit_s
        tr.sec_n += 1
    p.acc_load_j = 0.0
    p.acc_grid_j = 0.0
    p.acc_batt_j = 0.0
    p.bin_end_ns += BIN_NS
