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
from controller.control import remembered
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
        self._tried: dict[str, float] = {}  # what stands in that trial
        self._asked: dict[str, float] = {}  # what we asked to try and have no answer for
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
        raw = self.image.setpoint(operate.SLOT_OPERATOR)
        if self._held and self._mine is not None and raw is not None and raw["kind"] == operate.SP_NONE:
            self._held = False  # a person's word: holding again would overrule it
            by = self._author(raw["id"]) or "somebody"
            raise Busy(f"{by} released the battery (command {raw['id']}); ask them, then begin the step again")

    def _author(self, number: int) -> str:
        """Who gave a command and when, by the audit trail; "" where it does not tell."""
        try:
            store = Store(Path(self.instance.store), self.instance.run, readonly=True)
            try:
                row = store.db.execute("SELECT who, wall_s FROM audit WHERE id = ?", (number,)).fetchone()
            finally:
                store.close()
        except (OSError, sqlite3.Error):
            row = None
        return f"{row[0]} at {utc_text(row[1])}" if row else ""

    def whose(self, slot: Mapping[str, Any]) -> str:
        """A setpoint in words, and who wrote it."""
        by = self._author(slot["id"]) or "somebody the audit trail does not name"
        return f"a hold at {slot['value_w'] / 1e3:+.1f} kW (command {slot['id']}) by {by}"

    def parting(self) -> str:
        """How the operator slot stands, for the last line of a test that was cut."""
        if self.image.setpoint(operate.SLOT_OPERATOR) is None:
            return "ATTENTION: whether a hold stands cannot be seen, look at `ballast status`"
        slot = self._standing()
        if slot is None:
            return "no hold stands"
        left_s = (slot["lease_until_ns"] - self.clock.monotonic_ns()) / 1e9
        return f"ATTENTION: {self.whose(slot)} stands for another {left_s:.0f} s, `ballast release` ends it"

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Around every step, which finds the site as it is now. Raises Busy where somebody else's hold stands; afterwards
        the slot is released and the virtual cabinet is as it was. Whatever cannot be set back stands in `left`.
        """
        slot = self._standing()
        if slot is not None:
            raise Busy(f"{self.whose(slot)}; the test begins once it has ended (`ballast release`)")
        self.reread()
        self.allowed_w = MOST * self.rating_w
        try:
            yield
        finally:
            try:
                self._leave()
            except BaseException:
                self._leave()  # a second Ctrl-C came in the middle of it: what was not done yet is done all the same
                raise

    def _leave(self) -> None:
        """Done twice it does nothing twice: each part forgets only what has been done."""
        try:
            left = self.put_back() and self.put_back()  # an answer that did not come is asked for once more
            self._undo, self._trial, self._asked = {}, None, {}
            self.left += left
        finally:
            try:
                self.release()
            except InstanceError as e:
                self.left.append(f"the hold was not released ({e}); {self.parting()}")
                self._held = False
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
        before = self._held, self._mine
        self._held, self._mine = True, None
        try:
            self._mine = operate.hold(self.instance, self.image, value_w, lease_s, self.clock, self.author)
        except InstanceError:
            self._held, self._mine = before  # not written: whoever kept us from it may stand there now
            raise

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
        """Empties the operator slot if what stands in it is ours. Raises InstanceError: then it still stands, and is ours."""
        if not self._held:
            return
        raw = self.image.setpoint(operate.SLOT_OPERATOR)
        # (a slot whose live copy is damaged may still hold the battery: the kernel keeps the last good one)
        if raw is None or (self._standing() is not None and self._mine in (None, raw["id"])):
            operate.release(self.instance, self.image, self.clock, self.author)
        self._held = False

    def reset(self) -> None:
        """Asks for the end of a FAULT."""
        operate.reset(self.instance, self.image, self.clock, self.author)

    # ---- the desk

    def desk(self, request: dict[str, Any]) -> dict[str, Any]:
        """The parent's answer; where it refuses, or there is none, {"ok": False} and `why` in words. `lost`: there was no
        answer, and whether it was done is not known.
        """
        if self.ask_desk is None:
            return {"ok": False, "why": "nobody answers for the settings here"}
        try:
            got = dict(self.ask_desk(request | {"who": self.author}))
        except (OSError, InstanceError) as e:
            return {"ok": False, "lost": True, "why": f"the parent does not answer: {e}"}
        return got if got.get("ok") else got | {"ok": False, "why": _reason(got)}

    def try_settings(self, changes: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Puts settings in force for so long; they fall back by themselves, and when the step ends without `confirm`.
        Where the answer is lost, what the desk says afterwards counts.
        """
        self._asked = dict(changes)
        got = self.desk({"do": "try", "changes": dict(changes), "seconds": seconds})
        if got["ok"]:
            self._trial, self._tried, self._asked = int(got["id"]), dict(changes), {}
        elif not got.get("lost"):
            self._asked = {}
        elif not self._find_trial():
            got["why"] += "; whether they are being tried is not known, they fall back by themselves"
        elif self._trial is not None:
            got = {"ok": True, "id": self._trial}
        if got["ok"]:
            self.refresh()
        return got

    def _find_trial(self) -> bool:
        """Whether what was asked for without an answer is on trial after all: then it is ours to give back. False where
        the desk does not say.
        """
        got = self.desk({"do": "settings"})
        if not got["ok"]:
            return False
        pending = got.get("pending") or {}
        changes = pending.get("changes") or {}
        if changes and pending.get("who") == self.author and all(self._asked.get(k) == new for k, (_, new) in changes.items()):
            self._trial, self._tried = int(pending["id"]), self._asked
        self._asked = {}
        return True

    def confirm(self) -> dict[str, Any]:
        """Keeps what was tried. Where the answer is lost, what the desk says afterwards counts; `lost` stands in the
        answer where that is lost too.
        """
        got = self.desk({"do": "confirm", "id": self._trial})
        if got.get("lost"):
            got = self._confirmed(got)
        if got["ok"]:
            self._trial = None
            with contextlib.suppress(InstanceError):  # kept is kept; that the site is gone shows in the next look
                self.refresh()
        return got

    def _confirmed(self, lost: dict[str, Any]) -> dict[str, Any]:
        """What became of a confirmation that nobody answered."""
        now = self.desk({"do": "settings"})
        if not now["ok"]:
            return lost
        if (now.get("pending") or {}).get("id") == self._trial:
            return self.desk({"do": "confirm", "id": self._trial})  # it never arrived
        if any(now["values"].get(key) != value for key, value in self._tried.items()):
            return {"ok": False, "why": f"the time was over: {lost['why']}"}
        differs = "file_problem" in now or any(key in now.get("running", ()) for key in self._tried)
        note = "the parent's answer was lost; the values are in force" + (", and are not in the site file" if differs else "")
        return {"ok": True, "written": None if differs else now.get("file"), "note": note}

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

    def put_back(self) -> list[str]:
        """Sets the virtual cabinet back, and the settings that were tried and not confirmed. Returns what the desk has not
        done or not answered, in words; that is asked again when the step ends.
        """
        left = []
        if self._undo:
            got = self.desk({"do": "plant", "set": self._undo})
            if got["ok"]:
                self._undo = {}
            else:
                left.append(f"the virtual cabinet still has a fault, set it back: {self._undo} ({got['why']})")
        unknown = bool(self._asked) and not self._find_trial()
        if self._trial is not None:
            # where it is refused the time is over, and they have fallen back
            unknown = bool(self.desk({"do": "back", "id": self._trial}).get("lost"))
            if not unknown:
                self._trial = None
                with contextlib.suppress(InstanceError):  # what is left has to be said all the same
                    self.refresh()
        if unknown:
            left.append("the settings that were tried may still be in force; they fall back by themselves (`ballast settings diff`)")
        return left

    def refresh(self) -> None:
        """Reads settings and processes again, after the desk changed something. Raises InstanceError."""
        fresh = read(Path(self.instance.directory))
        if fresh is not None and fresh.pid != self.instance.pid:
            self.image = open_image(fresh, writable=True)
        self.instance = fresh or self.instance
        self.reread()

    def reread(self) -> None:
        """Settings in force and what control found the devices to be: both may have changed since this program began."""
        directory, before = Path(self.instance.directory), self.site.devices_hash()
        with contextlib.suppress(OSError, ValueError, KeyError):
            self.site = build.site_from(directory / "site.json")
            self.rating_w = self.site.num("pcs.s_rated_va")
        found = remembered(directory, self.site)
        if found is not None:
            self.maps = found
        elif self.site.devices_hash() != before:
            self.maps = []  # those were other devices


__all__ = ["Busy", "Desk", "Refused", "Rig"]
