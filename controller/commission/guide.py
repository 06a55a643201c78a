"""The guide: which steps there are, in which order, and how a person is led through them.

    guide.run(rig, results, talk)              from the first step that is not passed
    guide.run(rig, results, talk, "polarity")  that step alone, again
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.clock import utc_text
from controller.commission import report, steps_line, steps_power, steps_safety
from controller.commission.results import FAIL, PASS, SKIPPED, Result, Results
from controller.commission.rig import Busy, Refused, Rig
from controller.commission.talk import Interrupted, Talk, tell
from controller.instance import InstanceError

SIGN_OFF = "sign-off"


@dataclass(frozen=True)
class Step:
    """One step: its name on the command line, what it is about, which settings it hangs on, and what runs it."""

    name: str
    title: str
    about: str
    depends: tuple[str, ...]
    run: Callable[[Rig], Result]


STEPS = (
    Step("ports", "Ports", "Listens to every bus for ten seconds and counts what goes wrong on the wire. Nothing is moved.", (),
         steps_line.ports),
    Step("identities", "Identities", "Shows every device as it was read; you compare it with the nameplate.", (), steps_line.devices),
    Step("polarity", "Polarity", "Moves the battery in small steps; grid import must move by as much the other way, whatever the "
         "load does meanwhile.", (), steps_power.polarity),
    Step("delay", "PCS delay and lag", "Measures from small steps how late and how slowly the PCS answers, and compares it with the "
         "site file. A wrong value makes the loop ring, or be filtered.", ("pcs.dead_time_s", "pcs.tau_s"), steps_power.pcs_delay),
    Step("ramp", "Ramp", "Leads the battery to 20 % of rating and back: the slopes must be those of the site file. Takes a minute "
         "or two.", ("grid.ramp_up_w_per_s", "grid.ramp_down_w_per_s"), steps_power.ramp),
    Step("reversion", "Reversion timer", "The PCS must go to 0 W by itself when nobody talks to it. First its timer is read, then "
         "somebody pulls its bus cable.", ("pcs.reversion_s", "control.pcs_lost_s"), steps_safety.reversion),
    Step("trip", "Trip chain", "Contactors that open and a PCS that faults must end in FAULT and 0 W at once. Somebody at the cabinet "
         "does both, at a small power.", ("control.",), steps_safety.trip),
    Step("estop", "E-stop", "Somebody presses the E-stop: contactors or PCS open, FAULT, 0 W; then it is released and reset.", (),
         steps_safety.estop),
    Step("following", "Load following", "A minute of what the cabinet is for: the battery follows the load. You judge what you see.",
         ("grid.", "battery.", "pcs.", "control."), steps_power.following),
)  # fmt: skip
NAMES = tuple(s.name for s in STEPS)
WORDS = {"open": "open", "changed": "passed, but the site has changed since: repeat", PASS: "passed", FAIL: "FAILED", SKIPPED: "skipped"}


def overview(rig: Rig, results: Results, talk: Talk) -> None:
    """The list of steps with their state."""
    for k, step in enumerate(STEPS, 1):
        state = results.state(rig, step.name, step.depends)
        row = results.steps.get(step.name)
        when = f", {utc_text(row['wall_s'])[:16]} UTC by {row['who']}" if row else ""
        talk.say(f"{k:2d} {step.name:<11} {WORDS.get(state, state)}{_part(row, state)}{when}"[:78])
    signed = results.signed
    talk.say(f"10 {SIGN_OFF:<11} " + (f"signed by {signed['name']}" if signed else "open"))


def _part(row: dict[str, Any] | None, state: str) -> str:
    """Said beside a passed step of which something was not tried."""
    said = "; ".join([row.get("reason", ""), *row.get("facts", [])]) if row else ""
    return " in part" if state == PASS and "not tried" in said else ""


def run_step(rig: Rig, results: Results, step: Step, talk: Talk) -> Result | None:
    """One step, its result kept at once; None where it could not begin. Whatever happens, the slot is released and the
    virtual cabinet set back. Raises Interrupted.
    """
    result: Result | None = None
    try:
        with rig.guarded():
            result = step.run(rig)
    except Busy as e:
        tell(talk, f"Stopped: {e}")
        return None
    except Refused as e:
        result = Result(FAIL, str(e))
    except InstanceError as e:
        result = Result(FAIL, f"the site cannot be reached: {e}")
    finally:
        left, rig.left = rig.left, []
        for text in left:
            tell(talk, f"ATTENTION: {text}")
    if left:
        result.verdict, result.reason = FAIL, "; ".join([result.reason, *left])
    results.put(rig, step.name, step.depends, result, rig.author)
    talk.say(f"{step.title}: {WORDS[result.verdict]}")
    tell(talk, result.reason, "  ")
    for fact in result.facts:
        tell(talk, fact, "  ")
    return result


def _lead(rig: Rig, results: Results, step: Step, number: int, talk: Talk) -> bool:
    """Step by question; False: the person wants to stop."""
    talk.say()
    talk.say(f"--- {number} of {len(STEPS) + 1}: {step.title}")
    tell(talk, step.about)
    answer = talk.ask("Begin?", choices=("go", "skip", "stop"), default="go")
    if answer == "stop":
        return False
    if answer == "skip":
        why = talk.ask("Why is it skipped?")[:300] or "no reason given"
        results.put(rig, step.name, step.depends, Result(SKIPPED, why), rig.author)
        return True
    while True:
        result = run_step(rig, results, step, talk)
        if result is None:
            return False
        if result.verdict == PASS:
            return True
        after = talk.ask("And now?", choices=("again", "next", "stop"), default="again" if result.verdict == FAIL else "next")
        if after != "again":
            return after != "stop"


def run(rig: Rig, results: Results, talk: Talk, only: str | None = None) -> bool:
    """Through all steps from the first that is not passed, or one by name. True once it is signed off with every step
    passed, or when the one asked for passed. Raises Interrupted (nothing is lost: it goes on from there), KeyError for
    an unknown name, OSError where the disk takes no result.
    """
    try:
        with results.alone():
            return _run(rig, results, talk, only)
    except Busy as e:
        tell(talk, f"Stopped: {e}")
        return False


def _run(rig: Rig, results: Results, talk: Talk, only: str | None) -> bool:
    if only == SIGN_OFF:
        return sign_off(rig, results, talk)
    if only is not None:
        step = next((s for s in STEPS if s.name == only), None)
        if step is None:
            raise KeyError(only)
        _lead(rig, results, step, NAMES.index(only) + 1, talk)
        return results.state(rig, step.name, step.depends) == PASS
    tell(talk, f"Commissioning of {rig.site.name}. Every answer can be repeated, every step too; Ctrl-C stops and nothing is lost.")
    overview(rig, results, talk)
    for number, step in enumerate(STEPS, 1):
        rig.reread()
        if results.state(rig, step.name, step.depends) == PASS:
            continue
        if not _lead(rig, results, step, number, talk):
            tell(talk, "Stopped; it goes on from here the next time.")
            return False
    return sign_off(rig, results, talk)


def sign_off(rig: Rig, results: Results, talk: Talk) -> bool:
    """Remarks, a name, and the report. Returns whether every step is passed."""
    talk.say()
    talk.say(f"--- {len(STEPS) + 1} of {len(STEPS) + 1}: Sign-off")
    rig.reread()  # what is signed is the site of this moment
    states = {s.name: results.state(rig, s.name, s.depends) for s in STEPS}
    short = [f"{name} ({WORDS.get(state, state)})" for name, state in states.items() if state != PASS]
    part = [name for name, state in states.items() if _part(results.steps.get(name), state)]
    if part:
        tell(talk, f"Passed in part, the report says what was not tried: {', '.join(part)}.")
    if short:
        tell(talk, f"Not passed: {', '.join(short)}. The report says so in red.")
    remarks = talk.ask("Remarks for the report? (Enter: none)")[:2000]
    name = talk.ask("Your name, as the signature? (Enter: not signed yet)")[:100].strip()
    if name:
        results.sign(name, remarks, rig.clock.wall_s())
    path = write_report(rig, results)
    tell(talk, f"Report: {path.name} in {path.parent}")
    return bool(name) and not short


def write_report(rig: Rig, results: Results) -> Path:
    """The report as it stands now, beside the results. Raises OSError."""
    return report.write(rig, results, [(s.name, s.title, s.about, results.state(rig, s.name, s.depends)) for s in STEPS])


__all__ = ["NAMES", "SIGN_OFF", "STEPS", "Interrupted", "Step", "overview", "run", "run_step", "sign_off", "write_report"]
