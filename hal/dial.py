"""Modbus TCP connections that are ready for control.

connect() takes as long as a network likes: it never runs on the control thread. A helper thread dials and hands over the descriptor;
control finds a peer that is gone by its silence (hal/modbus.pyx, `broken`) and lets go of it.

Source: Modbus Messaging on TCP/IP Implementation Guide V1.0b, 4.3.2 (TCP_NODELAY, keepalive).
"""

from __future__ import annotations

import errno
import socket
import struct

from hal.tcp import parse
from hal.wire import PortError

CONNECT_S = 0.5  # a connect() is one round trip: on a site's network, milliseconds
ADDRESSES = 4  # of a host with many names, so many are tried
KEEP_IDLE_S, KEEP_EVERY_S, KEEP_TRIES = 5, 1, 3  # finds a peer that is gone while nobody is asked
UNSENT_MS = 2000  # bytes that nobody acknowledges for so long end the connection


def open_tcp(port: str, connect_s: float = CONNECT_S) -> int:
    """A connected, non-blocking descriptor; tries each address of the host for connect_s. Raises PortError."""
    try:
        host, number = parse(port)
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
    except (ValueError, UnicodeError) as e:
        why, _, remedy = str(e).partition("; ")
        raise PortError(port, why, remedy, errno.EINVAL) from None
    except socket.gaierror as e:
        why = f"the host is not known ({e.strerror})"
        raise PortError(port, why, "check the name, or write its address", errno.EADDRNOTAVAIL) from None
    failed: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    for family, kind, protocol, _, address in found[:ADDRESSES]:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as e:
            failed = e
            continue
        try:
            sock.settimeout(connect_s)
            sock.connect(address)
            _tune(sock)
            return sock.detach()
        except OSError as e:
            failed = e
            sock.close()
    raise _explain(port, failed)


def _tune(sock: socket.socket) -> None:
    """At once, kept alive, and nothing left behind: with linger 0, close() discards what was not sent. A command that waited for a
    vanished peer must not reach it when it comes back, behind everything that has changed since."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_TRIES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNSENT_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _explain(port: str, e: OSError) -> PortError:
    """What a connect() that failed means to the person at the cabinet."""
    number = errno.ETIMEDOUT if isinstance(e, TimeoutError) else e.errno or errno.EIO
    if number == errno.ECONNREFUSED:
        return PortError(port, "refuses the connection", "check the port number, and whether the device allows one more client", number)
    if number == errno.ETIMEDOUT:
        return PortError(port, "does not answer", "check address, cable and power of the device", number)
    if number in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return PortError(port, "cannot be reached from here", "check this machine's network settings and the cable", number)
    return PortError(port, f"cannot be connected: {e.strerror or e}", "check address and network", number)
