"""A terminal or pipe that nobody reads holds no process of a site."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pytest
from rich.console import Console
from rich.text import Text

from controller import outlet
from controller.top import View

ROOT = Path(__file__).parents[2]
TALKER = "from controller.process import say\nfor k in range(3000): say('ballast', f'{k} ' + 'x' * 100)\n"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """(what a person reads, what a process writes to)."""
    near, far = os.openpty()
    os.set_blocking(near, False)
    yield near, far
    os.close(near)
    os.close(far)


def read_all(fd: int) -> bytes:
    got = b""
    while True:
        try:
            got += os.read(fd, 65536)
        except BlockingIOError:
            return got


@pytest.mark.parametrize("how", ["ctrl-s", "nobody reads", "full pipe"])
def test_words_wait_for_nobody(terminal: tuple[int, int], how: str) -> None:
    fds = os.pipe() if how == "full pipe" else terminal
    if how == "ctrl-s":
        termios.tcflow(fds[1], termios.TCOOFF)
    subprocess.run([sys.executable, "-c", TALKER], cwd=ROOT, stderr=fds[1], timeout=20, check=True)
    assert not fcntl.fcntl(fds[1], fcntl.F_GETFL) & os.O_NONBLOCK, "the terminal is the shell's too"
    if how == "ctrl-s":
        assert read_all(fds[0]) == b""
    else:
        assert os.read(fds[0], 65536).startswith(b"ballast: 0 xxx"), "what there is room for goes out"
    if how == "full pipe":
        os.close(fds[0])
        os.close(fds[1])


def test_another_user_s_terminal_is_written_in_small_bites(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    data = bytes(range(32, 127)) * 20
    assert outlet.put(terminal[1], data) == len(data) and read_all(terminal[0]) == data
    termios.tcflow(terminal[1], termios.TCOOFF)
    assert outlet.put(terminal[1], data) == 0


def test_a_picture_is_left_out_while_the_terminal_takes_none_and_goes_out_whole_after_it(terminal: tuple[int, int]) -> None:
    near, far = terminal
    screen = outlet.Screen(far)
    drawn = 0
    with View(Console(file=cast(IO[str], screen), width=200, height=50)) as view:
        while screen.ready():
            view.live.update(Text(f"picture {drawn:04d} " + "y" * 9000), refresh=True)
            drawn += 1
            assert drawn < 1000, "a terminal has an end"
        got = read_all(near)
        while not screen.ready():
            got += read_all(near)
    got += read_all(near)
    assert [f"picture {k:04d}".encode() in got for k in range(drawn)] == [True] * drawn
    assert b"\x1b[?1049h" in got and b"\x1b[?1049l" in got, "the screen is given back"


def test_a_terminal_that_has_gone_takes_everything(terminal: tuple[int, int]) -> None:
    near, far = os.openpty()
    screen = outlet.Screen(far)
    os.close(near)
    screen.write("nobody there")
    assert screen.ready()
    os.close(far)
