"""A small RTU master of the tests' own: frames by hand, so that no decoder is shared with what is tested."""

from __future__ import annotations

import struct
from typing import Any

from bench.plant import config
from bench.plant.plant import VirtualPlant

MS = 1_000_000
S = 1_000_000_000
M701, M702, M704, M715, M802, M803 = 40070, 40225, 40277, 40344, 40070, 40134
CHAR_NS = 11 / 460800 * 1e9


def with_crc(body: bytes) -> bytes:
    c = 0xFFFF
    for x in body:
        c ^= x
        for _ in range(8):
            c = c >> 1 ^ 0xA001 if c & 1 else c >> 1
    return body + struct.pack("<H", c)


def read_frame(unit: int, addr: int, n: int, fc: int = 3) -> bytes:
    return with_crc(struct.pack(">BBHH", unit, fc, addr, n))


def write_frame(unit: int, addr: int, regs: list[int]) -> bytes:
    head = struct.pack(">BBHHB", unit, 16, addr, len(regs), 2 * len(regs))
    return with_crc(head + struct.pack(f">{len(regs)}H", *(r & 0xFFFF for r in regs)))


def setpoint_frame(watts: int, ena: int = 1) -> bytes:
    w = watts & 0xFFFFFFFF
    return write_frame(1, M704 + 22, [ena, 1, w >> 16, w & 0xFFFF])


def plant(load: Any = 300e3, params: dict[str, float] | None = None, **more: Any) -> VirtualPlant:
    """A started plant (t0 = 0) with an unchanging load unless told otherwise."""
    c = config.builtin()
    c["load"] = load if isinstance(load, dict) else {"trace": load}
    c["params"] = params or {}
    c["duration_s"] = 1000
    c |= more
    v = VirtualPlant(c)
    v.start(0)
    return v


class Master:
    """Talks to a plant in virtual time: one request, its answer, and when."""

    def __init__(self, v: VirtualPlant, t_ns: int = 10 * MS) -> None:
        self.v, self.t_ns = v, t_ns

    def ask(
        self, port: str, frame: bytes, at_ns: int | None = None, wait_ns: int = 20 * MS
    ) -> tuple[bytes | None, int]:
        """(answer or None, instant of its last bit - instant of the request's first)."""
        t0 = self.t_ns if at_ns is None else at_ns
        self.v.run(t0)
        self.v.rx(port, frame, t0)
        got = self.v.run(t0 + wait_ns)
        self.t_ns = t0 + wait_ns
        if not got:
            return None, 0
        assert all(p == self.v.ports[port] for p, _, _ in got)
        return b"".join(b for _, b, _ in got), got[-1][2] - t0

    def regs(self, port: str, unit: int, addr: int, n: int, **kw: Any) -> list[int]:
        answer, _ = self.ask(port, read_frame(unit, addr, n), **kw)
        assert answer is not None and answer[1] == 3, answer
        assert answer == with_crc(answer[:-2])
        return list(struct.unpack(f">{n}H", answer[3:-2]))

    def meter(self, **kw: Any) -> tuple[float, ...]:
        answer, _ = self.ask("a", read_frame(1, 0, 12), **kw)
        assert answer is not None
        return struct.unpack(">6f", answer[3:27])

    def write(self, port: str, unit: int, addr: int, regs: list[int], **kw: Any) -> bytes | None:
        return self.ask(port, write_frame(unit, addr, regs), **kw)[0]

    def start_pcs(self) -> None:
        """To RUNNING: OpCtl START, then the start time."""
        self.write("b", 1, M715 + 8, [1], wait_ns=600 * MS)
        assert self.regs("b", 1, M701 + 4, 1) == [3]


def i16(x: int) -> int:
    return x - 0x10000 if x & 0x8000 else x
