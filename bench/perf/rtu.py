"""One transaction: 20 registers over a PTY from a libmodbus slave, from the first byte written to ten decoded doubles.

Ours and four peers in the same minutes, a block of reads each in turn, all at one priority (SCHED_FIFO where the system allows), clients on
one CPU and slaves on another (left alone, the scheduler's choice of CPUs decides more than the client does), every read after the same
pause, which covers t3.5 of those that keep it by themselves. Then all of it again beside a busy Python thread in this process, at normal
priority on any CPU; libmodbus's client is a process of its own, so it meets the thread only as load.

A PTY hands its bytes over in a kernel worker of normal priority: other load on the machine stands in everybody's p99.

The same over loopback TCP, ours against libmodbus's client.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.perf import modbus_peers as peers
from bench.perf.modbus_peers import Client, LibModbus, MinimalModbus, NoPeer, Ours, PymodbusAsync, PymodbusSync, Slave
from bench.perf.rows import Row, at_most, info

PRIORITY = 80
PAUSE_NS = 2_000_000
ROUNDS = 50
FAST_READS, SLOW_READS = 20, 10  # reads a block; the judged pair has four blocks a round, since its p99 counts
MAX_RATIO = 1.3
Times = dict[str, list[int]]


def quantile(values: list[int], q: float) -> float:
    """The smallest value that at least the share q does not exceed; nan of nothing."""
    ranked = sorted(values)
    return float(ranked[max(0, math.ceil(q * len(ranked)) - 1)]) if ranked else math.nan


@contextlib.contextmanager
def busy_thread(cpus: set[int]) -> Iterator[None]:
    """A thread that burns Python at normal priority on any of `cpus`, as a supervisor's would."""
    stop = threading.Event()

    def burn() -> None:
        peers.fifo(0, 0)
        os.sched_setaffinity(0, cpus)
        x = 1
        while not stop.is_set():
            for _ in range(1000):
                x = (x * 1103515245 + 12345) & 0x7FFFFFFF

    thread = threading.Thread(target=burn, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """CPUs kept from idle states, for everybody."""
    try:
        fd = os.open("/dev/cpu_dma_latency", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, (0).to_bytes(4, "little"))
    except OSError:
        fd = -1
    try:
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def clients(into: Path, stack: contextlib.ExitStack, priority: int, tcp: bool = False) -> tuple[list[Client], list[str]]:
    """Every client that can be had (tcp: the judged pair), each with a slave of its own, and what is missing. Raises NoPeer without
    libmodbus.

    The calling thread, and with it every client, stays on the first of its CPUs; slaves go to the second where there is one."""
    slave, client = peers.build("modbus_slave", into), peers.build("modbus_client", into)
    cpus = sorted(os.sched_getaffinity(0))
    stack.callback(os.sched_setaffinity, 0, set(cpus))
    os.sched_setaffinity(0, {cpus[0]})
    make: list[Callable[[str], Client]] = [Ours, lambda port: LibModbus(port, client, priority)]
    make += [] if tcp else [PymodbusSync, PymodbusAsync, MinimalModbus]
    got, missing = [], []
    for one in make:
        port = stack.enter_context(Slave(slave, priority, cpus[-1] if len(cpus) == 1 else cpus[1], tcp=tcp)).port
        try:
            made = one(port)
        except ImportError as e:
            missing.append(f"{e.name} is not installed")
            continue
        stack.callback(made.close)
        got.append(made)
    return got, missing


def measure(all_clients: list[Client], rounds: int) -> Times:
    """Times by client. A round: the judged pair in turn, there and back, twice, then each of the others."""
    times: Times = {c.name: [] for c in all_clients}
    pair, others = all_clients[:2], all_clients[2:]
    for c in all_clients:
        c.run(5, PAUSE_NS)  # first touches
    for _ in range(rounds):
        for c in [*pair, *pair[::-1], *pair, *pair[::-1]]:
            times[c.name] += c.run(FAST_READS, PAUSE_NS)
        for c in others:
            times[c.name] += c.run(SLOW_READS, PAUSE_NS)
    return times


def verdicts(tag: str, times: Times, silence: dict[str, str], wire: str = "rtu") -> list[Row]:
    """The ratio rows, then one row a client."""
    good = {name: [t for t in took if t >= 0] for name, took in times.items()}
    us = {name: (quantile(t, 0.5) / 1e3, quantile(t, 0.99) / 1e3) for name, t in good.items()}
    out = []
    for i, q in enumerate(("p50", "p99")):
        mine, theirs = us["ours"][i], us["libmodbus"][i]
        out.append(at_most(f"{wire}, {tag}: ours / libmodbus {q}", mine / theirs, MAX_RATIO, note=f"{mine:.1f} / {theirs:.1f} us"))
    for name, (p50, p99) in us.items():
        failed = len(times[name]) - len(good[name])
        note = f"p99 {p99:.1f} us of {len(times[name])}, {failed} failed; silence: {silence[name]}"
        if name == "ours" and failed:
            out.append(Row(f"{wire}, {tag}: {name} p50 us", round(p50, 1), "no read fails", False, note))
        else:
            out.append(info(f"{wire}, {tag}: {name} p50 us", p50, note))
    return out


def rows(rounds: int = ROUNDS) -> list[Row]:
    """Quiet, then beside a busy Python thread."""
    before, param = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.ExitStack() as stack:
        into = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cpus = os.sched_getaffinity(0)
        priority = PRIORITY if peers.fifo(0, PRIORITY) else 0
        stack.callback(os.sched_setscheduler, 0, before, param)
        stack.enter_context(awake())
        try:
            got, missing = clients(into, stack, priority)
            over_tcp, _ = clients(into, stack, priority, tcp=True)
        except NoPeer as e:
            return [Row("rtu transaction", None, f"<= {MAX_RATIO} x libmodbus", None, str(e))]
        silence = {c.name: c.silence for c in got}
        out = verdicts("quiet", measure(got, rounds), silence)
        no_silence = {c.name: "none over TCP" for c in over_tcp}
        out += verdicts("quiet", measure(over_tcp, rounds), no_silence, "tcp")
        with busy_thread(cpus):
            out += verdicts("busy thread", measure(got, rounds), silence)
            out += verdicts("busy thread", measure(over_tcp, rounds), no_silence, "tcp")
    out += [Row("rtu: a peer is missing", None, "(no bar)", None, why) for why in missing]
    how = f"SCHED_FIFO {priority} for clients and slaves" if priority else "normal priority for all (no SCHED_FIFO here)"
    how += f"; load average {os.getloadavg()[0]:.1f} at the end"
    return [*out, info("rtu: priority", priority, how)]
