"""What led to a trip is on the disk, replays, and the disk stays bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from _core import image as core
from controller import freeze
from controller.freeze import Freezer, kept
from controller.recording import Recording
from controller.records import Segment, read
from controller.replay import Replay
from controller.store import Store
from tests.controller.test_supervisor import SECOND, Bench


def freezer(directory: Path) -> Freezer:
    return Freezer(directory, layout=core.LAYOUT, settings="s", record_size=core.RECORD_SIZE)


def ticks(path: Path) -> list[int]:
    import numpy as np

    raw = b"".join(s.records for s in read(path) if isinstance(s, Segment))
    return [int(t) for t in np.frombuffer(raw, core.record_dtype())["tick"]]


def test_a_trip_keeps_60_s_before_and_10_s_after(tmp_path: Path) -> None:
    bench = Bench(freezer=freezer(tmp_path / "f"))
    for _ in range(90):
        bench.second()
    assert not kept(tmp_path / "f")
    bench.second(mode=5)
    (path,) = kept(tmp_path / "f")
    got = ticks(path)
    assert got[-1] == 9100 and got == list(range(got[0], 9101)) and 5900 <= len(got) <= 6200, "on the disk with the step that saw it"
    for _ in range(20):
        bench.second(mode=5)
    got = ticks(path)
    assert got[-1] == 10_100 and got == list(range(got[0], got[-1] + 1))
    assert any("kept at full rate" in text for text in bench.texts("freeze"))
    assert "trip" in path.name


def test_an_early_trip_begins_with_the_reset(tmp_path: Path) -> None:
    bench = Bench(freezer=freezer(tmp_path))
    bench.second()
    bench.second(mode=0)
    bench.sup.close(bench.clock.t_ns)
    (path,) = kept(tmp_path)
    first = next(s for s in read(path) if isinstance(s, Segment))
    assert first.fresh and first.first == 0 and first.state is None


def test_count_and_rate_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "MAX_FILES", 4)
    bench = Bench(freezer=freezer(tmp_path))
    for hour in range(3):
        for _ in range(9):
            bench.second(mode=5)
            for _ in range(12):
                bench.second()
        assert len(kept(tmp_path)) <= 4
        if hour == 0:
            assert bench.sup.freezer is not None and len(bench.sup.freezer.written) == 6
            assert any("within an hour" in text for text in bench.texts("disk"))
        bench.clock.wall_at_0_s += 3600
    assert len(kept(tmp_path)) == 4


def test_a_frozen_trip_replays(tmp_path: Path) -> None:
    """A real engine in virtual time, 75 s, its meter silent from 65 s on."""
    from bench.sim import Simulation
    from controller import build
    from controller.virtual import LoadOptions

    site = build.load_site(None, [], lambda: [])
    silence = {"at_s": 70, "for_s": 30, "key": "a.drop_p", "value": 1.0}
    sim = Simulation(site, LoadOptions(trace="steps", repeat=False), for_s=90, faults=[silence])
    sim.supervisor.writer, sim.supervisor.freezer = None, freezer(tmp_path)
    sim.run_s(85)
    sim.close()
    (path,) = kept(tmp_path)
    result = Replay(Recording(path)).run()
    assert result.equal and result.ticks >= 6900 and not result.skipped
    modes = Recording(path).rows()["out"]["mode"]
    assert modes[0] == core.MODE_GRID and modes[-1] == core.MODE_FAULT


def test_asked_for(tmp_path: Path) -> None:
    bench = Bench(freezer=freezer(tmp_path))
    for _ in range(5):
        bench.second()
    bench.sup.freeze("asked", bench.clock.t_ns)
    bench.second()
    assert len(kept(tmp_path)) == 1 and "asked" in kept(tmp_path)[0].name


def test_a_disk_that_refuses_costs_only_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_text("in the way")
    bench = Bench(freezer=freezer(tmp_path / "f"))
    bench.second()
    bench.second(mode=0)
    bench.second(mode=0)
    assert len(bench.image.limits_written) == 3 and any("freeze" in text for text in bench.texts("disk"))


def test_modes_and_alarms_are_on_the_disk_between_two_steps(tmp_path: Path) -> None:
    bench = Bench(store=Store(tmp_path / "h.sqlite", 1))
    bench.second()
    assert not bench.sup.urgent()
    bench.image.tick(10, mode=0, alarms=1)
    assert bench.sup.urgent()
    bench.sup.look(bench.clock.t_ns + SECOND // 10)
    other = Store(tmp_path / "h.sqlite", 1)
    texts = [text for *_, text in other.events()]
    assert "GRID -> FAULT" in texts and any(text.startswith("meter_lost") for text in texts)
    assert not bench.sup.urgent()


def test_the_audit_trail_holds_commands_limits_modes_and_faults(tmp_path: Path) -> None:
    store = Store(tmp_path / "h.sqlite", 1)
    bench = Bench(store=store)
    bench.second()
    store.add_audit(1.0, "me", "hold", 1e3, 60.0, "")
    bench.second(mode=0, alarms=1, limits_active=1 << 19)
    kinds = {kind for (kind,) in store.db.execute("SELECT kind FROM audit")}
    assert {"command", "mode", "alarm", "limit", "device"} <= kinds
    assert store.db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


