"""Small things that every process of a site does: die with the parent, hold children by pidfd, end in a known way."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from controller import outlet
from controller.clock import Clock, utc_text

# Exit codes of `ballast` and of its children.
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INPUT = 2  # site, port, trace: a person has to change something
EXIT_NOT_RUNNING = 3
EXIT_BUSY = 4  # the site is already run by another process
EXIT_AGAIN = 75  # control slept for longer than the reversion time (EX_TEMPFAIL): start it again, nothing it knew is true

MAPS_NAME = "maps.pickle"  # in the runtime directory: what control found the devices to be, for the control after it
MESSAGES_NAME = "messages"  # in the runtime directory: what the site's processes say, the newest last
MESSAGES_BYTES = 256 * 1024  # then it becomes messages.1, and the one before that is gone
SAID_BYTES = 16 * 1024  # of one call
_PR_SET_PDEATHSIG = 1
_messages: tuple[Path, Clock] | None = None  # set by keep_messages


def die_with_parent(parent_pid: int, signum: int = signal.SIGTERM) -> None:
    """Asks the kernel for `signum` when the parent ends; sends it at once where the parent is already gone.

    Called by the child itself: code between fork and exec (preexec_fn) is not safe in a process that has threads.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)


def say(who: str, text: str) -> None:
    """Log lines, each whole, on stderr and into the site's messages; lost where that is a full disk or a terminal that is closed
    or not read: no reason to stop, or to wait.
    """
    lines = text.splitlines() or [""]
    _tell("".join(f"{who}: {line}\n" for line in lines))
    if _messages is not None:
        path, clock = _messages
        stamp = utc_text(clock.wall_s())
        with contextlib.suppress(OSError):
            _append(path, "".join(f"{stamp} {who}: {line}\n" for line in lines).encode("utf-8", "replace"))


def _tell(text: str) -> None:
    """On stderr."""
    try:
        fd = sys.stderr.fileno()
    except (AttributeError, ValueError):  # closed, or no file of the system's
        with contextlib.suppress(AttributeError, ValueError):
            sys.stderr.write(text)
        return
    with contextlib.suppress(OSError):
        outlet.put(fd, text.encode("utf-8", "replace"))


def keep_messages(directory: Path, clock: Clock) -> None:
    """From now on what this process says also goes into `messages` of the site's runtime directory, with UTC time."""
    global _messages
    _messages = (directory / MESSAGES_NAME, clock)


def _append(path: Path, data: bytes) -> None:
    """One write with O_APPEND, so that the lines of several processes stay whole. Raises OSError."""
    if len(data) > SAID_BYTES:
        data = data[: data.rfind(b"\n", 0, SAID_BYTES) + 1] or data[: SAID_BYTES - 1] + b"\n"
    for _ in range(2):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size + len(data) <= MESSAGES_BYTES or not _turn_over(path, fd):
                if size < 2 * MESSAGES_BYTES:  # where it cannot be turned over it still does not grow for ever
                    os.write(fd, data)
                return
        finally:
            os.close(fd)


def _turn_over(path: Path, fd: int) -> bool:
    """The full file becomes messages.1. True: look at the path again, it is another file now. One process at a time: the
    second of two would throw away what the first has kept.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(fd).st_ino:
            path.replace(path.with_suffix(".1"))
    except OSError:  # another one is at it, or the directory takes no change: this line goes into the old file
        return False
    return True


@dataclass
class Backoff:
    """Waits between restarts: none at first, growing while the child dies young, none again after it has lived."""

    first_s: float = 0.1
    most_s: float = 1.5  # a killed supervisor is back within 2 s whatever happened before
    young_s: float = 5.0
    _wait_s: float = 0.0

    def next_s(self, lived_s: float) -> float:
        """The wait before this restart, in seconds."""
        if lived_s >= self.young_s:
            self._wait_s = 0.0
            return 0.0
        wait_s = self._wait_s
        self._wait_s = min(self.most_s, max(self.first_s, 2 * wait_s))
        return wait_s


@dataclass
class Child:
    """One child process of the parent, in a session of its own: Ctrl-C in the terminal reaches the parent alone."""

    name: str
    argv: Sequence[str]
    clock: Clock
    pass_fds: tuple[int, ...] = ()
    stderr: IO[bytes] | None = None
    stdout: int | None = None
    stdin: int | None = None
    backoff: Backoff = field(default_factory=Backoff)
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started_ns: int = 0
    again_ns: int | None = None  # when to start it again

    def start(self) -> None:
        """Starts it; raises OSError where that fails."""
        self.again_ns = None
        self.process, self.pidfd = None, -1
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.argv],
            pass_fds=self.pass_fds,
            stdin=self.stdin if self.stdin is not None else subprocess.DEVNULL,
            stdout=self.stdout,
            stderr=self.stderr,
            start_new_session=True,
        )
        self.pidfd = os.pidfd_open(self.process.pid)
        self.started_ns = self.clock.monotonic_ns()

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self.process.pid if self.process is not None and self.pidfd >= 0 else 0

    def send(self, signum: int) -> None:
        """A signal by pidfd: never to a stranger that got the pid."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):  # it has just ended; the loop will see it
                signal.pidfd_send_signal(self.pidfd, signum)

    def reap(self) -> int | None:
        """Exit code (negative: killed by that signal) once it has ended, else None."""
        if self.process is None or self.pidfd < 0:
            return None
        code = self.process.poll()
        if code is not None:
            os.close(self.pidfd)
            self.pidfd = -1
        return code

    def wait(self, seconds: float) -> int | None:
        """Waits for its end; None where it lives on."""
        if self.process is None or self.pidfd < 0:
            return None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return self.reap()

    def start_again(self) -> str:
        """Starts it where its time has come; where the system has no process or memory to give: later. Says why not."""
        try:
            self.start()
        except (OSError, MemoryError) as e:
            self.started_ns = self.clock.monotonic_ns()
            wait_s = self.plan_restart()
            why = (e.strerror if isinstance(e, OSError) else "no memory") or e
            return f"{self.name} cannot be started: {why}; trying again in {max(wait_s, self.backoff.first_s):.1f} s"
        return ""

    def plan_restart(self) -> float:
        """Sets when to start it again; returns the wait in seconds."""
        now_ns = self.clock.monotonic_ns()
        wait_s = self.backoff.next_s((now_ns - self.started_ns) / 1e9)
        self.again_ns = now_ns + int(wait_s * 1e9)
        return wait_s


def exit_words(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
