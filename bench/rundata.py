"""What a run's directory holds, read once for its report: summary, settings, the plant's truth, columns of the record."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.judge import SETTLE_S, load_truth, measured_ms
from controller import build, wires
from controller.recording import Recording
from controller.records import Damage, RecordError
from controller.site import Site
from controller.supervise import RECORD_NAME

TICK_S = 0.01
GROUPS = ("meter", "pcs", "bms")  # of Inputs: whose answers' instants are looked at
Series = NDArray[Any]


@dataclass
class RunData:
    """Series of a run; powers in W, times in s from the start of the run (`t0_ns` on the run's clock)."""

    directory: Path
    summary: dict[str, Any]
    site: Site
    plan: dict[str, Any]
    t_s: Series
    load_w: Series
    grid_w: Series
    batt_w: Series
    source: str  # where these came from, in words
    t0_ns: int
    judged_s: float | None  # judging begins; None: GRID was never reached
    wall_s: float | None = None
    soc_t_s: Series = field(default_factory=lambda: np.zeros(0))
    soc: Series = field(default_factory=lambda: np.zeros(0))
    ref_w: Series | None = None  # of the record, at rec_t_s
    rec_t_s: Series | None = None
    wake_us: Series | None = None
    step_ms: Series | None = None  # the kernel's step, after its tick
    answer_ms: dict[str, Series] = field(default_factory=dict)  # a group's answers: when they were whole, after the tick
    meter_age_ms: Series | None = None  # its values, when the kernel stepped
    align_ms: Series | None = None
    wires: dict[str, Any] | None = None  # wires.json: what controller.wires.collect found at the end
    limits: Series | None = None
    command_ms: Series = field(default_factory=lambda: np.zeros(0))
    power_ms: Series = field(default_factory=lambda: np.zeros(0))
    excluded: int = 0
    builds: str = ""
    step_ns: Mapping[str, Any] | None = None


def load(directory: Path) -> RunData:
    """Raises OSError without summary.json and site.json, RecordError where neither truth nor record can be used."""
    summary = json.loads((directory / "summary.json").read_text())
    site = Site.from_dict(json.loads((directory / "site.json").read_text()))
    record, why = _record(directory)
    truth_path = directory / "truth.npz"
    plan = build.plan(site).to_json()
    if truth_path.exists():
        data = _from_truth(directory, summary, site, plan, load_truth(truth_path), record)
    elif record:
        data = _from_record(directory, summary, site, plan, record)
    else:
        raise RecordError(f"{directory}: neither truth.npz nor a record: {why}")
    with contextlib.suppress(OSError, ValueError):  # older runs have none
        data.wires = json.loads((directory / wires.NAME).read_text())
    if record:
        data.answer_ms = {name: answers_ms(record[f"rx_{name}"], record["t_ns"]) for name in GROUPS}
        data.meter_age_ms, data.align_ms = record["age_ms"][record["rx_meter"] > 0], record["align_ms"]
        data.rec_t_s, data.ref_w, data.limits = (record["t_ns"] - data.t0_ns) / 1e9, record["ref_w"], record["limits"]
        data.wake_us, data.step_ms = record["wake_us"], record["step_ms"]
        data.wall_s, data.builds = record["wall_s"], record["builds"]
    return data


def _record(directory: Path) -> tuple[dict[str, Any], str]:
    """Columns of the record (an hour of it is 340 MB: only they are kept); empty and why where there is none."""
    try:
        recording = Recording(directory / RECORD_NAME)
    except RecordError as e:
        return {}, str(e)
    names = ["t_ns", "wake_us", "step_ms", "ref_w", "limits", "grid_w", "load_w", "batt_w", "soc", "age_ms", "align_ms"]
    names += [f"rx_{name}" for name in GROUPS]
    parts: dict[str, list[Series]] = {name: [] for name in names}
    builds = set()
    for piece in recording.pieces():
        if isinstance(piece, Damage):
            continue
        inp, out = piece.rows["inp"], piece.rows["out"]
        builds.add(piece.segment.build)
        columns = {
            "t_ns": inp["t_ns"], "wake_us": piece.rows["wake_late_ns"] / 1e3, "step_ms": (inp["step_t_ns"] - inp["t_ns"]) / 1e6,
            "ref_w": out["ref_w"], "limits": out["limits_active"], "grid_w": inp["meter"]["grid_p_w"], "load_w": out["load_w"],
            "batt_w": inp["pcs"]["batt_p_w"], "soc": out["soc"], "align_ms": 1e3 * out["align_s"],
            "age_ms": (inp["step_t_ns"] - inp["meter"]["g"]["t_ns"]) / 1e6, **{f"rx_{name}": inp[name]["g"]["rx_ns"] for name in GROUPS},
        }  # fmt: skip
        for key, values in columns.items():
            parts[key].append(np.array(values))
    found: dict[str, Any] = {key: np.concatenate(values) for key, values in parts.items()}
    return found | {"wall_s": recording.wall0_s, "builds": ", ".join(sorted(builds))}, ""


def answers_ms(rx_ns: Series, tick_ns: Series) -> Series:
    """Instants of a group's answers after the tick in which they came, ms: one for each change of rx_ns. `tick_ns`: the tick of the
    record that shows it, which for what came after the step is the next one."""
    new = np.flatnonzero(np.diff(rx_ns, prepend=rx_ns[:1]) != 0)
    return np.mod(rx_ns[new] - tick_ns[new], round(1e9 * TICK_S)) / 1e6


def _grid_s(summary: Mapping[str, Any]) -> float | None:
    return next((float(e["t_s"]) for e in summary["events"] if e["kind"] == "mode" and e["text"].endswith("GRID")), None)


def _from_truth(
    directory: Path, summary: dict[str, Any], site: Site, plan: dict[str, Any], truth: Mapping[str, Any], record: Mapping[str, Any]
) -> RunData:
    plant_ns = int(truth["t0_ns"])
    # Events count from the run's start; the first tick in the record is that instant, the plant began before it.
    t0_ns = int(record["t_ns"][0]) if record else plant_ns
    n = len(truth["load_w"])
    t_s = (plant_ns - t0_ns) / 1e9 + (np.arange(n) + 0.5) * int(truth["bin_ns"]) / 1e9
    grid_s = _grid_s(summary)
    load_w, grid_w, batt_w = (truth[k].astype(np.float64) for k in ("load_w", "grid_w", "batt_w"))
    data = RunData(
        directory, summary, site, plan, t_s, load_w, grid_w, batt_w,
        "the plant's own log, 10 ms means at the terminals (not the controller's view)", t0_ns,
        None if grid_s is None else grid_s + SETTLE_S,
    )  # fmt: skip
    data.soc_t_s, data.soc = (plant_ns - t0_ns) / 1e9 + np.arange(1, len(truth["soc"]) + 1.0), truth["soc"].astype(np.float64)
    if grid_s is not None:
        since_ns = t0_ns + int((grid_s + SETTLE_S) * 1e9)
        data.command_ms, data.power_ms, data.excluded = measured_ms(truth, since_ns)
    return data


def _from_record(directory: Path, summary: dict[str, Any], site: Site, plan: dict[str, Any], record: Mapping[str, Any]) -> RunData:
    t0_ns = int(record["t_ns"][0])
    grid_s = _grid_s(summary)
    data = RunData(
        directory, summary, site, plan, (record["t_ns"] - t0_ns) / 1e9, record["load_w"], record["grid_w"], record["batt_w"],
        "the site's meter and converter as the controller read them, one value a tick; load is reconstructed from the two", t0_ns,
        None if grid_s is None else grid_s + SETTLE_S,
    )  # fmt: skip
    data.soc_t_s, data.soc = data.t_s[::100], record["soc"][::100]
    return data


def busiest(data: RunData) -> tuple[float, float]:
    """The 60 s in which the load moves most: the sum of |change| of its 100 ms means is the largest. 5 s where 60 would be
    a solid block of colour.
    """
    k = 10
    n = len(data.load_w) // k
    means = data.load_w[: n * k].reshape(n, k).mean(1)
    t = data.t_s[: n * k : k]
    change = np.abs(np.diff(means, prepend=means[:1]))
    crowded = np.count_nonzero(change > 0.2 * np.ptp(means)) > n / 10 if n else False
    width = min(round((5.0 if crowded else 60.0) / (k * TICK_S)), n)
    total = np.convolve(change, np.ones(width), "valid")
    allowed = t[: len(total)] >= (data.judged_s if data.judged_s is not None else -math.inf)
    first = int(np.argmax(np.where(allowed, total, total / 1e6)))
    return max(float(t[first]), 0.0), float(t[first]) + width * k * TICK_S
