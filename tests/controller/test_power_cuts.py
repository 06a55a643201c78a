"""Power goes at any write: the store opens, nothing acknowledged is lost, and the record replays up to the cut."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from _core import image as core
from controller.recording import Piece, Recording
from controller.records import Damage, RecordWriter, Segment, read
from controller.replay import Replay
from controller.reserve import Reserve
from controller.store import Store
from tests.powercut import Journal, LoggedConnection, LoggedFiles, after_cut

CUTS = 50


def record_journal(source: Path, directory: Path) -> tuple[Journal, list[int]]:
    """The record written again, segment by segment, with sync; the ring position after each is acknowledged."""
    journal = Journal()
    segments = [s for s in read(source) if isinstance(s, Segment)]
    first = segments[0]
    about = {"layout": first.layout, "settings": first.settings, "record_size": first.size}
    writer = RecordWriter(directory / "record.blst", **about, sync=True, files=LoggedFiles(journal))
    for segment in segments:
        writer.site = segment.site
        writer.begin(segment.state, fresh=segment.fresh)
        writer.add(segment.records, segment.first, segment.next, segment.wall_s)
        writer.flush(None, segment.wall_s)
        journal.ack(segment.next)
    writer.close()
    return journal, [s.next for s in segments]


def store_journal(directory: Path, seed: int) -> Journal:
    """Events, commands and history in a database that checkpoints often; row numbers are acknowledged as they come."""
    journal, rng = Journal(), random.Random(seed)
    store = Store(directory / "h.sqlite", 1, connect=lambda path, **_: LoggedConnection(path, journal, f"cut{seed}"))
    store.db.execute("PRAGMA wal_autocheckpoint = 6")
    for i in range(80):
        if rng.random() < 0.2:
            store.add_history([[float(i)] * 17] * 10)
        if rng.random() < 0.3:
            journal.ack(store.add_audit(float(i), "me", "hold", 1.0, 60.0, "x" * rng.randrange(400)))
        else:
            store.add_event(float(i), i, "mode", f"event {i} " + "y" * rng.randrange(400))
            journal.ack(int(store.db.execute("SELECT MAX(id) FROM audit").fetchone()[0]))
    store.close()
    return journal


def cut_record(journal: Journal, directory: Path, original: Path, cut: int, seed: int) -> int:
    """Checks one cut of the record; returns how many ticks came through."""
    content, acked = after_cut(journal, cut, seed)
    path = directory / "record.blst"
    path.write_bytes(next(iter(content.values()), b""))
    segments = [s for s in read(path) if isinstance(s, Segment)] if path.stat().st_size else []
    after = segments[-1].next if segments else 0
    assert after >= max(acked, default=0), "an acknowledged segment is lost"
    whole = [s.records for s in read(original) if isinstance(s, Segment)]
    assert [s.records for s in segments] == whole[: len(segments)]
    if segments:
        result = Replay(Recording(path)).run()
        assert result.equal and result.ticks == sum(s.n for s in segments) and not result.skipped
    again = RecordWriter(path, layout=core.LAYOUT, settings="s", record_size=core.RECORD_SIZE)
    assert (again.next or 0) == after
    again.close()
    assert not [d for d in read(path) if isinstance(d, Damage)], "a torn tail is cut off when the writer comes back"
    return after


def cut_store(journal: Journal, made: Path, directory: Path, cut: int, seed: int) -> int:
    """Checks one cut of the store; returns how many rows came through."""
    content, acked = after_cut(journal, cut, seed)
    for path in directory.iterdir():
        path.unlink()
    for path, data in content.items():
        if not path.endswith("-shm"):
            (directory / Path(path).name).write_bytes(data)
    store = Store(directory / "h.sqlite", 2)
    assert not store.error
    rows = {r[0] for r in store.db.execute("SELECT id FROM audit")}
    assert set(acked) <= rows, "an acknowledged row is lost"
    assert store.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store.add_event(0.0, 0, "mode", "life goes on")
    store.close()
    return len(rows)


def cuts(n: int, seed: int, source: Path, tmp_path: Path) -> None:
    """n cuts, half of them of the record and half of the store."""
    places = [tmp_path / name for name in ("record", "store", "cut_record", "cut_store")]
    for place in places:
        place.mkdir()
    rng = random.Random(seed)
    record, _ = record_journal(source, places[0])
    store = store_journal(places[1], seed)
    through = [0, 0]
    for k in range(n):
        if k % 2:
            through[0] += cut_record(record, places[2], source, rng.randrange(len(record.ops) + 1), rng.getrandbits(32))
        else:
            through[1] += cut_store(store, places[1], places[3], rng.randrange(len(store.ops) + 1), rng.getrandbits(32))
    assert min(through) > 0


def test_power_cuts(sim_record: Path, tmp_path: Path) -> None:
    cuts(CUTS, 1, sim_record, tmp_path)


WRITER = """
import sys
from pathlib import Path
from controller.records import RecordWriter, Segment, read
from controller.store import Store
source, directory = Path(sys.argv[1]), Path(sys.argv[2])
segments = [s for s in read(source) if isinstance(s, Segment)]
first = segments[0]
store = Store(directory / "h.sqlite", 1)
writer = RecordWriter(directory / "record.blst", layout=first.layout, settings=first.settings, record_size=first.size, sync=True)
print("ready", flush=True)
for n, s in enumerate(segments):
    writer.site = s.site
    writer.begin(s.state, fresh=s.fresh)
    writer.add(s.records, s.first, s.next, s.wall_s)
    writer.flush(None, s.wall_s)
    print("segment", s.next, flush=True)
    for k in range(10):
        store.add_event(float(n), k, "mode", f"{n} {k}")
        print("event", n, k, flush=True)
