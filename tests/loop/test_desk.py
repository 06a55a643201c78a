"""The settings desk of a running site: what a trial does to power, and that it goes back whoever is dead meanwhile. Real time."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _core import image as core
from controller import build, desk, lines
from controller import site as sites
from controller.store import Store
from tests.loop.live import BALLAST, RATING_W, Cabinet, Live, alive, links, until

pytestmark = pytest.mark.realtime

LIMIT = "grid.import_limit_w"
LOAD_W = 300e3
LOW_W = 290e3  # below the load: the battery has to carry the rest
BUMP_W = 0.02 * RATING_W


class Hall:
    """A site file of its own on the ports of a cabinet that outlives every process."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.file = tmp, tmp / "hall.toml"
        self.cabinet = Cabinet(tmp, LOAD_W)
        self.file.write_text(sites.BUILTIN.read_text().replace("ramp_up_w_per_s = 2000.0", "ramp_up_w_per_s = 20000.0  # quick"))
        self.live = Live(tmp, links(tmp, self.cabinet.ports), str(self.file), "--set", "grid.ramp_down_w_per_s=20000", site="hall")
        self.live.open()
        self.live.grid()

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        return desk.ask(self.live.here, {"do": do, **fields})

    def try_(self, changes: dict[str, Any], seconds: float) -> dict[str, Any]:
        def tried() -> dict[str, Any]:
            got = self.ask("try", who="kim", changes=changes, seconds=seconds)
            assert got["ok"] or "started again" in got["error"], got
            return got if got["ok"] else {}

        return dict(until(tried, 10, "restarts are some seconds apart"))

    def limit_w(self) -> float:
        """The import limit that the last tick ran with."""
        return float((self.live.image.latest() or {"lim": {"import_limit_w": -1.0}})["lim"]["import_limit_w"])

    def grid_again(self) -> None:
        """Waits for GRID in a tick of the control that runs now: the last ticks of the one before look the same."""
        until(lambda: int(self.live.image.control_pid) == self.live.here.control_pid != 0, 20, "control")
        head = int(self.live.image.head)
        until(lambda: self.live.image.head > head and self.live.out["mode"] == core.MODE_GRID, 20, "GRID")

    def commands(self) -> list[tuple[str, str]]:
        store = Store(Path(self.live.here.store), readonly=True)
        try:
            return [(row[2], row[3]) for row in store.audit()][::-1]
        finally:
            store.close()

    def end(self) -> None:
        self.live.end()
        self.cabinet.end()


@pytest.fixture
def hall(shared: Hall) -> Hall:
    """The shared site, with nothing being tried: a test that failed may have left something."""
    if pending := shared.ask("settings")["pending"]:
        shared.ask("back", who="test", id=pending["id"])
        shared.grid_again()
    return shared


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    made = Hall(tmp_path_factory.mktemp("desk"))
    yield made
    made.end()


def test_an_import_limit_is_tried_acts_and_returns_with_the_supervisor_dead(hall: Hall) -> None:
    t_ns, head = core.monotonic_ns(), int(hall.live.image.head)
    tried = hall.try_({LIMIT: "290 kW"}, 9)
    began = time.monotonic()
    assert tried["changes"] == {LIMIT: [445e3, LOW_W]}
    supervisor = hall.live.here.supervisor_pid
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: hall.limit_w() == LOW_W and hall.live.out["mode"] == core.MODE_GRID, 6, "the limit")
    until(lambda: hall.live.here.supervisor_pid not in (0, supervisor), 5, "another supervisor")
    until(lambda: (hall.live.image.limits() or {})["import_limit_w"] == LOW_W, 5, "which reads the new settings")
    os.kill(hall.live.here.supervisor_pid, signal.SIGSTOP)  # and is of no use from here on
    # At least: what the billing window has used above the new limit is saved until its end.
    until(lambda: hall.limit_w() == LOW_W and hall.live.out["batt_p_w"] > LOAD_W - LOW_W - 1e3, 6, "the battery carries the rest")
    assert hall.ask("settings")["pending"]["id"] == tried["id"]
    until(lambda: hall.ask("settings")["pending"] is None, 15, "the return")
    assert time.monotonic() - began > 8.5, "not before its time"
    assert hall.ask("settings")["values"][LIMIT] == 445e3
    until(lambda: hall.live.image.site()["import_limit_w"] == 445e3, 5, "the kernel's settings are the old ones")
    os.kill(hall.live.here.supervisor_pid, signal.SIGCONT)
    until(lambda: hall.limit_w() == 445e3 and hall.live.out["mode"] == core.MODE_GRID, 10, "the old limit")
    assert hall.commands()[-2:] == [("kim", "settings try"), ("ballast", "settings return")]
    rows = np.frombuffer(hall.live.image.drain(head)[0], core.record_dtype())
    assert set(rows["out"]["mode"].tolist()) <= {core.MODE_STANDBY, core.MODE_GRID}
    _, batt = hall.cabinet.power(t_ns)
    assert np.abs(batt).max() < 60e3, "no wild power on the way there and back"


