"""Register faces of meter, BMS and PCS: what a master reads and writes, at the instant the request is detected.

Meter: 12 registers from 0, function 03 and 04: f32 big-endian, high word first: P W (grid import +), Q var, V1, V2,
V3 (line to neutral), f Hz. PCS and BMS: SunSpec from 40000, function 03 only. Layout and sentinels come from maps.py;
here stand the registers that move. Signs: 701.W injects + (= discharge). 802.A and 802.W: the model's text does not
say; here discharge + (IEC 61850 ZBAT and the storage models' DISCHARGING come with current out of the battery), the
same as 803.StrA.
"""

from libc.math cimport fabs, floor, fmax, fmin, sqrt
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint16_t, uint32_t, uint64_t

from bench.plant.pcs cimport (
    OP_EXIT_STANDBY,
    R701,
    R704,
    R715,
    pcs_command,
    pcs_operate,
    pcs_refresh,
    pcs_restart_timer,
    pcs_shown_state,
)
from bench.plant.physics cimport batt_w, f_hz, grid_mean_w, grid_w, log_event, normal, present
from bench.plant.state cimport (
    EV_CONTACTOR_CLOSE,
    EV_CONTACTOR_OPEN,
    KIND_BMS,
    KIND_METER,
    KIND_PCS,
    PCS_RUNNING,
    Battery,
    Device,
    P_battery_energy_wh,
    P_bms_contactor_open,
    P_bms_evt1,
    P_bms_hb_stuck,
    P_bms_soc_offset,
    P_grid_connected,
    P_grid_v_ln_v,
    P_load_q_var,
    P_meter_gain,
    P_meter_mode,
    P_meter_noise_w,
    P_meter_offset_w,
    P_meter_update_s,
    P_meter_window_s,
    P_pcs_fault,
    P_pcs_hb_stuck,
    P_pcs_s_rated_va,
    Plant,
)

cdef enum:
    ILLEGAL_FUNCTION = 1
    ILLEGAL_ADDRESS = 2
    ILLEGAL_VALUE = 3

cdef union _F32:
    float f
    uint32_t u


# -- encoders: engineering value -> register, saturating one short of the "not implemented" sentinels

cdef inline uint16_t _i16(double x) noexcept nogil:
    return <uint16_t><int>floor(fmin(fmax(x, -32767.0), 32767.0) + 0.5)


cdef inline uint16_t _u16(double x) noexcept nogil:
    return <uint16_t>floor(fmin(fmax(x, 0.0), 65534.0) + 0.5)


cdef inline void _u32(uint16_t* r, uint32_t x) noexcept nogil:
    r[0] = <uint16_t>(x >> 16)
    r[1] = <uint16_t>(x & 0xFFFF)


cdef inline void _u64(uint16_t* r, uint64_t x) noexcept nogil:
    _u32(r, <uint32_t>(x >> 32))
    _u32(r + 2, <uint32_t>x)


cdef inline int64_t _whole_s(Plant* p, int64_t t_ns) noexcept nogil:
    return (t_ns - p.t0_ns) // 1_000_000_000


# -- meter

cdef double _v_ln_v(Plant* p) noexcept nogil:
    return p.par[P_grid_v_ln_v] if p.par[P_grid_connected] != 0.0 else 0.0


cdef void meter_latch(Plant* p, int64_t t_ns) noexcept nogil:
    """Take the meter's values for this instant."""
    cdef int64_t window_ns = <int64_t>(p.par[P_meter_window_s] * 1e9)
    cdef double w = grid_mean_w(p, t_ns - window_ns, t_ns) if window_ns > 0 else grid_w(p, t_ns)
    w = w * p.par[P_meter_gain] + p.par[P_meter_offset_w]
    if p.par[P_meter_noise_w] > 0.0:
        w += p.par[P_meter_noise_w] * normal(p)
    p.latch[0] = w
    p.latch[1] = 0.0
    if p.par[P_grid_connected] != 0.0:
        p.latch[1] = (p.par[P_load_q_var] - present(p).q_var) * p.par[P_meter_gain]
    p.latch[2] = p.latch[3] = p.latch[4] = _v_ln_v(p)
    p.latch[5] = f_hz(p, t_ns)
    p.latched = 1


cdef void _fill_meter(Plant* p, Device* d, int64_t t_ns) noexcept nogil:
    cdef int mode = <int>p.par[P_meter_mode], i
    cdef _F32 x
    if not p.latched or (mode != 3 and p.par[P_meter_update_s] <= 0.0):
        meter_latch(p, t_ns)
    for i in range(6):
        x.f = <float>p.latch[i]
        if mode == 1:
            x.u = 0x7FC00000
        elif mode == 2:
            x.u = 0xFFFFFFFF
        _u32(d.regs + 2 * i, x.u)


# -- BMS