"""


def kill_writer(source: Path, directory: Path, delay_s: float) -> None:
    """SIGKILL at a random moment: what had been said is there."""
    directory.mkdir()
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(source), str(directory)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    signal.sigtimedwait([], delay_s)
    child.send_signal(signal.SIGKILL)
    said = [line.split() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.wait()
    store = Store(directory / "h.sqlite", 1)
    texts = {text for _, _, _, text in store.events(10_000)}
    assert {f"{w[1]} {w[2]}" for w in said if w[0] == "event"} <= texts
    store.close()
    record = directory / "record.blst"
    acked = max((int(w[1]) for w in said if w[0] == "segment"), default=0)
    if acked:
        result = Replay(Recording(record)).run()
        assert result.equal and max(p.segment.next for p in Recording(record).pieces() if isinstance(p, Piece)) >= acked


def test_killed_writers(sim_record: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    for k in range(3):
        kill_writer(sim_record, tmp_path / str(k), rng.uniform(0.0, 0.15))


# ---------------------------------------------------------------- the reserve


def test_the_reserve_takes_rows_and_gives_them_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "h.sqlite", 3)
    store.add_event(1.0, 1, "mode", "before")
    real = store.db

    class Full:
        in_transaction = False

        def execute(self, sql: str, *_: object) -> object:
            raise sqlite3.OperationalError("database or disk is full")

        executemany = executescript = execute

    store.db = Full()
    store.add_event(2.0, 2, "alarm", "during")
    number = store.add_audit(3.0, "me", "hold", 5.0, 60.0, "during too")
    assert number < 0 and "full" in store.error
    store.add_history([[0.0] * 17])
    assert store.lost_rows == 1
    store.db = real
    store.add_event(4.0, 4, "mode", "after")
    assert store.error == "" and store.reserve.empty()
    assert [text for *_, text in store.events()] == ["before", "during", "after"]
    assert next(iter(store.audit()))[0] == number
    store.close()


def test_the_trail_keeps_the_order_of_what_happened_over_a_full_disk(tmp_path: Path) -> None:
    """Waiting in the reserve, taken back, and with a clock that was set back before: an alarm after its `ack` stays after it."""
    store = Store(tmp_path / "h.sqlite", 3)
    store.add_event(9000.0, 0, "clock", "was wrong until here")
    store.add_event(1.0, 1, "alarm", "meter_lost: first", "meter_lost")
    store.add_audit(2.0, "me", "ack", None, None, "meter_lost")
    for k, text in enumerate(("meter_lost cleared", "meter_lost: again")):  # in one second of the supervisor
        store.reserve.add((3, 3.0, k, "ballast", "alarm", "meter_lost", None, None, text))
    number = store.reserve.add((3, 4.0, None, "me", "command", "hold", 0.0, 60.0, "held"))
    faults = ["meter_lost: first", "meter_lost", "meter_lost cleared", "meter_lost: again"]

    def holds(store: Store, *, after: bool) -> None:
        later = ["later"] if after else []
        assert [row.text for row in store.faults(0.5)] == faults
        assert [row.text for row in store.trail(100)] == ["was wrong until here", *faults, "held", *later]
        assert [row.text for row in store.trail(2)] == [*faults, "held", *later][-2:], "the newest, also where few are asked for"
        assert [row.text for row in store.trail(9, "again")] == ["meter_lost: again"]
        assert next(iter(store.audit()))[:4] == (number, 4.0, "me", "hold")

    holds(Store(tmp_path / "h.sqlite", readonly=True), after=False)
    store.add_event(5.0, 5, "mode", "later")
    assert store.reserve.empty()
    holds(store, after=True)
    assert [text for *_, text in store.events()][1:3] == ["meter_lost cleared", "meter_lost: again"]
    store.close()


def test_a_reserve_that_waits_is_taken_back_when_the_store_opens(tmp_path: Path) -> None:
    Store(tmp_path / "h.sqlite", 3).close()
    reserve = Reserve(tmp_path / "h.reserve")
    numbers = [reserve.add((3, float(k), k, "ballast", "mode", None, None, None, f"e{k}")) for k in range(5)]
    assert numbers == [-1, -2, -3, -4, -5]
    with open(tmp_path / "h.reserve", "r+b") as file:  # the last row is torn
        data = file.read()
        file.seek(data.index(b"e4") - 4)
        file.write(b"\xff\xff")
    store = Store(tmp_path / "h.sqlite", 3)
    assert [text for *_, text in store.events()] == ["e0", "e1", "e2", "e3"]
    assert reserve.empty()
    assert reserve.add((3, 9.0, 9, "ballast", "mode", None, None, None, "next")) < -4, "no number twice"
    store.close()


def test_a_store_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "h.sqlite")
    db.executescript("""
        CREATE TABLE history (run, wall_s, t_ns, tick, load_w, grid_w, grid_min_w, grid_max_w, batt_w, ref_w, soc, mode, limits, alarms,
                              missed, not_held_s, wake_max_us, position);
        CREATE TABLE events (id INTEGER PRIMARY KEY, run INTEGER, wall_s REAL, t_ns INTEGER, kind TEXT, text TEXT);
        CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, wall_s REAL, who TEXT, command TEXT, value_w REAL,
                            lease_s REAL, text TEXT);
        INSERT INTO events VALUES (1, 4, 10.0, 5, 'mode', 'GRID');
        INSERT INTO audit VALUES (7, 11.0, 'me', 'hold', 1.0, 2.0, 'held');
    """)
    db.close()
    store = Store(tmp_path / "h.sqlite", 4)
    assert store.events() == [(10.0, 5, "mode", "GRID")]
    assert list(store.audit()) == [(7, 11.0, "me", "hold", 1.0, 2.0, "held")]
    assert store.add_audit(12.0, "me", "release", None, None, "") > 7
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[[str], Path]:
    """A tmpfs of 4 MB; skips where nobody may mount one."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
        return place

    yield mount  # type: ignore[misc]
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


