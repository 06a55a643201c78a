"""From a site to what hal and the kernel run: the one place in controller/ that calls hal (but for the names of ports,
hal.tcp, and controller/tools, whose commands talk to devices themselves).

    site file -> Site -> specs (+ device maps) -> Plan -> BusScans;     Site -> struct Site of the kernel, Limits

`plan` works offline (SunSpec devices by the shape the standard gives them); `device_maps` asks the devices
themselves.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller import site as sites
from controller.problems import Problem, SiteError
from controller.settings import ROLES, Value
from controller.site import Bus, Device, Site
from hal import adapter
from hal.adapter import AUTO, OFF, Direction, set_direction
from hal.canplan import BITRATES, CanSpec
from hal.canrows import CanMap
from hal.plan import BusSpec, DeviceSpec, Plan, PlanError, SiteTiming, plan_site
from hal.profile import ProfileError, load_profile
from hal.rows import DeviceMap

SUNSPEC = "sunspec"
SUNSPEC_ROLES = ("pcs", "meter", "bms")
Transact = Callable[[int, int, int, int], list[int]]  # (unit, function, address, count) -> registers


def load_site(
    path: str | Path | None,
    sets: Iterable[str] = (),
    plant_keys: Callable[[], Iterable[str]] | None = None,
    *,
    text: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Site:
    """The site of a file (None: built-in) with overrides, its profiles checked too. Raises SiteError with every
    problem.

    `plant_keys`: names of the plant's settings, asked for only where an override is none of the site's; default: a
    process. `text`, `changes`: see controller.site.load.
    """
    from controller.virtual import plant_keys as ask

    return sites.load(path, sets, plant_keys or ask, _profile_problems, text=text, changes=changes)


def _profile_problems(site: Site) -> list[Problem]:
    """What is wrong with the profiles, for the list that a person gets at once."""
    problems: list[Problem] = []
    for device in site.devices:
        try:
            if device.role in ROLES:
                problems += _transport_problems(site, device, _offline_map(site, device))
        except SiteError as e:
            problems += e.problems
    return problems


def _transport_problems(site: Site, device: Device, found: DeviceMap) -> list[Problem]:
    """A device's map against its bus: both CAN or neither, and frames that come often enough for the times of the site."""
    bus = next((b for b in site.buses if b.name == device.bus), None)
    key = f"device.{device.name}.profile"
    if bus is None:
        return []
    if bus.can != isinstance(found, CanMap):
        why = f"speaks {'CAN' if isinstance(found, CanMap) else 'Modbus'}, bus {bus.name} ({bus.port}) does not"
        remedy = 'a profile with transport = "can"' if bus.can else 'port = "can:IFACE" or "slcan:TTY" for its bus'
        return [Problem(site.file, key, device.profile, why, remedy)]
    if not isinstance(found, CanMap):
        return []
    out = []
    if bus.bitrate not in BITRATES and not bus.port.startswith("can:"):
        rates = ", ".join(map(str, BITRATES))
        out.append(Problem(site.file, f"bus.{bus.name}.bitrate", bus.bitrate, "is no rate of slcan", f"one of {rates}"))
    slowest_s = 1e-3 * max((f.period_ms for f in found.frames if any(s.needed for s in f.signals)), default=0.0)
    lost = f"control.{device.role}_lost_s"
    if float(site.values.get(lost, math.inf)) < 1.5 * slowest_s:
        why = f"is under one and a half periods of {device.profile}'s frames ({slowest_s:g} s): the device would always be lost"
        out.append(Problem(site.file, lost, site.values[lost], why, f"write {2 * slowest_s:g} or more"))
    return out


def site_from(path: Path) -> Site:
    """The site that the parent wrote for its children."""
    return Site.from_dict(json.loads(path.read_text()))


class SiteWatch:
    """Notices when the parent has put another site.json in place: by the file's identity, which a rename changes in one
    step, and which needs no second file that could disagree with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None

    def look(self) -> Site | None:
        """The site where it is another one than at the last look (at the first: the site); None where it is the same, or
        cannot be read.
        """
        try:
            if _identity(os.stat(self.path)) == self._seen:
                return None
            with open(self.path, "rb") as file:
                seen, data = _identity(os.fstat(file.fileno())), json.loads(file.read())
            site = Site.from_dict(data)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self._seen = seen
        return site


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _offline_map(site: Site, device: Device) -> DeviceMap:
    """A device's map without asking it. Raises SiteError."""
    key = f"device.{device.name}.profile"
    if device.profile == SUNSPEC:
        bus = next((b for b in site.buses if b.name == device.bus), None)
        if bus is not None and bus.can:
            why = f"SunSpec is Modbus, bus {bus.name} ({bus.port}) is CAN"
            raise SiteError([Problem(site.file, key, device.profile, why, "write the name of a CAN profile, such as pylontech_lv")])
        from hal.sunspec import assumed  # reads model files: never in control

        if device.role not in SUNSPEC_ROLES:
            why = f"SunSpec models are known for {', '.join(SUNSPEC_ROLES)}, not for a {device.role}"
            raise SiteError([Problem(site.file, key, device.profile, why, "write the name of a profile")])
        return assumed(device.role)
    return profile_of(site, device)


