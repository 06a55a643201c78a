"""Commands: who may what, what each shows, what each does; and that nothing is half done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from _core import image as core
from controller import operate
from controller.console.accounts import ROLES
from controller.console.commands import markdown
from controller.console.context import Refused
from controller.console.line import Cancelled
from controller.process import MESSAGES_NAME
from controller.trends import FILE, TrendWriter
from tests.controller.console.world import PASSWORDS, TABLE, World, say

# The matrix, by hand: what each role may, beyond what the role before it may.
MATRIX = {
    "viewer": """status why alarms events top trend mode limit devices buses shelves plan log who help terminal exit logout passwd
        settings_get settings_diff settings_dump""",
    "operator": """hold release setpoint limit_import limit_export limit_charge limit_discharge limit_soc_min limit_soc_max limit_off
        mode_standby mode_auto reset ack record_freeze""",
    "engineer": """settings_set settings_confirm settings_back settings_load settings_save test shelves_write restart_control
        restart_supervisor plant user_list user_add user_remove""",
}
NEEDED = {
    "trend": "load_w", "setpoint": "1kW", "ack": "all", "settings save": "/tmp/x", "settings set": "a 1", "user add": "x viewer",
    "user remove": "x", "shelves write": "rack1.200 led=33",
} | {f"limit {k}": "0.5" for k in ("import", "export", "charge", "discharge", "soc_min", "soc_max")}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    made.people()
    yield made
    made.end()


def row(world: World) -> dict[str, float]:
    return dict(world.sim.image.latest()["out"])


def test_the_matrix_names_every_command_once() -> None:
    named = [word.replace("_", " ", 1) for words in MATRIX.values() for word in words.split()]
    assert sorted(named) == sorted(TABLE.rows)


@pytest.mark.parametrize("user", ["vera", "otto", "anna"])
def test_roles_times_commands(world: World, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    """Each command, typed by each role: it runs, or it is refused for the role and nothing of it ran."""
    ctx, _ = world.context(user)
    ran: list[str] = []
    for name, command in TABLE.rows.items():
        monkeypatch.setitem(TABLE.rows, name, command.__class__(**{**vars(command), "run": lambda c, w, n=name: ran.append(n)}))
    rank = ROLES.index(ctx.presence.own.role)
    for level, (role, words) in enumerate(MATRIX.items()):
        for word in words.split():
            name = word.replace("_", " ", 1)
            before = len(ran)
            text = f"{name} {NEEDED.get(name, '')}"
            if level <= rank:
                TABLE.run(ctx, text)
                assert ran[before:] == [name]
            else:
                with pytest.raises(Refused, match=f"needs the role {role}"):
                    TABLE.run(ctx, text)
                assert len(ran) == before


def test_a_removed_account_may_nothing_more(world: World) -> None:
    ctx, _ = world.context("otto")
    world.accounts.remove("otto")
    with pytest.raises(Refused, match="is gone"):
        TABLE.run(ctx, "hold 0")
    assert operate.word(world.sim.image, world.clock) is None


LOOKS = [n for n, c in TABLE.rows.items() if c.role == "viewer" and n not in ("top", "exit", "logout", "passwd")]


@pytest.mark.parametrize("name", LOOKS)
def test_every_command_that_looks_shows_something_and_fits_the_line(world: World, name: str) -> None:
    world.answer = lambda request: {
        "ok": True, "file": "builtin", "pending": None,
        "values": {"grid.import_limit_w": 445e3, "battery.soc_min": 0.1, "bus.a.port": "virtual"},
    }  # fmt: skip
    (world.directory / MESSAGES_NAME).write_text("control: runs\n" * 20 + "supervisor: \x1b[2J a line of many words, " * 3)
    ctx, person = world.context("vera", width=80)
    text = say(ctx, person, f"{name} {NEEDED.get(name, '')}")
    assert text.strip()
    assert all(len(part) < 80 for part in text.split("\n")), max(text.split("\n"), key=len)


def test_the_log_shows_its_end_and_moves_nobodys_cursor(world: World) -> None:
    ctx, person = world.context("vera")
    with pytest.raises(Refused, match=f"{MESSAGES_NAME}: No such file"):
        TABLE.run(ctx, "log")
    (world.directory / MESSAGES_NAME).write_text("".join(f"line {k}\n" for k in range(40)) + "a \x1b[2J b\n")
    assert say(ctx, person, "log 3").split("\n")[:3] == ["line 38", "line 39", "a ?[2J b"]
    assert len(say(ctx, person, "log").strip().split("\n")) == 12


def test_a_trend_of_ten_milliseconds_and_of_a_day(world: World) -> None:
    ctx, person = world.context("vera", width=80)
    assert "last 10 ms" in say(ctx, person, "trend load_w 10ms")
    assert "out.load_w [W]   last 1 min   last 400000 " in say(ctx, person, "trend load_w")
    with pytest.raises(Refused, match="has not kept any trends here yet"):
        TABLE.run(ctx, "trend load_w 24h")
    writer, rows = TrendWriter(world.state / FILE), np.frombuffer(world.sim.image.drain(0)[0], core.record_dtype())[-2:]
    now_s = world.clock.wall_s()
    for ago_s in range(86390, 0, -600):
        writer.add(rows, now_s - ago_s)
    writer.add(rows, now_s)
    writer.close()
    text = say(ctx, person, "trend load_w 24h")
    picture = [line for line in text.split("\n") if "│" in line or "|" in line]
    assert "last 24 h" in text and "lowest" in text and len(picture) == 12
    assert max(len(line) for line in picture) > 70, "drawn to the right edge: all of the day"


def test_status_and_why_tell_mode_power_and_the_way_on(world: World) -> None:
    ctx, person = world.context("vera")
    text = say(ctx, person, "status")
    assert "GRID" in text and "healthy" in text and "SoC 50.0 %" in text
    text = say(ctx, person, "why")
    assert "reference of grid import" in text and "May discharge" in text and "bounded by bms_discharge" in text


# ---------------------------------------------------------------- to act


def test_hold_acts_in_the_engine_and_stands_in_the_trail_with_its_author(world: World) -> None:
    ctx, person = world.context("otto")
    text = say(ctx, person, "hold 20 kW for 10min")
    assert "+20.0 kW for 600 s" in text
    world.run_s(15)
    assert row(world)["p_cmd_w"] == pytest.approx(20e3) and row(world)["slot"] == core.SLOT_OPERATOR
    assert "otto on pair: hold: battery held at 20000 W for 600 s" in say(ctx, person, "events hold")
    assert "+20.0 kW" in say(ctx, person, "who")
    say(ctx, person, "release")
    world.run_s(1)
    assert row(world)["slot"] == -1


def test_a_hold_of_zero_is_anybodys_and_the_rest_has_one_holder(world: World) -> None:
    (otto, p1), (anna, p2) = world.context("otto"), world.context("anna")
    say(otto, p1, "hold 20kW")
    for text in ("hold 10kW", "release", "setpoint 5kW", "setpoint grid 5kW"):
        with pytest.raises(Refused, match=r"otto on pair.*force"):
            TABLE.run(anna, text)
    assert operate.word(world.sim.image, world.clock).value_w == 20e3
    say(anna, p2, "hold 10kW force")
    assert operate.word(world.sim.image, world.clock).value_w == 10e3
    say(otto, p1, "hold 0")
    assert operate.word(world.sim.image, world.clock).value_w == 0.0


def test_a_setpoint_lives_as_long_as_its_log_in(world: World) -> None:
    ctx, person = world.context("otto")
    say(ctx, person, "setpoint grid +5kW")
    now = operate.word(world.sim.image, world.clock)
    assert now is not None and now.kind == core.SP_BASE and now.left_s <= 3.0
    assert ctx.keeper is not None
    for _ in range(4):  # what its thread does once a second
        world.run_s(1)
        assert operate.renew(world.sim.image, ctx.keeper.number, world.clock)
    assert row(world)["slot"] == core.SLOT_OPERATOR
    ctx.end()
    assert operate.word(world.sim.image, world.clock) is None
    world.run_s(1)
    assert row(world)["slot"] == -1


def test_a_setpoint_whose_line_died_with_its_process_ends_within_its_lease(world: World) -> None:
    ctx, person = world.context("otto")
    say(ctx, person, "setpoint 20kW")
    assert ctx.keeper is not None
    ctx.keeper.end()  # killed: nobody renews
    world.run_s(3.2)
    assert operate.word(world.sim.image, world.clock) is None and row(world)["slot"] == -1


@pytest.mark.parametrize("role", [None, "viewer"])
def test_a_setpoint_ends_with_the_right_to_give_one(world: World, role: str | None) -> None:
    """Also where its author sits in `top`, or at a plain prompt, and hears of it later."""
    ctx, person = world.context("otto")
    say(ctx, person, "setpoint 20kW")
    ctx.keeper.end()  # its thread; the test does its work, in the site's time
    ctx.keeper.renew()
    assert not ctx.keeper.lost
    world.accounts.remove("otto")
    if role is not None:
        world.accounts.add("otto", role, PASSWORDS["otto"])
    for _ in range(4):
        ctx.keeper.renew()
        world.run_s(1)
    assert operate.word(world.sim.image, world.clock) is None and row(world)["slot"] == -1
    if role is not None:
        assert any("may give none any more" in text for text in ctx.news())


def test_a_setpoint_that_another_replaced_is_not_renewed(world: World) -> None:
    (otto, p1), (anna, p2) = world.context("otto"), world.context("anna")
    say(otto, p1, "setpoint 20kW")
    number = otto.keeper.number
    say(anna, p2, "hold 5kW force")
    assert not operate.renew(world.sim.image, number, world.clock)
    otto.keeper.renew()
    assert any("no longer in force" in text for text in otto.news())
    otto.end()
    assert operate.word(world.sim.image, world.clock).value_w == 5e3, "log-out takes nobody else's away"


def test_beside_a_trail_that_takes_nothing_each_still_knows_their_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only disk: no command has a row, and log-out takes nobody else's setpoint away."""
    (otto, p1), (anna, p2) = world.context("otto"), world.context("anna")
    (world.tmp / "file").write_text("")
    world.instance.store = str(world.tmp / "file" / "history.sqlite")
    world.instance.write()
    assert "not in the audit trail" in say(otto, p1, "setpoint 20kW")
    say(otto, p1, "setpoint 15kW")
    with pytest.raises(Refused, match="somebody else has the operator's slot"):
        TABLE.run(anna, "hold 5kW")
    world.run_s(0.1)
    say(anna, p2, "hold 5kW force")
    assert not operate.renew(world.sim.image, otto.keeper.number, world.clock)
    otto.end()
    assert operate.word(world.sim.image, world.clock).value_w == 5e3
    say(anna, p2, "release")
    assert operate.word(world.sim.image, world.clock) is None


