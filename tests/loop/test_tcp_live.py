"""A running site over TCP in real time: servers that are not there yet, hang up, fall silent, die and come back."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from _core import image as core
from tests.loop.live import Cabinet, Live, until

RAMP = ("--set", "grid.ramp_up_w_per_s=10000", "--set", "grid.ramp_down_w_per_s=10000")
pytestmark = pytest.mark.realtime


def free_ports(n: int) -> list[int]:
    """Loopback ports that nobody has now."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    try:
        return [s.getsockname()[1] for s in socks]
    finally:
        for s in socks:
            s.close()


def descriptors(live: Live) -> int:
    return len(os.listdir(f"/proc/{live.here.control_pid}/fd"))


class Site:
    """`ballast run` on two TCP buses, and the cabinet behind them."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.listen = dict(zip("ab", free_ports(2), strict=True))
        self.live = Live(tmp, {bus: f"tcp://127.0.0.1:{number}" for bus, number in self.listen.items()}, *RAMP)
        self.cabinet: Cabinet | None = None

    def serve(self) -> Cabinet:
        self.cabinet = Cabinet(self.tmp, listen=self.listen)
        return self.cabinet

    @property
    def missed(self) -> int:
        return int(self.live.image.engine_stats()["missed_ticks"])

    def reopened(self, bus: int) -> int:
        return int(self.live.image.bus_stats(bus)["reopened"])

    def end(self) -> None:
        self.live.end()
        if self.cabinet is not None:
            self.cabinet.end()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end()


def test_servers_that_come_late_hang_up_fall_silent_die_and_return(site: Site) -> None:
    live = site.live
    until(lambda: live.lines("refuses the connection"), 20, live.text())
    cabinet = site.serve()
    live.open()
    live.grid(30)
    assert live.lines("refuses the connection") <= 2, "said once, however often it is dialled"
    assert live.ballast("hold", "20000", "--for", "600").returncode == 0
    until(lambda: live.out["p_cmd_w"] == 20e3, 30, "20 kW held")
    grid_since = time.monotonic()

    control, fds = live.here.control_pid, descriptors(live)
    # The PCS's server hangs up, then the meter's falls silent without a word: another connection, no mode lost, power kept.
    t_ns, missed, head = core.monotonic_ns(), site.missed, int(live.image.head)
    before = site.reopened(1)
    cabinet.set(b__cut=1.0)
    time.sleep(0.1)
    cabinet.set(b__cut=0.0)
    until(lambda: site.reopened(1) > before and live.image.device_stats(2)["verified"] == 1, 5, "the PCS proven on a new connection")
    before = site.reopened(0)
    cabinet.set(a__drop_p=1.0)
    until(lambda: site.reopened(0) > before, 5, "a silent connection replaced")
    cabinet.set(a__drop_p=0.0)
    until(lambda: all(live.image.device_stats(k)["verified"] == 1 for k in (0, 1)), 10, "meter and BMS proven on a new connection")
    until(lambda: live.out["p_cmd_w"] == 20e3, 30, "20 kW held again")
    rows = np.frombuffer(live.image.drain(head)[0], core.record_dtype())
    assert set(rows["out"]["mode"].tolist()) == {core.MODE_GRID}
    assert site.missed - missed <= 2, "a connection that is replaced costs no tick (a stall of the machine is forgiven)"
    _, batt = cabinet.power(t_ns)
    assert batt.max() <= 1.02 * 20e3 and batt.min() > -1e3

    # It dies: refused connections, FAULT, and back in GRID by itself once it has returned.
    time.sleep(max(0.0, 11.0 - (time.monotonic() - grid_since)))
    missed = site.missed
    cabinet.process.kill()
    until(lambda: live.out["mode"] == core.MODE_FAULT, 5, "FAULT")
    time.sleep(2.0)
    assert site.missed - missed <= 2
    cabinet.end()
    head = int(live.image.head)
    site.serve()
    live.grid(40, head)
    assert live.here.control_pid == control
    until(lambda: descriptors(live) == fds, 5, "no descriptor is left behind")
    for bus in "ab":
        assert live.lines(f"bus {bus}: port tcp://127.0.0.1:{site.listen[bus]} is gone") <= 3
