"""The site file: what is refused, in which words, and that everything is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller import site as sites
from controller.problems import SiteError
from controller.settings import SETTINGS, in_unit, other_unit

GOOD = sites.BUILTIN.read_text()


def refused(tmp_path: Path, text: str, sets: list[str] | None = None) -> str:
    """The lines that loading this text gives."""
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(SiteError) as e:
        sites.load(path, sets or [], lambda: ["battery.soc", "pcs.tau_s"])
    return str(e.value)


def test_builtin_site_is_the_one_of_the_design() -> None:
    site = sites.load(None)
    assert site.virtual and [b.name for b in site.buses] == ["a", "b"]
    assert [(d.role, d.bus, d.unit) for d in site.devices] == [("meter", "a", 1), ("bms", "a", 10), ("pcs", "b", 1)]
    assert {b.baud for b in site.buses} == {460800}
    assert site.num("grid.import_limit_w") == 445e3 and site.num("grid.export_limit_w") == 0
    assert site.num("pcs.s_rated_va") == 250e3 and site.num("pcs.reversion_s") == 5


def test_every_default_is_within_its_own_range() -> None:
    for row in SETTINGS.values():
        if row.kind != "str" and row.default is not None:
            assert row.low <= float(row.default) <= row.high, row.key


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("import_limit_w = 445000.0", "import_limit_kw = 445", "write import_limit_w = 445000"),
        ("import_limit_w = 445000.0", 'import_limit_w = "445 kW"', "write import_limit_w = 445000"),
        ("import_limit_w = 445000.0", "import_limit_w = true", "a number is needed"),
        ("import_limit_w = 445000.0", "import_limit_w = nan", "is outside"),
        ("import_limit_w = 445000.0", "import_limt_w = 1.0", "did you mean import_limit_w"),
        ("ramp_up_w_per_s = 2000.0", "ramp_up_kw_per_min = 120", "write ramp_up_w_per_s = 2000"),
        ("soc_min = 0.1", "soc_min_pct = 10", "write soc_min = 0.1"),
        ("dead_time_s = 0.001", "dead_time_ms = 1", "write dead_time_s = 0.001"),
        ("f_nom_hz = 50.0", "", "has no default"),
        ("[battery]", "[batery]", "did you mean battery"),
        ("soc_target = 0.5", "soc_target = 0.95", "is not below battery.soc_max"),
        ("export_limit_w = 0.0", "export_limit_w = 450000.0", "is above import_limit_w"),
        ("feeder_w = 500000.0", "feeder_w = 400000.0", "load.shed"),
        ("reversion_s = 5.0", "reversion_s = 2.0", "three renewals"),
        ("billing_window_s = 900.0", "billing_window_s = 700.0", "does not divide the hour"),
        ('role = "bms"', 'role = "bmss"', "did you mean bms"),
        ('bus = "b"', 'bus = "c"', "is no bus of this file"),
        ("unit = 10", "unit = 1", "is the address of device meter on bus a too"),
        ("unit = 10", "unit = 10.5", "is not a whole number"),
        ("unit = 10", "unit = 300", "is outside 0 to 255"),
        ("unit = 10", "unit = 248", "is outside 1 to 247"),
        ("unit = 10", "unit = 0", "is outside 1 to 247"),
        ('port = "virtual"  ', 'port = "virtual-tcp"  ', "baud = 460800: means nothing on a TCP connection; leave it out"),
        ("stop_bits = 1", "latency_ms = 2.0", "latency_ms = 2: means nothing on a serial line"),
        ("stop_bits = 1", 'rs485 = "yes"', 'bus.a.rs485 = "yes": is unknown; one of auto, on, inverted, off'),
        ("stop_bits = 1", "rs485_before_ms = 1", "then the port's driver does not switch"),
        ("stop_bits = 1", 'rs485 = "on"\nrs485_after_ms = 2', "t3.5 of 1.75 ms after which a device may answer; write 1 or less"),
        ("baud = 460800\n", 'baud = 9600\nrs485 = "on"\nrs485_after_ms = 5\n', "t3.5 of 4.01 ms after which a device may answer; write 4"),
        ("unit = 10", "unit = 10\nturnaround_ms = 1001.0", "is outside -1 to 1000 ms"),
        ('role = "pcs"', 'role = "pv"', 'no device has role = "pcs"'),
        ('port = "virtual"  ', 'port = "/dev/ttyS9"  ', "all or nothing"),
        ('parity = "E"', 'parity = "X"', 'write "E", "O" or "N"'),
        ('name = "builtin"', 'name = "hall 3"', "letters, digits"),
        ("[pcs]", "[pcs", "is not TOML"),
    ],
)
def test_what_is_refused_and_what_would_do(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    text = refused(tmp_path, GOOD.replace(old, new, 1))
    assert says in text
    assert "site.toml" in text


def test_everything_at_once(tmp_path: Path) -> None:
    bad = GOOD.replace("import_limit_w = 445000.0", "import_limit_kw = 445").replace("soc_max = 0.9", "soc_max = 0.4")
    bad = bad.replace("unit = 10", "unit = 1").replace('role = "pcs"', 'role = "converter"')
    lines = refused(tmp_path, bad, ["nonsense", "battery.socc=1"]).splitlines()
    for part in ("import_limit_kw", "soc_target", "device.bms.unit", "device.pcs.role", "nonsense", "battery.socc"):
        assert sum(part in line for line in lines) >= 1, part


@pytest.mark.parametrize("role", ["pcs", "meter", "bms"])
def test_one_device_of_a_role(tmp_path: Path, role: str) -> None:
    second = f'\n[[device]]\nname = "second"\nrole = "{role}"\nbus = "b"\nunit = 7\n'
    text = refused(tmp_path, GOOD + second)
    assert f'2 devices have role = "{role}": each would overwrite what the others say; keep one; packs in parallel' in text


def test_toml_errors_name_the_line(tmp_path: Path) -> None:
    assert "line 3" in refused(tmp_path, "[site]\nname = 'x'\nf_nom_hz 50\n")


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "a." * 3000 + "b = 1", "x = " + "9" * 5000, "[site]\nf_nom_hz = 0x" + "f" * 9000])
def test_a_hostile_site_is_refused_with_a_reason(tmp_path: Path, text: str) -> None:
    assert any(word in refused(tmp_path, text) for word in ("nested too deeply", "is not TOML", "64 bits"))


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, "{a=" * 3000])
def test_a_hostile_override_is_a_text(text: str) -> None:
    assert sites.parse_value(text) == text


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be read: No such file"):
        sites.load(tmp_path / "absent.toml")


def test_set_goes_to_the_site_first_then_to_the_plant() -> None:
    asked = []

    def plant_keys() -> list[str]:
        asked.append(1)
        return ["battery.soc", "pcs.tau_s", "meter.noise_w"]

    site = sites.load(None, ["grid.import_limit_w=455000", "bus.a.baud=115200", "device.bms.unit=11"], plant_keys)
    assert site.num("grid.import_limit_w") == 455e3 and site.buses[0].baud == 115200 and site.devices[1].unit == 11
    assert not asked, "the plant is asked only where the site has no such key"
    site = sites.load(None, ["pcs.tau_s=0.003", "plant.pcs.tau_s=0.004", "battery.soc=0.55"], plant_keys)
    assert site.num("pcs.tau_s") == 0.003 and site.plant == {"pcs.tau_s": 0.004, "battery.soc": 0.55}


def test_set_is_checked_like_the_file() -> None:
    with pytest.raises(SiteError, match="is outside"):
        sites.load(None, ["battery.soc_min=2"])
    with pytest.raises(SiteError, match="is not a number"):
        sites.load(None, ["battery.soc=full"], lambda: ["battery.soc"])


def test_defaults_follow_the_grid(tmp_path: Path) -> None:
    fifty, sixty = sites.load(None), sites.load(None, ["site.f_nom_hz=60"])
    assert (fifty.num("grid.f_min_hz"), sixty.num("grid.f_min_hz")) == (47.5, 56.5)
    assert (fifty.num("control.droop_deadband_hz"), sixty.num("control.droop_deadband_hz")) == (0.2, 0.036)


def test_a_site_survives_the_way_to_its_children() -> None:
    text = GOOD + '\n[[schedule]]\nfrom = "22:00"\nto = "06:00"\nbase_w = 20000.0\n'
    site = sites.Site.from_dict(sites.load(None).to_dict())
    assert site == sites.load(None)
    assert "schedule" in text


def test_the_settings_hash_follows_what_the_kernel_does() -> None:
    base = sites.load(None)
    assert base.settings_hash() == sites.load(None, ["battery.soc=0.55"], lambda: ["battery.soc"]).settings_hash()
    assert base.settings_hash() != sites.load(None, ["grid.import_limit_w=444000"]).settings_hash()


def test_other_spellings_of_units() -> None:
    known = {row.name: row for row in SETTINGS.values()}
    assert other_unit("energy_kwh", known) == ("energy_wh", 1000.0)
    assert other_unit("trip_ms", known) == ("trip_s", 1e-3)
    assert other_unit("entirely_else", known) is None
    assert in_unit("-20 kW", "hold_w") == -20e3 and in_unit("1e3", "x_w") == 1e3 and in_unit("5 m", "x_w") is None
