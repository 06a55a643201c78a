"""The settings desk on a clock that the test moves: tried, confirmed, given back, and never half of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import build, lines
from controller import desk as desks
from controller import site as sites
from controller.clock import ManualClock
from controller.desk import Desk, apply_live
from controller.instance import Instance, InstanceError
from controller.ports import VIRTUALS
from controller.problems import Problem, SiteError
from controller.settings import DEVICE, SETTINGS, row_of
from controller.site import Site, Source

SECOND = 1_000_000_000
LIMIT = "grid.import_limit_w"


class FakeImage:
    """An image that takes struct Site while it runs; `site_rev` follows where `takes` is true."""

    def __init__(self) -> None:
        self.given: list[dict[str, float]] = []
        self.takes = True
        self.site_rev = 1

    def update_site(self, values: dict[str, float]) -> int:
        self.given.append(values)
        if self.takes:
            self.site_rev = 1 + len(self.given)
        return 1 + len(self.given)


class FakePlant:
    """The virtual cabinet's end of the pipe."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def ask(self, message: dict[str, Any], done: Any) -> None:
        if len(self.asked) >= 2:
            raise ValueError("the virtual cabinet does not answer")
        self.asked.append((message, done))


class Host:
    """The parent, without processes."""

    def __init__(self, source: Source) -> None:
        self.site = build.load_site(source.path, source.sets, lambda: ["battery.soc"], text=source.text)
        self.image = FakeImage()
        self.clock, self.stopping, self.plant = ManualClock(), 0, None
        self.instance = Instance("s", 1, 1, 3, "", "")
        self.is_ready, self.fails = True, None
        self.done: list[tuple[str, ...]] = []
        self.trail: list[tuple[str, str, str]] = []

    def ready(self) -> bool:
        return self.is_ready

    def take(self, site: Site, how: str) -> int:
        if self.fails is not None:
            raise self.fails
        self.done.append(("take", how))
        self.site = site
        return apply_live(self.image, site) if how == "live" else 0

    def give_back(self, site: Site, how: str) -> int:
        self.done.append(("back", how))
        self.site = site
        return apply_live(self.image, site) if how == "live" else 0

    def keep(self) -> None:
        self.done.append(("keep",))

    def restart(self, child: str, why: str) -> str:
        if self.fails is not None:
            return str(self.fails)
        self.done.append(("restart", child))
        return ""

    def note(self, who: str, command: str, lease_s: float | None, text: str) -> None:
        self.trail.append((who, command, text))


