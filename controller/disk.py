"""What the record writer asks of a disk, in one small class: a test puts one in its place that loses power."""

from __future__ import annotations

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
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
