"""The Modbus peers, each timed alike: libmodbus's slave and client, compiled from the C files beside this one, and Python clients."""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

REGISTERS = 20
UNIT = 1
BAUD = 460_800
TIMEOUT_S = 2.0
EXPECTED = tuple(100.25 + 3.5 * k for k in range(REGISTERS // 2))
HERE = Path(__file__).parent


class NoPeer(RuntimeError):
    """A peer cannot be had; the text says why and what would do."""


def build(name: str, into: Path) -> Path:
    """Compile NAME.c against libmodbus. Raises NoPeer."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise NoPeer("gcc is not installed (apt-get install gcc)")
    flags = ["-I/usr/include/modbus"]
    if shutil.which("pkg-config"):
        found = subprocess.run(["pkg-config", "--cflags", "libmodbus"], capture_output=True, text=True)
        flags = found.stdout.split() or flags
    done = subprocess.run(
        [gcc, "-O2", "-Wall", *flags, "-o", str(into / name), str(HERE / f"{name}.c"), "-lmodbus"], capture_output=True, text=True
    )
    if done.returncode:
        if "modbus.h" in done.stderr or "-lmodbus" in done.stderr:
            raise NoPeer("libmodbus is not installed (apt-get install libmodbus-dev)")
        raise NoPeer(f"{name}.c does not compile: {done.stderr[-500:]}")
    return into / name


def fifo(pid: int, priority: int) -> bool:
    """SCHED_FIFO for a process or (0) the calling thread; False where the system does not allow it."""
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO if priority else os.SCHED_OTHER, os.sched_param(priority))
    except OSError:
        return False
    return True


class Slave:
    """A libmodbus slave behind a PTY, or (tcp) on a loopback port; `port` is the path of the client's end, or tcp://127.0.0.1:PORT.
    Each client has its own: nobody reads another's bytes."""

    def __init__(self, program: Path, priority: int = 0, cpu: int | None = None, *, tcp: bool = False, delay_us: int = 0) -> None:
        words = ["tcp"] if tcp else [str(delay_us)] if delay_us else []
        self.process = subprocess.Popen([str(program), str(UNIT), *words], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = self.process.stdout.readline().strip()
        if not self.port:
            raise NoPeer("the libmodbus slave did not start")
        if priority:
            fifo(self.process.pid, priority)
        if cpu is not None:
            os.sched_setaffinity(self.process.pid, {cpu})

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Slave:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Client:
    """One way to read the slave: run(n, pause_ns) -> n times in ns, -1 for a read that failed or brought wrong values.

    `silence` says how the client treats the 3.5 characters before a request."""

    name = ""
    silence = ""

    def run(self, n: int, pause_ns: int) -> list[int]:
        raise NotImplementedError

    def close(self) -> None:
        """Give the port back."""


class Ours(Client):
    """hal.modbus driven by the engine's loop, without the GIL (loops.pyx)."""

    name = "ours"
    silence = "untimed line: 0 (on a tty the engine waits for it before the request)"

    def __init__(self, port: str) -> None:
        from bench.perf.loops import Client as Loop
        from hal.dial import open_tcp
        from hal.wire import open_port

        tcp = port.startswith("tcp://")
        self.fd = open_tcp(port) if tcp else open_port(port, BAUD, "N")
        self.loop = Loop(self.fd, UNIT, round(TIMEOUT_S * 1e9), tcp)

    def run(self, n: int, pause_ns: int) -> list[int]:
        return self.loop.run(n, pause_ns)

    def close(self) -> None:
        from hal.wire import close_port

        close_port(self.fd)


class LibModbus(Client):
    """modbus_read_registers in a C process of its own (modbus_client.c)."""

    name = "libmodbus"
    silence = "none"

    def __init__(self, port: str, program: Path, priority: int) -> None:
        self.process = subprocess.Popen([str(program), port, str(UNIT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if priority:
            fifo(self.process.pid, priority)

    def run(self, n: int, pause_ns: int) -> list[int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{n} {pause_ns}\n")
        self.process.stdin.flush()
        return [int(x) for x in self.process.stdout.readline().split()] or [-1] * n

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()


class _Stamp:
    """Notes when a pyserial port is first written to: what a library does before that (its silence) is not the transaction."""

    def __init__(self, serial: Any) -> None:
        self.t_ns = 0
        self._write: Callable[[bytes], Any] = serial.write
        serial.write = self

    def __call__(self, data: bytes) -> Any:
        if not self.t_ns:
            self.t_ns = time.monotonic_ns()
        return self._write(data)

    def took(self, values: object) -> int:
        """ns since the first byte written, when `values` are right."""
        t, self.t_ns = self.t_ns, 0
        now = time.monotonic_ns()
        return now - t if t and tuple(values) == EXPECTED else -1  # type: ignore[arg-type]


class PymodbusSync(Client):
    """pymodbus.client.ModbusSerialClient."""

    name = "pymodbus sync"
    silence = "none; looks for the answer once a millisecond"

    def __init__(self, port: str) -> None:
        from pymodbus.client import ModbusSerialClient

        self.client = ModbusSerialClient(port, baudrate=BAUD, parity="N", timeout=TIMEOUT_S, retries=0)
        if not self.client.connect():
            raise NoPeer("pymodbus cannot open the port")
        self.stamp = _Stamp(self.client.socket)

    def run(self, n: int, pause_ns: int) -> list[int]:
        took = []
        for _ in range(n):
            time.sleep(pause_ns / 1e9)
            try:
                answer = self.client.read_holding_registers(0, count=REGISTERS, device_id=UNIT)
                values: Any = self.client.convert_from_registers(answer.registers, self.client.DATATYPE.FLOAT32)
            except Exception:  # whatever a peer raises: the read failed
                values = ()
            took.append(self.stamp.took(values))
        return took

    def close(self) -> None:
        self.client.close()


class PymodbusAsync(Client):
    """pymodbus.client.AsyncModbusSerialClient on an event loop of its own."""

    name = "pymodbus asyncio"
    silence = "none"

    def __init__(self, port: str) -> None:
        from pymodbus.client import AsyncModbusSerialClient

        self.loop = asyncio.new_event_loop()

        async def connect() -> Any:
            client = AsyncModbusSerialClient(port, baudrate=BAUD, parity="N", timeout=TIMEOUT_S, retries=0)
            if not await client.connect():
                raise NoPeer("pymodbus cannot open the port")
            return client

        self.client: Any = self._wait(connect())
        self.stamp = _Stamp(self.client.ctx.transport.sync_serial)

    def _wait(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(work)

    def run(self, n: int, pause_ns: int) -> list[int]:
        async def block() -> list[int]:
            took = []
            for _ in range(n):
                await asyncio.sleep(pause_ns / 1e9)
                try:
                    answer = await self.client.read_holding_registers(0, count=REGISTERS, device_id=UNIT)
                    values: Any = self.client.convert_from_registers(answer.registers, self.client.DATATYPE.FLOAT32)
                except Exception:  # whatever a peer raises: the read failed
                    values = ()
                took.append(self.stamp.took(values))
            return took

        return list(self._wait(block()))

    def close(self) -> None:
        async def end() -> None:
            self.client.close()

        self._wait(end())
        self.loop.close()


class MinimalModbus(Client):
    """minimalmodbus.Instrument.read_registers and one struct.unpack."""

    name = "minimalmodbus"
    silence = "waits by itself (1.75 ms above 19200 baud) before it writes: outside the time taken"

    def __init__(self, port: str) -> None:
        minimalmodbus = importlib.import_module("minimalmodbus")  # has no types
        self.client: Any = minimalmodbus.Instrument(port, UNIT)
        self.client.serial.baudrate = BAUD
        self.client.serial.timeout = TIMEOUT_S
        self.stamp = _Stamp(self.client.serial)

    def run(self, n: int, pause_ns: int) -> list[int]:
        took = []
        for _ in range(n):
            time.sleep(pause_ns / 1e9)
            try:
                words = self.client.read_registers(0, REGISTERS, functioncode=3)
                values = struct.unpack(f">{REGISTERS // 2}f", struct.pack(f">{REGISTERS}H", *words))
            except Exception:  # whatever a peer raises: the read failed
                values = ()
            took.append(self.stamp.took(values))
        return took

    def close(self) -> None:
        self.client.serial.close()
