"""One figure against its bar: what make bench prints and writes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Row:
    """`value` is what was measured, `bar` the sentence it is held against, `ok` the verdict (None: not measured, `note` says why)."""

    name: str
    value: Any
    bar: str
    ok: bool | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def at_most(name: str, value: float | None, limit: float, unit: str = "", why: str = "", note: str = "") -> Row:
    """Row that holds when value <= limit."""
    if value is None:
        return Row(name, None, f"<= {limit:.4g} {unit}{why}".strip(), None, note or "no value")
    return Row(name, round(value, 4), f"<= {limit:.5g} {unit}{why}".strip(), value <= limit, note)


def at_least(name: str, value: float | None, limit: float, unit: str = "", why: str = "", note: str = "") -> Row:
    """Row that holds when value >= limit."""
    if value is None:
        return Row(name, None, f">= {limit:.4g} {unit}{why}".strip(), None, note or "no value")
    return Row(name, round(value, 4), f">= {limit:.5g} {unit}{why}".strip(), value >= limit, note)


def table(rows: list[Row]) -> str:
    """The rows as text, verdict first."""
    sign = {True: "ok  ", False: "MISS", None: "--  "}
    wide = max((len(r.name) for r in rows), default=0)
    return "\n".join(f"{sign[r.ok]}  {r.name:<{wide}}  {r.value!s:>12}  {r.bar}{'   ' + r.note if r.note else ''}" for r in rows)
