"""python -m bench.sim: what `ballast sim` runs. Site, engine and supervisor of the product against the virtual cabinet, in virtual time.

The supervisor runs in-process on a virtual clock, once a virtual second; nothing here or below it reads wall time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _core.engine import Engine
from hal.modbus import PyRtuMaster

from _core import image as im
from bench import report
from bench.cosim import Cosim
from bench.judge import judge
from bench.plant.config import ConfigError
from bench.plant.load import TraceError
from bench.plant.params import PARAMS
from bench.plant.plant import VirtualPlant
from controller import build, summary, wires
from controller.clock import ManualClock
from controller.problems import SiteError
from controller.records import RecordWriter
from controller.site import Bus, Site
from controller.supervise import RECORD_NAME
from controller.supervisor import Supervisor
from controller.virtual import PLANT_PORTS, LoadOptions, plant_config

SECOND_NS = 1_000_000_000
T0_NS = SECOND_NS  # virtual time begins here: 0 means "never" everywhere
START_S = 15.0  # a start sequence that is longer has failed
TRUTH_NAME = "truth.npz"


class Simulation:
    """One site in virtual time.

    site     controller.site.Site
    load     LoadOptions; `repeat` is off: the run ends with the trace
    faults   [{"at_s", "for_s", "key", "value"}], seconds from the start of the plant
    """

    def __init__(self, site: Site, load: LoadOptions, *, faults: list[dict[str, Any]] | None = None, for_s: float | None = None,
                 writer: Callable[[], RecordWriter] | None = None) -> None:  # fmt: skip
        self.site = site
        config = plant_config(site, load)
        config["faults"] = faults or []
        config["duration_s"] = None if for_s is None else for_s + START_S + 10.0
        self.plant = VirtualPlant(config)
        self.load_s = float(self.plant.config.load.duration_s)
        self.cosim = Cosim(self.plant, T0_NS)
        self.numbers = {bus.name: self.plant.ports[name] for bus, name in zip(site.buses, PLANT_PORTS, strict=False)}
        for bus in site.buses:
            if bus.can:  # what opening the port does in real time
                self.plant.rx(self.numbers[bus.name], b"O\r", T0_NS)
        self._control(writer)

    def _control(self, writer: Callable[[], RecordWriter] | None) -> None:
        """Scan, plan, image, engine, supervisor: what a control process and its supervisor make when they start."""
        site = self.site
        self.plan, self.ports, self.maps = build.scans(site, self._asker)
        self.image = im.ProcessImage.create()
        self.image.set_site(build.kernel_site(site, self.maps))
        self.engine = Engine(self.image, self.ports, devices=range(len(site.devices)), priority=0, **build.engine_timing(self.plan))
        self.clock = ManualClock(self.cosim.now_ns)
        hashed = {"layout": im.LAYOUT, "settings": site.settings_hash(), "record_size": im.RECORD_SIZE}
        self.writer = writer() if writer else RecordWriter(None, **hashed)
        self.supervisor = Supervisor(self.image, site, self.clock, writer=self.writer)
        self.cosim.attach(self.engine, [self.numbers[bus.name] for bus in site.buses])
        self.began_ns = self.cosim.now_ns
        self.grid_ns: int | None = None

    @classmethod
    def resume(cls, old: Simulation) -> Simulation:
        """A new controller on the plant of an old one, which is simply gone: what a restart of control meets."""
        new = cls.__new__(cls)
        new.site, new.plant, new.load_s, new.cosim, new.numbers = old.site, old.plant, old.load_s, old.cosim, old.numbers
        new.cosim.detach()
        new._control(None)
        return new

    def _asker(self, bus: Bus) -> Callable[[int, int, int, int], list[int]]:
        """Blocking reads over the virtual wire, for the SunSpec scan before the engine starts."""
        master = PyRtuMaster(bus.baud, 9 + (bus.parity != "N") + bus.stop_bits, tcp=bus.tcp)
        timeout_ns = max(100_000_000, int(3e6 * bus.latency_ms))

        def transact(unit: int, fc: int, addr: int, count: int) -> list[int]:
            frame = master.request(unit, fc, addr, count)
            master.sent(self.cosim.now_ns, timeout_ns)
            answer: list[int] = []
            for t_ns, data in self.cosim.exchange(self.numbers[bus.name], frame, timeout_ns):
                if master.feed(data, t_ns) == "ok":
                    answer = list(master.words)
            if master.waiting:
                master.expire(max(self.cosim.now_ns, master.deadline_ns))
            if not answer:
                raise OSError(f"bus {bus.name}, unit {unit}: no answer to function {fc}, register {addr}")
            return answer

        return transact

    def run_until(self, t_ns: int) -> bool:
        """To an instant, the supervisor once a virtual second. False when the engine has left its loop."""
        while self.cosim.now_ns < t_ns:
            self.clock.t_ns = self.cosim.now_ns
            self.supervisor.step(self.cosim.now_ns)
            if not self.cosim.run_until(min(t_ns, self.cosim.now_ns + SECOND_NS)):
                return False
        return True

    def run_s(self, seconds: float) -> bool:
        """As run_until, from now on."""
        return self.run_until(self.cosim.now_ns + int(seconds * 1e9))

    def to_grid(self) -> None:
        """Through the start sequence. Raises RuntimeError with what it waits for."""
        end_ns = self.cosim.now_ns + int(START_S * 1e9)
        while self.cosim.now_ns < end_ns:
            self.run_until(self.cosim.now_ns + 10_000_000 if self.clock.t_ns else end_ns)
            state = self.image.state()
            if state and state["mode"] == im.MODE_GRID:
                self.grid_ns = int(state["mode_since_ns"])
                return
        r = self.image.latest()
        raise RuntimeError(f"no GRID within {START_S:g} s: {im.START_NAMES[r['out']['start_step']]}; alarms {alarms(r['out']['alarms'])}")

    @property
    def out(self) -> dict[str, Any]:
        """Outputs of the latest tick."""
        r = self.image.latest()
        return dict(r["out"]) if r else {}

    def truth(self) -> dict[str, Any]:
        """The plant's log."""
        return dict(self.plant.truth())

    def close(self) -> None:
        """Drains the ring into the record and closes it."""
        self.clock.t_ns = self.cosim.now_ns
        self.supervisor.close(self.cosim.now_ns)


