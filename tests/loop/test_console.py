"""The console as a person meets it: picocom and minicom in tmux on a serial cable, a site that runs in real time. Screens are
asserted, and what became of the power.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from _core import image as core
from bench.cable import Cable
from controller import instance
from controller.console import presence
from controller.console.accounts import Accounts
from controller.store import Store, Trail
from tests.loop.live import Cabinet, Live, alive, links, until
from tests.loop.person import Tmux, have, minicom, picocom

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(not have("tmux", "picocom", "minicom"), reason="needs tmux, picocom, minicom (tests/apt.sh installs them as root)"),
]
RAMP = ("--set", "grid.ramp_up_w_per_s=10000", "--set", "grid.ramp_down_w_per_s=10000")
PASSWORDS = {"anna": "three small words", "otto": "four small words", "vera": "five small words"}
ROLES = {"anna": "engineer", "otto": "operator", "vera": "viewer"}


class Hall:
    """A site, its accounts, and consoles on cables."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.cabinet = Cabinet(tmp)
        self.live = Live(tmp, links(tmp, self.cabinet.ports), *RAMP)
        self.live.open()
        self.live.grid()
        self.state = tmp / "state" / self.live.site
        self.consoles: list[subprocess.Popen[bytes]] = []
        self.cables: list[Cable] = []
        self.people: list[Tmux] = []

    def accounts(self) -> None:
        book = Accounts(self.state)
        for name, role in ROLES.items():
            if name not in (book.users() if not book.empty() else {}):
                book.add(name, role, PASSWORDS[name], first=name == "anna")

    def console(self, name: str, baud: int | None = 115200, *words: str) -> tuple[Cable, subprocess.Popen[bytes]]:
        """A cable, and `ballast console` on the cabinet's end of it."""
        cable = Cable(self.tmp, baud, name)
        argv = [sys.executable, "-m", "controller", "console", "--port", str(cable.near), "--baud", str(baud or 115200), *words]
        process = subprocess.Popen(argv, env=self.live.env, stderr=self.live.log)
        self.cables.append(cable)
        self.consoles.append(process)
        return cable, process

    def sit_down(self, argv: list[str], **how: Any) -> Tmux:
        self.people.append(Tmux(self.tmp, argv, env=self.live.env | {"HOME": str(self.tmp)}, **how))
        return self.people[-1]

    def log_in(self, person: Tmux, user: str) -> str:
        until(lambda: "Press Enter" in person.screen or "user:" in person.screen or person.keys("Enter"), 15, "a console")
        if "user:" not in person.screen:
            person.keys("Enter")
        person.sees("user:")
        person.type(user)
        person.sees("password:")
        person.type(PASSWORDS[user])
        return person.sees(f"{user}, {ROLES[user]}")

    def leave(self) -> None:
        """Everybody goes home; the site stays."""
        for person in self.people:
            person.end()
        for process in self.consoles:
            process.terminate()
        for process in self.consoles:
            process.wait(10)
        for cable in self.cables:
            cable.end()
        self.people, self.consoles, self.cables = [], [], []

    def end(self) -> None:
        self.leave()
        self.live.end()
        self.cabinet.end()


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    made = Hall(tmp_path_factory.mktemp("console"))
    yield made
    made.end()


@pytest.fixture(autouse=True)
def empty_room(hall: Hall) -> Iterator[None]:
    hall.live.grid(head=hall.live.image.head)  # whatever the one before did to the site is over
    yield
    hall.leave()
    hall.live.ballast("release")


def rss_kb(pid: int) -> int:
    return int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])


def trail(hall: Hall, word: str) -> list[Trail]:
    store = Store(hall.state / "history.sqlite", readonly=True)
    try:
        return store.trail(20, word)
    finally:
        store.close()


def test_first_start_over_picocom(hall: Hall) -> None:
    """A new site: no account, none by default; the first log-in makes one, and a stranger finds their way."""
    cable, _ = hall.console("first")
    person = hall.sit_down(picocom(cable))
    person.sees("Press Enter")
    person.keys("Enter")
    person.sees("nobody has an account here yet")
    person.type("anna")
    person.type("password")
    person.type("password")
    person.sees("first thing anybody would try")
    person.type("anna")
    person.type(PASSWORDS["anna"])
    person.type(PASSWORDS["anna"])
    screen = person.sees("anna, engineer")
    assert PASSWORDS["anna"] not in screen and "GRID" in screen
    person.type("status")
    screen = person.sees("healthy")
    assert "battery may" in screen and "meter answers" in screen
    person.keys("C-d")
    person.sees("logged out")


