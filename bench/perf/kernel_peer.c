/* The law of _core/kernel.pyx written by hand in plain C: what the compiled kernel is timed against (bench/perf/peer.py).
 *
 * Same order of operations, so that the same inputs give the same bits. The structs repeat image.pxd; peer.py holds their sizes equal.
 * Build: gcc -O2 -ffp-contract=off -shared -fPIC
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { SLOTS = 3, MODEL_QUEUE = 64, RING_LAGS = 6, Q_GOOD = 1 };
enum { FAULT, STANDBY, GRID, ISLAND, RESYNC, TRIP, STOP };
enum { START_DEVICES, START_REVERSION, START_BMS, START_HEARTBEAT, START_OPERATE, START_DONE };
enum { SP_NONE, SP_HOLD, SP_BASE };
enum { OP_START = 1, OP_STOP = 2 };
enum {
    LIM_RAMP = 1 << 0, LIM_IMPORT = 1 << 1, LIM_EXPORT = 1 << 2, LIM_BILLING = 1 << 3, LIM_FEEDER = 1 << 4, LIM_SOC_MIN = 1 << 5,
    LIM_SOC_MAX = 1 << 6, LIM_TEMP = 1 << 7, LIM_PCS_S = 1 << 8, LIM_BMS_CHARGE = 1 << 9, LIM_BMS_DISCHARGE = 1 << 10, LIM_BATT_V = 1 << 11,
    LIM_SLEW = 1 << 12, LIM_METER_STALE = 1 << 13, LIM_BMS_STALE = 1 << 14, LIM_HOLD = 1 << 15, LIM_LEASE = 1 << 16, LIM_FILTER = 1 << 17,
    LIM_DROOP = 1 << 18, LIM_MODE = 1 << 19, LIM_SITE_P = 1 << 20, LIM_NOT_HELD = 1 << 21, LIM_OPERATOR = 1 << 22, LIM_PCS_DEAF = 1 << 23
};
enum {
    ALM_METER_LOST = 1 << 0, ALM_METER_FROZEN = 1 << 1, ALM_PCS_LOST = 1 << 2, ALM_PCS_FAULT = 1 << 3, ALM_PCS_NOT_FOLLOWING = 1 << 4,
    ALM_BMS_LOST = 1 << 5, ALM_BMS_FAULT = 1 << 6, ALM_IDENTITY = 1 << 7, ALM_GRID_OUTSIDE = 1 << 8, ALM_PCS_LOCAL = 1 << 9,
    ALM_REVERSION = 1 << 10, ALM_METER_SIGN = 1 << 11, ALM_INTERNAL = 1 << 12
};
enum { LIMITS_OPERATOR = 1 };
enum { PCS_STARTING = 2, PCS_RUNNING = 3, PCS_THROTTLED = 4, PCS_FAULTED = 6, BMS_CONNECTED = 3, BMS_FAULTED = 99 };

static const double HEARTBEAT_S = 3.0, CLEAN_S = 5.0, PROVED_S = 10.0, RB_TIME_S = 1.0, ALIGN_TIME_S = 10.0, AHEAD_S = 0.1;
static const double SOC_TAPER = 0.01;
static const double OBSERVE_S = 0.02, OBSERVE = 0.3, RING_MEMORY = 20.0, RING_LEVEL = 0.002, RING_SHARE = 0.35;
static const uint32_t RING_HOT = 8, RING_CALM = 6000, SIGN_BLOCK = 10;
/* What _core/faults.py says follows from alarms: peer.py gives the masks before the first step. */
static uint32_t TO_FAULT, TO_TRIP, PERSON, ACTS;
static const int64_t HOUR_NS = 3600LL * 1000000000LL;

/* ---------------------------------------------------------------- image.pxd */

typedef struct {
    int64_t t_ns, rx_ns;
    uint32_t count, quality;
} Group;

typedef struct {
    Group g;
    double grid_p_w, q_var, v1_v, v2_v, v3_v, f_hz;
} Meter;

typedef struct {
    Group g;
    double batt_p_w, pcs_q_var, pcs_s_va, pcs_state, pcs_conn, pcs_alarm, pcs_der_mode, pcs_v_v, pcs_f_hz;
} Pcs;

typedef struct {
    Group g;
    double wset_ena, wset_w, wset_rvrt_w, wset_rvrt_ena, wset_rvrt_s, wset_rvrt_rem_s;
} PcsControl;

typedef struct {
    Group g;
    double pcs_local, pcs_heartbeat;
} PcsLife;

typedef struct {
    Group g;
    double soc, soh, bms_state, bms_events, bms_heartbeat;
} Bms;

typedef struct {
    Group g;
    double batt_v, batt_i_a, batt_i_charge_max_a, batt_i_discharge_max_a, batt_p_charge_max_w, batt_p_discharge_max_w;
} BmsLimits;

typedef struct {
    Group g;
    double batt_temp_max_c, batt_temp_min_c;
} BmsTemp;

typedef struct {
    Group g;
    double pv_p_w, gen_p_w;
} Others;

typedef struct {
    int64_t lease_until_ns, id;
    double value_w;
    int32_t kind, pad;
} Setpoint;

typedef struct {
    int64_t lease_until_ns;
    double import_limit_w, export_limit_w, ramp_up_w_per_s, ramp_down_w_per_s, p_charge_max_w, p_discharge_max_w;
    double soc_min, soc_max, soc_target;
    uint64_t flags;
} Limits;

typedef struct {
    int64_t tick, t_ns, step_t_ns, command_t_ns;
    double billing_phase_s;
    int32_t verified, stop, reset;
    uint32_t latched;
    int32_t park, site_rev;
    int32_t pcs_deaf, pad;
    Meter meter;
    Pcs pcs;
    PcsControl pcs_ctl;
    PcsLife pcs_life;
    Bms bms;
    BmsLimits bms_lim;
    BmsTemp bms_temp;
    Others others;
    Setpoint slot[SLOTS];
} Inputs;

typedef struct {
    double f_nom_hz, v_nom_v, feeder_w, import_limit_w, export_limit_w, ramp_up_w_per_s, ramp_down_w_per_s, billing_window_s;
    double enter_service_delay_s, s_rated_va, pcs_p_max_w, pcs_dead_s, pcs_tau_s, pcs_rvrt_s, cmd_slew_w_per_s, energy_wh;
    double p_charge_max_w, p_discharge_max_w, soc_min, soc_max, soc_target, soc_time_s, mean_min_s, mean_max_s, batt_eta;
    double batt_v_min_v, batt_v_max_v, temp_min_c, temp_max_c, temp_taper_c, droop_db_hz, droop_r, droop_tr_s, volt_db_pu;
    double volt_full_pu, q_max_var, volt_tr_s, f_min_hz, f_max_hz, v_min_pu, v_max_pu, trip_s, meter_hold_s, meter_lost_s;
    double frozen_s, bms_lost_s, pcs_lost_s, follow_w, follow_s, align_full_s;
    int32_t has_pcs_ctl, has_pcs_life, has_bms, has_bms_limits, has_bms_temp, has_others;
} Site;

