"""summary.json: the keys of docs/hil.md, nothing that JSON cannot hold, quantiles that never flatter."""

from __future__ import annotations

import json
import math
from pathlib import Path

from controller import site as sites
from controller import summary
from tests.controller.fakes import FakeImage

DESIGN_KEYS = [
    "mode", "seed", "duration_s", "ticks", "missed_ticks", "wake_latency_us", "step_ns", "plan", "measured", "grid", "suppression",
    "spikes_smoothed", "spikes", "band_db", "battery", "buses", "events", "record_sha256",
]  # fmt: skip
LATENCY = {"p50": 13.5, "p99": 18.4, "max": 18.5}
PLAN = {"load_to_command_ms": LATENCY, "load_to_power_ms": LATENCY, "tick_ms": 10}
JUDGED = {
    "measured": {"load_to_command_ms": LATENCY | {"events": 1000, "excluded": 2}, "load_to_power_ms": None},
    "grid": {"peak_w": 440e3, "ramp_max_w_per_s": 1999.0, "ramp_not_held_s": 0.0, "over_limit_s": 0.0},
    "suppression": 0.98,
    "spikes_smoothed": float("nan"),
    "spikes": 0,
    "band_db": {"0.1-2": -25.0, "2-20": -math.inf},
    "battery": {"soc_start": 0.5, "soc_end": 0.51, "throughput_wh": 1.0, "over_limit_s": 0.0},
}


def make(mode: str, judged: dict[str, object] | None) -> dict[str, object]:
    image, site = FakeImage(), sites.load(None)
    image.stats |= {"ticks": 12_000, "wake_us": [0] * 30 + [100] + [0] * 2017, "step_ns": [5] + [0] * 2047}
    image.stats |= {"max_wake_late_ns": 30_500, "max_step_ns": 12}
    return summary.compose(
        site=site,
        mode=mode,
        seed=1,
        duration_s=120.0,
        engine_stats=image.stats,
        plan=PLAN,
        judged=judged,
        bus_rows=summary.buses(image, site),
        events=[],
        record_sha256="ab",
    )


def test_the_keys_of_the_design_in_their_order() -> None:
    got = make("run", JUDGED)
    assert list(got) == DESIGN_KEYS
    assert list(got["grid"]) == [  # type: ignore[call-overload]
        "peak_w",
        "import_limit_w",
        "ramp_max_w_per_s",
        "ramp_limit_w_per_s",
        "ramp_not_held_s",
        "over_limit_s",
    ]
    assert got["buses"]["a"] == {"transactions": 0, "timeouts": 0, "crc_errors": 0, "late": 0}  # type: ignore[index]
    assert got["plan"] == {"load_to_command_ms": LATENCY, "load_to_power_ms": LATENCY}
    assert got["wake_latency_us"] == {"p50": 30.5, "p99": 30.5, "p999": 30.5, "max": 30.5}


def test_what_is_not_there_is_null(tmp_path: Path) -> None:
    got = make("sim", JUDGED)
    assert got["wake_latency_us"] is None and got["step_ns"] is None
    assert got["spikes_smoothed"] is None and got["band_db"]["2-20"] is None  # type: ignore[index]
    bare = make("run", None)
    assert bare["measured"] is None and bare["battery"] is None and bare["suppression"] is None
    assert bare["grid"]["import_limit_w"] == 445e3 and bare["grid"]["peak_w"] is None  # type: ignore[index]
    path = summary.write(got, tmp_path)
    assert json.loads(path.read_text()) == got


def test_quantiles_are_upper_edges() -> None:
    histogram = [90, 9, 1] + [0] * 10
    assert summary.quantiles(histogram, 1.0, 2.7) == {"p50": 1.0, "p99": 2.0, "p999": 2.7, "max": 2.7}
    assert summary.quantiles([0, 0, 5], 1.0, 90.0) == {"p50": 90.0, "p99": 90.0, "p999": 90.0, "max": 90.0}
    assert summary.quantiles([0, 0], 1.0, 0.0) is None


def test_events_are_bounded_and_count_from_the_start() -> None:
    rows = summary.event_rows([(1.0, 5_000_000_000 + k, "mode", "GRID") for k in range(2000)], 4_000_000_000)
    assert len(rows) == 1000 and rows[0] == {"t_s": 1.0, "kind": "mode", "text": "GRID"}