def profile_of(site: Site, device: Device) -> DeviceMap:
    """A profile by name, or by path (relative to the site file). Raises SiteError."""
    key = f"device.{device.name}.profile"
    name: str | Path = device.profile
    if device.profile.endswith(".toml") and not Path(device.profile).is_absolute():
        name = Path(site.file).parent / device.profile
    try:
        found = load_profile(name)
    except ProfileError as e:
        head = Problem(site.file, key, device.profile, "cannot be used", "see the next lines")
        raise SiteError([head, *(Problem("", "", None, str(p)) for p in e.problems)]) from None
    if found.role != device.role:
        why = f"is the profile of a {found.role}, the device's role is {device.role}"
        raise SiteError([Problem(site.file, key, device.profile, why, f'write role = "{found.role}", or another profile')])
    return found


def device_maps(site: Site, transact_factory: Callable[[Bus], Transact]) -> list[DeviceMap]:
    """Maps of all devices in the site's order; SunSpec devices are asked for theirs. Raises SiteError,
    hal.sunspec.SunSpecError, and what `transact` raises where a device does not answer.
    """
    maps = []
    for device in site.devices:
        if device.profile == SUNSPEC:
            from hal import sunspec  # a child's business: pysunspec2's model files stay out of control

            bus = next(b for b in site.buses if b.name == device.bus)
            maps.append(sunspec.compile_device(sunspec.scan(transact_factory(bus), device.unit), device.role))
        else:
            maps.append(profile_of(site, device))
    return maps


def specs(site: Site, maps: Sequence[DeviceMap] | None = None) -> tuple[list[BusSpec | CanSpec], list[DeviceSpec], SiteTiming]:
    """What hal plans with; `maps` None: offline."""
    if maps is None:
        maps = [_offline_map(site, device) for device in site.devices]
    buses: list[BusSpec | CanSpec] = [
        CanSpec(b.name, b.port, b.bitrate)
        if b.can
        else BusSpec(b.name, b.port, b.baud, b.parity, b.stop_bits, latency_ms=b.latency_ms, lead_ms=direction(b).before_ms)
        for b in site.buses
    ]
    devices = [
        DeviceSpec(d.name, d.role, d.bus, d.unit, m, d.turnaround_ms if d.turnaround_ms >= 0.0 else None)
        for d, m in zip(site.devices, maps, strict=True)
    ]
    timing = SiteTiming(
        dead_ms=1e3 * site.num("pcs.dead_time_s"),
        tau_ms=1e3 * site.num("pcs.tau_s"),
        rvrt_s=site.num("pcs.reversion_s"),
    )
    return buses, devices, timing


def plan(site: Site, maps: Sequence[DeviceMap] | None = None) -> Plan:
    """The bus plan. Raises SiteError with the arithmetic and the ways out where the site cannot hold one."""
    buses, devices, timing = specs(site, maps)
    try:
        return plan_site(buses, devices, timing=timing)
    except PlanError as e:
        raise SiteError([_plan_problem(site, p) for p in e.problems]) from None


def _plan_problem(site: Site, p: Any) -> Problem:
    return Problem(site.file, f"bus.{p.bus}" if p.bus else "", None, p.arithmetic, ", or ".join(p.ways_out))


def compile_maps(site: Site, maps: Sequence[DeviceMap]) -> tuple[Plan, list[Any]]:
    """Plan and BusScans (engine ports, in the order of the site's buses). Raises SiteError."""
    from hal.scan import compile_site

    buses, devices, timing = specs(site, maps)
    try:
        made, scans = compile_site(buses, devices, timing=timing)
    except PlanError as e:
        raise SiteError([_plan_problem(site, p) for p in e.problems]) from None
    return made, list(scans)


def scans(site: Site, transact_factory: Callable[[Bus], Transact]) -> tuple[Plan, list[Any], list[DeviceMap]]:
    """`device_maps` and `compile_maps` in one: for a simulation."""
    maps = device_maps(site, transact_factory)
    made, ports = compile_maps(site, maps)
    return made, ports, maps


def engine_timing(made: Plan) -> dict[str, int]:
    """What the Engine needs of the plan: step deadline and wire time of the command, ns."""
    return {"step_by_ns": made.step_by_ns, "cmd_wire_ns": made.cmd_wire_ns}


