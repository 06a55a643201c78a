"""The parent's side of the desk, without processes: what is written, who is started again, and why."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller import build, process
from controller.clock import ManualClock
from controller.process import EXIT_AGAIN, EXIT_INPUT, EXIT_OK
from controller.run import Options, Parent
from controller.site import Site
from controller.store import Store

LIMIT = "grid.import_limit_w"
SECOND = 1_000_000_000


class Someone:
    """A child that does not exist; signals are kept."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid, self.started_ns, self.again_ns = name, pid, 0, None
        self.argv: list[str] = []
        self.sent: list[int] = []

    def send(self, signum: int) -> None:
        self.sent.append(signum)

    def plan_restart(self) -> float:
        self.again_ns = -1  # type: ignore[assignment]
        return 0.0


class LiveImage:
    """The real image, which takes struct Site while it runs, or refuses."""

    def __init__(self, image: Any) -> None:
        self.image, self.given, self.refuses = image, [], None  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.image, name)

    def update_site(self, values: dict[str, float]) -> int:
        if self.refuses is not None:
            raise self.refuses
        self.given.append(values)
        return len(self.given)


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Parent]:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("BALLAST_STATE_DIR", str(tmp_path / "state"))
    made = Parent(build.load_site(None, [], lambda: []), Options(), ManualClock(100 * SECOND))
    made.control, made.supervisor = Someone("control", 11), Someone("supervisor", 12)  # type: ignore[assignment]
    made.image.set_control_pid(11)
    made.image = LiveImage(made.image)
    yield made
    os.close(made.lock_fd)
    process._messages = None


def other(*sets: str) -> Site:
    return build.load_site(None, sets, lambda: [])


def on_disk(parent: Parent) -> Site:
    return build.site_from(parent.directory / "site.json")


def test_a_start_leaves_settings_and_plan_in_words(parent: Parent) -> None:
    assert on_disk(parent) == parent.site and (parent.directory / "plan.txt").read_text() == f"{parent.plan}\n"
    assert parent.ready()
    parent.image.set_control_pid(10)
    assert not parent.ready(), "the engine still has what the control before gave it"


def test_live_settings_reach_the_engine_and_the_supervisor_s_file(parent: Parent) -> None:
    before, new = parent.site, other(f"{LIMIT}=440000")
    assert parent.take(new, "live") == 1
    assert parent.image.given[-1]["import_limit_w"] == 440e3 and on_disk(parent) == new == parent.site
    assert parent.give_back(before, "live") == 2
    assert parent.image.given[-1]["import_limit_w"] == 445e3 and on_disk(parent) == before == parent.site
    assert not parent.control.sent  # type: ignore[attr-defined]


CONTRADICTION = ValueError("two values contradict each other")


