"""`ballast replay`: the kernel over a record again. Every bit of every Outputs must come out as it was recorded.

Each stretch begins with a State (or with the kernel's reset) from the record and the Site that stands beside it, so a
record alone is enough. Where ticks are missing, the State of the next segment is taken over, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from _core.kernel import Kernel

from _core import image as core
from controller.recording import Piece, Recording, flat, nested
from controller.records import Damage, build_text

CHUNK = 500  # records a call; what a difference costs to find again
MAX_COUNTED = 10_000


@dataclass
class Difference:
    """The first tick of a record that does not come out again."""

    tick: int
    t_s: float
    fields: list[tuple[str, Any, Any]]  # name, recorded, replayed
    around: list[dict[str, Any]]  # the tick before, itself, the one after


@dataclass
class Result:
    """What a replay found."""

    ticks: int = 0
    segments: int = 0
    skipped: int = 0  # ticks that no known State leads to
    differing: int = 0
    first: Difference | None = None
    notes: list[str] = field(default_factory=list)
    builds: set[str] = field(default_factory=set)

    @property
    def equal(self) -> bool:
        """Something was replayed, and all of it came out."""
        return self.ticks > 0 and self.differing == 0


class Replay:
    """The kernel on its way through a record."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.result = Result()
        self._kernel: Any = None
        self._site: dict[str, Any] = {}
        self._next: int | None = None

    def run(self, from_s: float | None = None, to_s: float | None = None) -> Result:
        """Through the whole record up to `to_s`; ticks before `from_s` only lead there."""
        for item in self.recording.pieces():
            if isinstance(item, Damage):
                self.result.notes.append(f"damage: {item.length} bytes at offset {item.offset}: {item.why}")
                continue
            if to_s is not None and self.recording.t_s(int(item.rows["inp"]["t_ns"][0])) > to_s:
                break
            self.result.builds.add(item.segment.build)
            self._enter(item)
            for rows, begins in _starts(item.rows):
                if begins:
                    self._kernel = Kernel(item.site)
                self._over(rows, from_s, to_s)
            self._next = item.segment.next
        return self.result

    def _enter(self, piece: Piece) -> None:
        """Stands the kernel before the first tick of a segment; `_kernel` None where nothing leads there."""
        segment, t_s = piece.segment, self.recording.t_s(int(piece.rows["inp"]["t_ns"][0]))
        follows = self._kernel is not None and segment.first == self._next
        if segment.fresh:
            if self._next is not None:
                self.result.notes.append(f"control starts anew at {t_s:.3f} s")
            self._kernel = Kernel(piece.site)
        elif segment.state is not None:
            state = core.state_from_bytes(segment.state)
            if follows and repr(state) != repr(self._kernel.get_state()):
                self.result.notes.append(f"the State recorded at {t_s:.3f} s is not the one the replay reached; it is taken over")
            elif not follows and self._next is not None:
                missing = segment.first - self._next
                words = "the State of the next segment is taken over"
                self.result.notes.append(f"gap: {missing} ticks are missing before {t_s:.3f} s; {words}")
            self._kernel = Kernel(piece.site)
            self._kernel.set_state(state)
        elif not follows:
            self._kernel = None
            self.result.notes.append(f"no State leads to the {len(piece.rows)} ticks from {t_s:.3f} s: they are not replayed")
        elif piece.site != self._site:
            state = self._kernel.get_state()
            self._kernel = Kernel(piece.site)
            self._kernel.set_state(state)
        self._site = piece.site

    def _over(self, rows: np.ndarray, from_s: float | None, to_s: float | None) -> None:
        if self._kernel is None:
            self.result.skipped += len(rows)
            return
        t_s = (rows["inp"]["t_ns"] - self.recording.t0_ns) / 1e9
        wanted = np.ones(len(rows), bool)
        if from_s is not None:
            wanted &= t_s >= from_s
        if to_s is not None:
            wanted &= t_s <= to_s
        self.result.segments += 1
        self.result.ticks += int(wanted.sum())
        for at in range(0, len(rows), CHUNK):
            self._chunk(rows, at, min(at + CHUNK, len(rows)), wanted)

    def _chunk(self, rows: np.ndarray, at: int, end: int, wanted: np.ndarray) -> None:
        before, start = self._kernel.get_state(), at
        while at < end:
            k = self._kernel.run_records(rows[at:end].tobytes())
            if k < 0:
                return
            at += k + 1
            if not wanted[at - 1] or self.result.differing >= MAX_COUNTED:
                continue
            self.result.differing += 1
            if self.result.first is None:
                self.result.first = self._difference(rows, start, at - 1, before)

    def _difference(self, rows: np.ndarray, start: int, k: int, before: dict[str, Any]) -> Difference:
        kernel = Kernel(self._site)
        kernel.set_state(before)
        for i in range(start, k):  # one by one: run_records would stop at a difference before this one
            kernel.run_records(rows[i : i + 1].tobytes())
        row = nested(rows[k])
        out = dict(flat(kernel.step(row["inp"], row["lim"])))
        fields = [(name, was, out[name]) for name, was in flat(row["out"]) if _bits(was) != _bits(out[name])]
        around = [nested(rows[i]) for i in range(max(0, k - 1), min(len(rows), k + 2))]
        return Difference(int(row["tick"]), self.recording.t_s(row["inp"]["t_ns"]), fields, around)


def _starts(rows: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """A segment's rows, cut where ticks begin anew within it: there control was started again, from the kernel's reset."""
    cuts = [0, *(np.flatnonzero(np.diff(rows["tick"]) <= 0) + 1).tolist(), len(rows)]
    for i in range(len(cuts) - 1):
        yield rows[cuts[i] : cuts[i + 1]], i > 0


def _bits(x: Any) -> bytes:
    """What a value is to the last bit: NaN equals itself, 0.0 is not -0.0."""
    return np.float64(x).tobytes() if isinstance(x, float) else repr(x).encode()


def text(result: Result) -> list[str]:
    """The lines for a person."""
    lines = list(result.notes)
    own = build_text()
    strangers = sorted(b for b in result.builds if b != own)
    if strangers:
        lines.append(f"recorded by {', '.join(strangers)}; replayed by {own}")
    count = f"{result.ticks} ticks in {result.segments} segments replayed"
    if result.skipped:
        count += f", {result.skipped} not"
    if result.first is None:
        lines.append(f"{count}: every bit of every output as recorded" if result.ticks else f"{count}: nothing to compare")
        return lines
    first = result.first
    more = "at least " if result.differing >= MAX_COUNTED else ""
    lines.append(f"{count}: {more}{result.differing} DIFFER, the first at tick {first.tick}, {first.t_s:.3f} s")
    lines += [f"  {name}: recorded {was!r}, replayed {now!r}" for name, was, now in first.fields]
    lines.append("inputs around it (the tick before, itself, the one after):")
    columns = [dict(flat(row["inp"], "inp")) | dict(flat(row["lim"], "lim")) for row in first.around]
    for name in columns[0]:
        values = [c[name] for c in columns]
        lines.append(f"  {name:<32}" + "".join(f" {_short(v):>20}" for v in values))
    return lines


def _short(x: Any) -> str:
    return f"{x:.10g}" if isinstance(x, float) else str(x)
