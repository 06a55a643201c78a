"""The commands that read records: `replay`, `explain`, `export`, `report`, and `freeze`, which asks for one."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from controller.process import EXIT_FAILED, EXIT_INPUT, EXIT_OK

COMMANDS = ("replay", "explain", "export", "report", "freeze")


def add_parsers(commands: Any) -> None:
    """Their arguments."""
    replay = commands.add_parser("replay", help="run the kernel over a record again (exit code 0: every bit as recorded, 1: not)")
    replay.add_argument("record", type=Path, metavar="RECORD_OR_DIR")
    _span(replay)
    replay.add_argument("--tick", type=int, metavar="N", help="take one tick apart")
    explain = commands.add_parser("explain", help="why power was what it was at a time, in sentences")
    explain.add_argument("time", metavar="TIME", help="seconds from the record's start, or a UTC date and time; of a running site: -S, now")
    explain.add_argument("record", nargs="?", type=Path, metavar="RECORD_OR_DIR", help="default: the last 60 s of the running site")
    explain.add_argument("--site", metavar="NAME", help="which site, where several run here")
    export = commands.add_parser("export", help="a record as COMTRADE, CSV or Parquet")
    export.add_argument("record", type=Path, metavar="RECORD_OR_DIR")
    export.add_argument("--format", choices=("comtrade", "csv", "parquet"), default="comtrade")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the record's name with the format's ending")
    export.add_argument("--signals", metavar="A,B,…", help="names or patterns (out.*, v1_v, limit_*); default: the usual ones")
    export.add_argument("--every", type=int, default=1, metavar="N", help="every N-th tick; a status is 1 where it was 1 in between")
    export.add_argument("--list", action="store_true", help="print all signals with their units")
    _span(export)
    report = commands.add_parser("report", help="write report.html for a run's directory")
    report.add_argument("directory", type=Path, metavar="DIR")
    freeze = commands.add_parser("freeze", help="keep the last 60 s and the next 10 s of the running site at full rate")
    freeze.add_argument("--site", metavar="NAME", help="which site, where several run here")


def _span(parser: argparse.ArgumentParser) -> None:
    words = "seconds from the record's start, or a UTC date and time"
    parser.add_argument("--from", dest="from_t", metavar="TIME", help=words)
    parser.add_argument("--to", dest="to_t", metavar="TIME", help=words)


def main(args: argparse.Namespace) -> int:
    """Runs one of them; exit code 2 and a line where the record or the arguments cannot be used."""
    from controller.export import ExportError
    from controller.records import RecordError
    from controller.signals import SignalError

    run = {"replay": _replay, "explain": _explain, "export": _export, "report": _report, "freeze": _freeze}[args.command]
    try:
        return run(args)
    except (RecordError, SignalError, ExportError) as e:
        print(f"ballast: {e}", file=sys.stderr)
        return EXIT_INPUT
    except BrokenPipeError:  # `ballast replay --tick 5 | head`
        sys.stdout = None
        return EXIT_OK


def _times(args: argparse.Namespace, recording: Any) -> tuple[float | None, float | None]:
    return tuple(None if t is None else _time(t, recording) for t in (args.from_t, args.to_t))  # type: ignore[return-value]


def _time(text: str, recording: Any) -> float:
    from controller.records import RecordError

    try:
        return float(recording.seconds(text))
    except ValueError:
        raise RecordError(f"{text!r} is no time: seconds from the record's start, or 2026-01-31T12:00:00 (UTC)") from None


def _replay(args: argparse.Namespace) -> int:
    from controller import explain, replay
    from controller.recording import Recording, nested
    from controller.records import RecordError

    recording = Recording(args.record)
    if args.tick is not None:
        rows = recording.rows()
        hits = (rows["tick"] == args.tick).nonzero()[0]
        if not len(hits):
            raise RecordError(f"{recording.path}: holds no tick {args.tick}; it has {rows['tick'][0]} to {rows['tick'][-1]}")
        for hit in hits:  # more than one where control was started again
            row = nested(rows[hit])
            t_ns = row["inp"]["t_ns"]
            print("\n".join(explain.taken_apart(row, recording.t_s(t_ns), recording.wall_s(t_ns))))
            at_s = recording.t_s(t_ns)
            got = replay.Replay(recording).run(at_s, at_s)
            print("replayed: " + ("every bit of the outputs as recorded" if got.equal else replay.text(got)[-1]))
        return EXIT_OK
    result = replay.Replay(recording).run(*_times(args, recording))
    print("\n".join(replay.text(result)))
    return EXIT_OK if result.equal else EXIT_FAILED


def _explain(args: argparse.Namespace) -> int:
    import numpy as np

    from controller import explain
    from controller.recording import Recording, nested

    if args.record is None:
        return _explain_running(args)
    recording = Recording(args.record)
    at_s = _time(args.time, recording)
    rows = recording.rows(at_s - 1.0, at_s + 1.0)
    t_s = (rows["inp"]["t_ns"] - recording.t0_ns) / 1e9
    row = nested(rows[int(np.argmin(np.abs(t_s - at_s)))])
    t_ns = row["inp"]["t_ns"]
    print("\n".join(explain.sentences(row, recording.t_s(t_ns), recording.wall_s(t_ns))))
    return EXIT_OK


def _explain_running(args: argparse.Namespace) -> int:
    """From the ring of the running site; "now", seconds ago as -S, or a UTC date and time."""
    import numpy as np

    from _core import image as core
    from controller import explain
    from controller.clock import RealClock, parse_utc
    from controller.instance import find, open_image
    from controller.recording import nested
    from controller.records import RecordError

    image, clock = open_image(find(args.site), writable=False), RealClock()
    rows = np.frombuffer(image.drain(0)[0], core.record_dtype())
    now_ns, wall_s = clock.monotonic_ns(), clock.wall_s()
    try:
        ago_s = 0.0 if args.time == "now" else -float(args.time)
    except ValueError:
        try:
            ago_s = wall_s - parse_utc(args.time)
        except ValueError:
            raise RecordError(f"{args.time!r} is no time: now, -12.5 (seconds ago), or 2026-01-31T12:00:00 (UTC)") from None
    t_ns = rows["inp"]["t_ns"]
    wanted = now_ns - round(ago_s * 1e9)
    if not len(rows) or not int(t_ns[0]) - 10**9 <= wanted <= now_ns:
        raise RecordError("the running site keeps the last 60 s in memory; for what lies before, name a record")
    row = nested(rows[int(np.argmin(np.abs(t_ns - wanted)))])
    at_ns = row["inp"]["t_ns"]
    print("\n".join(explain.sentences(row, None, wall_s - (now_ns - at_ns) / 1e9)))
    return EXIT_OK


def _export(args: argparse.Namespace) -> int:
    from controller import export, signals
    from controller.recording import Recording

    if args.list:
        for s in signals.known():
            print(f"{s.name:<36} {'status' if s.status else s.unit:<8} {s.words}".rstrip())
        return EXIT_OK
    if args.every < 1:
        raise export.ExportError(f"--every {args.every}: write 1 or more")
    recording = Recording(args.record)
    chosen = signals.select([w for w in (args.signals or "").split(",") if w])
    rows = recording.rows(*_times(args, recording))
    site = recording.first.site
    station = _station(recording.path)
    wall_s = recording.wall_s(int(rows["inp"]["t_ns"][0]))
    data = export.table(rows, chosen, station=station, wall_s=wall_s, f_hz=site["f_nom_hz"], every=args.every)
    ending = {"comtrade": ".cfg"}.get(args.format, f".{args.format}")
    path = args.output or recording.path.with_suffix(ending)
    try:
        written = export.FORMATS[args.format](data, path)
    except OSError as e:
        raise export.ExportError(f"{e.filename or path}: {e.strerror}") from None
    print(f"wrote {' and '.join(map(str, written))}: {len(data.ticks)} rows, {len(chosen)} signals")
    return EXIT_OK


def _station(record: Path) -> str:
    """The site's name, where site.json stands beside the record."""
    import json

    try:
        return str(json.loads(record.with_name("site.json").read_text())["values"]["site.name"])
    except (OSError, ValueError, KeyError, TypeError):
        return record.stem


def _report(args: argparse.Namespace) -> int:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bench.report", str(args.directory)])


def _freeze(args: argparse.Namespace) -> int:
    from controller import operate
    from controller.instance import find

    print(operate.freeze(find(args.site)))
    return EXIT_OK
