"""Who has a port, and how a tool opens one that is free: locked as control locks it, so that only one of them talks."""

from __future__ import annotations

import contextlib
import errno
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controller import build, instance, summary
from controller.instance import Instance, InstanceError
from controller.ports import real
from controller.problems import Problem, SiteError
from controller.process import MAPS_NAME
from controller.site import Bus, Site
from hal.rows import DeviceMap
from hal.wire import BlockingLine, PortError

TAKEN = (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK)


class Busy(Exception):
    """The port is in use; the message says by whom, and what can be looked at instead."""


STOP_FIRST = "  to talk on the line yourself, stop the site first (Ctrl-C or SIGTERM: it ramps to 0)"


@dataclass(frozen=True)
class Owner:
    """A running site that has a port; a shelf's port as a bus of that name."""

    instance: Instance
    site: Site
    bus: Bus
    shelf: bool = False


def running_sites() -> Iterator[tuple[Instance, Site]]:
    """Every site that runs here and may be looked at."""
    for found in (i for place in instance.running() for i in place):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            yield found, build.site_from(Path(found.directory) / "site.json")


def _key(port: str) -> str:
    """Equal for two names of one port."""
    try:
        return real(port)
    except ValueError:
        return port


def owner(port: str) -> Owner | None:
    """The running site whose bus leads to this port."""
    for found, site in running_sites():
        for bus in site.buses:
            if not bus.virtual and _key(bus.port) == _key(port):
                return Owner(found, site, bus)
        for shelf in site.shelves:
            if _key(shelf.port) == _key(port):
                return Owner(found, site, Bus(shelf.name, shelf.port, shelf.baud, shelf.parity, shelf.stop_bits), shelf=True)
    return None


def refuse_owned(port: str) -> None:
    """Raises Busy where a running site has the port: a second one who talks there costs it ticks, and a device its answers."""
    held = owner(port)
    if held is not None:
        raise Busy(_owned_by_shelf(port, held) if held.shelf else _owned(port, held.instance, held.site, held.bus.name))


def _owned_by_shelf(port: str, held: Owner) -> str:
    here = f"{port}: is shelf {held.bus.name}'s of site {held.instance.site}, which is running (process {held.instance.pid})"
    return f"{here}\n  what its devices say: `ballast shelves`\n{STOP_FIRST}"


def _owned(port: str, found: Instance, site: Site, bus: str = "") -> str:
    """Whose port it is, and what can be looked at instead of it."""
    lines = [f"{port}: is {f'bus {bus}' if bus else 'a bus'} of site {found.site}, which is running (process {found.pid})"]
    with contextlib.suppress(InstanceError):
        rows = summary.buses(instance.open_image(found, writable=False), site)
        for name, row in rows.items():
            if bus in ("", name):
                lines.append(f"  what it counts on {name}: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in row.items()))
    lines.append("  what its devices say: `ballast probe DEVICE`; counters and ages: `buses` and `devices` at `ballast console`")
    lines.append(STOP_FIRST)
    return "\n".join(lines)


@contextlib.contextmanager
def opened(bus: Bus, *, silent: bool = False) -> Iterator[int]:
    """The descriptor of a port that is free, given back at the end. `silent`: CAN without acknowledging; a SocketCAN interface
    may then be anybody's. Raises Busy, SiteError."""
    if not (silent and bus.port.startswith("can:")):
        refuse_owned(bus.port)
    try:
        if bus.can and silent:
            from hal.canport import open_can

            fd = open_can(bus.port, bus.bitrate, bus.baud, silent=True)
        else:
            fd = build.open_port(bus, bus.port)
    except PortError as e:
        if e.errno in TAKEN:
            # A port by another name (a virtual one has no name in the site): its control's number tells.
            mine = next(((i, site) for i, site in running_sites() if i.control_pid and f"(pid {i.control_pid})" in e.why), None)
            raise Busy(str(e) if mine is None else _owned(bus.port, *mine)) from None
        raise SiteError([Problem("", bus.name, bus.port, e.why, e.remedy)]) from None
    try:
        yield fd
    finally:
        if bus.can:
            from hal.canport import close_can

            close_can(fd)
        build.close_port(fd)


@contextlib.contextmanager
def line(bus: Bus) -> Iterator[BlockingLine]:
    """A blocking Modbus master on a port that is free. Raises Busy, SiteError."""
    with opened(bus) as fd:
        made = build.blocking_line(bus, fd)
        assert isinstance(made, BlockingLine)
        yield made


def compiled(found: Instance) -> list[DeviceMap]:
    """What control of a running site found its devices to be; empty where that is not known."""
    try:
        # pickle: instance.read has seen that the directory is ours or root's, and closed to others.
        _, maps = pickle.loads((Path(found.directory) / MAPS_NAME).read_bytes())
        return list(maps)
    except (OSError, ValueError, TypeError, EOFError, AttributeError, ImportError, pickle.UnpicklingError):
        return []
