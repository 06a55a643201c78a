"""FC23, command and readback in one: tried where the plan gains by it, and never relied on."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hal.plan import BusSpec, BusTable, DeviceSpec, SiteTiming, plan_site
from hal.profile import load_profile, parse_profile
from hal.sunspec import compile_device, scan
from tests.hal import sunspec_image
from tests.hal.test_scan import pcs_addr, reader
from tests.hal.world import MS, Slave, World, crc, frames


def one_bus() -> tuple[World, Slave, Slave]:
    """Meter, BMS and PCS on one bus at 460800, a second after the start in GRID. Returns world, meter, pcs."""
    world, meter, pcs = unproven()
    world.bench.ask(gate=1)
    world.bench.put("p_cmd_w", 12345.6)
    world.bench.put("enable", 1.0)
    world.bench.put("rvrt_s", 5.0)
    world.run(300)
    assert [world.bench.device(k)["verified"] for k in range(3)] == [1, 1, 1]
    world.sent.clear()
    return world, meter, pcs


def unproven() -> tuple[World, Slave, Slave]:
    pcs_image, _ = sunspec_image.pcs()
    bms_image, _ = sunspec_image.battery()
    devices = [
        DeviceSpec("meter", "meter", "A", 1, load_profile("ballast_virtual_meter")),
        DeviceSpec("bms", "bms", "A", 2, compile_device(scan(reader(bms_image), 2), "bms", connect=True)),
        DeviceSpec("pcs", "pcs", "A", 3, compile_device(scan(reader(pcs_image), 3), "pcs")),
    ]
    plan = plan_site([BusSpec("A", baud=460800)], devices, timing=SiteTiming())
    meter = Slave(1, {})
    meter.f32(0, 400e3, 12e3, 231.0, 232.0, 233.0, 50.01)
    pcs = Slave(3, pcs_image)
    return World(plan, [[meter, Slave(2, bms_image), pcs]]), meter, pcs


def commands(world: World) -> dict[int, int]:
    """Commands sent, by function."""
    at = pcs_addr(704) + 22
    by_16 = len(frames(world, 0, unit=3, fc=16, addr=at))
    by_23 = [f for _, f in frames(world, 0, unit=3, fc=23) if struct.unpack(">H", f[6:8])[0] == at]
    return {16: by_16, 23: len(by_23)}


def slots(world: World) -> tuple[int, int]:
    """Slots of the two tables in 100 ticks."""
    table = world.plan.tables[0]
    assert isinstance(table, BusTable)
    return sum(i >= 0 for i in table.slots), sum(i >= 0 for i in table.slots23)


def test_command_and_readback_share_a_transaction_in_ticks_without_a_slot() -> None:
    world, _, pcs = one_bus()
    count, meter = world.bench.group("pcs")[2], world.bench.group("meter")[2]
    world.run(400)
    _, used = slots(world)
    assert commands(world) == {16: 4 * 2 * used, 23: 400 - 4 * 2 * used}  # a slot's tick and the one it reaches into
    assert world.bench.group("pcs")[2] - count == 400 - 4 * 2 * used
    assert world.bench.group("meter")[2] - meter == 400 - 4 * used
    assert not frames(world, 0, unit=3, fc=3, addr=pcs_addr(701) + 3), "no slot for the readback alone"
    assert pcs.writes[-1][2] == [1, 1, 0, 12345] and world.collisions == 0
    # the values stand for the instant at which the request was detected
    t_ns, rx_ns = world.bench.group("pcs")[:2]
    assert rx_ns - t_ns == pytest.approx(37 * 11 / 460800 * 1e9, abs=100)


def test_a_device_that_refuses_it_gets_the_same_command_in_the_same_tick_and_is_asked_once() -> None:
    world, _, pcs = unproven()
    pcs.fc23 = False
    world.bench.ask(gate=1)
    deaf = []
    world.run(400, kernel=lambda w: deaf.append(w.bench.deaf) if w.tick > 100 else None)
    tried = [(t, f) for _, t, f in world.sent if f[0] == 3 and f[1] == 23]
    assert len(tried) == 1
    again = [t for _, t, f in world.sent if f[0] == 3 and f[1] == 16 and t > tried[0][0]]
    assert again[0] - tried[0][0] < 4.5 * MS and again[0] // (10 * MS) == tried[0][0] // (10 * MS)
    assert not any(deaf) and world.bench.device(2)["lost_count"] == 0 and world.bench.device(2)["failed"] == 0
    world.sent.clear()
    world.run(400)
    assert commands(world) == {16: 400, 23: 0}
    assert len(frames(world, 0, unit=3, fc=3, addr=pcs_addr(701) + 3)) == 4 * 5
    world.bench.open(0, world.now)  # perhaps another device by now
    pcs.fc23 = True
    world.run(400)
    assert commands(world)[23] > 200


def test_a_device_that_says_nothing_to_it_costs_one_command() -> None:
    world, _, pcs = unproven()
    pcs.before = lambda frame, answer: (None if frame[1] == 23 else answer, 0)
    world.bench.ask(gate=1)
    world.run(600)
    assert sum(f[0] == 3 and f[1] == 23 for _, _, f in world.sent) == 1
    assert world.bench.device(2)["lost_count"] == 0 and world.bench.device(2)["verified"] == 1
    world.sent.clear()
    world.run(100)
    assert commands(world) == {16: 100, 23: 0}


@pytest.mark.parametrize("delay_ms", [2.0, 6.0, 9.0, 14.0])
def test_a_late_answer_to_it_is_not_taken_for_the_next_one(delay_ms: float) -> None:
    world, _, pcs = one_bus()
    power = pcs_addr(701) + 10  # 701.W
    left = [20]
    seen: list[tuple[float, int]] = []

    def before(frame: bytes, answer: bytes) -> tuple[bytes | None, int]:
        left[0] -= frame[1] == 23
        late = frame[1] == 23 and left[0] in (0, -5)
        return answer, round(delay_ms * MS) if late else 0

    def kernel(w: World) -> None:
        pcs.registers[power] = w.tick  # what this tick's command finds
        seen.append((w.bench.get("batt_p_w"), w.bench.group("pcs")[0]))

    pcs.before = before
    world.run(5, kernel)
    unit_w = seen[-1][0] / (seen[-1][1] // (10 * MS) + 1)
    world.run(300, kernel)
    assert left[0] < -100, "in use again after the losses"
    assert world.bench.bus(0)["timeouts"] >= 1
    for value, t_ns in seen[4:]:
        assert value == pytest.approx(unit_w * (t_ns // (10 * MS) + 1)), "the value of the tick its stamp names"
    assert world.bench.device(2)["lost_count"] == 0 and world.bench.device(2)["verified"] == 1


def test_a_profile_allows_it_with_a_key() -> None:
    plain = Path(load_profile("generic_pcs").info["profile"]).read_text()
    assert parse_profile(plain).fc23 is False
    assert parse_profile(plain.replace('role = "pcs"', 'role = "pcs"\nfc23 = true', 1)).fc23 is True



def test_silence_to_it_after_every_return_never_makes_the_device_lost() -> None:
    world, _, pcs = unproven()
    pcs.before = lambda frame, answer: (None if frame[1] == 23 else answer, 0)
    world.bench.ask(gate=1)
    for _ in range(15):  # plugs, resets: it is tried anew each time
        world.bench.open(0, world.now)
        world.run(400)
        assert world.bench.device(2)["verified"] == 1
    assert world.bench.device(2)["lost_count"] == 14, "by the plugs that were pulled, and by nothing else"
    world.sent.clear()
    world.run(100)
    assert commands(world) == {16: 100, 23: 0}


@pytest.mark.parametrize("says", ["exception 4", "nothing"])
def test_a_device_that_takes_it_no_more_is_commanded_and_read_back_without_it(says: str) -> None:
    world, _, pcs = one_bus()
    world.run(100)
    assert commands(world)[23] > 50, "proven"

    def before(frame: bytes, answer: bytes) -> tuple[bytes | None, int]:
        if frame[1] != 23:
            return answer, 0
        refused = bytes([3, 23 | 0x80, 4])
        return (None if says == "nothing" else refused + crc(refused)), 0

    pcs.before = before
    world.run(100)
    world.sent.clear()
    count = world.bench.group("pcs")[2]
    world.run(400)
    assert commands(world) == {16: 400, 23: 0}
    assert world.bench.group("pcs")[2] - count == 4 * 5, "read back in slots of its own"
    assert world.bench.device(2)["lost_count"] == 0 and not world.bench.deaf
