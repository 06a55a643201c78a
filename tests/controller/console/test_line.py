"""The line: everything that can come in, and everything that can go wrong with it."""

from __future__ import annotations

import os
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.clock import RealClock
from controller.console import line as lines
from controller.console.line import Cancelled, Gone, Idle, Line, LoggedOut, Noise, ascii_text
from tests.controller.console.wires import PairWire, Person, line


def typed(data: bytes, *, utf8: bool = True) -> str:
    made, person = line(utf8=utf8)
    person.type(data)
    try:
        return made.read_line("> ")
    finally:
        made.wire.close()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"status\r", "status"),
        (b"status\n", "status"),
        (b"status\r\n", "status"),
        (b"statsu\x7f\x7fus\r", "status"),
        (b"\x7f\x7f\x08ok\r", "ok"),
        (b"garbage\x15why\r", "why"),
        (b"a\x1b[A\x1b[3~\x1b[12;40Rb\r", "ab"),
        ("grüß\x7fe\r".encode(), "grüe"),
        (b"\x00\x01\x02\x16ok\x1f\r", "ok"),
        (b"\r", ""),
    ],
)
def test_what_people_and_terminals_send(data: bytes, text: str) -> None:
    assert typed(data) == text


def test_two_lines_in_one_go_are_two_lines() -> None:
    made, person = line()
    person.type(b"one\r\ntwo\rthree\n")
    assert [made.read_line() for _ in range(3)] == ["one", "two", "three"]


def test_a_password_is_never_echoed() -> None:
    made, person = line()
    person.type("sécret\x7ft\r")
    assert made.read_line("password: ", mask=True) == "sécret"[:-1] + "t"
    assert "password: ******" in person.sees("\n") and "s\xe9" not in person.got.decode() and "cret" not in person.got.decode()


def test_a_line_has_an_end() -> None:
    assert len(typed(b"x" * 5000 + b"\r")) == lines.MAX_LINE


@pytest.mark.parametrize(("data", "raises"), [(b"half\x03", Cancelled), (b"\x04", LoggedOut)])
def test_control_keys(data: bytes, raises: type[Exception]) -> None:
    with pytest.raises(raises):
        typed(data)


def test_half_a_line_and_a_pulled_cable_is_no_line() -> None:
    made, person = line()
    person.type(b"hold 100kW")
    threading.Timer(0.1, person.hang_up).start()
    with pytest.raises(Gone):
        made.read_line()


def test_a_carrier_that_goes_ends_it() -> None:
    made, person = line()
    threading.Timer(0.1, setattr, (person.wire, "here", False)).start()
    with pytest.raises(Gone):
        made.read_line()


def test_nobody_typing_ends_it() -> None:
    made, _ = line()
    made.idle_s = 0.2
    with pytest.raises(Idle):
        made.read_line()


def test_a_flood_is_thrown_away_and_counted_and_the_line_goes_on() -> None:
    made, person = line()
    flood = random.Random(1).randbytes(300_000).replace(b"\r", b"x").replace(b"\n", b"x").replace(b"\x03", b"x").replace(b"\x04", b"x")
    threading.Thread(target=person.type, args=(flood,), daemon=True).start()
    with pytest.raises(Noise) as noise:
        made.read_line()
    assert noise.value.count == len(flood)
    person.type(b"status\r")
    assert made.read_line() == "status"


def test_a_flood_without_end_is_nobody_typing() -> None:
    made, person = line()
    made.idle_s = 1.0
    stop = threading.Event()

    def babble() -> None:
        while not stop.is_set():
            try:
                person.type(b"\x55" * 4096)
            except OSError:
                return

    threading.Thread(target=babble, daemon=True).start()
    try:
        with pytest.raises(Idle):
            made.read_line()
    finally:
        stop.set()
        person.wire.close()


def test_a_peer_that_takes_nothing_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "STUCK_S", 0.3)
    wire = PairWire()
    with pytest.raises(Gone):
        Line(wire, RealClock()).write("x" * 10_000_000)


@pytest.mark.parametrize(
    ("answers", "vt", "utf8", "size"),
    [
        (b"\x1b[5;2R\x1b[24;80R", True, True, (80, 24)),
        (b"\x1b[5;4R\x1b[50;132R", True, False, (132, 50)),
        (b"\x1b[1;2R\x1b[9999;9999R", True, True, lines.MAX_SIZE),
        (b"\x1b[1;2R\x1b[1;1R", True, True, lines.DEFAULT_SIZE),
        (b"\x1b[1;2R", True, True, lines.DEFAULT_SIZE),
        (b"", False, False, lines.DEFAULT_SIZE),
        (b"hello\x1b[xx", False, False, lines.DEFAULT_SIZE),
    ],
)
def test_what_a_terminal_can_do_is_asked(answers: bytes, vt: bool, utf8: bool, size: tuple[int, int]) -> None:
    made, person = line(utf8=False)
    asker = threading.Thread(target=made.probe)
    asker.start()
    person.sees("\x1b[999;999H")
    person.type(answers)
    asker.join()
    assert (made.vt, made.utf8, (made.width, made.height)) == (vt, utf8, size)


def test_ascii_is_as_wide_as_what_it_stands_for() -> None:
    text = "│─└⣿⡀⠁█▌● ○…25 °C ±5 µs × ↵ äß"
    plain = ascii_text(text)
    assert plain.isascii() and len(plain) == len(text) and plain.startswith("|-+:")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600), st.booleans())
def test_no_bytes_break_it_and_what_comes_out_is_text(data: bytes, utf8: bool) -> None:
    wire = PairWire()
    person = Person(wire)
    made = Line(wire, RealClock(), utf8=utf8)
    made.idle_s = 5.0
    person.type(data + b"\x15END\r")
    try:
        for _ in range(700):
            try:
                got = made.read_line("> ")
            except (Cancelled, LoggedOut):
                continue
            assert len(got) <= lines.MAX_LINE
            assert not any(ord(c) < 0x20 or ord(c) == 0x7F for c in got)
            if got == "END" or got.endswith("END"):
                return
        pytest.fail("the last line never came")
    finally:
        wire.close()


def test_slow_ports_get_every_byte() -> None:
    """A write larger than what the descriptor takes at once."""
    r, w = os.pipe()
    os.set_blocking(w, False)

    class Pipe:
        fd_in, fd_out, name, baud, tells_loss = r, w, "pipe", 9600, True

        def carrier(self) -> bool:
            return True

    got = bytearray()

    def read() -> None:
        while len(got) < 300_000:
            got.extend(os.read(r, 7000))

    reader = threading.Thread(target=read)
    reader.start()
    Line(Pipe(), RealClock(), utf8=True).write("0123456789" * 30_000)
    reader.join(20)
    assert bytes(got) == b"0123456789" * 30_000
