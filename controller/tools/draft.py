"""A site file out of what a scan found: what was read stands there as read, what nobody could know is marked as such."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from controller.settings import SETTINGS
from controller.site import Bus
from controller.tools.known import Found
from controller.tools.sweep import Result

NEEDED = {"meter": "grid power", "pcs": "the battery's converter", "bms": "the battery"}
UNKNOWN = "NOT KNOWN"
BY_ID = Path("/dev/serial/by-id")
NOMINAL_HZ = (50.0, 60.0)


def stable(port: str) -> str:
    """The name of a serial port that stays when adapters are plugged in another order; the port itself where it has none."""
    prefix, path = ("slcan:", port.removeprefix("slcan:")) if port.startswith("slcan:") else ("", port)
    if not path.startswith("/"):
        return port
    try:
        links = sorted(link for link in BY_ID.iterdir() if link.resolve() == Path(path).resolve())
    except OSError:
        links = []
    return prefix + str(links[0]) if links else port


def text(results: Sequence[Result], file: str) -> str:
    """The site file. `ballast check` takes it when a meter, a pcs and a bms were found and their buses hold a plan."""
    found = [f for r in results for f in r.found]
    lines = [
        "# A draft, made by `ballast scan`: names and ratings were read from the devices where no comment says otherwise.",
        f"# {UNKNOWN}: no device tells it. The value is the built-in site's, and wrong for yours until you have written your own.",
        f"# Then `ballast check {file}` and docs/commissioning.md: `ballast test` measures signs and delays before anything is followed.",
        *_site(found),
        *_grid(),
        *_battery(found),
        *_pcs(found),
        *[line for r in results if not _only_shelves(r) for line in _bus(r)],
        *_devices(results),
        *[line for r in results for line in _shelves(r)],
    ]
    return "\n".join(lines) + "\n"


def _row(key: str, value: float | str, why: str = "") -> str:
    shown = f'"{value}"' if isinstance(value, str) else repr(float(value))
    line = f"{key.partition('.')[2]} = {shown}"
    return f"{line:<32}# {why}" if why else line


def _default(key: str, why: str) -> str:
    value = SETTINGS[key].default
    assert value is not None
    return _row(key, value if isinstance(value, str) else float(value), f"{UNKNOWN}: {why}")


def _site(found: Sequence[Found]) -> list[str]:
    measured = next((f.f_hz for f in found if math.isfinite(f.f_hz)), math.nan)
    nominal = next((hz for hz in NOMINAL_HZ if abs(hz - measured) < 2.0), None)
    why = f"{measured:.2f} Hz was measured" if nominal else f"{UNKNOWN}: 50 or 60; a 60 Hz site with 50 Hz settings trips at once, or never"
    return [
        "",
        "[site]",
        _row("site.name", "site", "names the runtime directory and the records"),
        _row("site.f_nom_hz", nominal or 50.0, why),
        _default("site.v_nom_v", "line to neutral, of the grid connection"),
    ]


def _grid() -> list[str]:
    contract = "the contract with the grid operator"
    return [
        "",
        "[grid]",
        _default("grid.import_limit_w", contract),
        _default("grid.export_limit_w", contract),
        _default("grid.ramp_up_w_per_s", contract),
        _default("grid.ramp_down_w_per_s", contract),
        _default("grid.feeder_w", "rating of feeder and breaker"),
        "",
        "[load]",
        f"# peak_w = 480000.0              # {UNKNOWN}: largest load; above the feeder it needs load.shed",
    ]


def _rating(found: Sequence[Found], name: str) -> float | None:
    return next((f.ratings[name] for f in found if f.ratings.get(name, 0.0) > 0.0), None)


def _battery(found: Sequence[Found]) -> list[str]:
    energy = _rating(found, "energy_wh")
    lines = ["", "[battery]"]
    lines.append(
        _row("battery.energy_wh", energy, "as the device says")
        if energy
        else _default("battery.energy_wh", "usable energy, from its data sheet")
    )
    powers = [p for p in (_rating(found, "p_charge_rated_w"), _rating(found, "p_discharge_rated_w")) if p]
    if energy and powers:
        rate = max(0.01, min(20.0, round(min(powers) / energy, 3)))
        lines.append(_row("battery.c_rate", rate, "from the converter's charge and discharge ratings; the battery's may be less"))
    else:
        lines.append(_default("battery.c_rate", "largest power / energy, from its data sheet"))
    lines.append(f"# v_min_v, v_max_v: {UNKNOWN}: from the battery's data sheet; without them the BMS alone limits by voltage")
    return lines


def _pcs(found: Sequence[Found]) -> list[str]:
    rated = _rating(found, "s_rated_va")
    power = _rating(found, "p_rated_w")
    lines = ["", "[pcs]"]
    lines.append(
        _row("pcs.s_rated_va", rated, "as the device says") if rated else _default("pcs.s_rated_va", "apparent power, from its plate")
    )
    if rated and power and 1e3 <= power <= rated:
        lines.append(_row("pcs.p_max_w", power, "as the device says"))
    lines.append(_default("pcs.dead_time_s", "`ballast test` measures it"))
    lines.append(_default("pcs.tau_s", "`ballast test` measures it"))
    return lines


def _bus(result: Result) -> list[str]:
    b: Bus = result.bus
    lines = ["", "[[bus]]", f'name = "{b.name}"', f'port = "{stable(b.port)}"']
    if b.tcp:
        slow = (
            "nine of ten answers came in this time, the device's own part of it included" if result.found else f"{UNKNOWN}: nobody answered"
        )
        lines.append(f"{f'latency_ms = {b.latency_ms:g}':<32}# {slow}")
    elif b.can:
        lines += [] if b.port.startswith("can:") else [f"bitrate = {b.bitrate}"]
    else:
        lines += [f"baud = {b.baud}", f'parity = "{b.parity}"']
    return lines + [f"# {said}" for said in result.said]


def _devices(results: Sequence[Result]) -> list[str]:
    lines: list[str] = []
    bound: set[str] = set()
    for r in results:
        for f in (f for f in r.found if not f.shelf):
            role = next((x for x in f.roles if x not in bound), None)
            lines += ["", f"# {r.bus.name}, unit {f.unit}: {f.what}", *(f"# {note}" for note in f.notes)]
            if role is None:
                if f.roles:
                    lines.append(f"# a second {f.roles[0]}: a site has one; bind this one instead where it is the right one")
                lines += [f"# {x}" for x in _device(f.roles[0], f, r.bus)] if f.roles else []
                continue
            bound.add(role)
            lines += _device(role, f, r.bus)
            if others := [x for x in f.roles if x != role]:
                lines.append(f"# it could be the {' or '.join(others)} too")
    lines += [
        f"\n# NOT FOUND: a device of role {role} ({what}); without it the site is refused"
        for role, what in NEEDED.items()
        if role not in bound
    ]
    return lines


def _device(role: str, f: Found, bus: Bus) -> list[str]:
    sure = "" if f.sure else "     # a guess, see above"
    return [
        "[[device]]",
        f'name = "{role}"',
        f'role = "{role}"',
        f'bus = "{bus.name}"',
        f"unit = {f.unit}",
        f'profile = "{f.profile}"{sure}',
    ]


def _only_shelves(r: Result) -> bool:
    return bool(r.found) and all(f.shelf for f in r.found)


def _shelves(r: Result) -> list[str]:
    """[[shelf]] rows, one a profile: beside the tick, on a port of their own."""
    lines: list[str] = []
    for profile in dict.fromkeys(f.profile for f in r.found if f.shelf):
        mine = [f for f in r.found if f.profile == profile]
        row = [
            "[[shelf]]",
            f'name = "{r.bus.name}-{profile.removeprefix("orv3_")}"',
            f'port = "{stable(r.bus.port)}"',
            f'profile = "{profile}"',
        ]
        row += [f"units = {[f.unit for f in mine]}", f"baud = {r.bus.baud}", f'parity = "{r.bus.parity}"']
        lines += ["", *(f"# {r.bus.name}, unit {f.unit}: {f.what}" for f in mine)]
        if not _only_shelves(r):
            lines.append("# shares its port with a device of the tick, which it would make late: move it to a port of its own")
            row = [f"# {x}" for x in row]
        lines += row
    return lines