typedef struct {
    int64_t last_t_ns;
    int64_t mode_since_ns;
    int64_t clean_since_ns;
    int64_t stop_since_ns;
    int64_t step_since_ns;
    int64_t model_t_ns;
    int64_t rb_t_ns;
    int64_t good_since_ns;
    int64_t bad_since_ns;
    int64_t deaf_since_ns;
    int64_t follow_since_ns;
    int64_t frozen_since_ns;
    int64_t hb_t_ns;
    int64_t hb_first_ns;
    int64_t reset_t_ns[3];
    int64_t q_t_ns[MODEL_QUEUE];
    double q_w[MODEL_QUEUE];
    double model_target_w;
    double model_p_w;
    double rb_target_w;
    double rb_p_w;
    double rb_err_w;
    double rb_abs_w;
    double align_num;
    double align_den;
    double align_s;
    double ring_s;
    double ring_e[RING_LAGS];
    double ring_load_w;
    double ring_var;
    double ring_cov[RING_LAGS];
    double load_w;
    double stop_s;
    double mean_w;
    double horizon_s;
    double ref_w;
    double cmd_w;
    double droop_w;
    double volt_var;
    double billing_wh;
    double billing_phase_s;
    double billing_limit_w;
    double last_grid_w;
    double last_meter[6];
    double sign_m_w;
    double sign_p_w;
    double sign_last_m_w;
    double sign_last_p_w;
    double sign_num;
    double sign_den;
    double sign_tick_num;
    double sign_tick_den;
    double sign_prev_m_w;
    double sign_prev_p_w;
    int64_t pcs_good_ns;
    int64_t bms_good_ns;
    int64_t bms_lim_good_ns;
    double last_hb;
    double not_held_s;
    int64_t last_meter_t_ns;
    uint32_t last_meter_count;
    uint32_t last_pcs_count;
    uint32_t q_n;
    uint32_t model_at;
    uint32_t rb_at;
    uint32_t ring_calm;
    uint32_t ring_hot;
    uint32_t sign_n;
    uint32_t sign_blocks;
    int32_t mode;
    int32_t start_step;
    int32_t reset_seen;
    int32_t tripped;
    uint32_t alarms;
    int32_t adopt;
    int32_t was_clean;
    int32_t stale;
    int32_t parked;
    uint32_t proven;
} State;

typedef struct {
    double p_cmd_w, q_cmd_var, load_w, mean_w, target_w, ref_w, grid_p_w, batt_p_w, droop_w, p_min_w, p_max_w, horizon_s;
    double align_s, filter_s, not_held_s, soc, rvrt_s, enable, heartbeat;
    int64_t slot_id;
    uint64_t limits_active;
    uint32_t alarms;
    int32_t mode, start_step, gate, op_request, slot;
} Outputs;

typedef struct {
    int64_t tick, wake_late_ns;
    Inputs inp;
    Limits lim;
    Outputs out;
} Record;

typedef struct {
    double dt_s, net_w, dis_w, cha_w, ref_before_w;
    uint64_t dis_why, cha_why;
    double sample_s, share;
    uint64_t flags;
    int fresh, meter_ok, meter_gone, frozen, bms_ok, pcs_ok, grid_ok, following, bms_now;
    uint32_t causes;
} Work;

/* ---------------------------------------------------------------- laws */

static inline int is_finite(double x) { return x - x == 0.0; }

static inline double clamp(double x, double low, double high)
{
    if (x < low) x = low;
    if (x > high) x = high;
    return x;
}

static inline double smaller(double a, double b) { return a < b ? a : b; }
static inline double larger(double a, double b) { return a > b ? a : b; }
static inline double abs_w(double x) { return x < 0.0 ? -x : x; }

static inline int64_t minus(int64_t a, int64_t b)
{
    if (b > 0 && a < INT64_MIN + b) return INT64_MIN;
    if (b < 0 && a > INT64_MAX + b) return INT64_MAX;
    return a - b;
}

static inline int64_t to_ns(double t_s)
{
    double x = t_s * 1e9;
    return -9e18 < x && x < 9e18 ? (int64_t)x : 0;
}

static inline double slew(double x, double target, double up_per_s, double down_per_s, double dt_s)
{
    double d = target - x;
    if (d > up_per_s * dt_s) d = up_per_s * dt_s;
    if (d < -down_per_s * dt_s) d = -down_per_s * dt_s;
    return x + d;
}

static inline double slew_from_zero(double x, double target, double rate_per_s, double dt_s)
{
    if ((x > 0.0 && target < x) || (x < 0.0 && target > x)) x = (x > 0.0) == (target > 0.0) ? target : 0.0;
    return slew(x, target, rate_per_s, rate_per_s, dt_s);
}

static inline double deadband(double x, double half_width)
{
    if (x > half_width) return x - half_width;
    if (x < -half_width) return x + half_width;
    return 0.0;
}

static inline double droop(double f_hz, double f_nom_hz, double db_hz, double r_pu, double p_rated_w)
{
    return -deadband(f_hz - f_nom_hz, db_hz) / (f_nom_hz * r_pu) * p_rated_w;
}

static inline double volt_var(double v_pu, double db_pu, double full_pu, double q_max_var)
{
    return clamp(-deadband(v_pu - 1.0, db_pu) / (full_pu - db_pu), -1.0, 1.0) * q_max_var;
}

static inline double decay_small(double z)
{
    double y = 1.0;
    for (int k = 12; k > 0; k--) y = 1.0 + z / k * y;
    return 1.0 / y;
}

static inline double decay(double x)
{
    double z, y;
    if (!(x > 0.0)) return 1.0;
    if (x > 700.0) return 0.0;
    z = x / 64.0;
    if (z > 1.0) {
        y = decay_small(z / 16.0);
        y = y * y;
        y = y * y;
        y = y * y;
        y = y * y;
    } else {
        y = decay_small(z);
    }
    y = y * y;
    y = y * y;
    y = y * y;
    y = y * y;
    y = y * y;
    return y * y;
}

static inline double lag(double x, double target, double dt_s, double tau_s)
{
    return tau_s > 0.0 ? target + (x - target) * decay(dt_s / tau_s) : target;
}

static inline double taper(double distance, double width)
{
    if (!(width > 0.0)) return distance > 0.0 ? 1.0 : 0.0;
    return clamp(distance / width, 0.0, 1.0);
}

static inline double q_room(double s_va, double p_w)
{
    double d = s_va * s_va - p_w * p_w;
    return d > 0.0 ? sqrt(d) : 0.0;
}

/* ---------------------------------------------------------------- 1. judge, modes */

static inline double age_s(const Inputs *i, const Group *g)
{
    double age;
    if (g->t_ns == 0 || g->quality != Q_GOOD) return INFINITY;
    age = (double)minus(i->step_t_ns, g->t_ns) * 1e-9;
    return age >= -AHEAD_S ? age : INFINITY;
}

static inline double since_s(const Inputs *i, int64_t t_ns) { return (double)minus(i->t_ns, t_ns) * 1e-9; }

static inline int good(const Inputs *i, int64_t t_ns, double within_s)
{
    return t_ns != 0 && (double)minus(i->step_t_ns, t_ns) * 1e-9 <= within_s;
}

