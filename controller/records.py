"""The full-rate record: every tick as the engine published it, in segments that can be read alone.

A segment is `MAGIC, u32 length, payload, u32 CRC-32 of the payload` (little endian); the payload is one msgpack map:

    v, layout, settings   format version, hash of the image's layout, sha256 of the site's settings
    from, next            ring positions of the first record and after the last; next - from > n: the ring was faster
    n, size               count and bytes of the records
    state                 the kernel's State before the first record; null where it could not be taken at that tick
    fresh                 true: the segment begins with the kernel's reset (a start of control), and needs no State
    site                  every field of struct Site: with State and records all that a replay needs
    build                 version of ballast, hashes of its kernel and of its table of faults
    wall_s                wall time at which the segment was closed: that of its last record
    records               n x size bytes, consecutive in the ring; a gap or a new start of control begins a segment

Files are only appended to. A torn tail (power lost in mid-write) costs that segment; a damaged one in the middle
costs itself alone. A disk that takes no more costs the segments that it did not take, never the caller: `error` says why,
`lost` counts ticks, and the next segment begins with a State again.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from _core.faults import table_hash
from controller.disk import Files

MAGIC = b"\x93BLST\r\n\x1a"  # a byte that is no text, and both line ends: a transfer in text mode breaks it visibly
VERSION = 2
MAX_PAYLOAD = 64 << 20
_LENGTH = struct.Struct("<I")


class RecordError(Exception):
    """A record that cannot be used at all: absent, or of another build."""


@dataclass(frozen=True)
class Segment:
    """One whole segment, CRC checked."""

    layout: int
    settings: str
    first: int
    next: int
    n: int
    size: int
    state: bytes | None
    wall_s: float
    records: bytes
    fresh: bool = False
    site: dict[str, Any] | None = None
    build: str = ""


@dataclass(frozen=True)
class Damage:
    """A stretch of the file that is no segment: where, how long, and why."""

    offset: int
    length: int
    why: str


class RecordWriter:
    """Appends segments; keeps sha256 over everything in the file.

    `path` None writes nothing and still hashes (a simulation without --out). `sync`: wait for the disk after each
    segment. `site`: the fields of struct Site, set before the first flush. Raises OSError where the file cannot be
    opened; what fails later is in `error` and `lost`.
    """

    def __init__(
        self, path: Path | None, *, layout: int, settings: str, record_size: int, sync: bool = False, files: Files | None = None
    ) -> None:
        self.layout, self.settings, self.size, self.sync = layout, settings, record_size, sync
        self.site: Mapping[str, Any] | None = None
        self.next: int | None = None  # ring position after the last record in the file; None: an empty file
        self.segments = 0
        self.error = ""  # why the last segment is not in the file; empty: it is
        self.lost = 0  # ticks that the disk did not take
        self._path = path
        self._hash: hashlib._Hash | None = hashlib.sha256()  # None after a resume: then the file is hashed at the end
        self._state: bytes | None = None
        self._fresh: bool | None = None  # None: fresh if it begins at ring position 0
        self._parts: list[bytes] = []
        self._from, self._wall_s = 0, 0.0
        self._end = 0  # of the last whole segment in the file
        self._files = files or Files()
        self._file: BinaryIO | None = None
        if path is not None:
            self._file = self._resume(path)

    def _resume(self, path: Path) -> BinaryIO:
        """Opens for appending after the last whole segment; a torn tail is cut off, for it would hide what follows.

        Walks from length to length, so that a supervisor restarted late in a long run is back at once.
        """
        file = self._files.open(path)
        size, at = file.seek(0, os.SEEK_END), 0
        starts = []
        while at < size and (length := _length_at(file, at, size)) is not None:
            starts.append(at)
            at += length
        while starts:  # a cut may leave a tail of the right length with the wrong bytes
            file.seek(starts[-1])
            segment, _, _ = _segment(file.read(at - starts[-1]), 0)
            if segment is not None:
                self.next = segment.next
                break
            at = starts.pop()
        self.segments = len(starts)
        if at < size:
            file.truncate(at)
        file.seek(at)
        self._end = at
        self._hash = None if at else self._hash
        return file

    def begin(self, state: bytes | None, *, fresh: bool = False) -> None:
        """The next record that is added comes right after this State, or after the kernel's reset."""
        self._state, self._fresh = state, fresh

    def add(self, records: bytes, first: int, after: int, wall_s: float = 0.0) -> None:
        """Records of ring positions `first` to `after`, kept until `flush`. Where there are fewer of them, the ring
        was faster: the oldest are gone, and a new segment begins. `wall_s`: wall time of the last of them.
        """
        gap = after - first - len(records) // self.size
        if gap > 0 or (self.next is not None and first > self.next):
            self._close(self._wall_s)
            self.begin(None)
            first += gap
        if not self._parts:
            self._from = first
        if records:
            self._parts.append(records)
        self.next, self._wall_s = after, wall_s

    def flush(self, state_after: bytes | None, wall_s: float, *, fresh: bool = False) -> None:
        """Closes the segment. `state_after`: the kernel's State after its last record; it begins the next one. `fresh`:
        control starts anew after it.
        """
        if self._close(wall_s) or state_after is not None or fresh:
            self.begin(state_after, fresh=fresh)

    def _close(self, wall_s: float) -> bool:
        """False where there was nothing to write."""
        records = b"".join(self._parts)
        self._parts.clear()
        if not records:
            return False
        fresh = self._from == 0 if self._fresh is None else self._fresh
        n = len(records) // self.size
        head = {"v": VERSION, "layout": self.layout, "settings": self.settings, "from": self._from, "next": self._from + n, "n": n}
        head |= {"size": self.size, "state": self._state, "fresh": fresh, "site": dict(self.site or {}) or None}
        payload = msgpack.packb(head | {"build": build_text(), "wall_s": wall_s, "records": records})
        if self._write(b"".join((MAGIC, _LENGTH.pack(len(payload)), payload, _LENGTH.pack(zlib.crc32(payload))))):
            self.segments += 1
        else:
            self.lost += n
        return True

    def _write(self, data: bytes) -> bool:
        """True when the segment is in the file (with `sync`: on the disk); else the file ends where it did."""
        self.error = ""
        if self._file is not None:
            try:
                self._file.seek(self._end)
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
                if self.sync:
                    self._files.sync(self._file)
            except OSError as e:
                self.error = e.strerror or str(e)
                with contextlib.suppress(OSError):
                    self._file.truncate(self._end)
                return False
        self._end += len(data)
        if self._hash is not None:
            self._hash.update(data)
        return True

    def sha256(self) -> str:
        """Over all bytes of the file so far."""
        if self._hash is not None:
            return self._hash.hexdigest()
        return (file_sha256(self._path) if self._path else None) or ""

    def close(self) -> None:
        """Closes the file; `flush` first."""
        if self._file is not None:
            self._file.close()
            self._file = None


