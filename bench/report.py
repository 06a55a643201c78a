"""python -m bench.report DIR: report.html of a run, one page that stands by itself; `ballast run` and `sim` write it.

The page says first what was asked and whether it was held, then shows it, then says how every figure is defined and
from which bytes it came. Without matplotlib there is a line and no page.
"""

from __future__ import annotations

import argparse
import html
import json
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from _core import image as core
from controller import build, disk, wires
from controller.clock import utc_text
from controller.records import RecordError, file_sha256
from controller.site import Site
from controller.supervise import RECORD_NAME

REPORT_NAME = "report.html"
ENGINE_NAME = "engine.json"  # histograms of the control thread, where there was one
MAX_EVENTS = 200
OFTEN = 12  # a limit with more events than this is one line
STYLE = """
body { font: 15px/1.45 system-ui, "Helvetica Neue", Arial, sans-serif; color: #111; max-width: 1100px; margin: 24px auto; padding: 0 20px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 30px 0 6px; border-bottom: 1px solid #bbb; padding-bottom: 3px; }
table { border-collapse: collapse; margin: 8px 0; }
th, td { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 10px 0 4px; } figure img { width: 100%; } figcaption { color: #444; font-size: 13px; }
.held { font-weight: 600; color: #00543d; } .not { font-weight: 600; color: #fff; background: #b84300; padding: 0 6px; }
.hash { font-family: ui-monospace, monospace; font-size: 12px; word-break: break-all; } p.note { color: #444; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
DEFINITIONS = (
    ("suppression", "Share of the load's deviation from its centred 60 s mean that grid import does not show: "
     "1 - mean |grid - its 60 s mean| / mean |load - its 60 s mean|. The first and last 60 s of the judged span are left out."),
    ("spikes smoothed", "Share of load excursions (1 s means more than 10 % of the load's swing off its 60 s mean, shorter than 60 s) "
     "whose image in grid import stays under 15 % of their height."),
    ("band 0.1 to 2 Hz, 2 to 20 Hz", "Power of grid import over power of load in that band, in dB (Welch, Hann, 81.92 s windows). "
     "-20 dB: a tenth of the amplitude."),
    ("peak", "Largest 100 ms mean of grid import."),
    ("largest ramp", "Largest difference of adjacent 1 s means of grid import, sliding by 10 ms."),
    ("over the limit", "Seconds in 100 ms means above the import limit, over the whole judged span."),
    ("ramp not held", "Seconds in which battery or converter were at their end and the reference moved faster than the ramp limit "
     "(the controller's count)."),
    ("load to command", "From an ideal load step to the last bit of the first command that answers at least half of it, by the plant."),
    ("load to power", "From the step until 90 % of that command's change stands at the terminals."),
    ("judged span", "From 5 s after the controller reached GRID to the end. In runs from 185 s on, suppression, spikes, bands, peak and "
     "largest ramp leave out its first and last 60 s; time over the limit never does."),
)  # fmt: skip


def write(directory: Path) -> Path | None:
    """report.html of a run's directory; None and a line where it cannot be made."""
    try:
        from bench import buspicture, pictures, rundata
    except ImportError as e:
        print(f"ballast: no report: {e.name or e} is missing; pip install 'ballast-controller[bench]'", file=sys.stderr)
        return None
    try:
        data = rundata.load(directory)
    except (OSError, RecordError, ValueError, KeyError) as e:
        print(f"ballast: no report: {e}", file=sys.stderr)
        return None
    steps = _step_bins(directory)
    parts = [_head(data), _asked(data), "<h2>Load and grid import</h2>"]
    shade = "" if data.judged_s is None else " Grey: before the judged span."
    a, b = rundata.busiest(data)
    parts += [
        _figure(pictures.overview(data), f"Whole run. Lines are means, bands reach from the smallest to the largest 10 ms value.{shade} "
                f"The bar at the top marks the span of the next picture. Source: {data.source}."),
        _figure(pictures.zoom(data), f"The {b - a:.0f} s in which the load moves most (from {a:.0f} s on), every 10 ms value."),
        "<h2>Battery</h2>",
        _figure(pictures.battery(data), "SoC limits are drawn where they lie in the picture."),
    ]  # fmt: skip
    made = pictures.spectrum(data)
    if made is not None:
        words = f"Welch's method, Hann windows of {made[1]:.0f} s, 10 ms values, judged span."
        parts += ["<h2>Spectrum before and after</h2>", _figure(made[0], words)]
    parts += _latency(data, pictures)
    machine = "How late the control thread woke after each tick, and how long the kernel's step took; both axes logarithmic."
    parts += _optional("<h2>Control thread</h2>", pictures.machine(data, steps), machine)
    planned = "One tick of 10 ms: what is on which wire when, as planned, and in black when it was; below, each wire's share in use."
    parts += ["<h2>Buses</h2>", _figure(buspicture.bus(data), planned), _buses(data), _turnarounds(data)]
    active = "When each limit was active, from the record; `ballast explain TIME` says why."
    parts += _optional("<h2>Active limits</h2>", pictures.limits(data), active)
    parts += [_events(data.summary), _definitions(), _origin(data)]
    text = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>Ballast: {html.escape(data.site.name)}</title><style>{STYLE}</style>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{text}\n</body></html>\n'
    path = directory / REPORT_NAME
    disk.replace(path, page.encode(), 0o644, durable=False)
    return path


