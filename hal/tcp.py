"""Names of Modbus TCP ports. Source: Modbus Messaging on TCP/IP Implementation Guide V1.0b, 3.1.1 (port 502)."""

from __future__ import annotations

from urllib.parse import urlsplit

PREFIX = "tcp://"
VIRTUAL = "virtual-tcp"  # the virtual cabinet listens on a loopback port of its own
MODBUS_PORT = 502


def is_tcp(port: str) -> bool:
    """True for a port that is no line but a connection."""
    return port.startswith(PREFIX) or port == VIRTUAL


def parse(port: str) -> tuple[str, int]:
    """(host, port number) of "tcp://host:502" or "tcp://[::1]:1502"; 502 where none is given. Raises ValueError with why and remedy."""
    remedy = 'write "tcp://meter.site:502", "tcp://192.0.2.7:502" or "tcp://[2001:db8::7]:502"'
    try:
        parts = urlsplit(port)
        host, number = parts.hostname, parts.port
    except ValueError as e:
        raise ValueError(f"is no address ({e}); {remedy}") from None
    if parts.scheme != "tcp" or not host or any(c.isspace() for c in host):
        raise ValueError(f"names no host; {remedy}")
    if parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"has more than host and port; {remedy}")
    if number == 0:
        raise ValueError(f"has no port 0; {remedy}")
    return host, number or MODBUS_PORT
