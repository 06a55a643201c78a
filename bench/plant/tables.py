"""Physical tables from data/*.csv (sources and licences stand in the files' heads)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"
Array = NDArray[np.float64]


def _rows(name: str) -> list[dict[str, str]]:
    with open(DATA / name) as f:
        return list(csv.DictReader(line for line in f if not line.startswith("#")))


def cell_ocv() -> Array:
    """Open-circuit voltage of one cell, V, at 201 even SoC points from 0 to 1."""
    return np.array([float(r["ocv_v"]) for r in _rows("lfp_us26650_ocv.csv")])


def cell_resistance() -> tuple[Array, Array]:
    """Temperatures, degC [4], and resistance of one cell, ohm [2 (charge, discharge), 4, 11 even SoC points]."""
    rows = _rows("lfp_us26650_rint.csv")
    temps = sorted({float(r["temp_c"]) for r in rows})
    table = np.zeros((2, len(temps), 11))
    for r in rows:
        table[int(r["dir"] == "discharge"), temps.index(float(r["temp_c"])), round(float(r["soc"]) * 10)] = float(
            r["r_ohm"]
        )
    return np.array(temps), table


def converter_loss(points: int) -> Array:
    """Loss / rating [2 (charge, discharge), points] over even AC loads 0 to 1 pu.

    Discharge: AC out = eff * DC, so loss = load / eff - load; charge: DC = eff * AC, so loss = load * (1 - eff). At
    load 0 the loss is 0.
    """
    rows = _rows("sinamics_s120_efficiency.csv")
    load = np.array([float(r["load_pu"]) for r in rows])
    eff = {k: np.array([float(r[f"eff_{k}"]) for r in rows]) for k in ("charge", "discharge")}
    out = np.zeros_like(load)
    out[1:] = load[1:] / eff["discharge"][1:] - load[1:]
    even = np.linspace(0, 1, points)
    return np.array([np.interp(even, load, load * (1 - eff["charge"])), np.interp(even, load, out)])
