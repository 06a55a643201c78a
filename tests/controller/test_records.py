"""The record file: round trip, resume after a kill, and damage that costs itself alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.records import Damage, RecordError, RecordWriter, Segment, file_sha256, read

SIZE = 8


def writer(path: Path | None) -> RecordWriter:
    return RecordWriter(path, layout=7, settings="abc", record_size=SIZE)


def fill(path: Path, segments: int = 3) -> RecordWriter:
    """Segments of 10 records each, every record its position."""
    w = writer(path)
    for k in range(segments):
        records = b"".join(i.to_bytes(SIZE, "little") for i in range(10 * k, 10 * k + 10))
        w.add(records[: 4 * SIZE], 10 * k, 10 * k + 4)
        w.add(records[4 * SIZE :], 10 * k + 4, 10 * k + 10)
        w.flush(f"state{k}".encode(), 1000.0 + k)
    w.close()
    return w


def test_round_trip(tmp_path: Path) -> None:
    w = fill(tmp_path / "r")
    got = list(read(tmp_path / "r", layout=7))
    assert [s.first for s in got if isinstance(s, Segment)] == [0, 10, 20]
    assert [s.state for s in got if isinstance(s, Segment)] == [None, b"state0", b"state1"]
    assert b"".join(s.records for s in got if isinstance(s, Segment)) == b"".join(i.to_bytes(SIZE, "little") for i in range(30))
    assert w.sha256() == file_sha256(tmp_path / "r")


def test_the_hash_is_the_same_without_a_file(tmp_path: Path) -> None:
    w = writer(None)
    w.add(b"x" * SIZE, 0, 1)
    w.flush(None, 0.0)
    v = writer(tmp_path / "r")
    v.add(b"x" * SIZE, 0, 1)
    v.flush(None, 0.0)
    assert w.sha256() == v.sha256()


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    w = writer(tmp_path / "r")
    w.add(b"", 0, 0)
    w.flush(None, 0.0)
    assert (tmp_path / "r").stat().st_size == 0


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_resume_after_a_torn_tail(tmp_path: Path, cut: int) -> None:
    fill(tmp_path / "r")
    data = (tmp_path / "r").read_bytes()
    (tmp_path / "r").write_bytes(data[:-cut])
    w = writer(tmp_path / "r")
    assert w.next == 20 and w.segments == 2
    w.add(b"y" * SIZE, 20, 21)
    w.flush(None, 0.0)
    assert w.sha256() == file_sha256(tmp_path / "r")
    assert [type(s) for s in read(tmp_path / "r")] == [Segment] * 3


def test_resume_of_a_whole_file(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    w = writer(tmp_path / "r")
    assert w.next == 30 and w.segments == 3


def test_a_damaged_segment_costs_itself_alone(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    data = bytearray((tmp_path / "r").read_bytes())
    data[len(data) // 2] ^= 0x40
    (tmp_path / "r").write_bytes(data)
    got = list(read(tmp_path / "r"))
    assert [type(s) for s in got] == [Segment, Damage, Segment]
    assert isinstance(got[1], Damage) and "CRC" in got[1].why
    assert isinstance(got[2], Segment) and got[2].first == 20


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        list(read(tmp_path / "absent"))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(RecordError, match="is no record"):
        list(read(tmp_path / "text"))
    fill(tmp_path / "r")
    with pytest.raises(RecordError, match="another build"):
        list(read(tmp_path / "r", layout=8))
