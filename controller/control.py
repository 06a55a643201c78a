"""The control process: opens the ports, compiles the devices, runs the engine in one thread that never holds the GIL.

Beside that thread: the main thread, which waits for signals, and a helper thread, which opens ports that went away.
What is slow or may block (opening, tcsetattr, scanning a device) happens in those two, or in a child; pysunspec2,
numpy and rich are never loaded here.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _core.engine import Engine

from _core import image as core
from controller import build, disk
from controller.clock import Clock, RealClock
from controller.process import EXIT_AGAIN, EXIT_FAILED, EXIT_INPUT, EXIT_OK, MAPS_NAME, die_with_parent, keep_messages, say
from controller.site import Site

STACK_BYTES = 256 * 1024  # locked into memory, for each thread
SCAN_WAIT_S = (0.5, 1, 2, 4, 8)  # the last one again and again
REOPEN_FIRST_S, REOPEN_MOST_S = 0.1, 2.0
HELPER_PERIOD_S = 0.05
WATCH_S = 0.2
LISTEN_S = 0.05
SETTLED_S = 1.0
OPEN_TRIES = 10
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def open_ports(site: Site, ports: dict[str, str]) -> tuple[list[int], list[str]]:
    """Descriptors of all buses in order (-1: none), and every problem of a line: missing, no tty, in use, forbidden.

    A TCP server that is not there is no problem yet: `dial` waits for it.
    """
    fds, problems = [], []
    for bus in site.buses:
        if bus.tcp:
            fds.append(-1)
            continue
        path = ports.get(bus.name, bus.port)
        for attempt in range(OPEN_TRIES):
            try:
                fds.append(build.open_port(bus, path))
                break
            except OSError as e:
                # A control that was killed, and its scan, may take a moment to let go.
                if e.errno in (errno.EBUSY, errno.EAGAIN) and attempt < OPEN_TRIES - 1:
                    select.select([], [], [], 0.1)
                    continue
                fds.append(-1)
                key = f"bus.{bus.name}.{getattr(e, 'key', 'port')}"
                value = path if key.endswith(".port") else f"{getattr(bus, key.rpartition('.')[2])} at {path}"
                problems.append(f"{site.file}: {key} = {value}: {getattr(e, 'why', e)}; {getattr(e, 'remedy', '')}")
                break
    return fds, problems


def dial(site: Site, ports: dict[str, str], fds: list[int], again: bool = False) -> list[str]:
    """Connects the TCP buses that have no descriptor yet (again: all of them anew), into fds; what is in the way of each that stays -1."""
    away = []
    for i, bus in enumerate(site.buses):
        if not bus.tcp or (fds[i] >= 0 and not again):
            continue
        if fds[i] >= 0:
            build.close_port(fds[i])
            fds[i] = -1
        try:
            fds[i] = build.open_port(bus, ports.get(bus.name, bus.port))
        except OSError as e:
            away.append(f"bus {bus.name}: {e}")
    return away


def remembered(directory: Path, site: Site) -> list[Any] | None:
    """What an earlier control of this run found the devices to be. They prove to be the same before anything is
    commanded, so that a restart need not ask them for everything again.
    """
    try:
        # pickle: written by `remember` into a directory that is ours alone.
        devices, maps = pickle.loads((directory / MAPS_NAME).read_bytes())
    except Exception:  # whatever a torn or foreign file does to pickle: ask the devices
        return None
    return list(maps) if devices == site.devices_hash() else None


def remember(directory: Path, site: Site, maps: list[Any]) -> None:
    """Keeps the maps for the next control; without them it only takes longer."""
    path = directory / MAPS_NAME
    with contextlib.suppress(OSError):
        disk.replace(path, pickle.dumps((site.devices_hash(), maps)), durable=False)


def scan_devices(directory: Path, site: Site, ports: dict[str, str], fds: list[int], stop: StopRequest) -> list[Any] | None:
    """Device maps from a short-lived child, which alone loads pysunspec2; None when asked to stop meanwhile.

    The child inherits the open, locked ports. A device that does not answer is waited for, with growing waits and one
    line; a connection on which it failed is of no more use (fds then holds another).
    """
    said = ""
    for attempt in range(1_000_000):
        text = "\n".join(dial(site, ports, fds, again=attempt > 0))
        if text:
            said = _say_once(text, said)
            if stop.wait(SCAN_WAIT_S[min(attempt, len(SCAN_WAIT_S) - 1)]):
                return None
            continue
        argv = [
            sys.executable,
            "-m",
            "controller.scan",
            "--directory",
            str(directory),
            "--fds",
            ",".join(map(str, fds)),
            "--parent",
            str(os.getpid()),
        ]
        done = subprocess.run(argv, pass_fds=fds, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode == EXIT_OK:
            if said:
                say("control", "all devices have answered")
            # pickle: both ends are this program, over a pipe that nobody else holds.
            return list(pickle.loads(done.stdout))
        text = done.stderr.decode("utf-8", "replace").strip()
        if done.returncode == EXIT_INPUT:
            say("control", text)
            raise SystemExit(EXIT_INPUT)
        said = _say_once(text, said)
        if stop.wait(SCAN_WAIT_S[min(attempt, len(SCAN_WAIT_S) - 1)]):
            return None
    return None


def _say_once(text: str, said: str) -> str:
    """Says why it goes on trying, unless that was the last thing said."""
    if text != said:
        say("control", f"{text}; trying again")
    return text


class StopRequest:
    """SIGTERM and SIGINT, taken synchronously by the main thread; they are blocked in all threads."""

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.level = 0

    def wait(self, seconds: float) -> bool:
        """True when a signal came within that time; `level` counts them."""
        # Not sigtimedwait: after a SIGSTOP and SIGCONT it answers with a signal that nobody sent, and power went to 0.
        for _ in range(max(1, round(seconds / LISTEN_S))):
            if signal.sigpending() & set(SIGNALS):
                signal.sigwait(SIGNALS)
                self.level += 1
                return True
            select.select([], [], [], LISTEN_S)
        return False


@dataclass
class Away:
    """A port that went away."""

    since_ns: int
    next_ns: int  # when to try again
    wait_s: float = REOPEN_FIRST_S
    back_ns: int = 0  # since when it has been here again; 0: it is not
    why: int = 0  # errno of the last attempt
    told: bool = True  # somebody has read that it is away, and shall read that it is back


@dataclass
class Helper:
    """Brings lost ports back by their name: growing waits, one line on loss and one once it has stayed.

    buses: indices of those it looks after. Each TCP bus has a helper of its own: a host that does not answer delays nobody else.
    new: those that nobody has dialled yet, which is no loss.
    """

    site: Site
    engine: Any
    ports: dict[str, str]
    clock: Clock
    buses: Sequence[int]
    new: set[int] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)
    away: dict[int, Away] = field(default_factory=dict)

    def run(self) -> None:
        """The thread's work, until `stop`."""
        while True:
            for i in self.buses:
                self.look(i)
            if self.stop.wait(HELPER_PERIOD_S):
                return

    def look(self, i: int) -> None:
        """One bus, once."""
        now_ns = self.clock.monotonic_ns()
        bus, away = self.site.buses[i], self.away.get(i)
        fd = self.engine.take_dropped(i)
        if fd >= 0:
            with contextlib.suppress(OSError):
                build.close_port(fd)  # before it is opened again: its lock goes with it
        if not self.engine.lost(i):
            if away is not None:
                self._stayed(i, away, now_ns)
            return
        path = self.ports.get(bus.name, bus.port)
        if away is None:
            away = self.away[i] = Away(now_ns, now_ns, told=i not in self.new)
            self.new.discard(i)
            if away.told:
                self._gone(bus.name, path)
        elif away.back_ns:  # it came and went: a loose plug must not fill the log
            if not away.told:
                away.told = True
                self._gone(bus.name, path)
            away.back_ns = 0
            away.wait_s = min(REOPEN_MOST_S, 2 * away.wait_s)
            away.next_ns = now_ns + int(away.wait_s * 1e9)
        if now_ns < away.next_ns:
            return
        try:
            fd = build.open_port(bus, path)
            for note in build.tune(bus, path, fd):
                say("control", note)
            self.engine.set_fd(i, build.listen_for(self.engine.ports[i], fd))
            away.back_ns = now_ns
        except OSError as e:
            if e.errno not in (away.why, errno.ENOENT):
                say("control", f"bus {bus.name}: {e}")
                away.told = True
            away.why = e.errno or 0
            away.wait_s = min(REOPEN_MOST_S, 2 * away.wait_s)
            away.next_ns = now_ns + int(away.wait_s * 1e9)

    def _gone(self, name: str, path: str) -> None:
        say("control", f"bus {name}: port {path} is gone; it is opened again when it returns")

    def _stayed(self, i: int, away: Away, now_ns: int) -> None:
        away.back_ns = away.back_ns or now_ns
        if now_ns - away.back_ns >= SETTLED_S * 1e9:
            gone_s = (away.back_ns - away.since_ns) / 1e9
            if away.told:
                say("control", f"bus {self.site.buses[i].name}: port is back after {gone_s:.1f} s")
            del self.away[i]


