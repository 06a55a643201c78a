"""Steps that move the battery a little: polarity, delay and lag, ramp, and a minute of following."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from _core import image as core
from controller import build
from controller.commission import delay, edges, measure
from controller.commission.results import FAIL, PASS, Result, plain, thin
from controller.commission.rig import MOST, Refused, Rig
from controller.commission.talk import tell, yes

WATCH_S = 12.0  # a training cluster's pulse comes every 11 s
STAND_S = 0.5  # a plateau between two steps
BASE_S = 60.0  # the power to step around is reached in so long
CLIMB_S = 8.0  # a step is made small enough to be climbed in so long
WANTED = 14
LONGEST_S = 180.0
LOOKS = 4
SETTLE_MOST_NS = 5_000_000_000
GRID_S = 20.0
CLOSE_S = 120.0
ALIGN_MOST_S = 0.003
TRY_S = 400.0  # two looks at a restless load, and the person
TAKEN_S = 3.0
WITHIN = 0.05  # of the ramp limit
RAMP_S = 30.0  # a ramp step is made small enough to be climbed in so long
FOLLOW_S = 60.0
MISSED_VIRTUAL = 0.01  # of ticks: a machine that also runs the virtual cabinet may be busy; a site misses none

CAUSES = {
    "ok": "grid import falls by as much as the battery gives",
    "few": "too few clean steps: a limit was in the way, or the load stands at one; make the load calmer and repeat",
    "restless": "the load moves too much for the size of the steps; make it calmer and repeat",
    "meter_sign": "grid import rises when the battery gives power, and the load would be negative: the meter counts the other way",
    "meter_or_pcs_sign": "grid import rises when the battery gives power: the meter counts the other way, or the PCS does",
    "readback_sign": "the PCS does what it is told and shows the opposite: the sign of its readback is wrong",
    "pcs_command_sign": "the PCS does the opposite of what it is told: the sign of its setpoint is wrong",
    "no_ct": "the meter does not see the battery: its current transformers sit elsewhere, are shorted, or a voltage is missing",
    "one_phase": "the meter sees two thirds: one current transformer or one voltage is missing",
    "one_reversed": "the meter sees a third: one of three current transformers is the wrong way round, or two phases are exchanged",
    "not_following": "neither meter nor readback move: the PCS does not follow its setpoint",
    "no_readback": "the meter sees the battery, the PCS's readback does not move: its power is read from the wrong register",
    "gain": "the meter sees another power than the battery gives: ratio of current transformers, scale in the profile",
}


def grid_or_refuse(rig: Rig) -> None:
    """Waits for GRID. Raises Refused with the mode and alarms that stand."""
    if rig.mode == core.MODE_FAULT and yes(rig.talk, f"The site is in FAULT ({', '.join(rig.alarms())}). Reset it now?", default="no"):
        rig.reset()
    if not rig.until(lambda: rig.mode == core.MODE_GRID, GRID_S, f"waiting for GRID, {GRID_S:.0f} s at most"):
        alarms = ", ".join(rig.alarms()) or "none"
        where = f"the site is in {core.MODE_NAMES[rig.mode]}, not in GRID (alarms: {alarms})"
        raise Refused(f"{where}; `ballast status` says what it waits for, `ballast reset` ends a FAULT whose causes are gone")


def _closed(rig: Rig) -> None:
    """Where the site still waits for contactors: they close under a hold of 0 W, so that nothing is followed whose sign
    nobody has seen yet.
    """
    if rig.mode != core.MODE_STANDBY:
        return
    rig.hold(0.0, CLOSE_S)
    tell(rig.talk, "The battery is held at 0 W: nothing is followed. Close the battery contactors now if they are open.", "  ")
    rig.until(lambda: rig.mode != core.MODE_STANDBY, CLOSE_S, "waiting for GRID")


def _room(rows: NDArray[np.void], rig: Rig) -> tuple[float, float]:
    """W that the grid's limits leave for (charging, discharging), with something to spare; negative: none. By what the
    grid has to carry without the battery: load less PV and genset.
    """
    net, lim = rows["out"]["grid_p_w"] + rows["out"]["batt_p_w"], rows["lim"][-1]
    spare = 0.04 * rig.rating_w
    charge = min(float(lim["import_limit_w"]), rig.num("grid.feeder_w")) - float(net.max()) - spare
    return charge, float(net.min()) + float(lim["export_limit_w"]) - spare


def _plateau(rows: NDArray[np.void], rig: Rig, step_w: float) -> float:
    """The power around which to step, so that import and export limit leave the battery alone. Raises Refused."""
    charge, highest = _room(rows, rig)
    lowest = -charge
    if lowest <= -step_w and highest >= step_w:
        return 0.0
    base = lowest + step_w if lowest > -step_w else highest - step_w
    most = min(rig.allowed_w - step_w, BASE_S * rig.ramp_w_per_s)
    if abs(base) > most:
        base = math.copysign(most, base)
    tell(rig.talk, f"The load is near a limit of the grid; the steps are made around {base / 1e3:+.1f} kW.", "  ")
    return base


def step_train(rig: Rig, note: str, settled_ns: int = 0, *, sign_trip: bool = False) -> tuple[NDArray[np.void], list[edges.Edge], float]:
    """Rows with at least ten clean steps where the load allows; (rows, edges, size of a step).

    A hold climbs away from zero at the ramp and falls toward zero at once: the falls are the steps. settled_ns: how long
    the power takes to stand; 0: by what the site believes. Raises Refused where the site leaves GRID for a FAULT or a TRIP;
    sign_trip: a FAULT meter_sign is an answer, and ends the steps.
    """
    grid_or_refuse(rig)
    size = min(rig.step_w, rig.ramp_w_per_s * CLIMB_S)
    believed = settled_ns or edges.settle_ns(build.detection_s(rig.site) + rig.num("pcs.dead_time_s"), rig.num("pcs.tau_s"))
    stand_s = max(STAND_S, 2e-9 * believed + 0.2)
    rig.glide(0.0, LONGEST_S)
    rig.record()
    rig.wait(WATCH_S, "looking at the load first")
    base = _plateau(rig.rows(), rig, size)
    peaks = [base + math.copysign(size, base)] if base else [size, -size]
    climb_s = size / rig.ramp_w_per_s + stand_s
    rig.glide(base, LONGEST_S, "the battery is led to where the steps begin")
    rig.wait(abs(base) / rig.ramp_w_per_s + stand_s)
    total_s = WANTED * (climb_s + stand_s)
    rig.record()
    found: list[edges.Edge] = []
    passed_s, k = 0.0, 0
    while passed_s < LONGEST_S:
        rig.hold(peaks[k % len(peaks)], LONGEST_S)
        rig.wait(climb_s, f"{note}: some {total_s:.0f} s of steps of {size / 1e3:g} kW" if k == 0 else "")
        rig.hold(base, LONGEST_S)
        rig.wait(stand_s)
        passed_s, k = passed_s + climb_s + stand_s, k + 1
        if rig.mode in (core.MODE_FAULT, core.MODE_TRIP):
            if sign_trip and "meter_sign" in rig.alarms():
                break
            alarms = ", ".join(rig.alarms()) or "none"
            what = f"the site went to {core.MODE_NAMES[rig.mode]} in mid-measurement (alarms: {alarms})"
            raise Refused(f"{what}; repeat it once that is over")
        if k < WANTED:
            continue
        found = edges.find(rig.rows(), size, believed)
        if len(found) >= WANTED - 2:
            break
    rows = rig.rows()
    return rows, edges.find(rows, size, believed), size


def _edge_series(rows: NDArray[np.void], found: list[edges.Edge]) -> dict[str, dict[str, list[float]]]:
    """Up to six edges of each signal, laid over one another: ms after the command, change in kW."""
    out: dict[str, dict[str, list[float]]] = {}
    for name, group, field in (("meter", "meter", "grid_p_w"), ("readback", "pcs", "batt_p_w")):
        signal = edges.series(rows, group, field)
        x: list[float] = []
        y: list[float] = []
        for e in found[:6]:
            before = signal.between(e.t_ns + edges.BEFORE_NS[0], e.t_ns + edges.BEFORE_NS[1])
            if not len(before):
                continue
            a, b = np.searchsorted(signal.t_ns, (e.t_ns - 60_000_000, e.t_ns + 150_000_000))
            base = float(np.median(before))
            x += [float(t - e.t_ns) / 1e6 for t in signal.t_ns[a:b]]
            y += [float(w - base) / abs(e.step_w) * math.copysign(1.0, e.step_w) for w in signal.w[a:b]]
        out[f"edges_{name}"] = thin(x, y)
    return out


def polarity(rig: Rig) -> Result:
    """Small steps of battery power: grid import must move by as much the other way."""
    if "meter_sign" in rig.alarms():
        return Result(FAIL, f"the kernel's own sign trip stands: {_advice(rig, 'meter_sign')}", facts=["FAULT meter_sign: see there"])
    _closed(rig)
    rows, found, size = step_train(rig, "polarity", sign_trip=True)
    if "meter_sign" in rig.alarms():
        return Result(FAIL, f"the kernel's own sign trip came: {_advice(rig, 'meter_sign')}; then `ballast reset`")
    grid_w = float(np.median(rows["inp"]["meter"]["grid_p_w"]))
    p = edges.polarity(found, grid_w)
    result = Result(PASS if p.verdict == "pass" else FAIL, _advice(rig, p.cause))
    result.numbers = {"edges": p.edges, "step_w": size, "grid_per_battery": p.ratio, "grid_per_battery_error": p.spread,
                      "readback_per_command": p.follow, "grid_p_w": grid_w}  # fmt: skip
    result.facts.append(
        f"over {p.edges} steps of {size / 1e3:g} kW grid import moved by {p.ratio:+.3f} +- {p.spread:.3f} of the battery's move "
        f"(-1 is right), the readback by {p.follow:+.3f} of the command"
    )
    result.series = _edge_series(rows, found)
    return result


def _advice(rig: Rig, cause: str) -> str:
    """The cause in words, and what to change in which profile."""

    def of(role: str) -> str:
        return next((f"{d.name} (profile {d.profile})" for d in rig.site.devices if d.role == role), role)

    todo = {
        "meter_sign": f"; change `sign` of grid_p_w in the profile of {of('meter')}, or turn its current transformers",
        "meter_or_pcs_sign": f"; if grid import reads right with the battery at rest, change `sign` of batt_p_w and of the setpoint of "
                             f"{of('pcs')}, else `sign` of grid_p_w of {of('meter')}",
        "readback_sign": f"; change `sign` of batt_p_w in the profile of {of('pcs')}",
        "pcs_command_sign": f"; change `sign` of the setpoint (p_cmd_w) in the profile of {of('pcs')}",
        "no_ct": f"; look at the current transformers and voltages of {of('meter')}",
        "gain": f"; look at the transformer ratio and at `scale` of grid_p_w of {of('meter')}",
    }  # fmt: skip
    return CAUSES[cause] + todo.get(cause, "")


def _measured(rig: Rig, believed: tuple[float, float]) -> tuple[list[edges.Edge], delay.Samples, delay.Fit | None]:
    """Steps, samples and fit. A converter slower than believed had not settled where the first look began: it is looked
    at again, with longer stands where the rows do not reach so far.
    """
    settled = edges.settle_ns(*believed)
    rows, found, size = step_train(rig, "delay and lag")
    samples = delay.gather(rows, found, settled)
    got = delay.fit(samples, *believed)
    for _ in range(LOOKS):
        slower = settled if got is None else min(SETTLE_MOST_NS, edges.settle_ns(got.dead_s, got.tau_s))
        if slower <= 1.1 * settled:
            break
        if slower + edges.WIDE_NS >= 1e9 * max(STAND_S, 2e-9 * settled + 0.2):
            tell(rig.talk, "The PCS is slower than the site believes; the steps are made again with longer stands.", "  ")
            rows, found, size = step_train(rig, "delay and lag again", slower)
        settled = slower
        found = edges.find(rows, size, settled)
        samples = delay.gather(rows, found, settled)
        got = delay.fit(samples, *believed)
    return found, samples, got


def pcs_delay(rig: Rig) -> Result:
    """Dead time and lag of the PCS from many small steps; offers to write them where the site believes otherwise."""
    detection_s = build.detection_s(rig.site)
    believed = (detection_s + rig.num("pcs.dead_time_s"), rig.num("pcs.tau_s"))
    found, samples, got = _measured(rig, believed)
    if got is None or got.edges < edges.FEWEST:
        return Result(FAIL, CAUSES["few"], {"edges": len(found)})
    dead_s, tau_s = max(0.0, got.dead_s - detection_s), got.tau_s
    result = Result(PASS, "")
    numbers = plain(asdict(got))
    for key in ("dead_range_s", "tau_range_s", "sum_range_s"):
        low, high = numbers.pop(key)
        numbers |= {f"{key.removesuffix('_range_s')}_low_s": low, f"{key.removesuffix('_range_s')}_high_s": high}
    result.numbers = numbers | {"detection_s": detection_s}
    result.numbers |= {"site_dead_time_s": rig.num("pcs.dead_time_s"), "site_tau_s": rig.num("pcs.tau_s")}
    result.facts.append(
        f"{got.edges} steps, {got.samples} samples: dead time {1e3 * dead_s:.2f} ms (after {1e3 * detection_s:.2f} ms of frame detection), "
        f"lag {1e3 * tau_s:.2f} ms; the site says {1e3 * rig.num('pcs.dead_time_s'):.2f} and {1e3 * rig.num('pcs.tau_s'):.2f} ms"
    )
    result.facts.append(
        "the samples allow (95 %) "
        + ", ".join(f"{name} {1e3 * low:.2f} to {1e3 * high:.2f} ms" for name, (low, high) in (
            ("detection and dead time", got.dead_range_s), ("lag", got.tau_range_s), ("their sum", got.sum_range_s)))
    )  # fmt: skip
    order = np.argsort(samples.t_s)
    for name, mask in (("meter", samples.meter[order]), ("readback", ~samples.meter[order])):
        result.series[f"delay_{name}"] = thin((1e3 * samples.t_s[order][mask]).tolist(), samples.r[order][mask].tolist())
    _settle(rig, result, got, dead_s, tau_s)
    return result


def _judged(align_s: float) -> float | None:
    """The error between model and readback; None where the kernel has not judged it yet, which it shows as 0."""
    return align_s if align_s else None


def _settle(rig: Rig, result: Result, got: delay.Fit, dead_s: float, tau_s: float) -> None:
    """The verdict on a fit: kept, written, or what a person has to do."""
    align_s = _judged(float(rig.latest()["out"]["align_s"]))
    result.numbers["align_s"] = align_s
    if align_s is None:
        result.facts.append("model and readback were not compared: that takes more or larger steps than were made (align_s)")
    if got.believed_fits:
        low, high = got.sum_range_s
        bound = "" if got.separable else f" (they tell dead time and lag apart badly; the sum is {1e3 * low:.1f} to {1e3 * high:.1f} ms)"
        result.verdict, result.reason = PASS, "the site's values are among those the samples allow: kept" + bound
        if align_s is not None and not abs(align_s) < ALIGN_MOST_S:
            apart = f", but model and readback are {1e3 * align_s:.1f} ms apart: the meter's or the PCS's stamp is wrong"
            result.verdict, result.reason = FAIL, result.reason + apart
        return
    if not got.separable:
        low, high = got.sum_range_s
        result.verdict, result.reason = FAIL, (
            f"the site's values do not fit, and the samples cannot tell dead time from lag: their sum with detection is {1e3 * low:.1f} to "
            f"{1e3 * high:.1f} ms; the data sheet's values are kept, ask its maker for the step response"
        )
        return
    changes = {"pcs.dead_time_s": round(dead_s, 5), "pcs.tau_s": round(tau_s, 5)}
    typed = f"[pcs] dead_time_s = {changes['pcs.dead_time_s']:g}, tau_s = {changes['pcs.tau_s']:g} in {rig.site.file}, then restart ballast"
    for fact in result.facts:
        tell(rig.talk, fact, "  ")
    if not yes(rig.talk, f"Write pcs.dead_time_s = {changes['pcs.dead_time_s']:g}, pcs.tau_s = {changes['pcs.tau_s']:g} into the site?"):
        result.verdict, result.reason = FAIL, f"the site believes other values, and they were not written; type {typed}"
        return
    _write(rig, result, changes, typed)


def _write(rig: Rig, result: Result, changes: dict[str, float], typed: str) -> None:
    """Tries the values, measures again, confirms them where they hold. They fall back by themselves where not."""
    before = {key: rig.num(key) for key in changes}
    rig.release()
    got = rig.try_settings(changes, TRY_S)
    if not got["ok"]:
        result.verdict, result.reason = FAIL, f"not written ({got['why']}); type {typed}"
        result.writes.append(f"not written: {typed}")
        return
    try:
        why_not, align_s = _second_look(rig, changes)
    except Refused as e:
        why_not, align_s = str(e), None
    result.numbers["align_after_s"] = align_s
    if why_not:
        result.verdict, result.reason = FAIL, f"with the new values {why_not}: they were not kept"
        return
    done = rig.confirm()
    if not done["ok"]:
        what = "whether they were kept is not known" if done.get("lost") else "not confirmed"
        then = "`ballast settings get pcs.` shows it" if done.get("lost") else f"they fall back; type {typed}"
        result.verdict, result.reason = FAIL, f"tried, but {what} ({done['why']}): {then}"
        result.writes.append(f"{'perhaps ' if done.get('lost') else ''}not written: {typed}")
        return
    where = f"written into {done['written']}" if done.get("written") else "in force, not written into a file"
    result.writes += [f"{key} = {value:g} (was {before[key]:g}), {where}" for key, value in changes.items()]
    apart = "were not compared" if align_s is None else f"are {1e3 * align_s:.2f} ms apart"
    result.verdict, result.reason = PASS, f"tried and confirmed; model and readback {apart}"
    if done.get("note"):
        result.writes.append(str(done["note"]))  # such as: in force, but there is no file to write it into


def _second_look(rig: Rig, changes: dict[str, float]) -> tuple[str, float | None]:
    """Measures with the values that are tried: (why they are not to be kept, "" where they hold; model against readback).
    Raises Refused.
    """
    rig.wait(TAKEN_S, "control takes the new values")
    rows, found, _ = step_train(rig, "the same with the new values")
    new = (build.detection_s(rig.site) + changes["pcs.dead_time_s"], changes["pcs.tau_s"])
    settled = edges.settle_ns(*new)
    again = delay.fit(delay.gather(rows, found, settled), *new)
    align_s = _judged(float(np.max(np.abs(rows["out"]["align_s"][-100:]))))
    if rig.mode != core.MODE_GRID:
        return f"the site went to {core.MODE_NAMES[rig.mode]}", align_s
    if again is None or again.edges < edges.FEWEST:
        return "there were too few clean steps to measure them", align_s
    if align_s is not None and not align_s < ALIGN_MOST_S:
        return f"model and readback are {1e3 * align_s:.1f} ms apart", align_s
    return "" if again.believed_fits else "the second measurement does not agree", align_s


def ramp(rig: Rig) -> Result:
    """A hold up and down by 20 % of rating: slopes against the ramp limits."""
    grid_or_refuse(rig)
    limits = rig.latest()["lim"]
    up, down = float(limits["ramp_up_w_per_s"]), float(limits["ramp_down_w_per_s"])
    rig.record()
    rig.wait(WATCH_S, "looking at the load first")
    size = min(MOST * rig.rating_w, up * RAMP_S)
    charge, discharge = _room(rig.rows(), rig)
    room = {+1: discharge, -1: charge}
    result = Result(PASS, "", {"step_w": size, "ramp_up_w_per_s": up, "ramp_down_w_per_s": down})
    rig.record()
    for sign, word in ((1, "discharging"), (-1, "charging")):
        if room[sign] < 0.25 * size:
            result.facts.append(f"{word}: not tried, the load leaves no room within the grid's limits")
            continue
        goal = sign * min(size, room[sign])
        rig.glide(0.0, RAMP_S, f"the battery is led to 0 W before {word}")
        rig.wait(1.0)
        rig.hold(goal, 2 * RAMP_S)
        rig.wait(abs(goal) / up + 1.0, f"{word} to {abs(goal) / 1e3:.0f} kW at the ramp")
        rig.release()  # from here the reference moves by itself
        rig.wait(5.0, "following from there")
    rows = rig.rows()
    got = measure.ramp(rows)
    result.numbers |= plain(asdict(got))
    t_s = (rows["inp"]["t_ns"] - rows["inp"]["t_ns"][:1]) / 1e9  # (there is no row where no direction was tried)
    result.series["ramp_command"] = thin(t_s.tolist(), (rows["out"]["p_cmd_w"] / 1e3).tolist())
    _judge_ramp(result, got, up, down)
    return result


def _judge_ramp(result: Result, got: measure.Ramp, up: float, down: float) -> None:
    rows = (
        ("battery, discharging", got.up_w_per_s, up, True), ("battery, charging", got.down_w_per_s, up, True),
        ("reference of grid import, up", got.ref_up_w_per_s, up, False), ("the same, down", got.ref_down_w_per_s, down, False),
    )  # fmt: skip
    bad, climbed = [], 0
    for name, slope, limit, must in rows:
        if not math.isfinite(slope):
            continue
        climbed += must
        result.facts.append(f"{name}: at most {slope:.0f} W/s, limit {limit:.0f} W/s")
        if slope > limit * (1 + WITHIN):
            bad.append(f"{name} moved at {slope:.0f} W/s, the limit is {limit:.0f} W/s")
    # (a ramp so fast that a step is one tick has nothing to be compared with)
    slowest = min((s for _, s, _, must in rows if must and math.isfinite(s)), default=math.nan)
    if not climbed:
        bad.append("no step could be made: the load leaves no room within the grid's limits")
    elif slowest < up * (1 - WITHIN) and up * 0.2 < result.numbers["step_w"]:  # type: ignore[operator]
        bad.append(f"the battery climbed at {slowest:.0f} W/s only, the limit is {up:.0f} W/s: another limit was in the way")
    result.verdict, result.reason = (FAIL, "; ".join(bad)) if bad else (PASS, f"within {100 * WITHIN:.0f} % of the ramp limits")
    if climbed == 1 and not bad:
        result.reason += " in the one direction that the load leaves room for"


def following(rig: Rig) -> Result:
    """A minute of following; a person accepts what it shows."""
    grid_or_refuse(rig)
    before = int(rig.image.engine_stats()["missed_ticks"])
    rig.record()
    rig.wait(FOLLOW_S, f"the battery follows the load for {FOLLOW_S:.0f} s")
    rows = rig.rows()
    missed = max(0, int(rig.image.engine_stats()["missed_ticks"]) - before)
    got = measure.following(rows, missed)
    if got is None:
        return Result(FAIL, "the engine did not tick for long enough")
    result = Result(PASS, "")
    result.numbers = {k: v for k, v in plain(asdict(got)).items() if k != "limits"} | {
        f"limit_{k}_share": v for k, v in got.limits.items() if k != "hold"
    }
    limits = ", ".join(f"{k} {100 * v:.0f} %" for k, v in sorted(got.limits.items(), key=lambda kv: -kv[1])) or "none"
    calmer = ": a load that stands still shows little"
    if got.load_swing_w > 0.01 * rig.rating_w:
        calmer = f"; of the load's movement from half a second to the next it shows {100 - 100 * got.calmer:.0f} %"
    result.facts = [
        f"load moved within {got.load_swing_w / 1e3:.1f} kW, grid import within {got.grid_swing_w / 1e3:.1f} kW" + calmer,
        f"limits active, share of ticks: {limits}",
        f"missed ticks {got.missed}; wake-up p50 {got.wake_p50_us:.0f}, p99 {got.wake_p99_us:.0f}, worst {got.wake_max_us:.0f} us",
    ]
    t_s = (rows["inp"]["t_ns"] - rows["inp"]["t_ns"][0]) / 1e9
    for name, field in (("load", "load_w"), ("grid", "grid_p_w"), ("battery", "p_cmd_w")):
        result.series[f"following_{name}"] = thin(t_s.tolist(), (rows["out"][field] / 1e3).tolist())
    for fact in result.facts:
        tell(rig.talk, fact, "  ")
    if got.grid_share < 1.0:
        result.verdict, result.reason = FAIL, f"GRID stood for {100 * got.grid_share:.0f} % of the time only"
    elif got.missed > (MISSED_VIRTUAL * len(rows) if rig.instance.virtual else 0):
        result.verdict, result.reason = FAIL, f"{got.missed} ticks were missed: give it real-time priority, or a machine of its own"
    elif yes(rig.talk, "Do you accept this?", default=""):
        result.reason = "accepted"
    else:
        result.verdict, result.reason = FAIL, "not accepted: " + rig.talk.ask("Why not?")[:300]
    return result
