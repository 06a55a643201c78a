"""kernel_peer.c is the same law: the same bits as the compiled kernel over a walk through every mode."""

from __future__ import annotations

import copy
import shutil

import pytest

from bench.perf.peer import Peer, measure, packed
from tests.core.pair import FULL, Walk, differ

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


@pytest.mark.parametrize("seed,site", [(0, {}), (2, FULL | {"has_pcs_life": 0, "meter_lost_s": 0.2})])
def test_the_plain_c_peer_gives_the_same_bits(seed: int, site: dict) -> None:
    r = Walk(seed, **site)
    state = r.kernel.get_state()
    ticks, ours, modes = [], [], set()
    for k in range(2500):
        if k == 2300:
            r.stop(1)
        ours.append(r.walk())
        ticks.append((copy.deepcopy(r.inp), dict(r.lim)))
        modes.add(ours[-1]["mode"])
    out, end = Peer().run(r.site, state, ticks)
    for k, want in enumerate(ours):
        got = {name: out[name][k].item() for name in out.dtype.names}
        assert not (d := differ(want, got)), f"tick {k} (kernel, C): {d}"
    assert end == packed("State", r.kernel.get_state())
    assert len(modes) >= 3


def test_both_are_timed() -> None:
    ours_ns, c_ns, ratio = measure(rounds=1, n=500)
    assert ours_ns > 0 and c_ns > 0 and ratio == ours_ns / c_ns
