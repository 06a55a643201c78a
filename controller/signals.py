"""The signals of a record as channels: name, unit, phase, and how a value comes out of a tick.

Analog channels are every number of Inputs, Limits and Outputs by its dotted name (`out.load_w`, `inp.meter.v1_v`);
status channels are the limits, the alarms and the modes, one bit each. `select` finds them by name, by the last part of
the name, or by a pattern with `*`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from _core import image as core

UNITS = {
    "w": "W", "va": "VA", "var": "var", "v": "V", "a": "A", "hz": "Hz", "c": "degC", "s": "s", "ns": "ns", "wh": "Wh", "pu": "pu",
}  # fmt: skip
PHASES = {"v1_v": "L1", "v2_v": "L2", "v3_v": "L3"}
DEFAULT = (
    "inp.meter.*_w", "inp.meter.q_var", "inp.meter.v?_v", "inp.meter.f_hz", "inp.pcs.batt_p_w", "inp.pcs.pcs_q_var", "inp.bms.soc",
    "inp.bms_lim.batt_v", "inp.bms_lim.batt_i_a", "inp.bms_temp.batt_temp_max_c", "out.p_cmd_w", "out.q_cmd_var", "out.load_w",
    "out.mean_w", "out.target_w", "out.ref_w", "out.grid_p_w", "out.batt_p_w", "out.droop_w", "out.p_min_w", "out.p_max_w",
    "lim.import_limit_w", "lim.export_limit_w", "limit_*", "alarm_*", "mode_*",
)  # fmt: skip


class SignalError(Exception):
    """A name that no signal has; the message lists the near ones."""


@dataclass(frozen=True)
class Signal:
    """One channel. `status`: its values are 0 and 1."""

    name: str
    unit: str
    phase: str = ""
    status: bool = False
    words: str = ""
    mask: int = 0  # of status channels: the bit; for modes the number

    def values(self, rows: np.ndarray) -> np.ndarray:
        """One value a tick: float64, or bool."""
        if not self.status:
            column = rows
            for part in self.name.split("."):
                column = column[:, int(part)] if part.isdigit() else column[part]
            return np.asarray(column, np.float64)
        kind = self.name.partition("_")[0]
        if kind == "mode":
            return np.asarray(rows["out"]["mode"] == self.mask)
        bits = rows["out"]["limits_active" if kind == "limit" else "alarms"]
        return np.asarray((bits & bits.dtype.type(self.mask)) != 0)

    @property
    def header(self) -> str:
        """Name and unit, for a table."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


def unit_of(name: str) -> str:
    """Unit by the name's last part; empty for numbers without one."""
    if name.endswith("_w_per_s"):
        return "W/s"
    if name.endswith((".soc", ".soh", ".soc_min", ".soc_max", ".soc_target")):
        return "pu"
    return UNITS.get(name.rpartition(".")[2].rpartition("_")[2], "")


def known() -> list[Signal]:
    """Every signal, in the order of the record."""
    analog = [Signal(name, unit_of(name), PHASES.get(name.rpartition(".")[2], "")) for name in _names(core.record_dtype(), "")]
    limits = [Signal(f"limit_{name}", "", status=True, words=words, mask=bit) for bit, (name, words) in core.LIMIT_TEXT.items()]
    alarms = [Signal(f"alarm_{name}", "", status=True, words=words, mask=bit) for bit, (name, words) in core.ALARM_TEXT.items()]
    modes = [Signal(f"mode_{name}", "", status=True, words=f"mode {name}", mask=i) for i, name in enumerate(core.MODE_NAMES)]
    return analog + limits + alarms + modes


def select(wanted: Sequence[str] = ()) -> list[Signal]:
    """Signals by name, last part or pattern, each once, in the order asked; none asked: the usual ones. Raises SignalError."""
    every = known()
    found: dict[str, Signal] = {}
    for word in wanted or DEFAULT:
        hits = [s for s in every if s.name == word] or [s for s in every if fnmatchcase(s.name, word) or s.name.rpartition(".")[2] == word]
        if not hits:
            near = [s.name for s in every if word.lower().strip("*") in s.name.lower()][:8]
            more = f"near: {', '.join(near)}" if near else "ballast export RECORD --list shows them"
            raise SignalError(f"no signal is called {word}; {more}")
        found |= {s.name: s for s in hits}
    return list(found.values())


def _names(dtype: np.dtype, prefix: str) -> list[str]:
    names = []
    for field in dtype.names or ():
        inner = dtype[field]
        name = f"{prefix}{field}"
        if field in ("pad", "limits_active", "alarms", "mode"):
            continue
        if inner.subdtype is not None:
            base, (n,) = inner.subdtype
            for i in range(n):
                names += _names(base, f"{name}.{i}.")
        elif inner.names:
            names += _names(inner, f"{name}.")
        else:
            names.append(name)
    return names