static inline void judge(const Inputs *i, const Site *s, State *st, Work *w)
{
    const Meter *m = &i->meter;
    double age;
    w->dt_s = st->last_t_ns ? clamp(since_s(i, st->last_t_ns), 0.0, 1.0) : 0.0;
    st->last_t_ns = i->t_ns;

    age = age_s(i, &m->g);
    w->meter_ok = age <= s->meter_hold_s && is_finite(m->grid_p_w) && -8.0 * s->feeder_w <= m->grid_p_w && m->grid_p_w <= 8.0 * s->feeder_w;
    w->fresh = w->meter_ok && m->g.count != st->last_meter_count;
    if (w->fresh) {
        const double now[6] = {m->grid_p_w, m->q_var, m->v1_v, m->v2_v, m->v3_v, m->f_hz};
        w->sample_s = clamp((double)minus(m->g.t_ns, st->last_meter_t_ns) * 1e-9, 0.0, 1.0);
        st->last_meter_t_ns = m->g.t_ns;
        for (int k = 0; k < 6; k++) {
            if (now[k] != st->last_meter[k] && (now[k] == now[k] || st->last_meter[k] == st->last_meter[k])) st->frozen_since_ns = i->t_ns;
            st->last_meter[k] = now[k];
        }
        st->last_meter_count = m->g.count;
    }
    w->meter_gone = st->last_meter_t_ns == 0 || (double)minus(i->step_t_ns, st->last_meter_t_ns) * 1e-9 > s->meter_lost_s;
    if (!w->meter_ok) {
        st->frozen_since_ns = minus(st->frozen_since_ns, -to_ns(w->dt_s));
    } else if (s->frozen_s > 0.0 && since_s(i, st->frozen_since_ns) > s->frozen_s) {
        w->meter_ok = 0;
        w->fresh = 0;
        if (since_s(i, st->frozen_since_ns) > s->frozen_s + s->meter_lost_s || st->mode == STANDBY) {
            w->meter_gone = 1;
            w->frozen = 1;
        }
    }

    w->bms_now = 1;
    if (age_s(i, &i->bms.g) <= s->bms_lost_s && -0.05 <= i->bms.soc && i->bms.soc <= 1.05) st->bms_good_ns = i->bms.g.t_ns;
    else if (s->has_bms) w->bms_now = 0;
    if (age_s(i, &i->bms_lim.g) <= s->bms_lost_s) st->bms_lim_good_ns = i->bms_lim.g.t_ns;
    else if (s->has_bms_limits) w->bms_now = 0;
    if (age_s(i, &i->pcs.g) <= s->pcs_lost_s && -8.0 * s->s_rated_va <= i->pcs.batt_p_w && i->pcs.batt_p_w <= 8.0 * s->s_rated_va)
        st->pcs_good_ns = i->pcs.g.t_ns;
    if (!i->pcs_deaf) st->deaf_since_ns = 0;
    else if (st->deaf_since_ns == 0) st->deaf_since_ns = i->t_ns;
    w->bms_ok = (!s->has_bms || good(i, st->bms_good_ns, s->bms_lost_s))
                && (!s->has_bms_limits || good(i, st->bms_lim_good_ns, s->bms_lost_s));
    w->pcs_ok = good(i, st->pcs_good_ns, s->pcs_lost_s);

    if (w->fresh) {
        const double low = s->v_min_pu * s->v_nom_v, high = s->v_max_pu * s->v_nom_v;
        w->grid_ok = !(m->f_hz < s->f_min_hz || m->f_hz > s->f_max_hz || m->v1_v < low || m->v2_v < low || m->v3_v < low || m->v1_v > high
                       || m->v2_v > high || m->v3_v > high);
        if (w->grid_ok) {
            st->bad_since_ns = 0;
            if (st->good_since_ns == 0) st->good_since_ns = i->t_ns;
        } else {
            st->good_since_ns = 0;
            if (st->bad_since_ns == 0) st->bad_since_ns = i->t_ns;
        }
    } else {
        w->grid_ok = st->bad_since_ns == 0;
        if (!w->meter_ok) st->good_since_ns = 0;
    }
}

static inline void enter(State *st, const Inputs *i, int mode)
{
    st->mode = mode;
    st->mode_since_ns = i->t_ns;
    st->start_step = START_DEVICES;
    st->step_since_ns = i->t_ns;
    st->clean_since_ns = 0;
    st->follow_since_ns = 0;
    st->parked = 0;
    if (mode == STANDBY) {
        st->adopt = 0;
        st->hb_first_ns = 0;
    }
}

static inline void fault(State *st, const Inputs *i, uint32_t alarm)
{
    st->alarms |= alarm;
    if (st->mode != FAULT) {
        if (alarm & PERSON) st->was_clean = 0;
        else if (st->mode != TRIP) st->was_clean = st->mode == GRID && since_s(i, st->mode_since_ns) >= PROVED_S;
        enter(st, i, FAULT);
    }
}

static inline void trip(State *st, const Inputs *i, uint32_t alarm)
{
    st->alarms |= alarm;
    st->was_clean = st->mode == GRID && since_s(i, st->mode_since_ns) >= PROVED_S;
    st->tripped = 1;
    enter(st, i, TRIP);
}

static inline void react(State *st, const Inputs *i, Work *w, uint32_t alarm)
{
    w->causes |= alarm;
    if (alarm & TO_FAULT) fault(st, i, alarm & ACTS);
    else if (alarm & TO_TRIP) trip(st, i, alarm & ACTS);
}

static inline uint32_t unseen(const Site *s, const State *st)
{
    uint32_t a = 0;
    if (st->last_meter_t_ns == 0) a |= ALM_METER_LOST;
    if (st->pcs_good_ns == 0) a |= ALM_PCS_LOST;
    if ((s->has_bms && st->bms_good_ns == 0) || (s->has_bms_limits && st->bms_lim_good_ns == 0)) a |= ALM_BMS_LOST;
    return a;
}

static inline uint32_t causes(const Inputs *i, const Site *s, const State *st, const Work *w)
{
    uint32_t a = 0;
    if (w->meter_gone) a |= w->frozen ? ALM_METER_FROZEN : ALM_METER_LOST;
    if (!w->pcs_ok) a |= ALM_PCS_LOST;
    else if (i->pcs.pcs_state == PCS_FAULTED) a |= ALM_PCS_FAULT;
    if (!w->bms_ok) a |= ALM_BMS_LOST;
    else if (s->has_bms && (i->bms.bms_state == BMS_FAULTED
                            || (st->mode == GRID && i->bms.g.quality == Q_GOOD && i->bms.bms_state != BMS_CONNECTED)))
        a |= ALM_BMS_FAULT;
    if (s->has_pcs_life && i->pcs_life.g.count && i->pcs_life.pcs_local == 1.0) a |= ALM_PCS_LOCAL;
    if (i->verified < 0) a |= ALM_IDENTITY;
    if (w->pcs_ok && st->deaf_since_ns && since_s(i, st->deaf_since_ns) > s->pcs_lost_s) a |= ALM_PCS_NOT_FOLLOWING;
    return a;
}