class Bench:
    """Desk and host; `ask` is one request over the wire's own encoding."""

    def __init__(self, path: Path | None = None, sets: tuple[str, ...] = ()) -> None:
        source = Source.read(None if path is None else str(path), sets)
        self.host = Host(source)
        self.desk = Desk(self.host, source)  # type: ignore[arg-type]

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        got: list[dict[str, Any]] = []
        self.desk.handle(lines.parse(json.dumps({"do": do, **fields}).encode()), got.append)
        assert len(got) == 1, "one answer"
        return lines.parse(lines.encode(got[0]).rstrip())

    def try_(self, changes: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return self.ask("try", **{"who": "kim", "changes": changes} | fields)

    def wait(self, seconds: float) -> None:
        self.host.clock.t_ns += int(seconds * SECOND)
        self.desk.tick(self.host.clock.t_ns)

    def commands(self) -> list[tuple[str, str]]:
        return [(who, command) for who, command, _ in self.host.trail]


def real_site(tmp_path: Path, extra: str = "") -> Path:
    """A site file with real ports, which are PTYs."""
    ports = [os.ttyname(os.openpty()[1]) for _ in range(2)]
    text = sites.BUILTIN.read_text().replace('"virtual"  ', f'"{ports[0]}"  ').replace('"virtual"\n', f'"{ports[1]}"\n')
    path = tmp_path / "hall.toml"
    path.write_text(text.replace('"builtin"', '"hall"') + extra)
    return path


# ---------------------------------------------------------------- what is in force


def test_settings_are_all_there() -> None:
    bench = Bench(sets=("grid.import_limit_w=440000",))
    got = bench.ask("settings")
    assert got["ok"] and got["file"] == "built-in site" and got["pending"] is None
    assert set(got["values"]) >= set(SETTINGS) and got["values"]["bus.a.baud"] == 460800
    assert {f"device.pcs.{key}" for key in DEVICE} <= set(got["values"])
    assert got["running"] == {LIMIT: [445e3, 440e3]}, "the file says another than what is in force"


def test_a_file_that_became_wrong_is_named(tmp_path: Path) -> None:
    path = real_site(tmp_path)
    bench = Bench(path)
    path.write_text("[grid\n")
    got = bench.ask("settings")
    assert got["ok"] and "is not TOML" in got["file_problem"] and got["values"][LIMIT] == 445e3


# ---------------------------------------------------------------- a trial


def test_a_live_trial_acts_at_once_and_returns_by_itself() -> None:
    bench = Bench()
    got = bench.try_({LIMIT: "440 kW", "control.soc_time_s": 600}, seconds=30)
    assert got == {
        "ok": True, "id": 1, "how": "live", "seconds": 30.0, "follows": {},
        "changes": {LIMIT: [445e3, 440e3], "control.soc_time_s": [900.0, 600.0]},
    }  # fmt: skip
    fields = bench.host.image.given[-1]
    assert fields["import_limit_w"] == 440e3 and fields["soc_time_s"] == 600.0
    assert not [name for name in fields if name.startswith("has_")], "which groups the devices give is not touched"
    assert set(build.kernel_site(bench.host.site)) - set(fields) == {name for name in build.kernel_site(bench.host.site) if "has_" in name}
    bench.wait(29.9)
    pending = bench.ask("settings")["pending"]
    assert pending == {"id": 1, "who": "kim", "changes": got["changes"], "left_s": 0.1, "how": "live"}
    bench.wait(0.1)
    assert bench.host.image.given[-1]["import_limit_w"] == 445e3 and bench.host.site.num(LIMIT) == 445e3
    assert bench.ask("settings")["pending"] is None and bench.ask("settings")["running"] == {}
    assert bench.commands() == [("kim", "settings try"), ("ballast", "settings return")]
    assert bench.host.trail[1][2] == f"{LIMIT} 440000.0 -> 445000.0, control.soc_time_s 600.0 -> 900.0; nobody confirmed what kim tried"


def test_a_restart_trial_and_its_way_back() -> None:
    bench = Bench()
    got = bench.try_({"pcs.tau_s": "4 ms"})
    assert got["how"] == "restart" and got["seconds"] == 60.0 and got["changes"] == {"pcs.tau_s": [0.002, 0.004]}
    assert bench.ask("back", who="lee", id=1)["changes"] == {"pcs.tau_s": [0.004, 0.002]}
    assert bench.host.done == [("take", "restart"), ("back", "restart")] and not bench.host.image.given
    assert bench.commands() == [("kim", "settings try"), ("lee", "settings back")]
    assert bench.host.site.num("pcs.tau_s") == 0.002
    bench.wait(700)
    assert len(bench.host.trail) == 2, "what is given back does not return again"


def test_what_follows_from_a_change_is_named() -> None:
    got = Bench().try_({"pcs.s_rated_va": "240 kVA"})
    assert got["follows"] == {"pcs.p_max_w": [250e3, 240e3], "control.follow_w": [25e3, 24e3]} and got["how"] == "restart"


def test_a_control_that_starts_is_started_again_with_it() -> None:
    bench = Bench()
    bench.host.is_ready = False
    assert bench.try_({LIMIT: 440e3})["how"] == "restart" and bench.host.done == [("take", "restart")]


def test_one_at_a_time_and_the_holder_is_named() -> None:
    bench = Bench()
    bench.try_({LIMIT: 440e3}, seconds=100)
    bench.wait(40)
    got = bench.try_({LIMIT: 430e3}, who="lee")
    assert not got["ok"] and "kim is trying grid.import_limit_w 445000.0 -> 440000.0 for another 60 s (trial 1)" in got["error"]
    assert bench.host.site.num(LIMIT) == 440e3
    for wrong in (2, 0, True, "1", None):
        assert not bench.ask("confirm", who="lee", id=wrong)["ok"] and not bench.ask("back", who="lee", id=wrong)["ok"]
    assert bench.ask("settings")["pending"]["left_s"] == 60.0


def test_a_confirmation_that_comes_too_late_is_refused() -> None:
    bench = Bench()
    bench.try_({LIMIT: 440e3}, seconds=5)
    bench.host.clock.t_ns += 5 * SECOND  # no pass of the loop in between
    got = bench.ask("confirm", who="kim", id=1)
    assert not got["ok"] and "time is over" in got["error"]
    assert bench.host.site.num(LIMIT) == 445e3 and bench.commands()[-1] == ("ballast", "settings return")


def test_what_the_engine_does_not_take_within_a_second_comes_with_a_new_control() -> None:
    bench = Bench()
    bench.host.image.takes = False
    bench.try_({LIMIT: 440e3})
    bench.wait(0.9)
    assert ("restart", "control") not in bench.host.done
    bench.wait(0.2)
    assert bench.host.done[-1] == ("restart", "control")
    bench.wait(5)
    assert bench.host.done.count(("restart", "control")) == 1


def test_a_restart_that_is_refused_for_now_is_asked_for_again() -> None:
    bench = Bench()
    bench.host.image.takes = False
    bench.try_({LIMIT: 440e3})
    bench.host.fails = ValueError("control was started 1.2 s ago")
    for _ in range(4):
        bench.wait(1.1)
    bench.host.fails = None
    assert ("restart", "control") not in bench.host.done
    bench.wait(1.1)
    assert bench.host.done[-1] == ("restart", "control")


def test_trials_that_start_control_again_are_some_seconds_apart() -> None:
    bench = Bench()
    assert bench.try_({"pcs.tau_s": 0.003})["ok"]
    bench.wait(100)
    assert bench.host.done[-1] == ("back", "restart")
    got = bench.try_({"pcs.tau_s": 0.003})
    assert not got["ok"] and "0.0 s ago" in got["error"]
    assert bench.try_({LIMIT: 440e3})["how"] == "live" and bench.ask("back", who="kim", id=2)["ok"]
    bench.wait(5)
    assert bench.try_({"pcs.tau_s": 0.003})["ok"]


def test_a_refusal_of_the_image_leaves_everything_as_it_was() -> None:
    bench = Bench()
    for fails in (ValueError("two values contradict each other"), OSError(28, "No space left on device")):
        bench.host.fails = fails
        got = bench.try_({LIMIT: 440e3})
        assert not got["ok"] and str(fails) in got["error"]
        assert bench.ask("settings")["pending"] is None and bench.host.site.num(LIMIT) == 445e3
    bench.host.fails = SiteError([Problem("f", "k", 1, "why")])
    assert bench.try_({LIMIT: 440e3})["problems"][0]["why"] == "why"


def test_what_nobody_has_thought_of_is_in_the_trail_and_changes_nothing() -> None:
    bench = Bench()
    bench.host.fails = KeyError("odd")
    with pytest.raises(KeyError):  # controller.lines answers for it
        bench.try_({LIMIT: 440e3})
    assert bench.desk.trial is None and "not taken: 'odd'" in bench.host.trail[-1][2]


def test_the_end_of_the_run_is_in_the_trail() -> None:
    bench = Bench()
    bench.try_({LIMIT: 440e3})
    bench.host.stopping = 1
    assert "stopping" in Bench.try_(bench, {LIMIT: 430e3})["error"]
    bench.desk.close()
    assert bench.host.trail[-1][1] == "settings return" and "the run ended" in bench.host.trail[-1][2]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({LIMIT: 9e9}, "is outside 0 to 1e+08 W"),
        ({LIMIT: "lots"}, "a number is needed"),
        ({LIMIT: "440 kVA"}, "a number is needed"),
        ({LIMIT: "1e999 kW"}, "a number is needed"),
        ({LIMIT: 10**400}, "is outside"),
        ({LIMIT: True}, "a number is needed"),
        ({LIMIT: [1]}, "neither a number nor a short text"),
        ({LIMIT: "1" * 400}, "neither a number nor a short text"),
        ({"grid.import_limt_w": 1}, "did you mean grid.import_limit_w"),
        ({"x" * 100: 1}, "no name of a setting"),
        ({"grid.\x00": 1}, "no name of a setting"),
        ({LIMIT: 600e3}, "is above feeder_w"),
        ({"grid.feeder_w": 440e3}, "is above feeder_w = 440000"),
        ({"battery.soc_min": 0.6}, "is not below battery.soc_target"),
        ({"grid.billing_window_s": 700}, "does not divide the hour"),
        ({"pcs.dead_time_s": "2 s"}, "is outside"),
        ({"site.name": "x"}, "is read when `ballast run` starts"),
        ({"site.f_nom_hz": 60}, "is read when `ballast run` starts"),
        ({"load.peak_w": 1}, "is read when `ballast run` starts"),
        ({"bus.a.baud": 115200}, "the virtual cabinet was built with its buses"),
        ({"device.bms.unit": 11}, "the virtual cabinet was built with its buses"),
        ({LIMIT: 445e3}, "nothing changes"),
        ({}, "no table of 1 to 64"),
        ({f"grid.x{i}": 1 for i in range(65)}, "no table of 1 to 64"),
        ("grid.import_limit_w=1", "no table of 1 to 64"),
    ],
)
def test_changes_that_are_refused_change_nothing(changes: Any, says: str) -> None:
    bench = Bench()
    got = bench.try_(changes)
    assert not got["ok"] and says in json.dumps(got["problems"]), got
    for problem in got["problems"]:
        assert set(problem) == {"file", "key", "value", "why", "remedy"}
    assert not bench.host.done and not bench.host.trail and bench.host.site == build.load_site(None, [], lambda: [])


