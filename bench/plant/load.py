"""Load of the virtual site: measured traces from CSV, and two generators.

A load is (t_ns, p_w, edge_ns): value k stands from t_ns[k] (from plant start) on and is reached in a straight line
within edge_ns[k]. The plant evaluates it exactly; nothing here runs while the plant runs.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAX_PROBLEMS = 20
TICK_NS = 10_000_000
GAP_PERIODS = 3.0
RUN_COLUMNS = ("run", "segment")


class TraceError(ValueError):
    """A trace that cannot be used. `problems`: one line each, naming file, line, column, value, reason and remedy."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Load:
    """A load, ready for the plant. repeat_ns: period of repetition, 0: ends with its last value. duration_s: length
    of one pass.
    """

    t_ns: NDArray[np.int64]
    p_w: NDArray[np.float64]
    edge_ns: NDArray[np.int64]
    repeat_ns: int
    duration_s: float
    name: str


def _finish(
    t_s: NDArray[np.float64],
    p_w: NDArray[np.float64],
    end_s: float,
    edge: str,
    repeat: bool,
    name: str,
    phase_s: Phases,
) -> Load:
    """Times plus phases to ns; edges cut at the next value so that pieces never overlap."""
    t_ns = np.round((t_s + phase_s) * 1e9).astype(np.int64)
    end_ns = round(end_s * 1e9)
    gap_ns = np.diff(np.append(t_ns, max(end_ns, int(t_ns[-1]) + 1)))
    if edge == "linear":
        edge_ns = gap_ns
    else:
        edge_ns = np.minimum(round(0 if edge == "step" else float(edge) * 1e6), gap_ns)
    if repeat and end_ns <= t_ns[-1]:
        end_ns = int(t_ns[-1]) + 1
    return Load(t_ns, np.asarray(p_w, np.float64), edge_ns.astype(np.int64), end_ns if repeat else 0, end_s, name)


Phases = NDArray[np.float64] | float


def check_edge(edge: str) -> str | None:
    """None when `edge` is step, linear or milliseconds >= 0; else what is wrong."""
    if edge in ("step", "linear"):
        return None
    try:
        ms = float(edge)
    except ValueError:
        return f"edge {edge!r}: step, linear or a time in ms"
    return None if math.isfinite(ms) and 0 <= ms <= 60_000 else f"edge {edge!r}: 0 to 60000 ms"


# -- traces


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    return raw.decode("utf-8")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _choose(path: Path, header: list[str], rows: list[list[str]], column: str | None) -> str:
    """The power column: as named, else the only other numeric one."""
    if "t_s" not in header:
        raise TraceError(
            [f"{path}: line 1: no column t_s (has {', '.join(header)}): name the time column t_s, in seconds"]
        )
    if column is not None:
        if column not in header:
            raise TraceError(
                [f"{path}: line 1: no column {column!r}: choose one of {', '.join(h for h in header if h != 't_s')}"]
            )
        return column
    first = rows[0]
    numeric = [
        h for h, x in zip(header, first, strict=False) if h != "t_s" and h not in RUN_COLUMNS and _number(x) is not None
    ]
    if len(numeric) != 1:
        what = (
            f"{len(numeric)} numeric columns besides t_s ({', '.join(numeric)})"
            if numeric
            else "no numeric column besides t_s"
        )
        raise TraceError([f"{path}: {what}: name one as {path}:COLUMN"])
    return numeric[0]


def _column(path: Path, rows: list[list[str]], where: int, name: str, problems: list[str]) -> NDArray[np.float64]:
    """One column as floats; a bad cell is a problem and stands as NaN."""
    try:
        values = np.array([r[where] for r in rows], np.float64)
    except (ValueError, IndexError):
        values = np.full(len(rows), np.nan)
        for i, r in enumerate(rows):
            x = _number(r[where]) if where < len(r) else None
            values[i] = math.nan if x is None else x
    for i in np.flatnonzero(~np.isfinite(values))[: MAX_PROBLEMS + 1]:
        cell = rows[i][where].strip() if where < len(rows[i]) else ""
        why = "empty" if not cell else "not a finite number"
        problems.append(f"{path}: line {i + 2}: column {name}: {cell!r}: {why}: fill it in or remove the row")
    return values


