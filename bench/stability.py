"""The loop under wrong knowledge: meter delay, PCS lag, errors of both, battery at its limits.

Virtual time, the compiled kernel, a plain plant.

    python -m bench.stability [--points N]

A point passes when, after a load step, |grid - reference| falls below 2 % of the step within 9 * (delay + lag) + 1 s and stays
there for two seconds (no limit cycle).
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from _core.kernel import Kernel

from bench.rig import LIMITS, SITE, inputs

TICK_NS = 10_000_000
DEAD_NS = 2_750_000
SETTLE = 0.02
WATCH_S = 2.0


@dataclass(frozen=True)
class Point:
    """delay_s: the meter's value stands for an instant so long ago; error_s: by how much its stamp is wrong (+: it says too old).

    lag_s: the PCS's time constant; factor: what the model takes it for; step_w: of the load; at_limit: the battery can carry half of the
    step only.
    """

    delay_s: float
    lag_s: float
    error_s: float
    factor: float
    step_w: float
    at_limit: bool

    @property
    def allowed_s(self) -> float:
        return 9.0 * (self.delay_s + self.lag_s) + 1.0


class Lag:
    """The converter's power on one clock: dead time, first-order lag, exact."""

    def __init__(self, tau_s: float) -> None:
        self.tau_ns = tau_s * 1e9
        self.t_ns = 0
        self.p_w = self.target_w = 0.0
        self.queue: list[tuple[int, float]] = []
        self.at = 0

    def to(self, t_ns: int) -> float:
        while self.t_ns < t_ns:
            due = self.at < len(self.queue)
            until = min(t_ns, self.queue[self.at][0]) if due else t_ns
            if until > self.t_ns:
                self.p_w = self.target_w + (self.p_w - self.target_w) * math.exp(-(until - self.t_ns) / self.tau_ns)
                self.t_ns = until
            if due and self.queue[self.at][0] <= self.t_ns:
                self.target_w = self.queue[self.at][1]
                self.at += 1
        return self.p_w


def residuals(x: Point, steps: int = 1) -> list[tuple[float, float]]:
    """[(seconds since the last step, |grid - reference| / step)] a tick; `steps` steps, the earlier ones teach the loop."""
    site = SITE | dict(pcs_tau_s=x.lag_s * x.factor, meter_hold_s=0.3 + x.delay_s, meter_lost_s=20.0, has_pcs_life=0, mean_min_s=600.0,
                       frozen_s=0.0, soc_time_s=1e9, follow_w=0.0)  # fmt: skip
    limits = dict(LIMITS)
    if x.at_limit:
        limits["p_discharge_max_w"] = limits["p_charge_max_w"] = abs(x.step_w) / 2
    kernel, inp = Kernel(site), inputs()
    clocks = [Lag(x.lag_s) for _ in range(3)]  # on the meter's, the readback's and the present clock
    queue: list[tuple[int, float]] = []
    for c in clocks:
        c.queue = queue
    inp["pcs"]["pcs_state"] = 3.0
    inp["pcs_ctl"].update(wset_ena=1.0)
    first = 40 + int((x.delay_s + 0.5) * 100)
    each = int((x.allowed_s + WATCH_S) * 100)
    load, out = 400e3, {}
    rows: list[tuple[float, float]] = []
    at_ns = [(first + k * each) * TICK_NS + 3_700_000 for k in range(steps)]

    def load_at(t_ns: int) -> float:
        return load + sum(x.step_w * (-1) ** k for k, t in enumerate(at_ns) if t_ns >= t)

    for tick in range(1, first + steps * each):
        t0 = tick * TICK_NS
        seen = t0 + 1_941_000 - int(x.delay_s * 1e9)
        if seen > 0:
            inp["meter"]["grid_p_w"] = load_at(seen) - clocks[0].to(seen)
            _stamp(inp, "meter", max(1, seen - int(x.error_s * 1e9)), tick)
        inp["pcs"]["batt_p_w"] = clocks[1].to(t0 - 1_300_000)
        _stamp(inp, "pcs", t0 - 1_300_000, tick)
        for name in ("pcs_ctl", "bms", "bms_lim", "bms_temp"):
            _stamp(inp, name, t0, tick)
        inp.update(tick=tick, t_ns=t0, step_t_ns=t0 + 2_633_000, command_t_ns=t0 + 3_039_000)
        out = kernel.step(inp, limits)
        if out["gate"]:
            queue.append((t0 + 3_039_000 + DEAD_NS, out["p_cmd_w"]))
        t_end = t0 + 9_999_999
        if t0 >= at_ns[-1]:
            rows.append(((t_end - at_ns[-1]) * 1e-9, abs(load_at(t_end) - clocks[2].to(t_end) - out["ref_w"]) / abs(x.step_w)))
    return rows


def _stamp(inp: dict, name: str, t_ns: int, count: int) -> None:  # type: ignore[type-arg]
    g = inp[name]["g"]
    g["t_ns"], g["rx_ns"], g["count"] = t_ns, t_ns, count


def settles(x: Point) -> tuple[bool, float]:
    """(passes, largest residual after the allowed time as a share of the step)."""
    late = [r for t, r in residuals(x) if t >= x.allowed_s]
    worst = max(late)
    return worst < SETTLE, worst


def points(n: int, seed: int = 1) -> Iterator[Point]:
    """The corners of the space first, then seeded points inside it, log-uniform in delay and lag."""
    corners = itertools.product((0.0, 0.02, 0.2), (0.001, 0.002, 0.02, 0.3), (-0.02, 0.0, 0.02), (0.5, 1.0, 2.0), (50e3,), (False, True))
    yield from itertools.islice((Point(*c) for c in corners), n)
    rng = random.Random(seed)
    for _ in range(n - 216):
        delay = 0.0 if rng.random() < 0.1 else 10 ** rng.uniform(-3, math.log10(0.2))
        yield Point(delay, 10 ** rng.uniform(-3, math.log10(0.3)), rng.uniform(-0.02, 0.02), 2 ** rng.uniform(-1, 1),
                    rng.choice((-1, 1)) * rng.uniform(10e3, 120e3), rng.random() < 0.2)  # fmt: skip


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m bench.stability", description=__doc__)
    p.add_argument("--points", type=int, default=400)
    bad = 0
    n = p.parse_args().points
    for x in points(n):
        ok, worst = settles(x)
        if not ok:
            bad += 1
            print(f"{100 * worst:7.1f} % after {x.allowed_s:.2f} s: {x}")
    print(f"{n} points, {bad} do not settle")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