def test_limits_tighten_end_and_say_who(world: World) -> None:
    ctx, person = world.context("otto")
    say(ctx, person, "limit import 395kW for 10min")
    world.run_s(2)
    assert world.sim.image.latest()["lim"]["import_limit_w"] == 395e3
    say(ctx, person, "limit soc_min 40%")
    world.run_s(1)
    lim = world.sim.image.latest()["lim"]
    assert (lim["import_limit_w"], lim["soc_min"]) == (395e3, 0.4), "the second leaves the first standing"
    text = say(ctx, person, "limit")
    assert "395.0 kW" in text and text.count("set by an operator") == 2
    assert "operator" in say(ctx, person, "status")
    with pytest.raises(Refused, match="tighter: add the word `force`"):
        TABLE.run(ctx, "limit import 900kW")
    assert "with it stand soc_min" in say(ctx, person, "limit import 900kW force")
    world.run_s(1)
    assert world.sim.image.latest()["lim"]["import_limit_w"] == 445e3, "it never loosens"
    say(ctx, person, "limit off")
    world.run_s(1)
    assert world.sim.image.latest()["lim"]["soc_min"] == 0.1


def test_standby_ramps_down_and_stays_and_auto_starts_again(world: World) -> None:
    ctx, person = world.context("otto")
    say(ctx, person, "hold 20kW")
    world.run_s(15)
    say(ctx, person, "mode standby")
    world.run_s(30)
    assert row(world)["mode"] == core.MODE_STOP and row(world)["p_cmd_w"] == 0.0
    assert "held in standby by an operator" in say(ctx, person, "status") + say(ctx, person, "why")
    say(ctx, person, "release")
    say(ctx, person, "mode auto")
    world.run_s(15)
    assert row(world)["mode"] == core.MODE_GRID


