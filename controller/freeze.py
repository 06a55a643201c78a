"""What led to a trip, kept where nothing records every tick: the last 60 s and the following 10 s, in a record file of
its own.

The supervisor hands over every tick and, once a second, the kernel's State; both stay in memory (6 MB). When asked
(`ask`: mode FAULT or TRIP, or `ballast freeze`) the past is on the disk at once and the rest second by second: a file
is whole up to the last second at any moment, and `ballast replay` reads it like any other record. At most 20 files and
200 MB are kept, the oldest go first; at most 6 an hour are begun, for a chattering trip must not wear out the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.clock import utc
from controller.disk import Files
from controller.records import RecordWriter

BEFORE_TICKS, AFTER_TICKS = 6000, 1000
MAX_FILES, MAX_BYTES = 20, 200 << 20
AN_HOUR = 6
SUFFIX = ".blst"


@dataclass
class _Chunk:
    """What one step handed over, and what stood before it."""

    raw: bytes
    first: int
    after: int
    state: bytes | None
    fresh: bool
    whole: bool  # no tick is missing in it
    wall_s: float
    site: Mapping[str, Any] | None  # in force in all of it


class Freezer:
    """The keeper. `directory`: where files go; made when the first one is written. `error`: why the last one could not
    be.
    """

    def __init__(self, directory: Path, *, layout: int, settings: str, record_size: int, files: Files | None = None) -> None:
        self.directory, self.layout, self.settings, self.size = directory, layout, settings, record_size
        self.site: Mapping[str, Any] | None = None
        self.error = ""
        self.written: list[Path] = []
        self._files = files
        self._past: deque[_Chunk] = deque()
        self._state: bytes | None = None
        self._fresh = False
        self._asked = ""
        self._writer: RecordWriter | None = None
        self._left = 0  # ticks that still belong to the open file
        self._begun: deque[float] = deque(maxlen=AN_HOUR)

    def ask(self, why: str) -> None:
        """Freezes with the end of this step; while a file is open, it grows by another 10 s."""
        self._asked = self._asked or why

    def add(self, raw: bytes, first: int, after: int, wall_s: float = 0.0) -> None:
        """Records of ring positions `first` to `after`, as RecordWriter.add takes them."""
        fresh = self._fresh or first == 0
        whole = after - first == len(raw) // self.size
        state = self._state if whole and not fresh else None
        self._past.append(_Chunk(raw, first, after, state, fresh and whole, whole, wall_s, self.site))
        self._state, self._fresh = None, False
        while len(self._past) > 1 and after - self._past[0].after >= BEFORE_TICKS:
            self._past.popleft()
        if self._writer is not None:
            self._writer.site = self.site  # who names another one has flushed what stands under the one before
            self._writer.add(raw, first, after, wall_s)
            self._left -= len(raw) // self.size

    def flush(self, state_after: bytes | None, wall_s: float, *, fresh: bool = False) -> None:
        """As RecordWriter.flush: what comes next begins with this State, or with the kernel's reset."""
        self._state, self._fresh = state_after, fresh
        if self._writer is not None:
            self._writer.flush(state_after, wall_s, fresh=fresh)

    def end_of_step(self, state_after: bytes | None, wall_s: float) -> None:
        """Begins, carries on and ends files."""
        if state_after is not None:
            self._state = state_after
        if self._asked and self._writer is None:
            self._begin(self._asked, wall_s)
        elif self._asked:
            self._left = AFTER_TICKS
        self._asked = ""
        if self._writer is not None:
            self._writer.flush(state_after, wall_s)
            self.error = self._writer.error
            if self._left <= 0 or self.error:
                self._end()

    def close(self, wall_s: float) -> None:
        """Ends the open file as it stands."""
        if self._writer is not None:
            self._writer.flush(None, wall_s)
            self._end()

    def _begin(self, why: str, wall_s: float) -> None:
        if len(self._begun) == AN_HOUR and 0 <= wall_s - self._begun[0] < 3600:
            self.error = f"{AN_HOUR} files were begun within an hour; {why} is not kept"
            return
        self._begun.append(wall_s)
        stamp = utc(wall_s).strftime("%Y%m%dT%H%M%SZ")
        path = self.directory / f"{stamp}-{why.lower()}{SUFFIX}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room()
            writer = RecordWriter(
                path, layout=self.layout, settings=self.settings, record_size=self.size, sync=True, files=self._files
            )
        except OSError as e:
            self.error = f"{self.directory}: {e.strerror or e}"
            return
        known, before_s = False, wall_s
        for chunk in self._past:
            if chunk.site != writer.site:
                writer.flush(None, before_s)
                writer.site = chunk.site
            if chunk.fresh or (chunk.state is not None and not known):
                writer.flush(chunk.state, before_s, fresh=chunk.fresh)
            known = chunk.fresh or chunk.state is not None or (known and chunk.whole)
            writer.add(chunk.raw, chunk.first, chunk.after, chunk.wall_s)
            before_s = chunk.wall_s
        self._writer, self._left = writer, AFTER_TICKS
        self.written.append(path)

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _make_room(self) -> None:
        """The oldest go, so that count and size stay bounded with the one that comes."""
        found = sorted(self.directory.glob(f"*{SUFFIX}"))
        sizes = [p.stat().st_size for p in found]
        room = (BEFORE_TICKS + AFTER_TICKS) * self.size
        while found and (len(found) >= MAX_FILES or sum(sizes) + room > MAX_BYTES):
            found.pop(0).unlink()
            sizes.pop(0)


def kept(directory: Path) -> list[Path]:
    """Files of a directory, oldest first."""
    return sorted(directory.glob(f"*{SUFFIX}"))