def test_several_problems_come_at_once_and_good_changes_with_bad_ones_change_nothing() -> None:
    bench = Bench()
    got = bench.try_({LIMIT: 440e3, "battery.soc_min": 7, "site.name": "x", "bus.a.baud": 9600, "grid.nonsense": 1})
    assert {p["key"] for p in got["problems"]} == {"battery.soc_min", "site.name", "bus.a.baud", "grid.nonsense"}
    assert not bench.host.done


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"do": "format"}, "one of settings, try"),
        ({"do": ["try"]}, "one of settings, try"),
        ({"do": "try", "who": "kim", "changes": {LIMIT: 1}, "second": 5}, "no such field"),
        ({"do": "try", "changes": {LIMIT: 1}}, "printable characters"),
        ({"do": "try", "who": "a\nb", "changes": {LIMIT: 1}}, "printable characters"),
        ({"do": "try", "who": "k" * 161, "changes": {LIMIT: 1}}, "printable characters"),
        ({"do": "try", "who": "kim", "changes": {LIMIT: 1}, "seconds": 4.9}, "outside 5 to 600 s"),
        ({"do": "try", "who": "kim", "changes": {LIMIT: 1}, "seconds": 601}, "outside 5 to 600 s"),
        ({"do": "try", "who": "kim", "changes": {LIMIT: 1}, "seconds": 10**400}, "outside 5 to 600 s"),
        ({"do": "try", "who": "kim", "changes": {LIMIT: 1}, "seconds": "60"}, "outside 5 to 600 s"),
        ({"do": "confirm", "who": "kim", "id": 1}, "nothing is being tried"),
        ({"do": "restart", "who": "kim", "what": "plant"}, "no process that can be started again"),
        ({"do": "save", "who": "kim", "path": "here.toml"}, "no absolute path"),
        ({"do": "save", "who": "kim", "path": "/etc/passwd"}, "no absolute path"),
        ({"do": "save", "who": "kim", "path": "/proc/x.toml"}, "cannot be written"),
        ({"do": "plant"}, "this site is real"),
    ],
)
def test_requests_that_are_refused(fields: dict[str, Any], says: str) -> None:
    bench = Bench()
    got = bench.ask(**fields)
    assert not got["ok"] and says in got["error"] and not bench.host.done


finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=20) | st.sampled_from([LIMIT, "pcs.tau_s"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
requests = st.sampled_from(["settings", "try", "confirm", "back", "restart", "save", "plant", "?"])
fields = st.sampled_from(["who", "changes", "seconds", "id", "what", "path", "set", "x"])


@settings(deadline=None, max_examples=300)
@given(requests, st.dictionaries(fields, json_values, max_size=5))
def test_any_request_has_one_answer_and_no_half_of_a_change(do: str, request: dict[str, Any]) -> None:
    bench = Bench()
    got = bench.ask(do, **request)
    assert isinstance(got["ok"], bool) and (got["ok"] or got["problems"][0]["why"])
    changed = bench.host.site != build.load_site(None, [], lambda: [])
    assert changed == bool(do == "try" and got["ok"])


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from([*SETTINGS]), finite | st.integers() | st.text(max_size=9), max_size=4))
def test_what_a_trial_puts_in_force_is_what_a_site_file_would_have_been_allowed(changes: dict[str, Any]) -> None:
    bench = Bench()
    got = bench.try_(changes)
    if got["ok"]:
        numbers = {key: pair[1] for key, pair in got["changes"].items()}
        assert bench.host.site == build.load_site(None, [], lambda: [], changes=numbers)
        assert got["how"] == ("live" if all(row_of(key).how == "live" for key in got["changes"]) else "restart")  # type: ignore[union-attr]
    bench.wait(700)
    assert bench.host.site == build.load_site(None, [], lambda: [])


