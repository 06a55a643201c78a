"""What must hold for [[shelf]] rows: their profiles load, their addresses are free, nobody else has their port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from controller.ports import real
from controller.problems import Problem
from controller.site import Shelf, Site, valid_name
from hal.profile import ProfileError
from hal.shelf import ShelfMap, load_shelf

PARITIES = ("E", "O", "N")


def bind(rows: list[dict[str, Any]], site: Site, problems: list[Problem]) -> list[Shelf]:
    """The shelves with what their profiles say where the site file says nothing. Adds every problem."""
    out: list[Shelf] = []
    for row in rows:
        where = f"shelf.{row['name']}"
        made = _load(row, where, site, problems)
        if made is None:
            continue
        units = tuple(row["units"] if row["units"] is not None else made.units)
        shelf = Shelf(
            row["name"], row["port"], row["profile"], units, row["baud"] or made.baud, row["parity"] or made.parity,
            row["stop_bits"], tuple(row["allow"] or ()),
        )  # fmt: skip
        _one(shelf, made, where, site, problems)
        for other in out:
            _pair(shelf, other, where, site, problems)
        out.append(shelf)
    return out


def _load(row: dict[str, Any], where: str, site: Site, problems: list[Problem]) -> ShelfMap | None:
    name = row["profile"]
    if name.endswith(".toml") and not Path(name).is_absolute():
        name = row["profile"] = str(Path(site.file).parent / name)
    try:
        return load_shelf(name)
    except ProfileError as e:
        problems += [Problem(p.file, p.key, p.value, p.why, p.remedy) for p in e.problems]
        problems.append(Problem(site.file, f"{where}.profile", row["profile"], "cannot be used", "see the lines above"))
        return None


def _one(shelf: Shelf, made: ShelfMap, where: str, site: Site, problems: list[Problem]) -> None:
    def fault(key: str, value: Any, why: str, remedy: str) -> None:
        problems.append(Problem(site.file, f"{where}.{key}", value, why, remedy))

    if not valid_name(shelf.name):
        fault("name", shelf.name, "has other characters than letters, digits, - and _", 'write name = "rack-1"')
    if shelf.parity not in PARITIES:
        fault("parity", shelf.parity, "is unknown", f"one of {', '.join(PARITIES)}")
    if twice := sorted({u for u in shelf.units if shelf.units.count(u) > 1}):
        fault("units", twice, "stand twice", "each address once")
    known = [w.name for w in made.writes]
    if unknown := [name for name in shelf.allow if name not in known]:
        fault("allow", unknown, f"are no writes of profile {made.name}", f"it has {', '.join(known) or 'none'}")
    taken = next((b.name for b in site.buses if not b.virtual and not b.tcp and real(b.port) == real(shelf.port)), None)
    if taken is not None:
        fault("port", shelf.port, f"is bus {taken}'s: a shelf in the tick would make it late", "a port of its own")


def _pair(shelf: Shelf, other: Shelf, where: str, site: Site, problems: list[Problem]) -> None:
    def fault(key: str, value: Any, why: str, remedy: str) -> None:
        problems.append(Problem(site.file, f"{where}.{key}", value, why, remedy))

    if shelf.name == other.name:
        fault("name", shelf.name, "stands twice", "another name")
    if real(shelf.port) != real(other.port):
        return
    line, before = (shelf.baud, shelf.parity, shelf.stop_bits), (other.baud, other.parity, other.stop_bits)
    if line != before:
        text = "{} Bd 8{}{}".format(*before)
        fault("port", shelf.port, f"is also shelf {other.name}'s, which has {text}", "the same speed, or another port")
    if both := sorted(set(shelf.units) & set(other.units)):
        fault("units", both, f"are shelf {other.name}'s on the same port", "each address once")


__all__ = ["bind"]
