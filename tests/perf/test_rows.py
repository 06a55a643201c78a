"""The benchmarks' own arithmetic: tables, quantiles, cyclictest's JSON. No timing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from bench.perf import micro, realtime, rtu
from bench.perf.rows import Row, at_least, at_most, info, markdown, table

ROOT = Path(__file__).parents[2]


def test_verdicts() -> None:
    assert at_most("a", 1.0, 1.0).ok is True and at_most("a", 1.1, 1.0).ok is False
    assert at_least("a", 1.0, 1.0).ok is True and at_least("a", 0.9, 1.0).ok is False
    assert at_most("a", float("nan"), 1.0).ok is False
    assert at_most("a", None, 1.0).ok is None and info("a", 3.14159).value == 3.14


def test_table_and_markdown_say_the_same(tmp_path: Path) -> None:
    rows = [at_most("wake | p50", 41.0, 40.0, "us", "", "busy"), at_least("calm", 0.98, 0.97)]
    rows.append(Row("peer", None, "<= 1", None, "not installed"))
    assert [line.split()[0] for line in table(rows).splitlines()] == ["MISS", "ok", "--"]
    file = tmp_path / "bench.json"
    report = {"when": "today", "cpus": 2, "load_average": {"before": 0.5, "after": 1}}
    file.write_text(json.dumps(report | {"rows": [r.to_dict() for r in rows]}))
    argv = [sys.executable, "-m", "bench.perf", "--markdown", str(file)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("today; 2 CPUs; load average 0.5 before, 1.0 after")
    assert lines[4] == "| MISS | wake \\| p50 | 41.0 | <= 40 us | busy |" and lines[6] == "| -- | peer |  | <= 1 | not installed |"
    assert len(lines) == 7 and markdown({"rows": []}).splitlines() == lines[2:4]


def cyclictest(bins: dict[str, int], cycles: int) -> str:
    thread = {"histogram": bins, "cycles": cycles, "min": 27, "max": 25123, "avg": 50.0, "cpu": 0}
    return json.dumps({"file_version": 1, "thread": {"0": thread}})


def test_cyclictest_json() -> None:
    c = realtime.read_cyclictest(cyclictest({"27": 50, "40": 48, "10000": 1}, 100))
    assert (c["p50"], c["p99"], c["cycles"], c["max"]) == (28.0, 10001.0, 100, 25123.0)
    assert c["late"] == 2  # one in a bin, one beyond them all
    assert realtime.read_cyclictest(cyclictest({"9999": 2}, 2))["late"] == 0
    assert realtime.read_cyclictest(cyclictest({"5": 1}, 3))["p99"] == math.inf


def test_quantiles() -> None:
    assert rtu.quantile([5, 1, 4, 2, 3], 0.5) == 3 and rtu.quantile(list(range(1, 101)), 0.99) == 99
    assert math.isnan(rtu.quantile([], 0.5)) and math.isnan(realtime.quantile({}, 0, 0.5))
    assert realtime.quantile({3: 1, 9: 1}, 0, 0.5) == 4.0 and realtime.quantile({3: 1, 9: 1}, 0, 0.99) == 10.0


def test_pytest_benchmark_is_scaled_to_a_call() -> None:
    stats = {"min": 1e-6, "max": 4e-6, "mean": 2e-6, "stddev": 1e-7, "median": 2e-6, "iqr": 1e-7, "rounds": 300}
    got = micro.per_call({"name": "test_publish", "extra_info": {"calls": 1000}, "stats": stats})
    assert (got["name"], got["rounds"]) == ("publish", 300) and math.isclose(got["median"], 2.0) and math.isclose(got["max"], 4.0)


def test_rtu_verdicts_fail_where_reads_fail() -> None:
    times = {"ours": [100_000, -1], "libmodbus": [100_000, 100_000]}
    rows = rtu.verdicts("quiet", times, dict.fromkeys(times, "none"))
    assert [r.ok for r in rows] == [True, True, False, None]
    rows = rtu.verdicts("quiet", {"ours": [131_000], "libmodbus": [100_000]}, dict.fromkeys(times, "none"))
    assert [r.ok for r in rows] == [False, False, None, None]
    assert rtu.verdicts("quiet", {"ours": [], "libmodbus": []}, dict.fromkeys(times, "none"))[0].ok is False
