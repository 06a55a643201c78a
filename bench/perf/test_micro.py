"""pytest-benchmark: what one tick is made of, in compiled loops of CALLS rounds (the clock and Python's call are outside).

`make bench` runs this file through bench.perf.micro; by hand: pytest bench/perf/test_micro.py --benchmark-enable. Stats are seconds a call
of run(); extra_info["calls"] says how many rounds that is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _core.image import ProcessImage

from bench.perf.loops import FIRST, PITCH, Memory, Publisher, Steps, crc_run
from bench.rig import Rig

CALLS = 1000
ROUNDS = 300


def _time(benchmark: Any, what: Callable[..., object], *args: object, calls: int = CALLS) -> None:
    benchmark.extra_info["calls"] = calls
    benchmark.pedantic(what, args=args, rounds=ROUNDS, iterations=1, warmup_rounds=5)


def test_kernel_step(benchmark: Any) -> None:
    rig = Rig().to_grid()
    rig.step(200)
    steps = Steps(rig.site, rig.inp, rig.lim, rig.kernel.get_state())
    _time(benchmark, steps.run, CALLS)
    assert steps.mode == 2  # GRID: the whole of step() has run


def test_kernel_step_from_python(benchmark: Any) -> None:
    """_core.kernel.Kernel.step with its dicts: what tests and twins pay."""
    rig = Rig().to_grid()
    _time(benchmark, rig.kernel.step, rig.inp, rig.lim, calls=1)


def test_rtu_in_memory(benchmark: Any) -> None:
    """Frame a read of 20 registers, take its answer, decode ten f32."""
    memory = Memory()
    _time(benchmark, memory.run, CALLS)
    assert memory.total == CALLS * sum(FIRST + PITCH * k for k in range(10))


def test_crc_45_bytes(benchmark: Any) -> None:
    """CRC16 of the answer of 20 registers."""
    _time(benchmark, crc_run, bytes(range(45)), CALLS)


def test_publish(benchmark: Any) -> None:
    """One Record and the State into the process image."""
    image = ProcessImage.create()
    publisher = Publisher(image)
    _time(benchmark, publisher.run, CALLS)
    assert image.latest()["tick"] == CALLS * (ROUNDS + 5) or not benchmark.enabled
