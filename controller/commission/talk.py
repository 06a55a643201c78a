"""The line to the person: what the guide needs of a terminal, and the plain one over stdin and stdout.

The serial console brings its own Talk; nothing else in this package knows what a terminal is.
"""

from __future__ import annotations

import select
import sys
import textwrap
from collections.abc import Sequence
from typing import Protocol

WIDTH = 78
TRIES = 20  # answers that fit no choice before the line counts as gone


class Interrupted(Exception):
    """The line is gone: Ctrl-C, log-out, idle too long, end of input."""


class Talk(Protocol):
    """A person at the other end of a line. Every method but `say` may raise Interrupted."""

    def say(self, text: str = "") -> None:
        """One line of at most 78 columns."""
        ...

    def ask(self, question: str, *, choices: Sequence[str] = (), default: str = "") -> str:
        """Blocks for an answer; one of `choices` where there are any, `default` for an empty line."""
        ...

    def wait(self, seconds: float, note: str = "") -> None:
        """Waits, and says why where there is a note."""
        ...


def tell(talk: Talk, text: str, indent: str = "") -> None:
    """A paragraph in lines of at most 78 columns."""
    for line in textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) or [""]:
        talk.say(line)


def yes(talk: Talk, question: str, default: str = "yes") -> bool:
    """A question of yes or no."""
    return talk.ask(question, choices=("yes", "no"), default=default).strip().lower().startswith("y")


def choose(answer: str, choices: Sequence[str]) -> str | None:
    """The one choice that the answer is or begins; None where it is none or several."""
    word = answer.strip().lower()
    if word in choices:
        return word
    found = [c for c in choices if word and c.startswith(word)]
    return found[0] if len(found) == 1 else None


class Terminal:
    """Talk over stdin and stdout."""

    def say(self, text: str = "") -> None:
        """Raises Interrupted where the terminal has gone."""
        try:
            print(text, flush=True)
        except (BrokenPipeError, OSError):
            raise Interrupted("the terminal is gone") from None

    def ask(self, question: str, *, choices: Sequence[str] = (), default: str = "") -> str:
        """Asks again until the answer is one of the choices (a beginning of one is enough). Raises Interrupted."""
        shown = "/".join(choices) + (f", Enter: {default}" if default else "")
        for _ in range(TRIES):
            self.say(question)
            try:
                answer = input(f"  [{shown}] > " if shown else "  > ").strip()
            except (EOFError, KeyboardInterrupt, OSError):
                raise Interrupted("no more input") from None
            if not answer and default:
                return default
            if not choices:
                return answer
            found = choose(answer, choices)
            if found is not None:
                return found
            self.say(f"  please answer one of: {', '.join(choices)}")
        raise Interrupted(f"{TRIES} answers that fit no choice")

    def wait(self, seconds: float, note: str = "") -> None:
        """Raises Interrupted on Ctrl-C."""
        if note:
            self.say(f"  ... {note}")
        try:
            select.select([], [], [], seconds)
        except KeyboardInterrupt:
            raise Interrupted("Ctrl-C") from None
        if sys.stdout.closed:
            raise Interrupted("the terminal is gone")
