"""`ballast probe` against pymodbus's servers: what it reads, what it writes and for whom, and what it leaves alone."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller import instance
from controller.__main__ import main
from controller.build import load_site
from controller.console.accounts import Accounts
from controller.instance import Instance
from controller.process import MAPS_NAME
from controller.tools import probe
from hal.profile import load_profile
from tests.controller.fakes import FakeImage
from tests.hal import sunspec_image
from tests.hal.test_tcp_peers import Server

pytestmark = pytest.mark.realtime
PASSWORD = "a few words here"


def iem3255() -> dict[int, int]:
    """Registers of the frame file: "iEM3255 ", 236.47 V, 540 W, 434 var, 50.05 Hz."""
    image = dict(enumerate([0x6945, 0x4D33, 0x3235, 0x3520], 49))
    for at, words in (
        (3027, (0x436C, 0x7998)),
        (3029, (0xFFC0, 0)),
        (3059, (0x3F0A, 0x4C64)),
        (3067, (0xBEDE, 0x55E6)),
        (3109, (0x4248, 0x2F86)),
    ):
        image |= dict(enumerate(words, at))
    return image


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("pymodbus", reason="pymodbus is not installed")
    pcs = dict(enumerate([0x4250, 0x4353])) | dict.fromkeys(range(100, 112), 0) | {102: 3, 106: 5000} | dict.fromkeys(range(200, 221), 0)
    with Server({1: iem3255(), 3: sunspec_image.pcs()[0], 5: pcs}) as running:
        yield running


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("BALLAST_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "run").mkdir()


@pytest.fixture
def site(tmp_path: Path, server: Server) -> Path:
    path = tmp_path / "hall.toml"
    path.write_text(
        f'[site]\nname = "hall"\nf_nom_hz = 50.0\n[[bus]]\nname = "m"\nport = "{server.port}"\nlatency_ms = 0.5\n'
        '[[bus]]\nname = "b"\nport = "/dev/ttyUSB7"\n'
        '[[device]]\nname = "meter"\nrole = "meter"\nbus = "b"\nunit = 1\nprofile = "ballast_virtual_meter"\n'
        '[[device]]\nname = "pcs"\nrole = "pcs"\nbus = "m"\nunit = 5\nprofile = "generic_pcs"\n'
        '[[device]]\nname = "bms"\nrole = "bms"\nbus = "b"\nunit = 10\n'
    )
    return path


class Person:
    """Who types name and password."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "anna", password: str = PASSWORD) -> None:
        self.name, self.password, self.asked = name, password, 0
        monkeypatch.setattr("builtins.input", self._name)
        monkeypatch.setattr("getpass.getpass", lambda prompt: self.password)
        book = Accounts(instance.state_directory("hall"))
        book.add("anna", "engineer", PASSWORD, first=True)
        book.add("otto", "operator", PASSWORD)

    def _name(self, prompt: str) -> str:
        self.asked += 1
        return self.name


def trail(tmp_path: Path) -> list[tuple[str, str]]:
    path = tmp_path / "state" / "hall" / "history.sqlite"
    if not path.exists():
        return []
    with sqlite3.connect(path) as db:
        return list(db.execute("SELECT who, text FROM audit WHERE command = 'probe' ORDER BY id"))


def host(server: Server) -> list[str]:
    return ["--host", server.port.removeprefix("tcp://")]


# ---------------------------------------------------------------- reading


def test_a_profile_without_a_site(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *host(server), "--unit", "1", "--profile", "schneider_iem3255", "--json"]) == 0
    rows = {v["name"]: v for v in json.loads(capsys.readouterr().out)["values"]}
    assert rows["grid_p_w"]["value"] == pytest.approx(540.228) and rows["grid_p_w"]["raw"] == "3F 0A 4C 64"
    assert rows["grid_p_w"]["unit"] == "W" and rows["grid_p_w"]["place"] == "3@3059"
    assert rows["model"]["value"] == "iEM3255" and rows["model"]["note"] == "as the profile says"
    assert rows["v2_v"]["value"] is None and rows["f_hz"]["value"] == pytest.approx(50.0464)


