"""What test_socketcan.py runs under a kernel that has SocketCAN: `pytest tests/vm/inside.py` with vcan0 up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time

import pytest

from controller import build
from hal.canport import interfaces, open_can, set_filters
from hal.canrows import Frame
from hal.wire import PortError
from tests.hal.can_engine import Running
from tests.hal.can_links import SocketCan
from tests.hal.can_suite import BURST, CanSuite


class TestSocketCan(CanSuite):
    make = SocketCan


def send(*frames: Frame) -> None:
    for f in frames:
        subprocess.run(["cansend", "vcan0", f"{f.id:03X}#{f.data.hex()}"], check=True)


def test_cansend_and_candump_on_the_other_side() -> None:
    if shutil.which("candump") is None:
        pytest.skip("can-utils is not installed")
    dump = subprocess.Popen(["candump", "-n", "1", "vcan0,305:7FF"], stdout=subprocess.PIPE, text=True)
    link = SocketCan(("bms", "pylontech_lv"))
    try:
        time.sleep(1.0)  # candump has opened its socket
        link.step()
        assert dump.communicate(timeout=20)[0].split() == ["vcan0", "305", "[8]", *["00"] * 8]
        send(*BURST)
        link.pump(5)
        assert link.bench.get("batt_v") == pytest.approx(49.86) and link.bench.device(0)["ok"] == 5
    finally:
        dump.kill()
        link.close()


def test_filters_keep_the_rest_of_the_bus_away() -> None:
    link = SocketCan(("bms", "pylontech_lv"))
    try:
        link.peer.send(message(0x123))
        link.hear(BURST[0])
        assert link.bench.bus(0)["wrong_unit"] == 0 and link.bench.device(0)["ok"] == 1
        assert build.listen_for(link.scan, link.fd) == link.fd  # what control does with each descriptor
        link.hear(BURST[0])
        set_filters(link.fd, [(0x123, False)])
        link.passing = {(0x123, False)}
        link.hear(Frame(0x123, b"\x01"))
        assert link.bench.bus(0)["wrong_unit"] == 1
    finally:
        link.close()


def message(number: int) -> object:
    import can

    return can.Message(arbitration_id=number, data=b"\x01", is_extended_id=False)


def test_an_interface_that_is_down_or_missing_is_told() -> None:
    assert "vcan0" in interfaces()
    with pytest.raises(PortError, match="vcan0"):  # the remedy names what is here
        open_can("can:can7", 500_000)
    fd = open_can("can:vcan0", 500_000)
    with socket.socket(fileno=fd) as s:
        assert s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 16 * 1024  # no more than a tick's frames wait to be sent late
    subprocess.run(["ip", "link", "set", "vcan0", "down"], check=True)
    try:
        with pytest.raises(PortError, match="is down; ip link set vcan0 up type can bitrate 250000 "):
            open_can("can:vcan0", 250_000)
    finally:
        subprocess.run(["ip", "link", "set", "vcan0", "up"], check=True)


def test_the_engine_reads_one_frame_a_read_and_lets_go_of_an_interface_that_goes_down() -> None:
    running = Running(open_can("can:vcan0", 500_000), "can:vcan0", ("bms", "pylontech_lv"))
    try:
        running.until(lambda: running.image.bus_stats(0)["is_open"])
        send(*BURST[:5])
        running.until(lambda: running.image.device_stats(0)["alive"])
        assert running.until(lambda: running.inputs().get("bms_lim", {}).get("batt_v")) == pytest.approx(49.86)
        assert running.image.device_stats(0)["ok"] == 5
        subprocess.run(["ip", "link", "set", "vcan0", "down"], check=True)
        running.until(lambda: running.engine.lost(0))
        os.close(running.engine.take_dropped(0))
        subprocess.run(["ip", "link", "set", "vcan0", "up"], check=True)
        running.engine.set_fd(0, open_can("can:vcan0", 500_000))
        running.until(lambda: running.image.bus_stats(0)["reopened"] == 2)
        send(*BURST[:5])
        running.until(lambda: running.image.device_stats(0)["ok"] == 10)
        assert running.image.device_stats(0)["lost_count"] == 1
    finally:
        running.close()
        subprocess.run(["ip", "link", "set", "vcan0", "up"], check=True)
