"""The commands that act on power. Each is in the audit trail before it acts, inside every limit, and has one writer: who holds
the operator's slot keeps it until they let go, another says `force`, or `hold 0` (which anybody may at any time).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from controller import operate
from controller.console import look
from controller.console.commands import Command
from controller.console.context import Context, Refused
from controller.console.standing import alarms
from controller.console.trend import split_for
from controller.settings import in_unit

FORCE = "force"


def _split(words: list[str]) -> tuple[list[str], float | None, bool]:
    """(what is left, seconds after `for`, was `force` said)."""
    force = any(w.lower() == FORCE for w in words)
    return *split_for([w for w in words if w.lower() != FORCE]), force


def _power(ctx: Context, words: list[str]) -> float:
    _, _, site = ctx.running()
    return operate.parse_power("".join(words), site)


def _free(ctx: Context, image: Any, force: bool) -> None:
    """Refused where somebody else's setpoint stands and `force` was not said."""
    now = operate.word(image, ctx.clock)
    if now is None or force or now.id == ctx.given:
        return
    who = author(ctx, now.id)
    if who.partition(" ")[0] != ctx.user:
        raise Refused(f"{who or 'somebody else'} has the operator's slot: {now.text}. Talk to them; add the word `force` to take it over")


def author(ctx: Context, number: int) -> str:
    """Who gave the command of that id; empty where the trail cannot tell."""
    try:
        with ctx.store() as store:
            return str(store.author(number) or "")
    except Refused:
        return ""


def _warn(ctx: Context) -> Iterable[str]:
    """Why what was just asked for may not show."""
    if silent := ctx.silent():
        yield f"NOT IN FORCE: {silent}. It acts when control is back, if its time has not run out by then"
        return
    out = ctx.latest()["out"]
    if out["mode"] != 2:
        yield f"note: the mode is {look.core.MODE_NAMES[out['mode']]}; it acts in GRID. `why` tells what is waited for"


def _silent(ctx: Context) -> Iterable[str]:
    if silent := ctx.silent():
        yield f"NOT IN FORCE: {silent}. It acts when control is back"


def hold(ctx: Context, words: list[str]) -> Iterable[str]:
    """Battery at a power until its lease ends."""
    words, for_s, force = _split(words)
    value_w = _power(ctx, words or ["0"])
    lease_s = operate.parse_lease(for_s)
    instance, image, _ = ctx.writable()
    _free(ctx, image, force or value_w == 0.0)
    number = operate.hold(instance, image, value_w, lease_s, ctx.clock, ctx.author)
    ctx.drop()
    ctx.given = number
    yield f"{operate.named(number)}: battery held at {value_w / 1e3:+.1f} kW for {lease_s:.0f} s or until `release`; limits stay in force"
    yield from _warn(ctx)


def release(ctx: Context, words: list[str]) -> Iterable[str]:
    """The operator's slot emptied."""
    words, for_s, force = _split(words)
    if words or for_s is not None:
        raise Refused("usage: release [force]")
    instance, image, _ = ctx.writable()
    if operate.word(image, ctx.clock) is None:
        yield "the operator's slot is empty: the battery follows the load"
        return
    _free(ctx, image, force)
    number = operate.release(instance, image, ctx.clock, ctx.author)
    ctx.drop()
    yield f"{operate.named(number)}: released; the battery follows the load"
    yield from _warn(ctx)


def setpoint(ctx: Context, words: list[str]) -> Iterable[str]:
    """A setpoint that lives as long as this log-in."""
    words, for_s, force = _split(words)
    if for_s is not None:
        raise Refused("a setpoint ends with this log-in; what ends at a time of its own is a hold: `hold 20kW for 10min`")
    if [w.lower() for w in words] == ["off"]:
        yield from release(ctx, [FORCE] if force else [])
        return
    on_grid = words[:1] == ["grid"]
    value_w = _power(ctx, words[1:] if on_grid else words)
    kind = operate.SP_BASE if on_grid else operate.SP_HOLD
    instance, image, _ = ctx.writable()
    _free(ctx, image, force)
    number = operate.setpoint(instance, image, kind, value_w, ctx.clock, ctx.author)
    ctx.keep(image, number, "operator")
    ctx.given = number
    what = f"grid import is moved by {value_w / 1e3:+.1f} kW" if on_grid else f"battery at {value_w / 1e3:+.1f} kW"
    ctx.presence.holds(f"setpoint: {what}")
    yield f"{operate.named(number)}: {what}, until `setpoint off` or log-out; this log-in ends {ctx.ends_with_line()}"
    yield from _warn(ctx)


# ---------------------------------------------------------------- limits