static inline void start(const Inputs *i, const Site *s, State *st, const Work *w, Outputs *o)
{
    const int live = i->pcs.pcs_state == PCS_RUNNING || i->pcs.pcs_state == PCS_THROTTLED;
    const int bms_closed = !s->has_bms || (w->bms_ok && i->bms.bms_state == BMS_CONNECTED);
    const int beat = is_finite(i->pcs_life.pcs_heartbeat) && i->pcs_life.pcs_heartbeat != st->last_hb;
    const int before = st->start_step;
    const PcsControl *c = &i->pcs_ctl;
    if (!(w->meter_ok && w->pcs_ok && w->bms_ok && i->verified == 1 && (causes(i, s, st, w) & ACTS) == 0)) {
        st->start_step = START_DEVICES;
    } else if (st->adopt && st->start_step > START_DEVICES && (!live || (s->has_pcs_ctl && c->wset_ena != 1.0))) {
        st->start_step = START_DEVICES;
    } else if (st->start_step == START_DEVICES) {
        if ((!s->has_pcs_ctl || c->g.count) && (!s->has_pcs_life || i->pcs_life.g.count)) {
            st->adopt = live && (!s->has_pcs_ctl || c->wset_ena == 1.0) && st->bad_since_ns == 0 && !st->tripped;
            st->start_step = START_REVERSION;
        }
    } else if (st->start_step == START_REVERSION) {
        if (!s->has_pcs_ctl || (age_s(i, &c->g) < 3.0 && c->g.t_ns > st->step_since_ns && c->wset_rvrt_ena == 1.0 && c->wset_rvrt_w == 0.0
                                && abs_w(c->wset_rvrt_s - s->pcs_rvrt_s) < 1.0))
            st->start_step = START_BMS;
    } else if (st->start_step == START_BMS) {
        if (!bms_closed && s->has_bms) {
            o->op_request = OP_START;
        } else if (w->dis_w > 0.0 || w->cha_w > 0.0) {
            st->start_step = START_HEARTBEAT;
            st->hb_first_ns = 0;
        }
    } else if (st->start_step == START_HEARTBEAT) {
        if (!s->has_pcs_life) {
            st->start_step = START_OPERATE;
        } else if (beat) {
            if ((st->hb_first_ns == 0 || since_s(i, st->hb_t_ns) > HEARTBEAT_S) && i->pcs_life.g.count > 1) st->hb_first_ns = i->t_ns;
            if (st->hb_first_ns && (st->adopt || since_s(i, st->hb_first_ns) >= HEARTBEAT_S)) st->start_step = START_OPERATE;
        }
    } else if (st->start_step == START_OPERATE) {
        if (st->adopt || (st->good_since_ns != 0 && since_s(i, st->good_since_ns) >= s->enter_service_delay_s)) {
            if (live) st->start_step = START_DONE;
            else o->op_request = OP_START;
        }
    }
    if (beat) {
        st->last_hb = i->pcs_life.pcs_heartbeat;
        st->hb_t_ns = i->t_ns;
    }
    if (st->start_step != before) st->step_since_ns = i->t_ns;
}

static inline void follows(const Inputs *i, const Site *s, State *st, Work *w)
{
    if (s->follow_w > 0.0 && !(st->rb_abs_w <= s->follow_w)) {
        if (st->follow_since_ns == 0) st->follow_since_ns = i->t_ns;
        else if (since_s(i, st->follow_since_ns) > s->follow_s) react(st, i, w, ALM_PCS_NOT_FOLLOWING);
    } else {
        st->follow_since_ns = 0;
    }
}

static inline int may_reset(const Inputs *i, State *st, uint32_t now)
{
    int oldest = 0;
    if (i->reset != st->reset_seen) {
        st->reset_seen = i->reset;
        return now == 0;
    }
    if (st->alarms & PERSON) return 0;
    if (now || !st->was_clean) {
        st->clean_since_ns = 0;
        return 0;
    }
    if (st->clean_since_ns == 0) st->clean_since_ns = i->t_ns;
    if (since_s(i, st->clean_since_ns) < CLEAN_S) return 0;
    for (int k = 1; k < 3; k++)
        if (st->reset_t_ns[k] < st->reset_t_ns[oldest]) oldest = k;
    if (st->reset_t_ns[oldest] && minus(i->t_ns, st->reset_t_ns[oldest]) < HOUR_NS) return 0;
    st->reset_t_ns[oldest] = i->t_ns;
    return 1;
}

static inline int forming(const Inputs *i)
{
    return 0.0 <= i->pcs.pcs_der_mode && i->pcs.pcs_der_mode < 4294967296.0 && ((int64_t)i->pcs.pcs_der_mode & 2);
}

static inline double others_w(const Inputs *i, const Site *s)
{
    double p = 0.0, most = 8.0 * s->feeder_w;
    if (s->has_others) {
        if (-most <= i->others.pv_p_w && i->others.pv_p_w <= most) p += i->others.pv_p_w;
        if (-most <= i->others.gen_p_w && i->others.gen_p_w <= most) p += i->others.gen_p_w;
    }
    return p;
}

static inline void stop(const Inputs *i, const Site *s, State *st)
{
    st->stop_since_ns = i->t_ns;
    st->stop_s = st->mode == GRID ? clamp(abs_w(st->cmd_w) / s->ramp_down_w_per_s, 0.1, i->stop ? 55.0 : INFINITY) : 0.0;
    enter(st, i, STOP);
    st->parked = !i->stop;
}

static inline void go(const Inputs *i, const Site *s, State *st)
{
    enter(st, i, GRID);
    st->start_step = START_DONE;
    st->tripped = 0;
    st->model_p_w = i->pcs.batt_p_w;
    st->model_target_w = i->pcs.batt_p_w;
    st->model_at = st->q_n;
    st->rb_p_w = i->pcs.batt_p_w;
    st->rb_target_w = i->pcs.batt_p_w;
    st->rb_at = st->q_n;
    st->sign_n = 0;
    st->sign_blocks = 0;
    st->sign_m_w = st->sign_p_w = st->sign_num = st->sign_den = st->sign_tick_num = st->sign_tick_den = 0.0;
    st->ring_load_w = i->meter.grid_p_w + i->pcs.batt_p_w + others_w(i, s);
    st->rb_err_w = 0.0;
    st->rb_abs_w = 0.0;
    st->cmd_w = i->pcs.batt_p_w;
    st->load_w = i->meter.grid_p_w + i->pcs.batt_p_w + others_w(i, s);
    st->mean_w = st->load_w;
    st->ref_w = i->meter.grid_p_w;
    st->horizon_s = s->mean_min_s;
}

static inline void modes(const Inputs *i, const Site *s, State *st, Work *w, Outputs *o)
{
    const uint32_t now = causes(i, s, st, w), acts = now & ACTS;
    const int grid_bad = st->bad_since_ns != 0 && since_s(i, st->bad_since_ns) >= s->trip_s;
    const int good = st->good_since_ns && since_s(i, st->good_since_ns) >= s->enter_service_delay_s;
    w->causes = now;
    if (st->mode != FAULT) st->reset_seen = i->reset;
    if (i->latched) {
        if (i->latched & ALM_GRID_OUTSIDE) st->tripped = 1;
        if (i->latched & ~(uint32_t)ALM_GRID_OUTSIDE) {
            st->alarms |= i->latched;
            st->was_clean = 0;
            if (st->mode != FAULT) enter(st, i, FAULT);
        }
    }
    if (i->stop && st->parked) {
        st->parked = 0;
        st->stop_s = smaller(st->stop_s, since_s(i, st->stop_since_ns) + 55.0);
    }
    const int waits = st->mode == STANDBY && st->start_step > START_REVERSION && !st->adopt;
    if ((i->stop && st->mode != STOP) || (i->park && (st->mode == GRID || waits))) {
        stop(i, s, st);
    }
    switch (st->mode) {
    case GRID:
    case ISLAND:
        if (st->mode == GRID) follows(i, s, st, w);
        if (st->mode != GRID && st->mode != ISLAND) {
        } else if (acts) {
            react(st, i, w, acts);
        } else if (i->pcs.pcs_state != PCS_RUNNING && i->pcs.pcs_state != PCS_THROTTLED) {
            react(st, i, w, ALM_PCS_FAULT);
        } else if (s->has_pcs_ctl && (i->pcs_ctl.wset_rvrt_ena != 1.0 || !(abs_w(i->pcs_ctl.wset_rvrt_s - s->pcs_rvrt_s) < 1.0)
                                       || !(age_s(i, &i->pcs_ctl.g) <= 2.0 * s->pcs_rvrt_s + 2.0))) {
            react(st, i, w, ALM_REVERSION);
        } else if (grid_bad && st->mode == GRID) {
            if (forming(i)) {
                enter(st, i, ISLAND);
            } else {
                react(st, i, w, ALM_GRID_OUTSIDE);
            }
        } else if (st->mode == ISLAND && !forming(i)) {
            enter(st, i, RESYNC);
        }
        break;
    case RESYNC:
        if (acts) react(st, i, w, acts);
        else if (good) enter(st, i, STANDBY);
        break;
    case TRIP:
        if (acts & TO_FAULT) {
            fault(st, i, acts);
        } else if (acts == 0 && good) {
            st->alarms = 0;
            enter(st, i, STANDBY);
        }
        break;
    case FAULT:
        st->alarms |= acts & ~unseen(s, st);
        if (may_reset(i, st, acts)) {
            st->alarms = 0;
            st->rb_err_w = 0.0;
            st->rb_abs_w = 0.0;
            enter(st, i, STANDBY);
        }
        break;
    case STANDBY:
        start(i, s, st, w, o);
        if (st->bad_since_ns) w->causes |= ALM_GRID_OUTSIDE;
        if (st->start_step == START_DONE) {
            go(i, s, st);
            if (i->park) stop(i, s, st);
        }
        break;
    case STOP:
        if (st->parked && !i->park) {
            st->alarms = 0;
            enter(st, i, STANDBY);
            break;
        }
        if (st->parked && st->start_step == START_DONE) st->alarms = 0;
        if (acts || grid_bad) {
            st->alarms |= acts | (grid_bad ? ALM_GRID_OUTSIDE : 0);
            st->stop_s = 0.0;
        }
        break;
    default:
        break;
    }
}

