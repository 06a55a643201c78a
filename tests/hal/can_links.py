"""One CAN bus with CanScan on one end and a peer on the other: in memory, over slcan on a PTY, over SocketCAN. The clock is the test's."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import tty
from typing import Any

from hal.can import SlcanReader, from_socket, to_slcan, to_socket
from hal.canscan import CanScan
from hal.scanbench import ScanBench

from hal.canplan import CanSpec, CanTable, plan_can
from hal.canport import close_can, open_can, set_filters
from hal.canrows import Frame
from hal.plantypes import DeviceSpec, PlanProblem
from hal.profile import load_profile
from hal.rows import DeviceMap

MS = 1_000_000
PATIENCE_S = 10.0  # real descriptors on a busy machine


def table(port: str, *devices: tuple[str, str] | tuple[str, str, DeviceMap]) -> CanTable:
    """The bus's table: devices as (role, profile) or (role, name, map)."""
    problems: list[PlanProblem] = []
    rows = [DeviceSpec(d[1], d[0], "c", 1, d[2] if len(d) == 3 else load_profile(d[1])) for d in devices]
    made = plan_can([CanSpec("c", port)], rows, {}, problems)["c"]
    assert not problems, problems
    return made


class Link:
    """CanScan in ticks of 10 ms. Subclasses carry the bytes: `_to_us`, `_sent`, `_heard`."""

    port = "slcan:"

    def __init__(self, *devices: Any) -> None:
        self.scan = CanScan(table(self.port, *devices))
        self.bench = ScanBench([self.scan], self._sent)
        self.now, self.tick = 1_000 * MS, 0
        self.bench.ask(gate=1)
        self.bench.open(0, self.now)

    def step(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.now += 10 * MS
            self.tick += 1
            self.bench.tick(self.tick, self.now, self.now)
            self.bench.outputs(self.tick, self.now)

    def hear(self, *frames: Frame) -> None:
        """The peer sends; returns when all of it has reached CanScan."""
        for f in frames:
            self._to_us(f)

    def heard(self, n: int) -> list[Frame]:
        """The next n frames the peer has received (sooner those that are there, where time runs out)."""
        return self._heard(n)

    def close(self) -> None:
        pass

    def _to_us(self, frame: Frame) -> None:
        raise NotImplementedError

    def _heard(self, n: int) -> list[Frame]:
        raise NotImplementedError

    def _sent(self, bus: int, data: bytes, now: int) -> int:
        raise NotImplementedError


class MemorySlcan(Link):
    """Lines handed over in memory."""

    def __init__(self, *devices: Any) -> None:
        self.reader, self.frames = SlcanReader(), list[Frame]()
        super().__init__(*devices)

    def _to_us(self, frame: Frame) -> None:
        self.bench.bytes(0, to_slcan(frame), self.now)

    def _sent(self, bus: int, data: bytes, now: int) -> int:
        self.frames += [f for what, f in self.reader.feed(data) if what == "frame"]
        return len(data)

    def _heard(self, n: int) -> list[Frame]:
        out, self.frames = self.frames[:n], self.frames[n:]
        return out


class MemorySocket(MemorySlcan):
    """Structs handed over in memory."""

    port = "can:memory"

    def _to_us(self, frame: Frame) -> None:
        self.bench.bytes(0, to_socket(frame), self.now)

    def _sent(self, bus: int, data: bytes, now: int) -> int:
        f = from_socket(data)
        assert f is not None
        self.frames.append(f)
        return len(data)


class Descriptor(Link):
    """A real descriptor at our end and python-can at the other."""

    fd = -1
    peer: Any = None

    def _to_us(self, frame: Frame) -> None:
        import can

        self.peer.send(can.Message(arbitration_id=frame.id, data=frame.data, is_extended_id=frame.ext, is_remote_frame=frame.rtr))
        self.pump(1 if self.passes(frame) else 0)

    def passes(self, frame: Frame) -> bool:
        """Does it reach our descriptor at all?"""
        return True

    def pump(self, at_least: int = 1) -> None:
        """Bytes of our descriptor into CanScan, until that many frames have come and nothing more is there."""
        end, frames = time.monotonic() + PATIENCE_S, 0
        while time.monotonic() < end:
            if not select.select([self.fd], [], [], 0.0 if frames >= at_least else 0.2)[0]:
                if frames >= at_least:
                    return
                continue
            data = os.read(self.fd, 1024)
            self.bench.bytes(0, data, self.now)
            frames += self.count(data)

    def count(self, data: bytes) -> int:
        """Frames in what one read gave."""
        return 1

    def _sent(self, bus: int, data: bytes, now: int) -> int:
        return os.write(self.fd, data)

    def _heard(self, n: int) -> list[Frame]:
        out: list[Frame] = []
        end = time.monotonic() + PATIENCE_S
        while len(out) < n and time.monotonic() < end:
            m = self.peer.recv(0.2)
            if m is not None and not m.is_error_frame:
                out.append(Frame(m.arbitration_id, bytes(m.data), m.is_extended_id, m.is_remote_frame))
        return out

    def close(self) -> None:
        self.peer.shutdown()
        close_can(self.fd)
        os.close(self.fd)


class TwoAdapters:
    """Two slcan adapters on one CAN bus, each behind a PTY: commands are answered, frames of one go to the other."""

    def __init__(self) -> None:
        self.masters, self.slaves, self.paths = [], [], []
        for _ in range(2):
            master, slave = os.openpty()
            tty.setraw(slave)
            os.set_blocking(master, False)
            self.masters.append(master)
            self.slaves.append(slave)
            self.paths.append(os.ttyname(slave))
        self.open = [False, False]
        self.refuses: tuple[bytes, ...] = ()  # kinds of commands that get a BEL
        self.commands: list[bytes] = []
        self.stop_r, self.stop_w = os.pipe()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        rest = [b"", b""]
        while True:
            ready = select.select([*self.masters, self.stop_r], [], [])[0]
            if self.stop_r in ready:
                return
            for i in (0, 1):
                if self.masters[i] in ready:
                    with contextlib.suppress(OSError):
                        *lines, rest[i] = (rest[i] + os.read(self.masters[i], 4096)).split(b"\r")
                        for line in lines:
                            self._line(i, line)

    def _line(self, i: int, line: bytes) -> None:
        kind = line[:1]
        if kind in (b"t", b"T", b"r", b"R"):
            if self.open[i] and self.open[1 - i]:
                os.write(self.masters[1 - i], line + b"\r")
            os.write(self.masters[i], (b"z" if kind in (b"t", b"r") else b"Z") + b"\r" if self.open[i] else b"\x07")
            return
        self.commands.append(line)
        if kind in self.refuses:
            os.write(self.masters[i], b"\x07")
            return
        if kind in (b"O", b"L", b"C"):
            self.open[i] = kind != b"C"
        os.write(self.masters[i], {b"F": b"F00\r", b"V": b"V1013\r"}.get(kind, b"\r"))

    def close(self) -> None:
        os.write(self.stop_w, b"x")
        self.thread.join()
        for fd in (*self.masters, *self.slaves, self.stop_r, self.stop_w):
            os.close(fd)


class SlcanPty(Descriptor):
    """Our slcan on one adapter, python-can's slcan on the other."""

    def __init__(self, *devices: Any) -> None:
        import can

        self.wire, self.ours = TwoAdapters(), SlcanReader()
        self.fd = open_can("slcan:" + self.wire.paths[0], 500_000)
        self.peer = can.Bus(interface="slcan", channel=self.wire.paths[1], bitrate=500_000, sleep_after_open=0.0)
        end = time.monotonic() + PATIENCE_S
        while not all(self.wire.open) and time.monotonic() < end:  # python-can does not wait for its adapter's answer
            time.sleep(0.001)
        super().__init__(*devices)

    def count(self, data: bytes) -> int:
        return sum(what == "frame" for what, _ in self.ours.feed(data))  # not the adapter's own answers

    def close(self) -> None:
        super().close()
        self.wire.close()


class SocketCan(Descriptor):
    """Our SocketCAN descriptor, python-can's socket beside it on the same interface."""

    port = "can:vcan0"

    def __init__(self, *devices: Any) -> None:
        import can

        self.fd = open_can(self.port, 500_000)
        self.peer = can.Bus(interface="socketcan", channel="vcan0")
        super().__init__(*devices)
        self.passing = set(self.scan.filters)
        set_filters(self.fd, self.scan.filters)

    def passes(self, frame: Frame) -> bool:
        return (frame.id, frame.ext) in self.passing and not frame.rtr
