"""`ballast sniff`: listens to a Modbus RTU line, pairs requests with answers, decodes them by profiles, and says nothing itself."""

from __future__ import annotations

import argparse
import json
import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hal.modbus import EXCEPTIONS

from controller import build
from controller.clock import Clock, RealClock
from controller.problems import Problem, SiteError
from controller.process import EXIT_FAILED, EXIT_OK
from controller.site import Bus, Site
from controller.tools import ports, values
from controller.tools.probe import bus_of
from controller.tools.values import Value
from hal.canrows import CanMap
from hal.listen import ANSWER, EXCEPTION, NOISE, QUIET_NS, REQUEST, SILENCE, Heard, Listener
from hal.profile import load_profile
from hal.rows import DeviceMap, Encode, Field

MAX_UNITS = 247


@dataclass
class Maps:
    """Which profile decodes which unit; `every`: those of all units."""

    by_unit: dict[int, DeviceMap] = field(default_factory=dict)
    every: list[DeviceMap] = field(default_factory=list)

    def of(self, unit: int) -> list[DeviceMap]:
        return [self.by_unit[unit]] if unit in self.by_unit else self.every


def main(args: argparse.Namespace) -> int:
    """Runs the command. Raises SiteError, ports.Busy, hal.profile.ProfileError."""
    if args.for_s is not None and not 0 < args.for_s <= 86400 * 30:
        raise SiteError([Problem("", "--for", args.for_s, "is no duration", "seconds above 0")])
    bus, maps = bus_and_maps(args)
    if bus.tcp:
        remedy = "listen with tcpdump or Wireshark on the network; `ballast probe` reads a server"
        raise SiteError([Problem("", "PORT", bus.port, "is a connection: nobody else's bytes pass through it", remedy)])
    if bus.can:
        from controller.tools import sniffcan

        return sniffcan.main(bus, maps, args)
    if args.dbc:
        raise SiteError([Problem("", "--dbc", args.dbc, "is for CAN", 'a port such as "can:can0" or "slcan:/dev/ttyACM0"')])
    clock = RealClock()
    with ports.opened(bus) as fd:
        return listen(fd, bus, maps, clock, args.for_s, args.json)


def bus_and_maps(args: argparse.Namespace) -> tuple[Bus, Maps]:
    """The bus of the port as the site file has it, or as the options say; the profiles of its devices. Raises SiteError, ProfileError."""
    maps = Maps()
    bus = bus_of(args.port, args)
    if args.file:
        site = build.load_site(args.file)
        known = next((b for b in site.buses if args.port in (b.port, b.name)), None)
        if known is None:
            here = ", ".join(f"{b.name} ({b.port})" for b in site.buses)
            raise SiteError([Problem(site.file, "PORT", args.port, "is no bus of this site", f"one of {here}")])
        bus = known
        maps.by_unit = _site_maps(site, known)
    for text in args.profile:
        unit, sign, name = text.partition("=")
        device = load_profile(name if sign else text)
        if not sign:
            maps.every.append(device)
        elif unit.isdecimal() and int(unit) <= MAX_UNITS:
            maps.by_unit[int(unit)] = device
        else:
            raise SiteError([Problem("", "--profile", text, "names no unit", "write 1=eastron_sdm630, or a profile for every unit")])
    return bus, maps


def _site_maps(site: Site, bus: Bus) -> dict[int, DeviceMap]:
    """Profiles of the bus's devices by unit; SunSpec maps are known only to those who have asked the device."""
    mine = [d for d in site.devices if d.bus == bus.name and d.profile != build.SUNSPEC]
    return {d.unit: build.profile_of(site, d) for d in mine}


