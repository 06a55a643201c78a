"""SunSpec: scan and compile against images laid by hand from the published offsets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hal.rows import DeviceMap, pack
from hal.sunspec import SunSpecError, assumed, compile_device, definition, scan
from tests.hal import sunspec_image


def reader(image: dict[int, int]) -> Callable[[int, int, int, int], list[int]]:
    def transact(unit: int, fc: int, addr: int, count: int) -> list[int]:
        assert fc == 3 and count <= 125
        if any(addr + i not in image for i in range(count)):
            raise OSError("exception 2")
        return [image[addr + i] for i in range(count)]

    return transact


def writes(device: DeviceMap, purpose: str) -> list[tuple[int, int]]:
    return [(w.addr, w.count) for w in device.writes if w.purpose == purpose]


@pytest.mark.parametrize("base", [40000, 50000, 0])
def test_scan_finds_the_chain(base: int) -> None:
    image, where = sunspec_image.pcs(base)
    found = scan(reader(image), 1)
    assert found.base == base and found.identity == ("Acme", "Cabinet", "SN-42")
    assert [m for m, _, _ in found.chain] == [1, 701, 702, 704, 715]
    assert {m: found.models[m].addr for m in where} == where


def test_pcs_transactions_are_those_of_the_design() -> None:
    image, where = sunspec_image.pcs(w_sf=1, wset_sf=-1)
    device = compile_device(scan(reader(image), 1), "pcs")
    ac, ctl, life = where[701], where[704], where[715]
    ac = 40070
    assert {(r.rate, r.addr - ac, r.count) for r in pack(device, 125) if r.rate == "readback"} == {("readback", 3, 16)}
    assert {(r.addr, r.count) for r in pack(device, 125) if r.rate == "second"} == {(ctl + 22, 13), (life + 2, 5)}
    assert writes(device, "command") == [(ctl + 22, 4)]
    assert writes(device, "reversion") == [(ctl + 26, 2), (ctl + 30, 3)]  # never 28-29: they belong to WSetPct
    assert writes(device, "renew") == [(ctl + 31, 2)]
    assert writes(device, "heartbeat") == [(life + 5, 2)]
    assert [w.encodes[0].const for w in device.writes if w.addr == life + 8] == [1.0, 3.0, 2.0]
    command = next(w for w in device.writes if w.purpose == "command")
    assert [(e.source, e.const, e.type) for e in command.encodes] == [
        ("enable", 0, "u16"),
        ("", 1, "u16"),
        ("p_cmd_w", 0, "i32"),
    ]
    assert command.encodes[2].scale == 0.1 and command.encodes[2].toward_zero
    scales = {f.signal: f.scale for f in device.fields}
    assert (scales["batt_p_w"], scales["pcs_f_hz"], scales["wset_w"]) == (10.0, 0.001, 0.1)
    assert device.info["s_rated_va"] == 250e3
    assert all(w.cyclic_write == "ok" for w in device.writes)


def test_verify_rows_hold_identity_headers_and_every_scale_factor_in_use() -> None:
    image, where = sunspec_image.pcs()
    device = compile_device(scan(reader(image), 1), "pcs")
    covered = {v.addr + i: w for v in device.verify for i, w in enumerate(v.words)}
    assert all(image[a] == w for a, w in covered.items())
    ac = 40070
    for at in (
        40002 + 2,
        40002 + 18,
        40002 + 50,
        ac,
        where[704],
        where[715],
        ac + 114,
        ac + 115,
        ac + 116,
        ac + 119,
        where[704] + 55,
    ):
        assert at in covered
    assert ac + 10 not in covered  # a measurement is no identity


def test_battery_and_meter() -> None:
    image, where = sunspec_image.battery()
    device = compile_device(scan(reader(image), 2), "bms", connect=True)
    m = where[802] = 40070
    assert [(r.addr - m, r.count) for r in pack(device, 37)][:2] == [(4, 24), (34, 13)]
    assert [(r.addr - where[803], r.count) for r in pack(device, 37)][2:] == [(4, 4)]
    assert writes(device, "op_start") == [(m + 50, 1)]
    assert device.info["energy_wh"] == 250e3
    scales = {f.signal: f.scale for f in device.fields}
    assert scales["soc"] == pytest.approx(1e-4) and scales["batt_i_a"] == pytest.approx(0.1)
    image, where = sunspec_image.meter()
    device = compile_device(scan(reader(image), 3), "meter", window_ms=20, update_ms=20)
    rows = {f.signal: f for f in device.fields}
    assert (rows["grid_p_w"].sign, rows["q_var"].sign, rows["grid_p_w"].scale) == (1, -1, 10.0)
    assert rows["f_hz"].scale == 0.01 and (device.window_ms, device.update_ms) == (20, 20)


def test_713_stands_in_for_a_missing_802() -> None:
    image: dict[int, int] = {}
    at = sunspec_image.start(image, 40000)
    at = sunspec_image.model(image, at, 713, 7, {2: [250], 4: [5050], 5: [990], 6: [0], 7: [3], 8: [sunspec_image.sf(-2)]})
    sunspec_image.end(image, at)
    device = compile_device(scan(reader(image), 1), "bms")
    assert {"soc", "bms_state"} <= device.signals()


def test_what_a_device_does_not_implement_makes_no_row() -> None:
    image, _ = sunspec_image.pcs()
    image[40070 + 12] = 0x8000  # Var
    image[40070 + 4] = 0xFFFF  # InvSt: St stands in
    device = compile_device(scan(reader(image), 1), "pcs")
    assert "pcs_q_var" not in device.signals()
    state = next(f for f in device.fields if f.signal == "pcs_state")
    assert state.addr == 40070 + 3 and dict(state.map) == {0: 0.0, 1: 3.0}


def spoil(what: str) -> dict[int, int]:
    image, where = sunspec_image.pcs()
    if what == "no SunS":
        del image[40000]
    elif what == "no model 704":
        image[where[704]] = 64001
    elif what == "scale factor":
        image[40070 + 116] = 0x8000
    elif what == "broken":
        image[40070] = 0
    elif what == "runs in circles":
        image.clear()
        sunspec_image.put(image, 40000, [0x5375, 0x6E53] + [64000, 1, 0] * 200)
    elif what == "does not implement W":
        image[40070 + 10] = 0x8000
    return image


@pytest.mark.parametrize("what", ["no SunS", "no model 704", "scale factor", "broken", "runs in circles", "does not implement W"])
def test_refusals_say_why(what: str) -> None:
    with pytest.raises(SunSpecError, match="SunS" if what == "no SunS" else what):
        compile_device(scan(reader(spoil(what)), 1), "pcs")


@pytest.mark.parametrize("role", ["pcs", "meter", "bms"])
def test_assumed_shapes_equal_those_of_a_whole_device(role: str) -> None:
    image, _ = {"pcs": sunspec_image.pcs, "meter": sunspec_image.meter, "bms": sunspec_image.battery}[role]()
    real = compile_device(scan(reader(image), 1), role)
    shape = assumed(role)
    assert shape.assumed and not real.assumed
    for limit in (125, 26):
        counts = [sorted((r.rate, r.fc, r.count) for r in pack(d, limit)) for d in (real, shape)]
        assert counts[0] == counts[1]
    assert [(w.purpose, w.count) for w in real.writes] == [(w.purpose, w.count) for w in shape.writes]


def test_offsets_of_the_definitions() -> None:
    """pysunspec2's files against the offsets that the rows rest on (SunSpec models, sunspec/models)."""
    expected = {
        701: {"St": 3, "InvSt": 4, "W": 10, "Var": 12, "LNV": 16, "Hz": 17, "W_SF": 116},
        704: {"WSetEna": 22, "WSetMod": 23, "WSet": 24, "WSetRvrt": 26, "WSetPct": 28, "WSetEnaRvrt": 30,
        "WSetRvrtTms": 31,
              "WSetRvrtRem": 33, "WSet_SF": 55},
        715: {"LocRemCtl": 2, "DERHb": 3, "ControllerHb": 5, "AlarmReset": 7, "OpCtl": 8},
        802: {"WChaRteMax": 4, "SoC": 11, "State": 22, "Evt1": 26, "V": 34, "A": 44, "ADisChaMax": 46, "SetOp": 50,
        "SoC_SF": 56},
    }  # fmt: skip
    for model_id, offsets in expected.items():
        points = definition(model_id)
        assert points is not None
        assert {n: points[n].offset for n in offsets} == offsets


def test_pysunspec2_reads_the_image_the_same_way() -> None:
    """An independent decoder over the same registers, point by point."""
    from sunspec2 import mdef
    from sunspec2.modbus import client

    image, where = sunspec_image.pcs()
    where[701] = 40070
    found = scan(reader(image), 1)
    for model_id, addr in where.items():
        length = image[addr + 1] + 2
        data = b"".join(image[addr + i].to_bytes(2, "big") for i in range(length))
        model = client.SunSpecModbusClientModel(model_id=model_id, model_addr=addr, model_len=length - 2, data=data)
        for name, point in model.points.items():
            if point.pdef[mdef.TYPE] in ("sunssf", "string", "pad") or name not in found.models[model_id].points:
                continue
            ours = found.models[model_id].raw(name)
            if ours is not None and point.value is not None:
                width = 16 * found.models[model_id].points[name].size
                assert point.value % (1 << width) == ours, (model_id, name)


def test_sign_switches() -> None:
    image, _ = sunspec_image.battery()
    device = compile_device(scan(reader(image), 2), "bms", batt_i_sign=-1)
    assert next(f for f in device.fields if f.signal == "batt_i_a").sign == -1
    assert replace(device, name="x").role == "bms"
