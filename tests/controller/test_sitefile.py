"""The site file keeps what a person wrote, and a complete file loads to the settings it was made from."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import build, sitefile, walk
from controller import site as sites
from controller.ports import KEYS, SERIAL
from controller.settings import BUS, DEVICE, SETTINGS, row_of
from controller.sitefile import SiteFileError, edited

GOOD = sites.BUILTIN.read_text()
NUMBERS = sorted(key for key, row in SETTINGS.items() if row.kind == "float")


def test_every_key_has_a_row_and_says_how_it_changes() -> None:
    flat = build.load_site(None, [], lambda: []).flat()
    assert len(flat) == len(SETTINGS) + 2 * (2 + len(KEYS[SERIAL])) + 3 * len(DEVICE), "a serial bus has no keys of TCP or CAN"
    for key in flat:
        row = row_of(key)
        assert row is not None and row.how in ("live", "restart", "start"), key
    assert row_of("grid.import_limit_w") is SETTINGS["grid.import_limit_w"] and row_of("bus.a.baud") is BUS["baud"]
    for absent in ("bus", "bus.a", "bus.a.b.baud", "device.meter.speed", "grid.nonsense", "schedule.1.base_w", ""):
        assert row_of(absent) is None, absent


def test_one_value_changes_and_nothing_else() -> None:
    new = edited(GOOD, {"grid.import_limit_w": 440000.0, "bus.b.baud": 115200, "battery.v_min_v": 630.0})
    before, after = GOOD.splitlines(), new.splitlines()
    differing = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [b for _, b in differing] == [
        "import_limit_w = 440000.0",
        "v_min_v = 630.0             # 250 cells LFP: 2.5 V ...",
        "baud = 115200",
    ]


def test_a_new_key_comes_after_the_last_one_of_its_table() -> None:
    text = "[site]\nf_nom_hz = 50.0 # hertz\n\n# what the grid allows\n[grid]\nimport_limit_w = 1.0\n"
    assert edited(text, {"site.v_nom_v": 240.0}) == text.replace("# hertz\n", "# hertz\nv_nom_v = 240.0\n")
    assert edited(text, {"control.soc_time_s": 600.0}).startswith(text) and "[control]\nsoc_time_s = 600.0" in edited(
        text, {"control.soc_time_s": 600.0}
    )


@pytest.mark.parametrize(
    "text",
    [
        "grid.import_limit_w = 1.0 # dotted\n[site]\nf_nom_hz = 50\n",
        "grid = { import_limit_w = 1.0, export_limit_w = 0 } # inline\n",
        "[grid]\r\nimport_limit_w = 1e3 # windows\r\n",
        "[grid]\n'import_limit_w' = 1_000.0",
        "# nothing\n",
    ],
)
def test_other_ways_to_write_toml(text: str) -> None:
    new = edited(text, {"grid.import_limit_w": 2000.0, "grid.ramp_up_w_per_s": 5.0})
    wanted = tomllib.loads(text)
    wanted.setdefault("grid", {}).update(import_limit_w=2000.0, ramp_up_w_per_s=5.0)
    assert tomllib.loads(new) == wanted
    for comment in ("# dotted", "# inline", "# windows", "# nothing"):
        assert (comment in text) == (comment in new)


@pytest.mark.parametrize("text", ["[grid\n", "grid = 5\n", "[[grid]]\nimport_limit_w = 1.0\n", "a = " + "[" * 5000])
def test_what_cannot_be_edited_is_said(text: str) -> None:
    with pytest.raises(SiteFileError, match="by hand"):
        edited(text, {"grid.import_limit_w": 2000.0})


def test_a_row_that_is_not_there_is_said() -> None:
    with pytest.raises(SiteFileError, match=r"no \[\[bus\]\] named z"):
        edited(GOOD, {"bus.z.baud": 9600})


letters = st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f", exclude_categories=["Cs", "Cc"])
comment = st.text(letters, max_size=20)


@st.composite
def files(draw: st.DrawFn) -> str:
    """A site file with its keys in any order, comments and blank lines anywhere."""
    lines: list[str] = []
    sections = draw(st.permutations(["grid", "battery", "control"]))
    for section in sections[: draw(st.integers(0, 3))]:
        lines += draw(st.lists(comment.map(lambda c: f"# {c}"), max_size=2))
        lines.append(f"[{section}]" + draw(st.sampled_from(["", "  # table"])))
        keys = draw(st.lists(st.sampled_from([k for k in NUMBERS if k.startswith(section)]), unique=True, max_size=4))
        for key in keys:
            value = draw(st.floats(-1e9, 1e9).map(repr) | st.sampled_from(["1e3", "1_000", "0x10", "'text'"]))
            space = draw(st.sampled_from([" = ", "=", "   =  "]))
            lines.append(draw(st.sampled_from(["", "  "])) + key.partition(".")[2] + space + value + f" # {draw(comment)}")
            lines += draw(st.lists(st.sampled_from(["", "# between"]), max_size=1))
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


@settings(deadline=None, max_examples=150)
@given(files(), st.dictionaries(st.sampled_from(NUMBERS), st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_comments_order_and_the_rest_survive_any_edit(text: str, changes: dict[str, float]) -> None:
    new = edited(text, changes)
    wanted = tomllib.loads(text)
    for key, value in changes.items():
        walk.put(wanted, key, value)
    assert tomllib.loads(new) == wanted
    before = [line.partition(" # ")[2] for line in text.splitlines()]
    after = iter(line.partition(" # ")[2] for line in new.splitlines())
    assert all(any(found == one for found in after) for one in before if one.strip()), "every comment, in its order"
    whole_lines = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    kept = iter(new.splitlines())
    assert all(any(found == one for found in kept) for one in whole_lines)


def test_the_old_file_is_kept_and_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "site.toml"
    real.write_text(GOOD)
    real.chmod(0o640)
    link.symlink_to(real)
    backup = sitefile.write(link, GOOD, GOOD + "# more\n")
    assert link.is_symlink() and real.read_text() == GOOD + "# more\n" and real.stat().st_mode & 0o777 == 0o640
    assert backup == tmp_path / "real.toml.bak" and backup.read_text() == GOOD and backup.stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["real.toml", "real.toml.bak", "site.toml"]


def test_a_file_that_was_edited_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(GOOD + "# mine\n")
    with pytest.raises(SiteFileError, match="changed"):
        sitefile.write(path, GOOD, "x = 1\n")
    assert path.read_text() == GOOD + "# mine\n" and len(list(tmp_path.iterdir())) == 1


def test_an_edit_while_the_backup_is_written_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor saves between the two files, or while the second one goes to the disk."""
    path, real = tmp_path / "site.toml", os.fsync
    for at in (1, 2):
        path.write_text(GOOD)
        synced: list[int] = []

        def slow(fd: int, at: int = at, synced: list[int] = synced) -> None:
            real(fd)
            synced.append(fd)
            if len(synced) == at:
                path.write_text(GOOD + "# mine\n")

        monkeypatch.setattr(os, "fsync", slow)
        with pytest.raises(SiteFileError, match="changed"):
            sitefile.write(path, GOOD, "x = 1\n")
        monkeypatch.undo()
        assert path.read_text() == GOOD + "# mine\n" and sorted(p.name for p in tmp_path.iterdir()) == ["site.toml", "site.toml.bak"]


