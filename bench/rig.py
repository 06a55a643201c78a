"""A rig for the kernel alone: a site, inputs that are all good, and a small plant in plain Python. Times are in ns, power in W."""

from __future__ import annotations

import math
from typing import Any

from _core.kernel import Kernel

TICK_NS = 10_000_000
INF = math.inf
NAN = math.nan

SITE: dict[str, Any] = dict(
    f_nom_hz=50.0, v_nom_v=230.0, feeder_w=500e3, import_limit_w=445e3, export_limit_w=0.0,
    ramp_up_w_per_s=2000.0, ramp_down_w_per_s=2000.0,
    billing_window_s=0.0, enter_service_delay_s=0.0, s_rated_va=250e3, pcs_p_max_w=250e3, pcs_dead_s=0.00275, pcs_tau_s=0.002,
    pcs_rvrt_s=5.0,
    cmd_slew_w_per_s=INF, energy_wh=250e3, p_charge_max_w=250e3, p_discharge_max_w=250e3, soc_min=0.05, soc_max=0.95, soc_target=0.5,
    soc_time_s=900.0, mean_min_s=60.0, mean_max_s=600.0, batt_eta=0.95, batt_v_min_v=625.0, batt_v_max_v=912.5, temp_min_c=0.0,
    temp_max_c=55.0, temp_taper_c=5.0, droop_db_hz=0.2, droop_r=0.05, droop_tr_s=0.5, volt_db_pu=0.02, volt_full_pu=0.08, q_max_var=0.0,
    volt_tr_s=5.0, f_min_hz=47.5, f_max_hz=51.5, v_min_pu=0.8, v_max_pu=1.15, trip_s=0.1, meter_hold_s=0.05, meter_lost_s=5.0, frozen_s=0.0,
    bms_lost_s=3.0, pcs_lost_s=1.0, follow_w=12.5e3, follow_s=1.0, align_full_s=0.003, has_pcs_ctl=1, has_pcs_life=1, has_bms=1,
    has_bms_limits=1, has_bms_temp=1, has_others=0,
)  # fmt: skip

LIMITS: dict[str, Any] = dict(
    lease_until_ns=1 << 62, import_limit_w=445e3, export_limit_w=0.0, ramp_up_w_per_s=2000.0, ramp_down_w_per_s=2000.0,
    p_charge_max_w=250e3, p_discharge_max_w=250e3, soc_min=0.05, soc_max=0.95, soc_target=0.5, flags=0,
)  # fmt: skip


def group(t_ns: int = 0, count: int = 0, quality: int = 1) -> dict[str, int]:
    return dict(t_ns=t_ns, rx_ns=t_ns, count=count, quality=quality)


def inputs() -> dict[str, Any]:
    """Everything present and good at t = 0, PCS in standby, battery connected."""
    empty = dict(lease_until_ns=0, id=0, value_w=0.0, kind=0, pad=0)
    return dict(
        tick=0, t_ns=0, step_t_ns=0, command_t_ns=0, billing_phase_s=NAN, verified=1, stop=0, reset=0, latched=0, park=0, site_rev=0,
        meter=dict(g=group(), grid_p_w=400e3, q_var=0.0, v1_v=230.0, v2_v=230.0, v3_v=230.0, f_hz=50.0),
        pcs=dict(g=group(), batt_p_w=0.0, pcs_q_var=0.0, pcs_s_va=0.0, pcs_state=7.0, pcs_conn=1.0, pcs_alarm=0.0, pcs_der_mode=1.0,
                 pcs_v_v=230.0, pcs_f_hz=50.0),
        pcs_ctl=dict(g=group(), wset_ena=0.0, wset_w=0.0, wset_rvrt_w=0.0, wset_rvrt_ena=1.0, wset_rvrt_s=5.0, wset_rvrt_rem_s=5.0),
        pcs_life=dict(g=group(), pcs_local=0.0, pcs_heartbeat=0.0),
        bms=dict(g=group(), soc=0.5, soh=1.0, bms_state=3.0, bms_events=0.0, bms_heartbeat=0.0),
        bms_lim=dict(g=group(), batt_v=800.0, batt_i_a=0.0, batt_i_charge_max_a=312.5, batt_i_discharge_max_a=312.5,
                     batt_p_charge_max_w=250e3, batt_p_discharge_max_w=250e3),
        bms_temp=dict(g=group(), batt_temp_max_c=25.0, batt_temp_min_c=24.0),
        others=dict(g=group(), pv_p_w=NAN, gen_p_w=NAN),
        slot=[dict(empty), dict(empty), dict(empty)],
    )  # fmt: skip