def test_alarms_stand_are_seen_and_go(world: World) -> None:
    ctx, person = world.context("otto")
    assert "no alarms" in say(ctx, person, "alarms")
    world.sim.plant.set("pcs.fault", 1)
    world.run_s(3)
    text = say(ctx, person, "alarms")
    assert "critical" in text and "pcs_fault" in text and "STANDS" in text and "not seen yet" in text and "do: " in text
    say(ctx, person, "ack pcs_fault")
    world.clock.wall_at_0_s += 0.001
    assert "seen by otto" in say(ctx, person, "alarms")
    assert "pcs_fault" in say(ctx, person, "why") and "FAULT" in say(ctx, person, "status")
    world.sim.plant.set("pcs.fault", 0)
    world.run_s(3)
    say(ctx, person, "reset")
    world.run_s(15)
    assert "no alarms" in say(ctx, person, "alarms"), "it has gone, and was seen"
    world.sim.plant.set("pcs.fault", 1)
    world.run_s(3)
    world.sim.plant.set("pcs.fault", 0)
    world.run_s(3)
    say(ctx, person, "reset")
    world.run_s(15)
    text = say(ctx, person, "alarms")
    assert "pcs_fault" in text and "gone" in text and "not seen yet" in text, "it came again, and nobody has seen that"
    with pytest.raises(Refused, match="no alarm meter_lost"):
        TABLE.run(ctx, "ack meter_lost")


