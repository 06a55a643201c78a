"""`ballast run`: the parent of a site's processes. It decides nothing about power; it starts, holds and ends.

    parent (this)  ── desk        settings of the running site are tried, kept and given back (controller.desk)
                   ── plant       the virtual cabinet, where the site is virtual
                   ── control     owns the buses; when it dies the PCS reverts by itself, and control is started again
                   ── supervisor  leases and records; started again at once
                   ── shelves     reads what stands beside the tick, where the site has any; started again at once

The image belongs to the parent, so that no child's death takes it away. SIGTERM: control ramps to 0 and leaves; a
second one: 0 now.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from _core import image as core
from controller import build, instance, operate, outlet, status, summary, wires
from controller.clock import Clock, RealClock
from controller.desk import DESK_NAME, REFUSED, Desk, apply_live
from controller.inforce import InForce
from controller.instance import Instance
from controller.lines import LineServer
from controller.problems import Problem, SiteError
from controller.process import EXIT_AGAIN, EXIT_FAILED, EXIT_INPUT, EXIT_OK, MAPS_NAME, Child, exit_words, keep_messages, say
from controller.records import file_sha256
from controller.settings import LIVE, RESTART
from controller.site import Site, Source
from controller.store import Store
from controller.supervise import RECORD_NAME
from controller.virtual import LoadOptions, Plant, plant_config

RAMP_S = 70.0  # the kernel ramps to 0 in 60 s at most; then the loop is told to leave
LEAVE_S = 5.0
STATUS_S = 5.0
POLL_S = 0.2
TRUTH_NAME = "truth.npz"
ENGINE_NAME = "engine.json"  # histograms of the control thread
FIRST_TICK_S = 30.0
SHELVES_AGAIN_S = 30.0  # what nobody waits for need not fill the log either
SHELF_NAMES = ("shelves", "shelves.json")  # controller.shelves.table, which brings numpy
RESTART_YOUNG_S = 5.0  # a child is not started again on request before: asking again and again must not keep it from working
CONTROL_YOUNG_S = 2.0  # one that dies younger has not come to GRID: no use in hurrying


@dataclass
class Options:
    """What the command line says of a run."""

    load: LoadOptions = field(default_factory=LoadOptions)
    for_s: float | None = None
    out: Path | None = None
    burn: bool = False
    quiet: bool = False
    report: bool = True
    source: Source = field(default_factory=lambda: Source.read(None))


class Parent:
    """One run of one site."""

    def __init__(self, site: Site, options: Options, clock: Clock) -> None:
        self.site, self.options, self.clock = site, options, clock
        self.plan = self.plan_before = build.plan(site)
        self.directory = instance.make_directory(site.name)
        self.lock_fd = instance.lock(self.directory, site.name)
        keep_messages(self.directory, clock)
        self.before = instance.read(self.directory)
        for name in (MAPS_NAME, *SHELF_NAMES):  # of an earlier run
            (self.directory / name).unlink(missing_ok=True)
        self.image = core.ProcessImage.create()
        self.stopping = 0
        self.stop_ns = 0
        self.told = False  # a control that has not taken the image was asked to leave
        self.code = EXIT_OK
        self.figures: dict[str, Any] | None = None  # engine statistics at the end of --for
        self.began_ns: int | None = None
        self.log: Any = None
        self.last_line = ""
        self.plant: Plant | None = None
        self.wanted: dict[str, str] = {}  # children that were killed on purpose, and why
        self.desk = Desk(self, options.source)
        self.server: LineServer | None = None
        self.wake_r, self.wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.files = InForce(self.directory, options.out)
        self.files.begin(site, str(self.plan))
        store = (options.out if options.out is not None else instance.state_directory(site.name)) / "history.sqlite"
        self.instance = Instance(
            site=site.name,
            pid=os.getpid(),
            run=int(clock.wall_s() * 1000),
            image_fd=self.image.fd,
            directory=str(self.directory),
            store=str(store),
            out=str(options.out) if options.out is not None else None,
            virtual=site.virtual,
            devices=[d.name for d in site.devices],
            buses=[b.name for b in site.buses],
            plan=self._kept(site, self.plan),
        )

    # ---- children

    def start(self) -> bool:
        """Starts everything; False where it was asked to stop before.

        Raises SiteError where a port cannot be used, or the virtual cabinet refuses its load or settings.
        """
        self._wait_for_the_last_one()
        if self.stopping:
            return False
        if problems := build.port_problems(self.site):
            raise SiteError(problems)
        if self.site.virtual:
            self.plant = Plant(self.site, plant_config(self.site, self.options.load), self.directory, self.clock, self.log)
            self.plant.start()
            self.instance.plant_pid = self.plant.child.pid
        fds = (self.image.fd,)
        self.control = Child("control", self._control_argv(), self.clock, fds, self.log)
        self.control.backoff.young_s = CONTROL_YOUNG_S
        burn = ["--burn"] if self.options.burn else []
        self.supervisor = Child("supervisor", ["controller.supervise", *self._common_argv(), *burn], self.clock, fds, self.log)
        shelves = ["controller.shelves.reader", "--directory", str(self.directory), "--parent", str(os.getpid())]
        self.shelves = Child("shelves", shelves, self.clock, (), self.log)
        self.shelves.backoff.most_s = SHELVES_AGAIN_S
        self.instance.write()
        self.supervisor.start()
        self._wait_for_lease()
        self.control.start()
        if self.site.shelves:
            self.shelves.start()
        self._tell()
        self._open_desk()
        return True

    def _common_argv(self) -> list[str]:
        return ["--directory", str(self.directory), "--image-fd", str(self.image.fd), "--parent", str(os.getpid())]

    def _control_argv(self) -> list[str]:
        ports = self.plant.ports if self.plant is not None else {b.name: b.port for b in self.site.buses}
        return ["controller.control", *self._common_argv(), *(arg for bus, path in ports.items() for arg in ("--port", f"{bus}={path}"))]

    def _open_desk(self) -> None:
        try:
            self.server = LineServer(self.directory / DESK_NAME, self.desk.handle, self.clock)
        except OSError as e:  # the site runs as it was started
            say("ballast", f"{self.directory / DESK_NAME}: {e.strerror or e}: settings cannot be changed in this run")

    def _wait_for_the_last_one(self) -> None:
        """Where an earlier run's parent was killed, its control is still ramping down, and has the ports: at most 60 s."""
        if self.before is None or not instance.holds_image(self.before):
            return
        say("ballast", f"control of an earlier run (process {self.before.control_pid}) ramps down first")
        until_ns = self.clock.monotonic_ns() + int((RAMP_S + LEAVE_S) * 1e9)
        while instance.holds_image(self.before) and self.clock.monotonic_ns() < until_ns and not self.stopping:
            select.select([self.wake_r], [], [], POLL_S)
            self._signals()

    def _wait_for_lease(self) -> None:
        """The first tick shall have the supervisor's limits; without them it has the site's, so this waits no longer than it takes."""
        until_ns = self.clock.monotonic_ns() + int(LEAVE_S * 1e9)
        while not (self.image.limits() or {}).get("lease_until_ns") and self.clock.monotonic_ns() < until_ns:
            if select.select([self.supervisor.pidfd], [], [], 0.02)[0]:
                return

    def _tell(self) -> None:
        """Writes instance.json anew, after anything in it has changed."""
        self.instance.control_pid = self.control.pid
        self.instance.supervisor_pid = self.supervisor.pid
        try:
            self.instance.write()
        except OSError as e:  # a full disk: others find us by older numbers, the site runs on
            say("ballast", f"{self.directory}/instance.json: {e.strerror}")

    def _look_after(self) -> bool:
        """Reaps, restarts, ends. False when the run is over."""
        now_ns = self.clock.monotonic_ns()
        code = self.control.reap()
        if code is not None and not self._control_ended(code):
            return False
        code = self.supervisor.reap()
        if code is not None and not self._was_wanted(self.supervisor):
            wait_s = self.supervisor.plan_restart()
            say("ballast", f"supervisor {exit_words(code)}; started again" + (f" in {wait_s:.1f} s" if wait_s else ""))
        if (code := self.shelves.reap()) is not None and not self.stopping:
            wait_s = self.shelves.plan_restart()
            say("ballast", f"shelves {exit_words(code)}; started again" + (f" in {wait_s:.1f} s" if wait_s else ""))
        if self.plant is not None and (code := self.plant.child.reap()) is not None and not self.stopping:
            say("ballast", f"the virtual cabinet {exit_words(code)}")
            self.code = EXIT_FAILED
            self.stop(2)
        for child in (self.control, self.supervisor, self.shelves):
            if child.again_ns is not None and now_ns >= child.again_ns:
                if why := child.start_again():
                    say("ballast", why)
                self._tell()
        return self._bound_stop(now_ns)

    def _control_ended(self, code: int) -> bool:
        """What follows from control's end: the end of the run, or a restart (True)."""
        self._tell()
        if self.stopping:
            return False
        if self._was_wanted(self.control):
            return True
        refused = code == EXIT_INPUT and self.image.latest() is None and self.desk.trial is None  # a trial goes back by itself
        if code == EXIT_OK or refused:
            self.code = code
            return False
        if code != EXIT_AGAIN:
            say("ballast", f"control {exit_words(code)}; the PCS reverts by itself, control is started again")
        self.control.plan_restart()
        return True

    def _was_wanted(self, child: Child) -> bool:
        """True where we ended it ourselves: then it is started at once, whatever its age."""
        why = self.wanted.pop(child.name, None)
        if why is None:
            return False
        say("ballast", f"{child.name} is started again: {why}")
        child.again_ns = self.clock.monotonic_ns()
        return True

    # ---- settings of a running site: what the desk asks for (controller.desk.Host)

    def ready(self) -> bool:
        """True while control has handed its settings to the engine: they can be changed in place."""
        return self.control.pid != 0 and int(self.image.control_pid) == self.control.pid

    def take(self, site: Site, how: str) -> int:
        """Puts other settings in force; see Host."""
        made = build.plan(site)
        self.files.stage(site)
        self.files.commit()  # before the engine has it: what fails here has changed nothing
        try:
            revision = apply_live(self.image, site) if how == LIVE else 0
        except BaseException:  # also what nobody has thought of: the files never say what the engine has not
            self.files.back(self.site)
            raise
        self.plan_before = self.plan
        self._in_force(site, made, how)
        return revision

    def give_back(self, site: Site, how: str) -> int:
        """The settings before `take` again; where control cannot take them in place it is started again with them."""
        revision = 0
        self.files.back(site)
        if how == LIVE:
            try:
                if not self.ready():
                    raise ValueError("control is starting")
                revision = apply_live(self.image, site)
            except Exception as e:  # whatever it is: they come back
                say("ballast", f"the old settings come back with a new control: {e}")
                how = RESTART
        self._in_force(site, self.plan_before, how)  # not made anew: that reads profiles, which somebody may be editing
        return revision

    def keep(self) -> None:
        """There is no way back any more."""
        self.files.keep()

    def restart(self, child: str, why: str) -> str:
        """Starts a child again; says why not."""
        one = {"control": self.control, "supervisor": self.supervisor}[child]
        age_s = (self.clock.monotonic_ns() - one.started_ns) / 1e9
        if not one.pid:
            return f"{child} does not run: it is started again already"
        if age_s < RESTART_YOUNG_S:
            return f"{child} was started {age_s:.1f} s ago: at most once in {RESTART_YOUNG_S:g} s"
        self._begin_again(one, why)
        return ""

    def note(self, who: str, command: str, lease_s: float | None, text: str) -> None:
        """A row in the audit trail, and a line."""
        say("ballast", f"{command} by {who}: {text}")
        operate.audit(self.instance, self.clock, who, command, None, lease_s, text)

    @staticmethod
    def _kept(site: Site, plan: Any) -> dict[str, Any]:
        """What other processes need of the plan."""
        return (summary.latency(plan) or {}) | {"wires": wires.told(plan, site)}

    def _in_force(self, site: Site, made: Any, how: str) -> None:
        self.site, self.plan = site, made
        self.files.show(site, str(made))
        if how == RESTART:
            self.instance.plan = self._kept(site, made)
            self.control.argv = self._control_argv()
            self._begin_again(self.control, "with other settings")

    def _begin_again(self, child: Child, why: str) -> None:
        """SIGKILL, not SIGTERM: that means ramp to 0 and put the PCS into standby. A killed control leaves the PCS at its last
        command with the reversion timer running, and the next one adopts it: a way that is walked, and tested, at every crash.
        """
        if child.pid and not self.stopping:
            self.wanted[child.name] = why
            child.send(signal.SIGKILL)

    # ---- stopping

    def stop(self, level: int) -> None:
        """1: ramp to 0, 2: 0 now, 3: leave the loop."""
        if level <= self.stopping:
            return
        if not self.stopping:
            self.stop_ns = self.clock.monotonic_ns()
        self.stopping = level
        self.image.request_stop(min(level, 3))
        if not hasattr(self, "control"):
            return
        if self.control.pid == 0 or int(self.image.head) == 0:
            self.control.send(signal.SIGTERM)  # still starting: it waits for a device, not for the image

    def _bound_stop(self, now_ns: int) -> bool:
        """A stop ends in a bounded time. False when there is no control left to wait for."""
        if not self.stopping:
            return True
        for_s = (now_ns - self.stop_ns) / 1e9
        if for_s > RAMP_S + 2 * LEAVE_S:
            self.control.send(signal.SIGKILL)
            return self.control.pid != 0  # 0: the system has had no process to give for it
        if for_s > RAMP_S:
            self.image.request_stop(3)
        if not self.ready() and not self.told and (for_s > LEAVE_S or self.stopping > 2):
            # It was started again and waits for a device, not for the image; usually it is back within LEAVE_S, and ramps down.
            self.control.send(signal.SIGTERM)
            self.told = self.control.pid != 0
        return True

    def _signals(self) -> None:
        """SIGTERM and SIGINT raise the level by one each; the second means 0 now."""
        with contextlib.suppress(BlockingIOError):
            while got := os.read(self.wake_r, 64):
                for signum in got:
                    if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                        self.stop(self.stopping + 1)
                        word = {1: "ramping to 0 W; once more: 0 W now", 2: "0 W now"}.get(self.stopping, "leaving")
                        say("ballast", word)

    # ---- the loop

    def run(self) -> int:
        """From start to summary. Returns the exit code."""
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, lambda *_: None)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # for the children: a freeze asked of a supervisor that starts must not end it
        signal.set_wakeup_fd(self.wake_w, warn_on_full_buffer=False)
        screen = outlet.Screen(sys.stdout.fileno()) if sys.stdout.isatty() and not self.options.quiet else None
        log_path = self.directory / "log"
        try:
            with contextlib.ExitStack() as stack:
                if screen is not None:
                    # The picture owns the terminal; what children say is kept beside it and shown if the run fails.
                    self.log = stack.enter_context(open(log_path, "wb"))
                # Before the first picture: a refusal at start belongs on the plain terminal.
                going = self.start() and self._wait_for_first_tick()
                show = stack.enter_context(_live(self, screen)) if screen is not None and going else _lines(self)
                while going and self._look_after():
                    self._wait()
                    self._check_duration()
                    show()
        finally:
            self._end()
        if screen is not None:
            # What the picture had hidden: the log where something failed, else how it ended.
            screen.write(log_path.read_text(errors="replace")[-4000:] if self.code else self.last_line + "\n")
            screen.part()
        if self.code == EXIT_OK and self.options.out is not None:
            try:
                self._summarise()
            except OSError as e:
                say("ballast", f"no summary: {e.filename or self.options.out}: {e.strerror}")
                self.code = EXIT_FAILED
        return self.code

    def _wait_for_first_tick(self) -> bool:
        """False when control has ended before it."""
        until_ns = self.clock.monotonic_ns() + int(FIRST_TICK_S * 1e9)
        while int(self.image.head) == 0 and self.clock.monotonic_ns() < until_ns and not self.stopping:
            self._wait()
            if not self._look_after():
                return False
        return True

    def _wait(self) -> None:
        fds = [self.wake_r, *(fd for fd in (self.control.pidfd, self.supervisor.pidfd, self.shelves.pidfd) if fd >= 0)]
        reading, writing = self.server.fds() if self.server is not None else ([], [])
        asked = [self.plant.fileno()] if self.plant is not None and self.plant.owes() else []
        ready = select.select([*fds, *reading, *asked], writing, [], POLL_S)
        self._signals()
        if self.plant is not None:
            if set(asked) & set(ready[0]):
                self.plant.hear()
            self.plant.expire()
        if self.server is not None:
            self.server.serve({*ready[0], *ready[1]})
        try:
            self.desk.tick(self.clock.monotonic_ns())
        except REFUSED as e:  # the parent has a site to hold; the trial stands, and is given back at the next look
            say("ballast", f"a trial could not be given back: {e}; trying again")

    def _check_duration(self) -> None:
        """--for counts from the first tick; figures are taken then, before the stop spoils them."""
        if self.began_ns is None and int(self.image.head):
            self.began_ns = int(self.image.engine_stats()["start_ns"])
        if self.options.for_s is None or self.began_ns is None or self.stopping:
            return
        if self.clock.monotonic_ns() - self.began_ns >= self.options.for_s * 1e9:
            self._take_figures()
            # The virtual cabinet feeds nobody; a real site is ramped down as by SIGTERM.
            self.stop(2 if self.site.virtual else 1)

    def _take_figures(self) -> None:
        if self.figures is None and self.began_ns is not None:
            self.figures = {
                "stats": self.image.engine_stats(),
                "buses": summary.buses(self.image, self.site),
                "wires": wires.collect(self.image, self.site, wires.told(self.plan, self.site)),
                "not_held_s": (self.image.latest() or {"out": {"not_held_s": None}})["out"]["not_held_s"],
                "duration_s": (self.clock.monotonic_ns() - self.began_ns) / 1e9,
            }
            if self.plant is not None and self.options.out is not None:
                self.figures["truth"] = self.plant.write_truth(self.options.out / TRUTH_NAME)

    def _end(self) -> None:
        """Supervisor after control, so that the last tick is on disk; the cabinet last."""
        self.desk.close()
        if self.server is not None:
            self.server.close()
        self._take_figures()
        self.last_line = status.line(status.collect(self.instance, self.site, self.image, self.clock))
        if hasattr(self, "control"):
            self.control.send(signal.SIGTERM)
            if self.control.wait(LEAVE_S) is None:
                self.control.send(signal.SIGKILL)
                self.control.wait(1)
            self.shelves.send(signal.SIGTERM)
            self.supervisor.send(signal.SIGTERM)
            if self.supervisor.wait(LEAVE_S) is None:
                self.supervisor.send(signal.SIGKILL)
                self.supervisor.wait(1)
            if self.shelves.wait(1) is None:
                self.shelves.send(signal.SIGKILL)
                self.shelves.wait(1)
        if self.plant is not None:
            self.plant.child.send(signal.SIGTERM)
            if self.plant.child.wait(4 * LEAVE_S) is None:  # it writes its truth
                self.plant.child.send(signal.SIGKILL)
                self.plant.child.wait(1)
        left = instance.read(self.directory)
        if left is None or left.pid == os.getpid():  # not that of an earlier run whose control still ramps down
            with contextlib.suppress(OSError):
                (self.directory / "instance.json").unlink()

    # ---- afterwards

    def _summarise(self) -> None:
        assert self.options.out is not None
        if self.figures is None:
            say("ballast", "no tick was run: no summary")
            return
        store = Store(Path(self.instance.store), self.instance.run)
        events = store.events()
        store.close()
        rows = summary.event_rows(events, self.began_ns or 0)
        judged = None
        if self.figures.get("truth"):
            grid_ns = next((t_ns for _, t_ns, kind, text in events if kind == "mode" and text.endswith("GRID")), None)
            judged = judge(self.options.out, self.site, grid_ns)
        if judged is not None:
            judged["grid"] = dict(judged.get("grid") or {}) | {"ramp_not_held_s": self.figures["not_held_s"]}
        text = summary.compose(
            site=self.site,
            mode="run",
            seed=self.options.load.seed if self.plant is not None else None,
            duration_s=self.figures["duration_s"],
            engine_stats=self.figures["stats"],
            plan=self.plan,
            judged=judged,
            bus_rows=self.figures["buses"],
            events=rows,
            record_sha256=file_sha256(self.options.out / RECORD_NAME),
        )
        say("ballast", f"wrote {summary.write(text, self.options.out)}")
        histograms = {key: list(self.figures["stats"][key]) for key in ("wake_us", "step_ns")}
        (self.options.out / ENGINE_NAME).write_text(json.dumps(histograms))
        wires.write(self.figures["wires"], self.options.out)
        if self.options.report:
            report(self.options.out)


