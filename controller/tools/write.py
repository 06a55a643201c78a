"""`ballast probe --write`: one register, by an engineer of the site, written down before and after.

A command has one writer. Control holds the ports of a running site, so nothing is written there; and where a device can be
reached by another port too, the registers that control commands are refused as long as a site runs on this machine.
"""

from __future__ import annotations

import argparse
import getpass
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hal.codec import decode_words, encode_words

from controller import instance
from controller.clock import Clock
from controller.console.accounts import AccountError, Accounts
from controller.console.context import HISTORY_NAME
from controller.operate import author
from controller.problems import Problem, SiteError
from controller.process import EXIT_FAILED, EXIT_OK
from controller.store import Store
from controller.tools import ports, probe, values
from hal.rows import Encode, Field
from hal.sunspec import TYPES
from hal.wire import BlockingLine, NoAnswer

LINE = "probe"  # of the lock-out: names that do not exist lock this line, not the cabinet's console
COMMAND_NAME = "probe"  # in the audit trail


@dataclass(frozen=True)
class Goal:
    """The registers that are to hold a value; `field` decodes them, `words` encode it."""

    name: str
    field: Field
    words: tuple[int, ...]
    unit: str


def main(line: BlockingLine, target: probe.Target, register: str | None, args: argparse.Namespace, clock: Clock) -> int:
    """Shows what would change, asks who answers for it, writes, reads back. Raises SiteError, Busy, NoAnswer, SunSpecError."""
    site_name = target.site.name if target.site is not None else args.site
    if not site_name:
        remedy = "--file SITE.toml, or --site NAME beside --port: accounts and audit trail belong to a site"
        raise SiteError([Problem("", "--write", args.write, "needs a site whose engineer answers for it", remedy)])
    if not register:
        remedy = "a signal, a SunSpec point such as 704.WSetRvrtTms, or a number such as 3@211"
        raise SiteError([Problem("", "REGISTER", None, "is missing", remedy)])
    goal = _goal(line, target, register, args)
    _refuse_command(target, goal)
    before = _read(line, target.unit, goal)
    what = f"{target.place} {goal.field.fc}@{goal.field.addr} {goal.name}: {before} -> {_text(goal, list(goal.words))}"
    print(what)
    who = _engineer(site_name, clock)
    trail = _Trail(site_name, who, clock)
    trail.note(f"writes {what}")
    try:
        line.write(target.unit, goal.field.addr, goal.words, fc=6 if args.single and len(goal.words) == 1 else 16)
    except NoAnswer as e:
        # What was not acknowledged was perhaps not done.
        after = _read(line, target.unit, goal)
        trail.note(f"{target.place} {goal.name}: not acknowledged ({e}); reads {after}")
        print(f"not acknowledged: {e}; it reads {after} now")
        return EXIT_FAILED
    after = _read(line, target.unit, goal)
    same = after == _text(goal, list(goal.words))
    trail.note(f"{target.place} {goal.name}: reads {after}" + ("" if same else ", NOT what was written"))
    print(f"reads {after}" + ("" if same else ": not what was written (a device may limit it, or take it only in another state)"))
    return EXIT_OK if same else EXIT_FAILED


def _text(goal: Goal, words: list[int]) -> str:
    x = decode_words(goal.field, words)
    value = f"{x:.9g} {goal.unit}".rstrip() if math.isfinite(x) else "-"
    return f"{value} ({values.hex_words(words)})"


def _read(line: BlockingLine, unit: int, goal: Goal) -> str:
    """What the registers hold, in words; a device may not let them be read."""
    try:
        return _text(goal, line(unit, goal.field.fc, goal.field.addr, goal.field.words))
    except NoAnswer as e:
        return f"unreadable ({e})"


# ---------------------------------------------------------------- what is written


def _goal(line: BlockingLine, target: probe.Target, register: str, args: argparse.Namespace) -> Goal:
    try:
        value = float(int(args.write, 0)) if args.write.lower().startswith(("0x", "-0x")) else float(args.write)
    except ValueError:
        raise SiteError([Problem("", "--write", args.write, "is no number", "in the unit that `ballast probe` shows")]) from None
    field, name, unit = _field(line, target, register, args)
    problems = []
    if field.fc != 3:
        problems.append(Problem("", "REGISTER", register, "is an input register (function 4): nobody can write it", "a holding register"))
    if field.mask:
        problems.append(
            Problem("", "REGISTER", register, "is some bits of a register; the others would be lost", f"the whole register: 3@{field.addr}")
        )
    if problems:
        raise SiteError(problems)
    raw = next((float(r) for r, v in field.map if v == value), value)
    plain = Encode(field.addr, field.type, word_order=field.word_order, byte_order=field.byte_order)
    scaled = Encode(
        field.addr,
        field.type,
        word_order=field.word_order,
        byte_order=field.byte_order,
        scale=field.scale,
        offset=field.offset,
        sign=field.sign,
    )
    words = encode_words(plain if field.map else scaled, raw) if math.isfinite(raw) else None
    got = math.nan if words is None else decode_words(field, words)
    if words is None or not abs(got - value) <= 1e-3 * field.scale + 1e-6 * abs(value):
        why = "does not fit: the register would hold " + (f"{got:.9g}" if math.isfinite(got) else "nothing")
        raise SiteError(
            [Problem("", "--write", args.write, why, f"a value of {field.type}, steps of {field.scale:g}, within the profile's range")]
        )
    return Goal(name, field, tuple(words), unit)


