"""The plan of a CAN bus: how full it is, and how long each frame may wait for the bus at worst.

Response-time analysis of Davis, Burns, Bril and Lukkien, "Controller Area Network (CAN) schedulability analysis: refuted,
revisited and revised" (Real-Time Systems 35, 2007), equations (7) to (14): the lowest identifier wins, a frame on the wire is
not interrupted, and where a busy period is longer than a frame's cycle every instance in it counts. Frames are as long as
bit stuffing can make them. Not in it: retransmissions after errors, frames nobody has told us of (one of the longest known
kind is assumed to be on the wire already), and what a USB adapter adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hal.canrows import MAX_CAN_DEVICES, CanMap
from hal.plantypes import DeviceSpec, PlanProblem
from hal.rows import DeviceMap

BITRATES = (10_000, 20_000, 50_000, 100_000, 125_000, 250_000, 500_000, 800_000, 1_000_000)  # S0 to S8 of slcan
FULL = 0.7  # a bus fuller than this is noted
ROUNDS = 10_000


def worst_bits(length: int, ext: bool = False) -> int:
    """Bits of a data frame at worst, interframe space included (Davis 2007, equation 1: 8n + 47 + stuff bits; 29-bit ids: 67)."""
    nominal, stuffed = (67, 54) if ext else (47, 34)
    return 8 * length + nominal + (stuffed + 8 * length - 1) // 4


@dataclass(frozen=True)
class CanSpec:
    """One CAN bus. port: "can:IFACE", "slcan:TTY", "virtual-can"."""

    name: str
    port: str = ""
    bitrate: int = 500_000

    @property
    def socket(self) -> bool:
        """True where frames travel as struct can_frame, False where as slcan lines."""
        return self.port.startswith("can:")


@dataclass(frozen=True)
class Traffic:
    """One frame on the bus, in milliseconds. `response_ms`: from its queueing to its last bit, at worst; inf: never."""

    what: str
    id: int
    ext: bool
    period_ms: float
    length: int
    worst_ms: float
    response_ms: float = math.inf

    @property
    def key(self) -> int:
        """Arbitration: of two frames the one with the smaller key wins (a standard frame beats the extended one of its base)."""
        if self.ext:
            return (self.id >> 18) << 21 | 3 << 19 | (self.id & 0x3FFFF) << 1
        return self.id << 21


@dataclass(frozen=True)
class CanTable:
    """What CanScan walks: plain data, made before control starts. devices: (index in the site, map with this unit's ids)."""

    spec: CanSpec
    devices: tuple[tuple[int, CanMap], ...]
    traffic: tuple[Traffic, ...]
    command: Traffic | None = None

    @property
    def load(self) -> float:
        """Share of the wire that is in use, frames at their longest."""
        return sum(t.worst_ms / t.period_ms for t in self.traffic)

    @property
    def busy_ms(self) -> float:
        """The same of a tick of 10 ms, in ms."""
        return 10.0 * self.load

    def to_json(self) -> dict[str, Any]:
        """Plain data, for summary.json and `check --json`."""
        rows = [
            {"what": t.what, "id": t.id, "ext": t.ext, "period_ms": t.period_ms, "worst_ms": round(t.worst_ms, 3),
             "response_ms": round(t.response_ms, 3)}
            for t in self.traffic
        ]  # fmt: skip
        return {"bitrate": self.spec.bitrate, "load": round(self.load, 4), "frames": rows}

    def lines(self) -> list[str]:
        """What `ballast check` prints of this bus."""
        out = [f"bus {self.spec.name}: CAN {self.spec.bitrate // 1000} kbit/s, {100 * self.load:.1f} % full with the frames of its devices"]
        out.append(f"  {'id':>8} {'every':>8} {'on wire':>8} {'at worst':>8}  ms, stuffed as far as can be; at worst: arbitration included")
        for t in self.traffic:
            out.append(f"  {t.id:>#8x} {t.period_ms:8.0f} {t.worst_ms:8.3f} {t.response_ms:8.3f}  {t.what}")
        return out


def responses(frames: Sequence[Traffic], bit_ms: float, alien_ms: float = 0.0) -> list[Traffic]:
    """The frames in the order of arbitration with their worst response. alien_ms: a frame of unknown kind that may be on the wire."""
    order = sorted(frames, key=lambda t: t.key)
    out = []
    for m, f in enumerate(order):
        higher = order[:m]
        blocking = max([t.worst_ms for t in order[m + 1 :]] + [alien_ms])
        response = _response(f, higher, blocking, bit_ms)
        out.append(Traffic(f.what, f.id, f.ext, f.period_ms, f.length, f.worst_ms, response))
    return out


def _response(f: Traffic, higher: Sequence[Traffic], blocking: float, bit_ms: float) -> float:
    if sum(t.worst_ms / t.period_ms for t in (*higher, f)) >= 1.0:
        return math.inf
    busy = _fixed_point(f.worst_ms, blocking, (*higher, f), 0.0)
    worst = 0.0
    for q in range(max(1, math.ceil(busy / f.period_ms))):
        wait = _fixed_point(blocking + q * f.worst_ms, blocking + q * f.worst_ms, higher, bit_ms)
        worst = max(worst, wait - q * f.period_ms + f.worst_ms)
    return worst


def _fixed_point(start: float, constant: float, frames: Sequence[Traffic], bit_ms: float) -> float:
    """The smallest w = constant + sum of ceil((w + bit) / T) * C; inf where it does not settle."""
    w = start
    for _ in range(ROUNDS):
        # A hair less than w: a frame that is queued at the very end of the window belongs to the next one.
        more = constant + sum(math.ceil((w + bit_ms) / t.period_ms - 1e-9) * t.worst_ms for t in frames)
        if more <= w + 1e-9:
            return w
        w = more
    return math.inf


@dataclass
class _Bus:
    spec: CanSpec
    devices: list[tuple[int, CanMap]] = field(default_factory=list)
    frames: list[Traffic] = field(default_factory=list)
    command: Traffic | None = None

    def add(self, index: int, name: str, device: CanMap, problems: list[PlanProblem]) -> None:
        self.devices.append((index, device))
        bit_ms = 1e3 / self.spec.bitrate
        for t in device.transmits:
            one = Traffic(f"{name} {t.purpose}, ours", t.id, t.ext, t.period_ms, t.length, worst_bits(t.length, t.ext) * bit_ms)
            self._take(one, problems)
            if t.purpose == "command":
                self.command = one
        for f in device.frames:
            self._take(Traffic(name, f.id, f.ext, f.period_ms, 8, worst_bits(8, f.ext) * bit_ms), problems)

    def _take(self, one: Traffic, problems: list[PlanProblem]) -> None:
        for other in self.frames:
            if (other.id, other.ext) == (one.id, one.ext) and other.what != one.what:
                why = f"{one.what}: id {one.id:#x} is {other.what}'s already"
                problems.append(PlanProblem(self.spec.name, why, ("another unit, where the profile has a unit_offset", "another bus")))
                return
        if all((t.id, t.ext) != (one.id, one.ext) for t in self.frames):
            self.frames.append(one)


def plan_can(buses: Sequence[object], devices: Sequence[DeviceSpec], maps: Mapping[str, DeviceMap],
             problems: list[PlanProblem]) -> dict[str, CanTable]:  # fmt: skip
    """Tables of the CAN buses among `buses`, by name; what keeps them from running goes into `problems`."""
    plans = {b.name: _Bus(b) for b in buses if isinstance(b, CanSpec)}
    for i, d in enumerate(devices):
        device = maps.get(d.map) if isinstance(d.map, str) else d.map
        if d.bus not in plans:
            if isinstance(device, CanMap):
                problems.append(PlanProblem(d.bus, f"device {d.name} speaks CAN, its bus does not", ('port = "can:..." or "slcan:..."',)))
            continue
        if device is None:
            problems.append(PlanProblem(d.bus, f"device {d.name}: no map {d.map!r}"))
        elif not isinstance(device, CanMap):
            problems.append(PlanProblem(d.bus, f"device {d.name} does not speak CAN, its bus does", ('a profile with transport = "can"',)))
        elif device.role != d.role:
            problems.append(PlanProblem(d.bus, f"device {d.name} is bound as {d.role}, but its map is a {device.role}"))
        elif d.unit > 1 and not device.unit_offset:
            why = f"device {d.name}: unit {d.unit}, but the profile has the ids of one device (no unit_offset)"
            problems.append(PlanProblem(d.bus, why, ("unit = 1",)))
        elif not (far := _beyond(device.at(d.unit), d, device.unit_offset)):
            plans[d.bus].add(i, d.name, device.at(d.unit), problems)
        else:
            problems.append(far)
    for name, b in plans.items():
        if len(b.devices) > MAX_CAN_DEVICES:
            why = f"{len(b.devices)} devices, at most {MAX_CAN_DEVICES} on a CAN bus"
            problems.append(PlanProblem(name, why, ("move a device to another bus",)))
    return {name: _table(b, problems) for name, b in plans.items()}


def _beyond(device: CanMap, d: DeviceSpec, offset: int) -> PlanProblem | None:
    """The first id that this unit's shift has pushed beyond what an identifier holds."""
    ids = [(f.id, f.ext) for f in device.frames] + [(t.id, t.ext) for t in device.transmits]
    for number, ext in ids:
        bits = 29 if ext else 11
        if number >> bits:
            why = f"device {d.name}: unit {d.unit} has id {number:#x}, beyond {bits} bits (unit_offset = {offset:#x})"
            return PlanProblem(d.bus, why, ("a smaller unit", "another unit_offset in the profile"))
    return None


def _table(b: _Bus, problems: list[PlanProblem]) -> CanTable:
    bit_ms = 1e3 / b.spec.bitrate
    alien_ms = worst_bits(8, any(t.ext for t in b.frames)) * bit_ms
    traffic = tuple(responses(b.frames, bit_ms, alien_ms))
    command = next((t for t in traffic if b.command is not None and (t.id, t.ext) == (b.command.id, b.command.ext)), None)
    table = CanTable(b.spec, tuple(b.devices), traffic, command)
    late = [t for t in traffic if t.response_ms > t.period_ms]
    if late:
        sums = " + ".join(f"{t.worst_ms:.3f}/{t.period_ms:g}" for t in traffic)
        first = late[0]
        wait = "never" if math.isinf(first.response_ms) else f"after {first.response_ms:.3f} ms"
        why = f"{sums} = {100 * table.load:.0f} % full; {first.what}, id {first.id:#x}, is through {wait}, and the next is due after "
        faster = [r for r in BITRATES if r > b.spec.bitrate]
        ways = [f"raise the bit rate to {faster[0]}"] if faster else []
        problems.append(PlanProblem(b.spec.name, f"{why}{first.period_ms:g} ms", (*ways, "move a device to another bus")))
    return table


def notes(table: CanTable) -> list[str]:
    """What a person should know of this bus beside its figures."""
    out = []
    if table.load > FULL:
        out.append(f"bus {table.spec.name}: {100 * table.load:.0f} % full; errors and frames of others have little room")
    if not table.spec.socket and not table.spec.port.startswith("virtual"):
        out.append(f"bus {table.spec.name}: what the slcan adapter and its USB add (1 ms and more) is in none of these figures")
    return out