@pytest.mark.parametrize("program", ["picocom", "minicom"])
def test_an_operator_at_work(hall: Hall, program: str) -> None:
    hall.accounts()
    cable, _ = hall.console("work")
    person = hall.sit_down(picocom(cable) if program == "picocom" else minicom(cable, hall.tmp))
    hall.log_in(person, "otto")
    person.type("why")
    person.sees("May discharge")
    person.keys("h", "o", "l", "Tab")
    person.type("20kW for 2min")
    person.sees("battery held at +20.0 kW for 120 s")
    until(lambda: abs(hall.live.out["p_cmd_w"] - 20e3) < 1, 20, "the hold")
    person.type("why")
    person.sees("a setpoint holds it there")
    person.type("settings set grid.import_limit_w 440kW")
    person.sees("needs the role engineer; otto is")
    person.type("top")
    screen = person.sees("bus a")  # the last row of the picture
    assert "ballast builtin GRID" in screen and "setpoint operator" in screen and "wake p50" in screen, screen
    person.keys("q")
    person.sees("builtin GRID>")
    person.type("trend p_cmd_w 10s")
    person.sees("out.p_cmd_w [W]")
    person.type("release")
    person.sees("the battery follows the load")
    person.type("events 30 otto")
    assert "hold: battery held at 20000 W" in person.sees("release: operator slot emptied")


def test_in_the_terminal_it_was_started_in(hall: Hall) -> None:
    """`ballast console` at the cabinet's own screen or over ssh: its terminal, no port, no knock; the shell gets its terminal back."""
    hall.accounts()
    console = f"{sys.executable} -m controller console --site {hall.live.site}"
    person = hall.sit_down(["sh", "-c", f"SSH_CONNECTION='192.0.2.7 1 192.0.2.1 22' {console}; stty -a; exec sleep 60"])
    person.sees("user:")
    hall.log_in(person, "otto")
    person.type("who")
    person.sees("from 192.0.2.7 (you)")
    person.keys("s", "e", "t", "p", "Tab")
    person.type("20kW")
    person.sees("at once when this line is lost")
    until(lambda: hall.live.out["slot"] == core.SLOT_OPERATOR, 5)
    person.type("top")
    person.sees("wake p50")
    person.keys("q")
    person.sees("builtin GRID>")
    person.keys("C-d")
    screen = person.sees("logged out")
    until(lambda: hall.live.out["slot"] == -1, 5, "log-out took the setpoint along")
    screen = person.sees("echoe")
    assert " icanon" in screen and " -icanon" not in screen and " opost" in screen, screen


def test_a_terminal_that_is_closed_ends_its_setpoint(hall: Hall) -> None:
    """What sshd does when the network goes: the terminal hangs up."""
    hall.accounts()
    person = hall.sit_down([sys.executable, "-m", "controller", "console", "--site", hall.live.site])
    hall.log_in(person, "otto")
    person.type("setpoint 20kW")
    person.sees("until `setpoint off`")
    until(lambda: hall.live.out["slot"] == core.SLOT_OPERATOR, 5)
    person.end()
    until(lambda: hall.live.out["slot"] == -1, 2.5, "at once, before its lease is over")
    until(lambda: not presence.here(hall.state), 5)


