"""The commissioning report: one HTML file that needs nothing else, made to be printed and signed.

It shows what `commissioning.json` holds and nothing besides: what stands in it can be checked against its SHA-256.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from controller import disk
from controller.clock import utc, utc_text
from controller.commission.delay import response
from controller.commission.results import PASS, SKIPPED, Results
from controller.commission.rig import Rig
from controller.commission.svg import Line, chart
from controller.records import build_text
from controller.settings import SETTINGS

Row = tuple[str, str, str, str]  # name, title, about, state

_CSS = """
@page { size: A4; margin: 16mm 15mm }
body { font: 13px/1.45 "DejaVu Sans", Arial, sans-serif; color: #111; max-width: 190mm; margin: 2em auto; padding: 0 1em }
h1 { font-size: 22px; margin: 0 } h2 { font-size: 16px; margin: 1.8em 0 .4em; border-bottom: 1.5px solid #111; break-after: avoid }
h3 { font-size: 14px; margin: 1.5em 0 .2em; break-after: avoid } p { margin: .3em 0 } ul { margin: .3em 0; padding-left: 1.3em }
table { border-collapse: collapse; width: 100%; margin: .5em 0 } th, td { text-align: left; vertical-align: top }
th, td { padding: 2px 8px 2px 0 } th { border-bottom: 1px solid #111 } td { border-bottom: 1px solid #ddd; overflow-wrap: anywhere }
td.n { text-align: right; white-space: nowrap } tr, figure { break-inside: avoid } .small { font-size: 11px; color: #444 }
.cols { columns: 2; column-gap: 2em; margin: .5em 0 } .cols table { margin: 0 } code { font-size: 11px }
.pass { color: #14632b; font-weight: bold } .fail, .skipped, .open, .changed { color: #b00020; font-weight: bold }
figure { margin: .8em 0 } figcaption { font-size: 12px; font-weight: bold } .key { font-weight: normal; float: right }
.key span { margin-left: 1.2em } .key i { display: inline-block; width: 20px; margin-right: 4px; vertical-align: 4px }
svg { width: 100%; height: auto } svg text { font: 10px "DejaVu Sans", Arial, sans-serif; fill: #333 }
svg .y { text-anchor: end } svg .x { text-anchor: middle } svg .g { stroke: #ddd; stroke-width: .7 }
svg .m { stroke: #b00020; stroke-dasharray: 4 3 }
svg .t { fill: #b00020 } .sign { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 2em; margin-top: 4.5em }
.sign div { border-top: 1px solid #111; padding-top: 3px }
.banner { border: 2px solid #b00020; color: #b00020; padding: .5em .8em; margin: 1em 0; font-weight: bold }
"""
STATE_WORDS = {PASS: "passed", "fail": "FAILED", SKIPPED: "SKIPPED", "open": "NOT DONE", "changed": "SITE CHANGED SINCE: REPEAT"}


def _number(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}"
    return escape(str(value))


def _line(series: dict[str, Any], key: str, name: str, **how: bool) -> Line:
    one = series.get(key) or {"x": [], "y": []}
    return Line(name, one["x"], one["y"], **how)


def _until(line: Line, x: float) -> Line:
    keep = [k for k, at in enumerate(line.x) if at <= x]
    return Line(line.name, [line.x[k] for k in keep], [line.y[k] for k in keep], line.dots, line.steps)


def _charts(name: str, row: dict[str, Any]) -> str:
    """The pictures of one step, from its series."""
    s, n = row.get("series", {}), row["numbers"]
    if name == "polarity":
        lines = [_line(s, "edges_readback", "battery, readback", dots=True), _line(s, "edges_meter", "grid import", dots=True)]
        return chart("Steps laid over one another", "ms after the command", "share of the step", lines, [(0.0, "command")])
    if name == "delay":
        lines = [_line(s, "delay_meter", "meter", dots=True), _line(s, "delay_readback", "readback", dots=True)]
        dead, tau = n.get("dead_s"), n.get("tau_s")
        xs = [x for line in lines for x in line.x]
        if dead is not None and tau is not None and xs:
            until_ms = max(30.0, 1e3 * (float(dead) + 8 * float(tau)))  # the rest is a straight line
            lines = [_until(line, until_ms) for line in lines]
            t = np.linspace(min(xs), min(max(xs), until_ms), 400)
            lines.append(Line("fit", t.tolist(), response(t / 1e3, float(dead), float(tau)).tolist()))
            believed = (float(n["detection_s"]) + float(n["site_dead_time_s"]), max(float(n["site_tau_s"]), 1e-4))
            lines.append(Line("site before", t.tolist(), response(t / 1e3, *believed).tolist()))
        return chart("Response to a step", "ms after the command's last bit", "share of the step", lines)
    if name == "ramp":
        return chart("Battery command", "s", "kW", [_line(s, "ramp_command", "battery command")])
    if name == "reversion":
        x, marks = "s after the PCS's last answer", [(0.0, "cable pulled"), (float(n.get("reversion_s") or 0.0), "timer")]
        battery = [_line(s, "reversion_battery", "battery", steps=True)]
        return chart("Battery power by the BMS (DC)", x, "kW", battery, marks) + chart(
            "Grid import", x, "kW", [_line(s, "reversion_grid", "grid import")]
        )
    if name in ("trip", "estop"):
        made = [key.removeprefix("trip_") for key in s if key.startswith("trip_") and not key.endswith("_mode")]
        return "".join(
            chart(f"Command in ticks of 10 ms: {key.replace('_', ' ')}", "ticks after the frame that shows it", "kW",
                  [_line(s, f"trip_{key}", "battery command", steps=True)], [(0.0, "shown"), (2.0, "at the latest")])
            for key in made
        )  # fmt: skip
    if name == "following":
        lines = [_line(s, f"following_{key}", word) for key, word in (("load", "load"), ("grid", "grid import"), ("battery", "battery"))]
        return chart("A minute of following", "s", "kW", lines)
    return ""


def _step(number: int, row: Row, results: Results) -> str:
    name, title, about, state = row
    got = results.steps.get(name)
    head = f'<h3>{number}. {escape(title)}: <span class="{state}">{STATE_WORDS[state]}</span></h3><p class="small">{escape(about)}</p>'
    if got is None:
        return head
    by = f"{escape(str(got['who']))}, {utc_text(got['wall_s'])[:19]} UTC"
    cls = "" if state == PASS else f' class="{state}"'
    facts = "".join(f"<li>{escape(str(f))}</li>" for f in got["facts"])
    writes = "".join(f"<li>settings: {escape(str(w))}</li>" for w in got.get("writes", []))
    numbers = "".join(f'<tr><td>{escape(k)}</td><td class="n">{_number(v)}</td></tr>' for k, v in got["numbers"].items())
    table = f'<div class="cols"><table>{numbers}</table></div>' if numbers else ""
    return f"{head}<p{cls}>{escape(str(got['reason']))}</p><ul>{facts}{writes}</ul>{_charts(name, got)}{table}<p class=\"small\">{by}</p>"


def _identities(results: Results) -> str:
    keys = ("name", "role", "bus", "unit", "profile", "manufacturer", "model", "serial")
    head = "".join(f"<th>{'address' if k == 'unit' else k}</th>" for k in keys)
    devices = results.head.get("devices", [])
    rows = "".join("<tr>" + "".join(f"<td>{escape(str(d.get(k, '')))}</td>" for k in keys) + "</tr>" for d in devices)
    return f"<table><tr>{head}</tr>{rows}</table>"


def _settings(rig: Rig) -> str:
    units = {key: "" if row.unit == "1" else escape(row.unit) for key, row in SETTINGS.items()}
    rows = "".join(
        f'<tr><td>{escape(key)}</td><td class="n">{_number(value)} {units[key]}</td></tr>'
        for key, value in rig.site.values.items()
        if key in SETTINGS
    )
    buses = "".join(f"<li>bus {escape(b.name)}: {escape(b.port)}, {b.baud} Bd, {b.parity}, {b.stop_bits} stop</li>" for b in rig.site.buses)
    return f'<ul>{buses}</ul><div class="cols"><table>{rows}</table></div>'


def html(rig: Rig, results: Results, rows: Sequence[Row]) -> str:
    """The whole page."""
    head, signed = results.head, results.signed
    bad = [f"{title} ({STATE_WORDS[state]})" for _, title, _, state in rows if state != PASS]
    banner = f'<p class="banner">Not passed: {escape(", ".join(bad))}</p>' if bad else '<p class="pass">All steps passed.</p>'
    virtual = '<p class="banner">Made on the virtual cabinet: it says nothing about a real one.</p>' if rig.instance.virtual else ""
    table = "".join(
        f'<tr><td>{k}</td><td>{escape(title)}</td><td class="{state}">{STATE_WORDS[state]}</td>'
        f"<td>{escape(str(results.steps.get(name, {}).get('reason', '')))}</td></tr>"
        for k, (name, title, _, state) in enumerate(rows, 1)
    )
    now = utc_text(rig.clock.wall_s())[:19]
    remarks = escape(str(signed["remarks"])) if signed and signed["remarks"] else "none"
    steps = "".join(_step(k, row, results) for k, row in enumerate(rows, 1))
    name = escape(str(signed["name"])) if signed else "&nbsp;"
    date = f"{utc_text(signed['wall_s'])[:19]} UTC" if signed else "&nbsp;"
    unsigned = "" if signed else '<p class="banner">Not signed.</p>'
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Commissioning report: {escape(rig.site.name)}</title><style>{_CSS}</style></head><body>
<h1>Commissioning report</h1>
<table><tr><td>site</td><td><b>{escape(rig.site.name)}</b> ({escape(rig.site.file)})</td></tr>
<tr><td>made</td><td>{now} UTC</td></tr>
<tr><td>software</td><td>ballast {escape(build_text())}</td></tr>
<tr><td>settings</td><td><code>{escape(rig.site.settings_hash())}</code></td></tr>
<tr><td>results, SHA-256</td><td><code>{results.sha256()}</code></td></tr></table>
{virtual}{banner}{unsigned}
<h2>Steps</h2><table><tr><th></th><th>step</th><th>verdict</th><th>why</th></tr>{table}</table>
<h2>Devices</h2>{_identities(results)}
<h2>What was measured</h2>{steps}
<h2>Settings in force</h2>{_settings(rig)}
<h2>Remarks and signature</h2><p>{remarks}</p>
<p class="small">Powers: grid import +, battery discharge +. Times are UTC. SHA-256 is that of head and steps of
{escape(results.path.name)} as JSON with sorted keys and no spaces; site when last tested: {escape(str(head.get('site', '')))}.</p>
<div class="sign"><div>name: {name}</div><div>date: {date}</div><div>signature</div></div>
</body></html>
"""


def write(rig: Rig, results: Results, rows: Sequence[Row]) -> Path:
    """`commissioning-YYYYMMDD-HHMMSS.html` (UTC) beside the results; returns its path. What is there already may be signed
    and stays: the same second, or a clock that was set back, gets a number behind it. Raises OSError.
    """
    stem = f"commissioning-{utc(rig.clock.wall_s()).strftime('%Y%m%d-%H%M%S')}"
    results.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = html(rig, results, rows).encode()
    for k in itertools.count(1):
        path = results.path.with_name(f"{stem}.html" if k == 1 else f"{stem}-{k}.html")
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))  # the name is ours
        except FileExistsError:
            continue
        break
    try:
        disk.replace(path, text, 0o644)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return path

