"""The compiled kernel against the same law in plain C, in the same run.

kernel_peer.c is compiled with gcc -O2 -ffp-contract=off into a temporary directory. Both are timed step by step on the same moving
inputs from the same State, in turns, each step between the same two clock_gettime calls, whose own cost is taken off both. The Cython
kernel may cost at most half as much again.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.perf.rows import Row, at_most

SOURCE = Path(__file__).with_name("kernel_peer.c")
FLAGS = ["-O2", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC"]
STRUCTS = ("Inputs", "Limits", "Site", "State", "Outputs", "Record")
BAR = 1.5
GRID = 2
PIECE = 250


def packed(struct: str, value: dict[str, Any]) -> bytes:
    """A struct of image.pxd from a dict, as the bytes C sees."""
    import numpy
    from _core.image import record_dtype

    def fill(into: Any, what: Any) -> None:
        for name in into.dtype.names:
            x = what[name]
            if isinstance(x, dict):
                fill(into[name], x)
            elif isinstance(x, list) and isinstance(x[0], dict):
                for k, one in enumerate(x):
                    fill(into[name][k], one)
            else:
                into[name] = x

    a = numpy.zeros((), record_dtype(struct))
    fill(a, value)
    return bytes(a.tobytes())


class Peer:
    """kernel_peer.c, compiled and loaded. Raises FileNotFoundError without gcc, CalledProcessError where it does not compile."""

    def __init__(self) -> None:
        from _core.image import record_dtype

        from _core import image
        from _core.faults import FAULTS, masks

        with tempfile.TemporaryDirectory() as d:
            lib = Path(d) / "kernel_peer.so"
            subprocess.run(["gcc", *FLAGS, "-o", str(lib), str(SOURCE)], check=True, capture_output=True, text=True)
            self.lib = ctypes.CDLL(str(lib))
        made = masks(FAULTS, {name: bit for name, bit in vars(image).items() if name.startswith("ALM_")})
        self.lib.peer_masks(made.fault, made.trip, made.person)
        self.lib.peer_size.restype = ctypes.c_size_t
        for k, name in enumerate(STRUCTS):
            if self.lib.peer_size(k) != record_dtype(name).itemsize:
                raise ValueError(f"kernel_peer.c: {name} has {self.lib.peer_size(k)} bytes, image.pxd {record_dtype(name).itemsize}")

    def run(self, site: dict[str, Any], state: dict[str, Any], ticks: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[Any, bytes]:
        """Outputs (numpy, one a tick) and the State at the end, as bytes, from (inputs, limits) a tick."""
        import numpy
        from _core.image import record_dtype

        dtype = record_dtype("Record")
        inp, lim = record_dtype("Inputs"), record_dtype("Limits")
        rows = [(numpy.frombuffer(packed("Inputs", i), inp)[0], numpy.frombuffer(packed("Limits", x), lim)[0]) for i, x in ticks]
        raw = numpy.zeros(len(rows), dtype)
        for k, (i, x) in enumerate(rows):
            raw["inp"][k], raw["lim"][k] = i, x
        out = numpy.zeros(len(rows), record_dtype("Outputs"))
        st = ctypes.create_string_buffer(packed("State", state), record_dtype("State").itemsize)
        records = raw.tobytes()
        self.lib.peer_run(packed("Site", site), st, records, ctypes.c_int64(len(rows)), out.ctypes.data_as(ctypes.c_void_p))
        return out, st.raw

    def time_steps(self, site: dict[str, Any], state: dict[str, Any], inp: dict[str, Any], lim: dict[str, Any], n: int) -> list[int]:
        """As Kernel.time_steps: nanoseconds of n steps, sorted."""
        times = (ctypes.c_int64 * n)()
        raw = packed("State", state)
        st = ctypes.create_string_buffer(raw, len(raw))
        self.lib.peer_time(packed("Site", site), st, packed("Inputs", inp), packed("Limits", lim), ctypes.c_int(n), times)
        return sorted(times)

    def clock_ns(self, n: int = 10_000) -> float:
        """Median cost of the two clock readings around a step."""
        times = (ctypes.c_int64 * n)()
        self.lib.peer_clock(ctypes.c_int(n), times)
        return float(sorted(times)[n // 2])


def measure(rounds: int = 9, n: int = 10_000) -> tuple[float, float, float]:
    """(ours_ns, c_ns, ratio): means of the faster nine tenths of the steps, less the clock's own cost; the two take turns.

    The n steps of a round are taken a piece at a time from the same State, because time_steps refreshes meter and PCS alone: after 3 s (300
    steps) the BMS counts as lost, and a step outside GRID is a quarter cheaper. Raises RuntimeError where a piece ends outside GRID."""
    import copy

    from _core.kernel import Kernel

    from bench.rig import Rig

    rig = Rig().to_grid()
    rig.step(200)
    state = rig.kernel.get_state()
    peer, ours, c = Peer(), [], []
    for piece in pieces(n) * rounds:
        kernel = Kernel(rig.site)
        kernel.set_state(state)
        ours += kernel.time_steps(copy.deepcopy(rig.inp), rig.lim, piece)
        if kernel.get_state()["mode"] != GRID:
            raise RuntimeError(f"the kernel left GRID within {piece} steps: what was timed is not the whole step")
        c += peer.time_steps(rig.site, state, rig.inp, rig.lim, piece)
    clock_ns = peer.clock_ns()
    a, b = typical(ours) - clock_ns, typical(c) - clock_ns
    return a, b, a / b


def pieces(n: int) -> list[int]:
    """n in pieces of at most PIECE."""
    return [PIECE] * (n // PIECE) + [n % PIECE] * (n % PIECE > 0)


def typical(times: list[int]) -> float:
    """Mean of the faster nine tenths: finer than the clock's tick, blind to preemption."""
    kept = sorted(times)[: max(1, len(times) * 9 // 10)]
    return sum(kept) / len(kept)


def rows() -> list[Row]:
    """One row: the ratio, with both medians in the note; not measured where there is no gcc."""
    try:
        ours_ns, c_ns, ratio = measure()
    except FileNotFoundError:
        return [at_most("kernel step / plain C", None, BAR, "x", "", "no gcc")]
    return [at_most("kernel step / plain C", ratio, BAR, "x", "", f"{ours_ns:.0f} ns against {c_ns:.0f} ns without the clock")]


if __name__ == "__main__":
    from bench.perf.rows import table

    print(table(rows()))