def test_plain_lines_for_a_terminal_that_knows_nothing(hall: Hall) -> None:
    """No answer to ESC[6n: no escape sequence is sent, and everything but `top` works."""
    hall.accounts()
    cable, _ = hall.console("plain", None)
    fd = os.open(cable.far, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    got = bytearray()

    def sees(words: bytes) -> None:
        def look() -> bool:
            with contextlib.suppress(BlockingIOError):
                got.extend(os.read(fd, 65536))
            return words in got

        until(look, 40, words.decode())

    talk = (
        (b"Press Enter", b"\r"), (b"user: ", b"vera\r"), (b"password: ", b"five small words\r"), (b"lists the commands", b"top\r"),
        (b"knows no cursor", b"limit\r"), (b"PCC breaker", b"trend load_w 1s\r"), (b"-1 s ", b"exit\r"),
    )  # fmt: skip
    for wait, text in talk:
        sees(wait)
        if text == b"vera\r":
            after = len(got)
        os.write(fd, text)
    sees(b"logged out")
    assert b"\x1b" not in got[after:].replace(b"\x08 \x08", b"") and got[after:].decode().isascii()
    os.close(fd)


def test_top_at_9600_baud_is_up_to_date(hall: Hall) -> None:
    hall.accounts()
    cable, _ = hall.console("slow", 9600)
    person = hall.sit_down(picocom(cable, 9600))
    hall.log_in(person, "vera")
    person.type("top")
    person.sees("missed", 20)
    before, began = cable.to_laptop, time.monotonic()
    ticks = _ticks(person.screen)
    time.sleep(10)
    assert (cable.to_laptop - before) / (time.monotonic() - began) <= 0.85 * 960, "bytes a second, of 960"
    assert 800 <= _ticks(person.screen) - ticks <= 1200, "ten seconds on, the number on the screen is ten seconds on"
    person.keys("q")
    person.sees("GRID>")


def _ticks(screen: str) -> int:
    return int(screen.partition("ticks ")[2].split()[0].replace(",", ""))


def test_ten_megabytes_of_noise_before_and_after_log_in(hall: Hall) -> None:
    """Nothing is done, nothing grows, and the person after it finds a console."""
    hall.accounts()
    cable, process = hall.console("noise", None)
    fd = os.open(cable.far, os.O_RDWR | os.O_NOCTTY)
    gone = threading.Event()
    said = bytearray()

    def swallow() -> None:
        while not gone.is_set():
            with contextlib.suppress(OSError):
                said.extend(os.read(fd, 65536))

    threading.Thread(target=swallow, daemon=True).start()
    time.sleep(1.0)
    rng = random.Random(7)

    def noise(megabytes: int) -> None:
        for _ in range(megabytes * 16):
            data = rng.randbytes(65536)
            while data:
                data = data[os.write(fd, data) :]

    noise(1)
    small = rss_kb(process.pid)
    noise(4)
    until(lambda: cable.to_cabinet >= 5 << 20, 15, "the cable has carried it")
    time.sleep(1.0)
    for words, text in ((b"user: ", b"\x03\r"), (b"password: ", b"otto\r"), (b"lists the commands", PASSWORDS["otto"].encode() + b"\r")):
        since = len(said)
        os.write(fd, text)
        until(lambda words=words, since=since: words in said[since:], 15, words.decode())
    until(lambda: presence.here(hall.state), 15, "log-in after the noise")
    head = int(hall.live.image.head)
    noise(5)
    until(lambda: cable.to_cabinet > 10 << 20 and b"thrown away" in said, 15, "the noise has been read, and told of")
    time.sleep(1.0)
    assert process.poll() is None
    assert rss_kb(process.pid) - small < 16_000, "kB"
    slot = hall.live.image.setpoint(0)
    assert slot["kind"] == core.SP_NONE and not hall.live.image.park, "no byte of it was a command"
    assert int(hall.live.image.head) > head and hall.live.out["mode"] == core.MODE_GRID
    gone.set()
    os.write(fd, b"\r")


def test_a_cable_pulled_and_plugged_in_again(hall: Hall) -> None:
    hall.accounts()
    cable, process = hall.console("pulled")
    person = hall.sit_down(picocom(cable))
    hall.log_in(person, "otto")
    person.type("setpoint 20kW")
    person.sees("until `setpoint off`")
    until(lambda: hall.live.out["slot"] == core.SLOT_OPERATOR, 5)
    person.keys("h", "o", "l", "d", " ", "9", "9", "k", "W")
    person.sees("hold 99kW")
    cable.pull()
    until(lambda: hall.live.out["slot"] == -1, 5, "the setpoint of that log-in ends")
    until(lambda: not presence.here(hall.state), 5)
    assert process.poll() is None
    cable.plug()
    again = hall.sit_down(picocom(cable))
    hall.log_in(again, "otto")
    again.type("events 20 otto")
    screen = again.sees("log-out: line lost")
    assert "99000" not in screen
    assert hall.live.lines("it is opened again when it returns") >= 1


def test_a_console_that_is_killed_ends_its_setpoint_within_its_lease(hall: Hall) -> None:
    hall.accounts()
    cable, process = hall.console("killed")
    person = hall.sit_down(picocom(cable))
    hall.log_in(person, "otto")
    person.type("setpoint 20kW")
    person.sees("until `setpoint off`")
    until(lambda: hall.live.out["slot"] == core.SLOT_OPERATOR, 5)
    time.sleep(4.0)
    assert hall.live.out["slot"] == core.SLOT_OPERATOR, "renewed"
    process.kill()
    until(lambda: hall.live.out["slot"] == -1, 5, "three seconds")


def test_two_engineers_and_who_holds_what(hall: Hall) -> None:
    hall.accounts()
    first = hall.sit_down(picocom(hall.console("one")[0]))
    hall.log_in(first, "otto")
    first.type("setpoint 20kW")
    first.sees("until `setpoint off`")
    second = hall.sit_down(picocom(hall.console("two")[0]))
    screen = hall.log_in(second, "anna")
    assert "also here: otto (operator)" in screen and "setpoint: battery at +20.0 kW" in screen.replace("h olds", "holds")
    second.type("hold 5kW")
    second.sees("has the operator's slot")
    second.type("settings set grid.import_limit_w 440kW for 20s")
    second.sees("on trial for 20 s")
    first.type("settings diff")
    first.sees("on trial by anna")
    second.type("hold 0")
    second.sees("battery held at +0.0 kW")
    first.sees("your setpoint is no longer in force")  # without a key
    second.type("settings back")
    second.sees("the old values are back")


def test_the_console_outlives_supervisor_and_control_and_says_what_is_lost(hall: Hall) -> None:
    hall.accounts()
    person = hall.sit_down(picocom(hall.console("lost")[0]))
    hall.log_in(person, "anna")
    os.kill(hall.live.here.supervisor_pid, signal.SIGSTOP)
    try:
        person.type("hold 10kW for 1min")
        person.sees("battery held at +10.0 kW")
        until(lambda: abs(hall.live.out["p_cmd_w"] - 10e3) < 1, 20, "also beside a supervisor that hangs")
        until(lambda: hall.live.limit("lease"), 10)
        person.type("alarms")
        person.sees("lease STANDS")  # "release" holds the word as well
    finally:
        os.kill(hall.live.here.supervisor_pid, signal.SIGCONT)
    parent, control = hall.live.here.pid, hall.live.here.control_pid
    os.kill(parent, signal.SIGSTOP)
    try:
        os.kill(control, signal.SIGKILL)
        until(lambda: not alive(control), 5)
        person.type("status")
        screen = person.sees("Still here")
        assert "CONTROL IS NOT RUNNING" in screen and "Lost with it" in screen
    finally:
        head = int(hall.live.image.head)
        os.kill(parent, signal.SIGCONT)
    hall.live.grid(head=head)
    until(lambda: trail(hall, "began again"), 10, "the supervisor has seen it")
    person.type("events 5 control_lost")
    person.sees("began again, from the kernel's reset")


def test_a_site_that_ends_and_comes_back_under_a_session(hall: Hall) -> None:
    """The console is nobody's child: it goes on, says that nothing runs, and finds the next run."""
    hall.accounts()
    person = hall.sit_down(picocom(hall.console("next")[0]))
    hall.log_in(person, "anna")
    site = hall.live
    site.end()
    person.type("status")
    person.sees("NOTHING RUNS at site builtin")
    person.type("hold 0")
    person.sees("nothing runs")
    person.type("events 5 stop")
    person.sees("GRID -> STOP")
    hall.live = Live(hall.tmp, links(hall.tmp, hall.cabinet.ports), *RAMP)
    hall.live.open()
    hall.live.grid()
    person.type("status")
    person.sees("healthy")
    assert instance.read(hall.tmp / "ballast-builtin") is not None
