"""Settings that change under the feet of a running site: the files, who notices, and what the supervisor does with them."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from _core import image as core
from controller import build
from controller import site as sites
from controller.build import SiteWatch
from controller.clock import ManualClock, RealClock
from controller.freeze import Freezer
from controller.inforce import InForce
from controller.process import Child
from controller.records import RecordWriter, Segment, read
from controller.site import ScheduleRow, Site
from controller.supervisor import Supervisor
from controller.virtual import Plant, plant_config
from tests.controller.fakes import FakeImage

SECOND = 1_000_000_000


def site_with(*sets: str) -> Site:
    return build.load_site(None, sets, lambda: [])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ---------------------------------------------------------------- files


def test_a_trial_and_its_way_back_are_each_one_step(tmp_path: Path) -> None:
    files = InForce(tmp_path, None)
    watch = SiteWatch(tmp_path / "site.json")
    assert watch.look() is None, "nothing there yet"
    files.begin(site_with(), "the plan")
    assert watch.look() == site_with() and watch.look() is None
    assert (tmp_path / "plan.txt").read_text() == "the plan\n"
    other = site_with("grid.import_limit_w=440000")
    files.stage(other)
    assert watch.look() is None, "staged is not in force"
    files.commit()
    assert watch.look() == other
    files.back(site_with())
    assert watch.look() == site_with() and names(tmp_path) == ["plan.txt", "site.json"]


def test_what_is_kept_has_no_way_back_and_the_next_trial_has_its_own(tmp_path: Path) -> None:
    files, limit = InForce(tmp_path, None), "grid.import_limit_w"
    files.begin(site_with(), "")
    for watts in (440_000, 430_000):
        files.stage(site_with(f"{limit}={watts}"))
        files.commit()
        files.keep()
    files.stage(site_with(f"{limit}=420000"))
    files.commit()
    files.back(site_with())
    assert build.site_from(tmp_path / "site.json").num(limit) == 430e3


def test_the_way_back_needs_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = InForce(tmp_path, None)
    files.begin(site_with(), "")
    files.stage(site_with("grid.import_limit_w=440000"))
    files.commit()

    def full(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    files.back(site_with())
    with pytest.raises(OSError, match="No space"):
        files.stage(site_with("grid.import_limit_w=430000"))
    files.show(site_with(), "said, not raised")
    monkeypatch.undo()
    assert build.site_from(tmp_path / "site.json") == site_with()
    (tmp_path / "site.before").unlink(missing_ok=True)
    files.back(site_with("grid.import_limit_w=420000"))
    assert build.site_from(tmp_path / "site.json").num("grid.import_limit_w") == 420e3, "where the file before is gone"


def test_the_copy_beside_the_record_follows(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "run").mkdir()
    files = InForce(tmp_path / "run", tmp_path / "out")
    files.begin(site_with(), "a")
    files.show(site_with("pcs.tau_s=0.004"), "b")
    assert build.site_from(tmp_path / "out/site.json").num("pcs.tau_s") == 0.004
    assert (tmp_path / "run/plan.txt").read_text() == "b\n"


def test_a_plan_with_odd_bytes_is_written_all_the_same(tmp_path: Path) -> None:
    files = InForce(tmp_path, None)
    files.begin(site_with(), "a")
    files.show(site_with(), "→ /dev/tty\udcff")
    assert (tmp_path / "plan.txt").read_text(encoding="utf-8") == "→ /dev/tty\\udcff\n"


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"file": 1}', b"\xff"])
def test_a_torn_file_leaves_the_settings_as_they_were(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "site.json"
    path.write_text(json.dumps(site_with().to_dict()))
    watch = SiteWatch(path)
    assert watch.look() is not None
    path.write_bytes(torn)
    assert watch.look() is None
    path.write_text(json.dumps(site_with("pcs.tau_s=0.004").to_dict()))
    assert watch.look() is not None, "and is looked at again"


# ---------------------------------------------------------------- supervisor


class Bench:
    """Supervisor, image and clock; `second()` is one step with its 100 ticks."""

    def __init__(self, **parts: Any) -> None:
        self.image, self.clock = FakeImage(), ManualClock()
        self.sup = Supervisor(self.image, site_with(), self.clock, **parts)

    def second(self, **out: float) -> None:
        self.image.tick(100, **out)
        self.clock.t_ns += SECOND
        self.sup.step(self.clock.t_ns)


def test_the_supervisor_takes_over_limits_and_schedule() -> None:
    bench = Bench()
    bench.second()
    site = site_with("grid.import_limit_w=440000", "battery.soc_max=0.8")
    site.schedule = [ScheduleRow(0, 0, tuple(range(7)), 20e3)]
    bench.sup.take_site(site, bench.clock.t_ns)
    now = bench.image.limits_written[-1]
    assert (now["import_limit_w"], now["soc_max"], now["lease_until_ns"]) == (440e3, 0.8, 4 * SECOND), "at once, with a lease"
    bench.second()
    assert bench.image.limits_written[-1]["import_limit_w"] == 440e3 and bench.image.setpoints[-1][2] == 20e3
    told = [e.text for e in bench.sup.events if e.kind == "settings"]
    assert told == ["grid.import_limit_w 445000.0 -> 440000.0, battery.soc_max 0.9 -> 0.8"]


def test_another_billing_window_is_no_jump_of_the_clock() -> None:
    bench = Bench()
    bench.second()
    assert bench.image.billing_offset_s == pytest.approx(1_700_000_000 % 900)
    for window in (1800, 0, 3600):
        bench.sup.take_site(site_with(f"grid.billing_window_s={window}"), bench.clock.t_ns)
        bench.second()
        if window:
            assert bench.image.billing_offset_s == pytest.approx(1_700_000_000 % window)
    assert not [e for e in bench.sup.events if e.kind == "clock"]


def test_segments_of_the_record_carry_the_settings_they_were_made_under(tmp_path: Path) -> None:
    hashes = {"layout": core.LAYOUT, "record_size": core.RECORD_SIZE}
    writer = RecordWriter(tmp_path / "r.blst", settings=site_with().settings_hash(), **hashes)  # type: ignore[arg-type]
    bench = Bench(writer=writer)
    bench.second()
    bench.second()
    other = site_with("grid.import_limit_w=440000")
    bench.image.tick(99)
    bench.sup.take_site(other, bench.clock.t_ns)
    bench.second()
    bench.sup.close(bench.clock.t_ns)
    writer.close()
    segments = [s for s in read(tmp_path / "r.blst", layout=core.LAYOUT) if isinstance(s, Segment)]
    assert [s.n for s in segments if s.settings == site_with().settings_hash()] == [100, 199]
    assert [s.n for s in segments if s.settings == other.settings_hash()] == [100]
    assert segments[-1].state is not None, "it can be replayed alone"


def test_a_freeze_after_a_change_carries_the_new_settings(tmp_path: Path) -> None:
    hashes = {"layout": core.LAYOUT, "record_size": core.RECORD_SIZE}
    bench = Bench(freezer=Freezer(tmp_path, settings=site_with().settings_hash(), **hashes))  # type: ignore[arg-type]
    bench.second()
    other = site_with("grid.import_limit_w=440000")
    bench.sup.take_site(other, bench.clock.t_ns)
    bench.sup.freeze("asked", bench.clock.t_ns)
    bench.second()
    bench.sup.close(bench.clock.t_ns)
    (path,) = tmp_path.glob("*.blst")
    assert {s.settings for s in read(path, layout=core.LAYOUT) if isinstance(s, Segment)} == {other.settings_hash()}


# ---------------------------------------------------------------- the virtual cabinet's pipe

ECHO = """
import json, sys, time
for line in sys.stdin:
    message = json.loads(line)
    if "sleep" in message:
        time.sleep(message["sleep"])
    if "garbage" in message:
        print("no json", flush=True)
    elif "end" in message:
        sys.exit(0)
    else:
        print(json.dumps({"set": message}), flush=True)
