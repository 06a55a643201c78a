"""The console: how soon the prompt is back, what `top` sends on a slow line, and what consoles and noise do to the tick.

Real time, on PTYs; the tick's figures stand beside those of the same site in the same minutes without any console.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from _core import image as core
from bench.cable import Cable
from bench.perf.process import SITE_NAME, Bench, bench
from bench.perf.rows import Row, at_least, at_most
from controller import trends
from controller.console.accounts import Accounts
from controller.virtual import LoadOptions

NAME, PASSWORD = "bench", "a few small words"
COMMANDS = (
    "status", "why", "alarms", "events 8", "mode", "limit", "devices", "buses", "log 5", "who", "trend load_w 60s", "trend load_w 24h",
    "settings get import", "settings diff", "settings dump", "plan", "help",
)  # fmt: skip
MORE = b"-- more"
REPEATS = 8
NOISE_MB = 10


class Laptop:
    """A VT100 of 80 x 24 at the far end of a cable; answers where its cursor is."""

    def __init__(self, cable: Cable) -> None:
        self.fd = os.open(cable.far, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.got = bytearray()
        self.answers = 0
        self._end = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while not self._end.is_set():
            if not select.select([self.fd], [], [], 0.1)[0]:
                continue
            with contextlib.suppress(OSError):
                self.got += os.read(self.fd, 65536)
            while len(re.findall(rb"\x1b\[6n", self.got)) > self.answers:
                self.type(b"\x1b[24;80R" if self.answers % 2 else b"\x1b[1;2R")
                self.answers += 1

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def sees(self, words: bytes, since: int = 0, seconds: float = 20.0) -> float:
        """When they were there (monotonic)."""
        return self.sees_one({words: 1}, since, seconds)

    def sees_one(self, wanted: dict[bytes, int], since: int, seconds: float = 20.0) -> float:
        """When one of these was there so many times (monotonic)."""
        end = time.monotonic() + seconds
        while not any(bytes(self.got[since:]).count(words) >= times for words, times in wanted.items()):
            if time.monotonic() > end:
                raise RuntimeError(f"never saw {list(wanted)} in {bytes(self.got[-400:])!r}")
            time.sleep(0.0005)
        return time.monotonic()

    def answer(self, command: str) -> float:
        """Types a command; seconds from Enter to the next prompt, or to the end of the first screenful of a long answer."""
        self.type(command.encode())
        time.sleep(0.1)
        since, began = len(self.got), time.monotonic()
        self.type(b"\r")
        took_s = self.sees_one({b"GRID>": 2, MORE: 1}, since) - began  # the prompt is drawn once more when its line is taken
        if MORE in self.got[since:]:
            self.type(b"q")
            self.sees_one({b"GRID>": 2}, since)
        time.sleep(0.1)
        return took_s

    def watch_top(self) -> None:
        """`top` runs: its count of ticks stands there, and goes on."""
        since = len(self.got)
        self.type(b"top\r")
        self.sees(b"ticks ", since, 30)
        self.still_drawn()

    def still_drawn(self) -> None:
        """Something of the picture changes. Raises RuntimeError."""
        before, end = len(self.got), time.monotonic() + 5.0
        while len(self.got) == before:
            if time.monotonic() > end:
                raise RuntimeError(f"`top` stands still: {bytes(self.got[-400:])!r}")
            time.sleep(0.01)

    def log_in(self) -> None:
        self.sees(b"Press Enter")
        self.type(b"\r")
        self.sees(b"user: ")
        self.type(NAME.encode() + b"\r")
        self.sees(b"password: ")
        self.type(PASSWORD.encode() + b"\r")
        self.sees(b"lists the commands")

    def end(self) -> None:
        self._end.set()
        time.sleep(0.15)
        os.close(self.fd)


@contextlib.contextmanager
def console(b: Bench, tmp: Path, name: str, baud: int | None) -> Iterator[tuple[Cable, Laptop, subprocess.Popen[bytes]]]:
    """`ballast console` on a cable."""
    cable = Cable(tmp, baud, name)
    argv = [sys.executable, "-m", "controller", "console", "--port", str(cable.near), "--baud", str(baud or 115200)]
    process = subprocess.Popen(argv, env=b.env, stderr=subprocess.DEVNULL)
    laptop = Laptop(cable)
    try:
        yield cable, laptop, process
    finally:
        process.terminate()
        laptop.end()
        process.wait(10)
        cable.end()


def a_day_of_trends(b: Bench) -> None:
    """What `trend ... 24h` has to read after a day: the supervisor's own file, filled back to yesterday."""
    path = Path(b.here.store).with_name(trends.FILE)
    b.wait(path.exists, 30)  # made when its first 10 s are over
    kept = np.frombuffer(b.image.drain(0)[0], core.record_dtype())[-2:]
    writer, now_s = trends.TrendWriter(path), time.time()
    for ago_s in np.arange(86400.0 - trends.STEP_S, 2 * trends.STEP_S, -trends.STEP_S):
        writer.add(kept, now_s - float(ago_s))
    writer.close()


