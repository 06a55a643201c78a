"""CAN over slcan: the time from a converter's feedback frame to the command frame, how evenly a frame leaves every 10 ms, and 4,000 frames
a second through the engine.

Own time: from the instant the frame can be read to the end of the write() of the command, at SCHED_FIFO where the system allows: read,
slcan, checksum, decoding into Inputs, encoding from Outputs, slcan, write. The engine's callbacks are called from Python here, which adds
some microseconds to every figure. In control the command leaves with the kernel's step, once a tick.

Transmit: the engine itself sends a frame in every tick; what is taken is how long after its tick the kernel has it, while cyclictest wakes
as often. Right after, python-can's periodic sender does the same in a process of its own, at the same priority. Both lines are
loopback sockets: a PTY hands bytes over in a kernel worker of normal priority, whose delays are nobody's here. When a frame of python-can
was due is not known from outside: its earliest one counts as punctual.

Load: the engine itself (epoll, tick, kernel) on one slcan bus, frames of a foxBMS four at a time every millisecond.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tty
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from _core.engine import Engine
from hal.can import checksum, encode_signal, to_slcan
from hal.canscan import CanScan
from hal.scanbench import ScanBench

from _core import image as im
from bench.perf import realtime
from bench.perf.modbus_peers import fifo
from bench.perf.rows import Row, at_most, info
from bench.perf.rtu import PRIORITY, awake, quantile
from controller import build
from hal.canplan import CanSpec, CanTable, plan_can
from hal.canrows import CanMap, Frame
from hal.plantypes import DeviceSpec, PlanProblem
from hal.profile import load_profile

ROUNDS = 4000
PAUSE_S = 0.0005
FRAMES_PER_S = 4000
LOAD_S = 5.0
SEND_S = 30.0
OWN_US, CPU_SHARE = 100.0, 0.15
P50_US, P99_US = 40.0, 60.0  # beyond cyclictest's
TICK_NS = 10_000_000
SO_TIMESTAMPNS = 35  # asm-generic/socket.h
PYTHON_CAN = """
import os, sys, time, can
if int(sys.argv[2]):
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(int(sys.argv[2])))
bus = can.Bus(interface="slcan", channel=sys.argv[1], bitrate=500000, sleep_after_open=0.0)
bus.send_periodic(can.Message(arbitration_id=0x305, data=bytes(8), is_extended_id=False), 0.01)
time.sleep(float(sys.argv[3]))
os._exit(0)
"""


def _table(role: str, profile: str) -> CanTable:
    problems: list[PlanProblem] = []
    made = plan_can([CanSpec("c", "slcan:")], [DeviceSpec(role, role, "c", 1, load_profile(profile))], {}, problems)["c"]
    if problems:
        raise RuntimeError(str(problems[0]))
    return made


@contextlib.contextmanager
def _pty() -> Iterator[tuple[int, int]]:
    """A raw PTY: (the adapter's end, ours)."""
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        os.set_blocking(slave, False)
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)


def _feedback(device: CanMap, number: int, power_w: float) -> bytes:
    """The generic converter's feedback frame as an slcan line."""
    frame = device.frames[0]
    data = bytes(8)
    for s in frame.signals:
        if s.name == "batt_p_w":
            data = encode_signal(s, power_w, data)
    raw = bytearray(data)
    raw[5], raw[6] = 3, number % 16
    raw[7] = checksum("crc8_j1850", bytes(raw), 7)
    return bytes(to_slcan(Frame(frame.id, bytes(raw))))


def latency(rounds: int = ROUNDS) -> tuple[list[int], list[int]]:
    """Own times and times from the adapter's write to the command's last byte at its end, ns."""
    table = _table("pcs", "generic_can_pcs")
    device = table.devices[0][1]
    own, whole = [], []
    with _pty() as (adapter, ours):
        bench = ScanBench([CanScan(table)], lambda bus, data, now: os.write(ours, data))
        bench.open(0, 0)
        bench.ask(gate=1)
        status = Frame(device.frames[1].id, bytes([0, 0, 0, 0, 0, 0, 0, 1]))
        bench.bytes(0, to_slcan(status), TICK_NS)
        for k in range(rounds):
            now = (k + 2) * TICK_NS // 10
            line = _feedback(device, k, 1000.0 + k)
            begin = time.perf_counter_ns()
            os.write(adapter, line)
            select.select([ours], [], [], 1.0)
            start = time.perf_counter_ns()
            bench.bytes(0, os.read(ours, 1024), now)
            bench.put("p_cmd_w", bench.get("batt_p_w"))
            bench.outputs(k, now)
            end = time.perf_counter_ns()
            got = b""
            while b"t200" not in got or not got.endswith(b"\r"):
                if not select.select([adapter], [], [], 1.0)[0]:
                    raise RuntimeError(f"round {k}: no command frame came out")
                got += os.read(adapter, 1024)
            own.append(end - start)
            whole.append(time.perf_counter_ns() - begin)
            time.sleep(PAUSE_S)
    return own, whole