def _step_bins(directory: Path) -> list[int] | None:
    try:
        return list(json.loads((directory / ENGINE_NAME).read_text())["step_ns"])
    except (OSError, ValueError, KeyError):
        return None


def _figure(fig: Any, caption: str) -> str:
    from bench.pictures import png

    return f'<figure><img src="{png(fig)}" alt="{html.escape(caption)}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def _optional(title: str, fig: Any, caption: str) -> list[str]:
    return [] if fig is None else [title, _figure(fig, caption)]


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), numbers: Sequence[int] = ()) -> str:
    """Cells are HTML already; `numbers`: columns set flush right."""
    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f'<{tag}{" class=n" if i in numbers else ""}>{c}</{tag}>' for i, c in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    return "<table>" + (line(head, "th") if head else "") + "".join(line(r, "td") for r in rows) + "</table>"


def _head(data: Any) -> str:
    s = data.summary
    kind = "virtual time, virtual cabinet" if s["mode"] == "sim" else "real time" + (", virtual cabinet" if data.site.virtual else "")
    when = f"began {utc_text(data.wall_s)}" if data.wall_s is not None and s["mode"] == "run" else f"seed {s['seed']}"
    text = f"{s['duration_s']:.0f} s in {kind}; {when}; {s['ticks']} ticks of 10 ms"
    return f"<h1>Ballast: site {html.escape(data.site.name)}</h1><p class=note>{html.escape(text)}</p>"


def _asked(data: Any) -> str:
    """What was asked, what was reached, whether it was held."""
    s, plan = data.summary, data.plan
    grid, battery = s["grid"], s["battery"] or {}
    rows = [
        _row("grid import, 100 ms means", f"at most {grid['import_limit_w'] / 1e3:g} kW", _kw(grid["peak_w"]) + _over(grid["over_limit_s"]),
             None if grid["over_limit_s"] is None else grid["over_limit_s"] == 0),
        _row("ramp of grid import, 1 s means", f"at most {grid['ramp_limit_w_per_s'] / 1e3:g} kW/s",
             _num(grid["ramp_max_w_per_s"], 1e-3, "kW/s", 2),
             None if grid["ramp_max_w_per_s"] is None else grid["ramp_max_w_per_s"] <= grid["ramp_limit_w_per_s"]),
        _row("battery inside what the BMS allows", "always", _num(battery.get("over_limit_s"), 1, "s outside", 2),
             None if battery.get("over_limit_s") is None else battery["over_limit_s"] == 0),
        _row("ticks missed", "none", str(s["missed_ticks"]), s["missed_ticks"] == 0),
    ]  # fmt: skip
    for key, words in (("load_to_command_ms", "load to command, p99"), ("load_to_power_ms", "load to power, p99")):
        got = ((s["measured"] or {}).get(key) or {}).get("p99")
        asked = f"plan: {plan[key]['p99']:.2f} ms (+2 %)" + ("; at most 20 ms" if key == "load_to_power_ms" else "")
        bound = min(plan[key]["p99"] * 1.02, 20.0) if key == "load_to_power_ms" else plan[key]["p99"] * 1.02
        reached = "no ideal steps in this load" if got is None else f"{got:.2f} ms"
        rows.append(_row(words, asked, reached, None if got is None else got <= bound))
    figures = [
        ["suppression of the load's swing", _percent(s["suppression"])],
        ["spikes smoothed", f"{_percent(s['spikes_smoothed'])} of {s['spikes']}" if s["spikes"] is not None else "-"],
        ["0.1 to 2 Hz", _num((s["band_db"] or {}).get("0.1-2"), 1, "dB", 1)],
        ["2 to 20 Hz", _num((s["band_db"] or {}).get("2-20"), 1, "dB", 1)],
        ["ramp not held", _num(grid["ramp_not_held_s"], 1, "s", 2)],
        ["battery throughput", _num(battery.get("throughput_wh"), 1e-3, "kWh", 2)],
        ["SoC, start and end", f"{_percent(battery.get('soc_start'))} and {_percent(battery.get('soc_end'))}"],
    ]
    return (
        "<h2>What was asked, and whether it was held</h2>" + _table(rows, ("requirement", "asked", "measured", ""))
        + "<h2>What was reached</h2>" + _table(figures, numbers=(1,))
        + "<p class=note>A dash: the run is shorter than the 185 s that this figure needs. Definitions stand at the end.</p>"
    )  # fmt: skip