@cache
def build_text() -> str:
    """Version of ballast and hashes of its kernel and of the table of faults: a record of another kernel may rightly replay otherwise."""
    from importlib.metadata import PackageNotFoundError, version

    from _core import kernel

    try:
        number = version("ballast-controller")
    except PackageNotFoundError:
        number = "not installed"
    compiled = Path(kernel.__file__)
    source = compiled.with_name("kernel.pyx")  # where it is at hand: its hash is the same on every machine
    kernel_hash = (file_sha256(source) or file_sha256(compiled) or "?")[:12]
    return f"{number}, kernel {kernel_hash}, faults {table_hash()[:12]}"


def read(path: Path, *, layout: int | None = None) -> Iterator[Segment | Damage]:
    """All segments in order, with the damage between them. Raises RecordError for no file, no record, or another
    build's layout.
    """
    try:
        with open(path, "rb") as file:
            # Mapped, not read: the record of an hour is 340 MB. An empty file cannot be mapped.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""
    except OSError as e:
        raise RecordError(f"{path}: {e.strerror}") from None
    if data and data.find(MAGIC) < 0:
        raise RecordError(f"{path}: is no record of ballast")
    for item, _ in _scan(data):
        if isinstance(item, Segment) and layout is not None and item.layout != layout:
            raise RecordError(f"{path}: was recorded by another build (layout {item.layout:#x}, this one {layout:#x})")
        yield item


def _scan(data: bytes | mmap.mmap) -> Iterator[tuple[Segment | Damage, int]]:
    """Segments and damage with the offset after each."""
    at, bad_from, why = 0, 0, ""
    while at < len(data):
        segment, length, reason = _segment(data, at)
        if segment is None:
            why = why or reason
            again = data.find(MAGIC, at + 1)
            at = again if again >= 0 else len(data)
            continue
        if bad_from < at:
            yield Damage(bad_from, at - bad_from, why), at
        at += length
        bad_from, why = at, ""
        yield segment, at
    if bad_from < len(data):
        yield Damage(bad_from, len(data) - bad_from, why), len(data)


def _segment(data: bytes | mmap.mmap, at: int) -> tuple[Segment | None, int, str]:
    """The segment at an offset with its length in the file, or None and why not."""
    head = at + len(MAGIC)
    if data[at:head] != MAGIC or len(data) < head + 4:
        return None, 0, "no segment begins here"
    (length,) = _LENGTH.unpack_from(data, head)
    end = head + 4 + length
    if length > MAX_PAYLOAD or end + 4 > len(data):
        return None, 0, "the segment is cut short"
    payload = data[head + 4 : end]
    if _LENGTH.unpack_from(data, end)[0] != zlib.crc32(payload):
        return None, 0, "CRC differs"
    m = msgpack.unpackb(payload)
    if m.get("v") != VERSION:
        return None, 0, f"format version {m.get('v')}, this build reads {VERSION}"
    if len(m["records"]) != m["n"] * m["size"]:
        return None, 0, "length of the records differs from their count"
    numbers = (m["layout"], m["settings"], m["from"], m["next"], m["n"], m["size"], m["state"], m["wall_s"])
    segment = Segment(*numbers, m["records"], m["fresh"], m["site"], m["build"])
    return segment, end + 4 - at, ""


def _length_at(file: BinaryIO, at: int, size: int) -> int | None:
    """Length of the segment that begins at an offset, by its head alone; None where none fits."""
    file.seek(at)
    head = file.read(len(MAGIC) + 4)
    if len(head) < len(MAGIC) + 4 or not head.startswith(MAGIC):
        return None
    total = len(head) + _LENGTH.unpack_from(head, len(MAGIC))[0] + 4
    return total if at + total <= size else None


def file_sha256(path: Path) -> str | None:
    """sha256 of a record file; None where there is none."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