"""


class Cabinet(Child):
    """A child that echoes instead of `python -m bench.plant`."""

    def start(self) -> None:
        import subprocess

        self.process = subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pidfd = os.pidfd_open(self.process.pid)


@pytest.fixture
def plant(tmp_path: Path) -> Any:
    from controller.virtual import LoadOptions

    clock = ManualClock()
    made = Plant(sites.load(None), plant_config(sites.load(None), LoadOptions()), tmp_path, clock)
    made.child = Cabinet("plant", [], clock)
    made.child.start()
    yield made
    made.child.send(signal.SIGKILL)
    made.child.wait(10)


def hear(plant: Plant, until: Any) -> None:
    """Listens until it is true, at most for 10 s of real time."""
    end_ns = RealClock().monotonic_ns() + 10 * SECOND
    while not until() and RealClock().monotonic_ns() < end_ns:
        if plant.listening() and select.select([plant.fileno()], [], [], 0.05)[0]:
            plant.hear()
        plant.expire()
    assert until()


def test_answers_come_to_whom_asked_and_late_ones_to_nobody(plant: Plant) -> None:
    first: list[Any] = []
    second: list[Any] = []
    plant.ask({"sleep": 0.3}, first.append)
    plant.ask({"n": 2}, second.append, 60.0)
    assert plant.owes() and not first
    plant.clock.t_ns += 3 * SECOND  # type: ignore[attr-defined]
    plant.expire()
    assert "does not answer" in first[0]["error"]
    hear(plant, lambda: second)
    assert second == [{"set": {"n": 2}}] and len(first) == 1 and not plant.owes()


def test_what_cannot_be_sent_is_refused(plant: Plant) -> None:
    with pytest.raises(ValueError, match="longer than 4096"):
        plant.ask({"x": "y" * 5000}, lambda _: None)
    for _ in range(8):
        plant.ask({"sleep": 0.0}, lambda _: None)
    with pytest.raises(ValueError, match="does not answer"):
        plant.ask({}, lambda _: None)


def test_garbage_and_an_end_are_answers_too(plant: Plant) -> None:
    got: list[Any] = []
    plant.ask({"garbage": 1}, got.append)
    hear(plant, lambda: got)
    assert "something else than JSON" in got[0]["error"]
    plant.ask({"end": 1}, got.append)
    hear(plant, lambda: len(got) == 2)
    assert "does not answer" in got[1]["error"] and not plant.listening() and not plant.owes()
    with pytest.raises(ValueError, match="does not answer"):
        plant.ask({}, got.append)
    assert plant.write_truth(Path("/nowhere")) is False
