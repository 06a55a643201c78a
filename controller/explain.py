"""One tick taken apart: what was measured and how old it was, which limits stood, and in sentences why power is what it is.

`ballast replay --tick N` prints all of it, `ballast explain TIME` the sentences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from _core import image as core
from controller.clock import utc_text

GROUPS = {
    "meter": "meter",
    "pcs": "PCS power and state",
    "pcs_ctl": "PCS setpoint read back",
    "pcs_life": "PCS heartbeat",
    "bms": "battery state",
    "bms_lim": "battery limits",
    "bms_temp": "battery temperature",
    "others": "PV and genset",
}
QUALITY = {core.Q_NONE: "never answered", core.Q_GOOD: "good", core.Q_BAD: "BAD"}
UNITS = {"w": "W", "va": "VA", "var": "var", "v": "V", "a": "A", "hz": "Hz", "c": "°C", "s": "s"}
SETPOINTS = {core.SP_HOLD: "hold the battery at", core.SP_BASE: "added to the target of grid import:"}
Row = Mapping[str, Any]


def kw(watts: float) -> str:
    """Power in kW with its sign; a word where it is not finite."""
    return f"{watts / 1e3:+.1f} kW" if math.isfinite(watts) else "unlimited" if watts > 0 else "not known"


def value(name: str, x: Any) -> str:
    """A value with the unit that its name ends with."""
    if not isinstance(x, float):
        return str(x)
    if math.isnan(x):
        return "not measured"
    if name.endswith("_w_per_s"):
        return f"{x:.6g} W/s"
    unit = UNITS.get(name.rpartition("_")[2], "")
    return f"{x:.9g}{' ' + unit if unit else ''}"


def _bms(row: Row, way: str) -> str:
    lim, bound = row["inp"]["bms_lim"], row["out"]["p_max_w" if way == "discharge" else "p_min_w"]
    return f"The BMS allows {lim[f'batt_i_{way}_max_a']:.1f} A of {way} at {lim['batt_v']:.1f} V; that bounds the battery to {kw(bound)}."


def _soc(row: Row) -> str:
    return f"State of charge {100 * row['out']['soc']:.2f} %"


def _meter_age(row: Row) -> str:
    meter = row["inp"]["meter"]["g"]
    if not meter["t_ns"]:
        return "The meter has never answered: power goes to 0."
    return f"The meter's newest value is {(row['inp']['step_t_ns'] - meter['t_ns']) / 1e6:.0f} ms old (or stands still): power goes to 0."


def _hold(row: Row) -> str:
    slot = row["inp"]["slot"][row["out"]["slot"]]
    who = core.SLOT_NAMES[row["out"]["slot"]]
    left_s = (slot["lease_until_ns"] - row["inp"]["t_ns"]) / 1e9
    return f"The {who} holds the battery at {kw(slot['value_w'])} (command {slot['id']}, {left_s:.0f} s left); the load is not followed."


# What each limit did, with the numbers of the tick.
SENTENCES: dict[int, Callable[[Row], str]] = {
    core.LIM_RAMP: lambda r: (
        f"The reference {kw(r['out']['ref_w'])} moves toward its target {kw(r['out']['target_w'])} no faster than the ramp limit "
        f"({r['lim']['ramp_up_w_per_s']:g} W/s up, {r['lim']['ramp_down_w_per_s']:g} W/s down)."
    ),
    core.LIM_IMPORT: lambda r: f"Grid import may not pass {kw(r['lim']['import_limit_w'])}: the battery carries what the load is above it.",
    core.LIM_EXPORT: lambda r: f"Grid export may not pass {kw(r['lim']['export_limit_w'])}: the battery may not push more.",
    core.LIM_BILLING: lambda r: (
        f"At {r['inp']['billing_phase_s']:.0f} s of the billing window its energy is ahead of its share: import is held below the limit "
        f"of {kw(r['lim']['import_limit_w'])} until the window ends."
    ),
    core.LIM_FEEDER: lambda r: "The PCC breaker's rating bounds what grid may carry.",
    core.LIM_SOC_MIN: lambda r: f"{_soc(r)} is at its lower end {100 * r['lim']['soc_min']:.0f} %: discharge ends.",
    core.LIM_SOC_MAX: lambda r: f"{_soc(r)} is at its upper end {100 * r['lim']['soc_max']:.0f} %: charge ends.",
    core.LIM_TEMP: lambda r: (
        f"Battery temperature {r['inp']['bms_temp']['batt_temp_min_c']:.1f} to {r['inp']['bms_temp']['batt_temp_max_c']:.1f} °C "
        "reduces power."
    ),
    core.LIM_PCS_S: lambda r: f"The converter's rating bounds the battery to {kw(r['out']['p_min_w'])} .. {kw(r['out']['p_max_w'])}.",
    core.LIM_BMS_CHARGE: lambda r: _bms(r, "charge"),
    core.LIM_BMS_DISCHARGE: lambda r: _bms(r, "discharge"),
    core.LIM_BATT_V: lambda r: f"Battery voltage {r['inp']['bms_lim']['batt_v']:.1f} V is near its limit: power is reduced.",
    core.LIM_SLEW: lambda r: "The converter's command slew limit holds the command back.",
    core.LIM_METER_STALE: _meter_age,
    core.LIM_BMS_STALE: lambda r: "The BMS has not answered for too long: its limits count as 0.",
    core.LIM_HOLD: _hold,
    core.LIM_LEASE: lambda r: "The supervisor's lease has ended: the tighter of its last limits and the site's are in force.",
    core.LIM_FILTER: lambda r: (
        f"Model and readback of the PCS are {1e3 * r['out']['align_s']:+.1f} ms apart: the load is filtered with "
        f"{1e3 * r['out']['filter_s']:.0f} ms."
    ),
    core.LIM_DROOP: lambda r: (
        f"Frequency {r['inp']['meter']['f_hz']:.3f} Hz is outside the deadband: droop adds {kw(r['out']['droop_w'])}."
    ),
    core.LIM_MODE: lambda r: f"Mode {core.MODE_NAMES[r['out']['mode']]}: no power is asked for.",
    core.LIM_SITE_P: lambda r: (
        f"Site or supervisor allow {kw(r['lim']['p_charge_max_w'])} of charge and {kw(r['lim']['p_discharge_max_w'])} of discharge."
    ),
    core.LIM_OPERATOR: lambda r: (
        f"An operator's limit is the tightest: import {kw(r['lim']['import_limit_w'])}, export {kw(r['lim']['export_limit_w'])}, "
        f"charge {kw(r['lim']['p_charge_max_w'])}, discharge {kw(r['lim']['p_discharge_max_w'])}, state of charge "
        f"{100 * r['lim']['soc_min']:.0f} to {100 * r['lim']['soc_max']:.0f} %."
    ),
    core.LIM_NOT_HELD: lambda r: (
        f"Battery or converter are at their end ({kw(r['out']['p_min_w'])} .. {kw(r['out']['p_max_w'])}): grid import moves faster than "
        f"the ramp limit; {r['out']['not_held_s']:.2f} s so far."
    ),
}  # fmt: skip


def limits(row: Row) -> list[tuple[str, str]]:
    """(name, sentence) of each active limit."""
    bits = row["out"]["limits_active"]
    found = []
    for bit, (name, words) in core.LIMIT_TEXT.items():
        if bits & bit:
            found.append((name, SENTENCES[bit](row) if bit in SENTENCES else words))
    return found


def alarms(row: Row) -> list[tuple[str, str]]:
    """(name, words) of each alarm that stands."""
    return [(name, words) for bit, (name, words) in core.ALARM_TEXT.items() if row["out"]["alarms"] & bit]


def sentences(row: Row, t_s: float | None, wall_s: float | None) -> list[str]:
    """Why power is what it is in this tick, for a person."""
    out = row["out"]
    when = f"tick {row['tick']}"
    when += f", {t_s:.3f} s from the record's start" if t_s is not None else ""
    when += f", {utc_text(wall_s)}" if wall_s is not None else ""
    mode = core.MODE_NAMES[out["mode"]]
    does = "discharge" if out["p_cmd_w"] > 0 else "charge" if out["p_cmd_w"] < 0 else "neither charge nor discharge"
    lines = [f"{when}: mode {mode}. The battery was asked for {kw(out['p_cmd_w'])} ({does})."]
    if not out["gate"]:
        lines.append("The command did not leave: the start sequence has not proved the devices yet.")
    if mode == "STANDBY":
        lines.append(f"The start sequence is {core.START_NAMES[out['start_step']]}.")
    if mode == "STOP":
        parked = "An operator has parked the site: 0 W, and the PCS in standby, until it is released."
        lines.append("Control was asked to stop." if row["inp"]["stop"] or not row["inp"]["park"] else parked)
    if mode == "GRID" and not out["limits_active"] & (core.LIM_HOLD | core.LIM_METER_STALE):
        follow = f"Load {kw(out['load_w'])} minus the reference of grid import {kw(out['ref_w'])}"
        window = f"the window that the devices leave is {kw(out['p_min_w'])} .. {kw(out['p_max_w'])}"
        lines.append(f"{follow} leaves {kw(out['load_w'] - out['ref_w'])}; {window}.")
    found = limits(row)
    lines += [f"- {name}: {words}" for name, words in found]
    if not found:
        lines.append("No limit was active: the battery carried all that the load was off the reference.")
    lines += [f"! alarm {name}: {words}" for name, words in alarms(row)]
    return lines


def taken_apart(row: Row, t_s: float | None, wall_s: float | None) -> list[str]:
    """Inputs with ages, setpoints, limits in force, sentences, outputs."""
    inp, lim, out = row["inp"], row["lim"], row["out"]
    step_ms, command_ms = ((inp[key] - inp["t_ns"]) / 1e6 for key in ("step_t_ns", "command_t_ns"))
    times = f"woke {row['wake_late_ns'] / 1e3:.1f} us late; stepped {step_ms:.3f} ms after the tick; command's last bit {command_ms:.3f} ms"
    lines = [*sentences(row, t_s, wall_s), "", times, "inputs:"]
    for name, words in GROUPS.items():
        group = inp[name]
        lines.append(f"  {name} ({words}): {_age(group['g'], inp['step_t_ns'])}")
        if group["g"]["count"]:
            lines += [f"    {key:<26} {value(key, x)}" for key, x in group.items() if key != "g"]
    phase = value("_s", inp["billing_phase_s"])
    lines.append(f"  park {inp['park']}, latched alarms {inp['latched']:#x}, revision {inp['site_rev']} of the settings")
    lines.append(f"  verified {inp['verified']}, stop {inp['stop']}, reset edges {inp['reset']}, billing phase {phase}")
    lines.append("setpoint slots:")
    for name, slot in zip(core.SLOT_NAMES, inp["slot"], strict=True):
        left_s = (slot["lease_until_ns"] - inp["t_ns"]) / 1e9
        text = f"{SETPOINTS.get(slot['kind'], '')} {kw(slot['value_w'])}; command {slot['id']}, lease {left_s:+.1f} s"
        lines.append(f"  {name:<10} {text if slot['kind'] != core.SP_NONE else 'empty'}")
    lines.append(f"limits in force (lease {(lim['lease_until_ns'] - inp['step_t_ns']) / 1e9:+.1f} s):")
    lines += [f"  {key:<28} {value(key, x)}" for key, x in lim.items() if key != "lease_until_ns"]
    lines.append("outputs:")
    lines += [f"  {key:<28} {value(key, x)}" for key, x in out.items() if key not in ("limits_active", "alarms", "mode")]
    lines.append(f"  {'limits_active':<28} {', '.join(n for n, _ in limits(row)) or '-'}")
    lines.append(f"  {'alarms':<28} {', '.join(n for n, _ in alarms(row)) or '-'}")
    return lines


def _age(group: Row, step_ns: int) -> str:
    if not group["count"]:
        return "never answered"
    age_ms = (step_ns - group["t_ns"]) / 1e6
    ago_ms = (step_ns - group["rx_ns"]) / 1e6
    return f"{QUALITY[group['quality']]}, {age_ms:.2f} ms old, answer complete {ago_ms:.2f} ms ago, {group['count']} answers"
