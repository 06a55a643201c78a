"""The plan of a CAN bus: published figures of the response-time analysis, a brute-force bus beside it, refusals."""

from __future__ import annotations

import math
import random

import pytest
from hal.can import frame_bits
from hal.canscan import CanScan
from hal.scan import BusScan, compile_site

from hal.canplan import CanSpec, CanTable, Traffic, plan_can, responses, worst_bits
from hal.canrows import CanMap, Frame
from hal.plan import BusSpec, DeviceSpec, Plan, PlanError, plan_site
from hal.plantypes import PlanProblem
from hal.profile import load_profile, parse_profile
from hal.sunspec import assumed


def test_the_figures_of_davis_2007() -> None:
    # Table 1 there: utilisation 96 %, C at most 1 ms; the earlier analysis gave 3.0 ms for C, which misses its deadline of 3.25
    rows = [Traffic(n, i, False, t, 8, 1.0) for n, i, t in (("A", 1, 2.5), ("B", 2, 3.5), ("C", 3, 3.5))]
    assert [t.response_ms for t in responses(rows, 0.008)] == [2.0, 3.0, 3.5]


@pytest.mark.parametrize(("ext", "bits"), [(False, 135), (True, 160)])
def test_the_longest_frames(ext: bool, bits: int) -> None:
    # 250, 500, 1000 kbit/s: 540, 270, 135 us and 640, 320, 160 us
    assert worst_bits(8, ext) == bits
    assert worst_bits(0) == 47 + 8


def test_no_frame_is_longer_than_the_plan_takes_it_to_be() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        ext = rng.random() < 0.5
        data = bytes(rng.choice([0, 0xFF, 0x0F, 0xF0, 0x1F, 0x07, rng.randrange(256)]) for _ in range(rng.randrange(9)))
        f = Frame(rng.choice([0, rng.randrange(1 << 29)]) & (0x1FFFFFFF if ext else 0x7FF), data, ext)
        assert frame_bits(f) <= worst_bits(len(data), ext)


def test_arbitration_order_of_standard_and_extended() -> None:
    keys = [Traffic("", i, ext, 1, 8, 1).key for i, ext in ((0x100, False), (0x100 << 18, True), ((0x100 << 18) + 1, True), (0x101, False))]
    assert keys == sorted(keys) and len(set(keys)) == 4


@pytest.mark.parametrize("seed", range(5))
def test_no_frame_of_a_simulated_bus_waits_longer_than_the_plan_says(seed: int) -> None:
    rng = random.Random(seed)
    bit_ms = 0.002
    rows = [
        Traffic(str(i), i, False, rng.choice([5.0, 7.0, 10.0, 20.0]), 8, worst_bits(rng.randrange(9)) * bit_ms) for i in range(1, 15)
    ]
    planned = {t.id: t.response_ms for t in responses(rows, bit_ms)}
    worst = dict.fromkeys(planned, 0.0)
    for _ in range(30):
        queue = sorted((phase + k * t.period_ms, t) for t in rows for phase in [rng.uniform(0, t.period_ms)] for k in range(20))
        now, waiting = 0.0, list[tuple[int, float, Traffic]]()
        while queue or waiting:
            while queue and queue[0][0] <= now:
                at, t = queue.pop(0)
                waiting.append((t.key, at, t))
            if not waiting:
                now = queue[0][0]
                continue
            waiting.sort(key=lambda x: (x[0], x[1]))
            _, at, t = waiting.pop(0)
            now += t.worst_ms
            worst[t.id] = max(worst[t.id], now - at)
    assert all(worst[i] <= planned[i] + 1e-9 for i in planned)
    assert max(worst[i] / planned[i] for i in planned) > 0.5  # and the figure is no idle one


def site(bitrate: int = 500_000, bms: str = "pylontech_lv", pcs: str = "sunspec", port: str = "can:can0") -> Plan:
    """Meter on Modbus, battery (and converter) on CAN."""
    can = pcs != "sunspec"
    return plan_site(
        [BusSpec("a", baud=460800), CanSpec("c", port, bitrate), *([] if can else [BusSpec("b", baud=460800)])],
        [
            DeviceSpec("meter", "meter", "a", 1, load_profile("ballast_virtual_meter")),
            DeviceSpec("bms", "bms", "c", 1, load_profile(bms)),
            DeviceSpec("pcs", "pcs", "c" if can else "b", 1, load_profile(pcs) if can else assumed("pcs")),
        ],
    )


def test_a_can_battery_beside_modbus() -> None:
    plan = site()
    assert [t.spec.name for t in plan.tables] == ["a", "c", "b"]
    table = plan.tables[1]
    assert isinstance(table, CanTable) and table.load == pytest.approx(6 * 0.27 / 1000)
    assert [t.id for t in table.traffic] == [0x305, 0x351, 0x355, 0x356, 0x359, 0x35C]
    text = str(plan)
    assert "CAN 500 kbit/s, 0.2 % full" in text and "0x351" in text
    assert plan.to_json()["can"]["c"]["frames"][1]["response_ms"] == pytest.approx(0.27 * 3)
    assert "load to command = U(0, 10) + 1.098" in text  # Modbus's figures are what they were


