"""Profiles beside the tick: what ships compiles, values are those worked out by hand, a bad profile is refused with all that is wrong."""

from __future__ import annotations

import pytest

from hal.profile import ProfileError
from hal.shelf import SHELF_DIR, Item, list_shelves, load_shelf, parse_shelf

GOOD = (SHELF_DIR / "orv3_psu.toml").read_text()


@pytest.mark.parametrize("name", list_shelves())
def test_shipped_profiles_compile_and_every_item_is_read(name: str) -> None:
    made = load_shelf(name)
    assert made.name == name and made.sweep.items
    blocks = (made.sweep, *made.slow)
    for block in blocks:
        assert 1 <= block.count <= 125
        assert all(block.addr <= i.addr and i.addr + i.words <= block.addr + block.count for i in block.items)
    for block in made.slow:  # no hole: what a device makes of a register that it has not is not known
        covered = {a for i in block.items for a in range(i.addr, i.addr + i.words)}
        assert covered == set(range(block.addr, block.addr + block.count))
    names = [i.name for block in blocks for i in block.items]
    assert len(names) == len(set(names))
    assert all(made.find(item.name) for _, item, _ in made.signals)
    assert all(made.writable(w.name) is w for w in made.writes)


# Worked out by hand from the maps that the profiles name: raw / 2**p, then scale and shift.
@pytest.mark.parametrize(
    ("profile", "item", "words", "value"),
    [
        ("orv3_psu", "psu_output_voltage", [0xC800], 50.0),  # 51200 / 2**10
        ("orv3_psu", "psu_output_current", [0x0920], 36.5),  # 2336 / 2**6
        ("orv3_psu", "psu_output_power", [0x3908], 1825.0),  # 14600 / 2**3
        ("orv3_psu", "psu_power_factor", [0x01FE], 0.99609375),  # 510 / 2**9
        ("orv3_psu", "psu_temp1_outlet", [0xFB00], -10.0),  # signed: -1280 / 2**7
        ("orv3_psu", "psu_input_frequency_ac", [0x0032], 50),
        ("orv3_psu", "total_up_time", [0x0001, 0x5180], 86400),  # 0x15180
        ("orv3_psu", "psu_mfr_serial", [0x414E, 0x4C31, 0x2300, *[0] * 13], "ANL1#"),
        ("orv3_psu", "general_alarm_status_register", [0x0901], ("pfc", "pfc_converter_fail", "fan_alarm")),
        ("orv3_psu", "led_override", [0x0021], ("led_override", "blue_led")),
        ("orv3_hpr_psu", "psu_input_power_inst", [0xABE0], 5500.0),  # 44000 / 2**3
        ("orv3_hpr_psu", "psu_setting_register", [0x4002], ("pulse_mgmt_enable", "clear_faults_latch")),
        ("orv3_bbu", "relative_state_of_charge", [0x0063], 99),
        ("orv3_bbu", "battery_current", [0xFF38], -200),
        ("orv3_hpr_bbu", "temp1", [0x0BA6], 25.05),  # 2982 * 0.1 - 273.15
        ("orv3_hpr_bbu", "battery_current", [0xFFFE], -20.0),  # -2 * 10
        ("orv3_hpr_pmm_psu", "module_present", [0x0003], ("module1_present", "module2_present")),
        ("orv3_rpu", "rpu_coolant_flow_rate_lpm", [0x02D0], 72.0),  # 720 * 0.1
        ("orv3_rpu", "rpu_coolant_inlet_pressure_kpa", [0xFFCE], -5.0),  # -50 * 0.1
        ("orv3_rpu", "rpu_bb_hsc_p48v_vin_volt_v", [0x12C5], 48.05),  # 4805 * 0.01
    ],
)  # fmt: skip
def test_values_as_worked_out_by_hand(profile: str, item: str, words: list[int], value: object) -> None:
    found = load_shelf(profile).find(item)
    assert found is not None and found[1].words == len(words)
    got = found[1].decode(words)
    assert got == (pytest.approx(value) if isinstance(value, float) else value)


