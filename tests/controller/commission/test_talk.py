"""The plain terminal: choices, beginnings of choices, the end of input."""

from __future__ import annotations

import builtins
from collections.abc import Iterator

import pytest

from controller.commission.talk import TRIES, Interrupted, Terminal, choose, tell, yes


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    lines: list[str] = []

    def read(_: str = "") -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr(builtins, "input", read)
    yield lines


def test_answers_are_choices_their_beginnings_or_the_default(typed: list[str]) -> None:
    typed += ["perhaps", "S", "st", "", "  free text "]
    talk = Terminal()
    assert talk.ask("?", choices=("go", "skip", "stop"), default="go") == "stop"  # "S" is two of them
    assert talk.ask("?", choices=("go", "skip", "stop"), default="go") == "go"
    assert talk.ask("?") == "free text"
    with pytest.raises(Interrupted):
        talk.ask("?")


def test_a_line_that_never_fits_ends(typed: list[str]) -> None:
    typed += ["x"] * (TRIES + 5)
    with pytest.raises(Interrupted):
        Terminal().ask("?", choices=("yes", "no"))
    assert len(typed) == 5


def test_yes_and_lines_of_78_columns(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    typed += ["Y", "no"]
    assert yes(Terminal(), "?") and not yes(Terminal(), "?")
    capsys.readouterr()
    tell(Terminal(), "word " * 60, "  ")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 78
    assert choose("", ("a",)) is None