def helped(site: Site) -> list[list[int]]:
    """Which buses share a helper: all lines one, each TCP bus its own."""
    lines = [i for i, bus in enumerate(site.buses) if not bus.tcp]
    return [buses for buses in (lines, *([i] for i, bus in enumerate(site.buses) if bus.tcp)) if buses]


@dataclass
class Loop:
    """The control thread and what it came back with."""

    engine: Any
    result: str = ""
    error: str = ""

    def run(self) -> None:
        """Blocks in the engine, without the GIL."""
        try:
            self.result = self.engine.run()
        except Exception as e:  # a thread's exception would else vanish; the parent must see a failed control
            self.error = f"{type(e).__name__}: {e}"


def prepare(site: Site, image: Any, directory: Path, ports: dict[str, str], stop: StopRequest) -> tuple[Any, bool] | int:
    """From closed ports to an engine that can start, and whether the devices were remembered; or an exit code."""
    known = remembered(directory, site)
    fds, problems = open_ports(site, ports)
    if problems and known is None:
        say("control", "\n".join(problems))
        return EXIT_INPUT
    # A TCP bus that is known is the helpers' to dial: a name may take half a minute to resolve, and the lines have a PCS to adopt.
    for bus, fd in zip(site.buses, fds, strict=True):
        for note in build.tune(bus, ports.get(bus.name, bus.port), fd):
            say("control", note)
    maps = known if known is not None else scan_devices(directory, site, ports, fds, stop)
    if maps is None:
        return EXIT_OK
    plan, scans = build.compile_maps(site, maps)
    image.set_site(build.kernel_site(site, maps))
    realtime = {"priority": int(site.num("realtime.priority")), "cpu": None}
    if site.num("realtime.cpu") >= 0:
        realtime["cpu"] = int(site.num("realtime.cpu"))
    engine = Engine(image, scans, devices=list(range(len(site.devices))), **build.engine_timing(plan), **realtime)
    engine.prepare()
    for i, fd in enumerate(fds):
        if fd >= 0:  # a restarted control begins with the ports that are there; the helper brings the others
            engine.set_fd(i, build.listen_for(scans[i], fd))
    image.set_control_pid(os.getpid())
    if known is None:
        remember(directory, site, maps)
    return engine, known is not None


