"""The commands that change what stays: settings (tried first, kept only when confirmed), accounts, processes, commissioning."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from controller import desk
from controller.console.accounts import ROLES, wait_words
from controller.console.commands import Command
from controller.console.context import Context, Refused, wrap
from controller.console.line import Cancelled, Idle, LoggedOut, Noise
from controller.console.trend import split_for
from controller.problems import Problem
from controller.settings import SETTINGS, range_text
from controller.shelves import view as shelves
from controller.walk import near

TRY_S = 60.0
MAX_LOADED, MOST_WRONG = 200, 10


def ask(ctx: Context, request: dict[str, Any]) -> dict[str, Any]:
    """The parent's answer. Raises Refused with its problems, one a line."""
    instance, _, _ = ctx.running()
    got = desk.ask(instance, request)
    if not got.get("ok"):
        raise Refused("\n".join(Problem(**p).line() for p in got.get("problems", ())) or "refused without a reason")
    return got


# ---------------------------------------------------------------- settings


def _shown(key: str, value: Any) -> str:
    row = SETTINGS.get(key)
    unit = row.unit if row is not None and row.unit not in ("", "1") else ""
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}".rstrip()


def get(ctx: Context, words: list[str]) -> Iterable[str]:
    """One setting with its range, or all that hold a word."""
    got = ask(ctx, {"do": "settings"})
    values = got["values"]
    word = words[0].lower() if words else ""
    exact = [key for key in values if key == word]
    found = exact or [key for key in values if word in key]
    if not found:
        raise Refused(f"no setting has {word!r} in its name; `settings dump` prints all")
    for key in found:
        row = SETTINGS.get(key)
        yield f"{key:<32} {_shown(key, values[key])}"
        if row is not None and len(found) <= 3:
            how = {"live": "acts at once", "restart": "control is started again", "start": "after `ballast run` was ended and begun again"}
            yield f"    {row.text}; {range_text(row)}; {how.get(row.how, row.how)}"
    yield from _pending(got)


def _pending(got: dict[str, Any]) -> Iterable[str]:
    if got.get("pending"):
        p = got["pending"]
        changes = ", ".join(f"{key} {_shown(key, old)} -> {_shown(key, new)}" for key, (old, new) in p["changes"].items())
        yield f"on trial by {p['who']}, another {p['left_s']:.0f} s: {changes}"


def put(ctx: Context, words: list[str]) -> Iterable[str]:
    """A trial: in force for 60 s unless confirmed."""
    words, for_s = split_for(words)
    seconds = TRY_S if for_s is None else for_s
    changes: dict[str, str] = {}
    if words and "=" not in words[0]:
        if len(words) < 2 or any("=" in word for word in words):
            raise Refused("write settings set KEY VALUE, or KEY=VALUE KEY=VALUE")
        words = [f"{words[0]}={' '.join(words[1:])}"]
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.strip() or not value.strip():
            raise Refused(f"{word}: write settings set KEY VALUE, or KEY=VALUE KEY=VALUE")
        changes[key.strip()] = value.strip()
    yield from _try(ctx, changes, seconds)


def _try(ctx: Context, changes: dict[str, str], seconds: float) -> Iterable[str]:
    got = ask(ctx, {"do": "try", "who": ctx.author, "changes": changes, "seconds": seconds})
    if not got["changes"]:
        yield "nothing differs from what is in force"
        return
    ctx.trial = (int(got["id"]), ctx.clock.monotonic_ns() + int(seconds * 1e9))  # first: whoever stops reading has it too
    ctx.trial_values = {key: new for key, (_, new) in got["changes"].items()}
    for key, (old, new) in got["changes"].items():
        yield f"{key}: {_shown(key, old)} -> {_shown(key, new)}"
    if got["how"] == "restart":
        yield "control is started again for it; a running PCS keeps its power meanwhile"
    yield f"on trial for {seconds:.0f} s. `settings confirm` keeps it; `settings back`, or nothing, brings the old values back"


def confirm(ctx: Context, words: list[str]) -> Iterable[str]:
    """Keeps what is on trial."""
    pending = ask(ctx, {"do": "settings"})["pending"]
    if not pending:
        raise Refused("nothing is on trial; a trial that was not confirmed in time has gone back already")
    if ctx.trial is None or ctx.trial[0] != pending["id"]:
        ctx.confirm(f"{pending['who']} tries this, not you. Keep it?")
    got = ask(ctx, {"do": "confirm", "who": ctx.author, "id": pending["id"]})
    ctx.trial = None
    yield f"kept; {got['note']}" if got.get("note") else "kept"


