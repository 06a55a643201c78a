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
from controller.lines import LineServer, refusal
from controller.process import EXIT_FAILED, EXIT_OK, die_with_parent, keep_messages, say
from controller.shelves.table import ROW, Slot, Table, slots
from hal import adapter, wire
from hal.profile import ProfileError
from hal.shelf import Block, Value
from hal.wiretime import Line, WireTime, answer_chars, request_chars

SOCKET = "shelves.socket"
ITEMS = "shelves.json"  # every item of every device, in words
SLOW_S = 1.0  # one other block at most so often on a port
ITEMS_S = 5.0  # and what was read is written out so often
RETRY_S = 30.0  # an absent device is asked at least so often
OFFLINE_AFTER = 3  # answers lost in a row
REOPEN_S = 2.0
NICE = 5  # beside the supervisor (0) and the forecast: late is no harm, in the way is
ANSWER_S = 3.0  # a write waits so long for its turn
LOOK_S = 0.2

Ask = Callable[..., list[int]]  # (unit, fc, address, count, values=(), waddr=-1) -> registers; raises wire.NoAnswer


@dataclass
class Member:
    """One device as its port's thread sees it."""

    slot: Slot
    row: np.ndarray = field(default_factory=lambda: np.zeros((), ROW))
    misses: int = 0
    next_ns: int = 0  # asked again from then on
    turn: int = 0  # of its slow blocks
    items: dict[str, Value] = field(default_factory=dict)
    items_ns: dict[str, int] = field(default_factory=dict)


@dataclass
class Request:
    """A write under way: `done` is set once `answer` stands."""

    member: Member
    name: str
    value: int
    answer: dict[str, Any] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    begun: threading.Lock = field(default_factory=threading.Lock)  # held by whoever decides: the port does it, or nobody ever will


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
        while not self.requests.empty():
            self._answer(self.requests.get(), refusal("the port is gone", "plug it in again"))

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
            member.items[item.name], member.items_ns[item.name] = item.decode(block.part(item, words)), taken_ns
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
                with contextlib.suppress(wire.NoAnswer):
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
            if not request.begun.acquire(blocking=False):
                return  # whoever asked has gone: nothing is written behind their back
            try:
                self._answer(request, self._write(ask, request))
            except wire.NoAnswer as e:
                why = "the device refused it" if e.exception else "there was no answer: whether it was done is not known"
                self._answer(request, refusal(f"{why} ({e})", "read the item and look", request.name, request.value))
            except OSError:
                self._answer(request, refusal("the port is gone", "plug it in again"))
                raise

    @staticmethod
    def _answer(request: Request, answer: dict[str, Any]) -> None:
        request.answer = answer
        request.done.set()

    def _write(self, ask: Ask, request: Request) -> dict[str, Any]:
        """Writes, reads back, compares."""
        what = request.member.slot.map.writable(request.name)
        assert what is not None, "the server has looked"
        unit = request.member.slot.unit
        before = ask(unit, 3, what.addr, 1)[0]
        ask(unit, 6, what.addr, 0, (what.raw(request.value, before),))
        after = ask(unit, 3, what.addr, 1)[0]
        request.member.row["writes"] += 1
        self.table.put(request.member.slot.index, request.member.row)
        found = {"ok": what.shown(after) == request.value, "before": what.shown(before), "after": what.shown(after)}
        if not found["ok"]:
            why = f"was written, and reads {found['after']}: the device may have acted on it and cleared it, or not taken it"
            return found | refusal(why, "look at the device", request.name, request.value)
        return found


