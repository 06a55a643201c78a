"""Power shelves, battery backup units and a coolant pump on serial lines, emulated: `python -m bench.shelves --config FILE.json`.

    {"buses": {"rack1": {"baud": 19200, "devices": {"orv3_psu": [200, 201]}}}, "load_w": 120e3, "grid_ok": true}

A PTY a bus, paced: an answer is handed over when its last bit would be on the wire, counted from the request's first. stdout: one JSON
line {"ports": {"rack1": "/dev/pts/N"}}; stdin: one JSON object a line, {"set": {"load_w": 90e3}} | {"kill": ["rack1", 200]} |
{"revive": [...]} | {"state": true}, each answered by one line; EOF ends it. Registers are encoded here, from the same public maps that
the profiles were written from, and by nothing of `hal`.

Physics: the racks' load is shared evenly by the PSUs that have AC; efficiency 0.975 less a fixed loss; a PSU's outlet follows its losses
with 60 s. Without AC the BBUs carry the load and their charge falls. The RPU moves heat: flow proportional to pump duty, coolant
warmed by load / (flow * c), the reservoir's 40 kg answering with that time constant.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import struct
import sys
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CHAR_BITS = 11  # 8E1
WATER_J_PER_KG_K = 4186.0
RESERVOIR_KG = 40.0
PSU_RATED_W = {"orv3_psu": 3000.0, "orv3_hpr_psu": 5500.0}
BBU_WH = {"orv3_bbu": 200.0, "orv3_hpr_bbu": 370.0}


def crc16(data: bytes) -> int:
    """CRC-16/MODBUS."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc


def _text(words: int, text: str) -> list[int]:
    data = text.encode("ascii").ljust(2 * words, b"\0")[: 2 * words]
    return list(struct.unpack(f">{words}H", data))


def _long(value: float) -> list[int]:
    return list(struct.unpack(">2H", struct.pack(">I", int(value) & 0xFFFFFFFF)))


def _u16(value: float) -> int:
    return max(0, min(0xFFFF, round(value)))


@dataclass
class Physics:
    """What all devices of the racks share."""

    load_w: float = 120e3
    grid_ok: bool = True
    ambient_c: float = 24.0
    t_s: float = 0.0
    psus: list[Module] = field(default_factory=list)
    bbus: list[Module] = field(default_factory=list)
    pump: float = 0.6
    coolant_in_c: float = 28.0
    coolant_out_c: float = 30.0

    def flow_l_per_min(self) -> float:
        return 120.0 * self.pump

    def advance(self, dt_s: float) -> None:
        """Loads, charge, temperatures."""
        self.t_s += dt_s
        psus = [m for m in self.psus if m.alive and self.grid_ok]
        carried = min(self.load_w, sum(PSU_RATED_W[m.kind] for m in psus))
        for m in self.psus:
            m.p_out_w = carried * PSU_RATED_W[m.kind] / sum(PSU_RATED_W[x.kind] for x in psus) if m in psus else 0.0
            m.p_in_w = m.p_out_w / 0.975 + 25.0 if m in psus else 0.0
            target = self.ambient_c + 0.12 * (m.p_in_w - m.p_out_w)
            m.temp_c += (target - m.temp_c) * (1.0 - math.exp(-dt_s / 60.0))
        bbus = [m for m in self.bbus if m.alive and m.soc > 0.0]
        short = self.load_w - carried if self.load_w - carried > 1.0 else 0.0
        for m in self.bbus:
            m.p_out_w = short / len(bbus) if m in bbus else 0.0
            charge_w = 200.0 if self.grid_ok and m.soc < 1.0 and not m.p_out_w else 0.0
            m.soc = min(1.0, max(0.0, m.soc + (charge_w - m.p_out_w) * dt_s / 3600.0 / BBU_WH[m.kind]))
        kg_per_s = self.flow_l_per_min() / 60.0
        gain_k = self.load_w * 0.3 / max(kg_per_s * WATER_J_PER_KG_K, 1e3)  # 30 % of the heat goes into this loop
        share = 1.0 - math.exp(-dt_s * max(kg_per_s, 0.05) / RESERVOIR_KG)
        self.coolant_out_c += (self.coolant_in_c + gain_k - self.coolant_out_c) * share


