"""Who is logged in at which console, and what they hold: one small file a session, locked as long as its process lives.

A killed console leaves a file without a lock: the next one that looks removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

DIRECTORY = "sessions"
MAX_BYTES = 4096
MAX_SESSIONS = 32


@dataclass
class Session:
    """One log-in."""

    pid: int
    user: str
    role: str
    line: str
    since_wall_s: float
    holds: str = ""  # what only one can have: "setpoint +20 kW", "test"


class Presence:
    """This process's entry, and a look at the others'. A disk that takes no entry keeps nobody from working."""

    def __init__(self, directory: Path, user: str, role: str, line: str, wall_s: float) -> None:
        self.directory = directory / DIRECTORY
        self.own = Session(os.getpid(), user, role, line, wall_s)
        self._fd = -1
        self._path = self.directory / f"{self.own.pid}.json"
        with contextlib.suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._write()

    def holds(self, what: str) -> None:
        """Says what this session holds now; empty: nothing."""
        if what != self.own.holds:
            self.own.holds = what
            self._write()

    def _write(self) -> None:
        if self._fd >= 0:
            data = json.dumps(asdict(self.own)).encode()[:MAX_BYTES]
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, data, 0)
                os.ftruncate(self._fd, len(data))

    def others(self) -> list[Session]:
        """Everybody else who is logged in at this site."""
        return [s for s in here(self.directory.parent) if s.pid != self.own.pid]

    def close(self) -> None:
        """Log-out."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._fd)
            self._fd = -1


def here(directory: Path) -> list[Session]:
    """Every session of a site whose process lives."""
    found = []
    for path in sorted((directory / DIRECTORY).glob("*.json"))[:MAX_SESSIONS]:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked: it lives
            with contextlib.suppress(ValueError, TypeError):
                found.append(Session(**json.loads(os.pread(fd, MAX_BYTES, 0))))
        else:
            with contextlib.suppress(OSError):
                path.unlink()
        finally:
            os.close(fd)
    return found
