"""The command `ballast`: arguments, and which module does the work. Exit codes: 0, 1 failed, 2 input, 3 not running,
4 busy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from controller import change, evidence
from controller.commission import cli as commission
from controller.problems import SiteError
from controller.process import EXIT_BUSY, EXIT_INPUT, EXIT_NOT_RUNNING, EXIT_OK
from controller.shelves import cli as shelves
from controller.site import Site
from controller.tools import cli as tools


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ballast", description="Controller of a battery cabinet that feeds an AI compute site.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a site; without SITE the built-in one with the virtual cabinet, in real time")
    _run_options(run)
    run.add_argument("--quiet", action="store_true", help="no picture, no status lines")
    run.add_argument("--burn", action="store_true", help=argparse.SUPPRESS)
    sim = commands.add_parser("sim", help="the same in virtual time")
    _run_options(sim)
    sim.add_argument("--seed", type=int, default=1, metavar="N", help="same seed, same bits (default 1)")
    check = commands.add_parser("check", help="validate a site and print its bus plan")
    check.add_argument("site", nargs="?", metavar="SITE.toml", help="default: the built-in site")
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    status = commands.add_parser("status", help="what runs and how well (exit code 0 healthy, 1 degraded, 3 not running)")
    status.add_argument("--json", action="store_true")
    top = commands.add_parser("top", help="live view")
    top.add_argument("--once", action="store_true", help="one picture")
    hold = commands.add_parser("hold", help="hold the battery at a power, whatever the load does")
    hold.add_argument("power", nargs="?", default="0", metavar="W", help="watts or such as 50kW, discharge + (default 0)")
    hold.add_argument("--for", dest="for_s", type=float, metavar="S", help="ends by itself (default 3600, at most 86400)")
    release = commands.add_parser("release", help="end a hold")
    reset = commands.add_parser("reset", help="end a latched FAULT, once its causes are gone")
    for one in (status, top, hold, release, reset):
        one.add_argument("--site", metavar="NAME", help="which site, where several run here")
    console = commands.add_parser("console", help="log in: in this terminal, over SSH, or on a serial port for good")
    console.add_argument("--port", metavar="TTY", help="serve this serial port (8N1) until told to end")
    console.add_argument("--baud", type=int, default=115200, metavar="N", help="its speed (default 115200)")
    console.add_argument("--idle", type=float, default=600.0, metavar="S", help="log out after so long without a key (default 600)")
    console.add_argument("--site", metavar="NAME", help="which site, where several run here")
    change.add_parsers(commands)
    evidence.add_parsers(commands)
    commission.add_parser(commands)
    tools.add_parsers(commands)
    shelves.add_parser(commands)
    commands.add_parser("version", help="version and build")
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("site", nargs="?", metavar="SITE.toml", help="default: the built-in site")
    parser.add_argument("--trace", metavar="FILE[:COLUMN]", help='load of the virtual cabinet; "steps": the step train')
    parser.add_argument("--edge", default="20", metavar="step|linear|MS", help="how a new value is reached (default 20 ms)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="K", help="factor on the load")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="a key of site or plant")
    parser.add_argument("--for", dest="for_s", type=float, metavar="S", help="end after so long")
    parser.add_argument("--out", type=Path, metavar="DIR", help="summary.json, the record, the plant's truth, report.html")
    parser.add_argument("--no-report", action="store_true", help="without report.html")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["hold"], ["explain"]):
        # argparse takes "-20kW" for an option; a leading space makes it a value.
        words = [f" {w}" if w[:1] == "-" and w[1:2].isdigit() else w for w in words]
    parser = _parser()
    args, rest = parser.parse_known_args(words)
    if rest and not tools.take(args, rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from controller.instance import InstanceError

    try:
        return {
            "run": _run, "sim": _sim, "check": _check, "status": _status, "top": _top, "hold": _hold,
            "release": _release, "reset": _reset, "console": _console, "test": _test, "shelves": shelves.main, "version": _version,
            **dict.fromkeys(evidence.COMMANDS, evidence.main), **dict.fromkeys(change.COMMANDS, change.main),
            **dict.fromkeys(tools.COMMANDS, tools.main),
        }[args.command](args)  # fmt: skip
    except SiteError as e:
        print(e, file=sys.stderr)
        return EXIT_INPUT
    except InstanceError as e:
        print(f"ballast: {e}", file=sys.stderr)
        if args.command == "run":
            return EXIT_BUSY
        return EXIT_NOT_RUNNING
    except KeyboardInterrupt:
        return 130


def _check_load(args: argparse.Namespace) -> None:
    from controller.problems import Problem

    problems = []
    if args.edge not in ("step", "linear"):
        try:
            good = 0 <= float(args.edge) <= 1e6
        except ValueError:
            good = False
        if not good:
            problems.append(Problem("", "--edge", args.edge, "is no way to reach a value", "step, linear, or milliseconds"))
    if args.for_s is not None and not args.for_s > 0:
        problems.append(Problem("", "--for", args.for_s, "is no duration", "write seconds above 0"))
    if not 0 <= args.scale <= 1e6:
        problems.append(Problem("", "--scale", args.scale, "is outside 0 to 1e6", "1 is the trace as it stands"))
    if problems:
        raise SiteError(problems)


def _run(args: argparse.Namespace) -> int:
    from controller import build
    from controller.run import Options, run
    from controller.site import Source
    from controller.virtual import LoadOptions

    _check_load(args)
    source = Source.read(args.site, args.sets)
    site = build.load_site(args.site, args.sets, text=source.text)
    load = LoadOptions(trace=args.trace or "cluster", edge=args.edge, scale=args.scale)
    return run(site, Options(load, args.for_s, args.out, args.burn, args.quiet, not args.no_report, source))


def _sim(args: argparse.Namespace) -> int:
    _check_load(args)
    argv = [sys.executable, "-m", "bench.sim"]
    argv += [args.site] if args.site else []
    argv += ["--trace", args.trace] if args.trace else []
    argv += ["--edge", args.edge, "--scale", str(args.scale), "--seed", str(args.seed)]
    argv += [word for text in args.sets for word in ("--set", text)]
    argv += ["--for", str(args.for_s)] if args.for_s is not None else []
    argv += ["--out", str(args.out)] if args.out is not None else []
    argv += ["--no-report"] if args.no_report else []
    sys.stdout.flush()
    os.execv(sys.executable, argv)


def _check(args: argparse.Namespace) -> int:
    from controller import build

    site = build.load_site(args.site, args.sets)
    plan = build.plan(site)
    print(f"{site.file}: site {site.name}, {len(site.buses)} buses, {len(site.devices)} devices: fits")
    for note in site.notes:
        print(f"note: {note}")
    for note in build.held_notes(site):
        print(f"warning: {note}; `ballast run` sets it where it may")
    print(plan)
    for line in _measured(site):
        print(line)
    return EXIT_OK


def _measured(site: Site) -> list[str]:
    """What a running instance of this site has measured of its wires; nothing where none runs."""
    from controller import wires
    from controller.build import site_from
    from controller.instance import InstanceError, find, open_image

    try:
        running = find(site.name)
        image = open_image(running, writable=False)
        here = site_from(Path(running.directory) / "site.json")
    except (InstanceError, OSError, ValueError):
        return []
    got = wires.collect(image, here, (running.plan or {}).get("wires"))
    rows = [(f"bus {name}", wires.bus_line(row)) for name, row in got["buses"].items()]
    rows += [(name, wires.device_line(row)) for name, row in got["devices"].items()]
    lines = [f"  {name}: {text}" for name, text in rows if text] + [f"  {text}" for text in [wires.meter_line(got)] if text]
    return [f"measured by the site {site.name} that runs here:", *lines, *(f"warning: {text}" for text in wires.warnings(got, here))]


def _status(args: argparse.Namespace) -> int:
    from controller import status
    from controller.build import site_from
    from controller.clock import RealClock
    from controller.instance import InstanceError, find, open_image

    try:
        running = find(args.site)
        image = open_image(running, writable=False)
    except InstanceError as e:
        print(json.dumps({"running": False, "reason": str(e)}) if args.json else str(e))
        return EXIT_NOT_RUNNING
    got = status.collect(running, site_from(Path(running.directory) / "site.json"), image, RealClock())
    print(json.dumps({"running": True, **got}, indent=2) if args.json else status.text(got))
    return int(got["health"]["code"])


def _top(args: argparse.Namespace) -> int:
    from controller.build import SiteWatch, site_from
    from controller.clock import RealClock
    from controller.instance import alive, find, open_image
    from controller.top import watch
    from controller.topdata import Snapshot, Source

    running = find(args.site)
    source = Source(open_image(running, writable=False), site_from(Path(running.directory) / "site.json"), running)
    settings = SiteWatch(Path(running.directory) / "site.json")
    clock = RealClock()

    def snapshot() -> Snapshot | None:
        """None once control has gone with its parent: the last picture would look alive."""
        from controller.instance import read

        fresh = read(Path(running.directory))
        source.instance, source.site = fresh or source.instance, settings.look() or source.site
        if fresh is None and not alive(running.pid):
            return None
        return source.snapshot(clock.monotonic_ns())

    return watch(snapshot, once=args.once)


def _hold(args: argparse.Namespace) -> int:
    from controller import operate
    from controller.build import site_from
    from controller.clock import RealClock
    from controller.instance import find, open_image

    running = find(args.site)
    site = site_from(Path(running.directory) / "site.json")
    value_w, lease_s = operate.parse_power(args.power, site), operate.parse_lease(args.for_s)
    number = operate.hold(running, open_image(running, writable=True), value_w, lease_s, RealClock())
    print(
        f"{operate.named(number)}: battery held at {value_w / 1e3:+.1f} kW for {lease_s:.0f} s, or until `ballast release`; "
        "limits stay in force"
    )
    return EXIT_OK


def _release(args: argparse.Namespace) -> int:
    from controller import operate
    from controller.clock import RealClock
    from controller.instance import find, open_image

    running = find(args.site)
    number = operate.release(running, open_image(running, writable=True), RealClock())
    print(f"{operate.named(number)}: released; the battery follows the load")
    return EXIT_OK


def _reset(args: argparse.Namespace) -> int:
    from controller import operate
    from controller.clock import RealClock
    from controller.instance import find, open_image

    running = find(args.site)
    number = operate.reset(running, open_image(running, writable=True), RealClock())
    print(f"{operate.named(number)}: reset asked; FAULT ends when its causes are gone (`ballast status` names them)")
    return EXIT_OK


def _console(args: argparse.Namespace) -> int:
    from controller.console.serve import run
    from controller.problems import Problem

    if not 10 <= args.idle <= 86400:
        raise SiteError([Problem("", "--idle", args.idle, "is outside 10 to 86400 s", "a console that never logs out is an open door")])
    return run(args.port, args.baud, args.site, args.idle)


def _test(args: argparse.Namespace) -> int:
    from controller import desk
    from controller.instance import find

    return commission.main(args, lambda request: desk.ask(find(args.site), request))


def _version(args: argparse.Namespace) -> int:
    from importlib.metadata import PackageNotFoundError, version

    from _core.image import LAYOUT

    try:
        number = version("ballast-controller")
    except PackageNotFoundError:
        number = "not installed"
    print(f"ballast {number}, image layout {LAYOUT:#x}, Python {sys.version.split()[0]}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
