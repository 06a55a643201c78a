"""The decoders that are fuzzed, and what a run of each must at least have done: a fuzzer that does nothing would find nothing for ever."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One harness: `tests/fuzz/<module>.py` has a function of this name that takes the bytes and raises when something is wrong.

    native: compiled code is looked at (the checked build). python: packages whose bytecode is looked at. cov: edges that a run of 20 s
    must have reached. runs: inputs that it must have tried, on a machine with better things to do. max_len: bytes of an input.
    """

    name: str
    module: str
    native: bool
    python: tuple[str, ...]
    cov: int
    runs: int
    max_len: int


TARGETS = {
    t.name: t
    for t in (
        Target("rtu", "modbus", True, (), 2750, 1500, 160),
        Target("tcp", "modbus", True, (), 2650, 1500, 160),
        Target("can", "canbus", True, (), 3050, 2000, 160),
        Target("slcan", "canbus", True, (), 3100, 2000, 160),
        Target("codec", "rows", True, (), 1000, 10000, 200),
        Target("dbc", "texts", False, ("hal", "cantools", "textparser"), 590, 2000, 800),
        Target("profile", "texts", True, ("hal", "tomllib"), 4200, 1000, 800),
        Target("site", "texts", False, ("controller", "hal", "tomllib", "tomlkit"), 1050, 1000, 800),
    )
}