def direction(bus: Bus) -> Direction:
    """Who switches a bus's RS-485 driver; the virtual cabinet's wires need nobody."""
    if bus.virtual or bus.rs485 in (OFF, AUTO):
        return Direction(AUTO if bus.virtual else bus.rs485)
    return Direction(bus.rs485, bus.rs485_before_ms, bus.rs485_after_ms)


def open_port(bus: Bus, path: str) -> int:
    """A ready descriptor, of a tty (raw, exclusive, locked, its RS-485 direction set), a TCP connection or a CAN port; non-blocking.
    May take a second. Raises hal.wire.PortError."""
    from hal import canport, dial, wire  # only where there are ports: a simulation has none

    if bus.tcp:
        return dial.open_tcp(path)
    if bus.can:
        return canport.open_can(path, bus.bitrate, bus.baud)
    fd = int(wire.open_port(path, bus.baud, bus.parity, bus.stop_bits))
    try:
        set_direction(path, fd, direction(bus))
    except OSError:
        wire.close_port(fd)
        raise
    return fd


def listen_for(port: Any, fd: int) -> int:
    """The descriptor, told to let through only the frames that `port` (hal.canscan.CanScan) listens to, where it is a CAN socket's."""
    filters = getattr(port, "filters", None)
    if filters is not None and stat.S_ISSOCK(os.fstat(fd).st_mode):
        from hal.canport import set_filters

        set_filters(fd, filters)
    return fd


def close_port(fd: int) -> None:
    """Gives a port back; may block."""
    from hal import wire

    wire.close_port(fd)


def port_problems(site: Site, buses: Sequence[Bus] | None = None) -> list[Problem]:
    """Every serial or CAN port that cannot be used now: missing, no tty, in use, forbidden. Each is opened and given back.
    `buses` None: all.

    A TCP server that is not there yet is no mistake of the site file: control waits for it.
    """
    from hal.wire import PortError

    problems: list[Problem] = []
    if site.virtual:
        return problems
    for bus in (b for b in (site.buses if buses is None else buses) if not b.tcp):
        try:
            fd = open_port(bus, bus.port)
            if bus.can:
                from hal.canport import close_can

                close_can(fd)
            close_port(fd)
        except PortError as e:
            problems.append(Problem(site.file, f"bus.{bus.name}.{e.key}", getattr(bus, e.key), e.why, e.remedy))
    return problems


def blocking_line(bus: Bus, fd: int) -> Transact:
    """Blocking reads over an open port: for scanning before the engine starts, never beside it."""
    from hal.wire import BlockingLine

    if bus.tcp:
        return BlockingLine(fd, tcp=True, timeout_s=max(0.25, 3e-3 * bus.latency_ms))
    return BlockingLine(fd, bus.baud, 9 + (bus.parity != "N") + bus.stop_bits, timeout_s=0.25)


def tune(bus: Bus, path: str, fd: int) -> list[str]:
    """Asks the driver of a real tty not to hold bytes back; a line where it does not grant it. An adapter that was plugged in
    again has forgotten what it was told: each open asks anew."""
    tty = _tty(bus, path)
    why = adapter.tune(tty, fd) if tty and fd >= 0 else None
    return [f"bus {bus.name}: {why}"] if why else []


def held_notes(site: Site, sysfs: Path = adapter.SYSFS) -> list[str]:
    """A line for each bus whose USB adapter holds bytes back now, with the remedy; opens and changes nothing."""
    ttys = [(bus, _tty(bus, bus.port)) for bus in site.buses]
    found = [(bus.name, adapter.held_note(tty, sysfs)) for bus, tty in ttys if tty]
    return [f"bus {name}: {why}" for name, why in found if why]


def _tty(bus: Bus, path: str) -> str:
    """The serial port of a bus; empty for connections, CAN interfaces and the virtual cabinet."""
    return "" if bus.virtual or bus.tcp or path.startswith("can:") else path.removeprefix("slcan:")


