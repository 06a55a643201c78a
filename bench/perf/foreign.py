"""`python -m bench.perf.foreign DIR`: a site of other people's software, which shares no decoder with ours.

A meter (pymodbus server, TCP), a converter (pymodbus server, RTU), a PV inverter (libmodbus slave, RTU, a C program), and a battery of the
Pylontech family (cantools encodes, python-can's slcan interface sends). Behind them a small physics: a load that steps, a converter with
dead time and lag, a battery that counts charge. Every value is computed when it is asked for.

Prints {"meter": "tcp://...", "pcs": TTY, "pv": TTY, "bms": TTY} and serves until stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import can
import cantools.database.can as dbc
from cantools.database.conversion import BaseConversion
from pymodbus import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from bench.cable import Cable
from bench.perf.modbus_peers import Slave, build, fifo

PRIORITY = 80  # below control's
DEAD_S, TAU_S = 0.001, 0.002
LINE_S = 0.002  # silence and characters that a PTY does not take: an answer sooner than a line allows answers something else
PV_W = 100.25  # what modbus_slave.c has in its first registers
ENERGY_WH = 100e3
BATTERY_V = 51.2
RUNNING, STANDBY = 3, 1  # of generic_pcs.toml


class Cabinet:
    """Load, converter and battery; powers in W, discharge and import positive."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.now = time.monotonic()
        self.load_w, self.next_step = 300e3, self.now + 1.0
        self.p_w, self.target_w, self.soc = 0.0, 0.0, 0.5
        self.due: list[tuple[float, float]] = []
        self.running, self.watchdog_s, self.heard = False, 5.0, self.now

    def to_now(self) -> float:
        """Physics up to this moment; returns it."""
        now = time.monotonic()
        if now - self.heard > self.watchdog_s:
            self.due = [(now, 0.0)]
        while self.due and self.due[0][0] <= now:
            at, watts = self.due.pop(0)
            self._advance(at)
            self.target_w = watts
        self._advance(now)
        while now >= self.next_step:
            self.load_w = 300e3 + self.rng.choice((-20e3, -10e3, 0.0, 10e3, 20e3))
            self.next_step += self.rng.uniform(0.2, 3.0)
        return now

    def _advance(self, t: float) -> None:
        dt = max(0.0, t - self.now)
        self.p_w = self.target_w + (self.p_w - self.target_w) * math.exp(-dt / TAU_S)
        self.soc -= self.p_w * dt / 3600.0 / ENERGY_WH
        self.now = max(self.now, t)

    def command(self, watts: float) -> None:
        self.heard = self.to_now()
        self.due.append((self.heard + DEAD_S, watts if self.running else 0.0))

    def operate(self, on: bool) -> None:
        self.running = on
        if not on:
            self.due.append((self.to_now(), 0.0))


def _f32(*values: float) -> list[int]:
    return [word for v in values for word in struct.unpack(">HH", struct.pack(">f", v))]


def _signed(value: float) -> int:
    return round(value) & 0xFFFF


def _device(size: int, read: Callable[[], dict[int, int]], wrote: Callable[[int, list[int]], None], delay_s: float = 0.0) -> SimDevice:
    """A pymodbus device whose registers are computed when they are read; answers delay_s later."""

    async def action(fc: int, start: int, address: int, count: int, registers: list[int], values: list[int] | list[bool] | None) -> None:
        if values is not None:
            wrote(address, [int(v) for v in values])
        else:
            for number, word in read().items():
                registers[number - start] = word
        if delay_s:
            await asyncio.sleep(delay_s)

    return SimDevice(1, simdata=[SimData(0, count=size, values=0, datatype=DataType.REGISTERS)], action=action)


def meter(c: Cabinet) -> SimDevice:
    """Registers of ballast_virtual_meter.toml."""

    def read() -> dict[int, int]:
        c.to_now()
        return dict(enumerate(_f32(c.load_w - c.p_w - PV_W, 0.0, 230.0, 230.1, 229.9, 50.0 + 1e-3 * math.sin(c.now))))

    return _device(100, read, lambda address, values: None)


