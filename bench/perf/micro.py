"""The kernel's step by itself, and the parts of a tick under pytest-benchmark."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.perf.rows import Row, at_most, info

ROOT = Path(__file__).parents[2]
GRID = 2


def rows() -> list[Row]:
    """Median of 200,000 steps in GRID, each timed by itself (the clock's own cost included)."""
    from bench.perf.loops import Steps
    from bench.rig import Rig

    rig = Rig().to_grid()
    rig.step(200)
    steps = Steps(rig.site, rig.inp, rig.lim, rig.kernel.get_state())
    t = steps.times(200_000)
    if steps.mode != GRID:
        why = f"the kernel left GRID (mode {steps.mode}): what was timed is not the whole step"
        return [Row("kernel step median ns", None, "<= 1000 ns", False, why)]
    return [at_most("kernel step median ns", t[len(t) // 2], 1000.0, "ns", "", f"p99 {t[int(0.99 * len(t))]}, max {t[-1]}")]


def pytest_rows() -> tuple[list[Row], list[dict[str, Any]]]:
    """test_micro.py under pytest-benchmark: its medians as rows, and its statistics (in ns a call) for the JSON."""
    if importlib.util.find_spec("pytest_benchmark") is None:
        return [Row("pytest-benchmark", None, "(no bar)", None, "pytest-benchmark is not installed")], []
    with tempfile.TemporaryDirectory() as tmp:
        file = Path(tmp) / "benchmark.json"
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-enable", f"--benchmark-json={file}"]
        done = subprocess.run([*argv, str(ROOT / "bench" / "perf" / "test_micro.py")], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            return [Row("pytest-benchmark", None, "runs", False, done.stdout.strip()[-300:] or done.stderr.strip()[-300:])], []
        raw = json.loads(file.read_text())["benchmarks"]
    stats = [per_call(b) for b in raw]
    notes = [f"iqr {s['iqr']:.3g}, min {s['min']:.4g}, {s['rounds']} rounds of {s['calls_a_round']}" for s in stats]
    return [info(f"micro: {s['name']} median ns", s["median"], note) for s, note in zip(stats, notes, strict=True)], stats


def per_call(benchmark: dict[str, Any]) -> dict[str, Any]:
    """One entry of pytest-benchmark's JSON (seconds a round) as ns a call."""
    calls = int(benchmark["extra_info"].get("calls", 1))
    s = benchmark["stats"]
    out: dict[str, Any] = {"name": benchmark["name"].removeprefix("test_"), "calls_a_round": calls, "rounds": s["rounds"]}
    return out | {key: s[key] * 1e9 / calls for key in ("min", "max", "mean", "stddev", "median", "iqr")}
