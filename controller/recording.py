"""A record as its readers want it: rows of ticks on one time axis, with the settings they were made under.

Replay, explanation, export and report all come through here. Times are seconds from the first tick of the record, or
wall time in UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _core import image as core
from controller.clock import parse_utc
from controller.freeze import SUFFIX
from controller.records import Damage, RecordError, Segment, read
from controller.supervise import RECORD_NAME


@dataclass(frozen=True)
class Piece:
    """A segment with its rows and the struct Site it was made under."""

    segment: Segment
    rows: np.ndarray
    site: dict[str, Any]

    @property
    def last_ns(self) -> int:
        return int(self.rows["inp"]["t_ns"][-1])

    def wall_s(self, t_ns: int) -> float:
        """Wall time of an instant: that of the segment's last tick is known."""
        return self.segment.wall_s - (self.last_ns - t_ns) / 1e9


def find_record(path: Path) -> Path:
    """The record file that a path means: the file, or the one in a directory. Raises RecordError."""
    if not path.is_dir():
        return path
    if (path / RECORD_NAME).exists():
        return path / RECORD_NAME
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(p.name for p in found[-5:])
    raise RecordError(f"{path}: holds {len(found)} records; say which: {names}" if found else f"{path}: holds no record ({RECORD_NAME})")


class Recording:
    """A record file. Raises RecordError for none, for another build's, and for one without the settings."""

    def __init__(self, path: Path) -> None:
        self.path = find_record(path)
        self.dtype = core.record_dtype()
        self._site_beside = self.path.with_name("site.json")
        first = next((p for p in self.pieces() if isinstance(p, Piece)), None)
        if first is None:
            raise RecordError(f"{self.path}: no whole segment in it")
        self.first = first
        self.t0_ns = int(first.rows["inp"]["t_ns"][0])
        self.wall0_s = first.wall_s(self.t0_ns)

    def pieces(self) -> Iterator[Piece | Damage]:
        """Segment by segment, in the order of the file."""
        for item in read(self.path, layout=core.LAYOUT):
            if isinstance(item, Damage):
                yield item
            elif item.size != self.dtype.itemsize:
                sizes = f"ticks of {item.size} bytes, this build has {self.dtype.itemsize}"
                raise RecordError(f"{self.path}: {sizes}: recorded by another build")
            elif item.n:
                yield Piece(item, np.frombuffer(item.records, self.dtype), self._site(item))

    def _site(self, segment: Segment) -> dict[str, Any]:
        """From the segment; from site.json beside it where a writer did not know it, if its hash is the segment's."""
        if segment.site:
            return segment.site
        from controller import build, site

        try:
            settings = site.Site.from_dict(json.loads(self._site_beside.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as e:
            beside = f"{self._site_beside.name} beside it cannot be used"
            raise RecordError(f"{self.path}: the settings are not in it, and {beside}: {e}") from None
        if settings.settings_hash() != segment.settings:
            raise RecordError(f"{self.path}: {self._site_beside.name} beside it holds other settings than it was recorded under")
        return build.kernel_site(settings)

    def rows(self, from_s: float | None = None, to_s: float | None = None) -> np.ndarray:
        """All rows of a span, one after the other. Raises RecordError where there are none."""
        low = None if from_s is None else self.t0_ns + round(from_s * 1e9)
        high = None if to_s is None else self.t0_ns + round(to_s * 1e9)
        parts = []
        for piece in self.pieces():
            if isinstance(piece, Damage):
                continue
            t = piece.rows["inp"]["t_ns"]
            keep = np.ones(len(t), bool)
            if low is not None:
                keep &= t >= low
            if high is not None:
                keep &= t <= high
            if keep.any():
                parts.append(piece.rows if keep.all() else piece.rows[keep])
        if not parts:
            raise RecordError(f"{self.path}: no tick between {from_s or 0:g} s and {'its end' if to_s is None else f'{to_s:g} s'}")
        return np.concatenate(parts)

    def seconds(self, text: str) -> float:
        """Seconds from the first tick: "12.5" as it stands, a date and time by the record's wall clock. Raises ValueError."""
        try:
            return float(text)
        except ValueError:
            return parse_utc(text) - self.wall0_s

    def wall_s(self, t_ns: int) -> float:
        """Wall time of an instant, counted from the first segment's: it never jumps within a record."""
        return self.wall0_s + (t_ns - self.t0_ns) / 1e9

    def t_s(self, t_ns: int) -> float:
        """Seconds from the first tick."""
        return (t_ns - self.t0_ns) / 1e9


def nested(row: Any) -> Any:
    """A numpy record as the nested dict that the compiled kernel takes."""
    if row.ndim:
        return [nested(x) for x in row]
    if row.dtype.names:
        return {name: nested(row[name]) for name in row.dtype.names}
    return row.item()


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in a nested dict."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "pad":
                yield from flat(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{prefix}[{i}]")
    else:
        yield prefix, value
