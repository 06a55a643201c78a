"""TOML that somebody handed over, read within bounds: a file can neither end the program nor keep it busy."""

from __future__ import annotations

import tomllib
from typing import Any

MAX_CHARS = 1_000_000
MAX_DEPTH = 16  # tables in tables; ours end at four
INTEGERS = range(-(2**63), 2**64)  # TOML asks for 64 bits; sentinels of unsigned registers use all of them


class TomlError(ValueError):
    """The text is no TOML, or none within bounds; the text of the error says why."""


def read(text: str) -> dict[str, Any]:
    """The tables of a text. Raises TomlError."""
    if len(text) > MAX_CHARS:
        raise TomlError(f"is longer than {MAX_CHARS} characters")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise TomlError("is nested too deeply") from None
    except ValueError as e:  # TOMLDecodeError, and Python's own limit on the digits of a number
        raise TomlError(f"is not TOML: {e}") from None
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        level = [x for value in level for x in (value.values() if isinstance(value, dict) else value)]
        for x in level:
            if isinstance(x, int) and x not in INTEGERS:
                raise TomlError(f"holds a number that no 64 bits hold ({len(hex(x)) - 2} hexadecimal digits)")
        level = [x for x in level if isinstance(x, dict | list)]
        if not level:
            return table
    raise TomlError("is nested too deeply")
