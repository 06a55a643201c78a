"""The console's port: opened as the buses' ports are, and honest about whether it can tell that nobody is there."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.clock import RealClock
from controller.console import serve
from controller.console.serve import SerialWire
from controller.problems import SiteError
from tests.controller.console.world import World, say


@pytest.fixture
def port() -> Iterator[str]:
    master, slave = os.openpty()
    yield os.ttyname(slave)
    os.close(master)
    os.close(slave)


class Modem:
    """Stands for the driver's modem lines: a PTY has none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bits = 0
        monkeypatch.setattr("controller.console.serve.fcntl.ioctl", self.ioctl)

    def ioctl(self, fd: int, request: int, data: bytearray | int = 0) -> None:
        if request == termios.TIOCMGET:
            assert isinstance(data, bytearray)
            data[:] = self.bits.to_bytes(4, "little")


def test_a_cable_with_carrier_tells_its_loss_and_one_of_three_wires_does_not(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modem = Modem(monkeypatch)
    wire = SerialWire(port, 9600)
    try:
        assert wire.carrier() and not wire.tells_loss, "three wires: nothing is there, nothing goes"
        modem.bits = termios.TIOCM_CD
        assert wire.carrier() and wire.tells_loss
        modem.bits = 0
        assert not wire.carrier()
    finally:
        wire.close()


def test_a_pseudo_terminal_tells_by_being_read(port: str) -> None:
    wire = SerialWire(port, 9600)
    assert wire.carrier() and wire.tells_loss
    wire.close()


@pytest.mark.parametrize(("baud", "words"), [(9600, "is locked"), (9601, "not a standard rate")])
def test_a_port_that_cannot_be_had_is_refused_with_a_remedy(port: str, baud: int, words: str) -> None:
    wire = SerialWire(port, 9600)
    try:
        with pytest.raises(SiteError, match=words):
            serve._serve(port, baud, "builtin", RealClock(), 60.0)
    finally:
        wire.close()


def test_a_setpoint_says_how_its_line_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    try:
        world.people()
        ctx, person = world.context("otto")
        assert "at once when this line is lost" in " ".join(say(ctx, person, "setpoint 5kW").split())
        ctx.line.wire.tells_loss, ctx.line.idle_s = False, 600.0  # type: ignore[misc]
        text = " ".join(say(ctx, person, "setpoint 5kW").split())
        assert "10 min after the last key: this cable shows no carrier" in text and "when this line is lost" not in text
    finally:
        world.end()