def _joined(
    path: Path, t_s: NDArray[np.float64], runs: list[str] | None, problems: list[str]
) -> tuple[NDArray[np.float64], float]:
    """One rising time axis from 0, and the median period. Runs follow one another one period apart; other breaks are
    problems.
    """
    step = np.diff(t_s)
    same = np.ones(len(step), bool) if runs is None else np.array([a == b for a, b in itertools.pairwise(runs)])
    good = step[same & (step > 0)]
    period_s = float(np.median(good)) if len(good) else 1.0
    for i in np.flatnonzero(same & ~(step > 0) & np.isfinite(step)):
        how = "does not go on" if step[i] == 0 else "goes back"
        problems.append(
            f"{path}: line {i + 3}: column t_s: {t_s[i + 1]:g} after {t_s[i]:g}: time {how}: "
            f"sort the rows, or mark runs in a column named run or segment"
        )
    for i in np.flatnonzero(same & (step > GAP_PERIODS * period_s)):
        problems.append(
            f"{path}: line {i + 3}: column t_s: {t_s[i + 1]:g} after {t_s[i]:g}: a gap of {step[i]:g} s, "
            f"over {GAP_PERIODS:g} periods of {period_s:g} s: fill it, or mark runs in a column named run or segment"
        )
    return np.concatenate([[0.0], np.cumsum(np.where(same, step, period_s))]), period_s


def split_name(spec: str) -> tuple[Path, str | None]:
    """'FILE:COLUMN' or 'FILE' -> path and column. A file whose own name holds a colon wins."""
    if Path(spec).exists() or ":" not in spec:
        return Path(spec), None
    file, column = spec.rsplit(":", 1)
    return Path(file), column


