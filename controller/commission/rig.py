"""The site under test: what a step may do to it, and the promise that nothing of it stays.

    with rig.guarded():          # refuses where somebody else holds the battery
        rig.record()             # rows of every tick from now on
        rig.hold(5000.0, 10.0)
        rig.wait(3.0)
        rows = rig.rows()
    # here the slot is released and the virtual cabinet set back, whatever happened inside

All power goes through the operator slot and the kernel's limits; every action stands in the audit trail.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _core import image as core
from controller import build, operate
from controller.clock import Clock, utc_text
from controller.commission.talk import Talk
from controller.instance import Instance, InstanceError, open_image, read
from controller.site import Site
from controller.status import names
from controller.store import Store
from hal.rows import DeviceMap

Desk = Callable[[dict[str, Any]], dict[str, Any]]

MOST = 0.2  # of rating, without asking
SLICE_S = 0.5  # of a wait: the ring is drained and the slot looked at so often
ROWS_MOST = 60_000  # 10 min of ticks: what one recording may hold
SPARE_S = 30.0  # a hold outlives its step by so much if this process is killed, and then ends by itself
STALE_S = 10.0  # a control that restarts is back sooner
GLIDE = 0.02  # of rating: the largest fall of a hold at once
GLIDE_S = 120.0


class Busy(Exception):
    """Somebody else's hold stands, or took the slot over; the message says whose."""


class Refused(Exception):
    """The site is in no state for this step, or a power was asked for that nobody allowed; the message says why."""


def _reason(answer: Mapping[str, Any]) -> str:
    """Why the desk said no: its `error`, or its problems (words, or tables of key and why)."""
    rows = answer.get("problems") or []
    words = [f"{p.get('key', '')}: {p.get('why', '')}".strip(": ") if isinstance(p, Mapping) else str(p) for p in rows]
    return str(answer.get("error") or "; ".join(words) or "refused without a reason").replace("\n", "; ")


