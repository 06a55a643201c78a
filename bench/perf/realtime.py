"""Real time: ticks and latency of `ballast run`, with cyclictest beside it.

These machines are shared: an absolute figure says little, so every run has its peer in the same minutes. What makes the two comparable:
  - the same SCHED_FIFO priority (realtime.priority's default), the same period, absolute deadlines of CLOCK_MONOTONIC in both;
  - memory locked in both; /dev/cpu_dma_latency is held at 0 by both, and it is the whole machine's anyway;
  - neither is bound to a CPU, in neither is the machine set aside for it;
  - cyclictest's wake-ups stand 7.5 ms into the tick (--secaligned; ticks stand on whole 10 ms), when the buses are idle: neither waits for
    the other, which at one priority on one CPU they otherwise would;
  - quantiles are upper edges of 1 us bins in both.
What is not the same: cyclictest sleeps in clock_nanosleep and does nothing else, the engine comes out of epoll_wait with a timerfd and cold
caches. That is what the allowances of 40 and 60 us are for. And cyclictest counts a wake-up that is three periods late once, the engine
counts three missed ticks.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.perf.rows import Row, at_least, at_most

ROOT = Path(__file__).parents[2]
PRIORITY = 90  # default of realtime.priority in controller/settings.py
PERIOD_US = 10_000
PHASE_US = 7_500
HISTOGRAM_US = 20_000
FULL_SECONDS = 120.0  # below it a run is a try, and says so
STEPS_SECONDS = 150.0  # --trace steps: 80-160 ms apart, so a thousand events with room
STEPS_EVENTS = 1000
START_S = 60.0
POLL_S = 0.01


class RunFailed(RuntimeError):
    """`ballast run` did not do its part; the text has its last words."""


def quantile(hist: dict[int, int], beyond: int, q: float) -> float:
    """Upper edge of the bin (keys: us, rounded down) that holds the quantile; inf among the `beyond` that fit no bin, nan of nothing."""
    need = math.ceil(q * (sum(hist.values()) + beyond))
    seen = 0
    for us in sorted(hist):
        seen += hist[us]
        if seen >= need > 0:
            return us + 1.0
    return math.inf if beyond else math.nan


def read_cyclictest(text: str) -> dict[str, float]:
    """p50, p99 and max in us, wake-ups and those later than a period, from `cyclictest --json` with -h (rt-tests 2.x, file_version 1).

    The histogram holds only bins that were hit, keyed by us as a string; what is beyond -h is in `cycles` and in no bin."""
    thread = json.loads(text)["thread"]["0"]
    hist = {int(k): int(v) for k, v in thread["histogram"].items()}
    cycles = int(thread["cycles"])
    beyond = max(0, cycles - sum(hist.values()))
    late = beyond + sum(n for us, n in hist.items() if us >= PERIOD_US)
    p50, p99 = (quantile(hist, beyond, q) for q in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "max": float(thread["max"]), "late": late, "cycles": cycles}


class Cyclictest:
    """cyclictest in the background."""

    def __init__(self, seconds: float, out: Path) -> None:
        self.file = out / "cyclictest.json"
        self.seconds = seconds
        command = ["cyclictest", "-q", "-m", "-t", "1", "-p", str(PRIORITY), "-i", str(PERIOD_US), f"--secaligned={PHASE_US}",
                   "-h", str(HISTOGRAM_US), "-D", str(int(seconds)), f"--json={self.file}"]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def result(self) -> dict[str, float]:
        """Waits for its end. Raises RunFailed."""
        _, err = self.process.communicate(timeout=self.seconds + 60)
        if self.process.returncode:
            raise RunFailed(f"cyclictest ended with {self.process.returncode}: {err[-300:]}")
        return read_cyclictest(self.file.read_text())


@dataclass
class Measured:
    """One `ballast run` and its peer."""

    summary: dict[str, Any]
    cyclictest: dict[str, float]
    back_s: float | None  # from kill -9 of the supervisor to the next one's lease
    control_rss_mb: float
    control_cpu: float  # share of one core, over the time cyclictest ran


class Running:
    """A `ballast run` seen from outside: its instance file and its image, read here, so that looking costs the run nothing."""

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        from controller import instance

        self._read = instance.read
        self._open = instance.open_image
        self.directory, self.process = directory, process
        self.image: Any = None

    def instance(self) -> Any:
        found = [i for d in self.directory.glob("ballast-*") if (i := self._read(d)) is not None]
        return found[0] if found else None

    def wait_for_first_tick(self) -> None:
        """Raises RunFailed."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RunFailed(f"ballast run ended with {self.process.returncode} before its first tick")
            i = self.instance()
            if i is not None and i.control_pid:
                self.image = self.image or self._open(i, writable=False)
                if int(self.image.head):
                    return
            time.sleep(0.05)
        raise RunFailed(f"no tick within {START_S:g} s")

    def lease_ns(self) -> int:
        return int((self.image.limits() or {"lease_until_ns": 0})["lease_until_ns"])

    def kill_supervisor(self) -> float | None:
        """kill -9; seconds until another process has renewed the limits' lease, None when none does within 20 s."""
        pid = self.instance().supervisor_pid
        os.kill(pid, signal.SIGKILL)
        t0 = time.monotonic()
        lease = self.lease_ns()  # the dead one's last
        while time.monotonic() - t0 < 20:
            if self.lease_ns() > lease and self.instance().supervisor_pid not in (0, pid):
                return time.monotonic() - t0
            time.sleep(POLL_S)
        return None

    def control_cpu_s(self) -> float:
        """CPU time of control so far."""
        fields = Path(f"/proc/{self.instance().control_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def control_rss_mb(self) -> float:
        text = Path(f"/proc/{self.instance().control_pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:")) / 1024


