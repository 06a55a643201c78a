"""The supervisor process: `Supervisor.step` once a second, until control has left.

It may be killed at any moment: the ring keeps 60 s of ticks, leases keep the engine going, the parent starts it again
at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path

from _core import image as core
from controller import instance as instances
from controller.build import SiteWatch
from controller.clock import Clock, RealClock
from controller.freeze import Freezer
from controller.process import EXIT_FAILED, die_with_parent, keep_messages, say
from controller.records import RecordWriter
from controller.store import Store
from controller.supervisor import STEP_S, Supervisor
from controller.trends import FILE as TRENDS_NAME
from controller.trends import TrendWriter

FAREWELL_S = 75.0  # control ramps down for at most 60 s; its last ticks belong into the record
RECORD_NAME = "record.blst"
FREEZE_NAME = "freeze"  # directory beside the store
FREEZE_SIGNAL = signal.SIGUSR1
LOOK_S = 0.2


async def serve(supervisor: Supervisor, image: object, clock: Clock, watch: SiteWatch) -> None:
    """Steps on the full second of the monotonic clock until asked to end and control is gone. `watch`: tells of other
    settings.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, asked.set)
    loop.add_signal_handler(FREEZE_SIGNAL, lambda: supervisor.freeze("asked", clock.monotonic_ns()))
    due_ns = clock.monotonic_ns()
    until_ns: int | None = None
    while True:
        now_ns = clock.monotonic_ns()
        if (site := watch.look()) is not None:
            supervisor.take_site(site, now_ns)
        supervisor.step(now_ns)
        if asked.is_set():
            until_ns = until_ns or now_ns + int(FAREWELL_S * 1e9)
            if now_ns >= until_ns or not instances.alive(int(image.control_pid)):  # type: ignore[attr-defined]
                break
        # Whole seconds that were missed (a laptop lid, a stopped process) are skipped, not caught up.
        period_ns = int(STEP_S * 1e9)
        due_ns += max(1, (clock.monotonic_ns() - due_ns) // period_ns + 1) * period_ns
        wait_s = max(0.0, (due_ns - clock.monotonic_ns()) / 1e9)
        if asked.is_set():
            await asyncio.sleep(min(wait_s, 0.1))
            due_ns = clock.monotonic_ns()
            continue
        await _look_out(supervisor, asked, clock, due_ns)
    supervisor.close(clock.monotonic_ns())


async def _look_out(supervisor: Supervisor, asked: asyncio.Event, clock: Clock, due_ns: int) -> None:
    """Waits for the next step; a mode or an alarm that changes meanwhile is on the disk at once, not up to a second later."""
    while not asked.is_set():
        left_s = (due_ns - clock.monotonic_ns()) / 1e9
        if left_s <= 0:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), min(left_s, LOOK_S))
        if left_s > LOOK_S and supervisor.urgent():
            supervisor.look(clock.monotonic_ns())


def open_store(path: Path, run: int) -> Store | None:
    """The store; None and a line where the disk does not let it open: the loop goes on, with leases and without a record."""
    try:
        return Store(path, run)
    except OSError as e:
        say("supervisor", f"{e}: no history and no audit trail in this run; the loop goes on")
        return None


def open_writer(path: Path, settings: str) -> RecordWriter | None:
    """As open_store, for the full-rate record."""
    try:
        return RecordWriter(path, layout=core.LAYOUT, settings=settings, record_size=core.RECORD_SIZE, sync=True)
    except OSError as e:
        say("supervisor", f"{path}: {e.strerror or e}: no record in this run; the loop goes on")
        return None


def _burn() -> None:
    """Test option: a busy Python thread, which must change nothing in the engine."""
    x = 0
    while True:
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process; started by `ballast run` alone."""
    parser = argparse.ArgumentParser(prog="ballast-supervisor")
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--image-fd", required=True, type=int)
    parser.add_argument("--parent", required=True, type=int)
    parser.add_argument("--burn", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    clock = RealClock()
    keep_messages(args.directory, clock)
    signal.signal(FREEZE_SIGNAL, signal.SIG_IGN)  # until the loop listens: `ballast freeze` must not kill a supervisor that starts
    instance = instances.read(args.directory)
    if instance is None:
        say("supervisor", f"{args.directory}/instance.json cannot be read")
        return EXIT_FAILED
    watch = SiteWatch(args.directory / "site.json")
    site = watch.look()
    if site is None:
        say("supervisor", f"{watch.path} cannot be read")
        return EXIT_FAILED
    image = core.ProcessImage.open(args.image_fd)
    store = open_store(Path(instance.store), instance.run)
    writer, freezer = None, None
    if instance.out is not None:
        writer = open_writer(Path(instance.out) / RECORD_NAME, site.settings_hash())
    else:
        hashes = {"layout": core.LAYOUT, "settings": site.settings_hash()}
        freezer = Freezer(Path(instance.store).parent / FREEZE_NAME, **hashes, record_size=core.RECORD_SIZE)
    if args.burn:
        threading.Thread(target=_burn, daemon=True).start()
    trends = TrendWriter(Path(instance.store).with_name(TRENDS_NAME)) if store is not None else None
    supervisor = Supervisor(image, site, clock, writer=writer, store=store, freezer=freezer, trends=trends)
    asyncio.run(serve(supervisor, image, clock, watch))
    if writer is not None:
        writer.close()
    if store is not None:
        store.close()
    return 0


if __name__ == "__main__":
    # Nothing after the record is closed can fail in a way worth a traceback; the burning thread would only delay the
    # exit.
    os._exit(main())
