"""Arguments of `ballast scan`, `probe`, `sniff` and `profile`, and which module does the work."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from controller.problems import Problem, SiteError
from controller.process import EXIT_BUSY, EXIT_OK
from hal.rows import TYPE_WORDS

COMMANDS = ("scan", "probe", "sniff", "profile")


def add_parsers(commands: Any) -> None:
    """Their arguments."""
    _scan_parser(commands)
    _probe_parser(commands)
    _sniff_parser(commands)
    _profile_parser(commands)


def _scan_parser(commands: Any) -> None:
    scan = commands.add_parser(
        "scan", help="find what answers on serial lines, Modbus TCP servers and CAN buses; draft a site file from it"
    )
    scan.add_argument("ports", nargs="*", metavar="PORT|HOST|CAN", help="serial ports, HOST[:PORT], can:IFACE, slcan:TTY; all at once")
    scan.add_argument("--write", type=Path, metavar="FILE", help="a draft of the site file; one that exists is not overwritten")
    scan.add_argument("--for", dest="for_s", type=float, default=60.0, metavar="S", help="at most so long (default 60)")
    scan.add_argument("--units", default="1-255", metavar="A-B", help="addresses to ask (default 1-255)")
    scan.add_argument("--baud", type=int, metavar="N", help="serial lines: this speed alone")
    scan.add_argument("--parity", choices=("E", "O", "N"), help="serial lines: this parity alone")
    scan.add_argument("--json", action="store_true")


def _probe_parser(commands: Any) -> None:
    probe = commands.add_parser(
        "probe", help="read and decode a device of a site, or any device by its port; write a register as an engineer"
    )
    probe.add_argument("device", nargs="?", metavar="DEVICE", help="its name in the site; with --port or --host: left out")
    probe.add_argument("register", nargs="?", metavar="REGISTER", help="19000, 3@19000, 4@0x34, grid_p_w, 701.W; default: all")
    _site_options(probe)
    probe.add_argument("--port", metavar="TTY", help="without a site: this serial port (or can:IFACE, slcan:TTY)")
    probe.add_argument("--host", metavar="HOST[:PORT]", help="without a site: this Modbus TCP server")
    probe.add_argument("--unit", type=int, metavar="N", help="without a site: the device's address")
    probe.add_argument("--profile", metavar="P", help="without a site: a profile's name or path; default: SunSpec")
    _line_options(probe)
    probe.add_argument("--fc", type=int, default=3, choices=(3, 4), help="function for a bare register (default 3)")
    probe.add_argument("--count", type=int, metavar="N", help="so many registers from there")
    probe.add_argument("--type", choices=tuple(TYPE_WORDS), help="what bare registers hold; default: shown as several types")
    probe.add_argument("--word-order", default="big", choices=("big", "little"), help="of bare registers with --type (default big)")
    probe.add_argument("--write", metavar="VALUE", help="write it to REGISTER; asks for an engineer's name and password")
    probe.add_argument("--single", action="store_true", help="write with function 06 instead of 16")
    probe.add_argument("--json", action="store_true")


def _sniff_parser(commands: Any) -> None:
    sniff = commands.add_parser("sniff", help="listen to a Modbus RTU line or a CAN bus, decode what is said, send nothing")
    sniff.add_argument("port", metavar="PORT", help="a serial port, can:IFACE or slcan:TTY")
    _site_options(sniff)
    _line_options(sniff)
    sniff.add_argument("--profile", action="append", default=[], metavar="[UNIT=]P", help="decode by this profile; may be repeated")
    sniff.add_argument("--dbc", metavar="FILE", help="CAN: decode by this DBC file")
    sniff.add_argument("--join", action="store_true", help="slcan: acknowledge frames too, where we are the only other node")
    sniff.add_argument("--for", dest="for_s", type=float, metavar="S", help="end after so long (default: Ctrl-C)")
    sniff.add_argument("--json", action="store_true", help="one JSON object a line")


def _site_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", metavar="SITE.toml", help="the site file that names devices, ports and profiles")
    parser.add_argument("--site", metavar="NAME", help="the running site, where several run here; with --write: whose accounts")


def _line_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baud", type=int, metavar="N", help="speed of a serial line (default 19200)")
    parser.add_argument("--parity", default="E", choices=("E", "O", "N"), help="of a serial line (default E)")
    parser.add_argument("--stop-bits", type=int, default=1, choices=(1, 2), help="of a serial line (default 1)")
    parser.add_argument("--bitrate", type=int, metavar="N", help="of an slcan adapter's bus (default 500000)")


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


def take(args: argparse.Namespace, rest: list[str]) -> bool:
    """Takes words behind an option (`probe pcs --file SITE.toml 701.W`), which argparse gives to nobody; False: they are none of ours."""
    if any(word.startswith("-") for word in rest):
        return False
    if args.command == "scan":
        args.ports += rest
        return True
    if args.command == "probe" and args.register is None and len(rest) == 1 + (args.device is None):
        args.device, args.register = ([args.device] if args.device is not None else []) + rest
        return True
    return False


def main(args: argparse.Namespace) -> int:
    """Runs one of them; returns its exit code. Raises SiteError, InstanceError."""
    from importlib import import_module

    from hal.profile import ProfileError

    name = {"profile": "profiles"}.get(args.command, args.command)
    from controller.tools.ports import Busy

    try:
        return int(import_module(f"controller.tools.{name}").main(args))
    except ProfileError as e:
        raise SiteError([Problem(p.file, p.key, p.value, p.why, p.remedy) for p in e.problems]) from None
    except Busy as e:
        print(e, file=sys.stderr)
        return EXIT_BUSY
    except BrokenPipeError:  # the reader of our output has gone: `ballast sniff ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return EXIT_OK
