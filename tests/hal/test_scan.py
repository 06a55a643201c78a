"""BusScan in virtual time over baud-true wires: exact timing, honest groups, dead and lying devices."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import replace

import pytest

from hal.plan import BusSpec, DeviceSpec, Plan, SiteTiming, plan_site
from hal.profile import load_profile
from hal.sunspec import compile_device, scan
from tests.hal import sunspec_image
from tests.hal.world import MS, Slave, World, crc, frames


def reader(image: dict[int, int]):  # type: ignore[no-untyped-def]
    def transact(unit: int, fc: int, addr: int, count: int) -> list[int]:
        if any(addr + i not in image for i in range(count)):
            raise OSError("exception 2")
        return [image[addr + i] for i in range(count)]

    return transact


def built_in(baud: int = 460800, slack_ms: float = 2.0, **timing: object) -> tuple[Plan, World, Slave, Slave, Slave]:
    """The built-in site: meter and BMS on bus A, PCS on bus B. Returns plan, world, meter, bms, pcs."""
    pcs_image, _ = sunspec_image.pcs()
    bms_image, _ = sunspec_image.battery()
    plan = plan_site(
        [BusSpec("A", baud=baud, slack_ms=slack_ms), BusSpec("B", baud=baud)],
        [
            DeviceSpec("meter", "meter", "A", 1, load_profile("ballast_virtual_meter")),
            DeviceSpec("bms", "bms", "A", 2, compile_device(scan(reader(bms_image), 2), "bms", connect=True)),
            DeviceSpec("pcs", "pcs", "B", 1, compile_device(scan(reader(pcs_image), 1), "pcs")),
        ],
        timing=SiteTiming(**timing),  # type: ignore[arg-type]
    )
    meter = Slave(1, {})
    meter.f32(0, 400e3, 12e3, 231.0, 232.0, 233.0, 50.01)
    bms, pcs = Slave(2, bms_image), Slave(1, pcs_image)
    world = World(plan, [[meter, bms], [pcs]])
    return plan, world, meter, bms, pcs


def running(**kw: object) -> tuple[Plan, World, Slave, Slave, Slave]:
    """... after a second: everything proven, commands flowing."""
    plan, world, meter, bms, pcs = built_in(**kw)  # type: ignore[arg-type]
    world.bench.ask(gate=1)
    world.bench.put("p_cmd_w", 12345.6)
    world.bench.put("enable", 1.0)
    world.run(100)
    assert [world.bench.device(k)["verified"] for k in range(3)] == [1, 1, 1]
    world.sent.clear()
    world.steps.clear()
    return plan, world, meter, bms, pcs


def at(times: list[int], ms: float) -> bool:
    """All of `times` stand at `ms` after their tick, to the rounding of a nanosecond a character."""
    return bool(times) and all(abs(t % (10 * MS) - ms * MS) < 20 for t in times)


@pytest.mark.parametrize("turnaround_ms", [1.0, 3.0, 4.0])
def test_a_device_that_takes_longer_than_the_slack_is_found(turnaround_ms: float) -> None:
    pcs_image, _ = sunspec_image.pcs()
    plan = plan_site(
        [BusSpec("A", baud=460800, slack_ms=2.0), BusSpec("B", baud=460800)],
        [
            DeviceSpec("meter", "meter", "A", 1, load_profile("ballast_virtual_meter"), turnaround_ms),
            DeviceSpec("pcs", "pcs", "B", 1, compile_device(scan(reader(pcs_image), 1), "pcs")),
        ],
    )
    meter = Slave(1, {}, round(turnaround_ms * MS))
    meter.f32(0, 400e3, 12e3, 231.0, 232.0, 233.0, 50.01)
    world = World(plan, [[meter], [Slave(1, pcs_image)]])
    world.run(100)
    assert world.bench.device(0)["alive"] == 1 and world.bench.bus(0)["timeouts"] == 0
    assert world.bench.get("grid_p_w") == 400e3


def test_built_in_tick_is_exact_to_the_plan() -> None:
    plan, world, _meter, _bms, _pcs = running()
    world.run(100)
    b = world.bench
    fast = frames(world, 0, unit=1)
    assert len(fast) == 100 and {t for t, _ in fast} == {0}
    assert at(world.steps, plan.step_ms)
    commands = frames(world, 1, fc=16, addr=pcs_addr(704) + 22)
    assert len(commands) == 100 and {t for t, _ in commands} == {world.steps[-1] % (10 * MS)}
    assert world.ports[1].command_end_ns == world.steps[-1] + 17 * 23872
    t_ns, rx_ns, count, quality = b.group("meter")
    tick = (world.tick - 1) * 10 * MS
    assert (t_ns - tick, rx_ns - world.steps[-1], quality) == (8 * 23872 + 1750000, 0, 1)
    assert count == 199  # 200 ticks less the first, which only asked whether the meter is there
    assert b.get("grid_p_w") == 400e3 and b.get("f_hz") == pytest.approx(50.01, abs=1e-5)
    assert b.get("batt_p_w") == -12340.0
    readbacks = frames(world, 1, fc=3, addr=pcs_addr(701) + 3)
    assert len(readbacks) == plan.to_json()["after_slots"]["B"]["pcs readback 40073"] == 96
    assert world.collisions == 0
    for k in range(2):
        s = b.bus(k)
        assert s["transactions"] > 0
        assert all(s[x] == 0 for x in ("timeouts", "crc_errors", "late", "overruns", "long_frames", "wrong_unit", "unsent"))


def pcs_addr(model: int) -> int:
    return 40070 if model == 701 else sunspec_image.pcs()[1][model]


def test_after_slots_end_before_the_bus_is_needed() -> None:
    plan, world, *_ = running()
    world.run(100)
    for bus in range(2):
        times = [t for b, t, _ in world.sent if b == bus]
        gap = min(b - a for a, b in itertools.pairwise(times))
        assert gap > 3.4 * MS  # never two requests without answer and silence between them
    slow = [t for t, f in frames(world, 0) if f[0] == 2]
    assert len(slow) == 100 and at(slow, plan.step_ms + 1.75)


def test_command_bytes() -> None:
    _, world, _, _, pcs = running()
    world.run(1)
    _, frame = frames(world, 1, fc=16)[0]
    assert frame[6:-2] == bytes([8]) + struct.pack(">HHi", 1, 1, 12345)  # toward zero: never more than asked
    world.bench.put("p_cmd_w", -12345.6)
    world.run(1)
    assert pcs.registers[pcs_addr(704) + 24] << 16 | pcs.registers[pcs_addr(704) + 25] == 2**32 - 12345
    for bad in (math.nan, math.inf):
        n = len(pcs.writes)
        world.bench.put("p_cmd_w", bad)
        world.run(3)
        assert not [w for w in pcs.writes[n:] if w[1] == pcs_addr(704) + 22]
    world.bench.put("p_cmd_w", 1e300)
    world.run(1)
    assert pcs.registers[pcs_addr(704) + 24] == 0x7FFF


def test_gate_closed_no_command() -> None:
    _, world, _, _, pcs = running()
    world.bench.ask(gate=0)
    n = len(pcs.writes)
    world.run(20)
    assert not [w for w in pcs.writes[n:] if w[1] == pcs_addr(704) + 22]


def test_unverified_device_gets_no_command_and_is_not_read() -> None:
    _plan, world, _, _, pcs = built_in()
    pcs.registers[pcs_addr(704) + 55] = 1  # somebody changed WSet_SF: the same number would now be ten times the power
    world.bench.ask(gate=1)
    world.run(100)
    assert world.bench.device(2)["verified"] == -1
    assert pcs.writes == []
    assert world.bench.group("pcs")[2] == 0
    assert world.bench.device(1)["verified"] == 1
    pcs.registers[pcs_addr(704) + 55] = 0
    world.run(600)  # looked at again after 5 s
    assert world.bench.device(2)["verified"] == 1 and pcs.writes


def test_stale_is_never_fresh() -> None:
    _, world, meter, *_ = running()
    before = world.bench.group("meter")
    meter.dead = True
    world.run(50)
    after = world.bench.group("meter")
    assert after[:3] == (before[0], before[1], before[2])
    assert world.bench.device(0)["alive"] == 0


def test_one_lost_frame_costs_one_tick() -> None:
    plan, world, meter, *_ = running()
    lost = []

    def before(frame: bytes, answer: bytes) -> tuple[bytes | None, int]:
        if not lost:
            lost.append(frame)
            return None, 0
        return answer, 0

    meter.before = before
    count = world.bench.group("meter")[2]
    world.run(10)
    assert world.bench.group("meter")[2] == count + 9
    assert world.steps[0] % (10 * MS) == plan.step_by_ns
    assert at(world.steps[1:], plan.step_ms)


def test_dead_device_waits_grow_and_cost_the_others_nothing() -> None:
    plan, world, _meter, bms, _ = running()
    bms.dead = True
    world.run(2000)
    asked = [t for b, t, f in world.sent if b == 0 and f[0] == 2]
    gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(asked)]
    attempts = [g for g in gaps[3:]]
    assert attempts[:6] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0], abs=0.05)
    assert attempts[6] == pytest.approx(5.0, abs=0.05)
    assert at(world.steps, plan.step_ms)
    assert world.bench.device(1)["lost_count"] == 1
    bms.dead = False
    count = world.bench.group("bms")[2]
    world.run(600)
    assert world.bench.device(1)["alive"] == 1 and world.bench.device(1)["verified"] == 1
    assert world.bench.group("bms")[2] > count


def test_dead_meter_does_not_hold_up_the_kernel() -> None:
    _, world, meter, *_ = running()
    meter.dead = True
    world.run(30)
    world.steps.clear()
    world.run(100)
    assert {t % (10 * MS) for t in world.steps} == {0}  # nothing fast was sent: the kernel steps at the tick


@pytest.mark.parametrize("late_ms", [2.5, 4, 5.5, 7, 9, 10, 11, 12, 12.6, 15, 22, 35, 50])
def test_a_device_that_is_always_late_is_never_believed(late_ms: float) -> None:
    """Every answer carries the instant at which it was sampled; what reaches the image must carry the right one."""
    _, world, meter, *_ = running(slack_ms=1.0)
    meter.at = lambda now: meter.f32(0, float(now // MS))
    meter.before = lambda frame, answer: (answer, round(late_ms * MS))
    count = world.bench.group("meter")[2]
    world.run(300)
    t_ns, _, now_count, _ = world.bench.group("meter")
    if now_count > count:
        assert abs(world.bench.get("grid_p_w") - t_ns // MS) <= 2
    assert now_count == count  # it is too late for every slot


@pytest.mark.parametrize("seed", range(6))
def test_random_lateness_never_puts_an_old_value_in_a_new_group(seed: int) -> None:
    import random

    rng = random.Random(seed)
    _, world, meter, *_ = running(slack_ms=1.5)
    meter.at = lambda now: meter.f32(0, float(now // 10_000))
    meter.before = lambda frame, answer: (
        None if rng.random() < 0.05 else answer,
        round(rng.choice([0] * 20 + [0.3, 1.0, 3.0, 8.0, 10.2, 12.0, 20.0, 30.0]) * MS),
    )
    first = world.bench.group("meter")[2]
    for _ in range(1500):
        world.run(1)
        t_ns, _, count, _ = world.bench.group("meter")
        if count > first:
            assert abs(world.bench.get("grid_p_w") * 10_000 - t_ns) < 1.1 * MS
    assert count > first + 60


def test_late_answers_are_counted() -> None:
    _, world, meter, *_ = running()
    meter.before = lambda frame, answer: (answer, 4 * MS)
    world.run(3)
    assert world.bench.bus(0)["late"] >= 1


def test_wrong_unit_and_crc_leave_the_group_alone() -> None:
    _, world, meter, *_ = running()
    wrong = lambda frame, answer: (bytes([9]) + answer[1:-2] + crc(bytes([9]) + answer[1:-2]), 0)  # noqa: E731
    meter.before = wrong
    before = world.bench.group("meter")
    world.run(1)
    assert world.bench.bus(0)["wrong_unit"] >= 1
    meter.before = lambda frame, answer: (answer[:5] + bytes([answer[5] ^ 4]) + answer[6:], 0)
    world.run(2)
    assert world.bench.bus(0)["crc_errors"] >= 1
    assert world.bench.group("meter") == before


def test_nan_in_a_needed_field_is_bad_not_good() -> None:
    _, world, meter, *_ = running()
    meter.f32(0, math.nan)
    world.run(1)
    assert world.bench.group("meter")[3] == 2 and math.isnan(world.bench.get("grid_p_w"))
    meter.f32(0, 5.0, math.inf)
    world.run(1)
    assert world.bench.group("meter")[3] == 1  # q_var is not needed
    assert world.bench.get("grid_p_w") == 5.0 and math.isnan(world.bench.get("q_var"))


def test_sampling_instant_takes_half_of_what_is_late() -> None:
    _, world, meter, *_ = running()
    meter.before = lambda frame, answer: (answer, 400_000)
    world.run(1)
    t_ns = world.bench.group("meter")[0] - (world.tick - 1) * 10 * MS
    assert t_ns == pytest.approx(8 * 23872 + 1750000 + 200_000, abs=100)


def test_no_value_is_younger_than_its_answer() -> None:
    """A device that needs no silence to know the end of a request answers before the plan says; its value has not been sampled since."""
    _, world, meter, *_ = running()
    meter.before = lambda frame, answer: (answer, -1_750_000)
    world.run(1)
    t_ns, rx_ns, _, quality = world.bench.group("meter")
    assert quality == 1 and rx_ns - t_ns == pytest.approx(29 * 23872, abs=23872)


def test_bms_values_and_the_age_of_a_group_made_of_two_reads() -> None:
    _, world, _, bms, _ = running()
    b = world.bench
    assert b.get("soc") == pytest.approx(0.505) and b.get("soh") == pytest.approx(0.99)
    assert (b.get("bms_state"), b.get("bms_events"), b.get("bms_heartbeat")) == (3, 4, 17)
    assert (b.get("batt_v"), b.get("batt_i_a")) == (800.0, -12.5)
    assert (b.get("batt_i_charge_max_a"), b.get("batt_i_discharge_max_a")) == (300, 310)
    assert (b.get("batt_p_charge_max_w"), b.get("batt_p_discharge_max_w")) == (250e3, 250e3)
    assert (b.get("batt_temp_max_c"), b.get("batt_temp_min_c")) == (28.5, pytest.approx(24.1))
    bms.before = lambda frame, answer: (None if frame[3] == answer_addr(34) else answer, 0)
    t0 = b.group("bms_lim")[0]
    world.run(3)
    assert b.group("bms_lim")[0] - t0 <= 30 * MS


def answer_addr(offset: int) -> int:
    return (40070 + offset) & 0xFF


def test_reversion_heartbeat_and_operation() -> None:
    _plan, world, _, bms, pcs = running()
    ctl, life = pcs_addr(704), pcs_addr(715)
    pcs.writes.clear()
    world.bench.put("rvrt_s", 5.0)
    world.bench.put("heartbeat", 77.0)
    world.bench.ask(op_request=1)
    world.run(100)
    mine = [(a, w) for _, a, w in pcs.writes if a != ctl + 22]
    assert mine[:2] == [(ctl + 26, [0, 0]), (ctl + 30, [1, 0, 5])]
    assert (life + 8, [1]) in mine and (life + 5, [0, 77]) in mine and (ctl + 31, [0, 5]) in mine
    assert bms.registers[40070 + 50] == 1  # SetOp connect
    pcs.registers[pcs_addr(701) + 4] = 7
    world.run(110)
    assert pcs.registers[life + 8] == 3  # EXIT_STANDBY out of STANDBY
    world.bench.ask(op_request=2)
    world.run(10)
    assert pcs.registers[life + 8] == 2  # ENTER_STANDBY
    world.bench.ask(op_request=0, reset=1)
    world.run(10)
    assert [w for _, a, w in pcs.writes if a == life + 7] == [[1]]
    renewals = [t for t, a, _ in pcs.writes if a == ctl + 31]
    assert max(b - a for a, b in itertools.pairwise(renewals)) <= 5e9 / 3


def test_reversion_is_written_again_after_the_pcs_was_away() -> None:
    _, world, _, _, pcs = running()
    world.bench.put("rvrt_s", 5.0)
    world.run(20)
    pcs.dead = True
    world.run(20)
    pcs.dead = False
    pcs.writes.clear()
    world.run(100)
    addresses = [a for _, a, _ in pcs.writes]
    ctl = pcs_addr(704)
    assert ctl + 26 in addresses and ctl + 30 in addresses
    assert world.bench.device(2)["lost_count"] == 1


def test_echoing_adapter() -> None:
    plan, world, _meter, _bms, _pcs = built_in()
    for slaves in world.slaves:
        for s in slaves:
            s.before = lambda frame, answer: (frame + answer, 0)
    for bus in range(2):
        table = plan.tables[bus]
        assert table.spec.line.t35_ms == 1.75
    send = world._send

    def echo(bus: int, frame: bytes, now: int) -> int:
        world.say(bus, frame, now)
        return send(bus, frame, now)

    for slaves in world.slaves:
        for s in slaves:
            s.before = lambda frame, answer: (answer, 0)
    world.bench = type(world.bench)(world.ports, echo)
    world.bench.ask(gate=1)
    world.bench.put("p_cmd_w", 1000.0)
    world.run(150)
    assert [world.bench.device(k)["verified"] for k in range(3)] == [1, 1, 1]
    assert world.bench.bus(0)["echoes"] > 100 and world.bench.bus(0)["timeouts"] == 0
    assert world.bench.bus(1)["echoes"] > 100 and world.bench.bus(1)["crc_errors"] == 0


def test_readback_first_keeps_its_order() -> None:
    plan, world, *_ = running(readback_first=True)
    world.run(100)
    readbacks = frames(world, 1, fc=3, addr=pcs_addr(701) + 3)
    assert {t for t, _ in readbacks} == {0} and len(readbacks) > 90
    commands = [t for t, _ in frames(world, 1, fc=16, addr=pcs_addr(704) + 22)]
    expected = next(p.start_ms for p in plan.timeline if "command" in p.what)
    assert len(commands) == 100 and max(commands) / MS == pytest.approx(expected, abs=0.01)
    assert all(2.6 * MS < t % (10 * MS) < 2.85 * MS for t in world.steps)


def test_115200_delays_as_planned() -> None:
    plan, world, *_ = built_in(baud=115200)
    world.bench.ask(gate=1)
    world.bench.put("p_cmd_w", 1000.0)
    world.run(1500)
    assert [world.bench.device(k)["verified"] for k in range(3)] == [1, 1, 1]
    world.sent.clear()
    count = world.bench.group("meter")[2]
    world.run(200)
    assert 185 <= world.bench.group("meter")[2] - count <= 195  # one in 20 left out
    commands = [t for t, _ in frames(world, 1, fc=16, addr=pcs_addr(704) + 22)]
    in_place = round(plan.step_ms * 1e6)
    assert sum(abs(t - in_place) < 10_000 for t in commands) > 160
    assert max(commands) / MS < in_place / MS + 3.7
    assert sum(t > in_place + MS for t in commands) == 18, "one in ten, but for the renewals, which nobody asks for here"
    slots = plan.to_json()["after_slots"]["B"]
    assert len(frames(world, 1, fc=3, addr=pcs_addr(701) + 3)) == 2 * slots["pcs readback 40073"] > 0
    assert len(frames(world, 1, fc=3)) == 2 * sum(n for name, n in slots.items() if "readback" in name or "second" in name)
    assert world.ports[1].slots_missed == 0
    assert world.collisions == 0
    # each slot begins once the command before it is answered, in the tick after its own, and the next command waits for it
    readbacks = [t for t, _ in frames(world, 1, fc=3, addr=pcs_addr(701) + 3)]
    assert len(readbacks) == 12 and at(readbacks, 1.17014)
    delayed = [t for t in commands if t > in_place + MS]
    assert len(delayed) >= 18 and max(delayed) / MS == pytest.approx(in_place / MS + 3.684, abs=0.01)


def test_port_that_takes_nothing_and_comes_back() -> None:
    _, world, *_ = running()
    world.take = 0.5
    world.run(30)
    assert all(world.bench.device(k)["alive"] == 0 for k in range(3))
    assert world.bench.pending == 0
    world.take = 1.0
    for bus in range(2):
        world.bench.open(bus, world.tick * 10 * MS)
    world.run(60)
    assert [world.bench.device(k)["verified"] for k in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_hostile_bytes_never_reach_the_image(seed: int) -> None:
    import random

    rng = random.Random(seed)
    _, world, meter, bms, pcs = running()

    def spoil(frame: bytes, answer: bytes) -> tuple[bytes | None, int]:
        kind = rng.randrange(6)
        if kind == 0:
            return rng.randbytes(rng.randrange(1, 600)), rng.randrange(3 * MS)
        if kind == 1:
            return answer[: rng.randrange(1, len(answer))], 0
        if kind == 2:
            return answer + rng.randbytes(5), 0
        return answer, 0

    for s in (meter, bms, pcs):
        s.before = spoil
    for _ in range(500):
        world.run(1)
        assert world.bench.get("grid_p_w") in (400e3, pytest.approx(math.nan, nan_ok=True))
    meter.before = bms.before = pcs.before = lambda frame, answer: (answer, 0)
    world.run(1000)
    assert [world.bench.device(k)["verified"] for k in range(3)] == [1, 1, 1]


def test_slower_fields_of_a_fast_group_become_nan_not_old() -> None:
    device = load_profile("ballast_virtual_meter")
    fields = tuple(replace(f, rate="slow") if f.signal == "f_hz" else f for f in device.fields)
    pcs_map = load_profile("generic_pcs")
    plan = plan_site(
        [BusSpec("A", baud=460800), BusSpec("B", baud=460800)],
        [DeviceSpec("m", "meter", "A", 1, replace(device, fields=fields)), DeviceSpec("p", "pcs", "B", 1, pcs_map)],
    )
    meter = Slave(1, {})
    meter.f32(0, 1.0, 2.0, 230.0, 230.0, 230.0, 50.0)
    world = World(plan, [[meter], []])
    world.run(10)
    assert world.bench.get("f_hz") == 50.0
    meter.before = lambda frame, answer: (None if frame[3] == 10 else answer, 0)
    world.run(20)
    assert math.isnan(world.bench.get("f_hz"))


def test_compile_site_builds_a_bus_for_every_line() -> None:
    from hal.scan import compile_site

    plan, buses = compile_site(
        [BusSpec("A", baud=460800), BusSpec("B", baud=460800)],
        [DeviceSpec("m", "meter", "A", 1, "meter"), DeviceSpec("p", "pcs", "B", 1, "pcs")],
        {"meter": load_profile("ballast_virtual_meter"), "pcs": load_profile("generic_pcs")},
    )
    assert [b.name for b in buses] == ["A", "B"] and [b.table for b in buses] == plan.tables
