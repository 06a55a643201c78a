"""`ballast console`: in a local terminal or over SSH for one session, on a serial port for good.

A port that goes away is opened again when it returns, with growing waits, one line on loss and one on return.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import sys
import termios
import tty
from pathlib import Path
from typing import Any

from controller import instance as instances
from controller.clock import Clock, RealClock
from controller.console.line import Gone
from controller.console.session import IDLE_S, Console
from controller.instance import InstanceError
from controller.problems import Problem, SiteError
from controller.process import EXIT_OK, say
from hal.wire import PortError, close_port, open_port

REOPEN_FIRST_S, REOPEN_MOST_S = 0.2, 2.0
NAME_CHARS = 40
NICE = 5  # below everything that keeps the site going


class _Ending:
    """SIGTERM, SIGHUP: the session ends, setpoints of its log-in go back."""

    asked = False


def _listen() -> None:
    def end(signum: int, frame: Any) -> None:
        _Ending.asked = True

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end)


class Terminal:
    """The terminal that this process was started in; raw while the session lasts."""

    def __init__(self) -> None:
        self.fd_in, self.fd_out = sys.stdin.fileno(), sys.stdout.fileno()
        self.baud: int | None = None
        self.tells_loss = True
        origin = os.environ.get("SSH_CONNECTION", "").split()
        name = "terminal"
        with contextlib.suppress(OSError):
            name = os.ttyname(self.fd_in).removeprefix("/dev/")
        self.name = f"{name} from {origin[0]}" if origin else name

    def carrier(self) -> bool:
        """Until it is told to end."""
        return not _Ending.asked

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(self.fd_in) if os.isatty(self.fd_in) else None
        if self._before is not None:
            tty.setraw(self.fd_in)
        return self

    def __exit__(self, *args: object) -> None:
        if self._before is not None:
            termios.tcsetattr(self.fd_in, termios.TCSADRAIN, self._before)


class SerialWire:
    """A serial port, locked, raw, 8N1. Raises PortError where it cannot be opened."""

    def __init__(self, path: str, baud: int) -> None:
        self.fd_in = self.fd_out = open_port(path, baud, "N")
        self.name = Path(path).name[-NAME_CHARS:]  # by-id names are long, and stand in every row of the audit trail
        self.baud: int | None = baud
        self.tells_loss = False
        self._had_carrier = False
        self.carrier()

    def carrier(self) -> bool:
        """False once a carrier that was there has gone. A three-wire cable shows none: there idleness ends the session."""
        if _Ending.asked:
            return False
        bits = bytearray(4)
        try:
            fcntl.ioctl(self.fd_in, termios.TIOCMGET, bits)
        except OSError:  # a PTY, or an adapter that was pulled: reading tells
            self.tells_loss = True
            return True
        here = bool(int.from_bytes(bits, sys.byteorder) & termios.TIOCM_CD)
        gone = self._had_carrier and not here
        self._had_carrier = self.tells_loss = here
        return not gone

    def close(self) -> None:
        """Gives the port back."""
        with contextlib.suppress(OSError, termios.error):
            termios.tcflush(self.fd_out, termios.TCOFLUSH)  # what nobody will read must not block the close
        with contextlib.suppress(OSError):
            close_port(self.fd_in)


def site_name(wanted: str | None) -> str:
    """The site that this console is for: as said, else the one that runs, else the only one that ever ran here. Raises
    InstanceError.
    """
    if wanted is not None:
        return wanted
    try:
        return instances.find(None).site
    except InstanceError as e:
        known = sorted(p.name for p in instances.state_directory("x").parent.glob("*") if p.is_dir())
        if len(known) == 1 and "several" not in str(e):
            return known[0]
        raise InstanceError(f"{e}; or say which site with --site NAME" + (f" ({', '.join(known)})" if known else "")) from None


def run(port: str | None, baud: int, site: str | None, idle_s: float = IDLE_S) -> int:
    """`ballast console`. Returns the exit code."""
    clock = RealClock()
    _listen()
    if port is None:
        name = site_name(site)
        with Terminal() as wire, contextlib.suppress(Gone):
            Console(wire, name, clock, idle_s, knock=False).run(once=True)
        return EXIT_OK
    with contextlib.suppress(OSError):
        os.nice(NICE)
    return _serve(port, baud, site_name(site), clock, idle_s)


def _serve(port: str, baud: int, name: str, clock: Clock, idle_s: float) -> int:
    """Opens the port again and again, until told to end."""
    wait_s, said = REOPEN_FIRST_S, ""
    first = True
    while not _Ending.asked:
        try:
            wire = SerialWire(port, baud)
        except (PortError, termios.error) as e:  # the latter: it went while it was opened
            why = e.why if isinstance(e, PortError) else str(e.args[-1])
            if first and isinstance(e, PortError) and e.errno != errno.ENOENT:
                raise SiteError([Problem("", "--port", port, why, e.remedy)]) from None
            if why != said:
                say("console", f"{port}: {why}; it is opened when it can be")
                said = why
            select.select([], [], [], wait_s)
            wait_s = min(REOPEN_MOST_S, 2 * wait_s)
            first = False
            continue
        say("console", f"{port}: open at {baud} baud, site {name}" if not said else f"{port}: is back")
        first, said, wait_s = False, "", REOPEN_FIRST_S
        try:
            Console(wire, name, clock, idle_s).run()
        except Gone as e:
            if not _Ending.asked:
                said = str(e)
                say("console", f"{port}: {e}; it is opened again when it returns")
                select.select([], [], [], REOPEN_FIRST_S)
        finally:
            wire.close()
    return EXIT_OK