# ---------------------------------------------------------------- a real site


def test_buses_and_devices_of_a_real_site(tmp_path: Path) -> None:
    bench = Bench(real_site(tmp_path))
    got = bench.try_({"device.bms.unit": 11, "bus.a.baud": "230400"})
    assert got["ok"] and got["how"] == "restart" and got["changes"] == {"device.bms.unit": [10, 11], "bus.a.baud": [460800, 230400]}
    assert bench.ask("back", who="kim", id=1)["ok"]
    assert "ms" in bench.try_({"bus.a.baud": 9600})["error"], "the bus plan's arithmetic"
    assert "does not exist" in bench.try_({"bus.a.port": "/dev/ttyBallastAbsent"})["error"]
    for port in VIRTUALS:
        got = bench.try_({"bus.a.port": port, "bus.b.port": port})
        assert [p["key"] for p in got["problems"] if "virtual cabinet is started by" in p["why"]] == ["bus.a.port", "bus.b.port"], port
    assert "address of device meter" in bench.try_({"device.bms.unit": 1})["error"]
    os.mkfifo(tmp_path / "fifo.toml")
    assert "is no file" in bench.try_({"device.meter.profile": "fifo.toml"})["error"], "it would hold the parent for ever"
    assert bench.host.site == build.load_site(str(tmp_path / "hall.toml"), [], lambda: [])


# ---------------------------------------------------------------- the file


def confirmed(bench: Bench, changes: dict[str, Any]) -> dict[str, Any]:
    number = bench.try_(changes)["id"]
    return bench.ask("confirm", who="lee", id=number)


def test_a_confirmed_value_is_in_the_file_and_in_the_next_start(tmp_path: Path) -> None:
    path = real_site(tmp_path)
    old = path.read_text()
    bench = Bench(path)
    got = confirmed(bench, {LIMIT: "440 kW", "control.soc_time_s": 600})
    assert got["ok"] and got["written"] == str(path) and Path(got["backup"]).read_text() == old
    assert path.read_text() == old.replace("445000.0", "440000.0") + "\n[control]\nsoc_time_s = 600.0\n"
    assert build.load_site(path, [], lambda: []).flat() == bench.host.site.flat()
    assert bench.ask("settings")["running"] == {} and bench.host.done[-1] == ("keep",)
    assert bench.commands() == [("kim", "settings try"), ("lee", "settings confirm")]
    bench.wait(700)
    assert bench.host.site.num(LIMIT) == 440e3, "it does not return"
    second = confirmed(bench, {LIMIT: 430e3})
    assert second["written"] and Path(second["backup"]).read_text().count("440000.0") == 1
    assert bench.host.site.num("control.soc_time_s") == 600.0, "what was confirmed before stays"