def test_what_it_prints_as_raw_is_what_a_frame_file_takes(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["probe", *host(server), "--unit", "1", "--profile", "schneider_iem3255", "q_var", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["values"]
    (tmp_path / "x.tsv").write_text(
        f"place\tdata\tname\tvalue\tworking\tsource\n{row['place']}\t{row['raw']}\tq_var\t434.2491\tw\tsource\n"
    )
    main(["profile", "test", "schneider_iem3255", str(tmp_path / "x.tsv")])
    assert "ok     3@3067  " in capsys.readouterr().out


def test_sunspec_points_by_name_with_unit(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *host(server), "--unit", "3"]) == 0
    out = capsys.readouterr().out
    assert "Acme, Cabinet, SN-42" in out.splitlines()[0]
    assert main(["probe", *host(server), "--unit", "3", "701.W"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "701.W " in x)
    assert line.split() == ["3@40080", "701.W", "FB", "2E", "-12340", "W"]
    assert main(["probe", *host(server), "--unit", "3", "701.Nonsense"]) == 2
    assert "701.Nonsense" in capsys.readouterr().err


def test_words_may_stand_behind_options(server: Server, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "pcs", "--file", str(site), "pcs_state"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1] == "pcs_state"
    for words in (["probe", "pcs", "--file", str(site), "a", "b"], ["probe", "pcs", "--file", str(site), "--nonsense"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2


def test_bare_registers_in_the_types_that_maps_use(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *host(server), "--unit", "1", "3059", "--count", "2"]) == 0
    assert "0.540228128" in capsys.readouterr().out
    assert main(["probe", *host(server), "--unit", "1", "3@49", "--count", "4"]) == 0
    assert "iEM3255" in capsys.readouterr().out
    assert main(["probe", *host(server), "--unit", "1", "3109", "--type", "f32"]) == 0
    assert "50.0464" in capsys.readouterr().out


def test_a_device_of_a_site_file(server: Server, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "pcs", "pcs_state", "--file", str(site)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["3@102", "pcs_state", "00", "03", "3"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["probe"], 2, "DEVICE: is missing"),
        (["probe", "meter"], 3, "not running"),
        (["probe", "--port", "/dev/none", "--unit", "1"], 2, "does not exist"),
        (["probe", "--port", "/dev/none"], 2, "--unit"),
        (["probe", "--port", "/dev/none", "--unit", "0"], 2, "outside 1 to 247"),
        (["probe", "--port", "/dev/none", "--unit", "1", "--baud", "5"], 2, "--baud"),
        (["probe", "a", "b", "--port", "/dev/none", "--unit", "1"], 2, "stands beside --port"),
        (["probe", "--port", "/dev/none", "--host", "x", "--unit", "1"], 2, "keep one"),
    ],
)
def test_bad_input(words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    assert text in capsys.readouterr().err


def test_a_silent_unit_and_an_unknown_name(server: Server, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *host(server), "--unit", "77", "10"]) == 1
    assert main(["probe", "pcz", "--file", str(site)]) == 2
    assert "did you mean pcs" in capsys.readouterr().err


# ---------------------------------------------------------------- writing


def test_an_engineer_writes_and_it_is_written_down(
    server: Server, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Person(monkeypatch)
    assert main(["probe", "pcs", "3@211", "--write", "7", "--file", str(site)]) == 0
    assert "reads 7 (00 07)" in capsys.readouterr().out
    assert main(["probe", "pcs", "211", "--file", str(site)]) == 0
    assert "00 07" in capsys.readouterr().out
    rows = trail(tmp_path)
    assert len(rows) == 2 and all(who.startswith("anna (") for who, _ in rows)
    assert "3@211 register: 0 (00 00) -> 7 (00 07)" in rows[0][1] and "reads 7" in rows[1][1]
    assert main(["probe", *host(server), "--unit", "3", "704.WSetRvrtTms", "--write", "30", "--site", "hall"]) == 0
    assert "30 Secs (00 00 00 1E)" in capsys.readouterr().out
    assert main(["probe", "pcs", "pcs_state", "--write", "6", "--file", str(site)]) == 0, "by the profile's map: 6 is 9 there"
    assert "6 (00 09)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "password", "text"),
    [("anna", "wrong password", "does not know"), ("otto", PASSWORD, "knows otto as operator"), ("nobody", PASSWORD, "does not know")],
)
def test_nobody_else_writes(
    server: Server,
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    password: str,
    text: str,
) -> None:
    Person(monkeypatch, name, password)
    assert main(["probe", "pcs", "3@210", "--write", "7", "--file", str(site)]) == 2
    assert text in capsys.readouterr().err
    assert main(["probe", "pcs", "3@210", "--file", str(site)]) == 0
    assert "00 00" in capsys.readouterr().out and trail(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--write", "7"], "REGISTER: is missing"),
        (["211", "--write", "x"], "is no number"),
        (["211", "--write", "70000"], "does not fit"),
        (["211", "--write", "-1"], "does not fit"),
        (["211", "--write", "1.6"], "does not fit"),
        (["211", "--write", "nan"], "does not fit"),
        (["4@211", "--write", "1"], "input register"),
        (["pcs_local", "--write", "1"], "some bits"),
        (["pcs_state", "--write", "5"], "does not fit"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anybody_is_asked(
    server: Server,
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    text: str,
) -> None:
    person = Person(monkeypatch)
    assert main(["probe", "pcs", *words, "--file", str(site)]) == 2
    assert text in capsys.readouterr().err and person.asked == 0 and trail(tmp_path) == []


def test_a_write_needs_a_site_with_accounts(server: Server, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *host(server), "--unit", "5", "211", "--write", "7"]) == 2
    assert "needs a site" in capsys.readouterr().err
    assert main(["probe", "pcs", "211", "--write", "7", "--file", str(site)]) == 2
    assert "has no accounts yet" in capsys.readouterr().err


def test_a_write_that_cannot_be_written_down_is_not_made(
    server: Server, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Person(monkeypatch)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("controller.tools.write.Store", full)
    assert main(["probe", "pcs", "3@212", "--write", "7", "--file", str(site)]) == 2
    assert "takes no row of the audit trail" in capsys.readouterr().err
    assert main(["probe", "pcs", "3@212", "--file", str(site)]) == 0
    assert "00 00" in capsys.readouterr().out


# ---------------------------------------------------------------- beside a running site


@pytest.fixture
def running(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """An instance of the site that holds its lock, with the image of a control that ticks."""
    directory = tmp_path / "run" / "ballast-hall"
    directory.mkdir(mode=0o700)
    loaded = load_site(site)
    (directory / "site.json").write_text(json.dumps(loaded.to_dict()))
    (directory / MAPS_NAME).write_bytes(pickle.dumps(("", [load_profile("ballast_virtual_meter"), load_profile("generic_pcs")])))
    fd = instance.lock(directory, "hall")
    found = Instance("hall", 1, 1, 0, str(directory), str(tmp_path / "state" / "hall" / "history.sqlite"))
    found.write()
    image: Any = FakeImage()
    image.tick(1)
    monkeypatch.setattr("controller.instance.open_image", lambda *_, **__: image)
    yield found
    os.close(fd)


def test_its_port_is_not_touched(
    running: Instance, server: Server, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    person = Person(monkeypatch)
    monkeypatch.setattr("controller.build.open_port", lambda *_: pytest.fail("opened"))
    there, here = ["probe", *host(server), "--unit", "5", "211"], ["probe", "pcs", "3@211", "--write", "7"]
    for words in (there, [*there, "--write", "7", "--site", "hall"], [*here, "--file", str(site)], here):
        assert main(words) == 4
        err = capsys.readouterr().err
        assert "site hall, which is running" in err and "stop the site first" in err and "0 timeouts" in err
    assert person.asked == 0


def test_its_devices_are_shown_as_control_saw_them(
    running: Instance, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe.RealClock, "monotonic_ns", lambda self: 30_000_000)
    assert main(["probe", "meter"]) == 0
    out = capsys.readouterr().out
    assert "as control saw it 20 ms ago" in out and "grid_p_w" in out and "stop the site" in out
    assert main(["probe", "meter", "nothing"]) == 2
    assert main(["probe", "meter", "3@0"]) == 4
    assert "beside the control of site hall" in capsys.readouterr().err


def test_a_register_that_a_running_site_commands_is_refused_at_any_port(
    running: Instance, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    person = Person(monkeypatch)
    with Server({5: dict.fromkeys(range(300), 0)}) as other:
        words = ["probe", *host(other), "--unit", "5", "--site", "hall"]
        for register, purpose in (("201", "command"), ("200", "command"), ("210", "heartbeat"), ("211", "reversion")):
            assert main([*words, register, "--write", "1"]) == 4
            assert f"writes its {purpose}" in capsys.readouterr().err
        assert person.asked == 0
        assert main([*words, "205", "--write", "1"]) == 0, "another register of another device"
