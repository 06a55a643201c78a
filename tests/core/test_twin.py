"""The compiled kernel equals its plain-Python twin to the last bit: arbitrary values from every mode, and long walks through all of them.

About 15 s. `python -m tests.core.test_twin N` walks N seeds more.
"""

from __future__ import annotations

import copy
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from _core import _laws_face as laws
from bench.rig import LIMITS
from tests.core import twin
from tests.core.pair import FULL, SCENES, Pair, Walk, a_tick, advance, bits, doubles, put, site_changes

CALM = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=400, deadline=None, suppress_health_check=CALM)
@given(st.sampled_from(range(len(SCENES))), site_changes, st.lists(a_tick, min_size=1, max_size=12))
def test_twin_and_kernel_agree_on_arbitrary_values(scene: int, site: list, ticks: list) -> None:
    state, inp, base = SCENES[scene]
    inp, base, lim = copy.deepcopy(inp), dict(base), dict(LIMITS)
    for path, value in site:
        put(base, path, value)
    pair = Pair(base, state)
    for changes, limits, answered in ticks:
        advance(inp, answered)
        for path, value in changes:
            put(inp, path, value)
        for path, value in limits:
            put(lim, path, value)
        pair.step(inp, lim)


def walk(seed: int, ticks: int, **site: object) -> tuple[set[int], int, int]:
    """Modes, limit bits and alarm bits that a walk went through."""
    r = Walk(seed, **site)
    r.kernel = Pair(r.site)
    modes, limits, alarms = set(), 0, 0
    for k in range(ticks):
        if k == ticks - 3000:
            r.stop(1)
        if k == ticks - 20:
            r.stop(2)
        out = r.walk()
        modes.add(out["mode"])
        limits |= out["limits_active"]
        alarms |= out["alarms"]
    return modes, limits, alarms


def test_twin_and_kernel_agree_on_walks_through_every_mode() -> None:
    modes, limits, alarms = set(), 0, 0
    slow = {"pcs_dead_s": 0.3, "pcs_tau_s": 0.02, "has_pcs_life": 0}
    nervous = {"meter_lost_s": 0.2, "bms_lost_s": 0.3, "pcs_lost_s": 0.2, "has_pcs_life": 0, "has_others": 1}
    for seed, site in enumerate(({}, FULL, FULL | nervous, nervous, slow, FULL | nervous)):
        m, li, al = walk(seed, 9000, **site)
        modes |= m
        limits |= li
        alarms |= al
    assert modes == set(range(7))
    # rare in walks: a lost BMS is a FAULT in the same tick, its limit can bind in STOP only; the breaker binds only against droop
    assert limits | twin.LIM_BMS_STALE | twin.LIM_FEEDER == (1 << 24) - 1, [k for k in range(24) if not limits >> k & 1]
    assert alarms | twin.ALM_INTERNAL == (1 << 13) - 1, [k for k in range(13) if not alarms >> k & 1]


ARGUMENTS = dict(
    clamp=3, slew=5, slew_from_zero=4, deadband=2, droop=5, volt_var=4, decay=1, lag=4, taper=2, q_room=2,
)  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_each_law_equals_its_twin(name: str, data: st.DataObject) -> None:
    x = [data.draw(doubles) for _ in range(ARGUMENTS[name])]
    assert bits(getattr(laws, name)(*x)) == bits(getattr(twin, name)(*x)), x


if __name__ == "__main__":
    for n in range(100, 100 + int(sys.argv[1])):
        print(n, *walk(n, 20_000, **(FULL if n % 2 else {})))