def listen(fd: int, bus: Bus, maps: Maps, clock: Clock, for_s: float | None, as_json: bool) -> int:
    """Prints what is said until the time is over, Ctrl-C, or the port is gone; then the summary."""
    listener = Listener(bus.baud, 9 + (bus.parity != "N") + bus.stop_bits)
    start_ns = clock.monotonic_ns()
    tally = Tally(bus)
    if not as_json:
        print(f"{bus.port}: {bus.speed}; t3.5 is {listener.t35_ns / 1e6:.2f} ms; times are the driver's, a USB adapter adds up to 16 ms")

    def show(heard: list[Heard]) -> None:
        for h in heard:
            tally.add(h)
            rows = decode(h, maps)
            print(json.dumps(_json(h, rows, start_ns)) if as_json else text(h, rows, start_ns), flush=True)

    code = EXIT_OK
    try:
        for data in reads(fd, clock, for_s):
            now_ns = clock.monotonic_ns()
            show(listener.feed(data, now_ns) if data else listener.expire(now_ns))
    except KeyboardInterrupt:
        pass
    except OSError as e:
        print(f"{bus.port}: the port is gone ({e.strerror})")
        code = EXIT_FAILED
    show(listener.end())
    if as_json:
        print(json.dumps({"summary": tally.to_json()}))
    else:
        print("\n".join(tally.lines()))
    return code


def reads(fd: int, clock: Clock, for_s: float | None, size: int = 512) -> Iterator[bytes]:
    """What each read gives, nothing after QUIET_NS of silence; ends with the time. Raises OSError where the port is gone."""
    end_ns = None if for_s is None else clock.monotonic_ns() + round(for_s * 1e9)
    while end_ns is None or clock.monotonic_ns() < end_ns:
        left_s = QUIET_NS / 1e9 if end_ns is None else min(QUIET_NS, max(0, end_ns - clock.monotonic_ns())) / 1e9
        if not select.select([fd], [], [], left_s)[0]:
            yield b""
            continue
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            continue
        if not data:
            raise OSError(5, "hung up")
        yield data


# ---------------------------------------------------------------- what it means


def decode(h: Heard, maps: Maps) -> list[Value]:
    """Values of an answer, or of a write, by the profiles of its unit."""
    out: list[Value] = []
    for device in maps.of(h.unit) if h.kind in (ANSWER, REQUEST) else []:
        if isinstance(device, CanMap):
            continue
        if h.kind == ANSWER and h.addr >= 0:
            words = h.words
            for f in device.fields:
                first = f.addr - h.addr
                if f.fc == (3 if h.fc == 23 else h.fc) and first >= 0 and first + f.words <= len(words):
                    out.append(values.of_field(f, words[first : first + f.words]))
        if h.kind == REQUEST and h.waddr >= 0 and h.fc in (6, 16, 23):
            out += _written(h, device)
    return out


def _written(h: Heard, device: DeviceMap) -> Iterator[Value]:
    for w in device.writes:
        for e in w.encodes:
            first = e.addr - h.waddr
            if w.addr == h.waddr and first + e.words <= len(h.written_words):
                v = values.of_field(as_field(e), h.written_words[first : first + e.words])
                yield Value(v.place, f"{w.purpose}.{e.source or 'const'}", v.raw, v.value, values.unit_of(e.source))


def as_field(e: Encode) -> Field:
    """How a written register reads back into the value that was written."""
    return Field(values.ANY, e.addr, e.type, word_order=e.word_order, byte_order=e.byte_order, scale=e.scale, offset=e.offset, sign=e.sign)


def text(h: Heard, rows: list[Value], start_ns: int) -> str:
    """One line."""
    head = f"{(h.t_ns - start_ns) / 1e9:9.4f}"
    gap = f"gap {h.gap_ns / 1e6:.2f} ms" if h.gap_ns >= 0 else ""
    gap += " (under t3.5)" if h.close else ""
    if h.kind == NOISE:
        shown = h.raw[:16].hex(" ").upper() + (" ..." if len(h.raw) > 16 else "")
        return f"{head}  ??  {len(h.raw)} bytes without a right CRC: {shown}  {gap}".rstrip()
    where = f"unit {h.unit:<3} FC{h.fc:02d}"
    if h.kind == SILENCE:
        return f"{head}  --  {where} {_range(h)} nobody has answered"
    arrow = "->" if h.kind == REQUEST else "<-"
    if h.kind == EXCEPTION:
        code = h.data[0] if h.data else 0
        said = f"exception {code} ({EXCEPTIONS.get(code, 'unknown')})"
    else:
        data = h.written if h.kind == REQUEST else h.data
        said = _range(h) + (f" {data[:32].hex(' ').upper()}{' ...' if len(data) > 32 else ''}" if data else "")
    delay = f"after {h.delay_ns / 1e6:.2f} ms" if h.delay_ns >= 0 else gap
    shown = ", ".join(f"{v.name} {'-' if v.value is None else format(v.value, '.7g')}{' ' + v.unit if v.unit else ''}" for v in rows)
    return "  ".join(x for x in (head, arrow, where, said, delay + (" (under t3.5)" if h.close and h.delay_ns >= 0 else ""), shown) if x)


