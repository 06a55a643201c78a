"""The settings of a site: one table of name, unit, range, default and text, from which validation, `--set` and the
docs are driven.

The unit is the last part of every name; there is no second spelling of a setting in another unit. `default` None
means that the default depends on another setting (see `derived`); `needed` settings have none at all in a user's
file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Value = float | int | str

TICK_S = 0.01  # the engine's period; not a setting, because device timings and the plan are built on it
RENEW_S = 1.0  # the engine renews heartbeat and reversion once a second
MODEL_QUEUE_TICKS = 64  # commands the kernel's model of the PCS can hold on their way to the terminals

LIVE, RESTART, START = "live", "restart", "start"
HOW = {
    LIVE: "taken by the running kernel at a tick boundary",
    RESTART: "control is started again, and adopts the live PCS without a bump",
    START: "read when `ballast run` starts",
}
TRY_S, TRY_MIN_S, TRY_MAX_S = 60.0, 5.0, 600.0  # how long a setting is tried before it goes back by itself


@dataclass(frozen=True)
class Setting:
    """One key of the site file: `section.name`, its type, inclusive range, default and what it is for."""

    key: str
    default: Value | None
    low: float
    high: float
    unit: str
    text: str
    kind: str = "float"  # float, int, str; in rows also days, ints (a list of whole numbers), names (a list of texts)
    needed: bool = False  # must stand in a user's file
    how: str = LIVE  # how it changes while the site runs: see HOW

    @property
    def section(self) -> str:
        """The table it stands in."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """The key inside its table."""
        return self.key.partition(".")[2]


_POWER = (0.0, 1e8)
_ROWS = (
    Setting("site.name", "site", 1, 40, "", "names the runtime directory and the records: letters, digits, - and _", "str", how=START),
    Setting("site.f_nom_hz", None, 45, 65, "Hz", "nominal frequency; 50 and 60 Hz grids have different defaults", needed=True, how=START),
    Setting("site.v_nom_v", 230, 50, 20e3, "V", "nominal voltage, line to neutral", how=RESTART),
    Setting("grid.import_limit_w", 445e3, *_POWER, "W", "largest grid import, as 100 ms means"),
    Setting("grid.export_limit_w", 0, *_POWER, "W", "largest grid export; 0: none"),
    Setting("grid.ramp_up_w_per_s", 2000, 1, 1e8, "W/s", "largest rise of grid import"),
    Setting("grid.ramp_down_w_per_s", 2000, 1, 1e8, "W/s", "largest fall of grid import"),
    Setting("grid.feeder_w", 500e3, 1, 1e8, "W", "rating of feeder and PCC breaker"),
    Setting("grid.billing_window_s", 900, 0, 3600, "s", "billing window of the import limit; 0: none", how=RESTART),
    Setting("grid.enter_service_delay_s", 0, 0, 1200, "s", "grid good for so long before power, cold or after a trip"),
    Setting("grid.f_min_hz", None, 40, 65, "Hz", "below it for trip_s: trip"),
    Setting("grid.f_max_hz", None, 45, 70, "Hz", "above it for trip_s: trip"),
    Setting("grid.v_min_pu", None, 0.1, 1, "1", "below it for trip_s: trip"),
    Setting("grid.v_max_pu", None, 1, 1.5, "1", "above it for trip_s: trip"),
    Setting("grid.trip_s", 0.16, 0.02, 10, "s", "how long outside before the trip"),
    Setting("load.peak_w", None, 0, 1e8, "W", "largest load; a feeder below it needs load.shed", how=START),
    Setting("load.shed", "none", 0, 20, "", "what takes load away when control is lost: none, hardwired, cluster_cap", "str", how=START),
    Setting("battery.energy_wh", 250e3, 1e3, 1e8, "Wh", "usable energy between SoC 0 and 1"),
    Setting("battery.c_rate", 1, 0.01, 20, "1/h", "largest charge and discharge power / energy"),
    Setting("battery.soc_min", 0.1, 0, 1, "1", "no discharge below"),
    Setting("battery.soc_max", 0.9, 0, 1, "1", "no charge above"),
    Setting("battery.soc_target", 0.5, 0, 1, "1", "where the SoC term steers to"),
    Setting("battery.eta", 0.95, 0.5, 1, "1", "efficiency one way, DC to AC"),
    Setting("battery.temp_min_c", 0, -40, 40, "degC", "no power below (LFP must not be charged below 0)"),
    Setting("battery.temp_max_c", 55, 0, 90, "degC", "no power above"),
    Setting("battery.temp_taper_k", 5, 0.1, 30, "K", "power falls to 0 over this many kelvin inside the limits"),
    Setting("battery.v_min_v", 0, 0, 3000, "V", "discharge tapers toward it; 0: the BMS limits alone"),
    Setting("battery.v_max_v", 0, 0, 3000, "V", "charge tapers toward it; 0: the BMS limits alone"),
    Setting("pcs.s_rated_va", 250e3, 1e3, 1e7, "VA", "apparent power rating", how=RESTART),
    Setting("pcs.p_max_w", None, 1e3, 1e7, "W", "largest active power; default: the rating"),
    Setting("pcs.dead_time_s", 0.001, 0, 0.63, "s", "from detection of the command frame to the first change of power", how=RESTART),
    Setting("pcs.tau_s", 0.002, 0, 2, "s", "first-order lag of AC power", how=RESTART),
    Setting("pcs.reversion_s", 5, 1, 60, "s", "power goes to 0 so long after the last renewal (WSetRvrtTms)", how=RESTART),
    Setting("pcs.slew_w_per_s", 0, 0, 1e9, "W/s", "slew of our own command; 0: none"),
    Setting("control.mean_min_s", 60, 1, 3600, "s", "shortest horizon of the load's slow mean"),
    Setting("control.mean_max_s", 600, 1, 86400, "s", "longest horizon, while battery energy allows"),
    Setting("control.soc_time_s", 900, 60, 86400, "s", "the SoC term closes its gap with this time constant"),
    Setting("control.droop_r", 0.05, 0, 1, "1", "P(f): per-unit frequency for per-unit power; 0: off"),
    Setting("control.droop_deadband_hz", None, 0, 2, "Hz", "P(f): half width of the deadband"),
    Setting("control.droop_response_s", 5, 0, 60, "s", "P(f): open-loop response time, to 90 %"),
    Setting("control.q_max_var", 0, *_POWER, "var", "Q(V): largest reactive power; 0: off"),
    Setting("control.volt_deadband_pu", 0.02, 0, 0.2, "1", "Q(V): half width of the deadband"),
    Setting("control.volt_full_pu", 0.08, 0.01, 0.5, "1", "Q(V): deviation at which Q is q_max_var"),
    Setting("control.volt_response_s", 5, 0, 60, "s", "Q(V): open-loop response time, to 90 %"),
    Setting("control.meter_hold_s", 0.05, 0.03, 1, "s", "older meter values: power goes to 0"),
    Setting("control.meter_lost_s", 5, 0.1, 60, "s", "older meter values: FAULT"),
    Setting("control.frozen_s", 5, 0, 600, "s", "all meter values bit-identical for so long: frozen; 0: off"),
    Setting("control.bms_lost_s", 5, 0.1, 60, "s", "older BMS values: FAULT"),
    Setting("control.pcs_lost_s", 1, 0.05, 60, "s", "older PCS readback: FAULT"),
    Setting("control.follow_w", None, 100, 1e7, "W", "PCS off its model by more, for follow_s: FAULT; default: 10 % of rating"),
    Setting("control.follow_s", 1, 0.1, 60, "s", "see follow_w"),
    Setting("control.align_full_s", 0.003, 0.0005, 0.01, "s", "full bandwidth up to this alignment error of the PCS model"),
    Setting("realtime.priority", 90, 0, 98, "", "SCHED_FIFO priority of the control thread; 0: leave it alone", "int", how=RESTART),
    Setting("realtime.cpu", -1, -1, 1023, "", "CPU the control thread is bound to; -1: none", "int", how=RESTART),
)  # fmt: skip


SETTINGS: dict[str, Setting] = {row.key: row for row in _ROWS}
SECTIONS = tuple(dict.fromkeys(row.section for row in SETTINGS.values()))

# Rows of the arrays of tables: [[bus]], [[device]], [[shelf]], [[schedule]].
_PORT_TEXT = 'serial port, "tcp://host:502", "can:IFACE", "slcan:TTY"; the virtual cabinet: "virtual", "virtual-tcp", "virtual-can"'
_LATENCY_TEXT = "TCP only: a request's way there and its answer's way back, without turnaround"
_BITRATE_TEXT = "CAN: rate of the bus; SocketCAN has it from `ip link`"
_RS485_TEXT = 'who switches the RS-485 driver: "auto" the adapter, "on" the port with RTS, "inverted" the same with RTS low, "off" nobody'
_BEFORE_TEXT = "RTS so long before the first bit of a request; the plan counts it"
_AFTER_TEXT = "RTS so long after its last bit; below t3.5, or it speaks over the answer"
_TURNAROUND_TEXT = "from the request's detection to the answer's first bit, at worst (p99); -1: as the profile says. Not on CAN"
_UNIT_TEXT = "Modbus address: 1 to 247 on a serial line, 0 to 255 over TCP; CAN: 1 up"
BUS = {
    row.key: row
    for row in (
        Setting("name", None, 1, 20, "", "short name, used by devices and records", "str", needed=True, how=START),
        Setting("port", "virtual", 1, 200, "", _PORT_TEXT, "str", how=RESTART),
        Setting("baud", 460800, 1200, 4_000_000, "Bd", "line speed; serial ports and slcan adapters only", "int", how=RESTART),
        Setting("parity", "E", 1, 1, "", "E, O or N; serial ports only", "str", how=RESTART),
        Setting("stop_bits", 1, 1, 2, "", "1 or 2; serial ports only", "int", how=RESTART),
        Setting("rs485", "auto", 2, 8, "", _RS485_TEXT, "str", how=RESTART),
        Setting("rs485_before_ms", 0, 0, 100, "ms", _BEFORE_TEXT, "int", how=RESTART),
        Setting("rs485_after_ms", 0, 0, 100, "ms", _AFTER_TEXT, "int", how=RESTART),
        Setting("latency_ms", 1.0, 0.05, 1000, "ms", _LATENCY_TEXT, how=RESTART),
        Setting("bitrate", 500_000, 10_000, 1_000_000, "bit/s", _BITRATE_TEXT, "int", how=RESTART),
    )
}
DEVICE = {
    row.key: row
    for row in (
        Setting("name", None, 1, 20, "", "short name, used in events and records", "str", needed=True, how=START),
        Setting("role", None, 1, 20, "", "what it is to the controller", "str", needed=True, how=RESTART),
        Setting("bus", None, 1, 20, "", "the bus it answers on", "str", needed=True, how=RESTART),
        Setting("unit", None, 0, 255, "", _UNIT_TEXT, "int", needed=True, how=RESTART),
        Setting("profile", "sunspec", 1, 200, "", '"sunspec", a profile\'s name, or the path of a profile file', "str", how=RESTART),
        Setting("turnaround_ms", -1.0, -1, 1000, "ms", _TURNAROUND_TEXT, how=RESTART),
    )
}
_SHELF_UNITS = "addresses, one device each; without it every address that the profile knows is asked"
_SHELF_ALLOW = "what may be written to these devices, by the names of the profile's [[write]] rows; default: nothing"
SHELF = {
    row.key: row
    for row in (
        Setting("name", None, 1, 20, "", "short name; its devices are called NAME.UNIT", "str", needed=True, how=START),
        Setting("port", None, 1, 200, "", "serial port; several shelves may share one, no [[bus]] may", "str", needed=True, how=START),
        Setting("profile", None, 1, 200, "", "a shelf profile's name, or the path of a profile file", "str", needed=True, how=START),
        Setting("units", None, 1, 255, "", _SHELF_UNITS, "ints", how=START),
        Setting("baud", None, 1200, 4_000_000, "Bd", "line speed; default: the profile's", "int", how=START),
        Setting("parity", None, 1, 1, "", "E, O or N; default: the profile's", "str", how=START),
        Setting("stop_bits", 1, 1, 2, "", "1 or 2", "int", how=START),
        Setting("allow", None, 1, 40, "", _SHELF_ALLOW, "names", how=START),
    )
}
SCHEDULE = {
    row.key: row
    for row in (
        Setting("from", None, 5, 5, "", 'local time "HH:MM" at which the row begins', "str", needed=True, how=START),
        Setting(
            "to",
            None,
            5,
            5,
            "",
            'local time "HH:MM" at which it ends; before `from`: on the next day',
            "str",
            needed=True,
            how=START,
        ),
        Setting("days", None, 0, 7, "", 'days on which it begins, such as ["mon", "tue"]; default: every day', "days", how=START),
        Setting("base_w", None, -1e8, 1e8, "W", "added to the target of grid import: + charges the battery", needed=True, how=START),
    )
}

ROLES = ("pcs", "bms", "meter", "pv", "genset")


def derived(key: str, values: Mapping[str, Value]) -> Value:
    """Default of a setting that depends on others.

    The trip window is the part of the tables that must act at once: 60 Hz from IEEE 1547-2018 category III (56.5/62.0
    Hz, 0.50/1.20 pu at 0.16 s and 2 s; the slower steps of those tables are the interconnection relay's), 50 Hz from
    EN 50549-1 (47.5/51.5 Hz, 0.80/1.20 pu). Droop deadband: IEEE 1547-2018 0.036 Hz; 50 Hz continental Europe 0.2 Hz
    (EN 50549-1, LFSM).
    """
    sixty = float(values.get("site.f_nom_hz", 50)) > 55
    table: dict[str, Value] = {
        "grid.f_min_hz": 56.5 if sixty else 47.5,
        "grid.f_max_hz": 62.0 if sixty else 51.5,
        "grid.v_min_pu": 0.5 if sixty else 0.8,
        "grid.v_max_pu": 1.2,
        "control.droop_deadband_hz": 0.036 if sixty else 0.2,
        "pcs.p_max_w": values.get("pcs.s_rated_va", 250e3),
        "control.follow_w": 0.1 * float(values.get("pcs.s_rated_va", 250e3)),
        "load.peak_w": values.get("grid.feeder_w", 500e3),
    }
    return table[key]


def row_of(key: str) -> Setting | None:
    """The row of a key as `--set` spells it (`grid.import_limit_w`, `bus.a.baud`, `device.meter.unit`); None: no such key."""
    array, _, rest = key.partition(".")
    table = {"bus": BUS, "device": DEVICE}.get(array)
    if table is None:
        return SETTINGS.get(key)
    return table.get(rest.rpartition(".")[2]) if rest.count(".") == 1 else None


def range_text(row: Setting) -> str:
    """The allowed range as words, such as `0.1 to 10 s`."""
    if row.kind == "str":
        return f"{row.low:g} to {row.high:g} characters"
    unit = "" if row.unit == "1" else row.unit
    return f"{row.low:g} to {row.high:g} {unit}".rstrip()


# Spellings of units that people write, and the one unit the table uses for that quantity.
_FACTORS: dict[str, dict[str, float]] = {
    "w": {"kw": 1e3, "mw": 1e6, "w": 1},
    "wh": {"kwh": 1e3, "mwh": 1e6, "wh": 1},
    "va": {"kva": 1e3, "mva": 1e6, "va": 1},
    "var": {"kvar": 1e3, "mvar": 1e6, "var": 1},
    "v": {"kv": 1e3, "mv": 1e-3, "v": 1},
    "hz": {"khz": 1e3, "mhz": 1e-3, "hz": 1},
    "s": {"ms": 1e-3, "us": 1e-6, "min": 60, "m": 60, "h": 3600, "sec": 1, "s": 1},
    "w_per_s": {
        "kw_per_s": 1e3,
        "mw_per_s": 1e6,
        "w_per_min": 1 / 60,
        "kw_per_min": 1e3 / 60,
        "kw_per_h": 1e3 / 3600,
        "w_per_s": 1,
    },
    "pu": {"pct": 0.01, "percent": 0.01, "pu": 1},
}


def other_unit(name: str, known: Mapping[str, Setting]) -> tuple[str, float] | None:
    """The known key that `name` spells with another unit, and the factor to its unit; None where it is no such
    spelling.

    `import_limit_kw` -> ("import_limit_w", 1000.0); `soc_min_pct` -> ("soc_min", 0.01).
    """
    lower = name.lower()
    for target in known:
        for unit, spellings in _FACTORS.items():
            if not target.endswith("_" + unit):
                continue
            stem = target[: -len(unit) - 1]
            if lower == stem:
                return target, math.nan  # the unit is missing: which one was meant cannot be known
            for spelling, factor in spellings.items():
                if lower == f"{stem}_{spelling}" and lower != target:
                    return target, factor
        if lower in (f"{target}_pct", f"{target}_percent"):
            return target, 0.01
    return None


def in_unit(text: str, name: str) -> float | None:
    """The number in a text such as "445 kW", in the unit of setting `name`; None where it is no number with a unit."""
    parts = text.strip().lower().replace("/", "_per_")
    number = parts.rstrip("abcdefghijklmnopqrstuvwxyz_%µ ")
    unit = parts[len(number) :].strip() or ""
    try:
        x = float(number)
    except ValueError:
        return None
    if not unit:
        return x
    if unit == "%":
        return x * 0.01
    for base, spellings in sorted(_FACTORS.items(), key=lambda item: -len(item[0])):
        if name.endswith("_" + base):
            return x * spellings[unit] if unit in spellings else None
    return None


def markdown() -> str:
    """docs/settings.md: every key of the site file, from this table."""
    lines = [
        "# Settings",
        "",
        "Every key of the site file. Made from `controller/settings.py` by `python -m controller.settings > docs/settings.md`; a test",
        "holds the two together. `derived` defaults depend on another setting: 50 Hz or 60 Hz, or the converter's rating.",
        "",
        "`changes`: how it changes while the site runs, by `ballast settings set` ([commissioning.md](commissioning.md)):",
        "",
        *(f"- {name}: {words}" for name, words in HOW.items()),
    ]
    blocks = [(s, [r for r in SETTINGS.values() if r.section == s]) for s in SECTIONS]
    for title, rows in blocks:
        lines += ["", f"## [{title}]", "", "| key | default | range | changes | meaning |", "| --- | --- | --- | --- | --- |"]
        for r in rows:
            default = "**needed**" if r.needed else "derived" if r.default is None else f"`{r.default}`"
            lines.append(f"| `{r.name}` | {default} | {range_text(r)} | {r.how} | {r.text} |")
    for title, table in (("[[bus]]", BUS), ("[[device]]", DEVICE), ("[[shelf]]", SHELF), ("[[schedule]]", SCHEDULE)):
        lines += ["", f"## {title}", "", "| key | default | changes | meaning |", "| --- | --- | --- | --- |"]
        for r in table.values():
            default = "**needed**" if r.needed else "" if r.default is None else f"`{r.default}`"
            lines.append(f"| `{r.key}` | {default} | {r.how} | {r.text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
