"""RS-485 direction and adapters that hold bytes back: against a fake kernel and a fake sysfs tree, for want of the hardware."""

from __future__ import annotations

import errno
import os
import pty
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal import adapter
from hal.adapter import ENABLED, RTS_AFTER_SEND, RTS_ON_SEND, RX_DURING_TX, Direction, held_ms, held_note, set_direction, tune
from hal.wire import PortError, close_port, open_port

PORT = "/dev/ttyS7"


class Kernel:
    """The ioctls of one serial driver: struct serial_rs485 and struct serial_struct as linux/serial.h has them."""

    def __init__(self, has: bool = True, flags: int = RX_DURING_TX, most_ms: int = 100, keeps: int = ~0, refuses: int = 0) -> None:
        self.has, self.most_ms, self.keeps, self.refuses = has, most_ms, keeps, refuses
        self.rs485 = struct.pack("=8I", flags, 7, 7, *range(5))
        self.serial = bytes(72)
        self.asked: list[int] = []

    def __call__(self, fd: int, request: int, buf: bytearray) -> int:
        self.asked.append(request)
        if not self.has:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        if request == adapter.TIOCGRS485:
            buf[:] = self.rs485
        elif request == adapter.TIOCSRS485:
            if self.refuses:
                raise OSError(self.refuses, os.strerror(self.refuses))
            flags, before, after = struct.unpack_from("=III", buf)
            self.rs485 = struct.pack("=III", flags & self.keeps, min(before, self.most_ms), min(after, self.most_ms)) + bytes(buf[12:])
        elif request == adapter.TIOCGSERIAL:
            buf[:] = self.serial
        else:
            assert request == adapter.TIOCSSERIAL
            self.serial = bytes(buf)
        return 0

    @property
    def words(self) -> tuple[int, ...]:
        return struct.unpack("=8I", self.rs485)


@pytest.mark.parametrize(("mode", "level"), [("on", RTS_ON_SEND), ("inverted", RTS_AFTER_SEND)])
def test_the_driver_is_told_to_switch(mode: str, level: int) -> None:
    kernel = Kernel()
    set_direction(PORT, 3, Direction(mode, 1, 2), kernel)
    assert kernel.words == (ENABLED | level, 1, 2, 0, 1, 2, 3, 4), "and what it has beside is left alone"


def test_auto_asks_nothing_and_off_ends_it() -> None:
    kernel = Kernel(flags=ENABLED | RTS_ON_SEND)
    set_direction(PORT, 3, Direction(), kernel)
    assert kernel.asked == []
    set_direction(PORT, 3, Direction("off"), kernel)
    assert kernel.words[:3] == (0, 7, 7)
    set_direction(PORT, 3, Direction("off"), Kernel(has=False))  # nothing to switch off


@pytest.mark.parametrize(
    ("kernel", "says", "remedy"),
    [
        (Kernel(has=False), "cannot switch RS-485 direction", 'write "auto" for an adapter that switches by itself'),
        (Kernel(refuses=errno.EINVAL), "refuses that RS-485 mode", "take a port whose driver has TIOCSRS485"),
        (Kernel(keeps=~ENABLED), "another RS-485 mode than it was told", "TIOCSRS485"),
        (Kernel(keeps=~RTS_ON_SEND), "another RS-485 mode than it was told", "TIOCSRS485"),
        (Kernel(most_ms=0), "delays of 0 and 0 ms out of 1 and 2", "rs485_before_ms = 0 and rs485_after_ms = 0"),
    ],
)
def test_what_is_not_switched_is_an_error_with_a_remedy(kernel: Kernel, says: str, remedy: str) -> None:
    with pytest.raises(PortError) as e:
        set_direction(PORT, 3, Direction("on", 1, 2), kernel)
    assert PORT in str(e.value) and says in e.value.why and remedy in e.value.remedy
    assert e.value.key == "rs485" and e.value.errno


def test_a_pty_switches_nothing() -> None:
    master, slave = pty.openpty()
    fd = open_port(os.ttyname(slave), 9600)
    with pytest.raises(PortError, match=r"Inappropriate ioctl.*auto"):
        set_direction(os.ttyname(slave), fd, Direction("on"))
    close_port(fd)
    os.close(master)
    os.close(slave)


# ---------------------------------------------------------------- sysfs


@pytest.fixture
def sysfs(tmp_path: Path) -> Iterator[Path]:
    """ttyUSB0: FTDI as plugged in; ttyUSB1: an adapter without a timer; and a link to the first, as /dev/serial/by-id has."""
    devices = tmp_path / "sys/bus/usb-serial/devices"
    (tmp_path / "sys/bus/usb-serial/drivers/ftdi_sio").mkdir(parents=True)
    for name in ("ttyUSB0", "ttyUSB1"):
        (devices / name).mkdir(parents=True)
        (tmp_path / name).write_text("")
    (devices / "ttyUSB0/latency_timer").write_text("16\n")
    (devices / "ttyUSB0/driver").symlink_to("../../drivers/ftdi_sio")
    (tmp_path / "usb-FTDI_A50285BI-if00-port0").symlink_to("ttyUSB0")
    yield tmp_path / "sys"


def test_the_timer_is_found_through_a_link(sysfs: Path, tmp_path: Path) -> None:
    port = str(tmp_path / "usb-FTDI_A50285BI-if00-port0")
    assert held_ms(port, sysfs) == 16
    note = held_note(port, sysfs)
    assert note is not None and port in note and "up to 16 ms" in note
    assert f"write 1 into {sysfs}/bus/usb-serial/devices/ttyUSB0/latency_timer" in note
    assert 'DRIVER=="ftdi_sio", ATTR{latency_timer}="1" into /etc/udev/rules.d/90-ballast.rules' in note
    assert held_ms(str(tmp_path / "ttyUSB1"), sysfs) is None and held_note(str(tmp_path / "ttyUSB1"), sysfs) is None
    assert held_ms("/dev/ttyS0", sysfs) is None


def test_the_timer_is_set_where_it_may_be(sysfs: Path, tmp_path: Path) -> None:
    kernel = Kernel()
    assert tune(str(tmp_path / "ttyUSB0"), 3, sysfs, kernel) is None
    assert held_ms(str(tmp_path / "ttyUSB0"), sysfs) == 1
    assert struct.unpack_from("i", kernel.serial, adapter.FLAGS_OFFSET)[0] == adapter.ASYNC_LOW_LATENCY


def test_a_timer_that_may_not_be_set_is_named(sysfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, *_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", forbidden)  # root may write any file
    assert "up to 16 ms" in (tune(str(tmp_path / "ttyUSB0"), 3, sysfs, Kernel(has=False)) or "")


def test_without_a_timer_the_driver_has_the_word(sysfs: Path, tmp_path: Path) -> None:
    assert tune(str(tmp_path / "ttyUSB1"), 3, sysfs, Kernel()) is None
    assert "low latency not granted" in (tune(str(tmp_path / "ttyUSB1"), 3, sysfs, Kernel(has=False)) or "")
