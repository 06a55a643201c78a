"""What holds on every sample, whatever comes in: the compiled kernel alone, from every mode, with arbitrary inputs, limits and sites.

The bounds are worked out here again from the inputs, not taken from the kernel. About 10 s.
"""

from __future__ import annotations

import copy
import math

from _core.kernel import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.rig import LIMITS
from tests.core.pair import SCENES, TICK_NS, Walk, a_tick, advance, put, site_changes
from tests.core.test_twin import CALM

FAULT, STANDBY, GRID, STOP = 0, 1, 2, 6
RAMP, HOLD, STALE, NOT_HELD = 1 << 0, 1 << 15, 1 << 13, 1 << 21


def magnitude(x: float) -> float:
    """A bound as a magnitude; what is no number allows nothing."""
    return x if x > 0.0 else 0.0


def old(inp: dict, name: str, most_s: float) -> bool:
    g = inp[name]["g"]
    return g["t_ns"] == 0 or g["quality"] != 1 or not (inp["step_t_ns"] - g["t_ns"]) * 1e-9 <= most_s


def window(inp: dict, lim: dict, site: dict) -> tuple[float, float]:
    """How much may be discharged and charged."""
    most = min(magnitude(site["pcs_p_max_w"]), magnitude(site["s_rated_va"]))
    dis, cha = min(most, magnitude(lim["p_discharge_max_w"])), min(most, magnitude(lim["p_charge_max_w"]))
    b, v = inp["bms"], inp["bms_lim"]
    if site["has_bms"]:
        if old(inp, "bms", site["bms_lost_s"]) or not math.isfinite(b["soc"]) or b["bms_state"] != 3.0:
            return 0.0, 0.0
        dis = dis if b["soc"] > lim["soc_min"] else 0.0
        cha = cha if b["soc"] < lim["soc_max"] else 0.0
    if site["has_bms_limits"]:
        if old(inp, "bms_lim", site["bms_lost_s"]):
            return 0.0, 0.0
        dis = min(dis, magnitude(site["batt_eta"] * v["batt_v"] * v["batt_i_discharge_max_a"]))
        cha = min(cha, magnitude(v["batt_v"] * v["batt_i_charge_max_a"]))
        dis = dis if v["batt_v"] > site["batt_v_min_v"] else 0.0
        cha = cha if v["batt_v"] < site["batt_v_max_v"] else 0.0
        if v["batt_p_discharge_max_w"] <= 0.0:
            dis = 0.0
        if v["batt_p_charge_max_w"] <= 0.0:
            cha = 0.0
    if site["has_bms_temp"]:
        t = inp["bms_temp"]
        if (
            old(inp, "bms_temp", 10.0 * site["bms_lost_s"])
            or not t["batt_temp_max_c"] < site["temp_max_c"]
            or not t["batt_temp_min_c"] > site["temp_min_c"]
        ):
            return 0.0, 0.0
    return dis, cha


def check(before: dict, state: dict, out: dict, inp: dict, lim: dict, site: dict) -> None:
    p, q = out["p_cmd_w"], out["q_cmd_var"]
    assert math.isfinite(p) and math.isfinite(q)
    dis, cha = window(inp, lim, site)
    assert -cha <= p <= dis
    assert math.hypot(p, q) <= abs(site["s_rated_va"]) * (1 + 1e-12) or p == q == 0.0
    adopting = out["mode"] == STANDBY and state["adopt"]
    assert p == 0.0 or out["mode"] in (GRID, STOP) or adopting
    assert q == 0.0 or out["mode"] == GRID
    assert out["gate"] == 0 or inp["verified"] == 1 or out["mode"] != STANDBY
    if inp["park"]:
        assert out["mode"] != GRID
    if inp["latched"] and before["mode"] != FAULT:
        assert out["mode"] in (FAULT, STOP) and not state["was_clean"]
    if state["parked"]:
        assert out["mode"] == STOP and not inp["stop"]
    assert out["heartbeat"] == 0.0 or out["gate"]
    if before["mode"] == out["mode"] == GRID and not before["stale"] and not out["limits_active"] & (HOLD | STALE):
        dt_s = min(max((inp["t_ns"] - before["last_t_ns"]) * 1e-9, 0.0), 1.0) if before["last_t_ns"] else 0.0
        moved, slack = state["ref_w"] - before["ref_w"], 1e-6 * (abs(before["ref_w"]) + 1.0)
        if not -lim["ramp_down_w_per_s"] * dt_s - slack <= moved <= lim["ramp_up_w_per_s"] * dt_s + slack:
            ramps = lim["ramp_up_w_per_s"], lim["ramp_down_w_per_s"]
            assert out["limits_active"] & NOT_HELD or not all(r >= 0.0 for r in ramps) or not math.isfinite(moved)
            assert state["not_held_s"] >= before["not_held_s"]


@settings(max_examples=600, deadline=None, suppress_health_check=CALM)
@given(st.sampled_from(range(len(SCENES))), site_changes, st.lists(a_tick, min_size=1, max_size=12))
def test_invariants_hold_whatever_comes_in(scene: int, changes: list, ticks: list) -> None:
    state, inp, site = SCENES[scene]
    inp, site, lim = copy.deepcopy(inp), dict(site), dict(LIMITS)
    for path, value in changes:
        put(site, path, value)
    k = Kernel(site)
    k.set_state(state)
    for inputs, limits, answered in ticks:
        advance(inp, answered)
        for path, value in inputs:
            put(inp, path, value)
        for path, value in limits:
            put(lim, path, value)
        before = k.get_state()
        out = k.step(inp, lim)
        check(before, k.get_state(), out, inp, lim, site)


def test_invariants_hold_on_walks() -> None:
    for seed in (11, 12, 13):
        r = Walk(seed, q_max_var=110e3, cmd_slew_w_per_s=math.inf if seed == 11 else 2e6, has_others=seed == 12)
        for k in range(6000):
            if k == 4500:
                r.stop(1)
            before = r.kernel.get_state()
            out = r.walk()
            check(before, r.kernel.get_state(), out, r.inp, r.lim, r.site)


slow = st.floats(0.0, 1e7)
power = st.floats(-300e3, 300e3)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([k for k, s in enumerate(SCENES) if s[0]["mode"] == GRID]), slow, st.floats(0.0, 600e3), power, st.booleans())
def test_a_reduction_toward_zero_is_never_slewed(scene: int, slew: float, grid: float, hold: float, held: bool) -> None:
    state, inp, site = SCENES[scene]
    inp = copy.deepcopy(inp)
    inp["meter"]["grid_p_w"] = grid
    if held:
        inp["slot"][0].update(kind=1, value_w=hold, lease_until_ns=1 << 62)
    advance(inp, True)
    out = []
    for rate in (math.inf, slew):
        k = Kernel(site | {"cmd_slew_w_per_s": rate, "droop_r": 0.0, "feeder_w": 1e9})
        k.set_state(state | {"droop_w": 0.0})
        out.append(k.step(inp, LIMITS | {"import_limit_w": 1e9, "export_limit_w": 1e9})["p_cmd_w"])
    free, slewed = out
    last = state["cmd_w"]
    if free * last >= 0.0 and abs(free) <= abs(last):
        assert slewed == free
    else:  # what grows does so at the rate, from where it was or from zero
        start = abs(last) if free * last > 0.0 else 0.0
        assert abs(slewed) <= start + slew * TICK_NS * 1e-9 + 1e-6 or slewed == free
