"""`ballast status`: what runs, how well, and why power is what it is. The exit code tells health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _core import image as core
from controller import build, summary, wires
from controller.clock import Clock
from controller.instance import Instance, alive
from controller.site import Site

HEALTHY, DEGRADED, NOT_RUNNING = 0, 1, 3
FRESH_NS = 500_000_000  # an image without a new tick for so long is a stopped engine
WORKING_MODES = ("GRID", "ISLAND")


def names(bits: int, table: dict[int, tuple[str, str]]) -> list[str]:
    """Short names of the set bits."""
    return [name for bit, (name, _) in table.items() if bits & bit]


def collect(instance: Instance, site: Site, image: Any, clock: Clock) -> dict[str, Any]:
    """Everything that `status --json` shows: the summary's keys live, the latest image, the pids, the mode, the
    limits by name.
    """
    latest = image.latest()
    stats = image.engine_stats()
    out = (latest or {}).get("out", {})
    live = summary.compose(
        site=site,
        mode="run",
        seed=None,
        duration_s=max(0.0, (clock.monotonic_ns() - image.started_ns) / 1e9),
        engine_stats=stats,
        plan=instance.plan,
        judged=None,
        bus_rows=summary.buses(image, site),
        events=[],
        record_sha256=None,
    )
    got = wires.collect(image, site, (instance.plan or {}).get("wires"))
    devices = {}
    for i, device in enumerate(site.devices):
        row = image.device_stats(i)
        devices[device.name] = {
            "alive": bool(row["alive"]),
            "ok": row["ok"],
            "failed": row["failed"],
            "lost": row["lost_count"],
        }
    live |= {
        "site": instance.site,
        "mode": core.MODE_NAMES[out["mode"]] if out else None,
        "start_step": core.START_NAMES[out["start_step"]] if out else None,
        "limits_active": names(out.get("limits_active", 0), core.LIMIT_TEXT),
        "alarms": names(out.get("alarms", 0), core.ALARM_TEXT),
        "control": {"pid": instance.control_pid, "alive": alive(instance.control_pid)},
        "supervisor": {"pid": instance.supervisor_pid, "alive": alive(instance.supervisor_pid)},
        "parent": {"pid": instance.pid},
        "plant": {"pid": instance.plant_pid} if instance.plant_pid else None,
        "devices": devices,
        "wires": got,
        "warnings": wires.warnings(got, site) + build.held_notes(site) + _shelves(instance, site, clock.monotonic_ns()),
        "store": instance.store,
        "image": latest,
    }
    reasons = problems(instance, live, latest, clock.monotonic_ns())
    live["health"] = {"code": DEGRADED if reasons else HEALTHY, "reasons": reasons}
    return dict(summary.clean(live))


def _shelves(instance: Instance, site: Site, now_ns: int) -> list[str]:
    """Nothing beside the tick makes a site unhealthy; that it is not read is said all the same."""
    if not site.shelves:
        return []
    from controller.shelves import view  # it brings numpy

    return view.warnings(view.look(Path(instance.directory), site), now_ns)


def problems(instance: Instance, live: dict[str, Any], latest: dict[str, Any] | None, now_ns: int) -> list[str]:
    """Why this instance is not healthy; empty when it is."""
    why = []
    if not alive(instance.pid):
        why.append("the parent is gone: control ramps to 0 and leaves")
    if not alive(instance.control_pid):
        why.append("control is not running: the PCS is at its reversion power")
    elif latest is None or now_ns - latest["inp"]["t_ns"] > FRESH_NS:
        why.append("the engine does not tick")
    if not alive(instance.supervisor_pid):
        why.append("the supervisor is not running: limits are the tighter of its last and the site's")
    if live["mode"] is not None and live["mode"] not in WORKING_MODES:
        text = f"mode is {live['mode']}"
        why.append(f"{text}: {live['start_step']}" if live["mode"] == "STANDBY" else text)
    why += [f"alarm {name}: {words}" for name, words in core.ALARM_TEXT.values() if name in live["alarms"]]
    why += [f"device {name} does not answer" for name, row in live["devices"].items() if not row["alive"]]
    return why


def text(status: dict[str, Any]) -> str:
    """The lines for a person."""
    image = status["image"] or {}
    out = image.get("out", {})
    lines = [
        f"site {status['site']}   mode {status['mode']}   {status['duration_s']:.0f} s",
    ]
    lines[0] += "".join(f"   {name} {status[name]['pid']}" for name in ("parent", "control", "supervisor"))
    if out:
        soc = "?" if out["soc"] is None else f"{100 * out['soc']:.1f} %"
        values = [
            ("load", out["load_w"]),
            ("grid", out["grid_p_w"]),
            ("battery", out["batt_p_w"]),
            ("reference", out["ref_w"]),
        ]
        lines.append("   ".join(f"{name} {kw(value)}" for name, value in values) + f"   SoC {soc}")
    wake = status["wake_latency_us"] or {}
    lines.append(
        f"ticks {status['ticks']}  missed {status['missed_ticks']}"
        + (f"  wake p50 {wake['p50']:.0f} p99 {wake['p99']:.0f} max {wake['max']:.0f} us" if wake else "")
    )
    lines += [f"limit  {name}: {words}" for name, words in core.LIMIT_TEXT.values() if name in status["limits_active"]]
    got = status["wires"]
    for name, row in status["buses"].items():
        told = ["  ".join(f"{key} {value}" for key, value in row.items()), wires.bus_line(got["buses"][name])]
        lines.append(f"bus {name}  " + "  ".join(filter(None, told)))
    for name, row in status["devices"].items():
        told = [f"{'answers' if row['alive'] else 'DOES NOT ANSWER'}  ok {row['ok']}  failed {row['failed']}"]
        lines.append(f"device {name}  " + "  ".join(filter(None, [*told, wires.device_line(got["devices"][name])])))
    lines += filter(None, [wires.meter_line(got)])
    lines += [f"warning: {text}" for text in status["warnings"]]
    reasons = status["health"]["reasons"]
    lines += ["healthy"] if not reasons else [f"DEGRADED: {reason}" for reason in reasons]
    return "\n".join(lines)


def line(status: dict[str, Any]) -> str:
    """One line, for the log of a `ballast run` without a terminal."""
    out = (status["image"] or {}).get("out")
    if not out:
        return f"{status['duration_s']:7.0f} s  waiting for the first tick"
    limits = ",".join(status["limits_active"]) or "-"
    soc = "?" if out["soc"] is None else f"{100 * out['soc']:.1f}"
    return (
        f"{status['duration_s']:7.0f} s  {status['mode']:<7}  load {kw(out['load_w'])}  grid {kw(out['grid_p_w'])}  "
        f"battery {kw(out['batt_p_w'])}  SoC {soc} %  missed {status['missed_ticks']}  limits {limits}"
    )


def kw(watts: float | None) -> str:
    """Power in kW with one decimal; a dash where it is not known."""
    return f"{watts / 1e3:.1f} kW" if watts is not None else "- kW"
