"""Alarms as a person sees them: what stands now, by the image and the processes; since when, and who has seen it, by the
audit trail. Texts, severity and recovery come from the one table of faults.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from _core import image as core
from _core.faults import BY_ID
from controller.console.context import Context, Refused
from controller.instance import alive
from controller.store import Trail

LOOK_BACK_S = 7 * 86400.0
RANK = {"critical": 0, "major": 1, "minor": 2}


@dataclass
class Alarm:
    """One fault that stands, or has gone without anybody having seen it."""

    id: str
    text: str
    severity: str
    recovery: str
    active: bool
    since_wall_s: float = 0.0
    acked_by: str = ""


def now_standing(ctx: Context) -> dict[str, str]:
    """Faults that stand at this moment: id -> text."""
    found: dict[str, str] = {}
    if ctx.instance is None or ctx.site is None:
        found["parent_lost"] = f"nothing runs: {ctx.why_not}"
        return found
    for name, pid in (
        ("control_lost", ctx.instance.control_pid),
        ("supervisor_lost", ctx.instance.supervisor_pid),
        ("parent_lost", ctx.instance.pid),
    ):
        if not alive(pid):
            found[name] = BY_ID[name].text
    row = ctx.image.latest()
    for name, words in core.ALARM_TEXT.values() if row is not None else ():
        if row["out"]["alarms"] & _bit(name):
            found[name] = words
    if row is not None and row["out"]["limits_active"] & core.LIM_LEASE:
        found["lease"] = BY_ID["lease"].text
    for what, rows in (
        ("device_lost", _silent(ctx.site.devices, ctx.image.device_stats, "alive")),
        ("bus_lost", _silent(ctx.site.buses, ctx.image.bus_stats, "is_open")),
    ):
        if rows:
            found[what] = f"{BY_ID[what].text}: {', '.join(rows)}"
    return found


def _bit(name: str) -> int:
    return next(bit for bit, (known, _) in core.ALARM_TEXT.items() if known == name)


def _silent(rows: list[Any], stats: Any, key: str) -> list[str]:
    return [row.name for i, row in enumerate(rows) if not stats(i)[key]]


def alarms(ctx: Context) -> list[Alarm]:
    """The worst first: what stands, and what has gone but was not acknowledged since."""
    standing = now_standing(ctx)
    trail: list[Trail] = []
    with contextlib.suppress(Refused), ctx.store() as store:
        trail = store.faults(ctx.clock.wall_s() - LOOK_BACK_S)
    began: dict[str, float] = {}
    acked: dict[str, tuple[float, str]] = {}
    for row in trail:  # oldest first
        if row.command == "ack":
            for name in row.text.split(", "):
                acked[name] = (row.wall_s, row.who.partition(" ")[0])
        elif row.command in BY_ID and not row.over:
            began[row.command] = row.wall_s
    out = []
    for name in standing | dict.fromkeys(began, ""):
        fault, active = BY_ID[name], name in standing
        seen_s, who = acked.get(name, (0.0, ""))
        fresh = seen_s < began.get(name, 0.0)  # it has come again since
        if not active and not fresh:
            continue
        out.append(
            Alarm(name, standing.get(name, fault.text), fault.severity, fault.recovery, active, began.get(name, 0.0), "" if fresh else who)
        )
    return sorted(out, key=lambda a: (not a.active, RANK.get(a.severity, 3), -a.since_wall_s))