def _field(line: BlockingLine, target: probe.Target, register: str, args: argparse.Namespace) -> tuple[Field, str, str]:
    """(how the registers decode, what they are called, unit)."""
    place = probe.parse_place(register, args)
    if place is not None:
        order = "little" if place.little else "big"
        return Field(values.ANY, place.addr, place.type or "u16", place.fc, word_order=order), "register", ""
    if target.map is not None:
        field = probe.field_of(target.map, register)
        if field is None:
            known = ", ".join(f.signal for f in target.map.fields)
            raise SiteError(
                [Problem("", "REGISTER", register, "is no signal of the profile", f"one of {known}, or a number such as 3@211")]
            )
        return field, register, values.unit_of(register)
    number, _, point = register.partition(".")
    scan = values.scan_sunspec(line, target.unit)
    model = scan.models.get(int(number)) if number.isdecimal() else None
    p = model.points.get(point) if model is not None else None
    if model is None or p is None or p.type not in TYPES or p.offset + p.size > len(model.words):
        remedy = "MODEL.POINT such as 704.WSetRvrtTms, as `ballast probe` lists them, or a number such as 3@211"
        raise SiteError([Problem("", "REGISTER", register, "is no point with a number of this device", remedy)])
    return Field(values.ANY, model.addr + p.offset, TYPES[p.type], 3, scale=model.scale(point)), register, p.units


def _refuse_command(target: probe.Target, goal: Goal) -> None:
    """Raises Busy for registers that the control of a running site writes, at whatever port the device is reached."""
    mine = set(range(goal.field.addr, goal.field.addr + goal.field.words))
    for found, _ in ports.running_sites():
        for taken, purpose in _commanded(found):
            if mine & taken:
                raise ports.Busy(
                    f"{goal.name} at {goal.field.addr} is where site {found.site}, which is running (process {found.pid}), "
                    f"writes its {purpose}: "
                    "a command has one writer. Use `ballast hold`, or stop the site first"
                )


def _commanded(found: instance.Instance) -> Iterator[tuple[set[int], str]]:
    for device in ports.compiled(found):
        for w in device.writes:
            yield set(range(w.addr, w.addr + w.count)), w.purpose


# ---------------------------------------------------------------- who answers for it


def _engineer(site_name: str, clock: Clock) -> str:
    """The name of an engineer who has given the password. Raises SiteError."""
    accounts = Accounts(instance.state_directory(site_name))
    try:
        if accounts.empty():
            raise _denied(site_name, "has no accounts yet", "`ballast console` makes the first engineer")
        name = input(f"engineer of site {site_name}: ").strip()
        if (wait_s := accounts.wait_s(name, LINE, clock.wall_s())) > 0:
            raise _denied(site_name, f"takes no log-in for another {wait_s:.0f} s, after wrong passwords", "wait")
        role = accounts.log_in(name, getpass.getpass("password: "), LINE, clock.wall_s())
    except AccountError as e:
        raise _denied(site_name, str(e), "see docs/console.md") from None
    except EOFError:
        raise _denied(site_name, "was told no name and password", "type them, or send them as two lines") from None
    if role != "engineer":
        why = "does not know that name and password" if role is None else f"knows {name} as {role}"
        raise _denied(site_name, why, "an engineer's account; nothing was written")
    return name


def _denied(site_name: str, why: str, remedy: str) -> SiteError:
    return SiteError([Problem("", "site", site_name, why, remedy)])


class _Trail:
    """The site's audit trail. A write that cannot be noted is not made: nothing here is urgent."""

    def __init__(self, site_name: str, who: str, clock: Clock) -> None:
        self.who, self.clock = f"{who} ({author()})", clock
        running = next((found for found, _ in ports.running_sites() if found.site == site_name), None)
        self.path = Path(running.store) if running is not None else instance.state_directory(site_name) / HISTORY_NAME
        self.run = running.run if running is not None else 0

    def note(self, text: str) -> None:
        """One row, on the disk when this returns. Raises SiteError."""
        try:
            store = Store(self.path, self.run)
            try:
                store.add_audit(self.clock.wall_s(), self.who, COMMAND_NAME, None, None, text)
            finally:
                store.close()
        except OSError as e:
            raise SiteError(
                [Problem(str(self.path), "", None, f"takes no row of the audit trail: {e}", "make room; nothing is written without it")]
            ) from None