def test_all_is_acknowledged_also_what_no_supervisor_wrote_down(world: World) -> None:
    ctx, person = world.context("otto")
    assert "nothing to acknowledge" in say(ctx, person, "ack all")
    world.instance.supervisor_pid = 0
    world.instance.write()
    text = say(ctx, person, "alarms")
    assert "supervisor_lost" in text and "not seen yet" in text
    store = world.instance.store
    (world.tmp / "file").write_text("")
    world.instance.store = str(world.tmp / "file" / "history.sqlite")
    world.instance.write()
    for what in ("supervisor_lost", "all"):
        with pytest.raises(Refused, match=r"takes nothing.*not done"):
            TABLE.run(ctx, f"ack {what}")
    world.instance.store = store
    world.instance.write()
    assert "seen: supervisor_lost" in say(ctx, person, "ack all")
    text = say(ctx, person, "alarms")
    assert "seen by otto" in text and "not seen yet" not in text
    assert "nothing to acknowledge" in say(ctx, person, "ack all")


def test_a_dead_supervisor_and_a_dead_control_are_said_and_what_is_lost(world: World) -> None:
    ctx, person = world.context("otto")
    world.instance.supervisor_pid = 0
    world.instance.write()
    text = say(ctx, person, "status")
    assert "The supervisor is not running" in text and "supervisor_lost" in text
    say(ctx, person, "hold 5kW")
    world.run_s(8)
    assert row(world)["p_cmd_w"] == pytest.approx(5e3), "and the operator's word acts"
    world.instance.control_pid = 0
    world.instance.write()
    world.clock.t_ns += 5 * 10**9
    text = say(ctx, person, "status")
    assert "CONTROL IS NOT RUNNING" in text and "Lost with it" in text and "OLD" in text and "control_lost" in say(ctx, person, "alarms")


# ---------------------------------------------------------------- settings


