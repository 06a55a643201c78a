"""`ballast test` against `ballast run` in real time: a scripted person who does at the cabinet what is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from _core import image as core
from controller import build
from controller.clock import RealClock
from controller.commission import guide, steps_power
from controller.commission.results import PASS, Results
from controller.commission.rig import Rig
from controller.commission.talk import Terminal
from controller.control import remembered
from tests.loop.live import Cabinet, Live, links

pytestmark = pytest.mark.realtime

HANDS = {
    "pull the bus cable": {"pcs__dead": 1.0}, "plug the cable in again": {"pcs__dead": 0.0},
    "open the battery contactors": {"bms__contactor_open": 1.0}, "close the contactors again": {"bms__contactor_open": 0.0},
    "put the PCS into fault": {"pcs__fault": 1.0}, "clear the PCS's fault": {"pcs__fault": 0.0},
    "press the E-stop": {"bms__contactor_open": 1.0, "pcs__fault": 1.0},
    "release the E-stop": {"bms__contactor_open": 0.0, "pcs__fault": 0.0},
}  # fmt: skip


AGAIN = 3


def missed_ticks(done: Results) -> bool:
    """Whether following failed for the machine's sake."""
    row = done.steps["following"]
    return row["verdict"] != PASS and "ticks were missed" in row["reason"]


class Person(Terminal):
    """Says yes, and does what "Now: ..." and "Now ..., then press Enter" ask for."""

    def __init__(self, cabinet: Cabinet) -> None:
        self.cabinet, self.said = cabinet, list[str]()

    def _do(self, text: str) -> None:
        for words, params in HANDS.items():
            if words in text:
                self.cabinet.set(**params)

    def say(self, text: str = "") -> None:
        self.said.append(text)
        if text.strip().startswith("Now: "):
            self._do(text)

    def ask(self, question: str, *, choices: Sequence[str] = (), default: str = "") -> str:
        self.said.append(question)
        if question.startswith("Now "):
            self._do(question)
        if "Is somebody at the cabinet" in question:
            return "yes"
        return "P. Erson" if "Your name" in question else default


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Cabinet, Live]]:
    """A cabinet with a fast ramp, so that a walk takes two minutes instead of seven."""
    cabinet = Cabinet(tmp_path, 300e3, meter__noise_w=100.0)
    live = Live(tmp_path, links(tmp_path, cabinet.ports), "--set", "grid.ramp_up_w_per_s=50000", "--set", "grid.ramp_down_w_per_s=50000",
                "--set", "pcs.reversion_s=3")  # fmt: skip
    try:
        live.open()
        live.grid()
        yield cabinet, live
    finally:
        live.end()
        cabinet.end()


@pytest.mark.soak  # two and a half minutes; its steps run in virtual time in test_guide.py
@pytest.mark.timeout(400)
def test_all_steps_with_a_person_at_the_cabinet(
    running: tuple[Cabinet, Live], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cabinet, live = running
    monkeypatch.setattr(steps_power, "FOLLOW_S", 10.0)
    monkeypatch.setattr(steps_power, "WATCH_S", 3.0)
    directory = Path(live.here.directory)
    site = build.site_from(directory / "site.json")
    talk = Person(cabinet)
    maps = remembered(directory, site)
    assert maps is not None and maps[2].info["serial"] == "PCS-0001"
    here = live.here
    here.virtual = True  # what the ports are held against; nobody but the person acts on the cabinet
    rig = Rig(here, live.image, site, maps, RealClock(), talk, author="person")
    done = Results(tmp_path / "commissioning.json")
    walked = guide.run(rig, done, talk)
    for _ in range(AGAIN):  # a busy machine misses ticks: that is what the step is for, and a person would repeat it
        if walked or not missed_ticks(done):
            break
        walked = guide.run(rig, done, talk)
    judged = walked or not missed_ticks(done)
    due = [name for name in guide.NAMES if judged or name != "following"]
    assert {name: done.steps[name]["verdict"] for name in due} == dict.fromkeys(due, PASS), "\n".join(talk.said)
    assert walked == judged
    numbers = {name: row["numbers"] for name, row in done.steps.items()}
    assert numbers["polarity"]["grid_per_battery"] == pytest.approx(-1.0, abs=0.05)
    assert numbers["delay"]["dead_s"] + numbers["delay"]["tau_s"] == pytest.approx(0.00475, abs=0.001)
    assert numbers["reversion"]["dc_s"] < 3.0 + 1.5
    assert live.image.setpoint(core.SLOT_OPERATOR)["kind"] == core.SP_NONE
    assert "P. Erson" in max(tmp_path.glob("commissioning-*.html")).read_text()
    if not judged:
        pytest.skip(f"following is not judged: this machine missed ticks in each of {1 + AGAIN} tries; every other step passed")


def test_the_command_lists_refuses_and_stops_with_the_battery_released(running: tuple[Cabinet, Live], tmp_path: Path) -> None:
    import signal
    import subprocess

    from tests.loop.live import BALLAST, until

    _, live = running
    listed = live.ballast("test", "--list")
    assert listed.returncode == 0 and [line.split()[1] for line in listed.stdout.splitlines()] == [*guide.NAMES, guide.SIGN_OFF]
    assert live.ballast("test", "polarty").returncode == 2
    report = live.ballast("test", "--report")
    assert report.returncode == 0 and "NOT DONE" in Path(report.stdout.strip()).read_text()
    with subprocess.Popen([*BALLAST, "test", "polarity", "--site", live.site], env=live.env, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        until(lambda: live.image.setpoint(core.SLOT_OPERATOR)["kind"] == core.SP_HOLD, 40, "no hold")
        for signum in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):  # only the first counts
            os.kill(process.pid, signum)
        assert process.wait(20) == 130
        assert process.stderr is not None and "; no hold stands; " in process.stderr.read()
    assert live.image.setpoint(core.SLOT_OPERATOR)["kind"] == core.SP_NONE
    assert not (tmp_path / "state" / live.site / "commissioning.json").exists()  # what was cut is no result
    (tmp_path / "state" / live.site / "commissioning.json").write_text("{")
    listed = live.ballast("test", "--list")
    assert listed.returncode == 0 and "put aside as commissioning.damaged" in listed.stderr
