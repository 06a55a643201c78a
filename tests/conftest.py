"""Shared by tests of records: one short run in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from _core import image as core
from controller.records import RecordWriter

settings.register_profile("ballast", deadline=None)  # tests assert behaviour; how long it takes is the machine's
settings.load_profile("ballast")


@pytest.fixture(scope="session")
def sim_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of 25 s in virtual time: 1 s of it a segment."""
    from bench.sim import Simulation
    from controller import build, supervisor
    from controller.virtual import LoadOptions

    directory = tmp_path_factory.mktemp("sim")
    site = build.load_site(None, [], lambda: [])
    flush_s, supervisor.FLUSH_S = supervisor.FLUSH_S, 1.0
    try:
        sim = Simulation(
            site, LoadOptions(trace="steps", repeat=False), for_s=25,
            writer=lambda: RecordWriter(
                directory / "record.blst", layout=core.LAYOUT, settings=site.settings_hash(), record_size=core.RECORD_SIZE),
        )  # fmt: skip
        sim.run_s(25)
        sim.close()
    finally:
        supervisor.FLUSH_S = flush_s
    return directory / "record.blst"
