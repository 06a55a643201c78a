"""`ballast run` as a person meets it: processes, signals, kills. Real time, behind PTYs, with the virtual cabinet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _core import image as core
from controller.records import Segment, read
from controller.summary import KEYS

pytestmark = pytest.mark.realtime
BALLAST = [sys.executable, "-m", "controller"]


class Live:
    """One `ballast run` with a runtime directory of its own."""

    def __init__(self, tmp: Path, *args: str) -> None:
        self.tmp = tmp
        self.env = os.environ | {"BALLAST_RUNTIME_DIR": str(tmp), "BALLAST_STATE_DIR": str(tmp / "state")}
        self.log = open(tmp / "log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen([*BALLAST, "run", *args], env=self.env, stdout=self.log, stderr=self.log)

    def ballast(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*BALLAST, *args], env=self.env, capture_output=True, text=True, timeout=30)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.ballast("status", "--json", "--site", "builtin").stdout))

    def until(self, what: Callable[[dict[str, Any]], bool], seconds: float = 15.0) -> dict[str, Any]:
        """Waits for a status; fails with the log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            got = self.status()
            if got["running"] and what(got):
                return got
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {got}\n{self.text()}")

    def text(self) -> str:
        return (self.tmp / "log").read_text()

    def end(self) -> None:
        if self.process.poll() is None:
            for _ in range(3):
                self.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    runs: list[Live] = []

    def make(*args: str) -> Live:
        runs.append(Live(tmp_path, *args))
        return runs[-1]

    yield make
    for run in runs:
        run.end()


def in_grid(got: dict[str, Any]) -> bool:
    return bool(got["mode"] == "GRID")


def test_a_run_with_out_leaves_summary_record_and_truth(start: Callable[..., Live], tmp_path: Path) -> None:
    live = start("--for", "12", "--out", str(tmp_path / "out"))
    assert live.process.wait(60) == 0, live.text()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary) == list(KEYS) and summary["mode"] == "run"
    assert summary["ticks"] >= 1190 and summary["missed_ticks"] < 80
    assert set(summary["buses"]) == {"a", "b"} and summary["buses"]["b"]["transactions"] > 500
    wires = json.loads((tmp_path / "out" / "wires.json").read_text())
    assert all(row["planned_ms"] == 0 and row["answers"] > 100 and row["p50_ms"] < 5 for row in wires["devices"].values())
    assert all(0 < row["busy_ms"] < 10 and 5 < row["planned_busy_ms"] < 6 for row in wires["buses"].values())
    assert any(e["text"].endswith("GRID") for e in summary["events"])
    assert (tmp_path / "out" / "truth.npz").exists()
    segments = list(read(tmp_path / "out" / "record.blst", layout=core.LAYOUT))
    assert all(isinstance(s, Segment) for s in segments)
    raw = b"".join(s.records for s in segments if isinstance(s, Segment))
    ticks = np.frombuffer(raw, core.record_dtype())["tick"]
    assert ticks[0] == 1 and ticks[-1] - ticks[0] + 1 - len(ticks) <= summary["missed_ticks"] + 5
    replayed = live.ballast("replay", str(tmp_path / "out"))
    assert replayed.returncode == 0 and "every bit" in replayed.stdout, replayed.stdout
    assert (tmp_path / "out" / "report.html").exists() or "no report" in live.text()


def test_freeze_and_explain_of_a_running_site(start: Callable[..., Live], tmp_path: Path) -> None:
    live = start()
    got = live.until(in_grid)
    told = live.ballast("explain", "now")
    assert told.returncode == 0 and "mode GRID" in told.stdout
    assert live.ballast("explain", "-2").returncode == 0 and live.ballast("explain", "-300").returncode == 2
    assert live.ballast("freeze").returncode == 0
    directory = Path(got["store"]).parent / "freeze"
    end = time.monotonic() + 15
    while time.monotonic() < end and not list(directory.glob("*.blst")):
        time.sleep(0.1)
    os.kill(got["control"]["pid"], signal.SIGKILL)  # a new control starts from the kernel's reset, in the middle of the file
    live.until(lambda s: 200 < s["image"]["tick"] < got["image"]["tick"], 20)
    replayed = live.ballast("replay", str(directory))
    assert replayed.returncode == 0 and "control starts anew" in replayed.stdout, replayed.stdout + replayed.stderr


def test_a_life_with_operator_kills_and_a_ramp_down(start: Callable[..., Live]) -> None:
    live = start()
    got = live.until(in_grid)
    assert live.ballast("status").returncode in (0, 1)
    second = live.ballast("run")
    assert second.returncode == 4 and str(live.process.pid) in second.stderr

    assert live.ballast("hold", "-20kW", "--for", "60").returncode == 0
    live.until(lambda s: "hold" in s["limits_active"], 3)
    assert live.ballast("release").returncode == 0
    live.until(lambda s: "hold" not in s["limits_active"], 3)
    picture = live.ballast("top", "--once")
    assert picture.returncode == 0 and "GRID" in picture.stdout

    ticks = live.status()["missed_ticks"]
    os.kill(got["supervisor"]["pid"], signal.SIGKILL)
    killed = time.monotonic()
    old = got["supervisor"]["pid"]
    live.until(lambda s: s["supervisor"]["alive"] and s["supervisor"]["pid"] != old, 3)
    assert time.monotonic() - killed < 3, "2 s, and the time that asking takes"
    assert live.status()["missed_ticks"] - ticks <= 20

    os.kill(got["control"]["pid"], signal.SIGKILL)
    live.until(lambda s: s["control"]["pid"] not in (0, got["control"]["pid"]) and in_grid(s), 20)

    live.process.send_signal(signal.SIGTERM)
    live.until(lambda s: s["mode"] == "STOP", 5)
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(15) == 0, live.text()
    assert live.ballast("status").returncode == 3


def test_when_the_parent_is_killed_nothing_is_left_behind(start: Callable[..., Live]) -> None:
    live = start()
    got = live.until(in_grid)
    live.process.kill()
    live.process.wait()
    pids = [got[name]["pid"] for name in ("control", "supervisor", "plant")]
    end = time.monotonic() + 80  # control ramps down for at most 60 s; the cabinet goes when its stdin ends
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.2)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("port", "says"), [("/dev/ttyBallastAbsent", "does not exist"), ("/dev/null", "is not a serial port"), ("FILE", "is not a serial port")]
)
def test_ports_that_are_none_are_refused(start: Callable[..., Live], tmp_path: Path, port: str, says: str) -> None:
    (tmp_path / "file").write_text("")
    port = str(tmp_path / "file") if port == "FILE" else port
    live = start("--set", f"bus.a.port={port}", "--set", "bus.b.port=/dev/ttyBallastOther")
    assert live.process.wait(20) == 2
    assert "bus.a.port" in live.text() and "bus.b.port" in live.text() and says in live.text()