def _row(what: str, asked: str, got: str, held: bool | None) -> list[str]:
    verdict = "" if held is None else '<span class="held">held</span>' if held else '<span class="not">NOT HELD</span>'
    return [html.escape(what), html.escape(asked), html.escape(got), verdict]


def _num(x: float | None, factor: float, unit: str, digits: int) -> str:
    return "-" if x is None else f"{x * factor:.{digits}f} {unit}"


def _kw(x: float | None) -> str:
    return _num(x, 1e-3, "kW", 1)


def _over(seconds: float | None) -> str:
    return f", {seconds:.1f} s above" if seconds else ""


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.1f} %"


def _latency(data: Any, pictures: Any) -> list[str]:
    """Measured steps against the plan's curve, and the figures of both."""
    made = build.plan(data.site)
    curves = {"load_to_command_ms": _curve(made.to_command), "load_to_power_ms": _curve(made.to_power)}
    parts = ["<h2>Latency</h2>"]
    n = len(data.power_ms)
    words = f"{n} ideal steps, {data.excluded} left out because the virtual plant itself woke late." if n else (
        "This load has no ideal steps, so the plan's curve stands alone; `--trace steps` measures it.")  # fmt: skip
    parts.append(_figure(pictures.latency(data, curves), f"Share of load steps answered within a time. {words}"))
    rows = []
    for key, label in (("load_to_command_ms", "load to command"), ("load_to_power_ms", "load to power")):
        got = (data.summary["measured"] or {}).get(key) or {}
        plan = data.plan[key]
        pairs = [(plan, q) for q in ("p50", "p99", "max")] + [(got, q) for q in ("p50", "p99", "max")]
        rows.append([label, *("-" if d.get(q) is None else f"{d[q]:.2f}" for d, q in pairs)])
    head = ("in ms", "plan p50", "p99", "max", "measured p50", "p99", "max")
    return [*parts, _table(rows, head, range(1, 7))]


def _curve(latency: Any) -> Any:
    """Share of steps answered within x ms, by the plan."""
    late = [(d, s) for d, s in latency.late]
    in_place = 1.0 - sum(s for _, s in late)

    def share(x: float) -> float:
        y = x - latency.constant_ms
        return float(in_place * latency._below(y) + sum(s * latency._below(y - d) for d, s in late))

    return share


def _buses(data: Any) -> str:
    keys = ("transactions", "timeouts", "crc_errors", "late")
    measured = (data.wires or {}).get("buses", {})
    rows = []
    for name, row in data.summary["buses"].items():
        busy = [data.plan["busy_ms"].get(name), (measured.get(name) or {}).get("busy_ms")]
        rows.append([html.escape(name), *(_num(x, 1, "ms", 2) for x in busy), *(str(row[k]) for k in keys)])
    head = ("bus", "wire in use of a tick, plan", "measured", "transactions", "timeouts", "CRC errors", "late answers")
    return _table(rows, head, range(1, 7))