cdef void bms_refresh(Plant* p, int64_t t_ns) noexcept nogil:
    """Contactors follow `bms.contactor_open`; they close again when it is lifted and no alarm stands."""
    cdef Battery* b = &p.bat
    if p.par[P_bms_contactor_open] != 0.0 and b.closed:
        b.closed = 0
        log_event(p, t_ns, EV_CONTACTOR_OPEN, 0)
        pcs_refresh(p, t_ns)
    elif p.par[P_bms_contactor_open] == 0.0 and not b.closed and b.evt1 == 0:
        b.closed = 1
        log_event(p, t_ns, EV_CONTACTOR_CLOSE, 0)


cdef void _fill_bms(Plant* p, Device* d, int64_t t_ns) noexcept nogil:
    """802 and 803 as of the last 10 ms; WHRtg is fixed at start (maps.py)."""
    cdef Battery* b = &p.bat
    cdef uint16_t* r = d.regs + R802
    cdef uint32_t evt1 = b.evt1 | <uint32_t>p.par[P_bms_evt1]
    cdef double soc = fmin(fmax(b.soc + p.par[P_bms_soc_offset], 0.0), 1.0), v = fmax(b.v_v, 1.0)
    cdef int i
    if b.temp_c > 45.0:
        evt1 |= 1 << 2
    # Limits are rounded down: a shown limit must never be above the true one.
    r[4] = <uint16_t>fmin(b.lim_charge_w / 10.0, 65534.0)
    r[5] = <uint16_t>fmin(b.lim_discharge_w / 10.0, 65534.0)
    r[11] = _u16(soc * 10000.0)
    r[16] = 3 if b.p_dc_w > 1000.0 else 4 if b.p_dc_w < -1000.0 else 6
    if p.par[P_bms_hb_stuck] == 0.0:
        r[18] = <uint16_t>(_whole_s(p, t_ns) % 65535)
    r[22] = 99 if b.evt1 else 3 if b.closed else 1
    _u32(r + 26, evt1)
    r[34] = _u16(b.v_v * 10.0)
    r[37] = r[40] = r[43] = _u16(b.v_v / 250.0 * 1000.0)
    r[44] = _i16(b.i_a * 10.0)
    r[45] = <uint16_t>fmin(b.lim_charge_w / v * 10.0, 65534.0)
    r[46] = <uint16_t>fmin(b.lim_discharge_w / v * 10.0, 65534.0)
    r[47] = _i16(b.p_dc_w / 10.0)
    r = d.regs + R803
    r[3] = b.closed
    r[4] = r[7] = r[10] = _i16(b.temp_c * 10.0)
    r[11] = r[13] = r[15] = _u16(b.v_v * 10.0)
    r[16] = r[18] = r[20] = _i16(b.i_a * 10.0)
    _u32(r + 29, 1 | (<uint32_t>b.closed << 1))
    r[32] = _u16(soc * 10000.0)
    r[34] = _i16(b.i_a * 10.0)
    r[35] = r[37] = r[39] = _u16(b.v_v / 250.0 * 1000.0)
    r[40] = r[42] = r[44] = _i16(b.temp_c * 10.0)
    _u32(r + 48, evt1)


cdef int _write_bms(Plant* p, Device* d, int a, int n, int64_t t_ns) noexcept nogil:
    cdef uint16_t* r = d.regs + R802
    if a <= R802 + 20 < a + n and r[20] == 1:
        p.bat.evt1 = 0
        r[20] = 0
    if a <= R802 + 50 < a + n:
        if r[50] == 2 and p.bat.closed:
            p.bat.closed = 0
            log_event(p, t_ns, EV_CONTACTOR_OPEN, 0)
            pcs_refresh(p, t_ns)
        elif r[50] == 1 and not p.bat.closed and p.bat.evt1 == 0 and p.par[P_bms_contactor_open] == 0.0:
            p.bat.closed = 1
            log_event(p, t_ns, EV_CONTACTOR_CLOSE, 0)
    return 0


# -- PCS

cdef void _fill_701(Plant* p, uint16_t* r, int64_t t_ns) noexcept nogil:
    """W_SF, VA_SF, Var_SF 1; A_SF, V_SF -1; Hz_SF -3; PF_SF -2."""
    cdef double w = batt_w(p, t_ns), q = present(p).q_var, va = sqrt(w * w + q * q), v = _v_ln_v(p)
    cdef double a = va / (3.0 * v) if v > 1.0 else 0.0
    cdef double pf = w / va if va > 1.0 else 1.0
    cdef int state = pcs_shown_state(p), i, b
    cdef uint32_t alarm = 0
    r[3] = p.pcs.state == PCS_RUNNING
    r[4] = state
    r[5] = p.par[P_grid_connected] != 0.0
    if not p.bat.closed:
        alarm |= 1 << 3                 # DC_DISCONNECT
    if p.par[P_grid_connected] == 0.0:
        alarm |= 1 << 4                 # GRID_DISCONNECT
    if p.par[P_pcs_fault] != 0.0:
        alarm |= 1 << 16                # MANUFACTURER_ALRM
    _u32(r + 6, alarm)
    r[10] = _i16(w / 10.0)
    r[11] = _i16(va / 10.0)
    r[12] = _i16(q / 10.0)
    r[13] = _i16(pf * 100.0)
    r[14] = _i16(a * 10.0)
    r[15] = _u16(v * sqrt(3.0) * 10.0)
    r[16] = _u16(v * 10.0)
    _u32(r + 17, <uint32_t>(f_hz(p, t_ns) * 1000.0 + 0.5))
    _u64(r + 19, <uint64_t>p.bat.energy_out_wh)
    _u64(r + 23, <uint64_t>p.bat.energy_in_wh)
    # cabinet air: a plausible figure, no model behind it
    r[36] = _i16(25.0 + 20.0 * fabs(w) / p.par[P_pcs_s_rated_va])
    for i in range(3):
        b = 41 + 23 * i
        r[b] = _i16(w / 30.0)
        r[b + 1] = _i16(va / 30.0)
        r[b + 2] = _i16(q / 30.0)
        r[b + 3] = _i16(pf * 100.0)
        r[b + 4] = _i16(a * 10.0)
        r[b + 5] = _u16(v * sqrt(3.0) * 10.0)
        r[b + 6] = _u16(v * 10.0)


