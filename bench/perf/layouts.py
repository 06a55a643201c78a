"""Layouts of the buses: what the plan says of each, and what the virtual cabinet sees, in virtual and in real time.

Same site, same load (--trace steps), same cabinet; only the buses differ. Wires are paced: a frame takes its time on a line and on CAN, and
the network's latency over TCP. What is compared, from GRID on, by the cabinet's own log:
  - cycle: from the tick to the command's last bit (median), and how many transactions a second each bus carries;
  - latency: from a load step to 90 % of the power that answers it, over all ticks (the plan's load_to_power_all_ms).
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.judge import SETTLE_S, latencies, load_truth
from bench.perf import realtime
from bench.perf.rows import Row, at_most, info
from bench.plant.params import PARAMS
from bench.sim import TRUTH_NAME, Simulation, grid_since_ns
from controller import build
from controller.problems import SiteError
from controller.site import BUILTIN, Site
from controller.virtual import LoadOptions
from hal.plan import BusTable, Plan
from hal.plantypes import HYPER_TICKS, NONE

CYCLE, LATENCY = 0.05, 0.15  # what is measured may differ so much from the plan
FAST_PAIR_MS = 18.0  # load to power p99 with a CAN converter and a TCP meter
STEPS_S = 150.0  # a thousand steps with room
TICK_NS = 10_000_000


@dataclass(frozen=True)
class Layout:
    """buses: name -> lines of its [[bus]]; devices: role -> (bus, unit, profile or "")."""

    name: str
    buses: dict[str, str]
    devices: dict[str, tuple[str, int, str]]

    def text(self) -> str:
        """The built-in site with these buses and devices, as a site file."""
        text = BUILTIN.read_text()
        parts = [text[: text.index("[[bus]]")]]
        parts += [f'[[bus]]\nname = "{name}"\n{lines}\n' for name, lines in self.buses.items()]
        for role, (bus, unit, profile) in self.devices.items():
            named = f'profile = "{profile}"\n' if profile else ""
            parts.append(f'[[device]]\nname = "{role}"\nrole = "{role}"\nbus = "{bus}"\nunit = {unit}\n{named}')
        return "\n".join(parts)

    def site(self, directory: Path, *sets: str) -> Site:
        """The site, by way of a file in `directory`. Raises SiteError where its plan is refused."""
        path = directory / "site.toml"
        path.write_text(self.text())
        return build.load_site(str(path), sets, lambda: list(PARAMS))


def _rtu(baud: int) -> str:
    return f'port = "virtual"\nbaud = {baud}\nparity = "E"'


TCP, CAN = 'port = "virtual-tcp"\nlatency_ms = 1.0', 'port = "virtual-can"\nbitrate = 500000'
METER = "ballast_virtual_meter"
TWO = {"meter": ("a", 1, METER), "bms": ("a", 10, ""), "pcs": ("b", 1, "")}
CAN_PCS = {"pcs": ("c", 1, "generic_can_pcs")}
LAYOUTS = (
    Layout("one RTU bus 460800", {"a": _rtu(460800)}, TWO | {"pcs": ("a", 2, "")}),
    Layout("two RTU buses 115200", {"a": _rtu(115200), "b": _rtu(115200)}, TWO),
    Layout("two RTU buses 460800", {"a": _rtu(460800), "b": _rtu(460800)}, TWO),
    Layout("CAN PCS, RTU meter", {"a": _rtu(460800), "c": CAN}, TWO | CAN_PCS),
    Layout("RTU PCS, TCP meter", {"a": TCP, "b": _rtu(460800)}, TWO),
    Layout("CAN PCS and BMS, TCP meter", {"a": TCP, "c": CAN}, TWO | CAN_PCS | {"bms": ("c", 1, "foxbms_2")}),
)  # fmt: skip
REFUSED = Layout("one RTU bus 115200", {"a": _rtu(115200)}, TWO | {"pcs": ("a", 2, "")})
FAST_PAIR = LAYOUTS[-1]


def planned_per_s(plan: Plan) -> dict[str, float]:
    """Transactions (CAN: frames) a second of each bus."""
    out = {}
    for t in plan.tables:
        if isinstance(t, BusTable):
            table = t.slots23 or t.slots
            slots = sum(i >= 0 for i in table)
            left_out = sum(i != NONE for i in table) * len(t.fast) * t.skips
            a_table = len(t.fast) * HYPER_TICKS - left_out + (t.command >= 0) * HYPER_TICKS + slots
            out[t.spec.name] = a_table * 1000.0 / (HYPER_TICKS * t.tick_ms)
        else:
            out[t.spec.name] = sum(1000.0 / f.period_ms for f in t.traffic)
    return out


@dataclass(frozen=True)
class Seen:
    """One run by the cabinet's log: medians and quantiles in ms, from 5 s after GRID on. per_s: transactions of each bus."""

    command_end_ms: float
    period_ms: float
    latency: dict[str, Any]
    per_s: dict[str, float]
    missed_ticks: int


def _seen(truth: Any, since_ns: int, per_s: dict[str, float], missed_ticks: int) -> Seen:
    since_ns += int(SETTLE_S * 1e9)
    end = np.asarray(truth["cmd_t_end_ns"])
    end = end[end >= since_ns]
    period = float(np.diff(end).mean()) if len(end) > 1 else float("nan")
    return Seen(float(np.median(end % TICK_NS)) / 1e6, period / 1e6, latencies(truth, since_ns)["load_to_power_ms"], per_s, missed_ticks)


