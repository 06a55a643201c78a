"""Virtual time: calm, SoC return, speed and repeatability of `ballast sim`. Exact figures: the same on every machine."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.perf.rows import Row, at_least, at_most

GPT3 = "p1_train_h100x512_gpt3_run1_2s.csv.gz"
LORA = "p1_train_h100x512_llama2lora_runsA_2s.csv.gz"
COLUMN = "p_sum_ac_w"


def sim(args: list[str]) -> tuple[dict[str, Any], float]:
    """One `ballast sim`: (summary, wall seconds of the whole command)."""
    with tempfile.TemporaryDirectory() as tmp:
        t0 = time.monotonic()
        r = subprocess.run([sys.executable, "-m", "controller", "sim", "--out", tmp, *args], capture_output=True, text=True)
        wall = time.monotonic() - t0
        if r.returncode:
            raise RuntimeError(f"ballast sim {' '.join(args)} ended with {r.returncode}: {r.stderr[-2000:]}")
        return json.loads((Path(tmp) / "summary.json").read_text()), wall


def largest_step_w(trace: Path) -> float:
    """Largest change between adjacent values of the trace."""
    with gzip.open(trace, "rt") as f:
        p = [float(r[COLUMN]) for r in csv.DictReader(f) if r[COLUMN]]
    return max(abs(b - a) for a, b in itertools.pairwise(p))


def swing_w(trace: Path, seconds: float) -> float:
    """Span of the load (its values; 1 s means of a 2 s trace span the same)."""
    with gzip.open(trace, "rt") as f:
        p = [float(r[COLUMN]) for r in csv.DictReader(f) if r[COLUMN]][: int(seconds / 2) + 1]
    return max(p) - min(p)


def calm_rows(tag: str, s: dict[str, Any], trace: Path, suppression: float, band: tuple[float, float], seconds: float) -> list[Row]:
    """The bars that every calm run is held against."""
    g = s["grid"]
    limit = g["import_limit_w"]
    over = largest_step_w(trace) * s["plan"]["load_to_power_ms"]["max"] / 100.0 + 0.01 * limit
    ramp = g["ramp_limit_w_per_s"] + 0.02 * swing_w(trace, seconds)
    return [
        at_least(f"{tag}: suppression", s["suppression"], suppression),
        at_least(f"{tag}: spikes_smoothed", s["spikes_smoothed"], 0.95, note=f"{s['spikes']} spikes"),
        at_most(f"{tag}: band 0.1-2 Hz dB", s["band_db"]["0.1-2"], band[0]),
        at_most(f"{tag}: band 2-20 Hz dB", s["band_db"]["2-20"], band[1]),
        Row(f"{tag}: ramp max W/s", round(g["ramp_max_w_per_s"]), f"<= {ramp:.0f} or counted as ramp_not_held",
            g["ramp_max_w_per_s"] <= ramp or g["ramp_not_held_s"] > 0, f"not held for {g['ramp_not_held_s']:.2f} s"),
        at_most(f"{tag}: peak of 100 ms means W", g["peak_w"], limit + over, "", f" (limit {limit:.0f} + {over:.0f})"),
        at_most(f"{tag}: battery beyond its limits s", s["battery"]["over_limit_s"], 0.0),
    ]  # fmt: skip


def rows(traces: Path) -> list[Row]:
    """All virtual-time rows; the measured traces stand in `traces`."""
    gpt3, lora = traces / GPT3, traces / LORA
    if not gpt3.exists() or not lora.exists():
        return [Row("calm", None, "measured traces", None, f"no traces in {traces}")]
    out: list[Row] = []
    base = ["--trace", f"{gpt3}:{COLUMN}", "--seed", "1"]
    s, wall = sim([*base, "--for", "900"])
    out += calm_rows("GPT-3 900 s", s, gpt3, 0.97, (-24.9, -3.8), 900)
    out.append(at_least("virtual time, x real time", 900 / wall, 100.0, "", " (whole command)"))
    s2, _ = sim([*base, "--for", "900"])
    out.append(
        Row(
            "two runs, one seed",
            s2["record_sha256"][:12],
            "same record_sha256",
            s2["record_sha256"] == s["record_sha256"],
        )
    )
    s, _ = sim(["--trace", f"{lora}:{COLUMN}", "--seed", "1"])
    out += calm_rows("LoRA", s, lora, 0.95, (-25.3, -3.8), 1e9)
    for tag, extra in (("GPT-3, SoC +5", ["--set", "battery.soc=0.55"]),
                       ("GPT-3, SoC -5", ["--set", "battery.soc=0.45", "--set", "grid.import_limit_w=455000"])):  # fmt: skip
        s, _ = sim([*base, "--for", "3400", *extra])
        out += calm_rows(tag, s, gpt3, 0.97, (-24.9, -3.8), 3400)
        off = abs(s["battery"]["soc_end"] - 0.5)
        out.append(at_most(f"{tag}: SoC off target at the end", off, 0.01))
    return out
