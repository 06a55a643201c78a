"""`ballast sniff` on CAN: frames of a SocketCAN interface or an slcan adapter, decoded by profiles and DBC files."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hal.can import ErrorCounter, SlcanReader, decode_signal, from_socket

from controller.clock import Clock, RealClock
from controller.problems import Problem, SiteError
from controller.process import EXIT_FAILED, EXIT_OK
from controller.site import Bus
from controller.tools import ports, sniff, values
from controller.tools.values import Value
from hal.candbc import DbcError, DbcMessage, load_dbc
from hal.canrows import CanMap, Frame, Received, Signal
from hal.frames import PERMIT, permit

CAN_STRUCT = 72  # bytes: one read of a SocketCAN descriptor gives one frame
MAX_IDS = 4096


@dataclass
class Ids:
    """What one identifier did: frames, their times, the last payload."""

    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    longest_ns: int = 0
    frame: Frame | None = None
    payloads: list[bytes] = field(default_factory=list)

    @property
    def period_ms(self) -> float:
        """Mean time between frames; 0: only one came."""
        return (self.last_ns - self.first_ns) / 1e6 / (self.count - 1) if self.count > 1 else 0.0


class Ear:
    """Bytes of the port into frames; counts what was none."""

    def __init__(self, bus: Bus) -> None:
        self.socket = bus.port.startswith("can:")
        self.slcan, self.errors, self.junk = SlcanReader(), ErrorCounter(), 0
        self.ids: dict[tuple[int, bool], Ids] = {}

    def feed(self, data: bytes, now_ns: int) -> list[Frame]:
        """The data frames in what one read gave."""
        if self.socket:
            frame = from_socket(data)
            found = [frame] if frame is not None else []
        else:
            heard = self.slcan.feed(data)
            self.junk += sum(what == "junk" for what, _ in heard)
            found = [f for what, f in heard if what == "frame"]
        out = []
        for f in found:
            if f.err:
                self.errors.socket(f)
            else:
                out.append(f)
                self._note(f, now_ns)
        return out

    def _note(self, f: Frame, now_ns: int) -> None:
        key = (f.id, f.ext)
        if key not in self.ids and len(self.ids) >= MAX_IDS:
            return
        row = self.ids.setdefault(key, Ids(first_ns=now_ns, last_ns=now_ns))
        row.longest_ns = max(row.longest_ns, now_ns - row.last_ns)
        row.count, row.last_ns, row.frame = row.count + 1, now_ns, f
        if len(row.payloads) < 8 and f.data not in row.payloads:
            row.payloads.append(f.data)


def collect(fd: int, bus: Bus, seconds: float) -> dict[tuple[int, bool], Ids]:
    """What came in so many seconds, by identifier. Raises OSError where the port is gone."""
    ear, clock = Ear(bus), RealClock()
    for data in sniff.reads(fd, clock, seconds, CAN_STRUCT if ear.socket else 4096):
        ear.feed(data, clock.monotonic_ns())
    return ear.ids


def main(bus: Bus, maps: sniff.Maps, args: argparse.Namespace) -> int:
    """Prints frames until the time is over or Ctrl-C; then the identifiers. Raises SiteError, ports.Busy."""
    messages: dict[tuple[int, bool], DbcMessage] = {}
    if args.dbc:
        try:
            messages = {(m.id, m.ext): m for m in load_dbc(Path(args.dbc)).values()}
        except DbcError as e:
            raise SiteError([Problem("", "--dbc", args.dbc, str(e), "the path of a .dbc file")]) from None
    devices = [d.at(unit) for unit, d in maps.by_unit.items() if isinstance(d, CanMap)] + [d for d in maps.every if isinstance(d, CanMap)]
    clock = RealClock()
    with ports.opened(bus, silent=not args.join) as fd:
        return _listen(fd, bus, devices, messages, clock, args)


def _listen(
    fd: int, bus: Bus, devices: list[CanMap], messages: dict[tuple[int, bool], DbcMessage], clock: Clock, args: argparse.Namespace
) -> int:
    ear, start_ns, code = Ear(bus), clock.monotonic_ns(), EXIT_OK
    if not args.json:
        how = "acknowledges what it hears" if args.join and not ear.socket else "sends nothing"
        print(f"{bus.port}: {bus.speed if not ear.socket else 'CAN'}; {how}")
    try:
        for data in sniff.reads(fd, clock, args.for_s, CAN_STRUCT if ear.socket else 4096):
            now_ns = clock.monotonic_ns()
            for f in ear.feed(data, now_ns) if data else []:
                rows = list(decode(f, devices, messages))
                t_s = (now_ns - start_ns) / 1e9
                print(json.dumps(_json(f, rows, t_s)) if args.json else text(f, rows, t_s), flush=True)
    except KeyboardInterrupt:
        pass
    except OSError as e:
        print(f"{bus.port}: the port is gone ({e.strerror})")
        code = EXIT_FAILED
    if args.json:
        print(
            json.dumps(
                {"summary": {"ids": [_id_json(*item) for item in sorted(ear.ids.items())], "errors": ear.errors.counts(), "junk": ear.junk}}
            )
        )
    else:
        print("\n".join(summary(ear, bus, args.join)))
    return code


def decode(f: Frame, devices: list[CanMap], messages: dict[tuple[int, bool], DbcMessage]) -> Iterator[Value]:
    """Values of a frame: by the profiles that know it, then by the DBC."""
    for device in devices:
        for r in device.frames:
            if (r.id, r.ext) == (f.id, f.ext):
                yield from of_frame(r, f.data)
    message = messages.get((f.id, f.ext))
    for s in message.signals.values() if message else ():
        plain = Signal(s.name, s.start, s.length, s.byte_order, s.signed, s.real, 1.0, mux=s.mux)
        raw, how = decode_signal(plain, f.data)
        if how != "other":
            place = f"{f.id:#x}"
            # A DBC's scale may be negative, a profile's is not.
            yield Value(
                place,
                s.name,
                f.data.hex(" ").upper(),
                raw * s.scale + s.offset if math.isfinite(raw) else None,
                s.unit,
                "" if how == "ok" else how,
            )


def of_frame(r: Received, data: bytes) -> Iterator[Value]:
    """What a profile's frame makes of a payload; permits as `given` and `withheld`."""
    place, raw = f"{r.id:#x}", data.hex(" ").upper()
    for s in r.signals:
        if not s.permit:
            x, how = decode_signal(s, data)
            if how != "other":
                yield Value(place, s.name, raw, x if math.isfinite(x) else None, values.unit_of(s.name), "" if how == "ok" else how)
    for name in dict.fromkeys(s.name for s in r.signals if s.permit):
        yield Value(place, PERMIT + name, raw, permit(r, name, data))


