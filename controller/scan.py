"""The short-lived child that compiles the devices: asks SunSpec devices for their models, loads profiles, and hands
the maps to control.

It inherits the open, locked ports, so nobody can slip in between; pysunspec2's model files are loaded here and end
with this process. stdout: the list of DeviceMap, pickled. Exit code 1: a device does not answer (try again); 2: a
device or profile that cannot be used.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path

from controller import build
from controller.problems import SiteError
from controller.process import EXIT_FAILED, EXIT_INPUT, EXIT_OK
from controller.site import Bus
from hal.sunspec import SunSpecError
from hal.wire import BlockingLine, NoAnswer

TRIES = 3
ANSWER_S = 0.25  # a slow device's turnaround; a good one answers in a few ms


def asker(fd: int, bus: Bus) -> build.Transact:
    """Reads of one bus, each tried three times. Raises NoAnswer."""
    line = BlockingLine(fd, bus.baud, 9 + (bus.parity != "N") + bus.stop_bits, timeout_s=ANSWER_S)

    def ask(unit: int, function: int, address: int, count: int) -> list[int]:
        for left in reversed(range(TRIES)):
            try:
                return line(unit, function, address, count)
            except NoAnswer as e:
                if not left or e.exception:  # an exception is an answer
                    raise NoAnswer(f"bus {bus.name}, {e}", e.result, e.exception) from None
        raise AssertionError("unreachable")

    return ask


def main(argv: list[str] | None = None) -> int:
    """Entry point of the child."""
    parser = argparse.ArgumentParser(prog="ballast-scan")
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--fds", required=True)
    args = parser.parse_args(argv)
    site = build.site_from(args.directory / "site.json")
    asks = {bus.name: asker(int(fd), bus) for bus, fd in zip(site.buses, args.fds.split(","), strict=True)}
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
