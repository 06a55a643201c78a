"""How a bus's port is written tells its kind, and its kind tells which keys of [[bus]] mean something there."""

from __future__ import annotations

from pathlib import Path

from hal import tcp

VIRTUAL = "virtual"
VIRTUAL_TCP = tcp.VIRTUAL
VIRTUAL_CAN = "virtual-can"
VIRTUALS = (VIRTUAL, VIRTUAL_TCP, VIRTUAL_CAN)  # ports that are the virtual cabinet's

SERIAL, TCP, CAN, SLCAN = "serial", "tcp", "can", "slcan"
RS485 = ("rs485", "rs485_before_ms", "rs485_after_ms")
KEYS = {  # of [[bus]], beside its name and its port
    SERIAL: ("baud", "parity", "stop_bits", *RS485),
    TCP: ("latency_ms",),
    CAN: ("bitrate",),
    SLCAN: ("baud", "bitrate"),  # baud: of the adapter's tty
}


def kind(port: str) -> str:
    """SERIAL, TCP, CAN or SLCAN."""
    if tcp.is_tcp(port):
        return TCP
    if port.startswith("slcan:"):
        return SLCAN
    return CAN if port == VIRTUAL_CAN or port.startswith("can:") else SERIAL


def foreign(port: str) -> tuple[str, ...]:
    """Keys of [[bus]] that mean nothing on this kind of bus."""
    known = KEYS[kind(port)]
    return tuple(dict.fromkeys(name for names in KEYS.values() for name in names if name not in known))


def real(port: str) -> str:
    """A name by which two ways of writing one port are the same: two links to one adapter are one port. Raises ValueError ("why;
    remedy") for a TCP name that is none."""
    if tcp.is_tcp(port):
        return "tcp://{}:{}".format(*tcp.parse(port))
    return port if port.startswith("can:") else str(Path(port.removeprefix("slcan:")).resolve())
