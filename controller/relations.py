"""What must hold between settings: checked where they are loaded, so that no later code meets a site that contradicts
itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from controller.ports import real as real_port
from controller.problems import Problem
from controller.settings import MODEL_QUEUE_TICKS, RENEW_S, ROLES, TICK_S
from controller.site import Bus, Site, valid_name
from controller.walk import near

_SHEDS = ("none", "hardwired", "cluster_cap")
_PARITIES = ("E", "O", "N")
_SWITCHES = ("auto", "on", "inverted", "off")  # of hal.adapter
_LINE_UNITS = range(1, 248)  # Modbus over serial line V1.02, 2.2: 0 is a broadcast, 248 to 255 are reserved


def check(site: Site, raw: Mapping[str, Any], problems: list[Problem]) -> None:
    """Adds every broken relation between the settings that are right in themselves."""
    _names(site, problems)
    _buses(site, raw, problems)
    _devices(site, raw, problems)
    if not valid_name(str(site.values.get("site.name", "x"))):
        problems.append(_at(site, "site.name", "has other characters than letters, digits, - and _", 'write name = "hall-3"'))
    if site.values.get("load.shed", "none") not in _SHEDS:
        problems.append(_at(site, "load.shed", "is unknown", f"one of {', '.join(_SHEDS)}"))
    _powers(site, problems)
    _orders(site, problems)
    _times(site, problems)


def _at(site: Site, key: str, why: str, remedy: str) -> Problem:
    return Problem(site.file, key, site.values.get(key), why, remedy)


def _num(site: Site, key: str) -> float:
    """The setting; NaN, which breaks no relation, where it has an error of its own."""
    return float(site.values.get(key, math.nan))


def _powers(site: Site, problems: list[Problem]) -> None:
    limit, feeder, rated = _num(site, "grid.import_limit_w"), _num(site, "grid.feeder_w"), _num(site, "pcs.s_rated_va")
    if _num(site, "grid.export_limit_w") > limit:
        problems.append(_at(site, "grid.export_limit_w", f"is above import_limit_w = {limit:g}", f"write {limit:g} or less"))
    if limit > feeder:
        problems.append(_at(site, "grid.import_limit_w", f"is above feeder_w = {feeder:g}", f"write {feeder:g} or less"))
    if _num(site, "pcs.p_max_w") > rated:
        problems.append(_at(site, "pcs.p_max_w", f"is above s_rated_va = {rated:g}", f"write {rated:g} or less"))
    if _num(site, "load.peak_w") > feeder and site.values.get("load.shed") == "none":
        why = f"is above feeder_w = {feeder:g}: when control is lost the battery goes to 0 W and the breaker opens"
        remedy = (
            'wire a load shed and write load.shed = "hardwired", cap the cluster and write load.shed = "cluster_cap", or lower the peak'
        )
        problems.append(_at(site, "load.peak_w", why, remedy))


def _orders(site: Site, problems: list[Problem]) -> None:
    """Pairs of settings of which the first is the smaller."""
    for low, high in (
        ("battery.soc_min", "battery.soc_target"),
        ("battery.soc_target", "battery.soc_max"),
        ("battery.temp_min_c", "battery.temp_max_c"),
        ("grid.f_min_hz", "site.f_nom_hz"),
        ("site.f_nom_hz", "grid.f_max_hz"),
        ("grid.v_min_pu", "grid.v_max_pu"),
        ("control.mean_min_s", "control.mean_max_s"),
        ("control.meter_hold_s", "control.meter_lost_s"),
        ("control.volt_deadband_pu", "control.volt_full_pu"),
    ):
        a, b = _num(site, low), _num(site, high)
        if a > b or (a == b and low != "control.mean_min_s"):
            problems.append(_at(site, low, f"is not below {high} = {b:g}", f"write {low.partition('.')[2]} below it"))
    room = _num(site, "battery.temp_max_c") - _num(site, "battery.temp_min_c")
    if 0 < room < 2 * _num(site, "battery.temp_taper_k"):
        why = f"leaves no full power within {room:g} K"
        problems.append(_at(site, "battery.temp_taper_k", why, f"write {room / 4:g} or less"))
    low_v, high_v = _num(site, "battery.v_min_v"), _num(site, "battery.v_max_v")
    if high_v and low_v >= high_v:
        problems.append(_at(site, "battery.v_min_v", f"is not below battery.v_max_v = {high_v:g}", "write it below"))


def _times(site: Site, problems: list[Problem]) -> None:
    reversion_s = _num(site, "pcs.reversion_s")
    if reversion_s < 3 * RENEW_S:
        why = f"is under three renewals ({RENEW_S:g} s apart): one lost frame would let the converter fall to 0 W"
        problems.append(_at(site, "pcs.reversion_s", why, f"write reversion_s = {3 * RENEW_S:g} or more"))
    if _num(site, "pcs.dead_time_s") > (MODEL_QUEUE_TICKS - 1) * TICK_S:
        why = f"is more than {MODEL_QUEUE_TICKS - 1} ticks, the longest the model of the converter can look back"
        problems.append(_at(site, "pcs.dead_time_s", why, "such a converter cannot be commanded every tick"))
    if 0 < _num(site, "control.frozen_s") <= _num(site, "control.meter_hold_s"):
        why = "is not above control.meter_hold_s"
        problems.append(_at(site, "control.frozen_s", why, "write 0 (off), or a second and more"))
    window = _num(site, "grid.billing_window_s")
    if window and (window < 60 or 3600 % window):
        remedy = "write 900, 1800 or 3600; 0: no window"
        problems.append(_at(site, "grid.billing_window_s", "does not divide the hour", remedy))


def _names(site: Site, problems: list[Problem]) -> None:
    for array, names in (("bus", [b.name for b in site.buses]), ("device", [d.name for d in site.devices])):
        for name, count in Counter(names).items():
            if count > 1:
                problems.append(Problem(site.file, f"{array}.{name}", None, f"this name stands {count} times", "give each its own"))
            if not valid_name(name):
                remedy = "letters, digits, - and _"
                problems.append(Problem(site.file, f"{array}.name", name, "has characters that a name cannot have", remedy))


def _buses(site: Site, raw: Mapping[str, Any], problems: list[Problem]) -> None:
    ports: dict[str, str] = {}
    for bus in site.buses:
        key = f"bus.{bus.name}"
        if bus.parity not in _PARITIES:
            problems.append(Problem(site.file, f"{key}.parity", bus.parity, "is unknown", 'write "E", "O" or "N"'))
        _foreign_keys(site, bus, raw, problems)
        _direction(site, bus, problems)
        if bus.virtual:
            continue
        real = _real_port(site, bus, problems)
        if real in ports:
            remedy = "put its devices on that bus" if bus.tcp else "each bus has its own adapter"
            problems.append(Problem(site.file, f"{key}.port", bus.port, f"is the port of bus {ports[real]} too", remedy))
        ports.setdefault(real, bus.name)
    kinds = {bus.virtual for bus in site.buses}
    if len(kinds) == 2:
        first = next(bus for bus in site.buses if bus.virtual)
        why = "is virtual while other buses are real: the virtual cabinet is all or nothing"
        remedy = 'write a port, or "virtual", "virtual-tcp", "virtual-can" for all'
        problems.append(Problem(site.file, f"bus.{first.name}.port", first.port, why, remedy))


def _direction(site: Site, bus: Bus, problems: list[Problem]) -> None:
    """Who switches the RS-485 driver, and whether it lets go of the line before a device answers."""
    key = f"bus.{bus.name}.rs485"
    if bus.rs485 not in _SWITCHES:
        problems.append(Problem(site.file, key, bus.rs485, "is unknown", f"one of {', '.join(_SWITCHES)}"))
        return
    if bus.rs485 not in ("on", "inverted"):
        why = f"means nothing while {key} is {bus.rs485!r}: then the port's driver does not switch"
        remedy = 'leave it out, or write rs485 = "on"'
        given = {name: value for name in ("rs485_before_ms", "rs485_after_ms") if (value := getattr(bus, name))}
        problems += [Problem(site.file, f"bus.{bus.name}.{name}", value, why, remedy) for name, value in given.items()]
        return
    t35_ms = 1e3 * bus.t35_s
    if bus.rs485_after_ms >= t35_ms:
        why = f"holds the line for longer than the t3.5 of {t35_ms:.2f} ms after which a device may answer"
        most = f"write {math.ceil(t35_ms) - 1} or less"
        problems.append(Problem(site.file, f"bus.{bus.name}.rs485_after_ms", bus.rs485_after_ms, why, most))


def _foreign_keys(site: Site, bus: Bus, raw: Mapping[str, Any], problems: list[Problem]) -> None:
    """What only the other kind of bus has."""
    kind = "CAN" if bus.can else "a TCP connection" if bus.tcp else "a serial line"
    given: dict[str, Any] = next((row for row in raw.get("bus", []) if isinstance(row, dict) and row.get("name") == bus.name), {})
    for name in bus.foreign:
        if name in given:
            problems.append(Problem(site.file, f"bus.{bus.name}.{name}", given[name], f"means nothing on {kind}", "leave it out"))


def _real_port(site: Site, bus: Bus, problems: list[Problem]) -> str:
    try:
        return real_port(bus.port)
    except ValueError as e:
        why, _, remedy = str(e).partition("; ")
        problems.append(Problem(site.file, f"bus.{bus.name}.port", bus.port, why, remedy))
        return bus.port


def _devices(site: Site, raw: Mapping[str, Any], problems: list[Problem]) -> None:
    # Names from the file as it stands: a bus with an error of its own is still no unknown bus.
    rows = raw.get("bus", [])
    names = [str(row["name"]) for row in rows if isinstance(row, dict) and "name" in row] if isinstance(rows, list) else []
    at: dict[tuple[str, int, str], str] = {}
    can = {b.name for b in site.buses if b.can}  # there the identifiers tell devices apart, and each profile counts its own units
    for device in site.devices:
        key = f"device.{device.name}"
        if device.bus in can and device.turnaround_ms >= 0.0:
            why = f"means nothing on CAN (bus {device.bus}): nobody is asked there"
            problems.append(Problem(site.file, f"{key}.turnaround_ms", device.turnaround_ms, why, "leave it out"))
        if device.role not in ROLES:
            remedy = near(device.role, ROLES) or f"one of {', '.join(ROLES)}"
            problems.append(Problem(site.file, f"{key}.role", device.role, "is no role", remedy))
        if device.bus not in names:
            remedy = near(device.bus, names) or f"buses here: {', '.join(names) or 'none'}"
            problems.append(Problem(site.file, f"{key}.bus", device.bus, "is no bus of this file", remedy))
        if device.unit not in _LINE_UNITS and not any(b.name == device.bus and b.tcp for b in site.buses):
            why = f"is outside 1 to 247: bus {device.bus} is a serial line"
            problems.append(Problem(site.file, f"{key}.unit", device.unit, why, "only a TCP bus has units 0 and 248 to 255"))
        kind = device.profile if device.bus in can else ""
        place = (device.bus, device.unit, kind)
        if place in at:
            why = f"is the address of device {at[place]} on bus {device.bus} too"
            free = next(unit for unit in _LINE_UNITS if (device.bus, unit, kind) not in at)
            problems.append(Problem(site.file, f"{key}.unit", device.unit, why, f"give one another address, {free} is free"))
        at.setdefault(place, device.name)
    _roles(site, raw, problems)


def _roles(site: Site, raw: Mapping[str, Any], problems: list[Problem]) -> None:
    """A site needs one converter and one meter, and has at most one BMS. A row with another error counts as there."""
    rows = raw.get("device", [])
    roles = Counter(row.get("role") for row in rows if isinstance(row, dict)) if isinstance(rows, list) else Counter()
    for role, text in (("pcs", "the converter that is commanded"), ("meter", "the meter at the PCC")):
        if roles[role] == 0:
            problems.append(Problem(site.file, "[[device]]", None, f'no device has role = "{role}" ({text})', "add it"))
    for role in ("pcs", "meter", "bms"):
        if (n := roles[role]) > 1:
            why = f'{n} devices have role = "{role}": each would overwrite what the others say'
            problems.append(Problem(site.file, "[[device]]", None, why, "keep one; packs in parallel need one BMS that speaks for all"))
    if not rows:
        return
    if roles["bms"] == 0:
        site.notes.append("no bms: SoC and battery limits come from nobody but the settings")
