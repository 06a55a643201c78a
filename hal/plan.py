"""The bus plan: where every transaction of a site stands in the 10 ms tick, what that makes of latency, and refusals
with arithmetic.

One tick: fast reads at once, one after the other on a bus; the kernel steps with the last answer; the command leaves
at once (after silence, where its bus has just answered); then each bus has one after-slot: readback, heartbeat,
reversion timer, slow reads. What stands in which tick's after-slot is a table of 100 ticks. An after-slot must be
over, silence kept, before its bus is next needed.

Where after-slots fit no tick (115200 baud; one bus for all at 460800) they come every Nth tick and reach into the next
one: on the command's bus the next command leaves later, on a bus with fast reads these are left out once. Each slow
read still has a slot a second, the readback five. The plan says by how much and how often: `load_to_*_ms` are the
figures of ticks in their place, `*_all_ms` those of all ticks. With `readback_first` the slot lies at the tick and the
kernel waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hal.canplan import CanSpec, CanTable, plan_can
from hal.canplan import notes as can_notes
from hal.planslots import NoRoom, fill, seldom
from hal.plantypes import (
    DELAY_EVERY,
    HYPER_TICKS,
    LATE_MS,
    MAX_BUSES,
    MAX_DEVICES,
    MAX_SLOT_TICKS,
    NONE,
    BusSpec,
    BusTable,
    DeviceSpec,
    Placed,
    Plan,
    PlanError,
    PlanProblem,
    SiteTiming,
    Txn,
)
from hal.rows import (
    COMMAND,
    FAST,
    READBACK,
    RENEW,
    SECOND,
    SLOW,
    DeviceMap,
    Verify,
    Write,
    pack,
)
from hal.wiretime import SETTLE, Latency, Line, WireTime, answer_chars, request_chars

__all__ = [
    "BusSpec",
    "BusTable",
    "DeviceSpec",
    "Placed",
    "Plan",
    "PlanError",
    "PlanProblem",
    "SiteTiming",
    "Txn",
    "plan_site",
]


@dataclass
class _BusPlan:
    """One bus while it is planned."""

    spec: BusSpec
    devices: list[tuple[int, DeviceSpec, DeviceMap]]
    txns: list[Txn] = field(default_factory=list)
    fast: list[int] = field(default_factory=list)
    command: int = -1
    fast_end_ms: float = 0.0
    cmd_start_ms: float = 0.0
    after_ms: float = 0.0  # the after-slot may start
    limit_ms: float = 0.0  # ... and must be over
    every: int = 1  # after-slots: one in so many ticks
    delay_ms: float = 0.0  # so much later is what follows an after-slot that fits no tick
    early: bool = False
    skips: bool = False
    slots: list[int] = field(default_factory=list)
    command23: int = -1  # the command with the readback in its answer, for ticks without a slot
    every23: int = 1
    slots23: list[int] = field(default_factory=list)  # ... and what the slots are for then

    def next_ms(self, timing: SiteTiming) -> float:
        """When the bus is next needed after its command, counted from its tick."""
        return timing.tick_ms + (0.0 if self.fast or self.early else self.cmd_start_ms)

    @property
    def usual(self) -> list[int]:
        """The slots of a bus whose devices have what they are asked for."""
        return self.slots23 or self.slots

    @property
    def needed(self) -> bool:
        """The tick waits for this bus: it has fast reads, or the command. On another, an answer may take its whole slot."""
        return bool(self.fast) or self.command >= 0

    def add(self, txn: Txn) -> int:
        self.txns.append(txn)
        return len(self.txns) - 1


def plan_site(buses: Sequence[BusSpec | CanSpec], devices: Sequence[DeviceSpec], maps: Mapping[str, DeviceMap] | None = None,
              timing: SiteTiming = SiteTiming()) -> Plan:  # fmt: skip # noqa: B008
    """Plan a site. Raises PlanError with everything that keeps it from running."""
    problems: list[PlanProblem] = []
    can = plan_can(buses, devices, maps or {}, problems)
    plans = _assign(buses, devices, maps or {}, can, problems)
    if problems:
        raise PlanError(problems)
    for b in plans:
        _place_fast(b, timing)
    step_ms = max((b.fast_end_ms for b in plans), default=0.0)
    for b in plans:
        _place_command(b, step_ms, timing, problems)
    if problems:  # without room for the fast part, the after-slots need no judgement
        raise PlanError(problems)
    for b in plans:
        _place_after(b, timing, problems)
    slack_ms = _slack(plans, step_ms, timing, problems)
    if problems:
        raise PlanError(problems)
    made = _result(plans, can, step_ms, slack_ms, timing)
    order = [b.name for b in buses]
    made.tables.sort(key=lambda t: order.index(t.spec.name))
    return made


# ---------------------------------------------------------------- who is on which bus


def _assign(buses: Sequence[BusSpec | CanSpec], devices: Sequence[DeviceSpec], maps: Mapping[str, DeviceMap], can: Mapping[str, CanTable],
            problems: list[PlanProblem]) -> list[_BusPlan]:  # fmt: skip
    plans = {b.name: _BusPlan(b, []) for b in buses if isinstance(b, BusSpec)}
    if len({b.name for b in buses}) != len(buses) or len(buses) > MAX_BUSES or len(devices) > MAX_DEVICES:
        what = f"{len(buses)} buses ({len({b.name for b in buses})} names), {len(devices)} devices"
        problems.append(PlanProblem("", f"{what}: at most {MAX_BUSES} buses of different names and {MAX_DEVICES} devices"))
    taken: dict[tuple[str, int], str] = {}
    for i, d in enumerate(devices):
        device = maps.get(d.map) if isinstance(d.map, str) else d.map
        if d.bus in can:
            continue
        if device is None or d.bus not in plans:
            what = f"no map {d.map!r}" if device is None else f"no bus {d.bus!r}"
            problems.append(PlanProblem("", f"device {d.name}: {what}"))
            continue
        if device.role != d.role:
            problems.append(PlanProblem(d.bus, f"device {d.name} is bound as {d.role}, but its map is a {device.role}"))
        other = taken.setdefault((d.bus, d.unit), d.name)
        units = plans[d.bus].spec.units
        if other != d.name or d.unit not in units:
            why = f"unit {d.unit} is {other}'s already" if other != d.name else f"unit {d.unit} is outside {units[0]}..{units[-1]}"
            problems.append(PlanProblem(d.bus, f"device {d.name}: {why}", ("another unit id",)))
        if d.turnaround_ms is not None:
            device = replace(device, turnaround_ms=d.turnaround_ms)
        plans[d.bus].devices.append((i, d, device))
    maps_used = [m for b in plans.values() for _, _, m in b.devices]
    if not any(f.signal == "grid_p_w" and f.rate == FAST for m in maps_used for f in m.fields):
        problems.append(PlanProblem("", "no device gives grid_p_w fast", ("a meter whose profile reads it in group fast",)))
    commands = sum(w.purpose == COMMAND for m in maps_used for w in m.writes) + sum(m.commands for t in can.values() for _, m in t.devices)
    if commands != 1:
        problems.append(PlanProblem("", f"{commands} devices take the power command; one writer for one command", ("exactly one pcs",)))
    return list(plans.values())


def _read_txn(b: _BusPlan, index: int, d: DeviceSpec, device: DeviceMap, fc: int, addr: int, count: int, **more: Any) -> Txn:
    wire = WireTime(b.spec.line, request_chars(fc), answer_chars(fc, count), device.turnaround_ms)
    return Txn(
        more.pop("name", d.name), index, d.unit, fc, addr, count, 0, 0, more.pop("kind", "read"), more.pop("rate",
        SLOW), wire,
        window_ms=device.window_ms, update_ms=device.update_ms, sample=device.sample, **more,
    )  # fmt: skip


def _write_txn(b: _BusPlan, index: int, d: DeviceSpec, device: DeviceMap, w: Write) -> Txn:
    read_addr = min((f.addr for f in w.read_fields), default=0)
    count = max((f.addr + f.words for f in w.read_fields), default=0) - read_addr
    wire = WireTime(b.spec.line, request_chars(w.fc, w.count), answer_chars(w.fc, count), device.turnaround_ms)
    return Txn(
        f"{d.name} {w.purpose}", index, d.unit, w.fc, read_addr, count, w.addr, w.count, w.purpose,
        FAST if w.purpose == COMMAND else SECOND, wire, w.read_fields, w.encodes,
        window_ms=device.window_ms, update_ms=device.update_ms, sample=device.sample,
    )  # fmt: skip


# ---------------------------------------------------------------- the fast part of the tick


def _place_fast(b: _BusPlan, timing: SiteTiming) -> None:
    at = 0.0
    for index, d, device in b.devices:
        for read in pack(device, 125):
            if read.rate == FAST:
                txn = _read_txn(b, index, d, device, read.fc, read.addr, read.count, rate=FAST, fields=read.fields)
                b.fast.append(b.add(txn))
                b.fast_end_ms = at + txn.wire.nominal_ms
                at += txn.wire.total_ms
        for w in device.writes:
            if w.purpose == COMMAND:
                b.command = b.add(_write_txn(b, index, d, device, w))
    # Reading the PCS before commanding it: its slot moves to the front of the tick, and the kernel waits for a
    # readback there.
    b.early = timing.readback_first and b.command >= 0 and not b.fast
    if b.early:
        reads = [(d, m, r) for _, d, m in b.devices for r in pack(m, 125) if r.rate == READBACK]
        times = [WireTime(b.spec.line, 8, answer_chars(3, r.count), m.turnaround_ms).nominal_ms for _, m, r in reads]
        b.fast_end_ms = max(times, default=0.0)


def _place_command(b: _BusPlan, step_ms: float, timing: SiteTiming, problems: list[PlanProblem]) -> None:
    """The command at once, or after silence where its bus has just answered; then where the after-slot lies."""
    t35, tick = b.spec.line.t35_ms, timing.tick_ms
    first = bool(b.fast) or b.early  # the bus is in use from the tick on
    b.cmd_start_ms = max(step_ms, b.fast_end_ms + t35) if first else step_ms
    free = b.fast_end_ms + t35 if first else 0.0
    if b.command >= 0:
        free = b.cmd_start_ms + b.txns[b.command].wire.total_ms
    b.after_ms = 0.0 if b.early else max(free, step_ms)
    b.limit_ms = b.fast_end_ms + timing.margin_ms if b.early else tick + (0.0 if b.fast else b.cmd_start_ms) - t35
    if free <= tick + (0.0 if first else b.cmd_start_ms):
        return
    parts = [b.txns[i] for i in b.fast] + ([b.txns[b.command]] if b.command >= 0 else [])
    lines = [f"{t.what}: {t.wire.arithmetic()}" for t in parts]
    total = sum(t.wire.total_ms for t in parts)
    waits = free - total
    text = "; ".join(lines) + f"; together {total:.3f} ms"
    if waits > 0.01:
        text += f", and {waits:.3f} ms of waiting for the other bus"
    problems.append(PlanProblem(b.spec.name, f"{text}, but a tick has {tick:.0f} ms", _ways_out(b, parts)))


def _ways_out(b: _BusPlan, parts: list[Txn]) -> tuple[str, ...]:
    ways = []
    if b.spec.tcp:
        ways.append(f"{b.spec.faster} ({b.spec.latency_ms:g} ms a transaction)")
    for baud in () if b.spec.tcp else (230400, 460800, 921600):
        line = Line(baud, b.spec.line.bits, b.spec.line.lead_ms)
        total = sum(WireTime(line, t.wire.request, t.wire.answer, t.wire.turnaround_ms).total_ms for t in parts)
        if baud > b.spec.baud and total <= 10.0:
            ways.append(f"raise bus {b.spec.name} to {baud} baud ({total:.2f} ms)")
            break
    if len({t.device for t in parts}) > 1:
        ways.append(f"move {parts[-1].name.split()[0]} to a bus of its own")
    reads = [t for t in parts if t.count]
    writes = [t for t in parts if t.wcount and not t.count]
    if reads and writes and len({t.device for t in parts}) == 1:
        chars = request_chars(23, writes[0].wcount), answer_chars(23, reads[0].count)
        both_ms = WireTime(b.spec.line, *chars, reads[0].wire.turnaround_ms).total_ms
        ways.append(f"a meter of its own on another bus (FC23, {both_ms:.2f} ms for both, writes before it reads: it is not planned)")
    if not ways:
        ways.append("another device, or fewer registers: turnaround and silence alone leave no room in a tick")
    return tuple(ways)


# ---------------------------------------------------------------- after-slots


def _budget(b: _BusPlan, timing: SiteTiming) -> float:
    return b.limit_ms - b.after_ms - timing.margin_ms


def _registers(b: _BusPlan, budget_ms: float, turnaround_ms: float) -> int:
    """How many registers one read may have to fit `budget_ms`."""
    return b.spec.line.room(budget_ms, turnaround_ms)


def _after_txns(b: _BusPlan, budget_ms: float) -> list[Txn] | None:
    """Everything for this bus's after-slots, cut to fit `budget_ms`; None where something does not fit at all."""
    txns: list[Txn] = []
    for index, d, device in b.devices:
        limit = _registers(b, budget_ms, device.turnaround_ms)
        rows = [f for f in device.fields if f.rate != FAST]
        if limit < max([f.words for f in rows] + [1]):
            return None
        if any(f.rate == READBACK for f in rows):
            whole = [r for r in pack(device, 125) if r.rate == READBACK]
            if any(r.count > limit for r in whole):
                return None  # a readback in pieces would be values of different ticks
        for r in pack(device, limit):
            if r.rate != FAST:
                name = f"{d.name} {r.rate} {r.addr}"
                txns.append(_read_txn(b, index, d, device, r.fc, r.addr, r.count, rate=r.rate, fields=r.fields, name=name))
        txns += [_write_txn(b, index, d, device, w) for w in device.writes if w.purpose != COMMAND]
        for v in _split(device.verify, limit):
            name = f"{d.name} verify {v.name}"
            txns.append(_read_txn(b, index, d, device, v.fc, v.addr, len(v.words), kind="verify", verify=v.words, name=name))
    if any(t.wire.nominal_ms > budget_ms for t in txns):
        return None
    return txns


