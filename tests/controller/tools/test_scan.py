"""`ballast scan` against the virtual cabinet on PTY, TCP and slcan at once, pymodbus's servers, and devices made for one question."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import tomllib
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.plant import config
from controller import build
from controller.__main__ import main
from controller.site import Bus
from controller.tools import draft, known, scan, scancan, sweep
from controller.tools.known import Found
from controller.tools.sniffcan import Ids
from controller.tools.sweep import Result
from hal.canrows import Frame
from hal.frames import frame_file, load_frames
from hal.wire import NoAnswer
from tests.bench.rtu import with_crc
from tests.controller.tools.test_probe import iem3255
from tests.hal import sunspec_image
from tests.hal.can_links import TwoAdapters
from tests.hal.test_tcp_peers import Server

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.realtime


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sweep, "LISTEN_S", 0.2)
    monkeypatch.setattr(scancan, "WHOLE_S", 1.3)


@pytest.fixture
def cabinet(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Meter on a PTY, PCS behind TCP, BMS on CAN."""
    raw = config.builtin() | {
        "ports": {"a": {}, "b": {"tcp": True}, "c": {"bitrate": 500_000}},
        "devices": [{"kind": k, "port": p, "unit": 1} for k, p in (("meter", "a"), ("pcs", "b"), ("bms", "c"))],
        "load": {"trace": 300e3},
        "params": {"battery.energy_wh": 100e3, "pcs.s_rated_va": 100e3},
    }
    (tmp_path / "plant.json").write_text(json.dumps(raw))
    command = [sys.executable, "-m", "bench.plant", "--config", str(tmp_path / "plant.json")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as plant:
        try:
            assert plant.stdout is not None
            yield json.loads(plant.stdout.readline())["ports"]
        finally:
            plant.kill()


def test_a_mixed_site_is_found_and_its_draft_is_a_site_with_a_plan(
    cabinet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep._Dial, "latency_ms", lambda self, unit: 1.0)  # what this machine makes of it is not the matter
    file, t = tmp_path / "draft.toml", time.monotonic()
    words = [cabinet["a"], cabinet["b"], "slcan:" + cabinet["c"], "--write", str(file), "--units", "1-12"]
    assert main(["scan", *words]) == 0
    assert time.monotonic() - t < 30
    out = capsys.readouterr().out
    assert "ballast_virtual_meter?" in out and "models 1, 701, 702, 704, 715" in out and "pylontech_lv?" in out
    site = build.load_site(file, [], lambda: [])
    assert {(d.name, d.role, d.bus, d.unit, d.profile) for d in site.devices} == {
        ("meter", "meter", "a", 1, "ballast_virtual_meter"), ("pcs", "pcs", "b", 1, "sunspec"), ("bms", "bms", "c", 1, "pylontech_lv"),
    }  # fmt: skip
    assert [b.port for b in site.buses] == [cabinet["a"], cabinet["b"], "slcan:" + cabinet["c"]]
    assert (site.num("pcs.s_rated_va"), site.num("site.f_nom_hz")) == (100e3, 50.0)
    assert main(["check", str(file)]) == 0
    assert main(["scan", *words]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_devices_behind_one_server(capsys: pytest.CaptureFixture[str]) -> None:
    images = {1: iem3255(), 3: sunspec_image.pcs()[0], 4: sunspec_image.meter()[0], 10: {0: 1, 99: 2}}
    with Server(images) as server:
        assert main(["scan", server.port.removeprefix("tcp://"), "--json", "--units", "1-10"]) == 0
    (bus,) = json.loads(capsys.readouterr().out)
    found = {d["unit"]: d for d in bus["devices"]}
    assert {u: (d["roles"], d["profile"]) for u, d in found.items()} == {
        1: (["meter"], "schneider_iem3255"), 3: (["pcs"], "sunspec"), 4: (["meter"], "sunspec"), 10: ([], ""),
    }  # fmt: skip
    assert 0 < bus["latency_ms"] < 300
    assert found[1]["sure"] and found[1]["f_hz"] == pytest.approx(50.0464)
    assert found[3]["ratings"]["s_rated_va"] == 250e3
    assert "none of the profiles fits" in found[10]["what"]


# ---------------------------------------------------------------- serial lines


class Device(threading.Thread):
    """Answers on a PTY as `answer` says, at one speed of the line alone (0: any), no sooner than a wire would let it."""

    def __init__(self, baud: int, answer: Callable[[bytes], bytes]) -> None:
        super().__init__(daemon=True)
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.path, self.baud, self.answer, self.asked = os.ttyname(self.slave), baud, answer, list[bytes]()
        self.stop_r, self.stop_w = os.pipe()
        self.start()

    def run(self) -> None:
        while True:
            ready = select.select([self.master, self.stop_r], [], [])[0]
            if self.stop_r in ready:
                return
            request = os.read(self.master, 256)
            speed = termios.tcgetattr(self.slave)[4]
            if not self.baud or speed == getattr(termios, f"B{self.baud}"):
                self.asked.append(request)
                if reply := self.answer(request):
                    time.sleep(0.03)
                    os.write(self.master, reply)

    def end(self) -> None:
        os.write(self.stop_w, b"x")
        self.join()
        for fd in (self.master, self.slave, self.stop_r, self.stop_w):
            os.close(fd)


def holding(unit: int, image: dict[int, int]) -> Callable[[bytes], bytes]:
    """A device with these holding registers, exception 2 elsewhere."""

    def answer(request: bytes) -> bytes:
        if request[0] != unit:
            return b""
        _, fc, addr, count = struct.unpack(">BBHH", request[:6])
        words = [image.get(addr + i, -1) for i in range(count)]
        if fc != 3 or min(words) < 0:
            return with_crc(bytes([unit, fc | 0x80, 2]))
        return with_crc(struct.pack(f">BBB{count}H", unit, fc, 2 * count, *words))

    return answer


@pytest.fixture
def device() -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(baud: int, answer: Callable[[bytes], bytes]) -> Device:
        made.append(Device(baud, answer))
        return made[-1]

    yield make
    for d in made:
        d.end()


def test_the_speed_of_a_line_is_found_by_asking(
    device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "is_pty", lambda fd: False)
    there = device(9600, holding(2, iem3255()))
    assert main(["scan", there.path, "--units", "1-3", "--json"]) == 0
    (bus,) = json.loads(capsys.readouterr().out)
    assert (bus["baud"], bus["parity"]) == (9600, "N")
    assert [(d["unit"], d["profile"]) for d in bus["devices"]] == [(2, "schneider_iem3255")]
    assert all(r[1] in (3, 4) for r in there.asked), "nothing but reads"


def test_open_rack_shelves_by_their_strings(device: Callable[..., Device], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = dict(enumerate(sunspec_image.text("PN-700-1234", 8) + sunspec_image.text("SHELF-3K", 8)))
    there = device(19200, holding(200, image))
    file = tmp_path / "rack.toml"
    assert main(["scan", there.path, "--baud", "19200", "--units", "200-201", "--write", str(file)]) == 0
    assert "Open Rack V3 psu: PN-700-1234, SHELF-3K" in capsys.readouterr().out
    (shelf,) = tomllib.loads(file.read_text())["shelf"]
    assert (shelf["port"], shelf["profile"], shelf["units"]) == (there.path, "orv3_psu", [200])
    assert "[[bus]]" not in file.read_text(), "a shelf has a port of its own"


def test_a_line_on_which_another_master_asks_is_left_alone(device: Callable[..., Device], capsys: pytest.CaptureFixture[str]) -> None:
    there = device(0, lambda request: b"")
    stop = threading.Event()

    def talk() -> None:
        while not stop.wait(0.02):
            os.write(there.master, b"\x01\x03\x00\x00\x00\x02\xc4\x0b")

    other = threading.Thread(target=talk)
    other.start()
    assert main(["scan", there.path]) == 1
    stop.set()
    other.join()
    assert "another master talks here" in capsys.readouterr().out and there.asked == []


def test_a_silent_line_ends_in_time_and_says_what_was_tried(device: Callable[..., Device], capsys: pytest.CaptureFixture[str]) -> None:
    there, t = device(0, lambda request: b""), time.monotonic()
    assert main(["scan", there.path, "--for", "4"]) == 1
    assert time.monotonic() - t < 5
    assert "nobody answers at 19200 8E1, 9600 8N1, 115200 8N1" in capsys.readouterr().out
    asked = [r[0] for r in there.asked[:3]]
    assert asked == [1, 1, 2], "the likeliest first, both functions at the first"


def test_ctrl_c_ends_every_bus_after_the_question_under_way(device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch) -> None:
    there, t = device(0, lambda request: b""), time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests in the background has it ignored
    threading.Timer(0.8, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        assert main(["scan", there.path]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - t < 3 and there.asked


def test_a_device_that_falls_silent_costs_no_more_than_the_budget(
    device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([with_crc(b"\x01\x83\x02")])
    there, t = device(0, lambda request: next(answers, b"")), time.monotonic()
    assert main(["scan", there.path, "--for", "3", "--units", "1-2"]) == 0
    assert time.monotonic() - t < 4
    assert "none of the profiles fits" in capsys.readouterr().out


def test_every_setting_is_a_rate_that_wire_can_set() -> None:
    from hal.wire import BAUDS

    assert len(set(sweep.SETTINGS)) == len(sweep.SETTINGS) and {b for b, _ in sweep.SETTINGS} <= set(BAUDS)


# ---------------------------------------------------------------- CAN


def heard(*profiles: str) -> dict[tuple[int, bool], Ids]:
    """What a bus shows on which these profiles' recorded frames come."""
    out: dict[tuple[int, bool], Ids] = {}
    for name in profiles:
        for row in load_frames(frame_file(name)):
            if row.name not in ("command", "cyclic"):
                ids = out.setdefault((row.at, False), Ids(count=2, frame=Frame(row.at, row.data)))
                ids.payloads.append(row.data)
    return out


@pytest.mark.parametrize("name", ["pylontech_lv", "victron_lv", "sma_lv", "foxbms_2", "generic_can_pcs"])
def test_each_family_is_told_from_the_others_by_its_frames(name: str) -> None:
    (found,) = scancan.match(heard(name))
    assert (found.profile, found.sure) == (name, False)


def test_two_devices_on_one_bus_and_a_stranger() -> None:
    assert {f.profile for f in scancan.match(heard("pylontech_lv", "generic_can_pcs"))} == {"pylontech_lv", "generic_can_pcs"}
    frames = heard("pylontech_lv")
    del frames[0x35C, False]
    assert scancan.match(frames) == [], "a frame that the profile needs does not come"
    frames = heard("generic_can_pcs")
    frames[0x180, False].payloads.append(bytes(8))
    assert scancan.match(frames) == [], "a checksum that does not hold"


def test_a_bus_is_joined_only_where_nothing_was_heard_silently(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scancan, "FIRST_S", 0.05)
    adapters = TwoAdapters()
    try:
        assert main(["scan", "slcan:" + adapters.paths[0]]) == 1
        assert "no frame came at 500k, 250k, 125k, 1000k, 100k" in capsys.readouterr().out
        opened = [line for line in adapters.commands if line[:1] in (b"S", b"L", b"O")]
        assert opened == [b"S6", b"L", b"S5", b"L", b"S4", b"L", b"S8", b"L", b"S3", b"L", b"S6", b"O", b"S5", b"O"]
        adapters.commands.clear()
        adapters.refuses = (b"L",)
        assert main(["scan", "slcan:" + adapters.paths[0]]) == 1
        assert [line for line in adapters.commands if line[:1] == b"O"] == [b"O", b"O"]
    finally:
        adapters.close()


# ---------------------------------------------------------------- the draft


def no_device(unit: int, fc: int, addr: int, count: int) -> list[int]:
    raise NoAnswer("exception 2", "exception", 2)


def test_a_hybrid_a_second_meter_and_what_was_not_found_stand_in_the_draft(tmp_path: Path) -> None:
    a = Result(Bus("a", "/dev/ttyUSB0", 9600, "N", 1), [Found(5, "hybrid", ("pcs", "bms"), "sunspec"), known.identify(no_device, 9)])
    b = Result(Bus("b", "tcp://192.0.2.7:502", 0, "E", 1), [Found(1, "one", ("meter",), "sunspec"), Found(2, "two", ("meter",), "sunspec")])
    text = draft.text([a, b], "x.toml")
    assert "# it could be the bms too" in text and "# a second meter" in text and "# NOT FOUND: a device of role bms" in text
    assert "a, unit 9: answers; no SunSpec models" in text and "f_nom_hz = 50.0                 # NOT KNOWN" in text
    (tmp_path / "x.toml").write_text(text)
    assert [(d.role, d.unit) for d in build.load_site(tmp_path / "x.toml", [], lambda: []).devices] == [("pcs", 5), ("meter", 1)]


def test_shelves_are_bound_where_they_have_their_port_to_themselves(tmp_path: Path) -> None:
    shelf = [Found(u, "Open Rack V3 psu", profile="orv3_psu", shelf=True) for u in (200, 201)]
    tick = [Found(5, "p", ("pcs",), "sunspec"), Found(1, "m", ("meter",), "sunspec"), Found(2, "b", ("bms",), "sunspec")]
    alone, beside = Result(Bus("b", "/dev/ttyUSB1", 19200, "E", 1), shelf), Result(Bus("a", "/dev/ttyUSB0", 460800, "E", 1), tick)
    (tmp_path / "x.toml").write_text(draft.text([beside, alone], "x.toml"))
    site = build.load_site(tmp_path / "x.toml", [], lambda: [])
    assert [(s.name, s.profile, s.units, s.port) for s in site.shelves] == [("b-psu", "orv3_psu", (200, 201), "/dev/ttyUSB1")]
    assert [b.name for b in site.buses] == ["a"]
    beside.found += shelf
    text = draft.text([beside], "x.toml")
    assert "# [[shelf]]" in text and "move it to a port of its own" in text


def test_what_no_device_tells_is_marked_in_every_draft() -> None:
    text = draft.text([Result(Bus("a", "/dev/ttyUSB0", 9600, "N", 1))], "x.toml")
    for key in ("import_limit_w", "feeder_w", "energy_wh", "s_rated_va", "f_nom_hz", "dead_time_s"):
        (line,) = [line for line in text.splitlines() if line.startswith(key)]
        assert draft.UNKNOWN in line


# ---------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "PORT: is missing"),
        (["/dev/none"], 2, "does not exist"),
        (["/dev/none", "--for", "1"], 2, "--for"),
        (["/dev/none", "--units", "0-5"], 2, "--units"),
        (["/dev/none", "--units", "9-5"], 2, "--units"),
        (["/dev/none", "--units", "x"], 2, "--units"),
        (["/dev/none", "--baud", "7"], 2, "--baud"),
        (["tcp://a/b"], 2, "more than host and port"),
        (["127.0.0.1:1", "--for", "3"], 2, "refuses the connection"),
        (["slcan:/dev/none", "--for", "3"], 2, "does not exist"),
    ],
)
def test_bad_input(words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", *words]) == code
    assert text in capsys.readouterr().err


def test_the_port_of_a_running_site_is_left_alone(
    device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = device(0, holding(1, iem3255()))

    def refuse(port: str) -> Any:
        raise scan.ports.Busy(f"{port}: is bus a of site hall, which is running")

    monkeypatch.setattr(scan.ports, "refuse_owned", refuse)
    assert main(["scan", there.path]) == 4
    assert "which is running" in capsys.readouterr().err and there.asked == []
