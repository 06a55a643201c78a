"""Compiled kernel and plain-Python twin side by side, and what feeds them: arbitrary values, walks through every mode."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

from _core.kernel import Kernel
from hypothesis import strategies as st

from bench.rig import LIMITS, SITE, TICK_NS, Rig, inputs
from tests.core.twin import Twin

I64 = (-(1 << 63), (1 << 63) - 1)
ODD = [
    0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1e-310, 1e308, -1e308, 1.0, -1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 99.0, 0.5,
    50.0, 47.0, 49.3, 51.0, 230.0, 100.0, 1e3, -1e3, 1e5, -1e5, 4e5, 3e38, 1e19, 2.0**53,
]  # fmt: skip


def bits(x: Any) -> Any:
    """What has to be equal: the bits of a double (one NaN for all), the value of an integer."""
    if isinstance(x, float):
        return "nan" if x != x else struct.pack("<d", x)
    return [bits(v) for v in x] if isinstance(x, list) else int(x)


def differ(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that are not equal to the bit."""
    assert a.keys() == b.keys()
    return {k: (a[k], b[k]) for k in a if bits(a[k]) != bits(b[k])}


class Pair:
    """The face of Kernel; every step runs both and holds Outputs and State equal."""

    def __init__(self, site: dict[str, Any], state: dict[str, Any] | None = None) -> None:
        self.kernel, self.twin = Kernel(site), Twin(site)
        if state is not None:
            self.set_state(state)

    def step(self, inp: dict[str, Any], lim: dict[str, Any]) -> dict[str, Any]:
        a, b = self.kernel.step(inp, lim), self.twin.step(inp, lim)
        assert not (d := differ(a, b)), f"outputs (kernel, twin): {d}"
        assert not (d := differ(self.kernel.get_state(), self.twin.get_state())), f"state (kernel, twin): {d}"
        return a

    def get_state(self) -> dict[str, Any]:
        return self.kernel.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.kernel.set_state(state)
        self.twin.set_state(state)


# ---------------------------------------------------------------- arbitrary values

INTS = {
    "pad": (0, 0), "park": (0, 1), "site_rev": (0, 9), "flags": (0, 1), "latched": (0, 2**13 - 1), "pcs_deaf": (0, 1),
    "verified": (-1, 1), "stop": (0, 2),
    "kind": (0, 2), "quality": (0, 2),
}  # fmt: skip
TIMES = {"t_ns", "rx_ns", "step_t_ns", "command_t_ns", "lease_until_ns", "tick", "id"}


def leaves(d: dict[str, Any], path: tuple = ()) -> list[tuple]:
    out: list[tuple] = []
    for k, v in d.items():
        if isinstance(v, dict):
            out += leaves(v, (*path, k))
        elif isinstance(v, list):
            for n, x in enumerate(v):
                out += leaves(x, (*path, k, n))
        else:
            out.append((*path, k))
    return out


def put(d: Any, path: tuple, value: Any) -> None:
    for k in path[:-1]:
        d = d[k]
    d[path[-1]] = value


doubles = st.one_of(st.sampled_from(ODD), st.floats(), st.floats(-1e6, 1e6))
times = st.one_of(st.sampled_from([0, 1, -1, *I64, I64[0] + 1, 10**18]), st.integers(*I64), st.integers(0, 40 * 10**9))


def value_of(path: tuple) -> st.SearchStrategy:
    name = path[-1]
    if name in TIMES:
        return times
    if name in INTS:
        return st.integers(*INTS[name])
    if name in ("count", "reset"):
        return st.integers(0, 2**31 - 1)
    return st.integers(0, 1) if str(name).startswith("has_") else doubles


def change(paths: list[tuple]) -> st.SearchStrategy:
    """One path with a value its type can hold."""
    return st.sampled_from(paths).flatmap(lambda p: st.tuples(st.just(p), value_of(p)))


INPUT_PATHS = leaves(inputs())
LIMIT_PATHS = leaves(LIMITS)
SITE_PATHS = leaves(SITE)
input_changes = st.lists(change(INPUT_PATHS), max_size=4)
limit_changes = st.lists(change(LIMIT_PATHS), max_size=2)
site_changes = st.lists(change(SITE_PATHS), max_size=4)
a_tick = st.tuples(input_changes, limit_changes, st.booleans())


