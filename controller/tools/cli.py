"""Arguments of `ballast scan`, `probe`, `sniff` and `profile`, and which module does the work."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from controller.problems import Problem, SiteError

COMMANDS = ("profile",)


def add_parsers(commands: Any) -> None:
    """Their arguments."""
    _profile_parser(commands)


def _profile_parser(commands: Any) -> None:
    profile = commands.add_parser("profile", help="start a device's profile, and prove it against recorded bytes")
    actions = profile.add_subparsers(dest="action", required=True, metavar="ACTION")
    test = actions.add_parser("test", help="runs a profile against its frame file; exit code 1 where a value differs or is not tested")
    test.add_argument("file", metavar="FILE", help="path of a profile, or the name of one that comes with Ballast")
    test.add_argument("frames", nargs="?", type=Path, metavar="FRAMES", help="default: NAME.frames.tsv beside the profile")
    new = actions.add_parser("new", help="starts NAME.toml and NAME.frames.tsv in this directory, with comments")
    new.add_argument("name", metavar="NAME", help="such as schneider_iem3255: a-z, 0-9 and _")
    new.add_argument("--role", default="meter", metavar="ROLE", help="meter, bms, pcs, pv or genset (default meter)")
    new.add_argument("--can", action="store_true", help="a device on CAN (bms or pcs)")


def main(args: argparse.Namespace) -> int:
    """Runs one of them; returns its exit code. Raises SiteError, InstanceError."""
    from hal.profile import ProfileError

    try:
        from controller.tools import profiles

        return profiles.main(args)
    except ProfileError as e:
        raise SiteError([Problem(p.file, p.key, p.value, p.why, p.remedy) for p in e.problems]) from None
