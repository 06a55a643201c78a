"""`python -m bench.plant --config FILE.json`: the virtual cabinet in real time behind PTYs and loopback TCP ports.

stdout, one JSON object a line: first {"ports": {"a": "/dev/pts/N", "b": "tcp://127.0.0.1:N"}, "pid", "t0_ns",
"load_duration_s"} when ready, or {"errors": [...]} and exit code 2. stdin, one JSON object a line: {"set": {key: value,
...}} (all or none), {"params": true} (every setting with its value and range), {"truth": PATH} (write the truth now),
{"stop": true}; each is answered by one line ({"set": ...}, {"params": ...}, {"truth": ...}, {"error": ...}). EOF, {"stop"},
SIGTERM, SIGINT or the end of duration_s end the run and write OUT/truth.npz when `out` is set.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import tty
from pathlib import Path
from typing import Any

from bench.plant import config as config_module
from bench.plant import params
from bench.plant.params import ParamError
from bench.plant.plant import VirtualPlant
from bench.plant.rt import RealTime, lock_memory
from controller.clock import RealClock
from controller.process import keep_messages, say


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _note(text: str) -> None:
    say("plant", text)


def _range(row: params.Param) -> dict[str, Any]:
    return {"min": row.min, "max": row.max, "unit": row.unit, "text": row.text}


def _open_ptys(names: list[str]) -> tuple[dict[str, int], dict[str, str], list[int]]:
    """Raw PTYs: master descriptors, paths of the slaves, and the slaves, kept open so that a master never sees a
    hang-up.
    """
    masters, paths, slaves = {}, {}, []
    for name in names:
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        masters[name], paths[name] = master, os.ttyname(slave)
        slaves.append(slave)
    return masters, paths, slaves


def _open_sockets(ports: dict[str, int]) -> tuple[dict[str, int], dict[str, str]]:
    """Listening sockets on ports of 127.0.0.1 (0: one that is free), and their names. Raises OSError."""
    listening, paths = {}, {}
    for name, number in ports.items():
        sock = socket.create_server(("127.0.0.1", number))
        sock.setblocking(False)
        paths[name] = "tcp://{}:{}".format(*sock.getsockname())
        listening[name] = sock.detach()
    return listening, paths


def _real_time(priority: int, cpu: int | None) -> int | None:
    """Make the calling thread a real-time thread, as far as the system allows. Returns a descriptor that holds the
    CPU awake, or None.
    """
    latency = None
    try:
        latency = os.open("/dev/cpu_dma_latency", os.O_WRONLY)
        os.write(latency, (0).to_bytes(4, "little"))
    except OSError as e:
        _note(f"/dev/cpu_dma_latency not held at 0 ({e.strerror}): wakes may come 0.1 ms later")
    if cpu is not None:
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as e:
            _note(f"not bound to CPU {cpu} ({e.strerror})")
    if priority > 0:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        except OSError as e:
            _note(
                f"no SCHED_FIFO {priority} ({e.strerror}): answers may be late by milliseconds; "
                "late wakes are counted in the truth"
            )
    return latency


class _Control:
    """stdin, signals and the end of the loop, in the main thread."""

    def __init__(self, loop: RealTime, plant: VirtualPlant) -> None:
        self.loop, self.plant = loop, plant
        self.done_r, self.done_w = os.pipe()
        self.pending = b""

    def finish(self, *_: object) -> None:
        """Wake the main thread to end the run (signal handler, end of loop)."""
        os.write(self.done_w, b"x")

    def _handle(self, line: bytes) -> bool:
        """One message; False: stop."""
        try:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError("not an object")
            for key, value in message.get("set", {}).items():
                params.check(key, value, running=True)  # all or none
            for key, value in message.get("set", {}).items():
                self.loop.post(key, value)
            if "params" in message:
                rows = params.PARAMS.values()
                _say({"params": {r.key: {"value": self.plant.get(r.key), "live": r.live, **_range(r)} for r in rows}})
            if "set" in message:
                _say({"set": message["set"]})
            if "truth" in message:
                self.plant.write_truth(message["truth"])
                _say({"truth": message["truth"]})
            return not message.get("stop")
        except (ValueError, AttributeError, ParamError, BufferError, OSError) as e:
            _say({"error": f"{line.decode('utf-8', 'replace')[:200]}: {e}"})
            return True

    def serve(self) -> None:
        """Until stop, EOF, a signal or the end of the loop."""
        stdin = sys.stdin.fileno()
        while True:
            ready, _, _ = select.select([stdin, self.done_r], [], [])
            if self.done_r in ready:
                return
            data = os.read(stdin, 65536)
            *lines, self.pending = (self.pending + data).split(b"\n")
            for line in lines:
                if line.strip() and not self._handle(line):
                    return
            if not data:
                return


def run(raw: dict[str, Any]) -> int:
    """Run a plant until it is told to stop; exit code."""
    try:
        cfg = config_module.parse(raw)
        if cfg.out is not None:
            Path(cfg.out).mkdir(parents=True, exist_ok=True)
        plant = VirtualPlant(cfg)
    except config_module.ConfigError as e:
        _say({"errors": e.problems})
        return 2
    except OSError as e:
        _say({"errors": [f"out: {e}"]})
        return 2
    try:
        listening, named = _open_sockets({name: port.listen for name, port in cfg.ports.items() if port.tcp})
    except OSError as e:
        _say({"errors": [f"ports: {e}: another port, or true for any that is free"]})
        return 2
    masters, paths, slaves = _open_ptys([name for name, port in cfg.ports.items() if not port.tcp])
    loop = RealTime(plant, masters | listening)
    control = _Control(loop, plant)
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, control.finish)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == 0 or not lock_memory():
        _note("memory not locked: page faults may delay answers")
    started = threading.Event()
    t0: list[int] = []

    def real_time_thread() -> None:
        latency = _real_time(cfg.rt_priority, cfg.rt_cpu)
        t0.append(loop.start())
        started.set()
        loop.run()
        if latency is not None:
            os.close(latency)
        control.finish()

    thread = threading.Thread(target=real_time_thread, name="plant")
    thread.start()
    started.wait()
    seconds = cfg.load.duration_s
    _say(
        {
            "ports": paths | named,
            "pid": os.getpid(),
            "t0_ns": t0[0],
            "load_duration_s": None if seconds == float("inf") else seconds,
        }
    )
    control.serve()
    loop.stop()
    thread.join()
    if cfg.out is not None:
        plant.write_truth(Path(cfg.out) / "truth.npz")
    for fd in (*masters.values(), *slaves, *listening.values()):
        os.close(fd)
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.plant", description="the virtual cabinet in real time behind PTYs"
    )
    parser.add_argument("--config", help="JSON file (see bench.plant.config); without it the built-in site")
    parser.add_argument("--messages", type=Path, help="runtime directory of a site: what is said goes into its messages too")
    args = parser.parse_args()
    if args.messages is not None:
        keep_messages(args.messages, RealClock())
    try:
        raw = json.loads(Path(args.config).read_text()) if args.config else config_module.builtin()
    except (OSError, ValueError) as e:
        _say({"errors": [f"{args.config}: {e}"]})
        return 2
    return run(raw)


if __name__ == "__main__":
    sys.exit(main())