class Port:
    """A thread that keeps one port open and goes round on it."""

    def __init__(self, reader: PortReader, path: str, clock: Clock, stop: threading.Event) -> None:
        self.reader, self.path, self.clock, self.stop = reader, path, clock, stop
        self.thread = threading.Thread(target=self._live, name=f"shelf {path}", daemon=True)
        self.failed = False
        self._said = ""

    def start(self) -> None:
        """Begins."""
        self.thread.start()

    def _live(self) -> None:
        try:
            self._run()
        except BaseException:
            self.failed = True  # the process ends, and is started anew: a port that nobody reads must not look alive
            self.stop.set()
            raise

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                fd = self._open()
            except (wire.PortError, OSError) as e:
                self._tell(f"{e}; trying again")
                self.reader.lost()
                self.stop.wait(REOPEN_S)
                continue
            self._tell("")
            try:
                self._go_round(fd)
            except OSError as e:
                self._tell(f"{self.path}: {e.strerror or e}")
                self.reader.lost()
                self.stop.wait(REOPEN_S)
            finally:
                with contextlib.suppress(OSError):
                    wire.close_port(fd)

    def _open(self) -> int:
        shelf = self.reader.members[0].slot.shelf
        fd = wire.open_port(self.path, shelf.baud, shelf.parity, shelf.stop_bits)
        adapter.tune(self.path, fd)
        return fd

    def _go_round(self, fd: int) -> None:
        reader = self.reader
        longest = max(b.count for m in reader.members for b in (m.slot.map.sweep, *m.slot.map.slow))
        most_ms = WireTime(reader.line, request_chars(3), answer_chars(3, longest), 0.0).nominal_ms
        line = wire.BlockingLine(fd, reader.line.baud, reader.line.bits, timeout_s=0.05 + most_ms / 1e3)
        while not self.stop.is_set():
            reader.round(line.transact)
            if (idle_s := reader.idle_s()) > 0:
                self.stop.wait(min(idle_s, 0.2))

    def _tell(self, text: str) -> None:
        """Each state of the port once."""
        if text != self._said:
            say("shelves", text or f"{self.path}: open again")
            self._said = text


def by_port(rows: Sequence[Slot]) -> dict[str, list[Slot]]:
    """The devices of each port."""
    out: dict[str, list[Slot]] = {}
    for slot in rows:
        out.setdefault(slot.shelf.port, []).append(slot)
    return out


def answer(readers: Sequence[PortReader], request: dict[str, Any], reply: Callable[[dict[str, Any]], None]) -> None:
    """One request of the socket: {"do": "write", "device", "item", "value"}."""
    members = {m.slot.name: (reader, m) for reader in readers for m in reader.members}
    name, item, value = (request.get(key) for key in ("device", "item", "value"))
    found = members.get(str(name))
    if request.get("do") != "write" or found is None or not isinstance(value, int) or isinstance(value, bool):
        why = "is no device beside the tick" if found is None else "is no write of a whole number"
        return reply(refusal(why, f"one of {', '.join(members)}"[:200], "device", name))
    reader, member = found
    what = member.slot.map.writable(str(item))
    if what is None:
        names = ", ".join(w.name for w in member.slot.map.writes) or "nothing"
        return reply(refusal(f"is nothing that profile {member.slot.map.name} lets be written", f"it has {names}", "item", item))
    if what.name not in member.slot.shelf.allow:
        remedy = f'allow = ["{what.name}"] in [[shelf]] {member.slot.shelf.name} of the site file'
        return reply(refusal("is not allowed by the site", remedy, "item", item))
    if why := what.refused(value):
        return reply(refusal("is outside what the profile allows", why, "value", value))
    waiting = Request(member, what.name, value)
    reader.requests.put(waiting)
    if not waiting.done.wait(ANSWER_S) and waiting.begun.acquire(blocking=False):
        return reply(refusal("did not come to its turn in time, and is not done", "ask again once the shelf answers", "item", item))
    if not waiting.done.wait(ANSWER_S):
        return reply(refusal("was begun and has no answer yet: it may still be done", "look at the device", "item", item))
    return reply(waiting.answer)


def write_items(directory: Path, readers: Sequence[PortReader]) -> None:
    """Every item read so far, for people: device -> {item: [value, CLOCK_MONOTONIC ns]}, and port -> its sweeps."""
    devices = {
        m.slot.name: {name: [value, m.items_ns[name]] for name, value in list(m.items.items())} for r in readers for m in r.members
    }
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
        server = LineServer(args.directory / SOCKET, lambda request, reply: answer(readers, request, reply), clock)
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
        if clock.monotonic_ns() >= due_ns:
            due_ns = clock.monotonic_ns() + int(ITEMS_S * 1e9)
            write_items(args.directory, readers)
    server.close()
    return EXIT_FAILED if any(port.failed for port in ports) else EXIT_OK


if __name__ == "__main__":
    os._exit(main())
