"""`ballast probe`: reads and decodes one device, of a site or by its port; writes one register where an engineer answers for it.

A device of a running site is not read a second time: its line belongs to control. What it last said stands in the image.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _core import image as core
from controller import build, explain, instance
from controller.clock import Clock, RealClock
from controller.problems import Problem, SiteError
from controller.process import EXIT_FAILED, EXIT_OK
from controller.settings import BUS
from controller.site import Bus, Device, Site
from controller.tools import ports, values
from controller.tools.values import Value
from controller.walk import near
from hal import tcp
from hal.canport import REFUSES_SILENCE
from hal.canrows import CanMap
from hal.profile import load_profile
from hal.rows import MAX_READ_REGISTERS, ROLE_SIGNALS, TYPE_WORDS, DeviceMap, Field
from hal.sunspec import SunSpecError
from hal.wire import BlockingLine, NoAnswer

LISTEN_S = 3.0  # to a CAN device: its slowest frames come once a second


@dataclass(frozen=True)
class Target:
    """What is to be probed. `site` None: by its port alone; `device` None: no profile, SunSpec or bare registers."""

    bus: Bus
    unit: int
    profile: str
    name: str
    site: Site | None = None
    map: DeviceMap | None = None

    @property
    def place(self) -> str:
        return f"{self.name} ({self.bus.port}, unit {self.unit})"


@dataclass(frozen=True)
class Place:
    """A register by its number."""

    fc: int
    addr: int
    count: int
    type: str
    little: bool


def main(args: argparse.Namespace) -> int:
    """Runs the command. Raises SiteError, InstanceError, ports.Busy, hal.profile.ProfileError."""
    clock = RealClock()
    register = args.register
    if args.port or args.host:
        # One word is the register: the device has no name here.
        if args.device and register:
            raise SiteError([Problem("", "DEVICE", args.device, "stands beside --port or --host", "leave it out: --unit names the device")])
        target, register = _by_port(args), register or args.device
    else:
        found = _by_name(args)
        if isinstance(found, ports.Owner):
            if args.write is not None:
                ports.refuse_owned(found.bus.port)
                raise ports.Busy(f"site {found.instance.site} is running: its control is the one that writes; stop it first")
            return show_live(found, args.device, clock, register, args.json)
        target = found
    if isinstance(target.map, CanMap) or target.bus.can:
        return _can(target, args)
    with ports.line(target.bus) as line:
        try:
            if args.write is not None:
                from controller.tools import write

                return write.main(line, target, register, args, clock)
            return show(line, target, register, args)
        except (NoAnswer, SunSpecError) as e:
            print(f"{target.place}: {e}")
            return EXIT_FAILED


# ---------------------------------------------------------------- which device


def _by_port(args: argparse.Namespace) -> Target:
    if args.port and args.host:
        raise SiteError([Problem("", "--host", args.host, "stands beside --port", "keep one of them")])
    port = args.port or (args.host if tcp.is_tcp(args.host) else tcp.PREFIX + args.host)
    bus = bus_of(port, args)
    if args.unit is None:
        raise SiteError(
            [Problem("", "--unit", None, "is missing", f"the device's address, 1 to 247; `ballast scan {args.port or args.host}` finds it")]
        )
    low, high = (0, 255) if bus.tcp else (1, 247)
    if not low <= args.unit <= high:
        raise SiteError([Problem("", "--unit", args.unit, f"is outside {low} to {high}", "the device's address")])
    device = None if args.profile in (None, build.SUNSPEC) else load_profile(args.profile)
    return Target(bus, args.unit, args.profile or "", device.name if device else f"unit {args.unit}", None, device)


def bus_of(port: str, args: argparse.Namespace) -> Bus:
    """A bus of the command line: `--baud`, `--parity`, `--stop-bits`, `--bitrate` where they were given. Raises SiteError."""
    problems = []
    for key in ("baud", "bitrate"):
        value = getattr(args, key, None)
        if value is not None and not BUS[key].low <= value <= BUS[key].high:
            problems.append(Problem("", f"--{key}", value, f"is outside {BUS[key].low:g} to {BUS[key].high:g}", "the line's own rate"))
    if problems:
        raise SiteError(problems)
    baud = args.baud or (460_800 if port.startswith("slcan:") else 19_200)
    return Bus("port", port, baud, args.parity, args.stop_bits, bitrate=getattr(args, "bitrate", None) or 500_000)


def _by_name(args: argparse.Namespace) -> Target | ports.Owner:
    """The device of the site file, or of the running site (then whoever owns its bus)."""
    if not args.device:
        remedy = "a device's name with --file SITE.toml, or --port TTY --unit N, or --host HOST --unit N"
        raise SiteError([Problem("", "DEVICE", None, "is missing", remedy)])
    if args.file is None:
        running = instance.find(args.site)
        site = build.site_from(Path(running.directory) / "site.json")
        device, bus = _device(site, args.device)
        return ports.Owner(running, site, bus)
    site = build.load_site(args.file)
    device, bus = _device(site, args.device)
    if bus.virtual:
        raise SiteError(
            [
                Problem(
                    site.file, f"bus.{bus.name}.port", bus.port, "is made by `ballast run`", "run it, then `ballast probe` without --file"
                )
            ]
        )
    held = ports.owner(bus.port)
    if held is not None and any(d.name == args.device and d.bus == held.bus.name for d in held.site.devices):
        return held
    found = None if device.profile == build.SUNSPEC else build.profile_of(site, device)
    return Target(bus, device.unit, device.profile, device.name, site, found)


def _device(site: Site, name: str) -> tuple[Device, Bus]:
    device = next((d for d in site.devices if d.name == name), None)
    if device is None:
        known = [d.name for d in site.devices]
        raise SiteError([Problem(site.file, "device", name, "is not in this site", near(name, known) or f"one of {', '.join(known)}")])
    return device, next(b for b in site.buses if b.name == device.bus)


# ---------------------------------------------------------------- what it says


def show(line: BlockingLine, target: Target, register: str | None, args: argparse.Namespace) -> int:
    """Prints what was asked for. Raises NoAnswer, SunSpecError, SiteError."""
    rows, head = read(line, target, register, args)
    _print(target.place + head, rows, args.json)
    return EXIT_OK


def read(line: BlockingLine, target: Target, register: str | None, args: argparse.Namespace) -> tuple[list[Value], str]:
    """(rows, what follows the device's name). Raises NoAnswer, SunSpecError, SiteError."""
    place = parse_place(register, args) if register else None
    if place is not None:
        words = line(target.unit, place.fc, place.addr, place.count)
        return values.of_registers(place.fc, place.addr, words, place.type, place.little), ""
    if target.map is not None:
        if register and (field := field_of(target.map, register)) is not None:
            return [values.of_field(field, line(target.unit, field.fc, field.addr, field.words))], ""
        rows = values.of_profile(line, target.unit, target.map)
        head = f": {target.map.name}, {target.map.role}"
    else:
        scan = values.scan_sunspec(line, target.unit)
        rows, head = values.of_sunspec(scan), ": " + ", ".join(x for x in scan.identity if x)
    if register:
        rows = [v for v in rows if v.name == register or v.name.startswith(register + ".")] or _unknown(register, rows)
    return rows, head


def _unknown(register: str, rows: list[Value]) -> list[Value]:
    known = [v.name for v in rows]
    remedy = near(register, known) or "a register such as 3@19000, or one of " + ", ".join(known[:8])
    raise SiteError([Problem("", "REGISTER", register, "is nothing this device has", remedy)])


def field_of(device: DeviceMap, name: str) -> Field | None:
    """The row that feeds this signal."""
    return next((f for f in device.fields if f.signal == name), None)


def parse_place(text: str, args: argparse.Namespace) -> Place | None:
    """`19000`, `0x34`, `3@19000`, `4@52` with --fc, --count, --type; None where it is a name. Raises SiteError."""
    head, sign, tail = text.partition("@")
    try:
        fc, addr = (int(head, 0), int(tail, 0)) if sign else (args.fc, int(text, 0))
    except ValueError:
        return None
    size = TYPE_WORDS.get(args.type or "u16", 1)
    count = args.count or size
    problems = []
    if fc not in (3, 4):
        problems.append(Problem("", "REGISTER", text, f"function {fc} reads nothing here", "3 (holding) or 4 (input registers)"))
    if not 0 <= addr <= 0xFFFF or not 1 <= count <= MAX_READ_REGISTERS or addr + count > 0x10000:
        why = f"{count} registers from there are outside 0 to 65535"
        problems.append(Problem("", "REGISTER", text, why, f"registers count from 0, at most {MAX_READ_REGISTERS} at once"))
    if count % size:
        problems.append(Problem("", "--count", count, f"is no multiple of the {size} registers of {args.type}", f"{size}, or more of them"))
    if problems:
        raise SiteError(problems)
    return Place(fc, addr, count, args.type or "", args.word_order == "little")


def _print(head: str, rows: list[Value], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"device": head, "values": [v.to_json() for v in rows]}, indent=1))
        return
    print(head)
    for text in values.table(rows):
        print("  " + text)


