"""Buses over TCP: what a site file may say, and how control comes to its connections."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _core.image import ProcessImage

from controller import build, control
from controller import site as sites
from controller.clock import ManualClock
from controller.problems import SiteError
from controller.site import Site
from hal.dial import open_tcp
from hal.tcp import parse
from hal.wire import PortError
from tests.controller.test_faults import FakeEngine
from tests.controller.test_site import GOOD, refused


def tcp_site(**ports: str) -> Site:
    return sites.load(None, [f"bus.{bus}.port={port}" for bus, port in ports.items()])


TCP = tcp_site(a="tcp://192.0.2.7", b="tcp://192.0.2.8:1502")


# ---------------------------------------------------------------- the site file

def test_an_override_of_the_port_leaves_the_files_line_settings_behind() -> None:
    assert [b.port for b in TCP.buses] == ["tcp://192.0.2.7", "tcp://192.0.2.8:1502"] and not TCP.virtual
    with pytest.raises(SiteError, match=r"bus\.a\.baud = 9600: means nothing on a TCP connection"):
        sites.load(None, ["bus.a.port=virtual-tcp", "bus.a.baud=9600"])
    assert tcp_site(a="virtual-tcp").virtual  # beside a PTY: both are the virtual cabinet's


@pytest.mark.parametrize(
    ("port", "says"),
    [
        ("tcp://", "names no host"),
        ("tcp://:502", "names no host"),
        ("tcp://meter:70000", "is no address (Port out of range 0-65535)"),
        ("tcp://meter:0", "has no port 0"),
        ("tcp://meter/unit1", "has more than host and port"),
        ("tcp://user@meter", "has more than host and port"),
        ("tcp://[::1", "is no address"),
        ("tcp://192.0.2.8:01502", "is the port of bus b too; put its devices on that bus"),
    ],
)
def test_ports_that_are_none(tmp_path: Path, port: str, says: str) -> None:
    text = refused(tmp_path, GOOD, [f"bus.a.port={port}", "bus.b.port=tcp://192.0.2.8:1502"])
    assert f"bus.a.port = \"{port}\": {says}" in text or f"bus.b.port = \"tcp://192.0.2.8:1502\": {says.replace('bus b', 'bus a')}" in text


def test_names_of_ports() -> None:
    assert parse("tcp://Meter.Site") == ("meter.site", 502)
    assert parse("tcp://[2001:db8::7]:1502") == ("2001:db8::7", 1502)


def test_units_of_a_tcp_bus() -> None:
    site = sites.load(None, ["bus.a.port=virtual-tcp", "device.meter.unit=0", "device.bms.unit=255"])
    assert [d.unit for d in site.devices] == [0, 255, 1]
    build.plan(site)


def test_a_latency_that_fits_no_tick_is_refused_with_its_arithmetic() -> None:
    site = sites.load(None, ["bus.a.port=virtual-tcp", "bus.a.latency_ms=30"])
    with pytest.raises(SiteError) as e:
        build.plan(site)
    assert "request 15.000 + answer 15.000 = 30.000 ms" in str(e.value) and "a network with less latency" in str(e.value)
    assert "baud" not in str(e.value)


def test_the_pcs_needs_no_silence_to_know_where_a_command_ends() -> None:
    assert build.detection_s(tcp_site(b="virtual-tcp")) == 0.0 and build.detection_s(sites.load(None)) == 1.75e-3


# ---------------------------------------------------------------- connections

@pytest.fixture
def server() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def name(sock: socket.socket) -> str:
    return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def test_a_connection_is_ready_for_control(server: socket.socket) -> None:
    fd = open_tcp(name(server))
    assert not os.get_blocking(fd) and not os.get_inheritable(fd)
    with socket.socket(fileno=fd) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2000


def test_what_was_not_sent_is_discarded_on_close(server: socket.socket) -> None:
    fd = open_tcp(name(server))
    peer, _ = server.accept()
    with peer, socket.socket(fileno=fd) as sock:
        sent = 0
        while True:  # until neither end takes any more
            try:
                sent += sock.send(bytes(65536))
            except BlockingIOError:
                break
        sock.close()
        got = 0
        with pytest.raises(ConnectionResetError):
            while data := peer.recv(1 << 20):
                got += len(data)
        assert got < sent


def test_errors_name_the_remedy(server: socket.socket) -> None:
    port = name(server)
    server.close()
    with pytest.raises(PortError, match="refuses the connection") as e:
        open_tcp(port)
    assert e.value.errno == errno.ECONNREFUSED and "one more client" in e.value.remedy
    with pytest.raises(PortError, match="the host is not known"):
        open_tcp("tcp://no-such-host.invalid")
    with pytest.raises(PortError, match="names no host"):
        open_tcp("tcp://")


def test_a_host_that_says_nothing_costs_no_more_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def silent(sock: socket.socket, address: object) -> None:
        waited.append(sock.gettimeout() or -1.0)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", silent)
    with pytest.raises(PortError, match="does not answer") as e:
        open_tcp("tcp://127.0.0.1:9")
    assert e.value.errno == errno.ETIMEDOUT and waited == [0.5]


def test_each_tcp_bus_has_a_helper_of_its_own() -> None:
    assert control.helped(TCP) == [[0], [1]]
    assert control.helped(tcp_site(a="virtual-tcp")) == [[1], [0]]
    assert control.helped(sites.load(None)) == [[0, 1]]


def test_a_server_that_is_away_is_dialled_with_growing_waits_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, engine, dialled = ManualClock(1_000_000_000), FakeEngine(), []

    def refuse(bus: Any, path: str) -> int:
        dialled.append(clock.t_ns)
        raise PortError(path, "refuses the connection", "check the port number", errno.ECONNREFUSED)

    monkeypatch.setattr(build, "open_port", refuse)
    helper = control.Helper(TCP, engine, {}, clock, buses=[1])
    for _ in range(400):
        clock.t_ns += 50_000_000
        helper.look(1)
    waits = [b - a for a, b in itertools.pairwise(dialled)]
    assert waits == sorted(waits) and waits[0] < 0.3e9 and waits[-1] == pytest.approx(2e9, abs=0.06e9)
    assert capsys.readouterr().err.count("refuses the connection") == 1


def test_a_connection_that_nobody_has_dialled_yet_is_no_loss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock, engine, opened = ManualClock(1_000_000_000), FakeEngine(), []
    monkeypatch.setattr(build, "open_port", lambda bus, path: opened.append(path) or 100 + len(opened))
    helper = control.Helper(TCP, engine, {}, clock, buses=[1], new={1})

    def look(seconds: float) -> str:
        for _ in range(round(20 * seconds)):
            clock.t_ns += 50_000_000
            helper.look(1)
        return capsys.readouterr().err

    assert look(0.05) == "" and opened == ["tcp://192.0.2.8:1502"], "dialled at once"
    assert look(3) == ""
    del engine.fds[1]
    assert "is gone" in look(0.05) and "is back" in look(3)


def test_a_restarted_control_waits_for_no_name_to_resolve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bus a is a line, bus b a host whose name server does not answer: the line has its descriptor, and the engine can start."""
    site = tcp_site(a="/dev/ttyS0", b="tcp://pcs.site")
    control.remember(tmp_path, site, [build._offline_map(site, device) for device in site.devices])
    opened: list[str] = []
    engine = FakeEngine()
    engine.prepare = lambda: None  # type: ignore[attr-defined]

    def open_port(bus: Any, path: str) -> int:
        assert not bus.tcp, "it may take half a minute"
        opened.append(bus.name)
        return os.dup(0)

    monkeypatch.setattr(build, "open_port", open_port)
    monkeypatch.setattr(control, "Engine", lambda *_, **__: engine)
    image = ProcessImage.create()
    assert control.prepare(site, image, tmp_path, {}, Stop(0)) == (engine, True)  # type: ignore[arg-type]
    assert opened == ["a"] and list(engine.fds) == [0] and image.control_pid == os.getpid()
    os.close(engine.fds[0])