# ---------------------------------------------------------------- somewhere in the middle of things

FULL = dict(has_others=1, q_max_var=110e3, billing_window_s=900.0, cmd_slew_w_per_s=2e6, enter_service_delay_s=0.5, frozen_s=3.0)


def scenes() -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(state, inputs, site) in every mode, from two sites."""
    import copy

    found = []
    for extra in ({}, FULL):
        for what in ("cold", "grid", "hold", "fault", "trip", "island", "resync", "stop", "stale", "park"):
            r = Rig(load_w=430e3, jitter_hz=1e-6, **extra)
            if what != "cold":
                r.to_grid()
                r.step(30, load_w=445e3)
            if what == "hold":
                r.inp["slot"][0].update(kind=1, value_w=20e3, lease_until_ns=1 << 62, id=5)
            if what == "fault":
                r.inp["verified"] = -1
                r.step(2)
                r.inp["verified"] = 1
            if what in ("trip", "island", "resync"):
                r.inp["pcs"]["pcs_der_mode"] = 1.0 if what == "trip" else 2.0
                r.inp["meter"]["v1_v"] = 50.0
                r.step(15)
                r.inp["pcs"]["pcs_der_mode"] = 1.0 if what == "resync" else r.inp["pcs"]["pcs_der_mode"]
            if what == "stop":
                r.inp["stop"] = 1
            if what == "park":
                r.inp["park"] = 1
            if what == "stale":
                r.stale |= {"meter", "pcs_life"}
                r.step(20)
            r.step(3)
            found.append((r.kernel.get_state(), copy.deepcopy(r.inp), dict(r.site)))
    return found


SCENES = scenes()


def advance(inp: dict[str, Any], answered: bool) -> None:
    """The next tick; where the devices answered, with fresh groups."""
    inp["tick"] = min(inp["tick"] + 1, I64[1])
    inp["t_ns"] = t = min(inp["t_ns"] + TICK_NS, I64[1] - TICK_NS)
    inp["step_t_ns"], inp["command_t_ns"] = t + 2_633_000, t + 3_039_000
    if answered:
        for name in ("meter", "pcs", "pcs_ctl", "pcs_life", "bms", "bms_lim", "bms_temp", "others"):
            g = inp[name]["g"]
            g["t_ns"], g["count"] = t + (1_941_000 if name == "meter" else -1_300_000), (g["count"] + 1) % 2**32


# ---------------------------------------------------------------- walks


class Walk(Rig):
    """The rig with things going wrong and right again at random, from a seed."""

    def __init__(self, seed: int, **site: Any) -> None:
        super().__init__(jitter_hz=1e-6, **site)
        self.rng = random.Random(seed)
        self.operator = random.Random(seed + 1000)
        self.wires = random.Random(seed + 2000)
        self.until: dict[str, int] = {}
        self.inp["billing_phase_s"] = 100.0

    def _for(self, name: str, chance: float, ticks: tuple[int, int], rng: random.Random | None = None) -> bool:
        """True while the event `name` lasts."""
        rng = rng or self.rng
        if self.tick >= self.until.get(name, 0) and rng.random() < chance:
            self.until[name] = self.tick + rng.randint(*ticks)
        return self.tick < self.until.get(name, 0)

    def walk(self) -> dict[str, Any]:
        """One tick."""
        i, x = self.inp, self.rng
        if x.random() < 0.03:
            self.load_w = x.choice([-30e3, 80e3, 300e3, 380e3, 430e3, 460e3, 520e3, 780e3]) + x.uniform(-5e3, 5e3)
        for name, chance, ticks in (
            ("meter", 0.004, (1, 30)), ("pcs", 0.003, (1, 40)), ("bms", 0.001, (1, 60)), ("bms_lim", 0.001, (1, 60)),
            ("bms_temp", 0.001, (1, 50)), ("pcs_ctl", 0.002, (1, 90)), ("pcs_life", 0.001, (1, 90)),
        ):  # fmt: skip
            (self.stale.add if self._for(name, chance, ticks) else self.stale.discard)(name)
        if self._for("long", 0.0002, (550, 700)):
            self.stale.add("meter")
        self.frozen = self._for("frozen", 0.0005, (100, 900))
        self.follow = not self._for("deaf", 0.0004, (150, 300))
        self.meter_sign = -1.0 if self._for("reversed", 0.0003, (60, 120), self.wires) else 1.0
        sag = self._for("sag", 0.0015, (3, 60))
        if not self.frozen:
            i["meter"]["v1_v"] = 100.0 if sag else 230.0 + x.uniform(-10, 10)
            i["meter"]["v2_v"] = math.nan if self._for("phase", 0.001, (3, 200)) else 231.0
        self.jitter_hz = x.choice([-0.07, 0.08]) if self._for("frequency", 0.003, (50, 400)) else 1e-6
        i["meter"]["g"]["quality"] = 2 if self._for("bad", 0.002, (1, 3)) else 1
        i["pcs"]["pcs_der_mode"] = 2.0 if self._for("forming", 0.1 if sag else 0.0, (20, 60)) else 1.0
        i["pcs_ctl"]["wset_rvrt_ena"] = 0.0 if self._for("timer", 0.0003, (1, 50)) else 1.0
        i["pcs_ctl"].update(wset_ena=float(self.running), wset_w=self.target_w)
        i["pcs_life"]["pcs_local"] = float(self._for("local", 0.0008, (5, 50)))
        i["bms"]["bms_state"] = 99.0 if self._for("bms_fault", 0.0003, (5, 50)) else 4.0 if self._for("open", 0.0005, (5, 50)) else 3.0
        i["bms"]["soc"] = x.choice([0.045, 0.055, 0.3, 0.5, 0.7, 0.945, 0.955]) if x.random() < 0.003 else i["bms"]["soc"]
        i["bms_lim"]["batt_i_charge_max_a"] = 0.0 if self._for("no_charge", 0.002, (20, 200)) else 312.5
        i["bms_lim"]["batt_i_discharge_max_a"] = 20.0 if self._for("tired", 0.002, (20, 200)) else 312.5
        i["bms_lim"]["batt_v"] = x.choice([628.0, 800.0, 909.0]) if self._for("volts", 0.002, (20, 200)) else 800.0
        i["bms_temp"]["batt_temp_max_c"] = 53.0 if self._for("hot", 0.002, (20, 200)) else 25.0
        i["others"]["pv_p_w"] = x.choice([0.0, 50e3, math.nan]) if x.random() < 0.01 else i["others"]["pv_p_w"]
        i["verified"] = x.choice([0, -1]) if self._for("stranger", 0.0002, (1, 20)) else 1
        i["billing_phase_s"] = -1.0 if self._for("no_clock", 0.0005, (5, 50)) else (100.0 + self.tick * 0.5) % 900.0
        i["reset"] += x.random() < 0.01
        if x.random() < 0.004:
            k = x.randrange(3)
            i["slot"][k].update(
                kind=x.randrange(3), value_w=x.choice([0.0, 40e3, -60e3, 300e3]), id=self.tick,
                lease_until_ns=(self.tick + x.randrange(400)) * TICK_NS,
            )  # fmt: skip
        if x.random() < 0.003:
            self.lim["import_limit_w"] = x.choice([300e3, 400e3, 445e3])
            self.lim["export_limit_w"] = x.choice([0.0, 20e3])
            self.lim["p_discharge_max_w"] = x.choice([0.0, 100e3, 250e3])
            self.lim["lease_until_ns"] = self.tick * TICK_NS + x.choice([0, 1 << 50])
        if self.operator.random() < 0.01:
            self.lim["flags"] = self.operator.randrange(2)
            i["site_rev"] += 1
        if i["park"] or self.operator.random() < 0.0003:
            i["park"] = int(self.operator.random() < 0.99)
        i["pcs_deaf"] = int(self.operator.random() < (0.9 if i["pcs_deaf"] else 0.002))
        i["latched"] = 1 << self.operator.randrange(13) if self.operator.random() < 0.0001 else 0
        out = self.step()
        if x.random() < 0.001:
            self.running = False  # the converter stops by itself
        return out

    def stop(self, how: int) -> None:
        self.inp["stop"] = how