def _turnarounds(data: Any) -> str:
    """What the plan took for each device's turnaround, what it was, and whether the plan still holds."""
    if data.wires is None:
        return "<p class=note>This run measured no turnarounds.</p>"
    rows = []
    for name, row in data.wires["devices"].items():
        if row["p50_ms"] is not None:
            figures = (row[key] for key in ("planned_ms", "p50_ms", "p99_ms", "max_ms"))
            rows.append([html.escape(f"{name}, turnaround"), *(_num(x, 1, "ms", 1) for x in figures), str(row["answers"])])
    for words, planned, values in (
        ("meter's values at the kernel's step, age", data.wires["planned_meter_age_ms"], data.meter_age_ms),
        ("model and readback of the converter apart", None, data.align_ms),
    ):
        if values is not None and len(values):
            p50, p99, most = (float(x) for x in np.percentile(values, (50, 99, 100)))
            rows.append([words, *(_num(x, 1, "ms", 2) for x in (planned, p50, p99, most)), str(len(values))])
    said = "".join(f'<p><span class="not">NOT AS PLANNED</span> {html.escape(text)}</p>' for text in wires.warnings(data.wires, data.site))
    return _table(rows, ("", "plan", "measured p50", "p99", "max", "of"), range(1, 6)) + said


def _events(summary: Mapping[str, Any]) -> str:
    events = sorted(summary["events"], key=lambda e: float(e["t_s"]))
    times = Counter(_limit(e) for e in events)
    often = {name: n for name, n in times.items() if name and n > OFTEN}
    shown = [e for e in events if _limit(e) not in often]
    rows = [[f"{e['t_s']:.2f}", html.escape(e["kind"]), html.escape(e["text"])] for e in shown[:MAX_EVENTS]]
    notes = [f"Limit {name} came and went {(n + 1) // 2} times: see the picture above." for name, n in often.items()]
    if len(shown) > MAX_EVENTS:
        notes.append(f"The first {MAX_EVENTS} of {len(shown)}.")
    notes.append("All events stand in summary.json.")
    return "<h2>Events</h2>" + _table(rows, ("t / s", "kind", "what"), (0,)) + f"<p class=note>{html.escape(' '.join(notes))}</p>"


def _limit(event: Mapping[str, Any]) -> str:
    """Name of the limit that an event is about; empty for others."""
    return str(event["text"]).split()[0] if event["kind"] == "limit" else ""


def _definitions() -> str:
    return "<h2>Definitions</h2>" + _table([[html.escape(a), html.escape(b)] for a, b in DEFINITIONS])


def _origin(data: Any) -> str:
    """From which bytes and programs this page came."""
    packages = []
    for name in ("ballast-controller", "numpy", "scipy", "matplotlib"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"{name} not installed")
    record, told = data.directory / RECORD_NAME, data.summary["record_sha256"]
    rows = [
        ["settings, sha256", f"<span class=hash>{data.site.settings_hash()}</span>"],
        ["record, sha256", f"<span class=hash>{told or '-'}</span>{_same(record, told)}"],
        ["recorded by", html.escape(data.builds or "-")],
        ["versions", html.escape(f"{', '.join(packages)}, Python {platform.python_version()}, image layout {core.LAYOUT:#x}")],
        ["machine", html.escape(f"{platform.system()} {platform.release()} {platform.machine()}")],
        ["check it", "<code>ballast replay DIR</code> runs the kernel over the record again and compares every bit of every output"],
    ]
    return "<h2>Where this page comes from</h2>" + _table(rows)


def _same(record: Path, expected: str | None) -> str:
    if not expected or not record.exists():
        return ""
    return " (checked against the file)" if file_sha256(record) == expected else ' <span class="not">the file has another one</span>'


def main(argv: list[str] | None = None) -> int:
    """Command line; exit 1 where no page could be made."""
    parser = argparse.ArgumentParser(prog="ballast report", description="write report.html for a run's directory")
    parser.add_argument("directory", type=Path, metavar="DIR")
    path = write(parser.parse_args(argv).directory)
    if path is None:
        return 1
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["Site", "main", "write"]
