"""What is asked of a disk: files that are replaced in one step, and, for the record writer, a small class in whose place a test puts one
that loses power.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO


class Files:
    """Files that survive a power cut: content by `sync`, the name by a sync of the directory when it is made."""

    def open(self, path: Path) -> BinaryIO:
        """For reading and appending, made where there is none. Raises OSError."""
        if path.exists():
            return open(path, "r+b", buffering=0)
        file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self.sync_directory(path.parent)
        return file

    def sync(self, file: BinaryIO) -> None:
        """Content and length are on the disk when this returns. Raises OSError."""
        os.fdatasync(file.fileno())

    def sync_directory(self, path: Path) -> None:
        """New names and removals in it are on the disk."""
        sync_directory(path)


def sync_directory(path: Path) -> None:
    """New names and removals in it are on the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """All of it, however little one write takes. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace(path: Path, data: bytes, mode: int = 0o600, durable: bool = True) -> None:
    """Replaces a file (or makes it) in one step: a reader, and a power cut, find the old one or the new one.

    `durable`: it is on the disk when this returns; without, only readers are served. One writer at a time: the caller's lock.
    Raises OSError: nothing has changed then and nothing is left over, unless it was the last step that failed, the directory's sync.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
        if durable:
            os.fsync(fd)
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    finally:
        os.close(fd)
    if durable:
        sync_directory(path.parent)
