"""Exports read back by somebody else's code: the values are the record's."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from controller import export, signals
from controller.__main__ import main
from controller.recording import Recording

comtrade = pytest.importorskip("comtrade")


def test_comtrade_is_read_back_equal(sim_record: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.cfg"
    assert main(["export", str(sim_record), "--format", "comtrade", "-o", str(out), "--from", "5", "--to", "15"]) == 0
    got = comtrade.load(str(out), str(out.with_suffix(".dat")))
    rows = Recording(sim_record).rows(5.0, 15.0)
    chosen = signals.select()
    assert got.rev_year == "2013" and got.ft == "FLOAT32" and got.total_samples == len(rows) == 1001
    assert got.frequency == 50.0 and list(got.cfg.sample_rates[0]) == [100.0, 1001]
    analog, status = [s for s in chosen if not s.status], [s for s in chosen if s.status]
    assert got.analog_channel_ids == [s.name for s in analog] and got.status_channel_ids == [s.name for s in status]
    for signal, values, channel in zip(analog, got.analog, got.cfg.analog_channels, strict=True):
        assert np.array_equal(np.array(values, "f4"), signal.values(rows).astype("f4"), equal_nan=True), signal.name
        assert channel.uu == (signal.unit or "NONE") and channel.ph == signal.phase
    for signal, values in zip(status, got.status, strict=True):
        assert np.array_equal(np.array(values, bool), signal.values(rows)), signal.name
    assert any(any(values) for values in got.status), "mode GRID at least"
    assert np.allclose(got.time, np.arange(1001) * 0.01)
    assert abs(got.start_timestamp.timestamp() % 60 - Recording(sim_record).wall_s(int(rows["inp"]["t_ns"][0])) % 60) < 1e-3


def test_comtrade_with_missing_ticks_goes_by_its_timestamps(sim_record: Path, tmp_path: Path) -> None:
    rows = np.delete(Recording(sim_record).rows(5.0, 8.0), [10, 11, 50])
    data = export.table(rows, signals.select(["out.load_w", "alarm_*"]), station="a,b\n", wall_s=1e9, f_hz=50.0)
    export.comtrade(data, tmp_path / "x.cfg")
    got = comtrade.load(str(tmp_path / "x.cfg"), str(tmp_path / "x.dat"))
    t_ns = rows["inp"]["t_ns"]
    assert got.station_name == "a b" and np.allclose(got.time, (t_ns - t_ns[0]) / 1e9)


def test_the_trigger_is_the_first_trip(sim_record: Path) -> None:
    rows = Recording(sim_record).rows(10.0, 12.0).copy()
    rows["out"]["mode"][100:] = 5
    data = export.table(rows, [], station="", wall_s=0.0, f_hz=50.0)
    assert data.trigger_ns == 1_000_000_000


def test_csv_has_units_and_the_same_doubles(sim_record: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.csv"
    assert main(["export", str(sim_record), "--format", "csv", "-o", str(out), "--signals", "out.load_w,v1_v,limit_mode", "--to", "3"]) == 0
    with open(out, newline="") as file:
        head, *lines = list(csv.reader(file))
    assert head == ["tick", "t_s [s]", "utc", "out.load_w [W]", "inp.meter.v1_v [V]", "limit_mode"]
    rows = Recording(sim_record).rows(None, 3.0)
    assert [float(x[3]) for x in lines] == rows["out"]["load_w"].tolist()
    assert [x[5] for x in lines] == ["1" if v & (1 << 19) else "0" for v in rows["out"]["limits_active"].tolist()]


def test_parquet_has_units_and_the_same_doubles(sim_record: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "run.parquet"
    assert main(["export", str(sim_record), "--format", "parquet", "-o", str(out), "--every", "7"]) == 0
    got = pq.read_table(out)
    rows = Recording(sim_record).rows()
    assert got["out.load_w"].to_pylist() == rows["out"]["load_w"][::7].tolist()
    assert got.schema.field("out.load_w").metadata[b"unit"] == b"W"
    assert got["inp.meter.f_hz"].to_numpy().tolist() == rows["inp"]["meter"]["f_hz"][::7].tolist()


@pytest.mark.parametrize(("n", "every"), [(1, 1), (1, 5), (10, 3), (11, 5), (12, 5), (100, 7), (7, 20)])
def test_no_status_falls_between_two_rows(sim_record: Path, n: int, every: int) -> None:
    """Every tick's bit is in the row at or after it, save behind the last row."""
    rows = Recording(sim_record).rows()[:n].copy()
    chosen = signals.select(["alarm_meter_lost"])
    for hit in range((n - 1) // every * every + 1):
        rows["out"]["alarms"] = 0
        rows["out"]["alarms"][hit] = 1
        data = export.table(rows, chosen, station="", wall_s=0.0, f_hz=50.0, every=every)
        want = [False] * len(data.ticks)
        want[-(-hit // every)] = True
        assert data.columns[0].tolist() == want, hit


def test_unknown_signals_are_refused_with_near_ones(sim_record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(sim_record), "--signals", "out.laod_w"]) == 2
    assert main(["export", str(sim_record), "--signals", "load"]) == 2
    assert "out.load_w" in capsys.readouterr().err
    assert main(["export", str(sim_record), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "inp.slot.0.value_w" in listed and "alarm_meter_sign" in listed
    rows = Recording(sim_record).rows()[:50]
    for signal in signals.known():
        assert len(signal.values(rows)) == 50, signal.name