@pytest.mark.parametrize("why", [CONTRADICTION, KeyError("nobody has thought of it"), KeyboardInterrupt(), None])
def test_a_refusal_changes_nothing(parent: Parent, why: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's, or (None) that of a disk which is full."""
    before = parent.site

    def full(self: Path, *_: Any) -> int:
        raise OSError(28, "No space left on device")

    parent.image.refuses = why
    if why is None:
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(type(why) if why is not None else OSError):
        parent.take(other(f"{LIMIT}=440000"), "live")
    monkeypatch.undo()
    assert on_disk(parent) == before == parent.site and not parent.image.given


def test_other_settings_come_with_a_control_that_is_killed_and_at_once_started_again(parent: Parent) -> None:
    before = parent.site
    assert parent.take(other("pcs.tau_s=0.004"), "restart") == 0
    assert parent.control.sent == [signal.SIGKILL] and on_disk(parent).num("pcs.tau_s") == 0.004  # type: ignore[attr-defined]
    assert (parent.directory / "plan.txt").read_text() == f"{build.plan(parent.site)}\n"
    assert parent._control_ended(-signal.SIGKILL) and parent.control.again_ns == parent.clock.monotonic_ns(), "without a wait"
    parent.control.again_ns = None
    assert parent._control_ended(-signal.SIGKILL) and parent.control.again_ns == -1, "the next death is one of its own"
    parent.give_back(before, "restart")
    assert parent.control.sent == [signal.SIGKILL] * 2 and on_disk(parent) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("why", [CONTRADICTION, KeyError("nobody has thought of it"), "starting"])
def test_what_cannot_come_back_in_place_comes_back_with_a_new_control(parent: Parent, why: Any) -> None:
    before = parent.site
    parent.take(other(f"{LIMIT}=440000"), "live")
    if why != "starting":
        parent.image.refuses = why
    else:
        parent.image.set_control_pid(10)  # it has read the trial's settings, and not yet handed them over
    assert parent.give_back(before, "live") == 0
    assert on_disk(parent) == before and parent.control.sent == [signal.SIGKILL]  # type: ignore[attr-defined]


def test_nobody_is_killed_while_the_site_ramps_down(parent: Parent) -> None:
    before = parent.site
    parent.take(other("pcs.tau_s=0.004"), "restart")
    parent.stopping = 1
    parent.give_back(before, "restart")
    assert parent.control.sent == [signal.SIGKILL] and on_disk(parent) == before  # type: ignore[attr-defined]


def test_a_stop_does_not_wait_for_a_control_that_waits_for_a_device(parent: Parent) -> None:
    """It was started again and has not come to its first tick; the image has ticks of the one before."""
    parent.image.head = 500
    parent.image.set_control_pid(10)
    parent.stop(1)
    began_ns, sent = parent.clock.monotonic_ns(), parent.control.sent  # type: ignore[attr-defined]
    assert parent._bound_stop(began_ns + 4 * SECOND) and sent == [], "it may come yet, and ramps down"
    for at_s in (6, 7, 60):
        assert parent._bound_stop(began_ns + at_s * SECOND) and sent == [signal.SIGTERM], "once"
    assert parent._bound_stop(began_ns + 81 * SECOND) and sent[-1] == signal.SIGKILL
    parent.control.pid = 0  # type: ignore[misc]
    assert not parent._bound_stop(began_ns + 81 * SECOND), "the system has none to give"


def test_a_control_that_ramps_down_has_its_minute(parent: Parent) -> None:
    parent.image.head = 500
    parent.stop(1)
    began_ns, sent = parent.clock.monotonic_ns(), parent.control.sent  # type: ignore[attr-defined]
    assert parent._bound_stop(began_ns + 69 * SECOND) and sent == [] and int(parent.image.stop) == 1
    assert parent._bound_stop(began_ns + 71 * SECOND) and sent == [] and int(parent.image.stop) == 3
    assert parent._bound_stop(began_ns + 81 * SECOND) and sent == [signal.SIGKILL]


def test_a_third_signal_waits_for_nobody(parent: Parent) -> None:
    parent.image.head = 500
    parent.image.set_control_pid(10)
    parent.stop(3)
    assert parent._bound_stop(parent.clock.monotonic_ns()) and parent.control.sent == [signal.SIGTERM]  # type: ignore[attr-defined]


def test_a_control_that_a_trial_s_settings_refuse_ends_no_run(parent: Parent) -> None:
    answers: list[dict[str, Any]] = []
    parent.desk.handle({"do": "try", "who": "kim", "changes": {"pcs.tau_s": 0.004}}, answers.append)
    assert answers[0]["ok"] and parent._control_ended(-signal.SIGKILL)
    assert parent._control_ended(EXIT_INPUT), "a new control says that this cannot be: the trial will end"
    parent.desk.handle({"do": "back", "who": "kim", "id": 1}, answers.append)
    assert answers[1]["ok"] and parent._control_ended(EXIT_AGAIN)
    assert not parent._control_ended(EXIT_INPUT) and parent.code == EXIT_INPUT, "without a trial it ends the run, as at a start"
    assert not parent._control_ended(EXIT_OK)
    store = Store(Path(parent.instance.store), readonly=True)
    assert [row[2:4] for row in store.audit()][::-1] == [("kim", "settings try"), ("kim", "settings back")]
    store.close()


def test_a_restart_on_request_waits_for_a_child_to_have_lived(parent: Parent) -> None:
    parent.control.started_ns = parent.clock.monotonic_ns() - SECOND
    assert "1.0 s ago" in parent.restart("control", "asked by kim") and not parent.control.sent  # type: ignore[attr-defined]
    assert parent.restart("supervisor", "asked by kim") == ""
    assert parent.supervisor.sent == [signal.SIGKILL]  # type: ignore[attr-defined]
    parent.supervisor.pid = 0  # type: ignore[misc]
    assert "started again already" in parent.restart("supervisor", "asked by kim")


def test_a_run_with_out_shows_the_settings_beside_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "out").mkdir()
    parent = Parent(other(), Options(out=tmp_path / "out"), ManualClock(100 * SECOND))
    parent.control = Someone("control", 11)  # type: ignore[assignment]
    assert json.loads((tmp_path / "out/site.json").read_text()) == json.loads((parent.directory / "site.json").read_text())
    parent.take(other("pcs.tau_s=0.004"), "restart")
    assert json.loads((tmp_path / "out/site.json").read_text()) == json.loads((parent.directory / "site.json").read_text())
    os.close(parent.lock_fd)
    process._messages = None
