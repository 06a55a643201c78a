"""The site: its file (TOML), `--set` overrides, and every problem with them at once.

`load` is the one way in. What comes out is plain data (`Site`), which travels between the processes as JSON
(`to_dict`, `from_dict`), so that control, supervisor and console act on the very same settings and only the parent
reads files.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from controller import ports, walk
from controller.problems import Problem, SiteError
from controller.settings import SETTINGS, Value, derived
from hal import toml

BUILTIN = Path(__file__).with_name("builtin.toml")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


@dataclass(frozen=True)
class Source:
    """Where a run's settings came from: the file (None: built-in), its text as it was read, the overrides."""

    path: str | None
    text: str
    sets: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | None, sets: Iterable[str] = ()) -> Source:
        """Reads the file. Raises SiteError."""
        return cls(path, read_text(path), tuple(sets))


@dataclass(frozen=True)
class Bus:
    """One bus; `port` is the path of a tty, "tcp://host:port", "can:IFACE", "slcan:TTY", or the virtual cabinet's: "virtual",
    "virtual-tcp", "virtual-can"."""

    name: str
    port: str
    baud: int
    parity: str
    stop_bits: int
    rs485: str = "auto"  # hal.adapter.MODES
    rs485_before_ms: int = 0
    rs485_after_ms: int = 0
    latency_ms: float = 1.0  # TCP
    bitrate: int = 500_000

    @property
    def can(self) -> bool:
        """True for CAN, False for Modbus."""
        return ports.kind(self.port) in (ports.CAN, ports.SLCAN)

    @property
    def tcp(self) -> bool:
        """True for Modbus over TCP, False for a serial line."""
        return ports.kind(self.port) == ports.TCP

    @property
    def virtual(self) -> bool:
        """True where the virtual cabinet is behind it."""
        return self.port in ports.VIRTUALS

    @property
    def foreign(self) -> tuple[str, ...]:
        """Keys of [[bus]] that mean nothing on this kind of bus."""
        return ports.foreign(self.port)

    @property
    def t35_s(self) -> float:
        """Silence that ends a frame on a serial line: 3.5 characters, 1.75 ms above 19200 baud (Modbus over serial line V1.02,
        2.5.1.1)."""
        return 1.75e-3 if self.baud > 19200 else 3.5 * (9 + (self.parity != "N") + self.stop_bits) / self.baud

    @property
    def speed(self) -> str:
        """How it is set, for people."""
        if self.tcp:
            return f"TCP, {self.latency_ms:g} ms there and back"
        return f"CAN, {self.bitrate / 1e3:g} kbit/s" if self.can else f"{self.baud} Bd 8{self.parity}{self.stop_bits}"


@dataclass(frozen=True)
class Device:
    """One device: a profile bound to a role at an address."""

    name: str
    role: str
    bus: str
    unit: int
    profile: str
    turnaround_ms: float = -1.0  # below 0: what the profile says


@dataclass(frozen=True)
class Shelf:
    """Devices of one kind on one serial port beside the tick: read by a process of their own, never part of the plan."""

    name: str
    port: str
    profile: str
    units: tuple[int, ...]
    baud: int
    parity: str
    stop_bits: int = 1
    allow: tuple[str, ...] = ()  # what may be written


@dataclass(frozen=True)
class ScheduleRow:
    """base_w is added to the target of grid import from `start_s` to `end_s` (seconds of the local day; end <= start:
    the next day).
    """

    start_s: int
    end_s: int
    days: tuple[int, ...]  # weekdays on which it begins, Monday 0
    base_w: float


