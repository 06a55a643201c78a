"""`ballast sniff` on a PTY that two machines talk over, and on slcan beside python-can."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hal.can import to_slcan

from controller.__main__ import main
from controller.tools import sniff
from hal.canrows import Frame
from hal.listen import Heard, Listener
from hal.profile import load_profile
from tests.bench.rtu import read_frame, with_crc, write_frame
from tests.hal.can_links import TwoAdapters
from tests.hal.test_listen import answer

pytestmark = pytest.mark.realtime


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def wire() -> Iterator[tuple[int, str]]:
    """(the end that talks, the path of the other)."""
    master, slave = os.openpty()
    tty.setraw(slave)
    yield master, os.ttyname(slave)
    os.close(master)
    os.close(slave)


def meanwhile(what: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        time.sleep(0.15)
        what()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def talk(fd: int) -> Callable[[], None]:
    """A master and two devices: a meter's values, a setpoint, a silent unit, a broken answer."""

    def say() -> None:
        broken = bytearray(answer(3, [1]))
        broken[3] ^= 0x10
        meter = read_frame(7, 19026, 2), answer(7, [0x459C, 0x4000])
        setpoint = write_frame(5, 200, [1, 0xFE0C]), with_crc(struct.pack(">BBHH", 5, 16, 200, 2))
        rest = read_frame(9, 0, 1), read_frame(3, 0, 1), bytes(broken), read_frame(3, 1, 1), with_crc(bytes([3, 0x83, 2]))
        for raw in (*meter, *setpoint, *rest):
            os.write(fd, raw)
            time.sleep(0.01)

    return say


def test_pairs_values_silence_and_noise(wire: tuple[int, str], capsys: pytest.CaptureFixture[str]) -> None:
    thread = meanwhile(talk(wire[0]))
    words = ["sniff", wire[1], "--baud", "115200", "--for", "0.6", "--profile", "7=janitza_umg604", "--profile", "5=generic_pcs", "--json"]
    assert main(words) == 0
    thread.join()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    summary = rows.pop()["summary"]
    kinds = [(r["kind"], r.get("unit")) for r in rows]
    assert kinds[:4] == [("request", 7), ("answer", 7), ("request", 5), ("answer", 5)]
    assert sorted(kinds[4:], key=str) == sorted(
        [("request", 9), ("no answer", 9), ("request", 3), ("noise", None), ("no answer", 3), ("request", 3), ("exception", 3)], key=str
    )
    (power,) = rows[1]["values"]
    assert (power["name"], power["value"], power["unit"], power["raw"]) == ("grid_p_w", 5000.0, "W", "45 9C 40 00")
    assert {v["name"]: v["value"] for v in rows[2]["values"]} == {"command.enable": 1.0, "command.p_cmd_w": 50000.0}
    assert rows[1]["address"] == 19026 and rows[1]["delay_ms"] > 0 and rows[2]["gap_ms"] > 0
    assert summary["crc_errors"] == 1 and sum(d["unanswered"] for d in summary["devices"]) == 2
    assert [d["exceptions"] for d in summary["devices"] if d["unit"] == 3] == [1]


def test_in_words(wire: tuple[int, str], capsys: pytest.CaptureFixture[str]) -> None:
    thread = meanwhile(talk(wire[0]))
    assert main(["sniff", wire[1], "--for", "0.6", "--profile", "janitza_umg604"]) == 0
    thread.join()
    out = capsys.readouterr().out
    assert "19200 Bd 8E1; t3.5 is 2.01 ms" in out
    assert "->  unit 7   FC03  19026+2" in out and "grid_p_w 5000 W" in out
    assert "exception 2 (illegal data address)" in out and "bytes without a right CRC" in out and "nobody has answered" in out
    assert "unit 9   FC03  1 requests, 1 unanswered" in out


def test_a_silence_under_three_and_a_half_characters_is_told() -> None:
    listener, heard = Listener(19200), list[Heard]()
    raw = read_frame(7, 0, 1)
    heard += listener.feed(raw, 10_000_000)
    heard += listener.feed(answer(7, [1]), 10_000_000 + 1_000_000 + 7 * listener.char_ns)
    line = sniff.text(heard[1], [], 0)
    assert "after 1.00 ms (under t3.5)" in line