@dataclass
class Module:
    """One device on one bus."""

    kind: str
    unit: int
    world: Physics
    alive: bool = True
    p_out_w: float = 0.0
    p_in_w: float = 0.0
    temp_c: float = 24.0
    soc: float = 1.0
    written: dict[int, int] = field(default_factory=dict)

    def words(self, addr: int, count: int) -> list[int] | None:
        """Its registers now; None where it has not all of them."""
        known = _MAPS[self.kind](self) | self.written
        return [known[a] for a in range(addr, addr + count)] if all(a in known for a in range(addr, addr + count)) else None

    def write(self, addr: int, value: int) -> bool:
        """One register; False where it takes none."""
        if addr not in _WRITABLE[self.kind]:
            return False
        self.written[addr] = value
        if self.kind == "orv3_rpu" and addr == 37891:
            self.world.pump = min(100, value) / 100.0
        return True


def _at(addr: int, words: list[int]) -> dict[int, int]:
    return {addr + k: w for k, w in enumerate(words)}


def _psu(m: Module) -> dict[int, int]:
    ok = m.world.grid_ok
    v_out, v_in = (50.0 if m.alive else 0.0), (230.0 if ok else 0.0)
    regs = {a: 0 for a in range(60, 126)}
    regs |= _at(0, _text(8, "03-100038")) | _at(8, _text(8, "BALLAST PSU")) | _at(16, _text(8, "07/2026"))
    regs |= _at(24, _text(16, f"SN{m.unit:03d}")) | _at(40, _text(4, "WO1")) | _at(44, _text(4, "HW2")) | _at(48, _text(4, "FW1.07"))
    regs |= _at(52, _long(86400 + m.world.t_s)) | _at(54, _long(m.world.t_s)) | {56: 3, 57: 1}
    regs |= {60: 0 if ok else 1 << 8, 61: 0 if ok else 1 << 8, 67: 5000, 68: 5100}
    regs |= {69: _u16(m.world.ambient_c * 128), 70: _u16(m.temp_c * 128), 71: _u16(m.temp_c * 128), 72: _u16(m.world.ambient_c * 128)}
    regs |= {79: _u16(v_out * 1024), 80: _u16(m.p_out_w / 50.0 * 64), 81: _u16(m.p_out_w / 50.0 * 64), 82: _u16(m.p_out_w * 8)}
    regs |= {83: _u16(420 * 64), 84: 50 if ok else 0, 85: _u16(0.03 * 512), 86: _u16(0.99 * 512), 87: _u16(m.p_in_w * 8)}
    regs |= {88: _u16(v_in * 64), 89: _u16(m.p_in_w / 230.0 * 1024), 94: 1 << 11, 95: 1}
    for a in (91, 100) if m.kind == "orv3_hpr_psu" else (91,):  # holes of the map
        regs.pop(a, None)
    return regs | _at(106 if m.kind == "orv3_psu" else 105, _text(4, "BL0.9"))


def _bbu(m: Module) -> dict[int, int]:
    hpr = m.kind == "orv3_hpr_bbu"
    regs = {a: 0 for a in range(80, 314)}
    regs |= _at(0, _text(8, "BALLAST")) | _at(8, _text(8, "BBU")) | _at(16, _text(8, "07/2026")) | _at(24, _text(8, "03-100039"))
    regs |= _at(48, _text(2, "A")) | _at(52, _text(4, "HW1")) | _at(56, _text(4, "FW2")) | _at(60, _text(4, "WO2"))
    regs |= _at(64, _text(16, f"BB{m.unit:03d}"))
    regs |= {107: 1 << 1 if m.p_out_w else (1 if m.soc < 1.0 else 0), 142: 100, **{109 + k: 3900 for k in range(11)}}
    soc, volt, amp = _u16(100 * m.soc), 44000, _u16(m.p_out_w / 44.0 * 100)
    temp = _u16((m.world.ambient_c + 273.15) * 10)
    if hpr:
        return regs | {90: temp, 91: temp, 92: temp, 93: temp, 94: soc, 95: soc, 96: volt, 97: amp, 98: amp}
    return regs | {122: 24, 123: 24, 124: 24, 125: 24, 126: soc, 127: soc, 128: volt, 129: amp}


