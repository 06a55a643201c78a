"""Golden vectors: rows anybody can read, one a tick, run by the compiled kernel and by its twin. See vectors/play.py."""

from __future__ import annotations

import pytest
from _core.kernel import Kernel

from tests.core.twin import Twin
from tests.core.vectors.play import HERE, play, read

FILES = sorted(HERE.glob("*.csv"))


@pytest.mark.parametrize("make", [Kernel, Twin])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_vector(path, make) -> None:
    v = read(path)
    for n, (got, want) in enumerate(zip(play(v, make), v.expected, strict=True)):
        assert got == want, f"{path.name}, tick {n}: inputs {v.inputs[n]}"


def test_there_are_vectors() -> None:
    assert len(FILES) >= 6 and all(len(read(p).inputs) >= 50 for p in FILES)
