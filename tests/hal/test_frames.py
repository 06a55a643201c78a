"""Frame files: every shipped profile makes of its recorded bytes what its documents say; and a wrong file says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.frames import COLUMNS, SUFFIX, check, frame_file, load_frames, untested
from hal.profile import PROFILE_DIR, ProfileError, list_profiles, load_profile, parse_profile

HEADER = "\t".join(COLUMNS) + "\n"
METER = 'name = "m"\nrole = "meter"\n[[read]]\nsignal = "grid_p_w"\naddress = 10\ntype = "i32"\nscale = 0.1\n'


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_is_what_its_documents_say(name: str) -> None:
    device, rows = load_profile(name), load_frames(frame_file(name))
    assert [(r.row.line, r.row.name, r.row.value, r.got) for r in check(device, rows) if not r.ok] == []
    assert untested(device, rows) == []
    assert all(r.working and len(r.source) > 10 for r in rows)


def test_no_frame_file_without_its_profile() -> None:
    assert {p.name.removesuffix(SUFFIX) for p in PROFILE_DIR.glob("*" + SUFFIX)} == set(list_profiles())


def write(path: Path, *lines: str) -> Path:
    path.write_text(HEADER + "".join(line + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("line", "ok", "got"),
    [
        ("3@10\t00 00 03 E8\tgrid_p_w\t100\tw\tsource", True, "100"),
        ("3@10\t00 00 03 E8\tgrid_p_w\t100.001\tw\tsource", False, "100"),
        ("3@8\t00 01 00 02 00 00 03 E8\tgrid_p_w\t100\tw\tsource", True, "100"),
        ("3@11\t03 E8\tgrid_p_w\t100\tw\tsource", False, "reads it at 3@10"),
        ("4@10\t00 00 03 E8\tgrid_p_w\t100\tw\tsource", False, "reads it at 3@10"),
        ("3@10\t00 00 03 E8\tgrid_p_w\t-\tw\tsource", False, "100"),
        ("3@10\t00 00 03 E8\tq_var\t100\tw\tsource", False, "nothing of the profile"),
        ("0x351\t00 00 03 E8\tgrid_p_w\t100\tw\tsource", False, "Modbus"),
    ],
)
def test_a_row_against_a_profile(tmp_path: Path, line: str, ok: bool, got: str) -> None:
    (result,) = check(parse_profile(METER), load_frames(write(tmp_path / "m.frames.tsv", line)))
    assert result.ok == ok and got in result.got


@pytest.mark.parametrize("change", ["scale = 0.2", "sign = -1", 'word_order = "little"'])
@pytest.mark.parametrize("name", ["eastron_sdm630", "schneider_iem3255"])
def test_a_profile_that_is_wrong_in_one_key_does_not_pass(name: str, change: str) -> None:
    text = (PROFILE_DIR / f"{name}.toml").read_text()
    key = change.split()[0]
    rows = [row for row in text.split("[[read]]\n")[1:] if 'signal = "grid_p_w"' in row]
    without = "\n".join(line for line in rows[0].splitlines() if not line.startswith(f"{key} "))
    wrong = parse_profile(text.replace(rows[0], f"{without}\n{change}\n\n"))
    failed = {r.row.name for r in check(wrong, load_frames(frame_file(name))) if not r.ok}
    assert failed == {"grid_p_w"}


def test_what_no_row_tests_is_named(tmp_path: Path) -> None:
    rows = load_frames(write(tmp_path / "x.frames.tsv", "3@100\tFE 0C\tbatt_p_w\t50000\tw\tsource"))
    missing = untested(load_profile("generic_pcs"), rows)
    assert "pcs_state" in missing and "device type" in missing and "command at 200" in missing and "batt_p_w" not in missing
    assert "permit:batt_i_charge_max_a of 0x359" in untested(load_profile("pylontech_lv"), rows)


def test_a_frame_with_a_wrong_checksum_and_a_wrong_command_do_not_pass(tmp_path: Path) -> None:
    rows = load_frames(
        write(
            tmp_path / "x.frames.tsv",
            "0x180\tB8 17 FE 7D 00 13 09 D1\tbatt_p_w\t125000\tw\tsource",
            "0x200\tB0 3C FF 64 00 03 03 C2\tcommand\tp_cmd_w=49999 q_cmd_var=10000 enable=1 operate=1 counter=3\tw\tsource",
            "0x200\tB0 3C FF 64 00 03 03 C2\tcommand\tp_cmd_w=50000\tw\tsource",
        )
    )
    got = check(load_profile("generic_can_pcs"), rows)
    assert [r.ok for r in got] == [False, False, False]
    assert "checksum should be D0" in got[0].got and got[1].got.startswith("b1 3c ff") and "q_cmd_var=" in got[2].got


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a\tb\n", "is no header"),
        (HEADER, "has no rows"),
        (HEADER + "3@10\t00\n", "line 2.columns"),
        (HEADER + "9@10\t00 00\tv\t1\tw\ts\n", "line 2.place"),
        (HEADER + "x\t00 00\tv\t1\tw\ts\n", "line 2.place"),
        (HEADER + "3@10\t0G\tv\t1\tw\ts\n", "line 2.data"),
        (HEADER + "3@10\t00\tv\t1\tw\ts\n", "whole registers"),
        (HEADER + "0x10\t000000000000000000\tv\t1\tw\ts\n", "at most 8"),
        (HEADER + "3@10\t00 00\tv\t\tw\ts\n", "line 2.value"),
        (HEADER + "3@10\t00 00\tv\t1\tw\t\n", "line 2.source"),
    ],
)
def test_a_bad_file_names_line_and_column(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "x.frames.tsv").write_text(text)
    with pytest.raises(ProfileError, match=r"x\.frames\.tsv") as e:
        load_frames(tmp_path / "x.frames.tsv")
    assert any(key in str(p) and p.remedy for p in e.value.problems)


def test_a_missing_file_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="profile new"):
        load_frames(tmp_path / "none.frames.tsv")