# ---------------------------------------------------------------- of a running site


def show_live(held: ports.Owner, name: str, clock: Clock, register: str | None, as_json: bool) -> int:
    """What control last had from the device; registers themselves are not in the image."""
    device, bus = _device(held.site, name)
    if register and ("@" in register or register[:1].isdigit()):
        raise ports.Busy(
            f"{name}: registers cannot be read beside the control of site {held.instance.site}, which is running; stop it first"
        )
    row = instance.open_image(held.instance, writable=False).latest()
    if row is None:
        print(f"{name}: control has not made its first tick yet; `log` at `ballast console` tells what it waits for")
        return EXIT_FAILED
    age_ms = (clock.monotonic_ns() - row["inp"]["t_ns"]) / 1e6
    rows = [v for v in live_values(row, device.role) if register in (None, v.name)] or _unknown(
        str(register), live_values(row, device.role)
    )
    note = f"{name} (bus {bus.name} of site {held.instance.site}, which is running): as control saw it {age_ms:.0f} ms ago"
    _print(note, rows, as_json)
    if not as_json:
        print("  its registers cannot be read beside control: stop the site, then `ballast probe` with --file SITE.toml")
    return EXIT_OK if age_ms < 1e3 else EXIT_FAILED


def live_values(row: dict[str, Any], role: str) -> list[Value]:
    """The signals of a role out of the image, each with its group's quality and age."""
    out = []
    inp = row["inp"]
    for name, group in inp.items():
        if not isinstance(group, dict) or "g" not in group:
            continue
        mine = [s for s in ROLE_SIGNALS.get(role, ()) if s in group]
        g = group["g"]
        age_ms = (inp["step_t_ns"] - g["t_ns"]) / 1e6 if g["count"] else 0.0
        note = explain.QUALITY[g["quality"]] + (f", {age_ms:.1f} ms old" if g["quality"] != core.Q_NONE else "")
        for signal in mine:
            x = float(group[signal])
            out.append(Value(name, signal, "", x if x == x else None, values.unit_of(signal), note))
    return out


def _can(target: Target, args: argparse.Namespace) -> int:
    """A CAN device is listened to."""
    if args.write is not None:
        raise SiteError([Problem("", "--write", args.write, "a CAN device has no registers", "its profile says what it is sent")])
    if not isinstance(target.map, CanMap):
        raise SiteError([Problem("", "--profile", args.profile, "is missing for a CAN port", "a CAN profile, or `ballast sniff` the port")])
    from controller.tools import sniffcan

    for silent in (True, False):  # at a wrong rate, whoever takes part destroys frames: first without, then for a node that is alone
        try:
            with ports.opened(target.bus, silent=silent) as fd:
                heard = sniffcan.collect(fd, target.bus, LISTEN_S)
        except SiteError as e:
            if not silent or REFUSES_SILENCE not in str(e):
                raise
            continue
        if heard or target.bus.port.startswith("can:"):
            break
    rows = sniffcan.of_map(target.map.at(target.unit), heard)
    _print(f"{target.place}: {target.map.name}, {target.map.role}; listened for {LISTEN_S:g} s", rows, args.json)
    return EXIT_OK if any(v.value is not None for v in rows) else EXIT_FAILED
