"""A corpus is one text file a target: a Python bytes literal a line, shortest first; what found a bug stays, at the end."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
FOUND = "# What found something once:"


def path(target: str) -> Path:
    """The file of a target."""
    return CORPUS / f"{target}.txt"


def read(target: str) -> list[bytes]:
    """Every input of a target, those that once found a bug last."""
    lines = path(target).read_text(encoding="ascii").splitlines() if path(target).exists() else []
    return [ast.literal_eval(line) for line in lines if line and not line.startswith("#")]


def write(target: str, inputs: Iterable[bytes]) -> None:
    """Puts new inputs in the place of the old ones; what found something once is kept."""
    text = path(target).read_text(encoding="ascii") if path(target).exists() else ""
    _, mark, found = text.partition(FOUND)
    kept = {line for line in found.splitlines() if line.startswith("b")}
    lines = [line for line in sorted({repr(data) for data in inputs}, key=lambda line: (len(line), line)) if line not in kept]
    path(target).write_text("\n".join(lines) + "\n" + (mark + found if mark else FOUND + "\n"), encoding="ascii")