def test_a_trial_is_announced_confirmed_or_taken_back(world: World) -> None:
    ctx, person = world.context("anna")
    pending = {"id": 7, "who": "anna on pair", "left_s": 50.0, "how": "live", "changes": {"grid.import_limit_w": [445e3, 44e4]}}

    def answer(request: dict) -> dict:
        if request["do"] == "try":
            return {"ok": True, "id": 7, "how": "live", "seconds": 60, "changes": pending["changes"]}
        if request["do"] == "settings":
            return {"ok": True, "file": "x", "values": {"grid.import_limit_w": 44e4}, "pending": pending}
        return {"ok": True, "written": "site.toml", "note": "written to site.toml"}

    world.answer = answer
    text = say(ctx, person, "settings set grid.import_limit_w 440 kW")
    assert world.asked[-1]["changes"] == {"grid.import_limit_w": "440 kW"} and world.asked[-1]["who"] == "anna on pair"
    assert "445000 W -> 440000 W" in text and "`settings confirm` keeps it" in text
    assert "on trial by anna" in say(ctx, person, "settings get grid.import_limit_w")
    assert "kept; written to site.toml" in say(ctx, person, "settings confirm")
    assert world.asked[-1] == {"do": "confirm", "who": "anna on pair", "id": 7} and ctx.trial is None
    say(ctx, person, "settings set grid.import_limit_w=440kW grid.ramp_up_w_per_s=1000 for 30s")
    assert world.asked[-1]["changes"] == {"grid.import_limit_w": "440kW", "grid.ramp_up_w_per_s": "1000"}
    assert world.asked[-1]["seconds"] == 30
    world.clock.t_ns += 31 * 10**9
    ctx.trial_values = {"grid.import_limit_w": 44e4}
    pending["left_s"] = 0.0
    assert "still on trial" in "".join(t for t in ctx.news() if "trial" in t), "the parent's word counts, not our clock"
    world.clock.t_ns += 3 * 10**9
    world.answer = lambda request: {"ok": True, "pending": None, "values": {"grid.import_limit_w": 44e4}}
    assert "confirmed them" in "".join(t for t in ctx.news() if "trial" in t), "somebody else did"
    ctx.trial, ctx.trial_values = (8, 0), {"grid.import_limit_w": 43e4}
    assert "the old values are back" in "".join(t for t in ctx.news() if "trial" in t)


def test_what_the_desk_refuses_is_said_as_a_site_file_would_say_it(world: World) -> None:
    ctx, _ = world.context("anna")
    problem = {"file": "site.toml", "key": "grid.import_limit_w", "value": 9e9}
    problem |= {"why": "is outside 0 to 1e+08 W", "remedy": "write less"}
    world.answer = lambda request: {"ok": False, "problems": [problem, problem | {"key": "x.y", "why": "unknown key"}]}
    with pytest.raises(Refused, match=r"(?s)site.toml: grid.import_limit_w = 9e\+09: is outside.*x\.y = .*unknown key"):
        TABLE.run(ctx, "settings set grid.import_limit_w=9e9 x.y=1")


def test_pasted_settings_are_one_trial_or_nothing(world: World) -> None:
    ctx, person = world.context("anna")
    values = {"a.b": 1.0, "c.d": "text"}
    world.answer = lambda request: {
        "ok": True, "file": "x", "values": values, "pending": None, "id": 1, "how": "live", "changes": {},
    }  # fmt: skip
    person.type('# a comment\r\na.b = 1\r\nc.d = "other"  # why\r\n.\r\n')
    say(ctx, person, "settings load")
    assert world.asked[-1]["changes"] == {"c.d": "other"}, "what does not differ is not tried"
    person.type("a.b = 2\r\nnonsense\r\nhold 100kW\r\nc.d = 'x\r\na.b =\r\n.\r\nwho\r\n")
    before = len(world.asked)
    with pytest.raises(Refused, match=r"(?s)'nonsense' is no line.*'hold 100kW' is no line.*not closed.*'a\.b =' is no line.*nothing was"):
        TABLE.run(ctx, "settings load")
    assert len(world.asked) == before
    assert ctx.line.read_line() == "who", "what follows the dot, and nothing before it, is left for the prompt"
    person.type("a.b = 2\r\n" * 210 + ".\r\n")
    with pytest.raises(Refused, match="more than 200 lines"):
        TABLE.run(ctx, "settings load")
    person.type(b"a.b = 2\r\n\x03")
    with pytest.raises(Cancelled):
        TABLE.run(ctx, "settings load")
    assert len(world.asked) == before


# ---------------------------------------------------------------- accounts, processes, this terminal


