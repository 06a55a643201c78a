"""CAN profiles: cantools' reading of the same bits, and every error of a bad file at once. Golden frames: tests/hal/test_frames.py."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import cantools.database.can as dbc
import pytest
from cantools.database.conversion import BaseConversion
from hal.can import decode_signal
from hypothesis import given
from hypothesis import strategies as st

from hal.canprofile import _bits
from hal.canrows import CanMap, Place
from hal.profile import PROFILE_DIR, ProfileError, load_profile, parse_profile

DATA = Path(__file__).parent / "data"
CAN_PROFILES = ("pylontech_lv", "victron_lv", "sma_lv", "foxbms_2", "generic_can_pcs")


def tsv(name: str) -> list[dict[str, str]]:
    lines = [line for line in (DATA / name).read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t"))


def can(name: str) -> CanMap:
    found = load_profile(name)
    assert isinstance(found, CanMap)
    return found


@pytest.mark.parametrize("profile", ["pylontech_lv", "victron_lv"])
def test_no_permit_is_withheld_by_the_quiet_frames_and_each_alarm_bit_withholds_one(profile: str) -> None:
    device = can(profile)
    permits = [(f, s) for f in device.frames for s in f.signals if s.permit == "clear"]
    assert len(permits) >= 7
    quiet = bytes(8)
    assert all(decode_signal(s, quiet)[0] == 0.0 for _, s in permits)
    one_bit = {bit for bit in range(32) if any(decode_signal(s, (1 << bit).to_bytes(8, "little"))[0] for _, s in permits)}
    # can_bms.tsv of the sources: the bits of alarms (0x359 bytes 0 and 1; 0x35A the lower bit of each pair), none of the warnings
    assert one_bit == ({1, 2, 3, 4, 7, 8, 11} if profile == "pylontech_lv" else {2, 4, 6, 8, 10, 12, 14, 16, 22})


def foxbms() -> dbc.Database:
    """foxBMS's database as cantools sees it, from its rows."""
    messages: dict[int, list[dbc.Signal]] = {}
    for r in tsv("foxbms_dbc.tsv"):
        conversion = BaseConversion.factory(float(r["scale"]), float(r["offset"]))
        order = "little_endian" if r["order"] == "1" else "big_endian"
        one = dbc.Signal(r["signal"], int(r["start"]), int(r["len"]), order, r["sign"] == "-", conversion=conversion)  # type: ignore[arg-type]
        messages.setdefault(int(r["id"], 16), []).append(one)
    return dbc.Database([dbc.Message(number, f"m{number:x}", 8, rows, strict=False) for number, rows in messages.items()], strict=False)


FOXBMS = {  # our signal: (theirs, SI per their unit)
    "batt_i_discharge_max_a": ("MaximumDischargeCurrent", 1.0), "batt_i_charge_max_a": ("MaximumChargeCurrent", 1.0),
    "batt_p_discharge_max_w": ("MaximumDischargePower", 1e3), "batt_p_charge_max_w": ("MaximumChargePower", 1e3),
    "batt_v": ("BatteryVoltage", 1.0), "batt_i_a": ("Current", 1.0), "soc": ("MinimumSoc", 0.01), "soh": ("Soh", 0.01),
    "batt_temp_max_c": ("MaximumCellTemperature", 1.0), "batt_temp_min_c": ("MinimumCellTemperature", 1.0),
}  # fmt: skip


def pylontech() -> dbc.Database:
    """The frames of the Pylontech family as cantools sees them, from the published protocol (V1.2, 2018: 0x351, 0x355, 0x356)."""

    def one(name: str, start: int, signed: bool, scale: float) -> dbc.Signal:
        return dbc.Signal(name, start, 16, "little_endian", signed, conversion=BaseConversion.factory(scale, 0.0))

    messages = {
        0x351: [one("ChargeCurrentLimit", 16, True, 0.1), one("DischargeCurrentLimit", 32, True, 0.1)],
        0x355: [one("Soc", 0, False, 1), one("Soh", 16, False, 1)],
        0x356: [one("Voltage", 0, True, 0.01), one("Current", 16, True, 0.1), one("Temperature", 32, True, 0.1)],
    }
    return dbc.Database([dbc.Message(number, f"m{number:x}", 8, rows, strict=False) for number, rows in messages.items()], strict=False)


