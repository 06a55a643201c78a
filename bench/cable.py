"""A serial cable between two PTYs: bytes at the pace of a baud rate, counted, pulled and plugged in again. For tests and benchmarks of
the console, where no cable hangs.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import threading
import time
import tty
from pathlib import Path

BITS = 10  # 8N1


class Cable:
    """`near` is the cabinet's port (a link that goes with the cable), `far` the laptop's."""

    def __init__(self, tmp: Path, baud: int | None = 115200, name: str = "console") -> None:
        self.baud, self.near, self.far = baud, tmp / f"tty-{name}", tmp / f"tty-{name}-laptop"
        self.to_laptop = self.to_cabinet = 0
        self._stop = threading.Event()
        self.plug()

    def plug(self) -> None:
        """In, at both ends."""
        self._stop.clear()
        self._ends: list[tuple[int, int]] = []
        for link in (self.near, self.far):
            master, slave = os.openpty()
            tty.setraw(slave)
            attributes = termios.tcgetattr(slave)
            attributes[2] |= termios.CLOCAL
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
            os.set_blocking(master, False)
            new = link.with_suffix(".new")
            new.symlink_to(os.ttyname(slave))
            new.replace(link)
            self._ends.append((master, slave))
        self._threads = [threading.Thread(target=self._carry, args=args, daemon=True) for args in ((0, 1), (1, 0))]
        for thread in self._threads:
            thread.start()

    def _carry(self, source: int, sink: int) -> None:
        """One direction, as slow as the baud rate."""
        a, b = self._ends[source][0], self._ends[sink][0]
        due = time.monotonic()
        while not self._stop.is_set():
            if not select.select([a], [], [], 0.05)[0]:
                continue
            try:
                data = os.read(a, 64 if self.baud else 65536)
            except OSError:
                time.sleep(0.02)
                continue
            if source == 0:
                self.to_laptop += len(data)
            else:
                self.to_cabinet += len(data)
            while data and not self._stop.is_set():
                with contextlib.suppress(OSError):
                    data = data[os.write(b, data) :]
                if data:
                    select.select([], [b], [], 0.05)
            if self.baud:
                due = max(due, time.monotonic() - 0.01) + 64 * BITS / self.baud if not data else due
                time.sleep(max(0.0, due - time.monotonic()))

    def pull(self) -> None:
        """Out: both ends hang up, and the names are gone."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        for link in (self.near, self.far):
            link.unlink(missing_ok=True)
        for pair in self._ends:
            for fd in pair:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._ends = []

    end = pull