def _range(h: Heard) -> str:
    parts = [f"{h.addr}+{h.count}"] if h.addr >= 0 else []
    return " ".join(parts + ([f"write {h.waddr}"] if h.waddr >= 0 else []))


def _json(h: Heard, rows: list[Value], start_ns: int) -> dict[str, Any]:
    known: dict[str, Any] = {"t_s": round((h.t_ns - start_ns) / 1e9, 6), "kind": h.kind, "raw": h.raw.hex()}
    if h.unit >= 0:
        known |= {"unit": h.unit, "fc": h.fc}
    for key, value in (("address", h.addr), ("count", h.count), ("write_address", h.waddr)):
        if value >= 0:
            known[key] = value
    for key, ns in (("gap_ms", h.gap_ns), ("delay_ms", h.delay_ns)):
        if ns >= 0:
            known[key] = round(ns / 1e6, 4)
    if h.kind == EXCEPTION and h.data:
        known["exception"] = h.data[0]
    known |= {"under_t35": True} if h.close else {}
    return known | ({"values": [v.to_json() for v in rows]} if rows else {})


# ---------------------------------------------------------------- how much of it


class Tally:
    """Counts by unit and function, and the line's own."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}
        self.noise = self.noise_bytes = self.close = 0

    def add(self, h: Heard) -> None:
        self.close += h.close
        if h.kind == NOISE:
            self.noise += 1
            self.noise_bytes += len(h.raw)
            return
        zero = {"requests": 0, "answers": 0, "exceptions": 0, "unanswered": 0, "delay_min_ms": None, "delay_max_ms": None}
        row = self.rows.setdefault((h.unit, h.fc), zero)
        row[{REQUEST: "requests", ANSWER: "answers", EXCEPTION: "exceptions", SILENCE: "unanswered"}[h.kind]] += 1
        if h.delay_ns >= 0:
            ms = h.delay_ns / 1e6
            for key, best in (("delay_min_ms", min), ("delay_max_ms", max)):
                pick: Callable[..., float] = best
                row[key] = round(ms if row[key] is None else pick(row[key], ms), 3)

    def to_json(self) -> dict[str, Any]:
        rows = [{"unit": unit, "fc": fc, **row} for (unit, fc), row in sorted(self.rows.items())]
        return {"devices": rows, "crc_errors": self.noise, "noise_bytes": self.noise_bytes, "under_t35": self.close}

    def lines(self) -> list[str]:
        """The summary in words."""
        out = [""]
        for (unit, fc), r in sorted(self.rows.items()):
            counts = ", ".join(f"{r[key]} {key}" for key in ("requests", "answers", "exceptions", "unanswered") if r[key])
            span = f"; answers begin {r['delay_min_ms']:.2f} to {r['delay_max_ms']:.2f} ms after" if r["delay_min_ms"] is not None else ""
            out.append(f"unit {unit:<3} FC{fc:02d}  {counts}{span}")
        out.append(
            f"{self.noise} times bytes without a right CRC ({self.noise_bytes} bytes), {self.close} frames after a silence under t3.5"
        )
        if self.noise and not self.rows:
            out.append(f"nothing but noise at {self.bus.speed}: another --baud or --parity")
        if not self.noise and not self.rows:
            out.append("nothing was said: check A and B, the ground, and whether anybody asks on this line")
        return out