def test_a_new_file_s_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[os.stat_result] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd)), real(fd))[1])
    sitefile.create(tmp_path / "new.toml", GOOD)
    assert [s.st_ino for s in synced] == [(tmp_path / "new.toml").stat().st_ino, tmp_path.stat().st_ino], "after the file"


def test_a_disk_that_takes_nothing_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "site.toml"
    path.write_text(GOOD)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        sitefile.write(path, GOOD, "x = 1\n")
    assert path.read_text() == GOOD and [p.name for p in tmp_path.iterdir()] == ["site.toml"]


SCHEDULE = '\n[[schedule]]\nfrom = "22:00"\nto = "24:00"\ndays = ["mon", "fri"]\nbase_w = 20000.0\n'


@pytest.mark.parametrize("sets", [[], ["site.f_nom_hz=60", "grid.feeder_w=600e3"], ["battery.soc=0.55", "realtime.cpu=1"]])
def test_a_complete_file_loads_to_the_same_values(tmp_path: Path, sets: list[str]) -> None:
    (tmp_path / "a.toml").write_text(GOOD + SCHEDULE)
    site = build.load_site(tmp_path / "a.toml", sets, lambda: ["battery.soc"])
    path = tmp_path / "b.toml"
    sitefile.create(path, sitefile.whole(site, tmp_path))
    again = build.load_site(path, [], lambda: [])
    assert again.flat() == site.flat() and again.schedule == site.schedule
    assert again.settings_hash() == site.settings_hash()
    assert path.read_text().count("# ") > len(SETTINGS)
    with pytest.raises(FileExistsError):
        sitefile.create(path, "")


def test_a_profile_beside_the_site_file_is_found_from_elsewhere(tmp_path: Path) -> None:
    shipped = Path(sites.BUILTIN.parent.parent / "hal/profiles/ballast_virtual_meter.toml")
    (tmp_path / "mine.toml").write_bytes(shipped.read_bytes())
    (tmp_path / "a.toml").write_text(GOOD.replace('"ballast_virtual_meter"', '"mine.toml"'))
    site = build.load_site(tmp_path / "a.toml", [], lambda: [])
    assert 'profile = "mine.toml"' in sitefile.whole(site, tmp_path)
    (tmp_path / "far").mkdir()
    sitefile.create(tmp_path / "far/b.toml", sitefile.whole(site, tmp_path / "far"))
    assert build.load_site(tmp_path / "far/b.toml", [], lambda: []).devices[0].profile == str(tmp_path / "mine.toml")