def judge(out: Path, site: Site, grid_ns: int | None) -> dict[str, Any] | None:
    """Figures from truth.npz (and site.json) in `out`, by the judge in a process of its own; None (and a line) where
    it cannot.
    """
    ramp = max(site.num("grid.ramp_up_w_per_s"), site.num("grid.ramp_down_w_per_s"))
    argv = [sys.executable, "-m", "bench.judge", str(out), "--ramp", f"{ramp:g}"]
    argv += ["--import-limit", f"{site.num('grid.import_limit_w'):g}"]
    argv += ["--since-ns", str(grid_ns)] if grid_ns is not None else []
    done = subprocess.run(argv, capture_output=True, text=True)
    try:
        return dict(json.loads(done.stdout))
    except (ValueError, TypeError):
        say("ballast", f"the judge failed: {done.stderr.strip()[-500:] or done.stdout.strip()[-200:]}")
        return None


def report(out: Path) -> None:
    """report.html, by a process of its own: matplotlib belongs to the bench, and may be absent."""
    done = subprocess.run([sys.executable, "-m", "bench.report", str(out)], capture_output=True, text=True)
    say("ballast", (done.stdout.strip() or done.stderr.strip()).removeprefix("ballast: "))


def _lines(parent: Parent) -> Callable[[], None]:
    """Without a terminal: a status line every 5 s."""
    due_ns = parent.clock.monotonic_ns()

    def show() -> None:
        nonlocal due_ns
        now_ns = parent.clock.monotonic_ns()
        if now_ns < due_ns or parent.options.quiet:
            return
        due_ns = now_ns + int(STATUS_S * 1e9)
        line = status.line(status.collect(parent.instance, parent.site, parent.image, parent.clock))
        with contextlib.suppress(OSError, ValueError):  # a full disk or a closed pipe is no reason to stop a site
            outlet.put(sys.stdout.fileno(), f"{line}\n".encode())

    return show


