"""The bus plan's figures, and its refusals."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from hal.plan import BusSpec, BusTable, DeviceSpec, Plan, PlanError, SiteTiming, plan_site
from hal.profile import load_profile
from hal.rows import DeviceMap
from hal.sunspec import assumed
from hal.wiretime import Latency, Line, WireTime

METER = load_profile("ballast_virtual_meter")


def site(baud: int = 460800, meter: DeviceMap = METER, **timing: object) -> Plan:
    return plan_site(
        [BusSpec("A", baud=baud), BusSpec("B", baud=baud)],
        [
            DeviceSpec("meter", "meter", "A", 1, meter),
            DeviceSpec("bms", "bms", "A", 2, "battery"),
            DeviceSpec("pcs", "pcs", "B", 1, assumed("pcs")),
        ],
        {"battery": assumed("bms")},
        SiteTiming(**timing),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("plan", "p50", "p99"),
    [
        (site(), 13.454, 18.354),
        (site(meter=replace(METER, window_ms=1.0)), 13.954, 18.854),
        (site(readback_first=True), 15.395, 20.295),
        (site(115200), 16.748, 21.648),
    ],
    ids=["built-in", "window 1 ms", "readback first", "115200"],
)
def test_load_to_power(plan: Plan, p50: float, p99: float) -> None:
    figures = plan.load_to_power_ms
    assert (figures["p50"], figures["p99"]) == (pytest.approx(p50, abs=0.002), pytest.approx(p99, abs=0.002))


def test_built_in_arithmetic() -> None:
    plan = site()
    assert (plan.step_ms, plan.sample_ms) == (pytest.approx(2.633, abs=1e-3), pytest.approx(1.941, abs=1e-3))
    assert plan.command_end_ms - plan.sample_ms == pytest.approx(1.098, abs=1e-3)
    assert plan.load_to_command_ms["p50"] == pytest.approx(6.098, abs=1e-3)
    assert plan.cmd_wire_ns == pytest.approx(405_816, abs=2)
    assert plan.step_ms < plan.step_deadline_ms < 10
    a, b = plan.to_json()["after_slots"]["A"], plan.to_json()["after_slots"]["B"]
    assert sum(a.values()) == 100 and all("bms slow" in k for k in a) and max(a.values()) - min(a.values()) <= 1
    assert sorted(b.values()) == [1, 1, 1, 1, 96]
    text = str(plan)
    for piece in ("p50 13.45, p99 18.35", "request 0.191 + t3.5 1.750 + answer 0.692 = 2.633 ms", "0.0239 ms", "1.098"):
        assert piece in text


def test_once_a_second_traffic_is_spread() -> None:
    table = site().tables[1]
    readback = max(set(table.slots), key=table.slots.count)
    others = [t for t, i in enumerate(table.slots) if i != readback]
    assert [b - a for a, b in itertools.pairwise(others)] == [25, 25, 25]
    renew = [t for t, i in enumerate(site(rvrt_s=1.0).tables[1].slots) if i >= 0 and site().tables[1].txns[i].kind == "renew"]
    assert len(renew) == 3  # every third of a timer of one second


def test_table_of_wire_times() -> None:
    line = Line(115200, 11)
    assert WireTime(line, 8, 25, 0.0).total_ms == pytest.approx(6.65, abs=0.005)
    assert WireTime(line, 13, 8, 0.0).total_ms == pytest.approx(5.51, abs=0.005)
    assert WireTime(Line(9600, 11), 8, 25, 0.0).total_ms == pytest.approx(45.83, abs=0.005)
    assert WireTime(Line(460800, 11), 8, 255, 0.0).total_ms == pytest.approx(9.8, abs=0.05)
    assert Line(19200, 11).t35_ms == pytest.approx(2.005, abs=1e-3)


def ten_register_meter() -> DeviceMap:
    return replace(METER, fields=METER.fields[:5])


def test_one_bus_at_115200_is_refused_with_the_arithmetic() -> None:
    pcs = replace(load_profile("generic_pcs"), turnaround_ms=0.0)
    devices = [DeviceSpec("meter", "meter", "A", 1, ten_register_meter()), DeviceSpec("pcs", "pcs", "A", 2, pcs)]
    with pytest.raises(PlanError) as e:
        plan_site([BusSpec("A", baud=115200)], devices)
    text = str(e.value)
    for piece in (
        "bus A",
        "= 6.651 ms",
        "= 5.505 ms",
        "together 12.156 ms",
        "a tick has 10 ms",
        "baud",
        "bus of its own",
    ):
        assert piece in text


def one_bus(baud: int = 460800, slow: int = 0, fc23: bool = False, **timing: object) -> Plan:
    """Meter, battery and PCS (with FC23 or not) on one bus; `slow` further reads of the battery, too far apart for one request."""
    bms, signals = assumed("bms"), ("soc", "soh", "bms_state", "batt_v", "batt_i_a")
    far = tuple(replace(bms.fields[0], signal=signals[k % 5], addr=50000 + 200 * k, rate="slow") for k in range(slow))
    devices = [
        DeviceSpec("meter", "meter", "A", 1, METER),
        DeviceSpec("bms", "bms", "A", 2, replace(bms, fields=bms.fields + far)),
        DeviceSpec("pcs", "pcs", "A", 3, replace(assumed("pcs"), fc23=fc23)),
    ]
    return plan_site([BusSpec("A", baud=baud)], devices, timing=SiteTiming(**timing))  # type: ignore[arg-type]


def test_one_bus_at_460800_leaves_fast_reads_out_as_seldom_as_it_can() -> None:
    plan = one_bus()
    assert plan.step_ms == pytest.approx(2.633, abs=1e-3) and plan.command_end_ms == pytest.approx(4.789, abs=1e-3)
    table = plan.tables[0]
    assert isinstance(table, BusTable) and table.skips and not table.carries
    used = [t for t, i in enumerate(table.slots) if i >= 0]
    assert len(used) == 12 and plan.readback_every == 8  # 4 once a second, 3 slow ones, 5 readbacks
    # the slot, silence, and the command of the tick it reaches into, which is over before the next
    assert table.limit_ms == pytest.approx(20.0 - 1.75 - table.txns[table.command].wire.total_ms)
    assert plan.load_to_power_ms["p99"] == pytest.approx(20.104, abs=2e-3)
    every = plan.to_json()["load_to_power_all_ms"]
    assert every["p99"] == pytest.approx(29.371, abs=2e-3) and f"{every['p99']:.2f}" in str(plan)
    assert one_bus(slow=8).to_json()["load_to_power_all_ms"]["p50"] > every["p50"], "more to read costs more ticks"


def test_fc23_spares_the_slots_of_the_readback_where_that_pays() -> None:
    without, plan = one_bus(), one_bus(fc23=True)
    table = plan.tables[0]
    assert isinstance(table, BusTable) and table.slots == without.tables[0].slots  # type: ignore[union-attr]
    both = table.txns[table.command23]
    assert (both.fc, both.wcount, both.count, both.wire.request, both.wire.answer) == (23, 4, 16, 21, 37)
    spared = {table.txns[i].name for i in table.slots if i >= 0} - {table.txns[i].name for i in table.slots23 if i >= 0}
    assert spared == {"pcs readback 40073"} and sum(i >= 0 for i in table.slots23) == 7 and plan.readback_every == 1
    assert plan.command_end_ms - without.command_end_ms == pytest.approx(8 * 11e3 / 460800 / 2, abs=1e-3)  # four characters more
    a, b = (p.to_json()["load_to_power_all_ms"] for p in (without, plan))
    assert b["p50"] < a["p50"] and b["p99"] < a["p99"] + 0.1
    assert "slots take 12 of 100 ticks instead of 7" in str(plan)
    # Two buses at 460800 have a readback every tick; at 115200 the longer frame costs every command more than the slots it spares.
    for p in (site(), site(115200)):
        assert all(t.command23 == -1 for t in p.tables if isinstance(t, BusTable)) and "FC23" not in str(p)


@pytest.mark.parametrize("slow", [0, 1, 5, 10])
@pytest.mark.parametrize("baud", [460800, 921600])
@pytest.mark.parametrize("rvrt_s", [5.0, 1.0])
def test_every_slow_read_has_a_slot_a_second_whatever_the_readbacks_take(baud: int, slow: int, rvrt_s: float) -> None:
    plan = one_bus(baud, slow, rvrt_s=rvrt_s)
    table = plan.tables[0]
    assert isinstance(table, BusTable)
    asked = [(i, t) for i, t in enumerate(table.txns) if t.kind in ("read", "heartbeat", "renew") and t.rate != "fast"]
    counts = {t.name: table.slots.count(i) for i, t in asked}
    slows = [n for name, n in counts.items() if " slow " in name]
    assert min(counts.values()) >= 1 and len(slows) == slow + 3 and max(slows) - min(slows) <= 1
    assert counts["pcs readback 40073"] >= 5


def test_more_slow_reads_than_slots_are_refused() -> None:
    with pytest.raises(PlanError, match="need more than the 25 after-slots"):
        one_bus(slow=20)


def test_slots_that_leave_out_a_meter_and_slots_that_delay_a_command_keep_apart() -> None:
    a, b = site(115200).tables
    assert isinstance(a, BusTable) and isinstance(b, BusTable) and a.skips and b.carries
    assert not {t for t, i in enumerate(a.slots) if i >= 0} & {t for t, i in enumerate(b.slots) if i >= 0}


def test_one_device_for_both_is_told_of_fc23() -> None:
    both = replace(load_profile("generic_pcs"), turnaround_ms=0.0)
    fast = tuple(replace(f, rate="fast") for f in both.fields)
    meter = replace(METER, role="meter", fields=METER.fields[:5], writes=both.writes)
    assert fast
    with pytest.raises(PlanError) as e:
        plan_site([BusSpec("A", baud=115200)], [DeviceSpec("both", "meter", "A", 1, meter)])
    assert "FC23" in str(e.value)


@pytest.mark.parametrize("baud", [9600, 19200, 38400, 57600])
def test_slow_lines_are_refused(baud: int) -> None:
    with pytest.raises(PlanError) as e:
        site(baud)
    assert all(p.bus and p.arithmetic and p.ways_out for p in e.value.problems)


def test_a_slow_bms_is_refused_where_nothing_fits() -> None:
    with pytest.raises(PlanError) as e:
        plan_site(
            [BusSpec("A", baud=460800), BusSpec("B", baud=460800)],
            [
                DeviceSpec("meter", "meter", "A", 1, METER),
                DeviceSpec("bms", "bms", "A", 2, assumed("bms"), turnaround_ms=20.0),
                DeviceSpec("pcs", "pcs", "B", 1, assumed("pcs")),
            ],
        )
    assert "ms remain" in str(e.value) and "another bus" in str(e.value)


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(PlanError) as e:
        plan_site(
            [BusSpec("A")],
            [
                DeviceSpec("m", "meter", "A", 1, METER),
                DeviceSpec("n", "pcs", "A", 1, METER),
                DeviceSpec("o", "bms", "X", 3, METER),
                DeviceSpec("p", "bms", "A", 300, "none"),
                DeviceSpec("q", "meter", "A", 250, METER),
            ],
        )
    assert len(e.value.problems) >= 6


def test_115200_says_what_its_readback_costs() -> None:
    plan = site(115200)
    assert plan.readback_every >= 2
    every = plan.to_json()["load_to_power_all_ms"]["p99"]
    assert every > plan.load_to_power_ms["p99"] and f"{every:.2f}" in str(plan)


@pytest.mark.parametrize(
    ("update", "late"),
    [(0.0, ()), (1.0, ()), (10.0, ()), (25.0, ()), (3.0, ((3.7, 0.1),)), (0.0, ((10.0, 0.05), (3.7, 0.1)))],
)
def test_quantiles_against_a_simulation(update: float, late: tuple[tuple[float, float], ...]) -> None:
    rng = random.Random(1)
    latency = Latency(8.454, 10.0, update, late)
    draws = []
    for _ in range(60_000):
        x, r = 8.454 + rng.uniform(0, 10) + rng.uniform(0, update), rng.random()
        for delay, share in late:
            if r < share:
                x += delay
                break
            r -= share
        draws.append(x)
    draws.sort()
    for q in (0.5, 0.99):
        assert latency.quantile(q) == pytest.approx(draws[int(q * len(draws))], abs=0.2)
    assert draws[-1] <= latency.max_ms
