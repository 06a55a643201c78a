"""The settings desk: how a setting of a running site is tried, confirmed and given back.

A change is first a trial. It is checked by the very path that a site file takes, acts at once, and goes back by itself
when nobody confirms it in time: whoever has locked himself out, or lies on the floor, need do nothing. Only a confirmed
value reaches the site file. The desk lives in the parent of the site's processes, so that neither supervisor nor console
need be alive for the return; where the parent dies, control ramps down and the file was never touched.

Requests come as one JSON line over the socket `desk` in the runtime directory (0600); see `Desk.handle`, docs/commissioning.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from _core.image import ImageError

from controller import build, lines, sitefile, walk
from controller import site as sites
from controller.clock import Clock
from controller.instance import Instance, InstanceError
from controller.lines import Reply, plain, refusal
from controller.ports import VIRTUALS
from controller.problems import Problem, SiteError
from controller.settings import BUS, LIVE, RESTART, SETTINGS, START, TRY_MAX_S, TRY_MIN_S, TRY_S, Value, in_unit, row_of
from controller.site import Site, Source
from controller.sitefile import SiteFileError
from controller.virtual import Plant

DESK_NAME = "desk"  # the socket, in the runtime directory
MAX_CHANGES = 64
MAX_KEY, MAX_TEXT, MAX_WHO = 80, 300, 160
APART_S = 5.0  # between two trials that start control again: asking again and again must not keep it from working
TAKEN_S = 1.0  # the engine takes new settings at a tick boundary
CHILDREN = ("control", "supervisor")
REFUSED = (SiteError, ValueError, ImageError, OSError)  # why settings are not taken


class Host(Protocol):
    """What the desk asks of the parent. `take` is all or nothing, and raises one of REFUSED where settings cannot be taken;
    `give_back` always ends in the settings before.
    """

    site: Site
    image: Any
    clock: Clock
    instance: Instance
    plant: Plant | None
    stopping: int

    def ready(self) -> bool:
        """True while control has handed its settings to the engine: they can be changed in place."""
        ...

    def take(self, site: Site, how: str) -> int:
        """Puts other settings in force. Returns the revision of struct Site that the engine shall reach; 0: none."""
        ...

    def give_back(self, site: Site, how: str) -> int:
        """The settings before `take` again; as `take`."""
        ...

    def keep(self) -> None:
        """There is no way back any more."""
        ...

    def restart(self, child: str, why: str) -> str:
        """Starts a child again; says why not."""
        ...

    def note(self, who: str, command: str, lease_s: float | None, text: str) -> None:
        """A row in the audit trail. Raises nothing."""
        ...


@dataclass
class Trial:
    """Changes in force for a while."""

    number: int
    who: str
    typed: dict[str, Any]  # as a site file would hold them
    changes: dict[str, list[Value | None]]  # key -> [old, new]
    how: str
    before: Site
    until_ns: int

    def left_s(self, now_ns: int) -> float:
        """Seconds until the old values come back."""
        return max(0.0, (self.until_ns - now_ns) / 1e9)


class Refused(Exception):
    """An answer that says no."""

    def __init__(self, why: str, remedy: str = "", key: str = "", value: Any = None) -> None:
        super().__init__(why)
        self.answer = refusal(why, remedy, key, value)


def apply_live(image: Any, site: Site) -> int:
    """Hands the kernel's settings of a site to the running engine, which takes them at a tick boundary. Returns the
    revision of struct Site. Raises ValueError, ImageError.

    Which groups the devices give (has_*) is known to control alone, and stays as it is.
    """
    fields = build.kernel_site(site, ())
    return int(image.update_site({name: value for name, value in fields.items() if not name.startswith("has_")}))


class Desk:
    """The desk of one run. `handle` answers a request, `tick` returns what was not confirmed."""

    def __init__(self, host: Host, source: Source) -> None:
        self.host, self.source = host, source
        self.kept: dict[str, Any] = {}  # confirmed in this run
        self.trial: Trial | None = None
        self.file_text = source.text  # the file as this run knows it
        self._number = 0
        self._restarted_ns = -int(APART_S * 1e9)
        self._taking: tuple[int, int] | None = None  # revision of struct Site to be reached, and by when

    # ---- requests

    def handle(self, request: dict[str, Any], reply: Reply) -> None:
        """One request, `do` names it: settings, try, confirm, back, restart, plant, save. `reply` is called once."""
        known = {
            "settings": (self._settings, ()),
            "try": (self._try, ("who", "changes", "seconds")),
            "confirm": (self._confirm, ("who", "id")),
            "back": (self._back, ("who", "id")),
            "restart": (self._restart, ("who", "what")),
            "save": (self._save, ("who", "path")),
        }
        do = request.get("do")
        try:
            self.tick(self.host.clock.monotonic_ns())
            if do == "plant":
                self._plant(request, reply)
                return
            if not isinstance(do, str) or do not in known:
                raise Refused("there is no such request", f"one of {', '.join([*known, 'plant'])}", "do", do)
            work, fields = known[do]
            _only(request, fields)
            answer = work(request)
        except Refused as e:
            answer = e.answer
        except SiteError as e:
            answer = _refused(e.problems)
        reply(answer)

    def _settings(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Values in force; `running`: {key: [what a start from the file would give, in force]} where they differ."""
        now_ns, site, trial = self.host.clock.monotonic_ns(), self.host.site, self.trial
        values = site.flat()
        answer: dict[str, Any] = {"ok": True, "file": self._file(), "values": values, "running": {}, "pending": None}
        try:
            stands = sites.load(self.source.path).flat()
            answer["running"] = {key: [stands.get(key), value] for key, value in values.items() if stands.get(key) != value}
        except SiteError as e:
            answer["file_problem"] = str(e)[:2000]
        if trial is not None:
            pending = {"id": trial.number, "who": trial.who, "changes": trial.changes}
            answer["pending"] = pending | {"left_s": round(trial.left_s(now_ns), 1), "how": trial.how}
        return answer

    def _try(self, request: Mapping[str, Any]) -> dict[str, Any]:
        who, seconds = _who(request), _seconds(request.get("seconds", TRY_S))
        self._free()
        typed = _typed(request.get("changes"))
        before = self.host.site
        site = self._checked(typed, before)
        old, new = before.flat(), site.flat()
        differing = {key: [old.get(key), new.get(key)] for key in new if old.get(key) != new.get(key)}
        changes = {key: pair for key, pair in differing.items() if key in typed}
        if not changes:
            raise Refused("nothing changes: these values are in force", "`ballast settings get` shows what is in force", "changes")
        how = self._how(differing)
        since_s = (self.host.clock.monotonic_ns() - self._restarted_ns) / 1e9
        if how == RESTART and since_s < APART_S:
            why = f"control was started again {since_s:.1f} s ago, for settings"
            raise Refused(why, f"wait {APART_S:g} s from one to the next", "changes")
        self._number += 1
        text = _words(changes)
        self.host.note(who, "settings try", seconds, f"{text}; {how}, for {seconds:g} s unless confirmed")
        try:
            self._took(self.host.take(site, how), how)
        except Exception as e:  # `take` is all or nothing, whatever went wrong in it
            self.host.note(who, "settings try", None, _cut(f"{text}: not taken: {e}"))
            if isinstance(e, SiteError) or not isinstance(e, REFUSED):
                raise
            raise Refused(f"not taken: {e}", "everything is as it was", "changes") from None
        until_ns = self.host.clock.monotonic_ns() + int(seconds * 1e9)
        self.trial = Trial(self._number, who, {key: typed[key] for key in changes}, changes, how, before, until_ns)
        follows = {key: pair for key, pair in differing.items() if key not in changes}
        return {"ok": True, "id": self._number, "how": how, "changes": changes, "follows": follows, "seconds": seconds}

    def _confirm(self, request: Mapping[str, Any]) -> dict[str, Any]:
        who, trial = _who(request), self._pending(request)
        self.host.note(who, "settings confirm", None, f"{_words(trial.changes)}; tried by {trial.who}")
        self.host.keep()
        self.kept = _after(self.kept, trial.typed)
        self.trial = None
        file = None if self.source.path is None else self._file()
        return {"ok": True, "id": trial.number, "changes": trial.changes, "file": file} | self._write(trial)

    def _back(self, request: Mapping[str, Any]) -> dict[str, Any]:
        who, trial = _who(request), self._pending(request)
        self._return(trial)
        self.host.note(who, "settings back", None, f"{_words(trial.changes, back=True)}; tried by {trial.who}")
        return {"ok": True, "id": trial.number, "how": trial.how, "changes": {key: pair[::-1] for key, pair in trial.changes.items()}}

    def _restart(self, request: Mapping[str, Any]) -> dict[str, Any]:
        who, what = _who(request), request.get("what")
        if what not in CHILDREN:
            raise Refused("is no process that can be started again", f"one of {', '.join(CHILDREN)}", "what", what)
        if self.host.stopping:
            raise Refused("the site is stopping", "start it with `ballast run`")
        if why := self.host.restart(what, f"asked by {who}"):
            raise Refused(why, "wait, and look with `ballast status`", "what", what)
        self.host.note(who, f"restart {what}", None, f"{what} is started again")
        return {"ok": True, "what": what}

    def _save(self, request: Mapping[str, Any]) -> dict[str, Any]:
        who, path = _who(request), Path(_text(request, "path", 4096))
        if not path.is_absolute() or path.suffix != ".toml":
            raise Refused("is no absolute path of a .toml file", "write /etc/ballast/hall-3.toml", "path", str(path))
        site = self.host.site
        text = sitefile.whole(site, path.parent)
        build.load_site(str(path), (), lambda: (), text=text)
        try:
            sitefile.create(path, text)
        except FileExistsError:
            raise Refused("there is a file already", "give another name, or remove it first", "path", str(path)) from None
        except OSError as e:
            raise Refused(f"cannot be written: {e.strerror or e}", "give another path", "path", str(path)) from None
        self.host.note(who, "settings save", None, f"settings in force into {path}")
        return {"ok": True, "path": str(path), "trial": self.trial is not None}

    def _plant(self, request: Mapping[str, Any], reply: Reply) -> None:
        """Asks the virtual cabinet, and replies when it has answered."""
        _only(request, ("who", "set"))
        plant = self.host.plant
        if plant is None:
            raise Refused("this site is real: there is no virtual cabinet whose settings could be changed", "it is what it is")
        if "set" not in request:
            message: dict[str, Any] = {"params": True}
        else:
            _who(request)
            wanted = request["set"]
            if not isinstance(wanted, dict) or not 1 <= len(wanted) <= MAX_CHANGES:
                raise Refused("is no table of settings", '{"load.extra_w": 40000}', "set")
            for key, value in wanted.items():
                if not sites.finite(value):
                    raise Refused("is no number", "the virtual cabinet's settings are numbers", f"set.{key[:MAX_KEY]}", value)
            message = {"set": wanted}
        words = _cut(", ".join(f"{key} = {value:g}" for key, value in message.get("set", {}).items()))

        def answered(got: dict[str, Any]) -> None:
            if "set" in got:
                self.host.note(str(request["who"]), "plant set", None, words)
            reply(refusal(str(got["error"])[:1000], "", "plant") if "error" in got else {"ok": True, **got})

        try:
            plant.ask(message, answered)
        except ValueError as e:
            raise Refused(str(e), "try again", "plant") from None

    # ---- a trial

    def tick(self, now_ns: int) -> None:
        """Returns a trial whose time is over; looks whether the engine has taken what it was given."""
        if self.trial is not None and now_ns >= self.trial.until_ns:
            trial = self.trial
            self._return(trial)  # first the power, then the paper
            text = f"{_words(trial.changes, back=True)}; nobody confirmed what {trial.who} tried"
            self.host.note("ballast", "settings return", None, text)
        if self._taking is not None:
            revision, by_ns = self._taking
            if int(self.host.image.site_rev) >= revision or not self.host.ready():
                self._taking = None  # a control that starts again reads them itself
            elif now_ns >= by_ns:
                refused = self.host.restart("control", "the kernel did not take the new settings")
                self._taking = (revision, now_ns + int(TAKEN_S * 1e9)) if refused else None

    def close(self) -> None:
        """The run ends: what is pending never reaches the file."""
        if self.trial is not None:
            text = f"{_words(self.trial.changes, back=True)}; the run ended before it was confirmed"
            self.host.note("ballast", "settings return", None, text)
            self.trial = None

    def _return(self, trial: Trial) -> None:
        self._took(self.host.give_back(trial.before, trial.how), trial.how)
        self.trial = None

    def _took(self, revision: int, how: str) -> None:
        """Notes what shall follow: a revision that the engine reaches, or a control that starts again."""
        if how == RESTART:
            self._restarted_ns = self.host.clock.monotonic_ns()
        self._taking = (revision, self.host.clock.monotonic_ns() + int(TAKEN_S * 1e9)) if revision else None

    def _free(self) -> None:
        if self.host.stopping:
            raise Refused("the site is stopping", "start it with `ballast run`")
        if self.trial is not None:
            left_s = self.trial.left_s(self.host.clock.monotonic_ns())
            why = f"{self.trial.who} is trying {_words(self.trial.changes)} for another {left_s:.0f} s (trial {self.trial.number})"
            raise Refused(why, "wait, or end it: `ballast settings confirm` or `ballast settings back`")

    def _pending(self, request: Mapping[str, Any]) -> Trial:
        number = request.get("id")
        if self.trial is None:
            raise Refused("nothing is being tried: the time is over, or it was confirmed or given back", "try again", "id", number)
        if isinstance(number, bool) or number != self.trial.number:
            raise Refused(f"is not what is being tried: that is trial {self.trial.number} by {self.trial.who}", "look again", "id", number)
        return self.trial

    def _how(self, keys: Mapping[str, Any]) -> str:
        """Live where every key is, and control is there to take it; else control starts again."""
        live = all(row is None or row.how != RESTART for row in map(row_of, keys))
        return LIVE if live and self.host.ready() else RESTART

    def _checked(self, typed: Mapping[str, Any], before: Site) -> Site:
        """The site with these changes, by the path of a site file. Raises SiteError."""
        problems = [p for key, value in typed.items() if (p := self._not_now(key, value)) is not None]
        asked = {key: value for key, value in typed.items() if key not in {p.key for p in problems}}
        try:
            source = self.source
            site = build.load_site(source.path, source.sets, lambda: before.plant, text=source.text, changes=_after(self.kept, asked))
            if not problems:
                build.plan(site)
                changed = [bus for bus in site.buses if bus.port not in {b.port for b in before.buses}]
                problems += build.port_problems(site, changed)
        except SiteError as e:
            problems += e.problems
        if problems:
            raise SiteError(problems)
        return site

    def _not_now(self, key: str, value: Any) -> Problem | None:
        """Why a key cannot be changed while the site runs."""
        row, file = row_of(key), self._file()
        if row is not None and row.how == START:
            return Problem(file, key, value, "is read when `ballast run` starts", "write it into the site file, and start again")
        if row is not None and key not in SETTINGS and self.host.site.virtual:
            why = "the virtual cabinet was built with its buses and devices"
            return Problem(file, key, value, why, f"end `ballast run`, and start it with --set {key}={value}")
        if row is not None and key.startswith("bus.") and value in VIRTUALS:
            return Problem(file, key, value, "the virtual cabinet is started by `ballast run` alone", "start a virtual site beside it")
        by_path = row is not None and key.endswith(".profile") and str(value).endswith(".toml")
        if by_path and not (Path(self.host.site.file).parent / str(value)).is_file():  # a FIFO would hold the parent for ever
            return Problem(file, key, value, "is no file", "give a profile's name, or the path of a profile file")
        return None

    # ---- the file

    def _file(self) -> str:
        return self.host.site.file if self.source.path is None else str(Path(self.source.path).absolute())

    def _write(self, trial: Trial) -> dict[str, Any]:
        """Writes confirmed keys into the site file; where it cannot, says why and what would do."""
        stays = "the values stay in force until this run ends"
        if self.source.path is None:
            return {"written": None, "note": f"the built-in site has no file of yours: {stays}; `ballast settings dump FILE` writes one"}
        try:
            text = sites.read_text(self.source.path)
            if conflicts := self._conflicts(text, trial):
                words = ", ".join(f"{key} was {a} at the start and is {b} there now" for key, (a, b) in conflicts.items())
                note = f"the file was edited meanwhile: {words}. It is left as it is; {stays}. Write what you want into it by hand"
                return {"written": None, "conflicts": conflicts, "note": note}
            values = {key: self.host.site.flat()[key] for key in trial.typed}
            new = self._edited(text, values)
            backup = sitefile.write(Path(self.source.path), text, new)
        except (SiteError, SiteFileError, OSError) as e:
            return {"written": None, "note": f"the file is not written: {e}. {stays[0].upper()}{stays[1:]}"}
        edits = " It holds other edits that were made since the start; they are as they were." if text != self.file_text else ""
        self.file_text = new
        outranked = [s for s in self.source.sets if s.partition("=")[0].strip() in values]
        again = f" The next start with --set {' --set '.join(outranked)} would outrank it." if outranked else ""
        return {"written": self._file(), "backup": str(backup), "note": f"written; the old file is {backup}.{edits}{again}"}

    def _edited(self, text: str, values: Mapping[str, Value]) -> str:
        """The file with these values, which loads. Raises SiteError, SiteFileError."""
        others = [s for s in self.source.sets if s.partition("=")[0].strip() not in values]
        new = sitefile.edited(text, values)
        stands, flat = build.load_site(self.source.path, others, lambda: self.host.site.plant, text=new).flat(), self.host.site.flat()
        # A bus that is a line again: what it had as a line this run still knows, and the file has lost it to another kind of port.
        given, buses = walk.given(sites.parse(new, self._file())), [key[:-4] for key in values if row_of(key) is BUS["port"]]
        lost = {k: v for k, v in flat.items() if k.startswith(tuple(buses)) and k not in given and stands.get(k) != v}
        return sitefile.edited(text, {**values, **lost}) if lost else new

    def _conflicts(self, text: str, trial: Trial) -> dict[str, list[Any]]:
        """Confirmed keys that somebody has changed in the file since this run read it, to something else: {key: [then, now]}."""
        if text == self.file_text:
            return {}
        then, now = (walk.given(sites.parse(one, self._file())) for one in (self.file_text, text))
        edited = [key for key in trial.typed if then.get(key) != now.get(key) != trial.changes[key][1]]
        return {key: [plain(then.get(key)), plain(now.get(key))] for key in edited}


