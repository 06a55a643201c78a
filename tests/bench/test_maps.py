"""Register images against the model definitions that pysunspec2 ships."""

import json
from pathlib import Path

import pytest

from bench.plant import maps, params


def shipped(model):
    sunspec2 = pytest.importorskip("sunspec2")
    path = Path(sunspec2.__file__).parent / "models" / "json" / f"model_{model}.json"
    return json.loads(path.read_text())["group"]


@pytest.mark.parametrize("model", [1, 701, 702, 715, 802])
def test_points_equal_the_shipped_definitions(model):
    offset, want = 0, []
    for p in shipped(model)["points"]:
        want.append((p["name"], offset, p["type"], p["size"]))
        offset += p["size"]
    have = [(p.name, p.offset, p.type, p.size) for p in maps.points()[model]]
    assert have == want


def test_lengths_are_those_of_the_design():
    length = {m: sum(p.size for p in rows) - 2 for m, rows in maps.points().items()}
    assert length == {1: 66, 701: 153, 702: 50, 704: 65, 715: 7, 802: 62, 803: 58}


def test_setpoint_registers_stand_where_the_design_says():
    at = {p.name: p.offset for p in maps.points()[704]}
    assert [at[n] for n in ("WSetEna", "WSetMod", "WSet", "WSetRvrt", "WSetPct")] == [22, 23, 24, 26, 28]
    assert [at[n] for n in ("WSetEnaRvrt", "WSetRvrtTms", "WSetRvrtRem")] == [30, 31, 33]


def test_what_is_not_implemented_holds_the_sentinel_and_is_read_only():
    regs, writable = maps.pcs_image(1, 250e3)
    assert regs[70 + 35] == 0x8000 and list(regs[70 + 27 : 70 + 31]) == [0xFFFF] * 4
    assert not writable[277 + 14] and writable[277 + 22] and not writable[277 + 33]
    assert list(regs[353:]) == [0xFFFF, 0]


def test_settings_have_texts_and_defaults_within_range():
    assert len(params.PARAMS) == len(params.INDEX) == 92
    for row in params.PARAMS.values():
        assert row.text and row.min <= row.default <= row.max
    assert params.PARAMS["battery.soc"].default == 0.5 and params.PARAMS["pcs.tau_s"].default == 0.002
