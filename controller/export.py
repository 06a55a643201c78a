"""`ballast export`: a record as COMTRADE (IEEE C37.111-2013), CSV or Parquet.

Analog channels carry the value of every `every`-th tick as it stands, without a filter; a status channel is 1 where it
was 1 in any tick since the one before, so that no alarm falls between two rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from _core import image as core
from controller.clock import utc
from controller.signals import Signal

PERIOD_S = 0.01
NEVER_US = 0xFFFFFFFF  # the timestamp field of a COMTRADE sample has 32 bits
FAULTS = (core.MODE_FAULT, core.MODE_TRIP)
CHUNK = 100_000


class ExportError(Exception):
    """A table that this format cannot hold, or a package that is missing; the message says what to do."""


@dataclass
class Table:
    """Channels with their values, one row a (chosen) tick. `t_ns`: since the first row; `wall_s`: of the first row."""

    station: str
    device: str
    signals: list[Signal]
    ticks: np.ndarray
    t_ns: np.ndarray
    columns: list[np.ndarray]
    wall_s: float
    trigger_ns: int  # the first FAULT or TRIP; 0 where there is none
    f_hz: float
    every: int


def table(
    rows: np.ndarray, signals: Sequence[Signal], *, station: str, wall_s: float, f_hz: float, every: int = 1, device: str = "ballast"
) -> Table:
    """Rows of a record as a table. `wall_s`: wall time of the first."""
    t_ns = rows["inp"]["t_ns"] - rows["inp"]["t_ns"][0]
    mode = rows["out"]["mode"]
    faults = np.flatnonzero(np.isin(mode[1:], FAULTS) & (mode[1:] != mode[:-1])) + 1
    columns = []
    for signal in signals:
        values = signal.values(rows)
        columns.append(np.logical_or.reduceat(values, _blocks(len(rows), every)) if signal.status else values[::every])
    trigger = int(t_ns[faults[0]]) if len(faults) else 0
    return Table(station, device, list(signals), rows["tick"][::every], t_ns[::every], columns, wall_s, trigger, f_hz, every)


def _blocks(n: int, every: int) -> np.ndarray:
    """First tick of each row's block: a row stands for the ticks after the row before, up to its own."""
    return np.concatenate([[0], np.arange(1, n - (n - 1) % every, every)]) if n > 1 else np.zeros(1, int)


# ---------------------------------------------------------------- CSV


