"""The control process: opens the ports, compiles the devices, runs the engine in one thread that never holds the GIL.

Beside that thread: the main thread, which waits for signals, and a helper thread, which opens ports that went away.
What is slow or may block (opening, tcsetattr, scanning a device) happens in those two, or in a child; pysunspec2,
numpy and rich are never loaded here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _core.engine import Engine

from _core import image as core
from controller import build
from controller.clock import Clock, RealClock
from controller.process import EXIT_AGAIN, EXIT_FAILED, EXIT_INPUT, EXIT_OK, die_with_parent, say
from controller.site import Site

STACK_BYTES = 256 * 1024  # locked into memory, for each thread
SCAN_WAIT_S = (0.5, 1, 2, 4, 8)  # the last one again and again
REOPEN_FIRST_S, REOPEN_MOST_S = 0.1, 5.0
HELPER_PERIOD_S = 0.05
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def open_ports(site: Site, ports: dict[str, str]) -> tuple[list[int], list[str]]:
    """Descriptors of all buses in order, and every problem: missing, no tty, in use, forbidden."""
    fds, problems = [], []
    for bus in site.buses:
        try:
            fds.append(build.open_port(bus, ports.get(bus.name, bus.port)))
        except OSError as e:
            problems.append(f"{site.file}: bus.{bus.name}.port: {e}")
    return fds, problems


def scan_devices(directory: Path, fds: list[int], stop: StopRequest) -> list[Any] | None:
    """Device maps from a short-lived child, which alone loads pysunspec2; None when asked to stop meanwhile.

    The child inherits the open, locked ports. A device that does not answer is waited for, with growing waits and one
    line.
    """
    said = ""
    for attempt in range(1_000_000):
        argv = [
            sys.executable,
            "-m",
            "controller.scan",
            "--directory",
            str(directory),
            "--fds",
            ",".join(map(str, fds)),
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
        if text != said:
            say("control", f"{text}; trying again")
            said = text
        if stop.wait(SCAN_WAIT_S[min(attempt, len(SCAN_WAIT_S) - 1)]):
            return None
    return None


class StopRequest:
    """SIGTERM and SIGINT, taken synchronously by the main thread; they are blocked in all threads."""

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.level = 0

    def wait(self, seconds: float) -> bool:
        """True when a signal came within that time; `level` counts them."""
        if signal.sigtimedwait(SIGNALS, seconds) is not None:
            self.level += 1
            return True
        return False


@dataclass
class Helper:
    """Brings lost ports back: growing waits, one line on loss and one on return."""

    site: Site
    engine: Any
    ports: dict[str, str]
    clock: Clock
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """The thread's work, until `stop`."""
        lost_ns: dict[int, int] = {}
        wait_s: dict[int, float] = {}
        next_ns: dict[int, int] = {}
        while not self.stop.wait(HELPER_PERIOD_S):
            now_ns = self.clock.monotonic_ns()
            for i, bus in enumerate(self.site.buses):
                if not self.engine.lost(i):
                    if i in lost_ns:
                        say("control", f"bus {bus.name}: port is back after {(now_ns - lost_ns.pop(i)) / 1e9:.1f} s")
                        wait_s.pop(i, None)
                    continue
                if i not in lost_ns:
                    lost_ns[i], next_ns[i], wait_s[i] = now_ns, now_ns, REOPEN_FIRST_S
                    path = self.ports.get(bus.name, bus.port)
                    say("control", f"bus {bus.name}: port {path} is gone; it is opened again when it returns")
                if now_ns < next_ns[i]:
                    continue
                try:
                    self.engine.set_fd(i, build.open_port(bus, self.ports.get(bus.name, bus.port)))
                except OSError:
                    wait_s[i] = min(REOPEN_MOST_S, 2 * wait_s[i])
                    next_ns[i] = now_ns + int(wait_s[i] * 1e9)


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


def serve(site: Site, image: Any, directory: Path, ports: dict[str, str], clock: Clock) -> int:
    """Everything from open ports to the engine's end. Returns the exit code."""
    stop = StopRequest()
    fds, problems = open_ports(site, ports)
    if problems:
        say("control", "\n".join(problems))
        return EXIT_INPUT
    for note in build.tune_ports(site, fds):
        say("control", note)
    maps = scan_devices(directory, fds, stop)
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
        engine.set_fd(i, fd)
    image.set_control_pid(os.getpid())
    threading.stack_size(STACK_BYTES)
    loop, helper = Loop(engine), Helper(site, engine, ports, clock)
    thread = threading.Thread(target=loop.run, name="control")
    thread.start()
    aid = threading.Thread(target=helper.run, name="ports", daemon=True)
    aid.start()
    noted = 0
    while thread.is_alive():
        if stop.wait(0.2):
            image.request_stop(min(stop.level, 3))
        for note in engine.notes[noted:]:
            say("control", note)
        noted = len(engine.notes)
    helper.stop.set()
    if loop.error:
        say("control", f"the engine failed: {loop.error}")
        return EXIT_FAILED
    if loop.result == "slept":
        say("control", "was stopped for longer than the PCS waits: starting again")
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
    ports = dict(text.split("=", 1) for text in args.port)
    site = build.site_from(args.directory / "site.json")
    image = core.ProcessImage.open(args.image_fd)
    with contextlib.suppress(KeyboardInterrupt):
        return serve(site, image, args.directory, ports, RealClock())
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
