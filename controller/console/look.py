"""The commands that look. They write nothing and hold nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from _core import image as core
from controller import build, explain, operate, status, topdata, wires
from controller.clock import utc
from controller.console import top, trend
from controller.console.commands import Command
from controller.console.context import FRESH_S, Context, Refused
from controller.console.standing import Alarm, alarms
from controller.instance import alive
from controller.process import MESSAGES_NAME
from controller.shelves import view as shelves

EVENTS, MOST_EVENTS = 12, 1000
LOG_LINES, LOG_BYTES = 12, 65536
LOST_WITH_CONTROL = "Lost with it: load following, limits, hold, setpoint, limit, mode, reset. The PCS goes to 0 W by its own timer."
STILL_HERE = "Still here: events, alarms, trend beyond 60 s"


def kw(watts: float) -> str:
    """Power in kW, or a dash."""
    return f"{round(watts / 1e3, 1) + 0.0:.1f} kW" if math.isfinite(watts) else "- kW"


def time_of(wall_s: float) -> str:
    """UTC, to the second."""
    return utc(wall_s).strftime("%Y-%m-%d %H:%M:%S")


# ---------------------------------------------------------------- status


def banner(ctx: Context) -> list[str]:
    """What a person should know at once: after log-in, and as the head of `status`."""
    if ctx.instance is None or ctx.site is None:
        return [f"NOTHING RUNS at site {ctx.site_name}: {ctx.why_not}", LOST_WITH_CONTROL, f"{STILL_HERE}."]
    lines = []
    if not alive(ctx.instance.control_pid):
        lines.append("CONTROL IS NOT RUNNING: nothing commands the battery; it is started again by itself.")
        lines += [LOST_WITH_CONTROL, f"{STILL_HERE}, log, plan, settings."]
    if not alive(ctx.instance.pid):
        lines.append("The parent is gone: control ramps to 0 and leaves; `ballast run` starts the site again.")
    if not alive(ctx.instance.supervisor_pid):
        lines.append("The supervisor is not running: limits stay as they are, history pauses; it is started again by itself.")
    row = ctx.image.latest()
    if row is None:
        return [*lines, f"site {ctx.site_name}: control waits for its devices; `log` tells which"]
    out, lim = row["out"], row["lim"]
    mode = core.MODE_NAMES[out["mode"]]
    words = core.START_NAMES[out["start_step"]] if mode == "STANDBY" and not ctx.image.park else topdata.mode_words(mode)
    if ctx.image.park:
        words = "held in standby by an operator; `mode auto` starts again"
    stale_s = (ctx.clock.monotonic_ns() - row["inp"]["t_ns"]) / 1e9
    if stale_s > FRESH_S:
        lines.append(f"THE NUMBERS BELOW ARE {stale_s:.1f} s OLD: control does not tick.")
    flow = "discharging" if out["batt_p_w"] > 500 else "charging" if out["batt_p_w"] < -500 else "resting"
    soc = f"{100 * out['soc']:.1f} %" if math.isfinite(out["soc"]) else "unknown"
    lines += [
        f"site {ctx.site.name}   {mode}   {words}",
        f"load {kw(out['load_w'])}   grid {kw(out['grid_p_w'])}   battery {kw(out['batt_p_w'])} ({flow})   SoC {soc}",
        f"battery may {out['p_min_w'] / 1e3:+.0f} to {out['p_max_w'] / 1e3:+.0f} kW; import limit {kw(lim['import_limit_w'])}, "
        f"ramp {lim['ramp_up_w_per_s'] / 1e3:g} kW/s",
    ]
    standing = [a for a in alarms(ctx) if a.active]
    if standing:
        lines.append(
            f"{len(standing)} alarm{'s' if len(standing) > 1 else ''}: {', '.join(a.id for a in standing)}; `alarms` tells what to do"
        )
    return lines


def _stale(ctx: Context) -> Iterable[str]:
    if silent := ctx.silent():
        yield f"{silent}: WHAT FOLLOWS IS HOW IT WAS"


def show_status(ctx: Context, words: list[str]) -> Iterable[str]:
    """The state on one screen."""
    yield from banner(ctx)
    if ctx.instance is None or ctx.site is None:
        return
    got = status.collect(ctx.instance, ctx.site, ctx.image, ctx.clock)
    now = operate.word(ctx.image, ctx.clock)
    yield f"operator: {now.text}" if now is not None else "operator: no setpoint; the battery follows the load"
    wake = got["wake_latency_us"] or {}
    late = f", wake p50 {wake['p50']:.0f} p99 {wake['p99']:.0f} max {wake['max']:.0f} us" if wake else ""
    yield f"ticks {got['ticks']}, missed {got['missed_ticks']}{late}"
    yield "processes " + ", ".join(f"{name} {got[name]['pid'] or 'not running'}" for name in ("parent", "control", "supervisor"))
    yield "devices   " + ", ".join(f"{name} {'answers' if row['alive'] else 'DOES NOT ANSWER'}" for name, row in got["devices"].items())
    if got["limits_active"]:
        yield f"limits at work: {', '.join(got['limits_active'])}; `why` explains them with their numbers"
    reasons = got["health"]["reasons"]
    yield from ["healthy"] if not reasons else [f"NOT HEALTHY: {reason}" for reason in reasons]


# ---------------------------------------------------------------- alarms and events


def show_alarms(ctx: Context, words: list[str]) -> Iterable[str]:
    """What stands, what was acknowledged, what has gone and nobody has seen yet."""
    found = alarms(ctx)
    if not found:
        yield "no alarms"
    for alarm in found:
        yield _alarm_line(alarm)
        yield f"    {alarm.text}"
        if alarm.active and alarm.recovery:
            yield f"    do: {alarm.recovery}"
    mode = _mode_now(ctx)
    if mode not in ("", "GRID", "ISLAND"):
        yield f"the site is in {mode}: no power is asked for; `why` says what it waits for"
    if any(not a.acked_by for a in found):
        yield "`ack ID` or `ack all` says that you have seen them"


def _mode_now(ctx: Context) -> str:
    """The mode, "" where nothing runs."""
    row = ctx.image.latest() if ctx.image is not None else None
    return core.MODE_NAMES[row["out"]["mode"]] if row is not None else ""


def _alarm_line(alarm: Alarm) -> str:
    state = "STANDS" if alarm.active else "gone"
    seen = f"seen by {alarm.acked_by}" if alarm.acked_by else "not seen yet"
    word = "since" if alarm.active else "now, came"
    since = f" {word} {time_of(alarm.since_wall_s)}" if alarm.since_wall_s else ""
    return f"{alarm.severity:<8} {alarm.id:<18} {state}{since}, {seen}"


def show_events(ctx: Context, words: list[str]) -> Iterable[str]:
    """The audit trail: what happened by itself, and every command with its author."""
    count, word = EVENTS, ""
    for w in words:
        if w.isdecimal():
            count = max(1, min(int(w), MOST_EVENTS))
        else:
            word = w.lower()
    with ctx.store() as store:
        rows = store.trail(count, word)
    if not rows:
        yield f"no events{f' with {word!r}' if word else ''}"
    for row in rows:
        what = f"{row.who}: {row.command}: {row.text}" if row.kind == "command" else row.text
        yield f"{time_of(row.wall_s)} {row.kind:<8} {what}"


# ---------------------------------------------------------------- why


def show_why(ctx: Context, words: list[str]) -> Iterable[str]:
    """Why power is what it is, in words and numbers."""
    row = ctx.latest()
    _, image, _ = ctx.running()
    out = row["out"]
    mode = core.MODE_NAMES[out["mode"]]
    yield from _stale(ctx)
    yield _headline(row, mode)
    if mode == "STANDBY":
        yield from ["An operator holds the site in standby; `mode auto` starts it again."] if image.park else _start_words(row, mode)
    for alarm in alarms(ctx):
        if alarm.active:
            yield f"- alarm {alarm.id}: {alarm.text}"
            if alarm.recovery:
                yield f"    do: {alarm.recovery}"
    for name, words_ in explain.limits(row):
        yield f"- {name}: {words_}"
    if mode == "GRID" and not out["limits_active"] & (core.LIM_HOLD | core.LIM_METER_STALE):
        yield (
            f"Load {kw(out['load_w'])} - reference of grid import {kw(out['ref_w'])} = {kw(out['load_w'] - out['ref_w'])}: what the "
            f"battery is wanted for. The reference goes toward {kw(out['target_w'])}."
        )
    yield from _bounds(row, image)


def _headline(row: dict[str, Any], mode: str) -> str:
    out = row["out"]
    does = "discharges" if out["p_cmd_w"] > 0 else "charges" if out["p_cmd_w"] < 0 else "does neither charge nor discharge"
    because = {
        "GRID": "it carries what the load is off the reference of grid import"
        if out["p_cmd_w"]
        else "nothing is wanted of it, or nothing is allowed",
        "STANDBY": "the site has not started: no power is asked for in STANDBY",
        "FAULT": "there is a fault: in FAULT power is 0 until its cause is gone and it is reset",
        "TRIP": "the grid is, or was, outside its window: power is 0 until it has been good for the enter-service delay",
        "STOP": "it was told to stop",
        "ISLAND": "the PCS makes voltage and frequency, and carries whatever the load is",
        "RESYNC": "it waits to match the grid before closing",
    }[mode]
    if out["limits_active"] & core.LIM_HOLD:
        because = "a setpoint holds it there"
    elif out["limits_active"] & core.LIM_METER_STALE:
        because = "the meter's value is too old to follow"
    return f"The battery {does} ({kw(out['p_cmd_w'])} asked for): {because}."


def _start_words(row: dict[str, Any], mode: str) -> Iterable[str]:
    """What the start sequence waits for, with what is there instead."""
    inp, step = row["inp"], row["out"]["start_step"]
    yield f"Start step {step + 1} of 5: {core.START_NAMES[step]}."
    if step == core.START_DEVICES:
        for name, words in explain.GROUPS.items():
            group = inp[name]["g"]
            if name in ("meter", "pcs", "bms", "bms_lim") and group["quality"] != core.Q_GOOD:
                yield f"- {words}: {explain.QUALITY[group['quality']]}"
        if inp["verified"] != 1:
            yield "- identities are not proven yet" if inp["verified"] == 0 else "- a device is NOT the one that was compiled: `devices`"
    elif step == core.START_BMS:
        bms, lim = inp["bms"], inp["bms_lim"]
        state = {3.0: "connected", 4.0: "standby (contactors open)", 99.0: "FAULT"}.get(bms["bms_state"], f"state {bms['bms_state']:g}")
        allows = f"{lim['batt_i_charge_max_a']:.0f} A of charge, {lim['batt_i_discharge_max_a']:.0f} A of discharge"
        yield f"- the BMS says: {state}; it allows {allows}"
        closed = bms["bms_state"] == 3.0
        yield "- contactors are closed; no power is allowed yet, see below" if closed else "- the contactors are open: close them"
    elif step == core.START_OPERATE:
        yield f"- the PCS says state {inp['pcs']['pcs_state']:g} (3 is running), grid {inp['meter']['f_hz']:.3f} Hz"


def _bounds(row: dict[str, Any], image: Any) -> Iterable[str]:
    """Who sets what the battery may do now."""
    from _core.kernel import bounds

    site = image.site()
    found = bounds(row["inp"], row["lim"], site)
    for way, bit, watts in (
        ("discharge", found["why_discharge"], found["p_discharge_max_w"]),
        ("charge", found["why_charge"], found["p_charge_max_w"]),
    ):
        name, words = core.LIMIT_TEXT.get(bit, ("", "nothing bounds it"))
        yield f"May {way} {kw(watts)}, bounded by {name}: {words}{_number(bit, row, site)}."


def _number(bit: int, row: dict[str, Any], site: dict[str, Any]) -> str:
    """What is measured of a bound, and what is allowed."""
    inp, lim = row["inp"], row["lim"]
    if bit == core.LIM_TEMP:
        low, high = inp["bms_temp"]["batt_temp_min_c"], inp["bms_temp"]["batt_temp_max_c"]
        least, most, taper = site["temp_min_c"], site["temp_max_c"], site["temp_taper_c"]
        return f" ({low:.1f} to {high:.1f} °C; none below {least:g} or above {most:g}, all of it {taper:g} K inside)"
    if bit == core.LIM_BMS_CHARGE:
        return f" ({inp['bms_lim']['batt_i_charge_max_a']:.0f} A)"
    if bit == core.LIM_BMS_DISCHARGE:
        return f" ({inp['bms_lim']['batt_i_discharge_max_a']:.0f} A)"
    if bit in (core.LIM_SOC_MIN, core.LIM_SOC_MAX):
        return f" ({100 * inp['bms']['soc']:.1f} %; {100 * lim['soc_min']:g} to {100 * lim['soc_max']:g} %)"
    if bit == core.LIM_BATT_V:
        return f" ({inp['bms_lim']['batt_v']:.1f} V)"
    return ""


# ---------------------------------------------------------------- devices, buses, plan, log


def show_buses(ctx: Context, words: list[str]) -> Iterable[str]:
    """Each bus: its port and its counters; its wire and its devices as measured, beside the plan."""
    instance, image, site = ctx.running()
    got = wires.collect(image, site, (instance.plan or {}).get("wires"))
    total = (
        "transactions",
        "timeouts",
        "crc_errors",
        "late",
        "exceptions",
        "wrong_unit",
        "short_frames",
        "long_frames",
        "echoes",
        "overruns",
        "reopened",
    )
    for i, bus in enumerate(site.buses):
        row = image.bus_stats(i)
        yield f"bus {bus.name}   {bus.port}   {bus.speed}   {'open' if row['is_open'] else 'PORT IS GONE'}"
        bad = row["timeouts"] + row["crc_errors"] + row["short_frames"] + row["wrong_unit"]
        share = f"{100 * bad / row['transactions']:.3f} % bad" if row["transactions"] else "nothing sent yet"
        yield f"    {share}: " + ", ".join(f"{row[key]} {key.replace('_', ' ')}" for key in total if row[key] or key == "transactions")
        told = [(d, wires.device_line(r)) for d, r in got["devices"].items() if r["bus"] == bus.name]
        yield from (f"    {text}" for text in [wires.bus_line(got["buses"][bus.name]), *(f"{d}: {t}" for d, t in told if t)] if text)
    yield from filter(None, [wires.meter_line(got)])
    yield from (f"WARNING {text}" for text in wires.warnings(got, site) + build.held_notes(site))


def show_devices(ctx: Context, words: list[str]) -> Iterable[str]:
    """Each device: answers, identity, and how old what it said is."""
    _, image, site = ctx.running()
    now_ns = ctx.clock.monotonic_ns()
    for i, device in enumerate(site.devices):
        row = image.device_stats(i)
        proven = {1: "identity proven", 0: "identity not proven yet", -1: "IS ANOTHER DEVICE"}[row["verified"]]
        ago = f"{max(0, now_ns - row['last_ok_ns']) / 1e6:.0f} ms ago" if row["last_ok_ns"] else "never"
        place = f"bus {device.bus} unit {device.unit}"
        yield f"{device.name:<8} {device.role:<6} {place}   {'answers' if row['alive'] else 'DOES NOT ANSWER'}, {proven}"
        counts = f"{row['ok']} answers, {row['failed']} failed, lost {row['lost_count']} times"
        yield f"    last answer {ago}, {counts}, profile {device.profile}"
    latest = image.latest()
    if latest is None:
        return
    step_ns = latest["inp"]["step_t_ns"]
    for name, words_ in explain.GROUPS.items():
        group = latest["inp"][name]["g"]
        if group["count"]:
            age_ms = (step_ns - group["t_ns"]) / 1e6
            yield f"  {words_:<26} {explain.QUALITY[group['quality']]}, {age_ms:.1f} ms old, {group['count']} answers"


def show_shelves(ctx: Context, words: list[str]) -> Iterable[str]:
    """What stands beside the tick: a line a shelf, or every item of one device."""
    instance, _, site = ctx.running()
    now_ns = ctx.clock.monotonic_ns()
    if not site.shelves:
        return ["no [[shelf]] in this site"]
    seen = shelves.look(Path(instance.directory), site)
    if not words:
        return shelves.overview(seen, now_ns)
    if words[0] not in seen.names:
        raise Refused(f"{words[0]} is no device beside the tick; {shelves.near(words[0], seen)}")
    return shelves.device(seen, words[0], now_ns)


def _shelf_names(ctx: Context, words: list[str]) -> Iterable[str]:
    site = ctx.site
    return [f"{shelf.name}.{unit}" for shelf in site.shelves for unit in shelf.units] if site is not None else []


def show_plan(ctx: Context, words: list[str]) -> Iterable[str]:
    """The bus plan that the site runs on."""
    instance, _, _ = ctx.running()
    yield from (Path(instance.directory) / "plan.txt").read_text().splitlines()


def show_log(ctx: Context, words: list[str]) -> Iterable[str]:
    """What the processes said last."""
    instance, _, _ = ctx.running()
    count = int(words[0]) if words and words[0].isdecimal() else LOG_LINES
    with open(Path(instance.directory) / MESSAGES_NAME, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_BYTES))
        lines = file.read(LOG_BYTES).decode("utf-8", "replace").splitlines()
    yield from lines[-max(1, min(count, 500)) :] or ["nothing was said yet"]


# ---------------------------------------------------------------- mode, limit, who


def show_mode(ctx: Context, words: list[str]) -> Iterable[str]:
    """The mode, since when, and the last changes."""
    row = ctx.latest()
    _, image, _ = ctx.running()
    out = row["out"]
    mode = core.MODE_NAMES[out["mode"]]
    yield from _stale(ctx)
    since_s = (row["inp"]["t_ns"] - (image.state() or {"mode_since_ns": row["inp"]["t_ns"]})["mode_since_ns"]) / 1e9
    yield f"mode {mode} for {since_s:.0f} s: {core.START_NAMES[out['start_step']] if mode == 'STANDBY' else topdata.mode_words(mode)}"
    if image.park:
        yield "an operator holds the site in standby; `mode auto` starts it again"
    with ctx.store() as store:
        for event in store.trail(5, "", kind="mode"):
            yield f"  {time_of(event.wall_s)} {event.text}"


LIMIT_NAMES = {
    "import": ("import_limit_w", "W", "grid import"),
    "export": ("export_limit_w", "W", "grid export"),
    "charge": ("p_charge_max_w", "W", "battery charge"),
    "discharge": ("p_discharge_max_w", "W", "battery discharge"),
    "soc_min": ("soc_min", "", "no discharge below"),
    "soc_max": ("soc_max", "", "no charge above"),
}


def show_limit(ctx: Context, words: list[str]) -> Iterable[str]:
    """The limits in force, and which of them an operator has tightened."""
    row = ctx.latest()
    _, image, site = ctx.running()
    yield from _stale(ctx)
    own = operate.standing_limits(image, ctx.clock)
    left_s = (image.operator_limits()["lease_until_ns"] - ctx.clock.monotonic_ns()) / 1e9 if own else 0.0
    for name, (key, unit, text) in LIMIT_NAMES.items():
        value = row["lim"][key]
        shown = kw(value) if unit else f"{100 * value:.1f} %"
        note = f"   set by an operator, another {left_s:.0f} s" if own.get(key) == value else ""
        yield f"{name:<10} {shown:>12}   {text}{note}"
    up, down = (row["lim"][f"ramp_{way}_w_per_s"] / 1e3 for way in ("up", "down"))
    yield f"{'ramp':<10} {up:>7g} kW/s   rise of grid import; fall {down:g} kW/s"
    yield f"{'feeder':<10} {kw(site.num('grid.feeder_w')):>12}   PCC breaker"


def show_who(ctx: Context, words: list[str]) -> Iterable[str]:
    """Everybody who is logged in, and what they hold."""
    for s in [ctx.presence.own, *ctx.presence.others()]:
        own = " (you)" if s.pid == ctx.presence.own.pid else ""
        yield f"{s.user} ({s.role}) on {s.line}{own} since {time_of(s.since_wall_s)}" + (f", holds {s.holds}" if s.holds else "")
    if ctx.image is not None and (now := operate.word(ctx.image, ctx.clock)) is not None:
        yield f"operator's slot: {now.text}, {operate.named(now.id)}"


ROWS = (
    Command("status", "viewer", "", "the state on one screen", show_status),
    Command("why", "viewer", "", "why the battery does what it does, with the numbers", show_why),
    Command("alarms", "viewer", "", "what is wrong, since when, and what to do", show_alarms),
    Command("events", "viewer", "[N] [WORD]", "what happened, and every command with its author", show_events, 2),
    Command("top", "viewer", "", "live view; q ends it", top.run),
    Command("trend", "viewer", "SIGNAL [SPAN]", "one signal drawn: 10ms to 24h", trend.run, 2, 1, trend.complete),
    Command("mode", "viewer", "", "the mode and its last changes", show_mode),
    Command("limit", "viewer", "", "the limits in force", show_limit),
    Command("devices", "viewer", "", "each device: answers, identity, age of its values", show_devices),
    Command("buses", "viewer", "", "each bus: port and error counters", show_buses),
    Command("shelves", "viewer", "[DEVICE]", "power shelves, backup units, pumps beside the tick", show_shelves, 1, complete=_shelf_names),
    Command("plan", "viewer", "", "the bus plan: when in the tick what is asked", show_plan),
    Command("log", "viewer", "[N]", "what the processes said last", show_log, 1),
    Command("who", "viewer", "", "who is logged in, and who holds what", show_who),
)