cdef void _fill_704(Plant* p, uint16_t* r, int64_t t_ns) noexcept nogil:
    cdef int64_t left_ns = p.pcs.rvrt_ns - t_ns if p.pcs.rvrt_ns != INT64_MAX else 0
    _u32(r + 33, <uint32_t>((left_ns + 999_999_999) // 1_000_000_000) if left_ns > 0 else 0)


cdef void _fill_pcs(Plant* p, Device* d, int a, int n, int64_t t_ns) noexcept nogil:
    """Only the models that the request touches."""
    if a < R701 + 155 and a + n > R701:
        _fill_701(p, d.regs + R701, t_ns)
    if a < R704 + 67 and a + n > R704:
        _fill_704(p, d.regs + R704, t_ns)
    if a + n > R715 and p.par[P_pcs_hb_stuck] == 0.0:
        _u32(d.regs + R715 + 3, <uint32_t>_whole_s(p, t_ns))


cdef int _check_pcs(int a, int n, const uint16_t* val) noexcept nogil:
    """Enumerations outside their range are refused before anything is written."""
    cdef int i, off
    for i in range(n):
        off = a + i - R704
        if (off == 22 or off == 23 or off == 30 or off == 35) and val[i] > 1:
            return ILLEGAL_VALUE
        if off == 36 and val[i] > 4:
            return ILLEGAL_VALUE
        if a + i == R715 + 8 and val[i] > OP_EXIT_STANDBY:
            return ILLEGAL_VALUE
    return 0


cdef void _write_pcs(Plant* p, Device* d, int a, int n, int64_t detect_ns, int64_t end_ns) noexcept nogil:
    """What a write to these registers sets off. Timer first: one write may enable both."""
    cdef int lo = a - R704, hi = a + n - R704
    if lo < 33 and hi > 30:
        pcs_restart_timer(p, detect_ns)
    if (lo < 26 and hi > 22) or (lo < 29 and hi > 28) or (lo < 40 and hi > 35):
        pcs_command(p, detect_ns, end_ns)
    if a <= R715 + 8 < a + n:
        pcs_operate(p, detect_ns, d.regs[R715 + 8])


# -- common

cdef int device_read(Plant* p, Device* d, int fc, int addr, int n, uint16_t* out, int64_t t_ns) noexcept nogil:
    """Read n registers from addr into out; 0 or a Modbus exception code."""
    cdef int a = addr - d.base, i
    if fc == 4 and d.kind != KIND_METER:
        return ILLEGAL_FUNCTION
    if n < 1 or n > 125:
        return ILLEGAL_VALUE
    if a < 0 or a + n > d.n_regs:
        return ILLEGAL_ADDRESS
    if d.kind == KIND_METER:
        _fill_meter(p, d, t_ns)
    elif d.kind == KIND_BMS:
        _fill_bms(p, d, t_ns)
    else:
        _fill_pcs(p, d, a, n, t_ns)
    for i in range(n):
        out[i] = d.regs[a + i]
    return 0


cdef int device_write(
    Plant* p, Device* d, int addr, int n, const uint16_t* val, int64_t detect_ns, int64_t end_ns
) noexcept nogil:
    """Write n registers, all or none; 0 or a Modbus exception code. end_ns: last bit of the frame, for the command
    log.
    """
    cdef int a = addr - d.base, i, refused
    if n < 1 or n > 123:
        return ILLEGAL_VALUE
    if a < 0 or a + n > d.n_regs:
        return ILLEGAL_ADDRESS
    for i in range(n):
        if not d.writable[a + i]:
            return ILLEGAL_ADDRESS
    if d.kind == KIND_PCS:
        refused = _check_pcs(a, n, val)
        if refused:
            return refused
    for i in range(n):
        d.regs[a + i] = val[i]
    if d.kind == KIND_PCS:
        _write_pcs(p, d, a, n, detect_ns, end_ns)
    elif d.kind == KIND_BMS:
        _write_bms(p, d, a, n, detect_ns)
    return 0
