"""One figure against its bar: what make bench prints and writes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SIGNS = {True: "ok", False: "MISS", None: "--"}


@dataclass
class Row:
    """`value` is what was measured, `bar` the sentence it is held against, `ok` the verdict. None: no verdict, either because the figure is
    only shown (it has a value, the bar says so) or because it could not be measured (no value, `note` says why)."""

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


def info(name: str, value: float, note: str = "") -> Row:
    """Row without a bar: a figure to read, not to judge."""
    return Row(name, round(value, 2), "(no bar)", None, note)


def table(rows: list[Row]) -> str:
    """The rows as text, verdict first."""
    wide = max((len(r.name) for r in rows), default=0)
    return "\n".join(f"{SIGNS[r.ok]:<4}  {r.name:<{wide}}  {r.value!s:>12}  {r.bar}{'   ' + r.note if r.note else ''}" for r in rows)


def markdown(report: dict[str, Any]) -> str:
    """The JSON of a run (bench.perf --json) as a Markdown table, with where and when it was taken above it."""

    def cell(x: object) -> str:
        return str(x).replace("|", "\\|").replace("\n", " ")

    load = report.get("load_average") or {}
    about = [
        str(report[key]) + after for key, after in (("when", ""), ("machine", ""), ("cpus", " CPUs")) if report.get(key)
    ]
    if load:
        about.append(f"load average {load['before']:.1f} before, {load['after']:.1f} after (1 min, this run's own load included)")
    lines = [*(["; ".join(about), ""] if about else []), "| | figure | measured | bar | note |", "| --- | --- | ---: | --- | --- |"]
    for r in report["rows"]:
        value = "" if r["value"] is None else r["value"]
        lines.append(f"| {SIGNS[r['ok']]} | {cell(r['name'])} | {cell(value)} | {cell(r['bar'])} | {cell(r.get('note', ''))} |")
    return "\n".join(lines)
