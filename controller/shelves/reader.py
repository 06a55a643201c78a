"""The process that reads the shelves: a thread a port, sweep after sweep, beside the tick and at a lower priority.

A sweep reads one block of each device. After a sweep, at most once a second, one other block of one device is read, so that
everything comes in turn and no sweep waits long. A device that does not answer is asked ever more rarely, up to every 30 s: an empty
bay costs its neighbours next to nothing. Writes come through a socket, one at a time, and only what the site's `allow` names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import select
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from controller import disk
from controller.build import site_from
from controller.clock import Clock, RealClock
from controller.lines import LineServer, Reply, refusal
from controller.ports import real
from controller.process import EXIT_FAILED, EXIT_OK, die_with_parent, keep_messages, say
from controller.shelves.table import ITEMS, ROW, SOCKET, Slot, Table, slots
from hal import adapter, wire
from hal.profile import ProfileError
from hal.shelf import Block, Value
from hal.wiretime import Line, WireTime, answer_chars, request_chars

SLOW_S = 1.0  # one other block at most so often on a port
ITEMS_S = 5.0  # and what was read is written out so often
RETRY_S = 30.0  # an absent device is asked at least so often
OFFLINE_AFTER = 3  # answers lost in a row
REOPEN_S = 2.0
NICE = 5  # beside the supervisor (0) and the forecast: late is no harm, in the way is
TURN_S = 2.0  # a write waits so long for its turn; the socket gives it 4 s in all
LOOK_S = 0.1

Ask = Callable[..., list[int]]  # (unit, fc, address, count, values=(), waddr=-1) -> registers; raises wire.NoAnswer


@dataclass
class Member:
    """One device as its port's thread sees it."""

    slot: Slot
    row: np.ndarray = field(default_factory=lambda: np.zeros((), ROW))
    misses: int = 0
    next_ns: int = 0  # asked again from then on
    turn: int = 0  # of its slow blocks
    items: dict[str, tuple[Value, int]] = field(default_factory=dict)  # (value, when the device took it)


@dataclass
class Request:
    """A write under way. `begun`: taken by whoever decides, the port that does it, or the server that says it will not be done."""

    member: Member
    name: str
    value: int
    begun: threading.Lock = field(default_factory=threading.Lock)
    answer: dict[str, Any] | None = None

    def take(self) -> bool:
        """True for the first who asks."""
        return self.begun.acquire(blocking=False)


