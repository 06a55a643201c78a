"""Shelves beside a running site: read, written, a module pulled, the reader killed, its port gone; the tick notices nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from _core import image as core
from controller.site import BUILTIN
from tests.loop.live import Cabinet, Live, links, until

pytestmark = pytest.mark.realtime


class Racks:
    """The emulator of the shelves in a process of its own."""

    def __init__(self, tmp: Path, config: dict[str, Any]) -> None:
        (tmp / "racks.json").write_text(json.dumps(config))
        argv = [sys.executable, "-m", "bench.shelves", "--config", str(tmp / "racks.json")]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.ports: dict[str, str] = json.loads(self.process.stdout.readline())["ports"]

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


class Site:
    """A site with two shelves on one port and a pump on another."""

    def __init__(self, tmp: Path) -> None:
        config = {
            "buses": {
                "rack": {"baud": 115200, "devices": {"orv3_hpr_psu": [144, 145, 146], "orv3_hpr_bbu": [48]}},
                "cool": {"baud": 19200, "devices": {"orv3_rpu": [12]}},
            },
            "load_w": 9000.0,
        }
        self.racks, self.cabinet = Racks(tmp, config), Cabinet(tmp)
        text = BUILTIN.read_text()
        for name, port, profile, units, allow in (
            ("psu", "rack", "orv3_hpr_psu", [144, 145, 146], ["led"]),
            ("bbu", "rack", "orv3_hpr_bbu", [48], []),
            ("rpu", "cool", "orv3_rpu", [12], ["pump_duty_pct"]),
        ):
            rows = [f'name = "{name}"', f'port = "{self.racks.ports[port]}"', f'profile = "{profile}"', f"units = {units}"]
            text += "\n[[shelf]]\n" + "\n".join([*rows, f"allow = {json.dumps(allow)}"]) + "\n"
        (tmp / "site.toml").write_text(text)
        self.live = Live(tmp, links(tmp, self.cabinet.ports), str(tmp / "site.toml"))
        self.live.open()
        self.live.grid()

    def shelves(self, *words: str) -> dict[str, Any]:
        return dict(json.loads(self.live.ballast("shelves", *words, "--json").stdout))

    def end(self) -> None:
        self.live.end()
        self.cabinet.end()
        self.racks.end()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("shelves"))
    yield made
    made.end()


def test_shelves_are_read_written_pulled_and_their_reader_killed(site: Site) -> None:
    live = site.live
    until(lambda: all(r["online"] for r in site.shelves()["devices"].values()), 15, live.text())
    state = site.racks.ask({"state": True})
    rows = site.shelves()["devices"]
    assert sum(rows[f"psu.{u}"]["values"]["p_out_w"]["value"] for u in (144, 145, 146)) == pytest.approx(state["p_out_w"], abs=1)
    assert rows["bbu.48"]["values"]["soc"]["value"] == 1.0 and rows["rpu.12"]["values"]["flow_l_per_min"]["value"] == pytest.approx(72.0)
    assert all(r["values"]["p_out_w"]["age_s"] < 3.0 for name, r in rows.items() if name.startswith("psu"))

    done = live.ballast("shelves", "rpu.12", "--write", "pump_duty_pct=90")
    assert done.returncode == 0 and "was 60" in done.stdout and site.racks.ask({"state": True})["pump"] == 0.9
    until(lambda: site.shelves()["devices"]["rpu.12"]["values"]["flow_l_per_min"]["value"] == pytest.approx(108.0), 10)
    done = live.ballast("shelves", "psu.144", "--write", "clear_faults=1")
    assert done.returncode == 2 and "is not allowed by the site" in done.stderr
    with contextlib.closing(sqlite3.connect(live.here.store)) as store:
        trail = "\n".join(map(str, store.execute("select * from audit")))
    assert "rpu.12 pump_duty_pct = 90 (was 60)" in trail and "psu.144 clear_faults = 1: is not allowed" in trail

    site.racks.ask({"kill": ["rack", 145]})
    until(lambda: not site.shelves()["devices"]["psu.145"]["online"], 10)
    assert "1 of 5 devices beside the tick do not answer" in live.ballast("status").stdout
    assert site.shelves()["devices"]["psu.144"]["online"] and "no answer: psu.145" in live.ballast("shelves").stdout
    site.racks.ask({"revive": ["rack", 145]})
    until(lambda: site.shelves()["devices"]["psu.145"]["online"], 40)

    found = subprocess.run(["pgrep", "-P", str(live.here.pid), "-f", "controller.shelves.reader"], capture_output=True, text=True)
    before = site.shelves()["devices"]["psu.144"]["ok"]
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    until(lambda: site.shelves()["devices"]["psu.144"]["ok"] > before + 50, 15, live.text())
    assert live.lines("shelves was killed by SIGKILL") == 1 and live.out["mode"] == core.MODE_GRID


def test_what_the_site_does_not_know_is_refused_in_words(site: Site) -> None:
    done = site.live.ballast("shelves", "psu.14")
    assert done.returncode == 2 and "did you mean psu.1" in done.stderr
    done = site.live.ballast("shelves", "rpu.12", "--write", "pump_duty_pct=101")
    assert done.returncode == 2 and "0 to 100" in done.stderr
    done = site.live.ballast("shelves", "rpu.12", "--write", "pump_duty_pct")
    assert done.returncode == 2 and "ITEM=VALUE" in done.stderr
    text = site.live.ballast("shelves").stdout
    assert "psu " in text and "3/3 answer" in text and "flow" in text
    assert "psu_output_power" in site.live.ballast("shelves", "psu.144").stdout