def _split(rows: tuple[Verify, ...], limit: int) -> list[Verify]:
    return [Verify(v.name, v.addr + i, v.words[i : i + limit], v.fc) for v in rows for i in range(0, len(v.words), limit)]


def _place_after(b: _BusPlan, timing: SiteTiming, problems: list[PlanProblem]) -> None:
    txns = _after_txns(b, _budget(b, timing))
    if txns is None and not b.early:
        txns = _skipping(b, timing) if b.fast or b.command < 0 else _delaying(b, timing)
    if txns is None:
        line, budget = b.spec.line, _budget(b, timing)
        shortest = WireTime(line, 8, 7, min((m.turnaround_ms for _, _, m in b.devices), default=0.0))
        problems.append(
            PlanProblem(
                b.spec.name,
                f"after the fast part the bus is free at {b.after_ms:.3f} ms and needed again at "
                f"{b.limit_ms + line.t35_ms:.3f} ms: "
                f"less t3.5 {line.t35_ms:.3f} and margin {timing.margin_ms:.3f}, {budget:.3f} ms remain, room for "
                f"{_registers(b, budget, 0.0)} registers (the shortest read takes {shortest.nominal_ms:.3f} ms): "
                "readback, heartbeat or slow reads have no place",
                (
                    b.spec.faster,
                    "move a device to another bus",
                    "a slower readback",
                    "a device with less turnaround",
                ),
            )
        )
        return
    base = len(b.txns)
    b.txns += txns
    try:
        b.slots = fill(txns, base, b.every, b.skips, timing)
    except NoRoom as e:
        problems.append(PlanProblem(b.spec.name, str(e), ("move a device to another bus", b.spec.faster)))
        return
    _with_fc23(b, base, timing)


