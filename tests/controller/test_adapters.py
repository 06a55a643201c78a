"""RS-485 direction and held-back bytes on the way from the site file to port, plan and messages."""

from __future__ import annotations

import os
import pty
from functools import partial
from pathlib import Path

import pytest

from controller import __main__ as command
from controller import build, control, relations, status, walk
from controller import site as sites
from controller.clock import ManualClock
from controller.instance import Instance
from controller.problems import SiteError
from hal import adapter
from hal.wire import PortError
from tests.controller.fakes import FakeImage

REAL = sites.BUILTIN.read_text().replace('port = "virtual" ', 'port = "/dev/ttyS8" ', 1)
REAL = REAL.replace('port = "virtual"\n', 'port = "/dev/ttyS9"\n')
ON = ["bus.b.rs485=on", "bus.b.rs485_before_ms=1", "bus.b.rs485_after_ms=1"]


def test_the_words_of_the_site_file_are_those_of_the_driver() -> None:
    assert relations._SWITCHES == adapter.MODES


def test_a_lead_before_the_request_is_in_the_plan() -> None:
    plain = build.plan(sites.load(None, text=REAL))
    site = sites.load(None, ON, text=REAL)
    assert build.direction(site.buses[1]) == adapter.Direction("on", 1, 1)
    made = build.plan(site)
    assert made.command_end_ms == pytest.approx(plain.command_end_ms + 1.0)
    assert made.load_to_power_ms["p99"] == pytest.approx(plain.load_to_power_ms["p99"] + 1.0)


def test_the_virtual_cabinet_switches_nothing() -> None:
    site = sites.load(None, ["bus.b.rs485=on", "bus.b.rs485_before_ms=1"])
    assert build.direction(site.buses[1]) == adapter.Direction()


def test_another_kind_of_port_leaves_it_behind() -> None:
    raw = {"bus": [{"name": "b", "port": "/dev/ttyS9", "rs485": "on", "rs485_after_ms": 1, "baud": 9600}]}
    for port, left in (
        ("/dev/ttyS8", {"rs485", "rs485_after_ms", "baud"}), ("virtual", {"baud"}), ("can:can0", set()), ("tcp://10.0.0.1", set()),
    ):  # fmt: skip
        new = {"bus": [dict(raw["bus"][0])]}
        assert walk.put(new, "bus.b.port", port) and set(new["bus"][0]) - {"name", "port"} == left, port


def test_a_port_that_cannot_switch_is_named_and_given_back() -> None:
    pairs = [pty.openpty(), pty.openpty()]
    other, path = (os.ttyname(slave) for _, slave in pairs)
    site = sites.load(None, ON, text=REAL.replace("/dev/ttyS9", path))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PortError, match="cannot switch RS-485 direction"):
        build.open_port(site.buses[1], path)
    assert len(os.listdir("/proc/self/fd")) == before
    fds, problems = control.open_ports(site, {"a": other})
    assert fds[0] >= 0 and fds[1] == -1, "bus a has nothing to switch"
    os.close(fds[0])
    assert len(problems) == 1 and problems[0].startswith(f"built-in site: bus.b.rs485 = on at {path}: its driver cannot switch")
    (told,) = build.port_problems(site, site.buses[1:])
    assert (told.key, told.value) == ("bus.b.rs485", "on") and "auto" in told.remedy
    for fd in (fd for pair in pairs for fd in pair):
        os.close(fd)


def test_check_warns_of_a_timer_and_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timer = tmp_path / "bus/usb-serial/devices/ttyS8/latency_timer"
    timer.parent.mkdir(parents=True)
    timer.write_text("16\n")
    (tmp_path / "site.toml").write_text(REAL)
    monkeypatch.setattr(build, "held_notes", partial(build.held_notes, sysfs=tmp_path))
    assert command.main(["check", str(tmp_path / "site.toml")]) == 0
    told = capsys.readouterr().out
    assert "warning: bus a: /dev/ttyS8: the USB adapter holds answers back for up to 16 ms" in told and str(timer) in told
    assert timer.read_text() == "16\n" and "bus b: /dev/ttyS9" not in told


def test_an_adapter_that_comes_back_is_told_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    site = sites.load(None, text=REAL)

    class Engine:
        def __init__(self) -> None:
            self.ports = (None, None)
            self.given: list[tuple[int, int]] = []

        def take_dropped(self, i: int) -> int:
            return -1

        def lost(self, i: int) -> bool:
            return i == 1 and not self.given

        def set_fd(self, i: int, fd: int) -> None:
            self.given.append((i, fd))

    class Clock:
        def monotonic_ns(self) -> int:
            return 10**9

    engine = Engine()
    monkeypatch.setattr(build, "open_port", lambda bus, path: 77)
    monkeypatch.setattr(build, "listen_for", lambda port, fd: fd)
    monkeypatch.setattr(adapter, "tune", lambda port, fd: f"{port} fd {fd} holds back")
    control.Helper(site, engine, {}, Clock(), [1]).look(1)  # type: ignore[arg-type]
    assert engine.given == [(1, 77)] and "bus b: /dev/ttyS9 fd 77 holds back" in capsys.readouterr().err


def test_status_names_an_adapter_that_holds_bytes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = tmp_path / "bus/usb-serial/devices/ttyS9/latency_timer"
    timer.parent.mkdir(parents=True)
    timer.write_text("16\n")
    monkeypatch.setattr(build, "held_notes", partial(build.held_notes, sysfs=tmp_path))
    image, here = FakeImage(), Instance(site="builtin", pid=os.getpid(), run=1, image_fd=0, directory=str(tmp_path), store="")
    image.tick(10)
    got = status.collect(here, sites.load(None, text=REAL), image, ManualClock(t_ns=10**8))
    assert len(got["warnings"]) == 1 and got["warnings"][0].startswith("bus b: /dev/ttyS9: the USB adapter holds answers back")
    assert f"warning: {got['warnings'][0]}" in status.text(got)
    timer.write_text("1\n")
    assert status.collect(here, sites.load(None, text=REAL), image, ManualClock(t_ns=10**8))["warnings"] == []


@pytest.mark.parametrize(("port", "kind"), [("virtual-can", "CAN"), ("virtual-tcp", "a TCP connection")])
def test_it_means_nothing_where_there_is_no_driver_to_switch(port: str, kind: str) -> None:
    line = 'port = "virtual"\nbaud = 460800\nparity = "E"\nstop_bits = 1'
    text = sites.BUILTIN.read_text().replace(line, f'port = "{port}"\nrs485 = "on"')
    with pytest.raises(SiteError, match=rf'bus\.b\.rs485 = "on": means nothing on {kind}; leave it out'):
        sites.load(None, text=text)


def test_a_turnaround_on_can_is_refused() -> None:
    path = Path(__file__).parents[1] / "loop/can_site.toml"
    with pytest.raises(SiteError, match=r"device\.bms\.turnaround_ms = 2: means nothing on CAN \(bus c\)"):
        sites.load(path, ["device.bms.turnaround_ms=2"])
