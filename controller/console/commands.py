"""The commands of the console: one table of name, least role, words and function. Help, completion, the matrix of roles and
the documentation are read from it.

A line is a command as a whole or not at all: it is parsed to its end before anything happens.
"""

from __future__ import annotations

import contextlib
import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from controller.console.accounts import ROLES, AccountError
from controller.console.context import Context, Refused
from controller.instance import InstanceError
from controller.problems import SiteError
from controller.trends import TrendError

MAX_WORDS = 24
SECRETIVE = ("passwd", "user")  # a password that is typed one question too early stands behind these


@dataclass(frozen=True)
class Command:
    """One row. `name` may be two words; the longest name that a line begins with counts."""

    name: str
    role: str  # the least role that may
    usage: str  # what follows the name
    text: str
    run: Callable[[Context, list[str]], Iterable[str] | None]
    most: int = 0  # words that may follow
    least: int = 0
    complete: Callable[[Context, list[str]], Iterable[str]] | None = None  # candidates for the next word
    group: str = "look"

    @property
    def line(self) -> str:
        """As a person types it."""
        return f"{self.name} {self.usage}".rstrip()


def _own(words: list[str]) -> list[str]:
    """The words, without the program's name that a hand from the shell puts before them."""
    return words[1:] if len(words) > 1 and words[0].lower() == "ballast" else words


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What the layers below refuse is a refusal of the command, in their words."""
    try:
        yield
    except (InstanceError, AccountError, SiteError, TrendError) as e:
        raise Refused(str(e)) from None
    except OSError as e:
        if e.filename is None:  # no file's: a fault of ours
            raise
        raise Refused(f"{e.filename}: {e.strerror}") from None


class Table:
    """All commands by name."""

    def __init__(self, rows: Iterable[Command]) -> None:
        self.rows = {row.name: row for row in rows}

    def may(self, role: str, command: Command) -> bool:
        """Has this role enough rank?"""
        return ROLES.index(role) >= ROLES.index(command.role)

    def parse(self, text: str) -> tuple[Command, list[str]] | None:
        """The command and its words; None for an empty line. Raises Refused, and nothing has happened then."""
        if not text.strip():
            return None
        if not text.isprintable():
            raise Refused("the line holds characters that nobody types: not done; type it again")
        try:
            words = ["help"] if text.strip() == "?" else _own(shlex.split(text))
        except ValueError as e:
            why = "a quote (' or \") is opened and not closed" if "quot" in str(e) else "a backslash stands at the end"
            raise Refused(f"{why}: not done") from None
        if len(words) > MAX_WORDS:
            raise Refused(f"{len(words)} words are no command; at most {MAX_WORDS}")
        for count in (2, 1):
            row = self.rows.get(" ".join(words[:count]).lower())
            if row is not None and len(words) >= count:
                rest = words[count:]
                if not row.least <= len(rest) <= row.most:
                    raise Refused(self._usage(row))
                return row, rest
        raise Refused(self._unknown(words))

    def _usage(self, row: Command) -> str:
        """All ways to say it: `limit` alone is a command, and so is each `limit ...`."""
        ways = [row.line] if " " in row.name else [other.line for name, other in self.rows.items() if name.partition(" ")[0] == row.name]
        return f"usage: {ways[0]}" if len(ways) == 1 else "\n".join(["usage, one of:", *(f"  {way}" for way in ways)])

    def written(self, text: str) -> str:
        """What trail, log and history may hold of a typed line: of a command about accounts, or what looks like one mistyped, the
        first word alone.
        """
        words = _own(text.split())
        if len(words) < 2:
            return text
        first = words[0].lower()
        known = {name.partition(" ")[0] for name in self.rows} - set(SECRETIVE)
        if first not in known and difflib.get_close_matches(first, (*SECRETIVE, "password"), n=1, cutoff=0.5):
            return f"{words[0]} ..."
        return text

    def _unknown(self, words: list[str]) -> str:
        first = words[0].lower()
        below = sorted(name for name in self.rows if name.startswith(first + " "))
        if below:
            return f"{first} what? {', '.join(name.partition(' ')[2] for name in below)}"
        near = difflib.get_close_matches(first, {name.partition(" ")[0] for name in self.rows}, n=2, cutoff=0.6)
        return f"{words[0][:20]} is no command" + (f"; did you mean {' or '.join(near)}?" if near else "; `help` lists them")

    def run(self, ctx: Context, text: str) -> None:
        """One line of a person. Raises Refused; the role is that of now, not that of the log-in."""
        got = self.parse(text)
        if got is None:
            return
        row, words = got
        role = ctx.role()
        if role is None:
            raise Refused(f"the account {ctx.user} is gone; log out")
        if not self.may(role, row):
            raise Refused(f"`{row.name}` needs the role {row.role}; {ctx.user} is {role}")
        ctx.refresh()
        with _refusing():
            lines = row.run(ctx, words)
            if lines is not None:
                ctx.page(lines)

    def candidates(self, ctx: Context, before: str) -> list[str]:
        """What may follow the whole words of `before`, for completion."""
        words = _own([*before.split(), ""])[:-1]
        role = ctx.presence.own.role
        rows = [row for row in self.rows.values() if self.may(role, row)]
        found = {
            row.name.split()[len(words)] for row in rows if row.name.split()[: len(words)] == words and len(row.name.split()) > len(words)
        }
        for count in (2, 1):
            row = self.rows.get(" ".join(words[:count]))
            if row is not None and len(words) >= count and row.complete is not None and self.may(role, row):
                ctx.refresh()
                with contextlib.suppress(Refused), _refusing():  # whoever is typing has no use for it
                    found |= set(row.complete(ctx, words[count:]))
                break
        return sorted(found)


def make_table() -> Table:
    """The table with every row."""
    from controller.console import act, change, look

    table = Table([*look.ROWS, *act.ROWS, *change.ROWS])

    def helps(ctx: Context, words: list[str]) -> Iterable[str]:
        return help_lines(table, ctx, " ".join(words).lower())

    def names(ctx: Context, words: list[str]) -> Iterable[str]:
        return [] if words else {name.partition(" ")[0] for name in table.rows}

    table.rows["help"] = Command("help", "viewer", "[COMMAND]", "this list, or more about one command", helps, 2, complete=names)
    return table


GROUPS = {"look": "to look", "act": "to act", "change": "to change", "session": "this log-in"}


def help_lines(table: Table, ctx: Context, about: str) -> Iterable[str]:
    """The list, or the rows of one command."""
    if about:
        rows = [row for name, row in table.rows.items() if name == about or name.startswith(about + " ")]
        if not rows:
            raise Refused(f"there is no command {about}; `help` lists them")
        for row in rows:
            yield row.line
            yield f"    {row.text} (role {row.role})"
        return
    role = ctx.presence.own.role
    for group, title in GROUPS.items():
        rows = [row for row in table.rows.values() if row.group == group and table.may(role, row)]
        if rows:
            yield f"{title}:"
            for row in rows:
                yield f"  {row.line:<30} {row.text}" if len(row.line) <= 30 else f"  {row.line}\n{'':33}{row.text}"
    hidden = sum(not table.may(role, row) for row in table.rows.values())
    if hidden:
        yield f"{hidden} more commands need another role than {role}"
    yield "Tab completes; Up brings back; Ctrl-C ends what runs; Ctrl-D logs out"


def markdown(table: Table) -> str:
    """The table of docs/console.md."""
    lines = ["| command | least role | does |", "| --- | --- | --- |"]
    for group in GROUPS:
        for row in table.rows.values():
            if row.group == group:
                usage, text = (part.replace("|", "\\|") for part in (row.line, row.text))
                lines.append(f"| `{usage}` | {row.role} | {text} |")
    return "\n".join(lines) + "\n"