def of_map(device: CanMap, heard: dict[tuple[int, bool], Ids]) -> list[Value]:
    """Everything a profile knows, out of the last frame of each kind."""
    out = []
    for r in device.frames:
        row = heard.get((r.id, r.ext))
        if row is None or row.frame is None:
            out.append(Value(f"{r.id:#x}", ", ".join(dict.fromkeys(s.name for s in r.signals)), "", None, "", "was not sent"))
            continue
        note = f"every {row.period_ms:.0f} ms" if row.count > 1 else "once"
        out += [Value(v.place, v.name, v.raw, v.value, v.unit, v.note or note) for v in of_frame(r, row.frame.data)]
    return out


def text(f: Frame, rows: list[Value], t_s: float) -> str:
    """One line."""
    number = f"{f.id:08X}" if f.ext else f"{f.id:03X}"
    data = "remote" if f.rtr else f.data.hex(" ").upper()
    shown = ", ".join(f"{v.name} {_shown(v)}" for v in rows)
    return f"{t_s:9.4f}  {number:>8}  [{len(f.data)}]  {data:<23}  {shown}".rstrip()


def _shown(v: Value) -> str:
    if v.value is None:
        return f"- ({v.note})"
    return f"{v.value if isinstance(v.value, str) else format(v.value, '.7g')}{' ' + v.unit if v.unit else ''}"


def _json(f: Frame, rows: list[Value], t_s: float) -> dict[str, Any]:
    known: dict[str, Any] = {"t_s": round(t_s, 6), "id": f.id, "ext": f.ext, "data": f.data.hex()}
    return known | ({"rtr": True} if f.rtr else {}) | ({"values": [v.to_json() for v in rows]} if rows else {})


def _id_json(key: tuple[int, bool], row: Ids) -> dict[str, Any]:
    return {
        "id": key[0],
        "ext": key[1],
        "count": row.count,
        "period_ms": round(row.period_ms, 3),
        "longest_ms": round(row.longest_ns / 1e6, 3),
    }


def summary(ear: Ear, bus: Bus, joined: bool) -> list[str]:
    """The identifiers in words."""
    out = [""]
    for (number, ext), row in sorted(ear.ids.items()):
        size = len(row.frame.data) if row.frame is not None else 0
        often = f"every {row.period_ms:.1f} ms, at most {row.longest_ns / 1e6:.1f}" if row.count > 1 else "once"
        out.append(f"{f'{number:08X}' if ext else f'{number:03X}':>8}  {row.count} frames of {size} bytes, {often}")
    bad = {key: value for key, value in ear.errors.counts().items() if value and value != "active"}
    if bad or ear.junk:
        out.append(f"errors: {', '.join(f'{value} {key}' for key, value in bad.items())}; {ear.junk} lines that are no slcan")
    if not ear.ids:
        out.append("no frame came")
        if not ear.socket and not joined:
            out.append(f"another --bitrate than {bus.bitrate}, or only one node on the bus: nobody acknowledges it, and --join would")
    return out
