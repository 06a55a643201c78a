"""A site with CAN buses: accepted as it should be, and every contradiction told."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller import build
from controller.problems import SiteError
from controller.site import Site

SITE = """[site]
name = "lv"
f_nom_hz = 50.0
[battery]
energy_wh = 100000.0
[pcs]
s_rated_va = 100000.0
[[bus]]
name = "a"
port = "/dev/ttyX0"
[[bus]]
name = "b"
port = "/dev/ttyX1"
[[bus]]
name = "c"
port = "can:can0"
[[device]]
name = "meter"
role = "meter"
bus = "a"
unit = 1
profile = "ballast_virtual_meter"
[[device]]
name = "bms"
role = "bms"
bus = "c"
unit = 1
profile = "pylontech_lv"
[[device]]
name = "pcs"
role = "pcs"
bus = "b"
unit = 1
"""


def load(tmp_path: Path, text: str) -> Site:
    file = tmp_path / "site.toml"
    file.write_text(text)
    return build.load_site(file, (), lambda: [])


def test_a_can_battery(tmp_path: Path) -> None:
    site = load(tmp_path, SITE)
    assert [b.can for b in site.buses] == [False, False, True] and not site.virtual
    assert site.buses[2].bitrate == 500_000
    kernel = build.kernel_site(site)
    assert (kernel["has_bms"], kernel["has_bms_limits"], kernel["has_bms_temp"]) == (1, 1, 1)
    assert "0x351" in str(build.plan(site))
    assert Site.from_dict(site.to_dict()) == site


def test_a_can_converter_is_detected_with_its_last_bit(tmp_path: Path) -> None:
    text = SITE.replace('role = "pcs"\nbus = "b"\nunit = 1', 'role = "pcs"\nbus = "c"\nunit = 1\nprofile = "generic_can_pcs"')
    site = load(tmp_path, text)
    assert build.detection_s(site) == 0.0 and build.detection_s(load(tmp_path, SITE)) == 1.75e-3
    assert build.kernel_site(site)["has_pcs_ctl"] == 0 and build.kernel_site(site)["has_pcs_life"] == 1


def test_a_virtual_can_bus_is_virtual(tmp_path: Path) -> None:
    text = SITE.replace("can:can0", "virtual-can").replace("/dev/ttyX0", "virtual").replace("/dev/ttyX1", "virtual")
    site = load(tmp_path, text)
    assert site.virtual and site.buses[2].can


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('profile = "pylontech_lv"', 'profile = "generic_pcs"', "the device's role is bms"),
        ('profile = "pylontech_lv"\n', "", "SunSpec is Modbus"),
        ('bus = "c"\nunit = 1\nprofile = "pylontech_lv"', 'bus = "a"\nunit = 5\nprofile = "pylontech_lv"', "speaks CAN, bus a"),
        ('role = "meter"\nbus = "a"', 'role = "meter"\nbus = "c"', "speaks Modbus, bus c"),
        ('port = "can:can0"', 'port = "slcan:/dev/ttyX2"\nbitrate = 333000', "is no rate of slcan"),
        ('port = "can:can0"', 'port = "slcan:/dev/ttyX1"', "is the port of bus b too"),
        ('port = "can:can0"', 'port = "virtual-can"', "all or nothing"),
        ("[[bus]]", "[control]\nbms_lost_s = 1.0\n[[bus]]", "one and a half periods"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in SITE
    with pytest.raises(SiteError) as e:
        load(tmp_path, SITE.replace(old, new, 1))
    assert words in str(e.value), str(e.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('port = "/dev/ttyX0"', 'port = "/dev/ttyX0"\nbitrate = 250000', "bus.a.bitrate = 250000: means nothing on a serial line; leave"),
        ('port = "/dev/ttyX0"', 'port = "/dev/ttyX0"\nlatency_ms = 2.0', "bus.a.latency_ms = 2: means nothing on a serial line; leave"),
        ('port = "/dev/ttyX0"', 'port = "tcp://192.0.2.7"\nparity = "N"', 'bus.a.parity = "N": means nothing on a TCP connection; leave'),
        ('port = "/dev/ttyX0"', 'port = "tcp://192.0.2.7"\nbitrate = 250000', "bus.a.bitrate = 250000: means nothing on a TCP connection"),
        ('port = "can:can0"', 'port = "can:can0"\nbaud = 9600', "bus.c.baud = 9600: means nothing on CAN; leave it out"),
        ('port = "can:can0"', 'port = "slcan:/dev/ttyX2"\nstop_bits = 2', "bus.c.stop_bits = 2: means nothing on CAN; leave it out"),
        ('port = "can:can0"', 'port = "virtual-can"\nlatency_ms = 2.0', "bus.c.latency_ms = 2: means nothing on CAN; leave it out"),
        ('port = "/dev/ttyX0"', 'host = "192.0.2.7"', 'bus.a.host = "192.0.2.7": unknown key; '),
    ],
)
def test_a_key_of_another_kind_of_bus_is_told(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(SiteError) as e:
        load(tmp_path, SITE.replace(old, new, 1))
    assert f"{tmp_path}/site.toml: {words}" in str(e.value), str(e.value)


def test_the_speed_of_an_adapter_s_line_is_its_own(tmp_path: Path) -> None:
    site = load(tmp_path, SITE.replace('port = "can:can0"', 'port = "slcan:/dev/ttyX2"\nbaud = 115200\nbitrate = 250000', 1))
    assert (site.buses[2].baud, site.buses[2].bitrate) == (115200, 250_000)


def test_ports_that_are_not_there_are_told_with_the_others(tmp_path: Path) -> None:
    problems = build.port_problems(load(tmp_path, SITE))
    assert [p.key for p in problems] == ["bus.a.port", "bus.b.port", "bus.c.port"]
