"""Which CAN devices are on a bus: listens at one rate after the other without acknowledging, then holds what came against the profiles.

A node at the wrong rate that takes part destroys frames of the others. So a rate is listened to silently; only where nothing at all was
heard (a single node, which nobody acknowledges, sounds just so) does it join, at the two usual rates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hal.can import checksum, decode_signal

from controller.problems import SiteError
from controller.site import Bus
from controller.tools import ports, sniffcan
from controller.tools.known import Found
from controller.tools.sniffcan import Ids
from controller.tools.sweep import Budget, Result
from hal.canport import REFUSES_SILENCE
from hal.canrows import CanMap, Received
from hal.profile import list_profiles, load_profile

RATES = (500_000, 250_000, 125_000, 1_000_000, 100_000)
JOIN_RATES = (500_000, 250_000)
FIRST_S = 1.3  # a frame a second is heard
WHOLE_S = 3.2  # then three of them, so that periods can be told
MAX_UNITS = 8  # of profiles with a unit_offset

Heard = dict[tuple[int, bool], Ids]


def bus(bus: Bus, budget: Budget) -> Result:
    """Listens, and names what it heard. Raises SiteError, ports.Busy."""
    result = Result(bus)
    rates = [(r, True) for r in RATES] + [(r, False) for r in JOIN_RATES]
    for rate, silent in [(bus.bitrate, True)] if bus.port.startswith("can:") else rates:
        if budget.left() < FIRST_S:
            break
        now = replace(bus, bitrate=rate)
        try:
            with ports.opened(now, silent=silent) as fd:
                if sniffcan.collect(fd, now, FIRST_S):
                    result.bus = now
                    heard = sniffcan.collect(fd, now, min(WHOLE_S, max(FIRST_S, budget.left())))
                    result.found = match(heard)
                    result.said += _unmatched(heard, result.found)
                    return result
        except SiteError as e:
            if not silent or REFUSES_SILENCE not in str(e):
                raise
    how = "" if bus.port.startswith("can:") else " at " + ", ".join(f"{r // 1000}k" for r in RATES)
    result.said.append(f"no frame came{how}: check CAN-H and CAN-L, the 120 ohm at both ends, and whether the device is awake")
    return result


def _unmatched(heard: Heard, found: list[Found]) -> list[str]:
    if found:
        return []
    ids = ", ".join(
        f"{number:#x}" + (f" ({row.period_ms:.0f} ms)" if row.count > 1 else "") for (number, _), row in sorted(heard.items())[:12]
    )
    return [f"frames came that no profile knows: {ids}: write a profile (docs/can.md), or look at them with `ballast sniff`"]


@dataclass(frozen=True)
class _Fit:
    """A profile whose frames were heard. `frames`: how many of them, the best evidence there is."""

    name: str
    device: CanMap
    unit: int
    frames: int


def match(heard: Heard) -> list[Found]:
    """The profiles whose needed frames all came with values in their ranges; of those that share frames, the one with most of them."""
    fits = [fit for name in list_profiles() if isinstance(device := load_profile(name), CanMap) for fit in _fits(name, device, heard)]
    fits.sort(key=lambda fit: -fit.frames)
    taken: set[tuple[int, bool]] = set()
    out: list[Found] = []
    best: list[_Fit] = []
    for fit in fits:
        ids = {(f.id, f.ext) for f in fit.device.frames}
        if not ids & taken:
            taken |= ids
            best.append(fit)
    for fit in best:
        others = [o.name for o in fits if o is not fit and o.frames == fit.frames and _share(o, fit)]
        notes = ["by its frames alone: compare current and state of charge with its display, and the current's sign, before power"]
        notes += [f"fits {', '.join(others)} as well"] if others else []
        what = f"sends {fit.frames} frames of {fit.name}"
        out.append(Found(fit.unit, what, (fit.device.role,), fit.name, sure=False, notes=notes))
    return out


def _share(a: _Fit, b: _Fit) -> bool:
    return bool({(f.id, f.ext) for f in a.device.frames} & {(f.id, f.ext) for f in b.device.frames})


def _fits(name: str, device: CanMap, heard: Heard) -> list[_Fit]:
    out = []
    for unit in range(1, MAX_UNITS + 1) if device.unit_offset else (1,):
        at = device.at(unit)
        came = [f for f in at.frames if (f.id, f.ext) in heard]
        needed = [f for f in at.frames if any(s.needed and s.length for s in f.signals)]
        if needed and all(f in came for f in needed) and all(_good(f, heard[f.id, f.ext]) for f in came):
            out.append(_Fit(name, at, unit, len(came)))
    return out


def _good(r: Received, row: Ids) -> bool:
    """Every payload that was kept is one of this frame: long enough, its checksum right, its needed values in range."""
    for data in row.payloads:
        if len(data) < r.length:
            return False
        if r.checksum is not None and checksum(r.checksum.kind, data, r.checksum.byte, r.checksum.seed) != data[r.checksum.byte]:
            return False
        if any(decode_signal(s, data)[1] not in ("ok", "other") for s in r.signals if s.needed and not s.permit):
            return False
    return True
