"""`ballast scan`: what answers on serial lines, Modbus TCP servers and CAN buses, all at once; and a first site file from it.

It reads and writes nothing; a port that a running site holds, and a line on which somebody else asks, are left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from controller.problems import Problem, SiteError
from controller.process import EXIT_BUSY, EXIT_FAILED, EXIT_INPUT, EXIT_OK
from controller.settings import BUS
from controller.site import Bus
from controller.summary import clean
from controller.tools import draft, ports, sweep
from controller.tools.sweep import Budget, Result
from hal import tcp

MAX_PORTS = 26
SPARE_S = 2.0  # of the time that was given, for opening and closing
LEAST_S, MOST_S = 3.0, 600.0


def main(args: argparse.Namespace) -> int:
    """Runs the command. Raises SiteError."""
    buses, settings, units = _wanted(args)
    budget = Budget(args.for_s - min(SPARE_S, args.for_s / 4))
    if not args.json:
        many = f"{len(buses)} port{'s' if len(buses) > 1 else ''}"
        print(f"asking on {many}, for {args.for_s:g} s at the most; nothing is written to any device", file=sys.stderr)

    def one(bus: Bus) -> Result | Exception:
        try:
            return _one(bus, settings, budget, units)
        except (SiteError, ports.Busy, OSError) as e:
            return e

    with ThreadPoolExecutor(max_workers=len(buses)) as pool:
        asked = [pool.submit(one, bus) for bus in buses]
        try:
            got = [future.result() for future in asked]
        except KeyboardInterrupt:
            budget.stop()
            raise
    results = [r for r in got if isinstance(r, Result)]
    failed = [(b, e) for b, e in zip(buses, got, strict=True) if isinstance(e, Exception)]
    if args.json:
        print(json.dumps([_json(r) for r in results] + [{"port": b.port, "error": str(e)} for b, e in failed], indent=1))
    else:
        print("\n".join(line for r in results for line in lines(r)))
    for _, e in failed:
        print(e, file=sys.stderr)
    if args.write is not None and results:
        _write(args.write, results, args.json)
    if any(r.found for r in results):
        return EXIT_OK
    if any(isinstance(e, ports.Busy) for _, e in failed):
        return EXIT_BUSY
    return EXIT_INPUT if failed else EXIT_FAILED


# ---------------------------------------------------------------- what is asked


def _wanted(args: argparse.Namespace) -> tuple[list[Bus], Sequence[tuple[int, str]], range]:
    """Buses named a, b, c, the speeds to try, the addresses. Raises SiteError with every problem."""
    problems: list[Problem] = []
    if not args.ports:
        problems.append(Problem("", "PORT", None, "is missing", f"one or more of {', '.join(here()) or '(no port is here)'}, or a host"))
    if len(args.ports) > MAX_PORTS:
        problems.append(Problem("", "PORT", len(args.ports), f"are more than {MAX_PORTS}", "a few at a time"))
    if not LEAST_S <= args.for_s <= MOST_S:
        problems.append(Problem("", "--for", args.for_s, f"is outside {LEAST_S:g} to {MOST_S:g} s", "60 is enough for a usual site"))
    if args.baud is not None and not BUS["baud"].low <= args.baud <= BUS["baud"].high:
        problems.append(Problem("", "--baud", args.baud, f"is outside {BUS['baud'].low:g} to {BUS['baud'].high:g}", "the line's own speed"))
    low, sign, high = args.units.partition("-")
    units = sweep.ALL
    if low.isdecimal() and (high.isdecimal() if sign else True) and 1 <= int(low) <= int(high or low) <= 255:
        units = range(int(low), int(high or low) + 1)
    else:
        problems.append(Problem("", "--units", args.units, "is no range of addresses", "1 to 255, such as 1-32"))
    if args.write is not None and args.write.exists():
        problems.append(Problem(str(args.write), "", None, "exists and is not overwritten", "another name"))
    buses = [b for k, text in enumerate(args.ports[:MAX_PORTS]) if (b := _bus(text, chr(ord("a") + k), problems)) is not None]
    if problems:
        raise SiteError(problems)
    parities = (args.parity,) if args.parity else ("E", "N", "O") if args.baud else ("E", "N")
    if args.baud:
        return buses, [(args.baud, p) for p in parities], units
    return buses, [(b, p) for b, p in sweep.SETTINGS if p in parities] or [(b, args.parity) for b, p in sweep.SETTINGS if p == "E"], units


def _bus(text: str, name: str, problems: list[Problem]) -> Bus | None:
    """What a word on the command line leads to."""
    from hal.canport import interfaces

    port = text
    if text in interfaces():
        port = f"can:{text}"
    elif not text.startswith(("can:", "slcan:", tcp.PREFIX)) and "/" not in text:
        port = tcp.PREFIX + text
    if tcp.is_tcp(port):
        try:
            tcp.parse(port)
        except ValueError as e:
            why, _, remedy = str(e).partition("; ")
            problems.append(Problem("", "PORT", text, why, remedy))
            return None
    return Bus(name, port, 460_800 if port.startswith("slcan:") else 19_200, "E", 1)


def here() -> list[str]:
    """Ports of this machine that could be scanned."""
    from serial.tools import list_ports

    from hal.canport import interfaces

    return [p.device for p in sorted(list_ports.comports())][:8] + [f"can:{name}" for name in interfaces()]


def _one(bus: Bus, settings: Sequence[tuple[int, str]], budget: Budget, units: range) -> Result:
    """One bus, by the way of its kind. Raises SiteError, Busy, OSError."""
    if bus.can:
        from controller.tools import scancan

        return scancan.bus(bus, budget)
    if bus.tcp:
        ports.refuse_owned(bus.port)
        return sweep.server(bus, budget, units)
    with ports.opened(bus) as fd:
        return sweep.line(bus, fd, settings, budget, units)


# ---------------------------------------------------------------- what is said


def lines(r: Result) -> list[str]:
    """A bus in words."""
    out = [f"{r.bus.port}" + (f"   {r.bus.speed}" if r.found else "")]
    for f in r.found:
        roles = "/".join(f.roles) or ("shelf" if f.shelf else "-")
        guess = "" if f.sure else "?"
        out.append(f"  unit {f.unit:<4} {roles:<8} {f.profile + guess or '-':<24} {f.what}")
        out += [f"  {'':<9} {note}" for note in f.notes]
    return out + [f"  {said}" for said in r.said]


def _json(r: Result) -> dict[str, Any]:
    bus: dict[str, Any] = {"port": r.bus.port}
    if r.bus.tcp:
        bus["latency_ms"] = r.bus.latency_ms
    elif r.bus.can:
        bus["bitrate"] = r.bus.bitrate
    else:
        bus |= {"baud": r.bus.baud, "parity": r.bus.parity}
    return bus | {"devices": [clean(f.__dict__) for f in r.found], "notes": r.said}


def _write(path: Path, results: Sequence[Result], quiet: bool) -> None:
    """The draft. Raises SiteError where it cannot be written."""
    try:
        with open(path, "x", encoding="utf-8") as out:
            out.write(draft.text(results, path.name))
    except OSError as e:
        raise SiteError([Problem(str(path), "", None, f"cannot be written: {e.strerror}", "another directory")]) from None
    say: Callable[[str], None] = (lambda text: print(text, file=sys.stderr)) if quiet else print
    say(f"wrote {path}: read it, replace what is marked {draft.UNKNOWN}, then `ballast check {path}`")
