"""One line to a person: bytes in and out of a serial port or a terminal.

Whatever comes in is hostile: noise, floods, half escapes. Everything is bounded, in bytes and in time; a peer that reads
no more, or hangs up, ends the session and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from typing import Protocol

from controller.clock import Clock

MAX_LINE = 400  # characters of one command
READ_BYTES = 4096
FLOOD_BYTES, FLOOD_S = 8192, 1.0  # more than that in a second is no person and no paste
QUIET_S = 0.3  # a flood is over after so long without a byte
DRAIN_BYTES_PER_S = 2e6
STUCK_S = 10.0  # a peer that takes nothing for so long has gone
PROBE_S = 0.6
LOOK_S = 0.5
DEFAULT_SIZE = (80, 24)
MAX_SIZE = (200, 60)
_CURSOR = re.compile(rb"\x1b\[(\d{1,4});(\d{1,4})R")
_DOTS_TOP, _DOTS_LOW = 0x01 | 0x02 | 0x08 | 0x10, 0x04 | 0x20 | 0x40 | 0x80
_CONTROLS = {c: "?" for c in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if c not in (0x0A, 0x0D)}
_USUAL = frozenset((*range(0x20, 0x7F), 0x03, 0x04, 0x08, 0x09, 0x0A, 0x0D, 0x0C, 0x15, 0x1B, 0x7F))
ODD_BYTES = 64  # in a second: no person types so many of what is no text, at any speed of the line
_PLAIN = str.maketrans("│─└━╌█▉▊▋▌▍▎▏●○…µ°→·×±²–—", "|-+=-####||::*o~uo>.x+2--")


class Gone(Exception):
    """Nobody is there any more: hung up, unplugged, stuck, or told to end."""


class Idle(Exception):
    """Nobody typed for too long."""


class Cancelled(Exception):
    """Ctrl-C."""


class LoggedOut(Exception):
    """Ctrl-D on an empty line."""


class Noise(Exception):
    """A flood of bytes was thrown away; `count` of them."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class Wire(Protocol):
    """What `serve` opens: descriptors, and whether the far end is still there."""

    fd_in: int
    fd_out: int
    name: str
    baud: int | None  # None: as fast as it goes
    tells_loss: bool  # False: a cable that shows no carrier, and looks the same with nobody at its other end

    def carrier(self) -> bool:
        """False once a carrier that was there has gone."""
        ...


def harmless(text: str) -> str:
    """Without what moves a cursor or clears a screen: names, log lines and what somebody typed reach other people's terminals."""
    return text.translate(_CONTROLS)


def ascii_text(text: str) -> str:
    """The same length in ASCII: what a terminal without UTF-8 can show."""
    if text.isascii():
        return text
    return "".join(c if c < "\x80" else _ascii_char(c) for c in text.translate(_PLAIN))


def _ascii_char(c: str) -> str:
    dots = ord(c) - 0x2800
    if not 0 < dots < 0x100:
        return " " if dots == 0 else "?"
    return ":" if dots & _DOTS_TOP and dots & _DOTS_LOW else "'" if dots & _DOTS_TOP else "."


