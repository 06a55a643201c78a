"""The full-rate record: every tick as the engine published it, in segments that can be read alone.

A segment is `MAGIC, u32 length, payload, u32 CRC-32 of the payload` (little endian); the payload is one msgpack map:

    v, layout, settings   format version, hash of the image's layout, sha256 of the site's settings
    from, next            ring positions of the first record and after the last; next - from > n: the ring was faster
    n, size               count and bytes of the records
    state                 the kernel's State before the first record; null where it could not be taken at that tick,
                          and in the first segment of a run (`from` 0), which begins with the kernel's reset
    wall_s                wall time at which the segment was closed
    records               n x size bytes

Files are only appended to. A torn tail (power lost in mid-write) costs that segment; a damaged one in the middle
costs itself alone.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgpack

MAGIC = b"\x93BLST\r\n\x1a"  # a byte that is no text, and both line ends: a transfer in text mode breaks it visibly
VERSION = 1
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


@dataclass(frozen=True)
class Damage:
    """A stretch of the file that is no segment: where, how long, and why."""

    offset: int
    length: int
    why: str


class RecordWriter:
    """Appends segments; keeps sha256 over everything in the file.

    `path` None writes nothing and still hashes (a simulation without --out). `sync`: wait for the disk after each
    segment.
    """

    def __init__(self, path: Path | None, *, layout: int, settings: str, record_size: int, sync: bool = False) -> None:
        self.layout, self.settings, self.size, self.sync = layout, settings, record_size, sync
        self.next: int | None = None  # ring position after the last record in the file; None: an empty file
        self.segments = 0
        self._path = path
        self._hash: hashlib._Hash | None = hashlib.sha256()  # None after a resume: then the file is hashed at the end
        self._state: bytes | None = None
        self._parts: list[bytes] = []
        self._from = 0
        self._file: BinaryIO | None = None
        if path is not None:
            self._file = self._resume(path)

    def _resume(self, path: Path) -> BinaryIO:
        """Opens for appending after the last whole segment; a torn tail is cut off, for it would hide what follows.

        Walks from length to length, so that a supervisor restarted late in a long run is back at once.
        """
        file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        size, at, last = file.seek(0, os.SEEK_END), 0, -1
        while at < size:
            length = _length_at(file, at, size)
            if length is None:
                break
            last, at = at, at + length
            self.segments += 1
        if last >= 0:
            file.seek(last)
            segment, _, _ = _segment(file.read(at - last), 0)
            if segment is None:
                at, self.segments = last, self.segments - 1
            else:
                self.next = segment.next
        file.truncate(at)
        file.seek(at)
        self._hash = None if at else self._hash
        return file

    def add(self, records: bytes, first: int, after: int) -> None:
        """Records of ring positions `first` to `after`, kept until `flush`."""
        if not self._parts:
            self._from = first
        if records:
            self._parts.append(records)
        self.next = after

    def flush(self, state_after: bytes | None, wall_s: float) -> None:
        """Closes the segment. `state_after`: the kernel's State after its last record; it begins the next one."""
        records = b"".join(self._parts)
        if records:
            payload = msgpack.packb(
                {
                    "v": VERSION,
                    "layout": self.layout,
                    "settings": self.settings,
                    "from": self._from,
                    "next": self.next,
                    "n": len(records) // self.size,
                    "size": self.size,
                    "state": self._state,
                    "wall_s": wall_s,
                    "records": records,
                }
            )
            self._write(b"".join((MAGIC, _LENGTH.pack(len(payload)), payload, _LENGTH.pack(zlib.crc32(payload)))))
            self.segments += 1
        self._parts.clear()
        self._state = state_after

    def _write(self, data: bytes) -> None:
        if self._hash is not None:
            self._hash.update(data)
        if self._file is None:
            return
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        if self.sync:
            os.fdatasync(self._file.fileno())

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


def read(path: Path, *, layout: int | None = None) -> Iterator[Segment | Damage]:
    """All segments in order, with the damage between them. Raises RecordError for no file, no record, or another
    build's layout.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise RecordError(f"{path}: {e.strerror}") from None
    if data and MAGIC not in data:
        raise RecordError(f"{path}: is no record of ballast")
    for item, _ in _scan(data):
        if isinstance(item, Segment) and layout is not None and item.layout != layout:
            raise RecordError(f"{path}: was recorded by another build (layout {item.layout:#x}, this one {layout:#x})")
        yield item


def _scan(data: bytes) -> Iterator[tuple[Segment | Damage, int]]:
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


def _segment(data: bytes, at: int) -> tuple[Segment | None, int, str]:
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
    segment = Segment(m["layout"], m["settings"], m["from"], m["next"], m["n"], m["size"], m["state"], m["wall_s"], m["records"])
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
