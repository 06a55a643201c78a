"""What a command of the console works on: the site as it runs now (or does not), the person, and their line.

Looked up anew for each command: processes come and go while a session lasts. Commands that only look get the image
read-only; those that act ask for the writable one.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import textwrap
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from controller import desk, operate
from controller import instance as instances
from controller.build import site_from
from controller.clock import Clock
from controller.console.accounts import ROLES, AccountError, Accounts
from controller.console.line import Cancelled, Line, LoggedOut
from controller.console.presence import Presence
from controller.instance import Instance, InstanceError
from controller.site import Site
from controller.status import FRESH_NS
from controller.store import TYPED, Store

RENEW_S = 1.0
FRESH_S = FRESH_NS / 1e9  # older: control does not tick, and nothing of it is now
HISTORY_NAME = "history.sqlite"


def note(path: Path, run: int, wall_s: float, who: str, command: str, text: str) -> bool:
    """One row of a person's doing in the audit trail, on the disk when this returns; False where the disk takes nothing, which stops
    nobody.
    """
    try:
        store = Store(path, run)
        try:
            store.add_audit(wall_s, who, command, None, None, text)
        finally:
            store.close()
    except (OSError, sqlite3.Error, ValueError):
        return False
    return True


class Refused(Exception):
    """A command that was not carried out; the message says why and what would do."""


class Context:
    """One session's view of one site."""

    def __init__(self, site_name: str, line: Line, clock: Clock, accounts: Accounts, presence: Presence) -> None:
        self.site_name, self.line, self.clock, self.accounts, self.presence = site_name, line, clock, accounts, presence
        self.state = instances.state_directory(site_name)
        self.instance: Instance | None = None
        self.image: Any = None  # read-only; None while nothing runs
        self.site: Site | None = None
        self.why_not = ""  # why there is no instance
        self.keeper: Keeper | None = None
        self.given: int | None = None  # id of the last hold or setpoint of this log-in: ours, also where no trail tells
        self.standing: dict[str, str] = {}  # faults that this person has been told of: id -> text
        self.trial: tuple[int, int] | None = None  # id of our settings on trial, and when it goes back by itself
        self.trial_values: dict[str, Any] = {}
        self._scribe = Scribe(self)
        self._scribe.start()
        self._key: tuple[int, int] | None = None

    @property
    def user(self) -> str:
        """Who is logged in."""
        return self.presence.own.user

    def role(self) -> str | None:
        """The role of now, not that of the log-in; None where the account is gone. While its file is damaged, whoever is here goes on
        as what they logged in.
        """
        try:
            return self.accounts.role(self.user)
        except AccountError:
            return self.presence.own.role

    @property
    def author(self) -> str:
        """For the audit trail: who, and on which line."""
        return f"{self.user} on {self.presence.own.line}"

    # ---- the site

    def refresh(self) -> None:
        """The instance, image and settings of this moment."""
        try:
            found = instances.find(self.site_name)
        except InstanceError as e:
            self.instance, self.image, self.site, self._key, self.why_not = None, None, None, None, str(e)
            return
        self.instance = found
        key = (found.run, found.image_fd)
        try:
            if key != self._key:
                self.image = instances.open_image(found, writable=False)
                self._key = key
            self.site = site_from(Path(found.directory) / "site.json")
        except (InstanceError, OSError, ValueError, KeyError) as e:
            self.instance, self.image, self.site, self._key, self.why_not = None, None, None, None, str(e)

    def running(self) -> tuple[Instance, Any, Site]:
        """Instance, image and site; Refused in words where nothing runs."""
        if self.instance is None or self.site is None:
            raise Refused(f"nothing runs: {self.why_not}")
        return self.instance, self.image, self.site

    def writable(self) -> tuple[Instance, Any, Site]:
        """As `running`, with an image that may be written. Raises InstanceError besides."""
        instance, _, site = self.running()
        return instance, instances.open_image(instance, writable=True), site

    def latest(self) -> dict[str, Any]:
        """The newest tick; Refused before the first."""
        _, image, _ = self.running()
        row = image.latest()
        if row is None:
            raise Refused("control has not made its first tick yet: `log` tells what it waits for")
        return dict(row)

    @property
    def store_path(self) -> Path:
        """History and audit trail: those of the run, or of the site's last one."""
        instance = self.instance
        return Path(instance.store) if instance is not None else self.state / HISTORY_NAME

    @contextlib.contextmanager
    def store(self) -> Any:
        """The store, for reading; Refused where there is none."""
        instance = self.instance
        try:
            opened = Store(self.store_path, instance.run if instance else 0, readonly=True)
            if opened.db is None:
                opened.close()
                raise OSError(f"{self.store_path}: {opened.error}")
        except (OSError, sqlite3.Error) as e:
            raise Refused(f"{e}: there is no history here yet, or its disk is gone") from None
        try:
            yield opened
        except sqlite3.Error as e:
            raise Refused(f"{self.store_path}: {e}: history and audit trail cannot be read; power is not affected") from None
        finally:
            opened.close()

    def silent(self) -> str:
        """Why what the image shows is not now; empty: it is."""
        if self.instance is None:
            return "NOTHING RUNS"
        if not instances.alive(self.instance.control_pid):
            return "CONTROL DOES NOT RUN"
        row = self.image.latest()
        if row is None:
            return "control has not ticked yet"
        old_s = (self.clock.monotonic_ns() - row["inp"]["t_ns"]) / 1e9
        return f"CONTROL DOES NOT TICK, the numbers are {old_s:.1f} s old" if old_s > FRESH_S else ""

    # ---- the person

    def confirm(self, question: str) -> None:
        """Goes on only after "yes"; Refused otherwise."""
        if self.line.read_line(f"{question} [yes/no] ").strip().lower() not in ("yes", "y"):
            raise Refused("not done")

    def page(self, lines: Iterable[str]) -> None:
        """Prints; on a terminal that knows its height, a screenful at a time (space: the next, Enter: a line, q: enough)."""
        shown, room = 0, self.line.height - 2 if self.line.vt else 0
        for text in lines:
            for part in (p for whole in text.split("\n") for p in wrap(whole, self.line.width)):
                if room and shown >= room:
                    more = self._more()
                    if not more:
                        return
                    shown = 0 if more > 1 else room - 1
                self.line.say(part)
                shown += 1

    def _more(self) -> int:
        """0: enough, 1: a line, 2: a screenful."""
        self.line.write("-- more: space, Enter; q ends --")
        try:
            while not (key := self.line.key(3600.0)):
                pass
        finally:
            self.line.write("\r" + " " * 33 + "\r")
        if key == "\x03":
            raise Cancelled
        return {"q": 0, "Q": 0, "\r": 1, "\n": 1}.get(key, 2)

    def news(self) -> Iterable[str]:
        """What a person should hear before the next prompt."""
        if self.keeper is not None and self.keeper.lost:
            why = self.keeper.lost
            self.drop()
            yield f"your setpoint is no longer in force: {why}"
        from controller.console import standing  # it works on a Context

        self.refresh()
        if self.keeper is not None and (self.instance is None or self.instance.run != self.keeper.run_number):
            self.drop()
            yield "the site has ended, or was started anew: your setpoint ended with it"
        if self.trial is not None and self.trial_left_s() <= 0:
            yield self._how_the_trial_ended(self.trial[0])
        if self.role() is None:
            self.line.say("this account has been removed")
            raise LoggedOut
        now = standing.now_standing(self)
        for fault, text in now.items():
            if fault not in self.standing:
                yield from wrap(f"ALARM {fault}: {text}; `alarms` tells what to do", self.line.width)
        for fault in self.standing:
            if fault not in now:
                yield f"{fault} is gone"
        self.standing = now

    def _how_the_trial_ended(self, number: int) -> str:
        """By the parent's word, which alone knows: somebody else may have confirmed it."""
        wanted, self.trial = self.trial_values, None
        got: dict[str, Any] = {}
        with contextlib.suppress(InstanceError):
            if self.instance is not None:
                got = desk.ask(self.instance, {"do": "settings"})
        if not got:
            return "your settings on trial: the parent does not answer, so nobody can tell whether they are still in force"
        pending = got.get("pending")
        if pending and pending["id"] == number:
            self.trial = (number, self.clock.monotonic_ns() + int((float(pending["left_s"]) + 1.0) * 1e9))
            return f"your settings are still on trial, for another {pending['left_s']:.0f} s"
        values = got.get("values", {})
        if wanted and all(values.get(key) == value for key, value in wanted.items()):
            return "your settings are no longer on trial: somebody has confirmed them"
        return "the settings on trial were not confirmed in time: the old values are back"

    def ends_with_line(self) -> str:
        """When a log-in on this line ends that nobody ends; in words."""
        if self.line.wire.tells_loss:
            return "at once when this line is lost"
        return f"{self.line.idle_s / 60:g} min after the last key: this cable shows no carrier, so nobody notices when it is pulled"

    def trial_left_s(self) -> float:
        """Until our settings on trial go back."""
        return 0.0 if self.trial is None else max(0.0, (self.trial[1] - self.clock.monotonic_ns()) / 1e9)

    # ---- the audit trail

    def audit(self, command: str, text: str) -> bool:
        """A command with its author, as `note`."""
        instance = self.instance  # another thread may find that it has gone
        path, run = (Path(instance.store), instance.run) if instance is not None else (self.state / HISTORY_NAME, 0)
        return note(path, run, self.clock.wall_s(), self.author, command, text)

    def typed(self, text: str, *, refused: bool = False) -> None:
        """What was typed, for the trail; later, so that nobody waits for a disk to see a prompt."""
        shown = "".join(c if c.isprintable() else "?" for c in text[:200])
        self._scribe.note(shown + (" (refused)" if refused else ""))

    def close(self) -> None:
        """Writes what is still to be written."""
        self._scribe.end()

    # ---- what ends with the log-in

    def keep(self, image: Any, number: int, least_role: str) -> None:
        """Renews the setpoint of that id until log-out, or until the account has that role no more."""

        def may() -> bool:
            role = self.role()
            return role is not None and ROLES.index(role) >= ROLES.index(least_role)

        self.drop()
        self.keeper = Keeper(image, number, self.clock, self.instance.run if self.instance is not None else 0, may)
        self.keeper.start()

    def drop(self) -> None:
        """Renews nothing any more."""
        if self.keeper is not None:
            self.keeper.end()
            self.keeper = None
            self.presence.holds("")

    def end(self) -> None:
        """Log-out, whatever the reason: a setpoint given here ends now, not three seconds later."""
        keeper = self.keeper
        self.drop()
        if keeper is None:
            return
        self.refresh()
        with contextlib.suppress(Refused, InstanceError):
            instance, image, _ = self.writable()
            now = operate.word(image, self.clock)
            if now is not None and now.id == keeper.number:
                operate.release(instance, image, self.clock, f"{self.author} (log-out)")


