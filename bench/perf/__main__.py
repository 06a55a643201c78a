"""The benchmarks as a table.

python -m bench.perf [--json FILE] [--only PART] [--traces DIR] [--seconds S]
python -m bench.perf --markdown FILE.json: a run's JSON as a Markdown table.

Exit code 0 when every row that could be measured holds, 1 otherwise. docs/benchmarks.md says what each row is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.perf import can, console, layouts, micro, mixed, peer, process, realtime, rtu, shelves, virtual
from bench.perf.rows import Row, markdown, table

PARTS = ("micro", "rtu", "can", "virtual", "layouts", "process", "console", "shelves", "realtime", "mixed")


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m bench.perf", description=__doc__)
    p.add_argument("--json", type=Path)
    p.add_argument("--only", choices=PARTS)
    p.add_argument("--traces", type=Path, default=Path(__file__).parents[3] / "shared" / "traces")
    p.add_argument("--seconds", type=float, default=120.0, help="length of each real-time run")
    p.add_argument("--markdown", type=Path, metavar="FILE.json", help="print the table of an earlier run and end")
    a = p.parse_args()
    if a.markdown:
        print(markdown(json.loads(a.markdown.read_text())))
        return 0
    trace = a.traces / virtual.GPT3
    report: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": {"before": os.getloadavg()[0]},
    }

    def micro_rows() -> list[Row]:
        out = micro.rows() + peer.rows()
        more, report["pytest_benchmark"] = micro.pytest_rows()
        return out + more

    parts: dict[str, Callable[[], list[Row]]] = {
        "micro": micro_rows,
        "rtu": rtu.rows,
        "can": can.rows,
        "virtual": lambda: virtual.rows(a.traces),
        "layouts": lambda: layouts.rows(a.seconds),
        "process": process.rows,
        "console": console.rows,
        "shelves": shelves.rows,
        "mixed": lambda: mixed.rows(a.seconds),
        "realtime": lambda: realtime.rows(f"{trace}:{virtual.COLUMN}" if trace.exists() else None, a.seconds),
    }
    rows: list[Row] = []
    for name in PARTS:
        if a.only not in (None, name):
            continue
        try:
            part = parts[name]()
        except Exception as e:  # one part's failure is a row of its own; the others are still worth having
            part = [Row(name, None, "runs", False, f"{type(e).__name__}: {str(e)[-300:]}")]
        print(table(part), flush=True)
        rows += part
    if a.json:
        report["load_average"]["after"] = os.getloadavg()[0]
        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps(report | {"rows": [r.to_dict() for r in rows]}, indent=1))
    return 0 if all(r.ok is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