def test_a_restart_setting_is_tried_and_given_back_without_a_bump(hall: Hall) -> None:
    assert hall.live.ballast("hold", "20000", "--for", "120").returncode == 0
    until(lambda: abs(hall.live.out["p_cmd_w"] - 20e3) < 1, 20, "the hold")
    time.sleep(0.5)
    t_ns, pid = core.monotonic_ns(), hall.live.here.control_pid
    tried = hall.try_({"pcs.tau_s": "3 ms", "pcs.reversion_s": 6}, 60)
    assert tried["how"] == "restart"
    until(lambda: hall.live.here.control_pid not in (0, pid), 10, "another control")
    hall.grid_again()
    assert hall.live.image.site()["pcs_tau_s"] == 0.003 and hall.live.image.site()["pcs_rvrt_s"] == 6.0
    plan = (Path(hall.live.here.directory) / "plan.txt").read_text()
    assert plan == f"{build.plan(build.load_site(None, ['pcs.tau_s=0.003', 'pcs.reversion_s=6']))}\n"
    pid = hall.live.here.control_pid
    assert hall.ask("back", who="lee", id=tried["id"])["ok"]
    until(lambda: hall.live.here.control_pid not in (0, pid), 10, "another control")
    hall.grid_again()
    assert hall.live.image.site()["pcs_tau_s"] == 0.002
    time.sleep(0.5)
    _, batt = hall.cabinet.power(t_ns)
    assert np.ptp(batt) <= BUMP_W, "in the plant's truth, over both restarts"
    assert hall.live.limit("hold") and hall.live.lines("reverts by itself") == 0
    assert hall.live.ballast("release").returncode == 0


def test_a_live_setting_needs_no_other_control(hall: Hall) -> None:
    pid, missed = hall.live.here.control_pid, hall.live.image.engine_stats()["missed_ticks"]
    tried = hall.try_({LIMIT: LOW_W}, 60)
    assert tried["how"] == "live"
    until(lambda: hall.live.image.site()["import_limit_w"] == LOW_W and hall.limit_w() == LOW_W, 3, "the limit")
    assert hall.ask("back", who="kim", id=tried["id"])["ok"]
    until(lambda: hall.live.image.site()["import_limit_w"] == 445e3 and hall.limit_w() == 445e3, 3, "the old limit")
    assert hall.live.here.control_pid == pid and hall.live.image.engine_stats()["missed_ticks"] - missed <= 2


def test_a_confirmed_setting_is_in_the_file_and_outlives_control(hall: Hall) -> None:
    words = ("settings", "set", f"{LIMIT}=440 kW", "control.soc_time_s=1000", "--seconds", "30")
    until(lambda: "confirm" in hall.live.ballast(*words).stdout, 10, "restarts are some seconds apart")
    before = hall.file.read_text()
    done = hall.live.ballast("settings", "confirm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert hall.file.read_text() == before.replace("445000.0", "440000.0") + "\n[control]\nsoc_time_s = 1000.0\n"
    assert (hall.tmp / "hall.toml.bak").read_text() == before and "# quick" in before
    until(lambda: hall.live.image.site()["soc_time_s"] == 1000.0, 10, "the kernel's settings")
    hall.grid_again()
    pid = hall.live.here.control_pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: hall.live.here.control_pid not in (0, pid), 10, "another control")
    hall.grid_again()
    assert hall.live.image.site()["import_limit_w"] == 440e3 and hall.limit_w() == 440e3


def test_restart_on_request(hall: Hall) -> None:
    for name, pid in (("supervisor", lambda: hall.live.here.supervisor_pid), ("control", lambda: hall.live.here.control_pid)):
        old = pid()
        until(lambda name=name: hall.ask("restart", who="kim", what=name)["ok"], 10, name)
        until(lambda old=old, pid=pid: pid() not in (0, old), 5, name)
        assert not hall.ask("restart", who="kim", what=name)["ok"], "not again at once"
        hall.grid_again()
    assert hall.commands()[-2:] == [("kim", "restart supervisor"), ("kim", "restart control")]
    assert "real" in hall.ask("plant")["error"]