def test_a_can_converter_is_commanded_with_the_kernels_step() -> None:
    plan = site(pcs="generic_can_pcs")
    table = plan.tables[1]
    assert isinstance(table, CanTable) and table.command is not None
    assert plan.command_wire_ms == pytest.approx(0.27) and plan.command_end_ms == pytest.approx(plan.step_ms + 0.27)
    assert plan.to_power.constant_ms == pytest.approx(plan.to_command.constant_ms + 1.0 + 2.303 * 2.0)  # no silence to wait for
    assert table.command.response_ms == pytest.approx(0.27 * 4)  # a lower frame on the wire, both feedback frames, itself
    assert "time-out on the command frame" in str(plan)


def test_compiled_ports_are_in_the_order_of_the_buses() -> None:
    buses = [BusSpec("a", baud=460800), CanSpec("c", "can:can0")]
    devices = [
        DeviceSpec("meter", "meter", "a", 1, load_profile("ballast_virtual_meter")),
        DeviceSpec("pcs", "pcs", "c", 1, load_profile("generic_can_pcs")),
    ]
    _, ports = compile_site(buses, devices)
    assert [type(p) for p in ports] == [BusScan, CanScan]
    _, ports = compile_site(buses[::-1], devices)
    assert [type(p) for p in ports] == [CanScan, BusScan]


def test_a_bus_that_is_too_slow_is_refused_with_its_sum_and_the_way_out() -> None:
    with pytest.raises(PlanError) as e:
        site(20_000, pcs="generic_can_pcs")
    text = str(e.value)
    assert "% full" in text and "6.750/10" in text and "raise the bit rate to 50000" in text


def test_slcan_says_what_is_not_in_its_figures() -> None:
    assert "slcan adapter" in str(site(port="slcan:/dev/ttyACM0")) and "slcan adapter" not in str(site())


def test_what_does_not_fit_is_told_at_once() -> None:
    problems: list = []
    bms, pcs = load_profile("pylontech_lv"), load_profile("generic_pcs")
    plan_can(
        [CanSpec("c"), BusSpec("a")],
        [
            DeviceSpec("one", "bms", "c", 1, bms),
            DeviceSpec("two", "bms", "c", 1, bms),
            DeviceSpec("three", "bms", "c", 2, bms),
            DeviceSpec("four", "pcs", "c", 3, pcs),
            DeviceSpec("five", "bms", "a", 4, bms),
            DeviceSpec("six", "pcs", "c", 1, bms),
        ],
        {},
        problems,
    )
    text = "\n".join(map(str, problems))
    for words in ("0x351 is one's already", "no unit_offset", "four does not speak CAN", "five speaks CAN", "bound as pcs"):
        assert words in text, text


@pytest.mark.parametrize(("ext", "first", "bits"), [(False, 0x7F0, 11), (True, 0x1FFFFFF0, 29)])
def test_no_unit_has_an_id_that_there_is_none_of(ext: bool, first: int, bits: int) -> None:
    text = f'''name = "x"
role = "bms"
transport = "can"
unit_offset = 15
[[frame]]
id = {first}
ext = {str(ext).lower()}
period_ms = 100.0
lost_ms = 300.0
signals = [{{ signal = "soc", start = 0, length = 16 }}]
'''
    device, problems = parse_profile(text, "x.toml"), list[PlanProblem]()
    table = plan_can([CanSpec("c")], [DeviceSpec("two", "bms", "c", 2, device)], {}, problems)["c"]
    assert not problems and CanScan(table).filters == [(first + 15, ext)]  # the highest id there is
    plan_can([CanSpec("c")], [DeviceSpec("three", "bms", "c", 3, device)], {}, problems)
    (one,) = map(str, problems)
    for words in ("device three: unit 3", f"id {first + 30:#x}", f"beyond {bits} bits", "unit_offset = 0xf"):
        assert words in one, one
    assert "a smaller unit" in one and "another unit_offset in the profile" in one


def test_an_unknown_map_and_too_many_devices_are_problems() -> None:
    problems: list[PlanProblem] = []
    plan_can([CanSpec("c")], [DeviceSpec("one", "bms", "c", 1, "nope")], {}, problems)
    assert len(problems) == 1 and "device one: no map 'nope'" in str(problems[0])
    quiet = CanMap("q", "bms")
    for n, said in ((16, []), (17, ["17 devices, at most 16 on a CAN bus"])):
        problems.clear()
        table = plan_can([CanSpec("c")], [DeviceSpec(f"d{k}", "bms", "c", 1, quiet) for k in range(n)], {}, problems)["c"]
        assert [w in str(p) for p, w in zip(problems, said, strict=True)] == [True] * len(said)
        if not said:
            CanScan(table)  # it has room for as many


def test_two_commands_are_refused_across_the_kinds_of_bus() -> None:
    with pytest.raises(PlanError, match="2 devices take the power command"):
        plan_site(
            [BusSpec("a", baud=460800), CanSpec("c", "can:can0")],
            [
                DeviceSpec("meter", "meter", "a", 1, load_profile("ballast_virtual_meter")),
                DeviceSpec("pcs", "pcs", "c", 1, load_profile("generic_can_pcs")),
                DeviceSpec("old", "pcs", "a", 2, load_profile("generic_pcs")),
            ],
        )


def test_a_bus_that_is_full_never_answers() -> None:
    rows = [Traffic("x", 1, False, 1.0, 8, 0.6), Traffic("y", 2, False, 1.0, 8, 0.6)]
    assert math.isinf(responses(rows, 0.002)[1].response_ms)