def test_a_line_that_becomes_a_connection_and_a_line_again_is_written_whole(tmp_path: Path) -> None:
    path = real_site(tmp_path)
    path.write_text(path.read_text().replace("baud = 460800", "baud = 921600").replace('parity = "E"', 'parity = "E"  # even', 1))
    bench, before = Bench(path), path.read_text()
    line = bench.host.site.flat()
    got = confirmed(bench, {"bus.a.port": "tcp://192.0.2.7", "bus.a.latency_ms": 2.0})
    assert got["written"] == str(path), got
    assert build.load_site(path, [], lambda: []).flat() == bench.host.site.flat()
    assert path.read_text().count("921600") == 1 and "latency_ms = 2.0" in path.read_text(), "bus b is as it was"
    bench.wait(6)
    assert confirmed(bench, {"bus.a.latency_ms": 3.0})["written"] == str(path)
    bench.wait(6)
    got = confirmed(bench, {"bus.a.port": line["bus.a.port"]})
    assert got["written"] == str(path), got
    assert build.load_site(path, [], lambda: []).flat() == bench.host.site.flat() == line
    assert before.count("921600") == path.read_text().count("921600") == 2 and "latency_ms" not in path.read_text()


def test_the_file_is_not_touched_before_confirmation(tmp_path: Path) -> None:
    path = real_site(tmp_path)
    before = (path.read_text(), path.stat().st_mtime_ns)
    bench = Bench(path)
    bench.try_({LIMIT: 440e3})
    bench.wait(60)
    bench.try_({LIMIT: 440e3})
    bench.ask("back", who="kim", id=2)
    assert (path.read_text(), path.stat().st_mtime_ns) == before and [p.name for p in tmp_path.iterdir()] == ["hall.toml"]


def test_the_built_in_site_has_no_file(tmp_path: Path) -> None:
    bench = Bench()
    got = confirmed(bench, {LIMIT: 440e3})
    assert got["ok"] and got["written"] is None and "until this run ends" in got["note"]
    assert bench.host.site.num(LIMIT) == 440e3
    assert bench.try_({"battery.soc_min": 0.2})["ok"] and bench.host.site.num(LIMIT) == 440e3


def test_other_edits_of_the_file_survive_a_confirmation(tmp_path: Path) -> None:
    path = real_site(tmp_path)
    bench = Bench(path)
    path.write_text(path.read_text().replace("c_rate = 1.0", "c_rate = 0.5") + "# mine\n")
    got = confirmed(bench, {LIMIT: 440e3})
    assert got["written"] and "other edits" in got["note"]
    assert "c_rate = 0.5" in path.read_text() and "# mine" in path.read_text() and "440000.0" in path.read_text()
    assert bench.host.site.num("battery.c_rate") == 1.0, "an edit of the file is not in force"
    assert bench.ask("settings")["running"] == {"battery.c_rate": [0.5, 1.0]}


def test_a_key_that_was_edited_in_the_file_meanwhile_is_said_and_not_overwritten(tmp_path: Path) -> None:
    path = real_site(tmp_path)
    bench = Bench(path)
    path.write_text(path.read_text().replace("445000.0", "430000.0"))
    edited = path.read_text()
    got = confirmed(bench, {LIMIT: 440e3})
    assert got["ok"] and got["written"] is None and got["conflicts"] == {LIMIT: [445e3, 430e3]}
    assert path.read_text() == edited and bench.host.site.num(LIMIT) == 440e3
    bench = Bench(path)
    path.write_text(path.read_text().replace("430000.0", "420000.0"))
    assert confirmed(bench, {LIMIT: 420e3})["written"], "to the same value: no conflict"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[grid\n", "is not TOML"),
        ("", "is missing"),
        (None, "No such file"),
        ("[site]\nf_nom_hz = 50.0\n[grid]\nfeeder_w = 9.0\n", "feeder_w"),
    ],
)
def test_a_file_that_cannot_be_right_is_not_written(tmp_path: Path, text: str | None, says: str) -> None:
    path = real_site(tmp_path)
    bench = Bench(path)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    got = confirmed(bench, {"control.soc_time_s": 600.0})
    assert got["ok"] and got["written"] is None and says in got["note"] and "stay in force" in got["note"]
    assert (path.read_text() if text is not None else None) == text
    assert bench.host.site.num("control.soc_time_s") == 600.0