def test_a_bit_without_a_name_is_shown_and_text_takes_any_byte() -> None:
    assert Item("a", 0, 1, "flags", bits=((0, "x"),)).decode([0x8001]) == ("x", "bit_15")
    assert isinstance(Item("a", 0, 2, "text").decode([0xFFFE, 0x0041]), str)


def test_writes_of_one_bit_leave_the_others() -> None:
    psu = load_shelf("orv3_psu")
    clear, led = psu.writable("clear_faults"), psu.writable("led")
    assert clear is not None and led is not None
    assert clear.raw(1, 0x0800) == 0x4800 and clear.raw(0, 0x4800) == 0x0800 and clear.shown(0x4800) == 1
    assert led.raw(33, 0xFFFF) == 33 and led.refused(34) and not led.refused(65)
    rpu = load_shelf("orv3_rpu").writable("pump_duty_pct")
    assert rpu is not None and rpu.refused(101) and rpu.refused(-1) and not rpu.refused(100)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('transport = "shelf"', 'transport = "rtu"', "transport"),
        ('role = "psu"', 'role = "pcs"', "role"),
        ("units = [[200, 205]", "units = [[0, 205]", "units"),
        ("units = [[200, 205]", "units = [[205, 200]", "units"),
        ("sweep = [79, 11]", "sweep = [79, 126]", "sweep"),
        ("sweep = [79, 11]", "sweep = [200, 5]", "sweep"),
        ('p_out_w = "psu_output_power"', 'p_out_w = "psu_power"', "signals.p_out_w"),
        ('p_out_w = "psu_output_power"', 'p_out_kw = "psu_output_power"', "signals.p_out_kw"),
        ('p_out_w = "psu_output_power"', 'p_out_w = "psu_fbpn"', "signals.p_out_w"),
        ('p_out_w = "psu_output_power"', 'p_out_w = ["psu_output_power", 0]', "signals.p_out_w"),
        ('[79, 1, "u/2^10"', '[79, 1, "u/10"', "map.items"),
        ('[79, 1, "u/2^10"', '[79, 5, "u/2^10"', "map.items"),
        ('[79, 1, "u/2^10"', '[80, 1, "u/2^10"', "map.items"),
        ('[79, 1, "u/2^10"', '[65536, 1, "u/2^10"', "map.items"),
        ('[79, 1, "u/2^10", "psu_output_voltage", "V"]', '[79, 1, "u/2^10", "psu_output_voltage"]', "map.items"),
        ('"psu_output_voltage", "V"]', '"psu_output_voltage", "V", { scale = 1e305 }]', "map.items"),
        ('"psu_output_voltage", "V"]', '"psu_output_voltage", "V", { scal = 2.0 }]', "map.items"),
        ('led_override = "0 led_override', 'led_override = "0 led_override, 0 twice', "bits.led_override"),
        ('led_override = "0 led_override', 'led_overide = "0 led_override', "bits.led_overide"),
        ("values = [0, 33, 65]", "values = [0, 33, 65536]", "write[0].values"),
        ("values = [0, 33, 65]", "values = [0]\nrange = [0, 1]", "write[0].values"),
        ("bit = 14", "bit = 16", "write[1].bit"),
        ("baud = 19200", "baud = 19200\nbuad = 1", "buad"),
    ],
)
def test_a_bad_profile_names_key_value_reason_and_remedy(old: str, new: str, key: str) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(ProfileError) as e:
        parse_shelf(GOOD.replace(old, new, 1), "x.toml")
    assert any(key in p.key or key in str(p) for p in e.value.problems), str(e.value)
    assert all(p.file == "x.toml" and p.why and p.remedy for p in e.value.problems)


def test_everything_wrong_is_said_at_once() -> None:
    bad = GOOD.replace('role = "psu"', 'role = "ups"').replace("bit = 14", "bit = 99").replace("sweep = [79, 11]", "sweep = 79")
    with pytest.raises(ProfileError) as e:
        parse_shelf(bad)
    assert {"role", "write[1].bit", "sweep"} <= {p.key for p in e.value.problems}
