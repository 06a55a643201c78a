"""The judge: what a run really did, from the plant's own truth log and nothing else.

    python -m bench.judge OUT_DIR --since-ns N [--mean-s 60] [--ramp 2000] [--import-limit 445000]

prints the judged part of summary.json. N is the instant the controller reached GRID, on the plant's clock; judging
begins 5 s later.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import metrics

SETTLE_S = 5.0
FOUND_WITHIN_S = 1.0  # a step nobody answers counts with this latency
EXCUSE_MS = 60.0            # a late wake of the plant after this excuses no answer
Truth = Mapping[str, NDArray[Any]]


def load_truth(path: Path) -> dict[str, NDArray[Any]]:
    """truth.npz as a dict. Raises OSError."""
    with np.load(path) as z:
        return {k: z[k] for k in z.files}


def _stats(ms: NDArray[np.float64], excluded: int) -> dict[str, Any]:
    if not len(ms):
        return {"p50": None, "p99": None, "max": None, "events": 0, "excluded": excluded}
    p50, p99 = np.percentile(ms, [50, 99])
    return {
        "p50": round(float(p50), 3),
        "p99": round(float(p99), 3),
        "max": round(float(ms.max()), 3),
        "events": len(ms),
        "excluded": excluded,
    }


def _answer(t_end: NDArray[np.int64], value_w: NDArray[np.float64], step_ns: int, delta_w: float) -> int | None:
    """Index of the first command that answers at least half of the step, None when there is none within FOUND_WITHIN_S.

    The measure is the command in force at the step: the last whose frame had ended by then (0 W before the first)."""
    first = int(np.searchsorted(t_end, step_ns, side="right"))
    last = int(np.searchsorted(t_end, step_ns + int(FOUND_WITHIN_S * 1e9), side="right"))
    in_force_w = value_w[first - 1] if first else 0.0
    answered = (value_w[first:last] - in_force_w) * np.sign(delta_w) >= 0.5 * abs(delta_w)
    hit = int(np.argmax(answered)) if answered.any() else -1
    return first + hit if hit >= 0 else None


def measured_ms(
    truth: Truth, since_ns: int, until_ns: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """load_to_command and load_to_power in ms of each ideal step in [since_ns, until_ns], and how many were left out.

    load_to_command: from the step to the last bit of the first command that answers at least half of it.
    load_to_power: to the instant 90 % of that command's own change stands at the terminals; where a later command
    took its place before that, to the later one's 90 %. A step that is answered late counts with the time it took,
    one that is not answered within 1 s counts with 1 s. Left out: steps between which and their answer, at most 60 ms
    later, the plant itself woke more than 0.5 ms late (real time only).
    """
    t_end, value_w, t90 = truth["cmd_t_end_ns"], truth["cmd_value_w"], truth["cmd_t90_ns"]
    reached = np.flatnonzero(t90 >= 0)
    late_from, late_to = truth["late_t_ns"], truth["late_t_ns"] + truth["late_ns"]
    # A step in the run's last second may lack its answer only because the run ended.
    last_ns = int(truth["now_ns"]) - int(FOUND_WITHIN_S * 1e9) if until_ns is None else until_ns
    command_ms, power_ms, excluded = [], [], 0
    for t_ns, delta_w in zip(truth["step_t_ns"].tolist(), truth["step_delta_w"].tolist(), strict=True):
        if not since_ns <= t_ns <= last_ns:
            continue
        i = _answer(t_end, value_w, t_ns, delta_w)
        to_command = to_power = FOUND_WITHIN_S * 1e3
        if i is not None:
            to_command = (int(t_end[i]) - t_ns) * 1e-6
            k = int(np.searchsorted(reached, i))
            if k < len(reached):
                to_power = min((int(t90[reached[k]]) - t_ns) * 1e-6, to_power)
        end_ns = t_ns + int(min(max(to_power, to_command), EXCUSE_MS) * 1e6)
        a = int(np.searchsorted(late_to, t_ns))
        if a < len(late_from) and late_from[a] <= end_ns:
            excluded += 1
            continue
        command_ms.append(to_command)
        power_ms.append(to_power)
    return np.array(command_ms), np.array(power_ms), excluded


def latencies(truth: Truth, since_ns: int, until_ns: int | None = None) -> dict[str, Any]:
    """load_to_command_ms and load_to_power_ms as `measured_ms` gives them, each p50, p99, max, events, excluded."""
    command_ms, power_ms, excluded = measured_ms(truth, since_ns, until_ns)
    return {"load_to_command_ms": _stats(command_ms, excluded), "load_to_power_ms": _stats(power_ms, excluded)}


def _plain(x: Any) -> float | None:
    """JSON has no NaN: what cannot be computed is null."""
    return round(float(x), 4) if math.isfinite(float(x)) else None


def _grid(
    load_w: metrics.Series, grid_w: metrics.Series, mean_s: float, ramp_w_per_s: float, import_limit_w: float
) -> dict[str, Any]:
    """The grid's figures: metrics.figures where the span allows, else peak and ramp over the whole span and null for
    the others.
    """
    long_enough = len(grid_w) * metrics.TICK_S >= 3 * metrics.EDGE_S
    f = metrics.figures(load_w, grid_w, mean_s, ramp_w_per_s) if long_enough else {}
    tenths = metrics.means(grid_w, 0.1)
    peak = f.get("peak_w", tenths.max() if len(tenths) else math.nan)
    steepest = f.get("ramp_max_w_per_s", metrics.ramp(grid_w) if len(grid_w) > 200 else math.nan)
    band = f.get("band_db", {})
    return {
        "grid": {
            "peak_w": _plain(peak),
            "import_limit_w": import_limit_w,
            "ramp_max_w_per_s": _plain(steepest),
            "ramp_limit_w_per_s": ramp_w_per_s,
            "over_limit_s": round(0.1 * int((tenths > import_limit_w).sum()), 3),
        },
        "suppression": _plain(f.get("suppression", math.nan)),
        "tracking": _plain(f.get("tracking", math.nan)),
        "spikes_smoothed": _plain(f.get("spikes_smoothed", math.nan)),
        "spikes": f.get("spikes"),
        "band_db": {k: _plain(band.get(k, math.nan)) for k in ("0.1-2", "2-20")} if long_enough else None,
    }


def judge(
    truth: Truth,
    *,
    grid_since_ns: int,
    mean_s: float = 60.0,
    ramp_w_per_s: float = 2000.0,
    import_limit_w: float = 445e3,
    plan: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The judged part of summary.json (docs/hil.md), from 5 s after GRID.

    truth: VirtualPlant.truth() or load_truth(). Powers W, import +. suppression, tracking, spikes_smoothed, spikes
    and band_db are None where fewer than 180 s are judged (a run below 185 s). grid.over_limit_s counts 100 ms means
    above the import limit over the whole judged span; battery is over the whole run, its over_limit_s being seconds
    in which DC power was above the BMS's true limits by more than 0.5 % + 0.1 % of rated power. `truncated`: the
    truth log was full before the end (6 h).
    """
    since_ns = grid_since_ns + int(SETTLE_S * 1e9)
    first = max(0, math.ceil((since_ns - int(truth["t0_ns"])) / int(truth["bin_ns"])))
    load_w = truth["load_w"][first:].astype(np.float64)
    grid_w = truth["grid_w"][first:].astype(np.float64)
    soc = truth["soc"]
    out: dict[str, Any] = {"measured": latencies(truth, since_ns), "judged_s": round(len(load_w) * metrics.TICK_S, 2)}
    if plan is not None:
        out["plan"] = dict(plan)
    out |= _grid(load_w, grid_w, mean_s, ramp_w_per_s, import_limit_w)
    out["battery"] = {
        "soc_start": _plain(truth["soc_start"]),
        "soc_end": _plain(soc[-1] if len(soc) else truth["soc_start"]),
        "throughput_wh": _plain(np.abs(truth["batt_w"].astype(np.float64)).sum() * metrics.TICK_S / 3600),
        "over_limit_s": _plain(truth["over_s"][-1] if len(truth["over_s"]) else 0.0),
    }
    out["truncated"] = bool(truth["truncated"])
    return out


def main(argv: list[str] | None = None) -> int:
    """Command line; exit 2 when there is no truth to judge."""
    parser = argparse.ArgumentParser(prog="python -m bench.judge", description="judge a run from the plant's truth")
    parser.add_argument("out", type=Path, help="directory that holds truth.npz")
    parser.add_argument(
        "--since-ns", type=int, default=None, help="instant of GRID on the plant's clock (default: the plant's start)"
    )
    parser.add_argument("--mean-s", type=float, default=60.0)
    parser.add_argument("--ramp", type=float, default=2000.0, help="W/s")
    parser.add_argument("--import-limit", type=float, default=445e3, help="W")
    args = parser.parse_args(argv)
    try:
        truth = load_truth(args.out / "truth.npz")
    except OSError as e:
        print(f"{args.out / 'truth.npz'}: {e.strerror or e}", file=sys.stderr)
        return 2
    since_ns = int(truth["t0_ns"]) if args.since_ns is None else args.since_ns
    result = judge(
        truth, grid_since_ns=since_ns, mean_s=args.mean_s, ramp_w_per_s=args.ramp, import_limit_w=args.import_limit
    )
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