def watch(site: Site, image: Any, directory: Path, engine: Any, thread: threading.Thread, stop: StopRequest, known: bool) -> int | None:
    """The main thread while the engine runs: signals, notes, and what the engine cannot decide. An exit code, or None
    once the engine has ended.
    """
    noted = alone = 0
    while thread.is_alive():
        if stop.wait(WATCH_S):
            image.request_stop(min(stop.level, 3))
        for note in engine.notes[noted:]:
            say("control", note)
        noted = len(engine.notes)
        if known and any(image.device_stats(i)["verified"] < 0 for i in range(len(site.devices))):
            # Nothing is commanded while a device is another one; a fresh look decides whether it can be used.
            say("control", "a device is not the one that was here before: starting again")
            (directory / MAPS_NAME).unlink(missing_ok=True)
            return EXIT_AGAIN
        # No port is left to ramp anything down over: the converter reverts by itself.
        alone = alone + 1 if image.stop and all(engine.lost(i) for i in range(len(site.buses))) else 0
        if alone * WATCH_S >= SETTLED_S:
            say("control", "every port is gone: leaving; the PCS goes to its reversion power by itself")
            image.request_stop(3)
    return None


def serve(site: Site, image: Any, directory: Path, ports: dict[str, str], clock: Clock) -> int:
    """Everything from open ports to the engine's end. Returns the exit code."""
    stop = StopRequest()
    got = prepare(site, image, directory, ports, stop)
    if isinstance(got, int):
        return got
    engine, known = got
    threading.stack_size(STACK_BYTES)
    loop, done = Loop(engine), threading.Event()
    thread = threading.Thread(target=loop.run, name="control", daemon=True)
    thread.start()
    for buses in helped(site):
        new = {i for i in buses if known and site.buses[i].tcp}
        helper = Helper(site, engine, ports, clock, buses, new, done)
        threading.Thread(target=helper.run, name="ports", daemon=True).start()
    code = watch(site, image, directory, engine, thread, stop, known)
    done.set()
    if code is not None:
        sys.stderr.flush()
        os._exit(code)  # the engine's thread ends with the process
    if loop.error:
        say("control", f"the engine failed: {loop.error}")
        return EXIT_FAILED
    if loop.result == "slept":
        say("control", "was stopped for so long that the PCS may have reverted: starting again")
        return EXIT_AGAIN
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process; started by `ballast run` alone."""
    parser = argparse.ArgumentParser(prog="ballast-control")
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--image-fd", required=True, type=int)
    parser.add_argument("--parent", required=True, type=int)
    parser.add_argument("--port", action="append", default=[], help="BUS=PATH instead of the site file's")
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    keep_messages(args.directory, RealClock())
    ports = dict(text.split("=", 1) for text in args.port)
    site = build.site_from(args.directory / "site.json")
    image = core.ProcessImage.open(args.image_fd)
    with contextlib.suppress(KeyboardInterrupt):
        return serve(site, image, args.directory, ports, RealClock())
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
