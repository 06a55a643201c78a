"""A person with a terminal program in tmux at one end of a cable; what it shows is what a person sees."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.cable import Cable


class Tmux:
    """A terminal of 80 x 24 with a program in it; what it shows is what a person sees."""

    def __init__(self, tmp: Path, argv: Sequence[str], *, width: int = 80, height: int = 24, env: dict[str, str] | None = None) -> None:
        self.socket = str(tmp / f"tmux-{os.getpid()}-{id(self):x}")
        env = os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | (env or {})
        words = ["tmux", "-u", "-S", self.socket, "-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), *argv]
        subprocess.run(words, check=True, env=env, timeout=20)

    def _tmux(self, *words: str) -> str:
        return subprocess.run(["tmux", "-S", self.socket, *words], capture_output=True, text=True, timeout=20).stdout

    def keys(self, *keys: str) -> None:
        """tmux names of keys, or text."""
        self._tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Text and Enter."""
        self._tmux("send-keys", "-l", text)
        self._tmux("send-keys", "Enter")

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def sees(self, words: str, seconds: float = 15.0) -> str:
        """The screen once it shows these words, wherever lines were wrapped; with each run of blanks as one."""
        end = time.monotonic() + seconds
        while True:
            screen = self.screen
            flat = " ".join(screen.split())
            if words in flat or words in flat.replace(" ", ""):
                return flat
            assert time.monotonic() < end, f"never saw {words!r} on:\n{screen}"
            time.sleep(0.05)

    def gone(self, words: str, seconds: float = 15.0) -> str:
        """The screen once it no longer shows these words."""
        end = time.monotonic() + seconds
        while words in (screen := self.screen):
            assert time.monotonic() < end, f"{words!r} still on:\n{screen}"
            time.sleep(0.05)
        return screen

    def end(self) -> None:
        self._tmux("kill-server")


def picocom(cable: Cable, baud: int = 115200) -> list[str]:
    return ["picocom", "--nolock", "--quiet", "-b", str(baud), str(cable.far)]


def minicom(cable: Cable, tmp: Path) -> list[str]:
    """minicom without modem strings; HOME has to be `tmp`."""
    lines = (f"port {cable.far}", "baudrate 115200", "bits 8", "parity N", "stopbits 1", "rtscts No", "lock /nowhere", "minit", "mreset")
    (tmp / ".minirc.ballast").write_text("".join(f"pu {line}\n" for line in lines))
    return ["minicom", "-o", "ballast"]


def have(*programs: str) -> bool:
    return all(shutil.which(p) for p in programs)