def simulation(layout: Layout) -> Simulation:
    """The layout with its devices scanned and its plan made. Raises SiteError where that is refused."""
    with tempfile.TemporaryDirectory() as tmp:
        site = layout.site(Path(tmp))
    return Simulation(site, LoadOptions(trace="steps", repeat=False, seed=1))


def virtual(layout: Layout, seconds: float = STEPS_S) -> tuple[Plan, Seen]:
    """In virtual time, for so long (at least 10 s) after GRID. Raises SiteError where it is refused, RuntimeError without a start."""
    s = simulation(layout)
    s.to_grid()
    buses = list(enumerate(s.site.buses))
    begin = [s.image.bus_stats(k)["transactions"] for k, _ in buses]
    s.run_s(seconds)
    per_s = {b.name: (s.image.bus_stats(k)["transactions"] - begin[k]) / seconds for k, b in buses}
    return s.plan, _seen(s.truth(), grid_since_ns(s), per_s, s.image.engine_stats()["missed_ticks"])


def real(layout: Layout, seconds: float = STEPS_S) -> tuple[Plan, Seen, dict[str, Any], dict[str, float]]:
    """The same with `ballast run` on paced PTYs, slcan and loopback TCP: (plan, seen, summary, cyclictest beside it). Raises RunFailed."""
    kept: dict[str, Any] = {}

    def keep(out: Path) -> None:
        kept.update(load_truth(out / TRUTH_NAME))

    with tempfile.TemporaryDirectory() as tmp:
        layout.site(Path(tmp))
        plan = simulation(layout).plan
        m = realtime.run_beside(seconds, [str(Path(tmp) / "site.toml"), "--trace", "steps"], keep=keep)
    events = [(e["t_s"], e["text"]) for e in m.summary["events"] if e["kind"] in ("mode", "start", "alarm")]
    grid_s = next((t_s for t_s, text in events if text.endswith("-> GRID")), None)
    if grid_s is None:
        raise realtime.RunFailed(f"no GRID: {events[-3:]}")
    since_ns = int(kept["t0_ns"]) + int(grid_s * 1e9)
    return plan, _seen(kept, since_ns, {}, m.summary["missed_ticks"]), m.summary, m.cyclictest


def near(name: str, value: float | None, planned: float, share: float, note: str = "") -> Row:
    """Row that holds while `value` is within `share` of what is planned."""
    bar = f"plan {planned:.3f} +- {100 * share:.0f} %"
    if value is None:
        return Row(name, None, bar, None, note or "no value")
    return Row(name, round(value, 3), bar, abs(value - planned) <= share * planned, note)


def verdicts(tag: str, plan: Plan, seen: Seen, fast_pair: bool = False, in_real_time: bool = False) -> list[Row]:
    """What was seen against the plan. In real time wake-ups and PTYs stand between tick and command: that figure has no bar there."""
    every = plan.to_power.figures()
    events = f"{seen.latency['events']} steps, {seen.latency['excluded']} left out; in place p99 {plan.load_to_power_ms['p99']:.2f}"
    cycle = f"{tag}: cycle, tick to the command's last bit, ms"
    if in_real_time:
        out = [info(cycle, seen.command_end_ms, f"plan {plan.command_end_ms:.3f} on wires that take no CPU")]
    else:
        out = [near(cycle, seen.command_end_ms, plan.command_end_ms, CYCLE)]
    out.append(near(f"{tag}: cycle, command to command, ms", seen.period_ms, plan.tick_ms, CYCLE))
    out += [near(f"{tag}: bus {bus}, transactions a second", n, planned_per_s(plan)[bus], CYCLE) for bus, n in seen.per_s.items()]
    out += [near(f"{tag}: load to power {q}, ms", seen.latency[q], every[q], LATENCY, events) for q in ("p50", "p99")]
    if fast_pair:
        out.append(at_most(f"{tag}: load to power p99", seen.latency["p99"], FAST_PAIR_MS, "ms"))
    return out


def refused() -> Row:
    """The layout that fits no tick is refused, with the arithmetic."""
    name, bar = f"{REFUSED.name}: refused", "more than 10 ms a tick"
    try:
        simulation(REFUSED)
    except SiteError as e:
        return Row(name, "refused", bar, True, str(e))
    return Row(name, "accepted", bar, False)


def rows(seconds: float, in_real_time: bool = True) -> list[Row]:
    """Every layout in virtual time, then in real time for `seconds` each."""
    out = []
    for layout in LAYOUTS:
        plan, seen = virtual(layout)
        out += verdicts(f"virtual, {layout.name}", plan, seen, layout is FAST_PAIR)
    out.append(refused())
    if not in_real_time or shutil.which("cyclictest") is None:
        return out
    for layout in LAYOUTS:
        tag = f"real time, {layout.name}"
        try:
            plan, seen, summary, beside = real(layout, seconds)
        except realtime.RunFailed as e:
            out.append(Row(tag, None, "runs", False, str(e)))
            continue
        out += verdicts(tag, plan, seen, layout is FAST_PAIR, in_real_time=True)
        out.append(realtime.tick_rows(tag, summary, beside)[0])
    return out