class Rig:
    """Kernel against a converter with dead time and lag; every group fresh each tick unless its name is in `stale`."""

    def __init__(self, load_w: float = 400e3, jitter_hz: float = 0.0, **site: Any) -> None:
        self.site = SITE | site
        self.lim = dict(LIMITS)
        self.kernel = Kernel(self.site)
        self.inp = inputs()
        self.load_w = load_w
        self.stale: set[str] = set()
        self.tick = 0
        self.p_w = 0.0  # converter's power
        self.target_w = 0.0
        self.queue: list[tuple[int, float]] = []
        self.now = 0
        self.frozen = False  # the meter answers, and repeats itself
        self.follow = True  # False: acknowledges and does nothing
        self.running = False
        self.meter_sign = 1.0
        self.jitter_hz = jitter_hz  # the last bit of a living meter
        self.out: dict[str, Any] = {}

    def _to(self, t_ns: int) -> None:
        while self.now < t_ns:
            until = min(t_ns, self.queue[0][0]) if self.queue else t_ns
            self.p_w = self.target_w + (self.p_w - self.target_w) * math.exp(-(until - self.now) * 1e-9 / 0.002)
            self.now = until
            while self.queue and self.queue[0][0] <= self.now:
                target = self.queue.pop(0)[1]
                if self.follow:
                    self.target_w = target

    def step(self, n: int = 1, load_w: float | None = None) -> dict[str, Any]:
        if load_w is not None:
            self.load_w = load_w
        for _ in range(n):
            self.tick += 1
            t0 = self.tick * TICK_NS
            i = self.inp
            i["tick"], i["t_ns"] = self.tick, t0
            self._to(t0 - 1_300_000)
            self._fresh("pcs", t0 - 1_300_000)
            if "pcs" not in self.stale:
                i["pcs"]["batt_p_w"] = self.p_w
                i["pcs"]["pcs_state"] = 3.0 if self.running else 7.0
            self._to(t0 + 1_941_000)
            self._fresh("meter", t0 + 1_941_000)
            if "meter" not in self.stale and not self.frozen:
                if self.jitter_hz:
                    i["meter"]["f_hz"] = 50.0 + self.jitter_hz * (self.tick % 7)
                i["meter"]["grid_p_w"] = self.meter_sign * (self.load_w - self.p_w)
            for name in ("pcs_ctl", "bms", "bms_lim", "bms_temp"):
                self._fresh(name, t0)
            if self.tick % 100 == 0:
                self._fresh("pcs_life", t0)
                i["pcs_life"]["pcs_heartbeat"] += 1.0
            i["step_t_ns"] = t0 + 2_633_000
            i["command_t_ns"] = t0 + 3_039_000
            self.out = self.kernel.step(i, self.lim)
            if self.out["op_request"] == 1:
                self.running = True
            if self.out["gate"] and self.running:
                self.queue.append((i["command_t_ns"] + 2_750_000, self.out["p_cmd_w"]))
        return self.out

    def _fresh(self, name: str, t_ns: int) -> None:
        if name not in self.stale:
            g = self.inp[name]["g"]
            g["t_ns"], g["rx_ns"], g["count"] = t_ns, t_ns, g["count"] + 1

    def to_grid(self) -> Rig:
        """Through the start sequence."""
        for _ in range(1000):
            if self.step()["mode"] == 2:
                return self
        raise AssertionError(f"no GRID after 10 s: {self.out}")