def test_an_override_of_the_start_is_said(tmp_path: Path) -> None:
    path = real_site(tmp_path)
    bench = Bench(path, sets=(f"{LIMIT}=444000",))
    got = confirmed(bench, {LIMIT: 440e3})
    assert got["written"] and f"--set {LIMIT}=444000 would outrank it" in got["note"]


def test_the_settings_in_force_can_be_saved(tmp_path: Path) -> None:
    bench = Bench(real_site(tmp_path))
    bench.try_({LIMIT: 440e3})
    path = tmp_path / "all.toml"
    got = bench.ask("save", who="kim", path=str(path))
    assert got == {"ok": True, "path": str(path), "trial": True}
    assert build.load_site(path, [], lambda: []).flat() == bench.host.site.flat()
    assert "already" in bench.ask("save", who="kim", path=str(path))["error"]


# ---------------------------------------------------------------- processes and the virtual cabinet


def test_a_child_is_started_again_on_request() -> None:
    bench = Bench()
    assert bench.ask("restart", who="kim", what="supervisor") == {"ok": True, "what": "supervisor"}
    assert bench.host.done == [("restart", "supervisor")] and bench.commands() == [("kim", "restart supervisor")]
    bench.host.fails = ValueError("control was started 1.2 s ago")
    assert "1.2 s ago" in bench.ask("restart", who="kim", what="control")["error"]


def test_the_virtual_cabinet_answers_when_it_can() -> None:
    bench, got = Bench(), []  # type: ignore[var-annotated]
    bench.host.plant = plant = FakePlant()  # type: ignore[assignment]
    bench.desk.handle({"do": "plant"}, got.append)
    bench.desk.handle({"do": "plant", "who": "kim", "set": {"load.extra_w": 40000}}, got.append)
    assert not got and [message for message, _ in plant.asked] == [{"params": True}, {"set": {"load.extra_w": 40000}}]
    plant.asked[0][1]({"params": {"load.extra_w": {"value": 0}}})
    plant.asked[1][1]({"error": "load.extra_w = 4e+09: outside"})
    assert not bench.host.trail, "what was refused is no command"
    assert got[0] == {"ok": True, "params": {"load.extra_w": {"value": 0}}} and not got[1]["ok"] and "outside" in got[1]["error"]
    assert "does not answer" in bench.ask("plant")["error"]
    plant.asked.clear()
    bench.desk.handle({"do": "plant", "who": "kim", "set": {"load.extra_w": 40000}}, got.append)
    plant.asked[0][1]({"set": {"load.extra_w": 40000}})
    assert got[2] == {"ok": True, "set": {"load.extra_w": 40000}}
    assert bench.commands() == [("kim", "plant set")] and bench.host.trail[0][2] == "load.extra_w = 40000"
    for wrong in ({}, [1], {"load.extra_w": "40 kW"}, {"load.extra_w": 10**400}):
        assert not bench.ask("plant", who="kim", set=wrong)["ok"]


# ---------------------------------------------------------------- the client


def test_a_parent_that_is_gone_or_halted_is_said_in_words(tmp_path: Path) -> None:
    here = Instance("hall", 77, 1, 3, str(tmp_path), "")
    with pytest.raises(InstanceError, match=r"site hall: its parent \(process 77\) is gone"):
        desks.ask(here, {"do": "settings"})
    server = lines.LineServer(tmp_path / desks.DESK_NAME, lambda request, reply: None, ManualClock())
    with pytest.raises(InstanceError, match=r"has not answered for 0.05 s"):
        desks.ask(here, {"do": "settings"}, 0.05)
    server.close()
    with pytest.raises(InstanceError, match="is gone"):
        desks.ask(here, {"do": "settings"})