/* ---------------------------------------------------------------- 2. load */

static inline void model_advance(const Site *s, const State *st, int64_t *at_ns, double *p_w, double *target_w, uint32_t *at, int64_t t_ns)
{
    uint32_t guard = 0;
    if (st->q_n - *at > MODEL_QUEUE) *at = st->q_n - MODEL_QUEUE;
    while (*at_ns < t_ns && guard <= 2 * MODEL_QUEUE) {
        int64_t until = t_ns;
        guard++;
        if (*at != st->q_n) {
            if (st->q_t_ns[*at % MODEL_QUEUE] <= *at_ns) {
                *target_w = st->q_w[*at % MODEL_QUEUE];
                ++*at;
                continue;
            }
            if (st->q_t_ns[*at % MODEL_QUEUE] < until) until = st->q_t_ns[*at % MODEL_QUEUE];
        }
        *p_w = lag(*p_w, *target_w, (double)minus(until, *at_ns) * 1e-9, s->pcs_tau_s);
        *at_ns = until;
    }
}

static inline void model_push(State *st, int64_t t_ns, double p_w)
{
    st->q_t_ns[st->q_n % MODEL_QUEUE] = t_ns;
    st->q_w[st->q_n % MODEL_QUEUE] = p_w;
    st->q_n++;
}

static inline void align(const Inputs *i, const Site *s, State *st, const Work *w)
{
    double err, slope, keep, worth;
    if (st->pcs_good_ns != i->pcs.g.t_ns || i->pcs.g.count == st->last_pcs_count || i->pcs.g.t_ns < st->rb_t_ns) return;
    st->last_pcs_count = i->pcs.g.count;
    model_advance(s, st, &st->rb_t_ns, &st->rb_p_w, &st->rb_target_w, &st->rb_at, i->pcs.g.t_ns);
    err = i->pcs.batt_p_w - st->rb_p_w;
    slope = s->pcs_tau_s > 0.0 ? (st->rb_target_w - st->rb_p_w) / s->pcs_tau_s : 0.0;
    keep = decay(w->dt_s / ALIGN_TIME_S);
    st->align_num = st->align_num * keep + (err - st->rb_err_w) * slope;
    st->align_den = st->align_den * keep + slope * slope;
    worth = 0.02 * 0.37 * s->s_rated_va / (s->pcs_tau_s + 1e-4);
    if (st->align_den > 10.0 * worth * worth) st->align_s = st->align_num / st->align_den;
    st->rb_err_w += (err - st->rb_err_w) * clamp(w->dt_s / RB_TIME_S, 0.0, 1.0);
    if (s->pcs_tau_s >= OBSERVE_S) {
        err = OBSERVE * (err - st->rb_err_w);
        st->rb_p_w += err;
        st->model_p_w += err;
        err = i->pcs.batt_p_w - st->rb_p_w;
    }
    st->rb_abs_w += (abs_w(err) - st->rb_abs_w) * clamp(w->dt_s / RB_TIME_S, 0.0, 1.0);
}

static inline void ringing(const Site *s, State *st, double load_w)
{
    const double keep = 1.0 - 1.0 / RING_MEMORY, e = load_w - st->ring_load_w;
    double worst = 0.0, recent = 0.0;
    int k;
    st->ring_var = st->ring_var * keep + e * e / RING_MEMORY;
    for (k = 0; k < RING_LAGS; k++) {
        st->ring_cov[k] = st->ring_cov[k] * keep + e * st->ring_e[k] / RING_MEMORY;
        worst = smaller(worst, k == 0 ? st->ring_cov[k] + 0.25 * st->ring_var : st->ring_cov[k]);
    }
    for (k = RING_LAGS - 1; k > 0; k--) {
        st->ring_e[k] = st->ring_e[k - 1];
        recent += st->ring_e[k] * st->ring_e[k];
    }
    st->ring_e[0] = e;
    recent = (recent + e * e) / RING_LAGS;
    st->ring_load_w = load_w;
    if (smaller(recent, st->ring_var) > (RING_LEVEL * s->s_rated_va) * (RING_LEVEL * s->s_rated_va) && worst < -RING_SHARE * st->ring_var) {
        st->ring_calm = 0;
        st->ring_hot++;
        if (st->ring_hot >= RING_HOT) {
            st->ring_hot = 0;
            st->ring_s = clamp(3.0 * st->ring_s, 0.01, 0.1);
        }
    } else {
        st->ring_hot = 0;
        st->ring_calm++;
        if (st->ring_calm >= RING_CALM) {
            st->ring_calm = 0;
            st->ring_s = st->ring_s > s->align_full_s ? 0.5 * st->ring_s : 0.0;
        }
    }
}

static inline void watch_sign(const Inputs *i, const Site *s, State *st, Work *w)
{
    const double keep = 0.998, floor = 0.05 * s->s_rated_va;
    double m = i->meter.grid_p_w, p = st->model_p_w + st->rb_err_w, dm = m - st->sign_prev_m_w, dp = p - st->sign_prev_p_w;
    if (st->sign_n || st->sign_blocks) {
        st->sign_tick_num = st->sign_tick_num * keep + dm * dp;
        st->sign_tick_den = st->sign_tick_den * keep + dp * dp;
    }
    st->sign_prev_m_w = m;
    st->sign_prev_p_w = p;
    st->sign_m_w += m;
    st->sign_p_w += p;
    st->sign_n++;
    if (st->sign_n < SIGN_BLOCK) return;
    m = st->sign_m_w / st->sign_n;
    p = st->sign_p_w / st->sign_n;
    st->sign_n = 0;
    st->sign_m_w = st->sign_p_w = 0.0;
    dm = m - st->sign_last_m_w;
    dp = p - st->sign_last_p_w;
    st->sign_last_m_w = m;
    st->sign_last_p_w = p;
    st->sign_blocks++;
    if (st->sign_blocks < 2) return;
    st->sign_num = 0.98 * st->sign_num + dm * dp;
    st->sign_den = 0.98 * st->sign_den + dp * dp;
    if (smaller(st->sign_den, st->sign_tick_den) > floor * floor && st->sign_num > 0.5 * st->sign_den
        && st->sign_tick_num > 0.5 * st->sign_tick_den)
        react(st, i, w, ALM_METER_SIGN);
}

