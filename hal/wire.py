"""Serial ports: opened raw, locked, and with an error that says what would do. Plus a blocking line for scans and
probes.

Everything here may block and never runs on the control thread: a helper thread opens and hands over ready descriptors.
Frames leave control with one write() by the engine's own send.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import select
import stat
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hal.modbus import EXCEPTIONS, PyRtuMaster

BAUDS = {int(name[1:]): getattr(termios, name) for name in dir(termios) if name[0] == "B" and name[1:].isdigit() and name != "B0"}
PTY_MAJORS = range(136, 144)  # Documentation/admin-guide/devices.txt: UNIX98 PTY slaves
TIOCGEXCL = 0x80045440  # asm-generic/ioctls.h; Linux 3.8


class PortError(OSError):
    """A port cannot be used. The text names the port, the reason and the remedy; errno is the system's, `key` the one of [[bus]]
    that is in the way."""

    def __init__(self, port: str, why: str, remedy: str, number: int = errno.EIO, key: str = "port") -> None:
        super().__init__(number, f"{port}: {why}; {remedy}")
        self.port, self.why, self.remedy, self.key = port, why, remedy, key

    def __str__(self) -> str:
        return f"{self.port}: {self.why}; {self.remedy}"


class NoAnswer(OSError):
    """A device did not answer, or not rightly. `result` is one of hal.modbus.RESULTS, `exception` the Modbus code (0:
    none)."""

    def __init__(self, text: str, result: str, exception: int = 0) -> None:
        super().__init__(errno.ETIMEDOUT if result == "timeout" else errno.EPROTO, text)
        self.result, self.exception = result, exception

    def __str__(self) -> str:
        return str(self.args[1])


def open_port(port: str, baud: int, parity: str = "E", stop_bits: int = 1) -> int:
    """Open a tty raw, 8 data bits, non-blocking, locked against others. Returns its descriptor. Raises PortError.

    VMIN=1, VTIME=0 with O_NONBLOCK: a read gives what is there. TIOCEXCL keeps other users out, flock other programs
    of root. A PTY keeps no parity and no stop bits: there, they are not insisted on.
    """
    if baud not in BAUDS:
        raise PortError(port, f"{baud} baud is not a standard rate", "one of " + ", ".join(map(str, sorted(BAUDS))), errno.EINVAL)
    if parity not in ("N", "E", "O") or stop_bits not in (1, 2):
        raise PortError(port, f"parity {parity!r}, {stop_bits} stop bits", "parity N, E or O and 1 or 2 stop bits", errno.EINVAL)
    try:
        fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise _explain(port, e) from None
    try:
        if not os.isatty(fd):
            raise PortError(port, "is not a serial port", "give a tty, for example /dev/ttyUSB0", errno.ENOTTY)
        _lock(port, fd)
        configure(port, fd, baud, parity, stop_bits)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _explain(port: str, e: OSError) -> PortError:
    """What an open() that failed means to the person at the cabinet."""
    if e.errno == errno.ENOENT:
        seen = "there are " + ", ".join(have) if (have := _ports_here()) else "no serial port is here at all"
        return PortError(port, "does not exist", f"check plug and name ({seen}); /dev/serial/by-id keeps names stable", e.errno)
    if e.errno in (errno.EACCES, errno.EPERM):
        group = "dialout"
        with contextlib.suppress(OSError, KeyError):
            group = grp.getgrgid(os.stat(port).st_gid).gr_name
        return PortError(port, "may not be opened by this user", f"usermod -aG {group} $USER, then log in again", e.errno)
    if e.errno == errno.EBUSY:
        return PortError(port, f"is in use{_holder(port)}", "stop that program", e.errno)
    if e.errno in (errno.ENXIO, errno.EIO, errno.ENODEV):
        return PortError(port, f"has no hardware behind it ({e.strerror})", "check the adapter; replug it", e.errno)
    return PortError(port, f"cannot be opened: {e.strerror}", "check the path", e.errno or errno.EIO)


def _ports_here() -> list[str]:
    """Serial ports of this machine with what hangs on them, as a person would name them; at most eight."""
    from serial.tools import list_ports  # only where somebody has to read it

    return [f"{p.device} ({p.description})" if p.description != "n/a" else p.device for p in sorted(list_ports.comports())][:8]


def _holder(port: str) -> str:
    """' by NAME (pid N)' of a process that has the port open, as far as /proc lets us see; '' otherwise."""
    try:
        want = os.stat(port).st_rdev
    except OSError:
        return ""
    if locker := _locker(port):
        with contextlib.suppress(OSError):
            return f" by {Path(f'/proc/{locker}/comm').read_text().strip()} (pid {locker})"
    for fds in Path("/proc").glob("[0-9]*/fd"):
        pid = fds.parent.name
        if int(pid) == os.getpid():
            continue
        try:
            for link in fds.iterdir():
                with contextlib.suppress(OSError):
                    found = link.stat()
                    if stat.S_ISCHR(found.st_mode) and found.st_rdev == want:
                        return f" by {(fds.parent / 'comm').read_text().strip()} (pid {pid})"
        except OSError:  # another user's process, or it has just ended
            continue
    return ""


def _locker(port: str) -> int:
    """The process that holds a flock on the port, 0 where none is to be seen: several may have it open."""
    try:
        found = os.stat(port)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return 0
    where = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for words in (line.split() for line in lines):
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == where and words[4] != str(os.getpid()):
            return int(words[4]) if words[4].isdigit() else 0
    return 0


def is_pty(fd: int) -> bool:
    """True for the slave of a pseudo terminal."""
    return os.major(os.fstat(fd).st_rdev) in PTY_MAJORS


def _lock(port: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        raise PortError(port, f"is locked{_holder(port)}", "stop the program that holds it", e.errno or errno.EBUSY) from None
    exclusive = bytearray(4)
    with contextlib.suppress(OSError):  # not every driver has it; flock is held already
        fcntl.ioctl(fd, TIOCGEXCL, exclusive)
    if any(exclusive) and (holder := _holder(port)):
        # Root is let in all the same: it has to look. A mark that nobody stands behind was left by one who was killed.
        raise PortError(port, f"is in exclusive use{holder}", "stop the program that holds it", errno.EBUSY)
    # The mark on a PTY stays until its master closes: a killed control could not come back as an ordinary user.
    if not is_pty(fd):
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, termios.TIOCEXCL)


def configure(port: str, fd: int, baud: int, parity: str, stop_bits: int) -> None:
    """Raw, 8 data bits, this speed and parity, of an open tty; what waits in both directions is thrown away. Raises PortError."""
    attrs = termios.tcgetattr(fd)
    cflag = termios.CS8 | termios.CREAD | termios.CLOCAL
    if parity != "N":
        cflag |= termios.PARENB | (termios.PARODD if parity == "O" else 0)
    if stop_bits == 2:
        cflag |= termios.CSTOPB
    attrs[0] = termios.INPCK if parity != "N" else 0  # a byte of wrong parity reads as 0, and the CRC finds it
    attrs[1], attrs[2], attrs[3] = 0, cflag, 0
    attrs[4] = attrs[5] = BAUDS[baud]
    attrs[6][termios.VMIN], attrs[6][termios.VTIME] = 1, 0
    reason = "the driver keeps other settings"
    try:
        # EINVAL: nothing changed, and something was not kept. What was kept is looked at below.
        termios.tcsetattr(fd, termios.TCSANOW, attrs)
    except termios.error as e:
        reason = str(e.args[-1])
    try:
        got = termios.tcgetattr(fd)
    except termios.error as e:
        raise PortError(port, f"refuses its settings: {e.args[-1]}", "check the adapter; replug it") from None
    if got[4] != BAUDS[baud]:
        raise PortError(port, f"did not take {baud} baud ({reason})", "a rate that the adapter has", errno.EINVAL)
    frame = termios.CSIZE | (0 if is_pty(fd) else termios.PARENB | termios.PARODD | termios.CSTOPB)
    raw = got[1] == 0 and got[3] == 0 and not got[0] & (termios.IXON | termios.ICRNL | termios.ISTRIP)
    if (got[2] ^ cflag) & frame or not raw:
        raise PortError(port, f"refuses {baud} baud 8{parity}{stop_bits}: {reason}", "another adapter", errno.EINVAL)
    termios.tcflush(fd, termios.TCIOFLUSH)


def close_port(fd: int) -> None:
    """Give the port back: exclusive mode outlives the descriptor on some drivers."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCNXCL)
    os.close(fd)


