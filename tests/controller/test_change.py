"""`ballast settings` as a person types it, against a desk without processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controller import __main__ as command
from controller import build, instance
from controller import desk as desks
from controller.instance import Instance
from tests.controller.test_desk import LIMIT, Bench, real_site


class Line:
    """The command line, and the desk behind it."""

    def __init__(self, tmp: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.bench, self.tmp, self.capsys = bench, tmp, capsys
        here = Instance("hall", 1, 1, 3, str(tmp), "")
        monkeypatch.setattr(instance, "find", lambda site: here)
        monkeypatch.setattr(desks, "ask", self.ask)

    def ask(self, running: Instance, request: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
        return self.bench.ask(**request)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        (self.tmp / "site.json").write_text(json.dumps(self.bench.host.site.to_dict()))
        code = command.main(["settings", *words])
        out = self.capsys.readouterr()
        return code, out.out, out.err


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(tmp_path, Bench(real_site(tmp_path)), monkeypatch, capsys)


def test_set_says_what_to_type_and_confirm_writes(line: Line) -> None:
    code, out, _ = line("set", f"{LIMIT}=440 kW", "pcs.s_rated_va=240e3", "--seconds", "30", "--site", "hall")
    assert code == 0 and f"{LIMIT}: 445000 -> 440000 W\n" in out and "pcs.p_max_w: 250000 -> 240000, because" in out
    assert "within 30 s type `ballast settings confirm --site hall` to keep it" in out and "control is started again" in out
    code, out, _ = line("diff")
    assert code == 0 and "30 s left" in out and out.count(LIMIT) == 1 and "pcs.p_max_w: 250000 in the file, 240000 in force" in out
    code, out, _ = line("confirm")
    assert code == 0 and "written" in out and build.load_site(line.tmp / "hall.toml", [], lambda: []).num(LIMIT) == 440e3
    assert line("diff")[1] == f"nothing differs from {line.tmp / 'hall.toml'}\n"


def test_back_gives_the_old_values(line: Line) -> None:
    assert "in force now" in line("set", f"{LIMIT}=440000")[1]
    code, out, _ = line("back")
    assert code == 0 and "440000 -> 445000 W" in out and line.bench.host.site.num(LIMIT) == 445e3
    for action in ("back", "confirm"):
        code, _, err = line(action)
        assert code == 2 and "nothing is being tried" in err


def test_get_shows_one_several_or_all(line: Line) -> None:
    code, out, _ = line("get", LIMIT)
    assert code == 0 and out == f"{LIMIT} = 445000         # largest grid import, as 100 ms means; 0 to 1e+08 W; changes: live\n"
    assert len(line("get", "battery.")[1].splitlines()) == 11
    assert len(line("get")[1].splitlines()) == len(line.bench.host.site.flat())
    code, _, err = line("get", "grid.import_limt_w")
    assert code == 2 and f"did you mean {LIMIT}" in err


def test_a_refusal_names_every_problem_and_ends_with_2(line: Line) -> None:
    code, out, err = line("set", f"{LIMIT}=600 kW", "site.name=x", "nonsense=1")
    assert code == 2 and not out
    assert len(err.splitlines()) == 3 and "is above feeder_w" in err and "site.name" in err and "nonsense" in err
    assert line("set", "grid.import_limit_w")[0] == 2 and line("set", f"{LIMIT}=440000", "--seconds", "2")[0] == 2


def test_a_confirmation_that_does_not_reach_the_file_ends_with_1(line: Line) -> None:
    line("set", f"{LIMIT}=440000")
    path = line.tmp / "hall.toml"
    path.write_text(path.read_text().replace("445000.0", "430000.0"))
    code, out, _ = line("confirm")
    assert code == 1 and "left as it is" in out
    path.write_text("[grid\n")
    assert line("diff")[0] == 2


def test_the_built_in_site_is_kept_until_the_run_ends(line: Line) -> None:
    line.bench = Bench()
    line("set", f"{LIMIT}=440000")
    code, out, _ = line("confirm")
    assert code == 0 and "until this run ends" in out


def test_dump_is_a_site_file(line: Line) -> None:
    line("set", f"{LIMIT}=440000")
    code, out, _ = line("dump")
    (line.tmp / "printed.toml").write_text(out)
    assert code == 0 and build.load_site(line.tmp / "printed.toml", [], lambda: []).flat() == line.bench.host.site.flat()
    code, out, _ = line("dump", str(line.tmp / "saved.toml"))
    assert code == 0 and "holds what is being tried" in out and (line.tmp / "saved.toml").read_text().count("[[device]]") == 3
    assert line("dump", str(line.tmp / "saved.toml"))[0] == 2
