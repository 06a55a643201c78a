"""`ballast profile`: exit codes, and files that a person can begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.__main__ import main
from hal.canprofile import ROLES as CAN_ROLES
from hal.profile import PROFILE_DIR
from hal.rows import ROLE_SIGNALS


def test_a_shipped_profile_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "test", "schneider_iem3255"]) == 0
    out = capsys.readouterr().out
    assert "ok     3@3059      grid_p_w  540.228128" in out and out.endswith("0 wrong, 0 without a row\n")
    reads = [line.split()[1:3] for line in out.splitlines() if line.startswith("reads")]
    assert reads == [["3@3027", "6"], ["3@3059", "10"], ["3@3109", "2"]], "and not across the holes between them"


def test_a_wrong_value_and_a_value_nobody_tests_end_in_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (PROFILE_DIR / "schneider_iem3255.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("sign = -1", "sign = 1"))
    frames = (PROFILE_DIR / "schneider_iem3255.frames.tsv").read_text()
    (tmp_path / "other.tsv").write_text("".join(line + "\n" for line in frames.splitlines() if "\tf_hz\t" not in line))
    assert main(["profile", "test", str(tmp_path / "mine.toml"), str(tmp_path / "other.tsv")]) == 1
    out = capsys.readouterr().out
    assert "WRONG  3@3067" in out and "-434.249103; expected 434.2491 (line " in out and "no row  f_hz" in out
    assert "1 wrong, 1 without a row" in out


def test_what_cannot_be_read_ends_in_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text('name = "x"\nrole = "meter"\n[[read]]\nsignal = "grid"\naddress = 1\n')
    assert main(["profile", "test", str(tmp_path / "bad.toml")]) == 2
    assert 'bad.toml: read[0].signal = "grid": is not allowed; one of grid_p_w' in capsys.readouterr().err
    (tmp_path / "good.toml").write_text('name = "x"\nrole = "meter"\n[[read]]\nsignal = "grid_p_w"\naddress = 1\ntype = "u16"\n')
    assert main(["profile", "test", str(tmp_path / "good.toml")]) == 2
    err = capsys.readouterr().err
    assert "good.frames.tsv" in err and "profile new" in err


@pytest.mark.parametrize(("role", "can"), [*((r, False) for r in ROLE_SIGNALS), *((r, True) for r in CAN_ROLES)])
def test_what_is_begun_passes_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], role: str, can: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "new", "my_device", "--role", role, *(["--can"] if can else [])]) == 0
    assert main(["profile", "test", "my_device.toml"]) == 0
    assert "1 values, 0 wrong, 0 without a row" in capsys.readouterr().out


def test_nothing_is_overwritten_and_every_mistake_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.frames.tsv").write_text("kept")
    assert main(["profile", "new", "mine", "--role", "toaster"]) == 2
    err = capsys.readouterr().err
    assert "mine.frames.tsv: exists" in err and '--role = "toaster"' in err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.frames.tsv"] and (tmp_path / "mine.frames.tsv").read_text() == "kept"
    assert main(["profile", "new", "../up"]) == 2
    assert main(["profile", "new", "eastron_sdm630"]) == 2
    assert main(["profile", "new", "x", "--role", "meter", "--can"]) == 2
