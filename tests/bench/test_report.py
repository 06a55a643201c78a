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
