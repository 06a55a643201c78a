"""`ballast test [STEP] [--list] [--report]`: the guide in a local terminal."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controller.process import EXIT_FAILED, EXIT_INPUT, EXIT_OK

INTERRUPTED = 130
ENDING = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


@contextlib.contextmanager
def ended_once() -> Iterator[None]:
    """Ctrl-C, a closed ssh and SIGTERM end alike: with Interrupted, once. Whatever comes after it is ignored, so that it
    cannot cut the release short.
    """
    from controller.commission.talk import Interrupted

    ended = False

    def end(signum: int, _: object) -> None:
        nonlocal ended
        if not ended:
            ended = True
            raise Interrupted(signal.Signals(signum).name)

    before = {signum: signal.signal(signum, end) for signum in ENDING}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def add_parser(commands: Any) -> None:
    """Its arguments."""
    test = commands.add_parser("test", help="guided commissioning: one question at a time, ends in a signed report")
    test.add_argument("step", nargs="?", metavar="STEP", help="that step alone, again (see --list)")
    test.add_argument("--list", action="store_true", help="the steps and how they stand")
    test.add_argument("--report", action="store_true", help="write the report as it stands")
    test.add_argument("--site", metavar="NAME", help="which site, where several run here")


def main(args: argparse.Namespace, ask_desk: Any = None) -> int:
    """Runs it against the running instance. Exit code 0: passed, 1: not, 2: no such step, 130: interrupted."""
    from controller.build import site_from
    from controller.clock import RealClock
    from controller.commission import guide
    from controller.commission.results import Results
    from controller.commission.rig import Rig
    from controller.commission.talk import Interrupted, Terminal
    from controller.control import remembered
    from controller.instance import find, open_image

    if args.step is not None and args.step not in (*guide.NAMES, guide.SIGN_OFF):
        print(f"ballast: no step {args.step!r}; there are {', '.join((*guide.NAMES, guide.SIGN_OFF))}", file=sys.stderr)
        return EXIT_INPUT
    running = find(args.site)
    directory = Path(running.directory)
    site = site_from(directory / "site.json")
    talk = Terminal()
    image = open_image(running, writable=not (args.list or args.report))
    rig = Rig(running, image, site, remembered(directory, site) or [], RealClock(), talk, ask_desk=ask_desk)

    with ended_once():
        try:
            results = Results.of(site.name)
            if results.note:
                print(f"ballast: {results.note}", file=sys.stderr)
            if args.list:
                guide.overview(rig, results, talk)
                return EXIT_OK
            if args.report:
                print(guide.write_report(rig, results))
                return EXIT_OK
            return EXIT_OK if guide.run(rig, results, talk, args.step) else EXIT_FAILED
        except (Interrupted, KeyboardInterrupt):
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"\nballast: stopped; {rig.parting()}; `ballast test` goes on from here", file=sys.stderr)
            return INTERRUPTED
        except OSError as e:
            print(f"ballast: {e.filename or 'results'}: {e.strerror or e}", file=sys.stderr)
            return EXIT_FAILED