@dataclass
class Site:
    """Every setting in force, and where it came from."""

    file: str
    values: dict[str, Value]
    buses: list[Bus]
    devices: list[Device]
    schedule: list[ScheduleRow]
    shelves: list[Shelf] = field(default_factory=list)
    plant: dict[str, Value] = field(default_factory=dict)  # overrides meant for the virtual cabinet
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Names the runtime directory and the records."""
        return str(self.values["site.name"])

    @property
    def virtual(self) -> bool:
        """True where the buses lead to the virtual cabinet."""
        return all(bus.virtual for bus in self.buses)

    def num(self, key: str) -> float:
        """A numeric setting, in the unit its name ends with."""
        return float(self.values[key])

    def flat(self) -> dict[str, Value]:
        """Every single setting, and every key of a bus or device as `--set` spells it (`bus.a.baud`)."""
        rows = [("bus", b.name, {k: v for k, v in asdict(b).items() if k not in b.foreign}) for b in self.buses]
        rows += [("device", d.name, asdict(d)) for d in self.devices]
        return self.values | {f"{array}.{name}.{key}": value for array, name, row in rows for key, value in row.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Site:
        """The Site that `to_dict` wrote; trusts its input, which only the parent writes."""
        return cls(
            file=data["file"],
            values=dict(data["values"]),
            buses=[Bus(**row) for row in data["buses"]],
            devices=[Device(**row) for row in data["devices"]],
            schedule=[ScheduleRow(r["start_s"], r["end_s"], tuple(r["days"]), r["base_w"]) for r in data["schedule"]],
            shelves=[Shelf(**row | {"units": tuple(row["units"]), "allow": tuple(row["allow"])}) for row in data["shelves"]],
            plant=dict(data["plant"]),
            notes=list(data["notes"]),
        )

    def devices_hash(self) -> str:
        """sha256 of what the device maps depend on: a change of any other setting leaves them as they are."""
        data = [str(Path(self.file).parent), [asdict(b) for b in self.buses], [asdict(d) for d in self.devices]]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def settings_hash(self) -> str:
        """sha256 of everything that decides what the kernel does; stands in each segment of a record."""
        data = self.to_dict()
        for key in ("file", "notes", "plant", "shelves"):
            data.pop(key)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def load(
    path: str | Path | None,
    sets: Iterable[str] = (),
    plant_keys: Callable[[], Iterable[str]] | None = None,
    also: Callable[[Site], list[Problem]] | None = None,
    *,
    text: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Site:
    """The site of a file (None: the built-in one) with `KEY=VALUE` overrides.

    `plant_keys` names the settings of the virtual cabinet; it is called only when an override is no setting of the
    site. `text`: what to take for the content of that file (it may have been edited since). `changes`: typed values by
    key, which outrank the overrides. Raises SiteError with every problem of the file and of the overrides together.
    """
    label = "built-in site" if path is None else str(path)
    raw = parse(text if text is not None else read_text(path), label)
    problems: list[Problem] = []
    plant = _apply_sets(raw, list(sets), plant_keys, problems)
    for key, value in (changes or {}).items():
        if not walk.put(raw, key, value):
            remedy = walk.near(key, [*SETTINGS, *walk.row_keys(raw)])
            problems.append(Problem(label, key, value, "no such setting of this site", remedy))
    values = walk.settings(raw, label, problems)
    buses, devices, shelves, rows = walk.tables(raw, label, problems)
    site = Site(
        file=label,
        values=values,
        buses=[Bus(**row) for row in buses],
        devices=[Device(**row) for row in devices],
        schedule=[s for s in (_schedule_row(row, i, label, problems) for i, row in enumerate(rows, 1)) if s is not None],
        plant=plant,
    )
    from controller.relations import check  # not at the top: relations names Site
    from controller.shelves.rules import bind

    site.shelves = bind(shelves, site, problems)

    if not walk.stands(raw, SETTINGS["load.peak_w"]):
        site.notes.append("load.peak_w is not given: taken to stay within grid.feeder_w, and not checked")
    if "site.f_nom_hz" in values:
        for key, row in SETTINGS.items():
            if row.default is None and not row.needed and not walk.stands(raw, row):
                values[key] = derived(key, values)
    check(site, raw, problems)
    problems += also(site) if also is not None else []
    if problems:
        raise SiteError(problems)
    return site


def read_text(path: str | Path | None) -> str:
    """The text of a site file (None: of the built-in site). Raises SiteError."""
    source, label = (BUILTIN, "built-in site") if path is None else (Path(path), str(path))
    try:
        return source.read_bytes().decode("utf-8")
    except OSError as e:
        reason = e.strerror or str(e)
        raise SiteError([Problem(label, "", None, f"cannot be read: {reason}", "give the path of a site file")]) from None
    except UnicodeDecodeError as e:
        raise SiteError([Problem(label, "", None, f"is not UTF-8 text (byte {e.start})", "save it as UTF-8")]) from None


def parse(text: str, label: str) -> dict[str, Any]:
    """The tables of a site file's text. Raises SiteError that names `label`."""
    try:
        return toml.read(text)
    except toml.TomlError as e:
        raise SiteError([Problem(label, "", None, str(e), 'a line is `key = 1.5`, `key = "text"` or `[table]`')]) from None