def _limit(name: str) -> Any:
    key, unit, _ = look.LIMIT_NAMES[name]

    def run(ctx: Context, words: list[str]) -> Iterable[str]:
        words, for_s, force = _split(words)
        value = in_unit("".join(words), key if unit else f"{key}_pu")
        most = 1e8 if unit else 1.0
        if value is None or not math.isfinite(value) or not 0 <= value <= most:
            raise Refused(f"{' '.join(words)!r}: write {'0 to 1e8 W, such as 400kW' if unit else 'a share of 0 to 1, or such as 20%'}")
        if name in ("soc_min", "soc_max"):
            lim = ctx.latest()["lim"]
            low, high = (value, lim["soc_max"]) if name == "soc_min" else (lim["soc_min"], value)
            if not low < high:
                raise Refused(f"soc_min {low:g} is not below soc_max {high:g}: the battery could do nothing; use `mode standby` for that")
        lease_s = operate.parse_lease(for_s)
        instance, image, _ = ctx.writable()
        stands = operate.standing_limits(image, ctx.clock).get(key)
        if stands is not None and not force and (value < stands if name == "soc_min" else value > stands):
            raise Refused(f"an operator has set {name} to {stands:g}, which is tighter: add the word `force` to loosen it, or `limit off`")
        number = operate.limit(instance, image, {key: value}, lease_s, ctx.clock, ctx.author)
        shown = look.kw(value) if unit else f"{100 * value:.1f} %"
        lease_s = (image.operator_limits()["lease_until_ns"] - ctx.clock.monotonic_ns()) / 1e9
        others = [k for k in operate.standing_limits(image, ctx.clock) if k != key]
        if others:
            yield f"with it stand {', '.join(others)}; all of them have one lease, the longest asked for: `limit off` ends them together"
        yield f"{operate.named(number)}: {name} {shown} for {lease_s:.0f} s or until `limit off`; it only ever tightens the site's limit"
        yield from _warn(ctx)

    return run


def limit_off(ctx: Context, words: list[str]) -> Iterable[str]:
    """The operator's limits end."""
    instance, image, _ = ctx.writable()
    number = operate.limit(instance, image, {}, 0.0, ctx.clock, ctx.author)
    yield f"{operate.named(number)}: no operator's limits any more; the site's and the supervisor's are in force"
    yield from _silent(ctx)


# ---------------------------------------------------------------- mode, faults, records


def standby(ctx: Context, words: list[str]) -> Iterable[str]:
    """Ramp to 0 and stay."""
    instance, image, _ = ctx.writable()
    number = operate.park(instance, image, True, ctx.clock, ctx.author)
    yield f"{operate.named(number)}: ramping to 0 W, then the PCS goes to standby and stays there until `mode auto`"
    yield from _silent(ctx)


def auto(ctx: Context, words: list[str]) -> Iterable[str]:
    """Start again."""
    instance, image, _ = ctx.writable()
    number = operate.park(instance, image, False, ctx.clock, ctx.author)
    yield f"{operate.named(number)}: the start sequence runs; `status` shows how far it is"
    yield from _silent(ctx)


def reset(ctx: Context, words: list[str]) -> Iterable[str]:
    """A latched FAULT ends once its causes are gone."""
    instance, image, _ = ctx.writable()
    number = operate.reset(instance, image, ctx.clock, ctx.author)
    yield f"{operate.named(number)}: reset asked; FAULT ends when its causes are gone (`alarms` names them)"
    yield from _silent(ctx)


def ack(ctx: Context, words: list[str]) -> Iterable[str]:
    """Seen."""
    wanted = words[0].lower()
    found = alarms(ctx)
    if wanted != "all" and wanted not in [a.id for a in found]:
        raise Refused(f"there is no alarm {wanted}" + (f"; here are: {', '.join(a.id for a in found)}" if found else ""))
    seen = [a.id for a in found if (not a.acked_by if wanted == "all" else a.id == wanted)]
    if not seen:
        yield "nothing to acknowledge: no alarm stands that nobody has seen"
        return
    # By name, also for "all": what no supervisor has written down is acknowledged with the rest.
    if not ctx.audit("ack", ", ".join(seen)):
        raise Refused(f"the audit trail takes nothing, and it alone keeps who has seen what: not done ({ctx.store_path})")
    yield f"seen: {', '.join(seen)}. What stands stands until its cause is gone"


def _ack_names(ctx: Context, words: list[str]) -> Iterable[str]:
    return [] if words else ["all", *(a.id for a in alarms(ctx))]


def freeze(ctx: Context, words: list[str]) -> Iterable[str]:
    """The last 60 s kept."""
    instance, _, _ = ctx.running()
    where = operate.freeze(instance)
    ctx.audit("freeze", where)
    yield where


ROWS = (
    Command("hold", "operator", "[POWER] [for TIME] [force]", "battery at a power (default 0, one hour)", hold, 8, group="act"),
    Command("release", "operator", "[force]", "end a hold or a setpoint: the battery follows the load", release, 1, group="act"),
    Command(
        "setpoint",
        "operator",
        "[grid] POWER|off [force]",
        "as hold, or moving grid import; ends with this log-in",
        setpoint,
        5,
        1,
        group="act",
    ),
    *(
        Command(
            f"limit {name}", "operator", "VALUE [for TIME] [force]", f"tighten a limit for a time: {text}", _limit(name), 7, 1, group="act"
        )
        for name, (_, _, text) in look.LIMIT_NAMES.items()
    ),
    Command("limit off", "operator", "", "end all limits that operators have set", limit_off, group="act"),
    Command("mode standby", "operator", "", "ramp to 0, PCS to standby, and stay", standby, group="act"),
    Command("mode auto", "operator", "", "start again after `mode standby`", auto, group="act"),
    Command("reset", "operator", "", "end a latched FAULT, once its causes are gone", reset, group="act"),
    Command("ack", "operator", "ID|all", "say that you have seen an alarm", ack, 1, 1, _ack_names, "act"),
    Command("record freeze", "operator", "", "keep the last 60 s and the next 10 s at full rate", freeze, group="act"),
)