def test_disk_full_and_free_again(small_disk: Callable[[str], Path]) -> None:
    from tests.controller.test_supervisor import Bench

    disk = small_disk("size=4m")
    writer = RecordWriter(disk / "record.blst", layout=1, settings="s", record_size=core.RECORD_SIZE, sync=True)
    store = Store(disk / "h.sqlite", 1)
    bench = Bench(writer=writer, store=store)
    for _ in range(20):
        bench.second()
    with open(disk / "fill", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    for k in range(60):
        bench.second(mode=2 + k % 2)
    assert len(bench.image.limits_written) == 80, "the loop goes on"
    assert writer.error and writer.lost and bench.texts("disk")
    waiting = [text for *_, text in store.events(10_000)]
    assert sum("GRID -> ISLAND" in text for text in waiting) == 30
    (disk / "fill").unlink()
    for _ in range(15):
        bench.second()
    bench.sup.close(bench.clock.t_ns)
    assert store.reserve.empty() and not store.error and not writer.error
    assert any("takes it again" in text for text in bench.texts("disk"))
    rows = [text for (text,) in store.db.execute("SELECT text FROM audit ORDER BY wall_s")]
    assert sum("GRID -> ISLAND" in text for text in rows) == 30
    got = list(read(disk / "record.blst"))
    assert all(isinstance(s, Segment) for s in got)
    store.close()


def test_read_only_disk_is_a_line_and_the_loop_goes_on(small_disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    from controller.supervise import open_store, open_writer
    from tests.controller.test_supervisor import Bench

    disk = small_disk("ro")
    store, writer = open_store(disk / "site" / "h.sqlite", 1), open_writer(disk / "record.blst", "s")
    assert store is None and writer is None
    told = capfd.readouterr().err
    assert "Read-only file system" in told and told.count("the loop goes on") == 2
    bench = Bench(store=store, writer=writer)
    for _ in range(3):
        bench.second()
    assert len(bench.image.limits_written) == 3


def test_a_file_size_limit_is_survived(tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a child: the writer says why, the trail goes on in the reserve."""
    code = """
import resource, sys
from pathlib import Path
from controller.records import RecordWriter
from controller.store import Store
place = Path(sys.argv[1])
store = Store(place / "h.sqlite", 1)
writer = RecordWriter(place / "r", layout=1, settings="s", record_size=8, sync=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
for k in range(10):
    writer.add(bytes(8 * 8000), 8000 * k, 8000 * (k + 1)); writer.flush(None, 1.0)
assert writer.error == "File too large" and writer.lost, writer.error
for k in range(300):
    store.add_event(float(k), k, "mode", f"e{k} " + "z" * 700)
assert store.error, "SQLite's files have hit the limit"
assert {t.split()[0] for *_, t in store.events(5000)} == {f"e{k}" for k in range(300)}
print("good")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=os.getcwd())
    assert done.stdout == "good\n", done.stderr


def test_a_holder_of_the_reserve_that_was_stopped_makes_nobody_wait(tmp_path: Path) -> None:
    import fcntl
    import os
    import time

    from controller.reserve import Reserve

    store = Store(tmp_path / "y.sqlite", 1)
    store.close()
    path = tmp_path / "y.reserve"
    assert path.exists()
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    began = time.monotonic()
    try:
        with pytest.raises(OSError, match="held it"), Reserve(path)._locked():
            pass
    finally:
        os.close(fd)
    assert time.monotonic() - began < 10
