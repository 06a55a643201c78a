"""Sessions from the first byte to the last: log-in, prompt, and every way a line can end."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import operate
from controller.console import presence
from controller.console.context import Refused
from tests.controller.console.wires import Person
from tests.controller.console.world import PASSWORDS, TABLE, World, say

# Sessions live by the wall's clock and the simulated site by its own, which stands: for them its control does not tick, and they say so.


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.end()


def until(what: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def terminal(person: Person) -> None:
    """The far end is a VT100 with UTF-8, 80 x 24: it answers as long as the test lives."""

    def answer() -> None:
        seen = 0
        while True:
            with person.lock:
                asked = len(re.findall(rb"\x1b\[6n", person.got))
            for k in range(seen, asked):
                person.type(b"\x1b[1;2R" if k % 2 == 0 else b"\x1b[24;80R")
            seen = asked
            time.sleep(0.01)

    threading.Thread(target=answer, daemon=True).start()


def log_in(person: Person, user: str, password: str | None = None) -> None:
    until(lambda: person.got.endswith((b"Press Enter.\r\n", b"user: ")))
    if not person.got.endswith(b"user: "):
        person.type("\r")
    until(lambda: person.got.endswith(b"user: "))
    person.type(f"{user}\r")
    until(lambda: person.got.endswith(b"password: "))
    person.type((password or PASSWORDS[user]) + "\r")


def at_prompt(world: World, user: str, *, vt: bool = True) -> tuple[Person, threading.Thread]:
    """Somebody has logged in and may type."""
    world.people()
    person, thread = world.console()
    if vt:
        terminal(person)
    log_in(person, user)
    person.sees("builtin NO CONTROL>")
    return person, thread


def test_only_enter_wakes_a_line_and_who_does_not_log_in_was_not_logged_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.console.session.LOGIN_IDLE_S", 1.0)
    world.people()
    person, _ = world.console()
    person.sees("Press Enter")
    person.type("x q\x03\x1b[A\t")
    time.sleep(0.3)
    assert b"user:" not in person.got and b"\x1b[6n" not in person.got, "noise asks nobody for a name"
    person.type("\r")
    person.sees("user: ")
    person.sees("nobody typed")
    until(lambda: person.got.count(b"Press Enter") == 2)
    assert b"logged out" not in person.got


def test_the_first_start_demands_a_password_and_there_is_none_before(world: World) -> None:
    person, _ = world.console()
    person.sees("Press Enter")
    person.type("\r")
    person.sees("nobody has an account")
    person.type("anna\r")
    person.sees("password: ")
    person.type("12345678\r")
    person.type("12345678\r")
    since = person.mark
    person.sees("first thing anybody would try")
    assert world.accounts.empty()
    until(lambda: person.got.endswith(b"user name: "))
    person.type("anna\r")
    person.type("three small words\rthree small words\r")
    person.sees("anna, engineer.", since=since)
    assert world.accounts.users() == {"anna": "engineer"}
    assert "three small words" not in person.got.decode()


def test_wrong_passwords_are_slowed_down_and_said(world: World) -> None:
    world.people()
    person, _ = world.console()
    for _ in range(3):
        since = person.mark
        log_in(person, "otto", "not the one")
        person.sees("user or password is wrong", since=since)
    person.sees("wait 2 s before the next try")
    since = person.mark
    log_in(person, "otto")
    person.sees("too many wrong passwords", since=since)
    assert not presence.here(world.state), "the right one is refused while it has to wait"


@pytest.mark.parametrize("vt", [False, True])
def test_a_password_typed_in_the_wrong_place_is_written_nowhere(world: World, vt: bool) -> None:
    world.people()
    secret = "hunter-two-and-more"
    person, _ = world.console()
    if vt:
        terminal(person)
    log_in(person, secret, "otto")
    person.sees("user or password is wrong")
    log_in(person, "anna")
    person.sees("builtin NO CONTROL>")
    for words in ("passwd", "user add ben viewer", "pasword", "usr add ben viewer", "ballast passwd", "user remove"):
        since = person.mark
        person.type(f"{words} {secret}\r")
        person.sees("builtin NO CONTROL>", since=since + len(words) + len(secret))
    since = person.mark
    person.type("who\r")
    person.sees("(you)", since=since)
    person.type("exit\r")
    person.sees("logged out", since=since)
    until(lambda: not presence.here(world.state))
    assert "no such user" in " ".join(r.text for r in _trail(world, "log-in refused"))
    typed = [r.text for r in _trail(world, "typed")]
    assert any(text.startswith("user ...") for text in typed) and "who" in typed, "that it was tried stands there"
    assert "who" in (world.state / "history-anna").read_text().split()
    files = [path for path in world.tmp.rglob("*") if path.is_file()]
    assert len(files) > 3 and not [path for path in files if secret.encode() in path.read_bytes()]


def test_ones_own_password_cannot_be_guessed_faster_than_at_the_log_in(world: World) -> None:
    world.people()
    ctx, person = world.context("otto")
    for k in range(4):
        person.type("not the one\r")
        with pytest.raises(Refused, match="nothing was changed" if k < 2 else "wait 2 s"):
            TABLE.run(ctx, "passwd")
    person.type(f"{PASSWORDS['otto']}\r")
    with pytest.raises(Refused, match="nothing was changed"):
        TABLE.run(ctx, "passwd")
    assert world.accounts.log_in("otto", PASSWORDS["otto"], "elsewhere", world.clock.wall_s()) is None, "the account waits everywhere"
    assert len(_trail(world, "passwd refused")) == 5
    world.clock.t_ns += 3 * 10**9
    ctx.line.forget()
    person.type(f"{PASSWORDS['otto']}\ranother set of words\ranother set of words\r")
    assert "changed" in say(ctx, person, "passwd")
    assert world.accounts.log_in("otto", "another set of words", "tty", world.clock.wall_s()) == "operator"


def test_a_session_on_a_dumb_terminal(world: World) -> None:
    world.people()
    person, _ = world.console()
    log_in(person, "otto")
    text = person.sees("builtin NO CONTROL>")
    assert "site builtin   GRID" in text and "otto, operator." in text and text.partition("user: ")[2].isascii()
    person.type("hold 20kW for 1min\r")
    person.sees("battery held at +20.0 kW")
    assert operate.word(world.sim.image, world.clock) is not None or world.sim.image.setpoint(0)["value_w"] == 20e3
    person.type("settings set a.b 1\r")
    person.sees("needs the role engineer; otto is operator")
    person.type("exit\r")
    person.sees("logged out")
    until(lambda: not presence.here(world.state))
    rows = [r.text for r in _trail(world, "otto")]
    assert any("hold" in t or "held at" in t for t in rows) and "operator" in rows
    typed = [r.text for r in _trail(world, "typed")]
    assert "hold 20kW for 1min" in typed and "settings set a.b 1 (refused)" in typed


def _trail(world: World, word: str) -> list:
    from controller.store import Store

    store = Store(world.state / "history.sqlite", readonly=True)
    try:
        return store.trail(100, word)
    finally:
        store.close()


def test_editing_completion_and_history_on_a_vt100(world: World) -> None:
    person, _ = at_prompt(world, "vera")
    since = person.mark
    person.type("stat\t\r")
    person.sees("NOT HEALTHY", since=since)
    since = person.mark
    person.type("whx\x7f")
    person.type("y\r")
    person.sees("May discharge", since=since)
    since = person.mark
    person.type("\x1b[A\r")
    person.sees("May discharge", since=since)
    since = person.mark
    person.type("garbage\x03")
    person.type("who\r")
    text = person.sees("(you)", since=since)
    assert "is no command" not in text
    person.type("\x04")
    person.sees("logged out")


def test_what_cannot_wait_is_said_above_the_line_being_typed(world: World) -> None:
    person, _ = at_prompt(world, "vera")
    person.type("wh")
    since = person.mark
    world.instance.supervisor_pid = 0
    world.instance.write()
    person.sees("ALARM supervisor_lost", since=since)
    person.type("o\r")
    person.sees("(you)", since=since)
    world.instance.supervisor_pid = world.instance.pid
    world.instance.write()
    person.sees("supervisor_lost is gone", since=since)


def test_a_long_answer_stops_at_each_screenful(world: World) -> None:
    person, _ = at_prompt(world, "anna")
    since = person.mark
    person.type("help\r")
    text = person.sees("-- more", since=since)
    assert text.count("\n") <= 24
    person.type(" ")
    until(lambda: person.got.count(b"-- more") == 2)
    person.type("q")
    person.sees("builtin NO CONTROL>", since=person.mark - 100)


def test_a_cable_pulled_in_mid_command_does_half_of_nothing(world: World) -> None:
    person, thread = at_prompt(world, "otto")
    person.type("setpoint 20kW\r")
    person.sees("until `setpoint off`")
    since = person.mark
    person.type("hold 100kW for 10min")
    person.sees("10min", since=since)
    person.hang_up()
    thread.join(10)
    assert not thread.is_alive()
    slot = world.sim.image.setpoint(0)
    assert slot["kind"] == operate.SP_NONE, "neither the hold that was not sent, nor the setpoint of the log-in that is gone"
    assert not presence.here(world.state)
    assert any("line lost" in r.text for r in _trail(world, "otto"))


def test_a_line_that_takes_no_more_while_the_prompt_is_drawn_ends_the_session(world: World) -> None:
    """Bytes still come in and none goes out: what the prompt draws fails, and the session with it."""
    person, thread = at_prompt(world, "otto")
    person.type("setpoint 20kW\r")
    person.sees("until `setpoint off`")
    since = person.mark
    person.type("w")
    person.sees("w", since=since)
    world.wires[-1].near.shutdown(socket.SHUT_WR)
    person.type("x")
    thread.join(5)
    assert not thread.is_alive()
    assert world.sim.image.setpoint(0)["kind"] == operate.SP_NONE and not presence.here(world.state)


def test_nobody_typing_logs_out_and_takes_the_setpoint_along(world: World) -> None:
    world.people()
    person, _ = world.console(idle_s=1.5)
    log_in(person, "otto")
    person.type("setpoint 20kW\r")
    person.sees("until `setpoint off`")
    person.sees("nobody typed: logged out")
    until(lambda: world.sim.image.setpoint(0)["kind"] == operate.SP_NONE)


@pytest.mark.parametrize("vt", [False, True])
def test_a_flood_of_noise_is_thrown_away_and_the_session_lives(world: World, vt: bool) -> None:
    person, _ = at_prompt(world, "anna", vt=vt)
    since = person.mark
    person.type("hold 1")  # what was begun must not be ended by noise
    person.type(b"\xaa\x1b\x55" * 40_000)
    person.sees("were thrown away", since=since)
    since = person.mark
    person.type("who\r")
    person.sees("(you)", since=since)
    assert world.sim.image.setpoint(0)["kind"] == operate.SP_NONE


def test_a_fault_of_ours_in_a_command_leaves_the_console_to_the_person(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.people()
    broken = TABLE.rows["status"].__class__(**{**vars(TABLE.rows["status"]), "run": lambda ctx, words: 1 / 0})
    person, _ = world.console()
    monkeypatch.setattr("controller.console.session.table", lambda: TABLE)
    monkeypatch.setitem(TABLE.rows, "status", broken)
    person, _ = world.console()
    log_in(person, "vera")
    person.type("status\r")
    person.sees("failed inside ballast (ZeroDivisionError")
    since = person.mark
    person.type("who\r")
    person.sees("(you)", since=since)


def test_two_at_once_see_each_other_and_who_holds_what(world: World) -> None:
    world.people()
    first, _ = world.console()
    log_in(first, "otto")
    first.type("setpoint 20kW\r")
    first.sees("until `setpoint off`")
    # presence is one entry a process; the second person sits at another one
    seen = [s for s in presence.here(world.state) if s.user == "otto"]
    assert seen and seen[0].holds == "setpoint: battery at +20.0 kW" and seen[0].line == "pair"


def test_a_damaged_account_file_says_what_to_do(world: World) -> None:
    world.people()
    world.accounts.path.write_text("{")
    person, _ = world.console()
    person.type("\r")
    person.sees("As root: restore it")


def test_bytes_that_are_no_text_end_nothing_and_reach_nobodys_terminal(world: World) -> None:
    person, thread = at_prompt(world, "vera")
    for line in (b"\xff\xfe\r", b"\x11\x1b[2JEVIL\r", b"whoo\r"):
        since = person.mark
        person.type(line)
        person.sees("is no command" if line == b"whoo\r" else "builtin NO CONTROL>", since=since)
    since = person.mark
    person.type("who\r")
    person.sees("(you)", since=since)
    assert thread.is_alive()
    until(lambda: any("whoo" in r.text for r in _trail(world, "typed")))
    assert all(r.text.isprintable() for r in _trail(world, "typed"))


def test_a_damaged_history_keeps_nobody_out(world: World) -> None:
    world.people()
    world.sim.supervisor.store.close()
    for path in world.state.glob("history.sqlite*"):
        path.write_bytes(b"no database" * 500)
    person, _ = world.console()
    log_in(person, "otto")
    person.sees("builtin NO CONTROL>")
    since = person.mark
    person.type("status\r")
    person.sees("devices", since=since)
    since = person.mark
    person.type("events\r")
    person.sees("builtin NO CONTROL>", since=since)


def test_an_acting_command_costs_no_descriptor(world: World) -> None:
    import os

    world.people()
    ctx, person = world.context("otto")
    say(ctx, person, "hold 0")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        say(ctx, person, "hold 0")
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_read_only_disk_keeps_nobody_out_and_still_slows_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    world.people()
    opened = os.open

    def refuse(path: object, flags: int, *args: object, **kw: object) -> int:
        if str(path).startswith(str(world.state)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    assert world.accounts.log_in("otto", PASSWORDS["otto"], "tty", 5.0) == "operator"
    for k in range(4):
        assert world.accounts.log_in("otto", "not the one", "tty", 10.0 + k) is None
    assert world.accounts.wait_s("otto", "tty", 13.0) > 0, "failures count in this process"
