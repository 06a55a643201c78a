"""Golden vectors: a CSV a scenario, a row a tick; how they are read and run.

The first lines are comments (`# text`) and settings (`#site key=value`, `#limits key=value`). Columns before `|` are inputs: a path into
the inputs (`meter.grid_p_w`), a limit (`limits.import_limit_w`) or `stale`, the groups that did not answer in this tick (`meter+bms`).
An empty cell keeps what stood before. Columns behind `|` are what the kernel has to answer, to the milliwatt. Every row is 10 ms after
the one before; the first follows on a GRID that has stood for 0.2 s at 400 kW with the battery at 0.

Make them again, on purpose only: python -m tests.core.vectors.generate (shows the diff), ... --write (writes it).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _core import image as im
from bench.rig import TICK_NS, Rig

HERE = Path(__file__).parent
EXPECTED = ("mode", "p_cmd_w", "ref_w", "load_w", "limits", "alarms")
FRESH = {"meter": 1_941_000, "pcs": -1_300_000, "pcs_ctl": 0, "bms": 0, "bms_lim": 0, "bms_temp": 0, "pcs_life": 0}


@dataclass
class Vector:
    text: list[str]
    site: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    inputs: list[dict[str, str]] = field(default_factory=list)
    expected: list[dict[str, str]] = field(default_factory=list)


def read(path: Path) -> Vector:
    v = Vector([])
    lines = path.read_text().splitlines()
    while lines[0].startswith("#"):
        line = lines.pop(0)
        for word, into in (("#site ", v.site), ("#limits ", v.limits)):
            if line.startswith(word):
                into |= {k: float(x) for k, x in (pair.split("=") for pair in line[len(word) :].split())}
                break
        else:
            v.text.append(line[1:].strip())
    for row in csv.DictReader(lines):
        names = list(row)
        bar = names.index("|")
        v.inputs.append({n: row[n] for n in names[:bar]})
        v.expected.append({n: row[n] for n in names[bar + 1 :]})
    return v


def words(mask: int, text: dict[int, tuple[str, str]]) -> str:
    return "+".join(name for bit, (name, _) in text.items() if mask & bit)


def answer(out: dict[str, Any]) -> dict[str, str]:
    """Outputs as the cells of a row."""
    return {
        "mode": im.MODE_NAMES[out["mode"]],
        **{k: f"{out[k]:.3f}".replace("-0.000", "0.000") for k in ("p_cmd_w", "ref_w", "load_w")},
        "limits": words(out["limits_active"], im.LIMIT_TEXT),
        "alarms": words(out["alarms"], im.ALARM_TEXT),
    }


def start(v: Vector) -> Rig:
    """GRID for 0.2 s at 400 kW."""
    r = Rig(load_w=400e3, **v.site)
    r.lim |= v.limits
    r.to_grid()
    r.step(20)
    return r


def play(v: Vector, make: Any) -> list[dict[str, str]]:
    """What `make(site)`, a Kernel or its twin, answers to the rows."""
    r = start(v)
    k = make(r.site)
    k.set_state(r.kernel.get_state())
    out = []
    for n, row in enumerate(v.inputs, r.tick + 1):
        t = n * TICK_NS
        r.inp.update(tick=n, t_ns=t, step_t_ns=t + 2_633_000, command_t_ns=t + 3_039_000)
        stale = row.get("stale", "").split("+")
        for name, after_ns in FRESH.items():
            if name not in stale:
                g = r.inp[name]["g"]
                g.update(t_ns=t + after_ns, rx_ns=t + after_ns, count=g["count"] + 1)
        for path, cell in row.items():
            if cell and path not in ("stale", "tick"):
                where: Any = r.lim if path.startswith("limits.") else r.inp
                *way, last = path.removeprefix("limits.").split(".")
                for step in way:
                    where = where[int(step)] if isinstance(where, list) else where[step]
                where[last] = type(where[last])(float(cell))
        out.append(answer(k.step(r.inp, r.lim)))
    return out
