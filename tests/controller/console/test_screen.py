"""The screen: what a VT100 shows after every frame is what was wanted, and no frame is longer than the line carries."""

from __future__ import annotations

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.console.screen import FRAME_BYTES, Cell, Screen

WIDTH, HEIGHT = 40, 8
cell = st.tuples(st.sampled_from("ab█⣿ é"), st.sampled_from(["", "1", "32", "1;32", "7"]))
picture = st.lists(st.lists(cell, max_size=WIDTH + 3), max_size=HEIGHT + 2)


class Terminal:
    """A VT100 by somebody else."""

    def __init__(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.screen = pyte.Screen(width, height)
        self.stream = pyte.ByteStream(self.screen)

    def take(self, data: bytes) -> None:
        self.stream.feed(data)

    def cells(self) -> list[list[tuple[str, bool, bool]]]:
        rows, columns = self.screen.buffer, range(self.screen.columns)
        return [[(rows[y][x].data, rows[y][x].bold, rows[y][x].reverse) for x in columns] for y in range(self.screen.lines)]


def shown(rows: list[list[Cell]]) -> list[list[tuple[str, bool, bool]]]:
    """What should stand there: cut to the size, the last column free."""
    out = []
    for y in range(HEIGHT):
        row = [(c, "1" in style.split(";"), "7" in style.split(";")) for c, style in (rows[y] if y < len(rows) else [])[: WIDTH - 1]]
        out.append(row + [(" ", False, False)] * (WIDTH - len(row)))
    return out


@settings(max_examples=80, deadline=None)
@given(st.lists(picture, min_size=1, max_size=4))
def test_the_terminal_shows_what_was_wanted(pictures: list[list[list[Cell]]]) -> None:
    terminal, screen = Terminal(), Screen(WIDTH, HEIGHT, utf8=True, colour=True)
    terminal.take(screen.clear())
    for rows in pictures:
        terminal.take(screen.frame(rows))
        assert terminal.cells() == shown(rows) and screen.pending == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(picture, min_size=1, max_size=3), st.integers(10, 400))
def test_a_slow_line_gets_there_in_several_frames_each_within_its_budget(pictures: list[list[list[Cell]]], budget: int) -> None:
    terminal, screen = Terminal(), Screen(WIDTH, HEIGHT, utf8=True, colour=True)
    terminal.take(screen.clear())
    for rows in pictures:
        for _ in range(400):
            data = screen.frame(rows, budget)
            assert len(data) <= max(budget, FRAME_BYTES)
            terminal.take(data)
            if not screen.pending:
                break
        assert terminal.cells() == shown(rows)


def test_an_unchanged_picture_costs_nothing_and_a_changed_number_little() -> None:
    screen = Screen(80, 24, utf8=False, colour=False)
    screen.clear()
    rows = [[(c, "") for c in f"row {y}: 438.{y} kW   grid 444.9 kW"] for y in range(24)]
    screen.frame(rows)
    assert screen.frame(rows) == b""
    rows[3] = [(c, "") for c in "row 3: 439.7 kW   grid 444.9 kW"]
    assert len(screen.frame(rows)) <= 16


def test_without_colour_and_utf8_only_what_a_vt100_knows_is_sent() -> None:
    screen = Screen(20, 2, utf8=False, colour=False)
    screen.clear()
    data = screen.frame([[("█", "1;32"), ("⣿", "35"), ("°", "7")]])
    assert data.isascii() and b"32" not in data and b"35" not in data and b"#" in data


@pytest.mark.parametrize("baud", [9600, 19200])
def test_no_row_starves_on_a_slow_line(baud: int) -> None:
    """Every row changes all the time: each is sent in its turn."""
    screen, terminal = Screen(80, 24, utf8=False, colour=False), Terminal(80, 24)
    terminal.take(screen.clear())
    seen: set[int] = set()
    for k in range(20):
        before = terminal.screen.display[:]
        terminal.take(screen.frame([[(c, "") for c in f"{k}:{y}" + "x" * 60 + str(k)] for y in range(24)], int(0.4 * baud / 10)))
        seen |= {y for y in range(24) if terminal.screen.display[y] != before[y]}
    assert seen == set(range(24))