class Line:
    """The line of one console. `idle_s` 0: never idle."""

    def __init__(self, wire: Wire, clock: Clock, *, vt: bool = False, utf8: bool = False) -> None:
        self.wire, self.clock = wire, clock
        self.vt, self.utf8, self.colour = vt, utf8, vt
        self.width, self.height = DEFAULT_SIZE
        self.idle_s = 0.0
        self._typed_ns = clock.monotonic_ns()
        self._window_ns, self._window, self._odd = 0, 0, 0
        self._looked_ns = 0
        self._kept = b""

    # ---- out

    def write(self, text: str) -> None:
        """Text with \\n line ends. Raises Gone."""
        text = harmless(text if self.utf8 else ascii_text(text))
        self.write_bytes(text.replace("\n", "\r\n").encode("utf-8" if self.utf8 else "ascii", "replace"))

    def write_bytes(self, data: bytes) -> None:
        """All of it, however slow the line is; raises Gone where nothing moves for 10 s."""
        view = memoryview(data)
        moved_ns = self.clock.monotonic_ns()
        while view:
            if not select.select([], [self.wire.fd_out], [], 0.5)[1]:
                if self.clock.monotonic_ns() - moved_ns > STUCK_S * 1e9 or not self.wire.carrier():
                    raise Gone("the other end takes no bytes")
                continue
            try:
                n = os.write(self.wire.fd_out, view[:1024])
            except BlockingIOError:
                continue
            except OSError as e:
                raise Gone(e.strerror or "write failed") from None
            view, moved_ns = view[n:], self.clock.monotonic_ns()

    def say(self, text: str = "") -> None:
        """One line of text."""
        self.write(text + "\n")

    # ---- in

    def read(self, seconds: float) -> bytes:
        """Bytes within that time, or none. Raises Gone, Idle, Noise."""
        if self._kept:
            data, self._kept = self._kept, b""
            return data
        end_ns = self.clock.monotonic_ns() + int(seconds * 1e9)
        while True:
            left_s = (end_ns - self.clock.monotonic_ns()) / 1e9
            ready = bool(select.select([self.wire.fd_in], [], [], max(0.0, min(left_s, LOOK_S)))[0])
            if not ready or self.clock.monotonic_ns() - self._looked_ns > LOOK_S * 1e9:
                self.look()
            if ready:
                return self._take()
            if left_s <= 0:
                return b""

    def look(self) -> None:
        """Whatever waits calls this twice a second. Raises Gone, Idle."""
        self._looked_ns = self.clock.monotonic_ns()
        self.check_idle()
        if not self.wire.carrier():
            raise Gone("the carrier has gone, or this console was told to end")

    def _take(self) -> bytes:
        data = self.read_now()
        now_ns = self.clock.monotonic_ns()
        if now_ns - self._window_ns > FLOOD_S * 1e9:
            self._window_ns, self._window, self._odd = now_ns, 0, 0
        self._window += len(data)
        self._odd += sum(byte not in _USUAL for byte in data)
        if self._window > FLOOD_BYTES or self._odd > ODD_BYTES:
            raise Noise(self._drain(self._window))
        if any(byte in b"\r\n q\x03\t" for byte in data):  # somebody is there; single bytes of noise are nobody
            self._typed_ns = now_ns
        return data

    def read_now(self) -> bytes:
        """What is there; b"" where another process was faster. Raises Gone."""
        try:
            data = os.read(self.wire.fd_in, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as e:
            raise Gone(e.strerror or "read failed") from None
        if not data:
            raise Gone("hung up")
        return data

    def _drain(self, count: int) -> int:
        """Throws away until it is quiet; slower than memory goes, so that a flood costs this process little time."""
        while select.select([self.wire.fd_in], [], [], QUIET_S)[0]:
            n = len(self.read_now())
            count += n
            select.select([], [], [], n / DRAIN_BYTES_PER_S)
            self.look()  # a flood is nobody typing
        self._window = self._odd = 0
        return count

    def check_idle(self) -> None:
        """Raises Idle when its time has come."""
        if self.idle_s and self.clock.monotonic_ns() - self._typed_ns > self.idle_s * 1e9:
            raise Idle

    def unread(self, data: bytes) -> None:
        """Gives bytes back to whoever reads next."""
        self._kept = data + self._kept

    def key(self, seconds: float) -> str:
        """One key within that time ("" none): a character, or "esc" for what begins with ESC."""
        data = self.read(seconds)
        if not data:
            return ""
        if data[:1] == b"\x1b":
            return "esc"
        self._kept = data[1:]
        return chr(data[0]) if data[0] < 0x80 else "?"

    def forget(self) -> None:
        """Drops what was typed ahead."""
        self._kept = b""
        with contextlib.suppress(Noise):
            while self.read(0):
                pass

    def read_line(self, prompt: str = "", *, mask: bool = False) -> str:
        """A line typed with Backspace and Ctrl-U; echoed (stars where `mask`). For log-in, questions and terminals that
        know no cursor.

        Raises Gone, Idle, Noise, Cancelled (Ctrl-C), LoggedOut (Ctrl-D on an empty line).
        """
        self.write(prompt)
        text = bytearray()
        escape = False
        while True:
            data = self.read(3600.0)
            for at, byte in enumerate(data):
                if escape and byte >= 0x20:  # ESC [ ... letter: arrows and answers of the terminal are no text
                    escape = not (0x40 <= byte <= 0x7E and byte != 0x5B)
                    continue
                escape = False
                if byte in (0x0D, 0x0A):
                    if byte == 0x0D and data[at + 1 : at + 2] == b"\n":
                        self._kept = data[at + 2 :]
                    else:
                        self._kept = data[at + 1 :]
                    self.write("\n")
                    return text.decode("utf-8", "replace")
                elif byte == 0x1B:
                    escape = True
                elif byte == 0x03:
                    self._kept = data[at + 1 :]
                    self.write("^C\n")
                    raise Cancelled
                elif byte == 0x04 and not text:
                    self._kept = data[at + 1 :]
                    self.write("\n")
                    raise LoggedOut
                else:
                    self._edit(text, byte, mask)

    def _edit(self, text: bytearray, byte: int, mask: bool) -> None:
        """One byte into the line being typed, with its echo."""
        if byte in (0x7F, 0x08):
            if text:
                while text and text[-1] & 0xC0 == 0x80:  # the tail of one UTF-8 character
                    text.pop()
                if text:
                    text.pop()
                self.write_bytes(b"\x08 \x08")
        elif byte == 0x15:
            width = len(text.decode("utf-8", "replace"))
            text.clear()
            self.write_bytes(b"\x08 \x08" * width)
        elif byte >= 0x20 and len(text) < MAX_LINE:
            text.append(byte)
            if mask:
                self.write_bytes(b"*" if byte & 0xC0 != 0x80 else b"")
            elif byte < 0x80 or self.utf8:
                self.write_bytes(bytes([byte]))
            else:
                self.write_bytes(b"?")

    # ---- what is at the other end

    def probe(self) -> None:
        """Asks the terminal where its cursor is: a VT100 answers, after a three-byte character in column 2 where it knows
        UTF-8. One that does not answer gets plain lines in ASCII.
        """
        with contextlib.suppress(Noise):
            self.forget()
            self.write_bytes(b"\r\xe2\x94\x80\x1b[6n\r    \r\x1b7\x1b[999;999H\x1b[6n\x1b8")
            end_ns, got = self.clock.monotonic_ns() + int(PROBE_S * 1e9), b""
            found: list[tuple[int, int]] = []
            while len(found) < 2 and (left_s := (end_ns - self.clock.monotonic_ns()) / 1e9) > 0:
                got = (got + self.read(left_s))[-256:]
                found = [(int(a), int(b)) for a, b in _CURSOR.findall(got)]
            self.vt = self.colour = bool(found)
            self.utf8 = bool(found) and found[0][1] == 2
            if len(found) >= 2:
                rows, columns = found[1]
                self.width = max(40, min(columns, MAX_SIZE[0])) if columns > 1 else DEFAULT_SIZE[0]
                self.height = max(10, min(rows, MAX_SIZE[1])) if rows > 1 else DEFAULT_SIZE[1]
        if not self.vt:
            self.write_bytes(b"\r    \r")
