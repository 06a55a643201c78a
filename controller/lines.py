"""One JSON line in, one JSON line out, over a Unix socket, inside a loop that must not wait for anybody.

Whoever connects has 2 s for one line of at most 64 kB; eight may be connected. Nothing in here blocks: what a client does
not send or does not take costs that client its connection. `ask` is the client's side.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.clock import Clock
from controller.process import say

MAX_LINE = 64 * 1024
MAX_CONNECTIONS = 8
PATIENCE_S = 2.0  # for a whole request, and for the answer to be taken
ANSWER_S = 4.0  # for an answer that is not ready at once

Reply = Callable[[dict[str, Any]], None]
Handler = Callable[[dict[str, Any], Reply], None]


@dataclass(eq=False)
class _Connection:
    """One client: its bytes so far, and what it has not taken yet of the answer."""

    sock: socket.socket
    until_ns: int
    data: bytearray = field(default_factory=bytearray)
    asked: bool = False
    out: bytes = b""


class LineServer:
    """The server. `handler(request, reply)` calls `reply` once, at once or later. Raises OSError where the socket cannot
    be made.
    """

    def __init__(self, path: Path, handler: Handler, clock: Clock) -> None:
        self.path, self.handler, self.clock = path, handler, clock
        self.connections: list[_Connection] = []
        path.unlink(missing_ok=True)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with _short(path) as name:
                self.sock.bind(name)
            path.chmod(0o600)
            self.sock.listen(MAX_CONNECTIONS)
        except BaseException:
            self.sock.close()
            raise

    def fds(self) -> tuple[list[int], list[int]]:
        """What to wait for: (to read, to write)."""
        reading = [c.sock.fileno() for c in self.connections if not c.asked]
        return [self.sock.fileno(), *reading], [c.sock.fileno() for c in self.connections if c.out]

    def serve(self, ready: set[int]) -> None:
        """Does what can be done now for these descriptors, and ends what has taken too long."""
        now_ns = self.clock.monotonic_ns()
        for connection in list(self.connections):
            if connection.sock.fileno() in ready:
                if connection.out:
                    self._write(connection)
                elif not connection.asked:
                    self._read(connection)
        if self.sock.fileno() in ready:
            self._accept(now_ns)
        for connection in list(self.connections):
            if now_ns >= connection.until_ns:
                if not connection.asked:
                    self._answer(connection, refusal("no whole line came within 2 s", "send one JSON object and a newline"))
                self._drop(connection)

    def close(self) -> None:
        """Ends every connection, and removes the socket."""
        for connection in list(self.connections):
            self._drop(connection)
        self.sock.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _accept(self, now_ns: int) -> None:
        for _ in range(MAX_CONNECTIONS):
            try:
                sock, _ = self.sock.accept()
            except OSError:  # nobody more, or one that has gone again, or no descriptor left
                return
            sock.setblocking(False)
            connection = _Connection(sock, now_ns + int(PATIENCE_S * 1e9))
            self.connections.append(connection)
            if len(self.connections) > MAX_CONNECTIONS:
                self._answer(connection, refusal(f"{MAX_CONNECTIONS} are connected already", "try again in 2 s"))
                self._drop(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(MAX_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.data += data
        line, sign, _ = bytes(connection.data[: MAX_LINE + 1]).partition(b"\n")
        if not sign:
            if len(connection.data) > MAX_LINE:
                self._answer(connection, refusal(f"the line is longer than {MAX_LINE} bytes", "send one JSON object and a newline"))
            return
        try:
            request = parse(line)
        except ValueError as e:
            self._answer(connection, refusal(str(e), 'send one JSON object and a newline, such as {"do": "settings"}'))
            return
        self._ask(connection, request)

    def _ask(self, connection: _Connection, request: dict[str, Any]) -> None:
        connection.asked = True
        connection.until_ns = self.clock.monotonic_ns() + int(ANSWER_S * 1e9)
        try:
            self.handler(request, lambda answer: self._answer(connection, answer))
        except Exception as e:  # whatever bytes from outside do in there: it is no reason to end a site
            say("ballast", f"{self.path.name}: {type(e).__name__}: {e}")
            self._answer(connection, refusal(f"failed: {type(e).__name__}: {e}", "this is a fault of ballast: tell its makers"))

    def _answer(self, connection: _Connection, answer: dict[str, Any]) -> None:
        if connection not in self.connections or connection.out:  # gone meanwhile, or answered
            return
        connection.asked = True
        connection.until_ns = self.clock.monotonic_ns() + int(PATIENCE_S * 1e9)
        connection.out = encode(answer)
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        try:
            connection.out = connection.out[connection.sock.send(connection.out, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:
            connection.out = b""
        if not connection.out:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            connection.sock.close()


def refusal(why: str, remedy: str, key: str = "", value: Any = None) -> dict[str, Any]:
    """An answer that says no, in the shape that problems of settings have."""
    problem = {"file": "", "key": key, "value": plain(value), "why": why, "remedy": remedy}
    return {"ok": False, "problems": [problem], "error": f"{why}; {remedy}" if remedy else why}


def plain(value: Any) -> Any:
    """A value that JSON can carry, cut where it is long."""
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)[:200]


def parse(line: bytes) -> dict[str, Any]:
    """The object of one line. Raises ValueError with words."""

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    try:
        got = json.loads(line.decode("utf-8"), parse_constant=constant)
    except UnicodeDecodeError:
        raise ValueError("the line is not UTF-8 text") from None
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    except ValueError as e:
        raise ValueError(f"the line is not JSON: {str(e)[:200]}") from None
    if not isinstance(got, dict):
        raise ValueError("the line is JSON, but no object")
    return got


def encode(answer: dict[str, Any]) -> bytes:
    """The line of an answer; one that would be too long says so instead."""
    line = json.dumps(answer).encode() + b"\n"
    if len(line) <= MAX_LINE:
        return line
    return json.dumps(refusal(f"the answer would be longer than {MAX_LINE} bytes", "ask for less at once")).encode() + b"\n"


def ask(path: Path, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The answer to one request. Raises OSError (nobody listens, no answer in time) and ValueError (no answer)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout_s)
        with _short(path) as name:
            sock.connect(name)
        data = b""
        with contextlib.suppress(BrokenPipeError):  # refused before it was read: the reason is there to be read
            sock.sendall(json.dumps(request).encode() + b"\n")
        while b"\n" not in data and len(data) <= MAX_LINE:
            more = sock.recv(MAX_LINE)
            if not more:
                break
            data += more
    return parse(data.partition(b"\n")[0])


@contextlib.contextmanager
def _short(path: Path) -> Any:
    """A name of at most 108 bytes for a socket in a directory whose path may be longer (unix(7), sun_path)."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