@contextlib.contextmanager
def _live(parent: Parent, screen: outlet.Screen) -> Any:
    """On a terminal: the picture of `ballast top`. Where the terminal does not take it (Ctrl-S), the next ones are left out."""
    from rich.console import Console

    from controller.top import REFRESH_S, View
    from controller.topdata import Source

    source = Source(parent.image, parent.site, parent.instance)
    due_ns = 0
    with View(Console(file=cast(IO[str], screen))) as view:

        def show() -> None:
            nonlocal due_ns
            now_ns = parent.clock.monotonic_ns()
            if now_ns >= due_ns and screen.ready():
                due_ns = now_ns + int(REFRESH_S * 1e9)
                source.site = parent.site
                view.draw(source.snapshot(now_ns))

        yield show


def run(site: Site, options: Options) -> int:
    """`ballast run`. Raises SiteError, PlanError and InstanceError before anything runs."""
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / ".writable").touch()
            (options.out / ".writable").unlink()
        except OSError as e:
            why = f"cannot be written: {e.strerror}"
            raise SiteError([Problem("", "--out", str(options.out), why, "give another directory")]) from None
        if (options.out / RECORD_NAME).exists():
            why = "holds the record of an earlier run"
            raise SiteError([Problem("", "--out", str(options.out), why, "give another directory")])
    return Parent(site, options, RealClock()).run()