def run_beside(seconds: float, args: list[str], *, kill_supervisor: bool = False, keep: Callable[[Path], None] | None = None) -> Measured:
    """One `ballast run` with cyclictest beside it, from its first tick to shortly before its end. `keep` is given the directory of what the
    run wrote, before it is removed. Raises RunFailed."""
    back: float | None = None
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp)
        command = [sys.executable, "-m", "controller", "run", "--for", str(seconds), "--out", str(out / "run"), *args]
        env = os.environ | {"BALLAST_RUNTIME_DIR": tmp, "BALLAST_STATE_DIR": tmp}
        with open(out / "stderr", "w+") as err:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=env, text=True, cwd=ROOT)
            try:
                run = Running(out, process)
                run.wait_for_first_tick()
                peer = Cyclictest(seconds - 3, out)
                t0, cpu0 = time.monotonic(), run.control_cpu_s()
                if kill_supervisor:
                    time.sleep(seconds / 2)
                    back = run.kill_supervisor()
                beside = peer.result()
                cpu = (run.control_cpu_s() - cpu0) / (time.monotonic() - t0)
                rss = run.control_rss_mb()
                process.wait(120)
                if process.returncode:
                    raise RunFailed(f"ballast run ended with {process.returncode}")
                summary = json.loads((out / "run" / "summary.json").read_text())
                if keep is not None:
                    keep(out / "run")
            except (RunFailed, OSError, subprocess.TimeoutExpired, ValueError) as e:
                raise RunFailed(f"{e}; {(out / 'stderr').read_text()[-300:]}") from e
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
        return Measured(summary, beside, back, rss, cpu)


def tick_rows(tag: str, s: dict[str, Any], c: dict[str, float]) -> list[Row]:
    """Missed ticks and wake latency against cyclictest's."""
    wake = s["wake_latency_us"]
    note = f"max {wake['max']:.0f}, cyclictest's max {c['max']:g} of {c['cycles']}"
    late = f" (cyclictest's later than 10 ms: {c['late']:g}, + 2)"
    return [
        at_most(f"{tag}: missed ticks", s["missed_ticks"], c["late"] + 2, "", late, f"of {s['ticks']}"),
        at_most(f"{tag}: wake p50 us", wake["p50"], c["p50"] + 40, "", f" (cyclictest {c['p50']:g} + 40)", note),
        at_most(f"{tag}: wake p99 us", wake["p99"], c["p99"] + 60, "", f" (cyclictest {c['p99']:g} + 60)", note),
    ]  # fmt: skip


def latency_rows(tag: str, s: dict[str, Any], c: dict[str, float], full: bool) -> list[Row]:
    """Measured latency against the plan's, and against 20 ms; how many events that rests on."""
    rows = []
    for key in ("load_to_command_ms", "load_to_power_ms"):
        m, p = s["measured"][key], s["plan"][key]
        note = f"{m['events']} events, {m['excluded']} excluded, max {m['max'] or 0:.2f}; cyclictest p99 {c['p99']:g}, max {c['max']:g} us"
        for q in ("p50", "p99"):
            rows.append(at_most(f"{tag}: {key} {q}", m[q], 1.15 * p[q], "", f" (1.15 x plan {p[q]:.2f})", note))
    power = s["measured"]["load_to_power_ms"]
    rows.append(at_most(f"{tag}: load_to_power_ms p99", power["p99"], 20.0, "ms"))
    seen = power["events"] + power["excluded"]
    rows.append(at_least(f"{tag}: events", power["events"] if full else None, STEPS_EVENTS, note=f"{power['events']} in a short run"))
    share = power["excluded"] / seen if seen and full else None
    note = "" if full else f"{power['excluded']} in a short run"
    rows.append(at_most(f"{tag}: excluded, share", share, 0.01, "", " (the plant itself late)", note))
    return rows


def control_rows(m: Measured) -> list[Row]:
    """What the control process takes."""
    return [
        at_most("control process: resident MB", m.control_rss_mb, 60.0, "MB", "", "VmRSS, shared pages included"),
        at_most("control process: share of one core", m.control_cpu, 0.08, "", "", "user and system time over wall time"),
    ]


def rows(trace: str | None, seconds: float) -> list[Row]:
    """All real-time rows; `trace` FILE:COLUMN for the tick rows, None: the built-in generator."""
    if shutil.which("cyclictest") is None:
        return [Row("real time", None, "cyclictest beside it", None, "cyclictest is not installed (apt-get install rt-tests)")]
    load = ["--trace", trace] if trace else []
    full = seconds >= FULL_SECONDS
    out: list[Row] = []
    for tag, extra, kill in (("quiet", [], False), ("busy supervisor", ["--burn"], False), ("supervisor killed", [], True)):
        try:
            m = run_beside(seconds, [*load, *extra], kill_supervisor=kill)
            out += tick_rows(f"tick, {tag}", m.summary, m.cyclictest)
            if not extra and not kill:
                out += control_rows(m)
            if kill:
                back = Row("supervisor back after kill -9, s", None, "<= 2 s", False, "not within 20 s")
                out.append(back if m.back_s is None else at_most(back.name, m.back_s, 2.0, "s", "", "to its first lease"))
        except RunFailed as e:
            out.append(Row(f"tick, {tag}", None, "runs", False, str(e)))
        try:
            m = run_beside(max(seconds, STEPS_SECONDS) if full else seconds, ["--trace", "steps", *extra], kill_supervisor=kill)
            out += latency_rows(f"latency, {tag}", m.summary, m.cyclictest, full)
        except RunFailed as e:
            out.append(Row(f"latency, {tag}", None, "runs", False, str(e)))
    return out
