"""DBC files as somebody hands them over: taken, or refused with a reason, and in bounded time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hal.candbc import DbcError, load_dbc, parse_dbc
from hal.profile import PROFILE_DIR, ProfileError, parse_profile

SIGNAL = ' SG_ S : 0|8@1+ (1,0) [0|0] "" A\n'


def test_the_shipped_one() -> None:
    assert set(load_dbc(PROFILE_DIR / "generic_can_pcs.dbc")) >= {"PcsFeedback", "PcsStatus", "PcsCommand"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("BO_ 1 M: 99999999 A\n" + SIGNAL, "99999999 bytes"),
        ("BO_ 1 M // a note\n : 99999999 A\n" + SIGNAL, "99999999 bytes"),
        ("BO_ 1 M: 8 A\n SG_ M M : 0|8@1+ (1,0) [0|0] \"\" A\n" + SIGNAL + "SG_MUL_VAL_ 1 S M 0-99999999;\n", "range 0-99999999"),
        ("BO_ 1 M: 8 A\n" + SIGNAL.replace("S : 0", "S m99999999999999999999 : 8") + SIGNAL.replace("S :", "M M :"), "8 bits never hold"),
        ("BO_ 1 M: 8 A\n" + SIGNAL.replace("(1,", "(1e999,"), "scale inf"),
        ("BO_ 1 M: 8 A\nBO_ 2 M: 8 A\n" + SIGNAL, "two messages named M"),
        ("BO_ 1 M: 8 A\n" + SIGNAL.replace("0|8", "0|65"), "S"),
        ("BO_ x", "cannot be read"),
        ("\x81", "cannot be read"),
    ],
)
def test_what_no_bus_carries_is_refused_at_once(text: str, says: str) -> None:
    with pytest.raises(DbcError, match=says):
        parse_dbc(text.encode("latin-1"))


def test_a_pipe_is_no_dbc(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.dbc")
    with pytest.raises(DbcError, match="is no file"):
        load_dbc(tmp_path / "x.dbc")


def test_a_counter_and_a_factor_that_no_frame_can_have(tmp_path: Path) -> None:
    (tmp_path / "x.dbc").write_text('BO_ 1 M: 8 A\n SG_ C : 0|48@1+ (1,0) [0|0] "" A\n SG_ S : 48|8@1+ (1e300,0) [0|0] "" A\n')
    text = 'transport = "can"\nname = "x"\nrole = "bms"\ndbc = "x.dbc"\n[[frame]]\nmessage = "M"\nperiod_ms = 100\ncounter = "C"\n'
    with pytest.raises(ProfileError) as e:
        parse_profile(text + 'signals = [{ signal = "soc", dbc_signal = "S", factor = 1e300 }]', str(tmp_path / "p.toml"))
    assert "has 48 bits; a signal of 2 to 32 bits" in str(e.value) and "no finite number" in str(e.value)


def test_a_multiplexer_outside_its_frame_is_refused() -> None:
    text = 'transport = "can"\nname = "x"\nrole = "bms"\n[[frame]]\nid = 1\nperiod_ms = 100\n'
    for mux in ("{ start = 63, length = 32, value = 1 }", "{ start = 0, length = 2, value = 4 }"):
        with pytest.raises(ProfileError, match="does not fit into"):
            parse_profile(text + f'signals = [{{ signal = "soc", start = 0, length = 8, mux = {mux} }}]')
