"""The virtual cabinet as a process: its configuration from the site, its start, its ports. controller never imports
bench.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.clock import Clock
from controller.problems import Problem, SiteError
from controller.process import Child
from controller.site import Bus, Site

PLANT_PORTS = "abcd"  # the plant's names for its ports, in the order of the site's buses
PLANT_KINDS = ("meter", "bms", "pcs")
PLANT_CAN = {"bms": ("pylontech_lv", "foxbms_2"), "pcs": ("generic_can_pcs",)}  # what its devices speak on CAN
READY_S = 20.0
ASK_S = 2.0
ASK_MOST = 8  # messages under way


@dataclass(frozen=True)
class LoadOptions:
    """The load of a run: --trace, --edge, --scale, --seed. `repeat`: begin again at the trace's end."""

    trace: str | float = "cluster"
    edge: str = "20"
    scale: float = 1.0
    repeat: bool = True
    seed: int = 1


def plant_config(site: Site, load: LoadOptions) -> dict[str, Any]:
    """Configuration of `python -m bench.plant`: the site's nameplate, then the overrides. Raises SiteError for what
    it cannot be.
    """
    problems: list[Problem] = []
    if len(site.buses) > len(PLANT_PORTS):
        why = f"{len(site.buses)} virtual buses: the virtual cabinet has {len(PLANT_PORTS)} ports"
        problems.append(Problem(site.file, "[[bus]]", None, why, "use fewer"))
    can = {bus.name for bus in site.buses if bus.can}
    ports = {bus.name: name for bus, name in zip(site.buses, PLANT_PORTS, strict=False)}
    for device in site.devices:
        if device.role not in PLANT_KINDS:
            why = "is no device of the virtual cabinet"
            problems.append(Problem(site.file, f"device.{device.name}.role", device.role, why, f"it has {', '.join(PLANT_KINDS)}"))
        elif device.bus in can and device.profile not in PLANT_CAN.get(device.role, ()):
            why = f"the virtual cabinet's {device.role} does not speak that on CAN"
            remedy = f"one of {', '.join(PLANT_CAN[device.role])}" if device.role in PLANT_CAN else "a bus that is not CAN"
            problems.append(Problem(site.file, f"device.{device.name}.profile", device.profile, why, remedy))
    if problems:
        raise SiteError(problems)
    params: dict[str, Any] = {
        "battery.energy_wh": site.num("battery.energy_wh"),
        "pcs.s_rated_va": site.num("pcs.s_rated_va"),
        "pcs.dead_time_s": site.num("pcs.dead_time_s"),
        "pcs.tau_s": site.num("pcs.tau_s"),
        "grid.f_hz": site.num("site.f_nom_hz"),
        "grid.v_ln_v": site.num("site.v_nom_v"),
    }
    if site.num("battery.c_rate") != 1:
        params["bms.charge_limit_w"] = params["bms.discharge_limit_w"] = site.num("battery.energy_wh") * site.num("battery.c_rate")
    if any(d.profile == "foxbms_2" for d in site.devices):
        params["bms.can_foxbms"] = 1
    params |= {f"{ports[bus.name]}.latency_s": 1e-3 * bus.latency_ms for bus in site.buses if bus.tcp}
    params |= site.plant
    return {
        "params": params,
        "ports": {ports[bus.name]: _port(bus) for bus in site.buses},
        "devices": [{"kind": d.role, "port": ports[d.bus], "unit": d.unit} for d in site.devices],
        "load": {"trace": load.trace, "edge": load.edge, "scale": load.scale, "repeat": load.repeat},
        "seed": load.seed,
        "out": None,  # the truth is asked for when the run's figures are taken
    }


def _port(bus: Bus) -> dict[str, Any]:
    if bus.can:
        return {"bitrate": bus.bitrate}
    return {"tcp": True} if bus.tcp else {"baud": bus.baud, "parity": bus.parity, "stop_bits": bus.stop_bits}


def plant_keys() -> list[str]:
    """Names of the virtual cabinet's settings, asked from it in a process. Raises SiteError without bench."""
    code = "import json; from bench.plant.params import PARAMS; print(json.dumps(list(PARAMS)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    try:
        return list(json.loads(done.stdout))
    except (ValueError, TypeError):
        reason = done.stderr.strip().rpartition("\n")[2] or "build it: python setup.py build_ext --inplace"
        raise SiteError([Problem("", "bench.plant", None, "the virtual cabinet does not tell its settings", reason)]) from None


@dataclass
class _Asked:
    """One message under way; `done` None: nobody waits for its answer any more."""

    done: Callable[[dict[str, Any]], None] | None
    until_ns: int


