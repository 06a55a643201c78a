"""What is wrong with somebody's input, one line each: file, key, value, why, and what would do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One refusal. `remedy` is what a person types next; empty where only they can know."""

    file: str
    key: str
    value: object
    why: str
    remedy: str = ""

    def line(self) -> str:
        """The line a person reads: `file: key = value: why; remedy`."""
        shown = f"{self.key} = {_toml(self.value)}" if self.value is not None else self.key
        head = ": ".join(part for part in (self.file, shown, self.why) if part)
        return head + (f"; {self.remedy}" if self.remedy else "")


class SiteError(ValueError):
    """A site file or override that is refused; `problems` holds every reason at once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(p.line() for p in problems))
        self.problems = problems


def _toml(value: object) -> str:
    """The value as it would stand in a TOML file; long ones are cut."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
