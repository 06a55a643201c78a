"""The report: HTML that parses, holds the numbers, escapes what people typed, and says what was not done."""

from __future__ import annotations

import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from controller import disk
from controller.commission import guide, report
from controller.commission.results import FAIL, PASS, Result, Results, plain, thin
from controller.commission.svg import Line, chart, ticks
from controller.records import build_text
from tests.controller.commission.virtual import World

VOID = {"meta", "br", "circle", "path"}


class Page(HTMLParser):
    """Every tag closed in order; the text; counts of tags; attributes that would load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.text = ""
        self.loads: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.loads += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "onload", "onclick")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_report_of_a_walk_parses_and_holds_its_numbers(tmp_path: Path) -> None:
    answers = {"Your name": "A. <Tester>", "Remarks": "cable & plug <script>x</script>"}
    world = World(tmp_path, 300e3, answers=answers)
    done = Results(tmp_path / "commissioning.json")
    assert guide.run(world.rig, done, world.talk)
    (path,) = tmp_path.glob("commissioning-20*.html")
    page = Page(path.read_text())
    assert not page.open and not page.loads and "script" not in page.count
    assert page.count["svg"] == 9  # polarity, delay, ramp, two of reversion, two trips, E-stop, following
    for words in ("A. <Tester>", "cable & plug <script>x</script>", "PCS-0001", build_text(), "signature", world.site.settings_hash(),
                  "All steps passed", "tester, 2023-11-14", "grid.ramp_up_w_per_s", "virtual cabinet: it says nothing"):  # fmt: skip
        assert words in page.text, words
    for name in guide.NAMES:
        for fact in done.steps[name]["facts"]:
            assert fact in page.text
    data = json.loads((tmp_path / "commissioning.json").read_text())
    body = json.dumps({"head": data["head"], "steps": data["steps"]}, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(body.encode()).hexdigest() in page.text
    assert path.stat().st_size < 500_000


def test_what_failed_or_was_not_done_stands_in_red_and_unsigned_is_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    done = Results(tmp_path / "commissioning.json")
    done.put(world.rig, "polarity", (), Result(FAIL, "no CT <here>", {"grid_per_battery": float("nan")}), "tester")
    html = guide.write_report(world.rig, done).read_text()
    page = Page(html)
    assert 'class="fail">FAILED' in html and html.count('class="open">NOT DONE') >= len(guide.NAMES) - 1
    assert "no CT <here>" in page.text and "not measured" in page.text and "Not signed." in page.text


def test_every_step_s_pictures_stand_results_without_series(tmp_path: Path) -> None:
    world = World(tmp_path)
    done = Results(tmp_path / "commissioning.json")
    for name in guide.NAMES:
        done.put(world.rig, name, (), Result(PASS, "by hand"), "tester")
    assert "<svg" not in guide.write_report(world.rig, done).read_text()


def test_a_signature_is_for_what_was_known_then(tmp_path: Path) -> None:
    world = World(tmp_path)
    done = Results(tmp_path / "commissioning.json")
    done.put(world.rig, "ports", (), Result(PASS, ""), "tester")
    done.sign("A. Tester", "", 1.7e9)
    assert Results(done.path).signed == done.signed
    done.put(world.rig, "ports", (), Result(FAIL, ""), "tester")
    assert Results(done.path).signed is None


def test_a_report_never_overwrites_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    done = Results(tmp_path / "commissioning.json")
    done.put(world.rig, "ports", (), Result(PASS, ""), "tester")
    done.sign("A. Tester", "", world.rig.clock.wall_s())
    signed = guide.write_report(world.rig, done)
    text = signed.read_text()
    assert "A. Tester" in text and signed.name.startswith("commissioning-20231114-22")
    again = guide.write_report(world.rig, done)  # within the same second
    done.put(world.rig, "ports", (), Result(FAIL, ""), "tester")
    world.sim.clock.t_ns += 1_000_000_000
    later = guide.write_report(world.rig, done)
    assert again.name == f"{signed.stem}-2.html" and later.stem > signed.stem
    assert signed.read_text() == text and "Not signed." in later.read_text()


def test_a_report_that_the_disk_does_not_take_leaves_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "replace", full)
    with pytest.raises(OSError, match="No space"):
        guide.write_report(World(tmp_path).rig, Results(tmp_path / "commissioning.json"))
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("low,high", [(0.0, 1.0), (-3.2, 7e5), (1e-9, 2e-9), (-5.0, -4.99)])
def test_ticks_are_round_inside_and_few(low: float, high: float) -> None:
    got = ticks(low, high)
    assert 2 <= len(got) <= 8 and all(low - 1e-9 * abs(low) <= x <= high * (1 + 1e-9) or x <= high for x in got)
    assert got == sorted(got)


def test_charts_of_nothing_of_one_point_and_of_a_constant() -> None:
    assert chart("t", "x", "y", [Line("a", [], [])]) == ""
    for line in (Line("a", [1.0], [2.0]), Line("a", [1.0, 2.0], [5.0, 5.0], steps=True), Line("a", [1.0, 1.0], [5.0, 6.0], dots=True)):
        made = chart("t", "x", "y", [line])
        assert made.startswith("<figure>") and "nan" not in made and not Page(made).open


def test_series_are_thinned_and_what_is_not_finite_left_out() -> None:
    got = thin(list(range(5000)), [float("nan") if k % 2 else float(k) for k in range(5000)])
    assert len(got["x"]) == len(got["y"]) <= 500 and all(x % 2 == 0 for x in got["x"])
    assert plain({"a": [float("inf"), (1.0, float("nan"))]}) == {"a": [None, [1.0, None]]}
    assert report.STATE_WORDS.keys() == guide.WORDS.keys()
