"""What is known of the devices beside the tick: one row each in a file of the runtime directory that everybody maps.

One writer, the process that reads the shelves. A row carries its own CRC: a reader that meets a row in the middle of a change reads
it again, and a writer that was killed there spoils one row until it writes it anew. Every value has its own time.
"""

from __future__ import annotations

import math
import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.site import Shelf
from hal.shelf import SIGNALS, ShelfMap, load_shelf

NAME = "shelves"  # in the runtime directory
ITEMS = "shelves.json"  # every item of every device, for people
SOCKET = "shelves.socket"  # writes are asked for there
VALUES = max(map(len, SIGNALS.values()))
ROW = np.dtype(
    [
        ("crc", "<u4"),
        ("online", "<u4"),
        ("ok", "<u4"),
        ("timeouts", "<u4"),
        ("errors", "<u4"),
        ("writes", "<u4"),
        ("t_ns", "<i8", (VALUES,)),  # CLOCK_MONOTONIC at which the device took the value; 0: never
        ("value", "<f8", (VALUES,)),
    ]
)
TRIES = 8
STALE_S = 10.0  # ten sweeps and more: whoever read it does no longer, whatever was said of the device


@dataclass(frozen=True)
class Slot:
    """One device beside the tick: its place in the table, and how it is reached."""

    index: int
    name: str  # "rack1.200"
    shelf: Shelf
    unit: int
    map: ShelfMap


@dataclass(frozen=True)
class Reading:
    """One device as the table has it. `values`: signal -> (value in SI, CLOCK_MONOTONIC in ns; 0: never read)."""

    slot: Slot
    online: bool
    ok: int
    timeouts: int
    errors: int
    writes: int
    values: dict[str, tuple[float, int]]

    def answers(self, now_ns: int) -> bool:
        """True where it answered and what the sweep reads of it is of now: a reader that has died says nothing."""
        newest_ns = max((t_ns for _, t_ns in self.values.values()), default=0)
        return self.online and abs(now_ns - newest_ns) <= STALE_S * 1e9  # far ahead: a clock of before a reboot

    def age_s(self, signal: str, now_ns: int) -> float:
        """Seconds since the device took the value; NaN where it never came."""
        t_ns = self.values.get(signal, (math.nan, 0))[1]
        return (now_ns - t_ns) / 1e9 if t_ns else math.nan


def slots(shelves: Sequence[Shelf]) -> list[Slot]:
    """Every device of the shelves, in the order of the site file. Raises ProfileError."""
    out: list[Slot] = []
    maps: dict[str, ShelfMap] = {}
    for shelf in shelves:
        if shelf.profile not in maps:
            maps[shelf.profile] = load_shelf(shelf.profile)
        for unit in shelf.units:
            out.append(Slot(len(out), f"{shelf.name}.{unit}", shelf, unit, maps[shelf.profile]))
    return out


class Table:
    """The mapped file. `write`: by the one process that reads the shelves, which makes it. Raises OSError."""

    def __init__(self, directory: Path, rows: Sequence[Slot], write: bool = False) -> None:
        self.slots = list(rows)
        # A row is read as what it was written as: that of another device, or by another profile, has another CRC.
        self._seeds = [zlib.crc32(f"{slot.name} {slot.map}".encode()) for slot in self.slots]
        size = max(1, len(self.slots)) * ROW.itemsize
        fd = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC if write else os.O_RDONLY | os.O_CLOEXEC, 0o600)
        try:
            if write and os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
            if os.fstat(fd).st_size != size:
                raise OSError(0, "belongs to other shelves")
            self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
        finally:
            os.close(fd)

    def put(self, index: int, row: np.ndarray) -> None:
        """One device's row: an array of shape () and dtype ROW, whose CRC is set here."""
        at = index * ROW.itemsize
        body = row.tobytes()[4:]
        self._map[at : at + 4] = b"\0\0\0\0"
        self._map[at + 4 : at + ROW.itemsize] = body
        self._map[at : at + 4] = (zlib.crc32(body, self._seeds[index]) or 1).to_bytes(4, "little")

    def row(self, index: int) -> np.ndarray | None:
        """The row as it was written last; None where none was, or none comes whole."""
        at = index * ROW.itemsize
        for _ in range(TRIES):
            data = bytes(self._map[at : at + ROW.itemsize])
            if int.from_bytes(data[:4], "little") == (zlib.crc32(data[4:], self._seeds[index]) or 1):
                return np.frombuffer(data, ROW)[0]
        return None

    def reading(self, index: int) -> Reading:
        """One device; offline and without values where nothing is known of it."""
        slot, row = self.slots[index], self.row(index)
        names = [name for name, _, _ in slot.map.signals]
        if row is None:
            return Reading(slot, False, 0, 0, 0, 0, {name: (math.nan, 0) for name in names})
        values = {name: (float(row["value"][k]), int(row["t_ns"][k])) for k, name in enumerate(names)}
        ok, timeouts, errors, writes = (int(row[key]) for key in ("ok", "timeouts", "errors", "writes"))
        return Reading(slot, bool(row["online"]), ok, timeouts, errors, writes, values)

    def readings(self) -> list[Reading]:
        """All of them."""
        return [self.reading(k) for k in range(len(self.slots))]


def total(readings: Sequence[Reading], signal: str, role: str, now_ns: int, fresh_s: float = 2.0) -> tuple[float, int, int]:
    """(sum, how many gave it, how many of that role there are) of one signal, without values older than `fresh_s`."""
    rows = [r for r in readings if r.slot.map.role == role]
    fresh = [r.values[signal][0] for r in rows if signal in r.values and r.online and r.age_s(signal, now_ns) <= fresh_s]
    return math.fsum(fresh), len(fresh), len(rows)


__all__ = ["ITEMS", "NAME", "ROW", "SOCKET", "VALUES", "Reading", "Slot", "Table", "slots", "total"]
