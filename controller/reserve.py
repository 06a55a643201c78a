"""Where the audit trail goes on when the disk takes no more: a file whose blocks exist already.

1 MB, written in full when it is made, then only overwritten: it needs no new block of a full disk. 16 bytes of head,
then rows as `u32 length, u32 CRC-32, msgpack`. A row is on the disk when `add` returns. The store takes the rows back
as soon as it can write again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from controller.instance import take

SIZE = 1 << 20  # some 8,000 rows: at the limit of 20 a second seven minutes of the worst, at the usual rate days
TURN_S = 1.0  # for the other process to be done with it
MAGIC = b"BLSTRSV1"
_HEAD = struct.Struct("<8sq")  # magic, number of the last row that was taken back
_ROW = struct.Struct("<II")


class ReserveError(Exception):
    """The reserve is absent, full, or cannot be written; the message says which."""


class Reserve:
    """The reserve of one store; processes take turns by flock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self, last: int = 0) -> None:
        """Makes the file where there is none of the right size, to count on from `last`; a disk without room for it is
        no error here.
        """
        with contextlib.suppress(OSError):
            if self.path.stat().st_size == SIZE:
                return
        new = self.path.with_suffix(".new")
        try:
            with open(new, "wb") as file:
                file.write(_HEAD.pack(MAGIC, last) + bytes(SIZE - _HEAD.size))  # zeros that are written, not a hole
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()

    def usable(self) -> bool:
        """The file is there, of the right size, and may be written."""
        try:
            return self.path.stat().st_size == SIZE and os.access(self.path, os.W_OK)
        except OSError:
            return False

    def empty(self) -> bool:
        """No row waits."""
        try:
            with open(self.path, "rb") as file:
                return not file.read(_HEAD.size + _ROW.size)[_HEAD.size :].strip(b"\0")
        except OSError:
            return True

    def add(self, row: tuple[Any, ...]) -> int:
        """Durable on return. The row's number, counted from -1 down. Raises ReserveError."""
        try:
            with self._locked() as fd:
                data = os.pread(fd, SIZE, 0)
                rows, at = _rows(data)
                number = min((int(r[0]) for r in rows), default=_HEAD.unpack_from(data)[1]) - 1
                body = msgpack.packb([number, *row])
                frame = _ROW.pack(len(body), zlib.crc32(body)) + body
                if at + len(frame) > SIZE:
                    raise ReserveError(f"{self.path} is full: {len(rows)} rows wait")
                os.pwrite(fd, frame, at)
                os.fdatasync(fd)
                return number
        except OSError as e:
            raise ReserveError(f"{self.path}: {e.strerror}") from None

    @contextlib.contextmanager
    def held(self) -> Iterator[list[list[Any]]]:
        """The rows that wait, while nobody else can add one; empty where there is no reserve."""
        with contextlib.ExitStack() as stack:
            rows: list[list[Any]] = []
            with contextlib.suppress(OSError):
                fd = stack.enter_context(self._locked(os.O_RDONLY))
                rows = _rows(os.pread(fd, SIZE, 0))[0]
            yield rows

    def clear(self) -> None:
        """Empties it, within `held`. What counts the rows stays, so that no number comes twice."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                data = os.pread(fd, SIZE, 0)
                rows, at = _rows(data)
                last = min((int(r[0]) for r in rows), default=_HEAD.unpack_from(data)[1])
                os.pwrite(fd, _HEAD.pack(MAGIC, last) + bytes(max(0, at - _HEAD.size)), 0)
                os.fdatasync(fd)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def _locked(self, flags: int = os.O_RDWR) -> Iterator[int]:
        fd = os.open(self.path, flags | os.O_CLOEXEC)
        try:
            # a holder that was stopped in the middle must not make an operator's `hold 0` wait
            if not take(fd, TURN_S):
                raise OSError(errno.EBUSY, f"another process has held it for {TURN_S:g} s", str(self.path))
            yield fd
        finally:
            os.close(fd)


def _rows(data: bytes) -> tuple[list[list[Any]], int]:
    """Whole rows, and the offset after the last: a torn one is overwritten by the next."""
    rows, at = [], _HEAD.size
    while at + _ROW.size <= len(data):
        length, crc = _ROW.unpack_from(data, at)
        body = data[at + _ROW.size : at + _ROW.size + length]
        if not length or len(body) < length or zlib.crc32(body) != crc:
            break
        rows.append(msgpack.unpackb(body))
        at += _ROW.size + length
    return rows, at
