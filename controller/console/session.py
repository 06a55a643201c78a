"""A session on a line: log-in, prompt, one command after the other, log-out. Whatever happens on the line, it ends with the
operator's setpoint of this log-in taken back and nothing half done.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from _core import image as core
from controller import instance as instances
from controller.clock import Clock
from controller.console import look
from controller.console.accounts import AccountError, Accounts, wait_words
from controller.console.commands import Command, Table, make_table
from controller.console.context import HISTORY_NAME, Context, Refused, note
from controller.console.line import Cancelled, Gone, Idle, Line, LoggedOut, Noise, Wire
from controller.console.presence import Presence
from controller.console.prompt import Prompt
from controller.console.standing import now_standing
from controller.process import say

IDLE_S = 600.0
LOGIN_IDLE_S = 60.0
FLOODS = 20  # thrown away in one log-in before the line counts as broken


def _exit(ctx: Context, words: list[str]) -> None:
    raise LoggedOut


def _terminal(ctx: Context, words: list[str]) -> list[str]:
    """What this terminal can do, by word of a person."""
    line = ctx.line
    for word in words:
        if word not in ("plain", "vt100", "ascii", "utf8", "mono", "colour", "probe"):
            raise Refused(f"{word}: one of plain, vt100, ascii, utf8, mono, colour, probe")
    for word in words:
        if word == "probe":
            line.probe()
        elif word in ("plain", "vt100"):
            line.vt = word == "vt100"
        elif word in ("ascii", "utf8"):
            line.utf8 = word == "utf8"
        else:
            line.colour = word == "colour"
    kind = "VT100" if line.vt else "plain lines"
    return [f"{kind}, {line.width} x {line.height}, {'UTF-8' if line.utf8 else 'ASCII'}, {'colour' if line.colour else 'no colour'}"]


ROWS = (
    Command("terminal", "viewer", "[WORD...]", "plain|vt100 ascii|utf8 mono|colour, or probe", _terminal, 4, group="session"),
    Command("exit", "viewer", "", "log out (also Ctrl-D)", _exit, group="session"),
    Command("logout", "viewer", "", "log out", _exit, group="session"),
)


def table() -> Table:
    """Every command, with those of the session."""
    made = make_table()
    for row in ROWS:
        made.rows[row.name] = row
    return made


class Console:
    """Sessions on one wire, one after the other, until it is gone."""

    def __init__(self, wire: Wire, site_name: str, clock: Clock, idle_s: float = IDLE_S, *, knock: bool = True) -> None:
        self.line = Line(wire, clock)
        self.site_name, self.clock, self.idle_s, self.knock = site_name, clock, idle_s, knock
        self.accounts = Accounts(instances.state_directory(site_name))
        self.table = table()

    def run(self, *, once: bool = False) -> None:
        """Until the line is gone (raises Gone); `once`: until the first log-out, or Ctrl-C at the log-in."""
        while True:
            presence: Presence | None = None
            try:
                if self.knock:
                    self._wait_for_somebody()
                self.line.probe()
                while (presence := self._log_in()) is None:
                    pass
                self._session(presence)
            except Idle:
                self.line.say("\nnobody typed" + (": logged out" if presence is not None else ""))
            except (Noise, Cancelled, LoggedOut):
                pass
            except Gone:
                raise
            except Exception as e:
                # The line belongs to the person in front of it: one more session, whatever ended this one.
                say("console", f"a session ended by {type(e).__name__}: {e}")
                self.line.say(f"\nthis session failed inside ballast ({type(e).__name__}); log in again, and please report it")
            if once:
                return

    def _wait_for_somebody(self) -> None:
        """Enter on a silent line, and no other key: a byte of noise asks nobody for a name. The line says once what it is."""
        self.line.idle_s = 0.0
        self.line.say(f"\nballast {self.site_name}. Press Enter.")
        while not any(byte in b"\r\n" for byte in self.line.read(3600.0)):
            pass

    # ---- log-in

    def _log_in(self) -> Presence | None:
        line = self.line
        line.idle_s = LOGIN_IDLE_S
        try:
            if self.accounts.empty():
                return self._first_account()
            line.say(f"\nballast, site {self.site_name}")
            name = line.read_line("user: ").strip().lower()
            if not name:
                return None
            password = line.read_line("password: ", mask=True)
            wall_s = self.clock.wall_s()
            wait_s = self.accounts.wait_s(name, line.wire.name, wall_s)
            role = self.accounts.log_in(name, password, line.wire.name, wall_s) if wait_s <= 0 else None
            known = self.accounts.role(name) is not None
        except AccountError as e:
            line.say(str(e))
            return None
        if role is None:
            left_s = self.accounts.wait_s(name, line.wire.name, self.clock.wall_s())
            line.say("user or password is wrong" if wait_s <= 0 else "too many wrong passwords")
            if wait_s <= 0:
                self._note_failure(f"user {name}" if known else "no such user")
            if left_s > 0:
                line.say(wait_words(left_s))
            return None
        return self._presence(name, role)

    def _note_failure(self, who: str) -> None:
        """Into the audit trail; what waits for its delay is not tried, and not noted. A name that nobody has may be a password that
        was typed one question too early: it is not written down.
        """
        try:
            path = Path(instances.find(self.site_name).store)
        except instances.InstanceError:
            path = instances.state_directory(self.site_name) / HISTORY_NAME
        note(path, 0, self.clock.wall_s(), f"somebody on {self.line.wire.name}", "log-in refused", who)

    def _first_account(self) -> Presence | None:
        line = self.line
        line.say(f"\nballast, site {self.site_name}: nobody has an account here yet.")
        line.say("Make the first one, an engineer's. There is no default password, now or later.")
        name = line.read_line("user name: ").strip().lower()
        if not name:
            return None
        password = line.read_line("password: ", mask=True)
        if line.read_line("once more: ", mask=True) != password:
            line.say("the two differ: nothing was made")
            return None
        self.accounts.add(name, "engineer", password, first=True)
        line.say(f"{name} is an engineer here; `user add` makes the others")
        return self._presence(name, "engineer")

    def _presence(self, name: str, role: str) -> Presence:
        state = instances.state_directory(self.site_name)
        return Presence(state, name, role, self.line.wire.name, self.clock.wall_s())

    # ---- the session

    def _session(self, presence: Presence) -> None:
        """From log-in to log-out. Raises Gone."""
        line = self.line
        line.idle_s = self.idle_s
        ctx = Context(self.site_name, line, self.clock, self.accounts, presence)
        prompt = Prompt(
            line,
            lambda before: self.table.candidates(ctx, before),
            ctx.state / f"history-{ctx.user}",
            ctx.news,
            lambda text: self.table.written(text) == text,
        )
        why = "log-out"
        ctx.audit("log-in", presence.own.role)
        try:
            ctx.refresh()
            ctx.standing = now_standing(ctx)
            self._greet(ctx)
            self._loop(ctx, prompt)
        except LoggedOut:
            line.say("logged out")
        except Idle:
            why = "idle"
            raise
        except Gone as e:
            why = f"line lost: {e}"
            raise
        finally:
            with contextlib.ExitStack() as stack:  # each of them, whatever the others do
                stack.callback(presence.close)
                stack.callback(ctx.close)
                stack.callback(ctx.audit, "log-out", why)
                stack.callback(ctx.end)

    def _greet(self, ctx: Context) -> None:
        for text in look.banner(ctx):
            ctx.page([text])
        for s in ctx.presence.others():
            ctx.page([f"also here: {s.user} ({s.role}) on {s.line}" + (f", holds {s.holds}" if s.holds else "")])
        ctx.page([f"{ctx.user}, {ctx.presence.own.role}. `why` explains the battery's power, `help` lists the commands."])

    def _loop(self, ctx: Context, prompt: Prompt) -> None:
        floods = 0
        while True:
            for text in ctx.news():
                ctx.line.say(text)
            try:
                text = prompt.read(self._prompt(ctx))
                self.one(ctx, text)
            except Cancelled:
                continue
            except Noise as e:
                floods += 1
                ctx.line.say(f"\n{e.count} bytes came at once and were thrown away; what was being typed is forgotten")
                ctx.audit("noise", f"{e.count} bytes thrown away")
                if floods >= FLOODS:
                    ctx.line.say("this line is noise: logged out")
                    raise LoggedOut from None

    def _prompt(self, ctx: Context) -> str:
        """Site and mode, so that nobody types into another site than they think."""
        ctx.refresh()
        row = ctx.image.latest() if ctx.image is not None else None
        mode = core.MODE_NAMES[row["out"]["mode"]] if row is not None else "not running"
        if row is not None and ctx.silent():
            mode = "NO CONTROL"
        trial = f" {ctx.trial_left_s():.0f} s to confirm" if ctx.trial is not None else ""
        return f"{self.site_name} {mode}{trial}> "

    def one(self, ctx: Context, text: str) -> None:
        """One command of a person, with its place in the audit trail."""
        if not text.strip():
            return
        shown = self.table.written(text)
        try:
            self.table.run(ctx, text)
            ctx.typed(shown)
        except Refused as e:
            ctx.page(str(e).split("\n"))
            ctx.typed(shown, refused=True)
        except (Gone, Idle, Noise, Cancelled, LoggedOut):
            ctx.typed(shown)
            raise
        except Exception as e:
            # A fault of ours must not take the console from the person who needs it now; it is told, and in the log.
            say("console", f"`{shown[:80]}` failed: {type(e).__name__}: {e}")
            with contextlib.suppress(Gone):
                ctx.line.say(f"this command failed inside ballast ({type(e).__name__}: {e}); nothing else is affected. Please report it")
            ctx.typed(shown, refused=True)
