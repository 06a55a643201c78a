"""Shelves beside the tick: how long a sweep takes, whether ages are true, and what the ticks notice of it. Real time, paced PTYs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.perf.process import Bench, bench
from bench.perf.rows import Row, at_most
from controller.shelves.reader import ITEMS
from controller.shelves.table import Table, slots
from controller.site import BUILTIN
from controller.virtual import LoadOptions

PSU_UNITS = [*range(200, 206), *range(232, 238)]
HPR_UNITS = [*range(144, 150), *range(154, 160)]
STEPS = 10
STEP_W = (90e3, 130e3)


class Racks:
    """`python -m bench.shelves`: 48 ORv3 PSUs on four buses, 24 HPR PSUs on two."""

    def __init__(self, tmp: Path) -> None:
        buses = {f"r{k}": {"baud": 19200, "devices": {"orv3_psu": PSU_UNITS}} for k in range(4)}
        buses |= {f"h{k}": {"baud": 115200, "devices": {"orv3_hpr_psu": HPR_UNITS}} for k in range(2)}
        (tmp / "racks.json").write_text(json.dumps({"buses": buses, "load_w": STEP_W[0]}))
        argv = [sys.executable, "-m", "bench.shelves", "--config", str(tmp / "racks.json")]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        ports = json.loads(self.process.stdout.readline())["ports"]
        text = BUILTIN.read_text()
        for name, port in ports.items():
            profile, units = ("orv3_psu", PSU_UNITS) if name[0] == "r" else ("orv3_hpr_psu", HPR_UNITS)
            text += f'\n[[shelf]]\nname = "{name}"\nport = "{port}"\nprofile = "{profile}"\nunits = {units}\n'
        self.site = tmp / "site.toml"
        self.site.write_text(text)

    def load(self, watts: float) -> tuple[int, int]:
        """Sets the load; CLOCK_MONOTONIC before and after, in ns."""
        assert self.process.stdin is not None and self.process.stdout is not None
        before = time.monotonic_ns()
        self.process.stdin.write(json.dumps({"set": {"load_w": watts}}) + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()
        return before, time.monotonic_ns()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()


@contextlib.contextmanager
def _racks() -> Iterator[Racks]:
    with tempfile.TemporaryDirectory() as tmp:
        made = Racks(Path(tmp))
        try:
            yield made
        finally:
            made.end()


def _child(b: Bench) -> int:
    """The shelves' process of this run."""
    found = subprocess.run(["pgrep", "-P", str(b.here.pid), "-f", "controller.shelves.reader"], capture_output=True, text=True)
    return int(found.stdout.split()[0])


def _ticks(b: Bench, seconds: float) -> dict[str, float]:
    before = b.image.engine_stats()
    time.sleep(seconds)
    after = b.image.engine_stats()
    wake = np.cumsum(np.array(after["wake_us"]) - np.array(before["wake_us"]))
    p50, p99 = (float(np.searchsorted(wake, q * wake[-1])) for q in (0.5, 0.99))
    return {
        "ticks": after["ticks"] - before["ticks"], "missed": after["missed_ticks"] - before["missed_ticks"], "p50": p50, "p99": p99,
    }  # fmt: skip


def _sweeps(directory: Path, seconds: float) -> dict[str, list[float]]:
    """Port -> the sweep times that were written out, looked at as often as they are."""
    seen: dict[str, list[float]] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            for port, row in json.loads((directory / ITEMS).read_text())["ports"].items():
                seen.setdefault(port, []).extend(row["last_s"])
        time.sleep(5.0)
    return seen


def _age_error_ms(racks: Racks, table: Table) -> float:
    """Largest error of an age, by steps of the load: what was taken after a step must show it, what was taken before must not."""
    worst_ns = 0
    for k in range(STEPS):
        watts = STEP_W[(k + 1) % 2]
        before_ns, after_ns = racks.load(watts)
        new = watts / (STEP_W[0] + STEP_W[1]) > 0.5  # the shares rise or fall with the load
        seen: dict[int, tuple[float, int]] = {r.slot.index: r.values["p_out_w"] for r in table.readings()}
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            for r in table.readings():
                value, t_ns = r.values["p_out_w"]
                last = seen[r.slot.index]
                if t_ns == last[1]:
                    continue
                seen[r.slot.index] = (value, t_ns)
                if abs(value - last[0]) > 50.0 and (value > last[0]) == new:
                    worst_ns = max(worst_ns, before_ns - t_ns)  # shows the step, says it is older
                elif abs(value - last[0]) <= 50.0 and t_ns > after_ns and not _shows(value, watts, r.slot.shelf.profile):
                    worst_ns = max(worst_ns, t_ns - after_ns)  # does not show it, says it is newer
            time.sleep(0.002)
    return worst_ns / 1e6


def _shows(value_w: float, load_w: float, profile: str) -> bool:
    """True where a PSU's power is its share of this load."""
    rated = {"orv3_psu": 3000.0, "orv3_hpr_psu": 5500.0}
    share = rated[profile] / (48 * rated["orv3_psu"] + 24 * rated["orv3_hpr_psu"])
    return abs(value_w - load_w * share) < 50.0


def rows(seconds: float = 30.0) -> list[Row]:
    """All rows; twice `seconds` and a little."""
    with _racks() as racks, bench(LoadOptions(), str(racks.site)) as b:
        directory = Path(b.here.directory)
        time.sleep(5.0)
        child = _child(b)
        os.kill(child, signal.SIGSTOP)
        quiet = _ticks(b, seconds)
        os.kill(child, signal.SIGCONT)
        time.sleep(6.0)
        before_s = _cpu_s(child)
        busy = _ticks(b, seconds)
        share = 100.0 * (_cpu_s(child) - before_s) / seconds
        sweeps = _sweeps(directory, seconds)
        error_ms = _age_error_ms(racks, Table(directory, slots(_shelves(racks))))
        ports = {s.shelf.port: s.shelf.profile for s in slots(_shelves(racks))}
    note = f"quiet: {quiet['missed']} of {quiet['ticks']}, p50 {quiet['p50']:.0f}, p99 {quiet['p99']:.0f} us"
    out = [
        at_most("shelves: ticks missed beside 72 PSUs on six buses", busy["missed"], quiet["missed"] + 2, "", " (quiet + 2)", note),
        at_most("shelves: wake p50", busy["p50"], quiet["p50"] + 20, "us", " (quiet + 20)"),
        at_most("shelves: wake p99", busy["p99"], quiet["p99"] + 40, "us", " (quiet + 40)"),
    ]
    for profile, words, bar in (("orv3_psu", "12 ORv3 PSUs at 19200", 0.35), ("orv3_hpr_psu", "12 HPR PSUs at 115200", 0.12)):
        times = [x for port, values in sweeps.items() if ports[port] == profile for x in values]
        p50, p90 = (float(np.quantile(times, q)) for q in (0.5, 0.9)) if times else (None, None)
        out.append(at_most(f"shelves: sweep of {words}, p50", p50, bar, "s", "", f"p90 {p90:.3f} of {len(times)}" if p90 else ""))
    note = f"worst of {STEPS} load steps x 72 devices; the reader takes {share:.0f} % of a core"
    return [*out, at_most("shelves: error of an age", error_ms, 20.0, "ms", "", note)]


def _shelves(racks: Racks) -> Any:
    from controller import site as sites

    return sites.load(racks.site).shelves


def _cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