PYLONTECH = {
    "batt_i_charge_max_a": ("ChargeCurrentLimit", 1.0), "soc": ("Soc", 0.01), "soh": ("Soh", 0.01), "batt_v": ("Voltage", 1.0),
    "batt_i_a": ("Current", -1.0), "batt_temp_max_c": ("Temperature", 1.0), "batt_temp_min_c": ("Temperature", 1.0),
}  # fmt: skip


@pytest.mark.parametrize(("profile", "theirs", "names"), [("foxbms_2", foxbms(), FOXBMS), ("pylontech_lv", pylontech(), PYLONTECH)])
@given(st.binary(min_size=8, max_size=8))
def test_frames_decode_as_cantools_does(profile: str, theirs: dbc.Database, names: dict[str, tuple[str, float]], data: bytes) -> None:
    compared = set()
    for frame in can(profile).frames:
        for s in frame.signals:
            if s.name not in names or s.permit:
                continue
            expected: dict[str, Any] = theirs.decode_message(frame.id, data, decode_choices=False)  # type: ignore[assignment]
            name, factor = names[s.name]
            value, how = decode_signal(s, data)
            x = expected[name] * factor
            assert value == pytest.approx(x, abs=1e-9) if how == "ok" else not s.lo <= x <= s.hi
            compared.add(s.name)
    assert compared == set(names)


@given(st.binary(min_size=8, max_size=8))
def test_a_pylontech_discharge_limit_is_a_magnitude_whichever_sign_it_is_sent_with(data: bytes) -> None:
    frame = next(f for f in can("pylontech_lv").frames if f.id == 0x351)
    limit = next(s for s in frame.signals if s.name == "batt_i_discharge_max_a")
    raw: dict[str, Any] = pylontech().decode_message(0x351, data)  # type: ignore[assignment]
    assert decode_signal(limit, data)[0] == pytest.approx(abs(raw["DischargeCurrentLimit"]))