static inline void reconstruct(const Inputs *i, const Site *s, State *st, Work *w, Outputs *o)
{
    const double others = others_w(i, s);
    align(i, s, st, w);
    if (w->fresh) {
        double load, t_f;
        model_advance(s, st, &st->model_t_ns, &st->model_p_w, &st->model_target_w, &st->model_at, i->meter.g.t_ns);
        load = i->meter.grid_p_w + st->model_p_w + st->rb_err_w + others;
        if (st->mode == GRID) {
            ringing(s, st, load);
            watch_sign(i, s, st, w);
        }
        t_f = larger(abs_w(st->align_s), st->ring_s) + (double)minus(st->model_t_ns, i->meter.g.t_ns) * 1e-9;
        if (t_f > s->align_full_s) {
            t_f = t_f > 0.01 ? 2.0 * t_f : 0.02;
            st->load_w += (load - st->load_w) * w->sample_s / (t_f + w->sample_s);
            o->filter_s = t_f;
            w->flags |= LIM_FILTER;
        } else {
            st->load_w = load;
        }
        st->last_grid_w = i->meter.grid_p_w;
    }
    w->net_w = st->load_w - others;
    o->batt_p_w = st->model_p_w + st->rb_err_w;
}

/* ---------------------------------------------------------------- device limits */

static inline void less(double *limit, uint64_t *why, double bound, uint64_t flag)
{
    if (!(bound > 0.0)) bound = 0.0;
    if (bound < *limit) {
        *limit = bound;
        *why = flag;
    }
}

static inline void device_limits(const Inputs *i, const Limits *lim, const Site *s, Work *w)
{
#define DIS(bound, flag) less(&w->dis_w, &w->dis_why, (bound), (flag))
#define CHA(bound, flag) less(&w->cha_w, &w->cha_why, (bound), (flag))
    double t, k;
    w->dis_w = INFINITY;
    w->cha_w = INFINITY;
    DIS(s->pcs_p_max_w, LIM_PCS_S);
    CHA(s->pcs_p_max_w, LIM_PCS_S);
    DIS(s->s_rated_va, LIM_PCS_S);
    CHA(s->s_rated_va, LIM_PCS_S);
    DIS(lim->p_discharge_max_w, LIM_SITE_P);
    CHA(lim->p_charge_max_w, LIM_SITE_P);
    if (!w->bms_now) {
        DIS(0.0, LIM_BMS_STALE);
        CHA(0.0, LIM_BMS_STALE);
        return;
    }
    if (s->has_bms) {
        DIS(s->pcs_p_max_w * taper(i->bms.soc - lim->soc_min, SOC_TAPER), LIM_SOC_MIN);
        CHA(s->pcs_p_max_w * taper(lim->soc_max - i->bms.soc, SOC_TAPER), LIM_SOC_MAX);
        if (i->bms.bms_state != BMS_CONNECTED) {
            DIS(0.0, LIM_BMS_DISCHARGE);
            CHA(0.0, LIM_BMS_CHARGE);
        }
    }
    if (s->has_bms_temp) {
        const BmsTemp *b = &i->bms_temp;
        if (age_s(i, &b->g) > 10.0 * s->bms_lost_s || !is_finite(b->batt_temp_max_c + b->batt_temp_min_c)) {
            k = 0.0;
        } else {
            k = taper(s->temp_max_c - b->batt_temp_max_c, s->temp_taper_c);
            t = taper(b->batt_temp_min_c - s->temp_min_c, s->temp_taper_c);
            if (k == k && !(k < t)) k = t;
        }
        DIS(s->pcs_p_max_w * k, LIM_TEMP);
        CHA(s->pcs_p_max_w * k, LIM_TEMP);
    }
    if (s->has_bms_limits) {
        const BmsLimits *b = &i->bms_lim;
        DIS(s->batt_eta * b->batt_v * b->batt_i_discharge_max_a, LIM_BMS_DISCHARGE);
        CHA(b->batt_v * b->batt_i_charge_max_a, LIM_BMS_CHARGE);
        if (b->batt_p_discharge_max_w == b->batt_p_discharge_max_w) DIS(s->batt_eta * b->batt_p_discharge_max_w, LIM_BMS_DISCHARGE);
        if (b->batt_p_charge_max_w == b->batt_p_charge_max_w) CHA(b->batt_p_charge_max_w, LIM_BMS_CHARGE);
        t = 0.02 * (s->batt_v_max_v - s->batt_v_min_v);
        if (!(t < INFINITY)) t = 0.02 * i->bms_lim.batt_v;
        DIS(s->pcs_p_max_w * taper(b->batt_v - s->batt_v_min_v, t), LIM_BATT_V);
        CHA(s->pcs_p_max_w * taper(s->batt_v_max_v - b->batt_v, t), LIM_BATT_V);
    }
#undef DIS
#undef CHA
}

static inline double bounded(double p, double low, double high, uint64_t low_flag, uint64_t high_flag, Work *w)
{
    if (p < low) {
        w->flags |= low_flag;
        p = low;
    }
    if (p > high) {
        w->flags |= high_flag;
        p = high;
    }
    return p;
}

/* ---------------------------------------------------------------- 3. reference */

static inline void bill(const Inputs *i, const Limits *lim, const Site *s, State *st, const Work *w)
{
    double elapsed;
    if (!(s->billing_window_s > 0.0) || !(i->billing_phase_s >= 0.0)) return;
    elapsed = clamp(i->billing_phase_s, 0.0, s->billing_window_s);
    if (s->import_limit_w < st->billing_limit_w) {
        const double owed = larger(st->billing_wh - st->billing_limit_w * st->billing_phase_s / 3600.0, 0.0);
        st->billing_wh = smaller(st->billing_wh, s->import_limit_w * st->billing_phase_s / 3600.0 + owed);
    }
    st->billing_limit_w = s->import_limit_w;
    if (elapsed < st->billing_phase_s || st->billing_phase_s < 0.0) st->billing_wh = s->import_limit_w * elapsed / 3600.0;
    else if (!w->meter_ok) st->billing_wh += s->import_limit_w * (elapsed - st->billing_phase_s) / 3600.0;
    else if (st->last_grid_w > 0.0) st->billing_wh += st->last_grid_w * (elapsed - st->billing_phase_s) / 3600.0;
    st->billing_phase_s = elapsed;
}

static inline double import_allowed(const Inputs *i, const Limits *lim, const Site *s, const State *st)
{
    double left, over;
    if (!(s->billing_window_s > 0.0) || !(i->billing_phase_s >= 0.0)) return lim->import_limit_w;
    left = s->billing_window_s - st->billing_phase_s;
    over = clamp(st->billing_wh * 3600.0 - s->import_limit_w * st->billing_phase_s, 0.0, INFINITY);
    return clamp(s->import_limit_w - over / (left > 60.0 ? left : 60.0), 0.0, lim->import_limit_w);
}