def _delaying(b: _BusPlan, timing: SiteTiming) -> list[Txn] | None:
    """The readback fits no tick: it takes one in N, and the command after it leaves later."""
    assert b.command >= 0
    t35, command = b.spec.line.t35_ms, b.txns[b.command].wire
    # The delayed command must have its answer before the next one is due.
    latest = 2 * timing.tick_ms + b.cmd_start_ms - command.total_ms - t35
    margin = min(timing.margin_ms, 0.2)
    txns = _after_txns(b, latest - b.after_ms - margin)
    if txns is None:
        return None
    longest = max((t.wire.nominal_ms for t in txns), default=0.0)
    b.delay_ms = max(0.0, b.after_ms + longest + t35 - timing.tick_ms - b.cmd_start_ms)
    # A slot that begins late still goes: the command after it, and the one after that, leave later by as much.
    b.limit_ms = latest + LATE_MS
    b.every = timing.slot_every or DELAY_EVERY
    return txns


def _skipping(b: _BusPlan, timing: SiteTiming) -> list[Txn] | None:
    """After-slots fit no tick beside the fast reads: they take one in N, and the fast reads of the next are left out; its command, if it is
    on this bus, follows the slot and repeats what the kernel knows. On a bus without fast reads they take as many ticks as they need:
    nobody waits for the line."""
    command_ms = b.txns[b.command].wire.total_ms if b.command >= 0 else 0.0
    for ticks in range(2, 3 if b.fast else MAX_SLOT_TICKS + 1):
        limit = ticks * timing.tick_ms - b.spec.line.t35_ms - command_ms
        txns = _after_txns(b, limit - b.after_ms - timing.margin_ms)
        if txns is not None:
            b.limit_ms, b.skips = limit, bool(b.fast)
            b.every = timing.slot_every or seldom(txns, timing) if b.fast else max(ticks, timing.slot_every)
            b.delay_ms = timing.tick_ms
            return txns
    return None


