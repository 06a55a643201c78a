"""Steps that lose something on purpose: the PCS's bus, the contactors, the PCS itself, and the E-stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from _core import image as core
from controller.commission import measure
from controller.commission.results import FAIL, PASS, SKIPPED, Result, plain, thin
from controller.commission.rig import Refused, Rig
from controller.commission.steps_power import grid_or_refuse
from controller.commission.talk import tell, yes
from controller.instance import InstanceError

REVERT_W = 0.1  # of rating: the power that must vanish
TRIP_TICKS = 2
LOADED = 0.5  # of a small step: what must have stood at the battery for a trip to show anything
PERSON_S = 120.0  # for a hand at the cabinet, after the question
LEAD_S = 60.0  # a power that takes longer to reach is made smaller
OWN_RAMP_S = 1.0  # the PCS's own ramp from full power; data sheets say less
SPARE_S = 0.5
REST_W = 0.02  # of rating: what counts as 0 W in a readback
CLOSED_S = 60.0  # contactors and PCS may take so long to come back


def _revert_w(rig: Rig) -> float:
    """The power that must vanish: a tenth of rating, or what the ramp reaches in a minute."""
    return min(REVERT_W * rig.rating_w, LEAD_S * rig.ramp_w_per_s)


def _lead(rig: Rig, value_w: float, seconds: float) -> None:
    """The battery at value_w, for as long as a person needs."""
    rig.glide(value_w, seconds, f"the battery goes to {value_w / 1e3:+.1f} kW")
    rig.wait(abs(value_w) / rig.ramp_w_per_s + 1.0)


def back_to_grid(rig: Rig, result: Result) -> bool:
    """From whatever a test left behind to GRID: asks before it resets. False where it does not come back."""
    rig.release()
    rig.wait(1.0)
    gone, tries = rig.mode != core.MODE_FAULT, 0
    # asked at once: the kernel's own resets, three an hour, are for the site's own faults
    while not gone and tries < 3:
        if not yes(rig.talk, f"FAULT stands ({', '.join(rig.alarms())}). Reset it now?"):
            result.facts.append("the FAULT was left standing: `ballast reset` ends it")
            return False
        gone = rig.mode != core.MODE_FAULT
        if gone:
            break
        rig.reset()
        tries += 1
        gone = rig.until(lambda: rig.mode != core.MODE_FAULT, 10.0)
        if not gone:
            tell(rig.talk, "It does not end: a cause still stands. Contactors closed? Plug in? PCS fault acknowledged?", "  ")
    back = gone and rig.until(lambda: rig.mode == core.MODE_GRID, CLOSED_S, "waiting for GRID")
    how = "after a reset" if tries else "by itself"
    result.facts.append(f"back in GRID {how}" if back else "it did not come back to GRID")
    result.numbers["back_in_grid"] = int(back)
    return back


def reversion(rig: Rig) -> Result:
    """The reversion timer, first as read back, then the real thing."""
    grid_or_refuse(rig)
    rvrt_s = rig.num("pcs.reversion_s")
    result = Result(PASS, "", {"reversion_s": rvrt_s})
    rig.record()
    rig.wait(max(8.0, 2 * rvrt_s + 2.0), "reading the timer back")
    timer = measure.renewal(rig.rows())
    result.numbers |= {f"timer_{k}": v for k, v in plain(asdict(timer)).items()}
    if timer.reads:
        seen = f"{timer.renewals} renewals seen, never below {timer.rem_min_s:g} s left in {timer.span_s:.0f} s"
        untold = "what is left of it is not told, so that only the real thing below shows whether it is renewed"
        result.facts.append(
            f"timer read back {timer.reads} times: set to {timer.setting_s:g} s, {'running' if timer.enabled else 'NOT ENABLED'}, "
            + (seen if math.isfinite(timer.rem_min_s) else untold)
        )
    else:
        result.facts.append("this PCS gives no readback of its timer: only the real thing below shows it")
    if wrong := _timer_wrong(timer, rvrt_s):
        return _end(result, FAIL, wrong)
    pulled = _act(rig, "pull the bus cable of the PCS (its data cable, not power)", {"pcs.dead": 1.0}, {"pcs.dead": 0.0},
                  before=lambda: _lead(rig, _revert_w(rig), 600.0))  # fmt: skip
    if not pulled:
        return _end(result, SKIPPED, "the real thing was not tried: nobody pulled the cable")
    if not rig.until(lambda: "pcs_lost" in rig.alarms(), PERSON_S, "waiting for the PCS to be lost"):
        return _end(result, FAIL, f"the PCS was still answering {PERSON_S:.0f} s later: was that its cable?")
    lost_ns = rig.latest()["inp"]["pcs"]["g"]["rx_ns"]
    rig.wait(rvrt_s + OWN_RAMP_S + 3.0, f"its timer runs {rvrt_s:g} s")
    rig.release()
    if rig.virtual:
        rig.put_back()
    else:
        # no Enter here: the first answer after that must stand in the record, which a person who reads is not waited for
        rig.talk.say("  Now: plug the cable in again. I see when it is.")
    if not rig.until(lambda: rig.latest()["inp"]["pcs"]["g"]["rx_ns"] > lost_ns, PERSON_S, "waiting for the PCS to answer"):
        return _end(result, FAIL, "the PCS did not answer again")
    rig.wait(0.5)
    rows = rig.rows()
    _judge_reversion(rig, result, rows)
    back_to_grid(rig, result)
    return result


def _timer_wrong(timer: measure.Renewal, rvrt_s: float) -> str:
    """What is wrong with the timer as read back; "" for nothing, or where nothing is read back. A PCS need not tell how
    much is left of it (SunSpec 704.WSetRvrtRem is optional).
    """
    if not timer.reads:
        return ""
    if not timer.enabled:
        return "the reversion timer of the PCS is not enabled, or it was not all the time"
    if not abs(timer.setting_s - rvrt_s) < 1.0:
        return f"the PCS holds a reversion timer of {timer.setting_s:g} s, the site says {rvrt_s:g} s"
    if timer.rem_min_s < rvrt_s / 3:
        return f"the reversion timer is renewed late: {timer.rem_min_s:g} of {rvrt_s:g} s were left"
    if math.isfinite(timer.rem_min_s) and not timer.renewals and timer.span_s <= 1.5 * rvrt_s:
        return f"the reversion timer was not renewed in the {timer.span_s:.0f} s that it was read back"
    return ""


def _judge_reversion(rig: Rig, result: Result, rows: NDArray[np.void]) -> None:
    hold_w, rvrt_s = _revert_w(rig), rig.num("pcs.reversion_s")
    got = measure.reversion(rows, hold_w)
    if got is None:
        _end(result, FAIL, "the record does not show the PCS falling silent")
        return
    result.numbers |= {k: v for k, v in plain(asdict(got)).items() if not k.endswith("_ns")}
    most_s = rvrt_s + OWN_RAMP_S + SPARE_S
    bad, seen = [], 0
    for name, at in (("the BMS's current", got.dc_s), ("the meter", got.meter_s)):
        if math.isfinite(at):
            seen += 1
            result.facts.append(f"by {name} the power was gone {at:.2f} s after the PCS's last answer (at most {most_s:g} s)")
            if at > most_s:
                bad.append(f"by {name} it took {at:.2f} s, more than {most_s:g} s")
        else:
            why = f" (the load moves by {got.meter_noise_w / 1e3:.0f} kW)" if "meter" in name and math.isfinite(got.meter_noise_w) else ""
            result.facts.append(f"{name} does not show it{why}")
    rest_w = REST_W * rig.rating_w
    result.facts.append(f"the first readback after that: {got.back_w:.0f} W")
    if not abs(got.back_w) <= rest_w:
        bad.append(f"the first readback after the cable was back is {got.back_w:.0f} W, not 0")
    if not seen:
        bad.append("neither BMS nor meter shows when the power went: repeat it with a calmer load")
    t_s = (rows["inp"]["t_ns"] - got.lost_ns) / 1e9
    near = t_s > -4.0
    amps = rows["inp"]["bms_lim"]["batt_i_a"] * rows["inp"]["bms_lim"]["batt_v"] / 1e3
    result.series["reversion_battery"] = thin(t_s[near].tolist(), amps[near].tolist())
    result.series["reversion_grid"] = thin(t_s[near].tolist(), (rows["inp"]["meter"]["grid_p_w"][near] / 1e3).tolist())
    _end(result, FAIL if bad else PASS, "; ".join(bad) or f"0 W within {most_s:g} s without a controller")


def _end(result: Result, verdict: str, reason: str) -> Result:
    result.verdict, result.reason = verdict, reason
    return result


def _act(rig: Rig, what: str, changes: Mapping[str, float], back: Mapping[str, float], *, before: Callable[[], None]) -> bool:
    """Has something done at the cabinet. On the virtual one we offer to do it. False where a person declines.

    `before` puts the battery to where the test needs it, only once somebody is there. The recording begins anew.
    """
    if rig.virtual:
        tell(rig.talk, f"Virtual cabinet: I can {what}.", "  ")
        if not yes(rig.talk, "Shall I?"):
            return False
        before()
        rig.record()
        rig.wait(3.0)
        rig.plant(changes, back)
        return True
    if not yes(rig.talk, f"Is somebody at the cabinet who can {what}?", default="no"):
        return False
    before()
    rig.record()
    rig.wait(3.0)
    tell(rig.talk, f"Now: {what}.", "  ")
    return True


def _trip(rig: Rig, result: Result, name: str, what: str, undo: str, changes: dict[str, float]) -> str:
    """One loss on purpose at a small power. Returns what is wrong with it, "" for nothing, or "skipped"."""
    grid_or_refuse(rig)
    if not _act(rig, what, changes, dict.fromkeys(changes, 0.0), before=lambda: _lead(rig, rig.step_w, 600.0)):
        return "skipped"
    if not rig.until(lambda: rig.mode == core.MODE_FAULT, PERSON_S, "waiting for it to show"):
        rig.talk.say("  Nothing came.")
    rig.wait(1.0)
    rows = rig.rows()
    rig.release()
    got = measure.trip(rows)
    if rig.virtual:
        rig.put_back()
    else:
        rig.talk.ask(f"Now {undo}, then press Enter.")
    if got is None:
        back_to_grid(rig, result)
        return f"{name}: no frame showed open contactors or a stopped PCS"
    result.numbers |= {f"{name}_fault_ticks": got.fault_ticks, f"{name}_zero_ticks": got.zero_ticks}
    result.facts.append(
        f"{name}: {got.cause} seen in tick 0, FAULT ({', '.join(got.alarms) or 'no alarm'}) in tick {got.fault_ticks}, "
        f"command 0 W in tick {got.zero_ticks}, from {got.before_w / 1e3:+.1f} kW"
    )
    a, b = max(0, got.row - 15), got.row + 25
    ticks = (np.arange(a, min(b, len(rows))) - got.row).tolist()
    result.series[f"trip_{name}"] = thin(ticks, (rows["out"]["p_cmd_w"][a:b] / 1e3).tolist())
    result.series[f"trip_{name}_mode"] = thin(ticks, (rows["out"]["mode"][a:b] != core.MODE_GRID).astype(float).tolist())
    back = back_to_grid(rig, result)
    if abs(got.before_w) < LOADED * rig.step_w:
        stood = f"the battery stood at {got.before_w / 1e3:+.1f} kW when it came, not at {rig.step_w / 1e3:+.1f} kW"
        return f"{name}: {stood}, so that there was nothing to trip; repeat it where the load leaves room"
    late = [k for k in (got.fault_ticks, got.zero_ticks) if not 0 <= k <= TRIP_TICKS]
    if late:
        return f"{name}: FAULT and 0 W must come within {TRIP_TICKS} ticks, they came in {got.fault_ticks} and {got.zero_ticks} (-1: never)"
    return "" if back else f"{name}: it did not come back to GRID"


def _several(rig: Rig, rows: list[tuple[str, str, str, dict[str, float]]]) -> Result:
    result = Result(PASS, "")
    found: dict[str, str] = {}
    for name, what, undo, changes in rows:
        try:
            found[name] = _trip(rig, result, name, what, undo, changes)
        except (Refused, InstanceError) as e:
            found[name] = f"{name}: {e}"  # what the ones before have shown stays shown
            break
    bad = [text for text in found.values() if text not in ("", "skipped")]
    skipped = [name.replace("_", " ") for name, text in found.items() if text == "skipped"]
    if bad:
        untried = [f"{name}: not tried" for name, *_ in rows if name not in found]
        return _end(result, FAIL, "; ".join(bad + untried))
    if skipped:
        return _end(result, SKIPPED, f"not tried, nobody at the cabinet: {', '.join(skipped)}")
    return _end(result, PASS, f"FAULT and 0 W within {TRIP_TICKS} ticks of the frame that shows it")


def trip(rig: Rig) -> Result:
    """Contactors that open and a PCS that faults, at a small power."""
    return _several(rig, [
        ("contactors", "open the battery contactors (by the BMS's service tool)", "close the contactors again",
         {"bms.contactor_open": 1.0}),
        ("pcs_fault", "put the PCS into fault (by its panel or service tool)", "clear the PCS's fault", {"pcs.fault": 1.0}),
    ])  # fmt: skip


def estop(rig: Rig) -> Result:
    """The hard-wired E-stop. What it does electrically is the cabinet's business; here stands what the controller saw."""
    if rig.virtual:
        tell(rig.talk, "The virtual E-stop acts on contactors and PCS together.", "  ")
    return _several(rig, [
        ("estop", "press the E-stop", "release the E-stop and close what it opened",
         {"bms.contactor_open": 1.0, "pcs.fault": 1.0}),
    ])  # fmt: skip