def csv(data: Table, path: Path) -> list[Path]:
    """One file; units stand in the header, powers in full precision. The first columns are tick, seconds and UTC."""
    with _whole(path) as new, open(new, "w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(["tick", "t_s [s]", "utc", *(s.header for s in data.signals)]) + "\n")
        texts: list[Callable[[int], str]] = [_text(c, s.status) for c, s in zip(data.columns, data.signals, strict=True)]
        for i, (tick, t_ns) in enumerate(zip(data.ticks.tolist(), data.t_ns.tolist(), strict=True)):
            at = utc(data.wall_s + t_ns / 1e9)
            cells = [str(tick), f"{t_ns / 1e9:.6f}", at.isoformat(timespec="milliseconds"), *(text(i) for text in texts)]
            file.write(",".join(cells) + "\n")
    return [path]


def _text(column: np.ndarray, status: bool) -> Callable[[int], str]:
    """How a cell is written: shortest digits that give the same double back; empty where not measured."""
    values = column.tolist()
    if status:
        return lambda i: "1" if values[i] else "0"
    return lambda i: "" if values[i] != values[i] else repr(values[i])


# ---------------------------------------------------------------- Parquet


def parquet(data: Table, path: Path) -> list[Path]:
    """One file, a column a signal with its unit in the field's metadata. Raises ExportError without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ExportError("Parquet needs pyarrow: pip install 'ballast-controller[export]'") from None
    stamps = pa.timestamp("ns", "UTC")
    fields = [pa.field("tick", pa.int64()), pa.field("t_s", pa.float64(), metadata={"unit": "s"}), pa.field("utc", stamps)]
    began_ns = round(data.wall_s * 1e6) * 1000
    arrays = [pa.array(data.ticks), pa.array(data.t_ns / 1e9), pa.array(began_ns + data.t_ns).cast(stamps)]
    for signal, column in zip(data.signals, data.columns, strict=True):
        kind = pa.bool_() if signal.status else pa.float64()
        meta = {"unit": signal.unit, "phase": signal.phase, "words": signal.words}
        fields.append(pa.field(signal.name, kind, metadata={k: v for k, v in meta.items() if v}))
        arrays.append(pa.array(column, kind))
    about = {"station": data.station, "device": data.device, "every": str(data.every)}
    with _whole(path) as new:
        pq.write_table(pa.table(arrays, schema=pa.schema(fields, metadata=about)), new, compression="zstd")
    return [path]


# ---------------------------------------------------------------- COMTRADE


def comtrade(data: Table, path: Path) -> list[Path]:
    """FILE.cfg and FILE.dat, revision 2013, FLOAT32 (values in their units; missing ones are NaN, as its clause on
    missing data asks of floats). Raises ExportError for what 32-bit time cannot hold.
    """
    cfg, dat = path.with_suffix(".cfg"), path.with_suffix(".dat")
    analog = [(s, c.astype("<f4")) for s, c in zip(data.signals, data.columns, strict=True) if not s.status]
    status = [(s, c) for s, c in zip(data.signals, data.columns, strict=True) if s.status]
    unit_us = 1
    while int(data.t_ns[-1]) // 1000 // unit_us >= NEVER_US:
        unit_us *= 10
    lines = [f"{_clean(data.station)},{_clean(data.device)},2013", f"{len(analog) + len(status)},{len(analog)}A,{len(status)}D"]
    for i, (signal, values) in enumerate(analog, 1):
        good = values[np.isfinite(values)]
        low, high = (good.min(), good.max()) if len(good) else (0.0, 0.0)
        lines.append(f"{i},{_clean(signal.name)},{signal.phase},,{signal.unit or 'NONE'},1,0,0,{low:.9g},{high:.9g},1,1,P")
    lines += [f"{i},{_clean(signal.name)},,,0" for i, (signal, _) in enumerate(status, 1)]
    n = len(data.ticks)
    lines += [f"{data.f_hz:g}", *_rate(data, n), _stamp(data.wall_s, 0), _stamp(data.wall_s, data.trigger_ns)]
    # Time in UTC; how well the machine's clock is set is not known to the record (code F), nor is a leap second (3).
    lines += ["FLOAT32", str(unit_us), "0,0", "F,3"]
    kinds = [("n", "<u4"), ("t", "<u4")] + [("a", "<f4", (len(analog),))] * bool(analog)
    words = (len(status) + 15) // 16
    kinds += [("d", "<u2", (words,))] * bool(words)
    samples = np.zeros(n, np.dtype(kinds))
    samples["n"], samples["t"] = np.arange(1, n + 1), data.t_ns // 1000 // unit_us
    for i, (_, values) in enumerate(analog):
        samples["a"][:, i] = values
    for i, (_, values) in enumerate(status):
        samples["d"][:, i // 16] |= values.astype("<u2") << np.uint16(i % 16)
    with _whole(dat) as new:
        samples.tofile(new)
    with _whole(cfg) as new:
        new.write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    return [cfg, dat]


def _rate(data: Table, n: int) -> list[str]:
    """One sampling rate where no tick is missing, else none: then the timestamps count."""
    period_ns = round(PERIOD_S * 1e9) * data.every
    if n > 1 and np.all(np.diff(data.t_ns) == period_ns):
        return ["1", f"{1e9 / period_ns:g},{n}"]
    return ["0", f"0,{n}"]


def _stamp(wall_s: float, t_ns: int) -> str:
    return utc(wall_s + t_ns / 1e9).strftime("%d/%m/%Y,%H:%M:%S.%f")


def _clean(text: str) -> str:
    """Commas and line ends separate fields there."""
    return "".join(" " if c in ",\r\n" else c for c in text)[:64]


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file that is there in full or not at all."""
    new = path.with_name(path.name + ".new")
    try:
        yield new
        new.replace(path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


FORMATS: dict[str, Callable[[Table, Path], list[Path]]] = {"comtrade": comtrade, "csv": csv, "parquet": parquet}