def _arrivals(adapter: socket.socket, seconds: float) -> list[int]:
    """When each frame of id 0x305 was handed over by its sender: the kernel's stamp, ns of the monotonic clock."""
    adapter.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    arrived: list[int] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([adapter], [], [], 0.1)[0]:
            data, stamps, _, _ = adapter.recvmsg(1024, 64)
            behind = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            for _, kind, raw in stamps:
                if kind == SO_TIMESTAMPNS:
                    s, ns = struct.unpack("qq", raw)
                    arrived += [s * 1_000_000_000 + ns - behind] * data.count(b"t3058")
    return arrived[1:]  # the first may have come before stamps were asked for


def after_ticks(arrived: Sequence[int], missed: int) -> list[int]:
    """How long after its tick each frame left, ns: ticks lie on multiples of TICK_NS, one frame follows the other in the next of them,
    and only a tick that the engine itself missed may be left out. A frame that leaves in the tick after its own counts as that late."""
    out: list[int] = []
    tick, left = (arrived[0] // TICK_NS if arrived else 0), missed
    for t in arrived:
        while left > 0 and t - tick * TICK_NS >= TICK_NS:
            tick, left = tick + 1, left - 1
        out.append(t - tick * TICK_NS)
        tick += 1
    return out


def transmit(seconds: float, priority: int) -> tuple[list[int], int]:
    """How long after its tick each frame of the engine's had left (ns), and how many ticks were missed."""
    image = im.ProcessImage.create()
    image.set_site(build.kernel_site(build.load_site(None, (), lambda: [])) | {"pcs_rvrt_s": 0.0})
    table = _table("bms", "pylontech_lv")
    index, device = table.devices[0]
    cyclic = tuple(replace(t, period_ms=10.0) for t in device.transmits)
    table = replace(table, devices=((index, replace(device, transmits=cyclic)),))
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as ours, server.accept()[0] as adapter:
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours.setblocking(False)
        engine = Engine(image, [CanScan(table)], devices=[0], priority=priority)
        engine.prepare()
        engine.set_fd(0, os.dup(ours.fileno()))
        thread = threading.Thread(target=engine.run, daemon=True)
        thread.start()
        arrived = _arrivals(adapter, seconds)
        image.request_stop(3)
        thread.join(5.0)
    missed = int(image.engine_stats()["missed_ticks"])
    return after_ticks(arrived, missed), missed


def python_can(seconds: float, priority: int) -> list[int]:
    """The same of python-can's periodic sender (ns). Raises RuntimeError where it does not run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        argv = [sys.executable, "-c", PYTHON_CAN, f"socket://127.0.0.1:{server.getsockname()[1]}", str(priority), str(seconds + 30.0)]
        sender = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        server.settimeout(20.0)
        try:
            with server.accept()[0] as adapter:
                while not select.select([adapter], [], [], 0.1)[0] or b"t3058" not in adapter.recv(1024):
                    if sender.poll() is not None:
                        raise RuntimeError(f"python-can: {(sender.stderr.read() if sender.stderr else '')[-300:]}")
                arrived = _arrivals(adapter, seconds)
        finally:
            sender.kill()
            sender.communicate()
    due = [t - k * TICK_NS for k, t in enumerate(arrived)]
    return [t - min(due) for t in due]


def transmit_rows(seconds: float, priority: int) -> list[Row]:
    """Ours with cyclictest beside it; python-can's sender right after, by itself."""
    name = "can: frame every 10 ms, after its tick"
    if shutil.which("cyclictest") is None:
        return [Row(name, None, "cyclictest beside it", None, "cyclictest is not installed (apt-get install rt-tests)")]
    with tempfile.TemporaryDirectory() as tmp:
        peer = realtime.Cyclictest(seconds, Path(tmp))
        ours, missed = transmit(seconds, priority)
        beside = peer.result()
        theirs = python_can(seconds, priority)
    p50, p99 = (quantile(ours, q) / 1e3 for q in (0.5, 0.99))
    note = f"{len(ours)} frames, {missed} ticks missed"
    return [
        at_most(f"{name}, p50 us", p50, beside["p50"] + P50_US, "us", f" (cyclictest {beside['p50']:g} + 40)", note),
        at_most(f"{name}, p99 us", p99, beside["p99"] + P99_US, "us", f" (cyclictest {beside['p99']:g} + 60)", note),
        info("can: ours after its own earliest, p50 us", (quantile(ours, 0.5) - min(ours, default=0)) / 1e3),
        info("can: ours after its own earliest, p99 us", (quantile(ours, 0.99) - min(ours, default=0)) / 1e3),
        info("can: python-can's periodic sender, p50 us", quantile(theirs, 0.5) / 1e3, f"{len(theirs)} frames, after its earliest"),
        info("can: python-can's periodic sender, p99 us", quantile(theirs, 0.99) / 1e3, "slcan, its own thread, SCHED_FIFO as ours"),
    ]


def load(seconds: float = LOAD_S, priority: int = PRIORITY) -> dict[str, float]:
    """4,000 frames a second through the engine: {"sent", "taken", "cpu_share", "missed_ticks"}."""
    image = im.ProcessImage.create()
    image.set_site(build.kernel_site(build.load_site(None, (), lambda: [])) | {"pcs_rvrt_s": 0.0})
    table = _table("bms", "foxbms_2")
    lines = [bytes(to_slcan(Frame(f.id, bytes(8)))) for f in table.devices[0][1].frames]
    with _pty() as (adapter, ours):
        os.set_blocking(adapter, False)
        engine = Engine(image, [CanScan(table)], devices=[0], priority=priority)
        engine.prepare()
        engine.set_fd(0, ours)
        thread = threading.Thread(target=engine.run, daemon=True)
        thread.start()
        while not image.bus_stats(0)["is_open"]:
            time.sleep(0.01)
        clock = time.pthread_getcpuclockid(thread.ident or 0)
        cpu, begin, sent = time.clock_gettime(clock), time.monotonic(), 0
        while (now := time.monotonic() - begin) < seconds:
            due = int(now * FRAMES_PER_S) - sent
            if due >= 4:
                burst = b"".join(lines[(sent + k) % len(lines)] for k in range(min(due, 40)))
                done = os.write(adapter, burst)
                if done != len(burst):
                    raise RuntimeError("the PTY is full: nobody reads")
                sent += min(due, 40)
            with contextlib.suppress(BlockingIOError):
                os.read(adapter, 4096)  # what the engine asks its adapter
            time.sleep(0.001)
        took = time.monotonic() - begin
        cpu = time.clock_gettime(clock) - cpu
        time.sleep(0.1)
        image.request_stop(3)
        thread.join(5.0)
        stats = image.device_stats(0)
        return {
            "sent": sent, "taken": stats["ok"] + stats["failed"], "cpu_share": cpu / took,
            "missed_ticks": image.engine_stats()["missed_ticks"], "per_s": sent / took,
        }  # fmt: skip


def rows(rounds: int = ROUNDS, seconds: float = LOAD_S, send_s: float = SEND_S) -> list[Row]:
    """Latency and load, a row each with its bar, and what stands beside them."""
    before, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        allowed = fifo(0, PRIORITY)
        with awake():
            own, whole = latency(rounds)
    finally:
        os.sched_setscheduler(0, before, param)
    with awake():
        sending = transmit_rows(send_s, PRIORITY if allowed else 0)
        got = load(seconds, PRIORITY if allowed else 0)
    lost = f"of {got['sent']}, {got['per_s']:.0f} a second through the engine"
    note = f"p99 {quantile(own, 0.99) / 1e3:.1f} us of {len(own)}; callbacks from Python"
    return [
        at_most("can: frame in to command frame out, own time p50 us", quantile(own, 0.5) / 1e3, OWN_US, "us", note=note),
        info("can: the same with the PTY there and back, p50 us", quantile(whole, 0.5) / 1e3, f"p99 {quantile(whole, 0.99) / 1e3:.1f} us"),
        *sending,
        at_most("can: frames lost", got["sent"] - got["taken"], 0, note=lost),
        at_most("can: CPU share of the control thread", got["cpu_share"], CPU_SHARE, note=f"{got['missed_ticks']} ticks missed"),
    ]