class Plant:
    """The running virtual cabinet. `ports` maps the site's buses to PTYs and loopback ports once `start` has returned."""

    def __init__(self, site: Site, config: dict[str, Any], directory: Path, clock: Clock, stderr: Any = None) -> None:
        self.site, self.directory, self.clock = site, directory, clock
        self.path = directory / "plant.json"
        self.path.write_text(json.dumps(config, indent=1))
        argv = ["bench.plant", "--config", str(self.path), "--messages", str(directory)]
        # Its stdin is a pipe of ours: when we are gone, however we went, it reads the end of it and leaves.
        self.child = Child("plant", argv, clock, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        self.ports: dict[str, str] = {}
        self._waiting: deque[_Asked] = deque()
        self._heard, self._gone = b"", False

    def start(self) -> None:
        """Starts it and waits for its ports. Raises SiteError with what it says is wrong (a bad trace, a bad
        parameter).
        """
        self.child.start()
        told = self._answer(READY_S)
        if "ports" in told:
            assert self.child.process is not None and self.child.process.stdin is not None
            os.set_blocking(self.child.process.stdin.fileno(), False)
            self.ports = {bus.name: told["ports"][name] for bus, name in zip(self.site.buses, PLANT_PORTS, strict=False)}
            return
        self.child.send(signal.SIGTERM)
        self.child.wait(2)
        lines = told.get("errors") or ["the virtual cabinet did not start"]
        raise SiteError([Problem("", "", None, str(line)) for line in lines])

    def write_truth(self, path: Path) -> bool:
        """Asks for its log as it stands now, and waits; False where it does not answer."""
        answers: list[dict[str, Any]] = []
        try:
            self.ask({"truth": str(path)}, answers.append, READY_S)
        except ValueError:
            return False
        while not answers:
            if self.listening() and select.select([self.fileno()], [], [], 0.1)[0]:
                self.hear()
            self.expire()
        return "truth" in answers[0]

    def ask(self, message: dict[str, Any], done: Callable[[dict[str, Any]], None], seconds: float = ASK_S) -> None:
        """Sends one message and never waits; `done` gets the answer, or {"error": ...} after `seconds`. Raises ValueError
        where it cannot be sent.
        """
        line = json.dumps(message).encode() + b"\n"
        if len(line) > select.PIPE_BUF:  # up to here a pipe takes all of it or nothing (pipe(7))
            raise ValueError(f"the message is longer than {select.PIPE_BUF} bytes: send fewer settings at once")
        if len(self._waiting) >= ASK_MOST or not self.listening():
            raise ValueError("the virtual cabinet does not answer")
        assert self.child.process is not None and self.child.process.stdin is not None
        try:
            os.write(self.child.process.stdin.fileno(), line)
        except OSError as e:
            raise ValueError(f"the virtual cabinet does not listen: {e.strerror}") from None
        self._waiting.append(_Asked(done, self.clock.monotonic_ns() + int(seconds * 1e9)))

    def owes(self) -> bool:
        """True while an answer is to come."""
        return bool(self._waiting) and self.listening()

    def listening(self) -> bool:
        """True while its end of the pipe is open."""
        return not self._gone and self.child.process is not None and self.child.pidfd >= 0

    def fileno(self) -> int:
        """Where its answers come."""
        assert self.child.process is not None and self.child.process.stdout is not None
        return self.child.process.stdout.fileno()

    def hear(self) -> None:
        """Takes what it says; to be called when `fileno` is readable. It answers in the order it was asked."""
        data = os.read(self.fileno(), 65536)
        self._gone = not data
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            asked = self._waiting.popleft() if self._waiting else None
            if asked is not None and asked.done is not None:
                try:
                    asked.done(dict(json.loads(line)))
                except (ValueError, TypeError):
                    asked.done({"error": "the virtual cabinet answers with something else than JSON"})

    def expire(self) -> None:
        """Tells those who have waited long enough; the place of their answer stays, for it may still come."""
        now_ns = self.clock.monotonic_ns()
        for asked in self._waiting:
            if asked.done is not None and (not self.listening() or now_ns >= asked.until_ns):
                done, asked.done = asked.done, None
                done({"error": "the virtual cabinet does not answer"})

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The next line it says, as JSON; empty where none comes in time."""
        assert self.child.process is not None and self.child.process.stdout is not None
        out = self.child.process.stdout
        end_ns = self.clock.monotonic_ns() + int(seconds * 1e9)
        data = b""
        while b"\n" not in data and (left_s := (end_ns - self.clock.monotonic_ns()) / 1e9) > 0:
            if select.select([out], [], [], left_s)[0]:
                more = os.read(out.fileno(), 65536)
                if not more:
                    break
                data += more
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError):
            return {}
