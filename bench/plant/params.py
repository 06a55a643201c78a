"""The settings of the virtual cabinet: one table of name, default, range, unit, liveness and text.

The built-in site (controller/builtin.toml) is the table's defaults. Every value is a double; switches are 0 or 1. `live` settings
may be changed while the plant runs (`VirtualPlant.set`, {"set": ...} on stdin, a fault schedule); the others are read
at the start only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.plant import state


class ParamError(ValueError):
    """An unknown setting, or a value outside its range; the message names the key and what would do."""


@dataclass(frozen=True)
class Param:
    """One setting: `key` as in files and on the command line, SI unit, inclusive range, whether it may change while
    running.
    """

    key: str
    default: float
    min: float
    max: float
    unit: str
    text: str
    live: bool = True


_BIG = 1e9
_GROUPS = ("battery", "pcs", "meter", "bms", "grid", "load")


def _names(prefix: str) -> list[str]:
    """Names of one compiled enumeration without their prefix, in the order of their values."""
    found = [(value, name[len(prefix) :]) for name, value in vars(state).items() if name.startswith(prefix)]
    return [name for _, name in sorted(found)]


def _key(name: str) -> str:
    """'pcs_tau_s' -> 'pcs.tau_s'."""
    group, _, rest = name.partition("_")
    if group not in _GROUPS:
        raise ImportError(f"state.pxd: P_{name} belongs to no group")
    return f"{group}.{rest}"


PORT_NAMES = ("a", "b", "c", "d")[: state.PORT_COUNT]
KEYS = [_key(n) for n in _names("P_") if n != "FIXED_COUNT"] + [
    f"{port}.{key}" for port in PORT_NAMES for key in _names("PP_")
]
EVENT_NAMES: dict[int, str] = {getattr(state, f"EV_{n}"): n.lower() for n in _names("EV_")}


def _answering(device: str, what: str) -> list[Param]:
    return [
        Param(f"{device}.dead", 0, 0, 1, "", f"1: the {what} never answers"),
        Param(f"{device}.turnaround_s", 0, 0, 1, "s", "from the request's detection to the first bit of the answer"),
        Param(f"{device}.delay_answer_s", 0, 0, 60, "s", "a fault: every answer starts this much later still"),
        Param(f"{device}.corrupt_p", 0, 0, 1, "1", "chance that an answer leaves with a wrong CRC"),
    ]


def _fixed() -> list[Param]:
    return [
        Param("battery.soc", 0.5, 0, 1, "1", "state of charge; live: the pack jumps there"),
        Param(
            "battery.energy_wh", 250e3, 1e3, 1e8, "Wh", "energy between SoC 0 and 1 at open-circuit voltage", live=False
        ),
        Param("battery.temp_c", 25, -30, 80, "degC", "pack temperature; live: the pack jumps there"),
        Param("battery.ambient_c", 25, -40, 60, "degC", "air around the pack"),
        Param("battery.cooling_w_per_k", 500, 0, 1e5, "W/K", "heat that leaves the pack"),
        Param(
            "pcs.s_rated_va", 250e3, 1e3, 3e5, "VA", "apparent power rating; 10 W registers end at 327 kW", live=False
        ),
        Param("pcs.dead_time_s", 0.001, 0, 1, "s", "from detection of the command frame to the first change of power"),
        Param("pcs.tau_s", 0.002, 0, 10, "s", "first-order lag of AC power"),
        Param("pcs.slew_w_per_s", 0, 0, _BIG, "W/s", "largest slope of AC power, 0: none"),
        Param("pcs.own_ramp_w_per_s", 0, 0, _BIG, "W/s", "slope after reversion or disabling, 0: rating in 1 s"),
        Param("pcs.gain", 1, -2, 2, "1", "power at the terminals / setpoint; 0.98: a 2 % gain error"),
        Param("pcs.ignore_commands", 0, 0, 1, "", "1: setpoints are acknowledged and do nothing"),
        Param(
            "pcs.setpoint_renews",
            0,
            0,
            1,
            "",
            "1: a WSet write restarts the reversion timer (unsettled between devices)",
        ),
        Param("pcs.start_s", 0.5, 0, 600, "s", "STARTING to RUNNING"),
        Param("pcs.can_timeout_s", 0.1, 0, 60, "s", "on CAN: power goes to 0 so long after the last command frame; 0: never"),
        Param("pcs.initial_state", 7, 0, 7, "", "701.InvSt at start: 0 off, 3 running, 7 standby", live=False),
        Param(
            "pcs.initial_wset_w",
            0,
            -3e5,
            3e5,
            "W",
            "live setpoint at start when running (adoption without a bump)",
            live=False,
        ),
        Param("pcs.initial_rvrt_s", 0, 0, 3600, "s", "WSetRvrtTms at start, enabled and running when > 0", live=False),
        Param("pcs.hb_stuck", 0, 0, 1, "", "1: 715.DERHb stands still"),
        Param("pcs.fault", 0, 0, 1, "", "1: the converter is in FAULT, power 0; back to 0 leaves it in STANDBY"),
        Param("pcs.fc23", 1, 0, 1, "", "0: function 23 is answered with exception 1 (it is optional on devices)"),
        *_answering("pcs", "PCS"),
        Param("meter.gain", 1, -2, 2, "1", "P and Q shown / true; -1: wired the wrong way round"),
        Param("meter.offset_w", 0, -1e6, 1e6, "W", "added to P"),
        Param("meter.noise_w", 0, 0, 1e5, "W", "standard deviation of white noise on P"),
        Param("meter.mode", 0, 0, 3, "", "0 right, 1 NaN, 2 all 0xFFFF, 3 frozen at the last value shown"),
        Param("meter.window_s", 0, 0, 0.5, "s", "values are means over this long before their instant"),
        Param("meter.update_s", 0, 0, 10, "s", "values are latched with this period; 0: at each request's detection"),
        *_answering("meter", "meter"),
        Param("bms.charge_limit_w", -1, -1, _BIG, "W", "DC charge limit before tapers, -1: 1 C"),
        Param("bms.discharge_limit_w", -1, -1, _BIG, "W", "DC discharge limit before tapers, -1: 1 C"),
        Param("bms.contactor_open", 0, 0, 1, "", "1: contactors forced open"),
        Param("bms.initial_connected", 1, 0, 1, "", "0: contactors open until SetOp = CONNECT", live=False),
        Param("bms.evt1", 0, 0, 2**30 - 1, "", "bits put into 802.Evt1 besides the real ones"),
        Param("bms.soc_offset", 0, -1, 1, "1", "SoC shown - true SoC"),
        Param("bms.hb_stuck", 0, 0, 1, "", "1: 802.Hb stands still"),
        Param("bms.can_mute", 0, 0, 1, "", "1: on CAN, the frame with the limits (0x351, 0x232) is not sent any more"),
        Param("bms.can_foxbms", 0, 0, 1, "", "on CAN: 0 Pylontech's low-voltage frames, 1 those of foxBMS 2", live=False),
        *_answering("bms", "BMS"),
        Param("grid.f_hz", 50, 40, 70, "Hz", "grid frequency"),
        Param("grid.v_ln_v", 230, 0, 400, "V", "line to neutral voltage"),
        Param("grid.connected", 1, 0, 1, "", "0: outage; grid power 0, a grid-following PCS stops"),
        Param("grid.f_sine_hz", 0.01, 0, 5, "Hz", "amplitude of a sine on the frequency: no mains stands still to the last bit"),
        Param("grid.f_sine_period_s", 60, 0.1, 1e4, "s", "its period"),
        Param("load.scale", 1, 0, 100, "1", "factor on the load"),
        Param("load.extra_w", 0, -1e7, 1e7, "W", "added to the load"),
        Param("load.q_var", 0, -1e7, 1e7, "var", "reactive power of the load"),
    ]


def _of_port(port: str) -> list[Param]:
    return [
        Param(f"{port}.bit_error_p", 0, 0, 1, "1", "chance, per frame in either direction, that one bit flips"),
        Param(f"{port}.drop_p", 0, 0, 1, "1", "chance that an answer is lost"),
        Param(f"{port}.garbage_p", 0, 0, 1, "1", "chance that 1 to 8 random bytes come before an answer"),
        Param(f"{port}.truncate_p", 0, 0, 1, "1", "chance that an answer ends early"),
        Param(f"{port}.echo", 0, 0, 1, "", "1: the adapter gives the master its own bytes back"),
        Param(f"{port}.chunk", 0, 0, 1, "", "1: answers arrive in two pieces, each when its last bit is on the wire"),
        Param(f"{port}.jitter_s", 0, 0, 1, "s", "answers start up to this much later, evenly spread"),
        Param(f"{port}.latency_s", 0.001, 0, 1, "s", "TCP: a request's way there and its answer's way back, together"),
        Param(f"{port}.cut", 0, 0, 1, "", "1: a TCP server that is down: closes its connection and refuses others"),
    ]


def _table() -> dict[str, Param]:
    rows = _fixed() + [row for port in PORT_NAMES for row in _of_port(port)]
    table = {row.key: row for row in rows}
    missing = [k for k in KEYS if k not in table]
    extra = [k for k in table if k not in KEYS]
    if missing or extra:
        raise ImportError(f"params.py and state.pxd differ: missing here {missing}, missing there {extra}")
    for row in rows:
        if not row.min <= row.default <= row.max:
            raise ImportError(f"params.py: default of {row.key} is outside its own range")
    return {key: table[key] for key in KEYS}


PARAMS: dict[str, Param] = _table()
INDEX: dict[str, int] = {key: i for i, key in enumerate(KEYS)}


def check(key: str, value: object, *, running: bool = False) -> float:
    """The value as a float within its range, or ParamError with the near matches or the range."""
    row = PARAMS.get(key)
    if row is None:
        near = difflib.get_close_matches(key, PARAMS, n=3, cutoff=0.5)
        tail = key.rsplit(".", 1)[-1]
        near += [k for k in PARAMS if k.endswith("." + tail) and k not in near][:3]
        raise ParamError(f"{key}: no such setting" + (f"; did you mean {', '.join(near)}?" if near else ""))
    if isinstance(value, bool):
        value = float(value)
    if not isinstance(value, (int, float)):
        raise ParamError(f"{key} = {value!r}: not a number; {row.min:g} to {row.max:g} {row.unit}".rstrip())
    x = float(value)
    if not math.isfinite(x) or not row.min <= x <= row.max:
        raise ParamError(f"{key} = {x:g}: outside {row.min:g} to {row.max:g} {row.unit}".rstrip())
    if running and not row.live:
        raise ParamError(f"{key}: is read at the start only; set it before the plant runs")
    return x


def values(overrides: Mapping[str, object]) -> tuple[list[float], list[str]]:
    """All settings in the order of Plant.par, and every problem with the overrides (empty: fine)."""
    par = [row.default for row in PARAMS.values()]
    problems = []
    for key, value in overrides.items():
        try:
            par[INDEX.get(key, -1)] = check(key, value)
        except ParamError as e:
            problems.append(str(e))
    return par, problems
