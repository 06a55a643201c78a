"""What processes do with faults of the machine, without any real-time run: clocks, ports, locks, leftovers."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from _core.image import ProcessImage

from _core import image as core
from controller import build, control, instance, outlet
from controller import site as sites
from controller.clock import ManualClock
from controller.control import Helper, StopRequest
from controller.instance import Instance, InstanceError
from controller.process import Backoff, Child, say
from controller.supervisor import LEASE_S, Supervisor
from tests.controller.fakes import FakeImage

SITE = sites.load(None)
ROOT = Path(__file__).parents[2]


class JumpyClock(ManualClock):
    """A wall clock that somebody sets; the monotonic one runs on."""

    jump_s = 0.0

    def wall_s(self) -> float:
        return super().wall_s() + self.jump_s


@pytest.mark.parametrize("jump_s", [86400.0, -86400.0, 3600.0 * 24 * 365, -1.7e9])
def test_a_wall_clock_that_jumps_moves_no_lease(jump_s: float) -> None:
    clock, image = JumpyClock(1_000_000_000), FakeImage()
    supervisor = Supervisor(image, SITE, clock)
    for second in range(1, 11):
        clock.t_ns = second * 1_000_000_000
        clock.jump_s = jump_s if second > 4 else 0.0
        image.tick(100)
        supervisor.step(clock.monotonic_ns())
    leases = [limits["lease_until_ns"] for limits in image.limits_written]
    assert leases == [int((second + LEASE_S) * 1e9) for second in range(1, 11)]
    window_s = SITE.num("grid.billing_window_s")
    assert 0.0 <= image.billing_offset_s < window_s
    phase_s = (clock.monotonic_ns() / 1e9 + image.billing_offset_s) % window_s
    assert min(abs(phase_s - clock.wall_s() % window_s), window_s - abs(phase_s - clock.wall_s() % window_s)) < 61.0


def test_the_compiled_parts_know_no_wall_clock() -> None:
    """Leases, deadlines, ages and the plant's log are on CLOCK_MONOTONIC (controller/: see test_run)."""
    for folder in ("_core", "hal", "bench/plant"):
        for path in [*(ROOT / folder).glob("*.pyx"), *(ROOT / folder).glob("*.pxd"), *(ROOT / folder).glob("*.py")]:
            text = path.read_text()
            assert not re.search(r"CLOCK_REALTIME|gettimeofday|\btime\.time\(|datetime", text), path


class FakeEngine:
    """Descriptors by bus, as the engine has them."""

    def __init__(self) -> None:
        self.ports: list[object] = [None] * 8
        self.fds: dict[int, int] = {}
        self.dropped: dict[int, int] = {}

    def lost(self, bus: int) -> bool:
        return bus not in self.fds

    def take_dropped(self, bus: int) -> int:
        return self.dropped.pop(bus, -1)

    def set_fd(self, bus: int, fd: int) -> None:
        self.fds[bus] = fd


