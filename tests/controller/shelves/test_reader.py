"""The reader of the shelves against a line of its own: sweeps, absent devices, slow blocks, ages, writes, the table."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.shelves.reader import OFFLINE_AFTER, RETRY_S, Member, Port, PortReader, Writes
from controller.shelves.table import ROW, Slot, Table, slots, total
from controller.site import Shelf
from hal.wire import NoAnswer

PSU = Shelf("rack1", "/dev/x", "orv3_psu", (200, 201, 202), 19200, "E", allow=("led", "clear_faults"))


class Fake:
    """Clock and line: each transaction takes 24 ms; a dead unit costs its timeout."""

    def __init__(self) -> None:
        self.now_ns = 10**9
        self.dead: set[int] = set()
        self.refuses: set[int] = set()  # addresses answered by exception 2
        self.regs: dict[tuple[int, int], int] = {}
        self.asked: list[tuple[int, int, int]] = []
        self.deaf_to_writes = self.dead_after_write = self.no_readback = False
        self.wrote = False

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_s(self) -> float:
        return 0.0

    def ask(self, unit: int, fc: int, addr: int, count: int = 0, values: Any = (), waddr: int = -1) -> list[int]:
        self.asked.append((unit, fc, addr))
        self.now_ns += 24_000_000
        if unit in self.dead:
            self.now_ns += 50_000_000
            raise NoAnswer("no answer", "timeout")
        if fc == 6 and self.dead_after_write:
            raise NoAnswer("no answer", "timeout")
        if fc == 3 and self.wrote and self.no_readback:
            self.wrote = False
            raise NoAnswer("exception 2", "exception", 2)
        self.wrote = fc == 6
        if addr in self.refuses:
            raise NoAnswer("exception 2", "exception", 2)
        if fc == 6:
            if not self.deaf_to_writes:
                self.regs[unit, addr] = values[0]
            return []
        return [self.regs.get((unit, a), 0) for a in range(addr, addr + count)]


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def reader(fake: Fake, tmp_path: Path) -> PortReader:
    rows = slots([PSU])
    return PortReader(rows, Table(tmp_path, rows, write=True), fake)


def test_a_sweep_reads_each_device_once_and_ages_are_those_of_the_registers(reader: PortReader, fake: Fake) -> None:
    fake.regs |= {(200, 82): 14600, (201, 82): 8000, (202, 82): 80, (200, 87): 15000}
    reader.round(fake.ask)
    assert [a for a in fake.asked if a[2] == 79] == [(200, 3, 79), (201, 3, 79), (202, 3, 79)]
    got = reader.table.readings()
    assert got[0].values["p_out_w"][0] == 1825.0 and got[0].values["p_in_w"][0] == 1875.0
    # Taken when the request was recognised: the answer's 27 characters before its end, at 19200 Bd 8E1.
    assert got[0].values["p_out_w"][1] == pytest.approx(10**9 + 24_000_000 - 27 * 11 / 19200 * 1e9, abs=2)
    assert math.isnan(got[1].age_s("temp_c", fake.now_ns)) or got[1].values["temp_c"][1]
    assert total(got, "p_out_w", "psu", fake.now_ns) == (1825.0 + 1000.0 + 10.0, 3, 3)
    assert total(got, "p_out_w", "psu", fake.now_ns + 10 * 10**9) == (0.0, 0, 3), "old values are not summed"


def test_every_block_comes_in_turn_and_costs_a_sweep_one_read_a_second(reader: PortReader, fake: Fake) -> None:
    for _ in range(1000):
        reader.round(fake.ask)
    slow = [a for a in fake.asked if a[2] != 79]
    seconds = (fake.now_ns - 10**9) / 1e9
    assert len(slow) <= seconds + 1
    blocks = {b.addr for b in reader.members[0].slot.map.slow}
    assert {(u, a) for u, _, a in slow} == {(u, a) for u in PSU.units for a in blocks}
    made = reader.members[0].slot.map
    assert reader.members[0].items.keys() == {i.name for b in (made.sweep, *made.slow) for i in b.items}


def test_an_absent_device_is_asked_ever_more_rarely_and_found_again(reader: PortReader, fake: Fake) -> None:
    fake.dead = {201}
    for _ in range(OFFLINE_AFTER):
        assert reader.table.reading(1).online is False
        reader.round(fake.ask)
    assert not reader.table.reading(1).online and reader.table.reading(0).online
    fake.asked.clear()
    began = fake.now_ns
    while fake.now_ns - began < 120e9:
        reader.round(fake.ask)
    tries = [a for a in fake.asked if a[0] == 201]
    assert 4 <= len(tries) <= 9, "1, 2, 4, 8, 16, 30, 30 s"
    fake.dead = set()
    began = fake.now_ns
    while not reader.table.reading(1).online:
        reader.round(fake.ask)
        assert fake.now_ns - began < (RETRY_S + 1) * 1e9
    assert reader.table.reading(1).timeouts >= OFFLINE_AFTER


def test_a_slow_block_that_a_device_has_not_stops_no_sweep(reader: PortReader, fake: Fake) -> None:
    fake.refuses = {b.addr for b in reader.members[0].slot.map.slow}
    for _ in range(200):
        reader.round(fake.ask)
    assert all(r.online for r in reader.table.readings())
    assert sum(1 for a in fake.asked if a == (200, 3, 79)) == 200


def test_a_lost_port_says_offline_and_keeps_the_last_values_with_their_age(reader: PortReader, fake: Fake) -> None:
    fake.regs[200, 82] = 800
    reader.round(fake.ask)
    reader.lost()
    got = reader.table.reading(0)
    assert not got.online and got.values["p_out_w"][0] == 100.0
    fake.now_ns += 5 * 10**9
    assert got.age_s("p_out_w", fake.now_ns) > 5.0
    assert total([got], "p_out_w", "psu", fake.now_ns)[1] == 0


def test_a_reader_that_is_started_again_goes_on_with_the_counts(reader: PortReader, fake: Fake, tmp_path: Path) -> None:
    for _ in range(3):
        reader.round(fake.ask)
    rows = slots([PSU])
    again = PortReader(rows, Table(tmp_path, rows, write=True), fake)
    again.round(fake.ask)
    assert again.table.reading(0).ok >= 4


# ---------------------------------------------------------------- writing


def ask(reader: PortReader, fake: Fake, **request: Any) -> dict[str, Any]:
    """What the socket answers, while the port goes round."""
    got: list[dict[str, Any]] = []
    writes = Writes([reader], fake)
    writes.ask({"do": "write"} | request, got.append)
    for _ in range(3):
        if not got:
            reader.round(fake.ask)
            writes.look()
    (answer,) = got
    return answer


def test_a_write_is_read_back(reader: PortReader, fake: Fake) -> None:
    assert ask(reader, fake, device="rack1.201", item="led", value=33) == {"ok": True, "sent": True, "before": 0, "after": 33}
    assert fake.regs[201, 97] == 33 and reader.table.reading(1).writes == 1
    fake.regs[200, 94] = 0x0801
    assert ask(reader, fake, device="rack1.200", item="clear_faults", value=1)["ok"]
    assert fake.regs[200, 94] == 0x4801, "the other bits as they were"


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"device": "rack1.9", "item": "led", "value": 33}, "no device"),
        ({"device": "rack1.200", "item": "power_cycle", "value": 1}, "lets be written"),
        ({"device": "rack1.200", "item": "led", "value": 34}, "one of 0, 33, 65"),
        ({"device": "rack1.200", "item": "led", "value": 1.5}, "whole number"),
        ({"device": "rack1.200", "item": "led", "value": True}, "whole number"),
        ({"device": "rack1.200", "item": "led"}, "whole number"),
        ({"device": ["x"], "item": "led", "value": 0}, "no device"),
        ({"do": "read", "device": "rack1.200", "item": "led", "value": 0}, "no write"),
    ],
)
def test_what_is_not_allowed_is_not_sent(reader: PortReader, fake: Fake, request_: dict[str, Any], says: str) -> None:
    got = ask(reader, fake, **request_)
    assert not got["ok"] and says in got["error"] and got["sent"] is False
    assert all(fc == 3 for _, fc, _ in fake.asked)


def test_what_the_site_does_not_allow_is_not_sent(fake: Fake, tmp_path: Path) -> None:
    rows = slots([Shelf("rack1", "/dev/x", "orv3_psu", (200,), 19200, "E")])
    reader = PortReader(rows, Table(tmp_path, rows, write=True), fake)
    got = ask(reader, fake, device="rack1.200", item="led", value=33)
    assert not got["ok"] and "not allowed by the site" in got["error"] and 'allow = ["led"]' in got["error"]
    assert all(fc == 3 for _, fc, _ in fake.asked)


def test_a_write_that_does_not_stick_or_gets_no_answer_says_whether_anything_was_sent(reader: PortReader, fake: Fake) -> None:
    fake.deaf_to_writes = True
    got = ask(reader, fake, device="rack1.200", item="led", value=33)
    assert not got["ok"] and got["sent"] and "reads 0" in got["error"] and got["after"] == 0
    fake.dead = {200}
    got = ask(reader, fake, device="rack1.200", item="led", value=33)
    assert not got["ok"] and got["sent"] is False and "was not written" in got["error"]
    fake.dead, fake.deaf_to_writes, fake.no_readback = set(), False, True
    got = ask(reader, fake, device="rack1.201", item="led", value=33)
    assert not got["ok"] and got["sent"] and "cannot be read back" in got["error"] and fake.regs[201, 97] == 33
    fake.no_readback, fake.dead_after_write = False, True
    got = ask(reader, fake, device="rack1.200", item="led", value=33)
    assert not got["ok"] and got["sent"] and "not known" in got["error"] and reader.table.reading(0).writes == 2


# ---------------------------------------------------------------- the table


def test_a_row_in_the_middle_of_a_change_is_no_row(tmp_path: Path) -> None:
    rows = slots([PSU])
    table = Table(tmp_path, rows, write=True)
    row = np.zeros((), ROW)
    row["online"], row["value"][0] = 1, 42.0
    table.put(1, row)
    assert table.reading(1).online and Table(tmp_path, rows).reading(1).values["p_out_w"][0] == 42.0
    data = bytearray((tmp_path / "shelves").read_bytes())
    for k in range(ROW.itemsize):
        spoiled = data.copy()
        spoiled[ROW.itemsize + k] ^= 0x10
        (tmp_path / "shelves").write_bytes(spoiled)
        assert Table(tmp_path, rows).row(1) is None, f"byte {k}"
    assert Table(tmp_path, rows).row(0) is None, "never written"


def test_a_table_of_other_shelves_is_refused(tmp_path: Path) -> None:
    Table(tmp_path, slots([PSU]), write=True).put(0, np.zeros((), ROW))
    other = Table(tmp_path, slots([Shelf("r2", "/dev/y", "orv3_psu", (200, 201, 202), 19200, "E")]))
    assert other.row(0) is None, "rows of other devices are none"
    with pytest.raises(OSError, match="other shelves"):
        Table(tmp_path, slots([PSU, Shelf("r2", "/dev/y", "orv3_bbu", (64,), 19200, "E")]))


def test_names_and_places() -> None:
    rows: list[Slot] = slots([PSU, Shelf("cool", "/dev/y", "orv3_rpu", (12,), 19200, "E")])
    assert [(r.index, r.name) for r in rows] == [(0, "rack1.200"), (1, "rack1.201"), (2, "rack1.202"), (3, "cool.12")]
    assert Member(rows[3]).row["online"] == 0


def test_a_reader_that_has_died_leaves_nobody_answering(reader: PortReader, fake: Fake) -> None:
    reader.round(fake.ask)
    got = reader.table.reading(0)
    assert got.online and got.answers(fake.now_ns) and not got.answers(fake.now_ns + 11 * 10**9)


def test_a_write_that_did_not_come_to_its_turn_is_not_done_later(reader: PortReader, fake: Fake) -> None:
    got: list[dict[str, Any]] = []
    writes = Writes([reader], fake)
    writes.ask({"do": "write", "device": "rack1.200", "item": "led", "value": 33}, got.append)
    writes.look()
    assert not got
    fake.now_ns += 3 * 10**9
    writes.look()
    assert not got[0]["ok"] and "is not done" in got[0]["error"] and not writes.waiting
    for _ in range(5):
        reader.round(fake.ask)
    assert all(fc == 3 for _, fc, _ in fake.asked)


def test_whatever_a_port_raises_is_said_and_its_devices_do_not_answer(
    reader: PortReader, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader.round(fake.ask)
    stop = threading.Event()
    monkeypatch.setattr("controller.shelves.reader.REOPEN_S", 0.01)
    port = Port(reader, "/dev/x", fake, stop)
    monkeypatch.setattr(port, "_open", lambda: 1 / 0)
    port.start()
    for _ in range(500):
        if not reader.table.reading(0).online:
            break
        port.thread.join(0.01)
    stop.set()
    port.thread.join(5)
    assert not reader.table.reading(0).online and not port.thread.is_alive()
    assert capsys.readouterr().err.count("ZeroDivisionError") == 1, "once, however often it is tried"
