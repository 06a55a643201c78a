"""The two ends of a line in memory: the console's wire is one end of a socket pair, the test has the other."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from controller.clock import RealClock
from controller.console.line import Line


class PairWire:
    """One end; `far` is the person's."""

    def __init__(self, baud: int | None = None) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.fd_in = self.fd_out = self.near.fileno()
        self.name, self.baud, self.here, self.tells_loss = "pair", baud, True, True

    def carrier(self) -> bool:
        return self.here

    def close(self) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Person:
    """Types and reads at the far end; what came is kept."""

    def __init__(self, wire: PairWire) -> None:
        self.wire, self.got = wire, b""
        self.lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                data = self.wire.far.recv(65536)
            except OSError:
                return
            if not data:
                return
            with self.lock:
                self.got += data

    def hang_up(self) -> None:
        """Pulls the cable."""
        self.wire.far.shutdown(socket.SHUT_RDWR)

    def type(self, text: str | bytes) -> None:
        self.wire.far.sendall(text.encode() if isinstance(text, str) else text)

    def sees(self, words: str, seconds: float = 10.0, *, since: int = 0) -> str:
        """All text since then, once it holds these words."""
        end = time.monotonic() + seconds
        while True:
            with self.lock:
                text = self.got[since:].decode("utf-8", "replace")
            if words in text:
                return text
            assert time.monotonic() < end, f"never saw {words!r} in {text[-2000:]!r}"
            time.sleep(0.005)

    @property
    def mark(self) -> int:
        with self.lock:
            return len(self.got)


def line(*, utf8: bool = True, vt: bool = False) -> tuple[Line, Person]:
    wire = PairWire()
    return Line(wire, RealClock(), vt=vt, utf8=utf8), Person(wire)
