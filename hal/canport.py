"""CAN ports: a SocketCAN interface or an slcan adapter, opened and made ready, with an error that says what would do.

Everything here may block and never runs on the control thread: a helper thread opens and hands over ready descriptors.
Sources: linux/can.h, linux/can/raw.h, linux/can/error.h; LAWICEL "CAN232" manual V3.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from hal.canplan import BITRATES
from hal.canrows import MAX_TRANSMITS
from hal.wire import PortError, open_port

SOCKET_PREFIX, SLCAN_PREFIX = "can:", "slcan:"
# CRTL, PROT, ACK, BUSOFF, BUSERROR, RESTARTED: what hal.can counts (linux/can/error.h)
ERROR_MASK = 0x004 | 0x008 | 0x020 | 0x040 | 0x080 | 0x100
RAW_ERR_FILTER = 2  # linux/can/raw.h
EFF_FLAG, EFF_MASK, SFF_MASK, RTR_FLAG = 0x80000000, 0x1FFFFFFF, 0x7FF, 0x40000000
ANSWER_S, QUIET_S = 0.2, 0.02
# What one tick may send and little more: where nobody acknowledges, frames wait and go out late, old commands before new ones.
SEND_BYTES = 1024 * MAX_TRANSMITS  # the kernel counts 768 to 960 bytes for a frame of 16
BEL = b"\x07"
REFUSES_SILENCE = "to listen silently"  # in the words of a PortError: an adapter that has no such channel


def open_can(port: str, bitrate: int, baud: int = 460800, *, silent: bool = False) -> int:
    """Open "can:IFACE" or an slcan adapter ("slcan:TTY" or the bare path of a tty). Returns a non-blocking descriptor.
    `silent`: an slcan adapter listens and does not even acknowledge, so that a wrong rate disturbs nobody. Raises PortError."""
    if port.startswith(SOCKET_PREFIX):
        return _open_socket(port, bitrate)
    return _open_slcan(port.removeprefix(SLCAN_PREFIX), bitrate, baud, silent)


def set_filters(fd: int, filters: Sequence[tuple[int, bool]]) -> None:
    """Let only data frames with these (id, extended) through, error frames beside them."""
    masks = {True: EFF_FLAG | RTR_FLAG | EFF_MASK, False: EFF_FLAG | RTR_FLAG | SFF_MASK}
    rows = b"".join(struct.pack("=II", i | (EFF_FLAG if ext else 0), masks[ext]) for i, ext in filters)
    with socket.socket(fileno=os.dup(fd)) as s:
        s.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FILTER, rows)


def close_can(fd: int) -> None:
    """Close an slcan adapter's channel before its tty: it would go on talking to nobody. For who only looks at a port: control may be
    killed at any time, so every opening begins by closing the channel, and control ends without."""
    with contextlib.suppress(OSError):
        if os.isatty(fd):
            os.write(fd, b"\rC\r")


# ---------------------------------------------------------------- SocketCAN


def _open_socket(port: str, bitrate: int) -> int:
    name = port.removeprefix(SOCKET_PREFIX)
    try:
        s = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
    except OSError as e:
        why, remedy = f"this kernel has no CAN ({e.strerror})", "modprobe can can_raw, or an slcan adapter"
        raise PortError(port, why, remedy, e.errno or errno.EIO) from None
    try:
        s.setsockopt(socket.SOL_CAN_RAW, RAW_ERR_FILTER, ERROR_MASK)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES // 2)  # it doubles what it is given (man 7 socket)
        s.setblocking(False)
        s.bind((name,))
        if not _is_up(name):
            raise PortError(port, "is down", f"ip link set {name} up type can bitrate {bitrate} restart-ms 100", errno.ENETDOWN)
    except PortError:
        s.close()
        raise
    except OSError as e:
        s.close()
        here = f"CAN interfaces here: {', '.join(interfaces()) or 'none'}"
        raise PortError(port, f"cannot be used: {e.strerror or e}", here, e.errno or errno.EIO) from None
    return s.detach()


def _is_up(name: str) -> bool:
    """IFF_UP as sysfs shows it; where it shows nothing, bind has the last word."""
    try:
        return bool(int((Path("/sys/class/net") / name / "flags").read_text(), 16) & 1)
    except (OSError, ValueError):
        return True


def interfaces() -> list[str]:
    """CAN interfaces of this machine (ARPHRD_CAN is 280); at most eight."""
    found = []
    for path in sorted(Path("/sys/class/net").glob("*/type")):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == "280":
                found.append(path.parent.name)
    return found[:8]


# ---------------------------------------------------------------- slcan


def _open_slcan(port: str, bitrate: int, baud: int, silent: bool) -> int:
    if bitrate not in BITRATES:
        raise PortError(port, f"{bitrate} bit/s is no rate of slcan", "one of " + ", ".join(map(str, BITRATES)), errno.EINVAL)
    fd = open_port(port, baud, "N")
    try:
        _command(fd, b"\r\r\rC\r")  # whatever it was in the middle of; a channel that is closed already answers BEL
        _drain(fd)
        channel = (b"L\r", REFUSES_SILENCE) if silent else (b"O\r", "to open its channel")
        for line, what in ((b"S%d\r" % BITRATES.index(bitrate), f"{bitrate} bit/s"), channel):
            # Some adapters answer nothing at all, as slcand has to know too; one that refuses says so.
            if BEL in _command(fd, line):
                why = f"the slcan adapter refuses {what} ({line[:-1].decode()})"
                remedy = "let it take part (`ballast sniff --join`)" if what == REFUSES_SILENCE else "check its manual for rates"
                raise PortError(port, why, remedy, errno.EINVAL)
    except PortError:
        os.close(fd)
        raise
    except OSError as e:
        os.close(fd)
        raise PortError(port, f"does not take slcan commands: {e.strerror}", "check the adapter; replug it", e.errno or errno.EIO) from None
    return fd


def _command(fd: int, line: bytes) -> bytes:
    """Send a command; what came back until its CR or BEL, or nothing in time."""
    os.write(fd, line)
    got, end = b"", time.monotonic() + ANSWER_S
    while (left := end - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]:
        got += os.read(fd, 256)
        if b"\r" in got or BEL in got:
            break
    return got


def _drain(fd: int) -> None:
    end = time.monotonic() + ANSWER_S
    while time.monotonic() < end and select.select([fd], [], [], QUIET_S)[0]:
        os.read(fd, 4096)
