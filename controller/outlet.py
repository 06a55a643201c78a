"""Words for people leave without waiting for whoever reads them: Ctrl-S, a line that stalls or a pipe that nobody empties must
hold no process of a site.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Iterator

BITE = 64  # where a write might wait: a terminal that says it takes some takes so little
PARTING_S = 5.0  # at the end of a run, for the terminal to take the picture off the screen: then it is left


def put(fd: int, data: bytes) -> int:
    """Writes what the far end takes at once, and returns how many bytes that was. Raises OSError where it has gone or is full."""
    with _own(fd) as (own, most):
        done = 0
        while done < len(data) and select.select([], [own], [], 0)[1]:
            try:
                done += os.write(own, data[done : done + most])
            except BlockingIOError:
                break
        return done


@contextlib.contextmanager
def _own(fd: int) -> Iterator[tuple[int, int]]:
    """A descriptor that does not wait, and how much may be written to it at a time. Opened anew, because O_NONBLOCK on the one that
    we were given would be the shell's and everybody's who shares the terminal.
    """
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        yield fd, 1 << 16  # a file; or a socket, which has room for so much when it says that it has some
        return
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's terminal (su, sudo -u)
        yield fd, BITE
        return
    try:
        yield own, 1 << 16
    finally:
        os.close(own)


class Screen:
    """A text file over a terminal, for rich to draw on. What the terminal does not take waits; look at `ready` before the next picture."""

    encoding = "utf-8"

    def __init__(self, fd: int) -> None:
        self._fd, self._rest = fd, b""

    def write(self, text: str) -> int:
        """Kept until `flush`."""
        self._rest += text.encode("utf-8", "replace")
        return len(text)

    def flush(self) -> None:
        """What the terminal takes at once goes out; a terminal that has gone takes all."""
        try:
            self._rest = self._rest[put(self._fd, self._rest) :]
        except OSError:
            self._rest = b""

    def ready(self) -> bool:
        """True when everything drawn so far has gone out."""
        self.flush()
        return not self._rest

    def part(self) -> None:
        """Gives the terminal some seconds to take the last of it."""
        for _ in range(round(PARTING_S / 0.05)):
            if self.ready():
                return
            select.select([], [], [], 0.05)

    def isatty(self) -> bool:
        """As the descriptor."""
        return os.isatty(self._fd)

    def fileno(self) -> int:
        """The terminal's."""
        return self._fd
