"""Real time: ticks and latency of `ballast run`, with cyclictest beside it at the same priority and period.

These machines are shared: an absolute figure says little, so every run has its peer in the same minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.perf.rows import Row, at_most

PRIORITY = 90
PERIOD_US = 10_000


def _quantile(hist: dict[int, int], q: float) -> float:
    n = sum(hist.values())
    seen = 0
    for us in sorted(hist):
        seen += hist[us]
        if seen >= q * n:
            return float(us)
    return float("nan")


class Cyclictest:
    """cyclictest in the background; result() gives p50 and p99 in us and the count of wake-ups later than a period."""

    def __init__(self, seconds: float, out: Path) -> None:
        self.file = out / "cyclictest.json"
        command = ["cyclictest", "-q", "-m", "-t", "1", "-p", str(PRIORITY), "-i", str(PERIOD_US), "-h", "20000", "-D", str(int(seconds)),
                   f"--json={self.file}"]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def result(self) -> dict[str, float]:
        self.process.wait(60)
        thread = json.loads(self.file.read_text())["thread"]["0"]
        hist = {int(k): int(v) for k, v in thread["histogram"].items()}
        late = sum(n for us, n in hist.items() if us > PERIOD_US) + max(0, int(thread["cycles"]) - sum(hist.values()))
        return {"p50": _quantile(hist, 0.5), "p99": _quantile(hist, 0.99), "late": late, "max": float(thread["max"])}


def _run(seconds: float, args: list[str], *, kill_supervisor: bool = False) -> tuple[dict[str, Any], dict[str, float], float | None]:
    """One `ballast run` with cyclictest beside it: (summary, cyclictest, seconds until the killed supervisor was back)."""
    back: float | None = None
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp)
        command = [sys.executable, "-m", "controller", "run", "--for", str(seconds), "--out", str(out / "run"), *args]
        env = os.environ | {"XDG_RUNTIME_DIR": tmp}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env, text=True)
        time.sleep(4)
        peer = Cyclictest(seconds - 6, out)
        if kill_supervisor:
            time.sleep(seconds / 2)
            back = _kill_supervisor(env)
        _, err = process.communicate(timeout=seconds + 120)
        if process.returncode:
            raise RuntimeError(f"ballast run ended with {process.returncode}: {err[-2000:]}")
        return json.loads((out / "run" / "summary.json").read_text()), peer.result(), back


def _status(env: dict[str, str]) -> dict[str, Any]:
    r = subprocess.run([sys.executable, "-m", "controller", "status", "--json"], env=env, capture_output=True, text=True, timeout=30)
    return json.loads(r.stdout)


def _kill_supervisor(env: dict[str, str]) -> float | None:
    """kill -9 the supervisor; seconds until another one answers for it."""
    pid = _status(env)["supervisor"]["pid"]
    os.kill(pid, signal.SIGKILL)
    t0 = time.monotonic()
    while time.monotonic() - t0 < 20:
        now = _status(env)["supervisor"]
        if now["pid"] not in (None, 0, pid) and now.get("alive", True):
            return time.monotonic() - t0
        time.sleep(0.05)
    return None


def _tick_rows(tag: str, s: dict[str, Any], c: dict[str, float]) -> list[Row]:
    wake = s["wake_latency_us"]
    return [
        at_most(
            f"{tag}: missed ticks",
            s["missed_ticks"],
            c["late"] + 2,
            "",
            " (cyclictest's later than 10 ms + 2)",
            f"of {s['ticks']}",
        ),
        at_most(f"{tag}: wake p50 us", wake["p50"], c["p50"] + 40, "", f" (cyclictest {c['p50']:g} + 40)"),
        at_most(f"{tag}: wake p99 us", wake["p99"], c["p99"] + 60, "", f" (cyclictest {c['p99']:g} + 60)"),
    ]


def _latency_rows(tag: str, s: dict[str, Any]) -> list[Row]:
    rows = []
    for key in ("load_to_command_ms", "load_to_power_ms"):
        m, p = s["measured"][key], s["plan"][key]
        note = f"{m['events']} events, {m['excluded']} excluded, max {m['max']:.2f}"
        for q in ("p50", "p99"):
            rows.append(at_most(f"{tag}: {key} {q}", m[q], 1.15 * p[q], "", f" (1.15 x plan {p[q]:.2f})", note))
    rows.append(at_most(f"{tag}: load_to_power_ms p99", s["measured"]["load_to_power_ms"]["p99"], 20.0, "ms"))
    return rows


def rows(trace: str | None, seconds: float) -> list[Row]:
    """All real-time rows; `trace` FILE:COLUMN for the tick rows, None: the built-in generator."""
    if shutil.which("cyclictest") is None:
        return [
            Row(
                "real time",
                None,
                "cyclictest beside it",
                None,
                "cyclictest is not installed (apt-get install rt-tests)",
            )
        ]
    load = ["--trace", trace] if trace else []
    steps = ["--trace", "steps"]
    out: list[Row] = []
    for tag, extra, kill in (
        ("quiet", [], False),
        ("busy supervisor", ["--burn"], False),
        ("supervisor killed", [], True),
    ):
        s, c, back = _run(seconds, [*load, *extra], kill_supervisor=kill)
        out += _tick_rows(f"tick, {tag}", s, c)
        if kill:
            out.append(at_most("supervisor back after kill -9", back, 2.0, "s"))
        s, c, back = _run(max(seconds, 150.0), [*steps, *extra], kill_supervisor=kill)
        out += _latency_rows(f"latency, {tag}", s)
    return out