def _with_fc23(b: _BusPlan, base: int, timing: SiteTiming) -> None:
    """Where slots are rare, a PCS that has FC23 is read back with its command, in ticks that have no slot: fewer slots are needed then.
    FC16 and FC03 keep their places beside it: for ticks with a slot, after a lost answer, for a device that refuses FC23."""
    if b.command < 0 or b.every == 1:
        return
    command = b.txns[b.command]
    device = next(m for i, _, m in b.devices if i == command.device)
    reads = [t for t in b.txns if t.kind == "read" and t.rate == READBACK and t.device == command.device]
    if not device.fc23 or command.fc != 16 or len(reads) != 1 or reads[0].fc != 3:
        return
    wire = WireTime(b.spec.line, request_chars(23, command.wcount), answer_chars(23, reads[0].count), device.turnaround_ms)
    if b.cmd_start_ms + wire.nominal_ms + 0.2 > b.next_ms(timing) - b.spec.line.t35_ms:
        return
    rest = [t if t is not reads[0] else replace(t, kind="none") for t in b.txns[base:]]
    every = timing.slot_every or seldom(rest, timing)
    slots = fill(rest, base, every, b.skips, timing)
    spared = (sum(i != NONE for i in b.slots) - sum(i != NONE for i in slots)) / HYPER_TICKS
    if spared * b.delay_ms <= wire.request_ms - command.wire.request_ms:  # its longer frame would cost the mean step more than slots do
        return
    b.every23, b.slots23 = every, slots
    b.command23 = b.add(replace(command, fc=23, addr=reads[0].addr, count=reads[0].count, rate=READBACK, wire=wire, fields=reads[0].fields))


