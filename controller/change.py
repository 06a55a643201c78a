"""`ballast settings`: a person's way to the desk of a running site (controller.desk)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from controller.problems import Problem, SiteError
from controller.process import EXIT_FAILED, EXIT_INPUT, EXIT_OK
from controller.settings import TRY_MAX_S, TRY_MIN_S, TRY_S, range_text, row_of

COMMANDS = ("settings",)
TRY_HELP = f"how long to try, {TRY_MIN_S:g} to {TRY_MAX_S:g} (default {TRY_S:g})"


def add_parsers(commands: Any) -> None:
    """Its arguments."""
    settings = commands.add_parser("settings", help="look at settings of the running site, and change them: first tried, then confirmed")
    actions = settings.add_subparsers(dest="action", required=True, metavar="ACTION")
    get = actions.add_parser("get", help="values in force, with unit, meaning and how they change")
    get.add_argument("key", nargs="?", default="", metavar="KEY", help="such as grid.import_limit_w, or the beginning of one; default: all")
    change = actions.add_parser("set", help="tries values: they act at once, and go back by themselves unless confirmed")
    change.add_argument("changes", nargs="+", metavar="KEY=VALUE", help='such as grid.import_limit_w="440 kW"')
    change.add_argument("--seconds", type=float, default=TRY_S, metavar="N", help=TRY_HELP)
    confirm = actions.add_parser("confirm", help="keeps what is being tried, and writes it into the site file")
    back = actions.add_parser("back", help="ends the trial: the old values at once")
    diff = actions.add_parser("diff", help="what differs from the site file, and what is being tried")
    dump = actions.add_parser("dump", help="the settings in force as a complete site file")
    dump.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: the terminal; a file that exists is not overwritten")
    for one in (get, change, confirm, back, diff, dump):
        one.add_argument("--site", metavar="NAME", help="which site, where several run here")


def main(args: argparse.Namespace) -> int:
    """Runs one of them. Exit code 2 and every problem where it is refused. Raises InstanceError, SiteError."""
    from controller.instance import find

    running = find(args.site)
    return {"get": _get, "set": _set, "confirm": _confirm, "back": _back, "diff": _diff, "dump": _dump}[args.action](args, running)


def _ask(running: Any, do: str, **fields: Any) -> dict[str, Any]:
    """The desk's answer. Raises SiteError where it says no."""
    from controller import desk, operate

    if do != "settings":
        fields["who"] = operate.author()[: desk.MAX_WHO]
    answer = desk.ask(running, {"do": do, **fields})
    if answer.get("ok"):
        return answer
    rows = answer.get("problems") or []
    raise SiteError([Problem(p["file"], p["key"], p["value"], p["why"], p["remedy"]) for p in rows])


def _get(args: argparse.Namespace, running: Any) -> int:
    values = _ask(running, "settings")["values"]
    found = {key: value for key, value in values.items() if key == args.key} or {k: v for k, v in values.items() if k.startswith(args.key)}
    if not found:
        from controller.walk import near

        raise SiteError([Problem("", args.key, None, "no such setting of this site", near(args.key, values))])
    for key, value in found.items():
        row = row_of(key)
        meaning = f"{row.text}; {range_text(row)}; changes: {row.how}" if row is not None else ""
        print(f"{key} = {_shown(value):<14} # {meaning}")
    return EXIT_OK


def _set(args: argparse.Namespace, running: Any) -> int:
    changes: dict[str, str] = {}
    for text in args.changes:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise SiteError([Problem("", text, None, "is not KEY=VALUE", 'write grid.import_limit_w="440 kW"')])
        changes[key.strip()] = value.strip().strip('"')
    got = _ask(running, "try", changes=changes, seconds=args.seconds)
    _print_changes(got["changes"])
    for key, (old, new) in got["follows"].items():
        print(f"{key}: {_shown(old)} -> {_shown(new)}, because its default follows")
    print("in force now" if got["how"] == "live" else "control is started again with it; the PCS goes on meanwhile")
    site = f" --site {args.site}" if args.site else ""
    print(f"within {got['seconds']:g} s type `ballast settings confirm{site}` to keep it; otherwise the old values come back by themselves")
    return EXIT_OK


def _confirm(args: argparse.Namespace, running: Any) -> int:
    got = _ask(running, "confirm", id=_pending(running))
    _print_changes(got["changes"])
    print(f"kept; {got['note']}")
    return EXIT_OK if got["written"] or got["file"] is None else EXIT_FAILED  # the built-in site has no file


def _back(args: argparse.Namespace, running: Any) -> int:
    _print_changes(_ask(running, "back", id=_pending(running))["changes"])
    print("the old values are in force")
    return EXIT_OK


def _diff(args: argparse.Namespace, running: Any) -> int:
    got = _ask(running, "settings")
    pending = got["pending"]
    tried = pending["changes"] if pending else {}
    for key, (old, new) in got["running"].items():
        if key not in tried:
            print(f"{key}: {_shown(old)} in the file, {_shown(new)} in force")
    if pending:
        print(f"trial {pending['id']} by {pending['who']}, {pending['left_s']:.0f} s left:")
        _print_changes(tried)
    if not got["running"] and not pending:
        print(f"nothing differs from {got['file']}")
    if "file_problem" in got:
        print(got["file_problem"], file=sys.stderr)
        return EXIT_INPUT
    return EXIT_OK


def _dump(args: argparse.Namespace, running: Any) -> int:
    if args.file is not None:
        got = _ask(running, "save", path=str(args.file.absolute()))
        print(f"wrote {got['path']}" + ("; it holds what is being tried" if got["trial"] else ""))
        return EXIT_OK
    from controller.build import site_from
    from controller.inforce import SITE_NAME
    from controller.sitefile import whole

    print(whole(site_from(Path(running.directory) / SITE_NAME)), end="")
    return EXIT_OK


def _pending(running: Any) -> int:
    pending = _ask(running, "settings")["pending"]
    if pending is None:
        why = "nothing is being tried: the time is over, or it was confirmed or given back"
        raise SiteError([Problem("", "", None, why, "`ballast settings set KEY=VALUE` tries something")])
    return int(pending["id"])


def _print_changes(changes: dict[str, Any]) -> None:
    for key, (old, new) in changes.items():
        row = row_of(key)
        unit = f" {row.unit}" if row is not None and row.unit not in ("", "1") else ""
        print(f"{key}: {_shown(old)} -> {_shown(new)}{unit}")


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
