"""Our master against a libmodbus slave, and mbpoll (libmodbus again, as its users run it) against the virtual cabinet; RTU and TCP."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hal.codec import decode_words

from bench.perf.modbus_peers import EXPECTED, NoPeer, Slave, build
from bench.plant import config
from hal.dial import open_tcp
from hal.rows import Field
from hal.wire import BlockingLine, NoAnswer, close_port, open_port

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.realtime


# ---------------------------------------------------------------- our master, libmodbus's slave

@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build("modbus_slave", tmp_path_factory.mktemp("slave"))
    except NoPeer as e:
        pytest.skip(str(e))


@pytest.fixture(params=["rtu", "tcp"])
def line(request: pytest.FixtureRequest, program: Path) -> Iterator[BlockingLine]:
    tcp = request.param == "tcp"
    with Slave(program, tcp=tcp) as slave:
        fd = open_tcp(slave.port) if tcp else open_port(slave.port, 460800, "N")
        yield BlockingLine(fd, 460800, untimed=True, tcp=tcp)
        close_port(fd)


def values(words: list[int]) -> list[float]:
    return [decode_words(Field("grid_p_w", 0, "f32"), words[k : k + 2]) for k in range(0, len(words), 2)]


def test_fc03_and_fc04_read_what_the_slave_holds(line: BlockingLine) -> None:
    assert values(line.transact(1, 3, 0, 20)) == list(EXPECTED)
    assert values(line.transact(1, 4, 0, 20)) == [-x for x in EXPECTED]
    assert values(line.transact(1, 3, 62, 2)) == [100.25 + 3.5 * 31]  # to the last register


def test_fc06_and_fc16_write(line: BlockingLine) -> None:
    line.write(1, 7, [0xBEEF], fc=6)
    line.write(1, 8, [1, 0, 65535])
    assert line.transact(1, 3, 7, 4) == [0xBEEF, 1, 0, 65535]
    line.write(1, 0, list(range(64)))
    assert line.transact(1, 3, 0, 64) == list(range(64))


def test_fc23_writes_before_it_reads(line: BlockingLine) -> None:
    before = line.transact(1, 3, 10, 4)
    assert line.transact(1, 23, 10, 4, values=[0x1234, 0x5678], waddr=11) == [before[0], 0x1234, 0x5678, before[3]]
    assert line.transact(1, 3, 11, 2) == [0x1234, 0x5678]


@pytest.mark.parametrize(("fc", "addr", "count"), [(3, 60, 5), (4, 64, 1), (3, 65535, 1)])
def test_reads_beyond_the_end_are_exception_2(line: BlockingLine, fc: int, addr: int, count: int) -> None:
    with pytest.raises(NoAnswer, match="illegal data address") as e:
        line.transact(1, fc, addr, count)
    assert (e.value.result, e.value.exception) == ("exception", 2)
    assert values(line.transact(1, 3, 0, 2)) == [EXPECTED[0]]  # and the line goes on


@pytest.mark.parametrize(("fc", "addr", "words"), [(6, 64, [1]), (16, 63, [1, 2])])
def test_writes_beyond_the_end_are_exception_2(line: BlockingLine, fc: int, addr: int, words: list[int]) -> None:
    before = line.transact(1, 3, 63, 1)
    with pytest.raises(NoAnswer) as e:
        line.write(1, addr, words, fc=fc)
    assert e.value.exception == 2
    assert line.transact(1, 3, 63, 1) == before


@pytest.mark.parametrize("line", ["rtu"], indirect=True)  # over TCP a libmodbus server answers for any unit
def test_another_unit_stays_silent(line: BlockingLine) -> None:
    # A libmodbus slave takes what follows a request to somebody else for that one's answer, for 0.5 s.
    line.timeout_ns = 700_000_000
    with pytest.raises(NoAnswer, match="no answer") as e:
        line.transact(9, 3, 0, 2)
    assert e.value.result == "timeout"
    assert values(line.transact(1, 3, 0, 2)) == [EXPECTED[0]]


def test_a_thousand_in_a_row(line: BlockingLine) -> None:
    for k in range(1000):
        first = 2 * (k % 20)
        assert values(line.transact(1, 3, first, 20))[0] == 100.25 + 3.5 * (first // 2)
    stats = line.master.stats
    assert (stats["transactions"], stats["crc_errors"], stats["late"], stats["timeouts"]) == (1000, 0, 0, 0)


# ---------------------------------------------------------------- mbpoll, the virtual cabinet

@pytest.fixture(scope="module", params=["rtu", "tcp"])
def cabinet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Ports of a virtual cabinet with a load of 123 kW."""
    if shutil.which("mbpoll") is None:
        pytest.skip("mbpoll is not installed (apt-get install mbpoll)")
    file = tmp_path_factory.mktemp("cabinet") / "plant.json"
    ports = {"ports": {"a": {"tcp": True}, "b": {"tcp": True}}} if request.param == "tcp" else {}
    file.write_text(json.dumps(config.builtin() | {"load": {"trace": 123e3}} | ports))
    command = [sys.executable, "-m", "bench.plant", "--config", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as plant:
        try:
            assert plant.stdout is not None
            yield json.loads(plant.stdout.readline())["ports"]
        finally:
            plant.kill()


def mbpoll(port: str, unit: int, kind: str, addr: int, count: int, *write: str) -> tuple[dict[int, str], str]:
    """Values by address, and all of mbpoll's words."""
    tcp = port.startswith("tcp://")
    how = ["-m", "tcp", "-p", port.rpartition(":")[2]] if tcp else ["-m", "rtu", "-b", "460800", "-P", "even"]
    argv = ["mbpoll", *how, "-0", "-1", "-B", "-o", "1", "-a", str(unit), "-t", kind, "-r", str(addr)]
    argv += [*(["-c", str(count)] if not write else []), "127.0.0.1" if tcp else port, *write]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, env=os.environ | {"LC_ALL": "C"})
    said = done.stdout + done.stderr
    return {int(a): v for a, v in re.findall(r"^\[(\d+)\]:\s+(\S+)", said, re.M)}, said


def test_mbpoll_reads_the_meter(cabinet: dict[str, str]) -> None:
    got, said = mbpoll(cabinet["a"], 1, "3:float", 0, 6)
    assert {a: float(v) for a, v in got.items()} == {0: 123e3, 2: 0, 4: 230, 6: 230, 8: 230, 10: 50}, said


def test_mbpoll_is_refused_beyond_the_meter(cabinet: dict[str, str]) -> None:
    got, said = mbpoll(cabinet["a"], 1, "3", 12, 1)
    assert not got and "Illegal data address" in said


def test_mbpoll_reads_the_pcs(cabinet: dict[str, str]) -> None:
    got, said = mbpoll(cabinet["b"], 1, "4:hex", 40000, 4)
    assert got == {40000: "0x5375", 40001: "0x6E53", 40002: "0x0001", 40003: "0x0042"}, said  # SunS, model 1, 66 registers
    got, said = mbpoll(cabinet["b"], 1, "4", 40070, 2)
    assert got == {40070: "701", 40071: "153"}, said
    got, said = mbpoll(cabinet["b"], 1, "4", 40277, 1)
    assert got == {40277: "704"}, said


def test_mbpoll_writes_the_reversion_timer(cabinet: dict[str, str]) -> None:
    timer = 40277 + 31  # model 704, WSetRvrtTms: u32 at offsets 31-32
    _, said = mbpoll(cabinet["b"], 1, "4:int", timer, 1, "7")
    assert "Written" in said, said
    got, said = mbpoll(cabinet["b"], 1, "4:int", timer, 1)
    assert got == {timer: "7"}, said
