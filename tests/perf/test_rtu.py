"""The RTU benchmark runs, briefly: every client reads the right values. Its ratios are judged in `make bench`, not here."""

from __future__ import annotations

import os

import pytest

from bench.perf import rtu


@pytest.mark.realtime
def test_every_client_reads_right_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtu, "PRIORITY", 0)
    before = os.sched_getscheduler(0), os.sched_getaffinity(0)
    rows = rtu.rows(rounds=1)
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0)) == before
    if len(rows) == 1:
        pytest.skip(rows[0].note)
    clients = [r for r in rows if r.name.endswith("p50 us")]
    assert len(clients) >= 8 and sum(r.name.startswith("tcp") for r in clients) == 4 and all(", 0 failed" in r.note for r in clients), rows
