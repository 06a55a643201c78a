"""The control process: what it costs, and what becomes of the power when it is lost. Real time, judged by the plant's log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from _core import image as core
from bench.perf.rows import Row, at_most
from controller import build, instance
from controller.site import Site
from controller.virtual import LoadOptions, plant_config

LOAD_W = 300e3
HOLD_W = 40e3
LOSSES = 5
ZERO_W = 100.0
SITE_NAME = "bench"


class Bench:
    """The virtual cabinet in a process of its own, and `ballast run` on its ports: the cabinet outlives control."""

    def __init__(self, tmp: Path, load: LoadOptions, *words: str) -> None:
        self.tmp, self.site = tmp, build.load_site(None)
        (tmp / "plant.json").write_text(json.dumps(plant_config(self.site, load)))
        argv = [sys.executable, "-m", "bench.plant", "--config", str(tmp / "plant.json")]
        self.plant = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.plant.stdout is not None
        ports = json.loads(self.plant.stdout.readline())["ports"]
        sets = [f"bus.{bus}.port={path}" for bus, path in ports.items()] + [f"site.name={SITE_NAME}"]
        self.env = os.environ | {"BALLAST_RUNTIME_DIR": str(tmp), "BALLAST_STATE_DIR": str(tmp / "state")}
        argv = [sys.executable, "-m", "controller", "run", "--quiet", *(word for text in sets for word in ("--set", text)), *words]
        self.run = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.env)
        self.image: Any = None
        self.wait(self._open, 30)
        self.wait(self.in_grid, 30)

    def _open(self) -> bool:
        found = instance.read(self.tmp / f"{instance.PREFIX}{SITE_NAME}")
        with contextlib.suppress(instance.InstanceError):
            self.image = instance.open_image(found, writable=True) if found else None
        return self.image is not None

    @property
    def here(self) -> instance.Instance:
        found = instance.read(self.tmp / f"{instance.PREFIX}{SITE_NAME}")
        assert found is not None
        return found

    def in_grid(self) -> bool:
        latest = self.image.latest()
        return bool(latest and latest["out"]["mode"] == core.MODE_GRID)

    def wait(self, what: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end or self.run.poll() is not None:
                raise RuntimeError("the run on the virtual cabinet did not come so far")
            time.sleep(0.01)

    def truth(self) -> dict[str, np.ndarray]:
        """The plant's log up to now."""
        assert self.plant.stdin is not None and self.plant.stdout is not None
        self.plant.stdin.write(json.dumps({"truth": str(self.tmp / "truth.npz")}) + "\n")
        self.plant.stdin.flush()
        self.plant.stdout.readline()
        with np.load(self.tmp / "truth.npz") as f:
            return {name: f[name] for name in f.files}

    def power(self, since_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """(seconds after since_ns, battery W) of every 10 ms."""
        truth = self.truth()
        t = (int(truth["t0_ns"]) + 10_000_000 * (np.arange(len(truth["batt_w"])) + 1) - since_ns) / 1e9
        return t[t > 0], np.asarray(truth["batt_w"], float)[t > 0]

    def hold(self) -> None:
        """The battery at HOLD_W, by the operator's command."""
        command = [sys.executable, "-m", "controller", "hold", f"{HOLD_W:g}", "--site", SITE_NAME]
        subprocess.run(command, env=self.env, check=True, capture_output=True)
        self.wait(lambda: abs(self.image.latest()["out"]["p_cmd_w"] - HOLD_W) < 1, 60)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.run.pid, signal.SIGCONT)
        for process in (self.run, self.run, self.plant):
            process.terminate()
            time.sleep(0.3)
        for process in (self.run, self.plant):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def bench(load: LoadOptions, *words: str) -> Iterator[Bench]:
    """A Bench that is ended whatever happens. `words`: more for `ballast run`."""
    with tempfile.TemporaryDirectory() as tmp:
        made = Bench(Path(tmp), load, *words)
        try:
            yield made
        finally:
            made.end()


def _cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def cost_rows(seconds: float) -> list[Row]:
    """Resident memory and CPU share on the built-in site."""
    with bench(LoadOptions()) as b:
        pid = b.here.control_pid
        before = _cpu_s(pid)
        time.sleep(seconds)
        share = 100.0 * (_cpu_s(pid) - before) / seconds
        return [
            at_most("control: resident memory", _rss_mb(pid), 60.0, "MB"),
            at_most("control: share of one core", share, 8.0, "%", "", f"over {seconds:.0f} s"),
        ]


def _one_loss(b: Bench) -> tuple[float, float, float]:
    """(seconds to the first command, to GRID, largest change of battery power in W) of one SIGKILL."""
    pid, head = b.here.control_pid, int(b.image.head)
    t_ns = core.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    b.wait(lambda: b.here.control_pid not in (0, pid) and int(b.image.head) > head + 20 and b.in_grid(), 20)
    time.sleep(0.5)
    rows = np.frombuffer(b.image.drain(head)[0], core.record_dtype())
    rows = rows[rows["inp"]["t_ns"] > t_ns]
    began = int(np.argmin(rows["tick"]))
    grid = began + int(np.argmax(rows["out"]["mode"][began:] == core.MODE_GRID))
    sent = b.truth()["cmd_t_end_ns"]
    first_s = (int(sent[sent > int(rows["inp"]["t_ns"][began])][0]) - t_ns) / 1e9
    _, batt = b.power(t_ns - 200_000_000)
    return first_s, (int(rows["inp"]["t_ns"][grid]) - t_ns) / 1e9, float(np.ptp(batt))


def loss_rows(site: Site) -> list[Row]:
    """SIGKILL of control: with the parent there to start another, and without anybody."""
    rating_w, reversion_s = site.num("pcs.s_rated_va"), site.num("pcs.reversion_s")
    with bench(LoadOptions(LOAD_W, repeat=False)) as b:
        b.hold()
        lost = []
        for _ in range(LOSSES):
            lost.append(_one_loss(b))
            time.sleep(6.0)  # whoever dies young is started later
        os.kill(b.run.pid, signal.SIGSTOP)
        t_ns = core.monotonic_ns()
        os.kill(b.here.control_pid, signal.SIGKILL)
        time.sleep(reversion_s + 2.0)
        t, batt = b.power(t_ns)
    note = f"worst of {LOSSES}"
    bar_s = reversion_s + 1.0 + HOLD_W / rating_w
    return [
        at_most("control lost: PCS at 0 W, nobody comes", float(t[np.abs(batt) > ZERO_W].max()), bar_s, "s", " (timer + 1 s + ramp)"),
        at_most("control killed: first command", max(x[0] for x in lost), 2.0, "s", "", note),
        at_most("control killed: back in GRID", max(x[1] for x in lost), 2.0, "s", "", note),
        at_most("control killed: bump", 100.0 * max(x[2] for x in lost) / rating_w, 2.0, "% of rating", "", note),
    ]


def rows(seconds: float = 30.0) -> list[Row]:
    """All rows of the control process."""
    return cost_rows(seconds) + loss_rows(build.load_site(None))
