"""The kernel's step by itself."""

from __future__ import annotations

from bench.perf.rows import Row, at_most


def rows() -> list[Row]:
    """Median of 200,000 steps, each timed by itself (the clock's own cost included)."""
    from bench.rig import Rig

    rig = Rig().to_grid()
    rig.step(200)
    t = rig.kernel.time_steps(rig.inp, rig.lim, 200_000)
    return [at_most("kernel step median ns", t[len(t) // 2], 1000.0, "ns", "", f"p99 {t[int(0.99 * len(t))]}, max {t[-1]}")]