static inline void slow_mean(const Inputs *i, const Limits *lim, const Site *s, State *st, const Work *w)
{
    double off = 0.0, longest;
    if (s->has_bms && w->bms_now) off = abs_w(i->bms.soc - lim->soc_target);
    longest = s->mean_min_s + (s->mean_max_s - s->mean_min_s) * clamp((0.3 - off) / 0.2, 0.0, 1.0);
    st->horizon_s = slew(st->horizon_s, longest, 1.0, 10.0, w->dt_s);
    st->mean_w += (st->load_w - st->mean_w) * clamp(w->dt_s / st->horizon_s, 0.0, 1.0);
}

static inline void reference(const Inputs *i, const Limits *lim, const Site *s, State *st, Work *w, Outputs *o, double base_w)
{
    const double others = st->load_w - w->net_w;
    double target, bound, allowed;
    slow_mean(i, lim, s, st, w);
    allowed = import_allowed(i, lim, s, st);
    target = st->mean_w - others + base_w;
    if (s->has_bms && w->bms_now)
        target -= clamp((i->bms.soc - lim->soc_target) * s->energy_wh * 3600.0 / s->soc_time_s, -0.25 * s->s_rated_va, 0.25 * s->s_rated_va);
    bound = clamp(target, -lim->export_limit_w, allowed);
    if (bound < target) w->flags |= allowed >= lim->import_limit_w ? LIM_IMPORT : LIM_BILLING;
    else if (bound > target) w->flags |= LIM_EXPORT;
    o->target_w = bound;
    w->ref_before_w = st->ref_w;
    w->following = 1;
    st->ref_w = slew(st->ref_w, bound, lim->ramp_up_w_per_s, lim->ramp_down_w_per_s, w->dt_s);
    if (st->ref_w != bound) w->flags |= LIM_RAMP;
    st->ref_w = bounded(st->ref_w, w->net_w - w->dis_w, w->net_w + w->cha_w, w->dis_why, w->cha_why, w);
}

static inline void ramp_held(const Limits *lim, State *st, Work *w)
{
    const double moved = st->ref_w - w->ref_before_w;
    if (moved > lim->ramp_up_w_per_s * w->dt_s * 1.000001 + 1e-6 || moved < -lim->ramp_down_w_per_s * w->dt_s * 1.000001 - 1e-6) {
        st->not_held_s += w->dt_s;
        w->flags |= LIM_NOT_HELD;
    }
}

/* ---------------------------------------------------------------- 4. battery, 5. droop */

static inline int choose(const Inputs *i)
{
    for (int k = 0; k < SLOTS; k++)
        if (i->slot[k].kind != SP_NONE && i->slot[k].lease_until_ns > i->t_ns && is_finite(i->slot[k].value_w)) return k;
    return -1;
}

static inline double battery(const Inputs *i, const Limits *lim, const Site *s, State *st, Work *w, Outputs *o)
{
    double p, base_w = 0.0;
    int hold;
    o->slot = choose(i);
    if (o->slot >= 0) {
        o->slot_id = i->slot[o->slot].id;
        if (i->slot[o->slot].kind == SP_BASE) base_w = i->slot[o->slot].value_w;
    }
    hold = o->slot >= 0 && i->slot[o->slot].kind == SP_HOLD;
    w->share = 1.0;
    if (st->mode == STOP) {
        w->share = st->stop_s > 0.0 && i->stop < 2 ? clamp(1.0 - since_s(i, st->stop_since_ns) / st->stop_s, 0.0, 1.0) : 0.0;
        if (w->share == 0.0) return 0.0;
    }
    if (!w->meter_ok) {
        w->flags |= LIM_METER_STALE;
        st->stale = 1;
        return slew(st->cmd_w, 0.0, s->s_rated_va / 2.0, s->s_rated_va / 2.0, w->dt_s);
    }
    if (st->stale) {
        st->stale = 0;
        st->ref_w = w->net_w - (st->cmd_w - st->droop_w);
    }
    if (hold && st->mode != STOP) {
        w->flags |= LIM_HOLD;
        slow_mean(i, lim, s, st, w);
        p = slew_from_zero(st->cmd_w - st->droop_w, i->slot[o->slot].value_w, lim->ramp_up_w_per_s, w->dt_s);
        st->ref_w = w->net_w - p;
        o->target_w = st->ref_w;
    } else if (st->mode != STOP && i->pcs_deaf) {
        o->target_w = st->ref_w;
        st->not_held_s += w->dt_s;
        w->flags |= LIM_NOT_HELD;
        p = st->cmd_w - st->droop_w;
    } else if (st->mode != STOP) {
        reference(i, lim, s, st, w, o, base_w);
        p = w->net_w - st->ref_w;
    } else {
        o->target_w = st->ref_w;
        p = w->net_w - st->ref_w;
    }
    p *= w->share;
    if ((hold || i->pcs_deaf) && st->mode == STOP) p = clamp(p, smaller(st->cmd_w, 0.0), larger(st->cmd_w, 0.0));
    return p;
}

static inline double frequency(const Inputs *i, const Site *s, State *st, Work *w)
{
    double p = 0.0;
    if (s->droop_r > 0.0 && w->meter_ok && abs_w(i->meter.f_hz - s->f_nom_hz) < 0.2 * s->f_nom_hz)
        p = clamp(droop(i->meter.f_hz, s->f_nom_hz, s->droop_db_hz, s->droop_r, s->s_rated_va), -s->s_rated_va, s->s_rated_va);
    st->droop_w = lag(st->droop_w, p, w->dt_s, s->droop_tr_s / 2.302585092994046);
    if (abs_w(st->droop_w) > 1e-3 * s->s_rated_va) w->flags |= LIM_DROOP;
    else if (p == 0.0) st->droop_w = abs_w(st->droop_w) < 1.0 ? 0.0 : st->droop_w;
    return st->droop_w;
}

static inline double reactive(const Inputs *i, const Site *s, State *st, const Work *w, double p_w)
{
    double q = 0.0, room = q_room(s->s_rated_va, p_w), v;
    if (!(s->q_max_var > 0.0)) return 0.0;
    v = (i->meter.v1_v + i->meter.v2_v + i->meter.v3_v) / (3.0 * s->v_nom_v);
    if (w->meter_ok && is_finite(v)) q = volt_var(v, s->volt_db_pu, s->volt_full_pu, s->q_max_var);
    st->volt_var = lag(st->volt_var, q, w->dt_s, s->volt_tr_s / 2.302585092994046);
    return clamp(st->volt_var, -room, room);
}

/* ---------------------------------------------------------------- 6. limits, 7. gate */

static inline double limit(const Inputs *i, const Limits *lim, const Site *s, State *st, Work *w, Outputs *o, double p, double before_w,
                           double droop_w)
{
    if (i->pcs_deaf && st->mode == GRID) {
        p = clamp(p + (w->meter_ok ? droop_w : 0.0), smaller(st->cmd_w, 0.0), larger(st->cmd_w, 0.0));
        return bounded(p, -w->cha_w, w->dis_w, w->cha_why, w->dis_why, w);
    }
    if (s->cmd_slew_w_per_s < INFINITY) {
        o->p_cmd_w = slew_from_zero(before_w, p, s->cmd_slew_w_per_s, w->dt_s);
        if (o->p_cmd_w != p) w->flags |= LIM_SLEW;
        p = o->p_cmd_w;
    }
    if (w->meter_ok && st->mode == GRID) {
        const double want = p;
        p = bounded(p, w->net_w - lim->import_limit_w, w->net_w + lim->export_limit_w, LIM_IMPORT, LIM_EXPORT, w);
        if (p != want) st->ref_w = w->net_w - clamp(p, -w->cha_w, w->dis_w);
        p += droop_w;
        p = bounded(p, w->net_w - s->feeder_w, w->net_w + s->feeder_w, LIM_FEEDER, LIM_FEEDER, w);
    } else if (w->meter_ok) {
        p = bounded(p, smaller(w->net_w - lim->import_limit_w, 0.0), larger(w->net_w + lim->export_limit_w, 0.0), LIM_IMPORT, LIM_EXPORT, w);
        p += droop_w * w->share;
        p = bounded(p, smaller(w->net_w - s->feeder_w, 0.0), larger(w->net_w + s->feeder_w, 0.0), LIM_FEEDER, LIM_FEEDER, w);
    }
    return bounded(p, -w->cha_w, w->dis_w, w->cha_why, w->dis_why, w);
}