class BlockingLine:
    """A master that waits: for scans, probes and tests, never for control. Same state machine as control's.

    fd: open descriptor (tty, PTY, socket). untimed: no baud behind it (PTY), so no answer is too soon. tcp: a connection, MBAP frames.
    """

    def __init__(
        self, fd: int, baud: int = 115200, bits: int = 11, *, untimed: bool = False, timeout_s: float = 0.5, tcp: bool = False
    ) -> None:
        self.fd, self.tcp = fd, tcp
        self.master = PyRtuMaster(baud, bits, untimed, tcp=tcp)
        self.timeout_ns = round(timeout_s * 1e9)

    def __call__(self, unit: int, fc: int, addr: int, count: int) -> list[int]:
        """Read registers: the `transact` that hal.sunspec.scan wants."""
        return self.transact(unit, fc, addr, count)

    def transact(self, unit: int, fc: int, addr: int, count: int = 0, values: Sequence[int] = (), waddr: int = -1) -> list[int]:
        """One transaction; registers read (empty for plain writes). Raises NoAnswer, ValueError (no such request),
        OSError."""
        m = self.master
        if m.broken:
            raise NoAnswer("no answer: the connection is of no more use, it brought no Modbus or three times nothing", "broken")
        self._until(m.ready_ns)
        frame = m.request(unit, fc, addr, count, values, waddr)
        self._write(frame)
        m.sent(time.monotonic_ns(), self.timeout_ns)
        result = "more"
        while result == "more":
            self._wait(m.deadline_ns)
            data = self._read()
            now = time.monotonic_ns()
            result = m.feed(data, now) if data else m.expire(now)
        if result == "ok":
            return list(m.words)
        what = f"unit {unit}, FC{fc:02d} at {addr if count else max(waddr, addr)}"
        if result == "exception":
            code = m.exception
            raise NoAnswer(f"{what}: exception {code} ({EXCEPTIONS.get(code, 'unknown')})", result, code)
        raise NoAnswer(f"{what}: {result if result != 'timeout' else 'no answer'}", result)

    def write(self, unit: int, addr: int, values: Sequence[int], fc: int = 16) -> None:
        """Write registers with FC16 (or FC06 for one)."""
        self.transact(unit, fc, addr, values=values)

    def _until(self, when_ns: int) -> None:
        """The line must have been silent before a request: swallow what still comes, at most for a second."""
        stop = time.monotonic_ns() + 1_000_000_000
        while (now := time.monotonic_ns()) < min(max(when_ns, self.master.ready_ns), stop):
            self._wait(min(max(when_ns, self.master.ready_ns), stop))
            data = self._read()
            if data:
                self.master.feed(data, time.monotonic_ns())
        del now

    def _wait(self, until_ns: int) -> None:
        left = (until_ns - time.monotonic_ns()) / 1e9
        if left > 0:
            select.select([self.fd], [], [], left)

    def _read(self) -> bytes:
        try:
            data = os.read(self.fd, 512)
        except BlockingIOError:
            return b""
        except ConnectionError as e:
            raise self._gone(e.strerror or str(e)) from None
        if not data and self.tcp:
            raise self._gone("the other end has closed the connection")
        return data

    def _write(self, frame: bytes) -> None:
        try:
            taken = os.write(self.fd, frame)
        except ConnectionError as e:
            raise self._gone(e.strerror or str(e)) from None
        if taken != len(frame):
            self.master.abort(time.monotonic_ns())
            raise OSError(errno.EIO, "the port took only part of a request")

    def _gone(self, why: str) -> NoAnswer:
        self.master.abort(time.monotonic_ns())
        return NoAnswer(f"no answer: {why}", "broken")


def transact(line: int | Callable[..., list[int]], unit: int, fc: int, addr: int, count: int, **how: Any) -> list[int]:
    """One blocking read over a descriptor or anything callable like BlockingLine; for a single probe."""
    if isinstance(line, int):
        return BlockingLine(line, **how).transact(unit, fc, addr, count)
    return line(unit, fc, addr, count)
