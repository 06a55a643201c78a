"""python -m bench.perf [--json FILE] [--only micro|virtual|process|realtime] [--traces DIR] [--seconds S]: the benchmarks as a table.

Exit code 0 when every row that could be measured holds, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

from bench.perf import micro, process, realtime, virtual
from bench.perf.rows import Row, table


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m bench.perf", description=__doc__)
    p.add_argument("--json", type=Path)
    p.add_argument("--only", choices=("micro", "virtual", "process", "realtime"))
    p.add_argument("--traces", type=Path, default=Path(__file__).parents[3] / "shared" / "traces")
    p.add_argument("--seconds", type=float, default=120.0, help="length of each real-time run")
    a = p.parse_args()
    rows: list[Row] = []
    if a.only in (None, "micro"):
        rows += micro.rows()
    if a.only in (None, "virtual"):
        rows += virtual.rows(a.traces)
    if a.only in (None, "process"):
        rows += process.rows()
    if a.only in (None, "realtime"):
        trace = a.traces / virtual.GPT3
        rows += realtime.rows(f"{trace}:{virtual.COLUMN}" if trace.exists() else None, a.seconds)
    print(table(rows))
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps({"machine": platform.platform(), "rows": [r.to_dict() for r in rows]}, indent=1))
    return 0 if all(r.ok is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
