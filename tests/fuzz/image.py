"""What must hold of Inputs whatever has come over a bus."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from _core.image import GROUPS, SIGNALS
from hal.scanbench import ScanBench

NEVER, GOOD, BAD = 0, 1, 2  # Group.quality


@dataclass(frozen=True)
class Row:
    """What a profile says of a signal: its range, values it may have besides (an enumeration's), and whether its group needs it."""

    signal: str
    lo: float
    hi: float
    besides: tuple[float, ...]
    needed: bool


def check_value(what: str, x: float, lo: float, hi: float, besides: tuple[float, ...] = ()) -> None:
    """NaN, or finite and within the range of its row."""
    assert math.isnan(x) or x in besides or (math.isfinite(x) and lo <= x <= hi), f"{what} = {x!r} outside {lo}..{hi}"


class Image:
    """The rows of a bus or site, ready to be held against Inputs again and again."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.at = np.array([SIGNALS[r.signal][0] // 8 for r in self.rows])
        self.lo, self.hi = np.array([r.lo for r in self.rows]), np.array([r.hi for r in self.rows])
        of = {offset: name for name, offset in GROUPS.items()}
        self.group = [of[SIGNALS[r.signal][1]] for r in self.rows]
        self.needed = {g: np.array([i for i, r in enumerate(self.rows) if r.needed and self.group[i] == g], int) for g in set(self.group)}

    def check(self, bench: ScanBench, now: int, seen: dict[str, tuple[int, int]]) -> None:
        """`seen`: newest instant and count of each group, from one call to the next."""
        x = np.frombuffer(bench.inputs, np.float64)[self.at]
        heads = {name: bench.group(name) for name in self.needed}
        wrong = ~(np.isnan(x) | (np.isfinite(x) & (x >= self.lo) & (x <= self.hi)))
        for i in np.flatnonzero(wrong):
            r = self.rows[i]
            check_value(r.signal, float(x[i]), r.lo, r.hi, (*r.besides, 0.0) if heads[self.group[i]][3] == NEVER else r.besides)
        for name, (t_ns, rx_ns, count, quality) in heads.items():
            assert quality in (NEVER, GOOD, BAD), f"{name}: quality {quality}"
            assert t_ns <= rx_ns <= now, f"{name}: {t_ns} ns, received {rx_ns} ns, now {now} ns"
            assert (rx_ns, count) >= seen.get(name, (0, 0)), f"{name} has grown older"
            seen[name] = (rx_ns, count)
            if quality == GOOD and np.isnan(x[self.needed[name]]).any():
                missing = [self.rows[i].signal for i in self.needed[name] if math.isnan(x[i])]
                raise AssertionError(f"{name} is good without {missing}")