def test_a_loose_plug_does_not_fill_the_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock, engine, closed, opened = ManualClock(1_000_000_000), FakeEngine(), [], []
    monkeypatch.setattr(build, "open_port", lambda bus, path: opened.append(path) or 100 + len(opened))
    monkeypatch.setattr(build, "close_port", closed.append)
    helper = Helper(SITE, engine, {"a": "/dev/x", "b": "/dev/y"}, clock, [0, 1])
    engine.fds = {1: 9}
    for _ in range(400):  # 20 s in which it comes and goes at once
        clock.t_ns += 50_000_000
        helper.look(0)
        helper.look(1)
        if 0 in engine.fds:
            engine.dropped[0] = engine.fds.pop(0)
    assert len(opened) < 25 and closed == [100 + k for k in range(1, len(closed) + 1)], "growing waits, every descriptor closed"
    for _ in range(100):
        clock.t_ns += 50_000_000
        helper.look(0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "is gone" in lines[0] and "is back after" in lines[1]


def test_a_port_that_somebody_else_has_taken_meanwhile_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(bus: Any, path: str) -> int:
        raise OSError(errno.EBUSY, "is locked by picocom (pid 7)")

    clock = ManualClock(1)
    monkeypatch.setattr(build, "open_port", taken)
    helper = Helper(SITE, FakeEngine(), {}, clock, [0])
    for _ in range(200):
        clock.t_ns += 50_000_000
        helper.look(0)
    assert capsys.readouterr().err.count("picocom") == 1


def test_a_stop_and_continue_is_no_signal_to_end() -> None:
    """signal.sigtimedwait would tell of one (CPython 3.11): a control that was stopped for a moment ramped to 0."""
    code = """
import os, signal, sys
from controller.control import StopRequest
stop = StopRequest()
print("ready", flush=True)
for _ in range(8):
    if stop.wait(0.1):
        sys.exit(5)
print("quiet", flush=True)
sys.exit(6 if stop.wait(20) else 7)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for _ in range(3):
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.25)
        child.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    assert child.stdout.readline() == "quiet\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 6


def test_stop_requests_are_counted() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        stop = StopRequest()
        assert not stop.wait(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        assert stop.wait(1.0) and stop.level == 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_what_was_remembered_of_the_devices_belongs_to_these_buses_and_devices(tmp_path: Path) -> None:
    assert control.remembered(tmp_path, SITE) is None
    control.remember(tmp_path, SITE, [])
    assert control.remembered(tmp_path, SITE) == []
    assert control.remembered(tmp_path, sites.load(None, ["pcs.tau_s=0.004"])) == [], "no map depends on it"
    for other in ("device.bms.unit=11", "bus.a.baud=115200", "device.meter.profile=other"):
        assert control.remembered(tmp_path, sites.load(None, [other])) is None
    for torn in (b"", b"\x80\x05", b"nonsense", b"\x80\x04K\x01."):
        (tmp_path / control.MAPS_NAME).write_bytes(torn)
        assert control.remembered(tmp_path, SITE) is None


def test_looking_at_the_lock_does_not_refuse_a_start(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, (fd,)).start()
    os.close(instance.lock(tmp_path, "x"))


def test_a_stranger_with_the_number_of_a_dead_control_is_no_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    directory = instance.make_directory("ghost")
    left = Instance("ghost", 999_999_999, 1, 0, str(directory), "", control_pid=os.getpid())
    left.write()
    assert not instance.holds_image(left)
    with pytest.raises(InstanceError, match="not running"):
        instance.find(None)
    image = ProcessImage.create()
    left.image_fd = image.fd
    left.write()
    assert instance.find(None).site == "ghost", "a control that still ramps down is one"


@pytest.mark.parametrize("why", [OSError(errno.EAGAIN, "Resource temporarily unavailable"), MemoryError()])
def test_a_child_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch, why: Exception) -> None:
    def none_left(*_: Any, **__: Any) -> None:
        raise why

    clock = ManualClock(10)
    child = Child("supervisor", ["x"], clock, backoff=Backoff())
    monkeypatch.setattr(subprocess, "Popen", none_left)
    waits = []
    for _ in range(6):
        assert "cannot be started" in child.start_again()
        assert child.again_ns is not None and child.pid == 0
        waits.append((child.again_ns - clock.t_ns) / 1e9)
        clock.t_ns = child.again_ns
    assert waits == sorted(waits) and waits[-1] == 1.5


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        with pytest.raises(OSError, match="No space left"):
            outlet.put(full.fileno(), b"bus a")
        monkeypatch.setattr(sys, "stderr", full)
        say("control", "bus a: port is gone")
        monkeypatch.undo()


def test_two_writers_of_one_slot_wait_for_each_other(tmp_path: Path) -> None:
    from controller import operate

    image = ProcessImage.create()
    here = Instance("s", os.getpid(), 1, image.fd, str(tmp_path), str(tmp_path / "h.sqlite"))
    other = os.open(f"/proc/self/fd/{image.fd}", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    threading.Timer(0.3, os.close, (other,)).start()
    started = time.monotonic()
    operate.hold(here, image, 5e3, 60.0, ManualClock(1))
    assert time.monotonic() - started > 0.2
    assert image.setpoint(core.SLOT_OPERATOR)["value_w"] == 5e3


def test_a_hold_acts_though_the_audit_trail_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from controller import operate

    (tmp_path / "file").write_text("")
    image = ProcessImage.create()
    here = Instance("s", os.getpid(), 1, image.fd, str(tmp_path), str(tmp_path / "file" / "h.sqlite"))
    clock = ManualClock(5 * 10**9)
    number = operate.hold(here, image, 0.0, 60.0, clock)
    assert image.setpoint(core.SLOT_OPERATOR)["kind"] == core.SP_HOLD and "without an entry" in capsys.readouterr().err
    assert not operate.noted(number) and operate.word(image, clock).id == number
    clock.t_ns += 1
    other = operate.hold(here, image, 1e3, 60.0, clock)
    assert other != number and not operate.renew(image, number, clock), "nobody renews another's"
    assert operate.renew(image, other, clock)
