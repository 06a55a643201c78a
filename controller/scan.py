"""The short-lived child that compiles the devices: asks SunSpec devices for their models, loads profiles, and hands
the maps to control.

It inherits the open, locked ports, so nobody can slip in between; pysunspec2's model files are loaded here and end
with this process. stdout: the list of DeviceMap, pickled. Exit code 1: a device does not answer (try again); 2: a
device or profile that cannot be used.
"""

from __future__ import annotations

import argparse
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from controller import build
from controller.problems import SiteError
from controller.process import EXIT_FAILED, EXIT_INPUT, EXIT_OK, die_with_parent

TRIES = 3


def patient(ask: Callable[[int, int, int, int], list[int]]) -> Callable[[int, int, int, int], list[int]]:
    """The same read, tried three times where nobody answers: one lost frame is no reason to wait for the whole scan again."""

    def read(unit: int, function: int, address: int, count: int) -> list[int]:
        from hal.wire import NoAnswer

        for _ in range(TRIES - 1):
            try:
                return ask(unit, function, address, count)
            except NoAnswer as e:
                if e.exception:
                    raise
        return ask(unit, function, address, count)

    return read


def main(argv: list[str] | None = None) -> int:
    """Entry point of the child."""
    parser = argparse.ArgumentParser(prog="ballast-scan")
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--fds", required=True)
    parser.add_argument("--parent", type=int)
    args = parser.parse_args(argv)
    if args.parent:
        die_with_parent(args.parent, signal.SIGKILL)  # it holds the locked ports: the next control needs them
    site = build.site_from(args.directory / "site.json")
    asks = {b.name: patient(build.blocking_line(b, int(fd))) for b, fd in zip(site.buses, args.fds.split(","), strict=True)}
    from hal.sunspec import SunSpecError

    try:
        maps = build.device_maps(site, lambda bus: asks[bus.name])
    except (SiteError, SunSpecError) as e:
        # A dead device and a wrong one both end in SunSpecError where the search for "SunS" swallowed the silence.
        print(e, file=sys.stderr)
        return EXIT_FAILED if "no answer" in str(e) else EXIT_INPUT
    except (OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return EXIT_FAILED
    sys.stdout.buffer.write(pickle.dumps(maps))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