def trace(spec: str, *, edge: str = "20", scale: float = 1.0, repeat: bool = True, seed: int = 1) -> Load:
    """Load from FILE[:COLUMN], CSV or gzipped CSV with a header. Raises TraceError with all problems at once (up to
    20).

    Each value starts a seeded phase in [0, 10 ms) after its time stamp, so that edges meet every part of the
    controller's tick; series faster than 100 ms get one common phase, which keeps their shape."""
    path, column = split_name(spec)
    try:
        rows = [r for r in csv.reader(io.StringIO(_text(path))) if r]
    except FileNotFoundError:
        raise TraceError([f"{path}: no such file"]) from None
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as e:
        raise TraceError([f"{path}: cannot be read as CSV or gzipped CSV: {e}"]) from None
    if len(rows) < 3:
        raise TraceError([f"{path}: a header and at least two rows are needed, found {len(rows)} lines"])
    header = [h.strip() for h in rows.pop(0)]
    name = _choose(path, header, rows, column)
    problems: list[str] = []
    t_s = _column(path, rows, header.index("t_s"), "t_s", problems)
    p_w = _column(path, rows, header.index(name), name, problems)
    run = next((c for c in RUN_COLUMNS if c in header), None)
    runs = [r[header.index(run)] if header.index(run) < len(r) else "" for r in rows] if run else None
    t_s, period_s = _joined(path, t_s, runs, problems)
    if problems:
        more = [f"{path}: and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise TraceError(problems[:MAX_PROBLEMS] + more)
    rng = np.random.default_rng([seed, 1])
    phase_s: Phases = rng.uniform(0, 0.01, len(t_s) if period_s >= 0.1 else 1)
    return _finish(t_s, p_w * scale, t_s[-1] + period_s + 0.01, edge, repeat, f"{path.name}:{name}", phase_s)


# -- generators


def constant(p_w: float) -> Load:
    """The same power for ever."""
    return Load(np.zeros(1, np.int64), np.array([float(p_w)]), np.zeros(1, np.int64), 0, math.inf, f"{p_w:g} W")


def steps(
    *,
    seed: int = 1,
    step_w: float = 25e3,
    mid_w: float = 300e3,
    hours: float = 1.0,
    scale: float = 1.0,
    walk_w: float = 0.0,
) -> Load:
    """Ideal steps of step_w (10 % of the PCS's rating), 80 to 160 ms apart, seeded: `--trace steps`.

    walk_w 0: a telegraph between mid_w +- step_w / 2; else a random walk in steps that stays within mid_w +- walk_w.
    Gaps are continuous, so the phase within a 10 ms tick is even. Repeats without a seam."""
    rng = np.random.default_rng([seed, 2])
    n = 2 * max(int(hours * 3600 / 0.12 / 2), 1)
    level: list[float] = [-0.5 if walk_w <= 0 else 0.0]
    if walk_w <= 0:
        level += [0.5, -0.5] * (n // 2)
    else:
        bound = max(int(walk_w / step_w), 1)
        for up in rng.random(n) < 0.5:
            x = level[-1]
            level.append(x + (1 if up else -1) if abs(x) < bound else x - math.copysign(1, x))
        while level[-1]:  # walk home, so that the lap ends where it began
            level.append(level[-1] - math.copysign(1, level[-1]))
    gaps_s = rng.uniform(0.08, 0.16, len(level) - 1)
    t_s = np.concatenate([[0.0], 0.1 * rng.uniform() + np.cumsum(gaps_s)])
    return _finish(t_s, (mid_w + step_w * np.array(level)) * scale, t_s[-1] + 0.12, "step", True, "steps", 0.0)


def _job(rng: np.random.Generator, length_s: float, scale_w: float) -> tuple[list[float], list[float]]:
    """One training job, shaped like the measured GPT-3 run of 512 H100 (pulses near 11 s; plateau, dip at the step's
    end, checkpoints).

    Returns times and powers at 0.1 to 2 s resolution. scale_w: power at full plateau."""
    t, out_t, out_w = 0.0, [], []
    until_checkpoint_s = rng.uniform(60, 120)
    while t < length_s:
        period = 11.0 + rng.normal(0, 0.25)
        top, dip = scale_w * rng.normal(1.0, 0.004), scale_w * rng.uniform(0.895, 0.925)
        # plateau, then the all-reduce at the step's end: a dip of about 1.5 s with a shoulder
        for at, w in (
            (0.0, top),
            (period * 0.55, top * 1.005),
            (period * 0.82, 0.5 * (top + dip)),
            (period * 0.85, dip),
            (period * 0.96, 0.97 * top),
        ):
            out_t.append(t + at)
            out_w.append(w)
        t += period
        until_checkpoint_s -= period
        if until_checkpoint_s <= 0:
            # Checkpoint or evaluation: power sits low for a while; sometimes the whole cluster falls within 2 s.
            deep = rng.random() < 0.3
            low, hold = (
                scale_w * (rng.uniform(0.69, 0.75) if deep else rng.uniform(0.85, 0.90)),
                rng.uniform(2, 4) if deep else rng.uniform(8, 16),
            )
            k = int(hold / 0.5)
            out_t += [t + 0.5 * i for i in range(k)]
            out_w += list(low * rng.normal(1, 0.003, k))
            t += 0.5 * k
            until_checkpoint_s = rng.uniform(90, 240)
    return out_t, out_w


def cluster(
    *,
    seed: int = 1,
    scale: float = 1.0,
    hours: float = 1.0,
    idle_w: float = 180e3,
    peak_w: float = 455e3,
    edge: str = "20",
) -> Load:
    """The built-in load of `ballast run`: a GPU cluster of some 450 kW, seeded, at least `hours` long, then repeating.

    Shaped after p1_train_h100x512_gpt3_run1_2s (MLPerf Training v4.0, Supermicro, Apache-2.0): 316 to 459 kW, pulses
    every 11 s, falls of 101 kW within 2 s. Jobs last 15 to 40 minutes; between them the cluster idles for 20 to 60 s
    and the next one starts node by node.
    """
    rng = np.random.default_rng([seed, 3])
    t, at, w = 0.0, [0.0], [peak_w]
    while t < hours * 3600:
        job_t, job_w = _job(rng, rng.uniform(900, 2400), peak_w * rng.uniform(0.985, 1.0))
        at += [t + x for x in job_t]
        w += job_w
        t = max(at[-1], t + job_t[-1]) + 1.0
        n = int(rng.uniform(20, 60) / 2)  # job over: idle within one sample
        at += [t + 2.0 * i for i in range(n)]
        w += list(idle_w * rng.normal(1, 0.01, n))
        t += 2.0 * n
        ramp = np.linspace(0.15, 0.95, 8) + rng.uniform(-0.04, 0.04, 8)  # the next one comes up node by node
        at += [t + 0.6 * i for i in range(8)]
        w += list(idle_w + ramp * (peak_w - idle_w))
        t += 0.6 * 8
    t_s, keep = np.unique(np.round(np.array(at), 3), return_index=True)
    p_w = np.array(w)[keep] * scale
    return _finish(t_s, p_w, t, edge, True, "cluster", rng.uniform(0, 0.01, len(t_s)))