static inline void gate(const Inputs *i, const Limits *lim, const Site *s, State *st, Work *w, Outputs *o, double p)
{
    double kept;
    if (!is_finite(p)) {
        p = 0.0;
        fault(st, i, ALM_INTERNAL);
    }
    if (!is_finite(o->q_cmd_var)) {
        o->q_cmd_var = 0.0;
        st->volt_var = 0.0;
    }
    kept = s->has_pcs_ctl ? i->pcs_ctl.wset_w : i->pcs.batt_p_w;
    if (st->mode == STANDBY && st->adopt && is_finite(kept)) {
        p = clamp(kept, -w->cha_w, w->dis_w);
    } else if (st->mode != GRID && st->mode != STOP) {
        p = 0.0;
        w->flags |= LIM_MODE;
    }
    o->gate = st->mode != STANDBY
              || (i->verified == 1
                  && (st->start_step >= (st->adopt ? START_HEARTBEAT : START_BMS)
                      || (st->start_step == START_BMS && w->bms_now && w->dis_w == 0.0 && w->cha_w == 0.0
                          && !(s->has_bms_temp && age_s(i, &i->bms_temp.g) > 10.0 * s->bms_lost_s))));
    if (st->mode == STOP && p == 0.0 && (i->stop >= 2 || !(since_s(i, st->stop_since_ns) < st->stop_s))) {
        st->start_step = START_DONE;
        const double state = i->pcs.pcs_state;
        if (!st->parked || state != state || (PCS_STARTING <= state && state <= PCS_THROTTLED)) o->op_request = OP_STOP;
    }
    if (i->pcs_deaf) {
        w->flags |= LIM_PCS_DEAF;
        const int running = w->pcs_ok && PCS_STARTING <= i->pcs.pcs_state && i->pcs.pcs_state <= PCS_THROTTLED;
        if ((st->mode == FAULT || st->mode == TRIP) && running && abs_w(i->pcs.batt_p_w) > s->follow_w) o->op_request = OP_STOP;
    }
    p += 0.0;
    o->p_cmd_w = p;
    st->cmd_w = p;
    o->enable = 1.0;
    o->rvrt_s = st->mode == STANDBY && st->start_step == START_DEVICES ? 0.0 : s->pcs_rvrt_s;
    st->proven = o->gate ? st->proven + 1 : 0;
    o->heartbeat = o->gate ? (double)((i->tick / 100) & 0x3FFFFFFF) + 1.0 : 0.0;
    if (o->gate) model_push(st, minus(i->command_t_ns, -to_ns(s->pcs_dead_s)), p);
    if (i->step_t_ns > lim->lease_until_ns) w->flags |= LIM_LEASE;
    if (lim->flags & LIMITS_OPERATOR) w->flags |= LIM_OPERATOR;
}

__attribute__((noinline)) void peer_step(const Inputs *inp, const Limits *lim, const Site *s, State *st, Outputs *o)
{
    Work w;
    double p = 0.0;
    memset(&w, 0, sizeof w);
    memset(o, 0, sizeof *o);
    o->slot = -1;
    judge(inp, s, st, &w);
    device_limits(inp, lim, s, &w);
    modes(inp, s, st, &w, o);
    reconstruct(inp, s, st, &w, o);
    bill(inp, lim, s, st, &w);
    if (st->mode == GRID || st->mode == STOP) {
        const double before = w.meter_ok ? st->cmd_w - st->droop_w : st->cmd_w;
        p = battery(inp, lim, s, st, &w, o);
        const double extra = frequency(inp, s, st, &w);
        p = limit(inp, lim, s, st, &w, o, p, before, extra);
        if (w.following) ramp_held(lim, st, &w);
    } else {
        st->droop_w = 0.0;
        st->ref_w = st->last_grid_w;
        st->mean_w = st->load_w;
        st->horizon_s = s->mean_min_s;
    }
    o->q_cmd_var = st->mode == GRID ? reactive(inp, s, st, &w, p) : 0.0;
    gate(inp, lim, s, st, &w, o, p);
    o->load_w = st->load_w;
    o->mean_w = st->mean_w;
    o->ref_w = st->ref_w;
    o->grid_p_w = st->last_grid_w;
    o->droop_w = st->droop_w;
    o->horizon_s = st->horizon_s;
    o->align_s = st->align_s;
    o->not_held_s = st->not_held_s;
    o->soc = s->has_bms ? inp->bms.soc : NAN;
    o->limits_active = w.flags;
    o->p_min_w = -w.cha_w;
    o->p_max_w = w.dis_w;
    o->alarms = st->alarms | (st->mode == STANDBY || st->mode == FAULT ? w.causes : w.causes & ~ACTS);
    o->mode = st->mode;
    o->start_step = st->start_step;
}

/* ---------------------------------------------------------------- the face for peer.py */

void peer_masks(uint32_t to_fault, uint32_t to_trip, uint32_t person)
{
    TO_FAULT = to_fault;
    TO_TRIP = to_trip;
    PERSON = person;
    ACTS = to_fault | to_trip;
}

size_t peer_size(int which)
{
    const size_t sizes[] = {sizeof(Inputs), sizeof(Limits), sizeof(Site), sizeof(State), sizeof(Outputs), sizeof(Record)};
    return sizes[which];
}

/* Whole Records in order from *st; the Outputs of each go to out. */
void peer_run(const Site *s, State *st, const Record *r, int64_t n, Outputs *out)
{
    for (int64_t k = 0; k < n; k++) peer_step(&r[k].inp, &r[k].lim, s, st, &out[k]);
}

static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Nanoseconds of n steps with moving inputs, as Kernel.time_steps does it. */
void peer_time(const Site *s, State *st, const Inputs *inp, const Limits *lim, int n, int64_t *times)
{
    Inputs i = *inp;
    Outputs o;
    for (int k = 0; k < n; k++) {
        i.tick += 1;
        i.t_ns += 10000000;
        i.step_t_ns = i.t_ns + 2633000;
        i.command_t_ns = i.step_t_ns + 406000;
        i.meter.g.t_ns = i.t_ns + 1941000;
        i.meter.g.count += 1;
        i.meter.grid_p_w += k & 8 ? 1000.0 : -1000.0;
        i.pcs.g.t_ns = i.t_ns - 1300000;
        i.pcs.g.count += 1;
        int64_t a = now_ns();
        peer_step(&i, lim, s, st, &o);
        times[k] = now_ns() - a;
    }
}

/* The cost of the clock alone: two readings with nothing between them. */
void peer_clock(int n, int64_t *times)
{
    for (int k = 0; k < n; k++) {
        int64_t a = now_ns();
        times[k] = now_ns() - a;
    }
}