def _apply_sets(
    raw: dict[str, Any],
    sets: list[str],
    plant_keys: Callable[[], Iterable[str]] | None,
    problems: list[Problem],
) -> dict[str, Value]:
    """Puts the overrides into `raw`; returns those that are the plant's.

    A key is looked up in the site first (`grid.import_limit_w`, `bus.a.baud`, `device.meter.unit`), then among the
    plant's settings (`battery.soc`); `plant.` forces the plant, for the keys both have (`plant.pcs.tau_s`: the
    cabinet differs from what the site believes).
    """
    plant: dict[str, Value] = {}
    names: set[str] | None = None
    for text in sets:
        key, sign, value_text = text.partition("=")
        key = key.strip()
        if not sign or not key:
            problems.append(Problem("--set", text, None, "is not KEY=VALUE", "write --set grid.import_limit_w=445000"))
            continue
        value = parse_value(value_text)
        forced = key.startswith("plant.")
        if not forced and walk.put(raw, key, value):
            continue
        if names is None:
            names = set(plant_keys()) if plant_keys is not None else set()
        plant_key = key.removeprefix("plant.")
        if plant_key not in names:
            known = [*SETTINGS, *walk.row_keys(raw), *names]
            problems.append(Problem("--set", key, value, "no such setting of the site or the virtual cabinet", walk.near(key, known)))
        elif isinstance(value, (bool, int, float)):
            plant[plant_key] = float(value)
        else:
            problems.append(Problem("--set", key, value, "is not a number", "the virtual cabinet's settings are numbers"))
    return plant


def parse_value(text: str) -> Any:
    """The value of KEY=VALUE: what TOML makes of it, or else the bare text."""
    try:
        return toml.read(f"x = {text.strip()}\n")["x"]
    except (toml.TomlError, KeyError):
        return text.strip()


def _schedule_row(row: dict[str, Any], number: int, label: str, problems: list[Problem]) -> ScheduleRow | None:
    start, end = _clock_s(row["from"]), _clock_s(row["to"])
    for name, seconds in (("from", start), ("to", end)):
        if seconds is None:
            problems.append(Problem(label, f"schedule[{number}].{name}", row[name], "is no time of day", 'write "22:00"'))
    if start is None or end is None:
        return None
    return ScheduleRow(start, end % 86400, tuple(row["days"]), float(row["base_w"]))


def _clock_s(text: str) -> int | None:
    """Seconds since midnight of "HH:MM" (00:00 to 24:00); None where it is no such text."""
    hours, sign, minutes = text.partition(":")
    if not sign or not hours.isdecimal() or not minutes.isdecimal() or len(minutes) != 2:
        return None
    total = int(hours) * 3600 + int(minutes) * 60
    return total if int(minutes) < 60 and total <= 86400 else None


def valid_name(name: str) -> bool:
    """True for a name that may stand in a path and in a record."""
    return bool(name) and set(name) <= _NAME


def finite(x: object) -> bool:
    """True for a finite number that is no boolean."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) <= sys.float_info.max
