"""Modbus TCP against others: pymodbus's server; and pysunspec2 as a client of the virtual cabinet, over RTU and TCP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cable import Cable
from bench.plant import config
from hal.dial import open_tcp
from hal.sunspec import Scan, compile_device, definition, scan
from hal.tcp import parse
from hal.wire import BlockingLine, NoAnswer, close_port, open_port
from tests.hal import sunspec_image
from tests.hal.test_wire import Peer

ROOT = Path(__file__).parents[2]
MOVING = {"DERHb", "CtrlHb", "Hb", "WSetRvrtRem", "SoC", "V", "A", "W", "VA"}  # may move between two readers, by little
COUNTERS = {"DERHb", "Hb", "WSetRvrtRem"}
pytestmark = pytest.mark.realtime


class Server:
    """pymodbus's TCP server on a loopback port, with the registers of several units."""

    def __init__(self, images: dict[int, dict[int, int]]) -> None:
        self.images = images
        self.port = ""
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext
        from pymodbus.server import ModbusTcpServer

        try:
            from pymodbus.datastore import ModbusDeviceContext
        except ImportError:
            from pymodbus.datastore import ModbusSlaveContext as ModbusDeviceContext
        devices = {}
        for unit, image in self.images.items():
            block = ModbusSequentialDataBlock(1, [image.get(i, 0) for i in range(max(image) + 1)])  # pymodbus counts from 1
            devices[unit] = ModbusDeviceContext(hr=block, ir=block)
        server = ModbusTcpServer(ModbusServerContext(devices, single=False), address=("127.0.0.1", 0))
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        task = asyncio.create_task(server.serve_forever())
        while server.transport is None:
            await asyncio.sleep(0.01)
        self.port = "tcp://{}:{}".format(*server.transport.sockets[0].getsockname())
        self.ready.set()
        await self.stop.wait()
        await server.shutdown()
        task.cancel()

    def __enter__(self) -> Server:
        self.thread.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(5)


@pytest.fixture
def line() -> Iterator[BlockingLine]:
    pytest.importorskip("pymodbus", reason="pymodbus is not installed")
    images = {3: sunspec_image.pcs()[0], 4: sunspec_image.meter()[0], 255: sunspec_image.battery()[0]}
    with Server(images) as server:
        fd = open_tcp(server.port)
        yield BlockingLine(fd, tcp=True, timeout_s=1.0)
        close_port(fd)


def test_pymodbus_server_is_scanned_read_and_written(line: BlockingLine) -> None:
    _, where = sunspec_image.pcs()
    found = scan(line, 3)
    assert found.identity == ("Acme", "Cabinet", "SN-42")
    assert compile_device(found, "pcs").signals() >= {"batt_p_w", "wset_w", "pcs_heartbeat"}
    assert compile_device(scan(line, 4), "meter").signals() >= {"grid_p_w", "f_hz"}
    assert compile_device(scan(line, 255), "bms").signals() >= {"soc", "batt_v"}
    line.write(3, where[704] + 22, [1, 1, 0xFFFF, 0xFF38])
    assert line(3, 3, where[704] + 22, 4) == [1, 1, 0xFFFF, 0xFF38]
    line.transact(3, 6, where[715] + 8, values=[3])
    assert line(3, 3, where[715] + 8, 1) == [3]
    assert line(3, 4, 40000, 2) == [0x5375, 0x6E53]
    assert line.transact(3, 23, where[715] + 5, 2, values=[0, 9], waddr=where[715] + 5) == [0, 9]
    with pytest.raises(NoAnswer) as e:
        line(3, 3, 65000, 10)
    assert e.value.exception == 2


def test_two_hundred_in_a_row(line: BlockingLine) -> None:
    for k in range(200):
        assert line(3, 3, 40000 + k % 2, 2 - k % 2)[-1] == 0x6E53
    stats = line.master.stats
    assert (stats["transactions"], stats["wrong_unit"], stats["late"], stats["timeouts"]) == (200, 0, 0, 0)


# ---------------------------------------------------------------- pysunspec2 as a client of the cabinet

