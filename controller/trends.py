"""Every signal of the image over the last 24 hours: its lowest and highest value in each 10 s, in a file of fixed size.

    16384 bytes of head: JSON {"version", "names", "step_s", "rows"};  then `rows` rows of f64 wall time, n x f32 lowest, n x f32 highest

A row's place follows from its time, so the file is a ring without a pointer, and a reader needs nobody's help. Written with
pwrite, never mapped: a full disk must not kill the writer with SIGBUS. Not synchronised: what a power cut takes of it is a
minute of a picture.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from controller import signals

FILE = "trends.bin"
STEP_S = 10.0
ROWS = 8640  # 24 hours
HEAD_BYTES = 16384
VERSION = 1


class TrendError(Exception):
    """No trends here, or of another build; the message says which."""


def names() -> list[str]:
    """The signals that are kept: every number of the image that is no time of a clock."""
    return [s.name for s in signals.known() if not s.status and not s.name.endswith("_ns")]


def _row(n: int) -> np.dtype:
    return np.dtype([("wall_s", "<f8"), ("low", "<f4", (n,)), ("high", "<f4", (n,))])


class TrendWriter:
    """The supervisor's: `add` each look, a row is written when its 10 s are over. `error`: why the last could not be."""

    def __init__(self, path: Path) -> None:
        self.path, self.error = path, ""
        self._signals = signals.select(names())
        self._dtype = _row(len(self._signals))
        self._head = json.dumps({"version": VERSION, "names": [s.name for s in self._signals], "step_s": STEP_S, "rows": ROWS}).encode()
        self._fd = -1
        self._bin: int | None = None
        self._low = np.full(len(self._signals), np.nan, np.float32)
        self._high = self._low.copy()

    def add(self, rows: np.ndarray, wall_s: float) -> None:
        """The ticks since the last call; `wall_s`: wall time of the last of them."""
        if not len(rows):
            return
        own = int(wall_s // STEP_S)
        if self._bin is not None and own != self._bin:
            self._write()
        self._bin = own
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.array(
                [(v.min(), v.max()) if not np.isnan(v := s.values(rows)).any() else _extremes(v) for s in self._signals], np.float32
            )
        self._low = np.fmin(self._low, values[:, 0])
        self._high = np.fmax(self._high, values[:, 1])

    def _write(self) -> None:
        assert self._bin is not None
        row = np.zeros(1, self._dtype)
        row["wall_s"], row["low"], row["high"] = self._bin * STEP_S, self._low, self._high
        self._low.fill(np.nan)
        self._high.fill(np.nan)
        try:
            if self._fd < 0:
                self._fd = self._open()
            os.pwrite(self._fd, row.tobytes(), HEAD_BYTES + self._bin % ROWS * self._dtype.itemsize)
            self.error = ""
        except OSError as e:
            self.error = e.strerror or str(e)
            self.close()

    def _open(self) -> int:
        """The file, begun anew where it is another build's."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.pread(fd, HEAD_BYTES, 0).rstrip(b"\0") != self._head:
                os.ftruncate(fd, 0)
                os.pwrite(fd, self._head.ljust(HEAD_BYTES, b"\0"), 0)
        except OSError:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Lets go of the file; the 10 s that have begun are lost."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


def _extremes(v: np.ndarray) -> tuple[float, float]:
    known = v[~np.isnan(v)]
    return (float(known.min()), float(known.max())) if len(known) else (np.nan, np.nan)


def read(path: Path, name: str, since_wall_s: float, until_wall_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(wall time, lowest, highest) of a signal, oldest first. Raises TrendError."""
    try:
        data = path.read_bytes()
        head: dict[str, Any] = json.loads(data[:HEAD_BYTES].rstrip(b"\0"))
        kept = list(head["names"])
        dtype = _row(len(kept))
    except OSError as e:
        raise TrendError(f"{path}: {e.strerror}: the supervisor has not kept any trends here yet") from None
    except (ValueError, KeyError, TypeError):
        raise TrendError(f"{path}: is no file of trends") from None
    if name not in kept:
        raise TrendError(f"{name} is not kept for longer than the 60 s in memory")
    body = data[HEAD_BYTES:]
    rows = np.frombuffer(body[: len(body) // dtype.itemsize * dtype.itemsize], dtype)
    rows = rows[(rows["wall_s"] > 0) & (rows["wall_s"] >= since_wall_s) & (rows["wall_s"] <= until_wall_s)]
    rows = rows[np.argsort(rows["wall_s"])]
    k = kept.index(name)
    return rows["wall_s"], rows["low"][:, k], rows["high"][:, k]
