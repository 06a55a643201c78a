"""A file layer that loses power: everything that is written, truncated, synced and deleted is kept in a journal, and any
moment of it can be turned into what a disk may hold after a cut.

Model: what was synced is there. Each write or truncation since the last sync of its file has happened, has not, or has
in part; where in part, the rest of its range is as before or garbage. That is what a disk with a volatile cache and
power-safe overwriting does; the order within one file is kept only across syncs.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import apsw

from controller.disk import Files

Op = tuple[str, str, int, bytes]  # what, path, offset or size, data


@dataclass
class Journal:
    """Operations in order. `ack(n)`: whoever was told that n is safe was told now."""

    ops: list[Op] = field(default_factory=list)

    def ack(self, n: int) -> None:
        self.ops.append(("ack", "", n, b""))

    def add(self, what: str, path: str, at: int = 0, data: bytes = b"") -> None:
        self.ops.append((what, str(Path(path).resolve()), at, bytes(data)))


class _Logged(io.FileIO):
    def __init__(self, path: Path, mode: str, journal: Journal) -> None:
        super().__init__(path, mode)
        self.journal, self.where = journal, str(path)

    def write(self, data: Any) -> int:
        self.journal.add("write", self.where, self.tell(), bytes(data))
        return int(super().write(data) or 0)

    def truncate(self, size: int | None = None) -> int:
        self.journal.add("truncate", self.where, self.tell() if size is None else size)
        return super().truncate(size)


class LoggedFiles(Files):
    """For RecordWriter and Freezer."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def open(self, path: Path) -> BinaryIO:
        return _Logged(path, "r+b" if path.exists() else "w+b", self.journal)  # type: ignore[return-value]

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        self.journal.add("sync", file.where)  # type: ignore[attr-defined]


class LoggedConnection:
    """What controller.store asks of a sqlite3 connection, over apsw with a file layer that keeps the journal."""

    def __init__(self, path: Path, journal: Journal, name: str) -> None:
        class File(apsw.VFSFile):
            def __init__(self, filename: Any, flags: list[int]) -> None:
                super().__init__("unix", filename, flags)
                self.where = filename.filename() if hasattr(filename, "filename") else str(filename)

            def xWrite(self, data: bytes, offset: int) -> None:
                journal.add("write", self.where, offset, data)
                super().xWrite(data, offset)

            def xTruncate(self, size: int) -> None:
                journal.add("truncate", self.where, size)
                super().xTruncate(size)

            def xSync(self, flags: int) -> None:
                super().xSync(flags)
                journal.add("sync", self.where)

        class Layer(apsw.VFS):
            def __init__(self) -> None:
                super().__init__(name, "unix")

            def xOpen(self, filename: Any, flags: list[int]) -> File:
                return File(filename, flags)

            def xDelete(self, filename: str, syncdir: bool) -> None:
                journal.add("delete", filename)
                super().xDelete(filename, syncdir)

        self.layer = Layer()
        self.db = apsw.Connection(str(path), vfs=name)
        self.db.set_busy_timeout(5000)

    def execute(self, sql: str, values: Any = ()) -> Any:
        return self.db.execute(sql, values)

    def executemany(self, sql: str, rows: Any) -> Any:
        return self.db.executemany(sql, rows)

    def executescript(self, sql: str) -> None:
        self.db.execute(sql)

    @property
    def in_transaction(self) -> bool:
        return bool(self.db.in_transaction)

    def close(self) -> None:
        self.db.close()


def after_cut(journal: Journal, cut: int, seed: int) -> tuple[dict[str, bytes], list[int]]:
    """Files as a disk may hold them when power goes before operation `cut`, and what had been acknowledged."""
    rng = random.Random(seed)
    safe: dict[str, bytearray] = {}
    waiting: dict[str, list[Op]] = {}
    acked = []
    for op in journal.ops[:cut]:
        what, path, at, _ = op
        if what == "ack":
            acked.append(at)
        elif what == "delete":
            safe.pop(path, None)
            waiting.pop(path, None)
        elif what == "sync":
            for one in waiting.pop(path, []):
                _apply(safe.setdefault(path, bytearray()), one, len(one[3]), None)
        else:
            waiting.setdefault(path, []).append(op)
    for path, ops in waiting.items():
        content = safe.setdefault(path, bytearray())
        for op in ops:
            fate = rng.random()
            if fate < 0.4:
                _apply(content, op, len(op[3]), None)
            elif fate < 0.8 and op[0] == "write":
                _apply(content, op, rng.randrange(len(op[3]) + 1), rng if rng.random() < 0.5 else None)
    return {path: bytes(content) for path, content in safe.items()}, acked


def _apply(content: bytearray, op: Op, n: int, garbage: random.Random | None) -> None:
    what, _, at, data = op
    if what == "truncate":
        if at < len(content):
            del content[at:]
        else:
            content.extend(bytes(at - len(content)))
        return
    if at > len(content):
        content.extend(bytes(at - len(content)))
    content[at : at + n] = data[:n]
    if garbage is not None and n < len(data):
        content[at + n : at + len(data)] = garbage.randbytes(len(data) - n)
