"""THE ONE TABLE OF FAULTS: what can go wrong, how it is noticed, what follows, and what a person does about it.

The kernel takes its reactions from here (masks of alarm bits, at import), the image its texts, the supervisor the ids of its events, and
`docs/faults.md` is made from it: python -m _core.faults > docs/faults.md

`debounce` names the setting, or says the constant of the kernel, that has to pass before a cause counts. `reaction` is what the kernel
does; "none": shown and told, power goes on.
`latching`: "person": only a reset by a person ends it; "auto": it ends by itself after a clean GRID,
at most three times an hour (docs/safety.md, "Faults and resets"), else by a person; "no": gone when its cause is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass

SEVERITIES = ("critical", "major", "minor")
REACTIONS = ("FAULT", "TRIP", "none")
LATCHINGS = ("person", "auto", "no")


@dataclass(frozen=True)
class Fault:
    """One row. `bit`: ALM_* of the kernel's alarms; 0 for what only supervisor, parent or console can see."""

    id: str
    bit: int
    text: str
    detected: str
    debounce: str
    severity: str
    reaction: str
    latching: str
    recovery: str


FAULTS: tuple[Fault, ...] = (
    Fault("meter_lost", 1 << 0, "the meter has not answered", "no believable value from the PCC meter", "control.meter_lost_s",
          "critical", "FAULT", "auto", "check the meter's supply, cable and address (see `ballast status`); `ballast reset`"),
    Fault("meter_frozen", 1 << 1, "the meter answers, but every value has stood still to the last bit",
          "all six values bit-identical from answer to answer", "control.frozen_s + control.meter_lost_s", "critical", "FAULT", "auto",
          "restart the meter or its gateway; `ballast reset`"),
    Fault("pcs_lost", 1 << 2, "the PCS has not answered", "no good answer of its power and state", "control.pcs_lost_s",
          "critical", "FAULT", "auto",
          "check the converter's supply, cable and address; it went to 0 W by its reversion timer; `ballast reset`"),
    Fault("pcs_fault", 1 << 3, "the PCS reports a fault or has stopped by itself", "state FAULT, or in GRID neither RUNNING nor THROTTLED",
          "none: the next tick", "critical", "FAULT", "auto", "read the converter's own log, clear its fault there; `ballast reset`"),
    Fault("pcs_not_following", 1 << 4, "the PCS takes no commands, or acknowledges them and its power does not follow",
          "mean of |readback - model| above control.follow_w; or it answers reads while no command gets through",
          "control.follow_s; control.pcs_lost_s", "critical", "FAULT", "auto",
          "look for a local limit, a wrong dead_time_s or tau_s, a dead power stage; `ballast reset`"),
    Fault("bms_lost", 1 << 5, "the BMS has not answered",
          "no good answer of state or limits; charge and discharge are 0 from the first bad one",
          "control.bms_lost_s", "critical", "FAULT", "auto", "check the BMS's supply, cable and address; `ballast reset`"),
    Fault("bms_fault", 1 << 6, "the BMS reports a fault or has opened its contactors", "state FAULT, or in GRID not CONNECTED",
          "none: the next tick", "critical", "FAULT", "auto", "read the BMS's own log, close the contactors; `ballast reset`"),
    Fault("identity", 1 << 7, "a device is not the one that was compiled: identity or scale factor differs",
          "identity and scale factors read again on each return of a device", "none: the next tick", "critical", "FAULT", "auto",
          "put the right device back, or start anew so that the new one is read (`ballast check`)"),
    Fault("grid_outside", 1 << 8, "grid voltage or frequency outside the window", "V or f beyond grid.v_min_pu .. f_max_hz", "grid.trip_s",
          "major", "TRIP", "no", "none: it returns by itself when the grid has been good for grid.enter_service_delay_s"),
    Fault("pcs_local", 1 << 9, "somebody holds the PCS in local control", "715.LocRemCtl", "none: the next tick",
          "major", "FAULT", "auto", "give the converter back to remote control at its panel; `ballast reset`"),
    Fault("reversion", 1 << 10, "the PCS lost its reversion timer",
          "704 read back: timer off, of another length, or not read for two of it", "none, or twice pcs.reversion_s",
          "critical", "FAULT", "auto", "find who else writes to the converter; `ballast reset`"),
    Fault("meter_sign", 1 << 11,
          "grid power moves the same way as battery power: the meter's sign or phase order is wrong",
          "d(grid)/d(battery) above +0.5 in single samples and in means of ten",
          "0.2 s of moves of 5 % of rating", "critical", "FAULT", "person",
          "turn the current transformers or the sign in the profile, then `ballast reset`"),
    Fault("internal", 1 << 12, "a value inside the kernel was not finite; power is 0", "the command was not finite at the gate",
          "none: the same tick", "critical", "FAULT", "auto", "keep the record (`ballast freeze`) and report it; `ballast reset`"),
    Fault("control_lost", 0, "the control process has ended or was halted; it is started again",
          "the parent holds it by pidfd; in the record its ticks begin anew", "0.6 of pcs.reversion_s for a halt", "critical", "none", "no",
          "none: it is started again, and adopts a live PCS; if it happens again, read the log"),
    Fault("supervisor_lost", 0, "the supervisor has ended; it is started again", "the parent holds it by pidfd", "none: at once",
          "minor", "none", "no", "none: the engine goes on with the limits it has; if it happens again, read the log"),
    Fault("parent_lost", 0, "the parent of the site's processes has ended: control ramps to 0 and leaves",
          "control is told of its death by the kernel",
          "none: at once", "critical", "none", "no", "start the site again (`ballast run`)"),
    Fault("device_lost", 0, "a device does not answer", "requests without an answer; asked again with growing waits",
          "the device's timeouts",
          "major", "none", "no", "check the device the text names; its role decides what else follows (meter_lost, pcs_lost, bms_lost)"),
    Fault("bus_lost", 0, "a port is gone", "its descriptor hung up", "none: at once", "major", "none", "no",
          "plug the adapter back in; the port is opened again by itself"),
    Fault("ticks_missed", 0, "ticks of 10 ms were missed", "the timer of the control thread", "one tick", "minor", "none", "no",
          "look at CPU load, priority and power saving of the machine (`ballast status`)"),
    Fault("disk", 0, "the disk refuses the record, the history or the audit trail", "a write failed", "none: at once",
          "minor", "none", "no", "free space or replace the disk; the loop goes on, and writing begins again by itself"),
    Fault("clock_jump", 0, "the wall clock was set", "its phase against the monotonic clock moved", "more than 60 s", "minor", "none", "no",
          "check time synchronisation; leases do not move, the billing window follows"),
    Fault("lease", 0, "the supervisor's lease has ended: the tighter of its last limits and the site's are in force",
          "Limits.lease_until_ns has passed",
          "3 s without a renewal", "minor", "none", "no", "none: the supervisor is started again; if it happens again, read the log"),
)  # fmt: skip

