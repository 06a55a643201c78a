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
RAMP, HOLD, STALE, NOT_HELD, DEAF = 1 << 0, 1 << 15, 1 << 13, 1 << 21, 1 << 23
IDLE = RAMP | NOT_HELD | 1 << 16 | 1 << 17 | 1 << 22  # limit bits that leave the command as it is: ramp, lease, filter, operator
BITS = {"import": 1 << 1, "export": 1 << 2, "breaker": 1 << 4, "droop": 1 << 18}
METER_SIGN = 1 << 11


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


def sane(*values: float, least: float = 0.0) -> bool:
    """Every one a number from `least` to 1 GW: what is promised is promised for such."""
    return all(least <= x <= 1e9 for x in values)


def net_w(before: dict, out: dict, inp: dict) -> float:
    """What grid and battery carried together at the meter's instant; NaN where this tick's command does not come from this tick's meter."""
    m = inp["meter"]
    if out["limits_active"] & (STALE | DEAF) or out["filter_s"] or m["g"]["count"] == before["last_meter_count"]:
        return math.nan
    return m["grid_p_w"] + out["batt_p_w"]


def grid(before: dict, out: dict, inp: dict, lim: dict, site: dict) -> set[str]:
    """What the command leaves to the grid: within the contract, droop on top of it, the breaker above both; the battery's window above all.
    On the way to 0 none of them asks for power. Returns what could be judged."""
    p, flags, net, feeder = out["p_cmd_w"], out["limits_active"], net_w(before, out, inp), site["feeder_w"]
    most, least, droop = lim["import_limit_w"], -lim["export_limit_w"], out["droop_w"]
    if out["mode"] not in (GRID, STOP) or not sane(most, -least, feeder) or not sane(abs(net), abs(droop)):
        return set()
    slack = 1e-6 + 1e-9 * (abs(net) + abs(droop) + feeder)
    if out["mode"] == STOP:
        if droop:
            return set()
        assert min(net - min(most, feeder), 0.0) - slack <= p <= max(net - max(least, -feeder), 0.0) + slack
        return {"stop"}
    high, low = (min(max(x - droop, -feeder), feeder) for x in (most, least))
    assert net - p <= high + slack or p >= out["p_max_w"]
    assert net - p >= low - slack or p <= out["p_min_w"]
    judged = {name for name, bit in BITS.items() if flags & bit and out["p_min_w"] < p < out["p_max_w"]}
    if droop or flags & ~(IDLE | HOLD):
        return judged
    if not flags & HOLD:
        assert abs(p - (net - out["ref_w"])) <= slack  # load above the reference is discharge
        return judged | {"shave"}
    if lim["ramp_up_w_per_s"] >= 0.0:
        assert p * inp["slot"][out["slot"]]["value_w"] >= 0.0  # what is held has the sign that was asked for
        return judged | {"hold"}
    return judged


def pushed(what: str, x: float, nominal: float, before: float, after: float) -> set[str]:
    """A law of the grid code takes where its x is high and gives where it is low: what it asks for never grows toward the other side."""
    if not sane(abs(x), abs(before)):
        return set()
    assert after <= max(before, 0.0) if x >= nominal else True
    assert after >= min(before, 0.0) if x <= nominal else True
    return {f"{what} high"} if after < before else {f"{what} low"} if after > before else set()


def laws(before: dict, state: dict, inp: dict, site: dict) -> set[str]:
    """Signs of P(f) and Q(V). Returns which could be judged."""
    m, s, judged = inp["meter"], site, set()
    if sane(s["droop_tr_s"], s["droop_db_hz"]) and sane(s["s_rated_va"], s["f_nom_hz"], s["droop_r"], least=1e-6):
        judged |= pushed("f", m["f_hz"], s["f_nom_hz"], before["droop_w"], state["droop_w"])
    widths = sane(s["volt_full_pu"] - s["volt_db_pu"], s["v_nom_v"], least=1e-6)
    if widths and sane(s["volt_tr_s"], s["q_max_var"], s["volt_db_pu"]):
        v_pu = (m["v1_v"] + m["v2_v"] + m["v3_v"]) / (3.0 * s["v_nom_v"])
        judged |= pushed("v", v_pu, 1.0, before["volt_var"], state["volt_var"])
    return judged


def check(before: dict, state: dict, out: dict, inp: dict, lim: dict, site: dict) -> set[str]:
    """Holds one tick against everything that is promised; returns which of the promises that need a sane site could be judged."""
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
    if state["alarms"] & METER_SIGN and before["mode"] != FAULT and out["mode"] != STOP:
        assert out["mode"] == FAULT  # in the tick that finds it
    if before["mode"] == FAULT and before["alarms"] & METER_SIGN and inp["reset"] == before["reset_seen"]:
        assert out["mode"] in (FAULT, STOP)  # until a person has seen to it
    if before["mode"] == out["mode"] == GRID and not before["stale"] and not out["limits_active"] & (HOLD | STALE):
        dt_s = min(max((inp["t_ns"] - before["last_t_ns"]) * 1e-9, 0.0), 1.0) if before["last_t_ns"] else 0.0
        moved, slack = state["ref_w"] - before["ref_w"], 1e-6 * (abs(before["ref_w"]) + 1.0)
        ramps = lim["ramp_up_w_per_s"], lim["ramp_down_w_per_s"]
        up, down = (math.inf if r == math.inf else r * dt_s for r in ramps)  # no ramp is none in no time either
        if not -down - slack <= moved <= up + slack:
            assert out["limits_active"] & NOT_HELD or not all(r >= 0.0 for r in ramps) or not math.isfinite(moved)
            assert state["not_held_s"] >= before["not_held_s"]
    found = {"meter sign"} if state["alarms"] & METER_SIGN else set()
    return found | grid(before, out, inp, lim, site) | laws(before, state, inp, site)


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
    judged = set()
    for seed in (11, 12, 13):
        weak = {"feeder_w": 350e3} if seed == 13 else {}  # so that droop, which outranks the contract, meets the breaker
        r = Walk(seed, q_max_var=110e3, cmd_slew_w_per_s=math.inf if seed == 11 else 2e6, has_others=seed == 12, **weak)
        for k in range(6000):
            if k == 4500:
                r.stop(1)
            before = r.kernel.get_state()
            out = r.walk()
            judged |= check(before, r.kernel.get_state(), out, r.inp, r.lim, r.site)
    signs = {"f high", "f low", "v high", "v low", "shave", "hold", "meter sign"}
    assert judged == signs | {*BITS, "stop"}


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
