"""The mixed site runs, briefly: two RTU buses, a CAN battery, a TCP meter, all other people's software. `make bench` judges its times."""

from __future__ import annotations

import shutil

import pytest

from bench.perf import mixed, modbus_peers


@pytest.mark.realtime
def test_the_mixed_site_reaches_grid_and_stays_there() -> None:
    if shutil.which("cyclictest") is None:
        pytest.skip("cyclictest is not installed")
    try:
        measured, report = mixed.run(12.0)
    except (RuntimeError, modbus_peers.NoPeer) as e:
        if "libmodbus" in str(e) or "gcc" in str(e):
            pytest.skip(str(e))
        raise
    rows = {row.name.removeprefix("mixed site, short: "): row for row in mixed.verdicts(measured, report, full=False)}
    for name in ("GRID to the end", "silent buses", "the report shows the buses"):
        assert rows[name].ok, rows[name]
    for bus in ("rtu1", "rtu2", "can", "tcp"):
        assert rows[f"bus {bus}, transactions"].value > 30, rows
