"""The supervisor's work of one second: leases, base schedule, billing phase, records, events. No process in here (see
`supervise`).

`Supervisor.step` runs in a process of its own in real time and in-process on a virtual clock in `ballast sim`.
Nothing it does can delay the engine: it writes into slots that the engine reads once a tick, and reads what the
engine left behind.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from _core import image as core
from controller import build
from controller.clock import Clock
from controller.freeze import Freezer
from controller.process import say
from controller.records import RecordWriter
from controller.schedule import active_row
from controller.site import Site
from controller.store import Store
from controller.trends import TrendWriter

STEP_S = 1.0
LEASE_S = 3.0
FLUSH_S = 10.0  # of the record; far inside the ring's 60 s
SLOT_SCHEDULE = 1
SP_NONE, SP_BASE = 0, 2
MAX_EVENTS = 5000
MAX_EVENTS_PER_STEP = 20  # a chattering limit must not fill the disk
LOOK_TICKS = 120  # a late step of 1.19 s is still one row
PRUNE_S = 3600.0
LIMIT_FAULTS = {core.LIM_LEASE: "lease"}  # ids in _core/faults.py of what is no alarm of the kernel
ALIVE_FAULTS = {"device": "device_lost", "bus": "bus_lost"}
SAID_CHARS = 500  # of changed settings in one event
FREEZE_MODES = (core.MODE_FAULT, core.MODE_TRIP)
EARLY_TICKS = 1000  # of a control: so long a start may take before what it waits for is told as an alarm
QUIET_S = 10  # a limit is "over" after so long without it: it may act every other tick for minutes
CLOCK_SLEW_S = 0.005  # per step; less than a tick, so that the billing phase never runs backwards
CLOCK_JUMP_S = 60.0  # beyond it the clock was set, and the window's phase jumps with it


@dataclass(frozen=True)
class Event:
    """Something a person would want to find again."""

    t_ns: int
    wall_s: float
    kind: str  # mode, start, limit, alarm, slot, device, bus, ticks, records, clock, schedule, settings, disk, freeze, control, supervisor
    text: str
    fault: str | None = None  # its id in _core/faults.py


class Supervisor:
    """One site's supervisor. `step(now_ns)` once a second, `close(now_ns)` at the end.

    `writer` None: no full-rate record. `store` None: events stay in memory (`events`, the newest 5,000). `freezer`: keeps
    what led to a trip where nothing writes a full-rate record. `trends`: keeps every signal's extremes for a day.
    """

    def __init__(
        self,
        image: Any,
        site: Site,
        clock: Clock,
        *,
        writer: RecordWriter | None = None,
        store: Store | None = None,
        freezer: Freezer | None = None,
        trends: TrendWriter | None = None,
    ) -> None:
        self.image, self.site, self.clock, self.writer, self.store = image, site, clock, writer, store
        self.freezer, self.trends = freezer, trends
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.events_total = 0
        self.last: dict[str, float] = {}  # the newest history row
        self._limits = build.limits(site)
        self._dtype = core.record_dtype()
        self._state_dtype = core.record_dtype("State")
        self._position = self._resume()
        self._history: list[tuple[Any, ...]] = []
        self._next_flush_ns = 0
        self._missed = 0
        self._tick: int | None = None
        self._mode: int | None = None
        self._start: int | None = None
        self._alarms = 0
        self._slot: tuple[int, int] = (-1, 0)
        self._limit_last_ns: dict[int, int] = {}
        self._row: int | None = None
        self._offset_s: float | None = None
        self._window_s: float | None = None
        self._alive: dict[str, bool] = {}
        self._site_rev: int | None = None  # of the last tick that was kept
        self._site: dict[str, Any] = {}
        self._budget = MAX_EVENTS_PER_STEP
        self._resumed = self._position > 0
        self._frozen = 0
        self._next_prune_s = 0.0
        self._trouble: dict[str, str] = {}  # what the disk refuses now
        self._history_from = (store.last_position() or 0) if store is not None else 0

    def _resume(self) -> int:
        """Where the last supervisor of this run stopped reading the ring; what was read but not written is read
        again.
        """
        known = [self.writer.next] if self.writer is not None else []
        if not known and self.store is not None:
            known = [self.store.last_position()]
        return next((p for p in known if p is not None), 0)

    def step(self, now_ns: int) -> None:
        """All of one second's work. Leases first: whatever fails below, the engine has limits for the next three."""
        wall_s = self.clock.wall_s()
        self._budget = MAX_EVENTS_PER_STEP
        self._renew(now_ns, wall_s)
        self._billing(now_ns, wall_s)
        self._drain(now_ns, wall_s)
        self._devices(now_ns, wall_s)
        self._disk(now_ns, wall_s)

    def urgent(self) -> bool:
        """True when mode or alarms are no longer what the last step saw: that belongs on the disk within a second."""
        latest = self.image.latest()
        return latest is not None and (latest["out"]["mode"], latest["out"]["alarms"]) != (self._mode, self._alarms)

    def look(self, now_ns: int) -> None:
        """Between two steps: takes what is in the ring, and nothing else."""
        self._drain(now_ns, self.clock.wall_s())

    def take_site(self, site: Site, now_ns: int) -> None:
        """Other settings from now on: limits and schedule at once, and the hash in new segments of the record. What is in the
        ring was made under the old ones, and is closed with their hash. The billing window follows once control has it.
        """
        wall_s = self.clock.wall_s()
        before, self.site = self.site, site
        self._limits = build.limits(site)
        self._renew(now_ns, wall_s)
        old, new = before.flat(), site.flat()
        words = ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in new if old.get(key) != new.get(key))
        self.event("settings", words[:SAID_CHARS] or "as they were", now_ns, wall_s)
        self._next_flush_ns = 0
        self._drain(now_ns, wall_s)
        for sink in (self.writer, self.freezer):
            if sink is not None:
                sink.settings = site.settings_hash()

    def freeze(self, why: str, now_ns: int) -> None:
        """Keeps the last 60 s and the next 10 s at full rate."""
        wall_s = self.clock.wall_s()
        if self.freezer is not None:
            self.freezer.ask(why)
        text = "every tick is recorded already" if self.freezer is None else "the last 60 s and the next 10 s are kept"
        self.event("freeze", f"{why}: {text}", now_ns, wall_s)

    def close(self, now_ns: int) -> None:
        """Takes what is left in the ring and closes the record's last segment."""
        wall_s = self.clock.wall_s()
        self._next_flush_ns = 0
        self._drain(now_ns, wall_s)
        if self.writer is not None:
            self.writer.flush(None, wall_s)
        if self.freezer is not None:
            self.freezer.close(wall_s)
        if self.trends is not None:
            self.trends.close()
        self._commit_history(wall_s)

    def event(self, kind: str, text: str, t_ns: int, wall_s: float, fault: str | None = None) -> None:
        """Notes an event, within this step's budget. `fault`: its id in _core/faults.py."""
        self.events_total += 1
        self._budget -= 1
        if self._budget < 0:
            return
        if self._budget == 0:
            kind, text, fault = (
                "records",
                f"more than {MAX_EVENTS_PER_STEP} events in this second: the rest is in the record alone",
                None,
            )
        self.events.append(Event(t_ns, wall_s, kind, text, fault))
        if self.store is not None:
            try:
                self.store.add_event(wall_s, t_ns, kind, text, fault)
            except OSError as e:  # neither database nor reserve: the loop goes on, and stderr is told once
                self._trouble_is("audit", str(e))

    # ---- what goes to the engine

    def _renew(self, now_ns: int, wall_s: float) -> None:
        lease_ns = now_ns + int(LEASE_S * 1e9)
        self.image.write_limits(lease_until_ns=lease_ns, **self._limits)
        row = active_row(self.site.schedule, wall_s + self.clock.utc_offset_s(wall_s))
        if row is not None:
            self.image.write_setpoint(SLOT_SCHEDULE, SP_BASE, self.site.schedule[row].base_w, lease_ns, row + 1)
        elif self._row is not None:
            self.image.write_setpoint(SLOT_SCHEDULE, SP_NONE, 0.0, 0, 0)
        if row != self._row:
            text = "no row in force" if row is None else f"row {row + 1}: {_kw(self.site.schedule[row].base_w)} on top"
            self.event("schedule", f"base schedule: {text}", now_ns, wall_s)
            self._row = row

    def _billing(self, now_ns: int, wall_s: float) -> None:
        """Phase of the billing window: wall clock, followed so slowly that a small correction never looks like a new
        window.
        """
        window_s = float(self._site.get("billing_window_s", self.site.num("grid.billing_window_s")))
        another, self._window_s = self._window_s not in (None, window_s), window_s
        if not window_s:
            return
        target_s = (wall_s - now_ns / 1e9) % window_s
        if another:  # it was set while control ran: the clock is innocent
            self._offset_s = target_s
        if self._offset_s is None:
            # A restarted supervisor goes on from what is in force.
            self._offset_s = float(self.image.billing_offset_s) % window_s if self._position else target_s
        error_s = math.remainder(target_s - self._offset_s, window_s)
        if abs(error_s) > CLOCK_JUMP_S:
            self.event("clock", f"wall clock was set by {error_s:+.1f} s: the billing window follows", now_ns, wall_s, "clock_jump")
            self._offset_s = target_s
        else:
            self._offset_s += max(-CLOCK_SLEW_S, min(CLOCK_SLEW_S, error_s))
        self.image.billing_offset_s = self._offset_s % window_s

    # ---- what comes from it

    def _drain(self, now_ns: int, wall_s: float) -> None:
        flush = self.writer is not None and now_ns >= self._next_flush_ns
        wanted = flush or self.freezer is not None
        state, limit = self._state_now() if wanted else (None, None)
        first = self._position
        raw, self._position = self.image.drain(first) if limit is None else self.image.drain(first, max(0, limit - first))
        lost = self._position - first - len(raw) // core.RECORD_SIZE
        if lost:
            self.event("records", f"{lost} ticks were overwritten in the ring before they were read", now_ns, wall_s)
        rows = np.frombuffer(raw, self._dtype)
        if len(rows):
            self._keep(raw, rows, first, wall_s)
        if len(rows) and self._resumed:
            self._take_over(rows[0], now_ns, wall_s)
        for at in range(0, len(rows), LOOK_TICKS):  # one second, or what a restarted supervisor finds
            last = min(at + LOOK_TICKS, len(rows))
            behind_s = (int(rows[-1]["inp"]["t_ns"]) - int(rows[last - 1]["inp"]["t_ns"])) / 1e9
            self._look(rows[at:last], self._position - len(rows) + last, wall_s - behind_s)
        proven = self._proven_state(state, raw) if wanted else None
        if self.writer is not None and flush:
            self.writer.flush(proven, wall_s)
            self._next_flush_ns = now_ns + int(FLUSH_S * 1e9)
        if self.freezer is not None:
            self.freezer.end_of_step(proven, wall_s)
        if len(self._history) >= FLUSH_S:
            self._commit_history(wall_s)

    def _keep(self, raw: bytes, rows: np.ndarray, first: int, wall_s: float) -> None:
        """Hands the records on. A start of control (its ticks begin anew, with the kernel's reset) begins a segment, and so does a tick
        with another revision of Site: each segment stands under its own.
        """
        sinks = [sink for sink in (self.writer, self.freezer) if sink is not None]
        ticks, revs, t_ns = rows["tick"], rows["inp"]["site_rev"], rows["inp"]["t_ns"]
        start = self._position - len(ticks)  # ring position of ticks[0]; first < start: the oldest were overwritten
        before = self._tick if self._tick is not None else 0
        cuts = [i for i in (np.flatnonzero(np.diff(ticks, prepend=before) <= 0)).tolist() if start + i > 0]
        changes = _changes(revs, self._site_rev)
        for begin, end in pairwise(sorted({0, *cuts, *changes, len(ticks)})):
            after_s = wall_s - (int(t_ns[-1]) - int(t_ns[end - 1])) / 1e9
            if begin in cuts or (begin in changes and self._site_rev is not None):
                ended_s = wall_s - (int(t_ns[-1]) - int(t_ns[max(0, begin - 1)])) / 1e9
                for sink in sinks:
                    sink.flush(None, ended_s, fresh=begin in cuts)
            if begin in cuts:
                self.event("control", "began again, from the kernel's reset", int(t_ns[begin]), after_s, "control_lost")
            if begin in cuts and self.freezer is not None:
                self.freezer.ask("restart")  # control died or slept: what led to it is worth keeping
            if begin in changes:
                self._name_site(sinks, int(revs[begin]), int(t_ns[begin]), wall_s)
            part = raw[begin * core.RECORD_SIZE : end * core.RECORD_SIZE]
            for sink in sinks:
                sink.add(part, first if begin == 0 else start + begin, start + end, after_s)

    def _name_site(self, sinks: Sequence[RecordWriter | Freezer], rev: int, t_ns: int, wall_s: float) -> None:
        """The Site of a revision to whoever keeps ticks; where it is not known any more, the one in force, and that is said."""
        site = self.image.site_at(rev)
        if site is None:
            site = self.image.site()
            self.event("records", f"revision {rev} of the settings is not known any more: these ticks may not replay", t_ns, wall_s)
        if self._site_rev is not None and (words := _differences(self._site, site)):
            self.event("settings", f"revision {rev} is in force: {words}", t_ns, wall_s)
        self._site_rev, self._site = rev, site
        self._limits |= {name: site[name] for name in self._limits if name in site}  # what we lease is never tighter than what is in force
        for sink in sinks:
            sink.site = site

    def _take_over(self, first: np.void, now_ns: int, wall_s: float) -> None:
        """A restarted supervisor: what its predecessor has already told is no event; that it died is one."""
        out = first["out"]
        self._resumed = False
        self._mode, self._start, self._alarms = int(out["mode"]), int(out["start_step"]), int(out["alarms"])
        self._slot = (int(out["slot"]), int(out["slot_id"]) if out["slot"] >= 0 else 0)
        self._limit_last_ns = {bit: int(first["inp"]["t_ns"]) for bit in core.LIMIT_TEXT if int(out["limits_active"]) & bit}
        self._tick = int(first["tick"]) - 1
        for i, device in enumerate(self.site.devices):
            self._alive[f"device {device.name}"] = bool(self.image.device_stats(i)["alive"])
        for i, bus in enumerate(self.site.buses):
            self._alive[f"bus {bus.name}"] = bool(self.image.bus_stats(i)["is_open"])
        self.event("supervisor", "started again; goes on where the last one stopped", now_ns, wall_s, "supervisor_lost")

    def _state_now(self) -> tuple[bytes | None, int | None]:
        """The kernel's State and the ring position it stands at; (None, None) where no quiet moment came in 5 tries."""
        for _ in range(5):
            head = int(self.image.head)
            state = self.image.state_bytes()
            if int(self.image.head) == head:
                return state, head
        return None, None

    def _proven_state(self, state: bytes | None, raw: bytes) -> bytes | None:
        """The State if it is the one after the last record: their tick instants agree (publish may have been under
        way).
        """
        if state is None or not raw:
            return None
        last_ns = int(np.frombuffer(raw, self._dtype)[-1]["inp"]["t_ns"])
        return state if int(np.frombuffer(state, self._state_dtype)[0]["last_t_ns"]) == last_ns else None

    def _look(self, rows: np.ndarray, position: int, wall_s: float) -> None:
        """History and events of the records of one second."""
        inp, out = rows["inp"], rows["out"]
        t_ns = inp["t_ns"]
        if self.trends is not None:
            self.trends.add(rows, wall_s)
        self._gaps(rows["tick"], t_ns, wall_s)
        self._modes(out["mode"], out["start_step"], t_ns, wall_s)
        self._bits(out, rows["tick"], t_ns, wall_s)
        self._slots(out["slot"], out["slot_id"], t_ns, wall_s)
        grid = out["grid_p_w"]
        row = {
            "wall_s": wall_s,
            "t_ns": int(t_ns[-1]),
            "tick": int(rows["tick"][-1]),
            "load_w": float(out["load_w"].mean()),
            "grid_w": float(grid.mean()),
            "grid_min_w": float(grid.min()),
            "grid_max_w": float(grid.max()),
            "batt_w": float(out["batt_p_w"].mean()),
            "ref_w": float(out["ref_w"][-1]),
            "soc": float(out["soc"][-1]),
            "mode": int(out["mode"][-1]),
            "limits": int(np.bitwise_or.reduce(out["limits_active"])),
            "alarms": int(out["alarms"][-1]),
            "missed": self._missed,
            "not_held_s": float(out["not_held_s"][-1]),
            "wake_max_us": float(rows["wake_late_ns"].max()) / 1e3,
            "position": position,
        }
        self.last = row
        if self.store is not None and position > self._history_from:
            self._history.append(tuple(row.values()))

    def _gaps(self, ticks: np.ndarray, t_ns: np.ndarray, wall_s: float) -> None:
        before = self._tick if self._tick is not None else int(ticks[0]) - 1
        missed = int(ticks[-1]) - before - len(ticks)
        if missed > 0:
            self._missed += missed
            self.event("ticks", f"{missed} missed, {self._missed} in all", int(t_ns[-1]), wall_s, "ticks_missed")
        self._tick = int(ticks[-1])

    def _modes(self, modes: np.ndarray, steps: np.ndarray, t_ns: np.ndarray, wall_s: float) -> None:
        for i in _changes(modes, self._mode):
            text = core.MODE_NAMES[int(modes[i])]
            if self._mode is not None:
                text = f"{core.MODE_NAMES[self._mode]} -> {text}"
            self._mode = int(modes[i])
            self._next_flush_ns = 0  # what led to it is on disk with the next step
            self.event("mode", text, int(t_ns[i]), wall_s)
            if self.freezer is not None and self._mode in FREEZE_MODES:
                self.freezer.ask(core.MODE_NAMES[self._mode])
        for i in _changes(steps, self._start):
            self._start = int(steps[i])
            self.event("start", core.START_NAMES[self._start], int(t_ns[i]), wall_s)

    def _bits(self, out: np.ndarray, ticks: np.ndarray, t_ns: np.ndarray, wall_s: float) -> None:
        """Limits by their first and last tick, alarms by every change."""
        limits = out["limits_active"]
        seen = int(np.bitwise_or.reduce(limits))
        last_ns = int(t_ns[-1])
        for bit, (name, words) in core.LIMIT_TEXT.items():
            if seen & bit:
                hits = np.flatnonzero(limits & np.uint64(bit))
                if bit not in self._limit_last_ns:
                    self.event("limit", f"{name} on: {words}", int(t_ns[hits[0]]), wall_s, LIMIT_FAULTS.get(bit))
                self._limit_last_ns[bit] = int(t_ns[hits[-1]])
            elif bit in self._limit_last_ns and last_ns - self._limit_last_ns[bit] > QUIET_S * 1e9:
                self.event("limit", f"{name} off", self._limit_last_ns.pop(bit), wall_s, LIMIT_FAULTS.get(bit))
        # a device that has not answered yet is waited for, not lost
        alarms = np.where((out["mode"] == core.MODE_STANDBY) & (ticks < EARLY_TICKS), self._alarms, out["alarms"])
        for i in _changes(alarms, self._alarms):
            now = int(alarms[i])
            for bit, (name, words) in core.ALARM_TEXT.items():
                if (now ^ self._alarms) & bit:
                    text = f"{name}: {words}" if now & bit else f"{name} cleared"
                    self.event("alarm", text, int(t_ns[i]), wall_s, name)
            self._alarms = now

    def _slots(self, slots: np.ndarray, ids: np.ndarray, t_ns: np.ndarray, wall_s: float) -> None:
        """Which ranked setpoint is in force; its id is the audit trail's."""
        key = slots.astype(np.int64) * (1 << 40) + ids * (slots >= 0)
        for i in _changes(key, self._slot[0] * (1 << 40) + self._slot[1]):
            slot = int(slots[i])
            self._slot = (slot, int(ids[i]) if slot >= 0 else 0)
            text = "none in force" if slot < 0 else f"{core.SLOT_NAMES[slot]}, command {self._slot[1]}"
            self.event("slot", f"setpoint: {text}", int(t_ns[i]), wall_s)

    def _devices(self, now_ns: int, wall_s: float) -> None:
        """Devices and ports, once on loss and once on return."""
        for i, device in enumerate(self.site.devices):
            stats = self.image.device_stats(i)
            self._alive_change("device", device.name, bool(stats["alive"]), "answers", "does not answer", now_ns, wall_s)
        for i, bus in enumerate(self.site.buses):
            is_open = bool(self.image.bus_stats(i)["is_open"])
            self._alive_change("bus", bus.name, is_open, "port is open", "port is gone", now_ns, wall_s)

    def _alive_change(self, kind: str, name: str, alive: bool, yes: str, no: str, now_ns: int, wall_s: float) -> None:
        key = f"{kind} {name}"
        if alive != self._alive.get(key, False):
            self.event(kind, f"{name} {yes if alive else no}", now_ns, wall_s, ALIVE_FAULTS[kind])
        self._alive[key] = alive

    def _commit_history(self, wall_s: float) -> None:
        if self.store is not None and self._history:
            self.store.add_history(self._history)
            self._history.clear()
            if wall_s >= self._next_prune_s:
                self.store.prune(wall_s)
                self._next_prune_s = wall_s + PRUNE_S

    def _disk(self, now_ns: int, wall_s: float) -> None:
        """What the disk refuses, said once, and once when it takes again."""
        told = {
            "record": (self.writer.error, f"{self.writer.lost} ticks are not in the record") if self.writer else ("", ""),
            "history": (self.store.error, "the audit trail goes on in the reserve, history pauses") if self.store else ("", ""),
            "freeze": (self.freezer.error, "what led to a trip is not kept") if self.freezer else ("", ""),
            "trends": (self.trends.error, "`trend` knows no more than the last 60 s") if self.trends else ("", ""),
        }
        if self.freezer is not None and len(self.freezer.written) > self._frozen:
            self._frozen = len(self.freezer.written)
            self.event("freeze", f"kept at full rate in {self.freezer.written[-1]}", now_ns, wall_s)
        for what, (error, words) in told.items():
            if error and self._trouble_is(what, error):
                self.event("disk", f"{what}: {error}: {words}", now_ns, wall_s, "disk")
            elif not error and what in self._trouble:
                del self._trouble[what]
                self.event("disk", f"{what}: the disk takes it again", now_ns, wall_s, "disk")

    def _trouble_is(self, what: str, error: str) -> bool:
        """True and a line on stderr where it was not known."""
        new = self._trouble.get(what) is None
        self._trouble[what] = error
        if new:
            say("supervisor", f"{what}: {error}; the loop goes on without it")
        return new


def _changes(values: np.ndarray, before: int | None) -> list[int]:
    """Indices at which the value differs from the one before (`before` ahead of the first; None differs from all)."""
    first = [0] if before is None or int(values[0]) != before else []
    return first + (np.flatnonzero(values[1:] != values[:-1]) + 1).tolist()


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changed, in words; empty where nothing did (a restart of control)."""
    return ", ".join(f"{name} {old[name]:g} -> {new[name]:g}" for name in new if name in old and old[name] != new[name])


def _kw(watts: float) -> str:
    return f"{watts / 1e3:+.1f} kW"
