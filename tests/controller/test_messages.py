"""What the processes of a site say, kept for the console: whole lines, bounded, and never a reason to stop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import process
from controller.clock import ManualClock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    process.keep_messages(tmp_path, ManualClock())
    yield tmp_path / process.MESSAGES_NAME
    process._messages = None


def test_lines_carry_utc_and_who(kept: Path) -> None:
    process.say("control", "one\ntwo")
    assert kept.read_text() == (
        "2023-11-14 22:13:20.000 UTC control: one\n2023-11-14 22:13:20.000 UTC control: two\n"
    ), "each line of a message for itself"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process.say("ballast", "hello")
    assert not list(tmp_path.iterdir())


def test_the_file_is_turned_over_once_and_stays_bounded(kept: Path) -> None:
    line = "x" * 1000
    for _ in range(800):
        process.say("ballast", line)
    old = kept.with_suffix(".1")
    assert kept.stat().st_size <= process.MESSAGES_BYTES and old.stat().st_size <= process.MESSAGES_BYTES
    assert old.stat().st_size > process.MESSAGES_BYTES - 1100, "it was full before it was put aside"
    assert sorted(p.name for p in kept.parent.iterdir()) == ["messages", "messages.1"]


def test_one_message_is_bounded_and_ends_with_a_line(kept: Path) -> None:
    process.say("ballast", "\n".join("y" * 100 for _ in range(10_000)))
    text = kept.read_bytes()
    assert len(text) <= process.SAID_BYTES and text.endswith(b"y\n")
    process.say("ballast", "z" * 100_000)
    assert kept.read_bytes().endswith(b"z\n") and len(kept.read_bytes()) <= 2 * process.SAID_BYTES


def test_lines_of_several_processes_stay_whole_while_the_file_is_turned_over(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from controller import process; from controller.clock import RealClock\n"
        "process.keep_messages(Path(sys.argv[1]), RealClock())\n"
        "for i in range(900): process.say(sys.argv[2], f'{i:06d} ' + sys.argv[2] * 150)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen([*argv, who], cwd=ROOT, stderr=subprocess.DEVNULL) for who in "abcd"]
    assert [child.wait(60) for child in children] == [0] * 4
    files = [tmp_path / "messages", tmp_path / "messages.1"]
    lines = [line for path in files for line in path.read_text().splitlines()]
    for line in lines:
        who, _, rest = line.partition(" UTC ")[2].partition(": ")
        assert rest[7:] == who * 150 and rest[:6].isdigit(), line
    assert all(path.stat().st_size <= 2 * process.MESSAGES_BYTES for path in files), "writers beside a rename may add a little"
    size = sum(path.stat().st_size for path in files)
    assert size > process.MESSAGES_BYTES, "720 kB were said: the file was turned over twice, and one generation is kept"


@pytest.mark.parametrize("how", ["directory", "link", "gone"])
def test_a_file_that_cannot_be_written_stops_nobody(kept: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    if how == "directory":
        kept.mkdir()
    elif how == "link":
        kept.symlink_to("/dev/full")
    else:
        os.rmdir(kept.parent)
    process.say("ballast", "on")
    assert capsys.readouterr().err == "ballast: on\n"


def test_a_full_disk_stops_nobody(kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    process.say("ballast", "on")
    monkeypatch.undo()
    assert capsys.readouterr().err == "ballast: on\n" and kept.read_bytes() == b""


def test_a_file_that_cannot_be_turned_over_does_not_grow_for_ever(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> Path:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refused)
    for _ in range(700):
        process.say("ballast", "x" * 1000)
    assert kept.stat().st_size <= 2 * process.MESSAGES_BYTES + 1100