def prompt_rows(b: Bench, tmp: Path) -> list[Row]:
    """From Enter to the next prompt, for each command that looks, alone and beside a second session in `top`."""
    a_day_of_trends(b)
    out = []
    with console(b, tmp, "prompt", None) as (_, laptop, _process), console(b, tmp, "second", 115200) as (_, second, _other):
        laptop.log_in()
        time.sleep(0.5)
        for others in (0, 1):
            if others:
                second.log_in()
                second.watch_top()
            medians = {command: 1e3 * float(np.median([laptop.answer(command) for _ in range(REPEATS)])) for command in COMMANDS}
            if others:
                second.still_drawn()
            slowest = max(medians, key=lambda k: medians[k])
            note = f"slowest of {len(COMMANDS)}: {slowest}; {', '.join(f'{k} {v:.0f}' for k, v in medians.items())}"
            beside = ", a second session in `top`" if others else ""
            name = f"console: prompt back after Enter, median of the slowest command{beside}"
            out.append(at_most(name, medians[slowest], 50.0, "ms", "", note))
    return out


def slow_rows(b: Bench, tmp: Path, seconds: float) -> list[Row]:
    """`top` at 9600 baud."""
    with console(b, tmp, "slow", 9600) as (cable, laptop, _):
        laptop.log_in()
        laptop.watch_top()
        time.sleep(3.0)
        before, began = cable.to_laptop, time.monotonic()
        time.sleep(seconds)
        rate = (cable.to_laptop - before) / (time.monotonic() - began)
        laptop.still_drawn()
        laptop.type(b"q")
    return [at_most("console: `top` at 9600 baud, twice a second", rate, 0.85 * 960.0, "bytes/s", " (85 % of what the line carries)")]


def _wakes(b: Bench) -> tuple[np.ndarray, int, int]:
    stats = b.image.engine_stats()
    return np.array(stats["wake_us"]), int(stats["ticks"]), int(stats["missed_ticks"])


def _over(b: Bench, seconds: float) -> dict[str, float]:
    """Ticks, missed, wake p50 and p99 of a stretch."""
    wake, ticks, missed = _wakes(b)
    time.sleep(seconds)
    after, more, lost = _wakes(b)
    share = np.cumsum(after - wake) / max(1, (after - wake).sum())
    p50, p99 = (float(np.searchsorted(share, q)) + 1 for q in (0.5, 0.99))
    return {"ticks": more - ticks, "missed": lost - missed, "p50": p50, "p99": p99}


def _noise(laptop: Laptop, megabytes: int, done: threading.Event) -> None:
    rng = random.Random(1)
    for _ in range(megabytes * 16):
        data = rng.randbytes(65536)
        while data:
            select.select([], [laptop.fd], [], 1.0)
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(laptop.fd, data) :]
    done.set()


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def tick_rows(b: Bench, tmp: Path, seconds: float) -> list[Row]:
    """Three consoles run `top` at 115200 and a fourth line floods 10 MB; the same site quiet before and after."""
    quiet = [_over(b, seconds / 2)]
    with contextlib.ExitStack() as stack:
        watching = []
        for k in range(3):
            _, laptop, _ = stack.enter_context(console(b, tmp, f"top{k}", 115200))
            laptop.log_in()
            laptop.watch_top()
            watching.append(laptop)
        cable, noisy, process = stack.enter_context(console(b, tmp, "noise", None))
        noisy.log_in()
        time.sleep(2.0)
        done = threading.Event()
        before, carried = _rss_mb(process.pid), cable.to_cabinet
        threading.Thread(target=_noise, args=(noisy, NOISE_MB, done), daemon=True).start()
        busy = _over(b, seconds)
        done.wait(120)
        noisy.sees(b"thrown away")
        b.wait(lambda: cable.to_cabinet - carried >= NOISE_MB << 20, 30)
        for laptop in watching:
            laptop.still_drawn()
        grown, swallowed = _rss_mb(process.pid) - before, (cable.to_cabinet - carried) / (1 << 20)
    quiet.append(_over(b, seconds / 2))
    calm = {key: sum(q[key] for q in quiet) / (1 if key in ("ticks", "missed") else 2) for key in quiet[0]}
    note = f"quiet: {calm['missed']:.0f} of {calm['ticks']:.0f}, p50 {calm['p50']:.0f}, p99 {calm['p99']:.0f} us"
    missed = "console: ticks missed, 3 x `top` at 115200 and 10 MB of noise"
    return [
        at_most(missed, busy["missed"], calm["missed"] + 2, "", " (quiet + 2)", note),
        at_most("console: wake-up p50 meanwhile", busy["p50"], calm["p50"] + 40, "us", " (quiet + 40)"),
        at_most("console: wake-up p99 meanwhile", busy["p99"], calm["p99"] + 60, "us", " (quiet + 60)"),
        at_most("console: memory grown by 10 MB of noise", grown, 5.0, "MB", " (half of what came)"),
        at_least("console: noise that the cable carried, and the console threw away", swallowed, NOISE_MB, "MB"),
    ]


def rows(seconds: float = 30.0) -> list[Row]:
    """All rows of the console."""
    out: list[Row] = []
    with bench(LoadOptions()) as b, tempfile.TemporaryDirectory() as tmp:
        Accounts(b.tmp / "state" / SITE_NAME).add(NAME, "engineer", PASSWORD, first=True)
        parts: tuple[Any, ...] = (prompt_rows, slow_rows, tick_rows)
        for part in parts:
            out += part(b, Path(tmp)) if part is prompt_rows else part(b, Path(tmp), seconds)
    return out
