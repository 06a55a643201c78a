"""Profiles: what ships compiles, and a bad one is refused with every error at once."""

from __future__ import annotations

import pytest
from _core.image import OUTPUTS, SIGNALS

from hal.profile import ProfileError, list_profiles, load_profile, parse_profile
from hal.rows import ROLE_SIGNALS, SOURCES, pack, to_words

HEAD = 'name = "x"\nrole = "meter"\n'
ROW = '[[read]]\nsignal = "grid_p_w"\naddress = 0\ntype = "f32"\n'


@pytest.mark.parametrize("name", list_profiles())
def test_shipped_profiles_compile(name: str) -> None:
    device = load_profile(name)
    assert device.signals() <= set(ROLE_SIGNALS[device.role])
    reads = pack(device, 125)
    assert {f.signal for r in reads for f in r.fields} == {f.signal for f in device.fields}
    for r in reads:
        assert all(r.addr <= f.addr and f.addr + f.words <= r.addr + r.count <= r.addr + 125 for f in r.fields)


def test_names_are_the_fields_of_the_image() -> None:
    assert {s for names in ROLE_SIGNALS.values() for s in names} == set(SIGNALS)
    assert set(SOURCES) == set(OUTPUTS)


def test_virtual_meter_is_one_read_of_twelve_registers() -> None:
    device = load_profile("ballast_virtual_meter")
    (read,) = pack(device, 125)
    assert (read.fc, read.addr, read.count, read.rate) == (4, 0, 12, "fast")
    assert [f.signal for f in read.fields] == ["grid_p_w", "q_var", "v1_v", "v2_v", "v3_v", "f_hz"]
    assert (device.window_ms, device.update_ms, device.turnaround_ms, device.sample) == (0, 0, 0, "request")


def test_sdm630_addresses() -> None:
    rows = {f.signal: f for f in load_profile("eastron_sdm630").fields}
    assert {s: rows[s].addr for s in ("v1_v", "v2_v", "v3_v", "grid_p_w", "f_hz")} == {
        "v1_v": 0, "v2_v": 2, "v3_v": 4, "grid_p_w": 52, "f_hz": 70,
    }  # fmt: skip
    assert all((f.fc, f.type) == (4, "f32") for f in rows.values())


def why(text: str) -> list[str]:
    with pytest.raises(ProfileError) as e:
        parse_profile(text, "meter.toml")
    for p in e.value.problems:
        assert p.file == "meter.toml" and p.why and p.remedy
    return [str(p) for p in e.value.problems]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (HEAD + ROW.replace("grid_p_w", "grid_power"), "read[0].signal"),
        (HEAD + ROW.replace("address = 0", "address = 65536"), "read[0].address"),
        (HEAD + ROW.replace("address = 0", "address = 65535"), "read[0].address"),
        (HEAD + ROW.replace("address = 0\n", ""), "read[0].address"),
        (HEAD + ROW.replace("f32", "float"), "read[0].type"),
        (HEAD + ROW + "scale = -1.0\n", "read[0].scale"),
        (HEAD + ROW + "scale = nan\n", "read[0].scale"),
        (HEAD + ROW + "sign = 2\n", "read[0].sign"),
        (HEAD + ROW + "fc = 5\n", "read[0].fc"),
        (HEAD + ROW + 'group = "quick"\n', "read[0].group"),
        (HEAD + ROW + "nan = [4294967296]\n", "read[0].nan"),
        (HEAD + ROW + "bit = 3\n", "read[0].type"),
        (HEAD + ROW + "colour = 1\n", "read[0].colour"),
        (HEAD + ROW.replace("f32", "u64") + "map = [[9223372036854775808, 1.0]]\n", "at most 16 pairs"),
        (HEAD + ROW + "range = [5.0, 1.0]\n", "read[0].range"),
        (HEAD + "window_ms = -1\n" + ROW, "window_ms"),
        (HEAD.replace("meter", "toaster") + ROW, "role"),
        (HEAD, "read"),
        (HEAD + ROW + ROW, "is fed twice"),
        (HEAD + ROW + ROW.replace("grid_p_w", "q_var").replace("address = 0", "address = 1"), "belongs to grid_p_w"),
        ("name = [", "not TOML"),
    ],
)
def test_errors_name_key_and_remedy(text: str, key: str) -> None:
    assert any(key in p for p in why(text))


def test_every_error_at_once() -> None:
    problems = why('role = "meter"\nsample = "never"\n' + ROW.replace("f32", "f23").replace("grid_p_w", "nope") + "\n[[read]]\n")
    assert len(problems) >= 7


WRITE = """
[[write]]
purpose = "command"
{0}
registers = [{{ address = 200, type = "i16", source = "p_cmd_w" }}{1}]
"""
PCS = 'name = "x"\nrole = "pcs"\n' + ROW.replace("grid_p_w", "batt_p_w")


