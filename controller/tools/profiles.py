"""`ballast profile test` and `ballast profile new`."""

from __future__ import annotations

import argparse
from pathlib import Path

from controller.problems import Problem, SiteError
from controller.process import EXIT_FAILED, EXIT_OK
from hal import frames
from hal.canprofile import ROLES as CAN_ROLES
from hal.profile import NEEDED, list_profiles, load_profile
from hal.rows import ROLE_SIGNALS, pack

_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


def main(args: argparse.Namespace) -> int:
    """Runs one of them. Raises hal.profile.ProfileError, SiteError."""
    if args.action == "new":
        return new(Path.cwd(), args.name, args.role, args.can)
    return test(args.file, args.frames)


def test(profile: str, path: Path | None) -> int:
    """One line a value; 1 where one differs, or where something of the profile has no row."""
    device = load_profile(profile)
    path = path or frames.frame_file(profile)
    results = frames.check(device, frames.load_frames(path))
    wide = max(len(r.row.name) for r in results)
    for r in results:
        line = f"{'ok   ' if r.ok else 'WRONG'}  {r.row.place:<10}  {r.row.name:<{wide}}  {r.got}"
        print(line if r.ok else f"{line}; expected {r.row.value} (line {r.row.line}: {r.row.data.hex(' ').upper()}: {r.row.working})")
    wrong = sum(not r.ok for r in results)
    missing = frames.untested(device, [r.row for r in results])
    for name in missing:
        print(f"no row  {name}: nothing says what it should be; add one to {path}")
    for read in pack(device, device.max_registers):
        # A hole that a read spans is answered with exception 2 by many devices: gap_registers of the head keeps reads out of it.
        print(f"reads  {read.fc}@{read.addr:<8}  {read.count} registers for {', '.join(f.signal for f in read.fields)}")
    print(f"{device.name}, {device.role}: {len(results)} values, {wrong} wrong, {len(missing)} without a row")
    return EXIT_FAILED if wrong or missing else EXIT_OK


# ---------------------------------------------------------------- a new one


def new(directory: Path, name: str, role: str, can: bool) -> int:
    """Both files, begun: they pass `profile test` as they are, with one value each. Raises SiteError; overwrites nothing."""
    problems = []
    if not name or set(name) - _NAME or len(name) > 40:
        problems.append(Problem("", "NAME", name, "is no name of a profile", "a-z, 0-9 and _, at most 40: vendor_model"))
    roles = CAN_ROLES if can else tuple(ROLE_SIGNALS)
    if role not in roles:
        problems.append(Problem("", "--role", role, "is no role" + (" on CAN" if can else ""), "one of " + ", ".join(roles)))
    if name in list_profiles():
        problems.append(Problem("", "NAME", name, "comes with Ballast already", f"look at it: `ballast profile test {name}`"))
    files = (directory / f"{name}.toml", directory / f"{name}{frames.SUFFIX}")
    problems += [Problem(str(f), "", None, "exists", "another name, or another directory") for f in files if f.exists()]
    if problems:
        raise SiteError(problems)
    texts = _can_texts(name, role) if can else _modbus_texts(name, role)
    for file, text in zip(files, texts, strict=True):
        try:
            with open(file, "x", encoding="utf-8") as out:
                out.write(text)
        except OSError as e:
            raise SiteError([Problem(str(file), "", None, f"cannot be written: {e.strerror}", "another directory")]) from None
        print(f"wrote {file}")
    print(f"next: fill both from the manual, then `ballast profile test {files[0].name}`")
    return EXIT_OK


def _first(role: str) -> str:
    """The signal that a profile of the role begins with."""
    return next(s for s in ROLE_SIGNALS[role] if s in NEEDED)


_ABOUT = """\
# VENDOR MODEL. Source: TITLE of the document, number, revision, page. Say what is not in it, and was guessed.
# Signals of a {role}: {signals}
# Signs of the contract: grid import +, battery discharge +, q_var injection +, PV and genset production +. SI: W, var, V, A, Hz, 0..1.
name = "{name}"
role = "{role}"
"""