def test_accounts_are_made_listed_given_passwords_and_removed(world: World) -> None:
    ctx, person = world.context("anna")
    person.type("a few more words\rand others\r")
    with pytest.raises(Refused, match="the two differ"):
        TABLE.run(ctx, "user add ben operator")
    person.type("ben-and-ben\rben-and-ben\r")
    with pytest.raises(Refused, match="first thing anybody would try"):
        TABLE.run(ctx, "user add ben operator")
    with pytest.raises(Refused, match="boss is no role"):
        TABLE.run(ctx, "user add ben boss")
    assert set(world.accounts.users()) == {"anna", "otto", "vera"}
    person.type("a few more words\ra few more words\r")
    assert "ben may log in as operator" in say(ctx, person, "user add Ben Operator")
    assert "ben                  operator" in say(ctx, person, "user list")
    assert world.accounts.log_in("ben", "a few more words", "tty", 0.0) == "operator"
    person.type("quite other words\rquite other words\r")
    assert "changed" in say(ctx, person, "passwd ben"), "an engineer needs no old one of another's"
    assert world.accounts.log_in("ben", "quite other words", "tty", 0.0) == "operator"
    assert "may log in no more" in say(ctx, person, "user remove ben")
    for text, why in (("user remove anna", "last engineer"), ("user remove ben", "no user ben"), ("passwd ben", "no user ben")):
        with pytest.raises(Refused, match=why):
            TABLE.run(ctx, text)
    vera, _ = world.context("vera")
    with pytest.raises(Refused, match="needs the role engineer"):
        TABLE.run(vera, "passwd anna")
    with world.context("vera")[0].store() as store:
        rows = [(r.command, r.text) for r in store.trail(20) if r.who == "anna on pair"]
    assert rows == [("user add", "ben, operator"), ("passwd", "ben"), ("user remove", "ben")]
    assert "words" not in person.got.decode().replace("new password", ""), "nothing of a password is echoed"


def test_what_is_asked_of_the_parent_names_its_author(world: World) -> None:
    ctx, person = world.context("anna")
    person.type("no\r")
    with pytest.raises(Refused, match="not done"):
        TABLE.run(ctx, "restart control")
    assert not world.asked
    person.type("yes\r")
    assert "control is started again; a running PCS keeps its power" in say(ctx, person, "restart control")
    assert world.asked == [{"do": "restart", "who": "anna on pair", "what": "control"}]
    world.answer = lambda request: {"ok": True, "params": {"bms.contactor_open": 0.0}, "path": request.get("path"), "trial": True}
    assert "bms.contactor_open" in say(ctx, person, "plant")
    assert "bms.contactor_open = 1" in say(ctx, person, "plant bms.contactor_open 1")
    assert world.asked[-1] == {"do": "plant", "who": "anna on pair", "set": {"bms.contactor_open": 1.0}}
    for text, why in (("plant a.b", "usage"), ("plant a.b one", "no number")):
        with pytest.raises(Refused, match=why):
            TABLE.run(ctx, text)
    assert "wrote /tmp/x.toml; what is on trial stands in it" in say(ctx, person, "settings save /tmp/x.toml")
    assert world.asked[-1] == {"do": "save", "who": "anna on pair", "path": "/tmp/x.toml"}


def test_a_freeze_stands_in_the_trail_with_where_it_went(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, person = world.context("otto")
    assert "kept" in say(ctx, person, "record freeze")
    assert "otto on pair: freeze: kept" in say(ctx, person, "events freeze")
    monkeypatch.undo()  # the real one: no supervisor of that number
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(world.tmp))
    monkeypatch.setenv("BALLAST_STATE_DIR", str(world.tmp / "state"))
    world.instance.supervisor_pid = 0
    world.instance.write()
    with pytest.raises(Refused, match="supervisor is not running"):
        TABLE.run(ctx, "record freeze")
    assert say(ctx, person, "events freeze").count("freeze:") == 1


def test_a_terminal_is_what_a_person_says_it_is(world: World) -> None:
    ctx, person = world.context("vera", width=80)
    assert "VT100, 80 x 24, ASCII, no colour" in say(ctx, person, "terminal vt100 ascii mono")
    assert "┤" not in say(ctx, person, "trend load_w 1s") and say(ctx, person, "trend load_w 1s").isascii()
    assert "plain lines, 80 x 24, UTF-8, colour" in say(ctx, person, "terminal plain utf8 colour")
    assert not say(ctx, person, "trend load_w 1s").isascii()
    with pytest.raises(Refused, match="vt52: one of plain"):
        TABLE.run(ctx, "terminal ascii vt52")
    assert ctx.line.utf8, "nothing of a line that is refused was done"


def test_the_page_of_commands_is_made_from_the_table() -> None:
    page = Path(__file__).parents[3] / "docs" / "console.md"
    assert markdown(TABLE) in page.read_text(), "python -m controller.console > the table in docs/console.md"
