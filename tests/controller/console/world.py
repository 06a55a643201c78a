"""A site for the console's tests: the real engine on the virtual cabinet in virtual time, found by the console as any running
instance is; sessions of people on lines in memory; a desk that a test fills.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.plant.params import PARAMS
from bench.sim import Simulation
from controller import build, instance, summary, wires
from controller.clock import ManualClock, RealClock
from controller.console.accounts import Accounts
from controller.console.context import Context
from controller.console.line import Gone
from controller.console.presence import Presence
from controller.console.session import Console, table
from controller.instance import Instance
from controller.site import Site
from controller.store import Store
from controller.virtual import LoadOptions
from tests.controller.console.wires import Person, line

PASSWORDS = {"vera": "five small words", "otto": "four small words", "anna": "three small words"}
ROLE = {"vera": "viewer", "otto": "operator", "anna": "engineer"}


class World:
    """One site. `run_s` moves its time."""

    def __init__(self, tmp: Path, monkeypatch: pytest.MonkeyPatch, *, start: bool = True, sets: Sequence[str] = ()) -> None:
        monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp))
        monkeypatch.setenv("BALLAST_STATE_DIR", str(tmp / "state"))
        self.tmp = tmp
        self.contexts: list[Context] = []
        self.wires: list[Any] = []
        self.consoles: list[tuple[Person, threading.Thread]] = []
        self.site: Site = build.load_site(None, sets, lambda: list(PARAMS))
        self.sim = Simulation(self.site, LoadOptions(400e3, repeat=False), for_s=3000)
        self.clock: ManualClock = self.sim.clock
        self.directory = instance.make_directory(self.site.name)
        self.lock = instance.lock(self.directory, self.site.name)
        (self.directory / "site.json").write_text(json.dumps(self.site.to_dict()))
        (self.directory / "plan.txt").write_text(str(self.sim.plan))
        self.state = instance.state_directory(self.site.name)
        pid = os.getpid()
        self.instance = Instance(
            site=self.site.name, pid=pid, run=1, image_fd=self.sim.image.fd, directory=str(self.directory),
            store=str(self.state / "history.sqlite"), control_pid=pid, supervisor_pid=pid, virtual=True,
            plan=(summary.latency(self.sim.plan) or {}) | {"wires": wires.told(self.sim.plan, self.site)},
        )  # fmt: skip
        self.instance.write()
        self.sim.supervisor.store = Store(self.state / "history.sqlite", 1)
        self.accounts = Accounts(self.state)
        self.asked: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda request: {"ok": True}
        monkeypatch.setattr("controller.desk.ask", self._desk)
        monkeypatch.setattr("controller.operate.freeze", lambda where: "kept")  # the supervisor here is this very process
        if start:
            self.sim.to_grid()
            self.run_s(2)

    def end(self) -> None:
        """Gives every descriptor back: hundreds of these worlds live in one process."""
        for ctx in self.contexts:
            ctx.end()
            ctx.close()
            ctx.presence.close()
            if ctx.image is not None:
                ctx.image.close()
        for person, thread in self.consoles:
            with contextlib.suppress(OSError):
                person.hang_up()
            thread.join(10)
        for made in self.wires:
            made.close()
        self.sim.supervisor.store.close()
        self.sim.image.close()
        os.close(self.lock)

    def _desk(self, where: Instance, request: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
        self.asked.append(request)
        return self.answer(request)

    def run_s(self, seconds: float) -> None:
        self.sim.run_s(seconds)
        self.clock.t_ns = self.sim.cosim.now_ns

    def people(self) -> None:
        """An engineer, an operator, a viewer."""
        for name in ("anna", "otto", "vera"):
            self.accounts.add(name, ROLE[name], PASSWORDS[name], first=name == "anna")

    def context(self, user: str = "anna", *, width: int = 100) -> tuple[Context, Person]:
        """A session's view without a prompt: for commands one by one."""
        made, person = line()
        made.width = width
        presence = Presence(self.state, user, ROLE[user], "pair", self.clock.wall_s())
        ctx = Context(self.site.name, made, self.clock, self.accounts, presence)
        ctx.refresh()
        self.contexts.append(ctx)
        self.wires.append(made.wire)
        return ctx, person

    def console(self, *, idle_s: float = 600.0) -> tuple[Person, threading.Thread]:
        """A console on a line in memory, by the wall's clock, waiting for somebody."""
        made, person = line()
        self.wires.append(made.wire)
        served = Console(made.wire, self.site.name, RealClock(), idle_s)

        def run() -> None:
            with contextlib.suppress(Gone):
                served.run()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.consoles.append((person, thread))
        return person, thread


TABLE = table()


def say(ctx: Context, person: Person, text: str) -> str:
    """What a command prints."""
    since = person.mark
    TABLE.run(ctx, text)
    ctx.line.write_bytes(b"\x00")
    return person.sees("\x00", since=since).replace("\r\n", "\n").rstrip("\x00")