def back(ctx: Context, words: list[str]) -> Iterable[str]:
    """Ends a trial."""
    pending = ask(ctx, {"do": "settings"})["pending"]
    if not pending:
        raise Refused("nothing is on trial")
    ask(ctx, {"do": "back", "who": ctx.author, "id": pending["id"]})
    ctx.trial = None
    yield "the old values are back"


def diff(ctx: Context, words: list[str]) -> Iterable[str]:
    """What differs from the defaults, from the site file, and what is on trial."""
    got = ask(ctx, {"do": "settings"})
    count = 0
    for key, value in got["values"].items():
        row = SETTINGS.get(key)
        if row is not None and row.default is not None and value != row.default:
            count += 1
            yield f"{key:<32} {_shown(key, value)}   (default {_shown(key, row.default)})"
    yield f"{count} settings differ from their defaults; the file is {got['file']}"
    for key, (stands, now) in (got.get("running") or {}).items():
        yield f"not as in the file: {key} {_shown(key, stands)} -> {_shown(key, now)}"
    yield from _pending(got)


def dump(ctx: Context, words: list[str]) -> Iterable[str]:
    """Every setting as a line that `settings load` reads."""
    for key, value in ask(ctx, {"do": "settings"})["values"].items():
        text = f'"{value}"' if isinstance(value, str) else f"{value:.10g}" if isinstance(value, float) else str(value)
        yield f"{key} = {text}"


def save(ctx: Context, words: list[str]) -> Iterable[str]:
    """The settings in force as a site file."""
    got = ask(ctx, {"do": "save", "who": ctx.author, "path": words[0]})
    yield f"wrote {got['path']}" + ("; what is on trial stands in it" if got.get("trial") else "")


def load(ctx: Context, words: list[str]) -> Iterable[str]:
    """Lines `key = value`, pasted, as one trial: all of them or none."""
    ctx.line.say("paste lines such as `grid.import_limit_w = 440000`; a line with a dot alone ends it, Ctrl-C forgets it")
    changes, wrong = _judged(_pasted(ctx))
    if wrong:
        raise Refused("\n".join([*wrong[:MOST_WRONG], *(["and more"] if len(wrong) > MOST_WRONG else ()), "nothing was changed"]))
    before = ask(ctx, {"do": "settings"})["values"]
    changes = {k: v for k, v in changes.items() if k not in before or _differs(before[k], v)}
    if not changes:
        return ["nothing differs from what is in force"]
    return _try(ctx, changes, TRY_S)


def _pasted(ctx: Context) -> list[str]:
    """What comes before the dot. All of it is read before any of it is judged: the rest of a paste must not reach the prompt, where
    each line would be a command.
    """
    lines: list[str] = []
    while (text := ctx.line.read_line().strip()) != ".":
        if text and not text.startswith("#") and len(lines) <= MAX_LOADED:
            lines.append(text)
    return lines


