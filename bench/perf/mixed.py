"""The mixed site in real time: two RTU buses, a CAN battery and a TCP meter, against other people's software (bench/perf/foreign.py)."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.perf import realtime
from bench.perf.rows import Row, at_most, info
from hal.profile import PROFILE_DIR

FULL_SECONDS = 600.0
TURNAROUND_MS, LATENCY_MS = 2.0, 2.0  # Python servers behind a relayed PTY, and over TCP
PV = """name = "libmodbus_pv"
role = "pv"
turnaround_ms = 1.0
[[read]]
signal = "pv_p_w"
address = 0
type = "f32"
fc = 3
group = "slow"
"""
SITE = """[site]
name = "mixed"
f_nom_hz = 50.0
[grid]
feeder_w = 500000.0
[load]
peak_w = 480000.0
[battery]
energy_wh = 100000.0
v_min_v = 40.0
v_max_v = 58.4
[pcs]
s_rated_va = 100000.0
[[bus]]
name = "rtu1"
port = "{pcs}"
baud = 460800
[[bus]]
name = "rtu2"
port = "{pv}"
baud = 460800
parity = "N"
[[bus]]
name = "can"
port = "slcan:{bms}"
[[bus]]
name = "tcp"
port = "{meter}"
latency_ms = {latency_ms}
[[device]]
name = "meter"
role = "meter"
bus = "tcp"
unit = 1
profile = "ballast_virtual_meter"
[[device]]
name = "bms"
role = "bms"
bus = "can"
unit = 1
profile = "pylontech_lv"
[[device]]
name = "pcs"
role = "pcs"
bus = "rtu1"
unit = 1
profile = "{pcs_profile}"
[[device]]
name = "pv"
role = "pv"
bus = "rtu2"
unit = 1
profile = "{pv_profile}"
"""


@contextlib.contextmanager
def site() -> Iterator[Path]:
    """The site's file, its devices running. Raises RuntimeError with what they say where they do not start."""
    with tempfile.TemporaryDirectory() as tmp:
        directory = Path(tmp)
        argv = [sys.executable, "-m", "bench.perf.foreign", tmp]
        with open(directory / "stderr", "w+") as err:
            peers = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, cwd=realtime.ROOT)
            try:
                assert peers.stdout is not None
                line = peers.stdout.readline()
                if not line:
                    raise RuntimeError(f"the devices do not start: {(directory / 'stderr').read_text()[-300:]}")
                generic = (PROFILE_DIR / "generic_pcs.toml").read_text()
                (directory / "pcs.toml").write_text(generic.replace("turnaround_ms = 1.0", f"turnaround_ms = {TURNAROUND_MS}"))
                (directory / "pv.toml").write_text(PV)
                named = {"pcs_profile": directory / "pcs.toml", "pv_profile": directory / "pv.toml", "latency_ms": LATENCY_MS}
                (directory / "site.toml").write_text(SITE.format(**json.loads(line), **named))
                yield directory / "site.toml"
            finally:
                peers.kill()
                peers.communicate()


def verdicts(m: realtime.Measured, report: str, full: bool) -> list[Row]:
    """What the run reached: ticks beside cyclictest's, GRID to its end, every bus in use, the buses in the report."""
    s, tag = m.summary, "mixed site" if full else "mixed site, short"
    events = [e["text"] for e in s["events"] if e["kind"] == "mode"]
    reached = [k for k, text in enumerate(events) if text.endswith("-> GRID")]
    left = [text for text in events[reached[0] :] if text.startswith("GRID ->")] if reached else ["GRID was never reached"]
    left = [text for text in left if not text.endswith("STOP")]
    out = realtime.tick_rows(tag, s, m.cyclictest)
    alarms = [e["text"] for e in s["events"] if e["kind"] == "alarm" and not e["text"].endswith("cleared")]
    out.append(Row(f"{tag}: GRID to the end", len(left), "never left", not left, "; ".join([*left[:3], *alarms[:3]])))
    for bus, row in s["buses"].items():
        note = f"{row['timeouts'] + row['crc_errors']} without a good answer in time, {row['late']} of them late"
        out.append(info(f"{tag}: bus {bus}, transactions", row["transactions"], note))
    silent = [bus for bus, row in s["buses"].items() if not row["transactions"]]
    out.append(at_most(f"{tag}: silent buses", len(silent), 0, note=", ".join(silent)))
    _, _, buses = report.partition("<h2>Buses</h2>")
    named = [bus for bus in s["buses"] if f">{bus}<" not in buses]
    drawn = buses.lstrip().startswith("<figure><img") and not named
    out.append(Row(f"{tag}: the report shows the buses", "drawn" if drawn else "missing", "picture and table", drawn, ", ".join(named)))
    return out


def run(seconds: float) -> tuple[realtime.Measured, str]:
    """The site for so long, and its report.html. Raises RunFailed or RuntimeError."""
    kept: dict[str, Any] = {}
    with site() as file:
        m = realtime.run_beside(seconds, [str(file)], keep=lambda out: kept.update(report=(out / "report.html").read_text()))
    return m, str(kept["report"])


def rows(seconds: float) -> list[Row]:
    """The mixed site for `seconds`."""
    if shutil.which("cyclictest") is None:
        return [Row("mixed site", None, "cyclictest beside it", None, "cyclictest is not installed (apt-get install rt-tests)")]
    try:
        return verdicts(*run(seconds), full=seconds >= FULL_SECONDS)
    except (realtime.RunFailed, RuntimeError) as e:
        return [Row("mixed site", None, "runs", False, str(e))]