class PortReader:
    """Everything on one port. `ask` does one transaction and waits for it; nothing here opens or closes anything."""

    def __init__(self, rows: Sequence[Slot], table: Table, clock: Clock) -> None:
        self.members = [Member(slot) for slot in rows]
        self.table, self.clock = table, clock
        shelf = rows[0].shelf
        self.line = Line(shelf.baud, 9 + (shelf.parity != "N") + shelf.stop_bits)
        self.requests: queue.Queue[Request] = queue.Queue()
        self.sweeps = 0
        self.sweep_ns = 0  # what the last whole sweep took
        self.last_s: deque[float] = deque(maxlen=64)  # and the ones before, since they were written out
        self._slow_at = 0
        self._slow_ns = 0
        for member in self.members:
            known = table.row(member.slot.index)
            if known is not None:  # of the process before: ages tell how old that is
                member.row[...] = known

    def round(self, ask: Ask) -> None:
        """One sweep; then one write that waits, then at most one slow block. Raises OSError where the port is gone."""
        began_ns = self.clock.monotonic_ns()
        asked = 0
        for member in self.members:
            if self.clock.monotonic_ns() >= member.next_ns:
                self._read(ask, member, member.slot.map.sweep)
                asked += 1
            self._serve(ask)
        if asked == len(self.members):
            self.sweeps += 1
            self.sweep_ns = self.clock.monotonic_ns() - began_ns
            self.last_s.append(self.sweep_ns / 1e9)
        if self.clock.monotonic_ns() >= self._slow_ns:
            self._slow_ns = self.clock.monotonic_ns() + int(SLOW_S * 1e9)
            self._slow(ask)

    def idle_s(self) -> float:
        """How long there is nothing to ask, where every device is absent."""
        first = min(m.next_ns for m in self.members)
        return max(0.0, (first - self.clock.monotonic_ns()) / 1e9)

    def lost(self) -> None:
        """The port is gone: nobody answers."""
        for member in self.members:
            member.misses = max(member.misses, OFFLINE_AFTER)
            member.row["online"] = 0
            self.table.put(member.slot.index, member.row)
        with contextlib.suppress(queue.Empty):
            while request := self.requests.get_nowait():
                if request.take():
                    request.answer = _refused("the port is gone", "plug it in again", request)

    def _read(self, ask: Ask, member: Member, block: Block) -> bool:
        try:
            words = ask(member.slot.unit, 3, block.addr, block.count)
        except wire.NoAnswer as e:
            self._missed(member, e)
            return False
        # The registers are taken when the request is recognised; what followed is silence, turnaround and the answer's way.
        taken_ns = self.clock.monotonic_ns() - int(self.line.travel_ms(answer_chars(3, block.count)) * 1e6)
        member.misses, member.next_ns = 0, 0
        member.row["online"] = 1
        member.row["ok"] += 1
        for item in block.items:
            member.items[item.name] = item.decode(block.part(item, words)), taken_ns
        for k, (_, item, factor) in enumerate(member.slot.map.signals):
            if item in block.items:
                member.row["value"][k] = factor * item.number(block.part(item, words))
                member.row["t_ns"][k] = taken_ns
        self.table.put(member.slot.index, member.row)
        return True

    def _missed(self, member: Member, error: wire.NoAnswer) -> None:
        member.row["timeouts" if error.result == "timeout" else "errors"] += 1
        if error.exception:  # it is there, and has not these registers
            member.misses, member.row["online"] = 0, 1
            wait_s = RETRY_S
        else:
            member.misses += 1
            wait_s = 0.0 if member.misses < OFFLINE_AFTER else min(RETRY_S, 2.0 ** (member.misses - OFFLINE_AFTER))
            if member.misses >= OFFLINE_AFTER:
                member.row["online"] = 0
        member.next_ns = self.clock.monotonic_ns() + int(wait_s * 1e9)
        self.table.put(member.slot.index, member.row)

    def _slow(self, ask: Ask) -> None:
        """The next block that is in no sweep, of the next device that answers."""
        for _ in self.members:
            member = self.members[self._slow_at % len(self.members)]
            self._slow_at += 1
            if member.misses == 0 and member.row["online"] and member.slot.map.slow:
                block = member.slot.map.slow[member.turn % len(member.slot.map.slow)]
                member.turn += 1
                self._slow_block(ask, member, block)
                return

    def _slow_block(self, ask: Ask, member: Member, block: Block) -> None:
        """As _read; a device that has not these registers is still a device, and its sweep goes on."""
        before = member.next_ns
        self._read(ask, member, block)
        if member.misses == 0:
            member.next_ns = before

    # ---- writing

    def _serve(self, ask: Ask) -> None:
        with contextlib.suppress(queue.Empty):
            request = self.requests.get_nowait()
            if not request.take():
                return
            try:
                request.answer = self._write(ask, request)
            except BaseException:
                why = "the port failed under it: whether it was done is not known"
                request.answer = _refused(why, "look at the device", request) | {"sent": True}
                raise

    def _write(self, ask: Ask, request: Request) -> dict[str, Any]:
        """Writes, reads back, compares. `sent`: the device may have acted."""
        what, unit = request.member.slot.map.writable(request.name), request.member.slot.unit
        assert what is not None, "the server has looked"
        try:
            before = ask(unit, 3, what.addr, 1)[0]
        except wire.NoAnswer as e:
            return _refused(f"it cannot be read, and was not written ({e})", "ask again once it answers", request)
        request.member.row["writes"] += 1
        self.table.put(request.member.slot.index, request.member.row)
        try:
            ask(unit, 6, what.addr, 0, (what.raw(request.value, before),))
        except wire.NoAnswer as e:
            why = "the device refused it" if e.exception else "there was no answer: whether it was done is not known"
            return _refused(f"{why} ({e})", "read the item and look", request) | {"sent": not e.exception}
        try:
            after = ask(unit, 3, what.addr, 1)[0]
        except wire.NoAnswer as e:
            return _refused(f"was acknowledged, and cannot be read back ({e})", "look at the device", request) | {"sent": True}
        found = {"ok": what.shown(after) == request.value, "sent": True, "before": what.shown(before), "after": what.shown(after)}
        if not found["ok"]:
            why = f"was written, and reads {found['after']}: the device may have acted on it and cleared it, or not taken it"
            return _refused(why, "look at the device", request) | found
        return found


