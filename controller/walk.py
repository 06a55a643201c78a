"""Walks the parsed TOML of a site against the table of settings, and says what is wrong with each key.

By hand rather than by a schema library: the messages are the product here (near matches, units, what would do), and
the control process must not load more than it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from controller import ports
from controller.problems import Problem
from controller.settings import BUS, DEVICE, SCHEDULE, SECTIONS, SETTINGS, SHELF, Setting, Value, in_unit, other_unit, range_text

ARRAYS: dict[str, dict[str, Setting]] = {"bus": BUS, "device": DEVICE, "shelf": SHELF, "schedule": SCHEDULE}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def near(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` with up to three near matches, or nothing."""
    import difflib  # only on the way to an error

    names = list(dict.fromkeys(known))
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    tail = name.rpartition(".")[2]
    found += [key for key in names if key.rpartition(".")[2] == tail and key not in found]
    return f"did you mean {', '.join(found[:3])}?" if found else ""


def settings(raw: Mapping[str, Any], label: str, problems: list[Problem]) -> dict[str, Value]:
    """The values of all single settings: the file's where they stand and are right, else the table's defaults."""
    values: dict[str, Value] = {}
    for section, table in raw.items():
        if section in ARRAYS:
            continue
        if section not in SECTIONS:
            remedy = near(section, [*SECTIONS, *ARRAYS]) or f"tables are {', '.join([*SECTIONS, *ARRAYS])}"
            problems.append(Problem(label, f"[{section}]", None, "unknown table", remedy))
        elif not isinstance(table, dict):
            problems.append(Problem(label, section, table, "is a table, not a value", f"write [{section}] and its keys below"))
        else:
            rows = {row.name: row for row in SETTINGS.values() if row.section == section}
            for name, value in table.items():
                checked = _one(f"{section}.{name}", name, value, rows, label, problems)
                if checked is not None:
                    values[f"{section}.{name}"] = checked
    for key, row in SETTINGS.items():
        given = stands(raw, row)
        if row.needed and not given:
            problems.append(
                Problem(
                    label,
                    key,
                    None,
                    f"is missing and has no default: {row.text}",
                    "write f_nom_hz = 50 or 60 in [site]",
                )
            )
        elif not given and row.default is not None:
            values[key] = float(row.default) if row.kind == "float" else row.default
    return values


def stands(raw: Mapping[str, Any], row: Setting) -> bool:
    """True where the file has this key, right or wrong."""
    table = raw.get(row.section)
    return isinstance(table, dict) and row.name in table


def tables(raw: Mapping[str, Any], label: str, problems: list[Problem]) -> tuple[list[dict[str, Any]], ...]:
    """The rows of [[bus]], [[device]], [[shelf]] and [[schedule]] that are whole and right."""
    out = []
    for name, known in ARRAYS.items():
        rows = raw.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            problems.append(Problem(label, name, None, "is a list of tables", f"write [[{name}]] above each"))
            rows = []
        whole = [_row(name, i, row, known, label, problems) for i, row in enumerate(rows, 1)]
        out.append([row for row in whole if row is not None])
    return tuple(out)


def _row(
    array: str, number: int, row: dict[str, Any], known: dict[str, Setting], label: str, problems: list[Problem]
) -> dict[str, Any] | None:
    given = row.get("name")
    where = f"{array}.{given}" if isinstance(given, str) and given else f"{array}[{number}]"
    before = len(problems)
    out: dict[str, Any] = {}
    for name, value in row.items():
        checked = _one(f"{where}.{name}", name, value, known, label, problems)
        if checked is not None:
            out[name] = checked
    for name, setting in known.items():
        if name in row:
            continue
        if setting.needed:
            problems.append(
                Problem(
                    label,
                    f"{where}.{name}",
                    None,
                    f"is missing: {setting.text}",
                    f"write {name} = ... in its [[{array}]]",
                )
            )
        elif name == "days":
            out[name] = list(range(7))
        else:
            out[name] = setting.default
    return out if len(problems) == before else None


def _one(key: str, name: str, value: Any, known: Mapping[str, Setting], label: str, problems: list[Problem]) -> Any:
    """The checked value of one key, or None after saying what is wrong with it."""
    setting = known.get(name)
    if setting is None:
        why, remedy = _unknown(name, value, known)
        problems.append(Problem(label, key, value, why, remedy))
        return None
    if setting.kind == "str":
        return _text(key, setting, value, label, problems)
    if setting.kind == "days":
        return _days(key, value, label, problems)
    if setting.kind in ("ints", "names"):
        return _list(key, setting, value, label, problems)
    return _number(key, name, setting, value, label, problems)


