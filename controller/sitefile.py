"""The site file as a person keeps it: confirmed settings are written into it, comments, order and formatting stay; and a
complete file of the settings in force.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from controller import disk, walk
from controller.settings import BUS, DEVICE, SECTIONS, SETTINGS, Setting, Value, range_text
from controller.site import Bus, ScheduleRow, Site

NAME_WIDTH = 32  # of `key = value` in a complete file: comments begin in one column


class SiteFileError(ValueError):
    """The file is not written; the text says why and what would do."""


def edited(text: str, changes: Mapping[str, Value]) -> str:
    """The text of a site file with these keys set, and nothing else changed. Raises SiteFileError where that cannot be
    done: then a person has to edit it.
    """
    try:
        doc = tomlkit.parse(text)
        for key, value in changes.items():
            table, name = _place(doc, key)
            _put(table, name, value)
            for left in walk.left_behind(key, value):
                table.pop(left, None)
        new = tomlkit.dumps(doc)
        wanted, got = tomllib.loads(text), tomllib.loads(new)
    except SiteFileError:
        raise
    except Exception as e:  # whatever a library makes of somebody's file: the value is confirmed, and has to be kept by hand
        raise SiteFileError(f"it cannot be edited: {e}; write the keys into it by hand") from None
    for key, value in changes.items():
        walk.put(wanted, key, value)
    if wanted != got:  # whatever tomlkit makes of an unusual file: it must mean what was there, and the changes
        raise SiteFileError(f"{', '.join(changes)} cannot be set without changing other things in it; write them into it by hand")
    return new


def _place(doc: Any, key: str) -> tuple[Any, str]:
    """The table that a key stands in, made where there is none, and the key's name there. Raises SiteFileError."""
    array, _, rest = key.partition(".")
    if array in walk.ARRAYS:
        name, _, rest = rest.rpartition(".")
        row = next((row for row in doc.get(array, []) if row.get("name") == name), None)
        if row is None:
            raise SiteFileError(f"it has no [[{array}]] named {name}; write {key} into it by hand")
        return row, rest
    if array not in doc:
        doc[array] = tomlkit.table()
    if not isinstance(doc[array], dict):
        raise SiteFileError(f"{array} is no table in it; write {key} into it by hand")
    return doc[array], rest


def _put(table: Any, name: str, value: Value) -> None:
    """Sets a key; a new one comes after the last, before the blank lines and comments that lead over to the next table."""
    keys = list(table)
    body: Any = getattr(table, "value", None)
    if name not in table and keys and hasattr(body, "_insert_after") and isinstance(table, tomlkit.items.Table):
        body._insert_after(keys[-1], name, tomlkit.item(value))
        return
    table[name] = value


def write(path: Path, before: str, new: str) -> Path:
    """Replaces a site file in one step and keeps the old one as `.bak`, whose path is returned. A link stays a link; mode
    and owner stay. Raises SiteFileError where it is not what it was (`before`), OSError where the disk takes no more.
    """
    real = Path(os.path.realpath(path))
    old = before.encode("utf-8")
    _unchanged(real, old)
    backup = real.with_name(real.name + ".bak")
    _replace(backup, old, real)
    _replace(real, new.encode("utf-8"), real, old)
    disk.sync_directory(real.parent)
    return backup


def _unchanged(path: Path, old: bytes) -> None:
    if path.read_bytes() != old:
        raise SiteFileError("it was changed this very moment; try again")


def _replace(target: Path, data: bytes, like: Path, old: bytes | None = None) -> None:
    """Temporary file, fsync, rename; mode and owner as those of `like`. `old`: what the target has to hold at the last moment."""
    wanted = like.stat()
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        disk.write_all(fd, data)
        with contextlib.suppress(PermissionError):  # somebody else's file that we may replace: then it is ours
            os.fchown(fd, wanted.st_uid, wanted.st_gid)
        os.fchmod(fd, wanted.st_mode & 0o777)
        os.fsync(fd)
        if old is not None:
            _unchanged(target, old)
        new.replace(target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def create(path: Path, text: str) -> None:
    """A new file, on the disk when this returns. Raises FileExistsError where there is one, OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        disk.write_all(fd, text.encode("utf-8"))
        os.fsync(fd)
        disk.sync_directory(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def whole(site: Site, directory: Path | None = None) -> str:
    """A complete site file of the settings in force, each with what it is for. `directory`: where it will stand; profiles
    that are files beside the present one are named from there.
    """
    origin = "".join(c if c.isprintable() else "?" for c in site.file)
    lines = [f"# Every setting in force at site {site.name}; derived defaults are written out. From {origin}."]
    if site.plant:
        words = " ".join(f"--set plant.{key}={value}" for key, value in site.plant.items())
        lines += [f"# Not in here, because they are the virtual cabinet's: {words}"]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        rows = [row for row in SETTINGS.values() if row.section == section]
        lines += [_line(row.name, site.values[row.key], _comment(row)) for row in rows]
    for array, known, found in (("bus", BUS, site.buses), ("device", DEVICE, site.devices)):
        for i, row in enumerate(found):
            lines += ["", f"[[{array}]]"]
            values = {name: getattr(row, name) for name in known if not isinstance(row, Bus) or name not in row.foreign}
            if array == "device":
                values["profile"] = _profile(site, str(values["profile"]), directory)
            given = {name: value for name, value in values.items() if value is not None}
            lines += [_line(name, value, known[name].text if i == 0 else "") for name, value in given.items()]
    for row in site.schedule:
        lines += ["", "[[schedule]]", *_schedule(row)]
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any, comment: str) -> str:
    text = f"{name} = {tomlkit.item(value).as_string()}"
    return f"{text:<{NAME_WIDTH}}# {comment}" if comment else text


def _comment(row: Setting) -> str:
    return row.text if row.kind == "str" else f"{row.text}; {range_text(row)}"


def _profile(site: Site, profile: str, directory: Path | None) -> str:
    """A profile's path from where the new file will stand; names stay names."""
    if not profile.endswith(".toml") or Path(profile).is_absolute():
        return profile
    now = Path(site.file).absolute().parent
    return profile if directory is None or directory.resolve() == now.resolve() else str(now / profile)


def _schedule(row: ScheduleRow) -> list[str]:
    def clock(seconds: int) -> str:
        return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}"

    return [
        _line("from", clock(row.start_s), "local time at which it begins"),
        _line("to", clock(row.end_s), ""),
        _line("days", [walk.DAYS[day] for day in row.days], ""),
        _line("base_w", row.base_w, "added to the target of grid import"),
    ]