class Stop:
    """A StopRequest that is asked for after so many waits."""

    def __init__(self, waits: int) -> None:
        self.waits, self.asked = waits, list[float]()

    def wait(self, seconds: float) -> bool:
        self.asked.append(seconds)
        return len(self.asked) > self.waits


def test_a_start_waits_for_a_server_that_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tries: dict[str, int] = {}

    def later(bus: Any, path: str) -> int:
        tries[bus.name] = tries.get(bus.name, 0) + 1
        if bus.name == "b" and tries["b"] < 4:
            raise PortError(path, "refuses the connection", "check the port number", errno.ECONNREFUSED)
        return 100 + tries[bus.name]

    scanned: list[list[int]] = []

    class Done:
        returncode, stdout, stderr = control.EXIT_OK, control.pickle.dumps(["maps"]), b""

    def run(argv: list[str], pass_fds: list[int], **_: Any) -> Done:
        scanned.append(list(pass_fds))
        return Done()

    monkeypatch.setattr(build, "open_port", later)
    monkeypatch.setattr(build, "close_port", lambda fd: None)
    monkeypatch.setattr(control.subprocess, "run", run)
    fds, problems = control.open_ports(TCP, {})
    assert (fds, problems) == ([-1, -1], [])
    stop: Any = Stop(10)
    assert control.scan_devices(tmp_path, TCP, {}, fds, stop) == ["maps"]
    assert scanned == [fds] and min(fds) > 0 and stop.asked == [0.5, 1, 2]
    assert capsys.readouterr().err.count("refuses the connection") == 1
    tries["b"] = -9
    stop = Stop(0)
    assert control.scan_devices(tmp_path, TCP, {}, [-1, -1], stop) is None  # asked to stop meanwhile


def serve(sock: socket.socket, answer: Callable[[bytes], bytes]) -> threading.Thread:
    """One connection: each read is answered by what `answer` makes of it; b"" closes."""

    def work() -> None:
        peer, _ = sock.accept()
        with peer:
            while (data := peer.recv(300)) and (out := answer(data)):
                peer.sendall(out)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_scan_reads_over_a_connection_and_says_when_it_is_of_no_more_use(server: socket.socket) -> None:
    bus = tcp_site(a=name(server), b="tcp://192.0.2.8").buses[0]
    asked: list[bytes] = []

    def answer(data: bytes) -> bytes:
        asked.append(data)
        return data[:4] + bytes([0, 5, data[6], 3, 2, 0, 7]) if len(asked) < 3 else b""

    thread = serve(server, answer)
    fd = build.open_port(bus, bus.port)
    ask = build.blocking_line(bus, fd)
    assert ask(255, 3, 10, 1) == [7] and ask(0, 3, 10, 1) == [7]
    for _ in range(2):  # closed: said at once, as often as it is asked
        with pytest.raises(OSError, match="no answer"):
            ask(1, 3, 10, 1)
    assert [data[6] for data in asked] == [255, 0, 1]
    build.close_port(fd)
    thread.join(5)