def alarms(bits: int) -> list[str]:
    """Names of the alarms in a bit field."""
    return [name for bit, (name, _) in im.ALARM_TEXT.items() if bits & bit]


def grid_since_ns(sim: Simulation) -> int:
    """When GRID was first reached; the end of the run where it never was."""
    for e in sim.supervisor.events:
        if e.kind == "mode" and "GRID" in e.text:
            return e.t_ns
    return sim.cosim.now_ns


def figures(sim: Simulation, seed: int) -> dict[str, Any]:
    """The summary of a finished simulation, judged by the plant's log."""
    num = sim.site.num
    judged = judge(
        sim.truth(), grid_since_ns=grid_since_ns(sim), ramp_w_per_s=max(num("grid.ramp_up_w_per_s"), num("grid.ramp_down_w_per_s")),
        import_limit_w=num("grid.import_limit_w"), plan=summary.latency(sim.plan),
    )  # fmt: skip
    judged["grid"] = dict(judged["grid"]) | {"ramp_not_held_s": (sim.out or {}).get("not_held_s")}
    return summary.compose(
        site=sim.site, mode="sim", seed=seed, duration_s=(sim.cosim.now_ns - sim.began_ns) / 1e9, engine_stats=sim.image.engine_stats(),
        plan=sim.plan, judged=judged, bus_rows=summary.buses(sim.image, sim.site),
        events=summary.event_rows(sim.supervisor.events, sim.began_ns), record_sha256=sim.writer.sha256(),
    )  # fmt: skip


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="ballast sim", description="the virtual cabinet and the real controller, in virtual time")
    p.add_argument("site", nargs="?")
    p.add_argument("--trace", default="cluster")
    p.add_argument("--edge", default="20")
    p.add_argument("--scale", type=float, default=1.0)
    p.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    p.add_argument("--for", type=float, dest="for_s", metavar="S")
    p.add_argument("--out", type=Path, metavar="DIR")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--no-report", action="store_true")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    a = _arguments(argv)
    began = time.monotonic()
    try:
        site = build.load_site(a.site, a.sets, lambda: list(PARAMS))
        if a.out:
            a.out.mkdir(parents=True, exist_ok=True)
            (a.out / RECORD_NAME).unlink(missing_ok=True)
        sim = Simulation(
            site, LoadOptions(trace=a.trace, edge=a.edge, scale=a.scale, repeat=False, seed=a.seed), for_s=a.for_s,
            writer=lambda: RecordWriter(a.out / RECORD_NAME if a.out else None, layout=im.LAYOUT, settings=site.settings_hash(),
                                        record_size=im.RECORD_SIZE),
        )  # fmt: skip
    except (SiteError, ConfigError, TraceError) as e:
        print(e, file=sys.stderr)  # every problem, a line each
        return 2
    seconds = a.for_s if a.for_s is not None else sim.load_s
    if not math.isfinite(seconds):
        print("ballast sim: the built-in generator has no end: say --for S", file=sys.stderr)
        return 2
    sim.run_until(sim.began_ns + int(seconds * 1e9))
    sim.close()
    made = figures(sim, a.seed)
    if a.out:
        sim.plant.write_truth(a.out / TRUTH_NAME)
        (a.out / "site.json").write_text(json.dumps(site.to_dict(), indent=1))
        summary.write(made, a.out)
        wires.write(wires.collect(sim.image, site, wires.told(sim.plan, site)), a.out)
        if not a.no_report:
            report.write(a.out)
    else:
        print(json.dumps(made, indent=1))
    wall = time.monotonic() - began
    print(f"{seconds:g} s in {wall:.1f} s: {seconds / wall:.0f} times real time", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