def _pmm(m: Module) -> dict[int, int]:
    regs = {a: 0 for a in range(76, 126)}
    regs |= _at(0, _text(8, "03-100040")) | _at(8, _text(8, "BALLAST")) | _at(16, _text(8, "PMM")) | _at(24, _text(8, "07/2026"))
    regs |= _at(32, _text(16, f"PM{m.unit:03d}")) | _at(48, _text(4, "WO3")) | _at(52, _text(4, "HW1")) | _at(56, _text(4, "FW3"))
    regs |= _at(76, _long(86400 + m.world.t_s)) | _at(78, _long(m.world.t_s)) | {87: 0x3F, 90: 0x3F, 113: m.unit}
    return regs


_RPU_RUNS = (  # (first register, how many): the map has holes
    (6561, 12), (6596, 32), (6628, 8), (6636, 2), (6639, 2), (6642, 26), (36864, 26), (36912, 8), (37120, 23), (37375, 5), (37888, 5),
    (37904, 2), (40960, 46), (41088, 1), (41216, 95), (41473, 2), (41985, 5), (42112, 1),
)  # fmt: skip


def _rpu(m: Module) -> dict[int, int]:
    w = m.world
    regs = {a: 0 for base, n in _RPU_RUNS for a in range(base, base + n)}
    regs |= _at(6604, _text(8, "BALLAST RPU")) | _at(6616, _text(8, f"RP{m.unit:03d}")) | _at(6636, _long(86400 + w.t_s))
    regs |= {36864: _u16(10 * w.flow_l_per_min()), 36865: _u16(10 * w.coolant_out_c), 36866: _u16(10 * w.coolant_in_c)}
    regs |= {36867: 2100, 36868: 1500, 36869: _u16(10 * (80 + 900 * w.pump**3)), 36871: 480, 36872: _u16(10 * w.ambient_c)}
    return regs | {36873: _u16(100 * w.pump), 36874: _u16(8000 * w.pump), 36875: _u16(8000 * w.pump), 37891: _u16(100 * w.pump)}


_MAPS: dict[str, Callable[[Module], dict[int, int]]] = {
    "orv3_psu": _psu, "orv3_hpr_psu": _psu, "orv3_bbu": _bbu, "orv3_hpr_bbu": _bbu, "orv3_hpr_pmm_psu": _pmm, "orv3_hpr_pmm_bbu": _pmm,
    "orv3_rpu": _rpu,
}  # fmt: skip
_WRITABLE: dict[str, tuple[int, ...]] = {
    "orv3_psu": (94, 97), "orv3_hpr_psu": (94, 97), "orv3_bbu": (291, 292, 305, 313), "orv3_hpr_bbu": (231, 291, 305, 313),
    "orv3_hpr_pmm_psu": (), "orv3_hpr_pmm_bbu": (), "orv3_rpu": (37891,),
}  # fmt: skip


@dataclass
class Bus:
    """One line: what has come of a request, and the answer that is on its way."""

    name: str
    baud: int
    modules: dict[int, Module]
    master: int = -1
    slave: int = -1
    rx: bytes = b""
    began: float = 0.0  # when the request's first bit stood on the wire
    due: float = math.inf
    out: bytes = b""
    requests: int = 0

    @property
    def char_s(self) -> float:
        return CHAR_BITS / self.baud

    @property
    def t35_s(self) -> float:
        return 1.75e-3 if self.baud > 19200 else 3.5 * self.char_s

    def feed(self, data: bytes, now: float) -> None:
        """Bytes of the master; a whole request sets when its answer is due."""
        if not self.rx or now - self.began > 0.05:
            self.rx, self.began = b"", now
        self.rx += data
        length = 8 if len(self.rx) < 2 or self.rx[1] in (3, 4, 6) else 9 + self.rx[6] if len(self.rx) > 6 else 9
        if len(self.rx) < length:
            return
        frame, self.rx = self.rx[:length], b""
        if crc16(frame[:-2]) != frame[-2] | frame[-1] << 8:
            return
        module = self.modules.get(frame[0])
        if module is None or not module.alive:
            return
        self.requests += 1
        # What the registers hold is taken when the request is recognised.
        taken = self.began + len(frame) * self.char_s + self.t35_s
        body = self._answer(module, frame)
        self.out = body + struct.pack("<H", crc16(body))
        self.due = taken + len(self.out) * self.char_s

    @staticmethod
    def _answer(m: Module, frame: bytes) -> bytes:
        fc, (addr, count) = frame[1], struct.unpack(">HH", frame[2:6])
        if fc in (3, 4):
            words = m.words(addr, count)
            if words is not None:
                return bytes([m.unit, fc, 2 * count]) + struct.pack(f">{count}H", *words)
            return bytes([m.unit, fc | 0x80, 2])
        if fc == 6:
            return frame[:-2] if m.write(addr, count) else bytes([m.unit, fc | 0x80, 2])
        return bytes([m.unit, fc | 0x80, 1])