def _refused(why: str, remedy: str, request: Request) -> dict[str, Any]:
    return refusal(why, remedy, request.name, request.value) | {"sent": False}


class Port:
    """A thread that keeps one port open and goes round on it."""

    def __init__(self, reader: PortReader, path: str, clock: Clock, stop: threading.Event) -> None:
        self.reader, self.path, self.clock, self.stop = reader, path, clock, stop
        self.thread = threading.Thread(target=self._run, name=f"shelf {path}", daemon=True)
        self._said = ""
        self._noted = False

    def start(self) -> None:
        """Begins."""
        self.thread.start()

    def _run(self) -> None:
        """Until `stop`. Whatever goes wrong on this port is said, its devices do not answer meanwhile, and it is opened again."""
        while not self.stop.is_set():
            fd = -1
            try:
                fd = self._open()
                self._go_round(fd)
            except Exception as e:  # a half-dead adapter raises what it likes: the other ports go on
                what = str(e) if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
                self._tell(f"{self.path}: {what}; it is opened again and again, `ballast shelves` shows who answers")
                self.reader.lost()
                self.stop.wait(REOPEN_S)
            finally:
                if fd >= 0:
                    with contextlib.suppress(OSError):
                        wire.close_port(fd)

    def _open(self) -> int:
        shelf = self.reader.members[0].slot.shelf
        return wire.open_port(self.path, shelf.baud, shelf.parity, shelf.stop_bits)

    def _go_round(self, fd: int) -> None:
        if note := adapter.tune(self.path, fd):
            self._note(note)
        reader = self.reader
        longest = max(b.count for m in reader.members for b in (m.slot.map.sweep, *m.slot.map.slow))
        most_ms = WireTime(reader.line, request_chars(3), answer_chars(3, longest), 0.0).nominal_ms
        line = wire.BlockingLine(fd, reader.line.baud, reader.line.bits, timeout_s=0.05 + most_ms / 1e3)
        while not self.stop.is_set():
            reader.round(line.transact)
            self._tell("")
            if (idle_s := reader.idle_s()) > 0:
                self.stop.wait(min(idle_s, 0.2))

    def _note(self, text: str) -> None:
        """Once: every opening would say it again."""
        if not self._noted:
            self._noted = True
            say("shelves", f"{self.path}: {text}")

    def _tell(self, text: str) -> None:
        """Each state of the port once."""
        if text != self._said:
            say("shelves", text or f"{self.path}: open again")
            self._said = text


def by_port(rows: Sequence[Slot]) -> dict[str, list[Slot]]:
    """The devices of each port."""
    out: dict[str, list[Slot]] = {}
    for slot in rows:
        out.setdefault(real(slot.shelf.port), []).append(slot)
    return out


