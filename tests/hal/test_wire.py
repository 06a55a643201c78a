"""Ports and the blocking line: against PTYs, and against pymodbus as an independent peer."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.sunspec import compile_device, scan
from hal.wire import BlockingLine, NoAnswer, PortError, close_port, open_port, transact
from tests.hal import sunspec_image


@pytest.fixture
def pair() -> Iterator[tuple[int, str]]:
    master, slave = pty.openpty()
    tty.setraw(master)
    name = os.ttyname(slave)
    yield master, name
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(("baud", "parity", "stop"), [(9600, "E", 1), (460800, "N", 2), (921600, "O", 1)])
def test_open_sets_the_line(pair: tuple[int, str], baud: int, parity: str, stop: int) -> None:
    fd = open_port(pair[1], baud, parity, stop)
    iflag, oflag, cflag, lflag, ispeed, _, cc = termios.tcgetattr(fd)
    assert (oflag, lflag, cc[termios.VMIN], cc[termios.VTIME]) == (0, 0, b"\x01", b"\x00") or cc[termios.VMIN] in (
        1,
        b"\x01",
    )
    assert ispeed == getattr(termios, f"B{baud}")
    assert bool(cflag & termios.CSTOPB) == (stop == 2) and not iflag & termios.IXON
    assert os.get_blocking(fd) is False and os.get_inheritable(fd) is False
    close_port(fd)


def test_a_second_opener_is_told_who_holds_the_port(pair: tuple[int, str]) -> None:
    code = "import sys, time; from hal.wire import open_port; open_port(sys.argv[1], 9600); print('ok', flush=True)"
    code += "; time.sleep(30)"
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code, pair[1]], stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "ok\n"
        try:
            with pytest.raises(PortError) as e:
                open_port(pair[1], 9600)
        finally:
            holder.kill()
    assert str(holder.pid) in str(e.value) and "stop" in e.value.remedy


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="does not exist"):
        open_port("/dev/ttyNOPE7", 9600)
    plain = tmp_path / "file"
    plain.write_text("")
    with pytest.raises(PortError, match="not a serial port"):
        open_port(str(plain), 9600)
    with pytest.raises(PortError, match="not a standard rate"):
        open_port("/dev/ttyS0", 12345)
    with pytest.raises(PortError, match="parity"):
        open_port("/dev/ttyS0", 9600, "X")


def test_no_answer_and_hang_up(pair: tuple[int, str]) -> None:
    fd = open_port(pair[1], 115200)
    line = BlockingLine(fd, untimed=True, timeout_s=0.05)
    with pytest.raises(NoAnswer, match="no answer"):
        line(1, 3, 0, 1)
    assert line.master.stats["timeouts"] == 1
    with pytest.raises(ValueError):
        line(1, 3, 0, 200)
    assert transact(lambda u, f, a, n: [a] * n, 1, 3, 7, 2) == [7, 7]
    close_port(fd)


class Peer:
    """pymodbus's RTU server on one end of a PTY pair."""

    def __init__(self, port: str, image: dict[int, int], unit: int) -> None:
        self.port, self.image, self.unit = port, image, unit
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None

    async def _serve(self) -> None:
        from pymodbus import FramerType
        from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext
        from pymodbus.server import ModbusSerialServer

        try:
            from pymodbus.datastore import ModbusDeviceContext
        except ImportError:
            from pymodbus.datastore import ModbusSlaveContext as ModbusDeviceContext
        top = max(self.image)
        # pymodbus's block counts from 1
        block = ModbusSequentialDataBlock(1, [self.image.get(i, 0) for i in range(top + 1)])
        context = ModbusServerContext({self.unit: ModbusDeviceContext(hr=block, ir=block)}, single=False)
        server = ModbusSerialServer(context, framer=FramerType.RTU, port=self.port, baudrate=115200)
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        task = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0.2)
        self.ready.set()
        await self.stop.wait()
        await server.shutdown()
        task.cancel()

    def __enter__(self) -> Peer:
        self.thread.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(5)


@pytest.fixture
def crossed() -> Iterator[tuple[str, str]]:
    """Two PTYs whose masters are copied into each other: a cable."""
    a, sa = pty.openpty()
    b, sb = pty.openpty()
    for fd in (a, sa, b, sb):
        tty.setraw(fd)
    stop = threading.Event()

    def copy(src: int, dst: int) -> None:
        while not stop.is_set():
            try:
                data = os.read(src, 512)
                os.write(dst, data)
            except BlockingIOError:
                time.sleep(0.0005)
            except OSError:
                return

    os.set_blocking(a, False)
    os.set_blocking(b, False)
    threads = [threading.Thread(target=copy, args=p, daemon=True) for p in ((a, b), (b, a))]
    for t in threads:
        t.start()
    yield os.ttyname(sa), os.ttyname(sb)
    stop.set()
    for t in threads:
        t.join(2)
    for fd in (a, sa, b, sb):
        os.close(fd)


@pytest.mark.realtime
def test_against_pymodbus(crossed: tuple[str, str]) -> None:
    image, where = sunspec_image.pcs()
    with Peer(crossed[1], image, 3):
        fd = open_port(crossed[0], 115200)
        line = BlockingLine(fd, untimed=True, timeout_s=1.0)
        assert line(3, 3, 40000, 2) == [0x5375, 0x6E53]
        assert line(3, 4, 40070, 2) == [701, 153]
        found = scan(line, 3)
        assert found.identity == ("Acme", "Cabinet", "SN-42")
        device = compile_device(found, "pcs")
        assert device.signals() >= {"batt_p_w", "wset_w", "pcs_heartbeat"}
        line.write(3, where[704] + 22, [1, 1, 0xFFFF, 0xFF38])
        assert line(3, 3, where[704] + 22, 4) == [1, 1, 0xFFFF, 0xFF38]
        line.transact(3, 6, where[715] + 8, values=[3])
        assert line(3, 3, where[715] + 8, 1) == [3]
        assert line.transact(3, 23, where[715] + 5, 2, values=[0, 9], waddr=where[715] + 5) == [0, 9]
        with pytest.raises(NoAnswer) as e:
            line(3, 3, 65000, 10)
        assert e.value.exception == 2
        close_port(fd)


def test_a_pty_may_be_opened_again_and_again_with_what_it_cannot_keep(pair: tuple[int, str]) -> None:
    for _ in range(3):
        close_port(open_port(pair[1], 460800, "E", 2))
        fd = open_port(pair[1], 460800, "O", 1)  # not closed: as a killed process leaves it
        exclusive = bytearray(4)
        fcntl.ioctl(fd, 0x80045440, exclusive)
        os.close(fd)
        assert not any(exclusive), "the mark would outlive us and keep an ordinary user out"


def test_a_port_in_exclusive_use_is_refused_to_root_too(pair: tuple[int, str]) -> None:
    code = "import fcntl, os, sys, termios, time; fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)"
    code += "; fcntl.ioctl(fd, termios.TIOCEXCL); print('ok', flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", code, pair[1]], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "ok\n"
        try:
            with pytest.raises(PortError, match=r"in (exclusive )?use") as e:
                open_port(pair[1], 9600)
        finally:
            holder.kill()
    assert str(holder.pid) in str(e.value)
    if os.geteuid() == 0:
        close_port(open_port(pair[1], 9600))  # nobody stands behind the mark any more