class Racks:
    """All buses, in one thread."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.world = Physics(float(config.get("load_w", 120e3)), bool(config.get("grid_ok", True)))
        self.buses = [self._bus(name, row) for name, row in config["buses"].items()]
        self.epoch = time.monotonic()

    def _bus(self, name: str, row: dict[str, Any]) -> Bus:
        modules = {}
        for kind, units in row["devices"].items():
            for unit in units:
                modules[unit] = m = Module(kind, unit, self.world)
                if kind in PSU_RATED_W:
                    self.world.psus.append(m)
                if kind in BBU_WH:
                    self.world.bbus.append(m)
        bus = Bus(name, int(row["baud"]), modules)
        bus.master, bus.slave = os.openpty()
        tty.setraw(bus.slave)
        os.set_blocking(bus.master, False)
        return bus

    def ports(self) -> dict[str, str]:
        return {b.name: os.ttyname(b.slave) for b in self.buses}

    def command(self, message: dict[str, Any]) -> dict[str, Any]:
        """One line of stdin."""
        if "set" in message:
            for key, value in message["set"].items():
                if key not in ("load_w", "grid_ok", "ambient_c"):
                    return {"error": f"no setting {key}"}
                setattr(self.world, key, value)
        for key, alive in (("kill", False), ("revive", True)):
            if key in message:
                name, unit = message[key]
                next(b for b in self.buses if b.name == name).modules[unit].alive = alive
        self.world.advance(1e-6)
        return {
            "ok": True, "requests": {b.name: b.requests for b in self.buses}, "p_out_w": sum(m.p_out_w for m in self.world.psus),
            "p_in_w": sum(m.p_in_w for m in self.world.psus), "pump": self.world.pump, "coolant_out_c": self.world.coolant_out_c,
        }  # fmt: skip

    def run(self) -> None:
        """Until stdin ends."""
        masters = {b.master: b for b in self.buses}
        last = time.monotonic()
        text = b""
        while True:
            due = min(b.due for b in self.buses)
            wait = max(0.0, min(due - time.monotonic(), 0.05))
            ready = select.select([*masters, 0], [], [], wait)[0]
            now = time.monotonic()
            if now - last >= 0.001:
                self.world.advance(now - last)
                last = now
            for fd in ready:
                if fd == 0:
                    data = os.read(0, 65536)
                    if not data:
                        return
                    *lines, text = (text + data).split(b"\n")
                    for line in lines:
                        print(json.dumps(self.command(json.loads(line))), flush=True)
                else:
                    masters[fd].feed(os.read(fd, 512), now)
            for b in self.buses:
                if b.due <= time.monotonic():
                    os.write(b.master, b.out)
                    b.due, b.out = math.inf, b""


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.shelves")
    parser.add_argument("--config", required=True)
    args = parser.parse_args(argv)
    with open(args.config, encoding="utf-8") as file:
        racks = Racks(json.load(file))
    try:  # an emulator that is late makes a measurement of itself: first in line, where the system allows
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
    except OSError as e:
        print(f"shelves: no SCHED_FIFO ({e.strerror}): answers may come late", file=sys.stderr)
    print(json.dumps({"ports": racks.ports()}), flush=True)
    racks.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