def test_the_site_file_names_speed_and_profiles(wire: tuple[int, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        f'[site]\nf_nom_hz = 50.0\n[[bus]]\nname = "a"\nport = "{wire[1]}"\nparity = "N"\n[[bus]]\nname = "b"\nport = "/dev/ttyUSB7"\n'
        '[[device]]\nname = "meter"\nrole = "meter"\nbus = "a"\nunit = 7\nprofile = "ballast_virtual_meter"\n'
        '[[device]]\nname = "pcs"\nrole = "pcs"\nbus = "b"\nunit = 1\n[[device]]\nname = "bms"\nrole = "bms"\nbus = "a"\nunit = 10\n'
    )
    thread = meanwhile(lambda: [os.write(wire[0], x) for x in (read_frame(7, 10, 2, 4), answer(7, [0x4248, 0], 4))] and None)
    assert main(["sniff", "a", "--file", str(site), "--for", "0.4"]) == 0
    thread.join()
    out = capsys.readouterr().out
    assert "460800 Bd 8N1" in out and "f_hz 50 Hz" in out
    assert main(["sniff", "/dev/other", "--file", str(site)]) == 2
    assert "is no bus of this site; one of a (" in capsys.readouterr().err


def test_silence_and_noise_alone_say_what_to_look_at(wire: tuple[int, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sniff", wire[1], "--for", "0.1"]) == 0
    assert "nothing was said: check A and B" in capsys.readouterr().out
    thread = meanwhile(lambda: os.write(wire[0], bytes(range(60))) and None)
    assert main(["sniff", wire[1], "--for", "0.5"]) == 0
    thread.join()
    assert "another --baud or --parity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["/dev/none"], 2, "does not exist"),
        (["tcp://127.0.0.1:502"], 2, "tcpdump"),
        (["/dev/none", "--for", "-1"], 2, "--for"),
        (["/dev/none", "--profile", "999=janitza_umg604"], 2, "names no unit"),
        (["/dev/none", "--profile", "nonsense"], 2, "one of"),
        (["/dev/none", "--dbc", "x.dbc"], 2, "is for CAN"),
        (["slcan:/dev/none", "--bitrate", "123456"], 2, "no rate of slcan"),
        (["slcan:/dev/none", "--dbc", "/none.dbc"], 2, "--dbc"),
    ],
)
def test_bad_input(words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sniff", *words]) == code
    assert text in capsys.readouterr().err


def test_a_locked_port_is_left_alone(wire: tuple[int, str], capsys: pytest.CaptureFixture[str]) -> None:
    from hal.wire import close_port, open_port

    fd = open_port(wire[1], 19200)
    assert main(["sniff", wire[1], "--for", "0.1"]) == 4
    assert "is locked" in capsys.readouterr().err
    close_port(fd)


# ---------------------------------------------------------------- CAN


@pytest.fixture
def adapters() -> Iterator[TwoAdapters]:
    made = TwoAdapters()
    yield made
    made.close()


def python_can(path: str) -> Any:
    can = pytest.importorskip("can", reason="python-can is not installed")
    return can.Bus(interface="slcan", channel=path, bitrate=500_000, sleep_after_open=0.0)


def test_can_frames_by_profile_and_dbc_while_nothing_is_sent(adapters: TwoAdapters, capsys: pytest.CaptureFixture[str]) -> None:
    import can

    from hal.profile import PROFILE_DIR

    def talk() -> None:
        with contextlib.closing(Peer(adapters.paths[1])) as peer:
            for k in range(3):
                for number, data in ((0x351, "1402C012C012C201"), (0x359, "0200000006504E"), (0x181, "090AC3430005004D")):
                    peer.bus.send(can.Message(arbitration_id=number, data=bytes.fromhex(data), is_extended_id=False))
                time.sleep(0.02 * (k < 2))

    thread = meanwhile(talk)
    dbc = str(PROFILE_DIR / "generic_can_pcs.dbc")
    assert main(["sniff", "slcan:" + adapters.paths[0], "--for", "1.2", "--profile", "pylontech_lv", "--dbc", dbc, "--json"]) == 0
    thread.join()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ids = {r["id"]: r for r in rows.pop()["summary"]["ids"]}
    assert {number: row["count"] for number, row in ids.items()} == {0x351: 3, 0x359: 3, 0x181: 3}
    first = {r["id"]: {v["name"]: v["value"] for v in r["values"]} for r in reversed(rows)}
    assert first[0x351] == {"batt_i_charge_max_a": pytest.approx(480.0), "batt_i_discharge_max_a": pytest.approx(480.0)}
    assert first[0x359]["permit:batt_i_charge_max_a"] == "withheld" and first[0x359]["permit:batt_i_discharge_max_a"] == "given"
    assert first[0x181] == {"Voltage": pytest.approx(231.4), "Frequency": pytest.approx(49.987), "Alarms": 5, "Alive": 77}
    ours = [line for line in adapters.commands if line[:1] in (b"L", b"O", b"S")]
    assert b"L" in ours, "it listens without acknowledging"


class Peer:
    """python-can's slcan at the other adapter."""

    def __init__(self, path: str) -> None:
        self.bus = python_can(path)
        time.sleep(0.05)

    def close(self) -> None:
        self.bus.shutdown()


def test_a_can_device_is_probed_by_its_profile(adapters: TwoAdapters, capsys: pytest.CaptureFixture[str]) -> None:
    def talk() -> None:
        for data in (Frame(0x355, bytes.fromhex("58005E00")), Frame(0x356, bytes.fromhex("7A13F2FE6B01"))):
            os.write(adapters.masters[0], to_slcan(data))

    from controller.tools import probe

    probe.LISTEN_S, before = 0.5, probe.LISTEN_S
    try:
        thread = meanwhile(talk)
        assert main(["probe", "--port", "slcan:" + adapters.paths[0], "--unit", "1", "--profile", "pylontech_lv"]) == 0
        thread.join()
    finally:
        probe.LISTEN_S = before
    out = capsys.readouterr().out
    assert "soc" in out and "0.88" in out and "batt_i_a" in out and "27 A" in out and "was not sent" in out


def test_no_frame_says_that_nobody_may_acknowledge(adapters: TwoAdapters, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sniff", "slcan:" + adapters.paths[0], "--for", "0.1"]) == 0
    assert "--join would" in capsys.readouterr().out
    assert main(["sniff", "slcan:" + adapters.paths[0], "--for", "0.1", "--join"]) == 0
    assert b"O" in adapters.commands


def test_an_adapter_that_cannot_listen_silently_is_not_made_to_take_part(adapters: TwoAdapters, capsys: pytest.CaptureFixture[str]) -> None:
    adapters.refuses = (b"L",)
    assert main(["sniff", "slcan:" + adapters.paths[0], "--for", "0.1"]) == 2
    assert "--join" in capsys.readouterr().err and b"O" not in adapters.commands


def test_written_registers_decode_to_what_was_written() -> None:
    device = load_profile("generic_pcs")
    for w in device.writes:
        for e in w.encodes:
            f = sniff.as_field(e)
            assert (f.addr, f.type, f.scale, f.sign) == (e.addr, e.type, e.scale, e.sign)
