"""Hours of virtual time and long hostile lines. About four minutes in all (24 h of load take one to two)."""

from __future__ import annotations

import random
import resource

import numpy as np
import pytest
from hal.modbus import PyRtuMaster

from _core import image as im
from bench.plant.params import PARAMS
from bench.sim import Simulation
from controller import build
from controller.virtual import LoadOptions

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def sim(trace: str, seed: int, sets: tuple[str, ...] = (), **faults: object) -> Simulation:
    site = build.load_site(None, sets, lambda: list(PARAMS))
    return Simulation(site, LoadOptions(trace=trace, repeat=True, seed=seed), **faults)  # type: ignore[arg-type]


def test_a_day_of_a_training_cluster() -> None:
    s = sim("cluster", 3)
    s.run_s(3600)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    s.run_s(23 * 3600)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    stats = s.image.engine_stats()
    assert stats["missed_ticks"] == 0 and stats["ticks"] > 8_600_000
    assert s.out["mode"] == im.MODE_GRID and s.out["alarms"] == 0
    assert abs(s.out["soc"] - 0.5) < 0.2
    assert float(s.truth()["over_s"][-1]) == 0.0
    assert all(s.image.bus_stats(k)[x] == 0 for k in (0, 1) for x in ("timeouts", "crc_errors", "late"))
    # the plant's log is allocated at once and touched for six hours (100 MB; reading it copies it); nothing else grows
    assert grown < 150_000


@pytest.mark.parametrize("sets", [(), ("bus.a.port=virtual-tcp", "bus.b.port=virtual-tcp")], ids=["lines", "tcp"])
@pytest.mark.parametrize("seed", range(6))
def test_an_hour_of_a_bad_line_never_commands_beyond_the_limits(seed: int, sets: tuple[str, ...]) -> None:
    rng = random.Random(seed)
    keys = ["a.bit_error_p", "b.bit_error_p", "a.drop_p", "b.drop_p", "a.garbage_p", "b.garbage_p"]
    keys += ["a.truncate_p", "b.truncate_p", "a.cut", "b.cut"] if sets else []
    faults = [
        {"at_s": rng.uniform(10, 3500), "for_s": rng.uniform(0.1, 20), "key": rng.choice(keys), "value": 10 ** rng.uniform(-5, -2)}
        for _ in range(120)
    ]
    dead = ["meter.dead", "bms.dead", "pcs.dead"]
    faults += [{"at_s": rng.uniform(10, 3500), "for_s": rng.uniform(0.05, 8), "key": rng.choice(dead), "value": 1} for _ in range(40)]
    s = sim("steps", seed, faults=faults, sets=sets)
    s.run_s(3700)
    truth = s.truth()
    value = np.asarray(truth["cmd_value_w"])
    assert np.isfinite(value).all() and np.abs(value).max() <= 250e3
    assert float(truth["over_s"][-1]) == 0.0
    assert s.out["mode"] in (im.MODE_GRID, im.MODE_FAULT, im.MODE_STANDBY)


@pytest.mark.parametrize("tcp", [False, True], ids=["rtu", "tcp"])
def test_a_million_hostile_reads_do_not_break_the_master(tcp: bool) -> None:
    rng = random.Random(11)
    m = PyRtuMaster(115200, 11, tcp=tcp)
    now = reads = 0
    while reads < 1_000_000:
        now += 10_000_000
        if not m.waiting:
            fc = rng.choice((3, 4, 6, 16))
            m.request(rng.randrange(1, 248), fc, rng.randrange(65000), rng.randrange(1, 60) if fc < 5 else 0, [1] * (0 if fc < 5 else 1))
            m.sent(now, 5_000_000)
        for _ in range(rng.randrange(1, 6)):
            reads += 1
            m.feed(bytes(rng.getrandbits(8) for _ in range(rng.randrange(1, 40))), now + rng.randrange(5_000_000))
        if m.waiting:
            m.expire(now + 9_000_000)
        if m.broken:
            m.reset(now + 9_000_000)
    assert not m.waiting