def kernel_site(site: Site, maps: Sequence[DeviceMap] | None = None) -> dict[str, Any]:
    """Every field of struct Site (_core/image.pxd). `maps` None: what the devices should give."""
    if maps is None:
        maps = [_offline_map(site, device) for device in site.devices]
    num = site.num
    power_w = num("battery.energy_wh") * num("battery.c_rate")
    slew = num("pcs.slew_w_per_s")
    v_max = num("battery.v_max_v")
    fields: dict[str, Any] = {
        "f_nom_hz": num("site.f_nom_hz"),
        "v_nom_v": num("site.v_nom_v"),
        "feeder_w": num("grid.feeder_w"),
        "import_limit_w": num("grid.import_limit_w"),
        "export_limit_w": num("grid.export_limit_w"),
        "ramp_up_w_per_s": num("grid.ramp_up_w_per_s"),
        "ramp_down_w_per_s": num("grid.ramp_down_w_per_s"),
        "billing_window_s": num("grid.billing_window_s"),
        "enter_service_delay_s": num("grid.enter_service_delay_s"),
        "s_rated_va": num("pcs.s_rated_va"),
        "pcs_p_max_w": num("pcs.p_max_w"),
        "pcs_dead_s": detection_s(site) + num("pcs.dead_time_s"),
        "pcs_tau_s": num("pcs.tau_s"),
        "pcs_rvrt_s": num("pcs.reversion_s"),
        "cmd_slew_w_per_s": slew if slew else math.inf,
        "energy_wh": num("battery.energy_wh"),
        "p_charge_max_w": power_w,
        "p_discharge_max_w": power_w,
        "soc_min": num("battery.soc_min"),
        "soc_max": num("battery.soc_max"),
        "soc_target": num("battery.soc_target"),
        "soc_time_s": num("control.soc_time_s"),
        "mean_min_s": num("control.mean_min_s"),
        "mean_max_s": num("control.mean_max_s"),
        "batt_eta": num("battery.eta"),
        "batt_v_min_v": num("battery.v_min_v"),
        "batt_v_max_v": v_max if v_max else math.inf,
        "temp_min_c": num("battery.temp_min_c"),
        "temp_max_c": num("battery.temp_max_c"),
        "temp_taper_c": num("battery.temp_taper_k"),
        "droop_db_hz": num("control.droop_deadband_hz"),
        "droop_r": num("control.droop_r"),
        "droop_tr_s": num("control.droop_response_s"),
        "volt_db_pu": num("control.volt_deadband_pu"),
        "volt_full_pu": num("control.volt_full_pu"),
        "q_max_var": num("control.q_max_var"),
        "volt_tr_s": num("control.volt_response_s"),
        "f_min_hz": num("grid.f_min_hz"),
        "f_max_hz": num("grid.f_max_hz"),
        "v_min_pu": num("grid.v_min_pu"),
        "v_max_pu": num("grid.v_max_pu"),
        "trip_s": num("grid.trip_s"),
        "meter_hold_s": num("control.meter_hold_s"),
        "meter_lost_s": num("control.meter_lost_s"),
        "frozen_s": num("control.frozen_s"),
        "bms_lost_s": num("control.bms_lost_s"),
        "pcs_lost_s": num("control.pcs_lost_s"),
        "follow_w": num("control.follow_w"),
        "follow_s": num("control.follow_s"),
        "align_full_s": num("control.align_full_s"),
    }
    return fields | _groups(maps)


def _groups(maps: Sequence[DeviceMap]) -> dict[str, int]:
    """Which groups of Inputs the devices give, by a signal that each of them needs."""
    signals = set().union(*(m.signals() for m in maps)) if maps else set()
    needed = {
        "has_pcs_ctl": "wset_w",
        "has_pcs_life": "pcs_heartbeat",
        "has_bms": "soc",
        "has_bms_limits": "batt_v",
        "has_bms_temp": "batt_temp_max_c",
    }
    others = {"has_others": int(bool(signals & {"pv_p_w", "gen_p_w"}))}
    return {name: int(signal in signals) for name, signal in needed.items()} | others


def detection_s(site: Site) -> float:
    """How long after the command's last bit the converter knows that the frame is over: 3.5 characters of silence
    (Modbus over serial line V1.02, 2.5.1.1: 1.75 ms above 19200 baud). Over TCP the frame says where it ends."""
    pcs = next(d for d in site.devices if d.role == "pcs")
    bus = next(b for b in site.buses if b.name == pcs.bus)
    if bus.tcp or bus.can:
        return 0.0  # a frame is known to be whole with its last bit
    return bus.t35_s


def limits(site: Site) -> dict[str, float]:
    """The fields of Limits without their lease: what the supervisor renews."""
    power_w = site.num("battery.energy_wh") * site.num("battery.c_rate")
    return {
        "import_limit_w": site.num("grid.import_limit_w"),
        "export_limit_w": site.num("grid.export_limit_w"),
        "ramp_up_w_per_s": site.num("grid.ramp_up_w_per_s"),
        "ramp_down_w_per_s": site.num("grid.ramp_down_w_per_s"),
        "p_charge_max_w": power_w,
        "p_discharge_max_w": power_w,
        "soc_min": site.num("battery.soc_min"),
        "soc_max": site.num("battery.soc_max"),
        "soc_target": site.num("battery.soc_target"),
    }


__all__ = [
    "SiteWatch",
    "Transact",
    "Value",
    "compile_maps",
    "device_maps",
    "kernel_site",
    "limits",
    "load_site",
    "plan",
    "scans",
    "site_from",
    "specs",
]