def _after(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Both, in the order in which they came: a port takes its bus's line settings with it, and later ones stay."""
    return {key: value for key, value in before.items() if key not in changes} | dict(changes)


# ---------------------------------------------------------------- what a request may hold


def _only(request: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    if unknown := [key for key in request if key not in ("do", *fields)]:
        raise Refused("there is no such field in this request", f"known: {', '.join(fields) or 'none'}", _cut(unknown[0], MAX_KEY))


def _text(request: Mapping[str, Any], field: str, most: int) -> str:
    value = request.get(field)
    if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
        raise Refused(f"is no text of 1 to {most} printable characters", "", field, value)
    return value


def _who(request: Mapping[str, Any]) -> str:
    return _text(request, "who", MAX_WHO)


def _seconds(value: Any) -> float:
    if not sites.finite(value) or not TRY_MIN_S <= value <= TRY_MAX_S:
        raise Refused(f"is outside {TRY_MIN_S:g} to {TRY_MAX_S:g} s", "without confirmation the old values come back", "seconds", value)
    return float(value)


def _typed(changes: Any) -> dict[str, Any]:
    """Changes as a site file would hold them: numbers as numbers, also where somebody wrote "440 kW"."""
    if not isinstance(changes, dict) or not 1 <= len(changes) <= MAX_CHANGES:
        raise Refused(f"is no table of 1 to {MAX_CHANGES} settings", '{"grid.import_limit_w": "440 kW"}', "changes")
    typed: dict[str, Any] = {}
    for key, value in changes.items():
        if len(key) > MAX_KEY or not key.isprintable():
            raise Refused("is no name of a setting", "see docs/settings.md", _cut(key, MAX_KEY), value)
        if not isinstance(value, (str, int, float)) or (isinstance(value, str) and (len(value) > MAX_TEXT or not value.isprintable())):
            raise Refused("is neither a number nor a short text", 'write 440000 or "440 kW"', key, value)
        typed[key] = _number(key, value)
    return typed


def _number(key: str, value: Any) -> Any:
    row = row_of(key)
    if row is None or row.kind not in ("float", "int") or not isinstance(value, str):
        return value
    number = in_unit(value, key.rpartition(".")[2])
    if number is None or not math.isfinite(number):
        return value  # refused as text, with what would do
    return int(number) if row.kind == "int" and number.is_integer() else number


def _refused(problems: list[Problem]) -> dict[str, Any]:
    rows = [
        {"file": p.file, "key": p.key, "value": plain(p.value), "why": _cut(p.why, 1000), "remedy": _cut(p.remedy, 300)}
        for p in problems[:20]
    ]
    return {"ok": False, "problems": rows, "error": _cut("\n".join(p.line() for p in problems), 8000)}


def _words(changes: Mapping[str, list[Value | None]], back: bool = False) -> str:
    step = -1 if back else 1
    return _cut(", ".join(f"{key} {' -> '.join(str(x) for x in pair[::step])}" for key, pair in changes.items()))


def _cut(text: str, most: int = 500) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


# ---------------------------------------------------------------- the client


def ask(instance: Instance, request: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
    """The desk's answer to a request. Raises InstanceError where the parent is gone or does not answer."""
    try:
        return lines.ask(Path(instance.directory) / DESK_NAME, request, timeout_s)
    except TimeoutError:
        why = f"its parent ({instance.pid}) has not answered for {timeout_s:g} s; it may be halted or wait for a disk, and may still do it"
    except PermissionError:
        why = "its desk may not be used by this user; use the user that runs it, or root"
    except OSError:
        why = f"its parent (process {instance.pid}) is gone, or starts just now: settings cannot be changed; look with `ballast status`"
    except ValueError as e:
        why = f"its parent has given no answer: {e}"
    raise InstanceError(f"site {instance.site}: {why}")
