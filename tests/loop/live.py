"""A running site for tests: the virtual cabinet in a process of its own, and `ballast run` on its ports by symbolic
links, as /dev/serial/by-id has them.

The cabinet outlives every process of the controller, so that it can tell what became of the power when one was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from _core import image as core
from controller import build, instance
from controller.virtual import LoadOptions, plant_config

BALLAST = [sys.executable, "-m", "controller"]
RATING_W = 250e3


def alive(pid: int) -> bool:
    return instance.alive(pid)


def until(what: Callable[[], Any], seconds: float, why: str = "") -> Any:
    """What it returns once that is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, f"not within {seconds} s: {why}"
        time.sleep(0.01)
    return got


class Cabinet:
    """`python -m bench.plant` with a steady load; set(), truth() while it runs. listen: loopback TCP ports of its buses."""

    def __init__(self, tmp: Path, load_w: float = 300e3, *, listen: Mapping[str, int] | None = None, **params: float) -> None:
        config = plant_config(build.load_site(None), LoadOptions(load_w, repeat=False))
        config["ports"] |= {bus: {"tcp": number} for bus, number in (listen or {}).items()}
        config["params"] |= {key.replace("__", "."): value for key, value in params.items()}
        self.tmp = tmp
        (tmp / "plant.json").write_text(json.dumps(config))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.plant", "--config", str(tmp / "plant.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.ports: dict[str, str] = json.loads(self.process.stdout.readline())["ports"]

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        got = dict(json.loads(self.process.stdout.readline()))
        assert "error" not in got, got
        return got

    def set(self, **params: float) -> None:
        """Parameters with "__" for the dot."""
        self._ask({"set": {key.replace("__", "."): value for key, value in params.items()}})

    def truth(self) -> dict[str, np.ndarray]:
        """What has happened so far, on the cabinet's own clock."""
        path = self.tmp / "truth.npz"
        self._ask({"truth": str(path)})
        with np.load(path) as f:
            return {name: f[name] for name in f.files}

    def power(self, since_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """(t in s after since_ns, battery W) of every 10 ms from then on."""
        truth = self.truth()
        batt = np.asarray(truth["batt_w"], float)
        t = int(truth["t0_ns"]) + 10_000_000 * (np.arange(len(batt)) + 1) - since_ns
        return t[t > 0] / 1e9, batt[t > 0]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()


class Live:
    """One `ballast run` with a runtime directory of its own; ports: bus -> path."""

    def __init__(self, tmp: Path, ports: Mapping[str, str], *args: str, site: str = "builtin", stdout: Any = None) -> None:
        self.tmp, self.site = tmp, site
        self.env = os.environ | {"BALLAST_RUNTIME_DIR": str(tmp), "BALLAST_STATE_DIR": str(tmp / "state")}
        self.log_path = tmp / f"log-{site}"
        self.log = open(self.log_path, "a+b")  # noqa: SIM115
        sets = [f"bus.{bus}.port={path}" for bus, path in ports.items()] + [f"site.name={site}"]
        argv = [*BALLAST, "run", "--quiet", *(word for text in sets for word in ("--set", text)), *args]
        out = stdout or self.log
        self.process = subprocess.Popen(argv, env=self.env, stdout=out, stderr=out)
        self.image: Any = None

    @property
    def here(self) -> instance.Instance:
        found = instance.read(self.tmp / f"ballast-{self.site}")
        assert found is not None, self.text()
        return found

    def open(self) -> Any:
        """The image, once the instance can be found."""

        def look() -> bool:
            assert self.process.poll() is None, self.text()
            found = instance.read(self.tmp / f"ballast-{self.site}")
            with contextlib.suppress(instance.InstanceError):
                self.image = found and found.pid == self.process.pid and instance.open_image(found, writable=True)
            return bool(self.image)

        until(look, 20, "instance")
        return self.image

    @property
    def out(self) -> dict[str, Any]:
        return dict((self.image.latest() or {"out": {"mode": -1}})["out"])

    def grid(self, seconds: float = 20.0, head: int = -1) -> None:
        """Waits for GRID in a tick after ring position `head`."""
        until(lambda: self.image.head > head and self.out["mode"] == core.MODE_GRID, seconds, self.text())

    def limit(self, name: str) -> bool:
        bit = next(bit for bit, (known, _) in core.LIMIT_TEXT.items() if known == name)
        return bool(self.out.get("limits_active", 0) & bit)

    def ballast(self, *args: str, site: bool = True) -> subprocess.CompletedProcess[str]:
        words = [*args, "--site", self.site] if site else list(args)
        return subprocess.run([*BALLAST, *words], env=self.env, capture_output=True, text=True, timeout=60)

    def text(self) -> str:
        return self.log_path.read_text(errors="replace")

    def lines(self, words: str) -> int:
        return sum(words in line for line in self.text().splitlines())

    def pids(self) -> list[int]:
        here = self.here
        return [pid for pid in (here.pid, here.control_pid, here.supervisor_pid, here.plant_pid) if pid]

    def end(self) -> None:
        for pid in self.pids() if self.process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def links(tmp: Path, ports: Mapping[str, str]) -> dict[str, str]:
    """A symbolic link for each port."""
    made = {}
    for bus, path in ports.items():
        link = tmp / f"usb-adapter-{bus}"
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        made[bus] = str(link)
    return made


class Relay:
    """A cable between the cabinet's port and a PTY of its own that `link` points to; it can be pulled, and plugged in
    again under another name.
    """

    def __init__(self, path: str, link: Path) -> None:
        self.path, self.link = path, link
        self.names: list[str] = []
        self.cut_after = -1  # bytes of the next answer that still pass
        self.babble = False  # a device that talks without end
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None
        self.plug()

    def plug(self) -> None:
        self.stop.clear()
        self.far = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.near, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(self.near, False)
        self.names.append(os.ttyname(slave))
        new = self.link.with_suffix(".new")
        new.symlink_to(self.names[-1])
        new.replace(self.link)
        self.thread = threading.Thread(target=self._carry, args=(slave,), daemon=True)
        self.thread.start()

    def _carry(self, slave: int) -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(85))
        opened = False
        while not self.stop.is_set():
            if self.babble:
                time.sleep(0.001)
                with contextlib.suppress(OSError):
                    os.write(self.near, b"\x01\x03\x18" * 1000)
                continue
            for fd in select.select([self.far, self.near], [], [], 0.05)[0]:
                try:
                    data = os.read(fd, 4096)
                    if fd == self.near and not opened:
                        opened = True
                        os.close(slave)  # from now on control alone holds it
                    if fd == self.far and self.cut_after >= 0 and len(data) > self.cut_after:
                        os.write(self.near, data[: self.cut_after])
                        self.stop.set()
                        break
                    os.write(self.near if fd == self.far else self.far, data)
                except BlockingIOError:
                    continue
                except OSError:  # one end has gone: wait to be pulled
                    time.sleep(0.02)
        self.link.unlink(missing_ok=True)
        if not opened:
            os.close(slave)
        os.close(self.near)
        os.close(self.far)

    def pull(self, cut_after: int = -1) -> None:
        """Out with it; cut_after: in the middle of the next answer, after so many bytes."""
        assert self.thread is not None
        if cut_after >= 0:
            self.cut_after = cut_after
            self.thread.join(10)
        self.stop.set()
        self.thread.join(5)
        self.cut_after = -1
