"""[[shelf]] rows of a site file: what is refused, in which words; and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller import site as sites
from controller.problems import SiteError
from controller.site import Site

GOOD = sites.BUILTIN.read_text()
SHELF = '\n[[shelf]]\nname = "rack1"\nport = "/dev/ttyUSB7"\nprofile = "orv3_psu"\nunits = [200, 201]\nallow = ["led"]\n'


def load(tmp_path: Path, text: str) -> Site:
    path = tmp_path / "site.toml"
    path.write_text(GOOD + text)
    return sites.load(path)


def test_a_shelf_takes_from_its_profile_what_it_does_not_say_and_decides_nothing(tmp_path: Path) -> None:
    site = load(tmp_path, SHELF)
    (shelf,) = site.shelves
    assert (shelf.baud, shelf.parity, shelf.stop_bits, shelf.units, shelf.allow) == (19200, "E", 1, (200, 201), ("led",))
    assert Site.from_dict(site.to_dict()) == site
    plain = load(tmp_path, "")
    assert site.settings_hash() == plain.settings_hash() and site.devices_hash() == plain.devices_hash()
    every = load(tmp_path, SHELF.replace("units = [200, 201]\n", ""))
    assert every.shelves[0].units == (*range(200, 206), *range(232, 238), *range(240, 243))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('profile = "orv3_psu"', 'profile = "orv3_psuu"', "one of orv3_bbu"),
        ("units = [200, 201]", "units = [200, 200]", "stand twice"),
        ("units = [200, 201]", "units = [200, 256]", "each 1 to 255"),
        ("units = [200, 201]", "units = 200", "is no such list"),
        ('allow = ["led"]', 'allow = ["leds"]', "are no writes of profile orv3_psu: it has led, clear_faults".replace(": it", "; it")),
        ('allow = ["led"]', 'allow = "led"', "is no such list"),
        ('name = "rack1"', 'name = "rack 1"', "has other characters"),
        ('name = "rack1"', 'name = "rack1"\nparity = "X"', "one of E, O, N"),
        ('name = "rack1"', 'name = "rack1"\nbuad = 9600', "did you mean baud"),
        ('port = "/dev/ttyUSB7"\n', "", "is missing"),
    ],
)
def test_bad_rows(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in SHELF
    with pytest.raises(SiteError) as e:
        load(tmp_path, SHELF.replace(old, new))
    assert says in str(e.value), str(e.value)


def test_two_shelves_on_one_port_have_one_speed_and_different_addresses(tmp_path: Path) -> None:
    both = SHELF + SHELF.replace("rack1", "rack2").replace("[200, 201]", "[201]").replace("[[shelf]]\n", "[[shelf]]\nbaud = 9600\n")
    with pytest.raises(SiteError) as e:
        load(tmp_path, both)
    assert "which has 19200 Bd 8E1" in str(e.value) and "are shelf rack1's on the same port" in str(e.value)
    bbu = SHELF.replace("rack1", "rack2").replace("orv3_psu", "orv3_bbu").replace("[200, 201]", "[64]")
    assert len(load(tmp_path, SHELF + bbu).shelves) == 2


def test_two_names_of_one_adapter_are_one_port(tmp_path: Path) -> None:
    (tmp_path / "by-id").symlink_to("/dev/ttyUSB7")
    text = SHELF + SHELF.replace("rack1", "rack2").replace("/dev/ttyUSB7", str(tmp_path / "by-id"))
    with pytest.raises(SiteError, match="are shelf rack1's on the same port"):
        load(tmp_path, text)


def test_a_shelf_in_the_tick_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError) as e:
        path = tmp_path / "site.toml"
        path.write_text(GOOD.replace('port = "virtual"            # a real', 'port = "/dev/ttyUSB7"            # a real') + SHELF)
        sites.load(path)
    assert "is bus a's" in str(e.value)
    (tmp_path / "by-id").symlink_to("/dev/ttyUSB7")
    path.write_text(path.read_text().replace('port = "/dev/ttyUSB7"\nprofile', f'port = "{tmp_path}/by-id"\nprofile'))
    with pytest.raises(SiteError, match="is bus a's"):
        sites.load(path)
