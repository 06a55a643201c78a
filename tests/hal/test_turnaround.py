"""What a bus measures of itself: turnarounds, the wire in use; and the lead of a port that switches its own RS-485 driver."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hal.plan import BusSpec, DeviceSpec, plan_site
from hal.profile import load_profile
from hal.sunspec import compile_device, scan
from tests.hal import sunspec_image
from tests.hal.test_scan import at, built_in, frames, pcs_addr, reader, running
from tests.hal.world import MS, Slave, World

BIN_MS = 0.1


def quantile_ms(world: World, device: int, q: float) -> float:
    """Upper edge of the bin below which a share q of a device's turnarounds lies."""
    bins, seen = world.bench.device(device)["turn"], 0
    for i, n in enumerate(bins):
        seen += n
        if seen >= q * sum(bins):
            return (i + 1) * BIN_MS
    raise AssertionError("no answers")


@pytest.mark.parametrize(("planned_ms", "took_ms"), [(0.0, 0.0), (0.0, 1.23), (1.0, 2.56), (3.0, 0.34)])
def test_turnaround_is_what_the_device_took(planned_ms: float, took_ms: float) -> None:
    pcs_image, _ = sunspec_image.pcs()
    plan = plan_site(
        [BusSpec("A", baud=460800), BusSpec("B", baud=460800)],
        [
            DeviceSpec("meter", "meter", "A", 1, load_profile("ballast_virtual_meter"), planned_ms),
            DeviceSpec("pcs", "pcs", "B", 1, compile_device(scan(reader(pcs_image), 1), "pcs")),
        ],
    )
    meter = Slave(1, {}, round(took_ms * MS))
    meter.f32(0, 400e3, 12e3, 231.0, 232.0, 233.0, 50.01)
    world = World(plan, [[meter], [Slave(1, pcs_image)]])
    world.run(200)
    got = world.bench.device(0)
    assert got["turn_n"] == sum(got["turn"]) == got["ok"] > 150
    assert quantile_ms(world, 0, 0.01) == quantile_ms(world, 0, 0.99) == pytest.approx(int(took_ms / BIN_MS) * BIN_MS + BIN_MS)
    assert got["turn_max_ns"] == pytest.approx(took_ms * MS, abs=100)


def test_a_device_that_does_not_wait_for_silence_counts_as_none_and_a_slow_one_lies_in_the_last_bin() -> None:
    _, world, meter, _, _ = running()
    before = world.bench.device(0)["turn"][0]
    meter.before = lambda frame, answer: (answer, round(-1.2 * MS))
    world.run(50)
    assert world.bench.device(0)["turn"][0] == before + 50
    # a BMS on a bus that nobody waits for may take more than the histogram holds
    bms_image, _ = sunspec_image.battery()
    pcs_image, _ = sunspec_image.pcs()
    plan = plan_site(
        [BusSpec("A", baud=460800), BusSpec("B", baud=460800), BusSpec("C", baud=460800)],
        [
            DeviceSpec("meter", "meter", "A", 1, load_profile("ballast_virtual_meter")),
            DeviceSpec("pcs", "pcs", "B", 1, compile_device(scan(reader(pcs_image), 1), "pcs")),
            DeviceSpec("bms", "bms", "C", 2, compile_device(scan(reader(bms_image), 2), "bms"), 40.0),
        ],
    )
    world = World(plan, [[meter], [Slave(1, pcs_image)], [Slave(2, bms_image, 30 * MS)]])
    world.run(100)
    got = world.bench.device(2)
    assert got["turn"][-1] == got["turn_n"] == got["ok"] > 5 and got["turn_max_ns"] == pytest.approx(30 * MS, abs=100)


def test_what_failed_is_not_in_it() -> None:
    _, world, meter, _, _ = running()
    before = world.bench.device(0)["turn_n"]
    meter.dead = True
    world.run(20)
    assert world.bench.device(0)["turn_n"] == before and world.bench.device(0)["failed"] > 0


def test_old_answers_count_half() -> None:
    _, world, *_ = running()
    n = world.bench.device(0)["turn_n"]
    world.bench.turned(0, 80, 65536 - n - 1)
    old, few = world.bench.device(0)["turn"][80], world.bench.device(0)["turn"][0]
    world.run(10)
    got = world.bench.device(0)
    assert got["turn"][80] == old // 2 and got["turn"][0] == (few + 1) // 2 + 9
    assert got["turn_n"] == sum(got["turn"])


@pytest.mark.parametrize("baud", [460800, 115200])
def test_the_wire_is_in_use_as_planned(baud: int) -> None:
    plan, world, *_ = built_in(baud=baud)
    world.bench.ask(gate=1)
    world.bench.put("enable", 1.0)
    world.run(500)  # at 115200 the slots come every 10th and 20th tick: proving takes its time
    assert [world.bench.device(k)["verified"] for k in range(3)] == [1, 1, 1]
    before = [world.bench.bus(k)["busy_ns"] for k in range(2)]
    world.run(400)
    for k, table in enumerate(plan.tables):
        busy_ms = (world.bench.bus(k)["busy_ns"] - before[k]) / 400 / MS
        assert busy_ms == pytest.approx(table.busy_ms, rel=0.02), table.spec.name
        assert plan.to_json()["busy_ms"][table.spec.name] == pytest.approx(table.busy_ms, abs=1e-3)


def test_a_port_that_switches_its_driver_itself_is_exact_to_the_plan() -> None:
    plain, *_ = built_in()
    pcs_image, _ = sunspec_image.pcs()
    bms_image, _ = sunspec_image.battery()
    plan = plan_site(
        [BusSpec("A", baud=460800, lead_ms=0.25), BusSpec("B", baud=460800, lead_ms=0.25)],
        [
            DeviceSpec("meter", "meter", "A", 1, load_profile("ballast_virtual_meter")),
            DeviceSpec("bms", "bms", "A", 2, compile_device(scan(reader(bms_image), 2), "bms", connect=True)),
            DeviceSpec("pcs", "pcs", "B", 1, compile_device(scan(reader(pcs_image), 1), "pcs")),
        ],
    )
    assert plan.step_ms == pytest.approx(plain.step_ms + 0.25) and plan.sample_ms == pytest.approx(plain.sample_ms + 0.25)
    meter = Slave(1, {})
    meter.f32(0, 400e3, 12e3, 231.0, 232.0, 233.0, 50.01)
    world = World(plan, [[meter, Slave(2, bms_image)], [Slave(1, pcs_image)]])
    world.bench.ask(gate=1)
    world.bench.put("enable", 1.0)
    world.run(100)
    world.sent.clear()
    world.steps.clear()
    world.run(100)
    assert at(world.steps, plan.step_ms)
    commands = frames(world, 1, fc=16, addr=pcs_addr(704) + 22)
    assert len(commands) == 100 and world.ports[1].command_end_ns % (10 * MS) == pytest.approx(plan.command_end_ms * MS, abs=100)
    assert world.bench.group("meter")[0] % (10 * MS) == pytest.approx(plan.sample_ms * MS, abs=100)
    assert world.collisions == 0 and all(world.bench.bus(k)["timeouts"] == 0 for k in range(2))
    assert replace(plan.tables[0].spec, lead_ms=0.0).line == plain.tables[0].spec.line
