"""The plan's data: what a site is made of, what a bus walks, what the plan promises. hal/plan.py makes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hal.rows import DeviceMap, Encode, Field
from hal.tcp import is_tcp
from hal.wiretime import Latency, Line, TcpLine, WireTime

if TYPE_CHECKING:  # it builds on this file
    from hal.canplan import CanTable

HYPER_TICKS = 100
MAX_BUSES, MAX_DEVICES = 8, 32  # _core/image.pxd
FREE = -2  # after-slot that may serve what comes up (a probe, a request of the operator)
NONE = -1  # no after-slot in this tick
DELAY_EVERY = 10  # where a readback delays a command: ten times a second, as often as a lost PCS must be noticed
MAX_SLOT_TICKS = 20  # a slow read on a bus that the tick does not wait for may take so long
LATE_MS = 1.0  # ... and may begin so much later than planned
SKIP_EVERY, SKIP_MOST = 20, 4  # where an after-slot costs fast reads: one in so many ticks, as seldom as everything has its place
READBACKS = 5  # ... and so many of them in HYPER_TICKS for the readback: a PCS is lost after control.pcs_lost_s


@dataclass(frozen=True)
class BusSpec:
    """One serial line or TCP connection. slack_ms: how long after its planned end an answer is still waited for."""

    name: str
    port: str = ""
    baud: int = 115200
    parity: str = "E"
    stop_bits: int = 1
    slack_ms: float = 2.0
    untimed: bool = False  # a PTY without baud: nothing is too soon (tests, probes)
    latency_ms: float = 1.0  # TCP: there and back
    lead_ms: float = 0.0  # RS-485 switched by the port's driver: before the first bit

    @property
    def tcp(self) -> bool:
        return is_tcp(self.port)

    @property
    def units(self) -> range:
        """Addresses a device may have: 0 is a broadcast on a line, and the device itself over TCP."""
        return range(0, 256) if self.tcp else range(1, 248)

    @property
    def faster(self) -> str:
        """What to do where this bus is too slow."""
        return "a network with less latency" if self.tcp else "raise the baud rate"

    @property
    def line(self) -> Line:
        if self.tcp:
            return TcpLine(latency_ms=self.latency_ms)
        return Line(self.baud, 9 + (self.parity != "N") + self.stop_bits, self.lead_ms)


@dataclass(frozen=True)
class DeviceSpec:
    """One device of the site. `map`: a DeviceMap, or its key in the maps given to plan_site."""

    name: str
    role: str
    bus: str
    unit: int
    map: DeviceMap | str
    turnaround_ms: float | None = None  # None: what the profile says


@dataclass(frozen=True)
class SiteTiming:
    """What the plan must know of the converter and of the machine."""

    dead_ms: float = 1.0  # PCS dead time after detection of the command
    tau_ms: float = 2.0
    rvrt_s: float = 5.0  # WSetRvrtTms; 0: none
    readback_first: bool = False  # read the PCS before commanding it
    slot_every: int = 0  # where after-slots fit no tick: one in so many ticks (2..50); 0: the plan chooses
    tick_ms: float = 10.0
    margin_ms: float = 0.5  # an after-slot ends so long before it must: wake-ups and the slave's own jitter


@dataclass(frozen=True)
class Txn:
    """One transaction, whole: the frame, what its answer feeds, its times."""

    name: str
    device: int  # index in the site
    unit: int
    fc: int
    addr: int
    count: int  # registers read
    waddr: int
    wcount: int  # registers written
    kind: str  # "read", "verify", or a purpose of a write
    rate: str
    wire: WireTime
    fields: tuple[Field, ...] = ()
    encodes: tuple[Encode, ...] = ()
    verify: tuple[int, ...] = ()
    window_ms: float = 0.0
    update_ms: float = 0.0
    sample: str = "request"

    @property
    def what(self) -> str:
        n = f"{self.wcount}+{self.count}" if self.fc == 23 else str(self.count or self.wcount)
        return f"{self.name} FC{self.fc:02d} x {n} @ {self.addr if self.count else self.waddr}"


@dataclass(frozen=True)
class Placed:
    """A transaction's place in the tick, in milliseconds after it.

    A CAN frame is sent at `sent_ms` on an idle bus and at `end_ms` where it waits for every other frame.
    """

    bus: str
    what: str
    start_ms: float
    sent_ms: float  # the request's last bit
    end_ms: float  # the answer's last bit
    kind: str = "can"  # "fast", "command", "after"
    answer_ms: float = 0.0  # the answer's first bit
    free_ms: float = 0.0  # the line has had its silence
    times: int = HYPER_TICKS  # so often in HYPER_TICKS ticks

    @classmethod
    def of(cls, bus: str, txn: Txn, at_ms: float, kind: str, times: int = HYPER_TICKS) -> Placed:
        """A transaction that begins at `at_ms`."""
        w, n = txn.wire, f" ({times} in {HYPER_TICKS})" if kind == "after" else ""
        end_ms = at_ms + w.nominal_ms
        answer_ms, free_ms = end_ms - w.answer_ms, at_ms + w.total_ms
        return cls(bus, txn.what + n, at_ms, at_ms + w.request_ms, end_ms, kind, answer_ms, free_ms, times)


@dataclass(frozen=True)
class BusTable:
    """What BusScan walks: plain data, made before control starts."""

    spec: BusSpec
    txns: tuple[Txn, ...]
    fast: tuple[int, ...]  # indices into txns, in order
    command: int  # index, -1: none
    slots: tuple[int, ...]  # HYPER_TICKS entries: index, FREE or NONE
    limit_ms: float  # an after-slot is over by then, counted from its tick
    slack_ms: float
    tick_ms: float
    early: bool = False  # the slot lies at the tick, before the command
    skips: bool = False  # a slot reaches into the next tick, whose fast reads are left out
    carries: bool = False  # a slot begins when the command is answered, be it after the next tick
    command23: int = -1  # index of the command whose answer is the readback (FC23): for ticks without a slot
    slots23: tuple[int, ...] = ()  # the slots while that is in use: without readbacks
    next_ms: float = 0.0  # the bus is needed again, silence before it: what ends by then costs nothing

    @property
    def usual(self) -> tuple[int, ...]:
        """The slots in use where devices have what they are asked for."""
        return self.slots23 or self.slots

    @property
    def busy_ms(self) -> float:
        """How long the wire is in use in a tick, in the mean: requests, waits and answers as planned, without silences and
        without what free after-slots may bring."""
        slots = [self.txns[i].wire.nominal_ms for i in self.usual if i >= 0]
        share = len(slots) / HYPER_TICKS
        fast = sum(self.txns[i].wire.nominal_ms for i in self.fast) * (1.0 - self.skips * share)
        command = self.txns[self.command].wire.nominal_ms if self.command >= 0 else 0.0
        if self.command23 >= 0:  # in ticks without a slot that no slot of the tick before reaches into
            command += (self.txns[self.command23].wire.nominal_ms - command) * max(0.0, 1.0 - 2.0 * share)
        return fast + command + sum(slots) / HYPER_TICKS


@dataclass(frozen=True)
class PlanProblem:
    """Why a site cannot run: which bus, the arithmetic, the ways out."""

    bus: str
    arithmetic: str
    ways_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"bus {self.bus}: {self.arithmetic}" if self.bus else self.arithmetic
        return text + (f"; ways out: {', or '.join(self.ways_out)}" if self.ways_out else "")


class PlanError(Exception):
    """The site cannot hold its plan. `problems` holds every reason."""

    def __init__(self, problems: list[PlanProblem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(p) for p in problems))


@dataclass
class Plan:
    """A site's plan, and what it promises."""

    tick_ms: float
    step_ms: float  # the kernel steps, as planned
    step_deadline_ms: float  # ... and at the latest
    command_wire_ms: float  # from the step to the command's last bit
    sample_ms: float  # instant the meter's value stands for (before window and refresh)
    command_end_ms: float
    to_command: Latency
    to_power: Latency
    readback_every: int
    timeline: list[Placed] = field(default_factory=list)
    tables: list[BusTable | CanTable] = field(default_factory=list)  # in the order of the buses
    sweeps: dict[str, float] = field(default_factory=dict)  # ms between two reads of the same after-slot transaction
    notes: list[str] = field(default_factory=list)

    @property
    def load_to_command_ms(self) -> dict[str, float]:
        return replace(self.to_command, late=()).figures()

    @property
    def load_to_power_ms(self) -> dict[str, float]:
        return replace(self.to_power, late=()).figures()

    @property
    def meter_age_ms(self) -> float:
        """How old the meter's values are when the kernel steps: half its window and half its refresh are in it."""
        return self.to_command.constant_ms - self.command_wire_ms + 0.5 * self.to_command.update_ms

    @property
    def step_by_ns(self) -> int:
        return round(self.step_deadline_ms * 1e6)

    @property
    def cmd_wire_ns(self) -> int:
        return round(self.command_wire_ms * 1e6)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, for summary.json and `check --json`."""
        return {
            "tick_ms": self.tick_ms,
            "step_ms": round(self.step_ms, 3),
            "step_deadline_ms": round(self.step_deadline_ms, 3),
            "sample_ms": round(self.sample_ms, 3),
            "command_end_ms": round(self.command_end_ms, 3),
            "load_to_command_ms": self.load_to_command_ms,
            "load_to_power_ms": self.load_to_power_ms,
            "load_to_command_all_ms": self.to_command.figures(),
            "load_to_power_all_ms": self.to_power.figures(),
            "readback_every": self.readback_every,
            "timeline": [
                {"bus": p.bus, "what": p.what, "kind": p.kind, "times": p.times, "start_ms": round(p.start_ms, 3),
                 "sent_ms": round(p.sent_ms, 3), "answer_ms": round(p.answer_ms, 3), "end_ms": round(p.end_ms, 3),
                 "free_ms": round(p.free_ms, 3)}
                for p in self.timeline
            ],
            "after_slots": {t.spec.name: _slot_counts(t) for t in self.tables if isinstance(t, BusTable)},
            "busy_ms": {t.spec.name: round(t.busy_ms, 3) for t in self.tables},
            "can": {t.spec.name: t.to_json() for t in self.tables if not isinstance(t, BusTable)},
            "sweeps_ms": {k: round(v, 1) for k, v in self.sweeps.items()},
            "notes": list(self.notes),
        }  # fmt: skip

    def __str__(self) -> str:
        from hal.plantext import render

        return render(self)


def _slot_counts(table: BusTable) -> dict[str, int]:
    counts: dict[str, int] = {}
    for i in table.usual:
        name = {FREE: "free", NONE: "none"}.get(i) or table.txns[i].name
        counts[name] = counts.get(name, 0) + 1
    return counts
