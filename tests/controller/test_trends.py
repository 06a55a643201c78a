"""Trends: every signal, 24 hours, in a file of fixed size that a full disk cannot turn into a crash."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller import trends
from controller.trends import ROWS, STEP_S, TrendError, TrendWriter
from tests.controller.fakes import FakeImage

T0 = 1_700_000_000.0


def rows_of(n: int = 100, **out: float) -> np.ndarray:
    image = FakeImage()
    image.tick(n, **out)
    return image.rows


def filled(path: Path, seconds: int, value: Any = lambda s: 400e3 + s) -> TrendWriter:
    writer = TrendWriter(path)
    for s in range(seconds):
        writer.add(rows_of(2, load_w=value(s)), T0 + s)
    return writer


def test_lowest_and_highest_of_each_ten_seconds(tmp_path: Path) -> None:
    filled(tmp_path / "t", 35)
    t, low, high = trends.read(tmp_path / "t", "out.load_w", T0, T0 + 100)
    assert t.tolist() == [T0, T0 + 10, T0 + 20], "the fourth has not ended"
    assert low.tolist() == [400000, 400010, 400020] and high.tolist() == [400009, 400019, 400029]


def test_every_number_of_the_image_is_kept_but_clocks(tmp_path: Path) -> None:
    names = trends.names()
    assert {"inp.meter.v1_v", "out.p_cmd_w", "inp.bms.soc", "lim.import_limit_w", "inp.slot.0.value_w"} <= set(names)
    assert not any(name.endswith("_ns") for name in names)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    filled(tmp_path / "t", 25, lambda s: float("nan") if s < 10 else 5.0 if s % 2 else float("nan"))
    _, low, high = trends.read(tmp_path / "t", "out.load_w", T0, T0 + 100)
    assert np.isnan(low[0]) and np.isnan(high[0]) and low[1] == high[1] == 5.0


def test_a_day_is_kept_and_no_more(tmp_path: Path) -> None:
    writer = TrendWriter(tmp_path / "t")
    tick = rows_of(1)
    for k in range(ROWS + 50):
        if k < 60 or k > ROWS - 10:  # a row at each end; the hours between are silence
            writer.add(tick, T0 + k * STEP_S)
    size = (tmp_path / "t").stat().st_size
    t, _, _ = trends.read(tmp_path / "t", "out.load_w", 0, T0 + 10 * 86400)
    assert t.min() > T0 + 40 * STEP_S and t.max() == T0 + (ROWS + 48) * STEP_S
    assert size < 12e6


def test_another_builds_file_begins_anew_and_a_strangers_is_refused_by_the_reader(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\x00nothing of ours" * 100)
    with pytest.raises(TrendError, match="no file of trends"):
        trends.read(tmp_path / "t", "out.load_w", 0, 1e12)
    filled(tmp_path / "t", 25)
    assert len(trends.read(tmp_path / "t", "out.load_w", 0, 1e12)[0]) == 2
    with pytest.raises(TrendError, match="is not kept"):
        trends.read(tmp_path / "t", "out.nothing", 0, 1e12)
    with pytest.raises(TrendError, match="has not kept"):
        trends.read(tmp_path / "absent", "out.load_w", 0, 1e12)


def test_a_full_disk_is_told_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = filled(tmp_path / "t", 15)
    write = os.pwrite

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for s in range(15, 30):
        writer.add(rows_of(1), T0 + s)
    assert writer.error == "No space left on device"
    monkeypatch.setattr(os, "pwrite", write)
    for s in range(30, 50):
        writer.add(rows_of(1), T0 + s)
    assert writer.error == ""
    assert trends.read(tmp_path / "t", "out.load_w", 0, 1e12)[0].tolist() == [T0, T0 + 20, T0 + 30]
