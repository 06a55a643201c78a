"""1,000 power cuts and 50 killed writers: about 20 s on two cores."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.controller.test_power_cuts import cuts, kill_writer

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("seed", range(10, 20))
def test_a_thousand_cuts(sim_record: Path, tmp_path: Path, seed: int) -> None:
    cuts(100, seed, sim_record, tmp_path)


def test_fifty_killed_writers(sim_record: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    for k in range(50):
        kill_writer(sim_record, tmp_path / str(k), rng.uniform(0.0, 0.3))