class Keeper(threading.Thread):
    """Renews one setpoint once a second; ends by itself when another one stands in its place, or who gave it may no more (`may`).
    `lost`: why, empty while it is renewed.
    """

    def __init__(self, image: Any, number: int, clock: Clock, run: int = 0, may: Callable[[], bool] = lambda: True) -> None:
        super().__init__(name="setpoint", daemon=True)
        self.image, self.number, self.clock, self.run_number, self.may = image, number, clock, run, may
        self.lost = ""
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """The thread's work."""
        while not self.lost and not self._stop_asked.wait(RENEW_S):
            with contextlib.suppress(InstanceError):  # somebody else is writing: the next second
                self.renew()

    def renew(self) -> None:
        """Three more seconds, or `lost`. Raises InstanceError."""
        if not self.may():
            self.lost = "this account may give none any more"
        elif not operate.renew(self.image, self.number, self.clock):
            self.lost = "another one took its place, or control was away for longer than its lease"

    def end(self) -> None:
        """Renews no more."""
        self._stop_asked.set()
        self.join(2 * RENEW_S)


class Scribe(threading.Thread):
    """Writes typed lines into the audit trail in its own time: at most 100 wait, what is more is counted."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(name="scribe", daemon=True)
        self.ctx = ctx
        self._rows: queue.Queue[str | None] = queue.Queue(100)
        self._lost = 0

    def note(self, text: str) -> None:
        """One line."""
        try:
            self._rows.put_nowait(text)
        except queue.Full:
            self._lost += 1

    def run(self) -> None:
        """The thread's work."""
        while (text := self._rows.get()) is not None:
            lost, self._lost = self._lost, 0
            more = f" (and {lost} lines that the disk was too slow for)" if lost else ""
            with contextlib.suppress(Exception):  # a row that cannot be written ends no trail
                self.ctx.audit(TYPED, text + more)

    def end(self) -> None:
        """After the last line, at most a few seconds later."""
        with contextlib.suppress(queue.Full):
            self._rows.put(None, timeout=1.0)
        self.join(5.0)


def wrap(text: str, width: int) -> Sequence[str]:
    """Lines of at most `width` - 1 characters, continued under their own indent."""
    room = max(20, width - 1)
    if len(text) <= room:
        return [text]
    indent = " " * min(len(text) - len(text.lstrip()) + 2, 24)
    return textwrap.wrap(text, room, subsequent_indent=indent, drop_whitespace=True, break_on_hyphens=False, tabsize=2,
                         replace_whitespace=False) or [""]  # fmt: skip