# ---------------------------------------------------------------- deadlines and figures


def _slack(plans: list[_BusPlan], step_ms: float, timing: SiteTiming, problems: list[PlanProblem]) -> float:
    """How long after the planned step the kernel may still wait for a missing answer: as far as the command keeps its
    place."""
    slack = min((b.spec.slack_ms for b in plans if b.fast), default=0.0)
    for b in plans:
        if b.command < 0:
            continue
        room = b.next_ms(timing) - b.cmd_start_ms - b.txns[b.command].wire.total_ms
        if room < 0.2:
            problems.append(
                PlanProblem(
                    b.spec.name,
                    f"a command {room:.3f} ms late would still be on the line when the next one is due: no room to wait for an answer",
                    (b.spec.faster, "move the meter to another bus"),
                )
            )
        slack = min(slack, room)
    return max(0.2, min(slack, timing.tick_ms - 0.5 - step_ms))


def _result(plans: list[_BusPlan], can: Mapping[str, CanTable], step_ms: float, slack_ms: float, timing: SiteTiming) -> Plan:
    meter_bus, meter = next((b, b.txns[i]) for b in plans for i in b.fast if any(f.signal == "grid_p_w" for f in b.txns[i].fields))
    bus = next((b for b in plans if b.command >= 0), None)
    sent = next((t.command for t in can.values() if t.command is not None), None)
    start = sum(meter_bus.txns[i].wire.total_ms for i in meter_bus.fast[: meter_bus.fast.index(meter_bus.txns.index(meter))])
    sample = start + meter.wire.request_ms + meter.wire.line.t35_ms
    if meter.sample == "answer":
        sample += meter.wire.turnaround_ms
    waited = [meter_bus] + ([bus] if bus is not None and bus is not meter_bus else [])
    late = tuple((b.delay_ms, sum(i != NONE for i in b.usual) / HYPER_TICKS) for b in waited if b.every > 1 and b.delay_ms > 0.0)
    if bus is not None:
        usual = bus.txns[bus.command23 if bus.command23 >= 0 else bus.command]
        end, detection = bus.cmd_start_ms + usual.wire.request_ms, bus.spec.line.t35_ms
    else:  # on CAN the frame's own end is its detection; waiting for the bus delays a share of them, at worst so much
        assert sent is not None
        end, detection = step_ms + sent.worst_ms, 0.0
        late += ((sent.response_ms - sent.worst_ms, min(0.99, next(t.load for t in can.values() if t.command is sent))),)
    to_command = Latency(end - sample + 0.5 * meter.window_ms, timing.tick_ms, meter.update_ms, late)
    behind = detection + timing.dead_ms + SETTLE * timing.tau_ms
    to_power = replace(to_command, constant_ms=to_command.constant_ms + behind)
    every = 1 if bus is None or bus.command23 >= 0 else bus.every
    plan = Plan(timing.tick_ms, step_ms, step_ms + slack_ms, end - step_ms, sample, end, to_command, to_power, every)
    plan.tables += can.values()
    for b in plans:
        limit = b.limit_ms
        plan.tables.append(
            BusTable(
                b.spec,
                tuple(b.txns),
                tuple(b.fast),
                b.command,
                tuple(b.slots),
                limit,
                slack_ms if b.needed else limit,
                timing.tick_ms,
                b.early,
                b.skips,
                carries=b.every > 1 and b.command >= 0 and not b.fast,
                command23=b.command23,
                slots23=tuple(b.slots23),
                next_ms=b.next_ms(timing) - b.spec.line.t35_ms,
            )
        )
        _timeline(plan, b)
    for name, table in can.items():
        plan.notes += can_notes(table)
        if table.command is not None:
            what = f"{table.command.what} {table.command.id:#x}"
            plan.timeline.append(Placed(name, what, step_ms, step_ms + table.command.worst_ms, step_ms + table.command.response_ms))
            plan.notes.append(f"bus {name}: the PCS's reversion is its own time-out on the command frame, not read here: set it")
    _notes(plan, plans, timing, meter)
    return plan