def pcs(c: Cabinet) -> SimDevice:
    """Registers of generic_pcs.toml: power in 100 W, charge positive."""

    def read() -> dict[int, int]:
        c.to_now()
        state = RUNNING if c.running else STANDBY
        return {
            0: 0x4250, 1: 0x4353, 100: _signed(-c.p_w / 100.0), 102: state, 105: 2300, 106: 5000, 110: int(c.now) & 0xFFFF,
        }  # fmt: skip

    def wrote(address: int, values: list[int]) -> None:
        if address == 200 and len(values) == 2:
            c.command(-100.0 * struct.unpack(">h", struct.pack(">H", values[1]))[0] if values[0] else 0.0)
        elif address == 211:
            c.watchdog_s, c.heard = float(values[0]), c.to_now()
        elif address == 220:
            c.operate(bool(values[0]))

    return _device(300, read, wrote, LINE_S)


def _signal(name: str, start: int, length: int, scale: float = 1.0, signed: bool = False) -> dbc.Signal:
    return dbc.Signal(name, start, length, "little_endian", signed, conversion=BaseConversion.factory(scale, 0.0))


MESSAGES = [
    dbc.Message(0x351, "Limits", 6, [_signal("ChargeA", 16, 16, 0.1, True), _signal("DischargeA", 32, 16, 0.1, True)]),
    dbc.Message(0x355, "State", 4, [_signal("Soc", 0, 16), _signal("Soh", 16, 16)]),
    dbc.Message(0x356, "Values", 6, [_signal("V", 0, 16, 0.01, True), _signal("A", 16, 16, 0.1, True), _signal("C", 32, 16, 0.1, True)]),
    dbc.Message(0x359, "Alarms", 4, [_signal("Bits", 0, 32)]),
    dbc.Message(0x35C, "Allowed", 1, [_signal("Discharge", 6, 1), _signal("Charge", 7, 1)]),
]  # fmt: skip


def burst(c: Cabinet) -> list[can.Message]:
    """What the battery says once a second."""
    c.to_now()
    values: dict[str, dict[str, float]] = {
        "Limits": {"ChargeA": 1900.0, "DischargeA": -1900.0}, "State": {"Soc": round(100 * c.soc), "Soh": 100},
        "Values": {"V": BATTERY_V, "A": -c.p_w / BATTERY_V, "C": 25.0}, "Alarms": {"Bits": 0}, "Allowed": {"Discharge": 1, "Charge": 1},
    }  # fmt: skip
    return [can.Message(arbitration_id=m.frame_id, data=m.encode(values[m.name]), is_extended_id=False) for m in MESSAGES]


async def _battery(c: Cabinet, tty: str) -> None:
    """python-can's slcan interface as the adapter: the lines it sends are those an adapter sends for frames it has received."""
    loop = asyncio.get_running_loop()
    bus = can.Bus(interface="slcan", channel=tty, bitrate=500000, sleep_after_open=0.0)
    due = loop.time()
    while True:
        for message in burst(c):
            bus.send(message)
        due += 1.0
        while loop.time() < due:
            while bus.recv(0.0) is not None:
                pass
            await asyncio.sleep(0.05)


async def serve(directory: Path) -> None:
    """All of it, until stdin ends."""
    c = Cabinet()
    lines, frames = Cable(directory, None, "pcs"), Cable(directory, None, "bms")
    tcp_server = ModbusTcpServer(meter(c), address=("127.0.0.1", 0))
    rtu_server = ModbusSerialServer(pcs(c), framer=FramerType.RTU, port=str(lines.far), baudrate=460800)
    await tcp_server.listen()
    await rtu_server.listen()
    tasks = [asyncio.create_task(_battery(c, str(frames.far)))]
    sockets = tcp_server.transport.sockets  # type: ignore[attr-defined]
    with Slave(build("modbus_slave", directory), PRIORITY, delay_us=round(1e6 * LINE_S)) as pv:
        ports = {"meter": "tcp://{}:{}".format(*sockets[0].getsockname()), "pcs": str(lines.near), "bms": str(frames.near), "pv": pv.port}
        print(json.dumps(ports), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()


def main() -> None:
    fifo(0, PRIORITY)
    asyncio.run(serve(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
