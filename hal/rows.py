"""The flat rows a device compiles to, whether it came as a profile or by a SunSpec scan. Frozen data, no behaviour at
run time.

Signs, units and scales live here and nowhere else: `value = sign * (raw * scale + offset)` when read, its inverse when
written.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from typing import Any

TYPE_WORDS = {"u16": 1, "i16": 1, "u32": 2, "i32": 2, "f32": 2, "u64": 4, "i64": 4}
TYPES = tuple(TYPE_WORDS)  # order = T_* of codec.pxd
MAX_READ_REGISTERS = 125  # Modbus application protocol V1.1b3, 6.3
MAX_WRITE_REGISTERS = 121  # the smaller of FC16 (123) and FC23 (121)

# rate of a read: when in the tick, and how often
FAST = "fast"  # at the tick; the kernel waits for it
READBACK = "readback"  # after the command, every tick that has room
SLOW = "slow"  # after the command, round robin with the bus's other slow reads
SECOND = "second"  # after the command, once per second
RATES = (FAST, READBACK, SLOW, SECOND)

# purpose of a write
COMMAND = "command"  # every tick, as soon as the kernel has stepped
HEARTBEAT = "heartbeat"  # once per second
REVERSION = "reversion"  # the whole reversion setting: once after every start or return of the device, and when it changes
RENEW = "renew"  # the reversion timer alone, at least every third of it
OP_START = "op_start"
OP_EXIT_STANDBY = "op_exit_standby"  # instead of OP_START where the device says STANDBY
OP_STOP = "op_stop"
ALARM_RESET = "alarm_reset"
PURPOSES = (COMMAND, HEARTBEAT, REVERSION, RENEW, OP_START, OP_EXIT_STANDBY, OP_STOP, ALARM_RESET)

# canonical signals by role, as the group structs of _core/image.pxd name them
ROLE_SIGNALS: dict[str, tuple[str, ...]] = {
    "meter": ("grid_p_w", "q_var", "v1_v", "v2_v", "v3_v", "f_hz"),
    "pcs": (
        "batt_p_w", "pcs_q_var", "pcs_s_va", "pcs_state", "pcs_conn", "pcs_alarm", "pcs_der_mode", "pcs_v_v",
        "pcs_f_hz",
        "wset_ena", "wset_w", "wset_rvrt_w", "wset_rvrt_ena", "wset_rvrt_s", "wset_rvrt_rem_s", "pcs_local",
        "pcs_heartbeat",
    ),
    "bms": (
        "soc", "soh", "bms_state", "bms_events", "bms_heartbeat", "batt_v", "batt_i_a", "batt_i_charge_max_a",
        "batt_i_discharge_max_a", "batt_p_charge_max_w", "batt_p_discharge_max_w", "batt_temp_max_c", "batt_temp_min_c",
    ),
    "pv": ("pv_p_w",),
    "genset": ("gen_p_w",),
}  # fmt: skip
SOURCES = ("p_cmd_w", "q_cmd_var", "enable", "heartbeat", "rvrt_s")  # what a write may carry: fields of Outputs


@dataclass(frozen=True)
class Field:
    """One value read: where it stands, how it is coded, which signal it feeds (SI, sign of the contract)."""

    signal: str
    addr: int  # register, counted from 0
    type: str
    fc: int = 3
    rate: str = SLOW
    word_order: str = "big"
    byte_order: str = "big"
    scale: float = 1.0
    offset: float = 0.0
    sign: int = 1
    mask: int = 0  # 0: all bits; otherwise value = (raw & mask) >> its lowest bit
    nan: tuple[int, ...] = ()  # raw bits that say "not implemented"
    map: tuple[tuple[int, float], ...] = ()  # enumeration of the device -> numbering of the contract
    lo: float = -math.inf
    hi: float = math.inf
    needed: bool = True  # absent or out of range: the group is bad

    @property
    def words(self) -> int:
        return TYPE_WORDS[self.type]


@dataclass(frozen=True)
class Encode:
    """One value written: a field of Outputs, or a constant."""

    addr: int
    type: str
    source: str = ""  # "": const
    const: float = 0.0
    word_order: str = "big"
    byte_order: str = "big"
    scale: float = 1.0
    offset: float = 0.0
    sign: int = 1
    lo: float = -math.inf  # SI, before scaling
    hi: float = math.inf
    toward_zero: bool = False  # powers: rounding must never exceed a limit
    wrap: bool = False  # a counter: modulo the register instead of saturation

    @property
    def words(self) -> int:
        return TYPE_WORDS[self.type]


@dataclass(frozen=True)
class Write:
    """One write transaction: registers addr .. addr+count-1 without gaps. FC23 also reads `read_addr`, `read_count`
    (its fields decode)."""

    purpose: str
    encodes: tuple[Encode, ...]
    fc: int = 16
    cyclic_write: str = "unknown"
    read_fields: tuple[Field, ...] = ()

    @property
    def addr(self) -> int:
        return min(e.addr for e in self.encodes)

    @property
    def count(self) -> int:
        return max(e.addr + e.words for e in self.encodes) - self.addr


@dataclass(frozen=True)
class Verify:
    """Registers that must equal what was compiled: identity, model headers, scale factors."""

    name: str
    addr: int
    words: tuple[int, ...]
    fc: int = 3


@dataclass(frozen=True)
class DeviceMap:
    """A device as data: what a profile or a scan yields, and what the plan places on a bus."""

    name: str
    role: str
    fields: tuple[Field, ...] = ()
    writes: tuple[Write, ...] = ()
    verify: tuple[Verify, ...] = ()
    window_ms: float = 0.0  # averaging window of the measurement; the value stands for its middle
    update_ms: float = 0.0  # refresh period; 0: at every request
    turnaround_ms: float = 0.0  # from the request's detection to the answer's first bit
    sample: str = "request"  # "request": sampled when the request is detected; "answer": when the answer begins
    max_registers: int = MAX_READ_REGISTERS
    gap_registers: int = 16  # registers nobody needs that a block read may span
    blocks: tuple[tuple[int, int, int, str], ...] = ()  # (fc, addr, count, rate): reads that are to be made in one piece
    fc23: bool = False  # FC23 may be tried for command and readback; the device need not have it
    assumed: bool = False  # shapes only: scale factors were not read from a device
    info: dict[str, Any] = field(default_factory=dict)  # for people: manufacturer, model, serial number, ratings

    def signals(self) -> set[str]:
        return {f.signal for f in self.fields} | {f.signal for w in self.writes for f in w.read_fields}


@dataclass(frozen=True)
class Read:
    """One block read that serves several fields."""

    fc: int
    addr: int
    count: int
    rate: str
    fields: tuple[Field, ...]


def pack(device: DeviceMap, max_registers: int) -> tuple[Read, ...]:
    """Block reads of at most `max_registers` that serve all fields. The device's own blocks first, where they fit; the
    rest joined, but never across a hole wider than `gap_registers`: many devices answer exception 2 for holes, and a
    wide hole costs more wire time than a second request. Reads are split between fields, never inside one."""
    limit = min(max_registers, device.max_registers)
    reads: list[Read] = []
    rest = list(device.fields)
    for fc, addr, count, rate in device.blocks:
        inside = [f for f in rest if (f.fc, f.rate) == (fc, rate) and addr <= f.addr and f.addr + f.words <= addr + count]
        if inside and count <= limit:
            reads.append(Read(fc, addr, count, rate, tuple(sorted(inside, key=lambda f: f.addr))))
            rest = [f for f in rest if f not in inside]
    for rate in RATES:
        for fc in (3, 4):
            rows = sorted((f for f in rest if f.rate == rate and f.fc == fc), key=lambda f: f.addr)
            reads += _join(fc, rate, rows, limit, device.gap_registers)
    return tuple(reads)


def _join(fc: int, rate: str, rows: list[Field], limit: int, gap: int) -> list[Read]:
    reads: list[Read] = []
    block: list[Field] = []
    for row in rows:
        if block:
            start, end = block[0].addr, max(f.addr + f.words for f in block)
            if row.addr - end > gap or max(end, row.addr + row.words) - start > limit:
                reads.append(_block(fc, rate, block))
                block = []
        block.append(row)
    return [*reads, _block(fc, rate, block)] if block else reads


def _block(fc: int, rate: str, rows: list[Field]) -> Read:
    start = rows[0].addr
    return Read(fc, start, max(f.addr + f.words for f in rows) - start, rate, tuple(rows))


def with_rate(device: DeviceMap, old: str, new: str) -> DeviceMap:
    """The same device with every field of rate `old` read at rate `new`."""
    return replace(
        device,
        fields=tuple(replace(f, rate=new) if f.rate == old else f for f in device.fields),
        blocks=tuple((fc, a, n, new if rate == old else rate) for fc, a, n, rate in device.blocks),
    )


def to_words(value: float, type_: str, word_order: str = "big", byte_order: str = "big") -> tuple[int, ...]:
    """Registers that hold `value` (already scaled) as `type_`; for identity rows and constants."""
    code = {"u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "u64": "Q", "i64": "q"}[type_]
    raw = struct.pack(">" + code, value if type_ == "f32" else round(value))
    words = [int.from_bytes(raw[i : i + 2], "big" if byte_order == "big" else "little") for i in range(0, len(raw), 2)]
    return tuple(words if word_order == "big" else words[::-1])