@pytest.fixture(scope="module", params=["rtu", "tcp"])
def cabinet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Ports of a virtual cabinet whose PCS discharges 40 kW."""
    params = {"pcs.initial_state": 3, "pcs.initial_wset_w": 40e3, "grid.f_sine_hz": 0}
    ports = {"ports": {"a": {"tcp": True}, "b": {"tcp": True}}} if request.param == "tcp" else {}
    raw = config.builtin() | {"load": {"trace": 123e3}, "params": params} | ports
    file = tmp_path_factory.mktemp("cabinet") / "plant.json"
    file.write_text(json.dumps(raw))
    command = [sys.executable, "-m", "bench.plant", "--config", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as plant:
        try:
            assert plant.stdout is not None
            yield json.loads(plant.stdout.readline())["ports"]
        finally:
            plant.kill()


def ours(port: str, unit: int) -> Scan:
    tcp = port.startswith("tcp://")
    fd = open_tcp(port) if tcp else open_port(port, 460800)
    try:
        return scan(BlockingLine(fd, 460800, untimed=True, tcp=tcp, timeout_s=1.0), unit)
    finally:
        close_port(fd)


def compare(port: str, unit: int, models: set[int]) -> int:
    """Holds every scaled value of pysunspec2's scan against ours; how many there were."""
    from sunspec2 import mdef
    from sunspec2.modbus import client

    if port.startswith("tcp://"):
        host, number = parse(port)
        device = client.SunSpecModbusClientDeviceTCP(slave_id=unit, ipaddr=host, ipport=number, timeout=2)
    else:
        device = client.SunSpecModbusClientDeviceRTU(slave_id=unit, name=port, baudrate=460800, timeout=2)
    device.scan()
    theirs = {i: found[0] for i, found in device.models.items() if isinstance(i, int)}
    device.close()
    scanned = ours(port, unit)
    assert models <= set(theirs) == {i for i, _, _ in scanned.chain}
    compared = 0
    for i in models:
        for name, point in theirs[i].points.items():
            if point.pdef[mdef.TYPE] in ("sunssf", "string", "pad") or name not in (definition(i) or {}) or point.value is None:
                continue
            value = scanned.models[i].value(name)
            assert value is not None, (i, name)
            if name == "TotWhInj":  # 40 kW from the one scan to the other, which takes a second or two over RTU
                assert 0 <= value - point.cvalue <= 60
                compared += 1
                continue
            expected = pytest.approx(point.cvalue, abs=5 if name in COUNTERS else 1e-9, rel=2e-3 if name in MOVING else 1e-12)
            assert value == expected, (i, name)
            compared += 1
    return compared


@pytest.mark.parametrize(("bus", "unit", "models", "least"), [("b", 1, {1, 701, 702, 704, 715}, 40), ("a", 10, {1, 802, 803}, 30)])
def test_pysunspec2_and_our_scan_read_the_same_values(
    cabinet: dict[str, str], bus: str, unit: int, models: set[int], least: int
) -> None:
    pytest.importorskip("sunspec2", reason="pysunspec2 is not installed")
    assert compare(cabinet[bus], unit, models) >= least


@pytest.mark.parametrize("way", ["rtu", "tcp"])
def test_pysunspec2_and_our_scan_read_the_same_meter(way: str, tmp_path: Path) -> None:
    """The cabinet's own meter is none of SunSpec's: model 203 behind pymodbus's server."""
    pytest.importorskip("sunspec2", reason="pysunspec2 is not installed")
    pytest.importorskip("pymodbus", reason="pymodbus is not installed")
    image = sunspec_image.meter()[0]
    if way == "tcp":
        with Server({4: image}) as server:
            assert compare(server.port, 4, {1, 203}) >= 8
        return
    cable = Cable(tmp_path, None, "meter")
    try:
        with Peer(str(cable.far), image, 4):
            assert compare(str(cable.near), 4, {1, 203}) >= 8
    finally:
        cable.pull()


def test_pysunspec2_reads_what_the_cabinet_does(cabinet: dict[str, str]) -> None:
    pytest.importorskip("sunspec2", reason="pysunspec2 is not installed")
    assert ours(cabinet["b"], 1).models[701].value("W") == pytest.approx(40e3, rel=1e-3)


def test_the_newest_connection_is_the_cabinets_one(cabinet: dict[str, str]) -> None:
    if not cabinet["a"].startswith("tcp://"):
        pytest.skip("a line has no connections")
    first = open_tcp(cabinet["a"])
    line = BlockingLine(first, tcp=True)
    assert len(line(1, 4, 0, 12)) == 12
    assert ours(cabinet["a"], 10).identity
    with pytest.raises(NoAnswer, match="no answer"):
        line(1, 4, 0, 12)
    close_port(first)
