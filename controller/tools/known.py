"""What a device that answers is: by its SunSpec models, by the identity rows of profiles, by Open Rack's strings, or by values that
only a meter of that map would hold. Reads a handful of registers of one unit; writes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from hal.codec import decode_words

from controller.scan import patient
from controller.tools.values import Read, text_of
from hal import sunspec
from hal.canrows import CanMap
from hal.profile import list_profiles, load_profile
from hal.rows import DeviceMap, Field
from hal.shelf import ShelfMap, list_shelves, load_shelf
from hal.wire import NoAnswer

SUNSPEC_ROLES = ("pcs", "bms", "meter")
F_HZ, V_V = (45.0, 66.0), (40.0, 20e3)  # what a grid has: a map that finds it in a device's registers is that device's map

ORV3_AT, ORV3_WORDS = (8, 0), 8  # where Open Rack V3 devices have names: blocks of eight registers of text


@dataclass
class Found:
    """One device. `roles` empty: it answers, and cannot be bound. `profile`: "sunspec", a profile's name, or empty."""

    unit: int
    what: str
    roles: tuple[str, ...] = ()
    profile: str = ""
    sure: bool = True  # False: by its values, not by a name
    notes: list[str] = field(default_factory=list)
    ratings: dict[str, float] = field(default_factory=dict)
    f_hz: float = math.nan
    answer_ms: float = 0.0
    data: bool = True  # False: it has answered with exceptions alone
    shelf: bool = False  # `profile` is one of a [[shelf]], beside the tick


def shelf_units(baud: int, parity: str) -> list[int]:
    """Addresses at which the shelves that profiles know sit on a line of that speed."""
    return [u for m in _shelves() if (m.baud, m.parity) == (baud, parity) for u in m.units]


@functools.cache
def _shelves() -> tuple[ShelfMap, ...]:
    return tuple(load_shelf(name) for name in list_shelves())


def identify(read: Read, unit: int, baud: int = 0) -> Found:
    """What answers at this unit. A read that fails says nothing."""
    data = False

    def noting(unit: int, fc: int, addr: int, count: int) -> list[int]:
        nonlocal data
        words = read(unit, fc, addr, count)
        data = True
        return words

    for way in (_sunspec, _by_identity, _orv3, _by_values):
        found = way(noting, unit, baud)
        if found is not None:
            return found
    for fc in (3, 4):
        _words(noting, unit, fc, 0, 1)
    what = "answers; no SunSpec models, and none of the profiles fits"
    return Found(unit, what, notes=["write a profile: docs/adding-a-device.md"], data=data)


def _words(read: Read, unit: int, fc: int, addr: int, count: int) -> list[int]:
    """Registers, or none."""
    try:
        return read(unit, fc, addr, count)
    except NoAnswer:
        return []


# ---------------------------------------------------------------- SunSpec


def _sunspec(read: Read, unit: int, baud: int) -> Found | None:
    base = next((b for b in sunspec.BASES if tuple(_words(read, unit, 3, b, 2)) == sunspec.MARKER), None)
    if base is None:
        return None
    try:
        scan = sunspec.scan(patient(read), unit, (base,))
    except (sunspec.SunSpecError, NoAnswer) as e:
        return Found(unit, "a SunSpec device whose models cannot be read", notes=[str(e)])
    maps: dict[str, DeviceMap] = {}
    why = []
    for role in SUNSPEC_ROLES:
        try:
            maps[role] = sunspec.compile_device(scan, role)
        except sunspec.SunSpecError as e:
            why.append(str(e))
    name = " ".join(x for x in scan.identity[:2] if x)
    models = ", ".join(str(number) for number, _, _ in scan.chain)
    found = Found(unit, f"{name or 'SunSpec device'}, serial {scan.identity[2] or 'not given'}, models {models}", tuple(maps), "sunspec")
    for made in maps.values():
        found.ratings |= {k: float(v) for k, v in made.info.items() if k.endswith(("_w", "_va", "_wh")) and isinstance(v, (int, float))}
        found.f_hz = _frequency(made, patient(read), unit, found.f_hz)
    if not maps:
        found.profile, found.notes = "", why
    return found


def _frequency(device: DeviceMap, read: Read, unit: int, known: float) -> float:
    f = next((f for f in device.fields if f.signal in ("f_hz", "pcs_f_hz")), None)
    if f is None or math.isfinite(known):
        return known
    words = _words(read, unit, f.fc, f.addr, f.words)
    x = decode_words(f, words) if words else math.nan
    return x if F_HZ[0] <= x <= F_HZ[1] else math.nan


# ---------------------------------------------------------------- profiles


def _profiles() -> Iterator[tuple[str, DeviceMap]]:
    for name in list_profiles():
        device = load_profile(name)
        if not isinstance(device, CanMap):
            yield name, device


def _by_identity(read: Read, unit: int, baud: int) -> Found | None:
    """Every identity row of a profile holds."""
    for name, device in _profiles():
        if device.verify and all(tuple(_words(read, unit, v.fc, v.addr, len(v.words))) == v.words for v in device.verify):
            found = Found(unit, f"{name}: {', '.join(v.name for v in device.verify)} as its profile says", (device.role,), name)
            found.f_hz = _frequency(device, read, unit, math.nan)
            return found
    return None


def _by_values(read: Read, unit: int, baud: int) -> Found | None:
    """Meters without identity rows: frequency and voltages stand where their maps say."""
    fits: list[tuple[str, float]] = []
    for name, device in _profiles():
        rows = {f.signal: f for f in device.fields}
        if device.role == "meter" and not device.verify and "f_hz" in rows:
            hz = _value(read, unit, rows["f_hz"])
            volts = [_value(read, unit, rows[s]) for s in ("v1_v", "v2_v", "v3_v") if s in rows] if F_HZ[0] <= hz <= F_HZ[1] else []
            if any(V_V[0] <= v <= V_V[1] for v in volts):
                fits.append((name, hz))
    if not fits:
        return None
    others = [name for name, _ in fits[1:]]
    notes = ["by its values alone: compare power and sign with its display"] + ([f"fits {', '.join(others)} too"] if others else [])
    return Found(unit, f"has frequency and voltages where {fits[0][0]} has them", ("meter",), fits[0][0], False, notes, {}, fits[0][1])


def _value(read: Read, unit: int, f: Field) -> float:
    words = _words(read, unit, f.fc, f.addr, f.words)
    return decode_words(f, words) if words else math.nan


# ---------------------------------------------------------------- Open Rack V3


def _orv3(read: Read, unit: int, baud: int) -> Found | None:
    """Two strings in neighbouring blocks of eight registers, at an address where a profile has a shelf."""
    here = [m for m in _shelves() if unit in m.units]
    if not here:
        return None
    texts = [text_of(_words(read, unit, 3, at, ORV3_WORDS)) for at in ORV3_AT]
    if not all(texts):
        return None
    kind = next((m for m in here if m.baud == baud), here[0])
    return Found(unit, f"Open Rack V3 {kind.role}: {texts[1]}, {texts[0]}", profile=kind.name, shelf=True)
