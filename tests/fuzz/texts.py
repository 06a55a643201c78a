"""What a person or a vendor hands over as a file: DBC, profile, site. Each is taken, or refused by its own error with a reason; what
is taken is then used: its rows decode and encode, its settings lie in their ranges and come back from a file that was edited.
"""

from __future__ import annotations

import functools
import json
import math
import struct
import tomllib
from pathlib import Path

from hal.can import decode_signal, encode_signal
from hal.canscan import CanScan
from hal.codec import decode_words, encode_words
from hal.scan import BusScan
from hal.scanbench import ScanBench

from controller import site as sites
from controller import sitefile
from controller.problems import SiteError
from controller.settings import SETTINGS
from hal import canprofile
from hal.candbc import DbcError, DbcMessage, load_dbc, parse_dbc
from hal.canplan import CanSpec, plan_can
from hal.canrows import CanMap, Signal
from hal.plan import BusSpec, PlanError, plan_site
from hal.plantypes import DeviceSpec, PlanProblem
from hal.profile import PROFILE_DIR, ProfileError, parse_profile
from hal.rows import DeviceMap
from hal.shelf import parse_shelf
from tests.fuzz.image import check_value

PAYLOADS = (bytes(8), b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7), struct.pack("<d", 1e308), struct.pack(">d", 1e308))
WORDS = (0, 0xFFFF, 0x7FFF, 0x8000, 0x7F80)
CHANGES = (("grid.import_limit_w", 400e3), ("battery.soc_target", 0.6), ("bus.a.baud", 115200))
VALUES = (0.0, 1e300, -1e300, 123.456, -1.0, math.nan, math.inf)


@functools.cache
def _shipped(path: Path) -> dict[str, DbcMessage]:
    return load_dbc(path)


# The profiles of the corpus name one DBC; it is read once. Whatever else is loaded in this process is read as it stands.
canprofile.load_dbc = lambda path: _shipped(path) if path.parent == PROFILE_DIR else load_dbc(path)


def dbc(data: bytes) -> None:
    """A DBC file."""
    try:
        messages = parse_dbc(data)
    except DbcError as e:
        assert str(e)
        return
    for m in messages.values():
        assert 0 <= m.id < 1 << 29 and m.length >= 0 and m.period_ms >= 0.0
        for s in m.signals.values():
            assert s.start >= 0 and 1 <= s.length <= 64 and math.isfinite(s.scale) and math.isfinite(s.offset), s
            for payload in PAYLOADS:
                row = Signal("p", s.start, s.length, s.byte_order, s.signed, s.real, s.scale, s.offset, mux=s.mux)
                check_value(f"{s}", decode_signal(row, payload)[0], -math.inf, math.inf)


def profile(data: bytes) -> None:
    """A device profile: Modbus, CAN, or one beside the tick."""
    if b'"shelf"' in data:
        return shelf(data)
    try:
        made = parse_profile(data.decode("utf-8", "replace"), str(PROFILE_DIR / "fuzz.toml"))
    except ProfileError as e:
        assert e.problems and all(str(p) for p in e.problems)
        return
    if isinstance(made, CanMap):
        _can_profile(made)
    else:
        _modbus_profile(made)


def shelf(data: bytes) -> None:
    """A profile of a device beside the tick."""
    try:
        made = parse_shelf(data.decode("utf-8", "replace"), "fuzz.toml")
    except ProfileError as e:
        assert e.problems and all(str(p) for p in e.problems)
        return
    for block in (made.sweep, *made.slow):
        assert 1 <= block.count <= 125 and block.addr >= 0 and block.addr + block.count <= 65536
        for item in block.items:
            for word in WORDS:
                words = block.part(item, [word] * block.count)
                assert len(words) == item.words
                item.decode(words)
                assert item.kind == "text" or math.isfinite(item.number(words)), item
    for w in made.writes:
        for value in (0, 1, 0xFFFF, -1, 1 << 16):
            assert w.refused(value) or 0 <= w.raw(value, 0xFFFF) <= 0xFFFF


def _can_profile(made: CanMap) -> None:
    for s in (s for f in made.frames for s in f.signals if not s.permit):
        for payload in PAYLOADS:
            allowed = tuple(v for _, v in s.map) + ((s.offset,) if s.length == 0 else ())
            check_value(f"{s}", decode_signal(s, payload)[0], s.lo, s.hi, allowed)
    for t in made.transmits:
        for s in t.signals:
            for value in VALUES:
                out = encode_signal(s, value, bytes(t.length))
                assert math.isfinite(value) or out is None
    problems: list[PlanProblem] = []
    bus = plan_can([CanSpec("c", "slcan:memory")], [DeviceSpec("d", made.role, "c", 1, made)], {}, problems).get("c")
    if bus is None or problems:
        return
    bench = ScanBench([CanScan(bus)], lambda bus, frame, now: len(frame))
    bench.ask(gate=1)
    bench.open(0, 0)
    for k in range(1, 8):
        for f in made.frames:
            payload = PAYLOADS[k % len(PAYLOADS)].hex()
            head = f"T{f.id & 0x1FFFFFFF:08X}8" if f.ext else f"t{f.id & 0x7FF:03X}8"
            bench.bytes(0, f"{head}{payload}\r".encode(), k * 10_000_000)
        bench.tick(k, k * 10_000_000, k * 10_000_000)
        bench.outputs(k, k * 10_000_000)


def _modbus_profile(made: DeviceMap) -> None:
    for f in (*made.fields, *(f for w in made.writes for f in w.read_fields)):
        for word in WORDS:
            check_value(f"{f}", decode_words(f, [word] * f.words), f.lo, f.hi, tuple(v for _, v in f.map))
    for e in (e for w in made.writes for e in w.encodes):
        for value in VALUES:
            out = encode_words(e, value)
            assert math.isfinite(value) or out is None
    try:
        plan = plan_site([BusSpec("a", "", 460800)], [DeviceSpec("d", made.role, "a", 1, made)])
    except PlanError as e:
        assert str(e)
        return
    bench = ScanBench([BusScan(t) for t in plan.tables], lambda bus, frame, now: len(frame))
    bench.ask(gate=1)
    for k in range(1, 8):
        bench.tick(k, k * 10_000_000, k * 10_000_000)
        bench.outputs(k, k * 10_000_000)


def site(data: bytes) -> None:
    """A site file."""
    label = "fuzz.toml"
    text = data.decode("utf-8", "replace")
    try:
        made = sites.load(label, text=text)
    except SiteError as e:
        assert e.problems and all(str(p) for p in e.problems)
        made = None
    try:
        after = sitefile.edited(text, dict([CHANGES[len(data) % len(CHANGES)]]))
    except sitefile.SiteFileError as e:
        assert str(e)
    else:
        tomllib.loads(after)
    if made is None:
        return
    for key, row in SETTINGS.items():
        if key in made.values and row.kind != "str":
            x = made.values[key]
            assert isinstance(x, (int, float)) and math.isfinite(x) and row.low <= x <= row.high, (key, x)
    again = sites.Site.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made and again.settings_hash() == made.settings_hash()
    whole = sitefile.whole(made, Path("."))
    assert sites.load(label, text=whole).values == made.values
