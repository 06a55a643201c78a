"""The line server: whatever a client does or does not do, nobody waits for it."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller import lines
from controller.clock import ManualClock
from controller.lines import MAX_CONNECTIONS, MAX_LINE, LineServer, Reply

SECOND = 1_000_000_000


class Bench:
    """A server on a clock that the test moves; `turn` is one pass of the parent's loop."""

    def __init__(self, tmp: Path) -> None:
        self.clock, self.asked = ManualClock(), []  # type: ignore[var-annotated]
        self.later: list[Reply] = []
        self.server = LineServer(tmp / "desk", self.handle, self.clock)

    def handle(self, request: dict[str, Any], reply: Reply) -> None:
        self.asked.append(request)
        if request.get("do") == "later":
            self.later.append(reply)
        elif request.get("do") == "fail":
            raise KeyError("unforeseen")
        elif request.get("do") == "much":
            reply({"ok": True, "x": "y" * int(request["n"])})
        else:
            reply({"ok": True, "echo": request})

    def turn(self, times: int = 3) -> None:
        for _ in range(times):
            reading, writing = self.server.fds()
            ready = select.select(reading, writing, [], 0)
            self.server.serve({*ready[0], *ready[1]})

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        with lines._short(self.server.path) as name:
            sock.connect(name)
        return sock

    def answer(self, sock: socket.socket) -> dict[str, Any]:
        data = b""
        for _ in range(20):
            self.turn(1)
            try:
                more = sock.recv(MAX_LINE * 2)
            except BlockingIOError:
                continue
            if not more:
                break
            data += more
        assert data.endswith(b"\n") and data.count(b"\n") == 1
        return dict(json.loads(data))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.server.close()


def test_one_line_in_and_one_line_out(bench: Bench) -> None:
    sock = bench.connect()
    sock.send(b'{"do": ')
    bench.turn()
    assert not bench.asked, "half a line is no request"
    sock.send(b'"settings"}\nand more')
    assert bench.answer(sock) == {"ok": True, "echo": {"do": "settings"}}
    assert sock.recv(1) == b"" and not bench.server.connections


def test_the_socket_is_ours_alone_and_its_path_may_be_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    bench = Bench(deep)
    assert (deep / "desk").stat().st_mode & 0o777 == 0o600
    sock = bench.connect()
    sock.send(b"{}\n")
    assert bench.answer(sock)["ok"]
    again = Bench(deep)  # a socket that a killed parent left behind
    bench.server.sock.close()
    again.server.close()
    assert not (deep / "desk").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\n", "is not JSON"),
        (b"GET / HTTP/1.1\r\n", "is not JSON"),
        (b"[1, 2]\n", "but no object"),
        (b'"settings"\n', "but no object"),
        (b"\xff\xfe{}\n", "not UTF-8"),
        (b'{"x": NaN}\n', "NaN is no JSON number"),
        (b'{"x": -Infinity}\n', "is no JSON number"),
        (b'{"x": ' + b"9" * 5000 + b"}\n", "is not JSON"),
        (b'{"x": ' + b"[" * 60000 + b"\n", "nested too deeply"),
        (b"x" * (MAX_LINE + 1), "longer than 65536"),
        (b'{"x": "' + b"x" * MAX_LINE + b'"}\n', "longer than 65536"),
    ],
)
def test_garbage_is_answered_in_words_and_closed(bench: Bench, data: bytes, says: str) -> None:
    sock = bench.connect()
    while data:
        data = data[sock.send(data) :]
        bench.turn(1)
    answer = bench.answer(sock)
    assert not answer["ok"] and says in answer["error"] and answer["problems"][0]["remedy"]
    assert not bench.asked and not bench.server.connections


def test_a_flood_costs_the_flooder_its_connection_after_64_kb(bench: Bench) -> None:
    sock, sent, block = bench.connect(), 0, b"\x00\xffgarbage{" * 1000
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while sent < 1 << 20:
            try:
                sent += sock.send(block)
            except BlockingIOError:
                bench.turn(1)
    assert sent < 4 * MAX_LINE + len(block) * 20 and not bench.server.connections and not bench.asked


def test_a_client_has_two_seconds(bench: Bench) -> None:
    slow, quick = bench.connect(), bench.connect()
    slow.send(b'{"do": "settings"')
    bench.turn()
    bench.clock.t_ns += 2 * SECOND - 1
    quick.send(b"{}\n")
    assert bench.answer(quick)["ok"] and len(bench.server.connections) == 1
    bench.clock.t_ns += 1
    assert "within 2 s" in bench.answer(slow)["error"]
    assert not bench.server.connections


def test_the_ninth_is_sent_away_and_none_of_the_eight_suffers(bench: Bench) -> None:
    eight = [bench.connect() for _ in range(MAX_CONNECTIONS)]
    bench.turn()
    ninth = bench.connect()
    assert "connected already" in bench.answer(ninth)["error"]
    for sock in eight:
        sock.send(b"{}\n")
        assert bench.answer(sock)["ok"]


def test_an_answer_may_come_later_and_its_client_may_have_gone(bench: Bench) -> None:
    sock, gone = bench.connect(), bench.connect()
    for one in (sock, gone):
        one.send(b'{"do": "later"}\n')
        bench.turn()
    gone.close()
    bench.turn()
    bench.clock.t_ns += SECOND
    for reply in bench.later:
        reply({"ok": True, "late": 1})
        reply({"ok": True, "late": 2})
    assert bench.answer(sock) == {"ok": True, "late": 1}
    assert not bench.server.connections
    never = bench.connect()
    never.send(b'{"do": "later"}\n')
    bench.turn()
    bench.clock.t_ns += int(lines.ANSWER_S * SECOND)
    bench.turn()
    assert not bench.server.connections and never.recv(1) == b""


def test_a_fault_in_a_handler_ends_nothing(bench: Bench) -> None:
    sock = bench.connect()
    sock.send(b'{"do": "fail"}\n')
    assert "KeyError" in bench.answer(sock)["error"]


def test_an_answer_that_would_be_too_long_says_so(bench: Bench) -> None:
    sock = bench.connect()
    sock.send(b'{"do": "much", "n": 60000}\n')
    assert len(bench.answer(sock)["x"]) == 60000
    sock = bench.connect()
    sock.send(b'{"do": "much", "n": 70000}\n')
    assert "longer" in bench.answer(sock)["error"]


def test_a_client_that_does_not_take_its_answer_is_dropped(bench: Bench) -> None:
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near.setblocking(False)
    bench.server.connections.append(lines._Connection(near, 2 * SECOND))
    far.send(b'{"do": "much", "n": 60000}\n')
    bench.turn()
    assert bench.server.connections[0].out, "the rest waits"
    assert bench.server.fds()[1] == [near.fileno()]
    bench.clock.t_ns += 2 * SECOND
    bench.turn()
    assert not bench.server.connections


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_any_bytes_leave_the_server_as_it_was(bench: Bench, parts: list[bytes]) -> None:
    sock = bench.connect()
    for part in parts:
        try:
            sock.send(part)
        except OSError:
            break
        bench.turn(1)
    sock.close()
    bench.turn()
    bench.clock.t_ns += 5 * SECOND
    bench.turn()
    assert not bench.server.connections
    good = bench.connect()
    good.send(b"{}\n")
    assert bench.answer(good)["ok"]


def test_descriptors_are_given_back(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        sock = bench.connect()
        sock.send(b"nonsense\n")
        bench.answer(sock)
        sock.close()
    assert len(os.listdir("/proc/self/fd")) == before
