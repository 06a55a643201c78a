"""The documents say what is: tables made from their source, links and names that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from _core import faults
from controller import build, settings
from controller.__main__ import main
from hal import gantt

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_settings_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings.markdown(), "python -m controller.settings > docs/settings.md"


def test_faults_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs" / "faults.md").read_text() == faults.markdown(), "python -m _core.faults > docs/faults.md"


def test_settings_that_the_table_of_faults_names_exist() -> None:
    text = " ".join(f"{r.detected} {r.debounce} {r.recovery}" for r in faults.FAULTS)
    named = set(re.findall(r"\b((?:control|grid|pcs|battery|site)\.\w+)", text))
    assert len(named) >= 8 and named <= set(settings.SETTINGS), named - set(settings.SETTINGS)


def test_the_tick_in_the_pages_is_the_one_that_check_draws() -> None:
    drawn = "\n".join(gantt.draw(build.plan(build.load_site(None))))
    assert f"```\n{drawn}\n```" in (ROOT / "docs" / "commissioning.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_that_pages_and_faults_name_exist() -> None:
    named = {(word, page.name) for page in PAGES for word in re.findall(r"`ballast ([a-z]\w*)", page.read_text())}
    assert len({word for word, _ in named}) >= 8
    for word, page_name in named:
        with pytest.raises(SystemExit) as end:
            main([word, "--help"])
        assert end.value.code == 0, f"{page_name}: ballast {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"`((?:_core|hal|controller|bench|tests|docs)/[\w/.-]+\.\w+)", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_hop_of_the_tour_names_a_function_that_is_there() -> None:
    text = (ROOT / "docs" / "tour.md").read_text()
    source = "\n".join(p.read_text() for p in ROOT.glob("[_bch]*/**/*.p[yx]*") if p.suffix in (".py", ".pyx", ".pxd"))
    names = set(re.findall(r"`(_?[a-z]\w+)`", text)) - {"grid_p_w"}
    missing = {n for n in names if not re.search(rf"\b(def|cdef|inline|void|int|bint|double|class)\b[^\n]*\b{n}\b", source)}
    assert not missing


def test_tests_that_the_safety_page_names_exist() -> None:
    text = (ROOT / "docs" / "safety.md").read_text()
    tests = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("*.py"))
    names = re.findall(r"::(test_\w+)", text)
    assert len(names) >= 10
    for name in names:
        assert f"def {name}" in tests, name


def test_the_readme_s_first_site_file_is_a_site_with_a_plan(tmp_path: Path) -> None:
    from controller import build

    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block
    (tmp_path / "site.toml").write_text(block[1])
    site = build.load_site(tmp_path / "site.toml", [], lambda: [])
    assert build.plan(site).load_to_power_ms["p99"] < 20.0