@pytest.mark.parametrize("value", ["", 'cyclic_write = "flash"', 'cyclic_write = "unknown"'])
def test_a_setpoint_in_flash_is_refused_for_cyclic_writing(value: str) -> None:
    (problem,) = why(PCS + WRITE.format(value, ""))
    assert "cyclic_write" in problem and "17 minutes" in problem


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (', { address = 203, type = "u16", const = 1 }', "undefined"),
        (', { address = 200, type = "u16", const = 1 }', "overlaps"),
        (', { address = 201, type = "u16" }', "a source or a const"),
        (', { address = 201, type = "u16", source = "p_cmd" }', "source"),
    ],
)
def test_writes_are_blocks_without_holes(more: str, text: str) -> None:
    assert any(text in p for p in why(PCS + WRITE.format('cyclic_write = "ok"', more)))


@pytest.mark.parametrize("limits", ["[1000.0, 5000.0]", "[-5000.0, -1.0]"])
@pytest.mark.parametrize("source", ["p_cmd_w", "q_cmd_var"])
def test_a_command_of_zero_is_within_the_range(source: str, limits: str) -> None:
    text = PCS + WRITE.format('cyclic_write = "ok"', "").replace('source = "p_cmd_w"', f'source = "{source}", range = {limits}')
    assert any("holds no 0: a command of 0 would be sent as power" in p for p in why(text))
    assert parse_profile(text.replace(limits, "[-5000.0, 5000.0]")).writes[0].encodes[0].lo == -5000.0


@pytest.mark.parametrize(
    ("coding", "words"),
    [
        ("type = \"u16\", offset = -32768.5", "its raw number 32768.5 is no integer from 0 to 65535"),
        ("type = \"u16\", scale = 10.0, offset = -1005.0", "its raw number 100.5 is no integer"),
        ("type = \"u16\", offset = 1000.0", "its raw number -1000 is no integer from 0"),
        ("type = \"i16\", offset = 40000.0", "its raw number -40000 is no integer from -32767 to 32767"),
        ("type = \"u16\", wrap = true", "a power beyond the field would be sent as another one"),
    ],
)
def test_a_power_has_a_raw_number_for_zero_and_does_not_turn_over(coding: str, words: str) -> None:
    text = PCS + WRITE.format('cyclic_write = "ok"', "")
    good = text.replace('type = "i16"', 'type = "u16", scale = 0.1, offset = -3276.8')
    assert good != text and parse_profile(good).writes[0].encodes[0].offset == -3276.8
    assert any(words in p for p in why(text.replace('type = "i16"', coding)))


def test_fc06_writes_one_register_and_fc23_reads() -> None:
    assert any("FC06" in p for p in why(PCS + WRITE.format('cyclic_write = "ok"\nfc = 6', ', {address = 201, type = "u16", const = 1}')))
    assert any("FC23" in p for p in why(PCS + WRITE.format('cyclic_write = "ok"\nfc = 23', "")))


def test_missing_file_lists_what_ships() -> None:
    with pytest.raises(ProfileError, match="eastron_sdm630"):
        load_profile("nonsense")


def test_identity_rows() -> None:
    device = parse_profile(HEAD + ROW + '[[identity]]\nname = "id"\naddress = 9\nvalue = 3.5\ntype = "f32"\n')
    assert device.verify[0].words == (0x4060, 0)
    assert to_words(-2, "i32", "little") == (0xFFFE, 0xFFFF)
    assert any("identity[0]" in p for p in why(HEAD + ROW + '[[identity]]\nname = "id"\naddress = 9\n'))
    assert any("does not fit" in p for p in why(HEAD + ROW + '[[identity]]\nname = "id"\naddress = 9\nvalue = 70000\n'))


def test_block_reads_join_rows_but_not_across_wide_holes() -> None:
    rows = "".join(
        f'[[read]]\nsignal = "{s}"\naddress = {a}\ntype = "u16"\n'
        for s, a in (("grid_p_w", 0), ("q_var", 40), ("f_hz", 100), ("v1_v", 130))
    )
    device = parse_profile(HEAD + rows)
    assert [(r.addr, r.count) for r in pack(device, 125)] == [(0, 41), (100, 31)]
    assert [(r.addr, r.count) for r in pack(device, 20)] == [(0, 1), (40, 1), (100, 1), (130, 1)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = " + "[" * 5000, "nested too deeply"),
        ("a." * 3000 + "b = 1", "nested too deeply"),
        ("window_ms = " + "9" * 400, "64 bits"),
        ("x = " + "9" * 5000, "is not TOML"),
        ("x = 0x" + "f" * 9000, "64 bits"),
        ("# " + "x" * 1_000_000, "longer than"),
        ("[[read]]\nmap = [[18446744073709551615, 1]]", "16 pairs"),
    ],
)
def test_a_hostile_profile_is_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        parse_profile(text)