def _timeline(plan: Plan, b: _BusPlan) -> None:
    at = 0.0
    for i in b.fast:
        plan.timeline.append(Placed.of(b.spec.name, b.txns[i], at, "fast"))
        at += b.txns[i].wire.total_ms
    command = b.command23 if b.command23 >= 0 else b.command
    if command >= 0:
        plan.timeline.append(Placed.of(b.spec.name, b.txns[command], b.cmd_start_ms, "command"))
    seen: dict[int, int] = {}
    for i in b.usual:
        if i >= 0:
            seen[i] = seen.get(i, 0) + 1
    for i, n in seen.items():
        plan.timeline.append(Placed.of(b.spec.name, b.txns[i], b.after_ms, "after", n))
        plan.sweeps[b.txns[i].name] = HYPER_TICKS * plan.tick_ms / n


def _notes(plan: Plan, plans: list[_BusPlan], timing: SiteTiming, meter: Txn) -> None:
    full = plan.to_power.figures()
    for b in plans:
        if b.command23 >= 0:
            used, without = (sum(i != NONE for i in slots) for slots in (b.slots23, b.slots))
            plan.notes.append(
                f"bus {b.spec.name}: the readback rides with the command (FC23) where there is no slot; where the device refuses that, "
                f"slots take {without} of {HYPER_TICKS} ticks instead of {used}"
            )
        if b.every > 1:
            every = b.every23 if b.command23 >= 0 else b.every
            what = "the next tick's fast reads are left out" if b.skips else f"the command after it leaves {b.delay_ms:.2f} ms later"
            costs = f", and {what}: over all ticks load to power is p50 {full['p50']:.2f}, p99 {full['p99']:.2f} ms" if b.needed else ""
            plan.notes.append(f"bus {b.spec.name}: an after-slot fits no tick; it takes every {every}th{costs}")
        if b.spec.tcp:
            late = f"; an answer that is {plan.step_deadline_ms - plan.step_ms:.1f} ms late misses its tick" if b.fast else ""
            network = f"latency_ms = {b.spec.latency_ms:g} there and back"
            plan.notes.append(f"bus {b.spec.name}: TCP, planned with {network}; what the network needs more adds to it{late}")
        if any(m.assumed for _, _, m in b.devices):
            shapes = "planned with the shapes the standard gives SunSpec models; at start the devices are asked for theirs"
            plan.notes.append(f"bus {b.spec.name}: {shapes}")
        if timing.rvrt_s > 0.0 and b.command >= 0 and not any(t.kind == RENEW for t in b.txns):
            plan.notes.append(f"bus {b.spec.name}: the PCS has no reversion timer: after loss of control it keeps its last setpoint")
    if meter.window_ms or meter.update_ms:
        plan.notes.append(
            f"{meter.name}: averages over {meter.window_ms:g} ms (half of it is latency), refreshes every {meter.update_ms:g} ms"
        )