def test_the_generic_pcs_is_its_dbc() -> None:
    import cantools

    database = cantools.database.load_file(PROFILE_DIR / "generic_can_pcs.dbc")
    device = can("generic_can_pcs")
    assert [(f.id, f.period_ms) for f in device.frames] == [(0x180, 10.0), (0x181, 100.0)] and device.commands == 1
    data = database.encode_message(
        "PcsFeedback", {"ActivePower": -125000, "ReactivePower": 12.5, "State": 3, "Local": 1, "Counter": 9, "Checksum": 0}
    )
    got = {s.name: decode_signal(s, data)[0] for s in device.frames[0].signals}
    assert got == {"batt_p_w": 125000.0, "pcs_q_var": pytest.approx(12500.0), "pcs_state": 3.0, "pcs_local": 1.0}
    assert device.frames[0].checksum is not None and device.frames[0].checksum.byte == 7
    status = database.encode_message("PcsStatus", {"Voltage": 231.4, "Frequency": 49.987, "Alarms": 5, "Alive": 77})
    assert {s.name: round(decode_signal(s, status)[0], 6) for s in device.frames[1].signals} == {
        "pcs_v_v": 231.4, "pcs_f_hz": 49.987, "pcs_alarm": 5.0, "pcs_heartbeat": 77.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", CAN_PROFILES)
def test_a_map_travels_to_control_as_it_is(name: str) -> None:
    assert pickle.loads(pickle.dumps(can(name))) == can(name)


def test_a_further_unit_moves_every_id() -> None:
    device = parse_profile(GOOD.replace('name = "x"', 'name = "x"\nunit_offset = 16'), "x.toml")
    assert isinstance(device, CanMap) and device.at(1) == device
    assert [f.id for f in device.at(3).frames] == [0x120]


@pytest.mark.parametrize("place", [Place(7, 12, "big"), Place(40, 17, "big"), Place(3, 9, "little")])
def test_bits_of_a_place(place: Place) -> None:
    bits = _bits(place)
    assert len(bits) == place.length and bits[0] == place.start and max(b // 8 for b in bits) == place.last_byte


GOOD = """name = "x"
role = "bms"
transport = "can"
[[frame]]
id = 0x100
period_ms = 100.0
lost_ms = 300.0
signals = [{ signal = "soc", start = 0, length = 16, scale = 0.0001 }]
"""


def why(text: str) -> str:
    with pytest.raises(ProfileError) as e:
        parse_profile(text, "x.toml")
    assert all(p.file == "x.toml" and p.why and p.remedy for p in e.value.problems)
    return str(e.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("id = 0x100", "id = 0x800", "frame[0].id"),
        ("id = 0x100", 'message = "Pcs"', "no DBC is named"),
        ("period_ms = 100.0\n", "", "period_ms"),
        ("lost_ms = 300.0", "lost_ms = 120.0", "one late frame"),
        ("length = 16", "length = 65", "length"),
        ("start = 0", "start = 60", "beyond the eighth byte"),
        ("scale = 0.0001", "scale = -1.0", "sign = -1"),
        ('signal = "soc"', 'signal = "grid_p_w"', "signals[0].signal"),
        ("id = 0x100", "id = 0x100\nlength = 1", "lies outside the 1 bytes"),
        ("scale = 0.0001", "scale = 0.0001, skale = 1", "skale"),
        ("scale = 0.0001", "real = true", "IEEE 754"),
        ('transport = "can"', 'transport = "can"\ndbc = "absent.dbc"', "cannot be read"),
        ('role = "bms"', 'role = "meter"', "role"),
        ("scale = 0.0001", 'scale = 0.0001 }, { signal = "soc", start = 16, length = 8', "fed twice"),
        ("scale = 0.0001", "map = [[9223372036854775808, 1.0]]", "at most 16 pairs"),
        ("scale = 0.0001", 'scale = 0.0001 }, { signal = "batt_v", permit = "set", start = 16, length = 8', "no value"),
    ],
)
def test_a_bad_can_profile_says_what_is_wrong(old: str, new: str, words: str) -> None:
    assert old in GOOD
    assert words in why(GOOD.replace(old, new, 1))


def test_several_errors_come_at_once() -> None:
    text = GOOD.replace("id = 0x100", "id = 0x900").replace("length = 16", "length = 99").replace("period_ms = 100.0\n", "")
    assert len(why(text).splitlines()) >= 2


TRANSMIT = """[[transmit]]
id = 0x200
purpose = "command"
counter = { start = 48, length = 4 }
checksum = { kind = "xor", byte = 7 }
signals = [{ source = "p_cmd_w", start = 0, length = 24, signed = true }]
"""
SHORT = """length = 4
signals = [{ source = "p_cmd_w", start = 0, length = 24, signed = true, mux = { start = 40, length = 8, value = 1 } }]
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("id = 0x200", "id = 0x100", "one table an id"),
        ('source = "p_cmd_w"', 'source = "enable"', "commands nothing"),
        ("start = 0, length = 24", "start = 40, length = 24", "shares bit"),
        ('kind = "xor"', 'kind = "md5"', "checksum.kind"),
        ("byte = 7", "byte = 9", "checksum.byte"),
        ('source = "p_cmd_w"', 'source = "p_cmd_w", const = 1.0', "one of them"),
        ('purpose = "command"', 'purpose = "cyclic"', "period_ms"),
        ("signed = true", "signed = true, mux = { start = 16, length = 8, value = 1 }", "shares bit 16 of 0x200 with mux 1"),
        ("signed = true", "signed = true, mux = { start = 50, length = 2, value = 1 }", "'counter': shares bit 50 of 0x200 with mux 1"),
        ("signed = true", "signed = true, mux = { start = 60, length = 8, value = 1 }", "mux.value = 1: does not fit into 8 bits from 60"),
        (TRANSMIT[TRANSMIT.index("counter") :], SHORT, "'mux 1': lies outside the 4 bytes of 0x200"),
        ("signed = true", "signed = true, mux = { start = 32, length = 4, value = 17 }", "mux.value = 17: does not fit into 4 bits"),
        ("signed = true", "signed = true, range = [1000.0, 5000.0]", "holds no 0: a command of 0 would be sent as power"),
        ("signed = true", "signed = true, range = [-5000.0, -1.0]", "holds no 0: a command of 0 would be sent as power"),
        ("signed = true", "offset = -8388608.5", "its raw number 8.38861e+06 is no integer from 0 to 16777215"),
        ("signed = true", "offset = 1.0", "its raw number -1 is no integer from 0"),
        ("signed = true", "signed = true, wrap = true", "a power beyond the field would be sent as another one"),
    ],
)
def test_a_bad_transmit_says_what_is_wrong(old: str, new: str, words: str) -> None:
    text = (GOOD + TRANSMIT).replace('role = "bms"', 'role = "pcs"').replace('"soc"', '"batt_p_w"')
    assert isinstance(parse_profile(text, "x.toml"), CanMap)
    assert words in why(text.replace(old, new, 1))


MUXED = """{ source = "p_cmd_w", start = 0, length = 24, signed = true, mux = { start = 32, length = 4, value = 1 } },
    { source = "enable", start = 24, length = 1, mux = { start = 32, length = 4, value = MUX } }"""


def test_rows_of_one_multiplexer_number_share_it_and_others_do_not() -> None:
    text = (GOOD + TRANSMIT).replace('role = "bms"', 'role = "pcs"').replace('"soc"', '"batt_p_w"')
    text = text.replace('{ source = "p_cmd_w", start = 0, length = 24, signed = true }', MUXED)
    assert isinstance(parse_profile(text.replace("MUX", "1"), "x.toml"), CanMap)
    assert "'mux 2': shares bit 32 of 0x200 with mux 1" in why(text.replace("MUX", "2"))


DBC = """VERSION ""
NS_ :
BS_:
BU_: Ballast Pcs
BO_ {id} Feedback: {length} Pcs
 SG_ Power : 0|16@1- (1,0) [0|0] "W" Ballast
 SG_ Counter : 16|{bits}@1+ (1,0) [0|0] "" Ballast
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 99999;
BA_DEF_DEF_ "GenMsgCycleTime" 10;
"""
BY_DBC = """name = "x"
role = "pcs"
transport = "can"
dbc = "x.dbc"
lost_ms = 100.0
[[frame]]
message = "Feedback"
counter = "Counter"
signals = [{ signal = "batt_p_w", dbc_signal = "Power" }]
"""


def by_dbc(folder: Path, length: int = 8, bits: int = 4, number: int = 0x100, more: str = "") -> CanMap:
    (folder / "x.dbc").write_text(DBC.format(id=number, length=length, bits=bits))
    found = parse_profile(BY_DBC.replace('counter = "Counter"', f'counter = "Counter"\n{more}'), str(folder / "x.toml"))
    assert isinstance(found, CanMap)
    return found


def test_what_a_dbc_says_is_judged_like_what_the_profile_says(tmp_path: Path) -> None:
    (frame,) = by_dbc(tmp_path).frames
    assert (frame.id, frame.ext, frame.length, frame.period_ms) == (0x100, False, 8, 10.0)
    for length in (12, 64):
        with pytest.raises(ProfileError, match=f"has {length} bytes: is more than a classic CAN frame carries; CAN FD is not spoken here"):
            by_dbc(tmp_path, length)
    with pytest.raises(ProfileError, match="CAN FD is not spoken here"):
        by_dbc(tmp_path, 64, more="length = 8")
    for bits in (2, 32):
        assert by_dbc(tmp_path, bits=bits).frames[0].counter is not None
    for bits in (1, 33):
        with pytest.raises(ProfileError, match=f"has {bits} bits; a signal of 2 to 32 bits"):
            by_dbc(tmp_path, bits=bits)
    extended = 0x18FF50E5
    assert by_dbc(tmp_path, number=extended | 1 << 31).frames[0].id == extended
    with pytest.raises(ProfileError, match="an integer from 0 to 2047"):
        by_dbc(tmp_path, number=extended | 1 << 31, more="ext = false")