def _judged(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """(settings as they were typed, what is wrong with them)."""
    changes: dict[str, str] = {}
    wrong = [f"more than {MAX_LOADED} lines"] if len(lines) > MAX_LOADED else []
    for text in lines:
        key, sign, value = text.partition("=")
        try:
            words = shlex.split(value, comments=True)
        except ValueError:
            wrong.append(f"{text[:60]!r}: a quote is opened and not closed")
            continue
        if not sign or not key.strip() or not words:
            wrong.append(f"{text[:60]!r} is no line `key = value`")
        else:
            changes[key.strip()] = " ".join(words)
    return changes, wrong


def _differs(before: Any, text: str) -> bool:
    try:
        return float(text) != float(before)
    except (TypeError, ValueError):
        return text != str(before)


def _keys(ctx: Context, words: list[str]) -> Iterable[str]:
    return [] if words else SETTINGS


# ---------------------------------------------------------------- accounts


def _new_password(ctx: Context, name: str) -> str:
    first = ctx.line.read_line(f"new password of {name}: ", mask=True)
    if ctx.line.read_line("once more: ", mask=True) != first:
        raise Refused("the two differ: nothing was changed")
    return first


def user_list(ctx: Context, words: list[str]) -> Iterable[str]:
    """Every account."""
    for name, role in ctx.accounts.users().items():
        yield f"{name:<20} {role}"


def user_add(ctx: Context, words: list[str]) -> Iterable[str]:
    """A new account."""
    name, role = words[0].lower(), words[1].lower()
    if role not in ROLES:
        raise Refused(f"{role} is no role: {', '.join(ROLES)}")
    password = _new_password(ctx, name)
    ctx.accounts.add(name, role, password)
    ctx.audit("user add", f"{name}, {role}")
    yield f"{name} may log in as {role}"


def user_remove(ctx: Context, words: list[str]) -> Iterable[str]:
    """An account less."""
    name = words[0].lower()
    ctx.accounts.remove(name)
    ctx.audit("user remove", name)
    yield f"{name} may log in no more; a session that stands may do nothing more, and a setpoint it gave ends"


def _prove(ctx: Context) -> None:
    """The old password, under the lock-out of a log-in: whoever sits down at an open session must not guess here faster than there."""
    old = ctx.line.read_line("old password: ", mask=True)
    line, wall_s = ctx.presence.own.line, ctx.clock.wall_s()
    if ctx.accounts.log_in(ctx.user, old, line, wall_s) is None:
        ctx.audit("passwd refused", "the old password was not given")
        left_s = ctx.accounts.wait_s(ctx.user, line, wall_s)
        raise Refused("that is not it: nothing was changed" + (f"; {wait_words(left_s)}" if left_s > 0 else ""))


def passwd(ctx: Context, words: list[str]) -> Iterable[str]:
    """One's own password; an engineer may name another account."""
    name = words[0].lower() if words else ctx.user
    if name != ctx.user and ctx.accounts.role(ctx.user) != "engineer":
        raise Refused("another's password needs the role engineer")
    if ctx.accounts.role(name) is None:
        raise Refused(f"there is no user {name}")
    if name == ctx.user:
        _prove(ctx)
    password = _new_password(ctx, name)
    ctx.accounts.set_password(name, password)
    ctx.audit("passwd", name)
    yield "changed"


# ---------------------------------------------------------------- processes, virtual cabinet, commissioning


def _restart(what: str) -> Any:
    def run(ctx: Context, words: list[str]) -> Iterable[str]:
        ctx.confirm(f"start {what} again now?")
        ask(ctx, {"do": "restart", "who": ctx.author, "what": what})
        yield f"{what} is started again" + ("; a running PCS keeps its power and is adopted" if what == "control" else "")

    return run


def plant(ctx: Context, words: list[str]) -> Iterable[str]:
    """A setting of the virtual cabinet: faults to try things on."""
    if not words:
        got = ask(ctx, {"do": "plant"})
        for key, value in got.get("params", {}).items():
            yield f"{key:<26} {value}"
        return
    if len(words) != 2:
        raise Refused("usage: plant KEY VALUE, such as `plant bms.contactor_open 1`")
    try:
        value = float(words[1])
    except ValueError:
        raise Refused(f"{words[1]!r} is no number") from None
    ask(ctx, {"do": "plant", "who": ctx.author, "set": {words[0]: value}})
    yield f"the virtual cabinet: {words[0]} = {value:g}"


class _Talk:
    """The line of this session, as guided commissioning talks to it."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def say(self, text: str = "") -> None:
        for part in text.split("\n"):
            for line in wrap(part, self.ctx.line.width):
                self.ctx.line.say(line)

    def ask(self, question: str, *, choices: Any = (), default: str = "") -> str:
        from controller.commission.talk import Interrupted, choose

        hint = f" [{'/'.join(choices)}" + (f", Enter: {default}]" if default else "]") if choices else ""
        try:
            while True:
                self.say(f"{question}{hint}")
                got = self.ctx.line.read_line("> ").strip() or default
                if not choices or got in choices:
                    return got
                found = choose(got, choices)
                if found is not None:
                    return found
                self.say(f"one of {', '.join(choices)}")
        except (Cancelled, LoggedOut) as e:
            raise Interrupted("Ctrl-C" if isinstance(e, Cancelled) else "Ctrl-D") from None

    def wait(self, seconds: float, note: str = "") -> None:
        from controller.commission.talk import Interrupted

        if note:
            self.say(note)
        end_ns = self.ctx.clock.monotonic_ns() + int(seconds * 1e9)
        while (left_s := (end_ns - self.ctx.clock.monotonic_ns()) / 1e9) > 0:
            if self.ctx.line.key(min(left_s, 0.5)) == "\x03":
                raise Interrupted("Ctrl-C")


def shelves_write(ctx: Context, words: list[str]) -> Iterable[str]:
    """One write to a device beside the tick, read back."""
    instance, _, site = ctx.running()
    names = [f"{shelf.name}.{unit}" for shelf in site.shelves for unit in shelf.units]
    if words[0] not in names:
        raise Refused(f"{words[0]} is no device beside the tick; {near(words[0], names) or '`shelves` names them'}")
    got = shelves.write(instance, ctx.clock, ctx.author, words[0], words[1])
    if not got.ok:
        raise Refused(got.text)
    return [got.text]


def commission(ctx: Context, words: list[str]) -> None:
    """Guided commissioning."""
    from controller.commission import guide
    from controller.commission.results import Results
    from controller.commission.rig import Rig
    from controller.commission.talk import Interrupted
    from controller.control import remembered

    known = (*guide.NAMES, guide.SIGN_OFF, "list", "report")
    what = words[0].lower() if words else None
    if what is not None and what not in known:
        raise Refused(f"{what} is no step; one of {', '.join(known)}")
    instance, image, site = ctx.writable()
    busy = [s for s in ctx.presence.others() if s.holds == "test"]
    if busy:
        raise Refused(f"{busy[0].user} on {busy[0].line} is at it")
    talk, maps = _Talk(ctx), remembered(Path(instance.directory), site) or []
    rig = Rig(instance, image, site, maps, ctx.clock, talk, author=ctx.author, ask_desk=lambda request: desk.ask(instance, request))
    held = ctx.presence.own.holds
    ctx.presence.holds("test")
    ctx.audit("test", " ".join(words) or "guided commissioning")
    idle_s, ctx.line.idle_s = ctx.line.idle_s, max(ctx.line.idle_s, 3600.0) if ctx.line.idle_s else 0.0
    try:
        results = Results.of(site.name)
        if results.note:
            talk.say(results.note)
        if what == "list":
            guide.overview(rig, results, talk)
        elif what == "report":
            talk.say(str(guide.write_report(rig, results)))
        else:
            guide.run(rig, results, talk, what)
    except Interrupted as e:
        talk.say(f"stopped ({e}); {rig.parting()}; `test` goes on from here")
    except (Idle, Noise):
        talk.say(f"stopped; {rig.parting()}")
        raise
    except OSError as e:
        raise Refused(f"{e.filename or 'results'}: {e.strerror or e}") from None
    finally:
        ctx.line.idle_s = idle_s
        ctx.presence.holds(held)


ROWS = (
    Command("settings get", "viewer", "[KEY|WORD]", "settings in force, with range and meaning", get, 1, complete=_keys, group="change"),
    Command("settings diff", "viewer", "", "what differs from the defaults, and what is on trial", diff, group="change"),
    Command("settings dump", "viewer", "", "every setting as a line that `settings load` reads", dump, group="change"),
    Command("settings save", "engineer", "PATH", "the settings in force as a new site file", save, 1, 1, group="change"),
    Command(
        "settings set",
        "engineer",
        "KEY VALUE [for TIME]",
        "try a value: it goes back after 60 s unless confirmed",
        put,
        20,
        1,
        _keys,
        "change",
    ),
    Command("settings confirm", "engineer", "", "keep what is on trial, and write it to the site file", confirm, group="change"),
    Command("settings back", "engineer", "", "end a trial: the old values at once", back, group="change"),
    Command("settings load", "engineer", "", "pasted lines as one trial, all or none", load, group="change"),
    Command("test", "engineer", "[STEP|list|report]", "guided commissioning, one question at a time", commission, 2, group="change"),
    Command("shelves write", "engineer", "DEVICE ITEM=VALUE", "what the site allows, read back", shelves_write, 2, 2, group="change"),
    Command("restart control", "engineer", "", "start control again, without a bump", _restart("control"), group="change"),
    Command("restart supervisor", "engineer", "", "start the supervisor again", _restart("supervisor"), group="change"),
    Command("plant", "engineer", "[KEY VALUE]", "settings and faults of the virtual cabinet", plant, 2, group="change"),
    Command("user list", "engineer", "", "every account", user_list, group="change"),
    Command("user add", "engineer", "NAME ROLE", f"a new account: {', '.join(ROLES)}", user_add, 2, 2, group="change"),
    Command("user remove", "engineer", "NAME", "remove an account", user_remove, 1, 1, group="change"),
    Command("passwd", "viewer", "[NAME]", "change a password", passwd, 1, group="session"),
)
