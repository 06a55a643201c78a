"""`ballast shelves`: what stands beside the tick, and writing what the site allows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from controller.process import EXIT_FAILED, EXIT_INPUT, EXIT_OK


def add_parser(commands: Any) -> None:
    """The command and its options."""
    one = commands.add_parser("shelves", help="power shelves, backup units and pumps beside the tick")
    one.add_argument("device", nargs="?", metavar="DEVICE", help="one device, every item of it (such as rack1.200)")
    one.add_argument("--write", metavar="ITEM=VALUE", help="write what [[shelf]] allow names, read it back")
    one.add_argument("--json", action="store_true")
    one.add_argument("--site", metavar="NAME", help="which site, where several run here")


def main(args: argparse.Namespace) -> int:
    """`ballast shelves [DEVICE [--write ITEM=VALUE]]`. Raises InstanceError, SiteError."""
    from controller.build import site_from
    from controller.clock import RealClock
    from controller.instance import find
    from controller.operate import author
    from controller.problems import Problem, SiteError
    from controller.shelves import view

    running = find(args.site)
    directory = Path(running.directory)
    site = site_from(directory / "site.json")
    clock = RealClock()
    if not site.shelves:
        print(f"site {site.name} has no [[shelf]]")
        return EXIT_OK
    seen = view.look(directory, site)
    if seen.problem:
        print(f"ballast: {seen.problem}; `ballast status` says what runs", file=sys.stderr)
        return EXIT_FAILED
    if args.device is None:
        if args.write is not None:
            raise SiteError([Problem("", "--write", args.write, "to which device?", "ballast shelves DEVICE --write ITEM=VALUE")])
        _print(args.json, lambda: view.as_json(seen, clock.monotonic_ns()), view.overview(seen, clock.monotonic_ns()))
        return EXIT_OK
    if args.device not in seen.names:
        raise SiteError([Problem("", "DEVICE", args.device, "is no device beside the tick", view.near(args.device, seen))])
    if args.write is None:
        _print(args.json, lambda: seen.items.get(args.device, {}), view.device(seen, args.device, clock.monotonic_ns()))
        return EXIT_OK
    got = view.write(running, clock, author(), args.device, args.write)
    print(got.text, file=sys.stdout if got.ok else sys.stderr)
    return EXIT_OK if got.ok else EXIT_INPUT if got.refused else EXIT_FAILED


def _print(as_json: bool, data: Any, lines: Iterable[str]) -> None:
    print(json.dumps(data(), indent=2) if as_json else "\n".join(lines))

