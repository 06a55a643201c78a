"""Which transaction stands in which tick's after-slot: a table of HYPER_TICKS. hal/plan.py says how often slots may come."""

from __future__ import annotations

from collections.abc import Sequence

from hal.plantypes import FREE, HYPER_TICKS, NONE, READBACKS, SKIP_EVERY, SKIP_MOST, SiteTiming, Txn
from hal.rows import HEARTBEAT, READBACK, RENEW, SECOND, SLOW


class NoRoom(ValueError):
    """More transactions than slots; the text has the numbers."""


def once_a_second(txns: Sequence[Txn], timing: SiteTiming) -> list[int]:
    """Which of `txns` have a place of their own each second; the renewal at least every third of the timer, whatever the timer."""
    once = [i for i, t in enumerate(txns) if t.kind in ("read", HEARTBEAT) and t.rate == SECOND]
    for i, t in enumerate(txns):
        if t.kind == RENEW and timing.rvrt_s > 0.0:
            once += [i] * max(1, -int(-3.0 * HYPER_TICKS * timing.tick_ms / 1000.0 // timing.rvrt_s))
    return once


def _kinds(txns: Sequence[Txn], timing: SiteTiming) -> tuple[list[int], list[int], list[int]]:
    """(once a second, readbacks, slow reads)."""
    readback = [i for i, t in enumerate(txns) if t.kind == "read" and t.rate == READBACK]
    slow = [i for i, t in enumerate(txns) if t.kind == "read" and t.rate == SLOW]
    return once_a_second(txns, timing), readback, slow


def seldom(txns: Sequence[Txn], timing: SiteTiming) -> int:
    """How seldom a slot that costs a tick something may come: one in so many ticks, and everything has its place in HYPER_TICKS."""
    second, readback, slow = _kinds(txns, timing)
    need = len(second) + READBACKS * bool(readback) + len(slow)
    return max(SKIP_MOST, min(SKIP_EVERY, HYPER_TICKS // max(1, need)))


def fill(txns: Sequence[Txn], base: int, every: int, skips: bool, timing: SiteTiming) -> list[int]:
    """Index (from `base` on), FREE or NONE for each of HYPER_TICKS ticks; a slot in one of `every`. Raises NoRoom.

    Once-a-second transactions are spread evenly, each in the place of a readback or slow read. Of the rest half are readbacks, the other
    half slow reads in turn; where places are rare, each slow read still has one in HYPER_TICKS, and the readback READBACKS. skips: not in
    the same ticks as the slots that delay a command on another bus: that tick would have neither meter nor command in time."""
    second, readback, slow = _kinds(txns, timing)
    ticks = list(range(every - 1 - (every // 4 if skips else 0), HYPER_TICKS, every))
    if len(second) + READBACKS * bool(readback) + len(slow) > len(ticks):
        raise NoRoom(
            f"{len(second)} once-a-second transactions, {READBACKS * bool(readback)} readbacks and {len(slow)} slow reads "
            f"need more than the {len(ticks)} after-slots of {HYPER_TICKS} ticks"
        )
    slots = [NONE if every > 1 else FREE] * HYPER_TICKS
    places = {ticks[int((k + 0.5) * len(ticks) / len(second))]: i for k, i in enumerate(second)}
    for t, i in places.items():
        slots[t] = base + i
    free = [t for t in ticks if t not in places]
    slows = max(len(slow), min(len(free) // 2, len(free) - READBACKS)) if readback and slow else len(free) * bool(slow)
    for k, t in enumerate(free):
        n = k * slows // len(free)
        if (k + 1) * slows // len(free) > n:
            slots[t] = base + slow[n % len(slow)]
        else:
            slots[t] = base + readback[(k - n) % len(readback)] if readback else FREE
    return slots
