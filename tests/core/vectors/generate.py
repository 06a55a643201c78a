"""python -m tests.core.vectors.generate [--write]: the golden vectors again, from the scenarios below.

Shows what would differ from the files (exit code 1 where something does); writes only with --write. Look at every line of that diff
before you write: it is a change of what the cabinet does.
"""

from __future__ import annotations

import csv
import difflib
import io
import sys
from collections.abc import Callable, Iterator

from _core.kernel import Kernel

from bench.rig import Rig
from tests.core.vectors.play import EXPECTED, HERE, Vector, play, start

Row = dict[str, float | str]
Scenario = tuple[str, dict[str, float], dict[str, float], Callable[[Rig], Iterator[Row]]]


def load_step(r: Rig) -> Iterator[Row]:
    for k in range(60):
        yield {"load_w": 400e3 if k < 5 else 430e3 if k < 30 else 380e3}


def ramp(r: Rig) -> Iterator[Row]:
    for k in range(120):
        yield {"slot.1.kind": 2, "slot.1.value_w": 0.0 if k < 5 else 500.0 if k < 60 else -500.0, "slot.1.lease_until_ns": 1 << 53}


def hold(r: Rig) -> Iterator[Row]:
    for k in range(100):
        row: Row = {"load_w": 400e3 if k < 50 else 405e3, "slot.0.value_w": 400.0 if k < 40 else 0.0, "slot.0.lease_until_ns": 1 << 53}
        yield row | {"slot.0.kind": 1 if 5 <= k < 60 else 0}


def bms_limit(r: Rig) -> Iterator[Row]:
    for k in range(70):
        amps = 312.5 if k < 15 or k >= 40 else 0.0 if k < 30 else 20.0
        yield {"load_w": 400e3 if k < 5 else 440e3, "bms_lim.batt_i_discharge_max_a": amps}


def meter_loss(r: Rig) -> Iterator[Row]:
    for k in range(120):
        yield {"load_w": 400e3 if k < 5 else 420e3, "stale": "meter" if 10 <= k < 13 or 20 <= k < 40 or 60 <= k < 115 else ""}


def droop(r: Rig) -> Iterator[Row]:
    for k in range(110):
        yield {"meter.f_hz": 50.0 if k < 5 else 49.9 if k < 10 else 49.5 if k < 60 else 50.0}


def trip(r: Rig) -> Iterator[Row]:
    for k in range(130):
        yield {"load_w": 410e3, "meter.v2_v": 230.0 if k < 10 else 150.0 if k < 13 else 230.0 if k < 20 else 150.0 if k < 50 else 230.0}


def park(r: Rig) -> Iterator[Row]:
    for k in range(130):
        row: Row = {"slot.0.value_w": 400.0, "slot.0.lease_until_ns": 1 << 53, "slot.0.kind": 1}
        yield row | {"park": 1 if 40 <= k < 100 else 0, "limits.flags": 1 if 10 <= k < 20 else 0}


SCENARIOS: dict[str, Scenario] = {
    "load_step": ("The load rises by 30 kW and falls by 50 kW: the next command answers in full, the reference moves at the ramp.", {}, {},
                  load_step),
    "ramp": ("A schedule moves the target of grid import by 500 W up and down: 20 W a tick.", {}, {}, ramp),
    "hold": ("An operator holds 400 W, then 0, then lets go: up at the ramp, down at once, following from where it stands.", {}, {}, hold),
    "bms_limit": ("The BMS takes discharge back to 0 in mid flight, gives 20 A, gives all: each in the same command.", {}, {}, bms_limit),
    "meter_loss": ("The meter misses 3 answers (held), 20 (toward 0, and back in from there), then all (FAULT after 0.5 s here).",
                   {"meter_lost_s": 0.5}, {}, meter_loss),
    "droop": ("49.9 Hz is inside the deadband; 49.5 Hz asks for 30 kW, 90 % of it within 0.5 s; the ramp does not apply.", {}, {}, droop),
    "park": ("Parked at 400 W: down at the ramp, standby is asked while the converter runs; released, it starts as ever. Before that an "
             "operator's limit binds for ten ticks.", {"has_pcs_life": 0}, {}, park),
    "trip": ("Undervoltage of one phase: 30 ms are ridden through, 100 ms trip; back through the start after 0.3 s of good grid.",
             {"enter_service_delay_s": 0.3, "has_pcs_life": 0}, {}, trip),
}  # fmt: skip


def cells(rows: list[Row]) -> list[dict[str, str]]:
    """Rows as text; what did not change is left empty."""
    last: Row = {}
    out = []
    for row in rows:
        out.append(
            {k: "" if k != "stale" and last.get(k) == x else f"{x:.15g}" if isinstance(x, float) else str(x) for k, x in row.items()}
        )
        last |= row
    return out


def record(scenario: Scenario) -> Vector:
    """Inputs from the closed loop with the rig's converter, rounded to the watt a meter shows; what the kernel answers to those."""
    text, site, limits, rows = scenario
    v = Vector([text], dict(site), dict(limits))
    r = start(v)
    seen: list[Row] = []
    for row in rows(r):
        load = row.pop("load_w", None)
        r.stale = set(str(row.get("stale", "")).split("+")) - {""}
        for path, x in row.items():
            if path != "stale":
                where = r.lim if path.startswith("limits.") else r.inp
                *way, last = path.removeprefix("limits.").split(".")
                for step in way:
                    where = where[int(step)] if isinstance(where, list) else where[step]
                where[last] = type(where[last])(x)
        r.step(1, load_w=None if load is None else float(load))
        plant = {"meter.grid_p_w": round(r.inp["meter"]["grid_p_w"]), "pcs.batt_p_w": round(r.inp["pcs"]["batt_p_w"])}
        seen.append({"tick": len(seen)} | row | plant | {"pcs.pcs_state": int(r.inp["pcs"]["pcs_state"])})
    v.inputs = cells(seen)
    v.expected = play(v, Kernel)
    return v


def text_of(v: Vector) -> str:
    f = io.StringIO()
    for line in v.text:
        f.write(f"# {line}\n")
    for word, what in (("site", v.site), ("limits", v.limits)):
        if what:
            f.write(f"#{word} " + " ".join(f"{k}={x:g}" for k, x in what.items()) + "\n")
    w = csv.DictWriter(f, [*v.inputs[0], "|", *EXPECTED], lineterminator="\n")
    w.writeheader()
    for a, b in zip(v.inputs, v.expected, strict=True):
        w.writerow(a | {"|": "|"} | b)
    return f.getvalue()


def main() -> int:
    changed = False
    for name, scenario in SCENARIOS.items():
        path = HERE / f"{name}.csv"
        old, new = path.read_text() if path.exists() else "", text_of(record(scenario))
        if old != new:
            changed = True
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(path.name), "now", n=1))
            if "--write" in sys.argv[1:]:
                path.write_text(new)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