BY_ID: Mapping[str, Fault] = {row.id: row for row in FAULTS}


class FaultTableError(Exception):
    """The table contradicts itself or the contract; the text names every row."""


@dataclass(frozen=True)
class Masks:
    """What the kernel knows of the table: alarm bits by what follows from them."""

    fault: int
    trip: int
    person: int


def masks(rows: tuple[Fault, ...], alarms: Mapping[str, int]) -> Masks:
    """Masks of the kernel from the rows; `alarms`: every ALM_* of image.pxd by its name.

    Raises FaultTableError with every contradiction: unknown words, an id or a bit twice, a bit without a row or a row without a bit, a
    fault that waits for a person and leads nowhere."""
    wrong = []
    for row in rows:
        name = f"ALM_{row.id.upper()}"
        for what, value, known in (("severity", row.severity, SEVERITIES), ("reaction", row.reaction, REACTIONS),
                                   ("latching", row.latching, LATCHINGS)):  # fmt: skip
            if value not in known:
                wrong.append(f"{row.id}: {what} {value!r} is unknown; one of {', '.join(known)}")
        if row.bit and alarms.get(name) != row.bit:
            wrong.append(f"{row.id}: bit {row.bit:#x}, but image.pxd has {name} = {alarms.get(name, 'no such alarm')}")
        if not row.bit and (name in alarms or row.reaction != "none"):
            wrong.append(f"{row.id}: without a bit the kernel cannot react to it; write its bit, or reaction none")
        if row.reaction != "FAULT" and row.latching != "no":
            wrong.append(f"{row.id}: latching {row.latching} without a FAULT holds nothing; write no")
        if not all(astuple(row)[k] for k in (0, 2, 3, 4, 8)):
            wrong.append(f"{row.id}: an empty column")
    for column in ("id", "bit"):
        values = [getattr(row, column) for row in rows if getattr(row, column)]
        wrong += [f"{column} {v} stands {values.count(v)} times" for v in sorted(set(values)) if values.count(v) > 1]
    wrong += [f"{name} = {bit:#x} of image.pxd has no row" for name, bit in alarms.items() if bit not in {r.bit for r in rows}]
    if "ALM_INTERNAL" in alarms and not any(r.bit == alarms["ALM_INTERNAL"] and r.reaction == "FAULT" for r in rows):
        wrong.append("internal: only FAULT takes a state that is not finite out of GRID")
    if wrong:
        raise FaultTableError("_core/faults.py: " + "; ".join(wrong))
    return Masks(
        fault=sum(r.bit for r in rows if r.reaction == "FAULT"),
        trip=sum(r.bit for r in rows if r.reaction == "TRIP"),
        person=sum(r.bit for r in rows if r.latching == "person"),
    )


def table_hash(rows: tuple[Fault, ...] = FAULTS) -> str:
    """sha256 over what decides outcomes: bit, reaction and latching of each row."""
    text = "\n".join(f"{r.id} {r.bit} {r.reaction} {r.latching}" for r in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def markdown() -> str:
    """docs/faults.md."""
    lines = [
        "# Faults",
        "",
        "Made by `python -m _core.faults > docs/faults.md` from `_core/faults.py`, the one table that kernel, supervisor and this page",
        "share; a test holds them together. Rows with a bit are alarms of the kernel (`ballast status`, the record's",
        "`alarms`); the others are told by the supervisor or the parent.",
        "Every event in the audit trail carries the id in its column `command`.",
        "",
        "*Reaction*: FAULT and TRIP command 0 W (`docs/safety.md`); none: shown and told, power goes on.",
        "*Latching*: person: only `ballast reset` ends it; auto: ends by itself after a clean GRID, at most three times an hour, else by a",
        "person; no: gone when its cause is.",
        "",
        "| id | bit | what | noticed by | after | severity | reaction | latching | what to do |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in FAULTS:
        bit = str(r.bit.bit_length() - 1) if r.bit else ""
        cells = (f"`{r.id}`", bit, r.text, r.detected, r.debounce, r.severity, r.reaction, r.latching, r.recovery)
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