FLOOD = """
import os, socket, sys, time
end, garbage = time.monotonic() + 2.5, os.urandom(1 << 20).replace(b"\\n", b"")
n = 0
while time.monotonic() < end:
    fd = os.open(sys.argv[1], os.O_PATH)
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(f"/proc/self/fd/{fd}/desk")
        s.sendall(garbage)
    except OSError:
        n += 1
    s.close(); os.close(fd)
    time.sleep(0.005)
print(n)
"""


def flooded(hall: Hall) -> int:
    """Ticks missed while two clients flood the desk, 1 MB a time."""
    before, head = hall.live.image.engine_stats()["missed_ticks"], int(hall.live.image.head)
    argv = ["nice", sys.executable, "-c", FLOOD, hall.live.here.directory]
    floods = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(2)]
    cut = [int(flood.communicate(timeout=60)[0]) for flood in floods]
    assert min(cut) > 20 and hall.live.image.head - head > 200
    return int(hall.live.image.engine_stats()["missed_ticks"] - before)


def test_a_flood_of_garbage_misses_no_tick_and_the_desk_answers_afterwards(hall: Hall) -> None:
    assert flooded(hall) == 0 or flooded(hall) == 0, "a stall of the machine is forgiven once"
    assert hall.ask("settings")["ok"] and alive(hall.live.process.pid)


def test_clients_that_hang_cost_nobody_anything(hall: Hall) -> None:
    hanging = []
    for _ in range(lines.MAX_CONNECTIONS):
        sock = socket.socket(socket.AF_UNIX)
        with lines._short(Path(hall.live.here.directory) / desk.DESK_NAME) as name:
            sock.connect(name)
        sock.send(b'{"do"')
        hanging.append(sock)
    until(lambda: not hall.ask("settings")["ok"], 2, "it is full")
    pid = hall.live.here.supervisor_pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: hall.live.here.supervisor_pid not in (0, pid), 5, "the parent looks after its children meanwhile")
    until(lambda: hall.ask("settings")["ok"], 5, "and the hanging ones are sent away")
    for sock in hanging:
        sock.close()


@pytest.fixture
def virtual(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    runs: list[Live] = []

    def make(*args: str) -> Live:
        runs.append(Live(tmp_path, {}, *args))
        runs[0].open()
        return runs[0]

    yield make
    for run in runs:
        run.end()


def test_a_virtual_site_and_its_cabinet(virtual: Callable[..., Live], tmp_path: Path) -> None:
    live = virtual("--set", "pcs.slew_w_per_s=1e6")
    live.grid()
    here = live.here
    socket_mode = (Path(here.directory) / desk.DESK_NAME).stat().st_mode & 0o777
    assert socket_mode == 0o600 and Path(here.directory).stat().st_mode & 0o777 == 0o700
    rows = desk.ask(here, {"do": "plant"})["params"]
    assert rows["load.extra_w"]["value"] == 0 and rows["load.extra_w"]["live"] and not rows["battery.energy_wh"]["live"]
    load_w = live.out["load_w"]
    assert desk.ask(here, {"do": "plant", "who": "kim", "set": {"load.extra_w": 50e3}})["ok"]
    until(lambda: live.out["load_w"] > load_w + 20e3, 5, "a step of the load")
    got = desk.ask(here, {"do": "plant", "who": "kim", "set": {"load.extra_w": 0, "battery.energy_wh": 1e6}})
    assert "is read at the start only" in got["error"]
    assert desk.ask(here, {"do": "plant"})["params"]["load.extra_w"]["value"] == 50e3, "all or none"
    got = desk.ask(here, {"do": "try", "who": "kim", "changes": {"bus.a.baud": 115200}})
    assert "the virtual cabinet was built with its buses and devices" in got["error"]
    done = live.ballast("settings", "dump", str(tmp_path / "all.toml"))
    assert done.returncode == 0 and subprocess.run([*BALLAST, "check", str(tmp_path / "all.toml")], capture_output=True).returncode == 0
    assert live.ballast("settings", "set", "battery.soc_min=0.2", "--seconds", "600").returncode == 0
    said = (Path(here.directory) / "messages").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC ballast: settings try by ", said, re.M)
    live.process.kill()
    live.process.wait()
    with pytest.raises(desk.InstanceError, match="is gone"):
        desk.ask(here, {"do": "settings"})
