# What a running engine takes for a Site: inline, nogil. Asked by who writes one (ProcessImage.update_site) and again on the engine's side.

from _core.image cimport Site


cdef inline const char* site_refused(const Site* new, const Site* old) noexcept nogil:
    """Why a running engine does not take this Site: the field, or the relation that is broken; NULL: it does.

    Everything the kernel divides by, compares or takes for granted; what another device or the plan was told at the start has to stay."""
    cdef const double* x = <const double*>new
    cdef size_t k
    for k in range(<size_t>(<const char*>&new.has_pcs_ctl - <const char*>new) // sizeof(double)):
        if x[k] != x[k] or (x[k] - x[k] != 0.0 and &x[k] != &new.cmd_slew_w_per_s and &x[k] != &new.batt_v_max_v):
            return b"a value is not finite"
    if (new.has_pcs_ctl != old.has_pcs_ctl or new.has_pcs_life != old.has_pcs_life or new.has_bms != old.has_bms
            or new.has_bms_limits != old.has_bms_limits or new.has_bms_temp != old.has_bms_temp or new.has_others != old.has_others):
        return b"has_* may not change while control runs"
    if new.s_rated_va != old.s_rated_va or new.f_nom_hz != old.f_nom_hz or new.v_nom_v != old.v_nom_v or new.pcs_rvrt_s != old.pcs_rvrt_s:
        return b"s_rated_va, f_nom_hz, v_nom_v and pcs_rvrt_s may not change while control runs"
    if not (new.feeder_w > 0.0 and new.ramp_up_w_per_s > 0.0 and new.ramp_down_w_per_s > 0.0 and new.cmd_slew_w_per_s > 0.0
            and new.pcs_p_max_w > 0.0 and new.energy_wh > 0.0 and new.soc_time_s > 0.0 and new.mean_min_s > 0.0 and new.meter_hold_s > 0.0
            and new.bms_lost_s > 0.0 and new.pcs_lost_s > 0.0 and new.follow_s > 0.0 and new.align_full_s > 0.0):
        return b"a rating, ramp or time is not above 0"
    if not (new.billing_window_s >= 0.0 and new.enter_service_delay_s >= 0.0 and new.pcs_dead_s >= 0.0 and new.pcs_tau_s >= 0.0
            and new.export_limit_w >= 0.0 and new.p_charge_max_w >= 0.0 and new.p_discharge_max_w >= 0.0 and new.temp_taper_c >= 0.0
            and new.droop_db_hz >= 0.0 and new.droop_r >= 0.0 and new.droop_tr_s >= 0.0 and new.volt_db_pu >= 0.0 and new.q_max_var >= 0.0
            and new.volt_tr_s >= 0.0 and new.trip_s >= 0.0 and new.frozen_s >= 0.0 and new.follow_w >= 0.0):
        return b"a limit or time is negative"
    if not (new.import_limit_w >= 0.0 and new.import_limit_w <= new.feeder_w and 0.0 < new.batt_eta <= 1.0
            and 0.0 <= new.soc_min <= new.soc_target <= new.soc_max <= 1.0 and new.batt_v_min_v < new.batt_v_max_v
            and new.temp_min_c < new.temp_max_c and new.mean_min_s <= new.mean_max_s and new.meter_hold_s <= new.meter_lost_s
            and new.f_min_hz < new.f_nom_hz < new.f_max_hz and new.v_min_pu < 1.0 < new.v_max_pu and new.volt_db_pu < new.volt_full_pu
            and new.pcs_p_max_w <= new.s_rated_va):
        return b"two values contradict each other"
    return NULL