def _unknown(name: str, value: Any, known: Mapping[str, Setting]) -> tuple[str, str]:
    spelled = other_unit(name, known)
    if spelled is None:
        remedy = near(name, known) or f"known here: {', '.join(known)}"
        return "unknown key", remedy
    target, factor = spelled
    unit = known[target].unit
    if math.isnan(factor) or isinstance(value, bool) or not isinstance(value, (int, float)):
        return "unknown key: the unit is part of the name", f"write {target} (unit: {unit})"
    unit = "a share, 0 to 1" if unit == "1" else f"in {unit}"
    return f"wrong unit: this setting is {unit}", f"write {target} = {value * factor:.10g}"


def _number(key: str, name: str, setting: Setting, value: Any, label: str, problems: list[Problem]) -> float | int | None:
    if isinstance(value, str):
        number = in_unit(value, name)
        remedy = f"write {name} = {number:.10g}" if number is not None else f"write a number, {range_text(setting)}"
        problems.append(Problem(label, key, value, "is text, a number is needed", remedy))
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = {"bool": "true or false", "list": "a list", "dict": "a table"}.get(type(value).__name__, f"a {type(value).__name__}")
        problems.append(Problem(label, key, value, f"is {kind}, a number is needed", f"write a number, {range_text(setting)}"))
        return None
    if setting.kind == "int" and not isinstance(value, int):
        remedy = f"write {name} = {round(value)}" if math.isfinite(value) else f"write a whole number, {range_text(setting)}"
        problems.append(Problem(label, key, value, "is not a whole number", remedy))
        return None
    if not setting.low <= value <= setting.high:  # a NaN is in no range
        problems.append(Problem(label, key, value, f"is outside {range_text(setting)}", setting.text))
        return None
    return int(value) if setting.kind == "int" else float(value)


def _text(key: str, setting: Setting, value: Any, label: str, problems: list[Problem]) -> str | None:
    if not isinstance(value, str):
        problems.append(Problem(label, key, value, "is no text", f'write {setting.name or setting.key} = "..." ({setting.text})'))
        return None
    if not setting.low <= len(value) <= setting.high:
        problems.append(Problem(label, key, value, f"has {len(value)} characters", f"{range_text(setting)}: {setting.text}"))
        return None
    return value


def _days(key: str, value: Any, label: str, problems: list[Problem]) -> list[int] | None:
    rows = value if isinstance(value, list) else [value]
    bad = [day for day in rows if not isinstance(day, str) or day.lower()[:3] not in DAYS]
    if bad or not rows:
        problems.append(Problem(label, key, value, "is no list of weekdays", 'write ["mon", "tue"]'))
        return None
    return sorted({DAYS.index(day.lower()[:3]) for day in rows})


def _list(key: str, setting: Setting, value: Any, label: str, problems: list[Problem]) -> list[Any] | None:
    if setting.kind == "names":
        bad = not isinstance(value, list) or any(not isinstance(x, str) or not setting.low <= len(x) <= setting.high for x in value)
        remedy = f'write {setting.key} = ["name", ...]'
    else:
        whole = isinstance(value, list) and value != [] and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
        bad = not whole or any(not setting.low <= x <= setting.high for x in value)
        remedy = f"write {setting.key} = [1, 2, ...], each {range_text(setting)}"
    if bad:
        problems.append(Problem(label, key, value, "is no such list", remedy))
        return None
    return list(value)


def put(raw: dict[str, Any], key: str, value: Any) -> bool:
    """Puts an override into the parsed file; False where the site has no such key."""
    if key in SETTINGS:
        section, _, name = key.partition(".")
        table = raw.setdefault(section, {})
        if isinstance(table, dict):
            table[name] = value
        return True
    parts = key.split(".")
    if len(parts) == 3 and parts[0] in ("bus", "device"):
        rows = raw.get(parts[0], [])
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("name") == parts[1] and parts[2] in ARRAYS[parts[0]]:
                row[parts[2]] = value
                for name in left_behind(key, value):
                    row.pop(name, None)
                return True
    return False


def left_behind(key: str, value: Any) -> tuple[str, ...]:
    """What goes when a key is set: the line settings of a bus belong to its port, and a port of another kind has others."""
    if not (key.startswith("bus.") and key.endswith(".port")):
        return ()
    switched = ports.RS485 if value in ports.VIRTUALS else ()  # the cabinet has no driver to switch
    return (*ports.foreign(str(value)), *switched)


def given(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a parsed site file gives, as `--set` spells them, with its values."""
    found = {f"{section}.{name}": value for section in SECTIONS for name, value in _items(raw.get(section))}
    for array in ("bus", "device"):
        rows = raw.get(array)
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict):
                found |= {f"{array}.{row.get('name')}.{name}": value for name, value in row.items()}
    return found


def _items(table: Any) -> Iterable[tuple[str, Any]]:
    return table.items() if isinstance(table, dict) else ()


def row_keys(raw: Mapping[str, Any]) -> list[str]:
    """`bus.a.baud` and the like: the keys of rows that `put` accepts."""
    keys = []
    for array in ("bus", "device"):
        rows = raw.get(array, [])
        names = [row.get("name") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        keys += [f"{array}.{name}.{key}" for name in names for key in ARRAYS[array]]
    return keys
