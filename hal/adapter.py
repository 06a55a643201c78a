"""What stands between a UART and the line: who switches an RS-485 driver, and adapters that hold bytes back.

Everything here may block and never runs on the control thread. `ioctl` and `sysfs` are arguments, so that a test can stand in
for a kernel that this machine has not. Sources: linux/serial.h, asm-generic/ioctls.h, Documentation/driver-api/serial/serial-rs485.rst,
Documentation/ABI/testing/sysfs-bus-usb-devices-usb-serial and drivers/usb/serial/ftdi_sio.c (latency_timer).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal.wire import PortError

TIOCGSERIAL, TIOCSSERIAL = 0x541E, 0x541F  # asm-generic/ioctls.h
SERIAL_STRUCT_BYTES = 72
FLAGS_OFFSET = 16  # int flags in struct serial_struct (linux/serial.h)
ASYNC_LOW_LATENCY = 1 << 13
TIOCGRS485, TIOCSRS485 = 0x542E, 0x542F
RS485_BYTES = 32  # struct serial_rs485: flags, delay before and after sending in ms, room for more
ENABLED, RTS_ON_SEND, RTS_AFTER_SEND, RX_DURING_TX = 1 << 0, 1 << 1, 1 << 2, 1 << 4
AUTO, ON, INVERTED, OFF = "auto", "on", "inverted", "off"
MODES = (AUTO, ON, INVERTED, OFF)
SYSFS = Path("/sys")
RULES = "/etc/udev/rules.d/90-ballast.rules"

Ioctl = Callable[[int, int, bytearray], Any]


@dataclass(frozen=True)
class Direction:
    """Who switches the RS-485 driver of a port between sending and listening.

    mode: "auto" leaves it as it is (an adapter that switches by itself, or what the device tree says), "on" lets the port's driver
    raise RTS while it sends, "inverted" lower it, "off" ends that. before_ms, after_ms: 0 to 100, RTS so long ahead of the first
    and behind the last bit.
    """

    mode: str = AUTO
    before_ms: int = 0
    after_ms: int = 0


def set_direction(port: str, fd: int, want: Direction, ioctl: Ioctl = fcntl.ioctl) -> None:
    """Tell the port's driver who switches direction, and look whether it does. Raises PortError with key "rs485": a line that
    is not switched either answers nothing or holds the bus down for every device on it."""
    if want.mode == AUTO:
        return
    buf, got = bytearray(RS485_BYTES), bytearray(RS485_BYTES)
    try:
        ioctl(fd, TIOCGRS485, buf)
    except OSError as e:
        if want.mode == OFF:
            return  # there is nothing to switch off
        raise _refused(port, want, f"its driver cannot switch RS-485 direction ({e.strerror})", e.errno) from None
    flags, before_ms, after_ms = struct.unpack_from("=III", buf)
    flags &= ~(ENABLED | RTS_ON_SEND | RTS_AFTER_SEND | RX_DURING_TX)
    if want.mode != OFF:
        flags |= ENABLED | (RTS_ON_SEND if want.mode == ON else RTS_AFTER_SEND)
        before_ms, after_ms = want.before_ms, want.after_ms
    struct.pack_into("=III", buf, 0, flags, before_ms, after_ms)
    try:
        ioctl(fd, TIOCSRS485, buf)
        ioctl(fd, TIOCGRS485, got)
    except OSError as e:
        raise _refused(port, want, f"its driver refuses that RS-485 mode ({e.strerror})", e.errno) from None
    # Drivers correct in silence what their hardware cannot do: the level of RTS, the delays.
    is_flags, is_before, is_after = struct.unpack_from("=III", got)
    levels = ENABLED | RTS_ON_SEND | RTS_AFTER_SEND if want.mode != OFF else ENABLED
    if (is_flags ^ flags) & levels:
        raise _refused(port, want, "its driver took another RS-485 mode than it was told")
    if want.mode != OFF and (is_before, is_after) != (before_ms, after_ms):
        why = f"its driver made RTS delays of {is_before} and {is_after} ms out of {before_ms} and {after_ms}"
        remedy = f"write rs485_before_ms = {is_before} and rs485_after_ms = {is_after}, which it can keep"
        raise PortError(port, why, remedy, key="rs485")


def _refused(port: str, want: Direction, why: str, number: int | None = None) -> PortError:
    remedy = 'write "auto" for an adapter that switches by itself, or take a port whose driver has TIOCSRS485'
    if want.mode == OFF:
        remedy = 'write "auto", or take it out of the device tree (linux,rs485-enabled-at-boot-time)'
    return PortError(port, why, remedy, number or errno.EINVAL, key="rs485")


# ---------------------------------------------------------------- bytes that are held back


def low_latency(fd: int, ioctl: Ioctl = fcntl.ioctl) -> str | None:
    """Ask the driver not to hold bytes back. None, or why it was not granted."""
    buf = bytearray(SERIAL_STRUCT_BYTES)
    try:
        ioctl(fd, TIOCGSERIAL, buf)
        flags = struct.unpack_from("i", buf, FLAGS_OFFSET)[0]
        struct.pack_into("i", buf, FLAGS_OFFSET, flags | ASYNC_LOW_LATENCY)
        ioctl(fd, TIOCSSERIAL, buf)
    except OSError as e:
        return f"low latency not granted: {e.strerror}"
    return None


def held_ms(port: str, sysfs: Path = SYSFS) -> int | None:
    """How long the USB adapter of a port may hold received bytes back, in ms (FTDI: 16 as plugged in); None where it has no such
    timer. Links such as /dev/serial/by-id are followed."""
    try:
        return int(_timer(port, sysfs).read_text())
    except (OSError, ValueError):
        return None


def held_note(port: str, sysfs: Path = SYSFS) -> str | None:
    """What a person should do about an adapter that holds bytes back for more than 1 ms; None where it does not."""
    held = held_ms(port, sysfs)
    if held is None or held <= 1:
        return None
    timer = _timer(port, sysfs)
    driver = "ftdi_sio"
    with contextlib.suppress(OSError):
        driver = Path(os.readlink(timer.parent / "driver")).name
    rule = f'ACTION=="add", SUBSYSTEM=="usb-serial", DRIVER=="{driver}", ATTR{{latency_timer}}="1"'
    why = f"{port}: the USB adapter holds answers back for up to {held} ms, which no plan contains"
    return f"{why}; as root write 1 into {timer}, and for good put {rule} into {RULES}"


def tune(port: str, fd: int, sysfs: Path = SYSFS, ioctl: Ioctl = fcntl.ioctl) -> str | None:
    """Have an open port hand over every byte at once, by ioctl and, where that does not reach the adapter's timer, by sysfs.
    None, or what was not granted and what to do."""
    refused = low_latency(fd, ioctl)
    held = held_ms(port, sysfs)
    if held is None:
        return refused
    if held > 1:
        with contextlib.suppress(OSError):  # another user's to write: the note says what to do
            _timer(port, sysfs).write_text("1")
    return held_note(port, sysfs)


def _timer(port: str, sysfs: Path) -> Path:
    return sysfs / "bus/usb-serial/devices" / Path(os.path.realpath(port)).name / "latency_timer"