class Rig:
    """A running instance, its settings, and a person's line.

    maps      the devices as control found them, in the site's order; empty where that cannot be read
    ask_desk  answers {"do": "try" | "confirm" | "back" | "plant", ...}; None: nothing can be written
    author    whose name stands in the audit trail
    """

    def __init__(self, instance: Instance, image: Any, site: Site, maps: Sequence[DeviceMap], clock: Clock, talk: Talk, *,
                 author: str = "", ask_desk: Desk | None = None) -> None:  # fmt: skip
        self.instance, self.image, self.site, self.maps = instance, image, site, list(maps)
        self.clock, self.talk, self.ask_desk = clock, talk, ask_desk
        self.author = author or operate.author()
        self.rating_w = site.num("pcs.s_rated_va")
        self.allowed_w = MOST * self.rating_w
        self._dtype = core.record_dtype()
        self._parts: list[NDArray[np.void]] | None = None
        self._position = 0
        self._count = 0
        self._held = False
        self._mine: int | None = None  # id of our hold; None while held: it is being written
        self._undo: dict[str, float] = {}
        self._trial: int | None = None
        self.left: list[str] = []  # what could not be set back, in words

    # ---- looking

    def latest(self) -> dict[str, Any]:
        """The newest record. Raises Refused before the first tick."""
        got = self.image.latest()
        if got is None:
            raise Refused("the engine has not ticked yet; look at `ballast status`")
        return dict(got)

    @property
    def mode(self) -> int:
        """MODE_* of the latest tick."""
        return int(self.latest()["out"]["mode"])

    def alarms(self) -> list[str]:
        """Names of the alarms that stand."""
        return names(int(self.latest()["out"]["alarms"]), core.ALARM_TEXT)

    def num(self, key: str) -> float:
        """A setting in force."""
        return self.site.num(key)

    @property
    def step_w(self) -> float:
        """Size of a small step: 5 kW, but at least 2 % and at most 4 % of rating (the sign trip judges at 5 %)."""
        return min(0.04 * self.rating_w, max(0.02 * self.rating_w, 5000.0))

    @property
    def ramp_w_per_s(self) -> float:
        """Slope of a hold away from zero."""
        return float(self.latest()["lim"]["ramp_up_w_per_s"])

    def record(self) -> None:
        """Keeps every tick from now on, at most ten minutes of them, until the next call."""
        self._parts, self._count = [], 0
        self._position = int(self.image.head)

    def rows(self) -> NDArray[np.void]:
        """What was kept since `record`, as numpy records of struct Record."""
        self._drain()
        return np.concatenate(self._parts) if self._parts else np.zeros(0, self._dtype)

    def _drain(self) -> None:
        if self._parts is None:
            return
        raw, self._position = self.image.drain(self._position)
        rows = np.frombuffer(raw, self._dtype)
        if len(rows) and self._count < ROWS_MOST:
            self._parts.append(rows)
            self._count += len(rows)

    # ---- waiting

    def wait(self, seconds: float, note: str = "") -> None:
        """Waits, keeps the rows, and ends with Busy when somebody takes the slot. Raises Interrupted."""
        left = seconds
        while left > 1e-9:
            part = min(SLICE_S, left)
            self.talk.wait(part, note)
            note, left = "", left - part
            self._drain()
            self._look()

    def until(self, what: Callable[[], bool], seconds: float, note: str = "") -> bool:
        """True as soon as it holds; False after so long. Raises Interrupted, Busy."""
        left = seconds
        while not what():
            if left <= 0:
                return False
            self.wait(min(SLICE_S, left), note)
            note, left = "", left - SLICE_S
        return True

    # ---- acting

    def _standing(self) -> dict[str, Any] | None:
        """The operator slot while something in it is in force."""
        slot = self.image.setpoint(operate.SLOT_OPERATOR)
        if slot is None or slot["kind"] == operate.SP_NONE or slot["lease_until_ns"] <= self.clock.monotonic_ns():
            return None
        return dict(slot)

    def _look(self) -> None:
        latest = self.latest()["inp"]["t_ns"]
        if self.clock.monotonic_ns() - latest > STALE_S * 1e9:
            raise Refused(f"the engine has not ticked for {STALE_S:.0f} s: control is gone; look at `ballast status`")
        slot = self._standing()
        if slot is not None and not (self._held and self._mine in (None, slot["id"])):
            self._held = False  # it is theirs now: not ours to release
            raise Busy(f"the operator slot was taken over: {self.whose(slot)}")

    def whose(self, slot: Mapping[str, Any]) -> str:
        """Who wrote a setpoint, by the audit trail."""
        words = f"{slot['value_w'] / 1e3:+.1f} kW (command {slot['id']})"
        try:
            store = Store(Path(self.instance.store), self.instance.run, readonly=True)
            try:
                row = store.db.execute("SELECT who, wall_s FROM audit WHERE id = ?", (slot["id"],)).fetchone()
            finally:
                store.close()
        except (OSError, sqlite3.Error):
            row = None
        by = f"{row[0]} since {utc_text(row[1])}" if row else "somebody the audit trail does not name"
        return f"a hold at {words} by {by}"

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Around every step. Raises Busy where somebody else's hold stands; afterwards the slot is released and the
        virtual cabinet is as it was. Whatever cannot be set back stands in `left`.
        """
        slot = self._standing()
        if slot is not None:
            raise Busy(f"{self.whose(slot)}; the test begins once it has ended (`ballast release`)")
        self.allowed_w = MOST * self.rating_w
        try:
            yield
        finally:
            try:
                self.put_back()
            finally:
                self.release()
                self._parts = None

    def hold(self, value_w: float, seconds: float) -> None:
        """Battery at value_w for so long (and 30 s of grace). Raises Refused above what is allowed, Busy."""
        if not math.isfinite(value_w) or abs(value_w) > self.allowed_w * (1 + 1e-9):
            raise Refused(f"{value_w:g} W is more than the {self.allowed_w:g} W that this test may ask for")
        self._hold(value_w, seconds)

    def _hold(self, value_w: float, seconds: float) -> None:
        self._look()
        lease_s = min(operate.LEASE_MAX_S, max(1.0, seconds + SPARE_S))
        # ours even where we are interrupted between the write and its answer: the slot's id is looked at then
        self._held, self._mine = True, None
        self._mine = operate.hold(self.instance, self.image, value_w, lease_s, self.clock, self.author)

    def glide(self, value_w: float, seconds: float, note: str = "") -> None:
        """To value_w without a jump: a hold falls toward zero at once, so it is led there at the ramp, in two minutes at
        the most. Then `hold`. On the way it may be above what is allowed: following has put it there.
        """
        now_w = float(self.latest()["out"]["p_cmd_w"])
        goal = value_w if value_w * now_w > 0 else 0.0
        fall_w = abs(now_w) - abs(goal)
        total_s = min(GLIDE_S, fall_w / self.ramp_w_per_s)
        n = math.ceil(max(1.0, min(fall_w / (GLIDE * self.rating_w), total_s / SLICE_S)))
        for k in range(1, n):
            self._hold(math.copysign(abs(now_w) - k * fall_w / n, now_w), seconds)
            self.wait(total_s / n, note)
            note = ""
        self.hold(value_w, seconds)

    def release(self) -> None:
        """Empties the operator slot if what stands in it is ours."""
        slot = self._standing() if self._held else None
        self._held = False
        if slot is None or self._mine not in (None, slot["id"]):
            return
        try:
            operate.release(self.instance, self.image, self.clock, self.author)
        except InstanceError as e:
            left_s = (slot["lease_until_ns"] - self.clock.monotonic_ns()) / 1e9
            self.left.append(f"the hold at {slot['value_w']:g} W was not released ({e}); it ends by itself in {left_s:.0f} s")

    def reset(self) -> None:
        """Asks for the end of a FAULT."""
        operate.reset(self.instance, self.image, self.clock, self.author)

    # ---- the desk

    def desk(self, request: dict[str, Any]) -> dict[str, Any]:
        """The parent's answer; where it refuses, or there is none, {"ok": False} and `why` in words."""
        if self.ask_desk is None:
            return {"ok": False, "why": "nobody answers for the settings here"}
        try:
            got = dict(self.ask_desk(request | {"who": self.author}))
        except (OSError, InstanceError) as e:
            return {"ok": False, "why": f"the parent does not answer: {e}"}
        return got if got.get("ok") else got | {"ok": False, "why": _reason(got)}

    def try_settings(self, changes: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Puts settings in force for so long; they fall back by themselves, and when the step ends without `confirm`."""
        got = self.desk({"do": "try", "changes": dict(changes), "seconds": seconds})
        if got["ok"]:
            self._trial = int(got["id"])
            self.refresh()
        return got

    def confirm(self) -> dict[str, Any]:
        """Keeps what was tried."""
        got = self.desk({"do": "confirm", "id": self._trial})
        if got["ok"]:
            self._trial = None
            self.refresh()
        return got

    @property
    def virtual(self) -> bool:
        """True where the virtual cabinet stands behind the buses and can be acted on."""
        return self.instance.virtual and self.ask_desk is not None

    def plant(self, changes: Mapping[str, float], back: Mapping[str, float]) -> None:
        """Does to the virtual cabinet what a person would do to a real one; `back` is set when the step ends. Raises
        Refused.
        """
        self._undo |= back
        got = self.desk({"do": "plant", "set": dict(changes)})
        if not got["ok"]:
            raise Refused(f"the virtual cabinet does not take {dict(changes)}: {got['why']}")

    def put_back(self) -> None:
        """Sets the virtual cabinet back, and the settings that were tried and not confirmed."""
        undo, self._undo = self._undo, {}
        trial, self._trial = self._trial, None
        if undo and not (got := self.desk({"do": "plant", "set": undo}))["ok"]:
            self.left.append(f"the virtual cabinet still has a fault, set it back: {undo} ({got['why']})")
        if trial is not None:
            self.desk({"do": "back", "id": trial})  # where it is refused the time is over, and they have fallen back
            self.refresh()

    def refresh(self) -> None:
        """Reads settings and processes again, after the desk changed something. Raises InstanceError."""
        fresh = read(Path(self.instance.directory))
        if fresh is not None and fresh.pid != self.instance.pid:
            self.image = open_image(fresh, writable=True)
        self.instance = fresh or self.instance
        path = Path(self.instance.directory) / "site.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            self.site = build.site_from(path)


__all__ = ["Busy", "Desk", "Refused", "Rig"]