_MODBUS = """\
# How the device measures. The bus plan rests on it: too good is worse than too bad.
window_ms = 200.0           # averaging window of a value; 0: instantaneous
update_ms = 200.0           # how often a value is refreshed; 0: at every request
turnaround_ms = 10.0        # from the request to the answer's first bit
gap_registers = 8           # a read may span so many registers that no row needs; 0 where the device refuses holes
# max_registers = 32        # of one read, where the manual allows fewer than 125

[defaults]                  # for all rows below
type = "f32"                # u16 i16 u32 i32 f32 u64 i64
fc = 3                      # 3 holding registers, 4 input registers
group = "fast"              # fast: in each tick; slow: in turns; second: once a second
# word_order = "little"     # low word first

[[read]]                    # one a value
signal = "{first}"
address = 0                 # counted from 0; manuals that begin with 1, 30001 or 40001 mean one less
# type = "i32"
# scale = 0.1               # value = sign * (raw * scale + offset); 1000.0 where the manual says kW
# sign = -1                 # where the device counts the other way round
# nan = [0x80000000]        # raw values that mean "not there"
# range = [-1e6, 1e6]       # outside: not believed

# [[identity]]              # registers that hold the model's name or code: another device is refused, and `ballast scan` knows this one
# name = "model"
# address = 49
# words = [0x6945, 0x4D33]

"""

_WRITE = """\
# [[write]]                 # a setpoint; see hal/profiles/generic_pcs.toml
# purpose = "command"
# fc = 16
# cyclic_write = "ok"       # only where the manual says that it lives in RAM: flash lasts 17 minutes at 100 writes a second
# registers = [{ address = 200, type = "i16", source = "p_cmd_w", scale = 100.0 }]
"""

_CAN = """\
transport = "can"
byte_order = "little"       # little: Intel, big: Motorola
lost_ms = 3000.0            # a frame older than this is no permission any more

[[frame]]                   # one an identifier; see docs/can.md
id = 0x100
period_ms = 1000.0          # how often the device sends it
length = 2                  # payload bytes at least
signals = [
    { signal = "FIRST", start = 0, length = 16, scale = 1.0 },     # start: the DBC's start bit
]
"""

_FRAMES = """\
# What {name}.toml must make of bytes from the device or its manual. Columns are separated by tabs:
# place    {place}
# data     the bytes there in hex, as on the wire (`ballast sniff` and `ballast probe` print them so)
# name     a signal; {names}
# value    SI, the contract's sign; - where the device has none
# working  the arithmetic, by hand: not what this program made of it
# source   document and page, or the capture
"""


def _modbus_texts(name: str, role: str) -> tuple[str, str]:
    first, row = _first(role), "3@0\t{data}\t{first}\t{value}\t{working}\texample: replace it by a line of the manual or a capture\n"
    soc = first in ("soc", "bms_state")
    example = row.format(
        data="3F 00 00 00" if soc else "45 9C 40 00",
        first=first,
        value="0.5" if soc else "5000",
        working="f32: 2**-1 * 1" if soc else "f32: 2**12 * 1.220703125",
    )
    profile = _ABOUT.format(name=name, role=role, signals=", ".join(ROLE_SIGNALS[role])) + _MODBUS.format(first=first)
    place = "function@register of the first byte: 3@19000, 4@0x34; a write: 16@200"
    names = "the name of an [[identity]] row (value: same or other); the purpose of a [[write]]"
    head = _FRAMES.format(name=name, place=place, names=names)
    return profile + (_WRITE if role == "pcs" else ""), head + "\t".join(frames.COLUMNS) + "\n" + example


def _can_texts(name: str, role: str) -> tuple[str, str]:
    first = _first(role)
    profile = _ABOUT.format(name=name, role=role, signals=", ".join(ROLE_SIGNALS[role])) + _CAN.replace("FIRST", first)
    names = "permit:SIGNAL (value: given or withheld); the purpose of a [[transmit]]"
    head = _FRAMES.format(name=name, place="the identifier, 0x100", names=names)
    row = f"0x100\t01 00\t{first}\t1\tlittle-endian 0001 = 1\texample: replace it by a line of the manual or a capture\n"
    return profile, head + "\t".join(frames.COLUMNS) + "\n" + row
