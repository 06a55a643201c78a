"""report.html: whole, by itself, and never the reason that a run fails."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import report

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("out") / "run"
    argv = [sys.executable, "-m", "controller", "sim", "--trace", "steps", "--for", "40", "--out", str(directory)]
    assert subprocess.run(argv, capture_output=True).returncode == 0
    return directory


def test_the_page_stands_by_itself(out: Path) -> None:
    text = (out / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text), "nothing is fetched from elsewhere"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["record_sha256"] in text and "checked against the file" in text
    verdict = "NOT HELD" if summary["grid"]["over_limit_s"] else "held"
    for words in (verdict, "Latency", "Spectrum", "Battery", "Buses", "Events", "Definitions", "ideal steps"):
        assert words in text
    assert text.count("data:image/png;base64,") >= 6
    assert f"{summary['measured']['load_to_power_ms']['p99']:.2f} ms" in text


def test_figures_in_the_picture_are_those_of_the_summary(out: Path) -> None:
    import numpy as np

    from bench import rundata

    data = rundata.load(out)
    measured = data.summary["measured"]["load_to_power_ms"]
    assert abs(len(data.power_ms) - measured["events"]) <= 1
    assert abs(np.percentile(data.power_ms, 50) - measured["p50"]) < 0.2


def test_a_site_without_a_plant_is_reported_from_its_record(out: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "site.json", "record.blst"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    assert report.main([str(tmp_path)]) == 0
    assert "the site&#x27;s meter" in (tmp_path / "report.html").read_text()


def test_a_changed_record_is_seen(out: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "site.json", "truth.npz"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    (tmp_path / "record.blst").write_bytes((out / "record.blst").read_bytes()[:-100])
    assert report.main([str(tmp_path)]) == 0
    assert "the file has another one" in (tmp_path / "report.html").read_text()


def test_without_matplotlib_there_is_a_line(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib") or (name == "bench" and "pictures" in (args[2] or ())):
            raise ImportError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert report.write(out) is None
    assert "no report: matplotlib is missing" in capsys.readouterr().err


def test_an_empty_directory_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 1
    assert "no report" in capsys.readouterr().err


def test_a_run_of_two_seconds_has_a_page_too(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "controller", "sim", "--for", "2", "--out", str(tmp_path / "o")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "o" / "report.html").exists(), done.stderr
    argv = [*argv[:-1], str(tmp_path / "p"), "--no-report"]
    assert subprocess.run(argv, capture_output=True).returncode == 0 and not (tmp_path / "p" / "report.html").exists()


def test_the_buses_as_planned_and_as_they_were(out: Path) -> None:
    import numpy as np

    from bench import buspicture, rundata

    data = rundata.load(out)
    ends = {r["what"].split(" FC")[0]: r["end_ms"] for r in data.plan["timeline"]}
    assert np.percentile(data.answer_ms["meter"], [1, 99]) == pytest.approx(ends["meter"], abs=0.01)
    assert np.percentile(data.answer_ms["pcs"], 50) == pytest.approx(ends["pcs readback 40073"], abs=0.01)
    assert data.meter_age_ms is not None and np.median(data.meter_age_ms) == pytest.approx(0.692, abs=0.01)
    words = buspicture.share_words(data, "a")
    assert re.fullmatch(r"plan 53\.5 %, measured 5[34]\.\d %; 0 timeouts, 0 CRC errors of \d{4}", words), words
    ax = buspicture.bus(data).axes[0]
    whiskers = [line for line in ax.get_lines() if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert sorted(round(float(np.asarray(w.get_xdata())[0]), 1) for w in whiskers) == [2.6, 2.6, 7.6, 9.6], "meter, step, bms, pcs"
    assert {t.get_text() for t in ax.get_yticklabels()} == {"bus a", "bus b", "kernel"}
    text = (out / "report.html").read_text()
    for told in ("wire in use of a tick, plan", "<td>pcs, turnaround</td>", "meter&#x27;s values at the kernel&#x27;s step", "CRC errors"):
        assert told.replace("&#x27;", "'") in text or told in text, told
    assert "NOT AS PLANNED" not in text


def test_a_turnaround_that_the_plan_does_not_know_stands_in_the_page(out: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "site.json", "truth.npz", "record.blst"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    assert report.main([str(tmp_path)]) == 0, "runs of older versions have no wires.json"
    assert "measured no turnarounds" in (tmp_path / "report.html").read_text()
    found = json.loads((out / "wires.json").read_text())
    found["devices"]["meter"] |= {"p99_ms": 1.75, "answers": 4000}
    (tmp_path / "wires.json").write_text(json.dumps(found))
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "NOT AS PLANNED" in text and "set device.meter.turnaround_ms to 1.8" in text


@pytest.mark.parametrize("sets", [["bus.a.port=virtual-tcp", "bus.b.port=virtual-tcp"], None])
def test_tcp_and_can_have_a_picture_too(sets: list[str] | None, tmp_path: Path) -> None:
    from bench import buspicture, rundata

    site = [] if sets else [str(Path(__file__).parents[1] / "loop/can_site.toml")]
    sets = sets or ["device.pcs.bus=c", "device.pcs.profile=generic_can_pcs"]
    argv = [sys.executable, "-m", "controller", "sim", *site, "--for", "8", "--no-report", "--out", str(tmp_path)]
    assert subprocess.run([*argv, *(w for s in sets for w in ("--set", s))], capture_output=True).returncode == 0
    data = rundata.load(tmp_path)
    upper, lower = buspicture.bus(data).axes
    assert len(upper.get_yticks()) == len(data.site.buses) + 1 and len(lower.get_yticks()) == len(data.site.buses)
    told = " ".join(t.get_text() for t in upper.texts)
    assert ("pcs command, ours 0x200" in told and "8 other frames at any time" in told) == bool(site)
    assert data.wires is not None
    for name, row in data.wires["buses"].items():
        assert row["busy_ms"] == pytest.approx(row["planned_busy_ms"], rel=0.2), f"{name}: the start is in it"