class Writes:
    """The requests of the socket: {"do": "write", "device", "item", "value"}. Nothing waits in here: a port answers when it is done."""

    def __init__(self, readers: Sequence[PortReader], clock: Clock) -> None:
        self.members = {m.slot.name: (reader, m) for reader in readers for m in reader.members}
        self.clock = clock
        self.waiting: list[tuple[Request, Reply, int]] = []

    def ask(self, request: dict[str, Any], reply: Reply) -> None:
        """One request: refused at once, or handed to its port."""
        name, item, value = (request.get(key) for key in ("device", "item", "value"))
        no = {"sent": False}
        found = self.members.get(str(name))
        if found is None:
            return reply(refusal("is no device beside the tick", f"one of {', '.join(self.members)}"[:200], "device", name) | no)
        if request.get("do") != "write" or not isinstance(value, int) or isinstance(value, bool):
            return reply(refusal("is no write of a whole number", 'send {"do": "write", "device", "item", "value"}', "value", value) | no)
        reader, member = found
        what = member.slot.map.writable(str(item))
        if what is None:
            names = ", ".join(w.name for w in member.slot.map.writes) or "nothing"
            return reply(refusal(f"is nothing that profile {member.slot.map.name} lets be written", f"it has {names}", "item", item) | no)
        if what.name not in member.slot.shelf.allow:
            remedy = f'allow = ["{what.name}"] in [[shelf]] {member.slot.shelf.name} of the site file'
            return reply(refusal("is not allowed by the site", remedy, "item", item) | no)
        if why := what.refused(value):
            return reply(refusal("is outside what the profile allows", why, "value", value) | no)
        made = Request(member, what.name, value)
        self.waiting.append((made, reply, self.clock.monotonic_ns() + int(TURN_S * 1e9)))
        reader.requests.put(made)

    def look(self) -> None:
        """Answers what is done, and what will not be: whoever has waited in vain must not find it done later."""
        now_ns = self.clock.monotonic_ns()
        for row in list(self.waiting):
            request, reply, until_ns = row
            if now_ns >= until_ns and request.take():
                request.answer = _refused("did not come to its turn in time, and is not done", "ask again once the shelf answers", request)
            if request.answer is not None:
                self.waiting.remove(row)
                reply(request.answer)


def write_items(directory: Path, readers: Sequence[PortReader]) -> None:
    """Every item read so far, for people: device -> {item: [value, CLOCK_MONOTONIC ns]}, and port -> its sweeps."""
    devices = {m.slot.name: dict(m.items) for r in readers for m in r.members}
    ports = {}
    for r in readers:
        last_s = [r.last_s.popleft() for _ in range(len(r.last_s))]
        ports[r.members[0].slot.shelf.port] = {"sweeps": r.sweeps, "sweep_s": r.sweep_ns / 1e9, "last_s": last_s}
    rows = {"devices": devices, "ports": ports}
    with contextlib.suppress(OSError):  # a full disk: the table goes on
        disk.replace(directory / ITEMS, json.dumps(rows).encode(), durable=False)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process; started by `ballast run` alone."""
    parser = argparse.ArgumentParser(prog="ballast-shelves")
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--parent", required=True, type=int)
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    os.nice(NICE)
    clock = RealClock()
    keep_messages(args.directory, clock)
    try:
        rows = slots(site_from(args.directory / "site.json").shelves)
        table = Table(args.directory, rows, write=True)
        readers = [PortReader(group, table, clock) for group in by_port(rows).values()]
        writes = Writes(readers, clock)
        server = LineServer(args.directory / SOCKET, writes.ask, clock)
    except (ProfileError, OSError, ValueError, KeyError) as e:
        say("shelves", f"the shelves cannot be read: {e}; mend that, the next try comes by itself")
        return EXIT_FAILED
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    ports = [Port(reader, reader.members[0].slot.shelf.port, clock, stop) for reader in readers]
    for port in ports:
        port.start()
    due_ns = clock.monotonic_ns()
    while not stop.is_set():
        reading, writing = server.fds()
        got = select.select(reading, writing, [], LOOK_S)
        server.serve({*got[0], *got[1]})
        writes.look()
        if clock.monotonic_ns() >= due_ns:
            due_ns = clock.monotonic_ns() + int(ITEMS_S * 1e9)
            write_items(args.directory, readers)
    server.close()
    return EXIT_OK


if __name__ == "__main__":
    os._exit(main())
